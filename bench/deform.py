"""Deformable convolutions and samplings: their data, how each library computes them, and what to expect."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import DeformCase, SampleCase
from .data import Data, Expected, function, in_layouts


def tensors(case: DeformCase, batch: int, dtype: str) -> dict[str, Data]:
    """Input, offset, weight (of samplings none), mask and gradient of the output in every layout, of the same values.

    Offsets are normal with a deviation of two pixels, as odd multiples of 1/16: then every dtype holds them, float32
    adds them to any position exactly, and no sample falls onto a pixel, where the gradient of its offset jumps.
    """
    generator = torch.Generator().manual_seed(0)
    end = math.sqrt(3)  # of a uniform distribution of variance 1, as for convolution
    shapes = (*case.given_shapes(batch), case.output_shape(batch))
    made = [torch.empty(shape).uniform_(-end, end, generator=generator) for shape in shapes]
    _, offset, *weights, mask, _ = made
    offset.normal_(0, 2, generator=generator).mul_(8).floor_().add_(0.5).div_(8)
    mask.add_(end).div_(2 * end)
    for weight in weights:
        weight.div_(math.sqrt(case.C // case.groups * case.R * case.S))
    return in_layouts(each.to(getattr(torch, dtype)) for each in made)


def operator(case: DeformCase, library: str, dims: int) -> Callable[..., Tensor] | None:
    """The layer as a function of what it is given; None where the library has no such function."""
    samples = isinstance(case, SampleCase)
    found: Callable[..., Tensor] | None = function(library, operator_name(case, dims))
    if samples and library == "PyTorch":
        found = grid_sampled
    if found is None:
        return None
    if samples:
        windows = (case.R, case.S), case.stride, case.padding, case.dilation
        return lambda input, offset, mask: found(input, offset, mask, *windows)
    geometry = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}
    return lambda input, offset, weight, mask: found(input, offset, weight, mask=mask, **geometry)


def operator_name(case: DeformCase, dims: int) -> str:
    return f"deform_{'sample' if isinstance(case, SampleCase) else 'conv'}{dims}d"


def grid_sampled(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Deformable sampling of PyTorch's operators, as InternImage's ``dcnv3_core_pytorch`` has it: all samples by
    ``grid_sample``, each offset group a map of its own, times the masks, added up.

    In float32 at least, as under autocast: 16 bits would round the places, and take longer.
    """
    (N, C, H, W), (R, S), (P, Q) = input.shape, kernel_size, mask.shape[2:]
    maps = N * mask.shape[1] // (R * S)
    dtype = torch.promote_types(input.dtype, torch.float32)

    def places(d: int, taps: int, outputs: int) -> Tensor:  # [taps, outputs]
        return torch.arange(taps)[:, None] * dilation[d] + torch.arange(outputs) * stride[d] - padding[d]

    dy, dx = offset.to(dtype).reshape(maps, R, S, 2, P, Q).unbind(3)
    y, x = dy + places(0, R, P).view(R, 1, P, 1), dx + places(1, S, Q).view(S, 1, Q)
    grid = torch.stack([(2 * x + 1) / W - 1, (2 * y + 1) / H - 1], -1).view(maps, R * S, P * Q, 2)
    planes = input.to(dtype).reshape(maps, -1, H, W)
    samples = F.grid_sample(planes, grid, padding_mode="zeros", align_corners=False)  # [maps, channels, taps, pixels]
    output = (samples * mask.reshape(maps, 1, R * S, P * Q)).sum(2)
    return output.view(N, C, P, Q).to(input.dtype)


def check_share(case: DeformCase, batch: int, direction: str) -> float:
    """All: the gradients of offsets and mask are sums over every channel."""
    return 1.0


def reference(case: DeformCase, direction: str, data: Data, share: float) -> Expected:
    """What the direction computes, in float64 by PyTorch or torchvision, image by image: they keep every sample."""
    layer = operator(case, "PyTorch", 2)
    assert layer is not None
    *given, grad_output = (each.double() for each in data)
    of_images: dict[str, list[Tensor]] = {name: [] for name in case.results(direction)}
    for n, gy in enumerate(grad_output.split(1)):
        parts = [
            each if name == "grad_weight" else each[n : n + 1] for name, each in zip(case.gradients, given, strict=True)
        ]
        leaves = [each.detach().requires_grad_(direction != "fwd") for each in parts]
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
