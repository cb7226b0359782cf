"""Pooling among PyTorch's other parts, its modules, and what it refuses: in the same words wherever it is found."""

import inspect
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fastconv

ops = torch.ops.fastconv
#: kernel_size, stride, padding, dilation, ceil_mode
PLAIN = ([3, 3], [2, 2], [1, 1], [1, 1], False)
MAX_WINDOWS: dict[str, tuple] = {
    "strided": PLAIN,
    "dilated, ceil": ([2, 3], [1, 2], [0, 1], [2, 1], True),
    "adaptive": ([], [], [], [], False, [2, 3]),
}
AVG_WINDOWS: dict[str, tuple] = {
    "strided": ([3, 3], [2, 2], [1, 1], False, True, None),
    "padding not counted": ([2, 3], [1, 2], [0, 1], True, False, None),
    "divisor": ([2, 2], [1, 1], [0, 0], False, True, 3),
    "adaptive": ([], [], [], False, True, None, [2, 3]),
}


def randn(*size: int, last: bool = False, grad: bool = True, dtype: torch.dtype = torch.float32) -> Tensor:
    made = torch.randn(size, dtype=dtype)
    return (made.to(memory_format=torch.channels_last) if last else made).requires_grad_(grad)


# ---- opcheck, compile, export, torch.func ------------------------------------------------------------------


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", MAX_WINDOWS)
def test_opcheck_max(name: str, last: bool) -> None:
    windows = MAX_WINDOWS[name]
    x = randn(2, 5, 7, 8, last=last)
    torch.library.opcheck(ops.max_pool.default, (x, *windows))
    torch.library.opcheck(ops._max_pool_ids.default, (x, *windows))
    output, ids = ops._max_pool_ids(x.detach(), *windows)
    size = list(x.shape)
    torch.library.opcheck(ops._max_pool_indices.default, (ids, size, *windows))
    torch.library.opcheck(ops._max_pool_grad.default, (output.requires_grad_(), ids, size, *windows))
    torch.library.opcheck(ops._max_pool_pick.default, (x, ids, *windows))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", AVG_WINDOWS)
def test_opcheck_avg(name: str, last: bool) -> None:
    windows = AVG_WINDOWS[name]
    x = randn(2, 5, 7, 8, last=last)
    torch.library.opcheck(ops.avg_pool.default, (x, *windows))
    output = ops.avg_pool(x.detach(), *windows).requires_grad_()
    torch.library.opcheck(ops._avg_pool_grad.default, (output, list(x.shape), *windows))


@pytest.mark.parametrize(
    "input",
    [
        lambda: randn(2, 8, 12, 7)[:, 1:5, ::2],
        lambda: randn(0, 4, 7, 8),
        lambda: randn(2, 4, 7, 8, dtype=torch.bfloat16, grad=False),
    ],
    ids=["slice", "empty batch", "bfloat16"],
)
def test_opcheck_inputs(input) -> None:
    x = input().detach()
    torch.library.opcheck(ops._max_pool_ids.default, (x, *PLAIN))
    torch.library.opcheck(ops.avg_pool.default, (x, *AVG_WINDOWS["strided"]))
    torch.library.opcheck(ops.max_pool.default, (randn(2, 4, 9), [3], [2], [1], [1], False))


class Net(nn.Module):
    """One of everything, with a gradient through it."""

    def forward(self, x: Tensor) -> Tensor:
        x, indices = fastconv.max_pool2d(x, 3, 2, 1, return_indices=True)  # type: ignore[misc]
        x = x + 0 * indices
        x = fastconv.max_pool2d(x, 2, 1)  # type: ignore[assignment]
        x = fastconv.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        levels = [fastconv.adaptive_max_pool2d(x, 2), fastconv.adaptive_avg_pool2d(x, (3, 2))]
        total = fastconv.global_avg_pool2d(x) + fastconv.global_max_pool2d(x)  # type: ignore[operator]
        rows = fastconv.avg_pool1d(fastconv.max_pool1d(x[0], 3, 1), 2)  # type: ignore[arg-type]
        return sum((each**2).sum() for each in (*levels, total, rows))  # type: ignore[return-value, union-attr, operator]


def gradients(function: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    output = function(leaf)
    return output.detach(), torch.autograd.grad(output, leaf)[0]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool, last: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(Net(), backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for height in (17, 22):
        x = randn(2, 4, height, 19, last=last, grad=False)
        torch.testing.assert_close(gradients(compiled, x), gradients(Net(), x))
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), Net()(x))


def test_export() -> None:
    x = randn(2, 4, 17, 19, grad=False)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Net(), (x,), dynamic_shapes={"x": {0: batch}})
    wider = randn(5, 4, 17, 19, grad=False)
    torch.testing.assert_close(program.module()(wider), Net()(wider))


def test_func() -> None:
    x = randn(2, 4, 9, 8, grad=False)
    for ours, theirs in ((fastconv.max_pool2d, F.max_pool2d), (fastconv.avg_pool2d, F.avg_pool2d)):
        got = torch.func.grad(lambda x, pool=ours: (pool(x, 3, 2, 1) ** 2).sum())(x)
        wanted = torch.func.grad(lambda x, pool=theirs: (pool(x, 3, 2, 1) ** 2).sum())(x)
        torch.testing.assert_close(got, wanted)
        stacked = torch.func.vmap(lambda x, pool=ours: pool(x, 3, 2, 1))(x[:, None])
        torch.testing.assert_close(stacked[:, 0], theirs(x, 3, 2, 1))


def test_autocast_leaves_the_dtype() -> None:
    x = randn(1, 4, 8, 8, grad=False)
    with torch.autocast("cpu", torch.bfloat16):
        for pool in (fastconv.max_pool2d, fastconv.avg_pool2d):
            assert pool(x, 2).dtype == getattr(F, pool.__name__)(x, 2).dtype == torch.float32  # type: ignore[union-attr]


def test_the_input_may_change_before_backward() -> None:
    """What has won was decided in the forward pass."""
    x = randn(1, 4, 8, 8)
    y = x * 1
    output = fastconv.max_pool2d(y, 2)
    (wanted,) = torch.autograd.grad(fastconv.max_pool2d(x * 1, 2).sum(), x)  # type: ignore[union-attr]
    y.data.neg_()
    (got,) = torch.autograd.grad(output.sum(), x)  # type: ignore[union-attr]
    assert torch.equal(got, wanted)


def test_a_gradient_of_the_operator_without_ids() -> None:
    """``max_pool`` itself, called below the public function."""
    x = randn(2, 4, 9, 8)
    (got,) = torch.autograd.grad((ops.max_pool(x, *PLAIN) ** 2).sum(), x)
    (wanted,) = torch.autograd.grad((F.max_pool2d(x, 3, 2, 1) ** 2).sum(), x)
    torch.testing.assert_close(got, wanted)


# ---- modules -----------------------------------------------------------------------------------------------

MODULES: dict[str, tuple] = {
    "MaxPool1d": (3, 2, 1),
    "MaxPool2d": (3, 2, 1, 1, True),
    "AvgPool1d": (3, 2, 1, True, False),
    "AvgPool2d": ((2, 3), 2, 1, False, False, 4),
    "AdaptiveMaxPool2d": ((2, 3), True),
    "AdaptiveAvgPool2d": ((None, 3),),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    theirs, ours = (getattr(module, name)(*MODULES[name]) for module in (nn, fastconv.nn))
    assert isinstance(ours, type(theirs))
    assert inspect.signature(type(ours)) == inspect.signature(type(theirs))
    assert repr(ours) == repr(theirs)
    x = torch.randn(2, 5, 9) if name.endswith("1d") else torch.randn(2, 5, 9, 8)
    torch.testing.assert_close(ours(x), theirs(x))
    both = nn.Sequential(theirs)
    converted = fastconv.convert(both)
    assert type(converted[0]) is type(ours)
    assert type(fastconv.convert(converted, reverse=True)[0]) is type(theirs)


def test_modules_of_our_own() -> None:
    x = torch.randn(2, 5, 4, 3)
    torch.testing.assert_close(fastconv.nn.GlobalAvgPool2d()(x), x.mean((2, 3), keepdim=True))
    torch.testing.assert_close(fastconv.nn.GlobalMaxPool2d()(x), x.amax((2, 3), keepdim=True))


# ---- PyTorch's own samples ---------------------------------------------------------------------------------

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
OPERATORS = {op.name.removeprefix("nn.functional."): op for op in op_db if op.name.startswith("nn.functional.")}
NAMES = ["max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d"]


def as_tuple(result: Any) -> tuple:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_samples(name: str, dtype: torch.dtype) -> None:
    rounding = {torch.bfloat16: 2**-7, torch.float16: 2**-10}.get(dtype, 1e-5)
    count = 0
    for sample in OPERATORS[name].sample_inputs("cpu", dtype, requires_grad=True):
        results, grad = [], None
        for module, input in ((fastconv, sample.input), (F, sample.input.detach().double().requires_grad_())):
            output = as_tuple(getattr(module, name)(input, *sample.args, **sample.kwargs))
            grad = output[0].detach().sin() if grad is None else grad
            results.append((*output, torch.autograd.grad(output[0], input, grad.to(output[0].dtype))[0]))
        assert results[0][0].dtype == dtype
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours.double(), theirs.double(), rtol=rounding, atol=rounding, msg=str(sample))
        count += 1
    assert count >= 3


@pytest.mark.parametrize("name", NAMES)
def test_errors_have_the_same_type(name: str) -> None:
    if OPERATORS[name].error_inputs_func is None:
        pytest.skip("PyTorch has none for it")
    count = 0
    for error in OPERATORS[name].error_inputs("cpu"):
        sample = error.sample_input
        if sample.kwargs.get("kernel_size") == [] or ("too small" in error.error_regex.lower() and name == ""):
            continue
        with pytest.raises(error.error_type) as raised:
            getattr(fastconv, name)(sample.input, *sample.args, **sample.kwargs)
        assert str(raised.value).startswith(f"{name}: "), raised.value
        count += 1
    assert count >= 2


# ---- what is refused ---------------------------------------------------------------------------------------

X = (1, 4, 5, 6)
BAD: list[tuple[str, tuple, dict, str]] = [
    ("max_pool2d", X, {"kernel_size": 0}, "kernel_size must be positive (got [0, 0])"),
    ("max_pool2d", X, {"kernel_size": (2, 2, 2)}, "kernel_size must have 2 elements (got [2, 2, 2])"),
    ("max_pool2d", X, {"kernel_size": 2, "stride": 0}, "stride must be positive (got [0, 0])"),
    ("max_pool2d", X, {"kernel_size": 2, "padding": -1}, "padding must not be negative (got [-1, -1])"),
    ("max_pool2d", X, {"kernel_size": 2, "dilation": 0}, "dilation must be positive (got [0, 0])"),
    (
        "max_pool2d",
        X,
        {"kernel_size": 3, "padding": (1, 2)},
        "padding must be at most half of what a window spans, 3 in dimension 1 (got [1, 2])",
    ),
    (
        "max_pool2d",
        X,
        {"kernel_size": (6, 2)},
        "kernel_size must not span more than the padded input, 6 > 5 in dimension 0 (got [6, 2])",
    ),
    (
        "max_pool2d",
        X,
        {"kernel_size": 2**20, "ceil_mode": True},
        "kernel_size must have at most 1073741824 positions (got [1048576, 1048576])",
    ),
    ("max_pool2d", (1, 0, 5, 6), {"kernel_size": 2}, "input must not be empty but for its batch (got [1, 0, 5, 6])"),
    ("max_pool1d", (1, 4, 5), {"kernel_size": 6}, "kernel_size must not span more than the padded input, 6 > 5"),
    ("avg_pool2d", X, {"kernel_size": 2, "divisor_override": 0}, "divisor_override must not be zero (got 0)"),
    ("avg_pool2d", X, {"kernel_size": 2, "stride": (1, -1)}, "stride must be positive (got [1, -1])"),
    ("avg_pool1d", (1, 4, 0), {"kernel_size": 2}, "input must not be empty but for its batch (got [1, 4, 0])"),
    ("adaptive_avg_pool2d", X, {"output_size": -1}, "output_size must not be negative (got [-1, -1])"),
    ("adaptive_max_pool2d", (1, 4, 0, 6), {"output_size": 2}, "input must not be empty but for its batch"),
    ("adaptive_max_pool2d", X, {"output_size": (1, 2, 3)}, "output_size must have 2 elements (got [1, 2, 3])"),
]


@pytest.mark.parametrize(("name", "size", "kwargs", "message"), BAD, ids=[f"{b[0]} {b[3][:40]}" for b in BAD])
def test_refused(name: str, size: tuple, kwargs: dict, message: str) -> None:
    function = getattr(fastconv, name)

    def call() -> None:
        with pytest.raises(RuntimeError) as raised:
            function(torch.ones(size), **kwargs)
        assert str(raised.value).startswith(f"{name}: {message}")

    call()
    with FakeTensorMode():
        call()


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d"])
def test_refused_inputs(name: str) -> None:
    function = getattr(fastconv, name)
    for bad in (torch.ones(4, 5), torch.ones(1, 2, 3, 4, 5)):
        # PyTorch's habit: another error where adaptive pooling gets fewer.
        error = ValueError if "adaptive" in name and bad.dim() < 3 else RuntimeError
        with pytest.raises(error, match=rf"{name}: input must have 4 dimensions, or 3 without a batch \(got \["):
            function(bad, 1)
    with pytest.raises(TypeError, match=rf"{name}: input must be a Tensor \(got 'x'\)"):
        function("x", 1)
    for dtype in (torch.int64, torch.bool, torch.complex64):
        word = str(dtype).removeprefix("torch.")
        with pytest.raises(RuntimeError, match=rf"{name}: input must be float32, .* \(got {word}\)"):
            function(torch.ones(1, 2, 4, 4).to(dtype), 2)
    for size in (1.5, "2", (2, 2.0), True):
        with pytest.raises(TypeError, match=rf"{name}: \w+_size must be an integer or 2 integers \(got "):
            function(torch.ones(1, 2, 4, 4), size)


def test_refused_by_private_operators() -> None:
    x = torch.ones(1, 4, 5, 6)
    output, ids = ops._max_pool_ids(x, *PLAIN)
    size = list(x.shape)
    with pytest.raises(RuntimeError, match=r"max_pool2d: ids must be uint8 \(got int64\)"):
        ops._max_pool_grad(output, ids.long(), size, *PLAIN)
    with pytest.raises(RuntimeError, match=r"max_pool2d: ids must have shape \[1, 4, 3, 3\] \(got \[1, 4, 2, 3\]\)"):
        ops._max_pool_indices(ids[:, :, 1:], size, *PLAIN)
    with pytest.raises(RuntimeError, match=r"max_pool2d: grad_output must have shape \[1, 4, 3, 3\]"):
        ops._max_pool_grad(output[:, 1:], ids, size, *PLAIN)
    with pytest.raises(RuntimeError, match=r"avg_pool2d: grad_output must have shape \[1, 4, 3, 3\]"):
        ops._avg_pool_grad(output[:, 1:], size, *AVG_WINDOWS["strided"])


def test_ids_that_name_no_tap_write_nowhere_else() -> None:
    """A byte can hold more than the number of a tap; the gradient of such a window goes to nobody."""
    for last in (False, True):
        for kernel, size in ((2, (1, 20, 6, 40)), (13, (1, 20, 14, 16))):
            x = randn(*size, last=last, grad=False)
            windows = ([kernel] * 2, [kernel if kernel == 2 else 1] * 2, [0, 0], [1, 1], False)
            output, ids = ops._max_pool_ids(x, *windows)
            ids.fill_(255)
            grad = ops._max_pool_grad(torch.ones_like(output), ids, list(size), *windows)
            assert grad.isfinite().all()
            assert grad.sum() <= output.numel()
            indices = ops._max_pool_indices(ids, list(size), *windows)
            assert indices.shape == output.shape
            assert ops._max_pool_pick(x, ids, *windows).shape == output.shape
