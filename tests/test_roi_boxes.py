"""Regions of interest: boxes of huge coordinates, in a list, of another dtype than the map, and none."""

import time

import pytest
import reference
import torch
from layouts import LAYOUTS
from roi_cases import CASES, DTYPES, OPERATORS, Case, boxes_of, drawn, public, size_for, wide

import fastconv


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
