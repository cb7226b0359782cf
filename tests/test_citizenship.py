"""The operators among PyTorch's other parts: opcheck, compile, export, autocast, torch.func, modes and meta
tensors.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import fastconv

ops = torch.ops.fastconv
REST = ([1, 1], [0, 0, 0, 0], [1, 1], 1)


#: For weights with as many input channels as output channels, which suit both.
BOTH = pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])


def randn(*size: int, last: bool = False, grad: bool = False, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    made = torch.randn(size, dtype=dtype)
    return (made.to(memory_format=torch.channels_last) if last else made).requires_grad_(grad)


# ---- opcheck -----------------------------------------------------------------------------------------------

CONFIGURATIONS = {
    "plain": lambda: (randn(2, 4, 6, 7), randn(6, 4, 3, 3), randn(6), *REST),
    "gradient": lambda: (
        randn(2, 4, 6, 7, grad=True), randn(6, 4, 3, 3, grad=True), randn(6, grad=True), *REST
    ),
    "no bias, channels_last": lambda: (
        randn(2, 4, 6, 7, last=True, grad=True), randn(6, 4, 3, 3, last=True, grad=True), None, *REST
    ),
    "strided, dilated, grouped": lambda: (
        randn(2, 4, 9, 8, grad=True), randn(6, 2, 3, 2, grad=True), None, [2, 1], [1, 2, 1, 3], [1, 2], 2
    ),
    "depthwise": lambda: (
        randn(2, 5, 6, 7, last=True, grad=True), randn(5, 1, 3, 3, grad=True), randn(5),
        [1, 1], [1] * 4, [1, 1], 5
    ),
    "slice": lambda: (randn(2, 8, 12, 7)[:, 1:5, ::2].requires_grad_(), randn(6, 4, 3, 3), None, *REST),
    "bfloat16": lambda: (
        randn(2, 4, 6, 7, dtype=torch.bfloat16), randn(6, 4, 3, 3, dtype=torch.bfloat16), None, *REST
    ),
    "empty batch": lambda: (randn(0, 4, 6, 7), randn(6, 4, 3, 3), None, *REST),
    "1-D": lambda: (randn(2, 4, 9, grad=True), randn(6, 4, 3, grad=True), randn(6), [2], [1, 1], [1], 1),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_opcheck_conv(name: str) -> None:
    torch.library.opcheck(ops.conv.default, CONFIGURATIONS[name](), raise_exception=True)


TRANSPOSED_CONFIGURATIONS = {
    "plain": lambda: (randn(2, 4, 6, 7), randn(4, 6, 3, 3), randn(6), [1, 1], [0, 0], [0, 0], [1, 1], 1),
    "gradient, strided": lambda: (
        randn(2, 4, 5, 4, grad=True), randn(4, 3, 4, 4, grad=True), randn(3, grad=True),
        [2, 2], [1, 1], [0, 0], [1, 1], 1
    ),
    "channels_last, output padding": lambda: (
        randn(2, 4, 5, 4, last=True, grad=True), randn(4, 3, 3, 3, last=True, grad=True), None,
        [2, 2], [1, 0], [1, 1], [1, 1], 1
    ),
    "dilated, grouped": lambda: (
        randn(2, 4, 5, 4, grad=True), randn(4, 3, 3, 2, grad=True), None, [2, 1], [1, 2], [0, 2], [1, 3], 2
    ),
    "depthwise": lambda: (
        randn(2, 5, 4, 4, last=True, grad=True), randn(5, 1, 3, 3, grad=True), randn(5),
        [2, 2], [1, 1], [1, 1], [1, 1], 5
    ),
    "slice": lambda: (
        randn(2, 8, 12, 7)[:, 1:5, ::2].requires_grad_(), randn(4, 6, 3, 3), None, [2, 2], [1, 1], [0, 0], [1, 1], 1
    ),
    "float16": lambda: (
        randn(2, 4, 6, 7, dtype=torch.float16), randn(4, 6, 3, 3, dtype=torch.float16), None,
        [2, 2], [0, 0], [0, 0], [1, 1], 1
    ),
    "empty batch": lambda: (randn(0, 4, 6, 7), randn(4, 6, 3, 3), None, [1, 1], [0, 0], [0, 0], [1, 1], 1),
    "1-D": lambda: (
        randn(2, 4, 9, grad=True), randn(4, 6, 3, grad=True), randn(6), [3], [1], [2], [1], 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSPOSED_CONFIGURATIONS)
def test_opcheck_conv_transpose(name: str) -> None:
    torch.library.opcheck(ops.conv_transpose.default, TRANSPOSED_CONFIGURATIONS[name](), raise_exception=True)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_opcheck_gradients_of_conv(stride: int, last: bool) -> None:
    rest = ([stride, stride], [1] * 4, [1, 1], 1)
    size = (6 - 1) // stride + 1
    grad = randn(2, 5, size, size, last=last, grad=True)
    input, weight = randn(2, 4, 6, 6, last=last, grad=True), randn(5, 4, 3, 3, grad=True)
    torch.library.opcheck(ops._conv_grad_input.default, (grad, weight, list(input.shape), *rest))
    torch.library.opcheck(ops._conv_grad_weight.default, (grad, input, list(weight.shape), *rest))


@pytest.mark.parametrize("operator", [ops.channel_shuffle.default, ops.channel_unshuffle.default])
@pytest.mark.parametrize(
    "input",
    [
        lambda: randn(2, 6, 3, 4, grad=True),
        lambda: randn(2, 6, 3, 4, last=True, grad=True),
        lambda: randn(2, 6, 5),
        lambda: randn(2, 12, 6, 4)[:, ::2, 1::2].requires_grad_(),
        lambda: torch.arange(24).view(1, 6, 2, 2),
    ],
)
def test_opcheck_shuffle(operator, input) -> None:
    torch.library.opcheck(operator, (input(), 3))


# ---- compile and export ------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    """One of everything, with a gradient through it."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(
            [
                torch.randn(size) / 3
                for size in [(8, 4, 3, 3), (8, 1, 3, 3), (6, 4, 2, 2), (6, 3, 4, 3), (5, 6, 3), (5, 4, 3)]
            ]
        )
        self.bias = torch.nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stem, depthwise, grouped, up, line, longer = self.weights
        x = fastconv.conv2d(x, stem, self.bias, stride=2, padding=1).relu()
        x = fastconv.channel_shuffle(x, 2)
        x = fastconv.conv2d(x, depthwise, padding="same", groups=8)
        x = fastconv.channel_unshuffle(fastconv.conv2d(x, grouped, padding=(1, 0), groups=2), 3)
        x = fastconv.conv_transpose2d(x, up, self.bias[:6], stride=2, padding=(1, 0), groups=2)
        x = fastconv.conv1d(x.flatten(2), line, padding=1, dilation=2)
        return fastconv.conv_transpose1d(x, longer, stride=2, output_padding=1)


class TorchNet(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stem, depthwise, grouped, up, line, longer = self.weights
        x = F.conv2d(x, stem, self.bias, stride=2, padding=1).relu()
        x = F.channel_shuffle(x, 2)
        x = F.conv2d(x, depthwise, padding="same", groups=8)
        x = F.conv2d(x, grouped, padding=(1, 0), groups=2)
        x = x.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)
        x = F.conv_transpose2d(x, up, self.bias[:6], stride=2, padding=(1, 0), groups=2)
        x = F.conv1d(x.flatten(2), line, padding=1, dilation=2)
        return F.conv_transpose1d(x, longer, stride=2, output_padding=1)


def twins() -> tuple[Net, TorchNet]:
    mine, theirs = Net(), TorchNet()
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs


def assert_same_training_step(mine, theirs, x: torch.Tensor, parameters, others) -> None:
    outputs = mine(x), theirs(x)
    assert_close(*outputs, rtol=1e-4, atol=1e-4)
    grads = [
        torch.autograd.grad(output.square().mean(), list(p))
        for output, p in zip(outputs, (parameters, others), strict=True)
    ]
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("last", [False, True])
def test_net_in_eager_mode(last: bool) -> None:
    mine, theirs = twins()
    assert_same_training_step(mine, theirs, randn(2, 4, 9, 11, last=last), mine.parameters(), theirs.parameters())


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_compile(dynamic: bool, last: bool) -> None:
    """One graph, forward and backward; a second size runs as well."""
    torch._dynamo.reset()
    mine, theirs = twins()
    compiled = torch.compile(mine, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in [(2, 4, 9, 11), (3, 4, 12, 8), (3, 4, 14, 10)]:
        assert_same_training_step(compiled, theirs, randn(*size, last=last), mine.parameters(), theirs.parameters())


def test_compile_with_inductor() -> None:
    torch._dynamo.reset()
    mine, theirs = twins()
    compiled = torch.compile(mine, fullgraph=True)
    x = randn(2, 4, 9, 11)
    assert_same_training_step(compiled, theirs, x, mine.parameters(), theirs.parameters())
    with torch.no_grad():
        assert_close(compiled(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_one_dynamic_graph_serves_many_sizes() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    weight = randn(6, 4, 3, 3)
    compiled = torch.compile(
        lambda x: fastconv.conv2d(x, weight, padding=1), fullgraph=True, dynamic=True, backend=counter
    )
    for size in [(2, 4, 9, 11), (3, 4, 12, 8), (5, 4, 7, 6)]:
        compiled(randn(*size))
    assert counter.frame_count == 1


def test_export_with_dynamic_sizes() -> None:
    mine, theirs = twins()
    dims = {0: torch.export.Dim("N", min=2), 2: torch.export.Dim("H", min=6), 3: torch.export.Dim("W", min=6)}
    program = torch.export.export(mine, (randn(2, 4, 9, 11),), dynamic_shapes=(dims,))
    for size in [(2, 4, 9, 11), (4, 4, 16, 7), (3, 4, 8, 8)]:
        x = randn(*size)
        assert_close(program.module()(x), theirs(x), rtol=1e-4, atol=1e-4)
    targets = {str(node.target) for node in program.graph.nodes}
    assert {f"fastconv.{name}.default" for name in ("conv", "conv_transpose", "channel_shuffle")} <= targets
    inference = program.run_decompositions()
    assert_close(inference.module()(x), theirs(x), rtol=1e-4, atol=1e-4)


# ---- autocast ----------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("direct", [False, True])
def test_autocast(dtype: torch.dtype, direct: bool, name: str) -> None:
    """As PyTorch's own: computed in autocast's dtype, gradients in each argument's own."""

    def conv(x, w, b):
        if direct and name == "conv2d":
            return ops.conv(x, w, b, *REST)
        if direct:
            return ops.conv_transpose(x, w, b, [1, 1], [0, 0], [0, 0], [1, 1], 1)
        return getattr(fastconv, name)(x, w, b)

    results = []
    tensors = randn(2, 4, 6, 7), randn(4, 4, 3, 3), randn(4)
    for function in (conv, getattr(F, name)):
        x, w, b = (t.clone().requires_grad_() for t in tensors)
        with torch.autocast("cpu", dtype=dtype):
            output = function(x, w, b)
        output.float().square().mean().backward()
        assert output.dtype == dtype
        results.append((output.detach(), x.grad, w.grad, b.grad))
    for mine, theirs in zip(*results, strict=True):
        assert mine.dtype == theirs.dtype
        assert_close(mine, theirs, rtol=2**-5, atol=0.03)
    with torch.autocast("cpu", dtype=dtype), torch.no_grad():
        assert conv(*tensors).dtype == dtype
        assert conv(tensors[0].to(dtype), *tensors[1:]).dtype == dtype


def test_autocast_leaves_double_alone() -> None:
    x, w = randn(1, 2, 4, 4, dtype=torch.float64), randn(3, 2, 3, 3, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fastconv.conv2d(x, w).dtype == F.conv2d(x, w).dtype == torch.float64
        for conv2d in (fastconv.conv2d, F.conv2d):
            with pytest.raises(RuntimeError):
                conv2d(x, w.float())


def test_autocast_switched_off_inside() -> None:
    x, w = randn(1, 2, 4, 4), randn(3, 2, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            assert fastconv.conv2d(x, w).dtype == torch.float32
        assert fastconv.conv2d(x, w).dtype == torch.bfloat16


def test_autocast_compiled() -> None:
    torch._dynamo.reset()
    x, w = randn(1, 2, 4, 4), randn(3, 2, 3, 3, grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = torch.compile(fastconv.conv2d, fullgraph=True, backend="aot_eager")(x, w)
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert w.grad.dtype == torch.float32


def test_autocast_does_not_touch_the_shuffle() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fastconv.channel_shuffle(randn(1, 4, 2), 2).dtype == torch.float32


# ---- modes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes(mode) -> None:
    x, w = randn(1, 4, 5, 5, grad=True), randn(4, 4, 3, 3, grad=True)
    with mode():
        for output in (
            fastconv.conv_transpose2d(x, w),
            fastconv.channel_shuffle(x, 2),
            fastconv.conv2d(x, w),
            ops.conv(x, w, None, *REST),
        ):
            assert output.requires_grad == (mode is torch.enable_grad)
            assert output.is_inference() == (mode is torch.inference_mode)
    assert_close(output, F.conv2d(x, w), rtol=1e-5, atol=1e-5)


def test_inference_tensors_as_frozen_input() -> None:
    """Features made in inference mode may not be saved for backward, by PyTorch's rule, and need not be where
    the weight is frozen."""
    with torch.inference_mode():
        x = randn(1, 4, 5, 5)
        assert fastconv.conv2d(x, randn(6, 4, 3, 3)).is_inference()
    bias = randn(6, grad=True)
    fastconv.conv2d(x, randn(6, 4, 3, 3), bias).sum().backward()
    assert_close(bias.grad, torch.full((6,), 9.0))
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        fastconv.conv2d(x, randn(6, 4, 3, 3, grad=True))


def test_deterministic_algorithms() -> None:
    x, w = randn(2, 4, 9, 9, grad=True), randn(6, 4, 3, 3, grad=True)
    free = torch.autograd.grad(fastconv.conv2d(x, w, stride=2).sin().sum(), (x, w))
    torch.use_deterministic_algorithms(True)
    fixed = torch.autograd.grad(fastconv.conv2d(x, w, stride=2).sin().sum(), (x, w))
    for a, b in zip(free, fixed, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant: bool) -> None:
    x, w = randn(2, 4, 9, 9, grad=True), randn(4, 4, 3, 3, grad=True)

    def block(x):
        return fastconv.channel_shuffle(fastconv.conv2d(x, w, padding=1).relu(), 2)

    plain = torch.autograd.grad(block(block(x)).sum(), (x, w))
    x.grad = w.grad = None
    checkpoint(lambda x: block(block(x)), x, use_reentrant=use_reentrant).sum().backward()
    for a, b in zip(plain, (x.grad, w.grad), strict=True):
        assert_close(a, b)


def test_changed_in_place_before_backward() -> None:
    x, w = randn(1, 4, 5, 5), randn(6, 4, 3, 3, grad=True)
    output = fastconv.conv2d(x, w)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@BOTH
@pytest.mark.parametrize("last", [False, True])
def test_meta_tensors(last: bool, name: str) -> None:
    """Shape, strides and dtype of the real result."""
    function = getattr(fastconv, name)
    tensors = [randn(2, 4, 9, 10, last=last), randn(4, 2, 3, 3), randn(4)]
    real = function(*tensors, 2, 1, groups=2)
    x, w, b = (t.to("meta").requires_grad_() for t in tensors)
    meta = function(x, w, b, 2, 1, groups=2)
    assert meta.device.type == "meta"
    assert (meta.shape, meta.stride(), meta.dtype) == (real.shape, real.stride(), real.dtype)
    meta.sum().backward()
    assert [t.grad.shape for t in (x, w, b)] == [t.shape for t in tensors]
    shuffled = fastconv.channel_shuffle(x, 2)
    assert (shuffled.shape, shuffled.stride()) == (x.shape, x.stride())


class Named(torch.Tensor):
    """The plainest subclass: results keep the type."""


def test_subclass() -> None:
    x, w = randn(1, 4, 5, 5), randn(6, 4, 3, 3)
    output = fastconv.conv2d(x.as_subclass(Named), w)
    assert_close(output.as_subclass(torch.Tensor), F.conv2d(x, w), rtol=1e-5, atol=1e-5)


def test_parameter_hooks_and_copies() -> None:
    """What training loops do: hooks see the gradient, copies of a module compute the same."""
    mine, _ = twins()
    seen = []
    mine.bias.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    x = randn(2, 4, 9, 9)
    mine(x).sum().backward()
    assert len(seen) == 1
    assert torch.equal(copy.deepcopy(mine)(x), mine(x))


# ---- torch.func --------------------------------------------------------------------------------------------

VMAP_FALLBACK = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


@BOTH
def test_func_grad_and_vjp(name: str) -> None:
    x, w, b = randn(2, 4, 6, 7), randn(4, 4, 3, 3), randn(4)

    def loss(module):
        return lambda *tensors: getattr(module, name)(*tensors, stride=2, padding=1).square().sum()

    mine = torch.func.grad(loss(fastconv), argnums=(0, 1, 2))(x, w, b)
    theirs = torch.func.grad(loss(F), argnums=(0, 1, 2))(x, w, b)
    for a, c in zip(mine, theirs, strict=True):
        assert_close(a, c, rtol=1e-3, atol=1e-3)
    output, pullback = torch.func.vjp(lambda x: fastconv.channel_shuffle(x, 2), x)
    assert torch.equal(pullback(output)[0], x)


@VMAP_FALLBACK
@BOTH
def test_func_grad_of_grad(name: str) -> None:
    x, w = randn(1, 2, 4, 4, dtype=torch.float64), randn(2, 2, 3, 3, dtype=torch.float64)

    def penalty(module):
        conv = getattr(module, name)
        return lambda w: torch.func.grad(lambda x: conv(x, w).pow(3).sum())(x).square().sum()

    assert_close(torch.func.grad(penalty(fastconv))(w), torch.func.grad(penalty(F))(w))


@VMAP_FALLBACK
@BOTH
def test_jacobian(name: str) -> None:
    x, w = randn(1, 2, 4, 4, dtype=torch.float64), randn(2, 2, 3, 3, dtype=torch.float64)
    mine, theirs = (torch.func.jacrev(lambda w, m=m: getattr(m, name)(x, w))(w) for m in (fastconv, F))
    assert_close(mine, theirs)


@VMAP_FALLBACK
@BOTH
@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0), (1, 0)])
def test_vmap(dims: tuple, name: str) -> None:
    x = randn(3, 3, 4, 5, 5) if dims[0] is not None else randn(3, 4, 5, 5)
    w = randn(3, 4, 4, 3, 3) if dims[1] is not None else randn(4, 4, 3, 3)
    mine, theirs = (torch.vmap(getattr(module, name), in_dims=dims)(x, w) for module in (fastconv, F))
    assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@VMAP_FALLBACK
def test_vmap_shuffle() -> None:
    x = randn(3, 2, 6, 4)
    mine = torch.vmap(lambda t: fastconv.channel_shuffle(t, 3))(x)
    assert torch.equal(mine, torch.stack([F.channel_shuffle(t, 3) for t in x]))


@VMAP_FALLBACK
def test_gradients_of_each_sample() -> None:
    mine, theirs = twins()
    x = randn(3, 4, 8, 8)

    def per_sample(net):
        parameters = {name: p.detach() for name, p in net.named_parameters()}

        def loss(parameters, sample):
            return torch.func.functional_call(net, parameters, (sample[None],)).square().mean()

        return torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)

    expected = per_sample(theirs)
    for name, grad in per_sample(mine).items():
        assert_close(grad, expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("grad", [False, True])
def test_a_recorded_program_can_be_differentiated(grad: bool) -> None:
    """Calls without a gradient go to an overload that has none; whoever records them shall not see it."""
    x, w = randn(1, 3, 5, 5, grad=grad), randn(2, 3, 3, 3, grad=grad)
    with torch.set_grad_enabled(grad):
        program = make_fx(lambda x, w: fastconv.conv2d(x, w, padding=1))(x, w)
    assert [node.target for node in program.graph.nodes if node.op == "call_function"].count(ops.conv.default) == 1
    inputs = x.detach().requires_grad_(), w.detach().requires_grad_()
    got = torch.autograd.grad(program(*inputs).square().sum(), inputs)
    expected = torch.autograd.grad(F.conv2d(*inputs, padding=1).square().sum(), inputs)
    for one, other in zip(got, expected, strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-4)
