"""Pooling over windows against the reference: values, which element has won, gradients; on every instruction set.

The cases reach every branch of csrc/pool: widths and channels on and beside the lengths of vectors, strides of 1, 2
and more, windows that are joined by doubling, rows cut into several lines, numbers of taps that take one, two and four
bytes, windows that adapt evenly and unevenly, positions that few and that very many windows cover.
"""

import functools
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import reference
import torch
import torch.nn.functional as F
from layouts import LAYOUTS
from torch import Tensor

import fastconv

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
#: One rounding of a result, and those of a sum of a few hundred elements.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 2**-8, torch.float16: 2**-11}

Case = tuple[tuple[int, int, int, int], dict[str, Any]]


def windows(kernel_size, stride=None, padding=0, **rest) -> dict[str, Any]:
    return {"kernel_size": kernel_size, "stride": stride, "padding": padding, **rest}


SHARED: dict[str, Case] = {
    # (N, C, H, W) and the windows
    "2x2": ((2, 5, 8, 9), windows(2)),
    "2x2, many channels": ((1, 70, 6, 6), windows(2)),
    "2x2, hundreds of channels": ((3, 300, 6, 5), windows(2)),
    "8x9 s3, hundreds of channels": ((1, 280, 11, 12), windows((8, 9), 3, (4, 3))),
    "3x3 s2 p1": ((1, 16, 15, 17), windows(3, 2, 1)),
    "3x3 s2 ceil": ((1, 17, 14, 28), windows(3, 2, ceil_mode=True)),
    "3x3 s1 p1": ((2, 33, 7, 16), windows(3, 1, 1)),
    "3x3 s3": ((1, 4, 13, 35), windows(3, 3)),
    "2x2 s2, several vectors": ((1, 2, 7, 107), windows(2, 2)),
    "2x2 s1, several vectors": ((1, 2, 4, 53), windows(2, 1)),
    "2x2 s1 p1": ((2, 3, 4, 19), windows(2, 1, 1)),
    "2x2 s2 p1": ((2, 3, 5, 38), windows(2, 2, 1)),
    "3x3 s2, several vectors": ((1, 2, 8, 70), windows(3, 2)),
    "3x3 s2 p1, several vectors": ((1, 3, 9, 107), windows(3, 2, 1)),
    "3x3 s1, several vectors": ((1, 2, 6, 54), windows(3, 1)),
    "3x3 s1 p1, several vectors": ((1, 2, 7, 53), windows(3, 1, 1)),
    "3x3 s2x1 p0x1": ((1, 2, 7, 40), windows(3, (2, 1), (0, 1))),
    "2x3 s2": ((1, 2, 7, 40), windows((2, 3), 2)),
    "4x4 s1": ((1, 64, 9, 20), windows(4, 1)),
    "5x5 s1 p2": ((1, 20, 9, 33), windows(5, 1, 2)),
    "5x5 s1 p2, one channel": ((3, 1, 20, 20), windows(5, 1, 2)),
    "5x5 s2 p2": ((1, 8, 12, 40), windows(5, 2, 2)),
    "7x7 s5 p3 ceil": ((1, 3, 18, 19), windows(7, 5, 3, ceil_mode=True)),
    "13x13 s1 p6": ((1, 18, 19, 19), windows(13, 1, 6)),
    "5x5 s1 p2, groups of channels": ((2, 30, 9, 20), windows(5, 1, 2)),
    "5x5 s1, strips of rows": ((1, 32, 44, 7), windows(5, 1)),
    "13x13 s1 p6, groups of channels": ((3, 32, 19, 15), windows(13, 1, 6)),
    "3x3 s1 p1, pairs of vectors": ((2, 64, 13, 11), windows(3, 1, 1)),
    "3x3 s1, a vector and a few channels": ((1, 45, 8, 17), windows(3, 1)),
    "5x5 s1 p2, pairs of vectors": ((1, 64, 17, 24), windows(5, 1, 2)),
    "9x9 s1 p4, blocks inside": ((1, 16, 22, 37), windows(9, 1, 4)),
    "9x9 s1 p4, long rows": ((1, 32, 19, 130), windows(9, 1, 4)),
    "13x13 s1 p6, blocks inside": ((1, 16, 27, 41), windows(13, 1, 6)),
    "7x9 s1 p3x2": ((1, 64, 15, 18), windows((7, 9), 1, (3, 2))),
    "9x8 s1 p4, smaller planes": ((1, 27, 6, 5), windows((9, 8), 1, 4)),
    "1x17 s1 p0x8, groups of channels": ((1, 32, 3, 40), windows((1, 17), 1, (0, 8))),
    "17x17 s1 p8, groups of channels": ((1, 31, 18, 20), windows(17, 1, 8)),
    "10x10": ((1, 3, 30, 60), windows(10)),
    "kernel 1": ((1, 5, 4, 17), windows(1)),
    "kernel 1, stride 2": ((1, 5, 5, 17), windows(1, 2)),
    "1x4 s1": ((1, 9, 3, 70), windows((1, 4), 1)),
    "2x8 s1": ((1, 9, 3, 40), windows((2, 8), 1, (0, 4))),
    "4x1 s2": ((1, 9, 11, 15), windows((4, 1), 2)),
    "2x3 s3x1 p1x0": ((1, 6, 9, 31), windows((2, 3), (3, 1), (1, 0))),
    "stride beyond kernel": ((1, 3, 11, 40), windows((2, 3), (4, 7))),
    "kernel is input": ((2, 3, 5, 6), windows((5, 6))),
    "kernel beyond input, ceil": ((1, 2, 3, 4), windows((4, 5), 2, ceil_mode=True)),
    "ceil drops windows in the padding": ((1, 2, 5, 7), windows(2, 3, 1, ceil_mode=True)),
    "long rows": ((1, 2, 2, 9001), windows((2, 3), (1, 2), (0, 1))),
    "long rows, stride 1": ((1, 1, 1, 8200), windows((1, 7), 1, (0, 3))),
    "long rows, channels": ((1, 300, 3, 24), windows(3, 1, 1)),
    "long rows, stride 3": ((1, 1, 2, 9001), windows((2, 3), (1, 3))),
    "wide windows, few": ((1, 3, 2, 700), windows((2, 100), (1, 90), (1, 50))),
    "257 taps": ((1, 2, 1, 300), windows((1, 257), 1)),
    "289 taps, channels": ((1, 20, 18, 18), windows(17, 1, 8)),
    "a pixel": ((2, 3, 1, 1), windows(1)),
    "to 7": ((1, 5, 14, 21), {"output_size": (7, 7)}),
    "to 6 of 60": ((1, 2, 60, 60), {"output_size": 6}),
    "to 3x5, uneven": ((2, 17, 13, 19), {"output_size": (3, 5)}),
    "to 33 of 65": ((1, 3, 65, 65), {"output_size": 33}),
    "to more than there are": ((1, 18, 3, 4), {"output_size": (7, 9)}),
    "to far more": ((1, 2, 1, 2), {"output_size": (9, 25)}),
    "to 1": ((2, 33, 7, 7), {"output_size": 1}),
    "to 1, few channels": ((1, 3, 40, 41), {"output_size": 1}),
    "to 1, many channels": ((1, 300, 9, 10), {"output_size": 1}),
    "to 1x3": ((1, 5, 9, 10), {"output_size": (1, 3)}),
    "to 2x1": ((1, 5, 9, 10), {"output_size": (2, 1)}),
    "to 1 of many": ((1, 3, 260, 260), {"output_size": 1}),
    "to nothing": ((1, 3, 4, 5), {"output_size": (0, 3)}),
    "no image": ((0, 3, 4, 5), windows(2)),
}
MAX: dict[str, Case] = {
    **SHARED,
    "dilated": ((1, 6, 12, 21), windows(3, 1, 2, dilation=2)),
    "dilated, strided": ((1, 18, 14, 33), windows((3, 2), 2, 1, dilation=(2, 3))),
    "dilated as strided": ((1, 18, 12, 30), windows(3, 2, 1, dilation=2)),
    "dilated as strided, 4 columns": ((1, 2, 5, 50), windows((2, 4), 2, 1, dilation=(1, 2))),
    "dilated, doubled": ((1, 3, 15, 40), windows(5, 1, 2, dilation=2)),
    "dilated, windows without elements": ((2, 3, 2, 2), windows(2, 1, 1, dilation=3)),
    "2x2, long rows": ((1, 5, 6, 140), windows(2)),
    "3x3 s2 p1, long rows": ((1, 5, 9, 141), windows(3, 2, 1)),
    "3x3 s1 p1, long rows": ((1, 18, 7, 139), windows(3, 1, 1)),
    "3x2 s1, long rows": ((2, 3, 6, 140), windows((3, 2), 1)),
    "2x3 s1x2, dilated, long rows": ((1, 5, 7, 141), windows((2, 3), (1, 2), dilation=(2, 1))),
    "to 7, bands of planes": ((1, 4, 260, 256), {"output_size": 7}),
    "3x3 s1 p1, dilated, bands": ((1, 3, 110, 15), windows(3, 1, 1, dilation=7)),
    "13x13 s2 p6, bands of pixels": ((1, 16, 132, 128), windows(13, 2, 6)),
    "dilated, columns without elements": ((1, 17, 5, 2), windows((1, 2), 1, (0, 1), dilation=(1, 3))),
}
AVG: dict[str, Case] = {
    **SHARED,
    "padding not counted": ((1, 5, 9, 18), windows(3, 1, 1, count_include_pad=False)),
    "padding not counted, channels": ((1, 32, 9, 18), windows(3, 1, 1, count_include_pad=False)),
    "padding not counted, strided": ((1, 20, 9, 18), windows(3, 2, 1, count_include_pad=False)),
    "padding not counted, long rows": ((1, 2, 2, 9001), windows((2, 3), (1, 2), (0, 1), count_include_pad=False)),
    "padding counted, ceil": ((1, 5, 8, 18), windows(3, 2, 1, ceil_mode=True)),
    "padding not counted, ceil, stride 3": ((1, 17, 8, 16), windows(4, 3, 2, ceil_mode=True, count_include_pad=False)),
    "divisor, channels": ((1, 64, 8, 18), windows(3, 1, 1, divisor_override=5)),
    "divisor": ((1, 5, 8, 18), windows(3, 1, 1, divisor_override=5)),
    "negative divisor": ((1, 18, 8, 18), windows((2, 3), 2, divisor_override=-2)),
}

#: What the values are drawn from: all different, with many ties, with what is not a number.
VALUES = ("different", "ties", "special")


def draw(size, values: str, seed: str) -> Tensor:
    generator = torch.Generator().manual_seed(random.Random(seed).randrange(2**32))
    x = torch.randn(size, generator=generator, dtype=torch.float64)
    if values == "ties":
        x = x.round()
    if values == "special":
        chance = torch.rand(size, generator=generator)
        x[chance < 0.1] = torch.nan
        x[chance > 0.6] = -torch.inf
        x[(chance > 0.5) & (chance < 0.52)] = torch.inf
    return x


#: Kernels are chosen by whether channels come first in memory: every case runs in a layout of either kind.
KINDS = (
    ("channels_last", "sliced_channels_last"),
    ("contiguous", "sliced", "strided", "transposed"),
)


def meetings(name: str, isa: str) -> Iterator[tuple[torch.dtype, Callable, Callable, int]]:
    """Every dtype in a layout of either kind: dtype, layout, that of the gradient, threads."""
    rng = random.Random(f"{name} {isa}")
    for dtype in DTYPES:
        for kind in KINDS:
            grad = LAYOUTS[rng.choice(list(LAYOUTS))]
            yield dtype, LAYOUTS[rng.choice(kind)], grad, rng.choice([1, 2])


def public(kind: str, given: dict[str, Any]):
    return getattr(fastconv, f"{'adaptive_' if 'output_size' in given else ''}{kind}_pool2d")


def for_reference(given: dict[str, Any]) -> dict[str, Any]:
    return {{"kernel_size": "kernel"}.get(name, name): value for name, value in given.items()}


class Maxima(NamedTuple):
    x: Tensor
    output: Tensor
    indices: Tensor
    grad: Tensor
    grad_input: Tensor
    scale: Tensor  # sums of magnitudes: up to a hundred and more gradients meet in one element


@functools.cache
def maxima(name: str, values: str, dtype: torch.dtype) -> Maxima:
    size, given = MAX[name]
    x = draw(size, values, name).to(dtype)
    output, indices = reference.max_pool(x, **for_reference(given))
    grad = draw(output.shape, "different", name + values).to(dtype)
    grads = (reference.max_pool_grad(g, indices, size) for g in (grad, grad.abs()))
    return Maxima(x, output, indices, grad, *grads)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("name", MAX)
def test_max(name: str, values: str, isa: str) -> None:
    _, given = MAX[name]
    for dtype, layout, grad_layout, threads in meetings(f"{name} {values}", isa):
        expected = maxima(name, values, dtype)
        torch.set_num_threads(threads)
        input = layout(expected.x).requires_grad_()
        output, indices = public("max", given)(input, **given, return_indices=True)
        (grad_input,) = torch.autograd.grad(output, input, grad_layout(expected.grad))
        with torch.no_grad():
            plain = public("max", given)(input, **given)
        where = f"{dtype}, {layout.__name__}, gradient {grad_layout.__name__}, {threads} threads"
        assert output.dtype == dtype
        assert torch.equal(input.detach().nan_to_num(), expected.x.nan_to_num()), f"{where}: the input was written"
        for got in (output, plain):
            torch.testing.assert_close(
                got.double(), expected.output, rtol=0, atol=0, equal_nan=True, msg=lambda m, w=where: f"{w}\n{m}"
            )
        assert torch.equal(indices, expected.indices), where
        error = (grad_input.double() - expected.grad_input).abs()
        assert (error <= TOLERANCE[dtype] * expected.scale).all(), where


class Means(NamedTuple):
    x: Tensor
    output: Tensor
    grad: Tensor
    grad_input: Tensor
    scale_output: Tensor  # of magnitudes
    scale_grad_input: Tensor


@functools.cache
def means(name: str, dtype: torch.dtype) -> Means:
    size, given = AVG[name]
    signed = for_reference(given)
    unsigned = {key: abs(value) if key == "divisor_override" else value for key, value in signed.items()}
    x = draw(size, "different", name).to(dtype)
    output = reference.avg_pool(x, **signed)
    grad = draw(output.shape, "different", name + "grad").to(dtype)
    grad_input = reference.avg_pool_grad(grad, size, **signed)
    scales = reference.avg_pool(x.abs(), **unsigned), reference.avg_pool_grad(grad.abs(), size, **unsigned)
    return Means(x, output, grad, grad_input, *scales)


@pytest.mark.parametrize("name", AVG)
def test_avg(name: str, isa: str) -> None:
    size, given = AVG[name]
    # Long sums have more roundings, and the smallest step of float16 is 2^-24.
    rows, columns = reference.pool_windows(size[2:], **reference.of_windows(for_reference(given)))
    taps = max(map(len, rows), default=0) * max(map(len, columns), default=0)
    for dtype, layout, grad_layout, threads in meetings(name, isa):
        expected = means(name, dtype)
        torch.set_num_threads(threads)
        input = layout(expected.x).requires_grad_()
        output = public("avg", given)(input, **given)
        (grad_input,) = torch.autograd.grad(output, input, grad_layout(expected.grad))
        where = f"{dtype}, {layout.__name__}, gradient {grad_layout.__name__}, {threads} threads"
        assert output.dtype == dtype
        assert torch.equal(input.detach(), expected.x), f"{where}: the input was written"
        rounding = 2 * TOLERANCE[dtype] + (0 if dtype == torch.float64 else 2**-24 * taps / 16)
        for got, wanted, scale in (
            (output, expected.output, expected.scale_output),
            (grad_input, expected.grad_input, expected.scale_grad_input),
        ):
            assert got.shape == wanted.shape, where
            error = (got.double() - wanted).abs()
            assert (error <= rounding * scale + (2**-24 if dtype == torch.float16 else 0)).all(), where


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_dtype(kind: str, dtype: torch.dtype, layout: str) -> None:
    """The draws above leave pairs out; and the memory format of the input is that of the output."""
    for size, given in ((2, 19, 9, 11), windows(3, 2, 1)), ((2, 19, 9, 11), {"output_size": (2, 3)}):
        x = draw(size, "different", layout).to(dtype)
        input = LAYOUTS[layout](x)
        output = public(kind, given)(input, **given)
        plain = public(kind, given)(x, **given)
        torch.testing.assert_close(output, plain, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        last = layout in ("channels_last", "sliced_channels_last")
        assert output.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sixteen_and_thirty_two_bit_ids(dtype: torch.dtype) -> None:
    """Windows with more than 2^8 and more than 2^16 elements: the last one wins, and gets the gradient."""
    for side in (17, 257):
        for format in (torch.contiguous_format, torch.channels_last):
            x = torch.zeros(1, 2, side, side, dtype=dtype).contiguous(memory_format=format)
            x[0, 1, -1, -1] = 1
            x.requires_grad_()
            output, indices = fastconv.global_max_pool2d(x, return_indices=True)
            assert output.flatten().tolist() == [0, 1]
            assert indices.flatten().tolist() == [0, side * side - 1]
            output.sum().backward()
            assert x.grad is not None
            assert x.grad.nonzero().tolist() == [[0, 0, 0, 0], [0, 1, side - 1, side - 1]]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_first_of_equal_values_wins(layout: str) -> None:
    x = LAYOUTS[layout](torch.zeros(1, 17, 6, 20))
    for kernel in (2, 3, 5):
        _, indices = fastconv.max_pool2d(x, kernel, 1, return_indices=True)
        first = torch.arange(120).view(6, 20)[: 7 - kernel, : 21 - kernel]
        assert torch.equal(indices, first.expand_as(indices))


def test_signs_of_zeros() -> None:
    """Equal values: the first one is returned, sign and all."""
    x = torch.tensor([0.0, -0.0, 0.0, 0.0, -0.0]).repeat(1, 1, 5, 8)
    for kernel in (2, 3, 5):
        plain = fastconv.max_pool2d(x, kernel, 1)
        tracked, indices = fastconv.max_pool2d(x, kernel, 1, return_indices=True)
        picked = x.flatten(2).gather(2, indices.flatten(2)).view_as(tracked)
        assert torch.equal(tracked.signbit(), picked.signbit())
        if kernel == 2:  # joined columns before rows where windows are larger: the sign of a zero is that of some zero
            assert torch.equal(plain, tracked)


def test_padding_never_wins() -> None:
    x = torch.full((1, 3, 4, 5), -torch.inf)
    for format in (torch.contiguous_format, torch.channels_last):
        given = x.contiguous(memory_format=format)
        for kernel, padding in ((3, 1), (5, 2)):
            output, indices = fastconv.max_pool2d(given, kernel, 1, padding, return_indices=True)
            assert (output == -torch.inf).all()
            rows = (torch.arange(4) - padding).clamp(min=0)
            columns = (torch.arange(5) - padding).clamp(min=0)
            assert torch.equal(indices, (rows[:, None] * 5 + columns).expand_as(indices))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_gradient_adds_up_to_what_came_in(layout: str) -> None:
    padded = windows(3, 1, 1), windows((4, 5), (3, 2), (2, 1), ceil_mode=True), windows(13, 1, 6), windows(7, 4, 3)
    for given in (*padded, windows(3, 2), windows(2), {"output_size": (3, 4)}, {"output_size": (20, 31)}):
        for kind in ("max", "avg"):
            inside = {"count_include_pad": False} if kind == "avg" and given.get("padding") else {}
            x = LAYOUTS[layout](torch.randn(2, 5, 13, 15, dtype=torch.float64).round()).requires_grad_()
            output = public(kind, given)(x, **given, **inside)
            grad = torch.randn_like(output)
            (grad_input,) = torch.autograd.grad(output, x, grad)
            torch.testing.assert_close(grad_input.sum((2, 3)), grad.sum((2, 3)))


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("kernel", [3, 5, 13])
def test_threads_do_not_change_results(kind: str, layout: str, kernel: int) -> None:
    x = LAYOUTS[layout](torch.randn(2, 32, 60, 31).round())
    if kind == "avg":
        x += torch.rand_like(x)  # sums that depend on their order
    outputs, grads = [], []
    for threads in (1, 2, 2, 1):
        torch.set_num_threads(threads)
        leaf = x.clone().requires_grad_()
        output = public(kind, {})(leaf, kernel, 1, kernel // 2)
        outputs.append(output.detach())
        grads.append(torch.autograd.grad(output, leaf, torch.ones_like(output) / 3)[0])
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])
    assert all(torch.equal(grads[0], other) for other in grads[1:])


@pytest.mark.parametrize("name", ["3x3 s1 p1, pairs of vectors", "5x5 s1 p2", "9x9 s1 p4, blocks inside", "3x3 s2 p1"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_negative_infinity_everywhere(name: str, layout: str, isa: str) -> None:
    """The first tap in the input wins, not one in the padding."""
    size, given = MAX[name]
    x = LAYOUTS[layout](torch.full(size, -torch.inf))
    output, indices = fastconv.max_pool2d(x, **given, return_indices=True)
    assert (output == -torch.inf).all()
    assert torch.equal(indices, reference.max_pool(x, **for_reference(given))[1])


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 1), (3, 2), (3, 5)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_beyond_the_caches(layout: str, kernel: int, stride: int) -> None:
    """Large enough for what comes next to be fetched ahead."""
    x = LAYOUTS[layout](torch.randn(2, 48, 113, 112))
    given = windows(kernel, stride, kernel // 3)
    assert torch.equal(fastconv.max_pool2d(x, **given), F.max_pool2d(x, **given))
    torch.testing.assert_close(fastconv.avg_pool2d(x, **given), F.avg_pool2d(x, **given))


@pytest.mark.parametrize("name", ["3x3 s2 p1", "5x5 s1 p2", "to 3x5, uneven", "to 1", "3x3 s3"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_second_gradients(kind: str, layout: str, name: str) -> None:
    (_, C, H, W), given = SHARED[name]
    size = (1, min(C, 3), min(H, 8), min(W, 9))
    # Far enough apart that no step of the numerical gradient changes who has won.
    x = torch.randperm(size[1] * size[2] * size[3]).double().view(size) / 7
    x = LAYOUTS[layout](x).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: public(kind, given)(x, **given), x)
    assert torch.autograd.gradgradcheck(lambda x: public(kind, given)(x, **given) * x.sum(), x)


@pytest.mark.parametrize("name", ["max_pool1d", "avg_pool1d"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_dimension(name: str, dtype: torch.dtype) -> None:
    x = draw((2, 5, 37), "different", name).to(dtype)
    for given in (windows(3, 2, 1), windows(7, 1, 3), windows(5), windows(4, 3, ceil_mode=True)):
        one = getattr(fastconv, name)(x, **given)
        two = {key: (0 if key == "padding" else 1, value) for key, value in given.items() if key != "ceil_mode"}
        two["stride"] = (1, given["stride"] or given["kernel_size"])
        wide = getattr(fastconv, name.replace("1d", "2d"))(
            x.unsqueeze(2), **two, ceil_mode=given.get("ceil_mode", False)
        )
        assert torch.equal(one, wide.squeeze(2))
        assert torch.equal(getattr(fastconv, name)(x[0], **given), one[0])


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_unbatched_and_empty(kind: str) -> None:
    x = torch.randn(3, 8, 9, requires_grad=True)
    for given in (windows(2), {"output_size": 2}):
        output = public(kind, given)(x, **given)
        assert torch.equal(output, public(kind, given)(x[None], **given)[0])
        empty = public(kind, given)(x[None][:0].detach().requires_grad_(), **given)
        assert empty.shape == (0, *output.shape)
        empty.sum().backward()
    assert fastconv.adaptive_avg_pool2d(x, (None, 3)).shape == (3, 8, 3)
    assert fastconv.adaptive_max_pool2d(x, None).shape == x.shape  # type: ignore[union-attr]
    assert torch.equal(fastconv.global_avg_pool2d(x), fastconv.adaptive_avg_pool2d(x, 1))


def test_gradients_of_stride_zero() -> None:
    x = torch.randn(2, 17, 6, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    for pool in (fastconv.max_pool2d, fastconv.avg_pool2d):
        (grad,) = torch.autograd.grad(pool(x, 2).sum(), x)
        (wanted,) = torch.autograd.grad(pool(x, 2), x, torch.ones(2, 17, 3, 3))
        assert torch.equal(grad, wanted)


def test_beyond_two_to_the_31() -> None:
    with open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable")) * 1024
    if free < 10 << 30:
        pytest.skip(f"takes 10 GiB, {free / 2**30:.0f} are free")
    x = torch.zeros(3, 1, 32768, 32768, dtype=torch.bfloat16)
    x[2, 0, -1, -1] = 1
    output, indices = fastconv.global_max_pool2d(x, return_indices=True)
    assert output.flatten().tolist() == [0, 0, 1]
    assert indices.flatten().tolist() == [0, 0, 2**30 - 1]
    assert fastconv.max_pool2d(x, 8192).flatten().nonzero().tolist() == [[47]]
