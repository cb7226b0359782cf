"""Spatial pyramid pooling against adaptive pooling level by level."""

from typing import Any

import pytest
import reference
import torch
import torch.nn.functional as F
from layouts import LAYOUTS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fastconv
from fastconv import spatial_pyramid_pool2d

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LEVELS = [(1, 2, 4), (4, 2, 1), (1, 2, 3, 6), (3,), (5, 3, 5), (1, 7, 14), (16, 1)]
SIZES = [(1, 1), (2, 3), (5, 7), (14, 14), (13, 17), (6, 40)]


def by_reference(x: Tensor, levels: Any, mode: str) -> Tensor:
    parts = []
    for level in levels:
        if mode == "max":
            pooled, _ = reference.max_pool(x, output_size=level)
        else:
            pooled = reference.avg_pool(x, output_size=level)
        parts.append(pooled.flatten(1))
    return torch.cat(parts, 1)


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_against_the_reference(size: tuple, levels: tuple, mode: str) -> None:
    x = torch.randn(2, 5, *size, dtype=torch.float64)
    wanted = by_reference(x, levels, mode)
    assert wanted.shape == (2, 5 * sum(level * level for level in levels))
    for layout in LAYOUTS:
        for grad in (False, True):
            got = spatial_pyramid_pool2d(LAYOUTS[layout](x).detach().requires_grad_(grad), levels, mode)
            torch.testing.assert_close(got, wanted, rtol=1e-14 if mode == "avg" else 0, atol=1e-14 * (mode == "avg"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_maxima_are_exact(layout: str, dtype: torch.dtype) -> None:
    """Maxima of maxima, NaN and infinities too."""
    x = torch.randn(2, 19, 13, 14).to(dtype)
    x[torch.rand(x.shape) < 0.01] = torch.nan
    x[torch.rand(x.shape) < 0.02] = torch.inf
    x[1, :9] = -torch.inf
    wanted = torch.cat([F.adaptive_max_pool2d(x, level).flatten(1) for level in (1, 2, 3, 6)], 1)
    got = spatial_pyramid_pool2d(LAYOUTS[layout](x), (1, 2, 3, 6))
    assert got.dtype == dtype
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_means_round_once(dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, 12, 12).to(dtype)
    wanted = torch.cat([F.adaptive_avg_pool2d(x.double(), level).flatten(1) for level in (1, 2, 4)], 1)
    tolerance = {torch.float32: 2e-7, torch.float64: 1e-15, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    got = spatial_pyramid_pool2d(x, mode="avg")
    assert (
        (got.double() - wanted).abs() <= tolerance * wanted.abs() + (1e-15 if dtype == torch.float64 else 3e-7)
    ).all()


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("levels", [(1, 2, 4), (1, 2, 3, 6), (3, 2)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients(layout: str, levels: tuple, mode: str) -> None:
    for size in ((7, 8), (2, 3)):
        # All different, so that there is one gradient: PyTorch's.
        x = (torch.randperm(6 * size[0] * size[1]).double() / 7).view(2, 3, *size)
        ours, theirs = LAYOUTS[layout](x).requires_grad_(), x.clone().requires_grad_()
        output = spatial_pyramid_pool2d(ours, levels, mode)
        grad = torch.randn_like(output)
        pool = getattr(F, f"adaptive_{mode}_pool2d")
        wanted = torch.cat([pool(theirs, level).flatten(1) for level in levels], 1)
        torch.testing.assert_close(
            torch.autograd.grad(output, ours, grad), torch.autograd.grad(wanted, theirs, grad), rtol=1e-12, atol=1e-12
        )
        assert torch.autograd.gradcheck(lambda x: spatial_pyramid_pool2d(x, levels, mode), ours)
        assert torch.autograd.gradgradcheck(lambda x: spatial_pyramid_pool2d(x, levels, mode) * x.sum(), ours)


def test_ties_give_the_gradient_to_one() -> None:
    """The first element of the first window of the finest grid; every level's gradient arrives whole."""
    for layout in ("contiguous", "channels_last"):
        x = LAYOUTS[layout](torch.zeros(1, 17, 8, 8)).requires_grad_()
        output = spatial_pyramid_pool2d(x, (1, 2, 4))
        (grad,) = torch.autograd.grad(output[:, : 17 * 5].sum(), x)
        wanted = torch.zeros(8, 8)
        wanted[0, 0], wanted[0, 4], wanted[4, 0], wanted[4, 4] = 2, 1, 1, 1
        assert torch.equal(grad[0], wanted.expand(17, 8, 8))


def test_unbatched_and_empty() -> None:
    x = torch.randn(3, 8, 9)
    for mode in ("max", "avg"):
        one = spatial_pyramid_pool2d(x, mode=mode)
        assert one.shape == (63,)
        torch.testing.assert_close(one, spatial_pyramid_pool2d(x[None], mode=mode)[0])
        empty = spatial_pyramid_pool2d(x[None][:0].requires_grad_(), mode=mode)
        assert empty.shape == (0, 63)
        empty.sum().backward()


class Net(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([spatial_pyramid_pool2d(x), spatial_pyramid_pool2d(x, [3, 1], "avg")], 1)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(Net(), backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for height in (16, 22):
        x = torch.randn(2, 4, height, 19, requires_grad=True)
        results = [(net(x), torch.autograd.grad(net(x).sin().sum(), x)[0]) for net in (compiled, Net())]
        torch.testing.assert_close(*results)


def test_export() -> None:
    program = torch.export.export(
        Net(), (torch.randn(2, 4, 17, 19),), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=2, max=64)}}
    )
    wider = torch.randn(5, 4, 17, 19)
    torch.testing.assert_close(program.module()(wider), Net()(wider))


def test_func() -> None:
    x = torch.randn(2, 4, 9, 8)
    leaf = x.clone().requires_grad_()
    got = torch.func.grad(lambda x: spatial_pyramid_pool2d(x).square().sum())(x)
    torch.testing.assert_close(got, torch.autograd.grad(spatial_pyramid_pool2d(leaf).square().sum(), leaf)[0])


def test_module() -> None:
    module = fastconv.nn.SpatialPyramidPool2d((3, 1), "avg")
    x = torch.randn(2, 5, 9, 9)
    assert torch.equal(module(x), spatial_pyramid_pool2d(x, (3, 1), "avg"))
    assert repr(module) == "SpatialPyramidPool2d(levels=(3, 1), mode='avg')"


X = (1, 4, 5, 6)
BAD: list[tuple[tuple, dict, type, str]] = [
    (X, {"levels": ()}, ValueError, "levels must be positive, and at least one (got [])"),
    (X, {"levels": (1, 0)}, ValueError, "levels must be positive, and at least one (got [1, 0])"),
    (X, {"levels": 3}, TypeError, "levels must be a list of integers (got 3)"),
    (X, {"levels": (1, 2.0)}, TypeError, "levels must be a list of integers (got 2.0)"),
    (X, {"mode": "lp"}, ValueError, "mode must be 'max' or 'avg' (got 'lp')"),
    ((4, 5), {}, RuntimeError, "input must have 4 dimensions, or 3 without a batch (got [4, 5])"),
    ((1, 0, 5, 6), {}, RuntimeError, "input must not be empty but for its batch (got [1, 0, 5, 6])"),
    ((1, 4, 0, 6), {"mode": "avg"}, RuntimeError, "input must not be empty but for its batch (got [1, 4, 0, 6])"),
]


@pytest.mark.parametrize(("size", "kwargs", "error", "message"), BAD)
def test_refused(size: tuple, kwargs: dict, error: type, message: str) -> None:
    def call() -> None:
        with pytest.raises(error) as raised:
            spatial_pyramid_pool2d(torch.ones(size), **kwargs)
        assert str(raised.value).startswith(f"spatial_pyramid_pool2d: {message}")

    call()
    with FakeTensorMode():
        call()
    with pytest.raises(RuntimeError, match="input must be float32, float64, bfloat16 or float16"):
        spatial_pyramid_pool2d(torch.ones(X, dtype=torch.int64))
