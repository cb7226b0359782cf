"""What pooling refuses: every rule of csrc/pool/check.h in the same words wherever it is found, in the call, under
FakeTensorMode, by the operators of csrc/schema.cpp and by their shape rules. And what looks odd and is valid.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastconv

ops = torch.ops.fastconv
BIG = 2**31 - 1
MOST = 2**30  # elements of a window
X1, X2 = (1, 4, 7), (1, 4, 5, 6)
#: kernel sizes, strides, paddings and dilations, and what comes after them; and those of means
WINDOWS = ([3, 3, 2, 2, 1, 1, 1, 1], False)
MEANS = ([3, 3, 2, 2, 1, 1, 1, 1], False, True, None)

#: function, size of the input, arguments, message.
Bad = tuple[str, tuple[int, ...], dict[str, Any], str]


def of_both(dims: int, size: tuple[int, ...], kwargs: dict[str, Any], message: str) -> list[Bad]:
    return [(f"{kind}_pool{dims}d", size, kwargs, message) for kind in ("max", "avg")]


SPAN = "padding must be at most half of what a window spans"
LARGER = "kernel_size must not span more than the padded input"
EMPTY = "input must not be empty but for its batch"

#: Refused by the operators, whoever calls them.
BAD_VALUES: list[Bad] = [
    *of_both(2, X2, {"kernel_size": 0}, "kernel_size must be positive (got [0, 0])"),
    *of_both(2, X2, {"kernel_size": (2, -3)}, "kernel_size must be positive (got [2, -3])"),
    *of_both(1, X1, {"kernel_size": -1}, "kernel_size must be positive (got [-1])"),
    *of_both(2, X2, {"kernel_size": 2, "stride": 0}, "stride must be positive (got [0, 0])"),
    *of_both(2, X2, {"kernel_size": 2, "stride": (1, -1)}, "stride must be positive (got [1, -1])"),
    *of_both(1, X1, {"kernel_size": 2, "stride": 0}, "stride must be positive (got [0])"),
    *of_both(2, X2, {"kernel_size": 2, "padding": -1}, "padding must not be negative (got [-1, -1])"),
    *of_both(1, X1, {"kernel_size": 2, "padding": (-1,)}, "padding must not be negative (got [-1])"),
    ("max_pool2d", X2, {"kernel_size": 2, "dilation": 0}, "dilation must be positive (got [0, 0])"),
    ("max_pool1d", X1, {"kernel_size": 2, "dilation": -2}, "dilation must be positive (got [-2])"),
    *of_both(
        2, X2, {"kernel_size": (2**15, 2**15 + 1)},
        f"kernel_size must have at most {MOST} positions (got [{2**15}, {2**15 + 1}])",
    ),
    *of_both(
        1, X1, {"kernel_size": MOST + 1}, f"kernel_size must have at most {MOST} positions (got [{MOST + 1}])"
    ),
    *of_both(1, X1, {"kernel_size": MOST}, f"{LARGER}, {MOST} > 7 in dimension 0 (got [{MOST}])"),
    *of_both(2, X2, {"kernel_size": 3, "padding": (1, 2)}, f"{SPAN}, 3 in dimension 1 (got [1, 2])"),
    *of_both(2, X2, {"kernel_size": (1, 3), "padding": 1}, f"{SPAN}, 1 in dimension 0 (got [1, 1])"),
    *of_both(2, X2, {"kernel_size": 3, "padding": BIG}, f"{SPAN}, 3 in dimension 0 (got [{BIG}, {BIG}])"),
    *of_both(1, X1, {"kernel_size": 4, "padding": 3}, f"{SPAN}, 4 in dimension 0 (got [3])"),
    (
        "max_pool2d", X2, {"kernel_size": 3, "dilation": (2, 1), "padding": (3, 0)},
        f"{SPAN}, 5 in dimension 0 (got [3, 0])",
    ),
    *of_both(2, X2, {"kernel_size": (6, 2)}, f"{LARGER}, 6 > 5 in dimension 0 (got [6, 2])"),
    *of_both(2, X2, {"kernel_size": (2, 9), "padding": (0, 1)}, f"{LARGER}, 9 > 8 in dimension 1 (got [2, 9])"),
    *of_both(1, X1, {"kernel_size": 8}, f"{LARGER}, 8 > 7 in dimension 0 (got [8])"),
    *of_both(
        2, X2, {"kernel_size": 7, "stride": 2, "ceil_mode": True}, f"{LARGER}, 7 > 5 in dimension 0 (got [7, 7])"
    ),
    (
        "max_pool2d", X2, {"kernel_size": 3, "dilation": BIG},
        f"{LARGER}, {2 * BIG + 1} > 5 in dimension 0 (got [3, 3])",
    ),
    *of_both(2, (1, 0, 5, 6), {"kernel_size": 2}, f"{EMPTY} (got [1, 0, 5, 6])"),
    *of_both(2, (1, 4, 0, 6), {"kernel_size": 2}, f"{EMPTY} (got [1, 4, 0, 6])"),
    *of_both(2, (0, 4, 5, 0), {"kernel_size": 2}, f"{EMPTY} (got [0, 4, 5, 0])"),
    *of_both(1, (1, 4, 0), {"kernel_size": 2}, f"{EMPTY} (got [1, 4, 0])"),
    ("avg_pool2d", X2, {"kernel_size": 2, "divisor_override": 0}, "divisor_override must not be zero (got 0)"),
    *(
        (f"adaptive_{kind}_pool2d", size, {"output_size": asked}, message)
        for kind in ("max", "avg")
        for size, asked, message in [
            (X2, -1, "output_size must not be negative (got [-1, -1])"),
            (X2, (3, -2), "output_size must not be negative (got [3, -2])"),
            ((1, 4, 0, 6), 2, f"{EMPTY} (got [1, 4, 0, 6])"),
            ((1, 4, 5, 0), (1, 1), f"{EMPTY} (got [1, 4, 5, 0])"),
            ((0, 4, 0, 6), 2, f"{EMPTY} (got [0, 4, 0, 6])"),
        ]
    ),
]  # fmt: skip

TYPES: list[Bad] = [
    *of_both(2, X2, {"kernel_size": 1.5}, "kernel_size must be an integer or 2 integers (got 1.5)"),
    *of_both(2, X2, {"kernel_size": True}, "kernel_size must be an integer or 2 integers (got True)"),
    *of_both(2, X2, {"kernel_size": "2"}, "kernel_size must be an integer or 2 integers (got '2')"),
    *of_both(2, X2, {"kernel_size": None}, "kernel_size must be an integer or 2 integers (got None)"),
    *of_both(2, X2, {"kernel_size": (2, 2.0)}, "kernel_size must be an integer or 2 integers (got (2, 2.0))"),
    *of_both(1, X1, {"kernel_size": (1.5,)}, "kernel_size must be an integer (got (1.5,))"),
    *of_both(2, X2, {"kernel_size": 2, "stride": 1.0}, "stride must be an integer or 2 integers (got 1.0)"),
    *of_both(2, X2, {"kernel_size": 2, "padding": "same"}, "padding must be an integer or 2 integers (got 'same')"),
    *of_both(2, X2, {"kernel_size": 2, "padding": None}, "padding must be an integer or 2 integers (got None)"),
    ("max_pool2d", X2, {"kernel_size": 2, "dilation": 0.5}, "dilation must be an integer or 2 integers (got 0.5)"),
    *(
        ("avg_pool2d", X2, {"kernel_size": 2, "divisor_override": value},
         f"divisor_override must be an integer or None (got {value!r})")
        for value in (1.5, 2.0, True, "2", (2,))
    ),
    *(
        (f"adaptive_{kind}_pool2d", X2, {"output_size": value},
         f"output_size must be an integer or 2 integers (got {value!r})")
        for kind in ("max", "avg")
        for value in (1.5, "7", (1, 2.0), (None, None, None), True)
    ),
]  # fmt: skip

#: Refused by the public functions alone: the operators ask for complete lists.
FORMS: list[Bad] = [
    *of_both(2, X2, {"kernel_size": (2, 2, 2)}, "kernel_size must have 2 elements (got [2, 2, 2])"),
    *of_both(2, X2, {"kernel_size": []}, "kernel_size must have 2 elements (got [])"),
    *of_both(1, X1, {"kernel_size": (2, 2)}, "kernel_size must have 1 elements (got [2, 2])"),
    *of_both(2, X2, {"kernel_size": 2, "stride": (1, 1, 1)}, "stride must have 2 elements (got [1, 1, 1])"),
    *of_both(2, X2, {"kernel_size": 2, "padding": ()}, "padding must have 2 elements (got [])"),
    *of_both(2, X2, {"kernel_size": BIG + 1}, f"kernel_size must be at most {BIG} (got [{BIG + 1}, {BIG + 1}])"),
    *of_both(2, X2, {"kernel_size": 2, "stride": (1, 2**70)}, f"stride must be at most {BIG} (got [1, {2**70}])"),
    ("max_pool1d", X1, {"kernel_size": 2, "dilation": 2**40}, f"dilation must be at most {BIG} (got [{2**40}])"),
    ("adaptive_avg_pool2d", X2, {"output_size": (1, 2, 3)}, "output_size must have 2 elements (got [1, 2, 3])"),
    ("adaptive_max_pool2d", X2, {"output_size": 2**31}, f"output_size must be at most {BIG} (got [{2**31}, {2**31}])"),
    *(
        ("avg_pool2d", X2, {"kernel_size": 2, "divisor_override": value},
         f"divisor_override must be at most {2**63 - 1} in magnitude (got {value})")
        for value in (2**63, -(2**70))
    ),
    *(
        (name, size, {} if "global" in name else {"kernel_size" if "adaptive" not in name else "output_size": 1},
         f"input must have {dims + 2} dimensions, or {dims + 1} without a batch (got {list(size)})")
        for name in fastconv.pool.__all__
        for dims in [int(name[-2])]
        for size in ((4,) * (dims + 3), (4,) * dims)
        if not ("adaptive" in name and len(size) < 3)
    ),
]  # fmt: skip


def name_of(bad: Bad) -> str:
    return f"{bad[0]} {bad[3][:60]}"


def refusal(call: Callable[[], Any], error: type[Exception] = RuntimeError) -> str:
    with pytest.raises(error) as raised:
        call()
    assert type(raised.value) is error
    return str(raised.value)


@pytest.mark.parametrize("bad", BAD_VALUES + FORMS, ids=name_of)
def test_call(bad: Bad) -> None:
    name, size, kwargs, message = bad
    function = getattr(fastconv, name)
    for grad in (False, True):
        assert refusal(lambda g=grad: function(torch.ones(size, requires_grad=g), **kwargs)) == f"{name}: {message}"
    assert refusal(lambda: function(torch.ones(size, device="meta"), **kwargs)) == f"{name}: {message}"
    with FakeTensorMode():
        assert refusal(lambda: function(torch.ones(size), **kwargs)) == f"{name}: {message}"


@pytest.mark.parametrize("bad", TYPES, ids=name_of)
def test_types(bad: Bad) -> None:
    name, size, kwargs, message = bad
    assert refusal(lambda: getattr(fastconv, name)(torch.ones(size), **kwargs), TypeError) == f"{name}: {message}"


def operators(bad: Bad, device: str) -> list[Callable[[], Any]]:
    """The operators that know the rule: of the input, and those that are told its size."""
    name, size, kwargs, _ = bad
    x, dims = torch.ones(size, device=device), int(name[-2])
    ids = torch.zeros(1, 1, 1, 1, dtype=torch.uint8, device=device)

    def each(argument: str, default: Any) -> list[int]:
        value = kwargs.get(argument, default)
        return [value] * dims if isinstance(value, int) else list(value)

    kernel = each("kernel_size", 1)
    own = [*kernel, *each("stride", kernel), *each("padding", 0), *each("dilation", 1)]
    listed = each("output_size", 0) if "adaptive" in name else own
    ceil = kwargs.get("ceil_mode", False)
    if "max" in name:
        windows = (listed, ceil)
        return [
            lambda: ops.max_pool(x, *windows),
            lambda: ops._max_pool_ids(x, *windows),
            lambda: ops._max_pool_indices(ids, size, *windows),
            lambda: ops._max_pool_grad(x, ids, size, *windows),
            lambda: ops._max_pool_pick(x, ids, *windows),
        ]
    means = (listed, ceil, True, kwargs.get("divisor_override"))
    return [lambda: ops.avg_pool(x, *means), lambda: ops._avg_pool_grad(x, size, *means)]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("bad", BAD_VALUES, ids=name_of)
def test_operators(bad: Bad, device: str) -> None:
    for call in operators(bad, device):
        assert refusal(call) == f"{bad[0]}: {bad[3]}"


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ([3, 3, 2, 2, 1, 1, 1], "windows must have 8 elements, or 2 where they adapt (got [3, 3, 2, 2, 1, 1, 1])"),
        ([3, 2, 1, 1], "windows must have 8 elements, or 2 where they adapt (got [3, 2, 1, 1])"),
        ([2**31, 3, 2, 2, 1, 1, 1, 1], f"kernel_size must be at most {BIG} (got [{2**31}, 3])"),
        ([3, 3, 2, 2**62, 1, 1, 1, 1], f"stride must be at most {BIG} (got [2, {2**62}])"),
        ([3, 3, 2, 2, 2**31, 1, 1, 1], f"padding must be at most {BIG} (got [{2**31}, 1])"),
        ([3, 3, 2, 2, 1, 1, 2**40, 1], f"dilation must be at most {BIG} (got [{2**40}, 1])"),
        ([3], "output_size must have 2 elements (got [3])"),
        ([], "output_size must have 2 elements (got [])"),
        ([3, 2**31], f"output_size must be at most {BIG} (got [3, {2**31}])"),
    ],
)
def test_lists(windows: list[int], message: str, device: str) -> None:
    x = torch.ones(X2, device=device)
    adaptive = "adaptive_" if len(windows) <= 2 else ""
    assert refusal(lambda: ops.max_pool(x, windows, False)) == f"{adaptive}max_pool2d: {message}"
    assert refusal(lambda: ops.avg_pool(x, windows, False, True, None)) == f"{adaptive}avg_pool2d: {message}"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_only_maxima_know(device: str) -> None:
    x, seed = torch.ones(X2, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    dilated = [2, 2, 1, 1, 0, 0, 1, 2]
    for name, call in (
        ("avg", lambda windows: ops.avg_pool(x, windows, False, True, None)),
        ("lp", lambda windows: ops._l2_pool(x, windows, False)),
        ("stochastic", lambda windows: ops._stochastic_pool(x, seed, windows)),
        ("stochastic", lambda windows: ops._stochastic_pool_mean(x, windows)),
    ):
        assert refusal(lambda c=call: c(dilated)) == f"{name}_pool2d: dilation must be 1 (got [1, 2])"
        if name != "avg":  # windows of these never adapt
            assert refusal(lambda c=call: c([2, 2])).startswith(f"{name}_pool2d: windows must have 8 elements")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_ranks(device: str) -> None:
    for size in ((5,), (5, 6), (1, 1, 4, 5, 6)):
        x, listed = torch.ones(size, device=device), list(size)
        ids = x.byte()
        for call, name in (
            (lambda x=x: ops.max_pool(x, *WINDOWS), "max"),
            (lambda x=x: ops._max_pool_ids(x, *WINDOWS), "max"),
            (lambda x=x, i=ids: ops._max_pool_pick(x, i, *WINDOWS), "max"),
            (lambda s=listed, i=ids: ops._max_pool_indices(i, s, *WINDOWS), "max"),
            (lambda x=x, s=listed, i=ids: ops._max_pool_grad(x, i, s, *WINDOWS), "max"),
            (lambda x=x: ops.avg_pool(x, *MEANS), "avg"),
            (lambda x=x, s=listed: ops._avg_pool_grad(x, s, *MEANS), "avg"),
        ):
            assert refusal(call) == f"{name}_pool2d: input must have 3 or 4 dimensions (got {listed})"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_the_gradient_operators_are_given(device: str) -> None:
    """They are private, but registered, so anyone can call them."""
    x, size = torch.ones(X2, device=device), list(X2)
    output, ids = ops._max_pool_ids(x, *WINDOWS)
    shape = "must have shape [1, 4, 3, 3] (got [1, 4, 2, 3])"
    dtype = "max_pool2d: ids must be uint8 (got int64)"
    numbers = "input must be float32, float64, bfloat16 or float16 (got int64)"
    few, long = ids[:, :, 1:], ids.long()
    for call, message in (
        (lambda: ops._max_pool_grad(output, few, size, *WINDOWS), f"max_pool2d: ids {shape}"),
        (lambda: ops._max_pool_pick(x, few, *WINDOWS), f"max_pool2d: ids {shape}"),
        (lambda: ops._max_pool_indices(few, size, *WINDOWS), f"max_pool2d: ids {shape}"),
        (lambda: ops._max_pool_grad(output[:, :, 1:], ids, size, *WINDOWS), f"max_pool2d: grad_output {shape}"),
        (lambda: ops._avg_pool_grad(output[:, :, 1:], size, *MEANS), f"avg_pool2d: grad_output {shape}"),
        (lambda: ops._max_pool_grad(output, long, size, *WINDOWS), dtype),
        (lambda: ops._max_pool_pick(x, long, *WINDOWS), dtype),
        (lambda: ops._max_pool_indices(long, size, *WINDOWS), dtype),
        (lambda: ops._max_pool_grad(output.long(), ids, size, *WINDOWS), f"max_pool2d: {numbers}"),
        (lambda: ops._max_pool_pick(x.long(), ids, *WINDOWS), f"max_pool2d: {numbers}"),
        (lambda: ops._avg_pool_grad(output.long(), size, *MEANS), f"avg_pool2d: {numbers}"),
        (
            lambda: ops._max_pool_grad(output, ids, [1, -4, 5, 6], *WINDOWS),
            f"max_pool2d: {EMPTY} (got [1, -4, 5, 6])",
        ),
        (
            lambda: ops._avg_pool_grad(output, [1, 4, 2**63 - 1, 6], *MEANS),
            f"avg_pool2d: input must be at most {2**60} in every dimension (got [1, 4, {2**63 - 1}, 6])",
        ),
    ):
        assert refusal(call) == message


def test_ids_on_another_device() -> None:
    """Beside a tensor without data: dispatched to the shape rule, which must not pass its empty output for a
    result."""
    x = torch.ones(X2)
    output, ids = ops._max_pool_ids(x, *WINDOWS)
    there = {"cpu": (x, output, ids), "meta": tuple(t.to("meta") for t in (x, output, ids))}
    for mine, other in (("cpu", "meta"), ("meta", "cpu")):
        message = f"max_pool2d: ids must be on the device of input, {mine} (got {other})"
        given, grad, _ = there[mine]
        wrong = there[other][2]
        assert refusal(lambda g=grad, i=wrong: ops._max_pool_grad(g, i, list(X2), *WINDOWS)) == message
        assert refusal(lambda g=given, i=wrong: ops._max_pool_pick(g, i, *WINDOWS)) == message


CALLS: dict[str, tuple] = {
    "max_pool1d": (2,), "max_pool2d": (2,), "avg_pool1d": (2,), "avg_pool2d": (2,), "adaptive_max_pool2d": (2,),
    "adaptive_avg_pool2d": (2,), "global_max_pool2d": (), "global_avg_pool2d": (),
}  # fmt: skip


def test_every_function_is_called() -> None:
    assert sorted(CALLS) == sorted(fastconv.pool.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_inputs(name: str) -> None:
    function, rest = getattr(fastconv, name), CALLS[name]
    size = X1 if name.endswith("1d") else X2
    for wrong in ("x", None, [[1.0]], 1):
        message = f"{name}: input must be a Tensor (got {wrong!r})"
        assert (
            refusal(lambda w=wrong: function(w, *rest), TypeError) == f"{name}: input must be a Tensor (got {wrong!r})"
        )
    if "adaptive" in name:  # of PyTorch's own functions these alone raise another error for fewer dimensions
        message = f"{name}: input must have 4 dimensions, or 3 without a batch (got [5, 6])"
        assert refusal(lambda: function(torch.ones(5, 6), 1), ValueError) == message
        assert refusal(lambda: function(None, None), TypeError) == f"{name}: input must be a Tensor (got None)"
    operator = name.replace("global", "adaptive")
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64):
        word = str(dtype).removeprefix("torch.")
        message = f"{operator}: input must be float32, float64, bfloat16 or float16 (got {word})"
        for device in ("cpu", "meta"):
            x = torch.ones(size, dtype=dtype, device=device)
            assert refusal(lambda x=x: function(x, *rest)) == message
    with pytest.raises(RuntimeError, match="SparseCPU"):
        function(torch.ones(size).to_sparse(), *rest)


@pytest.mark.parametrize("name", CALLS)
def test_empty_batches(name: str) -> None:
    function, rest = getattr(fastconv, name), CALLS[name]
    size = X1 if name.endswith("1d") else X2
    expected = function(torch.ones(size), *rest).shape
    for device in ("cpu", "meta"):
        x = torch.ones(0, *size[1:], device=device, requires_grad=True)
        output = function(x, *rest)
        assert output.shape == (0, *expected[1:])
        output.sum().backward()
        assert x.grad.shape == x.shape
        if "max" in name:
            output, indices = function(x, *rest, return_indices=True)
            assert output.shape == indices.shape == (0, *expected[1:])
            assert indices.dtype == torch.int64


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_no_windows_asked_for(kind: str) -> None:
    """No window at all, and a gradient of zeros."""
    x = torch.randn(X2, requires_grad=True)
    output = getattr(fastconv, f"adaptive_{kind}_pool2d")(x, (0, 3))
    assert output.shape == (1, 4, 0, 3)
    output.sum().backward()
    assert torch.equal(x.grad, torch.zeros(X2))


@pytest.mark.parametrize("bad", BAD_VALUES[::6] + FORMS[::6], ids=name_of)
def test_compiled(bad: Bad) -> None:
    """The compiler wraps the error; the words are in it."""
    torch.compiler.reset()
    name, size, kwargs, message = bad
    x = torch.ones(size)
    function = torch.compile(lambda x: getattr(fastconv, name)(x, **kwargs), backend="eager")
    with pytest.raises(Exception) as raised:  # noqa: PT011  the type is the compiler's affair
        function(x)
    assert f"{name}: {message}" in str(raised.value)


@pytest.mark.parametrize("index", [np.int64(2), np.uint8(2), torch.tensor(2)], ids=lambda v: type(v).__name__)
def test_other_integers_are_integers(index: Any) -> None:
    """What PyTorch takes for an integer."""
    x = torch.randn(1, 3, 8, 9)
    assert torch.equal(
        fastconv.max_pool2d(x, index, (index, 1), dilation=[1, index]), F.max_pool2d(x, 2, (2, 1), 0, (1, 2))
    )
    assert torch.equal(fastconv.adaptive_max_pool2d(x, index), F.adaptive_max_pool2d(x, 2))
    divided = fastconv.avg_pool2d(x, index, divisor_override=index)
    torch.testing.assert_close(divided, F.avg_pool2d(x, 2, divisor_override=2))


def test_strides_that_are_not_given() -> None:
    """None and an empty list stand for the kernel's size, as in PyTorch."""
    x = torch.randn(1, 3, 8, 9)
    for stride in (None, (), []):
        assert torch.equal(fastconv.max_pool2d(x, (2, 3), stride), F.max_pool2d(x, (2, 3), stride))
        torch.testing.assert_close(fastconv.avg_pool1d(x[0], 3, stride), F.avg_pool1d(x[0], 3, stride))


def test_a_window_of_one_dimension_may_be_long() -> None:
    """The rule for two dimensions counts elements, not columns squared."""
    x = torch.randn(1, 2, 70_000)
    for kernel in (35_001, 65_537, 70_000):
        assert torch.equal(fastconv.max_pool1d(x, kernel, kernel), x[..., :kernel].amax(-1, keepdim=True))
        mean = x[..., :kernel].double().mean(-1, keepdim=True)
        torch.testing.assert_close(fastconv.avg_pool1d(x, kernel, kernel).double(), mean, rtol=1e-5, atol=1e-6)


def test_expanded_tensors_of_absurd_size() -> None:
    """Sizes without memory: one element, expanded. Refused, never a crash."""
    one: Tensor = torch.ones(1, 1, 1, 1)
    square = one.expand(1, 1, 2**31, 2**31)
    for name in ("global_avg_pool2d", "global_max_pool2d"):
        message = refusal(lambda n=name: getattr(fastconv, n)(square))
        assert message == (
            f"{name.replace('global', 'adaptive')}: input must have at most {MOST} positions a window "
            f"(got [1, 1, {2**31}, {2**31}])"
        )
    with pytest.raises(RuntimeError):  # no copy of the input has room
        fastconv.max_pool2d(square, 1, 2**30)
    endless = one.expand(1, 1, 2**63 - 1, 1)
    for device in ("cpu", "meta"):
        with pytest.raises(RuntimeError):
            fastconv.max_pool2d(endless.to(device) if device == "cpu" else one.to(device).expand(endless.shape), (3, 1))
    with pytest.raises(RuntimeError, match="output must fit into memory"):
        fastconv.adaptive_avg_pool2d(one, BIG)


def test_ids_that_name_no_tap_write_nowhere_else() -> None:
    """A byte can hold more than the number of a tap; the gradient of such a window goes to nobody."""
    for last in (False, True):
        for kernel, size in ((2, (1, 20, 6, 40)), (13, (1, 20, 14, 16))):
            x = torch.randn(size).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
            windows = ([kernel] * 2 + [kernel if kernel == 2 else 1] * 2 + [0, 0, 1, 1], False)
            output, ids = ops._max_pool_ids(x, *windows)
            ids.fill_(255)
            grad = ops._max_pool_grad(torch.ones_like(output), ids, list(size), *windows)
            assert grad.isfinite().all()
            assert grad.sum() <= output.numel()
            indices = ops._max_pool_indices(ids, list(size), *windows)
            assert indices.shape == output.shape
            assert ops._max_pool_pick(x, ids, *windows).shape == output.shape
