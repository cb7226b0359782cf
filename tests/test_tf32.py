"""Whether convolutions on CUDA may round float32 to TF32 is what PyTorch says at the forward call, for all that follows
from it. Seen from the operators' arguments, so on any machine; what the kernels make of it is tested by
test_conv_cuda.py."""

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastconv
from fastconv._native import ops
from fastconv.conv import tf32_is_allowed

pytestmark = pytest.mark.usefixtures("cudnn_settings")


class Told(TorchDispatchMode):
    """What the operators were told, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[str, set[bool]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastconv":
            place = [argument.name for argument in func._schema.arguments].index("allow_tf32")
            self.told.setdefault(func._opname, set()).add(args[place] if len(args) > place else False)
        return func(*args, **(kwargs or {}))


def conv(x: Tensor, weight: Tensor, **more) -> Tensor:
    return fastconv.conv2d(x, weight, padding=1, **more)


CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plain": conv,
    "relu": lambda x, w: conv(x, w, activation="relu"),
    "silu": lambda x, w: conv(x, w, activation="silu"),
    "residual": lambda x, w: conv(x, w, residual=x),
    "transposed": lambda x, w: fastconv.conv_transpose2d(x, w, padding=1),
}


def told(call: Callable, between: bool) -> set[bool]:
    """By forward, backward and double backward; `between` the first two PyTorch is told this."""
    x, weight = (torch.randn(size, requires_grad=True) for size in ((1, 4, 8, 8), (4, 4, 3, 3)))
    with Told() as mode:
        output = call(x, weight)
        torch.backends.cudnn.allow_tf32 = between
        grads = torch.autograd.grad(output.square().sum(), (x, weight), create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in grads), (x, weight))
    assert {"conv", "_conv_grad_weight"} <= mode.told.keys()
    return set().union(*mode.told.values())


@pytest.mark.parametrize("name", CALLS)
def test_every_operator_is_told(name: str, monkeypatch) -> None:
    """As if tensors of the CPU were of CUDA, which nobody can differentiate without a GPU."""
    for module in ("conv", "conv_transpose"):
        monkeypatch.setattr(sys.modules[f"fastconv.{module}"], "allows_tf32", lambda input: tf32_is_allowed())
    for allowed in (True, False):
        for between in (True, False):
            torch.backends.cudnn.allow_tf32 = allowed
            assert told(CALLS[name], between) == {allowed}


@pytest.mark.parametrize("name", CALLS)
def test_of_float32_on_cuda_alone(name: str) -> None:
    def forward(device: str, dtype: torch.dtype) -> set[bool]:
        with FakeTensorMode(), Told() as mode:
            CALLS[name](*(torch.empty(size, device=device, dtype=dtype) for size in ((1, 4, 8, 8), (4, 4, 3, 3))))
        return set().union(*mode.told.values())

    for setting, allowed in ((True, True), (False, False), ("ieee", False), ("tf32", True)):
        if isinstance(setting, bool):
            torch.backends.cudnn.allow_tf32 = setting
        else:
            torch.backends.cudnn.conv.fp32_precision = setting
        assert forward("cuda", torch.float32) == {allowed}
        assert forward("cpu", torch.float32) == {False}
        assert forward("cuda", torch.bfloat16) == forward("cuda", torch.float64) == {False}


def test_a_compiled_program_keeps_the_answer() -> None:
    torch.backends.cudnn.allow_tf32 = True
    program = torch.compile(lambda x: x + (1 if tf32_is_allowed() else 2), backend="eager", fullgraph=True)
    assert program(torch.zeros(1)) == 1
    torch.backends.cudnn.allow_tf32 = False
    assert program(torch.zeros(1)) == 1


def test_explain_knows() -> None:
    """Tensor cores are given 16 bytes of output channels, so that packed weights have as many."""
    for allowed, channels in ((True, 20), (False, 18)):
        torch.backends.cudnn.allow_tf32 = allowed
        found = fastconv.explain("conv2d", (1, 16, 9, 9), (18, 16, 3, 3), device="cuda")
        assert found.runs[0].packed_bytes == 4 * 16 * 9 * channels


def test_on_the_cpu_it_means_nothing() -> None:
    x, weight, grad = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 3, 3), torch.randn(1, 4, 3, 3)
    lists = [1, 1], [0] * 4, [1, 1], 1
    for op, args in (
        (ops.conv, (x, weight, None, *lists, None, "relu")),
        (ops.conv_transpose, (grad, weight, None, [1, 1], [0, 0], [0, 0], [1, 1], 1)),
        (ops._conv_grad_input, (grad, weight, x.shape, *lists)),
        (ops._conv_grad_weight, (grad, x, weight.shape, *lists)),
    ):
        assert torch.equal(op(*args, True), op(*args))
        given = [arg.clone().requires_grad_() if isinstance(arg, Tensor) else arg for arg in args]
        torch.library.opcheck(op.default, (*given, True), test_utils=("test_schema", "test_autograd_registration"))
        op(*given, True).sum().backward()
