"""Special values in convolution: infinite, NaN and subnormal ones, and every number of the 16-bit types."""

import pytest
import torch
import torch.nn.functional as F
from cases import values
from kernels import (
    BEYOND,
    CHOOSY,
    DTYPES,
    EXTRA,
    KERNELS,
    SUPPORTED,
    dtypes_of,
    served,
)
from layouts import LAYOUTS

import fastconv
from fastconv._native import native


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


def flushed(t: torch.Tensor) -> torch.Tensor:
    """With zeros in the place of denormal numbers."""
    return t.where(t.isnan() | (t.abs() >= torch.finfo(t.dtype).tiny), 0)


@pytest.mark.parametrize("isa", SUPPORTED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_value_survives(dtype: torch.dtype, isa: str) -> None:
    """A 1 x 1 kernel of one is the identity on every number of the dtype; infinite and NaN ones too, and subnormal ones
    where they are not subnormal in float32."""
    native.isa_select(isa)
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).reshape(1, 1, 256, 256)
    one = torch.ones(1, 1, 1, 1, dtype=dtype)
    for kernel in KERNELS:
        native.conv_force_kernel(kernel)
        got = fastconv.conv2d(every, one)
        assert torch.equal(got.isnan(), every.isnan())
        numbers = ~every.isnan()
        assert torch.equal(got[numbers], flushed(every.float()).to(dtype)[numbers]), kernel


@pytest.mark.parametrize("isa", SUPPORTED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_of_16_bit_results_is_that_of_pytorch(dtype: torch.dtype, isa: str) -> None:
    """To nearest even, into subnormal numbers (of float16) and over into infinity: products of two numbers round as
    PyTorch's."""
    native.isa_select(isa)
    a = torch.randint(-(2**15), 2**15, (4096,)).to(torch.int16).view(dtype).nan_to_num()
    for scale in (2.0**-10, 1.0, 3.0, 2.0**10 + 2.0**3):
        weight = torch.full((1, 1, 1), scale, dtype=dtype)
        expected = flushed(flushed(a.float()) * weight.float().view(())).to(dtype)
        got = fastconv.conv1d(a.view(1, 1, -1), weight).view(-1)
        assert torch.equal(got, expected)
