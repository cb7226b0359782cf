"""Convolution on CPU against the reference and against PyTorch: every kernel on every instruction set,
forward and gradients, over dtypes, layouts and thread counts.

The full product of these axes is too long. Every case meets every kernel on every instruction set; for each
of these meetings dtype, layouts and threads are drawn once and for all from the names (``draw``), and
``test_every_value_of_every_axis_meets_every_kernel`` proves that no pair was left out.
"""

import random
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case, Problem, problem, values
from layouts import LAYOUTS, assert_close_to_reference
from torch.autograd import gradcheck, gradgradcheck

import fastconv
from fastconv._native import ISAS, native

SUPPORTED = ISAS[: ISAS.index(native.isa_supported()) + 1]
#: Those that only add the kernels EXTRA, for bfloat16, and otherwise run what avx512 runs.
BEYOND = [isa for isa in ("avx512_bf16", "amx") if isa in SUPPORTED]
#: Kernels of all three directions; "depthwise" wants one channel to a group, the others serve everything.
KERNELS = ["depthwise", "channel", "pixel", "general"]
EXTRA = ["winograd_bfloat16", "pairs"]
#: Kernels of the forward pass and the input gradient that choose among layouts and geometries.
CHOOSY = [kernel for kernel in native.conv_kernels() if kernel not in [*KERNELS, *EXTRA]]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
BY_NAME = {case.name: case for case in CASES}
#: Too slow with the general kernel on three instruction sets, and there for the sake of another kernel.
HEAVY = {"weights_of_17_megabytes", "channel_passes", "channel_passes_grouped", "rows_of_tiles"}


class Choice(NamedTuple):
    dtype: torch.dtype
    input: str
    weight: str
    grad: str
    threads: int
    bias: bool


def draw(case: Case, kernel: str, isa: str, again: int = 0) -> Choice:
    rng = random.Random(f"{case.name} {kernel} {isa} {again}")
    layouts = list(LAYOUTS)
    return Choice(
        rng.choice(DTYPES),
        rng.choice(layouts),
        rng.choice(layouts),
        rng.choice(layouts),
        rng.choice([1, 2]),
        rng.choice([True, True, False]),
    )


def serves(kernel: str, case: Case) -> bool:
    return kernel != "depthwise" or case.depthwise


def kernels_of(*names: str) -> list[tuple[str, str]]:
    """Each of these cases with each kernel that serves it, and "" for the table's own choice."""
    return [(name, kernel) for name in names for kernel in ["", *KERNELS] if serves(kernel, BY_NAME[name])]


def meetings_of(case: Case) -> list[tuple[str, str, int]]:
    """With a kernel ("" for the table's own choice) and an instruction set. Depthwise cases meet "their" kernel
    several times, because they are few."""
    return [
        (kernel, isa, again)
        for kernel in ["", *KERNELS]
        if not (kernel == "general" and case.name in HEAVY)
        for isa in SUPPORTED
        if isa not in BEYOND or not kernel
        for again in range(3 if kernel == "depthwise" and case.depthwise else 1)
    ]


def run_and_compare(case: Case, choice: Choice) -> None:
    p: Problem = problem(case)

    def leaf(tensor: torch.Tensor, layout: str) -> torch.Tensor:
        return LAYOUTS[layout](tensor.to(choice.dtype, copy=True)).requires_grad_()

    input, weight = leaf(p.input, choice.input), leaf(p.weight, choice.weight)
    bias = leaf(p.bias, "contiguous") if choice.bias else None
    grad_output = LAYOUTS[choice.grad](p.grad_output.to(choice.dtype, copy=True))
    before = [t.detach().clone() for t in (input, weight, grad_output)]

    output = case.function(fastconv)(input, weight, bias, **case.kwargs)
    assert output.dtype == choice.dtype
    expected, scale = p.output, p.scale_output
    if bias is None:
        shape = (-1, *(1,) * case.dims)
        expected, scale = expected - p.bias.view(shape), scale - p.bias.abs().view(shape)
    assert_close_to_reference("output", output.detach(), expected, scale, patches=case.patches)
    output.backward(grad_output)
    assert_close_to_reference("grad_input", input.grad, p.grad_input, p.scale_grad_input, patches=case.patches)
    assert_close_to_reference("grad_weight", weight.grad, p.grad_weight, p.scale_grad_weight)
    if bias is not None:
        assert_close_to_reference("grad_bias", bias.grad, p.grad_bias, p.scale_grad_bias)
    for now, then in zip((input, weight, grad_output), before, strict=True):
        assert torch.equal(now.detach(), then), "an argument was written"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    for kernel, isa, again in meetings_of(case):
        choice = draw(case, kernel, isa, again)
        torch.set_num_threads(choice.threads)
        assert native.isa_select(isa)
        assert native.conv_force_kernel(kernel)
        try:
            if serves(kernel, case):
                run_and_compare(case, choice)
            else:
                with pytest.raises(RuntimeError, match="kernel must be able to serve"):
                    run_and_compare(case, choice)
        except AssertionError as error:
            raise AssertionError(f"{case}, kernel {kernel or 'chosen'}, {isa}, {choice}: {error}") from error


def test_every_value_of_every_axis_meets_every_kernel() -> None:
    met = defaultdict(set)
    for case, (kernel, isa, again) in ((c, meeting) for c in CASES for meeting in meetings_of(c)):
        if serves(kernel, case):
            choice = draw(case, kernel, isa, again)
            for axis, value in choice._asdict().items():
                met[kernel, isa, axis].add(value)
            if case.dims == 2:
                met[kernel, "layouts by dtype"].add((choice.dtype, choice.input))
    for kernel in ["", *KERNELS]:
        assert sum(serves(kernel, case) for case in CASES) >= (15 if kernel == "depthwise" else 60)
        for isa in SUPPORTED:
            if isa in BEYOND and kernel:
                continue
            assert met[kernel, isa, "dtype"] == set(DTYPES)
            assert met[kernel, isa, "threads"] == {1, 2}
            for axis in ("input", "weight", "grad"):
                assert met[kernel, isa, axis] == set(LAYOUTS), (kernel, isa, axis)
        assert len(met[kernel, "layouts by dtype"]) >= 0.9 * len(DTYPES) * len(LAYOUTS), kernel


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", [c for c in CASES if c.name not in HEAVY], ids=str)
def test_reference_agrees_with_pytorch(case: Case) -> None:
    """So that a mistake of the reference's cannot hide one of ours."""
    p = problem(case)
    input, weight, bias = (t.clone().requires_grad_() for t in (p.input, p.weight, p.bias))
    output = case.function(F)(input, weight, bias, **case.kwargs)
    output.backward(p.grad_output)
    assert_close_to_reference("output", output.detach(), p.output, p.scale_output)
    assert_close_to_reference("grad_input", input.grad, p.grad_input, p.scale_grad_input)
    assert_close_to_reference("grad_weight", weight.grad, p.grad_weight, p.scale_grad_weight)
    assert_close_to_reference("grad_bias", bias.grad, p.grad_bias, p.scale_grad_bias)


# ---- which kernel runs -------------------------------------------------------------------------------------


def served(kernel: str, call: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    """What the forced kernel computes, or None where it refuses."""
    assert native.conv_force_kernel(kernel)
    try:
        return call()
    except RuntimeError as error:
        if "kernel must be able to serve" not in str(error):
            raise
        return None
    finally:
        native.conv_force_kernel("")


def kernel_meets_isa(kernel: str, isa: str) -> bool:
    """Beyond avx512 there are a few kernels more, and the others are avx512's."""
    return (kernel in EXTRA) == (isa in BEYOND)


def dtypes_of(kernel: str, isa: str) -> list[torch.dtype]:
    """What a choosy kernel serves."""
    if kernel in EXTRA:
        return [torch.bfloat16] if isa in ("avx512_bf16", "amx") else []
    return [dtype for dtype in DTYPES if not kernel.startswith("winograd") or dtype != torch.float64]


@pytest.mark.parametrize(
    ("kernel", "isa"),
    [(kernel, isa) for kernel in CHOOSY for isa in SUPPORTED if isa not in BEYOND]
    + [(kernel, isa) for kernel in EXTRA for isa in BEYOND],
)
def test_choosy_kernel(kernel: str, isa: str) -> None:
    """Wherever such a kernel serves it is right; what it serves is enough for every dtype, and what its name says."""
    native.isa_select(isa)
    counts, dtypes = defaultdict(int), dtypes_of(kernel, isa)
    patches = kernel.startswith("winograd")
    for case in CASES:
        if case.name in HEAVY:
            continue
        p, function = problem(case), fastconv.conv1d if case.dims == 1 else fastconv.conv2d
        lists = [list(case.geometry[name]) for name in ("stride", "padding", "dilation")]
        if case.dims == 1:
            lists = [lists[0][1:], lists[1][1::2], lists[2][1:]]
        for i, layout in enumerate(["contiguous", "channels_last", "sliced", "sliced_channels_last"]):
            dtype = dtypes[(i + len(case.name)) % len(dtypes)]
            torch.set_num_threads(1 + i % 2)
            place = LAYOUTS[layout]
            input, grad = place(p.input.to(dtype)), place(p.grad_output.to(dtype))
            weight, bias = LAYOUTS[list(LAYOUTS)[(i + case.C) % 6]](p.weight.to(dtype)), p.bias.to(dtype)
            arguments = (grad, weight, list(input.shape), *lists, case.groups)
            of_weight = (grad, input, list(weight.shape), *lists, case.groups)
            output = served(kernel, lambda a=(input, weight, bias), c=case, f=function: f(*a, **c.kwargs))
            gradient = served(kernel, lambda a=arguments: torch.ops.fastconv._conv_grad_input(*a))
            weight_gradient = served(kernel, lambda a=of_weight: torch.ops.fastconv._conv_grad_weight(*a))
            if output is not None:
                assert case.depthwise or not kernel.startswith("depthwise")
                assert_close_to_reference(f"{case}: output", output, p.output, p.scale_output, patches=patches)
                counts["output", dtype] += 1
            if gradient is not None:
                assert case.depthwise or not kernel.startswith("depthwise")
                assert_close_to_reference(
                    f"{case}: gradient", gradient, p.grad_input, p.scale_grad_input, patches=patches
                )
                counts["gradient", dtype] += 1
            if weight_gradient is not None:
                assert_close_to_reference(f"{case}: of weight", weight_gradient, p.grad_weight, p.scale_grad_weight)
                counts["weight gradient", dtype] += 1
    for step in ("output", "gradient", *(["weight gradient"] if kernel in ("depthwise_diagonals", "grouped") else [])):
        assert min(counts[step, dtype] for dtype in dtypes) >= 3, dict(counts)


@pytest.mark.parametrize("isa", BEYOND)
@pytest.mark.parametrize(
    ("size", "weight_size", "geometry"),
    [
        pytest.param((1, 1200, 6, 9), (40, 1200, 3, 3), {"padding": 1}, id="channels in passes"),
        pytest.param((2, 3, 40, 61), (20, 3, 7, 7), {"padding": 3, "stride": 2}, id="thin"),
        pytest.param((2, 32, 12, 31), (32, 16, 5, 3), {"padding": 2, "groups": 2, "stride": (1, 3)}, id="thin, wide"),
        pytest.param((2, 64, 12, 19), (70, 64, 1, 1), {}, id="in place or planar"),
        pytest.param((2, 48, 12, 19), (33, 48, 1, 1), {"stride": 2}, id="in place or planar, strided"),
        pytest.param((1, 51, 12, 19), (16, 51, 1, 1), {"padding": 1, "stride": 3}, id="1x1, padded"),
        pytest.param((3, 70, 7, 7), (70, 70, 3, 3), {"padding": 1}, id="pieces over several rows"),
        pytest.param((1, 40, 33, 35), (40, 40, 3, 3), {"padding": 12, "dilation": 12}, id="few live taps"),
        pytest.param((2, 34, 11, 64), (40, 34, 3, 3), {"padding": 16, "dilation": 16}, id="cut where taps change"),
        pytest.param((1, 34, 19, 40), (20, 34, 3, 5), {"padding": 8, "dilation": (6, 4), "stride": 2}, id="trimmed"),
        pytest.param((1, 40, 9, 9), (40, 40, 3, 3), {"padding": 20, "dilation": 12}, id="no live tap"),
        pytest.param((1, 36, 1, 700), (36, 36, 1, 2), {"dilation": (1, 16)}, id="tiles of columns"),
    ],
)
def test_ways_of_the_pairs_kernel(size, weight_size, geometry, isa: str) -> None:
    native.isa_select(isa)
    input, weight = torch.randn(size, dtype=torch.bfloat16), torch.randn(weight_size, dtype=torch.bfloat16)
    exact = [input.double(), weight.double()]
    expected, scale = F.conv2d(*exact, **geometry), F.conv2d(*(t.abs() for t in exact), **geometry)
    grad = torch.randn(expected.shape, dtype=torch.bfloat16)
    back = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **geometry}
    expected_grad, scale_grad = (
        torch.nn.grad.conv2d_input(size, w, g, **back)
        for w, g in ((exact[1], grad.double()), (exact[1].abs(), grad.double().abs()))
    )
    for layout in ("contiguous", "channels_last"):
        for weight_layout in ("contiguous", "channels_last", "strided"):
            for threads in (1, 2):
                torch.set_num_threads(threads)
                x, g, w = LAYOUTS[layout](input), LAYOUTS[layout](grad), LAYOUTS[weight_layout](weight)
                x.requires_grad_()
                output = served("pairs", lambda x=x, w=w: fastconv.conv2d(x, w, **geometry))
                assert_close_to_reference("output", output.detach(), expected, scale)
                (got,) = served("pairs", lambda o=output, x=x, g=g: torch.autograd.grad(o, x, g))
                assert_close_to_reference("gradient", got, expected_grad, scale_grad)


@pytest.mark.parametrize(
    ("preferred", "size", "weight_size", "groups", "layout", "dilation"),
    [
        ("depthwise_diagonals", (2, 40, 9, 10), (40, 1, 3, 3), 40, "channels_last", 1),
        ("depthwise_diagonals", (2, 40, 9, 10), (40, 1, 5, 5), 40, "contiguous", 1),
        ("depthwise_diagonals", (2, 40, 20, 20), (40, 1, 9, 9), 40, "contiguous", 1),
        ("depthwise_pixels", (2, 40, 9, 10), (40, 1, 3, 3), 40, "channels_last", 2),
        ("depthwise", (2, 40, 20, 20), (40, 1, 9, 9), 40, "channels_last", 2),
        ("depthwise_rows", (2, 40, 19, 20), (40, 1, 3, 3), 40, "contiguous", 1),
        ("pixel", (2, 40, 9, 10), (40, 1, 3, 3), 40, "contiguous", 2),
        ("rows", (2, 48, 9, 10), (48, 4, 2, 3), 12, "contiguous", 1),
        ("rows", (1, 3, 30, 40), (64, 3, 3, 3), 1, "contiguous", 1),
        ("channel", (1, 3, 30, 40), (64, 3, 3, 3), 1, "channels_last", 1),
        ("winograd_1d", (2, 48, 9, 10), (48, 4, 3, 3), 12, "contiguous", 1),
        ("winograd_1d", (2, 48, 9, 10), (48, 8, 3, 3), 6, "channels_last", 1),
        ("winograd", (2, 64, 28, 28), (64, 32, 3, 3), 2, "contiguous", 1),
        ("grouped", (2, 48, 9, 10), (48, 4, 3, 3), 12, "channels_last", 1),
        ("grouped", (2, 64, 9, 10), (64, 16, 2, 3), 4, "contiguous", 1),
        ("channel", (2, 40, 9, 10), (64, 40, 2, 3), 1, "contiguous", 1),
        ("channel", (2, 40, 9, 10), (64, 40, 2, 3), 1, "channels_last", 1),
        ("channel", (2, 200, 7, 7), (200, 200, 3, 3), 1, "channels_last", 1),
        ("winograd", (2, 64, 32, 32), (64, 64, 3, 3), 1, "contiguous", 1),
        ("winograd", (2, 64, 32, 32), (64, 64, 3, 3), 1, "channels_last", 2),
        *[("pairs", (2, 40, 9, 10), (64, 40, 3, 3), 1, layout, 1) for layout in LAYOUTS if BEYOND],
        *[
            ("winograd_bfloat16", (2, 64, 32, 32), (64, 64, 3, 3), 1, layout, 1)
            for layout in ("contiguous", "channels_last")
            if SUPPORTED[-1] == "avx512_bf16"
        ],
    ],
)
def test_preferred_kernel(preferred, size, weight_size, groups, layout, dilation) -> None:
    """The table's own choice has the bits of the kernel that should be preferred, and not those of every other."""
    dtype = torch.bfloat16 if preferred in EXTRA else torch.float32
    input, weight = LAYOUTS[layout](torch.randn(size).to(dtype)), torch.randn(weight_size).to(dtype)

    def call() -> torch.Tensor:
        return fastconv.conv2d(input, weight, padding=dilation, groups=groups, dilation=dilation)

    chosen = call()
    results = {kernel: served(kernel, call) for kernel in native.conv_kernels()}
    assert torch.equal(chosen, results[preferred])
    if weight_size[1] > 2:
        others = [result for result in results.values() if result is not None]
        assert not all(torch.equal(chosen, result) for result in others)


def test_the_general_kernel_is_the_last() -> None:
    names = native.conv_kernels()
    assert names[-1] == "general"
    assert len(set(names)) == len(names)
    assert set(KERNELS) <= set(names)


def test_unknown_kernel_is_refused() -> None:
    assert not native.conv_force_kernel("fastest")
    assert not native.isa_select("avx1024")


# ---- gradients ---------------------------------------------------------------------------------------------

GRADIENT_CASES = {
    "dense": ((2, 3, 5, 4), (4, 3, 3, 3), {"padding": 1}),
    "stride_2": ((1, 2, 6, 5), (3, 2, 3, 2), {"stride": 2, "padding": (1, 0)}),
    "stride_3_kernel_2": ((1, 2, 7, 7), (2, 2, 2, 2), {"stride": 3}),
    "groups": ((2, 4, 4, 4), (6, 2, 3, 3), {"padding": 1, "groups": 2}),
    "depthwise": ((1, 4, 5, 4), (4, 1, 3, 3), {"padding": 1, "groups": 4}),
    "dilation": ((1, 2, 6, 6), (2, 2, 2, 3), {"dilation": 2, "padding": 3}),
    "same_even": ((1, 2, 4, 5), (2, 2, 2, 4), {"padding": "same"}),
    "unbatched": ((3, 4, 5), (2, 3, 3, 3), {}),
    "1d": ((2, 3, 7), (4, 3, 3), {"stride": 2, "padding": 1}),
    "1d_unbatched": ((2, 7), (4, 1, 3), {"groups": 2}),
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("name", GRADIENT_CASES)
def test_gradcheck(name: str, layout: str) -> None:
    size, weight_size, kwargs = GRADIENT_CASES[name]
    function = fastconv.conv1d if len(weight_size) == 3 else fastconv.conv2d
    input = LAYOUTS[layout](torch.randn(size, dtype=torch.float64)).requires_grad_()
    weight = LAYOUTS[layout](torch.randn(weight_size, dtype=torch.float64)).requires_grad_()
    bias = torch.randn(weight_size[0], dtype=torch.float64, requires_grad=True)

    def conv(*tensors):
        return function(*tensors, **kwargs)

    assert gradcheck(conv, (input, weight, bias), fast_mode=True)
    assert gradgradcheck(conv, (input, weight, bias), fast_mode=True)
    assert gradgradcheck(conv, (input, weight), fast_mode=True)
    if layout == "contiguous":
        assert gradcheck(conv, (input, weight, bias))
        for frozen in ("input", "weight"):
            i = input.detach() if frozen == "input" else input
            w = weight.detach() if frozen == "weight" else weight
            assert gradcheck(conv, (i, w, bias), fast_mode=True)
            assert gradgradcheck(conv, (i, w, bias), fast_mode=True)


def test_gradient_of_only_what_asks_for_one() -> None:
    for wanted in range(1, 8):
        tensors = [torch.randn(2, 4, 5, 5), torch.randn(6, 4, 3, 3), torch.randn(6)]
        mine = [t.clone().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(tensors)]
        theirs = [t.clone().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(tensors)]
        fastconv.conv2d(*mine).square().sum().backward()
        F.conv2d(*theirs).square().sum().backward()
        for a, b in zip(mine, theirs, strict=True):
            assert (a.grad is None) == (b.grad is None)
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "kernel"),
    kernels_of("stride_2", "groups_3_strided", "depthwise_17_w17", "dense_64x65_w5", "1d"),
)
def test_gradient_of_stride_zero(name: str, kernel: str) -> None:
    """What ``sum().backward()`` and ``mean((2, 3))`` send: a gradient whose elements lie in one place."""
    case = BY_NAME[name]
    function, theirs = (fastconv.conv1d, F.conv1d) if case.dims == 1 else (fastconv.conv2d, F.conv2d)
    p = problem(case)
    native.conv_force_kernel(kernel)
    one = torch.tensor(0.75, dtype=torch.float64)
    for grad in (
        one.expand(p.output.shape),
        p.grad_output.flatten(2)[..., :1].expand(*p.output.shape[:2], 1),
    ):
        if grad.shape != p.output.shape:
            grad = grad.reshape(*grad.shape[:2], *(1,) * case.dims).expand(p.output.shape)
        grads = []
        for f in (function, theirs):
            input, weight = p.input.clone().requires_grad_(), p.weight.clone().requires_grad_()
            grads.append(torch.autograd.grad(f(input, weight, **case.kwargs), (input, weight), grad))
        for mine, other in zip(*grads, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", ["", *KERNELS])
def test_expanded_input_and_weight(kernel: str) -> None:
    input = torch.randn(1, 5, 1, 1, dtype=torch.float64).expand(2, 5, 6, 7)
    weight = torch.randn(5, 1, 1, 1, dtype=torch.float64).expand(5, 1, 3, 3)
    native.conv_force_kernel(kernel)
    output = fastconv.conv2d(input, weight, groups=5)
    torch.testing.assert_close(output, F.conv2d(input, weight, groups=5), rtol=1e-12, atol=1e-12)


# ---- special values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", SUPPORTED)
@pytest.mark.parametrize("kernel", ["", *CHOOSY, *KERNELS, *EXTRA])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_reach_what_they_should(dtype: torch.dtype, kernel: str, isa: str) -> None:
    """A NaN or infinity of the input reaches the outputs that read it, as in float64, and no other."""
    if kernel in EXTRA and (isa not in BEYOND or dtype != torch.bfloat16):
        pytest.skip("the kernel of bfloat16 beyond avx512")
    if isa in BEYOND and kernel not in ("", *EXTRA):
        pytest.skip("the kernel of avx512")
    native.isa_select(isa)
    count = 0
    generator = torch.Generator().manual_seed(1)
    for groups, K, stride, padding, dilation, layout in [
        (3, 24, 1, 1, 1, "contiguous"),
        (9, 9, 1, 1, 1, "contiguous"),
        (9, 9, 2, 1, 1, "channels_last"),
        (3, 18, 1, 2, 2, "contiguous"),
        (1, 20, 1, 1, 1, "contiguous"),
        (1, 20, 2, 3, 1, "channels_last"),
    ]:
        input, weight = values((2, 9, 10, 11), generator), values((K, 9 // groups, 3, 3), generator)
        for n, c, h, w, value in [
            (0, 0, 0, 0, "nan"),
            (0, 8, 9, 10, "inf"),
            (1, 4, 5, 3, "-inf"),
            (1, 4, 0, 9, "nan"),
        ]:
            input[n, c, h, w] = float(value)
        geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        expected = F.conv2d(input, weight, **geometry)
        assert expected.isnan().any()
        assert expected.isinf().any()
        x, w = LAYOUTS[layout](input.to(dtype)), weight.to(dtype)
        got = served(kernel, lambda x=x, w=w, g=geometry: fastconv.conv2d(x, w, **g))
        if got is None:
            assert kernel not in ("", "channel", "pixel", "general")
            continue
        got, count = got.double(), count + 1
        if kernel.startswith("winograd"):  # they spread over the outputs of a patch (docs/numerics.md), and no further
            reach = 3 * dilation
            near = F.max_pool2d((~expected.isfinite()).double(), 2 * reach + 1, 1, reach) > 0
            assert (expected.isfinite() | ~got.isfinite()).all()
            assert (got.isfinite() | near).all()
            continue
        assert torch.equal(got.isnan(), expected.isnan())
        assert torch.equal(got.isinf(), expected.isinf())
        assert torch.equal(got.sign()[got.isinf()], expected.sign()[expected.isinf()])
    assert count > 0 or dtype not in dtypes_of(kernel, isa)


@pytest.mark.parametrize("isa", SUPPORTED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_value_survives(dtype: torch.dtype, isa: str) -> None:
    """A 1 x 1 kernel of one is the identity on every number of the dtype; subnormal, infinite and NaN ones
    too."""
    native.isa_select(isa)
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).reshape(1, 1, 256, 256)
    one = torch.ones(1, 1, 1, 1, dtype=dtype)
    for kernel in KERNELS:
        native.conv_force_kernel(kernel)
        got = fastconv.conv2d(every, one)
        assert torch.equal(got.isnan(), every.isnan())
        numbers = ~every.isnan()
        assert torch.equal(got[numbers], every[numbers]), kernel


@pytest.mark.parametrize("isa", SUPPORTED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_of_16_bit_results_is_that_of_pytorch(dtype: torch.dtype, isa: str) -> None:
    """To nearest even, into subnormal numbers and over into infinity: products of two numbers round as
    PyTorch's."""
    native.isa_select(isa)
    a = torch.randint(-(2**15), 2**15, (4096,)).to(torch.int16).view(dtype).nan_to_num()
    for scale in (2.0**-10, 1.0, 3.0, 2.0**10 + 2.0**3):
        weight = torch.full((1, 1, 1), scale, dtype=dtype)
        expected = (a.float() * weight.float().view(())).to(dtype)
        got = fastconv.conv1d(a.view(1, 1, -1), weight).view(-1)
        assert torch.equal(got, expected)


# ---- shapes, formats, repeatability ------------------------------------------------------------------------


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("C", "K", "groups"), [(6, 8, 1), (6, 6, 6), (6, 12, 2)])
def test_output_keeps_the_memory_format(format: torch.memory_format, C: int, K: int, groups: int) -> None:
    weight = torch.randn(K, C // groups, 3, 3, requires_grad=True)
    for window in (slice(None), slice(1, 6)):
        input = torch.randn(3, C, 7, 8).to(memory_format=format)[:, :, window].requires_grad_()
        output = fastconv.conv2d(input, weight, groups=groups)
        assert output.is_contiguous(memory_format=format)
        assert output.stride() == F.conv2d(input, weight, groups=groups).stride()
        output.backward(torch.ones_like(output))
        assert input.grad.shape == input.shape


@pytest.mark.parametrize("size", [(0, 4, 5, 6), (0, 4, 0, 6), (0, 0, 5, 6)])
def test_empty_batch(size: tuple[int, ...]) -> None:
    input = torch.randn(size, requires_grad=True)
    weight = torch.randn(3, size[1], 2, 2, requires_grad=True)
    bias = torch.randn(3, requires_grad=True)
    output = fastconv.conv2d(input, weight, bias, padding=1)
    assert output.shape == (0, 3, size[2] + 1, 7)
    output.sum().backward()
    assert input.grad.shape == input.shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert torch.equal(bias.grad, torch.zeros(3))


@pytest.mark.parametrize("channels", [2, 9, 40])
@pytest.mark.parametrize("kernel", ["", *KERNELS])
def test_no_input_channels_is_the_bias(kernel: str, channels: int) -> None:
    native.conv_force_kernel(kernel)
    bias = torch.randn(channels)
    output = fastconv.conv2d(torch.ones(2, 0, 4, 4), torch.ones(channels, 0, 3, 3), bias, padding=1)
    assert torch.equal(output, bias.view(1, channels, 1, 1).expand(2, channels, 4, 4))


@pytest.mark.parametrize("channels", [3, 9, 40])
@pytest.mark.parametrize("kernel", ["", *KERNELS])
def test_no_output_channels(kernel: str, channels: int) -> None:
    native.conv_force_kernel(kernel)
    input = torch.randn(2, channels, 4, 5, requires_grad=True)
    weight = torch.randn(0, channels, 3, 3, requires_grad=True)
    output = fastconv.conv2d(input, weight)
    assert output.shape == (2, 0, 2, 3)
    output.sum().backward()
    assert torch.equal(input.grad, torch.zeros_like(input))
    assert weight.grad.shape == weight.shape


@pytest.mark.parametrize("size", [(1, 2, 0, 4), (1, 2, 4, 0), (1, 2, 0, 0)])
def test_empty_image_is_all_padding(size: tuple[int, ...]) -> None:
    bias = torch.tensor([1.0, 2.0, 3.0])
    input, weight = torch.randn(size, requires_grad=True), torch.randn(3, 2, 3, 3, requires_grad=True)
    output = fastconv.conv2d(input, weight, bias, padding=2)
    assert torch.equal(output.detach(), bias.view(1, 3, 1, 1).expand_as(output))
    output.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert input.grad.shape == size


def test_unbatched() -> None:
    input, weight, bias = torch.randn(3, 6, 7), torch.randn(4, 3, 3, 3), torch.randn(4)
    assert torch.equal(fastconv.conv2d(input, weight, bias), fastconv.conv2d(input[None], weight, bias)[0])
    row, taps = input[:, 0], weight[:, :, 0]
    assert torch.equal(fastconv.conv1d(row, taps, bias), fastconv.conv1d(row[None], taps, bias)[0])


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "kernel"),
    kernels_of("images_3", "rows_of_tiles_grouped", "columns_600_depthwise", "groups_32_of_4"),
)
def test_same_result_every_time(name: str, kernel: str, threads: int) -> None:
    case = BY_NAME[name]
    torch.set_num_threads(threads)
    native.conv_force_kernel(kernel)
    p = problem(case)
    results = []
    for _ in range(3):
        input, weight = p.input.float().requires_grad_(), p.weight.float().requires_grad_()
        output = fastconv.conv2d(input, weight, **case.kwargs)
        output.backward(p.grad_output.float())
        results.append((output.detach(), input.grad, weight.grad))
    for other in results[1:]:
        for first, again in zip(results[0], other, strict=True):
            assert torch.equal(first, again)


@pytest.mark.parametrize("threads", [3, 5, 16])
@pytest.mark.parametrize("kernel", ["", *KERNELS])
def test_more_threads_than_work(kernel: str, threads: int) -> None:
    """Shares of the work that are uneven or empty."""
    native.conv_force_kernel(kernel)
    torch.set_num_threads(threads)
    for name in ("depthwise_33_w33", "rows_of_tiles_depthwise") if kernel == "depthwise" else (
        "groups_32_of_4", "rows_of_tiles_grouped", "dense_64x65_w5", "channel_passes_grouped"
    ):  # fmt: skip
        run_and_compare(BY_NAME[name], Choice(torch.float32, "contiguous", "contiguous", "channels_last", 0, True))


def test_padding_and_stride_forms() -> None:
    """A number, a list, a tuple of one: what PyTorch takes."""
    input, weight = torch.randn(1, 2, 9, 9), torch.randn(3, 2, 3, 3)
    expected = F.conv2d(input, weight, None, 2, 1, 1)
    for stride in (2, [2], (2,), (2, 2), [2, 2], torch.Size([2, 2])):
        for padding in (1, (1,), [1, 1]):
            got = fastconv.conv2d(input, weight, None, stride, padding, (1,), groups=1)
            torch.testing.assert_close(got, expected)
    assert torch.equal(fastconv.conv2d(input, weight, padding="valid"), fastconv.conv2d(input, weight))


@pytest.mark.parametrize("kernel", ["", *(k for k in KERNELS if k != "depthwise")])
@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation"),
    [
        (1, 2**31 - 1, 0, 1),
        (1, 1, 0, 2**31 - 1),
        (1, 2**31 - 1, 3, 2**31 - 1),
        (3, 10**6, 2, 1),
        (3, 1, 10**6, 10**6),
        (3, 2, 10**9, 10**9),
        (3, 10**9, 10**9, 10**9),
        (2, 2**31 - 1, 2**30, 2**31 - 1),
        (2, 2**30, 2**30 - 1, 2**31 - 3),
    ],
)
def test_enormous_stride_and_dilation(size: int, stride: int, padding: int, dilation: int, kernel: str) -> None:
    """Valid, if odd; answered at once, and rightly."""
    native.conv_force_kernel(kernel)
    results = []
    for conv2d in (fastconv.conv2d, F.conv2d):
        generator = torch.Generator().manual_seed(0)
        input = values((1, 2, 5, 6), generator).requires_grad_()
        weight = values((3, 2, size, size), generator).requires_grad_()
        output = conv2d(input, weight, None, stride, padding, dilation)
        results.append((output, *torch.autograd.grad(output.square().sum(), (input, weight))))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_enormous_dilation_of_many_channels(layout: str) -> None:
    """Where scratch is packed, and offsets of taps are integers of 32 bits."""
    generator = torch.Generator().manual_seed(0)
    input, weight = LAYOUTS[layout](values((1, 16, 5, 6), generator)), values((16, 16, 3, 3), generator)
    for step in (10**6, 10**9):
        output = fastconv.conv2d(input, weight, padding=step, dilation=step)
        torch.testing.assert_close(output, F.conv2d(input, weight, padding=step, dilation=step))
