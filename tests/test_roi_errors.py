"""What regions of interest refuse: every rule of csrc/roi/check.h in the same words wherever it is found, in the call,
under FakeTensorMode, by the operators of csrc/schema.cpp and by their shape rules. And boxes that no map has.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastconv

ops = torch.ops.fastconv
BIG = 2**31 - 1
X = (2, 12, 5, 6)
#: What the public functions are given beside the input.
GIVEN: dict[str, Any] = {"boxes": (3, 5), "output_size": (2, 3), "spatial_scale": 1.0}
OPERATORS = ["roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"]
ALIGN, SENSITIVE = ["roi_align", "ps_roi_align"], ["ps_roi_align", "ps_roi_pool"]

#: operators, what is given otherwise (of tensors their sizes), message. Refused by the operators, whoever calls them.
Bad = tuple[list[str], dict[str, Any], str]
BAD: list[Bad] = [
    (OPERATORS, {"input": (12, 5, 6)}, "input must have 4 dimensions (got [12, 5, 6])"),
    (OPERATORS, {"input": (1, 1, 12, 5, 6)}, "input must have 4 dimensions (got [1, 1, 12, 5, 6])"),
    (OPERATORS, {"boxes": (3, 4)}, "boxes must have shape [K, 5] (got [3, 4])"),
    (OPERATORS, {"boxes": (5,)}, "boxes must have shape [K, 5] (got [5])"),
    (OPERATORS, {"boxes": (1, 3, 5)}, "boxes must have shape [K, 5] (got [1, 3, 5])"),
    (OPERATORS, {"output_size": (0, 3)}, "output_size must be positive (got [0, 3])"),
    (OPERATORS, {"output_size": (2, -1)}, "output_size must be positive (got [2, -1])"),
    *(
        (OPERATORS, {"spatial_scale": value}, f"spatial_scale must be positive and finite (got {got})")
        for value, got in ((math.inf, "inf"), (math.nan, "nan"), (-0.5, "-0.5"))
    ),
    (ALIGN, {"sampling_ratio": 2**15 + 1}, f"sampling_ratio must be at most {2**15} (got {2**15 + 1})"),
    (
        SENSITIVE, {"input": (2, 14, 5, 6)},
        "input must have a multiple of 6 channels, one for each bin (got [2, 14, 5, 6])",
    ),
    (OPERATORS, {"input": (0, 12, 5, 6)}, "input must not be empty where there are boxes (got [0, 12, 5, 6])"),
    (OPERATORS, {"input": (2, 12, 0, 6)}, "input must not be empty where there are boxes (got [2, 12, 0, 6])"),
    (OPERATORS, {"input": (2, 12, 5, 0)}, "input must not be empty where there are boxes (got [2, 12, 5, 0])"),
    (
        OPERATORS, {"input": (1, 12, 2**16, 2**15)},
        f"input must have at most {BIG} positions a plane (got [1, 12, {2**16}, {2**15}])",
    ),
]  # fmt: skip
DTYPES: list[tuple[torch.dtype, torch.dtype, str]] = [
    (torch.int64, torch.float32, "input must be float32, float64, bfloat16 or float16 (got int64)"),
    (torch.complex64, torch.float32, "input must be float32, float64, bfloat16 or float16 (got complex64)"),
    *(
        (own, other, f"boxes must have the dtype of input, {word}, or be float32 (got {got})")
        for own, word, other, got in [
            (torch.float32, "float32", torch.float64, "float64"),
            (torch.float32, "float32", torch.int64, "int64"),
            (torch.float64, "float64", torch.float16, "float16"),
            (torch.bfloat16, "bfloat16", torch.float16, "float16"),
            (torch.float16, "float16", torch.float64, "float64"),
        ]
    ),
]

#: Refused by the public functions alone.
FORMS: list[Bad] = [
    (OPERATORS, {"output_size": (1, 2, 3)}, "output_size must have 2 elements (got [1, 2, 3])"),
    (OPERATORS, {"output_size": []}, "output_size must have 2 elements (got [])"),
    (OPERATORS, {"output_size": 2**31}, f"output_size must be at most {BIG} (got [{2**31}, {2**31}])"),
    (OPERATORS, {"boxes": [(2, 4), (3, 5)]}, "boxes must have shape [L, 4] in a list (got [3, 5] at 1)"),
    (OPERATORS, {"boxes": [(4,)]}, "boxes must have shape [L, 4] in a list (got [4] at 0)"),
    (OPERATORS, {"boxes": [(1, 4)] * 3}, "boxes must be for 2 images at most (got 3)"),
]
TYPES: list[Bad] = [
    (OPERATORS, {"input": "x"}, "input must be a Tensor (got 'x')"),
    (OPERATORS, {"input": None}, "input must be a Tensor (got None)"),
    (OPERATORS, {"boxes": "x"}, "boxes must be a Tensor or a list of Tensors (got 'x')"),
    (OPERATORS, {"boxes": None}, "boxes must be a Tensor or a list of Tensors (got None)"),
    (OPERATORS, {"boxes": [1.0]}, "boxes must be a Tensor or a list of Tensors (got [1.0])"),
    *(
        (OPERATORS, {"output_size": value}, f"output_size must be an integer or 2 integers (got {value!r})")
        for value in (1.5, "7", (1, 2.0), True, None)
    ),
    *(
        (OPERATORS, {"spatial_scale": value}, f"spatial_scale must be a number (got {value!r})")
        for value in ("x", "0.5", None, True, [1.0])
    ),
    *(
        (ALIGN, {"sampling_ratio": value}, f"sampling_ratio must be an integer (got {value!r})")
        for value in (1.5, "2", None, True)
    ),
    *((["roi_align"], {"aligned": value}, f"aligned must be a bool (got {value!r})") for value in (1, None)),
]


def name_of(bad: Any) -> str:
    return bad[-1][:60]


def refusal(call: Callable[[], Any], error: type[Exception] = RuntimeError) -> str:
    with pytest.raises(error) as raised:
        call()
    assert type(raised.value) is error
    return str(raised.value)


def zeros(size: Any, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """A tensor of a size, however large; lists of sizes are lists of tensors, and what is no size stays as it is."""
    if isinstance(size, list):
        return [zeros(each, dtype, device) for each in size]
    return torch.zeros((), dtype=dtype, device=device).expand(size) if isinstance(size, tuple) else size


def public(op: str, given: dict[str, Any], device: str = "cpu") -> Callable[[], Any]:
    rest = {**GIVEN, **given}
    input, boxes = zeros(rest.pop("input", X), device=device), zeros(rest.pop("boxes"), device=device)
    return lambda: getattr(fastconv, op)(input, boxes, **rest)


def operators(op: str, given: dict[str, Any], device: str, dtype=torch.float32, of_boxes=torch.float32) -> list:
    """The operators that know the rule: of the input, and those that are told its size."""
    rest = {"input": X, **GIVEN, "sampling_ratio": 0, **given}
    x, boxes = zeros(rest["input"], dtype, device), zeros(rest["boxes"], of_boxes, device)
    size, bins = list(rest["input"]), list(rest["output_size"])
    numbers = rest["spatial_scale"], bins
    numbers += (rest["sampling_ratio"],) * (op in ALIGN) + (False,) * (op == "roi_align")
    output = zeros((3, 2 if op in SENSITIVE else 12, 2, 3), dtype, device)
    calls = [lambda: getattr(ops, op)(x, boxes, *numbers)]
    if op != "roi_pool":
        return [*calls, lambda: getattr(ops, f"_{op}_grad")(output, boxes, size, False, *numbers)]
    calls.append(lambda: ops._roi_pool_ids(x, boxes, *numbers))
    if min(bins) > 0 and numbers[0] == 1:  # those that see their bins by a tensor
        ids = torch.zeros(output.shape, dtype=torch.int32, device=device)
        calls.append(lambda: ops._roi_pool_grad(output, ids, boxes, size, False))
        calls.append(lambda: ops._roi_pool_pick(x, ids, boxes))
    return calls


@pytest.mark.parametrize("bad", BAD + FORMS, ids=name_of)
def test_call(bad: Bad) -> None:
    for op in bad[0]:
        message = f"{op}: {bad[2]}"
        assert refusal(public(op, bad[1])) == message
        assert refusal(public(op, bad[1], "meta")) == message
        with FakeTensorMode():
            assert refusal(public(op, bad[1])) == message


@pytest.mark.parametrize("bad", TYPES, ids=name_of)
def test_types(bad: Bad) -> None:
    for op in bad[0]:
        assert refusal(public(op, bad[1]), TypeError) == f"{op}: {bad[2]}"


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("bad", BAD, ids=name_of)
def test_operators(bad: Bad, device: str) -> None:
    for op in bad[0]:
        for call in operators(op, bad[1], device):
            assert refusal(call) == f"{op}: {bad[2]}"


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("size", "message"),
    [
        ([2], "output_size must have 2 elements (got [2])"),
        ([2, 3, 4], "output_size must have 2 elements (got [2, 3, 4])"),
        ([2, 2**31], f"output_size must be at most {BIG} (got [2, {2**31}])"),
    ],
)
def test_lists(size: list[int], message: str, device: str) -> None:
    for op in OPERATORS:
        for call in operators(op, {"output_size": size}, device)[:2]:
            assert refusal(call) == f"{op}: {message}"


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("own", "other", "message"), DTYPES, ids=[each[-1][:60] for each in DTYPES])
def test_dtypes(own: torch.dtype, other: torch.dtype, message: str, device: str) -> None:
    for op in OPERATORS:
        for call in operators(op, {}, device, own, other):
            assert refusal(call) == f"{op}: {message}"
        x, boxes = zeros(X, own, device), zeros((3, 5), other, device)
        assert refusal(lambda op=op, x=x, b=boxes: getattr(fastconv, op)(x, b, (2, 3))) == f"{op}: {message}"
        if own.is_floating_point and other.itemsize > 2:  # of 16 bits they become float32 in a list
            each = zeros([(3, 4), (2, 4)], other, device)
            assert refusal(lambda op=op, x=x, e=each: getattr(fastconv, op)(x, e, (2, 3))) == f"{op}: {message}"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_the_gradient_operators_are_given(device: str) -> None:
    """They are private, but registered, so anyone can call them."""
    size, boxes, x = list(X), zeros((3, 5), device=device), zeros(X, device=device)
    grad, ids = zeros((3, 12, 2, 3), device=device), torch.zeros(3, 12, 2, 3, dtype=torch.int32, device=device)
    few, shape = grad[:, 1:], "must have shape [3, 12, 2, 3] (got [3, 11, 2, 3])"
    for call, message in (
        (
            lambda: ops._roi_align_grad(few, boxes, size, False, 1.0, [2, 3], 0, False),
            f"roi_align: grad_output {shape}",
        ),
        (
            lambda: ops._ps_roi_align_grad(few, boxes, size, False, 1.0, [2, 3], 0),
            "ps_roi_align: grad_output must have shape [3, 2, 2, 3] (got [3, 11, 2, 3])",
        ),
        (
            lambda: ops._ps_roi_pool_grad(few, boxes, size, False, 1.0, [2, 3]),
            "ps_roi_pool: grad_output must have shape [3, 2, 2, 3] (got [3, 11, 2, 3])",
        ),
        (lambda: ops._roi_pool_grad(few, ids, boxes, size, False), f"roi_pool: grad_output {shape}"),
        (lambda: ops._roi_pool_grad(grad, ids[:, 1:], boxes, size, False), f"roi_pool: ids {shape}"),
        (lambda: ops._roi_pool_pick(x, ids[:, 1:], boxes), f"roi_pool: ids {shape}"),
        (lambda: ops._roi_pool_grad(grad, ids.long(), boxes, size, False), "roi_pool: ids must be int32 (got int64)"),
        (lambda: ops._roi_pool_pick(x, ids.long(), boxes), "roi_pool: ids must be int32 (got int64)"),
        (
            lambda: ops._roi_pool_grad(grad[0], ids, boxes, size, False),
            "roi_pool: grad_output must have 4 dimensions (got [12, 2, 3])",
        ),
        (lambda: ops._roi_pool_pick(x, ids[0], boxes), "roi_pool: ids must have 4 dimensions (got [12, 2, 3])"),
        (
            lambda: ops._roi_align_grad(grad, boxes, [2, 12, -5, 6], False, 1.0, [2, 3], 0, False),
            "roi_align: input must not be empty where there are boxes (got [2, 12, -5, 6])",
        ),
    ):
        assert refusal(call) == message


def test_devices() -> None:
    """Beside a tensor without data: dispatched to the shape rule, which must not pass its empty output for a result."""
    for mine, other in (("cpu", "meta"), ("meta", "cpu")):
        x, boxes = zeros(X, device=mine), zeros((3, 5), device=other)
        for op in OPERATORS:
            message = f"{op}: boxes must be on the device of input, {mine} (got {other})"
            assert refusal(lambda op=op, x=x, b=boxes: getattr(fastconv, op)(x, b, (2, 3))) == message
        ids = torch.zeros(3, 12, 2, 3, dtype=torch.int32, device=other)
        message = f"roi_pool: ids must be on the device of input, {mine} (got {other})"
        boxes = zeros((3, 5), device=mine)
        assert refusal(lambda x=x, i=ids, b=boxes: ops._roi_pool_pick(x, i, b)) == message


# ---- the values of boxes, which only a CPU looks at ------------------------------------------------------------------

BEGIN = "boxes must begin with an index in the batch, in [0, 2)"
BOXES: list[tuple[tuple[float, ...], str]] = [
    ((2, 0, 0, 1, 1), f"{BEGIN} (got [2, 0, 0, 1, 1] in row 1)"),
    ((-1, 0, 0, 1.5, 1), f"{BEGIN} (got [-1, 0, 0, 1.5, 1] in row 1)"),
    ((1e30, 0, 0, 1, 1), f"{BEGIN} (got [1e+30, 0, 0, 1, 1] in row 1)"),
    ((0, float("nan"), 0, 1, 1), "boxes must be finite (got [0, nan, 0, 1, 1] in row 1)"),
    ((0, 0, 0, 1, float("inf")), "boxes must be finite (got [0, 0, 0, 1, inf] in row 1)"),
    ((float("inf"), 0, 0, 1, 1), "boxes must be finite (got [inf, 0, 0, 1, 1] in row 1)"),
]


@pytest.mark.parametrize(("row", "message"), BOXES, ids=[each[-1] for each in BOXES])
def test_boxes(row: tuple[float, ...], message: str) -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.zeros(X, dtype=dtype)
        boxes = torch.tensor([(0, 0, 0, 1, 1), row, row], dtype=dtype)
        grads, ids = torch.zeros(3, 12, 2, 3, dtype=dtype), torch.zeros(3, 12, 2, 3, dtype=torch.int32)
        for op in OPERATORS:
            assert refusal(lambda op=op, x=x, b=boxes: getattr(fastconv, op)(x, b, (2, 3))) == f"{op}: {message}"
        for call in (
            lambda x=x, b=boxes: ops._roi_pool_ids(x, b, 1.0, [2, 3])[0],
            lambda x=x, b=boxes, i=ids: ops._roi_pool_pick(x, i, b),
            lambda g=grads, b=boxes, i=ids: ops._roi_pool_grad(g, i, b, list(X), False),
        ):
            assert refusal(call) == f"roi_pool: {message}"
        call = ops._roi_align_grad
        assert refusal(lambda g=grads, b=boxes, f=call: f(g, b, list(X), True, 1.0, [2, 3], 0, False)) == (
            f"roi_align: {message}"
        )


def test_boxes_of_a_list() -> None:
    given = [torch.zeros(1, 4), torch.tensor([[0.0, 0.0, float("nan"), 1.0]])]
    message = "roi_align: boxes must be finite (got [1, 0, 0, nan, 1] in row 1)"
    assert refusal(lambda: fastconv.roi_align(torch.zeros(X), given, 2)) == message


# ---- several maps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "inputs", "boxes", "scales", "message"),
    [
        (ValueError, [], (3, 5), [], "inputs must have at least one map (got none)"),
        (ValueError, [X, X], (3, 5), [1.0], "spatial_scales must be one for each of 2 maps (got [1.0])"),
        (RuntimeError, [X, X], [(3, 5)], [1.0, 0.5], "boxes must have shape [L, 4] in a list (got [3, 5] at 0)"),
        (RuntimeError, [X, X], [(1, 4)] * 3, [1.0, 0.5], "boxes must be for 2 images at most (got 3)"),
        (RuntimeError, [X, X], (3, 4), [1.0, 0.5], "boxes must have shape [K, 5] (got [3, 4])"),
        (RuntimeError, [X, X], (5,), [1.0, 0.5], "boxes must have shape [K, 5] (got [5])"),
        (TypeError, ["x", "x"], [(3, 4)], [1.0, 0.5], "inputs must be Tensors (got 'x')"),
        (TypeError, [X, X], "x", [1.0, 0.5], "boxes must be a Tensor or a list of Tensors (got 'x')"),
        (ValueError, [X, X], (3, 5), [1.0, 0.0], "spatial_scales must be positive and finite (got [1.0, 0.0])"),
        (ValueError, [X, X], (3, 5), [math.inf, 1], "spatial_scales must be positive and finite (got [inf, 1.0])"),
        (
            ValueError,
            [X, X],
            (3, 5),
            [0.5, 1],
            "spatial_scales must be from the largest to the smallest (got [0.5, 1.0])",
        ),
        (TypeError, [X, X], (3, 5), 0.5, "spatial_scales must be a list of numbers (got 0.5)"),
        (TypeError, [X, X], (3, 5), "ab", "spatial_scales must be a number (got 'a')"),
    ],
)
def test_several_maps(error: type[Exception], inputs: list, boxes: Any, scales: list[float], message: str) -> None:
    maps, given = [zeros(each) for each in inputs], zeros(boxes)
    call = lambda: fastconv.multi_scale_roi_align(maps, given, 2, scales)  # noqa: E731
    assert refusal(call, error) == f"multi_scale_roi_align: {message}"


def test_what_several_maps_have_in_common() -> None:
    for other, got in ((torch.zeros(1, 3, 5, 6), "[1, 3] and float32"), (torch.zeros(X).half(), "[2, 12] and float16")):
        call = lambda other=other: fastconv.multi_scale_roi_align([torch.zeros(X), other], [], 2, [1, 0.5])  # noqa: E731
        expected = "inputs must have the images, channels and dtype of the first, [2, 12] and float32"
        assert refusal(call) == f"multi_scale_roi_align: {expected} (got {got})"


@pytest.mark.parametrize(
    ("error", "given", "message"),
    [
        (ValueError, {"canonical_scale": 0}, "canonical_scale must be positive (got 0)"),
        (TypeError, {"canonical_scale": "x"}, "canonical_scale must be a number (got 'x')"),
        (TypeError, {"canonical_level": 2.5}, "canonical_level must be an integer (got 2.5)"),
        (TypeError, {"inputs": {"a": 1}}, "inputs must be a list of Tensors (got {'a': 1})"),
    ],
)
def test_canonical_size(error: type[Exception], given: dict[str, Any], message: str) -> None:
    arguments = {"inputs": [torch.zeros(X)] * 2, "boxes": [], "output_size": 2, "spatial_scales": [1, 0.5], **given}
    assert refusal(lambda: fastconv.multi_scale_roi_align(**arguments), error) == f"multi_scale_roi_align: {message}"


def test_module_of_several_maps() -> None:
    module = fastconv.nn.MultiScaleRoIAlign(["a"], 2, 2)
    message = "multi_scale_roi_align: image_shapes must have at least one (got none)"
    assert refusal(lambda: module({"a": torch.zeros(X)}, [torch.zeros(1, 4)], []), ValueError) == message
    message = "multi_scale_roi_align: x must have a map of ['a'] (got ['b'])"
    assert refusal(lambda: module({"b": torch.zeros(X)}, [torch.zeros(1, 4)], [(8, 8)]), ValueError) == message
    message = "multi_scale_roi_align: x must be a dictionary of maps (got [])"
    assert refusal(lambda: module([], [torch.zeros(1, 4)], [(8, 8)]), TypeError) == message


# ---- what is not refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [np.int64(2), np.uint8(2), torch.tensor(2)], ids=lambda v: type(v).__name__)
def test_other_integers_are_integers(index: Any) -> None:
    x, boxes = torch.randn(X), torch.tensor([[1.0, 0.5, 0.0, 4.0, 4.5]])
    expected = fastconv.roi_align(x, boxes, 2, 0.5, 2)
    assert torch.equal(fastconv.roi_align(x, boxes, index, np.float32(0.5), index), expected)
    assert torch.equal(fastconv.roi_align(x, boxes, (index, 2), torch.tensor(0.5), index), expected)


@pytest.mark.parametrize("op", OPERATORS)
def test_compiled(op: str) -> None:
    """The compiler wraps the error; the words are in it."""
    torch.compiler.reset()
    x, boxes = torch.ones(X), torch.zeros(3, 4)
    function: Callable[[Tensor], Tensor] = torch.compile(lambda x: getattr(fastconv, op)(x, boxes, 2), backend="eager")
    with pytest.raises(Exception) as raised:  # noqa: PT011  the type is the compiler's affair
        function(x)
    assert f"{op}: boxes must have shape [K, 5] (got [3, 4])" in str(raised.value)
