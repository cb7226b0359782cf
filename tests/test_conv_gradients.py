"""Gradients of convolution: of every order, of only what asks for one, and where several elements are one."""

import pytest
import torch
import torch.nn.functional as F
from cases import problem
from kernels import (
    BY_NAME,
    KERNELS,
    kernels_of,
)
from layouts import LAYOUTS
from torch.autograd import gradcheck, gradgradcheck

import fastconv
from fastconv._native import native

GRADIENT_CASES = {
    "dense": ((2, 3, 5, 4), (4, 3, 3, 3), {"padding": 1}),
    "stride_2": ((1, 2, 6, 5), (3, 2, 3, 2), {"stride": 2, "padding": (1, 0)}),
    "stride_3_kernel_2": ((1, 2, 7, 7), (2, 2, 2, 2), {"stride": 3}),
    "groups": ((2, 4, 4, 4), (6, 2, 3, 3), {"padding": 1, "groups": 2}),
    "depthwise": ((1, 4, 5, 4), (4, 1, 3, 3), {"padding": 1, "groups": 4}),
    "dilation": ((1, 2, 6, 6), (2, 2, 2, 3), {"dilation": 2, "padding": 3}),
    "same_even": ((1, 2, 4, 5), (2, 2, 2, 4), {"padding": "same"}),
    "unbatched": ((3, 4, 5), (2, 3, 3, 3), {}),
    "1d": ((2, 3, 7), (4, 3, 3), {"stride": 2, "padding": 1}),
    "1d_unbatched": ((2, 7), (4, 1, 3), {"groups": 2}),
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("name", GRADIENT_CASES)
def test_gradcheck(name: str, layout: str) -> None:
    size, weight_size, kwargs = GRADIENT_CASES[name]
    function = fastconv.conv1d if len(weight_size) == 3 else fastconv.conv2d
    input = LAYOUTS[layout](torch.randn(size, dtype=torch.float64)).requires_grad_()
    weight = LAYOUTS[layout](torch.randn(weight_size, dtype=torch.float64)).requires_grad_()
    bias = torch.randn(weight_size[0], dtype=torch.float64, requires_grad=True)

    def conv(*tensors):
        return function(*tensors, **kwargs)

    assert gradcheck(conv, (input, weight, bias), fast_mode=True)
    assert gradgradcheck(conv, (input, weight, bias), fast_mode=True)
    assert gradgradcheck(conv, (input, weight), fast_mode=True)
    if layout == "contiguous":
        assert gradcheck(conv, (input, weight, bias))
        for frozen in ("input", "weight"):
            i = input.detach() if frozen == "input" else input
            w = weight.detach() if frozen == "weight" else weight
            assert gradcheck(conv, (i, w, bias), fast_mode=True)
            assert gradgradcheck(conv, (i, w, bias), fast_mode=True)


def test_gradient_of_only_what_asks_for_one() -> None:
    for wanted in range(1, 8):
        tensors = [torch.randn(2, 4, 5, 5), torch.randn(6, 4, 3, 3), torch.randn(6)]
        mine = [t.clone().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(tensors)]
        theirs = [t.clone().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(tensors)]
        fastconv.conv2d(*mine).square().sum().backward()
        F.conv2d(*theirs).square().sum().backward()
        for a, b in zip(mine, theirs, strict=True):
            assert (a.grad is None) == (b.grad is None)
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "kernel"),
    kernels_of("stride_2", "groups_3_strided", "depthwise_17_w17", "dense_64x65_w5", "1d"),
)
def test_gradient_of_stride_zero(name: str, kernel: str) -> None:
    """What ``sum().backward()`` and ``mean((2, 3))`` send: a gradient whose elements lie in one place."""
    case = BY_NAME[name]
    function, theirs = (fastconv.conv1d, F.conv1d) if case.dims == 1 else (fastconv.conv2d, F.conv2d)
    p = problem(case)
    native.conv_force_kernel(kernel)
    one = torch.tensor(0.75, dtype=torch.float64)
    for grad in (
        one.expand(p.output.shape),
        p.grad_output.flatten(2)[..., :1].expand(*p.output.shape[:2], 1),
    ):
        if grad.shape != p.output.shape:
            grad = grad.reshape(*grad.shape[:2], *(1,) * case.dims).expand(p.output.shape)
        grads = []
        for f in (function, theirs):
            input, weight = p.input.clone().requires_grad_(), p.weight.clone().requires_grad_()
            grads.append(torch.autograd.grad(f(input, weight, **case.kwargs), (input, weight), grad))
        for mine, other in zip(*grads, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", ["", *KERNELS])
def test_expanded_input_and_weight(kernel: str) -> None:
    input = torch.randn(1, 5, 1, 1, dtype=torch.float64).expand(2, 5, 6, 7)
    weight = torch.randn(5, 1, 1, 1, dtype=torch.float64).expand(5, 1, 3, 3)
    native.conv_force_kernel(kernel)
    output = fastconv.conv2d(input, weight, groups=5)
    torch.testing.assert_close(output, F.conv2d(input, weight, groups=5), rtol=1e-12, atol=1e-12)
