// What both host operators of channel_shuffle share: the rule for its arguments, and the params it comes down to.
#pragma once
#include "core/torch.h"
#include "rearrange/params.h"

namespace fastconv {

// Allocates the output (the input's memory format) and describes the move; `input` is replaced by a dense copy where
// its strides are neither contiguous nor channels_last.
inline Tensor prepare_channel_shuffle(const char* op, Tensor& input, int64_t groups, bool inverse,
                                      TransposeParams& params) {
  check(input.dim() > 2, op, ": input must have more than 2 dimensions (got ", input.dim(), ")");
  check(groups > 0, op, ": groups must be positive (got ", groups, ")");
  const int64_t N = input.size(0), C = input.size(1);
  check(C % groups == 0, op, ": groups must divide the number of channels ", C, " (got ", groups, ")");
  const MemoryFormat format = memory_format(input);
  input = dense(input, format);
  Tensor output = empty_as(input, input.sizes(), format);
  int64_t pixels = 1;
  for (int64_t d = 2; d < input.dim(); ++d) pixels *= input.size(d);
  const bool last = format == MemoryFormat::ChannelsLast;
  params.input = input.const_data_ptr();
  params.output = output.mutable_data_ptr();
  params.outer = last ? N * pixels : N;
  params.inner = last ? 1 : pixels;
  params.rows = inverse ? C / groups : groups;
  params.columns = inverse ? groups : C / groups;
  params.element_size = static_cast<int64_t>(input.element_size());
  return output;
}

}  // namespace fastconv
