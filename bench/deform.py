"""Deformable convolutions: their data, how each library computes them, and what to expect."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .cases import DeformCase
from .data import Data, Expected, function, in_layouts


def tensors(case: DeformCase, batch: int, dtype: str) -> dict[str, Data]:
    """Input, offset, weight, mask and gradient of the output in every layout, of the same values.

    Offsets are normal with a deviation of two pixels, as odd multiples of 1/16: then every dtype holds them, float32
    adds them to any position exactly, and no sample falls onto a pixel, where the gradient of its offset jumps.
    """
    generator = torch.Generator().manual_seed(0)
    end = math.sqrt(3)  # of a uniform distribution of variance 1, as for convolution
    shapes = (*case.given_shapes(batch), case.output_shape(batch))
    input, offset, weight, mask, grad_output = (
        torch.empty(shape).uniform_(-end, end, generator=generator) for shape in shapes
    )
    offset.normal_(0, 2, generator=generator).mul_(8).floor_().add_(0.5).div_(8)
    mask.add_(end).div_(2 * end)
    weight.div_(math.sqrt(case.C // case.groups * case.R * case.S))
    return in_layouts(each.to(getattr(torch, dtype)) for each in (input, offset, weight, mask, grad_output))


def operator(case: DeformCase, library: str, dims: int) -> Callable[..., Tensor] | None:
    """The layer as a function of what it is given; None where the library has no such function."""
    found = function(library, operator_name(case, dims))
    if found is None:
        return None
    geometry = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}
    return lambda input, offset, weight, mask: found(input, offset, weight, mask=mask, **geometry)


def operator_name(case: DeformCase, dims: int) -> str:
    return f"deform_conv{dims}d"


def check_share(case: DeformCase, batch: int, direction: str) -> float:
    """All: the gradients of offsets and mask are sums over every channel."""
    return 1.0


def reference(case: DeformCase, direction: str, data: Data, share: float) -> Expected:
    """What the direction computes, in float64 by torchvision, image by image: it unfolds all that it is given."""
    layer = operator(case, "PyTorch", 2)
    assert layer is not None
    input, offset, weight, mask, grad_output = (each.double() for each in data)
    of_images: dict[str, list[Tensor]] = {name: [] for name in case.results(direction)}
    for x, at, m, gy in zip(*(each.split(1) for each in (input, offset, mask, grad_output)), strict=True):
        leaves = [each.detach().requires_grad_(direction != "fwd") for each in (x, at, weight, m)]
        output = layer(*leaves)
        made = {"output": output.detach()}
        if direction != "fwd":
            made |= zip(case.gradients, torch.autograd.grad(output, leaves, gy), strict=True)
        for name, found in of_images.items():
            found.append(made[name])
    every = (slice(None),)
    return {
        name: (every, torch.stack(found).sum(0) if name == "grad_weight" else torch.cat(found))
        for name, found in of_images.items()
    }
