"""Regions of interest: maps and boxes, how each library computes the bins, and what to expect."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .cases import RoiCase
from .data import Data, Expected, channel_share, function, in_layouts, spread

check_share = channel_share


def draw_boxes(case: RoiCase, batch: int, generator: torch.Generator) -> Tensor:
    """Rows of an image's index, then left, top, right and bottom in its pixels. Centres lie anywhere in the image, the
    logarithms of the sides anywhere between those of the case's; what sticks out is cut off.

    Boxes of ps_roi_pool end before the last row and column of the map: torchvision's forward pass leaves these out, its
    backward pass does not, so that its gradient would be no reference.
    """
    count = batch * case.boxes
    edge = 2 if case.family == "ps_roi_pool" else 0
    image = torch.tensor((case.W - edge, case.H - edge)) / case.scale
    least, most = map(math.log, case.sides)
    sides = torch.empty(count, 2).uniform_(least, most, generator=generator).exp()
    centres = torch.rand(count, 2, generator=generator) * image
    corners = [(centres + sign * sides / 2).clamp(torch.zeros(2), image) for sign in (-1, 1)]
    return torch.cat([torch.arange(batch).repeat_interleave(case.boxes)[:, None], *corners], 1)


def tensors(case: RoiCase, batch: int, dtype: str) -> dict[str, Data]:
    """Input, boxes and gradient of the output in every layout, of the same values."""
    generator = torch.Generator().manual_seed(0)
    input, grad_output = (
        torch.empty(shape).uniform_(-1, 1, generator=generator)
        for shape in (case.input_shape(batch), case.output_shape(batch))
    )
    made = (input, draw_boxes(case, batch, generator), grad_output)
    return in_layouts(each.to(getattr(torch, dtype)) for each in made)


def operator(case: RoiCase, library: str, dims: int) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The layer as a function of input and boxes; None where the library has no such function."""
    found = function(library, operator_name(case, dims))
    if found is None:
        return None
    given: dict[str, Any] = {"spatial_scale": case.scale}
    if case.sampling:
        given["sampling_ratio"] = case.sampling
    return lambda input, boxes: found(input, boxes, (case.P, case.Q), **given)


def operator_name(case: RoiCase, dims: int) -> str:
    return case.family


def reference(case: RoiCase, direction: str, data: Data, share: float) -> Expected:
    """What the direction computes, in float64 by torchvision, for a share of the channels.

    Where every pixel of a bin is looked at, in float32 unless all is float64: bins end where a quotient is rounded to,
    so that a box of 29 pixels has a pixel more in its last of 7 bins if it is divided in float64.
    """
    layer = operator(case, "PyTorch", 2)
    assert layer is not None
    k = spread(case.K, share)
    each = case.C // case.K  # one, or as many as there are bins
    c = (k[:, None] * each + torch.arange(each)).flatten()
    exact = torch.float64 if case.sampling else torch.promote_types(data[0].dtype, torch.float32)
    input, boxes, grad_output = (tensor.to(exact) for tensor in (data[0][:, c], data[1], data[2][:, k]))
    input.requires_grad_(direction != "fwd")
    output = layer(input, boxes)
    expected: Expected = {"output": ((slice(None), k), output.detach().double())}
    if direction != "fwd":
        (gradient,) = torch.autograd.grad(output, input, grad_output)
        expected["grad_input"] = (slice(None), c), gradient.double()
    return {name: expected[name] for name in case.results(direction)}
