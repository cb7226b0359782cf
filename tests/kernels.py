"""Which kernels and instruction sets there are, what each serves, and what meets what in the convolution tests.

The full product of kernels, instruction sets, dtypes, layouts and threads is too long. Every case meets every kernel on
every instruction set; for each of these meetings dtype, layouts and threads are drawn once and for all from the names
(``draw``), and ``test_every_value_of_every_axis_meets_every_kernel`` proves that no pair was left out.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

import torch
from cases import CASES, Case, Problem, problem
from layouts import LAYOUTS, assert_close_to_reference

import fastconv
from fastconv._native import ISAS, native

SUPPORTED = ISAS[: ISAS.index(native.isa_supported()) + 1]
#: Those that only add the kernels EXTRA, for bfloat16, and otherwise run what avx512 runs.
BEYOND = [isa for isa in ("avx512_bf16", "amx") if isa in SUPPORTED]
#: Kernels of all three directions; "depthwise" wants one channel to a group, the others serve everything.
KERNELS = ["depthwise", "channel", "pixel", "general"]
EXTRA = ["winograd_bfloat16", "pixel_pairs", "pairs"]
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
