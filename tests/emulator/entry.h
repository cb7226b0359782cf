// How the emulator's entries hand an error to Python: as a string, or nullptr where all is well.
#pragma once
#include <exception>
#include <string>

template <class Body>
const char* error_of(const Body& body) {
  static std::string message;
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}
