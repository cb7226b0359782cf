"""What `fastconv.explain` says is what runs, and its figures are those of the definition."""

from collections import defaultdict
from dataclasses import replace
from itertools import product
from math import prod

import pytest
import torch
from cases import CASES, TRANSPOSED_CASES, Case, TransposedCase, problem
from kernels import HEAVY, SUPPORTED
from layouts import LAYOUTS
from torch.utils.flop_counter import FlopCounterMode

import fastconv
from fastconv import _roofline
from fastconv._native import native
from fastconv.explain import Run


@pytest.mark.parametrize("isa", SUPPORTED)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_names_the_kernel_that_runs(layout: str, isa: str) -> None:
    """The named kernel gives the bits of a plain call; those it says cannot serve refuse, the others do not."""
    named = set()
    with fastconv.flags(isa=isa):
        for case in CASES:
            if case.name in HEAVY:
                continue
            p, function = problem(case), case.function(fastconv)
            x, weight = LAYOUTS[layout](p.input.float()), p.weight.float()
            found = fastconv.explain(function, x, weight, **case.kwargs)
            assert found.isa == isa
            named.add(found.kernel)
            plain = function(x, weight, **case.kwargs)
            assert (tuple(plain.shape), plain.dtype) == (found.output, found.dtype)
            with fastconv.flags(kernel=found.kernel):
                assert torch.equal(function(x, weight, **case.kwargs), plain), case
            order = native.conv_kernels()
            assert [name for name, _ in found.runs[0].passed_by] == order[: order.index(found.kernel)]
            for name, reason in found.runs[0].passed_by:
                with fastconv.flags(kernel=name):
                    if reason == "cannot serve these arguments":
                        with pytest.raises(RuntimeError, match="kernel must be able to serve"):
                            function(x, weight, **case.kwargs)
                    else:
                        assert reason == "not preferred"
    assert len(named) >= 4, named


def test_reasons() -> None:
    arguments = ("conv2d", (2, 40, 9, 10), (40, 2, 3, 3))

    def reasons() -> dict:
        return dict(fastconv.explain(*arguments, groups=20).runs[0].passed_by)

    first = fastconv.explain(*arguments, groups=20).kernel
    assert set(reasons().values()) == {"not preferred", "cannot serve these arguments"}
    with fastconv.flags(kernel="general"):
        found = fastconv.explain(*arguments, groups=20)
        assert found.kernel == "general"
        assert set(reasons().values()) == {"another kernel is asked for by name"}
    native.conv_skip_kernel(first)
    assert reasons()[first] == "switched off"
    native.conv_skip_kernel("")
    with fastconv.flags(kernel="depthwise"):
        found = fastconv.explain(*arguments, groups=20)
        assert found.kernel is None
        assert reasons()["depthwise"] == "cannot serve these arguments"
        assert "none: an error" in str(found)
    nothing = fastconv.explain("conv2d", (1, 0, 4, 4), (9, 0, 3, 3))
    assert nothing.kernel == native.conv_kernels()[-1]
    assert {reason for _, reason in nothing.runs[0].passed_by} == {"there is nothing to add up"}


@pytest.mark.parametrize("case", [*[c for c in CASES if c.name not in HEAVY][::7], *TRANSPOSED_CASES[::7]], ids=str)
def test_operations_and_bytes(case: Case) -> None:
    """PyTorch counts the same operations."""
    p, function = problem(case), case.function(fastconv)
    found = fastconv.explain(function, p.input, p.weight, p.bias, **case.kwargs)
    theirs = case.function(torch.nn.functional)
    with FlopCounterMode(display=False) as counter:
        output = theirs(p.input, p.weight, p.bias, **case.kwargs)
    assert found.flops == counter.get_total_flops()
    assert found.bytes == 8 * sum(t.numel() for t in (p.input, p.weight, p.bias, output))
    assert found.intensity == found.flops / found.bytes


# ---- transposed ----------------------------------------------------------------------------------------------------


def residues(case: TransposedCase) -> int:
    """Of the positions modulo the strides, those that a tap reaches."""
    geometry, taps = case.geometry, case.weight_size[2:]
    return prod(
        len({r * dilation % stride for r in range(size)})
        for size, stride, dilation in zip(taps, geometry["stride"], geometry["dilation"], strict=True)
    )


@pytest.mark.parametrize("isa", SUPPORTED)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_names_the_kernels_that_a_transposed_convolution_runs(layout: str, isa: str) -> None:
    """Where it is one kernel, that one gives the bits of a plain call."""
    ways = defaultdict(int)
    with fastconv.flags(isa=isa):
        for case in TRANSPOSED_CASES:
            p, function = problem(case), case.function(fastconv)
            x, weight, bias = LAYOUTS[layout](p.input.float()), p.weight.float(), p.bias.float()
            found = fastconv.explain(function, x, weight, bias, **case.kwargs)
            plain = function(x, weight, bias, **case.kwargs)
            assert (tuple(plain.shape), plain.dtype) == (found.output, found.dtype)
            ways[found.way] += 1
            order = native.conv_kernels()
            for run in found.runs:
                assert [name for name, _ in run.passed_by] == order[: order.index(run.kernel)]
            assert (len(found.runs) > 1) <= (found.way in ("residues", "patches", "turned"))
            if "+" not in found.kernel:
                with fastconv.flags(kernel=found.kernel):
                    forced = function(x, weight, bias, **case.kwargs)
                if found.way == "residues":  # which the forced kernel may serve in one run, in another order of sums
                    torch.testing.assert_close(forced, plain, rtol=1e-4, atol=1e-4)
                else:
                    assert torch.equal(forced, plain), case
    assert min(ways[way] for way in ("backwards", "spread", "residues")) >= 5, ways
    # One pixel whose channels are neighbours.
    assert ways["product"] == (layout in ("contiguous", "channels_last", "sliced_channels_last")), ways


def test_residues_of_a_transposed_convolution() -> None:
    """A kernel that knows no spread inputs serves them one by one; where some outputs are bias alone, in a run more."""
    seen = set()
    for case in TRANSPOSED_CASES:
        p, function = problem(case), case.function(fastconv)
        reached, strides = residues(case), prod(case.geometry["stride"])
        if strides == 1 or case.input_size[2:] == (1, 1):
            continue
        for bias in (None, p.bias):
            with fastconv.flags(kernel="general"):
                found = fastconv.explain(function, p.input, p.weight, bias, **case.kwargs)
            if found.way == "turned":  # its residues of the columns are channels
                continue
            assert found.way == "residues"
            nothing = [run for run in found.runs if dict(run.passed_by)[native.conv_kernels()[0]].startswith("there")]
            assert len(nothing) == (bias is not None and reached < strides), case
            # Of a small output some residues have no position.
            assert len(found.runs) - len(nothing) <= reached
            seen.add(len(found.runs) == reached)
            if len(found.runs) > 1 and not nothing:
                assert f"general, {len(found.runs)} times" in str(found)
    assert seen == {True, False}


def test_a_transposed_convolution_that_a_kernel_cannot_serve() -> None:
    with fastconv.flags(kernel="depthwise"):
        found = fastconv.explain("conv_transpose2d", (1, 8, 5, 5), (8, 8, 4, 4), stride=2)
        assert found.kernel is None
        assert "none: an error" in str(found)
        with pytest.raises(RuntimeError, match="kernel must be able to serve"):
            fastconv.conv_transpose2d(torch.ones(1, 8, 5, 5), torch.ones(8, 8, 4, 4), stride=2)


def test_figures_of_a_transposed_convolution() -> None:
    arguments = ("conv_transpose2d", (4, 64, 32, 32), (64, 48, 4, 4), (48,))
    found = fastconv.explain(*arguments, stride=2, padding=1, threads=2)
    assert (found.way, found.kernel, len(found.runs), found.threads) == ("spread", "channel", 1, 2)
    assert found.flops == 2 * 4 * 64 * 32 * 32 * 48 * 16
    assert found.output == (4, 48, 64, 64)
    assert found.runs[0].packed_bytes >= 64 * 48 * 16 * 4
    assert found.runs[0].scratch_bytes > 0
    assert "one run for all residues" in str(found)
    unbatched = fastconv.explain("conv_transpose2d", *((64, 32, 32), *arguments[2:]), stride=2, padding=1)
    assert (unbatched.output, unbatched.way) == ((48, 64, 64), "spread")
    pixel = fastconv.explain("conv_transpose2d", (16, 100, 1, 1), (100, 64, 4, 4), (64,))
    assert (pixel.way, len(pixel.runs)) == ("product", 1)
    empty = fastconv.explain("conv_transpose1d", (0, 8, 6), (8, 8, 3), stride=2)
    assert (empty.runs, empty.way, empty.output) == ((), "", (0, 8, 13))
    last = {"memory_format": torch.channels_last}
    patches = (torch.empty(1, 64, 9, 9).to(**last), torch.empty(64, 32, 2, 2).to(**last))
    assert fastconv.explain("conv_transpose2d", *patches, stride=2).way == "patches"
    turned = fastconv.explain("conv_transpose2d", (2, 8, 4, 5), (8, 9, 4, 4), stride=2)
    assert (turned.way, len(turned.runs)) == ("turned", 4)  # two images, two residues of the rows
    wide = torch.randn(1, 8, 10, 40)[..., ::2]
    assert fastconv.explain("conv_transpose2d", wide, (8, 8, 2, 2), stride=2).runs[0].copies_input


# ---- what may be given -----------------------------------------------------------------------------------------------


def test_shapes_tensors_and_options() -> None:
    x, weight = torch.randn(1, 32, 20, 20).bfloat16(), torch.randn(32, 32, 3, 3).bfloat16()
    given = fastconv.explain(fastconv.conv2d, x, weight, padding=1)
    by_shape = fastconv.explain("conv2d", x.shape, list(weight.shape), padding=1, dtype=torch.bfloat16)
    assert given == by_shape
    assert given == fastconv.explain("conv2d", x, weight.shape, padding=1)
    assert given == fastconv.explain("conv2d", x.to("meta"), weight, padding=1)
    last = fastconv.explain("conv2d", x.shape, weight.shape, padding=1, memory_format=torch.channels_last)
    assert last.memory_format == torch.channels_last
    assert last == fastconv.explain(
        "conv2d", x.float().to(memory_format=torch.channels_last), weight.float(), padding=1
    )
    assert last.dtype == torch.float32
    assert given == fastconv.explain("conv2d", x, weight, None, padding=1)
    finished = fastconv.explain("conv2d", x, weight, padding=1, activation="relu", residual=x, bias=(32,))
    assert finished.bytes == given.bytes + 2 * (x.numel() + 32)
    assert finished.operands == {"input": x.shape, "weight": weight.shape, "bias": (32,), "residual": x.shape}
    unbatched = fastconv.explain("conv2d", x[0], weight, padding=1)
    assert (unbatched.output, unbatched.kernel) == ((32, 20, 20), given.kernel)
    assert fastconv.explain("conv1d", (2, 8, 30), (8, 1, 5), groups=8, padding="same").output == (2, 8, 30)


def test_memory_is_what_the_plan_asks_for() -> None:
    """Packed weights of several tiles, scratch for each thread, nothing for the kernel without."""
    big = [fastconv.explain("conv2d", (4, 64, 56, 56), (64, 64, 3, 3), padding=1, threads=t).runs[0] for t in (1, 2)]
    assert big[0].packed_bytes >= 64 * 64 * 9 * 4
    assert big[1].scratch_bytes > big[0].scratch_bytes > 0
    with fastconv.flags(kernel="general"):
        run = fastconv.explain("conv2d", (4, 64, 56, 56), (64, 64, 3, 3), padding=1).runs[0]
    assert (run.packed_bytes, run.scratch_bytes) == (0, 0)


def test_threads() -> None:
    for threads in (1, 2, 3):
        assert fastconv.explain("conv2d", (1, 64, 56, 56), (64, 64, 3, 3), threads=threads).threads == threads
    assert fastconv.explain("conv2d", (1, 4, 5, 5), (4, 4, 3, 3), threads=3).threads == 1  # too little work
    torch.set_num_threads(1)
    assert fastconv.explain("conv2d", (1, 64, 56, 56), (64, 64, 3, 3)).threads == 1


def test_an_input_that_is_copied() -> None:
    x, weight = torch.randn(1, 8, 10, 40), torch.randn(8, 8, 3, 3)
    assert not fastconv.explain("conv2d", x, weight).runs[0].copies_input
    strided = fastconv.explain("conv2d", x[..., ::2], weight)
    assert strided.runs[0].copies_input
    assert "the input is copied" in str(strided)
    assert strided.kernel == fastconv.explain("conv2d", x[..., ::2].contiguous(), weight).kernel


def test_empty_output_runs_nothing() -> None:
    found = fastconv.explain("conv2d", (0, 8, 6, 6), (8, 8, 3, 3))
    assert (found.runs, found.kernel, found.flops, found.output) == ((), None, 0, (0, 8, 4, 4))
    assert "conv2d: input [0, 8, 6, 6]" in str(found)


def test_it_computes_nothing_and_needs_no_memory() -> None:
    found = fastconv.explain("conv2d", (1, 64, 2**17, 2**17), (64, 64, 3, 3))
    assert found.flops == 2 * 64 * 64 * 9 * (2**17 - 2) ** 2
    assert found.kernel


def test_rows_beyond_32_bits_are_not_the_panel_kernels() -> None:
    """It compares columns in lanes of 32 bits, and a 1x1 layer joins its rows into one."""
    for isa in SUPPORTED:
        with fastconv.flags(isa=isa):
            for side, panel in (1 << 10, True), (1 << 16, False):
                found = fastconv.explain("conv2d", (1, 128, side, side), (512, 128, 1, 1))
                assert (found.kernel == "panel") == panel, (isa, side)


def test_wide_pixels_are_read_by_passes() -> None:
    """A row of pixels of 16 KB each is more than a tile may read at a time, wherever they lie."""
    for isa in SUPPORTED:
        with fastconv.flags(isa=isa, kernel="channel"):
            found = fastconv.explain("conv2d", (1, 4096, 8, 1024), (512, 4096, 1, 1), stride=2, threads=1,
                                     memory_format=torch.channels_last)  # fmt: skip
            assert found.kernel == "channel", isa


@pytest.mark.parametrize(
    ("peak", "bandwidth", "seconds", "bound"), [(1e9, 1e12, 0.6, "compute"), (1e12, 1e9, 0.4, "memory")]
)
def test_roofline(peak: float, bandwidth: float, seconds: float, bound: str) -> None:
    found = fastconv.explain("conv2d", (1, 4, 5, 5), (4, 4, 3, 3))
    made = replace(found, flops=600_000_000, bytes=400_000_000, peak=peak, bandwidth=bandwidth)
    assert made.seconds == pytest.approx(seconds)
    assert made.bound == bound
    assert made.intensity == 1.5
    assert f"bound by {bound}" in str(made)


def test_limits_are_measured_once(monkeypatch) -> None:
    measured = []
    original = _roofline._fastest
    monkeypatch.setattr(_roofline, "_fastest", lambda *arguments: measured.append(arguments) or original(*arguments))
    _roofline._product.cache_clear()
    _roofline._copy.cache_clear()
    torch.set_num_threads(2)
    for _ in range(2):
        assert _roofline.peak(torch.float32, 1) > 1e8
        assert _roofline.bandwidth(1) > 1e7
    assert len(measured) == 2
    assert torch.get_num_threads() == 2
    assert _roofline.peak(torch.float16, 1) >= _roofline.peak(torch.float32, 1)
    _roofline.bandwidth(2)
    assert len(measured) == 4


def test_text() -> None:
    found = fastconv.explain("conv2d", (4, 64, 56, 56), (64, 64, 3, 3), padding=1, threads=1)
    made = replace(
        found, isa="avx2", peak=2e11, bandwidth=2e10,
        runs=(Run("channel", (("rows", "not preferred"),), 147456, 1_200_000, 1, False),),
    )  # fmt: skip
    assert str(made) == (
        "conv2d: input [4, 64, 56, 56], weight [64, 64, 3, 3] to [4, 64, 56, 56], float32, contiguous, avx2, 1 thread\n"
        "  kernel   channel\n"
        "           not rows: not preferred\n"
        "  memory   147 kB packed weights, 1.2 MB scratch\n"
        "  work     925 MFLOP, 6.57 MB, 141 FLOP/B\n"
        "  at best  4.62 ms, bound by compute (200 GFLOP/s, 20 GB/s)"
    )
    two = replace(made, runs=made.runs + (replace(made.runs[0], kernel="rows"), made.runs[0]))
    assert two.kernel == "channel+rows"


#: In the order in which they are asked.
CUDA = ["depthwise_planes", "depthwise_pixels", "implicit_gemm", "grouped", "general"]


@pytest.mark.parametrize(
    ("kernel", "sizes", "kwargs"),
    [
        ("depthwise_planes", ((2, 32, 9, 9), (32, 1, 3, 3)), dict(groups=32)),
        ("depthwise_pixels", ((2, 32, 9, 9), (32, 1, 3, 3)), dict(groups=32, memory_format=torch.channels_last)),
        ("implicit_gemm", ((2, 32, 9, 9), (32, 32, 3, 3)), dict(stride=2)),
        ("grouped", ((2, 32, 9, 9), (32, 4, 3, 3)), dict(groups=8)),
    ],
)
def test_it_names_the_kernel_that_cuda_tensors_run(kernel: str, sizes: tuple, kwargs: dict) -> None:
    found = fastconv.explain("conv2d", *sizes, device="cuda", **kwargs)
    assert (found.kernel, found.isa, found.threads) == (kernel, "cuda", 1)
    times = {"depthwise_planes": 0, "grouped": 2}  # two groups at once, with zeros
    assert found.runs[0].packed_bytes == 4 * prod(sizes[1]) * times.get(kernel, 1)
    assert "at best" not in str(found)
    assert kernel in str(found)
    turned = fastconv.explain("conv_transpose2d", *sizes, device="cuda", **{"stride": 2} | kwargs)
    assert (turned.way, turned.kernel) == ("spread", kernel)


@pytest.mark.parametrize(
    ("sizes", "kwargs", "parts"),
    [
        (((1, 512, 7, 7), (512, 512, 3, 3)), dict(padding=1), 16),  # 8 tiles of 49 pixels by 64 channels
        (((1, 512, 7, 7), (2048, 512, 1, 1)), {}, 4),
        (((1, 2048, 7, 7), (512, 2048, 1, 1)), dict(dtype=torch.bfloat16), 16),
        (((1, 256, 7, 7), (512, 256, 1, 1)), {}, 2),  # of 128 terms
        (((8, 64, 56, 56), (64, 64, 3, 3)), dict(padding=1), 1),
        (((64, 512, 7, 7), (512, 512, 3, 3)), dict(padding=1), 1),
    ],
)
def test_few_tiles_are_split_along_the_sum(sizes: tuple, kwargs: dict, parts: int) -> None:
    found = fastconv.explain("conv2d", *sizes, device="cuda", **kwargs)
    assert found.kernel == "implicit_gemm"
    copied = prod(sizes[0]) if prod(sizes[1][2:]) > 1 else 0  # to channels_last
    assert found.runs[0].scratch_bytes == 4 * ((parts * prod(found.output) if parts > 1 else 0) + copied)


def test_it_follows_the_kernel_that_is_asked_for_on_cuda() -> None:
    sizes = (2, 32, 9, 9), (32, 32, 3, 3)
    found = fastconv.explain("conv2d", *sizes, device="cuda")
    assert found.runs[0].passed_by == (
        ("depthwise_planes", "cannot serve these arguments"),
        ("depthwise_pixels", "cannot serve these arguments"),
    )
    few = fastconv.explain("conv2d", sizes[0], (4, 32, 3, 3), device="cuda")
    assert few.runs[0].passed_by[-1] == ("implicit_gemm", "not preferred")
    nothing = fastconv.explain("conv2d", (2, 0, 9, 9), (32, 0, 3, 3), device="cuda")
    assert nothing.runs[0].passed_by == tuple((name, "there is nothing to add up") for name in CUDA[:-1])
    for name in CUDA:
        with fastconv.flags(kernel=name):
            for given in (sizes, (sizes[0], (4, 32, 3, 3))):
                asked = fastconv.explain("conv2d", *given, device="cuda")
                assert asked.kernel == (None if name.startswith("depthwise") else name)
                assert {reason for other, reason in asked.runs[0].passed_by if other != name} <= {
                    "another kernel is asked for by name"
                }
            assert fastconv.explain("conv2d", (2, 0, 9, 9), (32, 0, 3, 3), device="cuda").kernel == "general"
    with fastconv.flags(kernel="pixel"):
        assert fastconv.explain("conv2d", *sizes, device="cuda").kernel is None


@pytest.mark.parametrize(
    ("arguments", "kwargs", "error", "message"),
    [
        (
            ("conv3d",),
            {},
            ValueError,
            "explain: op must be one of fastconv's conv1d, conv2d, conv_transpose1d, "
            "conv_transpose2d, or its name (got 'conv3d')",
        ),
        ((torch.nn.functional.relu,), {}, ValueError, "explain: op must be one of fastconv's conv1d"),
        ((torch.nn.functional.conv2d,), {}, ValueError, "explain: op must be one of fastconv's conv1d"),
        ((None,), {}, ValueError, "explain: op must be one of fastconv's conv1d, conv2d"),
        (("conv2d", *[(1, 4, 5, 5)] * 4), {}, TypeError, "explain: shapes must be those of input, weight, bias (got 4"),
        (
            ("conv2d", (1, 4, 5, 5), (4, 4, 3, 3)),
            dict(threads=0),
            ValueError,
            "explain: threads must be positive (got 0)",
        ),
        (
            ("conv2d", (1, 4, 5, 5), (4, 4, 3, 3)),
            dict(device="tpu"),
            ValueError,
            "explain: device must be 'cpu' or 'cuda' (got 'tpu')",
        ),
        (
            ("conv2d", torch.ones(1, 4, 5, 5), (4, 4, 3, 3)),
            dict(device="cuda"),
            ValueError,
            "explain: input must be on cuda (got cpu)",
        ),
        (("conv2d", (1, 4, 5, 5), (4, 3, 3, 3)), {}, RuntimeError, "conv2d: weight must have 4 channels"),
        (("conv2d", (1, 4, 5), (4, 4, 3, 3)), dict(stride=0), RuntimeError, "conv2d: stride must be positive"),
        (("conv2d", (1, 4, 5, 5), (4, 4, 3, 3)), dict(activation="gelu"), RuntimeError, "conv2d: activation must be"),
        (
            ("conv2d", (1, 4, 5, 5), (4, 4, 3, 3)),
            dict(residual=(1, 4, 5, 5)),
            RuntimeError,
            "conv2d: residual must have",
        ),
        (("conv2d", (1, 4, 5, 5), (4, 4, 3, 3)), dict(dtype=torch.int8), RuntimeError, "conv2d: input must be float32"),
        (
            ("conv_transpose2d", (1, 4, 5, 5), (4, 4, 3, 3)),
            dict(output_padding=1),
            RuntimeError,
            "conv_transpose2d: output_padding must be smaller",
        ),
        (
            ("conv_transpose2d", (1, 4, 5, 5), (4, 4, 3, 3)),
            dict(activation="relu"),
            TypeError,
            "conv_transpose2d() got an unexpected keyword",
        ),
        (("conv2d", (1, 4, 5, 5)), {}, TypeError, "conv2d() missing 1 required positional argument: 'weight'"),
        (("conv2d", (1, 4, 5, 5), (4, 4, 3, 3)), dict(strides=2), TypeError, "conv2d() got an unexpected keyword"),
    ],
)
def test_refused(arguments: tuple, kwargs: dict, error: type, message: str) -> None:
    with pytest.raises(error) as raised:
        fastconv.explain(*arguments, **kwargs)
    assert str(raised.value).startswith(message)


def test_dtypes_and_layouts_all_have_a_kernel() -> None:
    for dtype, format in product(
        (torch.float32, torch.float64, torch.bfloat16, torch.float16), (torch.contiguous_format, torch.channels_last)
    ):
        found = fastconv.explain("conv2d", (1, 24, 9, 9), (24, 1, 3, 3), groups=24, dtype=dtype, memory_format=format)
        assert found.kernel in native.conv_kernels()
        assert found.bytes == dtype.itemsize * 24 * (81 + 9 + 49)
