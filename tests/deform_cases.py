"""What the tests of deformable convolution start from: cases, their arguments, what they give by the slow reference.

The cases reach every branch of csrc/deform: blocks of all taps and of some, whose channels lie together and do not,
tiles that end within the plane, blocks of channels that end where a group does, maps that are narrowed. Offsets are
multiples of 1/64, so that places are the same numbers in every dtype.
"""

from functools import cache
from typing import NamedTuple

import reference
import torch
from layouts import LAYOUTS
from torch import Tensor

import fastconv

NAMES = ("input", "offset", "weight", "bias", "mask")


class Case(NamedTuple):
    input: tuple[int, int, int, int]
    outputs: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    offset_groups: int = 1
    mask: bool = True
    bias: bool = True


CASES = {
    "one channel": Case((2, 1, 6, 7), 1),
    "one channel, v1": Case((1, 1, 6, 7), 2, mask=False),
    "image": Case((2, 3, 13, 11), 8, stride=(2, 2)),
    "8 channels, v1, no bias": Case((2, 8, 9, 10), 12, mask=False, bias=False),
    "17 channels": Case((2, 17, 8, 9), 31),
    "33 channels": Case((1, 33, 14, 15), 33),
    "70 channels": Case((2, 70, 7, 9), 65),
    "300 channels: ten blocks": Case((1, 300, 6, 7), 20),
    "300 channels, 1x1": Case((1, 300, 5, 9), 7, (1, 1), padding=(0, 0), mask=False),
    "256 channels: blocks of 144": Case((1, 256, 5, 5), 4, (1, 2), padding=(0, 1)),
    "129 channels: blocks of 64": Case((1, 129, 5, 4), 9, (2, 2)),
    "columns of weights, one more": Case((1, 5, 6, 6), 33, bias=False),
    "columns of weights, one less": Case((1, 5, 6, 6), 31),
    "columns of weights": Case((1, 5, 6, 6), 64),
    "1x1": Case((3, 16, 6, 7), 16, (1, 1), padding=(0, 0)),
    "2x5": Case((2, 6, 9, 11), 10, (2, 5), padding=(1, 2)),
    "5x5": Case((1, 12, 12, 10), 6, (5, 5), padding=(2, 2)),
    "5x5, two groups of offsets": Case((1, 48, 8, 8), 6, (5, 5), padding=(2, 2), offset_groups=2),
    "11x11: few pixels have a plan": Case((1, 2, 12, 13), 3, (11, 11), padding=(2, 3)),
    "stride 2x3": Case((2, 9, 12, 14), 7, stride=(2, 3), padding=(0, 2)),
    "dilation 2x3": Case((2, 9, 12, 14), 7, padding=(2, 3), dilation=(2, 3), mask=False),
    "all of it": Case((2, 12, 15, 13), 18, (3, 2), (2, 1), (3, 2), (2, 3), groups=3, offset_groups=2),
    "padding beyond the input": Case((1, 4, 3, 3), 5, padding=(5, 7)),
    "groups": Case((2, 24, 7, 8), 36, groups=4),
    "groups of 40 channels": Case((1, 120, 6, 6), 6, groups=3, mask=False),
    "offset groups": Case((2, 24, 7, 8), 11, offset_groups=4),
    "offset groups of 5 channels": Case((1, 35, 7, 8), 9, offset_groups=7, mask=False),
    "groups across offset groups": Case((1, 60, 6, 7), 8, groups=4, offset_groups=6),
    "a group of offsets for each channel": Case((1, 6, 7, 8), 4, offset_groups=6),
    "depthwise": Case((2, 19, 8, 9), 19, groups=19),
    "depthwise, offsets too": Case((1, 10, 8, 9), 20, groups=10, offset_groups=10, bias=False),
    "a pixel": Case((2, 20, 1, 1), 9),
    "an output": Case((1, 20, 3, 3), 9, padding=(0, 0)),
    "a row": Case((1, 5, 1, 150), 6, (1, 3), padding=(0, 1)),
    "a column": Case((1, 5, 150, 1), 6, (3, 1), padding=(1, 0), mask=False),
    "more pixels than several tiles": Case((1, 8, 21, 23), 16),
    "many images": Case((9, 10, 6, 5), 8, groups=2),
    "no image": Case((0, 8, 6, 7), 4),
    "a narrowed map": Case((1, 33, 264, 265), 2, (1, 2), (19, 17), (0, 1)),
}


class Problem(NamedTuple):
    given: dict[str, Tensor | None]
    grad_output: Tensor
    expected: dict[str, Tensor]  # "output", and the gradient of each that is given
    scale: dict[str, Tensor]


def drawn(case: Case) -> tuple[dict[str, Tensor | None], Tensor]:
    """In float64; offsets of which one in ten is large."""
    N, C = case.input[:2]
    of_weight = (case.outputs, C // case.groups, *case.kernel)
    padding = (*case.padding, *case.padding)
    size = reference.output_size(case.input, of_weight, case.stride, padding, case.dilation)
    taps = case.offset_groups * case.kernel[0] * case.kernel[1]

    def randn(*size: int) -> Tensor:
        return torch.randn(size, dtype=torch.float64)

    offset = randn(N, 2 * taps, *size[2:])
    offset = torch.where(torch.rand(offset.shape) < 0.1, 12 * offset, offset)
    given = {
        "input": randn(*case.input),
        "offset": (64 * offset).round() / 64,
        "weight": randn(*of_weight),
        "bias": randn(case.outputs) if case.bias else None,
        "mask": randn(N, taps, *size[2:]) if case.mask else None,
    }
    return given, randn(*size)


def reference_of(case: Case, given: dict, grad_output: Tensor, magnitudes: bool = False) -> dict[str, Tensor]:
    leaves = {name: t if t is None else t.double().detach().clone() for name, t in given.items()}
    if magnitudes:
        leaves = {name: t if t is None or name == "offset" else t.abs() for name, t in leaves.items()}
        grad_output = grad_output.abs()
    asked = {name: t.requires_grad_() for name, t in leaves.items() if t is not None}
    sizes = (case.stride, case.padding, case.dilation)
    output = reference.deform_conv(*(leaves[name] for name in NAMES), *sizes, magnitudes=magnitudes)
    grads = torch.autograd.grad(output, list(asked.values()), grad_output.double())
    return {"output": output.detach(), **dict(zip(asked, grads, strict=True))}


@cache
def problem(name: str, dtype: torch.dtype) -> Problem:
    """Arguments rounded to the dtype, and what they give in float64."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = CASES[name]
    given, grad_output = drawn(case)
    given = {name: t if t is None else t.to(dtype) for name, t in given.items()}
    grad_output = grad_output.to(dtype)
    expected, scale = (reference_of(case, given, grad_output, magnitudes) for magnitudes in (False, True))
    torch.set_num_threads(threads)
    return Problem(given, grad_output, expected, scale)


def call(case: Case, given: dict) -> Tensor:
    arguments = (given[name] for name in ("input", "offset", "weight", "bias"))
    return fastconv.deform_conv2d(*arguments, case.stride, case.padding, case.dilation, given["mask"])


def leaves_of(given: dict, **layouts: str) -> dict:
    return {
        name: t if t is None else LAYOUTS[layouts.get(name, "contiguous")](t.clone()).detach().requires_grad_()
        for name, t in given.items()
    }


def all_of(case: Case, given: dict, grad_output: Tensor, *names: str) -> list[Tensor]:
    """The output and the gradients of these."""
    output = call(case, given)
    return [output.detach(), *torch.autograd.grad(output, [given[name] for name in names], grad_output)]
