"""Stochastic and lp pooling on a GPU, against the same operators on the CPU: draws of the same seed bit for bit. The
kernels' arithmetic is tested on any machine by test_stochastic_pool_cuda.py."""

from collections.abc import Callable

import pytest
import torch
from layouts import LAYOUTS
from torch import Tensor

import fastconv

DEVICE = "cuda"
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
WINDOWS = [(2,), (3, 2, 1), (5, 1, 2), ((2, 17), (1, 3), (1, 8))]
SIZES = [(2, 16, 28, 24), (3, 5, 17, 19)]
DRAWS = pytest.mark.kernels("pool_draw")


def values(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Not negative, many zeros."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, 128, size, generator=generator) / 8
    return torch.where(torch.rand(size, generator=generator) < 0.4, 0, x).to(dtype)


def seeded(seed: int) -> torch.Generator:
    """On the CPU, whose draws are the same everywhere."""
    return torch.Generator().manual_seed(seed)


@DRAWS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_draws_and_gradients(windows: tuple, dtype: torch.dtype, layout: str) -> None:
    for seed, size in enumerate(SIZES):
        x = values(size, dtype).requires_grad_()
        mine = LAYOUTS[layout](x.detach().to(DEVICE)).requires_grad_()
        wanted, wanted_indices = fastconv.stochastic_pool2d(x, *windows, generator=seeded(seed), return_indices=True)
        output, indices = fastconv.stochastic_pool2d(mine, *windows, generator=seeded(seed), return_indices=True)
        assert torch.equal(output.cpu(), wanted)
        assert torch.equal(indices.cpu(), wanted_indices)
        grad = torch.randint(-2, 3, wanted.shape).to(dtype)
        (got,) = torch.autograd.grad(output, mine, grad.to(DEVICE))
        assert torch.equal(got.cpu(), torch.autograd.grad(wanted, x, grad)[0])


@pytest.mark.kernels("pool_mean")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_means(windows: tuple, dtype: torch.dtype, layout: str) -> None:
    for size in SIZES:
        x = values(size, dtype)
        output = fastconv.stochastic_pool2d(LAYOUTS[layout](x.to(DEVICE)), *windows, training=False)
        torch.testing.assert_close(output.cpu(), fastconv.stochastic_pool2d(x, *windows, training=False))


@pytest.mark.kernels("pool_draw", "pool_mean")
@pytest.mark.sanitizer
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_under_the_sanitizer(layout: str) -> None:
    x = LAYOUTS[layout](values((2, 10, 15, 17), torch.bfloat16).to(DEVICE))
    for training in (True, False):
        fastconv.stochastic_pool2d(x, 3, 2, 1, training=training)


@DRAWS
def test_the_seed_is_drawn_on_the_gpu() -> None:
    x = values((2, 3, 16, 16), torch.float32).to(DEVICE)
    torch.cuda.manual_seed(1)
    first = fastconv.stochastic_pool2d(x, 2)
    assert not torch.equal(fastconv.stochastic_pool2d(x, 2), first)
    torch.cuda.manual_seed(1)
    assert torch.equal(fastconv.stochastic_pool2d(x, 2), first)
    generator = torch.Generator(DEVICE).manual_seed(1)
    assert torch.equal(fastconv.stochastic_pool2d(x, 2, generator=generator), first)
    generator.manual_seed(1)
    assert torch.equal(fastconv.stochastic_pool2d(x.cpu(), 2, generator=generator), first.cpu())


@DRAWS
def test_graph_capture(capture: Callable) -> None:
    """Every replay draws anew, and what it draws are elements of the windows."""
    x = values((2, 8, 16, 16), torch.float32).to(DEVICE)
    graph, (output, indices) = capture(lambda: fastconv.stochastic_pool2d(x, 2, return_indices=True))
    seen = []
    for _ in range(2):
        graph.replay()
        assert torch.equal(output, x.flatten(2).gather(2, indices.flatten(2)).view(output.shape))
        seen.append(output.clone())
    assert not torch.equal(*seen)


@pytest.mark.kernels("pool_draw", "pool_mean")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("-inf")])
def test_windows_with_what_cannot_be_drawn(value: float, training: bool) -> None:
    """Nothing waits for the GPU to raise: they are NaN, and the others as ever."""
    x = values((1, 3, 8, 8), torch.float32)
    wrong = x.to(DEVICE)
    wrong[0, 1, 3, 5] = value
    wanted = fastconv.stochastic_pool2d(x, 2, training=training, generator=seeded(2))
    wanted[0, 1, 1, 2] = torch.nan
    output = fastconv.stochastic_pool2d(wrong, 2, training=training, generator=seeded(2))
    torch.testing.assert_close(output.cpu(), wanted, equal_nan=True)


@pytest.mark.kernels("pool_pixels", "pool_strips", "pool_spans", "pool_slices")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("windows", [(2,), (3, 2), (3, 2, True), (13, 1), (17, 17)], ids=str)
@pytest.mark.parametrize("norm", [2, 1, 3.5, torch.inf])
def test_lp(norm: float, windows: tuple, dtype: torch.dtype, layout: str) -> None:
    for size in SIZES:
        x = values(size, dtype).requires_grad_()
        mine = LAYOUTS[layout](x.detach().to(DEVICE)).requires_grad_()
        wanted, output = fastconv.lp_pool2d(x, norm, *windows), fastconv.lp_pool2d(mine, norm, *windows)
        torch.testing.assert_close(output.detach().cpu(), wanted.detach())
        grad = torch.randn(wanted.shape, generator=seeded(3)).to(dtype)
        (got,) = torch.autograd.grad(output, mine, grad.to(DEVICE))
        torch.testing.assert_close(got.cpu(), torch.autograd.grad(wanted, x, grad)[0])
