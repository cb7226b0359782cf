#include "core/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#ifdef FASTCONV_HAS_avx512
#include <cpuid.h>
#endif
#ifdef FASTCONV_HAS_amx
#include <sys/syscall.h>
#endif
#ifdef __linux__
#include <unistd.h>
#endif

namespace fastconv {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16", "amx"};

int find(const char* name) {
  for (int i = 0; i < 5; ++i)
    if (std::strcmp(kNames[i], name) == 0) return i;
  return -1;
}

#ifdef FASTCONV_HAS_amx
// The tiles' 8 KB of registers are given by Linux on request, once for all threads of the process.
bool amx_permitted() {
#ifdef __linux__
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  static const bool permitted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return permitted;
#else
  return false;
#endif
}

// __builtin_cpu_supports knows the two only from later compilers on.
bool amx_bf16_in_cpu() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1);
}
#endif

Isa use(Isa isa) {
  isa_rounds_bfloat16.store(isa >= Isa::kAvx512Bf16, std::memory_order_relaxed);
  return isa;
}

// FASTCONV_CPU_ISA caps what is used; Python refuses an unknown name before this library is loaded.
Isa initial() {
  const char* cap = std::getenv("FASTCONV_CPU_ISA");
  const int supported = static_cast<int>(isa_supported());
  const int wanted = cap ? find(cap) : supported;
  return use(static_cast<Isa>(wanted >= 0 && wanted < supported ? wanted : supported));
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> value{initial()};
  return value;
}

}  // namespace

std::atomic<bool> isa_rounds_bfloat16{false};

Isa isa_supported() {
#ifdef FASTCONV_HAS_avx512
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
#ifdef FASTCONV_HAS_amx
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  if (bf16) return amx_bf16_in_cpu() && amx_permitted() ? Isa::kAmx : Isa::kAvx512Bf16;
#endif
  return avx512 ? Isa::kAvx512 : avx2 ? Isa::kAvx2 : Isa::kBaseline;
#else
  return Isa::kBaseline;
#endif
}

Isa isa() { return current().load(std::memory_order_relaxed); }

// Zen 4 (AMD's family 25) works on 512 bits as two halves.
bool isa_halves_vectors() {
#ifdef FASTCONV_HAS_avx512
  static const bool zen4 = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(0, &a, &b, &c, &d) || b != signature_AMD_ebx) return false;
    return __get_cpuid(1, &a, &b, &c, &d) && (a >> 8 & 15) + (a >> 20 & 255) == 25;
  }();
  return zen4 && isa() >= Isa::kAvx512;
#else
  return false;
#endif
}

int64_t last_cache_bytes() {
#ifdef _SC_LEVEL3_CACHE_SIZE
  static const int64_t bytes = [] {
    const long third = sysconf(_SC_LEVEL3_CACHE_SIZE), second = sysconf(_SC_LEVEL2_CACHE_SIZE);
    return static_cast<int64_t>(third > 0 ? third : second > 0 ? second : 0);
  }();
  return bytes;
#else
  return 0;
#endif
}

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

bool isa_select(const char* name) {
  const int wanted = find(name);
  if (wanted < 0 || wanted > static_cast<int>(isa_supported())) return false;
  std::atomic<Isa>& isa = current();  // which sets the flag of the initial one, the first time
  isa.store(use(static_cast<Isa>(wanted)), std::memory_order_relaxed);
  return true;
}

}  // namespace fastconv
