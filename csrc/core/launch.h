// How a kernel is started: `launch(kernel, grid, block, shared, stream, params)` in place of `<<<>>>`, so that the same
// launcher runs a kernel on a GPU and, in the tests, on the host (tests/emulator). A kernel takes one plain struct by
// value. Whatever CUDA refuses becomes an exception that names the operator.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/device.cuh"
#ifndef FASTCONV_EMULATOR
#include <cuda_runtime.h>

#include <mutex>
#include <stdexcept>
#include <string>
#endif

namespace fastconv {

// Where a kernel runs, and on whose behalf.
struct Stream {
  const char* op;  // the operator's name, for errors
  int device;
  void* handle;  // cudaStream_t
};

// What a launcher asks about a device before it chooses a grid or a kernel.
struct DeviceLimits {
  int multiprocessors;
  int shared_per_block;  // bytes, with the opt-in that launch() makes where more than 48 KiB are asked for
  int capability;        // 10 * major + minor, of the device or of the newest that kernels were compiled for, if older
  bool warpgroups;       // wgmma: compute capability 9.0 has it, none before and none after
};

constexpr int kMaxDevices = 64;
constexpr int64_t kMaxGrid = (int64_t{1} << 31) - 1;  // blocks along x; along y and z it is 65535, so x is all we use
constexpr size_t kSharedWithoutOptIn = 48 << 10;

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

#ifndef FASTCONV_EMULATOR

inline void check_cuda(const char* op, const char* action, cudaError_t error) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(op) + ": CUDA could not " + action + " (" + cudaGetErrorName(error) + ": " +
                           cudaGetErrorString(error) + ")");
}

inline DeviceLimits device_limits(const Stream& stream) {
  static DeviceLimits known[kMaxDevices];
  static std::once_flag once[kMaxDevices];
  if (stream.device < 0 || stream.device >= kMaxDevices)
    throw std::runtime_error(std::string(stream.op) + ": device index must be below 64 (got " +
                             std::to_string(stream.device) + ")");
  std::call_once(once[stream.device], [&] {
    const auto attribute = [&](cudaDeviceAttr which) {
      int value = 0;
      check_cuda(stream.op, "read a device attribute", cudaDeviceGetAttribute(&value, which, stream.device));
      return value;
    };
    const int chip = 10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
    known[stream.device] = {
        attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
        chip < FASTCONV_NEWEST_CHIP ? chip : FASTCONV_NEWEST_CHIP, chip == 90 && FASTCONV_WARPGROUPS != 0};
  });
  return known[stream.device];
}

template <class Params>
void launch(void (*kernel)(Params), dim3 grid, dim3 block, size_t shared, const Stream& stream, const Params& params) {
  // The runtime linked into this library is not PyTorch's and keeps a current device of its own.
  check_cuda(stream.op, "select the device", cudaSetDevice(stream.device));
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shared > kSharedWithoutOptIn)
    check_cuda(stream.op, "reserve shared memory",
               cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  void* arguments[] = {const_cast<Params*>(&params)};
  check_cuda(stream.op, "launch the kernel",
             cudaLaunchKernel(function, grid, block, arguments, shared, static_cast<cudaStream_t>(stream.handle)));
}

#else

// Few multiprocessors, so that tests reach every loop over a grid; a chip with tensor cores.
inline DeviceLimits device_limits(const Stream&) { return {4, 227 << 10, 90, true}; }

template <class Params>
void launch(void (*kernel)(Params), dim3 grid, dim3 block, size_t shared, const Stream&, const Params& params) {
  emulator::launch(kernel, grid, block, shared, params);
}

#endif

}  // namespace fastconv
