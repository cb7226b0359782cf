"""Regions of interest on a GPU, against the same operators on the CPU.

The kernels' indexing is tested on any machine by test_roi_cuda.py."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from layouts import LAYOUTS
from torch import Tensor

import fastconv

DEVICE = "cuda"
# float32 has coordinates beyond 64 to 8e-6.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 4e-3}
MEANS = pytest.mark.kernels("roi_mean", "roi_gather", "roi_sensitive")
MAXIMA = pytest.mark.kernels("roi_largest", "roi_scatter", "roi_pick")
SCALE = 0.25
OPERATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "align": partial(fastconv.roi_align, output_size=7, spatial_scale=SCALE, sampling_ratio=2),
    "align, samples adapt": partial(fastconv.roi_align, output_size=(3, 5), spatial_scale=SCALE, aligned=True),
    "align, many bins": partial(fastconv.roi_align, output_size=(34, 2), spatial_scale=SCALE, sampling_ratio=1),
    "ps align": partial(fastconv.ps_roi_align, output_size=(2, 4), spatial_scale=SCALE),
    "ps pool": partial(fastconv.ps_roi_pool, output_size=(2, 4), spatial_scale=SCALE),
}
pool = partial(fastconv.roi_pool, output_size=7, spatial_scale=SCALE)
SIZES = [(2, 48, 50, 67), (3, 40, 9, 11), (1, 8, 130, 90)]


def boxes_on(size: tuple[int, ...], count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of a pixel or the whole map, on its edges and beyond them."""
    generator = torch.Generator().manual_seed(count)
    centre = torch.rand(count, 2, generator=generator) * 1.2 - 0.1
    extent = torch.tensor([0.01, 0.2, 0.6, 1.3])[torch.randint(4, (count, 2), generator=generator)]
    image = torch.randint(size[0], (count, 1), generator=generator)
    corners = torch.cat([centre - extent / 2, centre + extent / 2], 1) * torch.tensor([size[3], size[2]] * 2) / SCALE
    return torch.cat([image, corners], 1).to(dtype)


def numbers(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)


def close(got: Tensor, wanted: Tensor) -> None:
    tolerance = TOLERANCE[wanted.dtype]
    torch.testing.assert_close(got.cpu(), wanted, rtol=tolerance, atol=tolerance, equal_nan=True)


def twice(function: Callable, x: Tensor, boxes: Tensor, grads: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """The output, its gradient for x, and the gradient of that one for the first."""
    x, grad = x.requires_grad_(), grads[0].requires_grad_()
    output = function(x, boxes)
    (first,) = torch.autograd.grad(output, x, grad, create_graph=True)
    (second,) = torch.autograd.grad(first, grad, grads[1])
    return output.detach(), first.detach(), second


def check(function: Callable, size: tuple[int, ...], count: int, dtype: torch.dtype, layout: str) -> None:
    x, boxes = numbers(size, dtype), boxes_on(size, count, torch.float64 if dtype is torch.float64 else torch.float32)
    grads = numbers(function(x, boxes).shape, dtype), numbers(size, dtype)
    wanted = twice(function, x.clone(), boxes, (grads[0].clone(), grads[1]))
    mine = [LAYOUTS[layout](t.to(DEVICE)) for t in (x, *grads)]
    got = twice(function, mine[0], boxes.to(DEVICE), (mine[1], mine[2]))
    for g, w in zip(got, wanted, strict=True):
        close(g, w)


@MEANS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", OPERATORS)
def test_means(name: str, dtype: torch.dtype, layout: str) -> None:
    for size in SIZES:
        check(OPERATORS[name], size, 40, dtype, layout)


@MAXIMA
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_maxima(dtype: torch.dtype, layout: str) -> None:
    for size in SIZES:
        check(pool, size, 40, dtype, layout)


@MEANS
@MAXIMA
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_many_boxes(layout: str) -> None:
    for function in (OPERATORS["align"], pool):
        check(function, (2, 24, 50, 67), 700, torch.float64, layout)


@MEANS
@MAXIMA
@pytest.mark.sanitizer
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_under_the_sanitizer(layout: str) -> None:
    for function in (OPERATORS["align"], OPERATORS["ps align"], OPERATORS["ps pool"], pool):
        for dtype in (torch.float32, torch.bfloat16):
            check(function, (2, 16, 17, 19), 9, dtype, layout)


@MEANS
@MAXIMA
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_call_gives_the_same_bits(layout: str) -> None:
    """Though hundreds of boxes lie on one another."""
    size = (1, 24, 21, 19)
    boxes = boxes_on(size, 500).to(DEVICE)
    for function in (*OPERATORS.values(), pool):
        x = LAYOUTS[layout](numbers(size, torch.float32).to(DEVICE)).requires_grad_()
        output = function(x, boxes)
        grad = torch.randn_like(output)
        grads = [torch.autograd.grad(output, x, grad, retain_graph=True)[0] for _ in range(3)]
        assert all(torch.equal(grads[0], other) for other in grads[1:])


@MEANS
@pytest.mark.parametrize("aligned", [False, True])
def test_samples_are_counted_as_on_a_cpu(aligned: bool) -> None:
    """Boxes whose bins are a whole number of pixels but for rounding: another rounding has another sample in each."""
    corners = torch.arange(400.0)[:, None] * torch.tensor([0.05, 0.02]) + 1
    boxes = torch.cat([torch.zeros(400, 1), corners, corners + 3 / 0.3], 1)
    x = numbers((1, 4, 9, 17), torch.float32)
    for sides in ((3, 1), (1, 3), 3):
        function = partial(fastconv.roi_align, output_size=sides, spatial_scale=0.3, aligned=aligned)
        close(function(x.to(DEVICE), boxes.to(DEVICE)), function(x, boxes))


@MEANS
@MAXIMA
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_wrong_boxes_are_nan_and_have_no_gradient(layout: str) -> None:
    """Nothing is raised, since nothing waits for the GPU; nothing is read outside, and the GPU goes on."""
    size = (2, 16, 21, 26)
    boxes = boxes_on(size, 12)
    wrong = torch.zeros(12, dtype=torch.bool)
    nan, inf = float("nan"), float("inf")
    for row, column, value in [(0, 1, nan), (2, 2, inf), (3, 3, -inf), (5, 0, -1), (7, 0, 2), (8, 0, nan), (9, 0, 1e9)]:
        boxes[row, column], wrong[row] = value, True
    for function in (*OPERATORS.values(), pool):
        x = numbers(size, torch.float32).requires_grad_()
        right = function(x, boxes[~wrong])
        right.sum().backward()
        mine = LAYOUTS[layout](x.detach().to(DEVICE)).requires_grad_()
        output = function(mine, boxes.to(DEVICE))
        assert output[wrong.to(DEVICE)].isnan().all()
        close(output[(~wrong).to(DEVICE)].detach(), right.detach())
        output.sum().backward()
        assert x.grad is not None
        assert mine.grad is not None
        close(mine.grad, x.grad)


@MEANS
@MAXIMA
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_graph_capture(layout: str, capture: Callable) -> None:
    """Forward and backward; boxes are new for each replay."""
    size = (2, 24, 30, 28)
    for function in (*OPERATORS.values(), pool):
        x, boxes = LAYOUTS[layout](numbers(size, torch.float32).to(DEVICE)).requires_grad_(), boxes_on(size, 20).cuda()

        def step(function=function, x=x, boxes=boxes) -> tuple[Tensor, Tensor]:
            output = function(x, boxes)
            return output, torch.autograd.grad(output.square().sum(), x)[0]

        graph, (output, grad) = capture(step)
        for _ in range(2):
            with torch.no_grad():
                x.copy_(torch.randn_like(x))
                boxes.copy_(boxes[torch.randperm(20)])
            graph.replay()
            wanted, wanted_grad = step()
            assert torch.equal(output, wanted)
            assert torch.equal(grad, wanted_grad)


@MEANS
def test_arguments_are_checked() -> None:
    x, boxes = torch.zeros(1, 2, 3, 3, device=DEVICE), torch.zeros(1, 5)
    with pytest.raises(RuntimeError, match=r"roi_align: boxes must be on the device of input, cuda"):
        fastconv.roi_align(x, boxes, 2)
