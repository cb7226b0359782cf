"""What deformable convolution refuses: every rule of csrc/deform/check.h and op_cpu.cpp in the same words wherever it
is found, in the call, under FakeTensorMode, by the operators and by their shape rules. And the module's own rules.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastconv

ops = torch.ops.fastconv
BIG = 2**31 - 1
#: Shapes of what is valid; each case changes some. A tuple of several numbers is a shape.
VALID: dict[str, Any] = {
    "input": (2, 4, 6, 7),
    "offset": (2, 36, 6, 7),
    "weight": (6, 2, 3, 3),
    "bias": (6,),
    "mask": (2, 18, 6, 7),
    "stride": [1, 1],
    "padding": [1, 1],
    "dilation": [1, 1],
}
TENSORS = ("input", "offset", "weight", "bias", "mask")
LISTS = ("stride", "padding", "dilation")
GROUPS = "offset must have 18 channels for each of its groups, whose number divides 4"
SPAN = "weight must not span more than the padded input"
EMPTY = "input must not be empty but for its batch"

Bad = tuple[dict[str, Any], str]

#: Refused by both operators, whoever calls them.
BAD: list[Bad] = [
    ({"input": (4, 6, 7)}, "input must have 4 dimensions (got [4, 6, 7])"),
    ({"input": (2, 4, 6, 7, 1)}, "input must have 4 dimensions (got [2, 4, 6, 7, 1])"),
    ({"weight": (6, 2, 3)}, "weight must have 4 dimensions (got [6, 2, 3])"),
    ({"offset": (36, 6, 7)}, "offset must have 4 dimensions (got [36, 6, 7])"),
    ({"input": (4, 6, 7), "weight": (6,), "offset": ()}, "input must have 4 dimensions (got [4, 6, 7])"),
    ({"weight": (6,), "offset": ()}, "weight must have 4 dimensions (got [6])"),
    ({"dtype": torch.int64}, "input must be float32, float64, bfloat16 or float16 (got int64)"),
    ({"dtype": torch.complex64}, "input must be float32, float64, bfloat16 or float16 (got complex64)"),
    ({"offset.dtype": torch.float64}, "offset must have the dtype of input, float32 (got float64)"),
    ({"weight.dtype": torch.bfloat16}, "weight must have the dtype of input, float32 (got bfloat16)"),
    ({"mask.dtype": torch.float16}, "mask must have the dtype of input, float32 (got float16)"),
    ({"offset.dtype": torch.float64, "stride": [0, 1]}, "offset must have the dtype of input, float32 (got float64)"),
    ({"stride": [0, 1]}, "stride must be positive (got [0, 1])"),
    ({"stride": [1, -2]}, "stride must be positive (got [1, -2])"),
    ({"padding": [-1, 1]}, "padding must not be negative (got [-1, 1])"),
    ({"dilation": [1, 0]}, "dilation must be positive (got [1, 0])"),
    ({"stride": [1, 1, 1]}, "stride must have 2 elements (got [1, 1, 1])"),
    ({"padding": []}, "padding must have 2 elements (got [])"),
    ({"dilation": [1, 1, 1]}, "dilation must have 2 elements (got [1, 1, 1])"),
    ({"stride": [1, BIG + 1]}, f"stride must be at most {BIG} (got [1, {BIG + 1}])"),
    ({"padding": [2**40, 1]}, f"padding must be at most {BIG} (got [{2**40}, 1])"),
    ({"dilation": [1, 2**62]}, f"dilation must be at most {BIG} (got [1, {2**62}])"),
    ({"input": (2, 0, 6, 7)}, f"{EMPTY} (got [2, 0, 6, 7])"),
    ({"input": (2, 4, 0, 7)}, f"{EMPTY} (got [2, 4, 0, 7])"),
    ({"input": (0, 4, 6, 0)}, f"{EMPTY} (got [0, 4, 6, 0])"),
    ({"weight": (0, 2, 3, 3)}, "weight must not be empty (got [0, 2, 3, 3])"),
    ({"weight": (6, 0, 3, 3)}, "weight must not be empty (got [6, 0, 3, 3])"),
    ({"weight": (6, 2, 0, 3)}, "weight must not be empty (got [6, 2, 0, 3])"),
    ({"weight": (6, 2, 3, 0)}, "weight must not be empty (got [6, 2, 3, 0])"),
    (
        {"input": (2, 4, 2**16, 2**15)},
        f"input must have at most {BIG} positions a plane (got [2, 4, {2**16}, {2**15}])",
    ),
    ({"weight": (6, 3, 3, 3)}, "weight must have a divisor of input's 4 channels in dimension 1 (got [6, 3, 3, 3])"),
    ({"weight": (6, 8, 3, 3)}, "weight must have a divisor of input's 4 channels in dimension 1 (got [6, 8, 3, 3])"),
    ({"weight": (5, 2, 3, 3)}, "weight must have a multiple of 2 output channels, its groups (got [5, 2, 3, 3])"),
    ({"weight": (6, 1, 3, 3)}, "weight must have a multiple of 4 output channels, its groups (got [6, 1, 3, 3])"),
    (
        {"weight": (6, 2, BIG + 1, 1)},
        f"weight must be at most {BIG} in every dimension (got [6, 2, {BIG + 1}, 1])",
    ),
    (
        {"weight": (6, 2, 1, BIG + 1), "padding": [1, BIG]},
        f"weight must be at most {BIG} in every dimension (got [6, 2, 1, {BIG + 1}])",
    ),
    ({"weight": (6, 2, 9, 3)}, f"{SPAN}, 9 > 8 in dimension 0 (got [6, 2, 9, 3])"),
    ({"weight": (6, 2, 3, 10)}, f"{SPAN}, 10 > 9 in dimension 1 (got [6, 2, 3, 10])"),
    ({"padding": [1, 0], "dilation": [1, 4]}, f"{SPAN}, 9 > 7 in dimension 1 (got [6, 2, 3, 3])"),
    ({"dilation": [BIG, 1]}, f"{SPAN}, {2 * BIG + 1} > 8 in dimension 0 (got [6, 2, 3, 3])"),
    ({"offset": (2, 0, 6, 7)}, f"{GROUPS} (got [2, 0, 6, 7])"),
    ({"offset": (2, 17, 6, 7)}, f"{GROUPS} (got [2, 17, 6, 7])"),
    ({"offset": (2, 54, 6, 7)}, f"{GROUPS} (got [2, 54, 6, 7])"),
    ({"offset": (2, 144, 6, 7)}, f"{GROUPS} (got [2, 144, 6, 7])"),
    ({"offset": (1, 36, 6, 7)}, "offset must have shape [2, 36, 6, 7] (got [1, 36, 6, 7])"),
    ({"offset": (2, 36, 6, 6)}, "offset must have shape [2, 36, 6, 7] (got [2, 36, 6, 6])"),
    ({"offset": (2, 36, 1, 7)}, "offset must have shape [2, 36, 6, 7] (got [2, 36, 1, 7])"),
    ({"stride": [2, 3]}, "offset must have shape [2, 36, 3, 3] (got [2, 36, 6, 7])"),
    ({"padding": [BIG, 1]}, f"offset must have shape [2, 36, {2 * BIG + 4}, 7] (got [2, 36, 6, 7])"),
    ({"mask": (2, 36, 6, 7)}, "mask must have shape [2, 18, 6, 7] (got [2, 36, 6, 7])"),
    ({"mask": (1, 18, 6, 7)}, "mask must have shape [2, 18, 6, 7] (got [1, 18, 6, 7])"),
    ({"mask": (2, 18, 6)}, "mask must have shape [2, 18, 6, 7] (got [2, 18, 6])"),
]
#: Those of the forward operator alone.
BAD_BIAS: list[Bad] = [
    ({"bias": (5,)}, "bias must have shape [6] (got [5])"),
    ({"bias": (6, 1)}, "bias must have shape [6] (got [6, 1])"),
    ({"bias": ()}, "bias must have shape [6] (got [])"),
    ({"bias.dtype": torch.float64}, "bias must have the dtype of input, float32 (got float64)"),
]
#: Those of the gradient's operator alone.
BAD_GRAD: list[Bad] = [
    ({"grad_output": (2, 6, 6, 6)}, "grad_output must have shape [2, 6, 6, 7] (got [2, 6, 6, 6])"),
    ({"grad_output": (2, 4, 6, 7)}, "grad_output must have shape [2, 6, 6, 7] (got [2, 4, 6, 7])"),
    ({"grad_output": (6, 6, 7)}, "grad_output must have shape [2, 6, 6, 7] (got [6, 6, 7])"),
    ({"grad_output.dtype": torch.float64}, "grad_output must have the dtype of input, float32 (got float64)"),
    ({"mask": None}, "mask must be there for its gradient (got none)"),
]
#: Those of the public function alone.
TYPES: list[Bad] = [
    ({"input": "x"}, "input must be a Tensor (got 'x')"),
    ({"offset": None}, "offset must be a Tensor (got None)"),
    ({"weight": 3}, "weight must be a Tensor (got 3)"),
    ({"bias": True}, "bias must be a Tensor or None (got True)"),
    ({"mask": "m"}, "mask must be a Tensor or None (got 'm')"),
    ({"stride": 1.0}, "stride must be an integer or 2 integers (got 1.0)"),
    ({"stride": (1, 2.0)}, "stride must be an integer or 2 integers (got (1, 2.0))"),
    ({"padding": "same"}, "padding must be an integer or 2 integers (got 'same')"),
    ({"dilation": True}, "dilation must be an integer or 2 integers (got True)"),
    ({"dilation": None}, "dilation must be an integer or 2 integers (got None)"),
]
FORMS: list[Bad] = [
    ({"stride": (1, 1, 1)}, "stride must have 2 elements (got [1, 1, 1])"),
    ({"padding": ()}, "padding must have 2 elements (got [])"),
    ({"dilation": 2**70}, f"dilation must be at most {BIG} (got [{2**70}, {2**70}])"),
    ({"stride": 0}, "stride must be positive (got [0, 0])"),
    ({"padding": -3}, "padding must not be negative (got [-3, -3])"),
]


def arguments(bad: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
    """Tensors of one element that is everywhere: some are larger than memory."""
    made = {"grad_output": (2, 6, 6, 7), **VALID, **{name: value for name, value in bad.items() if "." not in name}}
    dtype = made.pop("dtype", torch.float32)
    for name in ("grad_output", *TENSORS):
        if isinstance(made[name], tuple):
            of = bad.get(f"{name}.dtype", dtype)
            made[name] = torch.ones((), dtype=of, device=device).expand(made[name])
    return made


def refusal(call: Callable[[], Any], error: type[Exception] = RuntimeError) -> str:
    with pytest.raises(error) as raised:
        call()
    assert type(raised.value) is error
    return str(raised.value)


def public(given: dict[str, Any]) -> Tensor:
    return fastconv.deform_conv2d(**{name: given[name] for name in (*TENSORS, *LISTS)})


def operator(given: dict[str, Any]) -> Tensor:
    return ops.deform_conv2d(*(given[name] for name in (*TENSORS, *LISTS)))


def operator_of_grad(given: dict[str, Any], wanted: tuple[bool, ...] = (True,) * 4) -> tuple:
    tensors = (given[name] for name in ("grad_output", "input", "offset", "weight", "mask"))
    return ops._deform_conv2d_grad(*tensors, *(given[name] for name in LISTS), *wanted)


def name_of(bad: Bad) -> str:
    return bad[1][:70]


@pytest.mark.parametrize("bad", BAD + BAD_BIAS, ids=name_of)
def test_call(bad: Bad) -> None:
    for device in ("cpu", "meta"):
        assert refusal(lambda d=device: public(arguments(bad[0], d))) == f"deform_conv2d: {bad[1]}"
        assert refusal(lambda d=device: operator(arguments(bad[0], d))) == f"deform_conv2d: {bad[1]}"
    with FakeTensorMode():
        assert refusal(lambda: public(arguments(bad[0]))) == f"deform_conv2d: {bad[1]}"
        assert refusal(lambda: operator(arguments(bad[0]))) == f"deform_conv2d: {bad[1]}"


@pytest.mark.parametrize("bad", BAD, ids=name_of)
def test_call_with_gradients(bad: Bad) -> None:
    given = arguments(bad[0])
    for name in TENSORS:
        if given[name].is_floating_point():
            given[name] = given[name].detach().requires_grad_()
    assert refusal(lambda: public(given)) == f"deform_conv2d: {bad[1]}"


@pytest.mark.parametrize("bad", BAD + BAD_GRAD, ids=name_of)
def test_gradient(bad: Bad) -> None:
    for device in ("cpu", "meta"):
        assert refusal(lambda d=device: operator_of_grad(arguments(bad[0], d))) == f"deform_conv2d: {bad[1]}"
    with FakeTensorMode():
        assert refusal(lambda: operator_of_grad(arguments(bad[0]))) == f"deform_conv2d: {bad[1]}"


@pytest.mark.parametrize("bad", FORMS, ids=name_of)
def test_forms(bad: Bad) -> None:
    assert refusal(lambda: public(arguments(bad[0]))) == f"deform_conv2d: {bad[1]}"
    with FakeTensorMode():
        assert refusal(lambda: public(arguments(bad[0]))) == f"deform_conv2d: {bad[1]}"


@pytest.mark.parametrize("bad", TYPES, ids=name_of)
def test_types(bad: Bad) -> None:
    assert refusal(lambda: public(arguments(bad[0])), TypeError) == f"deform_conv2d: {bad[1]}"
    with FakeTensorMode():
        assert refusal(lambda: public(arguments(bad[0])), TypeError) == f"deform_conv2d: {bad[1]}"


@pytest.mark.parametrize("name", [*TENSORS[1:], "grad_output"])
def test_devices(name: str) -> None:
    """The shape rules; PyTorch itself refuses a mixture of fake tensors before it comes to them."""
    given = arguments({})
    given[name] = given[name].to("meta")
    of_grad = name == "grad_output"
    rule = fastconv.deform._fake_grad if of_grad else fastconv.deform._fake
    tensors = ("grad_output", "input", "offset", "weight", "mask") if of_grad else TENSORS
    wanted = (True,) * 4 if of_grad else ()
    message = refusal(lambda: rule(*(given[of] for of in (*tensors, *LISTS)), *wanted))
    assert message == f"deform_conv2d: {name} must be on the device of input, cpu (got meta)"


def test_what_looks_odd_and_is_valid() -> None:
    for bad in ({}, {"bias": None}, {"mask": None}, {"input": (0, 4, 6, 7), "offset": (0, 36, 6, 7), "mask": None}):
        for device in ("cpu", "meta"):
            given = arguments(bad, device)
            output = public(given)
            assert output.shape == (given["input"].shape[0], 6, 6, 7)
            given["grad_output"] = output
            grads = operator_of_grad(given, (True, True, True, given["mask"] is not None))
            asked = [given[name] for name in ("input", "offset", "weight", "mask")]
            assert [grad.shape for grad in grads] == [(0,) if of is None else of.shape for of in asked]
            assert [grad.numel() for grad in operator_of_grad(given, (False,) * 4)] == [0] * 4
    one = torch.ones(1, 1, 1, 1)
    assert fastconv.deform_conv2d(one, one.expand(1, 2, 1, 1), one, stride=BIG, dilation=BIG).tolist() == [[[[0.0]]]]
    whole = torch.zeros(1, 2, 3, 3)
    expected = [[[[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]]]
    assert fastconv.deform_conv2d(one, whole, one, stride=BIG, padding=BIG).tolist() == expected


@pytest.mark.parametrize(
    ("error", "given", "message"),
    [
        (ValueError, {"in_channels": 5}, "in_channels must be divisible by groups, 2 (got 5)"),
        (ValueError, {"out_channels": 3}, "out_channels must be divisible by groups, 2 (got 3)"),
        (ValueError, {"groups": 0}, "groups must be positive (got 0)"),
        (ValueError, {"in_channels": 0}, "in_channels must be positive (got 0)"),
        (TypeError, {"out_channels": 6.0}, "out_channels must be an integer (got 6.0)"),
        (RuntimeError, {"kernel_size": (3, 0)}, "kernel_size must be positive (got [3, 0])"),
        (TypeError, {"kernel_size": 1.5}, "kernel_size must be an integer or 2 integers (got 1.5)"),
        (TypeError, {"stride": "2"}, "stride must be an integer or 2 integers (got '2')"),
        (RuntimeError, {"padding": (1, 1, 1)}, "padding must have 2 elements (got [1, 1, 1])"),
        (RuntimeError, {"dilation": BIG + 1}, f"dilation must be at most {BIG} (got [{BIG + 1}, {BIG + 1}])"),
    ],
)
def test_module(error: type[Exception], given: dict[str, Any], message: str) -> None:
    arguments = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "groups": 2, **given}
    assert refusal(lambda: fastconv.nn.DeformConv2d(**arguments), error) == f"DeformConv2d: {message}"
