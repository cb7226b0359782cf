"""Regions of interest: derivatives by differences, gradients as adjoints, and the gradient's own gradient."""

import pytest
import torch
from layouts import LAYOUTS
from roi_cases import CASES, MEANS, OPERATORS, Case, drawn, public, size_for


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("op", OPERATORS)
def test_derivatives(op: str, layout: str) -> None:
    case = Case((2, 1, 4, 5), lambda: drawn(3, (2, 1, 4, 5), 0.5), (2, 2), 0.5)
    x = LAYOUTS[layout](torch.randn(size_for(op, case), dtype=torch.float64)).requires_grad_()
    boxes = case.boxes()
    assert torch.autograd.gradcheck(lambda x: public(op, x, boxes, case), x)
    assert torch.autograd.gradgradcheck(lambda x: public(op, x, boxes, case) * x.sum(), x)


@pytest.mark.parametrize("op", MEANS)
def test_a_gradient_is_the_adjoint(op: str) -> None:
    """<forward(x), y> = <x, backward(y)>, also where torchvision's is not: ps_roi_pool at the edges of the map."""
    case = CASES["outside"]
    boxes = case.boxes()
    x = torch.randn(size_for(op, case), dtype=torch.float64, requires_grad=True)
    output = public(op, x, boxes, case)
    y = torch.randn_like(output)
    (grad,) = torch.autograd.grad(output, x, y)
    torch.testing.assert_close((grad * x).sum(), (output * y).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("op", OPERATORS)
def test_gradients_of_stride_zero(op: str) -> None:
    case = CASES["70 channels"]
    for layout in ("contiguous", "channels_last"):
        x = LAYOUTS[layout](torch.randn(size_for(op, case))).requires_grad_()
        output = public(op, x, case.boxes().float(), case)
        (got,) = torch.autograd.grad(output.sum(), x, retain_graph=True)
        (wanted,) = torch.autograd.grad(output, x, torch.ones_like(output))
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("op", OPERATORS)
def test_the_backward_pass_differentiated_in_16_bits(op: str) -> None:
    """What the gradient's gradient computes is the forward pass of what comes in."""
    case = CASES["outside"]
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(size_for(op, case)).to(dtype).requires_grad_()
        output = public(op, x, case.boxes().float(), case)
        y = torch.randn(output.shape).to(dtype).requires_grad_()
        (grad,) = torch.autograd.grad(output, x, y, create_graph=True)
        direction = x.detach().clone()
        (got,) = torch.autograd.grad(grad, y, direction)
        assert torch.equal(got, output.detach())
