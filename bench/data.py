"""What layers of every family have in common: layouts, libraries, directions, their data and what is compared of it."""

import math
from collections.abc import Callable, Iterable
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastconv

from .cases import Case

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LIBRARIES: dict[str, ModuleType] = {"PyTorch": F, "fastconv": fastconv}
DIRECTIONS = ("fwd", "bwd", "train")
#: What a comparison with float64 may cost. Above that, a share of the channels is compared.
CHECK_FLOPS, CHECK_ELEMENTS = 5e8, 5e7

#: What a layer is given, and the gradient of its output.
Data = tuple[Tensor, ...]
Where = slice | Tensor
Expected = dict[str, tuple[tuple[Where, ...], Tensor]]


def torchvision_lacks() -> str:
    """Why torchvision cannot be compared with; nothing where it can."""
    try:
        import_module("torchvision.ops")
    except ModuleNotFoundError as error:
        return f"{(error.name or 'torchvision').partition('.')[0]} is not installed"
    except (ImportError, OSError, RuntimeError) as error:  # one that was built for another PyTorch
        return f"torchvision cannot be imported ({str(error).splitlines()[0]})"
    return ""


def function(library: str, name: str) -> Callable[..., Any] | None:
    """The library's function of that name, of PyTorch also torchvision's; None where there is none."""
    found = getattr(LIBRARIES[library], name, None)
    if found is None and library == "PyTorch" and not torchvision_lacks():
        return getattr(import_module("torchvision.ops"), name, None)
    return found


def in_layouts(made: Iterable[Tensor]) -> dict[str, Data]:
    """The tensors in every layout, of the same values; what is no map, as a list of boxes, has but one."""
    made = tuple(made)
    return {
        layout: tuple(each.contiguous(memory_format=memory_format) if each.dim() == 4 else each for each in made)
        for layout, memory_format in LAYOUTS.items()
    }


def spread(count: int, share: float) -> Tensor:
    """Indices of a share of ``count``, spread from the first to the last, which always are among them.

    >>> spread(64, 0.06)
    tensor([ 0, 21, 42, 63])
    """
    return torch.linspace(0, count - 1, min(count, max(2, math.ceil(share * count)))).round().long()


def channel_share(case: Case, batch: int, direction: str) -> float:
    """How much of the channels is compared with float64, so that it does not take longer than the timing."""
    flops = case.flops(batch) * case.passes(direction)
    elements = math.prod(case.input_shape(batch)) + math.prod(case.output_shape(batch))
    return min(1.0, CHECK_FLOPS / flops, CHECK_ELEMENTS / elements)
