// What the host operators of regions of interest share: the rules for their arguments, and the params they come down
// to.
#pragma once
#include "core/torch.h"
#include "roi/params.h"

namespace fastconv {

// Of the positions of a plane: ids have 32 bits.
constexpr int64_t kMostPositions = INT32_MAX;
constexpr int64_t kMostSamples = 1 << 15;

// How the boxes lie on the map, and what is made of them.
struct RoiArguments {
  Roi kind;
  double scale;
  Sizes output_size;
  int64_t sampling = 0;
  bool aligned = false;

  bool position_sensitive() const { return kind == Roi::kPsAlign || kind == Roi::kPsPool; }
  const char* op() const {
    switch (kind) {
      case Roi::kAlign: return "roi_align";
      case Roi::kPool: return "roi_pool";
      case Roi::kPsAlign: return "ps_roi_align";
      default: return "ps_roi_pool";
    }
  }
};

// The output's size. `given`: the tensor that has the input's dtype and device.
inline Sizes check_roi(const RoiArguments& a, IntHeaderOnlyArrayRef input, const Tensor& given, const Tensor& boxes) {
  const char* op = a.op();
  check(input.size() == 4, op, ": input must have 4 dimensions (got ", text(input), ")");
  dtype_of(op, given);
  const auto shape = boxes.sizes();
  check(shape.size() == 2 && shape[1] == 5, op, ": boxes must have shape [K, 5] (got ", text(shape), ")");
  check(boxes.scalar_type() == given.scalar_type() || boxes.scalar_type() == ScalarType::Float, op,
        ": boxes must have the dtype of input, ", dtype_name(given.scalar_type()), ", or be float32 (got ",
        dtype_name(boxes.scalar_type()), ")");
  if (boxes.device() != given.device())
    check(false, op, ": boxes must be on the device of input, ", device_name(given), " (got ", device_name(boxes), ")");
  check_list(op, "output_size", a.output_size, 2, 1, "be positive");
  check(a.scale > 0 && a.scale - a.scale == 0, op, ": spatial_scale must be positive and finite (got ", a.scale, ")");
  check(a.sampling <= kMostSamples, op, ": sampling_ratio must be at most ", kMostSamples, " (got ", a.sampling, ")");
  const int64_t bins = a.output_size[0] * a.output_size[1];
  if (a.position_sensitive())
    check(input[1] % bins == 0, op, ": input must have a multiple of ", bins, " channels, one for each bin (got ",
          text(input), ")");
  check(shape[0] == 0 || (input[0] > 0 && input[2] > 0 && input[3] > 0), op,
        ": input must not be empty where there are boxes (got ", text(input), ")");
  check(input[2] == 0 || input[3] <= kMostPositions / input[2], op, ": input must have at most ", kMostPositions,
        " positions a plane (got ", text(input), ")");
  return {shape[0], a.position_sensitive() ? input[1] / bins : input[1], a.output_size[0], a.output_size[1]};
}

inline RoiParams roi_params(const RoiArguments& a, IntHeaderOnlyArrayRef input, const Sizes& output, Dtype dtype,
                            MemoryFormat format) {
  RoiParams p = {};
  p.dtype = dtype;
  p.kind = a.kind;
  p.channels_last = format == MemoryFormat::ChannelsLast;
  p.N = input[0];
  p.C = input[1];
  p.H = input[2];
  p.W = input[3];
  p.K = output[0];
  p.channels = output[1];
  p.P = output[2];
  p.Q = output[3];
  p.scale = a.scale;
  p.sampling = a.sampling > 0 ? a.sampling : 0;
  p.aligned = a.aligned;
  p.threads = 1;
  return p;
}

}  // namespace fastconv
