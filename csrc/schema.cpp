// Every operator that fastconv registers with PyTorch. Names with an underscore are private: their arguments may
// change from release to release.
#include "core/torch.h"

namespace fastconv {
namespace {

// Those with a rule for autograd.
constexpr const char* kDifferentiable[] = {
    "channel_shuffle(Tensor input, int groups) -> Tensor",
    "channel_unshuffle(Tensor input, int groups) -> Tensor",
    // activation(convolution + bias + residual); 1-D and 2-D by the rank of weight; padding is that before, then that
    // after, each dimension (where it may be negative: the end of the input is left out). allow_tf32: float32 on CUDA
    // may be rounded to TF32 before it is multiplied.
    "conv(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, int groups, "
    "Tensor? residual=None, str? activation=None, bool allow_tf32=False) -> Tensor",
    // Padding is the same before and after each dimension.
    "conv_transpose(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] output_padding, "
    "int[] dilation, int groups, bool allow_tf32=False) -> Tensor",
    "_conv_grad_input(Tensor grad_output, Tensor weight, SymInt[] input_size, int[] stride, int[] padding, "
    "int[] dilation, int groups, bool allow_tf32=False) -> Tensor",
    "_conv_grad_weight(Tensor grad_output, Tensor input, SymInt[] weight_size, int[] stride, int[] padding, "
    "int[] dilation, int groups, bool allow_tf32=False) -> Tensor",
    // Of pooling, `windows` says where these are: kernel sizes, strides, paddings and dilations, one after the other,
    // each for all dimensions; or the sizes of the output alone, where windows adapt. 1-D and 2-D by the rank of input.
    // ids: which element of each window has won.
    "max_pool(Tensor input, int[] windows, bool ceil_mode) -> Tensor",
    "_max_pool_ids(Tensor input, int[] windows, bool ceil_mode) -> (Tensor, Tensor)",
    "_max_pool_indices(Tensor ids, SymInt[] input_size, int[] windows, bool ceil_mode) -> Tensor",
    "_max_pool_grad(Tensor grad_output, Tensor ids, SymInt[] input_size, int[] windows, bool ceil_mode) -> Tensor",
    "_max_pool_pick(Tensor input, Tensor ids, int[] windows, bool ceil_mode) -> Tensor",
    "avg_pool(Tensor input, int[] windows, bool ceil_mode, bool count_include_pad, int? divisor_override) -> Tensor",
    "_avg_pool_grad(Tensor grad_output, SymInt[] input_size, int[] windows, bool ceil_mode, bool count_include_pad, "
    "int? divisor_override) -> Tensor",
    // The root of the sum of squares of each window, of windows cut short as if they went on with the same mean.
    "_l2_pool(Tensor input, int[] windows, bool ceil_mode) -> Tensor",
    // An element of each window, drawn with probabilities proportional to them, and its ids as those of _max_pool_ids;
    // and the means with these probabilities. seed: int64, one element.
    "_stochastic_pool(Tensor input, Tensor seed, int[] windows) -> (Tensor, Tensor)",
    "_stochastic_pool_mean(Tensor input, int[] windows) -> Tensor",
    // input at the indices (flat within a plane) of planes of output_size, which are zero elsewhere; and its gradient,
    // grad_output at the indices.
    "max_unpool(Tensor input, Tensor indices, SymInt[] output_size) -> Tensor",
    "_max_unpool_grad(Tensor grad_output, Tensor indices) -> Tensor",
    // boxes: [K, 5], each an index in the batch and x1, y1, x2, y2. sampling_ratio: 0 and less adapts. channels_last:
    // what the gradient's memory format is.
    "roi_align(Tensor input, Tensor boxes, float spatial_scale, int[] output_size, int sampling_ratio, bool aligned) "
    "-> Tensor",
    "_roi_align_grad(Tensor grad_output, Tensor boxes, SymInt[] input_size, bool channels_last, float spatial_scale, "
    "int[] output_size, int sampling_ratio, bool aligned) -> Tensor",
    "ps_roi_align(Tensor input, Tensor boxes, float spatial_scale, int[] output_size, int sampling_ratio) -> Tensor",
    "_ps_roi_align_grad(Tensor grad_output, Tensor boxes, SymInt[] input_size, bool channels_last, "
    "float spatial_scale, int[] output_size, int sampling_ratio) -> Tensor",
    "ps_roi_pool(Tensor input, Tensor boxes, float spatial_scale, int[] output_size) -> Tensor",
    "_ps_roi_pool_grad(Tensor grad_output, Tensor boxes, SymInt[] input_size, bool channels_last, "
    "float spatial_scale, int[] output_size) -> Tensor",
    // ids: where in its plane the largest element of each bin is, -1 where the bin is empty.
    "roi_pool(Tensor input, Tensor boxes, float spatial_scale, int[] output_size) -> Tensor",
    "_roi_pool_ids(Tensor input, Tensor boxes, float spatial_scale, int[] output_size) -> (Tensor, Tensor)",
    "_roi_pool_grad(Tensor grad_output, Tensor ids, Tensor boxes, SymInt[] input_size, bool channels_last) -> Tensor",
    "_roi_pool_pick(Tensor input, Tensor ids, Tensor boxes) -> Tensor",
    // Groups of weights and of offsets are read off the shapes. Gradients that are not wanted are empty.
    "deform_conv2d(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, int[] stride, "
    "int[] padding, int[] dilation) -> Tensor",
    "_deform_conv2d_grad(Tensor grad_output, Tensor input, Tensor offset, Tensor weight, Tensor? mask, int[] stride, "
    "int[] padding, int[] dilation, bool of_input, bool of_offset, bool of_weight, bool of_mask) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    // The same without weights: samples times masks, added up over the taps.
    "deform_sample2d(Tensor input, Tensor offset, Tensor? mask, int[] kernel_size, int[] stride, int[] padding, "
    "int[] dilation) -> Tensor",
    "_deform_sample2d_grad(Tensor grad_output, Tensor input, Tensor offset, Tensor? mask, int[] kernel_size, "
    "int[] stride, int[] padding, int[] dilation, bool of_input, bool of_offset, bool of_mask) "
    "-> (Tensor, Tensor, Tensor)",
};

constexpr const char* kOthers[] = {
    // The weight packed for inputs like this one, and the same convolution with such a pack.
    "_conv_pack(Tensor input, Tensor weight, int[] stride, int[] padding, int[] dilation, int groups) -> Tensor",
    "_conv_packed(Tensor input, Tensor weight, Tensor? bias, Tensor pack, int[] stride, int[] padding, "
    "int[] dilation, int groups, Tensor? residual=None, str? activation=None) -> Tensor",
    // The only kernel that convolutions of CUDA tensors may run from now on; '' returns to the table's order.
    "_conv_cuda_force(str kernel) -> ()",
};

}  // namespace

STABLE_TORCH_LIBRARY(fastconv, m) {
  for (const std::string schema : kDifferentiable) {
    const size_t name = schema.find('(');
    m.def(schema.c_str());
    m.def((without_autograd(schema.substr(0, name)) + schema.substr(name)).c_str());
  }
  for (const char* schema : kOthers) m.def(schema);
}

}  // namespace fastconv
