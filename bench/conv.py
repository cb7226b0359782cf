"""Convolution layers: their data, how each library computes them, and what to expect."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .cases import ConvCase
from .data import LAYOUTS, Data, Expected, Where, channel_share, function, spread

check_share = channel_share


def tensors(case: ConvCase, batch: int, dtype: str) -> dict[str, Data]:
    """Input, weight and gradient of the output in every layout, of the same values. A layer with one dimension is
    [N, C, W] where contiguous and [N, C, 1, W] in channels_last, which PyTorch has no other way to express."""
    generator = torch.Generator().manual_seed(0)
    shapes = (case.input_shape(batch), case.weight_shape, case.output_shape(batch))
    end = math.sqrt(3)  # of a uniform distribution of variance 1; a normal one takes seconds for the largest layers
    drawn = (torch.empty(shape).uniform_(-end, end, generator=generator) for shape in shapes)
    made = [each.to(getattr(torch, dtype)) for each in drawn]
    fan_in = case.C // case.groups * case.R * case.S / (math.prod(case.stride) if case.transposed else 1)
    made[1] /= math.sqrt(fan_in)
    data: dict[str, Data] = {}
    for layout, memory_format in LAYOUTS.items():
        input, weight, grad_output = (each.contiguous(memory_format=memory_format) for each in made)
        data[layout] = (input, weight, grad_output)
        if case.one_dimensional and layout == "contiguous":
            data[layout] = (input.squeeze(2), weight.squeeze(2), grad_output.squeeze(2))
    return data


def operator(case: ConvCase, library: str, dims: int) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The layer as a function of input and weight; None where the library has no such function."""
    found = function(library, operator_name(case, dims))
    if found is None:
        return None
    geometry = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}
    if case.transposed:
        geometry["output_padding"] = case.output_padding
    return partial(found, groups=case.groups, **{name: value[-dims:] for name, value in geometry.items()})


def operator_name(case: ConvCase, dims: int) -> str:
    return f"conv{'_transpose' if case.transposed else ''}{dims}d"


def reference(case: ConvCase, direction: str, data: Data, share: float) -> Expected:
    """What the direction computes, in float64 by PyTorch: for each tensor, where to compare and what to expect there.

    Of grouped layers whole groups are computed. Of others, output channels for the output and the gradient of
    the weight, input channels for the gradient of the input.
    """
    input, weight, grad_output = data  # of four dimensions
    every = slice(None)
    c_of_k: Where = every
    k_of_c: Where = every
    weight_k: tuple[Where, ...]
    weight_c: tuple[Where, ...]
    if case.groups > 1:
        groups = spread(case.groups, share)
        k = (groups[:, None] * (case.K // case.groups) + torch.arange(case.K // case.groups)).flatten()
        c = (groups[:, None] * (case.C // case.groups) + torch.arange(case.C // case.groups)).flatten()
        count, c_of_k, k_of_c = len(groups), c, k
        weight_k = weight_c = (c,) if case.transposed else (k,)
    else:
        k, c = spread(case.K, share), spread(case.C, share)
        count = 1
        weight_k, weight_c = ((every, k), (c,)) if case.transposed else ((k,), (every, c))
    geometry = (case.stride, case.padding, case.dilation, case.transposed, case.output_padding, count)
    forward = torch.ops.aten.convolution.default
    backward = torch.ops.aten.convolution_backward.default
    w_k, w_c = weight[weight_k].double(), weight[weight_c].double()
    outputs, grad_inputs, grad_weight = [], [], torch.zeros_like(w_k)
    # Image by image, because PyTorch unfolds all that it is given.
    for x, gy in zip(input.split(1), grad_output.split(1), strict=True):
        x_k = x[:, c_of_k].double()
        if direction != "bwd":
            outputs.append(forward(x_k, w_k, None, *geometry))
        if direction != "fwd":
            x_c, gy_c = x[:, c].double(), gy[:, k_of_c].double()
            grad_inputs.append(backward(gy_c, x_c, w_c, None, *geometry, [True, False, False])[0])
            grad_weight += backward(gy[:, k].double(), x_k, w_k, None, *geometry, [False, True, False])[1]
    expected: Expected = {}
    if outputs:
        expected["output"] = (every, k), torch.cat(outputs)
    if grad_inputs:
        expected["grad_input"] = (every, c), torch.cat(grad_inputs)
        expected["grad_weight"] = weight_k, grad_weight
    return expected
