"""Pooling and unpooling layers: their data, how each library computes them, and what to expect."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import PoolCase
from .data import Data, Expected, function, in_layouts


def tensors(case: PoolCase, batch: int, dtype: str) -> dict[str, Data]:
    """Input and gradient of the output in every layout, of the same values; between them, for unpooling, the indices,
    as pooling yields them."""
    generator = torch.Generator().manual_seed(0)
    made = [
        torch.empty(shape).uniform_(-1, 1, generator=generator).to(getattr(torch, dtype))
        for shape in (case.input_shape(batch), case.output_shape(batch))
    ]
    if case.unpool:
        made.insert(1, F.max_pool2d(made[-1].float(), case.kernel, case.stride, return_indices=True)[1])
    return in_layouts(made)


def operator(case: PoolCase, library: str, dims: int) -> Callable[..., Tensor] | None:
    """The layer as a function of what it is given; indices are computed where they belong to it. None where the library
    has no such function."""
    found = function(library, operator_name(case, dims))
    if found is None:
        return None
    if case.adaptive:
        return lambda input: found(input, (case.P, case.Q))
    if case.unpool:
        size = case.P, case.Q
        return lambda input, indices: found(input, indices, case.kernel, case.stride, output_size=size)
    windows: dict[str, Any] = {"stride": case.stride, "padding": case.padding, "ceil_mode": case.ceil_mode}
    if case.indices:
        return lambda input: found(input, case.kernel, **windows, return_indices=True)[0]
    return lambda input: found(input, case.kernel, **windows)


def operator_name(case: PoolCase, dims: int) -> str:
    if case.unpool:
        return f"max_unpool{dims}d"
    return f"{'adaptive_' if case.adaptive else ''}{case.kind}_pool{dims}d"


def check_share(case: PoolCase, batch: int, direction: str) -> float:
    return 1.0


def reference(case: PoolCase, direction: str, data: Data, share: float) -> Expected:
    """What the direction computes, in float64 by PyTorch."""
    layer = operator(case, "PyTorch", 2)
    assert layer is not None
    input, *indices, grad_output = (each.contiguous(memory_format=torch.channels_last) for each in data)
    input = input.double().requires_grad_(direction != "fwd")
    output = layer(input, *indices)
    found = {"output": output.detach()}
    if direction != "fwd":
        (found["grad_input"],) = torch.autograd.grad(output, input, grad_output.double())
    return {name: ((slice(None),), found[name]) for name in case.results(direction)}
