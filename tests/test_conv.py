"""Convolution on CPU against the reference and against PyTorch: every kernel on every instruction set, forward and
gradients, over dtypes, layouts and thread counts (``kernels.draw``); shapes, formats, repeatability.
"""

from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case, problem, values
from kernels import (
    BEYOND,
    BY_NAME,
    DTYPES,
    HEAVY,
    KERNELS,
    SUPPORTED,
    Choice,
    draw,
    kernels_of,
    meetings_of,
    run_and_compare,
    serves,
)
from layouts import LAYOUTS, assert_close_to_reference

import fastconv
from fastconv._native import native


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
