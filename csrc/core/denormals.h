// Denormal numbers, those below the smallest with a full mantissa, take many processors a hundred cycles and more each:
// a layer whose activations have died away would take a hundred times as long as any other.
#pragma once
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastconv {
namespace {

// As long as it lives, arithmetic of the thread that made it takes denormal numbers for zero and yields zero in their
// place; then everything is as it was. The empty statements keep the compiler from moving loads and stores, and with
// them the arithmetic in between, past the switch. It must not live while a thread is started, which would inherit it:
// PyTorch computes with OpenMP's threads too.
class FlushDenormals {
 public:
  FlushDenormals() : before_(read()) { write(before_ | kFlush); }
  ~FlushDenormals() { write(before_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
#if defined(__x86_64__)
  using Control = uint32_t;
  static constexpr Control kFlush = 0x8040;  // MXCSR: flush to zero (results), denormals are zero (arguments)
  static Control read() { return _mm_getcsr(); }
  static void set(Control control) { _mm_setcsr(control); }
#elif defined(__aarch64__)
  using Control = uint64_t;
  static constexpr Control kFlush = 1 << 24;  // FPCR.FZ, for both, but not for float16
  static Control read() {
    Control control;
    asm volatile("mrs %0, fpcr" : "=r"(control));
    return control;
  }
  static void set(Control control) { asm volatile("msr fpcr, %0" : : "r"(control)); }
#else
  using Control = uint32_t;
  static constexpr Control kFlush = 0;
  static Control read() { return 0; }
  static void set(Control) {}
#endif
  static void write(Control control) {
    asm volatile("" : : : "memory");
    set(control);
    asm volatile("" : : : "memory");
  }

  const Control before_;
};

}  // namespace
}  // namespace fastconv
