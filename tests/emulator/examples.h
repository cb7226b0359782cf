// The small kernels that the emulator itself is tested with share one signature, so that one entry runs them all.
#pragma once
#include "core/launch.h"

struct ExampleParams {
  const void* input;
  const void* other;
  void* output;
  int64_t n;
};

struct Example {
  const char* name;
  void (*kernel)(ExampleParams);
};

const Example* find_broken(const char* name);  // nullptr where there is none
