"""Weights kept packed: what the modules do in evaluation mode.

Kernels read weights in an order of their own, and a function call brings them into it every time. A module that is
called again with an input of the same size keeps them so, as long as nothing has changed that the pack depends on: the
weight itself (another tensor or other memory in its place, or a change that PyTorch counted), the input's shape,
strides and dtype, the module's stride, padding, dilation and groups, the number of threads and ``fastconv.flags``.

PyTorch does not count what is written through ``weight.data`` or through a numpy array that shares its memory. The
operator compares one value of every output channel against the weight at every call, so that a change of whole channels
shows even so; a single value changed in that way may not. Write under ``torch.no_grad()`` to be sure.

A module has one pack, made when an input signature is seen twice in a row, and none where autograd, autocast,
``torch.func``, a compiler or a tracer is at work: there it calls the function.
"""

from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from fastconv._native import native, ops
from fastconv._operator import below_autograd, in_functorch, wants_grad
from fastconv.conv import _arguments

__all__ = ["convolve"]

below_autograd("_conv_pack")
below_autograd("_conv_packed")
_make_pack, _run_packed = ops._conv_pack.default._op, ops._conv_packed.default._op


class _Pack(NamedTuple):
    """What was seen last, and the weight packed for it from the second time on. Never changed, only replaced: other
    threads may be using it."""

    #: everything that must be the same, but for the weight's memory
    signature: tuple
    #: of the weight's memory; another tensor may come to lie at the same address, but never be this storage
    storage: ref
    pack: Tensor | None
    #: stride, padding, dilation and groups as the operator takes them
    lists: tuple


# Not an attribute of the module: copies, pickles and the state dict shall know nothing of it.
_packs: WeakKeyDictionary[torch.nn.Module, _Pack] = WeakKeyDictionary()


def convolve(
    module: torch.nn.Module, function: Callable[..., Tensor], input: Tensor, weight: Tensor, *arguments: Any
) -> Tensor:
    """``function(input, weight, *arguments)`` with the weight packed where ``module`` may keep it so: ``conv1d`` or
    ``conv2d`` with bias, stride, padding, dilation and groups."""
    if torch.compiler.is_compiling():
        return function(input, weight, *arguments)
    bias, *geometry = arguments
    if module.training or not _plain(input, weight, bias):
        _packs.pop(module, None)
        return function(input, weight, *arguments)
    signature = (
        input.shape, input.stride(), input.dtype, id(weight), weight._version, weight.data_ptr(), *geometry,
        torch.get_num_threads(), native.conv_choice(),
    )  # fmt: skip
    storage = weight.untyped_storage()
    last = _packs.get(module)
    if last is None or last.signature != signature or last.storage() is not storage:
        result = function(input, weight, *arguments)
        _packs[module] = _Pack(signature, ref(storage), None, ())
        return result
    dims = weight.dim() - 2
    unbatched = input.dim() == dims + 1
    batch = input.unsqueeze(0) if unbatched else input
    pack, lists = last.pack, last.lists
    if pack is None:
        lists = _arguments(function.__name__, dims, input, weight, bias, *geometry)
        pack = _make_pack(batch, weight, *lists)
        _packs[module] = _Pack(signature, last.storage, pack, lists)
    try:
        output = _run_packed(batch, weight, bias, pack, *lists)
    except RuntimeError:
        # The weight was changed where nobody counts, or the bias is wrong: then the function says so again.
        del _packs[module]
        return function(input, weight, *arguments)
    return output.squeeze(0) if unbatched else output


def _plain(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether there is nothing but memory of the CPU to these tensors, and nobody watches."""
    return not (
        type(input) is not Tensor
        or type(weight) not in (Tensor, torch.nn.Parameter)
        or not (input.is_cpu and weight.is_cpu)
        or weight.is_inference()  # has no count of its changes
        or wants_grad(input, weight, bias)
        or torch._C._is_any_autocast_enabled()
        or in_functorch()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
    )
