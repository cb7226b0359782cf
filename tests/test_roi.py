"""Regions of interest against the reference, values and gradients: every case, layout and block of channels; what must
not change with the number of threads; and against torchvision where it is installed."""

import functools
import random

import pytest
import reference
import torch
from layouts import LAYOUTS, assert_close_to_reference
from roi_cases import CASES, DTYPES, LAST, OPERATORS, Case, drawn, public, size_for, wide
from torch import Tensor

import fastconv

ops = torch.ops.fastconv


@functools.cache
def weights(op: str, name: str, of_boxes: torch.dtype, dtype: torch.dtype) -> tuple[list[int], Tensor]:
    """What depends on the case and on the coordinates' rounding alone, once. dtype: what sums are computed in."""
    case = CASES[name]
    given = torch.empty(size_for(op, case), dtype=dtype)
    rest = case.output_size, case.scale, case.sampling, case.aligned
    return reference.roi_weights(op, given, case.boxes().to(of_boxes), *rest)


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
