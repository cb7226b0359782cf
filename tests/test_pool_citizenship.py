"""Pooling among PyTorch's other parts: opcheck, compile, export, torch.func, modes, its modules and its own samples."""

import inspect
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastconv

ops = torch.ops.fastconv
#: kernel sizes, strides, paddings, dilations; ceil_mode
PLAIN = ([3, 3, 2, 2, 1, 1, 1, 1], False)
MAX_WINDOWS: dict[str, tuple] = {
    "strided": PLAIN,
    "dilated, ceil": ([2, 3, 1, 2, 0, 1, 2, 1], True),
    "adaptive": ([2, 3], False),
}
AVG_WINDOWS: dict[str, tuple] = {
    "strided": ([3, 3, 2, 2, 1, 1, 1, 1], False, True, None),
    "padding not counted": ([2, 3, 1, 2, 0, 1, 1, 1], True, False, None),
    "divisor": ([2, 2, 1, 1, 0, 0, 1, 1], False, True, 3),
    "adaptive": ([2, 3], False, True, None),
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
    torch.library.opcheck(ops.max_pool.default, (randn(2, 4, 9), [3, 2, 1, 1], False))


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


def test_compile_with_inductor() -> None:
    torch.compiler.reset()
    compiled = torch.compile(Net(), fullgraph=True)
    x = randn(2, 4, 17, 19, grad=False)
    torch.testing.assert_close(gradients(compiled, x), gradients(Net(), x))


#: One call of each function, of either package: what torch.func, modes and meta tensors are tried on.
CALLS: dict[str, Any] = {
    "max_pool1d": lambda m, x: m.max_pool1d(x.flatten(-2), 5, 2, 1),
    "max_pool2d": lambda m, x: m.max_pool2d(x, 3, 2, 1),
    "max_pool2d, ceil": lambda m, x: m.max_pool2d(x, (2, 3), 2, 1, ceil_mode=True),
    "max_pool2d, indices": lambda m, x: m.max_pool2d(x, 3, 2, 1, return_indices=True),
    "avg_pool1d": lambda m, x: m.avg_pool1d(x.flatten(-2), 5, 2, 1),
    "avg_pool2d": lambda m, x: m.avg_pool2d(x, 3, 2, 1, True, False),
    "adaptive_max_pool2d": lambda m, x: m.adaptive_max_pool2d(x, (2, 3)),
    "adaptive_max_pool2d, indices": lambda m, x: m.adaptive_max_pool2d(x, (4, 3), True),
    "adaptive_avg_pool2d": lambda m, x: m.adaptive_avg_pool2d(x, (2, 3)),
    "to one, max": lambda m, x: m.adaptive_max_pool2d(x, 1),
    "to one, avg": lambda m, x: m.adaptive_avg_pool2d(x, (1, 1)),
}
EVERY_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
VMAP_FALLBACK = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


def as_tuple(result: Any) -> tuple:
    return result if isinstance(result, tuple) else (result,)


def values(call: Any, module: Any, x: Tensor) -> Tensor:
    return as_tuple(call(module, x))[0]


#: Winners are kept in as many bytes as the largest window takes, and of windows that adapt the sizes decide that.
WINNERS_OF_ADAPTIVE = "adaptive_max_pool2d, indices"


@pytest.mark.parametrize("name", [name for name in CALLS if name != WINNERS_OF_ADAPTIVE])
def test_export_with_dynamic_sizes(name: str) -> None:
    """No rule of ours narrows what sizes a program serves."""
    call = CALLS[name]

    class Call(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return call(fastconv, x)

    dim = torch.export.Dim
    dims = {0: dim("N", min=2), 2: dim("H", min=4), 3: dim("W", min=4)}
    program = torch.export.export(Call(), (randn(2, 4, 9, 11, grad=False),), dynamic_shapes=(dims,))
    assert any("fastconv" in str(node.target) for node in program.graph.nodes)
    for size in ((2, 4, 9, 11), (4, 4, 16, 6), (3, 4, 8, 40)):
        x = randn(*size, grad=False)
        torch.testing.assert_close(program.module()(x), call(F, x))
    torch.testing.assert_close(program.run_decompositions().module()(x), call(F, x))


@EVERY_CALL
def test_one_dynamic_graph_serves_many_sizes(call: Any) -> None:
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(lambda x: call(fastconv, x), fullgraph=True, dynamic=True, backend=counter)
    with torch.no_grad():
        for size in ((2, 4, 9, 11), (3, 4, 12, 8), (5, 4, 7, 26)):
            x = randn(*size, grad=False)
            torch.testing.assert_close(compiled(x), call(F, x))
    assert counter.frame_count == 1 or call is CALLS[WINNERS_OF_ADAPTIVE]


@VMAP_FALLBACK
@EVERY_CALL
def test_func(call: Any) -> None:
    x = randn(3, 2, 9, 8, grad=False, dtype=torch.float64)
    mine, theirs = (
        (
            torch.func.grad(lambda x, m=m: values(call, m, x).pow(3).sum())(x),
            torch.func.grad(
                lambda x, m=m: torch.func.grad(lambda x: values(call, m, x).pow(3).sum())(x).square().sum()
            )(x),
            torch.func.jacrev(lambda x, m=m: values(call, m, x))(x[:1]),
            torch.vmap(lambda x, m=m: call(m, x))(x[:, None]),
            torch.vmap(lambda x, m=m: call(m, x), in_dims=1)(x[:, :, None]),
            torch.vmap(torch.func.grad(lambda x, m=m: values(call, m, x).pow(3).sum()))(x),
            torch.func.vjp(lambda x, m=m: values(call, m, x), x)[1](values(call, m, x).sin())[0],
        )
        for m in (fastconv, F)
    )
    torch.testing.assert_close(mine, theirs)


@EVERY_CALL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_leaves_the_dtype(call: Any, dtype: torch.dtype) -> None:
    """As PyTorch's own: what comes in decides, forward and backward."""
    for own in (torch.float32, torch.float64, dtype):
        x = randn(2, 4, 9, 8, dtype=own)
        with torch.autocast("cpu", dtype):
            output, expected = values(call, fastconv, x), values(call, F, x)
        assert output.dtype == expected.dtype == own
        (grad,) = torch.autograd.grad(output.float().sum(), x)
        assert grad.dtype == own


# ---- modes, meta tensors, checkpoints ----------------------------------------------------------------------


@EVERY_CALL
@pytest.mark.parametrize("last", [False, True])
def test_meta_tensors(call: Any, last: bool) -> None:
    """Shape, strides and dtype of the real result, and of its gradient."""
    x = randn(2, 4, 9, 8, last=last)
    real, meta = as_tuple(call(fastconv, x)), as_tuple(call(fastconv, x.to("meta")))
    for ours, theirs in zip(meta, real, strict=True):
        assert ours.device.type == "meta"
        assert (ours.shape, ours.stride(), ours.dtype) == (theirs.shape, theirs.stride(), theirs.dtype)
    leaf = x.detach().to("meta").requires_grad_()
    values(call, fastconv, leaf).sum().backward()
    values(call, fastconv, x).sum().backward()
    assert leaf.grad is not None
    assert x.grad is not None
    assert (leaf.grad.shape, leaf.grad.stride()) == (x.grad.shape, x.grad.stride())


@EVERY_CALL
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes(call: Any, mode: Any) -> None:
    x = randn(2, 4, 9, 8)
    with mode():
        output, *indices = as_tuple(call(fastconv, x))
        assert output.requires_grad == (mode is torch.enable_grad)
        assert output.is_inference() == (mode is torch.inference_mode)
        assert not any(index.requires_grad for index in indices)
    torch.testing.assert_close(output, values(call, F, x))


@EVERY_CALL
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints(call: Any, use_reentrant: bool) -> None:
    x = randn(2, 4, 9, 8)

    def block(x: Tensor) -> Tensor:
        return values(call, fastconv, x.sin()).exp()

    (plain,) = torch.autograd.grad(block(x).sum(), x)
    checkpoint(block, x, use_reentrant=use_reentrant).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, plain)


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_deterministic_algorithms(name: str) -> None:
    x = randn(2, 4, 9, 9)
    grads = []
    for fixed in (False, True):
        torch.use_deterministic_algorithms(fixed)
        grads.append(torch.autograd.grad(getattr(fastconv, name)(x, 3, 2, 1).sin().sum(), x)[0])
    assert torch.equal(*grads)


class Named(Tensor):
    """The plainest subclass: results keep the type."""


@EVERY_CALL
def test_subclass(call: Any) -> None:
    x = randn(2, 4, 9, 8, grad=False)
    for ours, theirs in zip(*(as_tuple(call(m, x.as_subclass(Named))) for m in (fastconv, F)), strict=True):
        assert type(ours) is type(theirs) is Named
        torch.testing.assert_close(ours.as_subclass(Tensor), theirs.as_subclass(Tensor))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_samples(name: str, dtype: torch.dtype) -> None:
    rounding = {torch.bfloat16: 2**-7, torch.float16: 2**-10}.get(dtype, 1e-5)
    count = 0
    samples = list(OPERATORS[name].sample_inputs("cpu", dtype, requires_grad=True))
    for sample in samples if len(samples) < 50 else samples[:: 3 if dtype == torch.float32 else 7]:
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
        with pytest.raises(error.error_type) as raised:
            getattr(fastconv, name)(sample.input, *sample.args, **sample.kwargs)
        assert str(raised.value).startswith(f"{name}: "), raised.value
        count += 1
    assert count >= 2
