"""Unpooling on a GPU, against the same operators on the CPU, bit for bit.

The kernels' indexing is tested on any machine by test_unpool_cuda.py."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from layouts import LAYOUTS
from torch import Tensor

import fastconv

DEVICE = "cuda"
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ALL = pytest.mark.kernels("unpool_reaches", "unpool_tiles", "unpool_gather")
WINDOWS = [((2,), (2, 16, 28, 24)), ((2,), (1, 3, 131, 150)), ((3, 2, 1), (2, 70, 17, 19)), ((5, 1, 2), (1, 1, 40, 64))]


def check(windows: tuple, size: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    values, indices = F.max_pool2d(torch.rand(size, generator=generator), *windows, return_indices=True)
    x = torch.randn(values.shape, generator=generator).to(dtype).requires_grad_()
    grad = torch.randn(size, generator=generator).to(dtype)
    wanted = fastconv.max_unpool2d(x, indices, *windows, output_size=size[2:])
    (wanted_grad,) = torch.autograd.grad(wanted, x, grad)

    mine = LAYOUTS[layout](x.detach().to(DEVICE)).requires_grad_()
    where = LAYOUTS[layout](indices.to(DEVICE))
    output = fastconv.max_unpool2d(mine, where, *windows, output_size=size[2:])
    assert torch.equal(output.cpu(), wanted)
    (got,) = torch.autograd.grad(output, mine, LAYOUTS[layout](grad.to(DEVICE)))
    assert torch.equal(got.cpu(), wanted_grad)


@ALL
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("windows", "size"), WINDOWS, ids=str)
def test_unpool(windows: tuple, size: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    check(windows, size, dtype, layout)


@ALL
@pytest.mark.sanitizer
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_under_the_sanitizer(layout: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check((3, 2, 1), (2, 10, 21, 24), dtype, layout)


@ALL
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_wrong_indices_are_left_out(layout: str) -> None:
    """Nothing is raised, since nothing waits for the GPU; nothing is written outside, and the GPU goes on."""
    values, indices = F.max_pool2d(torch.rand(2, 20, 12, 16), 2, return_indices=True)
    kept = torch.rand(indices.shape) < 0.8
    wrong = torch.where(kept, indices, torch.tensor([-1, 192, 2**62, -(2**63)])[torch.randint(4, indices.shape)])
    x = LAYOUTS[layout](values.to(DEVICE)).requires_grad_()
    output = fastconv.max_unpool2d(x, LAYOUTS[layout](wrong.to(DEVICE)), 2)
    assert torch.equal(output.cpu(), fastconv.max_unpool2d(values * kept, indices, 2))
    output.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad.cpu(), kept.float())


@ALL
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_graph_capture(layout: str, capture: Callable) -> None:
    """Forward and backward."""
    values, indices = F.max_pool2d(torch.rand(2, 24, 14, 14, device=DEVICE), 2, return_indices=True)
    x, where = LAYOUTS[layout](values).requires_grad_(), LAYOUTS[layout](indices)

    def step() -> tuple[Tensor, Tensor]:
        output = fastconv.max_unpool2d(x, where, 2)
        return output, torch.autograd.grad(output.square().sum(), x)[0]

    graph, (output, grad) = capture(step)
    for _ in range(2):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        wanted, wanted_grad = step()
        assert torch.equal(output, wanted)
        assert torch.equal(grad, wanted_grad)


@ALL
def test_arguments_are_checked() -> None:
    x, where = torch.zeros(1, 2, 3, 3, device=DEVICE), torch.zeros(1, 2, 3, 3, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"max_unpool2d: indices must be on the device of input, cuda"):
        fastconv.max_unpool2d(x, where, 2)
    with pytest.raises(RuntimeError, match=r"max_unpool2d: indices must be int64"):
        fastconv.max_unpool2d(x, where.int().to(DEVICE), 2)


@ALL
def test_opcheck() -> None:
    values, indices = F.max_pool2d(torch.rand(2, 6, 8, 10, device=DEVICE), 2, return_indices=True)
    torch.library.opcheck(torch.ops.fastconv.max_unpool.default, (values.requires_grad_(), indices, [8, 10]))
