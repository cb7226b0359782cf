"""What layers of every family have in common: layouts, libraries, directions, and the types of their data."""

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

import fastconv

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LIBRARIES: dict[str, ModuleType] = {"PyTorch": F, "fastconv": fastconv}
DIRECTIONS = ("fwd", "bwd", "train")
#: What a comparison with float64 may cost. Above that, a share of the channels is compared.
CHECK_FLOPS, CHECK_ELEMENTS = 5e8, 5e7

#: What a layer is given, and the gradient of its output.
Data = tuple[Tensor, ...]
Where = slice | Tensor
Expected = dict[str, tuple[tuple[Where, ...], Tensor]]
