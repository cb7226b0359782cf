"""Regions of interest against the reference: values, gradients, boxes that lie anywhere, and what must not change with
the number of threads.

The cases reach every order of work of csrc/roi/passes.h: maps that are turned over and maps that are read too little
for it, blocks of several vectors, of one, and single channels. Calls of 2^14 elements and more run with several
threads.
"""

import functools
import random
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import reference
import torch
from layouts import LAYOUTS, assert_close_to_reference
from torch import Tensor

import fastconv

ops = torch.ops.fastconv
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPERATORS = ["roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"]
MEANS = [op for op in OPERATORS if op != "roi_pool"]
LAST = ("channels_last", "sliced_channels_last")
INF, NAN = float("inf"), float("nan")


def boxes_of(*rows: tuple[float, ...]) -> Tensor:
    """Of the first image."""
    return torch.tensor([(0.0, *row) for row in rows], dtype=torch.float64)


def drawn(count: int, size: tuple[int, ...], scale: float = 1.0, least: float = 0.0) -> Tensor:
    """Boxes that begin and end anywhere on the map or up to a quarter of it outside, most of them in order."""
    rng = np.random.default_rng(count)
    N, _, H, W = size
    rows = []
    for _ in range(count):
        x, y = (np.sort(rng.uniform(-0.25, 1.25, 2)) * extent / scale for extent in (W, H))
        x, y = ((a, max(b, a + least)) for a, b in (x, y))
        rows.append((rng.integers(N), x[0], y[0], x[1], y[1]))
    return torch.tensor(rows, dtype=torch.float64).reshape(count, 5)


class Case(NamedTuple):
    size: tuple[int, int, int, int]  # of the input; position-sensitive operators have up to so many channels a bin
    boxes: Callable[[], Tensor]
    output_size: tuple[int, int]
    scale: float = 1.0
    sampling: int = -1
    aligned: bool = False


#: Partly and wholly outside, on every side; the map is 9 by 12.
OUTSIDE = boxes_of(
    (-3, -4, 5, 6), (7, 5, 30, 25), (-40, 2, -30, 5), (2, 20, 8, 30), (-20, -20, 40, 40), (12, 9, 15, 12),
    (-6, -7, -1, -1), (11, 8, 11.5, 8.5), (-0.75, -0.75, 0.25, 0.25),
)  # fmt: skip
#: Of no width or no height, narrower than a pixel, and ending before they begin.
DEGENERATE = boxes_of(
    (3, 3, 3, 3), (2.5, 1, 2.5, 7), (1, 4.25, 9, 4.25), (4.1, 4.2, 4.4, 4.3), (8, 2, 3, 6), (2, 7, 6, 3), (9, 8, 2, 1),
    (5, 5, 5.0001, 5.0001),
)  # fmt: skip

CASES: dict[str, Case] = {
    "a pixel": Case((2, 3, 1, 1), lambda: drawn(6, (2, 3, 1, 1)), (2, 3)),
    "a pixel, aligned": Case((1, 1, 1, 1), lambda: boxes_of((0, 0, 1, 1), (-2, -1, 3, 2)), (2, 2), 1.0, 3, True),
    "a row": Case((2, 8, 1, 23), lambda: drawn(7, (2, 8, 1, 23)), (2, 3), 1.0, 2),
    "a column": Case((1, 3, 19, 1), lambda: drawn(5, (1, 3, 19, 1)), (3, 1), 1.0, -1, True),
    "no box": Case((2, 3, 5, 6), lambda: torch.zeros(0, 5, dtype=torch.float64), (2, 3)),
    "one box": Case((1, 17, 14, 15), lambda: boxes_of((2.3, 1.7, 11.9, 12.2)), (7, 7), 1.0, 2, True),
    "one bin": Case((2, 33, 12, 13), lambda: drawn(33, (2, 33, 12, 13)), (1, 1), 1.0, 2),
    "one channel": Case((3, 1, 12, 13), lambda: drawn(65, (3, 1, 12, 13), 0.5), (2, 3), 0.5),
    "70 channels": Case((2, 70, 9, 11), lambda: drawn(33, (2, 70, 9, 11), 0.25), (2, 3), 0.25, -1, True),
    "many bins": Case((1, 8, 20, 18), lambda: drawn(4, (1, 8, 20, 18)), (14, 14), 1.0, 1),
    "three samples": Case((2, 17, 10, 12), lambda: drawn(9, (2, 17, 10, 12)), (2, 3), 1.0, 3),
    "large bins": Case((1, 3, 40, 30), lambda: drawn(5, (1, 3, 40, 30)), (1, 2), 1.0, 0, True),
    "outside": Case((1, 8, 9, 12), lambda: OUTSIDE, (2, 3)),
    "outside, aligned": Case((1, 3, 9, 12), lambda: OUTSIDE, (3, 2), 1.0, 2, True),
    "degenerate": Case((1, 8, 9, 12), lambda: DEGENERATE, (2, 3)),
    "degenerate, aligned": Case((1, 17, 9, 12), lambda: DEGENERATE, (2, 3), 1.0, -1, True),
    "degenerate, two samples, aligned": Case((1, 3, 9, 12), lambda: DEGENERATE, (3, 2), 1.0, 2, True),
    "two threads": Case((2, 33, 13, 12), lambda: drawn(65, (2, 33, 13, 12)), (3, 3), 1.0, 2, True),
    # Of a map of which less is read than it has, planes stay as they are.
    "read too little to be turned over": Case((1, 33, 60, 70), lambda: drawn(2, (1, 33, 60, 70)), (2, 3), 1.0, 2),
}  # fmt: skip


def public(op: str, x: Tensor, boxes: Tensor, case: Case) -> Tensor:
    sampling = (case.sampling,) if op.endswith("align") else ()
    aligned = (case.aligned,) if op == "roi_align" else ()
    return getattr(fastconv, op)(x, boxes, case.output_size, case.scale, *sampling, *aligned)


def size_for(op: str, case: Case) -> tuple[int, int, int, int]:
    N, C, H, W = case.size
    return N, min(C, 9) * case.output_size[0] * case.output_size[1] if op.startswith("ps_") else C, H, W


@functools.cache
def weights(op: str, name: str, of_boxes: torch.dtype, dtype: torch.dtype) -> tuple[list[int], Tensor]:
    """What depends on the case and on the coordinates' rounding alone, once. dtype: what sums are computed in."""
    case = CASES[name]
    given = torch.empty(size_for(op, case), dtype=dtype)
    rest = case.output_size, case.scale, case.sampling, case.aligned
    return reference.roi_weights(op, given, case.boxes().to(of_boxes), *rest)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def close(what: str, got: Tensor, expected: Tensor, scale: Tensor) -> None:
    """Coordinates are rounded before there are weights, and not in the same way everywhere (FMA): where a sample lies
    on a pixel, that adds as much as 1e-6 of its neighbour."""
    neighbour = scale.amax((-2, -1), keepdim=True) if scale.numel() else scale
    assert_close_to_reference(what, got.detach(), expected, 10 * scale + 5 * neighbour)


def follows(got: Tensor, last: bool) -> bool:
    return got.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("op", OPERATORS)
def test_every_case(op: str, name: str, isa: str) -> None:
    case = CASES[name]
    size = size_for(op, case)
    rng = random.Random(f"{op} {name} {isa}")
    for dtype in rng.sample(DTYPES, 2):
        torch.set_num_threads(rng.choice([1, 2]))
        of_boxes = rng.choice([dtype, torch.float32])
        input, of_grad = rng.choice(list(LAYOUTS)), rng.choice(list(LAYOUTS))
        values = torch.randn(size, dtype=torch.float64).to(dtype)
        boxes = case.boxes().to(of_boxes)
        leaf = LAYOUTS[input](values.clone()).requires_grad_()
        output = public(op, leaf, LAYOUTS["strided"](boxes) if rng.random() < 0.3 else boxes, case)
        what = f"{dtype} {input} {of_grad} boxes {of_boxes}"
        assert output.dtype == dtype
        channels = min(case.size[1], 9) if op.startswith("ps_") else case.size[1]
        assert output.shape == (len(boxes), channels, *case.output_size)
        assert follows(output, input in LAST) or 1 in output.shape or 1 in size
        grad = torch.randn(output.shape, dtype=torch.float64).to(dtype)
        (got,) = torch.autograd.grad(output, leaf, LAYOUTS[of_grad](grad) if len(boxes) else grad)
        assert got.dtype == dtype
        assert follows(got, input in LAST) or 1 in size
        if op == "roi_pool":
            expected, ids = reference.roi_pool(values, boxes, case.output_size, case.scale)
            assert torch.equal(output.double(), expected), what
            rest = boxes, case.scale, list(case.output_size)
            assert torch.equal(ops._roi_pool_ids(leaf.detach(), *rest)[1], ids), what
            assert torch.equal(ops.roi_pool(leaf.detach(), *rest), output), what
            expected = reference.roi_pool_grad(grad, ids, boxes, size)
            close(f"gradient {what}", got, expected, reference.roi_pool_grad(grad.abs(), ids, boxes, size))
        else:
            known = weights(op, name, of_boxes, wide(dtype))
            magnitude = reference.roi_means(op, values.abs(), *known)
            close(f"output {what}", output, reference.roi_means(op, values, *known), magnitude)
            magnitude = reference.roi_means_grad(op, grad.abs(), *known, size)
            close(f"gradient {what}", got, reference.roi_means_grad(op, grad, *known, size), magnitude)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPERATORS)
def test_every_layout(op: str, dtype: torch.dtype) -> None:
    """The bits of a layout's values do not depend on how they lie, and what is written follows it."""
    case = CASES["three samples"]
    size, boxes = size_for(op, case), case.boxes().float()
    values, first = torch.randn(size, dtype=torch.float64).to(dtype), {}
    for name, layout in LAYOUTS.items():
        leaf = layout(values.clone()).requires_grad_()
        output = public(op, leaf, boxes, case)
        (got,) = torch.autograd.grad(output, leaf, output.detach())
        assert follows(output, name in LAST), name
        assert follows(got, name in LAST), name
        expected = first.setdefault(name in LAST, (output, got))
        assert torch.equal(output, expected[0]), name
        assert torch.equal(got, expected[1]), name


#: A map of so many pixels that blocks have a vector, and one of so many that they have a channel, in float32 on AVX2.
@pytest.mark.parametrize("size", [(1, 11, 270, 260), (1, 2, 500, 600)], ids=["a vector", "a channel"])
@pytest.mark.parametrize("op", ["roi_align", "roi_pool"])
def test_blocks_of_large_maps(op: str, size: tuple[int, int, int, int], isa: str) -> None:
    """All boxes lie in a corner, to which the reference is confined, and occur many times, so that so much is read that
    the map would be turned over."""
    corner, times = (1, size[1], 14, 18), 13 if size[1] > 2 else 47
    case = Case(size, lambda: drawn(10, corner).clamp(0, 12), (6, 6), 1.0, 1, True)
    boxes, dtype = case.boxes().float(), torch.bfloat16 if isa == "baseline" else torch.float32
    for layout in ("contiguous", "channels_last"):
        values = torch.randn(size).to(dtype)
        x = LAYOUTS[layout](values.clone()).requires_grad_()
        output = public(op, x, boxes.repeat(times, 1), case)
        grad = torch.randn(output.shape).to(dtype)
        (got,) = torch.autograd.grad(output, x, grad)
        inside, rest = got[..., :14, :18], got.detach().clone()
        rest[..., :14, :18] = 0
        assert torch.equal(rest, torch.zeros_like(rest))
        values = values[..., :14, :18]
        output = output.detach().unflatten(0, (times, -1))
        assert torch.equal(output, output[:1].expand_as(output))
        grads = [each.double().unflatten(0, (times, -1)).sum(0) for each in (grad, grad.abs())]
        if op == "roi_pool":
            expected, ids = reference.roi_pool(values, boxes, (6, 6))
            assert torch.equal(output[0].double(), expected)
            close("gradient", inside, *(reference.roi_pool_grad(g, ids, boxes, corner) for g in grads))
            continue
        known = reference.roi_weights(op, values, boxes, (6, 6), 1.0, 1, True)
        close("output", output[0], *(reference.roi_means(op, v, *known) for v in (values, values.abs())))
        close("gradient", inside, *(reference.roi_means_grad(op, g, *known, corner) for g in grads))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["70 channels", "two threads", "read too little to be turned over"])
@pytest.mark.parametrize("op", OPERATORS)
def test_threads_do_not_change_bits(op: str, name: str, layout: str, isa: str) -> None:
    case = CASES[name]
    size = size_for(op, case)
    boxes = (
        case.boxes().float().repeat(1 + 80 // len(case.boxes()), 1) if name == "70 channels" else case.boxes().float()
    )
    for dtype in (torch.float32, torch.bfloat16):
        values, grad, results = LAYOUTS[layout](torch.randn(size).to(dtype)), None, []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            leaf = values.clone().requires_grad_()
            output = public(op, leaf, boxes, case)
            grad = torch.randn(output.shape).to(dtype) if grad is None else grad
            results.append((output, *torch.autograd.grad(output, leaf, grad)))
        for one, two in zip(*results, strict=True):
            assert torch.equal(one, two)


# ---- boxes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e12])
@pytest.mark.parametrize("sampling", [-1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_boxes_of_huge_coordinates(dtype: torch.dtype, sampling: int, scale: float) -> None:
    """There are more samples than could ever be taken; those on the map are few, and their weight is next to nothing.
    Coordinates that overflow are on no map."""
    values = (-1e30, 1e30, 3e38, -3e38, 5.0)
    rows = [(a, b, c, d) for a in values for b in values[:2] for c in values for d in values[1:]]
    boxes = boxes_of(*rows).to(dtype)
    began = time.monotonic()
    for layout in ("contiguous", "channels_last"):
        x = LAYOUTS[layout](torch.randn(1, 12, 30, 40, dtype=dtype)).requires_grad_()
        for op in OPERATORS:
            case = Case((1, 12, 30, 40), lambda: boxes, (2, 3), scale, sampling, True)
            output = public(op, x, boxes, case)
            assert output.isfinite().all()
            assert output.abs().max() <= x.abs().max()
            (grad,) = torch.autograd.grad(output.sum(), x)
            assert grad.isfinite().all()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("op", ["roi_align", "ps_roi_align"])
def test_large_boxes_take_only_the_samples_on_the_map(op: str) -> None:
    """More samples than could be taken, of which those near the map count: against an adaptive bin done in full."""
    x = torch.randn(1, 4, 6, 7, dtype=torch.float64)
    rows = boxes_of((-90.3, -70.9, 120.7, 80.2), (-900.1, 1, 3.3, 5), (2, -1000, 5, 1000.5))
    case = Case((1, 1, 6, 7), lambda: rows, (2, 2))
    known = reference.roi_weights(op, x, rows, (2, 2))
    torch.testing.assert_close(public(op, x, rows, case), reference.roi_means(op, x, *known), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("op", OPERATORS)
def test_a_list_of_boxes(op: str) -> None:
    case = Case((3, 2, 9, 11), lambda: drawn(7, (3, 2, 9, 11)), (2, 3), 0.5)
    boxes = case.boxes()[case.boxes()[:, 0].argsort(stable=True)]
    each = [boxes[boxes[:, 0] == n, 1:] for n in range(3)]
    for dtype in DTYPES:
        x = torch.randn(size_for(op, case)).to(dtype)
        expected = public(op, x, boxes.to(wide(dtype)), case)
        given = [some.to(wide(dtype)) for some in each]
        assert torch.equal(public(op, x, given, case), expected)
        assert torch.equal(public(op, x, tuple(given), case), expected)
        # Of fewer images than there are, and of none.
        assert torch.equal(public(op, x, given[:1], case), expected[: len(given[0])])
        assert public(op, x, [], case).shape == (0, 2, 2, 3)
        # Coordinates of 16 bits are taken as they are.
        rounded = [some.to(dtype) for some in each]
        exact = torch.cat(
            [torch.cat([torch.full((len(some), 1), n), some.double()], 1) for n, some in enumerate(rounded)]
        )
        assert torch.equal(public(op, x, rounded, case), public(op, x, exact.to(wide(dtype)), case))


def test_more_images_than_bfloat16_counts() -> None:
    N = 300
    x = torch.arange(float(N)).view(N, 1, 1, 1).expand(N, 1, 3, 3)
    boxes = [torch.tensor([[0.0, 0.0, 2.0, 2.0]], dtype=torch.bfloat16)] * N
    output = fastconv.roi_align(x.bfloat16(), boxes, 1)
    assert torch.equal(output.flatten(), torch.arange(float(N)).bfloat16())
    assert torch.equal(fastconv.roi_align(x, [each.float() for each in boxes], 1).flatten(), torch.arange(float(N)))


@pytest.mark.parametrize("op", OPERATORS)
def test_boxes_in_float32_beside_another_input(op: str) -> None:
    """As whole they are: not rounded to 16 bits, and exact in float64."""
    case = Case((1, 2, 40, 50), lambda: boxes_of((3.3, 4.7, 33.3, 31.9), (0.1, 0.2, 40.3, 38.8)), (2, 3), 1.0, 2)
    values, boxes = torch.randn(size_for(op, case)), case.boxes().float()
    for dtype in (torch.bfloat16, torch.float16):
        x = values.to(dtype)
        assert torch.equal(public(op, x, boxes, case), public(op, x.float(), boxes, case).to(dtype))
    assert torch.equal(public(op, values.double(), boxes, case), public(op, values.double(), boxes.double(), case))


def test_the_index_may_have_a_fraction() -> None:
    x = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 3, 3)
    boxes = torch.tensor([[1.75, 0, 0, 2, 2], [0.25, 0, 0, 2, 2]])
    assert torch.equal(fastconv.roi_pool(x, boxes, 1).flatten(), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("op", OPERATORS)
def test_no_boxes_and_no_images(op: str) -> None:
    for size in ((0, 12, 4, 5), (2, 12, 0, 5), (2, 0, 4, 5), (2, 12, 4, 5)):
        for boxes in (torch.zeros(0, 5), []):
            x = torch.zeros(size, requires_grad=True)
            output = public(op, x, boxes, CASES["no box"])
            assert output.shape == (0, size[1] // 6 if op.startswith("ps_") else size[1], 2, 3)
            (grad,) = torch.autograd.grad(output.sum(), x)
            assert torch.equal(grad, torch.zeros(size))
    x = torch.zeros(2, 0, 4, 5, requires_grad=True)
    output = public(op, x, boxes_of((0, 0, 3, 3)).float(), CASES["no box"])
    assert output.shape == (1, 0, 2, 3)
    output.sum().backward()


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("op", OPERATORS)
def test_derivatives(op: str, layout: str) -> None:
    case = Case((2, 1, 4, 5), lambda: drawn(3, (2, 1, 4, 5), 0.5), (2, 2), 0.5)
    x = LAYOUTS[layout](torch.randn(size_for(op, case), dtype=torch.float64)).requires_grad_()
    boxes = case.boxes()
    assert torch.autograd.gradcheck(lambda x: public(op, x, boxes, case), x)
    assert torch.autograd.gradgradcheck(lambda x: public(op, x, boxes, case) * x.sum(), x)


@pytest.mark.parametrize("op", MEANS)
def test_a_gradient_is_the_adjoint(op: str) -> None:
    """<forward(x), y> = <x, backward(y)>, also where torchvision's is not: ps_roi_pool at the edges of the map."""
    case = CASES["outside"]
    boxes = case.boxes()
    x = torch.randn(size_for(op, case), dtype=torch.float64, requires_grad=True)
    output = public(op, x, boxes, case)
    y = torch.randn_like(output)
    (grad,) = torch.autograd.grad(output, x, y)
    torch.testing.assert_close((grad * x).sum(), (output * y).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("op", OPERATORS)
def test_gradients_of_stride_zero(op: str) -> None:
    case = CASES["70 channels"]
    for layout in ("contiguous", "channels_last"):
        x = LAYOUTS[layout](torch.randn(size_for(op, case))).requires_grad_()
        output = public(op, x, case.boxes().float(), case)
        (got,) = torch.autograd.grad(output.sum(), x, retain_graph=True)
        (wanted,) = torch.autograd.grad(output, x, torch.ones_like(output))
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("op", OPERATORS)
def test_the_backward_pass_differentiated_in_16_bits(op: str) -> None:
    """What the gradient's gradient computes is the forward pass of what comes in."""
    case = CASES["outside"]
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(size_for(op, case)).to(dtype).requires_grad_()
        output = public(op, x, case.boxes().float(), case)
        y = torch.randn(output.shape).to(dtype).requires_grad_()
        (grad,) = torch.autograd.grad(output, x, y, create_graph=True)
        direction = x.detach().clone()
        (got,) = torch.autograd.grad(grad, y, direction)
        assert torch.equal(got, output.detach())


# ---- the largest of whole pixels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [1, 3, 8, 33])
def test_which_of_equal_pixels_wins(channels: int, layout: str, isa: str) -> None:
    """The first in row-major order; of several NaN the last; and negative infinity is a value like any other."""
    for dtype in DTYPES:
        x = LAYOUTS[layout](torch.zeros(1, channels, 4, 4, dtype=dtype))
        x[0, :, :2, :2] = torch.tensor([[1.0, 5.0], [5.0, 5.0]])
        x[0, :, :2, 2:] = torch.tensor([[NAN, INF], [NAN, 7.0]])
        x[0, :, 2:, :2] = -INF
        x[0, :, 2:, 2:] = torch.tensor([[-1.0, -2.0], [-0.5, -0.5]])
        values, ids = ops._roi_pool_ids(x, boxes_of((0, 0, 3, 3)).float(), 1.0, [2, 2])
        expected = torch.tensor([5.0, NAN, -INF, -0.5]).to(dtype)
        for c in range(channels):
            torch.testing.assert_close(values[0, c].flatten(), expected, equal_nan=True, rtol=0, atol=0)
        assert ids[0].flatten(1).tolist() == [[1, 6, 8, 14]] * channels
        # One wide bin too, which is read in vectors of channels alike.
        assert ops._roi_pool_ids(x, boxes_of((0, 0, 3, 3)).float(), 1.0, [1, 1])[1].flatten().tolist() == [6] * channels
        plane = LAYOUTS[layout](torch.full((1, channels, 3, 3), NAN, dtype=dtype))
        assert (
            ops._roi_pool_ids(plane, boxes_of((0, 0, 2, 2)).float(), 1.0, [1, 1])[1].flatten().tolist()
            == [8] * channels
        )


def test_bits_are_moved_as_they_are() -> None:
    """Signs of zeros, and denormal numbers, which sums may lose."""
    x = torch.tensor([-0.0, 1e-42, 1e-310], dtype=torch.float64)
    for dtype, values in ((torch.float32, x[:2]), (torch.float64, x), (torch.float16, torch.tensor([-0.0, 6e-8]))):
        for layout in ("contiguous", "channels_last"):
            for C in (1, 20):
                given = LAYOUTS[layout](values.to(dtype).view(-1, 1, 1, 1).expand(-1, C, 1, 1))
                boxes = torch.tensor([[n, 0, 0, 0, 0] for n in range(len(values))], dtype=dtype)
                output = fastconv.roi_pool(given, boxes, 1)
                assert torch.equal(output.flatten(1), given.flatten(1))
                assert torch.equal(output.signbit(), given.signbit())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_empty_bins(layout: str) -> None:
    """Zero, of no pixel, and no gradient goes anywhere."""
    x = LAYOUTS[layout](torch.full((1, 20, 5, 6), -3.0)).requires_grad_()
    boxes = boxes_of((10, 1, 14, 3), (-9, -9, -2, -2), (4, 3, 9, 8)).float()
    output, ids = ops._roi_pool_ids(x, boxes, 1.0, [2, 2])
    assert torch.equal(output == 0, ids < 0)
    assert (output[:2] == 0).all()
    assert output[2, 0].tolist() == [[-3.0, 0.0], [0.0, 0.0]]
    (grad,) = torch.autograd.grad(fastconv.roi_pool(x, boxes, 2).sum(), x)
    assert torch.equal(grad.sum((2, 3)), torch.ones(1, 20))
    assert torch.equal(ops._roi_pool_pick(x, ids, boxes)[:2], torch.zeros(2, 20, 2, 2))


def test_ids_that_are_in_no_plane_are_nobody() -> None:
    """The operators below are private, but anyone can call them: nothing outside of a plane is read or written."""
    x, boxes = torch.ones(1, 20, 4, 4), boxes_of((0, 0, 3, 3)).float()
    for wrong in (16, 2**31 - 1, -2, -(2**31)):
        ids = torch.full((1, 20, 2, 2), wrong, dtype=torch.int32)
        for last in (False, True):
            grad = ops._roi_pool_grad(torch.ones(1, 20, 2, 2), ids, boxes, [1, 20, 4, 4], last)
            assert torch.equal(grad, torch.zeros_like(x))
            given = x.contiguous(memory_format=torch.channels_last) if last else x
            assert torch.equal(ops._roi_pool_pick(given, ids, boxes), torch.zeros(1, 20, 2, 2))


# ---- several maps ----------------------------------------------------------------------------------------------------

#: Sizes that belong to every level and to those that there are not; an empty box; exactly the canonical size.
PYRAMID = [
    torch.tensor([(0, 0, 30, 20), (5, 5, 117, 117), (3, 4, 227, 228), (10, 10, 460, 400), (7, 7, 7, 30)]).float(),
    torch.zeros(0, 4),
    torch.tensor([(0, 0, 480, 480), (20, 20, 132, 132), (2, 0, 60, 70), (100, 0, 99, 50)]).float(),
]
SCALES = [1 / 4, 1 / 8, 1 / 16]


def level_of(box: Tensor) -> int:
    """Equation 1 of the paper, in exact arithmetic as far as that matters; of boxes without a size the finest."""
    width, height = float(box[2] - box[0]), float(box[3] - box[1])
    if width * height <= 0:
        return 0
    level = 2  # of sizes up to 2^2 / 2^4 of the canonical one, the finest map's
    while level < 4 and width * height >= 224**2 * 4 ** (level + 1 - 4):
        level += 1
    return level - 2


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_levels(dtype: torch.dtype, layout: str) -> None:
    maps = [LAYOUTS[layout](torch.randn(3, 5, 480 // s, 480 // s).to(dtype)).requires_grad_() for s in (4, 8, 16)]
    by_hand = []
    for n, some in enumerate(PYRAMID):
        for box in some:
            level = level_of(box)
            rows = torch.cat([torch.tensor([float(n)]), box])[None]
            by_hand.append(fastconv.roi_align(maps[level], rows, (2, 3), SCALES[level], 2, True))
    expected = torch.cat(by_hand)
    output = fastconv.multi_scale_roi_align(maps, PYRAMID, (2, 3), SCALES, 2, True)
    assert torch.equal(output, expected)
    as_rows = torch.cat([torch.cat([torch.full((len(b), 1), float(n)), b], 1) for n, b in enumerate(PYRAMID)])
    assert torch.equal(fastconv.multi_scale_roi_align(maps, as_rows, (2, 3), SCALES, 2, True), expected)
    rounding = {torch.bfloat16: 2**-6, torch.float16: 2**-9}.get(dtype, 1e-5)
    grad = torch.randn(output.shape).to(dtype)
    for got, wanted in zip(*(torch.autograd.grad(each, maps, grad) for each in (output, expected)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=rounding, atol=rounding)


def test_levels_of_boxes() -> None:
    """On their borders, and of another canonical size; whatever the dtype of the boxes."""
    maps = [torch.full((1, 1, 512 >> i, 512 >> i), float(i)) for i in range(4)]
    sizes = {1: 0, 111: 0, 112: 1, 223: 1, 224: 2, 447: 2, 448: 3, 1024: 3}
    for dtype in DTYPES:
        given = [each.to(dtype) for each in maps]
        for size, level in sizes.items():
            box = torch.tensor([[0.0, 0, 0, size, size]]).to(dtype)
            if float(box[0, 3]) == size:
                output = fastconv.multi_scale_roi_align(given, box, 1, [1 / 4, 1 / 8, 1 / 16, 1 / 32], 1)
                assert output.item() == level, (dtype, size)
    other = dict(canonical_scale=56, canonical_level=3)
    box = torch.tensor([[0.0, 0, 0, 56, 56]])
    assert fastconv.multi_scale_roi_align(maps, box, 1, [1 / 4, 1 / 8, 1 / 16, 1 / 32], 1, **other).item() == 1


def test_large_boxes_of_float16_belong_to_their_level() -> None:
    """Their area is beyond float16's largest number."""
    maps = [torch.full((1, 1, 64 >> i, 64 >> i), float(i), dtype=torch.float16) for i in range(4)]
    box = torch.tensor([[0.0, 0, 0, 300, 300]], dtype=torch.float16)
    assert fastconv.multi_scale_roi_align(maps, box, 1, [1 / 4, 1 / 8, 1 / 16, 1 / 32], 1).item() == 2


def test_one_level_and_no_boxes() -> None:
    x = torch.randn(3, 5, 120, 120, requires_grad=True)
    output = fastconv.multi_scale_roi_align([x], PYRAMID, 2, [1 / 4], 2)
    assert torch.equal(output, fastconv.roi_align(x, PYRAMID, 2, 1 / 4, 2))
    maps = [x, torch.randn(3, 5, 60, 60, requires_grad=True)]
    for boxes in ([], [torch.zeros(0, 4)] * 3, torch.zeros(0, 5)):
        output = fastconv.multi_scale_roi_align(maps, boxes, (2, 3), [1 / 4, 1 / 8])
        assert output.shape == (0, 5, 2, 3)
        for grad in torch.autograd.grad(output.sum(), maps):
            assert torch.equal(grad, torch.zeros_like(grad))


def test_derivatives_of_several_levels() -> None:
    maps = [torch.randn(1, 1, n, n, dtype=torch.float64, requires_grad=True) for n in (6, 3)]
    boxes = [torch.tensor([(0, 0, 20, 20), (0, 0, 115, 116), (3, 2, 18, 15)], dtype=torch.float64)]

    def call(*maps: Tensor) -> Tensor:
        return fastconv.multi_scale_roi_align(maps, boxes, 2, [1 / 4, 1 / 8], 1)

    assert torch.autograd.gradcheck(call, maps)
    assert torch.autograd.gradgradcheck(lambda *maps: call(*maps) * maps[0].sum(), maps)


# ---- torchvision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPERATORS)
def test_torchvision(op: str) -> None:
    theirs = getattr(pytest.importorskip("torchvision").ops, op)
    for name in ("outside", "70 channels", "large bins", "three samples"):
        case = CASES[name]
        boxes = case.boxes().float()
        x = torch.randn(size_for(op, case), requires_grad=True)
        rest = (case.sampling,) * op.endswith("align") + (case.aligned,) * (op == "roi_align")
        outputs = [f(x, boxes, case.output_size, case.scale, *rest) for f in (getattr(fastconv, op), theirs)]
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
        if op != "ps_roi_pool":  # theirs is not the gradient of their forward pass
            torch.testing.assert_close(
                *(torch.autograd.grad(o.sin().sum(), x)[0] for o in outputs), rtol=1e-5, atol=1e-5
            )
