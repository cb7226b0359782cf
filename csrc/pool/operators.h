// The operators of the pooling family, written once for all devices: check, allocate, fill params, run. A `Device` is
// made of the operator's name and a tensor before anything is allocated; its members run one kernel each, those of
// PoolKernels, on tensors that all have memory.
#pragma once
#include "pool/check.h"

namespace fastconv {

template <class Device>
struct PoolOperators {
  static Tensor max_pool(Tensor input, Sizes windows, bool ceil_mode) {
    return max_forward(input, windows, ceil_mode, nullptr);
  }

  static std::tuple<Tensor, Tensor> max_pool_ids(Tensor input, Sizes windows, bool ceil_mode) {
    Tensor ids;
    Tensor output = max_forward(input, windows, ceil_mode, &ids);
    return {output, ids};
  }

  static Tensor max_pool_indices(Tensor ids, Sizes input_size, Sizes windows, bool ceil_mode) {
    const PoolArguments a = check_pool("max", input_size, windows, ceil_mode);
    check_ids(a, ids);
    const Device device(a.op.c_str(), ids);
    const MemoryFormat format = memory_format(ids);
    Tensor indices = empty_on(ids.device(), a.output, format, ScalarType::Long);
    if (indices.numel() == 0) return indices;
    ids = dense(ids, format);
    PoolParams p = pool_params(a, Dtype::kFloat32, format);
    p.ids = const_cast<void*>(ids.const_data_ptr());
    p.id_bytes = id_bytes(a);
    p.indices = static_cast<int64_t*>(indices.mutable_data_ptr());
    device.max_indices(p);
    return indices;
  }

  static Tensor max_pool_grad(Tensor grad_output, Tensor ids, Sizes input_size, Sizes windows, bool ceil_mode) {
    return max_move(&Device::max_backward, grad_output, ids, check_pool("max", input_size, windows, ceil_mode), true);
  }

  static Tensor max_pool_pick(Tensor input, Tensor ids, Sizes windows, bool ceil_mode) {
    return max_move(&Device::max_pick, input, ids, check_pool("max", input.sizes(), windows, ceil_mode), false);
  }

  static Tensor avg_pool(Tensor input, Sizes windows, bool ceil_mode, bool count_include_pad,
                         std::optional<int64_t> divisor_override) {
    return avg(&Device::avg, input, check_pool("avg", input.sizes(), windows, ceil_mode), count_include_pad,
               divisor_override, false);
  }

  static Tensor avg_pool_grad(Tensor grad_output, Sizes input_size, Sizes windows, bool ceil_mode,
                              bool count_include_pad, std::optional<int64_t> divisor_override) {
    return avg(&Device::avg_backward, grad_output, check_pool("avg", input_size, windows, ceil_mode), count_include_pad,
               divisor_override, true);
  }

  static Tensor l2_pool(Tensor input, Sizes windows, bool ceil_mode) {
    const PoolArguments a = check_pool("lp", input.sizes(), windows, ceil_mode);
    return forward(&Device::l2, input, a, nullptr, [&](PoolParams& p) { p.divisor = ceil_mode ? 0 : 1; });
  }

  static std::tuple<Tensor, Tensor> stochastic_pool(Tensor input, Tensor seed, Sizes windows) {
    const PoolArguments a = check_pool("stochastic", input.sizes(), windows, false);
    check(seed.scalar_type() == ScalarType::Long && seed.numel() == 1, a.op,
          ": seed must be int64 of one element (got ", dtype_name(seed.scalar_type()), " of ", seed.numel(), ")");
    check(seed.device() == input.device(), a.op, ": seed must be on the device of input");
    Tensor ids;
    Tensor output = forward(&Device::stochastic, input, a, &ids, [&](PoolParams& p) {
      check_not_negative(a, Device(a.op.c_str(), input), p);
      p.seed = static_cast<const int64_t*>(seed.const_data_ptr());
    });
    return {output, ids};
  }

  static Tensor stochastic_pool_mean(Tensor input, Sizes windows) {
    const PoolArguments a = check_pool("stochastic", input.sizes(), windows, false);
    return forward(&Device::weighted, input, a, nullptr,
                   [&](PoolParams& p) { check_not_negative(a, Device(a.op.c_str(), input), p); });
  }

  static Tensor max_unpool(Tensor input, Tensor indices, Sizes output_size) {
    const std::string op = check_unpool(input, "input", indices);
    const auto given = input.sizes();
    for (size_t d = 1; d < given.size(); ++d)
      check(given[d] > 0, op, ": input must not be empty but for its batch (got ", text(given), ")");
    check_shape(op.c_str(), "indices", indices, Sizes(given.begin(), given.end()));
    check_list(op.c_str(), "output_size", output_size, given.size() - 2, 0, "not be negative");
    output_size.insert(output_size.begin(), given.begin(), given.begin() + 2);
    return unpool(&Device::unpool_scatter, op, input, indices, output_size, memory_format(input));
  }

  static Tensor max_unpool_grad(Tensor grad_output, Tensor indices) {
    const std::string op = check_unpool(grad_output, "grad_output", indices);
    const auto given = grad_output.sizes(), sizes = indices.sizes();
    check(given.size() == sizes.size() && given[0] == sizes[0] && given[1] == sizes[1], op,
          ": indices must have the batch and the channels of grad_output, ", text(given), " (got ", text(sizes), ")");
    return unpool(&Device::unpool_gather, op, grad_output, indices, Sizes(sizes.begin(), sizes.end()),
                  memory_format(indices));
  }

 private:
  using Run = void (Device::*)(PoolParams&) const;
  using RunUnpool = std::optional<int64_t> (Device::*)(UnpoolParams&) const;

  // The device says which index is wrong, if any. Then there is no result.
  static Tensor unpool(RunUnpool run, const std::string& op, Tensor given, Tensor indices, const Sizes& size,
                       MemoryFormat format) {
    const Device device(op.c_str(), given);
    Tensor result = empty_as(given, size, format);
    if (result.numel() == 0) return result;
    const bool scatters = run == &Device::unpool_scatter;
    given = dense(given, format);
    indices = dense(indices, format);
    const auto of_plane = [](const Tensor& t) { return t.dim() == 3 ? t.size(2) : t.size(2) * t.size(3); };
    UnpoolParams p = {};
    p.element_bytes = static_cast<int>(given.element_size());
    p.channels_last = format == MemoryFormat::ChannelsLast;
    p.N = size[0];
    p.C = size[1];
    p.windows = of_plane(indices);
    p.positions = of_plane(scatters ? result : given);
    p.indices = static_cast<const int64_t*>(indices.const_data_ptr());
    p.values = scatters ? const_cast<void*>(given.const_data_ptr()) : result.mutable_data_ptr();
    p.planes = scatters ? result.mutable_data_ptr() : const_cast<void*>(given.const_data_ptr());
    const std::optional<int64_t> wrong = (device.*run)(p);
    check(!wrong, op, ": indices must lie in [0, ", p.positions, ") (got ", wrong.value_or(0), ")");
    return result;
  }

  static Tensor empty_ids(const PoolArguments& a, const Tensor& like, MemoryFormat format) {
    return empty_on(like.device(), a.output, format, id_type(a));
  }

  static void check_not_negative(const PoolArguments& a, const Device& device, PoolParams& p) {
    const double least = device.least(p);
    if (least >= 0) return;
    std::ostringstream got;
    if (least == least)
      got << least;
    else
      got << "nan";
    check(false, a.op, ": input must not be negative (got ", got.str(), ")");
  }

  static Tensor max_forward(Tensor input, const Sizes& windows, bool ceil_mode, Tensor* ids) {
    return forward(&Device::max, input, check_pool("max", input.sizes(), windows, ceil_mode), ids, [](PoolParams&) {});
  }

  // Output, and ids where they are asked for, from the input; `fill` adds what is the operator's own to the params,
  // once the input is there.
  template <class Fill>
  static Tensor forward(Run run, Tensor input, const PoolArguments& a, Tensor* ids, const Fill& fill) {
    const Dtype dtype = dtype_of(a.op.c_str(), input);
    const Device device(a.op.c_str(), input);
    const MemoryFormat format = memory_format(input);
    PoolParams p = pool_params(a, dtype, format);
    Tensor output = empty_as(input, a.output, format);
    if (ids) *ids = empty_ids(a, input, format);
    if (output.numel() == 0) return output;
    input = dense(input, format);
    p.input = const_cast<void*>(input.const_data_ptr());
    p.output = output.mutable_data_ptr();
    if (ids) {
      p.ids = ids->mutable_data_ptr();
      p.id_bytes = id_bytes(a);
    }
    fill(p);
    (device.*run)(p);
    return output;
  }

  // `given` [N, C, P, Q] to the size of the input, or the other way round; in the memory format of the ids, which is
  // that of the input they came from.
  static Tensor max_move(Run run, Tensor given, Tensor ids, const PoolArguments& a, bool to_input) {
    const Dtype dtype = dtype_of(a.op.c_str(), given);
    check_shape(a.op.c_str(), to_input ? "grad_output" : "input", given, to_input ? a.output : a.input);
    check_ids(a, ids);
    if (ids.device() != given.device())
      check(false, a.op, ": ids must be on the device of input, ", device_name(given), " (got ", device_name(ids), ")");
    const Device device(a.op.c_str(), given);
    const MemoryFormat format = memory_format(ids);
    Tensor result = empty_as(given, to_input ? a.input : a.output, format);
    if (result.numel() == 0) return result;
    if (given.numel() == 0) return torch::stable::zero_(result);
    given = dense(given, format);
    ids = dense(ids, format);
    PoolParams p = pool_params(a, dtype, format);
    p.input = to_input ? result.mutable_data_ptr() : const_cast<void*>(given.const_data_ptr());
    p.output = to_input ? const_cast<void*>(given.const_data_ptr()) : result.mutable_data_ptr();
    p.ids = const_cast<void*>(ids.const_data_ptr());
    p.id_bytes = id_bytes(a);
    (device.*run)(p);
    return result;
  }

  // The mean of windows, or its gradient: `given` [N, C, H, W] or [N, C, P, Q] to the other.
  static Tensor avg(Run run, Tensor given, const PoolArguments& a, bool padding_counts, std::optional<int64_t> divisor,
                    bool to_input) {
    const Dtype dtype = dtype_of(a.op.c_str(), given);
    check(!divisor || *divisor != 0, a.op, ": divisor_override must not be zero (got 0)");
    if (to_input) check_shape(a.op.c_str(), "grad_output", given, a.output);
    const Device device(a.op.c_str(), given);
    const MemoryFormat format = memory_format(given);
    Tensor result = empty_as(given, to_input ? a.input : a.output, format);
    if (result.numel() == 0) return result;
    if (given.numel() == 0) return torch::stable::zero_(result);
    given = dense(given, format);
    PoolParams p = pool_params(a, dtype, format);
    p.input = to_input ? result.mutable_data_ptr() : const_cast<void*>(given.const_data_ptr());
    p.output = to_input ? const_cast<void*>(given.const_data_ptr()) : result.mutable_data_ptr();
    p.divisor = divisor ? static_cast<double>(*divisor) : 0;
    p.padding_counts = padding_counts;
    (device.*run)(p);
    return result;
  }
};

}  // namespace fastconv
