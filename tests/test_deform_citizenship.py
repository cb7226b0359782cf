"""Deformable convolution among PyTorch's other parts: opcheck, compile, export, torch.func, modes, autocast,
checkpoints."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastconv

ops = torch.ops.fastconv
#: stride, padding, dilation
PLAIN = ([1, 1], [1, 1], [1, 1])
NAMES = ("input", "offset", "weight", "bias", "mask")


def randn(*size: int, last: bool = False, grad: bool = True, dtype: torch.dtype = torch.float32) -> Tensor:
    made = torch.randn(size, dtype=dtype)
    return (made.to(memory_format=torch.channels_last) if last else made).requires_grad_(grad)


def tensors(images: int = 2, last: bool = False, **kwargs: Any) -> dict[str, Tensor]:
    """Two groups, two groups of offsets."""
    return {
        "input": randn(images, 4, 5, 6, last=last, **kwargs),
        "offset": randn(images, 36, 5, 6, last=last, **kwargs),
        "weight": randn(6, 2, 3, 3, **kwargs),
        "bias": randn(6, **kwargs),
        "mask": randn(images, 18, 5, 6, last=last, **kwargs),
    }


# ---- opcheck, compile, export, torch.func ----------------------------------------------------------------------------


@pytest.mark.parametrize(("mask", "last"), [(False, True), (True, False)])
def test_opcheck(mask: bool, last: bool) -> None:
    input, offset, weight, bias, masks = tensors(last=last).values()
    given = masks if mask else None
    torch.library.opcheck(ops.deform_conv2d.default, (input, offset, weight, bias if mask else None, given, *PLAIN))
    detached = [None if tensor is None else tensor.detach() for tensor in (input, offset, weight, given)]
    arguments = (randn(2, 6, 5, 6, last=last, grad=False), *detached, *PLAIN, True, True, True, mask)
    torch.library.opcheck(ops._deform_conv2d_grad.default, arguments)


def test_opcheck_second_derivatives() -> None:
    """Of one tap, and without symbolic sizes: what PyTorch makes of those takes a minute."""
    given = (randn(1, 2, 3, 4), randn(1, 2, 3, 4), randn(3, 2, 1, 1), randn(1, 1, 3, 4))
    arguments = (randn(1, 3, 3, 4), *given, [1, 1], [0, 0], [1, 1], False, True, False, False)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(ops._deform_conv2d_grad.default, arguments, test_utils=checks)


def test_opcheck_inputs() -> None:
    """Slices, no image, 16 bits, gradients of a few."""
    wide = tensors(grad=False)
    sliced = [randn(2, 8, 5, 12, grad=False)[:, 2:6, :, ::2], *list(wide.values())[1:]]
    for given in (sliced, list(tensors(0, grad=False).values())):
        torch.library.opcheck(ops.deform_conv2d.default, (*given, *PLAIN))
        input, offset, weight, _, mask = given
        grad_output = randn(len(input), 6, 5, 6, grad=False)
        for wanted in ((True, False, False, True), (False, True, True, False)):
            torch.library.opcheck(
                ops._deform_conv2d_grad.default, (grad_output, input, offset, weight, mask, *PLAIN, *wanted)
            )
    half = tensors(grad=False, dtype=torch.bfloat16)
    torch.library.opcheck(ops.deform_conv2d.default, (*half.values(), *PLAIN))


class Net(nn.Module):
    """What a network does: a convolution says where another one looks."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Conv2d(4, 18, 3, padding=1)
        self.mask = nn.Conv2d(4, 9, 3, padding=1)
        self.first = fastconv.nn.DeformConv2d(4, 6, 3, padding=1)
        self.second = fastconv.nn.DeformConv2d(6, 6, 3, stride=2, padding=1, groups=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x, self.offset(x), self.mask(x).sigmoid())
        return (self.second(y, self.offset(x)[:, :, ::2, ::2]) ** 2).sum((1, 2, 3))


def gradients(function: Any, net: Net, x: Tensor) -> tuple[Tensor, ...]:
    leaf = x.clone().requires_grad_()
    output = function(leaf)
    return output.detach(), *torch.autograd.grad(output.sum(), [leaf, *net.parameters()])


@pytest.mark.parametrize(("dynamic", "last"), [(False, True), (True, False)])
def test_compile(dynamic: bool, last: bool) -> None:
    torch.compiler.reset()
    net = Net()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for height in (9, 12) if dynamic else (9,):
        x = randn(2, 4, height, 7, last=last, grad=False)
        torch.testing.assert_close(gradients(compiled, net, x), gradients(net, net, x))
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), net(x))


def test_one_dynamic_graph_serves_many_sizes() -> None:
    torch.compiler.reset()
    net, counter = Net(), torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=counter)
    with torch.no_grad():
        for size in ((2, 4, 9, 11), (3, 4, 12, 8), (5, 4, 7, 26)):
            x = randn(*size, grad=False)
            torch.testing.assert_close(compiled(x), net(x))
    assert counter.frame_count == 1


def test_export() -> None:
    """No rule of ours narrows what sizes a program serves."""
    net, dim = Net(), torch.export.Dim
    dims = {0: dim("N", min=2), 2: dim("H", min=4), 3: dim("W", min=4)}
    program = torch.export.export(net, (randn(2, 4, 9, 11, grad=False),), dynamic_shapes={"x": dims})
    assert sum("deform_conv2d" in str(node.target) for node in program.graph.nodes) == 2
    for size in ((2, 4, 9, 11), (4, 4, 16, 6)):
        x = randn(*size, grad=False)
        torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_func() -> None:
    given = tensors(dtype=torch.float64)
    leaves = list(given.values())
    plain = [leaf.detach() for leaf in leaves]

    def function(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        return fastconv.deform_conv2d(input, offset, weight, bias, padding=1, mask=mask).sin().sum()

    places = tuple(range(5))
    expected = torch.autograd.grad(function(*leaves), leaves, create_graph=True)
    firsts = torch.func.grad(function, places)
    torch.testing.assert_close(firsts(*plain), tuple(each.detach() for each in expected))
    wanted = torch.autograd.grad(sum(each.cos().sum() for each in expected), leaves)
    got = torch.func.grad(lambda *of: sum(each.cos().sum() for each in firsts(*of)), places)(*plain)
    torch.testing.assert_close(got, wanted)
    images = torch.vmap(
        lambda x, o, m: fastconv.deform_conv2d(x[None], o[None], plain[2], plain[3], padding=1, mask=m[None])[0]
    )
    whole = fastconv.deform_conv2d(*plain[:4], padding=1, mask=plain[4])
    torch.testing.assert_close(images(plain[0], plain[1], plain[4]), whole)


# ---- modes, autocast, meta tensors, checkpoints ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes(mode: Any) -> None:
    input, offset, weight, bias, mask = tensors().values()
    with mode():
        output = fastconv.deform_conv2d(input, offset, weight, bias, padding=1, mask=mask)
    assert output.requires_grad == (mode is torch.enable_grad)
    assert output.is_inference() == (mode is torch.inference_mode)
    torch.testing.assert_close(output, fastconv.deform_conv2d(input, offset, weight, bias, 1, 1, 1, mask))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    """As PyTorch's convolution: the operation in 16 bits, gradients in the dtype of what they belong to."""
    leaves = tensors()
    input, offset, weight, bias, mask = leaves.values()
    for function in (
        lambda: fastconv.deform_conv2d(input, offset, weight, bias, padding=1, mask=mask),
        lambda: ops.deform_conv2d(input, offset, weight, bias, mask, *PLAIN),
    ):
        with torch.autocast("cpu", dtype):
            output = function()
            assert output.dtype == F.conv2d(input, randn(6, 4, 3, 3)).dtype == dtype
        narrow = [leaf.detach().to(dtype) for leaf in leaves.values()]
        assert torch.equal(output, fastconv.deform_conv2d(*narrow[:4], padding=1, mask=narrow[4]))
        for grad in torch.autograd.grad(output.float().sum(), list(leaves.values())):
            assert grad.dtype == torch.float32
    with torch.autocast("cpu", dtype):
        mixed = fastconv.deform_conv2d(input.to(dtype), offset, weight, bias, padding=1, mask=mask)
        assert mixed.dtype == dtype
        wide = [leaf.double() for leaf in leaves.values()]
        assert fastconv.deform_conv2d(*wide[:4], padding=1, mask=wide[4]).dtype == torch.float64


@pytest.mark.parametrize("last", [False, True])
def test_meta_tensors(last: bool) -> None:
    """Shape, strides and dtype of the real result, and of its gradients."""
    results = []
    for device in ("cpu", "meta"):
        leaves = [leaf.detach().to(device).requires_grad_() for leaf in tensors(last=last).values()]
        output = fastconv.deform_conv2d(*leaves[:4], padding=1, mask=leaves[4])
        assert output.device.type == device
        results.append([output, *torch.autograd.grad(output.sum(), leaves)])
    for real, meta in zip(*results, strict=True):
        assert (real.shape, real.stride(), real.dtype) == (meta.shape, meta.stride(), meta.dtype)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints(use_reentrant: bool) -> None:
    leaves = list(tensors().values())

    def block(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        return fastconv.deform_conv2d(input.sin(), offset, weight, bias, padding=1, mask=mask).tanh()

    plain = torch.autograd.grad(block(*leaves).sum(), leaves)
    checkpoint(block, *leaves, use_reentrant=use_reentrant).sum().backward()
    for leaf, expected in zip(leaves, plain, strict=True):
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, expected)


def test_deterministic_algorithms() -> None:
    leaves = list(tensors().values())
    grads = []
    for fixed in (False, True):
        torch.use_deterministic_algorithms(fixed)
        output = fastconv.deform_conv2d(*leaves[:4], padding=1, mask=leaves[4])
        grads.append(torch.autograd.grad(output.sin().sum(), leaves))
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


def test_what_was_saved_must_not_change() -> None:
    leaves = list(tensors().values())
    offset = leaves[1] * 1
    output = fastconv.deform_conv2d(leaves[0], offset, *leaves[2:4], padding=1, mask=leaves[4])
    with torch.no_grad():
        offset.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


class Named(Tensor):
    """The plainest subclass: results keep the type."""


def test_subclass() -> None:
    leaves = list(tensors(grad=False).values())
    named = fastconv.deform_conv2d(leaves[0].as_subclass(Named), *leaves[1:4], padding=1, mask=leaves[4])
    assert type(named) is Named
    plain = fastconv.deform_conv2d(*leaves[:4], padding=1, mask=leaves[4])
    assert torch.equal(named.as_subclass(Tensor), plain)


def test_a_network_learns() -> None:
    """That offsets move to where the pattern is: a shift, learned from examples."""
    net = fastconv.nn.DeformConv2d(1, 1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(1)
    row = torch.linspace(0, 3, 12)
    x = (row.sin() + row).expand(1, 1, 12, 12).contiguous()
    wanted = fastconv.deform_conv2d(
        x, torch.tensor([0, 0.7]).view(1, 2, 1, 1).expand(1, 2, 12, 12), net.weight
    ).detach()
    shift = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        output = net(x, shift.view(1, 2, 1, 1).expand(1, 2, 12, 12))
        loss = (output - wanted)[..., 1:-1, 1:-1].square().mean()
        loss.backward()
        optimizer.step()
    assert abs(float(shift.detach()[1]) - 0.7) < 0.05
