"""Moves a whole model to fastconv's operators and back without touching its code or its parameters.

A twin differs from the ``torch.nn`` layer it stands for in its class and in nothing else (see
``fastconv.nn``), so a layer is converted by giving it the other class. Identity, parameters, buffers, hooks,
the training flag and every reference that somebody else holds to the layer survive by construction.
"""

import copy
from typing import Any, TypeVar

import torch

from fastconv import nn

__all__ = ["convert"]

M = TypeVar("M", bound=torch.nn.Module)

#: ``torch.nn`` class to ``fastconv.nn`` class. A module that ``fastconv.nn`` exports under a name of
#: ``torch.nn`` is a twin, so a new one needs no entry here.
TWINS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    getattr(torch.nn, name): twin
    for name, twin in vars(nn).items()
    if isinstance(twin, type) and issubclass(twin, torch.nn.Module) and hasattr(torch.nn, name)
}


def convert(model: M, *, inplace: bool = False, reverse: bool = False) -> M:
    """Replaces every supported ``torch.nn`` layer of a model by its ``fastconv.nn`` twin.

    Only layers whose class is exactly the one of ``torch.nn`` are replaced: a subclass (lazy, quantised,
    parametrised, or of your own) may compute something else and is left alone.

    Args:
        model: the model, or a single layer.
        inplace: change the model itself. Otherwise the result is a copy of the module tree that shares all
            parameters and buffers with the model, which stays as it was: training one trains the other.
        reverse: turn ``fastconv.nn`` layers back into those of ``torch.nn`` (``ChannelUnshuffle``, which
            ``torch.nn`` does not have, stays).

    Returns:
        The converted model; ``model`` itself with ``inplace=True``.

    Raises:
        TypeError: ``model`` is not a module.

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
    >>> type(convert(model)[0]).__module__, type(model[0]).__module__
    ('fastconv.nn.conv', 'torch.nn.modules.conv')
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"convert: model must be a torch.nn.Module (got {type(model).__name__})")
    classes = {twin: original for original, twin in TWINS.items()} if reverse else TWINS
    if not inplace:
        model = _copy_tree(model)
    for module in model.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]
    return model


def _copy_tree(model: M) -> M:
    """A deep copy of the modules, shared ones still shared, around the same tensors."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            memo[id(module)] = module  # would copy its parameters, and holds no layer to convert
            continue
        # Plain attributes too: the older weight_norm keeps the weight it computes as one, and a tensor that
        # has a history cannot be deep-copied.
        for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(value, torch.Tensor):
                memo[id(value)] = value
    return copy.deepcopy(model, memo)
