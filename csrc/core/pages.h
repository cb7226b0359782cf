// Large pages for large results.
//
// What is larger than some MB malloc takes from the system anew in every call, and gives back. Its pages are made when
// they are first written to, 4 KB at a time, and that can take longer than what writes there: 50 MB took 17 ms on two
// threads of a Xeon (a virtual machine), of which filling them was 2. With pages of 2 MB they took 6. Linux makes such
// pages for memory of which it is told that they are welcome, if it is set to `madvise` (most distributions) or
// `always`; NumPy tells it so as well. Elsewhere nothing happens.
#pragma once
#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "core/view.h"

namespace fastconv {

constexpr int64_t size_of(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }

// Of memory that all of will be written to: then large pages take no more of it.
inline void welcome_large_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t kLeast = 4 << 20;
  constexpr uintptr_t kPage = 2 << 20;
  if (bytes < kLeast) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // no matter if it fails
#endif
}

}  // namespace fastconv
