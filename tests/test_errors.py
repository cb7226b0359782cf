"""Bad arguments: each is refused before anything is computed, in the same words wherever it is found: in the
call, under FakeTensorMode (what torch.compile and torch.export see), and by the operator itself. And odd ones
that are valid, or too large for any machine, neither crash nor hang.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import fastconv

ops = torch.ops.fastconv
BIG = 2**31 - 1


def ones(*size: int, **kwargs: Any) -> torch.Tensor:
    return torch.ones(size, **kwargs)


@dataclass(frozen=True)
class Bad:
    """``arguments`` makes the positional arguments of ``function`` (so that a fake mode can be on)."""

    function: str
    arguments: Callable[[], tuple]
    kwargs: dict
    error: type[Exception]
    message: str

    def __str__(self) -> str:
        return self.message[:70]

    def call(self) -> Any:
        return getattr(fastconv, self.function)(*self.arguments(), **self.kwargs)


def conv2d(message: str, *, input=(1, 4, 5, 5), weight=(6, 4, 3, 3), bias=None, error=RuntimeError, **kwargs) -> Bad:
    def arguments() -> tuple:
        made = [ones(*t) if isinstance(t, tuple) else t() if callable(t) else t for t in (input, weight, bias)]
        return tuple(made)

    return Bad("conv2d", arguments, kwargs, error, f"conv2d: {message}")


def conv1d(message: str, *, input=(1, 4, 5), weight=(6, 4, 3), error=RuntimeError, **kwargs) -> Bad:
    return Bad("conv1d", lambda: (ones(*input), ones(*weight)), kwargs, error, f"conv1d: {message}")


def up2d(message: str, *, weight=(4, 6, 3, 3), **rest) -> Bad:
    bad = conv2d(message, weight=weight, **rest)
    return replace(bad, function="conv_transpose2d", message=f"conv_transpose2d: {message}")


def up1d(message: str, *, weight=(4, 6, 3), **rest) -> Bad:
    bad = conv1d(message, weight=weight, **rest)
    return replace(bad, function="conv_transpose1d", message=f"conv_transpose1d: {message}")


def of_dtype(dtype: torch.dtype, *size: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.ones(size, dtype=dtype)


def of_device(device: str, *size: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.ones(size, device=device)


X, W = (1, 4, 5, 5), (6, 4, 3, 3)

#: Refused from the arguments' Python types: there is no such call of the operator itself.
BAD_TYPES = [
    conv2d("input must be a Tensor (got 1)", input=lambda: 1, error=TypeError),
    conv2d("input must be a Tensor (got None)", input=lambda: None, error=TypeError),
    conv2d("input must be a Tensor (got [[1.0]])", input=lambda: [[1.0]], error=TypeError),
    conv2d("weight must be a Tensor (got None)", weight=lambda: None, error=TypeError),
    conv2d("weight must be a Tensor (got 'x')", weight=lambda: "x", error=TypeError),
    conv2d("bias must be a Tensor (got 0)", bias=lambda: 0, error=TypeError),
    conv2d("stride must be an integer or 2 integers (got 1.0)", stride=1.0, error=TypeError),
    conv2d("stride must be an integer or 2 integers (got (1.0, 1))", stride=(1.0, 1), error=TypeError),
    conv2d("stride must be an integer or 2 integers (got True)", stride=True, error=TypeError),
    conv2d("stride must be an integer or 2 integers (got None)", stride=None, error=TypeError),
    conv2d("stride must be an integer or 2 integers (got 'same')", stride="same", error=TypeError),
    conv2d("padding must be an integer or 2 integers (got 0.5)", padding=0.5, error=TypeError),
    conv2d("padding must be an integer or 2 integers (got None)", padding=None, error=TypeError),
    conv2d("dilation must be an integer or 2 integers (got 1.5)", dilation=1.5, error=TypeError),
    conv2d("groups must be an integer (got 1.0)", groups=1.0, error=TypeError),
    conv2d("groups must be an integer (got None)", groups=None, error=TypeError),
    conv2d("groups must be an integer (got '1')", groups="1", error=TypeError),
    conv2d("groups must be an integer (got True)", groups=True, error=TypeError),
    conv1d("stride must be an integer (got 1.0)", stride=1.0, error=TypeError),
    conv1d("padding must be an integer (got (1.0,))", padding=(1.0,), error=TypeError),
    up2d("input must be a Tensor (got 1)", input=lambda: 1, error=TypeError),
    up2d("bias must be a Tensor (got 0)", bias=lambda: 0, error=TypeError),
    up2d("padding must be an integer or 2 integers (got 'same')", padding="same", error=TypeError),
    up2d("output_padding must be an integer or 2 integers (got 0.5)", output_padding=0.5, error=TypeError),
    up2d("output_padding must be an integer or 2 integers (got None)", output_padding=None, error=TypeError),
    up2d("groups must be an integer (got 1.0)", groups=1.0, error=TypeError),
    up1d("dilation must be an integer (got (1.5,))", dilation=(1.5,), error=TypeError),
]

#: Refused by the public function alone.
BAD_FORMS = [
    conv2d("weight must have 4 dimensions (got [4, 3, 3])", weight=(4, 3, 3)),
    conv2d("weight must have 4 dimensions (got [1, 6, 4, 3, 3])", weight=(1, 6, 4, 3, 3)),
    conv2d("weight must have 4 dimensions (got [])", weight=()),
    conv1d("weight must have 3 dimensions (got [6, 4, 3, 3])", weight=W),
    conv2d("stride must have 2 elements (got [1, 1, 1])", stride=(1, 1, 1)),
    conv2d("stride must have 2 elements (got [])", stride=()),
    conv2d("padding must have 2 elements (got [1, 1, 1, 1])", padding=(1, 1, 1, 1)),
    conv2d("dilation must have 2 elements (got [1, 1, 1])", dilation=[1, 1, 1]),
    conv1d("stride must have 1 elements (got [1, 1])", stride=(1, 1)),
    conv2d("padding must be integers, 'same' or 'valid' (got 'full')", padding="full"),
    conv2d("stride must be 1 where padding is 'same' (got [2, 1])", padding="same", stride=(2, 1)),
    conv2d(f"padding must be at most {BIG} (got [{2**62}, {2**62}])", padding=2**62),
    conv2d(f"padding must be at most {BIG} (got [{2**80}, 1])", padding=(2**80, 1)),
    conv2d(f"dilation must be at most {BIG} (got [{2**62}, {2**62}])", dilation=2**62),
    conv2d(f"stride must be at most {BIG} (got [{2**31}, {2**31}])", stride=2**31),
    up2d("weight must have 4 dimensions (got [4, 3, 3])", weight=(4, 3, 3)),
    up1d("weight must have 3 dimensions (got [6, 4, 3, 3])", weight=W),
    up2d("output_padding must have 2 elements (got [0, 0, 0])", output_padding=(0, 0, 0)),
    up1d("padding must have 1 elements (got [1, 1])", padding=(1, 1)),
    up2d(f"output_padding must be at most {BIG} (got [{2**40}, 0])", output_padding=(2**40, 0)),
]

LARGER = "weight must not have a kernel larger than the padded input"
CHANNELS = "channels, those of the input divided by groups"
FIRST = "channels in its first dimension, those of the input"

#: Refused by the operator, whoever calls it: public function, shape rule and C++ in the same words.
BAD_VALUES = [
    conv2d("input must have 4 dimensions, or 3 without a batch (got [5, 5])", input=(5, 5)),
    conv2d("input must have 4 dimensions, or 3 without a batch (got [1, 1, 4, 5, 5])", input=(1, 1, 4, 5, 5)),
    conv2d("input must have 4 dimensions, or 3 without a batch (got [])", input=()),
    conv1d("input must have 3 dimensions, or 2 without a batch (got [1, 4, 5, 5])", input=X),
    conv2d("stride must be positive (got [0, 0])", stride=0),
    conv2d("stride must be positive (got [1, -1])", stride=(1, -1)),
    conv2d("dilation must be positive (got [0, 0])", dilation=0),
    conv2d("dilation must be positive (got [-2, 1])", dilation=(-2, 1)),
    conv2d("padding must not be negative (got [-1, -1, -1, -1])", padding=-1),
    conv1d("padding must not be negative (got [-1, -1])", padding=-1),
    conv2d("groups must be positive (got 0)", groups=0),
    conv2d("groups must be positive (got -2)", groups=-2),
    conv2d("groups must divide the number of output channels 6 (got 4)", groups=4, weight=(6, 1, 3, 3)),
    conv2d("groups must divide the number of input channels 4 (got 3)", groups=3, weight=(6, 1, 3, 3)),
    conv2d(
        f"weight must have 2 {CHANNELS} (got [6, 4, 3, 3])", groups=2
    ),
    conv2d(
        f"weight must have 4 {CHANNELS} (got [6, 5, 3, 3])", weight=(6, 5, 3, 3)
    ),
    conv2d(
        f"weight must have 4 {CHANNELS} (got [6, 0, 3, 3])", weight=(6, 0, 3, 3)
    ),
    conv2d("weight must not have an empty kernel (got [6, 4, 0, 3])", weight=(6, 4, 0, 3)),
    conv2d("weight must not have an empty kernel (got [6, 4, 3, 0])", weight=(6, 4, 3, 0)),
    conv2d(
        f"{LARGER}, 3 > 2 in dimension -2 (got [6, 4, 3, 3])",
        input=(1, 4, 2, 5),
    ),
    conv2d(
        f"{LARGER}, 9 > 7 in dimension -1 (got [6, 4, 3, 3])",
        dilation=(1, 4), padding=1,
    ),
    conv2d(
        f"{LARGER}, 3 > 0 in dimension -2 (got [6, 4, 3, 3])",
        input=(1, 4, 0, 5),
    ),
    conv2d(
        f"{LARGER}, {2 * BIG + 1} > 5 in dimension -2 "
        "(got [6, 4, 3, 3])", dilation=BIG,
    ),
    conv1d(
        f"{LARGER}, 3 > 2 in dimension -1 (got [6, 4, 3])",
        input=(1, 4, 2),
    ),
    conv2d("bias must have shape [6] (got [5])", bias=(5,)),
    conv2d("bias must have shape [6] (got [6, 1])", bias=(6, 1)),
    conv2d("bias must have shape [6] (got [])", bias=()),
    conv2d("weight must have the dtype of input, float64 (got float32)", input=of_dtype(torch.float64, *X)),
    conv2d(
        "weight must have the dtype of input, float32 (got bfloat16)", weight=of_dtype(torch.bfloat16, *W)
    ),
    conv2d("bias must have the dtype of input, float32 (got float16)", bias=of_dtype(torch.float16, 6)),
    *(
        conv2d(
            f"input must be float32, float64, bfloat16 or float16 (got {str(dtype).removeprefix('torch.')})",
            input=of_dtype(dtype, *X), weight=of_dtype(dtype, *W),
        )
        for dtype in (torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.complex128)
    ),
    up2d("input must have 4 dimensions, or 3 without a batch (got [5, 5])", input=(5, 5)),
    up1d("input must have 3 dimensions, or 2 without a batch (got [1, 4, 5, 5])", input=X),
    up2d("stride must be positive (got [2, 0])", stride=(2, 0)),
    up2d("dilation must be positive (got [-1, -1])", dilation=-1),
    up2d("padding must not be negative (got [-1, 0])", padding=(-1, 0)),
    up2d("output_padding must not be negative (got [-1, -1])", output_padding=-1, stride=2),
    up2d("groups must be positive (got 0)", groups=0),
    up2d("groups must divide the number of input channels 4 (got 3)", groups=3),
    up2d("groups must divide the number of input channels 4 (got 8)", groups=8),
    up2d(f"weight must have 4 {FIRST} (got [6, 4, 3, 3])", weight=W),
    up1d(f"weight must have 4 {FIRST} (got [0, 4, 3])", weight=(0, 4, 3)),
    up2d("weight must not have an empty kernel (got [4, 6, 3, 0])", weight=(4, 6, 3, 0)),
    up2d("input must have channels (got [1, 0, 5, 5])", input=(1, 0, 5, 5), weight=(0, 6, 3, 3)),
    up2d("input must not be empty in dimension -2 (got [1, 4, 0, 5])", input=(1, 4, 0, 5)),
    up1d("input must not be empty in dimension -1 (got [1, 4, 0])", input=(1, 4, 0)),
    up2d(
        "output_padding must be smaller than stride or dilation, 1 and 1 in dimension -2 (got [1, 0])",
        output_padding=(1, 0), stride=(1, 2),
    ),
    up2d(
        "output_padding must be smaller than stride or dilation, 2 and 3 in dimension -1 (got [3, 3])",
        output_padding=3, stride=(4, 2), dilation=3,
    ),
    up1d(
        "output_padding must be smaller than stride or dilation, 2 and 1 in dimension -1 (got [2])",
        output_padding=2, stride=2,
    ),
    up2d("padding must leave at least one output, not -1, in dimension -2 (got [4, 4])", padding=4),
    up2d("padding must leave at least one output, not 0, in dimension -1 (got [0, 6])", padding=(0, 6), stride=2,
         dilation=(1, 1), weight=(4, 6, 3, 4), output_padding=0, input=(1, 4, 5, 5)),
    up1d(
        f"padding must leave at least one output, not {7 - 2 * BIG}, in dimension -1 (got [{BIG}])", padding=BIG
    ),
    up2d("bias must have shape [12] (got [6])", bias=(6,), groups=2),
    up2d("bias must have shape [6] (got [6, 1])", bias=(6, 1)),
    up2d("weight must have the dtype of input, float64 (got float32)", input=of_dtype(torch.float64, *X)),
    up2d("bias must have the dtype of input, float32 (got float16)", bias=of_dtype(torch.float16, 6)),
    up2d(
        "input must be float32, float64, bfloat16 or float16 (got int64)",
        input=of_dtype(torch.int64, *X), weight=of_dtype(torch.int64, 4, 6, 3, 3),
    ),
]  # fmt: skip

#: A tensor without data beside one that has some: dispatched to the shape rule, which must not pass its
#: empty output for a result.
MIXED_DEVICES = [
    conv2d("weight must be on the device of input, cpu (got meta)", weight=of_device("meta", *W)),
    conv2d("weight must be on the device of input, meta (got cpu)", input=of_device("meta", *X)),
    conv2d("bias must be on the device of input, cpu (got meta)", bias=of_device("meta", 6)),
    up2d("weight must be on the device of input, cpu (got meta)", weight=of_device("meta", 4, 6, 3, 3)),
    up2d(
        "bias must be on the device of input, meta (got cpu)",
        input=of_device("meta", *X),
        weight=of_device("meta", 4, 6, 3, 3),
        bias=(6,),
    ),
]

SHUFFLES = [
    Bad(name, lambda size=size, groups=groups: (ones(*size), groups), {}, RuntimeError, f"{name}: {message}")
    for name in ("channel_shuffle", "channel_unshuffle")
    for size, groups, message in [
        ((4, 4), 2, "input must have more than 2 dimensions (got 2)"),
        ((), 1, "input must have more than 2 dimensions (got 0)"),
        ((1, 4, 3), 0, "groups must be positive (got 0)"),
        ((1, 4, 3), -1, "groups must be positive (got -1)"),
        ((1, 4, 3), 3, "groups must divide the number of channels 4 (got 3)"),
        ((1, 4, 3), 8, "groups must divide the number of channels 4 (got 8)"),
    ]
]


@pytest.mark.parametrize("bad", BAD_TYPES + BAD_FORMS + BAD_VALUES + MIXED_DEVICES + SHUFFLES, ids=str)
def test_call(bad: Bad) -> None:
    with pytest.raises(bad.error) as raised:
        bad.call()
    assert type(raised.value) is bad.error
    assert str(raised.value) == bad.message


@pytest.mark.parametrize("bad", BAD_TYPES + BAD_FORMS + BAD_VALUES + MIXED_DEVICES + SHUFFLES, ids=str)
def test_fake_tensors(bad: Bad) -> None:
    with FakeTensorMode(), pytest.raises(bad.error) as raised:
        bad.call()
    assert str(raised.value) == bad.message


@pytest.mark.parametrize("bad", BAD_VALUES + SHUFFLES, ids=str)
def test_meta_tensors(bad: Bad) -> None:
    arguments = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in bad.arguments()]
    with pytest.raises(bad.error) as raised:
        getattr(fastconv, bad.function)(*arguments, **bad.kwargs)
    assert str(raised.value) == bad.message


@pytest.mark.parametrize("bad", [b for b in BAD_VALUES if "without a batch" not in b.message], ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operator(bad: Bad, device: str) -> None:
    """``torch.ops.fastconv`` itself, which asks for complete lists."""
    input, weight, *bias = (t if t is None else t.to(device) for t in bad.arguments())
    dims = weight.dim() - 2

    def each(name: str, default: int) -> list[int]:
        value = bad.kwargs.get(name, default)
        return [value] * dims if isinstance(value, int) else list(value)

    tensors = input, weight, bias[0] if bias else None
    stride, padding, dilation = each("stride", 1), each("padding", 0), each("dilation", 1)
    groups = bad.kwargs.get("groups", 1)
    if bad.function.startswith("conv_transpose"):
        operator, lists = ops.conv_transpose, (stride, padding, each("output_padding", 0), dilation)
    else:
        operator, lists = ops.conv, (stride, padding * 2, dilation)
    with pytest.raises(RuntimeError) as raised:
        operator(*tensors, *lists, groups)
    assert str(raised.value) == bad.message


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ((1, 4), W, [1, 1], [0] * 4, [1, 1]),
            "input must have 4 dimensions, or 3 without a batch (got [1, 4])",
        ),
        ((X, (6, 4), [1, 1], [0] * 4, [1, 1]), "weight must have 3 or 4 dimensions (got [6, 4])"),
        ((X, W, [1], [0] * 4, [1, 1]), "stride must have 2 elements (got [1])"),
        ((X, W, [1, 1], [0] * 2, [1, 1]), "padding must have 4 elements (got [0, 0])"),
        ((X, W, [1, 1], [0] * 4, []), "dilation must have 2 elements (got [])"),
        ((X, W, [1, 1], [0, 2**31, 0, 0], [1, 1]), f"padding must be at most {BIG} (got [0, {2**31}, 0, 0])"),
        ((X, W, [1, 2**31], [0] * 4, [1, 1]), f"stride must be at most {BIG} (got [1, {2**31}])"),
        ((X, W, [1, 1], [0] * 4, [2**62, 1]), f"dilation must be at most {BIG} (got [{2**62}, 1])"),
        (
            (X, W, [1, 1], [0, 0, -BIG, -(2**31)], [1, 1]),
            f"padding must not be negative (got [0, 0, -{BIG}, -{2**31}])",
        ),
        (
            (X, W, [1, 1], [0, 0, 0, -3], [1, 1]),
            "weight must not have a kernel larger than the padded input, 3 > 2 in dimension -1 (got [6, 4, 3, 3])",
        ),
    ],
)
def test_operator_lists(arguments: tuple, message: str, device: str) -> None:
    input, weight, *lists = arguments
    with pytest.raises(RuntimeError) as raised:
        ops.conv(ones(*input, device=device), ones(*weight, device=device), None, *lists, 1)
    assert str(raised.value) == f"conv2d: {message}"


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((6, 4), [1, 1], [0, 0], [0, 0], [1, 1]), "weight must have 3 or 4 dimensions (got [6, 4])"),
        ((W, [1], [0, 0], [0, 0], [1, 1]), "stride must have 2 elements (got [1])"),
        ((W, [1, 1], [0] * 4, [0, 0], [1, 1]), "padding must have 2 elements (got [0, 0, 0, 0])"),
        ((W, [1, 1], [0, 0], [0], [1, 1]), "output_padding must have 2 elements (got [0])"),
        ((W, [1, 2**31], [0, 0], [0, 0], [1, 1]), f"stride must be at most {BIG} (got [1, {2**31}])"),
        ((W, [1, 1], [2**31, 0], [0, 0], [1, 1]), f"padding must be at most {BIG} (got [{2**31}, 0])"),
        ((W, [2, 2], [0, 0], [0, 2**40], [1, 1]), f"output_padding must be at most {BIG} (got [0, {2**40}])"),
    ],
)
def test_transposed_operator_lists(arguments: tuple, message: str, device: str) -> None:
    weight, *lists = arguments
    with pytest.raises(RuntimeError) as raised:
        ops.conv_transpose(ones(1, 6, 5, 5, device=device), ones(*weight, device=device), None, *lists, 1)
    assert str(raised.value) == f"conv_transpose2d: {message}"


def test_padding_after_may_be_negative_in_the_operator() -> None:
    """It leaves out the end of the input; gradients are zero there."""
    x, w = torch.randn(1, 4, 7, 8, requires_grad=True), torch.randn(W, requires_grad=True)
    grads = []
    for output in (
        ops.conv(x, w, None, [2, 1], [1, 1, -3, -2], [1, 1], 1),
        F.conv2d(x[:, :, :4, :6], w, None, (2, 1), 1),
    ):
        output = output[..., :4]
        grads.append((output, *torch.autograd.grad(output.square().sum(), (x, w))))
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_gradient_operators(device: str) -> None:
    """They are private, but registered, so anyone can call them."""
    rest = ([1, 1], [0] * 4, [1, 1], 1)
    x, w, grad = (ones(*size, device=device) for size in (X, W, (1, 6, 3, 3)))
    for wrong in ((1, 6, 3, 4), (2, 6, 3, 3), (1, 5, 3, 3), (1, 6, 3)):
        bad = ones(*wrong, device=device)
        message = f"conv2d: grad_output must have shape [1, 6, 3, 3] (got {list(wrong)})"
        for call in (
            lambda g=bad: ops._conv_grad_input(g, w, X, *rest),
            lambda g=bad: ops._conv_grad_weight(g, x, W, *rest),
        ):
            with pytest.raises(RuntimeError) as raised:
                call()
            assert str(raised.value) == message
    with pytest.raises(RuntimeError, match="weight must have the dtype of input, float64"):
        ops._conv_grad_input(grad.double(), w, X, *rest)
    with pytest.raises(RuntimeError, match="grad_output must have the dtype of input, float32"):
        ops._conv_grad_weight(grad.double(), x, W, *rest)
    with pytest.raises(RuntimeError, match="conv2d: input must have 4 dimensions"):
        ops._conv_grad_input(grad, w, [1, 4, 5], *rest)
    with pytest.raises(RuntimeError, match="conv2d: weight must have 3 channels"):
        ops._conv_grad_input(grad, w, [1, 3, 5, 5], *rest)
    with pytest.raises(RuntimeError, match="conv2d: weight must have 3 or 4 dimensions"):
        ops._conv_grad_weight(grad, x, [6, 4], *rest)
    with pytest.raises(RuntimeError, match="conv2d: weight must not have an empty kernel"):
        ops._conv_grad_weight(grad, x, [6, 4, 0, 3], *rest)


@pytest.mark.parametrize("bad", BAD_VALUES[::4] + BAD_FORMS[::4] + SHUFFLES[::5], ids=str)
def test_compiled(bad: Bad) -> None:
    """The compiler wraps the error; the words are in it."""
    torch._dynamo.reset()
    arguments = bad.arguments()
    function = torch.compile(lambda: getattr(fastconv, bad.function)(*arguments, **bad.kwargs), backend="eager")
    with pytest.raises(Exception) as raised:  # noqa: PT011  the type is the compiler's affair
        function()
    assert bad.message in str(raised.value)


def test_sparse_tensors_are_refused() -> None:
    x, w = ones(*X), ones(*W)
    for arguments in ((x.to_sparse(), w), (x, w.to_sparse()), (x, w, ones(6).to_sparse())):
        with pytest.raises(RuntimeError, match="SparseCPU"):
            fastconv.conv2d(*arguments)
    with pytest.raises(RuntimeError, match="SparseCPU"):
        fastconv.channel_shuffle(x.to_sparse(), 2)


@pytest.mark.parametrize("index", [np.int64(2), np.uint8(2), torch.tensor(2)], ids=lambda v: type(v).__name__)
def test_other_integers_are_integers(index: Any) -> None:
    """What PyTorch takes for an integer."""
    x, w = torch.randn(X), torch.randn(6, 2, 1, 1)
    expected = F.conv2d(x, w, None, 2, 2, 2, 2)
    torch.testing.assert_close(fastconv.conv2d(x, w, None, index, index, index, int(index)), expected)
    torch.testing.assert_close(fastconv.conv2d(x, w, None, (index, 2), [2, index], (index,), np.int64(2)), expected)


@pytest.mark.parametrize("padding", [10**6, BIG])
def test_output_beyond_memory(padding: int) -> None:
    size = 5 + 2 * padding - 2
    with pytest.raises(RuntimeError) as raised:
        fastconv.conv2d(ones(*X), ones(*W), padding=padding)
    assert str(raised.value) == f"fastconv: output must fit into memory (got [1, 6, {size}, {size}])"


def test_expanded_tensors_of_absurd_size() -> None:
    """Sizes without memory: one element, expanded. Refused or computed, never a crash."""
    one = torch.ones(1, 1, 1, 1)
    with pytest.raises(RuntimeError, match="must fit into memory"):
        fastconv.conv2d(one.expand(1, 1, 2**31, 2**31), one)
    with pytest.raises(RuntimeError, match="weight must be at most 2147483647 in every dimension"):
        fastconv.conv2d(one, one.expand(1, 1, 2**40, 1), dilation=BIG)
    with pytest.raises(RuntimeError, match="must fit into memory"):
        fastconv.conv2d(one, one.expand(2**60, 1, 1, 1))
    with pytest.raises(RuntimeError, match="kernel larger than the padded input"):
        fastconv.conv2d(one, one.expand(1, 1, 2**31 - 1, 1), dilation=BIG)
    for size in (2**31, 2**61):
        with pytest.raises(RuntimeError, match="must fit into memory"):
            fastconv.conv_transpose2d(one.expand(1, 1, 1, size), one, stride=BIG)
    output = fastconv.conv2d(one.expand(1, 1, 2**31, 2**31), one, stride=2**30)
    assert torch.equal(output, torch.ones(1, 1, 2, 2))
    output = fastconv.conv2d(one.expand(1, 1, 3, 2**33), one, padding=1, stride=BIG)
    assert output.shape == (1, 1, 1, 5)


FUZZ = """
import random, torch, torch.nn.functional as F, fastconv
from fastconv._native import native
rng = random.Random(7)
channels = lambda: rng.choice([0, 1, 2, 3, 4, 5, 9, 17])
size = lambda: rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 17])
kernel = lambda: rng.choice([0] + 3 * [1, 1, 2, 3, 3, 5])
step = lambda: rng.choice([-1, 0, 2**31 - 1, 2**31, 2**40] + 20 * [1, 1, 2, 3, 5])
computed = {"conv2d": 0, "conv_transpose2d": 0}
for i in range(9000):  # forced kernels refuse most of it
    groups = rng.choice([0, -1] + 5 * [1, 1, 1, 2, 3, 4])
    per_group, C = channels(), max(groups, 1)
    x = torch.randn(rng.choice([0, 1, 2]), C * per_group, size(), size(), dtype=torch.float64)
    if rng.random() < 0.5:
        x = x.to(memory_format=torch.channels_last)
    w_channels = per_group if rng.random() < 0.95 else channels()
    w = torch.randn(channels() * C, w_channels, kernel(), kernel(), dtype=torch.float64)
    pads = [rng.choice([-1] + 10 * [0, 0, 1, 2, 7]) for _ in "hw"]
    name, arguments = "conv2d", (x, w, None, [step(), step()], pads, [step(), step()], groups)
    if rng.random() < 0.5:  # no valid step is enormous here, because the output would be
        w = torch.randn(C * w_channels, channels(), kernel(), kernel(), dtype=torch.float64)
        strides, dilations = ([rng.choice([0, 2**31] + 20 * [1, 2, 3]) for _ in "hw"] for _ in "sd")
        more = [rng.choice([-1] + 20 * [0, 0, 1, 2]) for _ in "hw"]
        name, arguments = "conv_transpose2d", (x, w, None, strides, pads, more, groups, dilations)
    x.requires_grad_(), w.requires_grad_()
    native.conv_force_kernel(rng.choice(["", *native.conv_kernels()]))
    try:
        y = getattr(fastconv, name)(*arguments)
        y.sum().backward()
    except RuntimeError as error:
        assert str(error).startswith(("conv2d: ", name + ": ", "fastconv: output must fit")), error
        continue
    if min(*y.shape, *x.shape) > 0:
        z = getattr(F, name)(*arguments)
        torch.testing.assert_close(y, z)
        for mine, theirs in zip((x.grad, w.grad), torch.autograd.grad(z.sum(), (x, w))):
            torch.testing.assert_close(mine, theirs)
        computed[name] += 1
assert min(computed.values()) > 200, computed
"""


def test_nothing_crashes() -> None:
    """Random arguments, much of it nonsense, in a process of its own: a result like PyTorch's or a Python
    error."""
    done = subprocess.run([sys.executable, "-c", FUZZ], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:] or f"killed by signal {-done.returncode}"
