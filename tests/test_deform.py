"""Deformable convolution against the reference: values and all gradients; where samples lie, what is read there and
what is not; that bits depend neither on threads nor on what else is asked for; second derivatives; the module.

The cases reach every branch of csrc/deform: blocks of steps that end within a tap and hold several, tiles that end
within the plane, blocks of channels that end where a group does, maps that are narrowed. Offsets are multiples of 1/64,
so that places are the same numbers in every dtype.
"""

import random
from functools import cache
from typing import Any, NamedTuple

import pytest
import reference
import torch
import torch.nn.functional as F
from kernels import DTYPES, SUPPORTED
from layouts import LAYOUTS, assert_close_to_reference
from torch import Tensor

import fastconv

ops = torch.ops.fastconv
NAMES = ("input", "offset", "weight", "bias", "mask")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Unless a test says otherwise: the tensors are small."""
    torch.set_num_threads(1)


class Case(NamedTuple):
    input: tuple[int, int, int, int]
    outputs: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    offset_groups: int = 1
    mask: bool = True
    bias: bool = True


CASES = {
    "one channel": Case((2, 1, 6, 7), 1),
    "one channel, v1": Case((1, 1, 6, 7), 2, mask=False),
    "image": Case((2, 3, 13, 11), 8, stride=(2, 2)),
    "8 channels, v1, no bias": Case((2, 8, 9, 10), 12, mask=False, bias=False),
    "17 channels": Case((2, 17, 8, 9), 31),
    "33 channels": Case((1, 33, 14, 15), 33),
    "70 channels": Case((2, 70, 7, 9), 65),
    "300 channels: a tap is two blocks": Case((1, 300, 6, 7), 20),
    "300 channels, 1x1": Case((1, 300, 5, 9), 7, (1, 1), padding=(0, 0), mask=False),
    "256 channels: a tap is a block": Case((1, 256, 5, 5), 4, (1, 2), padding=(0, 1)),
    "129 channels: one tap a block": Case((1, 129, 5, 4), 9, (2, 2)),
    "columns of weights, one more": Case((1, 5, 6, 6), 33, bias=False),
    "columns of weights, one less": Case((1, 5, 6, 6), 31),
    "columns of weights": Case((1, 5, 6, 6), 64),
    "1x1": Case((3, 16, 6, 7), 16, (1, 1), padding=(0, 0)),
    "2x5": Case((2, 6, 9, 11), 10, (2, 5), padding=(1, 2)),
    "5x5": Case((1, 12, 12, 10), 6, (5, 5), padding=(2, 2)),
    "5x5, two groups of offsets": Case((1, 48, 8, 8), 6, (5, 5), padding=(2, 2), offset_groups=2),
    "11x11: few pixels have a plan": Case((1, 2, 12, 13), 3, (11, 11), padding=(2, 3)),
    "stride 2x3": Case((2, 9, 12, 14), 7, stride=(2, 3), padding=(0, 2)),
    "dilation 2x3": Case((2, 9, 12, 14), 7, padding=(2, 3), dilation=(2, 3), mask=False),
    "all of it": Case((2, 12, 15, 13), 18, (3, 2), (2, 1), (3, 2), (2, 3), groups=3, offset_groups=2),
    "padding beyond the input": Case((1, 4, 3, 3), 5, padding=(5, 7)),
    "groups": Case((2, 24, 7, 8), 36, groups=4),
    "groups of 40 channels": Case((1, 120, 6, 6), 6, groups=3, mask=False),
    "offset groups": Case((2, 24, 7, 8), 11, offset_groups=4),
    "offset groups of 5 channels": Case((1, 35, 7, 8), 9, offset_groups=7, mask=False),
    "groups across offset groups": Case((1, 60, 6, 7), 8, groups=4, offset_groups=6),
    "a group of offsets for each channel": Case((1, 6, 7, 8), 4, offset_groups=6),
    "depthwise": Case((2, 19, 8, 9), 19, groups=19),
    "depthwise, offsets too": Case((1, 10, 8, 9), 20, groups=10, offset_groups=10, bias=False),
    "a pixel": Case((2, 20, 1, 1), 9),
    "an output": Case((1, 20, 3, 3), 9, padding=(0, 0)),
    "a row": Case((1, 5, 1, 150), 6, (1, 3), padding=(0, 1)),
    "a column": Case((1, 5, 150, 1), 6, (3, 1), padding=(1, 0), mask=False),
    "more pixels than several tiles": Case((1, 8, 21, 23), 16),
    "many images": Case((9, 10, 6, 5), 8, groups=2),
    "no image": Case((0, 8, 6, 7), 4),
    "a narrowed map": Case((1, 33, 264, 265), 2, (1, 2), (19, 17), (0, 1)),
}


class Problem(NamedTuple):
    given: dict[str, Tensor | None]
    grad_output: Tensor
    expected: dict[str, Tensor]  # "output", and the gradient of each that is given
    scale: dict[str, Tensor]


def drawn(case: Case) -> tuple[dict[str, Tensor | None], Tensor]:
    """In float64; offsets of which one in ten is large."""
    N, C = case.input[:2]
    of_weight = (case.outputs, C // case.groups, *case.kernel)
    padding = (*case.padding, *case.padding)
    size = reference.output_size(case.input, of_weight, case.stride, padding, case.dilation)
    taps = case.offset_groups * case.kernel[0] * case.kernel[1]

    def randn(*size: int) -> Tensor:
        return torch.randn(size, dtype=torch.float64)

    offset = randn(N, 2 * taps, *size[2:])
    offset = torch.where(torch.rand(offset.shape) < 0.1, 12 * offset, offset)
    given = {
        "input": randn(*case.input),
        "offset": (64 * offset).round() / 64,
        "weight": randn(*of_weight),
        "bias": randn(case.outputs) if case.bias else None,
        "mask": randn(N, taps, *size[2:]) if case.mask else None,
    }
    return given, randn(*size)


def reference_of(case: Case, given: dict, grad_output: Tensor, magnitudes: bool = False) -> dict[str, Tensor]:
    leaves = {name: t if t is None else t.double().detach().clone() for name, t in given.items()}
    if magnitudes:
        leaves = {name: t if t is None or name == "offset" else t.abs() for name, t in leaves.items()}
        grad_output = grad_output.abs()
    asked = {name: t.requires_grad_() for name, t in leaves.items() if t is not None}
    sizes = (case.stride, case.padding, case.dilation)
    output = reference.deform_conv(*(leaves[name] for name in NAMES), *sizes, magnitudes=magnitudes)
    grads = torch.autograd.grad(output, list(asked.values()), grad_output.double())
    return {"output": output.detach(), **dict(zip(asked, grads, strict=True))}


@cache
def problem(name: str, dtype: torch.dtype) -> Problem:
    """Arguments rounded to the dtype, and what they give in float64."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = CASES[name]
    given, grad_output = drawn(case)
    given = {name: t if t is None else t.to(dtype) for name, t in given.items()}
    grad_output = grad_output.to(dtype)
    expected, scale = (reference_of(case, given, grad_output, magnitudes) for magnitudes in (False, True))
    torch.set_num_threads(threads)
    return Problem(given, grad_output, expected, scale)


def call(case: Case, given: dict) -> Tensor:
    arguments = (given[name] for name in ("input", "offset", "weight", "bias"))
    return fastconv.deform_conv2d(*arguments, case.stride, case.padding, case.dilation, given["mask"])


def leaves_of(given: dict, **layouts: str) -> dict:
    return {
        name: t if t is None else LAYOUTS[layouts.get(name, "contiguous")](t.clone()).detach().requires_grad_()
        for name, t in given.items()
    }


def all_of(case: Case, given: dict, grad_output: Tensor, *names: str) -> list[Tensor]:
    """The output and the gradients of these."""
    output = call(case, given)
    return [output.detach(), *torch.autograd.grad(output, [given[name] for name in names], grad_output)]


# ---- against the reference -------------------------------------------------------------------------------------------


def run_and_compare(name: str, dtype: torch.dtype, layouts: dict[str, str]) -> None:
    case, p = CASES[name], problem(name, dtype)
    leaves = leaves_of(p.given, **layouts)
    asked = [name for name in NAMES if leaves[name] is not None]
    grad_output = LAYOUTS[layouts["grad_output"]](p.grad_output.clone())
    before = {name: leaves[name].detach().clone() for name in asked}
    results = all_of(case, leaves, grad_output, *asked)
    for of, got in zip(("output", *asked), results, strict=True):
        assert got.dtype == dtype
        what = "output" if of == "output" else f"grad_{of}"
        assert_close_to_reference(what, got, p.expected[of], p.scale[of])
    for of in asked:
        assert torch.equal(leaves[of].detach(), before[of]), f"{of} was written"
    assert torch.equal(grad_output, p.grad_output), "grad_output was written"


@pytest.mark.parametrize("name", CASES)
def test_against_the_reference(name: str, isa: str) -> None:
    """A case has one dtype, so that its reference is made once."""
    rng, dtype = random.Random(f"{name} {isa}"), random.Random(name).choice(DTYPES)
    torch.set_num_threads(rng.choice([1, 2]))
    run_and_compare(name, dtype, {of: rng.choice(list(LAYOUTS)) for of in ("grad_output", *NAMES[:3], "mask")})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["image", "17 channels", "33 channels", "all of it", "more pixels than several tiles"])
def test_every_dtype_and_thread(name: str, dtype: torch.dtype) -> None:
    rng = random.Random(f"{name} {dtype}")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        run_and_compare(name, dtype, {of: rng.choice(list(LAYOUTS)) for of in ("grad_output", *NAMES[:3], "mask")})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("of", ["input", "offset", "weight", "mask", "grad_output"])
def test_every_layout(of: str, layout: str) -> None:
    for others in ("contiguous", "channels_last"):
        layouts = dict.fromkeys(("grad_output", *NAMES), others) | {"bias": "contiguous", of: layout}
        run_and_compare("all of it", torch.float32, layouts)


def test_what_was_drawn() -> None:
    """Every dtype, layout and number of threads is met by some cases on every instruction set."""
    for isa in SUPPORTED:
        met = set()
        for name in CASES:
            rng = random.Random(f"{name} {isa}")
            met.add(random.Random(name).choice(DTYPES))
            met.update(enumerate((rng.choice([1, 2]), *(rng.choice(list(LAYOUTS)) for _ in range(5)))))
        assert len(met) == len(DTYPES) + 2 + 5 * len(LAYOUTS)


# ---- where samples lie -----------------------------------------------------------------------------------------------


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


# ---- bits ------------------------------------------------------------------------------------------------------------

#: Enough products for several threads.
LARGE = ["33 channels", "70 channels", "all of it", "more pixels than several tiles", "groups", "many images"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", LARGE)
def test_bits_do_not_depend_on_threads(name: str, layout: str, dtype: torch.dtype) -> None:
    case, p = CASES[name], problem(name, dtype)
    leaves = leaves_of(p.given, input=layout)
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append(all_of(case, leaves, p.grad_output, *NAMES[:3], "mask"))
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["17 channels", "all of it", "many images", "depthwise", "8 channels, v1, no bias"])
def test_subsets_of_gradients(name: str) -> None:
    case, p = CASES[name], problem(name, torch.float32)
    asked = [of for of in NAMES if p.given[of] is not None]
    together = dict(zip(asked, all_of(case, leaves_of(p.given), p.grad_output, *asked)[1:], strict=True))
    for subset in (*((of,) for of in asked), ("input", "weight"), ("offset", "weight"), ("input", "offset")):
        leaves = {of: t if t is None else t.clone().requires_grad_(of in subset) for of, t in p.given.items()}
        for of, got in zip(subset, all_of(case, leaves, p.grad_output, *subset)[1:], strict=True):
            assert torch.equal(got, together[of]), (of, subset)


def test_gradients_of_stride_0() -> None:
    case, p = CASES["17 channels"], problem("17 channels", torch.float32)
    for grad in (torch.ones(1), torch.randn(1, 31, 1, 1), torch.randn(2, 1, 8, 9)):
        spread = grad.expand(p.grad_output.shape)
        leaves = leaves_of(p.given)
        got, expected = (all_of(case, leaves, g, *NAMES[:3], "mask") for g in (spread, spread.contiguous()))
        for one, other in zip(got, expected, strict=True):
            assert torch.equal(one, other)
    (got,) = torch.autograd.grad(call(case, leaves).sum(), leaves["input"])
    (expected,) = torch.autograd.grad(call(case, leaves), leaves["input"], torch.ones(p.grad_output.shape))
    assert torch.equal(got, expected)


def test_arguments_of_stride_0() -> None:
    x, offset = torch.randn(1, 1, 6, 7).expand(2, 18, 6, 7), torch.randn(1, 2, 1, 1).expand(2, 2, 6, 7)
    weight, mask = torch.randn(1, 18, 1, 1).expand(5, 18, 1, 1), torch.randn(2, 1, 1, 7).expand(2, 1, 6, 7)
    spread, whole = (
        [one.detach().requires_grad_() for one in (x, offset, weight, mask)],
        [one.contiguous().requires_grad_() for one in (x, offset, weight, mask)],
    )
    outputs = [fastconv.deform_conv2d(x, o, w, mask=m) for x, o, w, m in (spread, whole)]
    assert torch.equal(*outputs)
    grad = torch.randn(outputs[0].shape)
    grads = [torch.autograd.grad(o, given, grad) for o, given in zip(outputs, (spread, whole), strict=True)]
    for got, expected in zip(*grads, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_format(layout: str) -> None:
    """The output's is the input's; a gradient's is that of what it belongs to, the weight's contiguous."""
    given, grad_output = drawn(CASES["17 channels"])
    last = layout in ("channels_last", "sliced_channels_last")
    leaves = leaves_of(given, input=layout, offset=layout, mask=layout, weight=layout)
    output = call(CASES["17 channels"], leaves)
    of_input = torch.channels_last if last else torch.contiguous_format
    assert output.is_contiguous(memory_format=of_input)
    grads = torch.autograd.grad(output, [leaves[name] for name in ("input", "offset", "mask", "weight")], grad_output)
    for grad in grads[:3]:
        assert grad.is_contiguous(memory_format=of_input)
    assert grads[3].is_contiguous()
    opposite = "contiguous" if last else "channels_last"
    leaves = leaves_of(given, input=layout, offset=opposite, mask=opposite)
    output = call(CASES["17 channels"], leaves)
    assert output.is_contiguous(memory_format=of_input)
    of_others = torch.contiguous_format if last else torch.channels_last
    for grad in torch.autograd.grad(output, [leaves["offset"], leaves["mask"]], grad_output):
        assert grad.is_contiguous(memory_format=of_others)


# ---- memory ----------------------------------------------------------------------------------------------------------


def most_memory(function: Any) -> int:
    """Bytes that PyTorch's allocator gave out at one time, results included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    changes: list[tuple[int, int]] = []

    def walk(events: list) -> None:
        for event in events:
            if event.tag == torch._C._profiler._EventType.Allocation:
                changes.append((event.start_time_ns, event.extra_fields.alloc_size))
            walk(event.children)

    assert profile.profiler is not None
    walk(profile.profiler.kineto_results.experimental_event_tree())
    now = most = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def test_there_is_no_column_buffer() -> None:
    """It would be nine times the input. Forward there is the output, the input turned over and a MB for each thread;
    backward the gradients, and for each thread two maps of half of the channels."""
    torch.set_num_threads(2)
    x, offset = torch.randn(1, 64, 96, 96).requires_grad_(), torch.randn(1, 18, 96, 96).requires_grad_()
    weight = torch.randn(64, 64, 3, 3).requires_grad_()
    plane = x.numel() * 4
    output = fastconv.deform_conv2d(x, offset, weight, padding=1)
    grad = torch.randn(output.shape)
    forward = most_memory(lambda: fastconv.deform_conv2d(x, offset, weight, padding=1))
    assert plane <= forward < 3 * plane
    backward = most_memory(lambda: torch.autograd.grad(output, (x, offset, weight), grad))
    assert plane <= backward < 6 * plane


# ---- derivatives -----------------------------------------------------------------------------------------------------

SMALL = {
    "v1": Case((1, 2, 3, 4), 2, (2, 2), padding=(1, 0), mask=False),
    "v2": Case((1, 2, 3, 3), 1, (2, 2), padding=(0, 1)),
    "groups": Case((2, 4, 3, 3), 2, (2, 1), (2, 1), groups=2, offset_groups=2, bias=False),
    "dilated": Case((1, 1, 4, 4), 2, (2, 2), padding=(1, 1), dilation=(2, 1)),
}


def small(name: str) -> tuple[list[Tensor], Any]:
    """Offsets far from whole numbers, where there is no derivative; some outside."""
    given, _ = drawn(SMALL[name])
    offset = given["offset"]
    assert offset is not None
    given["offset"] = offset.round() + torch.empty_like(offset).uniform_(0.2, 0.8)
    asked = [of for of in NAMES if given[of] is not None]

    def function(*leaves: Tensor) -> Tensor:
        return call(SMALL[name], {**given, **dict(zip(asked, leaves, strict=True))})

    return [given[of].requires_grad_() for of in asked], function  # type: ignore[union-attr]


@pytest.mark.parametrize("name", SMALL)
def test_first_derivatives(name: str) -> None:
    leaves, function = small(name)
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("name", SMALL)
def test_second_derivatives(name: str) -> None:
    leaves, function = small(name)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("name", ["v1", "v2", "groups"])
def test_second_derivatives_are_the_references(name: str) -> None:
    case = SMALL[name]
    leaves, function = small(name)
    given = dict(zip([of for of in NAMES if of != "bias" or case.bias], leaves, strict=False))

    def slow(*leaves: Tensor) -> Tensor:
        arguments = {**dict.fromkeys(NAMES), **dict(zip(given, leaves, strict=True))}
        return reference.deform_conv(*(arguments[of] for of in NAMES), case.stride, case.padding, case.dilation)

    seconds = []
    for f in (function, slow):
        first = torch.autograd.grad(f(*leaves).sin().sum(), leaves, create_graph=True)
        seconds.append(torch.autograd.grad(sum(each.cos().sum() for each in first), leaves))
    torch.testing.assert_close(*seconds)


@pytest.mark.parametrize("of", ["input", "offset", "weight", "mask"])
def test_second_derivatives_of_one(of: str) -> None:
    leaves, function = small("v2")
    chosen = leaves[NAMES.index(of)]
    for leaf in leaves:
        leaf.requires_grad_(leaf is chosen)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_third_derivatives() -> None:
    """Through PyTorch's operators to any order; offsets that were computed from the input are not counted twice."""
    case = SMALL["v2"]
    (x, _, weight, bias, mask), _ = small("v2")
    shape = (1, 8, 2, 4)
    mix = torch.randn(8, 18, dtype=torch.float64)

    def thirds(function: Any) -> Tensor:
        offset = (mix @ x.flatten()).sin().view(1, 8, 1, 1).expand(shape) * 0.3 + 0.5
        y = function(x, offset, weight, bias, mask).sin().sum()
        for _ in range(3):
            (g,) = torch.autograd.grad(y, x, create_graph=True)
            y = g.cos().sum()
        return g.detach()

    def ours(x, offset, weight, bias, mask) -> Tensor:
        return fastconv.deform_conv2d(x, offset, weight, bias, case.stride, case.padding, case.dilation, mask)

    def slow(*given: Tensor) -> Tensor:
        return reference.deform_conv(*given, case.stride, case.padding, case.dilation)

    torch.testing.assert_close(thirds(ours), thirds(slow))


# ---- the module ------------------------------------------------------------------------------------------------------


def test_module() -> None:
    module = fastconv.nn.DeformConv2d(6, 9, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2), groups=3)
    assert list(module.state_dict()) == ["weight", "bias"]
    assert module.weight.shape == (9, 2, 3, 2)
    assert repr(module) == (
        "DeformConv2d(6, 9, kernel_size=(3, 2), stride=(2, 2), padding=(1, 0), dilation=(1, 2), groups=3)"
    )
    x = torch.randn(2, 6, 9, 10)
    offset, mask = torch.randn(2, 24, 5, 4), torch.rand(2, 12, 5, 4)
    rest = (module.stride, module.padding, module.dilation)
    expected = fastconv.deform_conv2d(x, offset, module.weight, module.bias, *rest, mask)
    assert torch.equal(module(x, offset, mask), expected)
    assert torch.equal(module(x, offset), fastconv.deform_conv2d(x, offset, module.weight, module.bias, *rest))
    plain = fastconv.nn.DeformConv2d(4, 8, 1, bias=False)
    assert repr(plain) == "DeformConv2d(4, 8, kernel_size=(1, 1), stride=(1, 1), bias=False)"
    assert list(plain.state_dict()) == ["weight"]
    assert plain.bias is None


def test_module_starts_as_a_convolution_does() -> None:
    torch.manual_seed(3)
    ours = fastconv.nn.DeformConv2d(8, 6, 3)
    torch.manual_seed(3)
    theirs = torch.nn.Conv2d(8, 6, 3)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)
    ours.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("mask", [False, True])
def test_torchvision(mask: bool) -> None:
    theirs = pytest.importorskip("torchvision").ops
    case = CASES["all of it"]._replace(mask=mask, groups=3)
    given, grad_output = drawn(case)
    rest = (case.stride, case.padding, case.dilation)
    results = []
    for function in (fastconv.deform_conv2d, theirs.deform_conv2d):
        leaves = leaves_of(given)
        arguments = [leaves[name] for name in ("input", "offset", "weight", "bias")]
        output = function(*arguments, *rest, leaves["mask"])
        asked = [leaf for leaf in leaves.values() if leaf is not None]
        results.append((output, *torch.autograd.grad(output, asked, grad_output)))
    torch.testing.assert_close(*results)
    modules = [m.DeformConv2d(6, 9, 3, 2, 1, 1, 3, False) for m in (fastconv.nn, theirs)]
    assert repr(modules[0]) == repr(modules[1])
    assert modules[0].load_state_dict(modules[1].state_dict())
