"""Deformable convolution on a GPU, against the same operators on the CPU.

The kernels' indexing is tested on any machine by test_deform_cuda.py."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from layouts import LAYOUTS
from on_gpu import DEVICE, TOLERANCE, close, placed, run
from torch import Tensor

import fastconv

BACKWARD = ["deform_reaches", "deform_input_grads", "deform_offset_grads"]
PRODUCTS = pytest.mark.kernels("deform_pack", "deform_products", "deform_weight_grads", "deform_add_parts", *BACKWARD)
SAMPLES = pytest.mark.kernels("deform_sample", *BACKWARD)


@dataclass(frozen=True)
class Case:
    size: tuple[int, int, int, int] = (2, 32, 30, 41)
    out: int = 48  # channels of the output; 0: samples alone
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    groups: int = 1
    offset_groups: int = 1
    far: float = 1.5  # how far taps look elsewhere

    @property
    def windows(self) -> list[int]:
        return [(size + 2 - k) // self.stride + 1 for size, k in zip(self.size[2:], self.kernel, strict=True)]

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        N, C = self.size[:2]
        taps = self.offset_groups * self.kernel[0] * self.kernel[1]
        sizes = {"input": self.size, "offset": (N, 2 * taps, *self.windows), "mask": (N, taps, *self.windows)}
        if self.out:
            sizes |= {"weight": (self.out, C // self.groups, *self.kernel), "bias": (self.out,)}
        generator = torch.Generator().manual_seed(0)
        made = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
        made["offset"] *= self.far
        if self.out:
            made["weight"] /= (C // self.groups) ** 0.5
        return {name: t.to(dtype) for name, t in made.items()}

    def __call__(self, tensors: dict[str, Tensor]) -> Tensor:
        input, offset, mask, *others = tensors.values()
        if not others:
            return fastconv.deform_sample2d(input, offset, mask, self.kernel, self.stride, 1)
        weight, bias = others
        return fastconv.deform_conv2d(input, offset, weight, bias, self.stride, 1, mask=mask)

    def grad(self, dtype: torch.dtype) -> Tensor:
        size = self.size[0], self.out or self.size[1], *self.windows
        return torch.randn(size, generator=torch.Generator().manual_seed(1)).to(dtype)


PRODUCT_CASES = {
    "usual": Case(),
    "few output channels": Case(out=9),
    "many channels": Case(size=(1, 136, 14, 13), out=200),
    "groups": Case(groups=4, offset_groups=2),
    "depthwise": Case(out=32, groups=32, offset_groups=32),
    "odd channels": Case(size=(2, 15, 30, 41), out=10, groups=5, offset_groups=3),
    "strides": Case(stride=2, kernel=(2, 5)),
    "far": Case(far=30),
    "many pixels": Case(size=(1, 8, 280, 300), out=8),
}
SAMPLE_CASES = {
    "usual": Case(out=0),
    "groups": Case(size=(3, 64, 28, 28), out=0, offset_groups=4),
    "odd channels": Case(size=(2, 15, 30, 41), out=0, offset_groups=3),
    "strides": Case(out=0, stride=2, kernel=(2, 5)),
    "far": Case(out=0, far=30),
}


def check(case: Case, dtype: torch.dtype, layout: str) -> None:
    tensors, grad = case.tensors(dtype), case.grad(dtype)
    wanted = run(case, tensors, grad)
    got = run(case, placed(tensors, layout), LAYOUTS[layout](grad.to(DEVICE)))
    for name in wanted:
        close(got[name], wanted[name], equal_nan=True)


@PRODUCTS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_products(dtype: torch.dtype, layout: str) -> None:
    for case in PRODUCT_CASES.values():
        check(case, dtype, layout)


@SAMPLES
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_samples(dtype: torch.dtype, layout: str) -> None:
    for case in SAMPLE_CASES.values():
        check(case, dtype, layout)


@PRODUCTS
@SAMPLES
@pytest.mark.sanitizer
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_under_the_sanitizer(layout: str) -> None:
    for out in (0, 20):
        for dtype in (torch.float32, torch.bfloat16):
            check(Case(size=(2, 16, 17, 19), out=out, offset_groups=2), dtype, layout)


@PRODUCTS
@SAMPLES
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_call_gives_the_same_bits(layout: str) -> None:
    """Though thousands of samples fall on one position."""
    for out in (0, 24):
        case = Case(size=(2, 24, 40, 40), out=out)
        tensors = case.tensors(torch.float32)
        tensors["offset"] = (20 - torch.arange(40.0))[None, None, :, None].expand_as(tensors["offset"]).contiguous()
        tensors, grad = placed(tensors, layout), case.grad(torch.float32).to(DEVICE)
        first = run(case, tensors, grad)
        for _ in range(3):
            assert all(torch.equal(again, first[name]) for name, again in run(case, tensors, grad).items())


@PRODUCTS
@SAMPLES
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_samples_that_are_nowhere(layout: str) -> None:
    """Offsets that are NaN, infinite or far away: zeros without a gradient."""
    for out in (0, 24):
        case = Case(size=(2, 16, 17, 19), out=out)
        tensors, grad = case.tensors(torch.float32), case.grad(torch.float32)
        for first, value in enumerate([float("nan"), float("inf"), -float("inf"), 3e38, -1e10, 2.0**31]):
            tensors["offset"].view(-1)[first::41] = value
        wanted, got = run(case, tensors, grad), run(case, placed(tensors, layout), grad.to(DEVICE))
        for name in wanted:
            assert not got[name].isnan().any()
            close(got[name], wanted[name], equal_nan=True)


@PRODUCTS
@SAMPLES
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_graph_capture(layout: str, capture: Callable) -> None:
    """Forward and backward; offsets are new for each replay."""
    for out in (0, 24):
        case = Case(size=(2, 24, 20, 18), out=out)
        tensors, grad = placed(case.tensors(torch.float32), layout), case.grad(torch.float32).to(DEVICE)
        own = {name: t.requires_grad_() for name, t in tensors.items()}

        def step(case=case, own=own, grad=grad) -> list[Tensor]:
            output = case(own)
            return [output, *torch.autograd.grad(output, list(own.values()), grad)]

        graph, results = capture(step)
        for _ in range(2):
            with torch.no_grad():
                own["offset"].copy_(torch.randn_like(own["offset"]))
            graph.replay()
            for result, wanted in zip(results, step(), strict=True):
                assert torch.equal(result, wanted)


@SAMPLES
def test_arguments_are_checked() -> None:
    x = torch.zeros(1, 2, 3, 3, device=DEVICE)
    with pytest.raises(RuntimeError, match=r"deform_sample2d: offset must be on the device of input, cuda"):
        fastconv.deform_sample2d(x, torch.zeros(1, 2, 3, 3), None, 1)


@SAMPLES
@PRODUCTS
def test_an_empty_batch() -> None:
    x, weight = torch.zeros(0, 2, 3, 3, device=DEVICE), torch.ones(4, 2, 1, 1, device=DEVICE, requires_grad=True)
    offset = torch.zeros(0, 2, 3, 3, device=DEVICE)
    assert fastconv.deform_sample2d(x, offset, None, 1).shape == (0, 2, 3, 3)
    fastconv.deform_conv2d(x, offset, weight).sum().backward()
    assert weight.grad is not None
    assert (weight.grad == 0).all()
