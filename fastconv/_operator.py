"""How an operator of the native library becomes a function of PyTorch: shape rule, gradient, autocast, cheap calls.

The same ``setup_context`` and ``backward`` are registered twice. Once with the operator itself
(``torch.library.register_autograd``), for ``torch.compile``, ``torch.export`` and whoever calls
``torch.ops.fastconv``. And once as a ``torch.autograd.Function``, which the public function uses: the registered rule
does not run under ``torch.func``, and costs more per call. Where no gradient is wanted the public function calls the
operator's overload ``no_grad``, which has no such rule to go past.

Every layer's work leaves the caches without the code of the next call: what counts is how many functions a call runs
through, not how often. So autocast is left to the dispatcher where it can be, questions are asked in the order in which
they settle a call, and functions that are asked in every call are names of this module. Sizes are handed to operators
as lists: a ``torch.Size`` takes 2 microseconds more to be understood.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.compiler import is_compiling

from fastconv._native import ops

_library = torch.library.Library("fastconv", "IMPL")
in_functorch = torch._C._are_functorch_transforms_active
_modes = torch._C._len_torch_dispatch_stack
_is_dead = torch._C._functorch.is_dead_tensor_wrapper  # type: ignore[attr-defined]
_is_grad_enabled = torch.is_grad_enabled


def _cast(args: tuple, device: str) -> tuple:
    dtype = torch.get_autocast_dtype(device)

    def cast(arg: Any) -> Any:
        eligible = isinstance(arg, Tensor) and arg.is_floating_point() and arg.dtype != torch.float64
        return arg.to(dtype) if eligible and arg.device.type == device else arg

    return tuple(cast(arg) for arg in args)


def operator(
    name: str,
    *,
    fake: Callable[..., Any],
    setup_context: Callable[[Any, tuple, Any], None],
    backward: Callable[..., Any],
    autocast: bool = False,
) -> Callable[..., Any]:
    """Registers what PyTorch needs to know of ``fastconv::<name>`` and returns the function to call it by.

    Args:
        fake: the shape rule: the output of the operator, or the tuple of its outputs, for tensors without data.
        setup_context: ``(ctx, inputs, output)``, keeps what ``backward`` needs.
        backward: ``(ctx, grad_output)``, a gradient for each output, to the gradients of all arguments.
        autocast: whether floating-point tensors are cast to autocast's dtype, as for PyTorch's own convolutions.
    """
    op, quiet = getattr(ops, name).default, getattr(ops, name).no_grad
    run = quiet._op  # what calling `quiet` comes to, one Python function later
    for overload in (op, quiet):
        torch.library.register_fake(overload, fake)
    torch.library.register_autograd(op, backward, setup_context=setup_context)
    below_autograd(f"{name}.no_grad")

    def forward(*args: Any) -> Any:
        if _modes():  # they shall see the operator that has a rule, and whoever records them
            with torch._C._AutoDispatchBelowAutograd():
                return op(*args)
        return run(*args)

    members = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
        "generate_vmap_rule": True,
    }
    function: Any = type(name, (torch.autograd.Function,), members)
    # `Function.apply` looks up the signature of `forward` in every call, for defaults and keywords that are not used
    # here: 20 microseconds. Outside of torch.func it has nothing to do but this:
    record = super(torch.autograd.Function, function).apply

    if autocast:
        for overload in (op, quiet):
            _cast_by_dispatcher(overload)

    def call(*args: Any) -> Any:
        if is_compiling():
            return op(*args)
        functional = in_functorch()
        if not functional and not (_is_grad_enabled() and wants_grad(*args)):
            return forward(*args) if _modes() else run(*args)
        if autocast and torch._C._is_any_autocast_enabled():
            device = args[0].device.type
            if torch.is_autocast_enabled(device):
                args = _cast(args, device)
        if functional:
            return function.apply(*args)
        for arg in args:
            if isinstance(arg, Tensor) and _is_dead(arg):
                return record(*unwrap_dead_wrappers(args))
        return record(*args)

    return call


def below_autograd(name: str) -> None:
    """Lets calls of this operator, or overload, pass autograd without a word: its results have no gradient."""
    _library.impl(name, torch.library.fallthrough_kernel, "Autograd")


def _cast_by_dispatcher(overload: Any) -> None:
    for device in ("cpu", "cuda"):
        key = f"Autocast{device.upper()}"
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def rule(*args: Any, device: str = device, keys: Any = keys) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return overload(*_cast(args, device))

        _library.impl(overload, rule, key)


def wants_grad(*args: Any) -> bool:
    """Whether autograd would record an operation on these arguments."""
    if _is_grad_enabled():
        for arg in args:
            if isinstance(arg, Tensor) and arg.requires_grad:
                return True
    return False


def memory_format(tensor: Tensor) -> torch.memory_format:
    """channels_last where the channels come first among the strides of a 4-D tensor: PyTorch's own rule."""
    if tensor.dim() != 4 or tensor.stride(1) == 0:
        return torch.contiguous_format
    least: int = 0
    for d in (1, 3, 2, 0):
        if tensor.size(d) == 0 or tensor.stride(d) < least or (d == 0 and least == tensor.stride(1)):
            return torch.contiguous_format
        least = tensor.stride(d) * max(tensor.size(d), 1)
    return torch.channels_last
