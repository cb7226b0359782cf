"""Deformable convolution: first derivatives by differences, second ones by those and by the reference, third ones."""

from typing import Any

import pytest
import reference
import torch
from deform_cases import NAMES, Case, call, drawn
from torch import Tensor

import fastconv

#: The tensors are small.
pytestmark = pytest.mark.usefixtures("one_thread")


SMALL = {
    "v1": Case((1, 2, 3, 4), 2, (2, 2), padding=(1, 0), mask=False),
    "v2": Case((1, 2, 3, 3), 1, (2, 2), padding=(0, 1)),
    "groups": Case((2, 4, 3, 3), 2, (2, 1), (2, 1), groups=2, offset_groups=2, bias=False),
    "dilated": Case((1, 1, 4, 4), 2, (2, 2), padding=(1, 1), dilation=(2, 1)),
}


def small(name: str) -> tuple[list[Tensor], Any]:
    """Offsets far from whole numbers, where there is no derivative; some outside."""
    given, _ = drawn(SMALL[name])
    offset = given["offset"]
    assert offset is not None
    given["offset"] = offset.round() + torch.empty_like(offset).uniform_(0.2, 0.8)
    asked = [of for of in NAMES if given[of] is not None]

    def function(*leaves: Tensor) -> Tensor:
        return call(SMALL[name], {**given, **dict(zip(asked, leaves, strict=True))})

    return [given[of].requires_grad_() for of in asked], function  # type: ignore[union-attr]


@pytest.mark.parametrize("name", SMALL)
def test_first_derivatives(name: str) -> None:
    leaves, function = small(name)
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("name", SMALL)
def test_second_derivatives(name: str) -> None:
    leaves, function = small(name)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("name", ["v1", "v2", "groups"])
def test_second_derivatives_are_the_references(name: str) -> None:
    case = SMALL[name]
    leaves, function = small(name)
    given = dict(zip([of for of in NAMES if of != "bias" or case.bias], leaves, strict=False))

    def slow(*leaves: Tensor) -> Tensor:
        arguments = {**dict.fromkeys(NAMES), **dict(zip(given, leaves, strict=True))}
        return reference.deform_conv(*(arguments[of] for of in NAMES), case.stride, case.padding, case.dilation)

    seconds = []
    for f in (function, slow):
        first = torch.autograd.grad(f(*leaves).sin().sum(), leaves, create_graph=True)
        seconds.append(torch.autograd.grad(sum(each.cos().sum() for each in first), leaves))
    torch.testing.assert_close(*seconds)


@pytest.mark.parametrize("of", ["input", "offset", "weight", "mask"])
def test_second_derivatives_of_one(of: str) -> None:
    leaves, function = small("v2")
    chosen = leaves[NAMES.index(of)]
    for leaf in leaves:
        leaf.requires_grad_(leaf is chosen)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_third_derivatives() -> None:
    """Through PyTorch's operators to any order; offsets that were computed from the input are not counted twice."""
    case = SMALL["v2"]
    (x, _, weight, bias, mask), _ = small("v2")
    shape = (1, 8, 2, 4)
    mix = torch.randn(8, 18, dtype=torch.float64)

    def thirds(function: Any) -> Tensor:
        offset = (mix @ x.flatten()).sin().view(1, 8, 1, 1).expand(shape) * 0.3 + 0.5
        y = function(x, offset, weight, bias, mask).sin().sum()
        for _ in range(3):
            (g,) = torch.autograd.grad(y, x, create_graph=True)
            y = g.cos().sum()
        return g.detach()

    def ours(x, offset, weight, bias, mask) -> Tensor:
        return fastconv.deform_conv2d(x, offset, weight, bias, case.stride, case.padding, case.dilation, mask)

    def slow(*given: Tensor) -> Tensor:
        return reference.deform_conv(*given, case.stride, case.padding, case.dilation)

    torch.testing.assert_close(thirds(ours), thirds(slow))
