"""Which kernel of the table runs, and that kernels that choose among layouts and geometries are right wherever used."""

from collections import defaultdict
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, problem
from kernels import (
    BEYOND,
    CHOOSY,
    DTYPES,
    EXTRA,
    HEAVY,
    KERNELS,
    SUPPORTED,
    dtypes_of,
    served,
)
from layouts import LAYOUTS, assert_close_to_reference

import fastconv
from fastconv import _packed
from fastconv._native import native

#: kernels of depthwise layers that know inputs that are spread out
DEPTHWISE = ("depthwise_rows", "depthwise_diagonals")
#: those of grouped layers
GROUPED = ("rows", "grouped")


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
    for number, case in enumerate(CASES):
        if case.name in HEAVY:
            continue
        p, function = problem(case), fastconv.conv1d if case.dims == 1 else fastconv.conv2d
        lists = [list(case.geometry[name]) for name in ("stride", "padding", "dilation")]
        if case.dims == 1:
            lists = [lists[0][1:], lists[1][1::2], lists[2][1:]]
        for i, layout in enumerate(["contiguous", "channels_last", "sliced", "sliced_channels_last"]):
            if (i // 2 + number) % 2:  # sliced or not, in turns
                continue
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
    steps = ["output", "gradient"]
    if kernel in ("depthwise_flat", "depthwise_diagonals", "grouped"):
        steps.append("weight gradient")
    least = 1 if kernel == "depthwise_flat" else 3  # one geometry, of which test_planes_as_one_row has more
    for step in steps:
        assert min(counts[step, dtype] for dtype in dtypes) >= least, dict(counts)


@pytest.mark.parametrize("isa", BEYOND)
@pytest.mark.parametrize(
    ("size", "weight_size", "geometry"),
    [
        pytest.param((1, 1200, 6, 9), (40, 1200, 3, 3), {"padding": 1}, id="channels in passes"),
        pytest.param((2, 3, 40, 61), (20, 3, 7, 7), {"padding": 3, "stride": 2}, id="thin"),
        pytest.param((2, 3, 20, 37), (33, 3, 3, 3), {"padding": 1}, id="folded"),
        pytest.param((1, 6, 9, 530), (140, 3, 3, 3), {"padding": 1, "stride": 2, "groups": 2}, id="folded, strided"),
        pytest.param((1, 5, 23, 18), (128, 5, 7, 2), {"padding": (3, 1), "dilation": (2, 1)}, id="folded, many parts"),
        pytest.param((2, 2, 13, 15), (34, 2, 4, 5), {"padding": 4, "dilation": (1, 3)}, id="folded, dilated"),
        pytest.param((2, 32, 12, 31), (32, 16, 5, 3), {"padding": 2, "groups": 2, "stride": (1, 3)}, id="thin, wide"),
        pytest.param((2, 64, 12, 19), (70, 64, 1, 1), {}, id="in place or planar"),
        pytest.param((2, 48, 12, 19), (33, 48, 1, 1), {"stride": 2}, id="in place or planar, strided"),
        pytest.param((1, 51, 12, 19), (16, 51, 1, 1), {"padding": 1, "stride": 3}, id="1x1, padded"),
        pytest.param((3, 70, 7, 7), (70, 70, 3, 3), {"padding": 1}, id="pieces over several rows"),
        pytest.param((1, 40, 33, 35), (40, 40, 3, 3), {"padding": 12, "dilation": 12}, id="few live taps"),
        pytest.param((2, 34, 11, 64), (40, 34, 3, 3), {"padding": 16, "dilation": 16}, id="cut where taps change"),
        pytest.param((1, 34, 19, 40), (20, 34, 3, 5), {"padding": 8, "dilation": (6, 4), "stride": 2}, id="trimmed"),
        pytest.param((2, 70, 21, 19), (40, 70, 3, 3), {"padding": 6, "dilation": 6}, id="kernel columns apart"),
        pytest.param((1, 36, 9, 530), (33, 36, 2, 3), {"padding": (0, 9), "dilation": (2, 9)}, id="apart, ragged"),
        pytest.param((1, 40, 9, 9), (40, 40, 3, 3), {"padding": 20, "dilation": 12}, id="no live tap"),
        pytest.param((1, 36, 1, 700), (36, 36, 1, 2), {"dilation": (1, 16)}, id="tiles of columns"),
        pytest.param((1, 300, 13, 19), (250, 300, 3, 3), {"padding": 6, "dilation": 6}, id="many weights"),
        pytest.param((1, 520, 5, 7), (8, 520, 3, 3), {"padding": 1}, id="weights zipped in runs"),
        pytest.param((2, 15, 9, 14), (18, 5, 5, 4), {"padding": 2, "groups": 3}, id="pairs of one channel"),
        pytest.param((3, 24, 9, 14), (18, 8, 3, 3), {"padding": 1, "groups": 3}, id="6 of 8 in a tile"),
        pytest.param((1, 600, 28, 28), (12, 600, 1, 1), {}, id="long rows in tiles of equal number"),
    ],
)
@pytest.mark.parametrize("kernel", ["pairs", "pixel_pairs"])
def test_ways_of_the_pairs_kernels(size, weight_size, geometry, kernel: str, isa: str) -> None:
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
                output = served(kernel, lambda x=x, w=w: fastconv.conv2d(x, w, **geometry))
                if output is None:
                    refused = weight.numel() * 2 > 512 << 10 or (layout == "channels_last" and weight_size[1] % 2)
                    assert kernel == "pixel_pairs"
                    assert refused
                    continue
                assert_close_to_reference("output", output.detach(), expected, scale)
                grads = served(kernel, lambda o=output, x=x, g=g: torch.autograd.grad(o, x, g))
                assert grads is not None or kernel == "pixel_pairs"
                if grads is not None:
                    assert_close_to_reference("gradient", grads[0], expected_grad, scale_grad)


@pytest.mark.parametrize("isa", [isa for isa in SUPPORTED if isa not in BEYOND])
@pytest.mark.parametrize(
    ("size", "K", "dilation"),
    [
        pytest.param((5, 64, 7, 7), 64, 1, id="several images a block"),
        pytest.param((3, 40, 13, 10), 48, 4, id="several lattices a block"),
        pytest.param((7, 510, 7, 7), 500, 1, id="stages, rounds of output channels"),
        pytest.param((1, 1035, 25, 26), 150, 6, id="stages, rounds of input channels"),
        pytest.param((1, 190, 12, 136), 185, 1, id="stages, parts of an image"),
        pytest.param((2, 600, 30, 31), 70, 1, id="stages, several blocks"),
    ],
)
def test_ways_of_the_winograd_kernel(size, K, dilation, isa: str) -> None:
    """Called and packed, with all that is finished in registers."""
    input, conv = torch.randn(size), fastconv.nn.Conv2d(size[1], K, 3, padding=dilation, dilation=dilation).eval()
    exact, place = [tensor.detach().double() for tensor in (input, conv.weight, conv.bias)], dict(padding=dilation)
    expected, scale = (
        F.conv2d(*tensors, padding=dilation, dilation=dilation) for tensors in (exact, [t.abs() for t in exact])
    )
    residual = torch.randn(expected.shape)
    for layout, threads in product(("contiguous", "channels_last"), (1, 2)):
        torch.set_num_threads(threads)
        x, r = LAYOUTS[layout](input), LAYOUTS[layout](residual)
        with fastconv.flags(kernel="winograd", isa=isa), torch.no_grad():
            called = fastconv.conv2d(x, *conv.parameters(), dilation=dilation, activation="relu", residual=r, **place)
            for _ in range(3):  # packed from the second call on
                packed = conv(x)
            assert _packed._packs[conv].pack is not None
        name = f"{layout}, {threads} threads"
        assert_close_to_reference(name, called, (expected + residual).relu(), scale + residual.abs(), patches=True)
        assert_close_to_reference(f"{name}, packed", packed, expected, scale, patches=True)


@pytest.mark.parametrize("isa", [isa for isa in SUPPORTED if isa not in BEYOND])
@pytest.mark.parametrize(
    ("size", "weight_size", "groups", "stride"),
    [
        pytest.param((3, 48, 9, 14), (60, 16, 3, 3), 3, 1, id="pixels of 16 channels a group copied whole"),
        pytest.param((3, 96, 9, 14), (60, 32, 3, 3), 3, 2, id="of 32"),
        pytest.param((2, 48, 9, 700), (60, 16, 3, 3), 3, 1, id="in tiles of columns"),
        pytest.param((3, 20, 9, 14), (130, 20, 3, 3), 1, 1, id="several tiles of three vectors"),
        pytest.param((2, 1030, 7, 9), (32, 1030, 7, 7), 1, 1, id="sums of which no thread has its own"),
        pytest.param((5, 40, 1, 900), (50, 40, 1, 1), 1, 1, id="long rows"),
    ],
)
def test_ways_of_the_channel_kernel(size, weight_size, groups, stride, isa: str) -> None:
    native.isa_select(isa)
    geometry = dict(stride=stride, padding=weight_size[2] // 2, dilation=1, groups=groups)
    lists = ([stride] * 2, [geometry["padding"]] * 4, [1, 1], groups)
    for dtype, layout, threads in product((torch.float32, torch.float16), ("contiguous", "channels_last"), (1, 2, 3)):
        torch.set_num_threads(threads)
        x, weight = torch.randn(size).to(dtype), torch.randn(weight_size).to(dtype)
        exact = [x.double(), weight.double()]
        expected, scale = F.conv2d(*exact, **geometry), F.conv2d(*(t.abs() for t in exact), **geometry)
        grad = torch.randn(expected.shape).to(dtype)
        of_weight, of_weight_scale = (
            torch.nn.grad.conv2d_weight(i, weight_size, g, **geometry)
            for i, g in ((exact[0], grad.double()), (exact[0].abs(), grad.double().abs()))
        )
        name, placed, g = f"{dtype}, {layout}, {threads} threads", LAYOUTS[layout](x), LAYOUTS[layout](grad)
        output = served("channel", lambda p=placed, w=weight: fastconv.conv2d(p, w, **geometry))
        assert_close_to_reference(name, output, expected, scale)
        got = served(
            "channel", lambda g=g, p=placed: torch.ops.fastconv._conv_grad_weight(g, p, list(weight_size), *lists)
        )
        assert_close_to_reference(f"{name}: of weight", got, of_weight, of_weight_scale)


def check_spread_out(kernels, tensors, geometry, isa: str) -> None:
    """A transposed convolution is one run of each of these kernels, in the layouts that it knows, and right."""
    exact = [tensor.double() for tensor in tensors]
    expected, scale = (F.conv_transpose2d(*t, **geometry) for t in (exact, [t.abs() for t in exact]))
    input, weight, bias = tensors
    for name, layout, threads in product(kernels, ("contiguous", "channels_last"), (1, 2)):
        if name.endswith("rows") and layout == "channels_last":
            continue
        torch.set_num_threads(threads)
        for weight_layout in ("contiguous", "channels_last", "strided"):
            x, w = LAYOUTS[layout](input), LAYOUTS[weight_layout](weight)
            with fastconv.flags(kernel=name, isa=isa):
                found = fastconv.explain("conv_transpose2d", x, w, **geometry)
                got = fastconv.conv_transpose2d(x, w, bias, **geometry)
            assert (found.way, found.kernel) == ("spread", name)
            assert_close_to_reference(f"{name}, {layout}, {weight_layout}", got, expected, scale)


@pytest.mark.parametrize("isa", [isa for isa in SUPPORTED if isa not in BEYOND])
@pytest.mark.parametrize(
    ("size", "kernel", "geometry", "kernels"),
    [
        pytest.param((2, 20, 9, 14), (3, 3), dict(stride=2, padding=1), DEPTHWISE, id="four residues"),
        pytest.param((1, 5, 3, 150), (5, 4), dict(stride=2, padding=2), DEPTHWISE, id="several chunks of a row"),
        pytest.param((1, 33, 7, 5), (7, 3), dict(stride=(3, 2), dilation=(2, 1)), DEPTHWISE, id="rows dilated"),
        pytest.param(
            (1, 4, 8, 9), (3, 3), dict(stride=(1, 2), dilation=(1, 2)), DEPTHWISE[:1], id="all taps in even columns"
        ),
        pytest.param(
            (2, 18, 7, 8), (2, 5), dict(stride=3, padding=1), DEPTHWISE[1:], id="nine residues, some without a tap"
        ),
        pytest.param((1, 18, 9, 8), (13, 11), dict(stride=2, padding=5), DEPTHWISE[1:], id="taps by the hundred"),
    ],
)
def test_depthwise_inputs_that_are_spread_out(size, kernel, geometry, kernels, isa: str) -> None:
    """What the gradient of a strided layer is, and a transposed convolution, in one run of all residues."""
    tensors = torch.randn(size), torch.randn(size[1], 1, *kernel), torch.randn(size[1])
    check_spread_out(kernels, tensors, dict(geometry, groups=size[1]), isa)


@pytest.mark.parametrize("isa", [isa for isa in SUPPORTED if isa not in BEYOND])
@pytest.mark.parametrize(
    ("size", "weight_size", "geometry", "kernels"),
    [
        pytest.param((2, 48, 9, 15), (48, 8, 3, 3), dict(stride=2, padding=1), GROUPED, id="all residues at once"),
        pytest.param(
            (1, 60, 4, 60), (60, 12, 3, 3), dict(stride=2, padding=1), GROUPED, id="at once, 12 to 20 a group"
        ),
        pytest.param((2, 20, 7, 40), (20, 3, 5, 4), dict(stride=2, padding=2), GROUPED, id="several patches a residue"),
        pytest.param(
            (1, 16, 1, 2048), (16, 1, 1, 15), dict(stride=(1, 2), padding=(0, 7)), GROUPED[:1], id="a long row"
        ),
        pytest.param((1, 24, 3, 5), (24, 4, 3, 7), dict(stride=(1, 3), output_padding=(0, 1)), GROUPED[1:], id="three"),
        pytest.param(
            (1, 24, 4, 9), (24, 3, 3, 2), dict(stride=(3, 2), dilation=(2, 1)), GROUPED[:1], id="rows dilated"
        ),
    ],
)
def test_grouped_inputs_that_are_spread_out(size, weight_size, geometry, kernels, isa: str) -> None:
    groups = 8 if weight_size[1] == 1 else 4
    tensors = torch.randn(size), torch.randn(weight_size), torch.randn(weight_size[1] * groups)
    check_spread_out(kernels, tensors, dict(geometry, groups=groups), isa)


@pytest.mark.parametrize("isa", [isa for isa in SUPPORTED if isa not in BEYOND])
@pytest.mark.parametrize(
    ("size", "weight_size", "geometry"),
    [
        pytest.param((2, 40, 5, 19), (40, 16, 2, 2), dict(stride=2), id="2x2"),
        pytest.param((1, 700, 4, 33), (700, 17, 2, 2), dict(stride=2, output_padding=1), id="in passes, a row of none"),
        pytest.param((3, 66, 2, 50), (66, 3, 3, 2), dict(stride=(3, 2), groups=2), id="three rows, two groups"),
        pytest.param((2, 130, 1, 70), (130, 16, 1, 2), dict(stride=(1, 2)), id="1x2"),
    ],
)
def test_panels_of_a_spread_out_input(size, weight_size, geometry, isa: str) -> None:
    """Kernels as large as their stride, by the kernel that makes pairs of outputs of a pixel."""
    groups = geometry.get("groups", 1)
    tensors = torch.randn(size), torch.randn(weight_size), torch.randn(weight_size[1] * groups)
    for dtype, threads in product(DTYPES, (1, 2, 3)):
        torch.set_num_threads(threads)
        given = [tensor.to(dtype) for tensor in tensors]
        exact = [tensor.double() for tensor in given]
        expected, scale = (F.conv_transpose2d(*t, **geometry) for t in (exact, [t.abs() for t in exact]))
        with fastconv.flags(kernel="panel", isa=isa):
            assert fastconv.explain("conv_transpose2d", *given, **geometry).way == "spread"
            got = fastconv.conv_transpose2d(*given, **geometry)
        assert_close_to_reference(f"{dtype}, {threads} threads", got, expected, scale)


@pytest.mark.parametrize("isa", [isa for isa in SUPPORTED if isa not in BEYOND])
@pytest.mark.parametrize("images", [1, 2])
def test_one_row_in_segments(images: int, isa: str) -> None:
    """A row that is cut where taps begin or cease to read the image is one tile, however few threads find work then."""
    input, weight = torch.randn(images, 64, 1, 256), torch.randn(32, 64, 1, 3)
    geometry = dict(padding=(0, 4), dilation=(1, 4))
    expected, scale = (
        F.conv2d(*t, **geometry)
        for t in ([input.double(), weight.double()], [input.double().abs(), weight.double().abs()])
    )
    for layout, threads in product(("contiguous", "channels_last"), (1, 2, 4)):
        torch.set_num_threads(threads)
        with fastconv.flags(kernel="channel", isa=isa):
            got = fastconv.conv2d(LAYOUTS[layout](input), weight, **geometry)
        assert_close_to_reference(f"{layout}, {threads} threads", got, expected, scale)


@pytest.mark.parametrize("isa", [isa for isa in SUPPORTED if isa not in BEYOND])
def test_rows_of_a_lattice(isa: str) -> None:
    """Rows of four outputs, every fourth row of sixteen: those of a register tile lie a vector apart."""
    input, weight = torch.randn(1, 6, 4, 1), torch.randn(6, 3, 2, 2)
    geometry = dict(stride=(4, 1), padding=(1, 0), output_padding=(3, 0), groups=3, dilation=(1, 3))
    with fastconv.flags(kernel="rows", isa=isa):
        got = fastconv.conv_transpose2d(input, weight, **geometry)
    expected, scale = (
        F.conv_transpose2d(*t, **geometry)
        for t in ([input.double(), weight.double()], [input.double().abs(), weight.double().abs()])
    )
    assert_close_to_reference("rows", got, expected, scale)


@pytest.mark.parametrize("isa", [isa for isa in SUPPORTED if isa not in BEYOND])
@pytest.mark.parametrize(
    ("size", "kernel", "stride"),
    [
        pytest.param((9, 2048, 1, 300), (1, 4), 1, id="more than a strip of all channels"),
        pytest.param((3, 32, 30, 41), (3, 3), 1, id="near pixels"),
        pytest.param((2, 48, 30, 41), (5, 5), 2, id="near pixels, strided"),
        pytest.param((2, 528, 9, 9), (7, 7), 1, id="far pixels, copied"),
        pytest.param((1, 96, 20, 20), (3, 3), 1, id="one image"),
        pytest.param((2, 43, 19, 20), (3, 3), 1, id="channels of two vectors"),
        pytest.param((2, 531, 15, 16), (3, 3), 2, id="channels of two vectors, strided"),
    ],
)
def test_ways_of_the_depthwise_weight_gradient(size, kernel, stride, isa: str) -> None:
    native.isa_select(isa)
    weight_size, padding = (size[1], 1, *kernel), [kernel[0] // 2, kernel[1] // 2]
    x = torch.randn(size)
    geometry = dict(stride=stride, padding=padding, dilation=1, groups=size[1])
    grad = torch.randn(F.conv2d(x, torch.randn(weight_size), **geometry).shape)
    expected, scale = (
        torch.nn.grad.conv2d_weight(i.double(), weight_size, g.double(), **geometry)
        for i, g in ((x, grad), (x.abs(), grad.abs()))
    )
    lists = ([stride] * 2, padding * 2, [1, 1], size[1])
    for layout, threads in product(("channels_last", "sliced_channels_last", "contiguous"), (1, 2, 3)):
        torch.set_num_threads(threads)
        i, g = LAYOUTS[layout](x), LAYOUTS[layout](grad)
        got = served(
            "depthwise_diagonals",
            lambda i=i, g=g: torch.ops.fastconv._conv_grad_weight(g, i, list(weight_size), *lists),
        )
        assert_close_to_reference(f"{layout}, {threads} threads", got, expected, scale)


@pytest.mark.parametrize("isa", [isa for isa in SUPPORTED if isa not in BEYOND])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_tensors_of_many_megabytes(stride: int, isa: str) -> None:
    """Of which what comes next is fetched while something else is computed."""
    native.isa_select(isa)
    size, geometry = (2, 43, 130, 131), dict(stride=stride, padding=1, groups=43)
    x = torch.randn(size).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(43, 1, 3, 3).requires_grad_()
    wide, wide_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    output, expected = fastconv.conv2d(x, weight, **geometry), F.conv2d(wide, wide_weight, **geometry)
    grad = torch.randn_like(output)
    output.backward(grad)
    expected.backward(grad.double())
    for got, wanted in ((output, expected), (x.grad, wide.grad), (weight.grad, wide_weight.grad)):
        torch.testing.assert_close(got, wanted.float(), rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("isa", [isa for isa in SUPPORTED if isa not in BEYOND])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "size", [(2, 3, 1, 2), (3, 33, 2, 3), (1, 5, 3, 50), (2, 17, 7, 7), (4, 18, 14, 16), (2, 3, 19, 23), (1, 2, 33, 32)]
)
def test_planes_as_one_row(size, dtype, isa: str) -> None:
    """Of every size, with infinities where only the taps that read them may find them."""
    native.isa_select(isa)
    groups = size[1]
    x, w, grad = (torch.randn(shape).to(dtype) for shape in (size, (groups, 1, 3, 3), size))
    exact = [t.double() for t in (x, w, grad)]
    x_scale, w_scale, grad_scale = (t.abs() for t in exact)
    geometry = dict(padding=1, groups=groups)
    of_input, of_weight = torch.nn.grad.conv2d_input, torch.nn.grad.conv2d_weight
    expected = (
        (F.conv2d(*exact[:2], **geometry), F.conv2d(x_scale, w_scale, **geometry)),
        (of_input(size, *exact[1:], **geometry), of_input(size, w_scale, grad_scale, **geometry)),
        (of_weight(exact[0], w.shape, exact[2], **geometry), of_weight(x_scale, w.shape, grad_scale, **geometry)),
    )
    lists = ([1, 1], [1, 1, 1, 1], [1, 1], groups)
    weight_gradient = partial(torch.ops.fastconv._conv_grad_weight, grad)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        got = (
            served("depthwise_flat", lambda: fastconv.conv2d(x, w, **geometry)),
            served("depthwise_flat", lambda: torch.ops.fastconv._conv_grad_input(grad, w, list(size), *lists)),
            served("depthwise_flat", lambda: weight_gradient(x, list(w.shape), *lists)),
        )
        for name, result, (value, scale) in zip(("output", "gradient", "of weight"), got, expected, strict=True):
            assert_close_to_reference(f"{name}, {threads} threads", result, value, scale)
    x[..., -1, -1] = torch.inf
    touched = torch.zeros(3, 3, dtype=torch.bool)
    touched[1 : 1 + min(2, size[2]), 1 : 1 + min(2, size[3])] = True
    result = served("depthwise_flat", lambda: weight_gradient(x, list(w.shape), *lists))
    assert torch.equal(result.isfinite(), ~touched.expand_as(result))


@pytest.mark.parametrize("isa", [isa for isa in SUPPORTED if isa not in BEYOND])
@pytest.mark.parametrize("after", [(1, 0), (0, 1), (2, 1), (1, 3)])
def test_planes_of_another_size(after, isa: str) -> None:
    """The operators take any padding at the end: planes of outputs may be smaller or larger than those of inputs."""
    native.isa_select(isa)
    x, w = torch.randn(2, 40, 6, 7), torch.randn(40, 1, 3, 3)
    padded, exact = F.pad(x.double(), (1, after[1], 1, after[0])).requires_grad_(), w.double().requires_grad_()
    expected = F.conv2d(padded, exact, groups=40)
    grad = torch.randn(expected.shape)
    of_input, of_weight = torch.autograd.grad(expected, (padded, exact), grad.double())
    of_input = of_input[..., 1:7, 1:8]
    ops, lists = torch.ops.fastconv, ([1, 1], [1, 1, *after], [1, 1], 40)
    torch.testing.assert_close(ops.conv(x, w, None, *lists), expected.detach().float())
    torch.testing.assert_close(ops._conv_grad_input(grad, w, list(x.shape), *lists), of_input.float())
    torch.testing.assert_close(ops._conv_grad_weight(grad, x, list(w.shape), *lists), of_weight.float())


@pytest.mark.parametrize(
    ("preferred", "size", "weight_size", "groups", "layout", "dilation"),
    [
        ("depthwise_diagonals", (2, 40, 9, 10), (40, 1, 3, 3), 40, "channels_last", 1),
        ("depthwise_diagonals", (2, 40, 9, 7), (40, 1, 5, 5), 40, "contiguous", 1),
        ("depthwise_diagonals", (2, 40, 20, 20), (40, 1, 9, 9), 40, "contiguous", 1),
        ("depthwise_pixels", (2, 40, 9, 10), (40, 1, 3, 3), 40, "channels_last", 2),
        ("depthwise", (2, 40, 20, 20), (40, 1, 9, 9), 40, "channels_last", 2),
        ("depthwise_flat", (2, 40, 9, 5), (40, 1, 3, 3), 40, "contiguous", 1),
        ("depthwise_rows", (2, 40, 19, 31), (40, 1, 3, 3), 40, "contiguous", 1),
        ("pixel", (2, 40, 9, 10), (40, 1, 3, 3), 40, "contiguous", 2),
        ("rows", (2, 48, 9, 10), (48, 4, 2, 3), 12, "contiguous", 1),
        ("rows" if "avx512" in SUPPORTED else "panel", (1, 3, 30, 40), (64, 3, 3, 3), 1, "contiguous", 1),
        ("channel", (1, 3, 30, 40), (64, 3, 3, 3), 1, "channels_last", 1),
        ("winograd_1d", (2, 48, 9, 10), (48, 4, 3, 3), 12, "contiguous", 1),
        ("winograd_1d", (2, 48, 9, 10), (48, 8, 3, 3), 6, "channels_last", 1),
        ("winograd", (2, 64, 28, 28), (64, 32, 3, 3), 2, "contiguous", 1),
        ("grouped", (2, 48, 9, 10), (48, 4, 3, 3), 12, "channels_last", 1),
        ("grouped", (2, 64, 9, 10), (64, 16, 2, 3), 4, "contiguous", 1),
        ("channel", (2, 40, 9, 10), (64, 40, 2, 3), 1, "contiguous", 1),
        ("channel", (2, 40, 9, 10), (64, 40, 2, 3), 1, "channels_last", 1),
        ("channel", (2, 200, 3, 3), (200, 200, 3, 3), 1, "channels_last", 1),
        ("winograd", (2, 64, 32, 32), (64, 64, 3, 3), 1, "contiguous", 1),
        ("winograd", (2, 64, 32, 32), (64, 64, 3, 3), 1, "channels_last", 2),
        *[("pairs", (2, 40, 9, 10), (64, 40, 3, 3), 1, layout, 1) for layout in LAYOUTS if BEYOND],
        *[
            case
            for layout in ("contiguous", "channels_last")
            for case in [
                ("winograd_bfloat16", (2, 64, 32, 32), (64, 64, 3, 3), 1, layout, 1),
                ("pixel_pairs", (2, 48, 9, 10), (48, 8, 3, 3), 6, layout, 1),
                ("pixel_pairs", (2, 40, 49, 50), (6, 40, 2, 3), 1, layout, 2),
            ]
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
