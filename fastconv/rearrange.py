"""Rearranging: operators that move elements and compute nothing."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastconv._operator import memory_format, operator

__all__ = ["channel_shuffle", "channel_unshuffle"]


def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """Interleaves the channels of ``groups`` groups: ``i * C / groups + j`` goes to ``j * groups + i``.

    Args:
        input: ``Tensor[N, C, *]`` of any dtype, at least one dimension after the channels.
        groups: number of groups, divides ``C``.

    Returns:
        ``Tensor[N, C, *]`` in the memory format of the input.

    Raises:
        RuntimeError: fewer than three dimensions, ``groups`` not positive, or not a divisor of ``C``.

    Source: Zhang et al., *ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile
    Devices*, 2018.

    >>> channel_shuffle(torch.arange(6.0).view(1, 6, 1, 1), 2).flatten()
    tensor([0., 3., 1., 4., 2., 5.])
    """
    return _shuffle(input, groups)


def channel_unshuffle(input: Tensor, groups: int) -> Tensor:
    """Undoes :func:`channel_shuffle` with the same ``groups``.

    Args, errors and memory format as there.

    >>> channel_unshuffle(channel_shuffle(torch.arange(6.0).view(1, 6, 1, 1), 2), 2).flatten()
    tensor([0., 1., 2., 3., 4., 5.])
    """
    return _unshuffle(input, groups)


def _shape_rule(op: str) -> Callable[[Tensor, int], Tensor]:
    """The rules of csrc/rearrange/check.h, in the same words, for tensors without data."""

    def fake(input: Tensor, groups: int) -> Tensor:
        if input.dim() <= 2:
            raise RuntimeError(f"{op}: input must have more than 2 dimensions (got {input.dim()})")
        if groups <= 0:
            raise RuntimeError(f"{op}: groups must be positive (got {groups})")
        if input.shape[1] % groups != 0:
            raise RuntimeError(f"{op}: groups must divide the number of channels {input.shape[1]} (got {groups})")
        return torch.empty_like(input, memory_format=memory_format(input))

    return fake


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.groups = inputs[1]


def _shuffle_backward(ctx: Any, grad_output: Tensor) -> tuple:
    return _unshuffle(grad_output, ctx.groups), None


def _unshuffle_backward(ctx: Any, grad_output: Tensor) -> tuple:
    return _shuffle(grad_output, ctx.groups), None


_shuffle = operator(
    "channel_shuffle",
    fake=_shape_rule("channel_shuffle"),
    setup_context=_setup_context,
    backward=_shuffle_backward,
)
_unshuffle = operator(
    "channel_unshuffle",
    fake=_shape_rule("channel_unshuffle"),
    setup_context=_setup_context,
    backward=_unshuffle_backward,
)
