"""Deformable convolution: where samples lie, what is read there and what is not, at the edges and at NaN."""

import pytest
import torch
import torch.nn.functional as F
from deform_cases import CASES, NAMES, all_of, drawn, leaves_of
from kernels import DTYPES
from layouts import LAYOUTS

import fastconv

#: The tensors are small.
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("groups", [1, 3])
def test_no_offsets_are_convolution(groups: int) -> None:
    x, weight, bias = torch.randn(2, 12, 11, 9), torch.randn(15, 12 // groups, 3, 3), torch.randn(15)
    for kwargs in ({}, {"padding": 1}, {"stride": 2, "padding": (2, 1)}, {"dilation": (2, 1), "padding": 2}):
        expected = F.conv2d(x, weight, bias, groups=groups, **kwargs)
        offset = torch.zeros(2, 18, *expected.shape[2:])
        torch.testing.assert_close(
            fastconv.deform_conv2d(x, offset, weight, bias, **kwargs), expected, rtol=1e-5, atol=1e-5
        )
        halved = fastconv.deform_conv2d(x, offset, weight, bias, mask=torch.full_like(offset[:, :9], 0.5), **kwargs)
        expected = F.conv2d(x, weight / 2, bias, groups=groups, **kwargs)
        torch.testing.assert_close(halved, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [(0, 2), (3, 0), (-1, 2), (-4, -3), (30, 0), (0, -30)])
def test_whole_offsets_are_convolution_of_the_shifted_input(shift: tuple[int, int]) -> None:
    x, weight = torch.randn(1, 5, 9, 8), torch.randn(4, 5, 3, 3)
    offset = torch.tensor(shift, dtype=torch.float32).repeat(9).view(1, 18, 1, 1).expand(1, 18, 9, 8)
    wide = F.pad(x, (32, 32, 32, 32))
    shifted = wide[:, :, 31 + shift[0] : 42 + shift[0], 31 + shift[1] : 41 + shift[1]]
    output = fastconv.deform_conv2d(x, offset, weight, padding=1)
    torch.testing.assert_close(output, F.conv2d(shifted, weight), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_at_the_edge(dtype: torch.dtype) -> None:
    """A pixel less than one away counts for its share, one away for nothing."""
    x = torch.tensor([2.0, 4.0], dtype=dtype).view(1, 1, 1, 2)
    one = torch.ones(1, 1, 1, 1, dtype=dtype)
    for place, expected in (
        (-1, 0),
        (-0.75, 0.5),
        (-0.25, 1.5),
        (0, 2),
        (0.5, 3),
        (1, 4),
        (1.25, 3),
        (1.75, 1),
        (2, 0),
    ):
        offset = torch.tensor([[0, place], [0, place - 1]], dtype=dtype).t().reshape(1, 2, 1, 2)
        assert fastconv.deform_conv2d(x, offset, one).tolist() == [[[[expected] * 2]]]
    for down, expected in ((-1, 0), (-0.5, 1), (0.5, 1), (1, 0)):
        offset = torch.tensor([down, 0], dtype=dtype).view(1, 2, 1, 1).expand(1, 2, 1, 2)
        assert fastconv.deform_conv2d(x, offset, one).tolist() == [[[[expected, 2 * expected]]]]


FAR = [1e4, -1e4, 1e30, -1e30, float("inf"), -float("inf"), float("nan")]


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_far_offsets(dtype: torch.dtype, layout: str, far: float) -> None:
    """Samples are zero, and nobody gets a gradient from them; those next to them know nothing of it."""
    case = CASES["17 channels"]
    given, grad_output = drawn(case)
    offset = given["offset"]
    assert offset is not None
    gone = torch.rand(2, 9, 8, 9) < 0.3
    hit = torch.stack([gone, gone], 2)
    hit[:, ::2, 0] = False  # one of the two is enough
    hit = hit.view(offset.shape)
    gone_too = hit.view(2, 9, 2, 8, 9).any(2)
    results = []
    for value in (far, 200.0):
        moved = {name: t if t is None else t.to(dtype) for name, t in given.items()}
        moved["offset"] = torch.where(hit, value, offset).to(dtype)
        leaves = leaves_of(moved, input=layout)
        results.append(all_of(case, leaves, grad_output.to(dtype), *NAMES))
    for got, expected in zip(*results, strict=True):
        assert got.isfinite().all()
        assert torch.equal(got, expected)
    grad_offset, grad_mask = results[0][2], results[0][5]
    assert not grad_offset[gone_too.repeat_interleave(2, 1)].any()
    assert not grad_mask[gone_too].any()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_looks_at_a_nan(layout: str, value: float) -> None:
    """Outputs of which a sample reads the pixel, also one that counts nothing of it; no others."""
    case = CASES["17 channels"]
    given, _ = drawn(case)
    input, offset = given["input"], given["offset"]
    assert input is not None
    assert offset is not None
    offset[0, :, 3] = 1e30
    for h, w in ((0, 0), (0, 8), (7, 0), (7, 8), (4, 3)):
        input = torch.randn(case.input, dtype=torch.float64)
        clean = fastconv.deform_conv2d(input, offset, given["weight"], padding=1)
        input[0, 5, h, w] = value
        output = fastconv.deform_conv2d(LAYOUTS[layout](input), offset, given["weight"], padding=1)
        places = torch.zeros(9, 2, 8, 9, dtype=torch.float64)
        places[:, 0] = torch.arange(8)[:, None] - 1 + (torch.arange(9) // 3).view(9, 1, 1)
        places[:, 1] = torch.arange(9) - 1 + (torch.arange(9) % 3).view(9, 1, 1)
        y, x = (places + offset[0].view(9, 2, 8, 9)).unbind(1)
        reads = ((y.floor() == h) | (y.floor() == h - 1)) & ((x.floor() == w) | (x.floor() == w - 1))
        reads = reads & (y >= -1) & (x >= -1) & (y < 8) & (x < 9)
        touched = torch.zeros(2, 8, 9, dtype=torch.bool)
        touched[0] = reads.any(0)
        assert touched.any()
        assert not output.isfinite()[touched[:, None].expand_as(output)].any()
        assert torch.equal(output[~touched[:, None].expand_as(output)], clean[~touched[:, None].expand_as(output)])
        assert not touched[0, 3].any()


def test_samples_outside_see_no_nan() -> None:
    """Forward and backward, of an input that is nothing else."""
    x = torch.full((1, 20, 4, 5), float("nan")).requires_grad_()
    weight, bias = torch.randn(6, 20, 3, 3).requires_grad_(), torch.randn(6)
    mask = torch.full((1, 9, 4, 5), float("inf")).requires_grad_()
    offset = torch.full((1, 18, 4, 5), 50.0).requires_grad_()
    output = fastconv.deform_conv2d(x, offset, weight, bias, padding=1, mask=mask)
    assert torch.equal(output, bias.view(1, 6, 1, 1).expand_as(output))
    for grad in torch.autograd.grad(output.sum(), (x, offset, weight, mask)):
        assert not grad.any()


def test_infinite_gradients() -> None:
    """As they come out of 16 bits: infinite where the gradient is, also of fewer channels than a vector has."""
    for channels in (1, 16, 17):
        x, weight = torch.ones(1, channels, 2, 2).requires_grad_(), torch.ones(1, channels, 1, 1).requires_grad_()
        offset, mask = torch.full((1, 2, 2, 2), 0.25), torch.ones(1, 1, 2, 2).requires_grad_()
        grad = torch.zeros(1, 1, 2, 2)
        grad[..., 0, 0] = float("inf")
        output = fastconv.deform_conv2d(x, offset, weight, mask=mask)
        of_x, of_weight, of_mask = torch.autograd.grad(output, (x, weight, mask), grad)
        assert of_x.isposinf().all()
        assert of_weight.isposinf().all()
        assert of_mask.flatten().tolist() == [float("inf"), 0, 0, 0], channels
