"""Transposed convolution on CPU: what test_conv.py asks of convolution, and what is its own."""

import random
from collections import defaultdict
from itertools import product

import pytest
import test_conv
import torch
import torch.nn.functional as F
from cases import TRANSPOSED_CASES, TransposedCase, problem, values
from kernels import BEYOND, CHOOSY, DTYPES, KERNELS, SUPPORTED, draw, dtypes_of, meetings_of, served, serves
from layouts import LAYOUTS, assert_close_to_reference
from torch.autograd import gradcheck, gradgradcheck

import fastconv
from fastconv._native import native
from fastconv._operator import memory_format

BY_NAME = {case.name: case for case in TRANSPOSED_CASES}


@pytest.mark.parametrize("case", TRANSPOSED_CASES, ids=str)
def test_case(case: TransposedCase) -> None:
    test_conv.test_case(case)


@pytest.mark.parametrize("case", TRANSPOSED_CASES, ids=str)
def test_reference_agrees_with_pytorch(case: TransposedCase) -> None:
    test_conv.test_reference_agrees_with_pytorch(case)


def test_every_value_of_every_axis_meets_every_kernel() -> None:
    met = defaultdict(set)
    for case in TRANSPOSED_CASES:
        for kernel, isa, again in meetings_of(case):
            if serves(kernel, case):
                for axis, value in draw(case, kernel, isa, again)._asdict().items():
                    met[kernel, isa, axis].add(value)
    for kernel in ["", *KERNELS]:
        for isa in SUPPORTED:
            if isa in BEYOND and kernel:
                continue
            assert met[kernel, isa, "dtype"] == set(DTYPES)
            assert met[kernel, isa, "threads"] == {1, 2}
            assert met[kernel, isa, "bias"] == {False, True}
            for axis in ("input", "weight", "grad"):
                assert met[kernel, isa, axis] == set(LAYOUTS), (kernel, isa, axis)


@pytest.mark.parametrize("isa", SUPPORTED)
@pytest.mark.parametrize("kernel", CHOOSY)
def test_choosy_kernel(kernel: str, isa: str) -> None:
    """With a bias, which input gradients do not have, and where the kernel serves every residue."""
    native.isa_select(isa)
    count = 0
    for case in TRANSPOSED_CASES:
        p = problem(case)
        for i, layout in enumerate(["contiguous", "channels_last", "sliced", "sliced_channels_last"]):
            dtype = DTYPES[(i + len(case.name)) % 4]
            torch.set_num_threads(1 + i % 2)
            tensors = LAYOUTS[layout](p.input.to(dtype)), p.weight.to(dtype), p.bias.to(dtype)
            output = served(kernel, lambda t=tensors, c=case: c.function(fastconv)(*t, **c.kwargs))
            if output is not None:
                assert_close_to_reference(
                    f"{case}: output", output, p.output, p.scale_output, patches=kernel.startswith("winograd")
                )
                count += 1
    least = 1 if kernel == "depthwise_flat" else 2  # of one geometry, and of dense planes
    assert count >= least or not dtypes_of(kernel, isa)


GRADIENT_CASES = {
    "4x4_stride_2": ((2, 3, 3, 4), (3, 2, 4, 4), {"stride": 2, "padding": 1}),
    "output_padding": ((1, 2, 3, 3), (2, 3, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "output_padding_beyond_padding": ((1, 2, 3, 3), (2, 2, 2, 3), {"stride": 3, "output_padding": (2, 1)}),
    "output_padding_beyond_stride": ((1, 2, 3, 3), (2, 2, 2, 2), {"dilation": 3, "padding": 1, "output_padding": 2}),
    "groups": ((2, 4, 3, 3), (4, 3, 3, 3), {"stride": 2, "groups": 2}),
    "depthwise": ((1, 4, 4, 3), (4, 1, 3, 3), {"padding": 1, "groups": 4}),
    "dilation": ((1, 2, 4, 4), (2, 2, 2, 3), {"dilation": 2, "padding": 2, "stride": (1, 2)}),
    "no_tap": ((1, 2, 2, 3), (2, 2, 1, 2), {"stride": 3}),
    "unbatched": ((3, 3, 4), (3, 2, 3, 3), {"stride": 2}),
    "1d": ((2, 3, 5), (3, 4, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "1d_unbatched": ((2, 5), (2, 1, 3), {"groups": 2}),
}


def conv_transpose(module, weight_size):
    return module.conv_transpose1d if len(weight_size) == 3 else module.conv_transpose2d


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("name", GRADIENT_CASES)
def test_gradcheck(name: str, layout: str) -> None:
    size, weight_size, kwargs = GRADIENT_CASES[name]
    function = conv_transpose(fastconv, weight_size)
    input = LAYOUTS[layout](torch.randn(size, dtype=torch.float64)).requires_grad_()
    weight = LAYOUTS[layout](torch.randn(weight_size, dtype=torch.float64)).requires_grad_()
    bias = torch.randn(weight_size[1] * kwargs.get("groups", 1), dtype=torch.float64, requires_grad=True)

    def call(*tensors):
        return function(*tensors, **kwargs)

    assert gradcheck(call, (input, weight, bias), fast_mode=True)
    assert gradgradcheck(call, (input, weight, bias), fast_mode=True)
    assert gradgradcheck(call, (input, weight), fast_mode=True)
    if layout == "contiguous":
        assert gradcheck(call, (input, weight, bias))
        for frozen in ("input", "weight"):
            i = input.detach() if frozen == "input" else input
            w = weight.detach() if frozen == "weight" else weight
            assert gradcheck(call, (i, w, bias), fast_mode=True)
            assert gradgradcheck(call, (i, w, bias), fast_mode=True)


def test_gradient_of_only_what_asks_for_one() -> None:
    for wanted in range(1, 8):
        tensors = [torch.randn(2, 4, 5, 5), torch.randn(4, 6, 3, 3), torch.randn(6)]
        mine = [t.clone().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(tensors)]
        theirs = [t.clone().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(tensors)]
        fastconv.conv_transpose2d(*mine, stride=2).square().sum().backward()
        F.conv_transpose2d(*theirs, stride=2).square().sum().backward()
        for a, b in zip(mine, theirs, strict=True):
            assert (a.grad is None) == (b.grad is None)
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["up_3x3", "up_2x2", "depthwise_odd", "up_1d_odd", "stride_5_kernel_2"])
def test_gradient_of_stride_zero(name: str) -> None:
    """What ``sum().backward()`` sends: a gradient whose elements lie in one place."""
    case = BY_NAME[name]
    p, grads = problem(case), []
    for module in (fastconv, F):
        input, weight = p.input.clone().requires_grad_(), p.weight.clone().requires_grad_()
        output = case.function(module)(input, weight, **case.kwargs)
        grads.append(torch.autograd.grad(output.sum(), (input, weight)))
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", ["", *KERNELS])
def test_positions_that_no_tap_reaches_are_the_bias(kernel: str) -> None:
    native.conv_force_kernel(kernel)
    for size, weight_size, kwargs in [
        ((2, 3, 4, 5), (3, 1, 1, 2), {"stride": (3, 4), "groups": 3}),
        ((1, 9, 4, 5), (9, 1, 2, 2), {"dilation": 9, "output_padding": 8, "groups": 9}),
    ]:
        for layout in ("contiguous", "channels_last"):
            input, weight = LAYOUTS[layout](torch.ones(size)), torch.ones(weight_size)
            bias = torch.arange(1.0, 1 + size[1])
            output = fastconv.conv_transpose2d(input, weight, bias, **kwargs)
            reached = fastconv.conv_transpose2d(input, weight, **kwargs) != 0
            assert 0 < reached.sum() < reached.numel() / 2
            expected = bias.view(1, -1, 1, 1) + reached.float()
            assert torch.equal(output, torch.where(reached, output, expected))
            assert (output > expected - 0.5).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", SUPPORTED)
def test_nothing_is_written_between_the_outputs(isa: str, dtype: torch.dtype) -> None:
    """The residues write every second column each: none may touch a neighbour's, whatever the width."""
    native.isa_select(isa)
    rng = random.Random(0)
    for width in range(1, 36):
        case = TransposedCase("", 1, rng.choice([1, 3]), 2, width, rng.choice([1, 2, 18]), 3, 2, 1, 1)
        p = problem(case)
        output = fastconv.conv_transpose2d(*(t.to(dtype) for t in (p.input, p.weight, p.bias)), **case.kwargs)
        assert_close_to_reference(f"{width}", output, p.output, p.scale_output)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", ["", *KERNELS[1:]])
def test_images_of_one_pixel(kernel: str, dtype: torch.dtype) -> None:
    """A product of matrices where the weights lie as the outputs do, in either memory format."""
    native.conv_force_kernel(kernel)
    for N, C, K, taps, kwargs in [
        (3, 20, 33, 4, {}),
        (1, 5, 1, 3, {"stride": 2}),
        (40, 3, 16, (1, 5), {}),
        (2, 4, 8, 2, {"stride": 3, "output_padding": 1}),
        (2, 4, 8, 2, {"dilation": 2, "padding": 1, "output_padding": 1}),
    ]:
        case = TransposedCase("", N, C, 1, 1, K, taps, **kwargs)
        p = problem(case)
        for formats in product([torch.contiguous_format, torch.channels_last], repeat=2):
            pair = (p.input, p.weight)
            input, weight = (t.to(dtype).contiguous(memory_format=f) for t, f in zip(pair, formats, strict=True))
            output = fastconv.conv_transpose2d(input, weight, p.bias.to(dtype), **case.kwargs)
            assert_close_to_reference(f"{case} {formats}", output, p.output, p.scale_output)
            assert output.is_contiguous(memory_format=memory_format(input))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", ["", *KERNELS[1:]])
def test_pixels_that_become_patches(kernel: str, dtype: torch.dtype) -> None:
    """The kernel is a multiple of the stride: a convolution for each residue of the rows, whose output channels are
    those of all residues of the columns, in channels_last; and between copies, where those fill vectors."""
    native.conv_force_kernel(kernel)
    for is_patches, N, C, H, W, K, taps, kwargs in [
        (True, 2, 20, 5, 7, 33, 2, {}),
        (True, 1, 3, 4, 3, 1, (3, 2), {}),
        (True, 1, 17, 1, 9, 8, (1, 4), {}),
        (True, 3, 16, 6, 1, 16, (4, 1), {}),
        (True, 1, 5, 3, 3, 3, 5, {}),
        (True, 1, 8, 4, 4, 8, 2, {"padding": 1}),
        (True, 2, 5, 4, 3, 9, (6, 8), {"stride": (3, 4), "padding": (1, 2), "output_padding": (0, 1)}),
        (True, 1, 20, 3, 4, 21, (4, 6), {"stride": (4, 2), "padding": (3, 5)}),
        (True, 1, 4, 2, 5, 21, (1, 4), {"stride": (1, 4), "padding": (0, 4)}),
        (False, 1, 8, 4, 4, 16, 4, {"stride": 2}),  # its channels are whole vectors
        (False, 1, 8, 4, 4, 9, 5, {"stride": 2}),
        (False, 1, 8, 4, 4, 21, 2, {"stride": (2, 1)}),  # no columns to put side by side
        (False, 1, 8, 4, 4, 8, 2, {"output_padding": 1}),
        (False, 1, 8, 4, 4, 8, 2, {"dilation": 2}),
        (False, 1, 8, 4, 4, 8, 2, {"groups": 2}),
    ]:
        case = TransposedCase("", N, C, H, W, K, taps, **{"stride": taps, **kwargs})
        p = problem(case)
        for formats in product([torch.contiguous_format, torch.channels_last], repeat=2):
            pair = (p.input, p.weight)
            input, weight = (t.to(dtype).contiguous(memory_format=f) for t, f in zip(pair, formats, strict=True))
            for bias in (None, p.bias.to(dtype)):
                output = fastconv.conv_transpose2d(input, weight, bias, **case.kwargs)
                expected = p.output if bias is not None else p.output - p.bias.view(-1, 1, 1)
                assert_close_to_reference(f"{case} {formats}", output, expected, p.scale_output)
                way = fastconv.explain("conv_transpose2d", input, weight, bias, **case.kwargs).way
                if not is_patches:
                    assert way not in ("patches", "turned"), case
                elif K == 1:  # one channel has any strides
                    continue
                elif formats[0] == torch.contiguous_format:
                    stride = case.kwargs["stride"]
                    columns = stride if isinstance(stride, int) else stride[1]
                    assert (way == "turned") == (columns > 1 and K % 16 > 0 and columns * K >= 16), case
                elif formats[1] == torch.channels_last:
                    assert way == "patches", case


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_reach_what_they_should(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    for groups, K, kwargs in [(9, 9, {"padding": 1}), (3, 18, {"output_padding": 1}), (1, 20, {"dilation": 3})]:
        input = values((2, 9, 6, 7), generator)
        weight = values((9, K // groups, 3, 3), generator)
        input[0, 0, 0, 0] = input[1, 4, 0, 5] = float("nan")
        input[0, 8, 5, 6], input[1, 4, 3, 3] = float("inf"), float("-inf")
        expected = F.conv_transpose2d(input, weight, None, 2, groups=groups, **kwargs)
        got = fastconv.conv_transpose2d(input.to(dtype), weight.to(dtype), None, 2, groups=groups, **kwargs)
        assert torch.equal(got.isnan(), expected.isnan())
        assert torch.equal(got.isinf(), expected.isinf())


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_output_keeps_the_memory_format(format: torch.memory_format) -> None:
    for C, K, groups in [(6, 8, 1), (6, 6, 6), (6, 12, 2)]:
        weight = torch.randn(C, K // groups, 3, 3, requires_grad=True)
        for window in (slice(None), slice(1, 6)):
            input = torch.randn(3, C, 7, 8).to(memory_format=format)[:, :, window].requires_grad_()
            output = fastconv.conv_transpose2d(input, weight, stride=2, groups=groups)
            assert output.is_contiguous(memory_format=format)
            assert output.stride() == F.conv_transpose2d(input, weight, stride=2, groups=groups).stride()
            output.backward(torch.ones_like(output))
            assert input.grad.shape == input.shape


def test_empty_batch_and_no_output_channels() -> None:
    for N, K in [(0, 3), (2, 0), (0, 0)]:
        input = torch.randn(N, 4, 5, 6, requires_grad=True)
        weight = torch.randn(4, K, 3, 3, requires_grad=True)
        bias = torch.randn(K, requires_grad=True)
        output = fastconv.conv_transpose2d(input, weight, bias, stride=2, padding=1, output_padding=1)
        assert output.shape == (N, K, 10, 12)
        output.sum().backward()
        assert torch.equal(input.grad, torch.zeros_like(input))
        assert torch.equal(weight.grad, torch.zeros_like(weight))
        assert torch.equal(bias.grad, torch.full_like(bias, N * 120))


def test_unbatched() -> None:
    input, weight, bias = torch.randn(3, 6, 7), torch.randn(3, 4, 3, 3), torch.randn(4)
    whole = fastconv.conv_transpose2d(input[None], weight, bias, 2)
    assert torch.equal(fastconv.conv_transpose2d(input, weight, bias, 2), whole[0])
    row, taps = input[:, 0], weight[:, :, 0]
    assert torch.equal(
        fastconv.conv_transpose1d(row, taps, bias, 2), fastconv.conv_transpose1d(row[None], taps, bias, 2)[0]
    )


def test_expanded_input_and_weight() -> None:
    input = torch.randn(1, 5, 1, 1, dtype=torch.float64).expand(2, 5, 6, 7)
    weight = torch.randn(5, 1, 1, 1, dtype=torch.float64).expand(5, 3, 3, 3)
    got = fastconv.conv_transpose2d(input, weight, stride=2)
    torch.testing.assert_close(got, F.conv_transpose2d(input, weight, stride=2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_same_result_every_time(threads: int) -> None:
    torch.set_num_threads(threads)
    for name in ("up_4x4", "up_3x3", "depthwise_odd", "groups_4_multiplier", "plain_wide"):
        case, results = BY_NAME[name], []
        p = problem(case)
        for _ in range(3):
            input, weight = p.input.float().requires_grad_(), p.weight.float().requires_grad_()
            output = fastconv.conv_transpose2d(input, weight, **case.kwargs)
            results.append((output, *torch.autograd.grad(output, (input, weight), p.grad_output.float())))
        for other in results[1:]:
            for first, again in zip(results[0], other, strict=True):
                assert torch.equal(first, again)


def test_argument_forms() -> None:
    """Numbers, lists, tuples of one, and the order of the arguments: PyTorch's."""
    input, weight, bias = torch.randn(1, 4, 5, 5), torch.randn(4, 3, 3, 3), torch.randn(6)
    expected = F.conv_transpose2d(input, weight, bias, 3, 1, 2, 2, 1)
    for three in (3, [3], (3,), (3, 3), torch.Size([3, 3])):
        got = fastconv.conv_transpose2d(input, weight, bias, three, (1,), [2, 2], 2, 1)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "output_padding", "dilation"),
    [
        (1, 1, 2**31 - 1, 0, 0, 1),
        (1, 1, 1, 0, 0, 2**31 - 1),
        (1, 1, 2**31 - 1, 0, 5, 2**31 - 1),
        (1, 3, 2**31 - 1, 1, 0, 1),
        (1, 2, 1, 2**28, 0, 2**29 + 3),
        (2, 2, 2**31 - 1, 2**31 - 4, 3, 2**31 - 1),
        (2, 1, 10**6, 5 * 10**5 - 2, 0, 1),
    ],
)
def test_enormous_stride_and_dilation(size, kernel, stride, padding, output_padding, dilation) -> None:
    """Valid, if odd; answered at once, and rightly."""
    results = []
    for module in (fastconv, F):
        generator = torch.Generator().manual_seed(0)
        input = values((1, 2, size), generator).requires_grad_()
        weight = values((2, 3, kernel), generator).requires_grad_()
        output = module.conv_transpose1d(input, weight, None, stride, padding, output_padding, 1, dilation)
        results.append((output, *torch.autograd.grad(output.square().sum(), (input, weight))))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)
