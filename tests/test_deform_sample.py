"""deform_sample2d: deformable convolution with weights of one in as many groups as channels, which the slow reference
knows; and what is its own: many channels to an offset group and few, softmax over the taps, rules for its arguments.
"""

import random
from typing import Any

import pytest
import reference
import torch
from kernels import DTYPES
from layouts import LAYOUTS, assert_close_to_reference
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastconv

ops = torch.ops.fastconv
BIG = 2**31 - 1

#: input, kernel, stride, padding, dilation, offset groups
CASES: dict[str, tuple] = {
    "one channel": ((2, 1, 6, 7), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "16 a group": ((2, 64, 7, 9), (3, 3), (1, 1), (1, 1), (1, 1), 4),
    "odd channels": ((1, 57, 6, 8), (3, 3), (1, 1), (1, 1), (1, 1), 3),
    "5 a group": ((2, 35, 8, 7), (3, 3), (1, 1), (1, 1), (1, 1), 7),
    "70 channels": ((1, 70, 5, 9), (3, 3), (2, 1), (1, 0), (1, 2), 1),
    "2x5": ((2, 12, 9, 11), (2, 5), (1, 2), (1, 2), (2, 1), 2),
    "1x1": ((1, 20, 5, 5), (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "several tiles": ((3, 16, 13, 14), (3, 3), (1, 1), (1, 1), (1, 1), 2),
    "no image": ((0, 8, 5, 6), (3, 3), (1, 1), (1, 1), (1, 1), 1),
}


def drawn(name: str, mask: bool = True) -> tuple[list[Tensor | None], Tensor]:
    """Input, offset and mask in float64, and a gradient of the output. Places are the same numbers in every dtype."""
    (N, C, H, W), kernel, stride, padding, dilation, groups = CASES[name]
    P, Q = reference.output_size((N, C, H, W), (C, 1, *kernel), stride, (*padding, *padding), dilation)[2:]
    taps = groups * kernel[0] * kernel[1]
    input, offset, masks, grad = (
        torch.randn(size, dtype=torch.float64)
        for size in ((N, C, H, W), (N, 2 * taps, P, Q), (N, taps, P, Q), (N, C, P, Q))
    )
    return [input, (96 * offset).round() / 64, masks if mask else None], grad


def expected_of(name: str, given: list[Tensor | None], grad: Tensor, magnitudes: bool) -> list[Tensor]:
    """The output, and the gradients of what is given; or the magnitudes that are added up for them."""
    (_, C, _, _), kernel, *rest, _ = CASES[name]
    if magnitudes:
        given = [each if each is None or i == 1 else each.abs() for i, each in enumerate(given)]
        grad = grad.abs()
    leaves = [None if each is None else each.clone().requires_grad_() for each in given]
    one = torch.ones(C, 1, *kernel, dtype=torch.float64)
    output = reference.deform_conv(leaves[0], leaves[1], one, None, leaves[2], *rest, magnitudes=magnitudes)
    asked = [leaf for leaf in leaves if leaf is not None]
    return [output.detach(), *torch.autograd.grad(output, asked, grad)]


@pytest.mark.parametrize("name", CASES)
def test_against_the_reference(name: str, isa: str) -> None:
    rng = random.Random(f"{name} {isa}")
    _, kernel, *rest, _ = CASES[name]
    for dtype in DTYPES:
        drawn_, grad = drawn(name, mask=rng.random() < 0.8)
        given = [None if each is None else each.to(dtype).double() for each in drawn_]
        grad = grad.to(dtype).double()
        expected, scale = (expected_of(name, given, grad, magnitudes) for magnitudes in (False, True))
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            placed = [None if each is None else LAYOUTS[rng.choice(list(LAYOUTS))](each.to(dtype)) for each in given]
            leaves = [None if each is None else each.detach().requires_grad_() for each in placed]
            output = fastconv.deform_sample2d(leaves[0], leaves[1], leaves[2], kernel, *rest)
            asked = [leaf for leaf in leaves if leaf is not None]
            upstream = LAYOUTS[rng.choice(list(LAYOUTS))](grad.to(dtype))
            results.append([output.detach(), *torch.autograd.grad(output, asked, upstream)])
            assert output.dtype == dtype
        names = ["output", "grad_input", "grad_offset", "grad_mask"]
        for which, got, again, wanted, magnitude in zip(names, *results, expected, scale, strict=False):
            assert_close_to_reference(f"{which}, {dtype}", got, wanted, magnitude)
            assert torch.equal(got, again), which


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_memory_format_follows_the_input(layout: str) -> None:
    given, grad = drawn("16 a group")
    x, offset, mask = (LAYOUTS[layout](each).requires_grad_() for each in given)
    output = fastconv.deform_sample2d(x, offset, mask, 3, padding=1)
    wanted = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert output.is_contiguous(memory_format=wanted)
    for each in torch.autograd.grad(output, (x, offset, mask), grad):
        assert each.is_contiguous(memory_format=wanted)


def test_softmax_over_the_taps_of_a_group() -> None:
    (x, offset, mask), grad = drawn("16 a group")
    leaf, again = mask.clone().requires_grad_(), mask.clone().requires_grad_()
    output = fastconv.deform_sample2d(x, offset, leaf, 3, padding=1, softmax=True)
    shares = torch.cat([part.softmax(1) for part in again.split(9, 1)], 1)
    expected = fastconv.deform_sample2d(x, offset, shares, 3, padding=1)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(*(torch.autograd.grad(o, m, grad)[0] for o, m in ((output, leaf), (expected, again))))
    # Masks that add up to one leave a constant what it is, away from the edge.
    ones = fastconv.deform_sample2d(torch.ones_like(x), torch.zeros_like(offset), mask, 3, padding=1, softmax=True)
    torch.testing.assert_close(ones[:, :, 1:-1, 1:-1], torch.ones_like(ones[:, :, 1:-1, 1:-1]))


@pytest.mark.parametrize("mask", [False, True])
def test_derivatives(mask: bool) -> None:
    """Places between the pixels, where the derivative is one."""
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    offset = (torch.randn(1, 8, 3, 3, dtype=torch.float64).round() + 0.3).requires_grad_()
    masks = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True) if mask else None
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda *given: fastconv.deform_sample2d(*given, (1, 2), 1, (0, 1), (1, 2)), (x, offset, masks))


@pytest.mark.parametrize("last", [False, True])
def test_opcheck(last: bool) -> None:
    (x, offset, mask), grad = ([each.float() for each in drawn("2x5")[0]], drawn("2x5")[1].float())
    if last:
        x, offset, mask, grad = (each.to(memory_format=torch.channels_last) for each in (x, offset, mask, grad))
    rest = [list(each) for each in CASES["2x5"][1:5]]
    leaves = [each.detach().requires_grad_() for each in (x, offset, mask)]
    torch.library.opcheck(ops.deform_sample2d.default, (*leaves, *rest))
    torch.library.opcheck(ops._deform_sample2d_grad.default, (grad, x, offset, mask, *rest, True, True, True))
    torch.library.opcheck(ops._deform_sample2d_grad.default, (grad, x, offset, None, *rest, False, True, False))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_and_export(dynamic: bool) -> None:
    class Net(torch.nn.Module):
        def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
            return fastconv.deform_sample2d(x, offset, mask, 3, padding=1, softmax=True).sin()

    torch.compiler.reset()
    compiled = torch.compile(Net(), backend="aot_eager", fullgraph=True, dynamic=dynamic)
    given = [each.float() for each in drawn("16 a group")[0]]
    results = []
    for function in (compiled, Net()):
        leaves = [each.clone().requires_grad_() for each in given]
        output = function(*leaves)
        results.append((output.detach(), *torch.autograd.grad(output.sum(), leaves)))
    torch.testing.assert_close(*results)
    if not dynamic:
        exported = torch.export.export(Net(), tuple(given)).module()
        torch.testing.assert_close(exported(*given), Net()(*given))


def test_autocast_and_inference() -> None:
    given = [each.float() for each in drawn("16 a group")[0]]
    with torch.autocast("cpu", torch.bfloat16):
        assert fastconv.deform_sample2d(*given, 3, padding=1).dtype == torch.bfloat16
    with torch.inference_mode():
        output = fastconv.deform_sample2d(*given, 3, padding=1)
    assert torch.equal(output, fastconv.deform_sample2d(*given, 3, padding=1))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"input": (4, 6, 7)}, "input must have 4 dimensions (got [4, 6, 7])"),
    ({"offset": (36, 6, 7)}, "offset must have 4 dimensions (got [36, 6, 7])"),
    ({"input": (1, 4, 0, 7)}, "input must not be empty but for its batch (got [1, 4, 0, 7])"),
    ({"kernel_size": 0}, "kernel_size must be positive (got [0, 0])"),
    (
        {"kernel_size": (9, 3)},
        "kernel_size must not span more than the padded input, 9 > 8 in dimension 0 (got [9, 3])",
    ),
    ({"stride": 0}, "stride must be positive (got [0, 0])"),
    ({"padding": -1}, "padding must not be negative (got [-1, -1])"),
    ({"dilation": 0}, "dilation must be positive (got [0, 0])"),
    (
        {"offset": (1, 54, 6, 7)},
        "offset must have 18 channels for each of its groups, whose number divides 4 (got [1, 54, 6, 7])",
    ),
    ({"offset": (1, 36, 6, 6)}, "offset must have shape [1, 36, 6, 7] (got [1, 36, 6, 6])"),
    ({"mask": (1, 9, 6, 7)}, "mask must have shape [1, 18, 6, 7] (got [1, 9, 6, 7])"),
    (
        {"kernel_size": (46341, 46341), "padding": 46341},
        f"kernel_size must have at most {BIG} taps (got [46341, 46341])",
    ),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=[message.split(" (")[0] for _, message in BAD])
def test_errors(given: dict[str, Any], message: str) -> None:
    def call() -> Tensor:
        sizes = {"input": (1, 4, 6, 7), "offset": (1, 36, 6, 7), "mask": (1, 18, 6, 7)}
        tensors = {name: torch.zeros(given.get(name, size)) for name, size in sizes.items()}
        rest = {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1}
        return fastconv.deform_sample2d(**tensors, **{name: given.get(name, value) for name, value in rest.items()})

    for mode in (FakeTensorMode, torch.no_grad):
        with mode(), pytest.raises(RuntimeError) as raised:
            call()
        assert str(raised.value).split("\n")[0] == f"deform_sample2d: {message}", mode


def test_types_and_softmax_without_a_mask() -> None:
    x, offset = torch.zeros(1, 4, 6, 7), torch.zeros(1, 18, 6, 7)
    with pytest.raises(TypeError, match=r"deform_sample2d: mask must be a Tensor or None \(got 1\)"):
        fastconv.deform_sample2d(x, offset, 1)
    with pytest.raises(TypeError, match=r"deform_sample2d: kernel_size must be an integer or 2 integers \(got 1\.5\)"):
        fastconv.deform_sample2d(x, offset, None, 1.5)
    with pytest.raises(ValueError, match=r"deform_sample2d: mask must be there for softmax \(got None\)"):
        fastconv.deform_sample2d(x, offset, padding=1, softmax=True)
    whole = torch.zeros(1, 9, 6, 7, dtype=torch.int32)
    with pytest.raises(
        RuntimeError, match=r"deform_sample2d: mask must have the dtype of input, float32 \(got int32\)"
    ):
        fastconv.deform_sample2d(x, offset, whole, padding=1, softmax=True)
    with pytest.raises(RuntimeError, match="offset must have the dtype of input, float32"):
        fastconv.deform_sample2d(x, offset.double(), padding=1)
