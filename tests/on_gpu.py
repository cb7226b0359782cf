"""What the tests on a GPU share: the gradients of everything, the way to the GPU, and how near sums have to be."""

from collections.abc import Callable

import torch
from layouts import LAYOUTS
from torch import Tensor

DEVICE = "cuda"
TOLERANCE = {torch.float32: 5e-5, torch.float64: 1e-11, torch.bfloat16: 3e-2, torch.float16: 6e-3}


def run(function: Callable[[dict[str, Tensor]], Tensor], tensors: dict[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    """The output and the gradients of all that is given."""
    tensors = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    output = function(tensors)
    grads = torch.autograd.grad(output, list(tensors.values()), grad)
    return {"output": output.detach()} | dict(zip(tensors, grads, strict=True))


def close(got: Tensor, wanted: Tensor, equal_nan: bool = False) -> None:
    """Sums of many numbers that take each other's place: what counts is how large those of a tensor are."""
    tolerance = TOLERANCE[wanted.dtype]
    size = wanted.double().nan_to_num().square().mean().sqrt().item()
    atol = 2 * tolerance * max(size, 0.1)
    torch.testing.assert_close(got.cpu(), wanted, rtol=tolerance, atol=atol, equal_nan=equal_nan)


def placed(tensors: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    return {name: LAYOUTS[layout](t.to(DEVICE)) if t.dim() == 4 else t.to(DEVICE) for name, t in tensors.items()}
