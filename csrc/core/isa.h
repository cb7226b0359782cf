// One set of kernels per instruction set, chosen once. A family's cpu.cpp is compiled once for each (cmake/isa.cmake)
// and defines, in a namespace named after the instruction set, one constant table of function pointers. The tables are
// constants, not objects that register themselves: a static constructor compiled for AVX-512 would crash an older
// machine while the library loads.
#pragma once
#include <atomic>
#include <cstdint>

namespace fastconv {

// From kAvx512 on every level adds a few kernels of its own, and otherwise runs those of kAvx512.
enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAmx };

Isa isa();                          // the one in use
Isa isa_supported();                // the best one that this machine has and this build contains
const char* isa_name(Isa isa);      // "baseline", "avx2", "avx512", "avx512_bf16", "amx"
bool isa_select(const char* name);  // false where the name is unknown or the machine lacks it
bool isa_halves_vectors();          // whether a multiply-add of its vectors starts every cycle, not every half
extern std::atomic<bool> isa_rounds_bfloat16;  // whether the one in use does; false before the first isa()
int64_t last_cache_bytes();                    // of the cache before memory, 0 where that is not known

#ifdef FASTCONV_HAS_avx512
#define FASTCONV_DECLARE_KERNELS(Table, name) \
  namespace baseline {                        \
  extern const Table name;                    \
  }                                           \
  namespace avx2 {                            \
  extern const Table name;                    \
  }                                           \
  namespace avx512 {                          \
  extern const Table name;                    \
  }
#define FASTCONV_KERNELS(name)                                              \
  (::fastconv::isa() >= ::fastconv::Isa::kAvx512 ? ::fastconv::avx512::name \
   : ::fastconv::isa() == ::fastconv::Isa::kAvx2 ? ::fastconv::avx2::name   \
                                                 : ::fastconv::baseline::name)
#else
#define FASTCONV_DECLARE_KERNELS(Table, name) \
  namespace baseline {                        \
  extern const Table name;                    \
  }
#define FASTCONV_KERNELS(name) (::fastconv::baseline::name)
#endif

// Tables that only the levels beyond kAvx512 have (a family's pairs.cpp): a pointer, null at the other levels.
#ifdef FASTCONV_HAS_amx
#define FASTCONV_DECLARE_EXTRA_KERNELS(Table, name) \
  namespace avx512_bf16 {                           \
  extern const Table name;                          \
  }                                                 \
  namespace amx {                                   \
  extern const Table name;                          \
  }
#define FASTCONV_EXTRA_KERNELS(name)                                                    \
  (::fastconv::isa() == ::fastconv::Isa::kAmx          ? &::fastconv::amx::name         \
   : ::fastconv::isa() == ::fastconv::Isa::kAvx512Bf16 ? &::fastconv::avx512_bf16::name \
                                                       : nullptr)
#else
#define FASTCONV_DECLARE_EXTRA_KERNELS(Table, name)
#define FASTCONV_EXTRA_KERNELS(name) (nullptr)
#endif

}  // namespace fastconv
