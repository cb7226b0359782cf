"""Denormal numbers count as zero in convolutions, and nowhere else: not after a call, not in PyTorch's threads."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from kernels import SUPPORTED, dtypes_of, kernel_meets_isa, served
from layouts import LAYOUTS
from test_isa import run_python
from torch import Tensor

import fastconv
from fastconv._native import native

ops = torch.ops.fastconv
FORMATS = ("contiguous", "channels_last")

#: Input, weight, groups; each of them with enough to do for two threads, all together for every kernel.
SHAPES = [
    ((1, 32, 14, 14), (32, 32, 3, 3), 1),
    ((2, 24, 24, 24), (24, 24, 1, 1), 1),
    ((1, 32, 24, 24), (32, 4, 3, 3), 8),
    ((1, 40, 26, 30), (40, 1, 3, 3), 40),
]


def steps_of(kernel: str, x: Tensor, weight: Tensor, grad: Tensor, groups: int) -> Iterator[tuple]:
    """What the kernel serves of a convolution and its gradients: a name, the two factors and the result."""
    rest = ([1, 1], [weight.shape[2] // 2] * 4, [1, 1], groups)
    for name, first, second, call in [
        ("output", x, weight, lambda: ops.conv(x, weight, None, *rest)),
        ("gradient", grad, weight, lambda: ops._conv_grad_input(grad, weight, x.shape, *rest)),
        ("of weight", grad, x, lambda: ops._conv_grad_weight(grad, x, weight.shape, *rest)),
    ]:
        result = served(kernel, call)
        if result is not None:
            yield name, first, second, result


@pytest.mark.parametrize(
    ("kernel", "isa"), [pair for pair in product(native.conv_kernels(), SUPPORTED) if kernel_meets_isa(*pair)]
)
def test_every_kernel_flushes(kernel: str, isa: str) -> None:
    """Of arguments that are denormal nothing comes out, nor of products that are; in every thread."""
    native.isa_select(isa)
    dtypes = [dtype for dtype in dtypes_of(kernel, isa) if dtype != torch.float16]
    met = defaultdict(set)
    for (size, weight_size, groups), dtype, layout, threads in product(SHAPES, dtypes, FORMATS, (1, 2)):
        torch.set_num_threads(threads)
        tiny = torch.finfo(dtype).tiny
        output_size = (size[0], weight_size[0], *size[2:])
        for values in [(tiny / 64, 1, 1), (1, tiny / 64, 1), (1, 1, tiny / 64), (tiny**0.5 / 64,) * 3]:
            x, weight, grad = (
                LAYOUTS[layout](torch.full(shape, value, dtype=dtype))
                for shape, value in zip((size, weight_size, output_size), values, strict=True)
            )
            for name, first, second, result in steps_of(kernel, x, weight, grad, groups):
                denormal = float(first.flatten()[0]) * float(second.flatten()[0]) < tiny
                assert bool((result == 0).all()) == denormal, (name, size, dtype, layout, threads, values)
                met[name].add((dtype, threads))
    steps = ["output", "gradient"]
    if kernel in ("depthwise_flat", "depthwise_diagonals", "depthwise", "grouped", "channel", "pixel", "general"):
        steps.append("of weight")
    assert met == {name: set(product(dtypes, (1, 2))) for name in steps}


@pytest.mark.parametrize("isa", SUPPORTED)
@pytest.mark.parametrize("layout", FORMATS)
def test_subnormal_float16_is_not_flushed(layout: str, isa: str) -> None:
    """They are ordinary numbers of the float32 that it is computed in."""
    native.isa_select(isa)
    x = torch.randint(-1023, 1024, (1, 32, 14, 14)) * 2.0**-24
    weight = torch.randint(-1, 2, (32, 32, 3, 3)).float()
    expected = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1).half()
    assert (expected.abs() < torch.finfo(torch.float16).tiny).any()
    for kernel in native.conv_kernels():
        got = served(kernel, lambda: fastconv.conv2d(LAYOUTS[layout](x.half()), weight.half(), padding=1))
        if got is not None and not kernel.startswith("winograd"):
            assert torch.equal(got, expected), kernel


def test_the_shuffle_keeps_them() -> None:
    """It moves, and computes nothing."""
    bits = torch.randint(1, 1 << 23, (2, 8, 64, 64), dtype=torch.int32)
    for format in (torch.contiguous_format, torch.channels_last):
        x = bits.view(torch.float32).contiguous(memory_format=format)
        shuffled = fastconv.channel_shuffle(x, 2)
        assert torch.equal(shuffled.view(torch.int32), fastconv.channel_shuffle(bits, 2))


#: Whether PyTorch's arithmetic knows denormal numbers in the calling thread, and in all of its own.
STATE = """
import torch, fastconv
torch.set_num_threads(2)
def state():
    few, many = torch.full((16,), 1e-40), torch.full((1 << 18,), 1e-40)
    return [bool((t * 0.5).view(torch.int32).ne(0).all()) for t in (few, many)]
def convolve():
    x, weight = torch.full((2, 32, 32, 32), 1e-40), torch.ones(32, 32, 3, 3)
    output = fastconv.conv2d(x.requires_grad_(), weight.requires_grad_())
    assert (output == 0).all()
    output.sum().backward()
"""


def test_a_call_leaves_no_trace() -> None:
    """Neither where PyTorch's threads are there before, nor where a convolution is the first that needs them."""
    for before in ("state()", ""):
        done = run_python(STATE + f"{before}\nconvolve()\nprint(state())")
        assert done.stdout.strip() == "[True, True]", (before, done.stderr)


def test_what_the_user_has_set_stays() -> None:
    done = run_python(
        STATE + "state(); assert torch.set_flush_denormal(True); convolve(); print(state()[0]);"
        "torch.set_flush_denormal(False); convolve(); print(state())"
    )
    assert done.stdout.split("\n")[:2] == ["False", "[True, True]"], done.stderr
