"""channel_shuffle and channel_unshuffle: every dtype, rank and memory format against the reference and
PyTorch.

They only move elements, so results are compared bit for bit.
"""

import pytest
import reference
import torch
import torch.nn.functional as F
from kernels import SUPPORTED
from layouts import LAYOUTS
from torch.autograd import gradcheck, gradgradcheck

import fastconv
from fastconv._native import native

DTYPES = [
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.int8, torch.int16,
    torch.int32, torch.int64, torch.bool, torch.complex64, torch.complex128,
]  # fmt: skip
SIZES = [
    (2, 12, 5), (1, 7, 1), (2, 24, 3, 5), (1, 40, 1, 1), (3, 8, 7, 7), (2, 15, 4, 1), (1, 64, 2, 3),
    (2, 6, 2, 3, 2), (1, 16, 1, 1, 1), (1, 24, 35, 47), (5, 36, 1, 33),
]  # fmt: skip
SHUFFLES = [
    (fastconv.channel_shuffle, reference.channel_shuffle),
    (fastconv.channel_unshuffle, reference.channel_unshuffle),
]


def numbers(size, dtype: torch.dtype) -> torch.Tensor:
    drawn = torch.randint(-100, 100, size)
    return drawn > 0 if dtype == torch.bool else drawn.to(dtype)


def divisors(C: int) -> list[int]:
    return sorted({g for g in (1, 2, 3, 4, 5, 8, 16, C) if C % g == 0})


@pytest.mark.parametrize("isa", SUPPORTED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_size_and_layout(dtype: torch.dtype, isa: str) -> None:
    native.isa_select(isa)
    for i, size in enumerate(SIZES):
        torch.set_num_threads(1 + i % 2)
        plain = numbers(size, dtype)
        inputs = {"contiguous": plain, "every second column": plain.repeat_interleave(2, dim=-1)[..., ::2]}
        if dtype.is_floating_point or dtype.is_complex:  # the others lie in NaN
            inputs |= {name: layout(plain) for name, layout in LAYOUTS.items()}
        for groups in divisors(size[1]):
            for function, expected in SHUFFLES:
                right = expected(plain, groups)
                for name, input in inputs.items():
                    assert torch.equal(function(input, groups), right), (size, name, groups)
        for name, input in inputs.items():
            assert torch.equal(input, plain), f"{name}: the input was written"


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("window", [slice(None), slice(1, 5)])
def test_strides_are_those_of_pytorch(format: torch.memory_format, window: slice) -> None:
    input = torch.randn(2, 12, 6, 7).to(memory_format=format)[:, :, window]
    for groups in divisors(12):
        expected = F.channel_shuffle(input, groups)
        got = fastconv.channel_shuffle(input, groups)
        assert torch.equal(got, expected)
        assert got.stride() == expected.stride()
        assert fastconv.channel_unshuffle(got, groups).stride() == expected.stride()


@pytest.mark.parametrize("size", [(0, 6, 4, 4), (2, 6, 0, 4), (2, 6, 4, 0), (0, 6, 3), (2, 0, 4, 4)])
def test_empty(size: tuple[int, ...]) -> None:
    input = torch.randn(size, requires_grad=True)
    for function, _ in SHUFFLES:
        output = function(input, 2)
        assert output.shape == size
        output.sum().backward()
        assert input.grad.shape == size


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 12])
def test_unshuffle_undoes_shuffle(groups: int) -> None:
    input = torch.randn(2, 12, 3, 4)
    assert torch.equal(fastconv.channel_unshuffle(fastconv.channel_shuffle(input, groups), groups), input)
    assert torch.equal(fastconv.channel_shuffle(fastconv.channel_unshuffle(input, groups), groups), input)


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("function", [f for f, _ in SHUFFLES])
def test_gradient(function, layout: str) -> None:
    for size, dtype in [
        ((2, 6, 2, 3), torch.float64),
        ((1, 6, 4), torch.float64),
        ((1, 6, 2, 1), torch.complex128),
    ]:
        input = LAYOUTS[layout](torch.randn(size, dtype=dtype)).requires_grad_()
        assert gradcheck(lambda x: function(x, 3), input)
        assert gradgradcheck(lambda x: function(x, 3), input)


def test_gradient_of_stride_zero() -> None:
    for function, _ in SHUFFLES:
        input = torch.randn(2, 6, 3, 3, requires_grad=True)
        function(input, 2).sum().backward()
        assert torch.equal(input.grad, torch.ones_like(input))


def test_result_owns_its_memory() -> None:
    """Also where nothing moves: writing the result must not write the input."""
    input = torch.zeros(1, 4, 2, 2)
    for groups in (1, 4):
        fastconv.channel_shuffle(input, groups).fill_(1)
        fastconv.channel_unshuffle(input, groups).fill_(1)
    assert not input.any()
