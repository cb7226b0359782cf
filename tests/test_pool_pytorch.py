"""Pooling against PyTorch: random calls of all functions, and the shapes that random calls do not meet.

Maxima, indices and strides must be the same; results that are rounded are compared with PyTorch's in float64.
"""

import random
from typing import Any

import pytest
import reference
import torch
import torch.nn.functional as F
from kernels import DTYPES, SUPPORTED
from layouts import LAYOUTS
from torch import Tensor

import fastconv
from fastconv._native import native

#: Of a rounded result, and of a sum of gradients to the sum of their magnitudes.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def holds_nothing(size: tuple[int, ...], given: dict[str, Any]) -> bool:
    """Whether a dilated window has no element at all: there PyTorch reads and writes outside of the tensor."""
    if "dilation" not in given:
        return False
    windows = {("kernel" if name == "kernel_size" else name): value for name, value in given.items()}
    if len(size) == 3:
        size = (*size[:2], 1, size[2])
        windows = {k: (0 if k == "padding" else 1, *v) if isinstance(v, tuple) else v for k, v in windows.items()}
    axes = zip(size[2:], reference.pool_windows(size[2:], **windows), strict=True)
    return any(not any(0 <= at < length for at in window) for length, axis in axes for window in axis)


def assert_like_pytorch(name: str, x: Tensor, given: dict[str, Any], layout: str, grad_layout: str) -> None:
    """Values, indices, strides and gradients."""
    where = f"{name} of {list(x.shape)} {x.dtype} {layout} {given}"
    is_max = "max" in name
    if is_max:
        given = {**given, "return_indices": True}
    mine = LAYOUTS[layout](x).requires_grad_()
    theirs = LAYOUTS[layout](x.double()).requires_grad_()
    output, expected = (getattr(m, name)(t, **given) for m, t in ((fastconv, mine), (F, theirs)))
    tolerance = TOLERANCE[x.dtype]
    if is_max:
        (output, indices), (expected, theirs_indices) = output, expected
        assert torch.equal(indices, theirs_indices), where
        assert indices.dtype == torch.int64
        plain = getattr(fastconv, name)(mine.detach(), **{**given, "return_indices": False})
        assert torch.equal(plain.nan_to_num(nan=1e4), output.nan_to_num(nan=1e4)), where
    else:
        same = getattr(F, name)(mine.detach(), **given)
        assert output.stride() == same.stride() or 1 in output.shape or x.dim() == 3, where
    assert output.dtype == x.dtype
    torch.testing.assert_close(
        output.double(), expected.detach(), rtol=0 if is_max else tolerance, atol=0 if is_max else tolerance,
        equal_nan=True, msg=lambda m: f"{where}\n{m}",
    )  # fmt: skip
    grad = torch.randn(output.shape).to(x.dtype)
    (grad_input,) = torch.autograd.grad(output, mine, LAYOUTS[grad_layout](grad))
    (wanted,) = torch.autograd.grad(expected, theirs, grad.double(), retain_graph=True)
    (scale,) = torch.autograd.grad(expected, theirs, grad.double().abs())
    error = (grad_input.double() - wanted).abs()
    assert (error <= tolerance * scale.abs() + 2**-24).all(), f"{where}: gradient off by {float(error.max())}"


def draw_call(rng: random.Random) -> tuple[str, tuple[int, ...], dict[str, Any]]:
    """A function, the size of its input, and arguments; often some that are refused."""
    channels = rng.choice([1, 2, 3, 5, 8, 16, 17, 33, 64, 70])
    size = (rng.choice([1, 2, 3]), channels, *(rng.choice([1, 2, 3, 5, 7, 8, 14, 16, 17, 31, 33, 40]) for _ in "hw"))
    kind = rng.choice(["max", "avg"])
    if rng.random() < 0.3:
        asked = tuple(rng.choice([1, 1, 2, 3, 6, 7, 9, 20]) for _ in "pq")
        return f"adaptive_{kind}_pool2d", size, {"output_size": asked}
    kernel = tuple(rng.choice([1, 2, 3, 3, 5, 7, 13]) for _ in "rs")
    dilation = tuple(rng.choice([1, 1, 1, 2, 3]) if kind == "max" else 1 for _ in "rs")
    given = {
        "kernel_size": kernel,
        "stride": tuple(rng.choice([1, 1, 2, 2, 3, k]) for k in kernel),
        "padding": tuple(rng.randint(0, k // 2) for k in kernel),
        "ceil_mode": rng.random() < 0.5,
    }
    if kind == "max":
        given["dilation"] = dilation
    else:
        given["count_include_pad"] = rng.random() < 0.5
        if rng.random() < 0.2:
            given["divisor_override"] = rng.choice([1, 3, 7, -2])
    if rng.random() < 0.2:  # one dimension
        given = {key: value[1:] if isinstance(value, tuple) else value for key, value in given.items()}
        given.pop("divisor_override", None)
        return f"{kind}_pool1d", (*size[:2], size[3]), given
    return f"{kind}_pool2d", size, given


def draw_values(rng: random.Random, size: tuple[int, ...], kind: str) -> Tensor:
    """Numbers; for maxima also equal ones, infinite ones and NaN."""
    x = torch.randn(size)
    if "max" in kind:
        if rng.random() < 0.4:
            x = x.round()
        if rng.random() < 0.2:
            x[torch.rand(size) < 0.7] = -torch.inf
        if rng.random() < 0.2:
            x[torch.rand(size) < 0.1] = torch.nan
    return x


@pytest.mark.parametrize("isa", SUPPORTED)
def test_random_calls(isa: str) -> None:
    assert native.isa_select(isa)
    rng = random.Random(isa)
    layouts, computed, refused = list(LAYOUTS), 0, 0
    for _ in range(700):
        name, size, given = draw_call(rng)
        x = draw_values(rng, size, name).to(rng.choice(DTYPES))
        torch.set_num_threads(rng.choice([1, 2]))
        try:
            getattr(F, name)(x, **given)
        except RuntimeError:
            with pytest.raises(RuntimeError, match=f"^{name}: "):
                getattr(fastconv, name)(x, **given)
            refused += 1
            continue
        if holds_nothing(size, given):
            continue
        assert_like_pytorch(name, x, given, rng.choice(layouts), rng.choice(layouts))
        computed += 1
    assert computed > 350
    assert refused > 20


LARGE: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    # How many bytes a winner takes, and by which walk gradients go back: gathered from few windows, or scattered.
    "256 elements": ((1, 3, 34, 33), {"kernel_size": 16, "stride": 8}),
    "257 rows": ((1, 2, 600, 5), {"kernel_size": (257, 1), "stride": (257, 1)}),
    "771 elements, pairs": ((1, 2, 600, 21), {"kernel_size": (257, 3), "stride": (257, 2)}),
    "771 elements, gathered": ((1, 2, 600, 141), {"kernel_size": (257, 3), "stride": (257, 2)}),
    "272 elements": ((2, 17, 40, 35), {"kernel_size": (16, 17), "stride": 8, "padding": (8, 3)}),
    "272 elements, scattered": ((1, 3, 40, 35), {"kernel_size": (16, 17), "stride": 1}),
    "65536 elements": ((1, 2, 513, 259), {"kernel_size": 256, "stride": (256, 2)}),
    "65792 elements": ((1, 2, 600, 300), {"kernel_size": (257, 256), "stride": (200, 30), "padding": (100, 0)}),
    "65792 elements, gathered": (
        (1, 17, 514, 258),
        {"kernel_size": (257, 256), "stride": (257, 200), "ceil_mode": True},
    ),
    "65537 rows": ((1, 1, 131075, 3), {"kernel_size": (65537, 1), "stride": (65537, 1)}),
    "65537 rows, pairs": ((1, 1, 131075, 5), {"kernel_size": (65537, 3), "stride": (65537, 2)}),
    "65538 elements, gathered": ((1, 1, 10923, 130), {"kernel_size": (10923, 6), "stride": (10923, 2)}),
    "65537 rows, channels": ((1, 5, 131075, 2), {"kernel_size": (65537, 2), "stride": (32768, 1)}),
    "bands of rows": ((1, 2, 1100, 130), {"kernel_size": 11, "stride": 1, "padding": 5}),
    "bands of rows, channels": ((1, 20, 240, 70), {"kernel_size": 9, "stride": 1}),
    "far apart": ((1, 3, 50, 200), {"kernel_size": 2, "stride": (5, 9)}),
    "wide windows, few": ((1, 3, 9, 1000), {"kernel_size": (3, 100), "stride": (2, 90)}),
    "wide windows, many": ((1, 3, 9, 1000), {"kernel_size": (3, 40), "stride": (1, 3)}),
    "chunks that overlap": ((1, 2, 3, 9000), {"kernel_size": (2, 301), "stride": 1, "padding": (0, 150)}),
    "chunks of pairs": ((1, 2, 3, 12001), {"kernel_size": (2, 4), "stride": 2, "padding": (1, 2), "ceil_mode": True}),
    "adaptive, uneven": ((1, 17, 37, 1003), {"output_size": (5, 9)}),
    "adaptive, wider than the input": ((2, 5, 3, 7), {"output_size": (50, 300)}),
    "adaptive, one row": ((1, 9, 300, 300), {"output_size": (1, 7)}),
    "one window": ((2, 5, 300, 300), {"output_size": 1}),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_large(name: str, dtype: torch.dtype) -> None:
    size, given = LARGE[name]
    adaptive = "adaptive_" if "output_size" in given else ""
    rng = random.Random(f"{name} {dtype}")
    for isa in {SUPPORTED[0], SUPPORTED[-1]}:
        assert native.isa_select(isa)
        for layout in ("contiguous", "channels_last"):
            torch.set_num_threads(rng.choice([1, 2]))
            for kind in ("max", "avg"):
                x = torch.randn(size)
                x = (x.round() if rng.random() < 0.3 and kind == "max" else x).to(dtype)
                assert_like_pytorch(f"{adaptive}{kind}_pool2d", x, given, layout, layout)


def test_windows_that_begin_in_the_padding_behind_are_dropped() -> None:
    for size, kernel, stride, padding, expected in (
        ((1, 1, 5, 7), 2, 3, 1, (2, 3)),
        ((1, 1, 4, 4), 3, 4, 1, (2, 2)),
        ((1, 1, 1, 1), 3, 2, 1, (1, 1)),
        ((1, 1, 6, 5), 1, 4, 0, (2, 2)),
    ):
        x = torch.randn(size)
        for name in ("max_pool2d", "avg_pool2d"):
            for format in (torch.contiguous_format, torch.channels_last):
                given = x.contiguous(memory_format=format)
                output = getattr(fastconv, name)(given, kernel, stride, padding, ceil_mode=True)
                assert output.shape[2:] == expected
                assert output.isfinite().all()
                torch.testing.assert_close(output, getattr(F, name)(given, kernel, stride, padding, ceil_mode=True))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_windows_without_elements(dtype: torch.dtype, layout: str) -> None:
    """Negative infinity, no index, and nobody's gradient."""
    x = LAYOUTS[layout](torch.randn(2, 19, 1, 2).to(dtype)).requires_grad_()
    output, indices = fastconv.max_pool2d(x, (1, 2), 1, (0, 1), (1, 3), return_indices=True)
    # Columns -1 and 2 of the first window, 0 and 3 of the only other that there is room for.
    assert output.shape == (2, 19, 1, 1)
    assert (output == -torch.inf).all()
    assert (indices == -1).all()
    output.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("kernel", [(1, 4), (3, 3), (5, 5), (2, 9), (10, 10)])
@pytest.mark.parametrize("stride", [1, 2, 10])
def test_nan_and_ties(kernel: tuple[int, int], stride: int, layout: str) -> None:
    """Of one window each: the last NaN wins, without one the first of the equal values."""
    for dtype in DTYPES:
        x = torch.randint(0, 3, (2, 18, 10, 20)).to(dtype)
        x[0][torch.rand(18, 10, 20) < 0.1] = torch.nan
        values, indices = fastconv.max_pool2d(LAYOUTS[layout](x), kernel, stride, return_indices=True)
        flat, (R, S) = x.flatten(2), kernel
        for p in range(values.shape[2]):
            for q in range(values.shape[3]):
                positions = [(p * stride + r) * 20 + q * stride + s for r in range(R) for s in range(S)]
                window = flat[:, :, positions]
                nan = window.isnan()
                first = (window == window.nan_to_num(nan=-1).amax(-1, keepdim=True)).int().argmax(-1)
                last = len(positions) - 1 - nan.flip(-1).int().argmax(-1)
                winner = torch.where(nan.any(-1), last, first)
                assert torch.equal(indices[:, :, p, q], torch.tensor(positions)[winner])
                assert torch.equal(values[:, :, p, q].isnan(), nan.any(-1))
