"""Measures docs/numerics.md: how far results lie from those of float64, case by case, for each kernel and dtype.

    python -m fastconv.bench.numerics

The error of a result is its largest difference from the float64 convolution of the same (rounded) arguments, over the
largest magnitude of that result; PyTorch's own operator is measured beside it.
"""

import click
import torch
import torch.nn.functional as F
from torch import Tensor

import fastconv
from fastconv._native import native
from fastconv.bench.cases import ConvCase, read_conv

CASES = ("D02", "D04", "D15", "D16", "D07", "L07", "L02", "G01", "G04", "W03", "W13", "W19")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Kernels of a family whose float32 results differ by more than the order of a sum; that which is chosen otherwise.
COMPARED = {
    "dense": ("winograd", "channel"),
    "dilated": ("winograd", "channel"),
    "grouped": ("winograd_1d", "pixel"),
}


def error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).abs().max() / expected.abs().max())


def row(case: ConvCase, dtype: torch.dtype, kernel: str) -> str | None:
    """Of standard normal inputs and weights; None where the kernel does not serve the case."""
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(case.input_shape(1), generator=generator).to(dtype)
    weight = torch.randn(case.weight_shape, generator=generator).to(dtype)
    rest = (None, case.stride, case.padding, case.dilation, case.groups)
    expected = F.conv2d(input.double(), weight.double(), *rest)
    peer = error(F.conv2d(input, weight, *rest), expected)
    if not native.conv_force_kernel(kernel):
        return None
    try:
        own = error(fastconv.conv2d(input, weight, *rest), expected)
    except RuntimeError:
        return None
    finally:
        native.conv_force_kernel("")
    name = str(dtype).removeprefix("torch.")
    return f"| {case.id} | {case.text()} | {name} | {kernel or 'chosen'} | {own:.1e} | {peer:.1e} |"


@click.command(help=__doc__.splitlines()[0] if __doc__ else None)
def main() -> None:
    cases = read_conv()
    click.echo("| case | layer | dtype | kernel | error | PyTorch |\n|---|---|---|---|---|---|")
    for id in CASES:
        for dtype in DTYPES:
            for kernel in COMPARED.get(cases[id].family, ("",)) if dtype == torch.float32 else ("",):
                if line := row(cases[id], dtype, kernel):
                    click.echo(line)


if __name__ == "__main__":
    main()
