// The library's CUDA kernels as the emulator runs them: one entry per operator, called by the tests of its family.
#include <cstring>

#include "conv/cuda.cuh"
#include "conv/turn.h"
#include "deform/cuda.cuh"
#include "entry.h"
#include "pool/cuda.cuh"
#include "rearrange/cuda.cuh"
#include "roi/cuda.cuh"

extern "C" const char* emulated_transpose(const void* input, void* output, int64_t outer, int64_t rows, int64_t columns,
                                          int64_t inner, int64_t element_size, int64_t max_grid) {
  return error_of([&] {
    const fastconv::TransposeParams params{input, output, outer, rows, columns, inner, element_size, 1};
    fastconv::transpose(params, {"channel_shuffle", 0, nullptr}, max_grid);
  });
}

// The divisions that kernels do by multiplication: how many of `count` dividends come out wrong.
extern "C" int64_t emulated_divisor_errors(uint32_t divisor, const uint32_t* dividends, int64_t count) {
  const fastconv::Divisor<uint32_t> by(divisor);
  int64_t wrong = 0;
  for (int64_t i = 0; i < count; ++i) wrong += by.divide(dividends[i]) != dividends[i] / divisor;
  return wrong;
}

// The planes kernel for tensors whose samples pass 2^31 elements, at a size that a test can afford.
extern "C" const char* emulated_transpose_64(const void* input, void* output, int64_t outer, int64_t rows,
                                             int64_t columns, int64_t inner) {
  return error_of([&] {
    const fastconv::TransposeParams params{input, output, outer, rows, columns, inner, 2, 1};
    fastconv::launch_planes<uint32_t, uint16_t, uint64_t>(params, 2 * inner, 2, {"channel_shuffle", 0, nullptr},
                                                          fastconv::kMaxGrid);
  });
}

// An operator of the pooling family by its name. `axes`: the seven fields of each of the two axes; `limits`: those of
// PoolLimits.
extern "C" const char* emulated_pool(const char* name, int64_t dtype, int64_t channels_last, int64_t N, int64_t C,
                                     const int64_t* axes, void* input, void* output, void* ids, int64_t id_bytes,
                                     void* indices, int64_t divisor, int64_t padding_counts, void* seed,
                                     const int64_t* limits) {
  return error_of([&] {
    using namespace fastconv;
    const auto axis = [](const int64_t* a) { return PoolAxis{a[0], a[1], a[2], a[3], a[4], a[5], a[6] != 0}; };
    PoolParams p = {};
    p.dtype = static_cast<Dtype>(dtype);
    p.channels_last = channels_last != 0;
    p.N = N;
    p.C = C;
    p.h = axis(axes);
    p.w = axis(axes + 7);
    p.input = input;
    p.output = output;
    p.ids = ids;
    p.id_bytes = static_cast<int>(id_bytes);
    p.indices = static_cast<int64_t*>(indices);
    p.divisor = static_cast<double>(divisor);
    p.padding_counts = padding_counts != 0;
    p.seed = static_cast<const int64_t*>(seed);
    constexpr struct {
      const char* name;
      void (*run)(const PoolParams&, const Stream&, const PoolLimits&);
    } kOperators[] = {
        {"max", pool_max},
        {"max_backward", pool_max_backward},
        {"max_pick", pool_max_pick},
        {"max_indices", pool_max_indices},
        {"avg", pool_avg},
        {"avg_backward", pool_avg_backward},
        {"l2", pool_l2},
        {"stochastic", pool_stochastic},
        {"weighted", pool_weighted},
    };
    for (const auto& op : kOperators)
      if (std::strcmp(op.name, name) == 0) return op.run(p, {"pool", 0, nullptr}, {limits[0], limits[1], limits[2]});
    throw std::invalid_argument(std::string("no operator ") + name);
  });
}

// Unpooling: planes from values (`scatters`), or values from planes.
extern "C" const char* emulated_unpool(int64_t scatters, int64_t element_bytes, int64_t channels_last, int64_t N,
                                       int64_t C, int64_t windows, int64_t positions, const int64_t* indices,
                                       void* values, void* planes, void* reaches, const int64_t* limits) {
  return error_of([&] {
    using namespace fastconv;
    UnpoolParams p = {};
    p.element_bytes = static_cast<int>(element_bytes);
    p.channels_last = channels_last != 0;
    p.N = N;
    p.C = C;
    p.windows = windows;
    p.positions = positions;
    p.indices = indices;
    p.values = values;
    p.planes = planes;
    const PoolLimits at = {limits[0], limits[1], 0};
    const Stream stream = {"max_unpool2d", 0, nullptr};
    if (scatters) return unpool_scatter(p, reaches, stream, at);
    unpool_gather(p, stream, at);
  });
}

extern "C" int64_t emulated_unpool_scratch(int64_t channels_last, int64_t N, int64_t C, int64_t windows,
                                           int64_t positions, const int64_t* limits) {
  fastconv::UnpoolParams p = {};
  p.channels_last = channels_last != 0;
  p.N = N;
  p.C = C;
  p.windows = windows;
  p.positions = positions;
  return fastconv::unpool_scratch(p, {limits[0], limits[1], 0});
}

// Regions of interest. `sizes`: N, C, H, W, K, P, Q; `limits`: those of RoiLimits.
extern "C" const char* emulated_roi(const char* name, int64_t kind, int64_t dtype, int64_t channels_last,
                                    const int64_t* sizes, const double* scale, int64_t sampling, int64_t aligned,
                                    const void* boxes, void* input, void* output, void* ids, const int64_t* limits) {
  return error_of([&] {
    using namespace fastconv;
    RoiParams p = {};
    p.dtype = static_cast<Dtype>(dtype);
    p.kind = static_cast<Roi>(kind);
    p.channels_last = channels_last != 0;
    p.N = sizes[0];
    p.C = sizes[1];
    p.H = sizes[2];
    p.W = sizes[3];
    p.K = sizes[4];
    p.P = sizes[5];
    p.Q = sizes[6];
    p.channels = p.kind == Roi::kPsAlign || p.kind == Roi::kPsPool ? p.C / (p.P * p.Q) : p.C;
    p.scale = *scale;
    p.sampling = sampling;
    p.aligned = aligned != 0;
    p.boxes = boxes;
    p.input = input;
    p.output = output;
    p.ids = static_cast<int32_t*>(ids);
    const Stream stream = {"roi", 0, nullptr};
    const RoiLimits at = {limits[0], limits[1]};
    if (std::strcmp(name, "forward") == 0) return roi_forward(p, stream, at);
    if (std::strcmp(name, "backward") == 0) return roi_backward(p, stream, at);
    roi_picked(p, stream, at);
  });
}

namespace {

// `sizes`: N, C, H, W, K, R, S, P, Q, stride, padding, dilation, groups, offset_groups; `memory`: input, offset, mask,
// weight, bias, output, and the gradients of input, offset, mask, weight.
fastconv::DeformParams deform_params(int64_t dtype, int64_t channels_last, int64_t offsets_last, const int64_t* sizes,
                                     void* const* memory) {
  fastconv::DeformParams p = {};
  p.dtype = static_cast<fastconv::Dtype>(dtype);
  p.channels_last = channels_last != 0;
  int64_t* const fields[] = {&p.N,
                             &p.C,
                             &p.H,
                             &p.W,
                             &p.K,
                             &p.R,
                             &p.S,
                             &p.P,
                             &p.Q,
                             &p.stride[0],
                             &p.stride[1],
                             &p.padding[0],
                             &p.padding[1],
                             &p.dilation[0],
                             &p.dilation[1],
                             &p.groups,
                             &p.offset_groups};
  for (int64_t* field : fields) *field = *sizes++;
  const int64_t channels = p.offset_groups * p.R * p.S, pixels = p.P * p.Q;
  p.input = memory[0];
  p.offset = fastconv::deform_map(memory[1], offsets_last, 2 * channels, pixels);
  p.mask = fastconv::deform_map(memory[2], offsets_last, channels, pixels);
  p.weight = memory[3];
  p.bias = memory[4];
  p.output = memory[5];
  p.grad_input = memory[6];
  p.grad_offset = memory[7];
  p.grad_mask = memory[8];
  p.grad_weight = memory[9];
  return p;
}

}  // namespace

// Deformable convolution, where there is a weight, or sampling. `limits`: those of DeformLimits.
extern "C" const char* emulated_deform(int64_t backward, int64_t dtype, int64_t channels_last, int64_t offsets_last,
                                       const int64_t* sizes, void* const* memory, void* scratch,
                                       const int64_t* limits) {
  return error_of([&] {
    const auto p = deform_params(dtype, channels_last, offsets_last, sizes, memory);
    const fastconv::DeformLimits at = {limits[0], limits[1], limits[2]};
    if (backward) return fastconv::deform_backward(p, scratch, {"deform_conv2d", 0, nullptr}, at);
    fastconv::deform_forward(p, scratch, {"deform_conv2d", 0, nullptr}, at);
  });
}

extern "C" int64_t emulated_deform_scratch(int64_t dtype, int64_t channels_last, int64_t offsets_last,
                                           const int64_t* sizes, void* const* memory, const int64_t* limits) {
  return fastconv::deform_scratch(deform_params(dtype, channels_last, offsets_last, sizes, memory),
                                  {limits[0], limits[1], limits[2]});
}

namespace {

// `fields`: the sizes and the geometry of ConvParams, then the strides of input and output; `memory`: input, weight,
// bias, output, residual. The weight is dense.
fastconv::ConvParams conv_params(int64_t direction, int64_t dtype, int64_t tf32, int64_t activation,
                                 const int64_t* fields, void* const* memory) {
  fastconv::ConvParams p = {};
  p.dtype = static_cast<fastconv::Dtype>(dtype);
  p.tf32 = tf32 != 0;
  p.activation = static_cast<fastconv::Activation>(activation);
  int64_t* const places[] = {&p.N,          &p.G,          &p.C,        &p.K,        &p.H,        &p.W,
                             &p.P,          &p.Q,          &p.R,        &p.S,        &p.stride_h, &p.stride_w,
                             &p.dilation_h, &p.dilation_w, &p.pad_h,    &p.pad_w,    &p.input.n,  &p.input.c,
                             &p.input.h,    &p.input.w,    &p.output.n, &p.output.c, &p.output.h, &p.output.w};
  for (int64_t* place : places) *place = *fields++;
  p.up_h = p.up_w = 1;
  p.input.data = memory[0];
  p.weight = {memory[1], p.C * p.R * p.S, p.R * p.S, p.S, 1};
  p.weight_g = p.K * p.weight.n;
  p.bias = memory[2];
  p.output.data = memory[3];
  p.residual = memory[4];
  return direction == 1 ? fastconv::spread_params(p) : p;
}

}  // namespace

// Convolution (direction 0), turned round (1), or the gradient of the weight (2), by the kernel of this name or,
// without one, by the first that applies. `limits`: those of ConvLimits.
extern "C" const char* emulated_conv(int64_t direction, const char* kernel, int64_t dtype, int64_t tf32,
                                     int64_t activation, const int64_t* fields, void* const* memory, void* scratch,
                                     const int64_t* limits) {
  return error_of([&] {
    const auto p = conv_params(direction, dtype, tf32, activation, fields, memory);
    const fastconv::ConvLimits at = {limits[0], limits[1], limits[2], limits[3], limits[4]};
    const fastconv::Stream stream = {"conv2d", 0, nullptr};
    if (direction == 2) return fastconv::conv_grad_weight(p, scratch, stream, at, kernel);
    fastconv::conv_forward(p, scratch, stream, at, kernel);
  });
}

// The scratch memory for that; negative where the kernel does not serve it.
extern "C" int64_t emulated_conv_scratch(int64_t direction, const char* kernel, int64_t dtype, int64_t tf32,
                                         const int64_t* fields, void* const* memory, const int64_t* limits) {
  const auto p = conv_params(direction, dtype, tf32, 0, fields, memory);
  const fastconv::ConvLimits at = {limits[0], limits[1], limits[2], limits[3], limits[4]};
  try {
    return direction == 2 ? fastconv::conv_grad_weight_scratch(p, "conv2d", at, kernel)
                          : fastconv::conv_scratch(p, "conv2d", at, kernel);
  } catch (const std::runtime_error&) {
    return -1;
  }
}
