// Pieces of one allocation, the scratch memory of a kernel.
#pragma once
#include <cstdint>

namespace fastconv {
namespace {

// Hands out pieces; before there is an allocation it counts what they take. Whoever asks for the same pieces twice,
// once of each kind, knows how much to allocate.
struct Memory {
  char* base = nullptr;
  bool counts = true;
  int64_t used = 0;

  Memory() = default;
  explicit Memory(void* memory) : base(static_cast<char*>(memory)), counts(false) {}
  template <class T>
  T* take(int64_t count) {
    char* at = counts ? nullptr : base + used;
    used += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(at);
  }
};

}  // namespace
}  // namespace fastconv
