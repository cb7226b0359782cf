"""Convolution: the public functions, and the family's shape rule and gradients."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastconv._arguments import LARGEST, check_list, check_same, check_shape, each, integer
from fastconv._operator import memory_format, operator, wants_grad

__all__ = ["conv1d", "conv2d"]


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """1-D convolution (cross-correlation), a drop-in for :func:`torch.nn.functional.conv1d`.

    Args:
        input: ``Tensor[N, C, W]`` or ``Tensor[C, W]``; float32, float64, bfloat16 or float16 (16-bit types are
            accumulated in float32); any strides.
        weight: ``Tensor[K, C / groups, S]``.
        bias: ``Tensor[K]`` or None.
        stride, dilation: positive number of elements.
        padding: number of zeros on either side, ``"valid"`` for none, or ``"same"`` for an output as long as the
            input (stride 1 only; where the total is odd, one more at the end).
        groups: divides ``C`` and ``K``.
        activation, residual: see :func:`conv2d`.

    Returns:
        ``Tensor[N, K, Q]`` or ``Tensor[K, Q]``, ``Q = (W + 2 * padding - dilation * (S - 1) - 1) // stride + 1``.

    Raises:
        RuntimeError, TypeError: see :func:`conv2d`.

    >>> conv1d(torch.ones(1, 1, 5), torch.ones(1, 1, 3), padding="same")
    tensor([[[2., 3., 3., 3., 2.]]])
    """
    return _conv("conv1d", 1, input, weight, bias, stride, padding, dilation, groups, activation, residual)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """2-D convolution (cross-correlation), a drop-in for :func:`torch.nn.functional.conv2d`.

    Dense, grouped and depthwise (``groups == C``, any multiplier), strided and dilated, forward, backward and double
    backward. ``activation`` and ``residual`` make it ``activation(convolution + bias + residual)``, finished in
    registers: the output is written once and read by nobody in between.

    Args:
        input: ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]``; float32, float64, bfloat16 or float16 (16-bit types are
            accumulated in float32, and on CUDA float32 is multiplied in TF32 where ``torch.backends.cudnn`` allows it);
            contiguous, channels_last or any other strides.
        weight: ``Tensor[K, C / groups, R, S]``.
        bias: ``Tensor[K]`` or None.
        stride, dilation: positive number of elements, one for both dimensions or one for each.
        padding: number of zeros on either side, one for both dimensions or one for each; ``"valid"`` for none;
            ``"same"`` for an output of the size of the input (stride 1 only; where the total is odd, one more at the
            bottom or the right).
        groups: divides ``C`` and ``K``; output channel ``k`` sees the channels of group ``k // (K / groups)``.
        activation: what the result goes through: None, ``"relu"``, ``"relu6"``, ``"silu"`` or ``"hardswish"``. 16-bit
            results are rounded once, after it; where a gradient is wanted, ``silu`` and ``hardswish`` need the value
            before them and round it as well.
        residual: ``Tensor`` of the shape and dtype of the output, added before the activation; any strides (copied
            where they are not those of the output).

    Returns:
        ``Tensor[N, K, P, Q]`` or ``Tensor[K, P, Q]`` in the memory format of ``input``,
        ``P = (H + 2 * padding - dilation * (R - 1) - 1) // stride + 1``, ``Q`` likewise.

    Raises:
        RuntimeError: wrong number of dimensions, groups that do not divide, mixed dtypes or devices, a kernel larger
            than the padded input, strides, dilations or padding out of range, an unknown activation, a residual of
            another shape.
        TypeError: strides, padding or dilations that are not integers.

    Source: Dumoulin and Visin, *A guide to convolution arithmetic for deep learning*, 2016.

    >>> conv2d(torch.ones(1, 2, 4, 4), torch.ones(2, 1, 3, 3), groups=2).shape
    torch.Size([1, 2, 2, 2])
    >>> conv2d(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 1), activation="relu", residual=torch.tensor([[[[-3., 4]]]]))
    tensor([[[[0., 5.]]]])
    """
    return _conv("conv2d", 2, input, weight, bias, stride, padding, dilation, groups, activation, residual)


def _conv(
    op: str,
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    rest = _arguments(op, dims, input, weight, bias, stride, padding, dilation, groups)
    unbatched = input.dim() == dims + 1
    if unbatched:
        input = input.unsqueeze(0)
    tf32 = allows_tf32(input)
    if activation is None and residual is None and not tf32:
        output = _convolve(input, weight, bias, *rest)
    else:
        output = _finished(op, input, weight, bias, rest, activation, residual, tf32, unbatched)
    return output.squeeze(0) if unbatched else output


def _finished(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rest: tuple,
    activation: str | None,
    residual: Tensor | None,
    tf32: bool,
    unbatched: bool,
) -> Tensor:
    if residual is not None:
        if not isinstance(residual, Tensor):
            raise TypeError(f"{op}: residual must be a Tensor (got {residual!r})")
        if unbatched:
            residual = residual.unsqueeze(0)
    if activation is not None and not isinstance(activation, str):
        raise TypeError(f"{op}: {_ACTIVATION_RULE} (got {activation!r})")
    # The gradient of these is in terms of their argument, so they are a step of their own where one is wanted.
    later = _SMOOTH.get(activation or "") if wants_grad(input, weight, bias, residual) else None
    output = _convolve(input, weight, bias, *rest, residual, None if later else activation, tf32)
    return later(output) if later else output


def tf32_is_allowed() -> bool:
    """What PyTorch says of convolutions on CUDA: ``torch.backends.cudnn.conv.fp32_precision``, which
    ``torch.backends.cudnn.allow_tf32`` sets too."""
    return torch._C._get_fp32_precision_getter("cuda", "conv") == "tf32"


# A program that is compiled keeps the answer of then. This is torch.compiler.assume_constant_result, which would load
# the compiler with every import.
tf32_is_allowed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def allows_tf32(input: Tensor) -> bool:
    """Whether a convolution of this tensor may round to TF32 what it multiplies. The gradients do as their forward
    pass did."""
    return input.is_cuda and input.dtype is torch.float32 and tf32_is_allowed()


def _arguments(
    op: str,
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
) -> tuple[list[int], list[int], list[int], int]:
    """Stride, padding (before, then after), dilation and groups as the operator takes them."""
    groups = _check_types(op, dims, input, weight, bias, groups)
    # The usual arguments, without `each`, which comes to the same.
    if type(stride) is type(padding) is type(dilation) is int and stride < 256 > padding and dilation < 256:
        return [stride] * dims, [padding] * (2 * dims), [dilation] * dims, groups
    strides = each(op, "stride", stride, dims)
    dilations = each(op, "dilation", dilation, dims)
    if isinstance(padding, str):
        pads = _named_padding(op, padding, weight, strides, dilations)
    else:
        pads = each(op, "padding", padding, dims) * 2
    return strides, pads, dilations, groups


def _check_types(op: str, dims: int, input: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> int:
    """Refuses what no operator could be called with; returns groups as an integer."""
    if not (isinstance(input, Tensor) and isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))):
        for name, value in (("input", input), ("weight", weight), ("bias", bias)):
            if not isinstance(value, Tensor) and not (name == "bias" and value is None):
                raise TypeError(f"{op}: {name} must be a Tensor (got {value!r})")
    if type(groups) is not int:
        groups = integer(op, "groups", groups, "an integer")
    if weight.dim() != dims + 2:
        raise RuntimeError(f"{op}: weight must have {dims + 2} dimensions (got {list(weight.shape)})")
    return groups


def _named_padding(op: str, padding: str, weight: Tensor, stride: list[int], dilation: list[int]) -> list[int]:
    if padding == "valid":
        return [0] * (2 * len(stride))
    if padding != "same":
        raise RuntimeError(f"{op}: padding must be integers, 'same' or 'valid' (got {padding!r})")
    if any(s != 1 for s in stride):
        raise RuntimeError(f"{op}: stride must be 1 where padding is 'same' (got {stride})")
    total = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
    return [t // 2 for t in total] + [t - t // 2 for t in total]


# ---- shape rule ----------------------------------------------------------------------------------------------------


_ACTIVATIONS = ("relu", "relu6", "silu", "hardswish")
_ACTIVATION_RULE = "activation must be None, 'relu', 'relu6', 'silu' or 'hardswish'"
_SMOOTH = {"silu": F.silu, "hardswish": F.hardswish}


def _check_common(
    op: str, input: Sequence[int], weight: Sequence[int], stride: list[int], dilation: list[int], groups: int
) -> None:
    """What convolutions and transposed ones have in common."""
    if len(weight) not in (3, 4):
        raise RuntimeError(f"{op}: weight must have 3 or 4 dimensions (got {list(weight)})")
    dims = len(weight) - 2
    if len(input) != len(weight):
        raise RuntimeError(
            f"{op}: input must have {dims + 2} dimensions, or {dims + 1} without a batch (got {list(input)})"
        )
    check_list(op, "stride", stride, dims, 1, "be positive")
    check_list(op, "dilation", dilation, dims, 1, "be positive")
    if groups < 1:
        raise RuntimeError(f"{op}: groups must be positive (got {groups})")
    for size in weight[2:]:
        if size == 0:
            raise RuntimeError(f"{op}: weight must not have an empty kernel (got {list(weight)})")
        if size > LARGEST:
            raise RuntimeError(f"{op}: weight must be at most {LARGEST} in every dimension (got {list(weight)})")


def _output_size(
    input: Sequence[int],
    weight: Sequence[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> list[int]:
    """The rules of csrc/conv/check.h, in the same words, for tensors without data."""
    op = _op(weight)
    _check_common(op, input, weight, stride, dilation, groups)
    dims = len(weight) - 2
    check_list(op, "padding", padding, 2 * dims, -LARGEST, "not be negative")
    for name, channels in (("output", weight[0]), ("input", input[1])):
        if channels % groups != 0:
            raise RuntimeError(f"{op}: groups must divide the number of {name} channels {channels} (got {groups})")
    if input[1] // groups != weight[1]:
        raise RuntimeError(
            f"{op}: weight must have {input[1] // groups} channels, those of the input divided by groups "
            f"(got {list(weight)})"
        )
    output = [input[0], weight[0]]
    for d in range(dims):
        if padding[d] < 0:
            raise RuntimeError(f"{op}: padding must not be negative (got {padding})")
        extent = dilation[d] * (weight[2 + d] - 1) + 1
        padded = input[2 + d] + padding[d] + padding[d + dims]
        if extent > padded:
            raise RuntimeError(
                f"{op}: weight must not have a kernel larger than the padded input, {extent} > {padded} in "
                f"dimension {d - dims} (got {list(weight)})"
            )
        output.append((padded - extent) // stride[d] + 1)
    return output


def _op(weight: Sequence[int]) -> str:
    return "conv1d" if len(weight) == 3 else "conv2d"


def _fake_conv(
    input, weight, bias, stride, padding, dilation, groups, residual=None, activation=None, allow_tf32=False
):
    op = _op(weight.shape)
    size = _output_size(input.shape, weight.shape, stride, padding, dilation, groups)
    check_same(op, input, weight=weight, bias=bias, residual=residual)
    if bias is not None:
        check_shape(op, "bias", bias, weight.shape[:1])
    if residual is not None:
        check_shape(op, "residual", residual, size)
    if activation not in (None, *_ACTIVATIONS):
        raise RuntimeError(f"{op}: {_ACTIVATION_RULE} (got {activation!r})")
    return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _fake_grad_input(grad_output, weight, input_size, stride, padding, dilation, groups, allow_tf32=False):
    op = _op(weight.shape)
    size = _output_size(input_size, weight.shape, stride, padding, dilation, groups)
    check_same(op, grad_output, weight=weight)
    check_shape(op, "grad_output", grad_output, size)
    format = memory_format(grad_output)
    return torch.empty(input_size, dtype=grad_output.dtype, device=grad_output.device, memory_format=format)


def _fake_grad_weight(grad_output, input, weight_size, stride, padding, dilation, groups, allow_tf32=False):
    op = _op(weight_size)
    size = _output_size(input.shape, weight_size, stride, padding, dilation, groups)
    check_same(op, input, grad_output=grad_output)
    check_shape(op, "grad_output", grad_output, size)
    return input.new_empty(weight_size)


# ---- gradients -------------------------------------------------------------------------------------------------------
#
# But for the activation, the three operators are linear in each of their tensors, and the gradient of each is a pair of
# the others: differentiable as often as wanted.


def _conv_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, weight, bias, *rest = inputs
    ctx.rest, ctx.sizes = rest[:4], (input.shape, weight.shape)
    activation = None
    if len(rest) > 4:
        activation, ctx.tf32 = (*rest[5:], None, False)[:2]
        ctx.activation = activation
        if activation in _SMOOTH:
            ctx.save_for_backward(input, weight, bias, rest[4])
            return
    # A frozen weight (or input) does not keep the other one alive.
    needs_input, needs_weight, *_ = ctx.needs_input_grad
    finished = output if activation else None
    ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None, finished)


def _conv_backward(ctx: Any, grad: Tensor) -> tuple:
    input, weight, *others = ctx.saved_tensors
    # A plain call gives seven arguments, and the dispatcher leaves out defaults.
    activation, tf32 = getattr(ctx, "activation", None), getattr(ctx, "tf32", False)
    if activation in _SMOOTH:
        bias, residual = others
        before = _convolve(input, weight, bias, *ctx.rest, residual, None, tf32)
        grad = grad * _SLOPE[activation](before)
    elif activation == "relu":
        grad = torch.ops.aten.threshold_backward(grad, others[0].detach(), 0)
    elif activation == "relu6":
        grad = torch.ops.aten.hardtanh_backward(grad, others[0].detach(), 0.0, 6.0)
    needs_input, needs_weight, needs_bias, *needs = ctx.needs_input_grad
    input_size, weight_size = map(list, ctx.sizes)
    grad_input = _grad_input(grad, weight, input_size, *ctx.rest, tf32) if needs_input else None
    grad_weight = _grad_weight(grad, input, weight_size, *ctx.rest, tf32) if needs_weight else None
    grad_bias = grad.sum([0, *range(2, grad.dim())]) if needs_bias else None
    epilogue = [grad if one else None for one in needs[4:]]  # as many as there were arguments
    return grad_input, grad_weight, grad_bias, None, None, None, None, *epilogue


def _silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _hardswish_slope(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 3, x / 3 + 0.5, (x > 0).to(x.dtype))


_SLOPE = {"silu": _silu_slope, "hardswish": _hardswish_slope}


def _grad_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    first, second, _, *rest = inputs
    ctx.rest, ctx.tf32 = rest[:4], rest[4:] == [True]
    ctx.save_for_backward(first, second)


def _grad_input_backward(ctx: Any, grad: Tensor) -> tuple:
    grad_output, weight = ctx.saved_tensors
    needs_grad_output, needs_weight = ctx.needs_input_grad[:2]
    return (
        _convolve(grad, weight, None, *ctx.rest, None, None, ctx.tf32) if needs_grad_output else None,
        _grad_weight(grad_output, grad, weight.shape, *ctx.rest, ctx.tf32) if needs_weight else None,
        *(None,) * len(ctx.needs_input_grad[2:]),
    )


def _grad_weight_backward(ctx: Any, grad: Tensor) -> tuple:
    grad_output, input = ctx.saved_tensors
    needs_grad_output, needs_input = ctx.needs_input_grad[:2]
    return (
        _convolve(input, grad, None, *ctx.rest, None, None, ctx.tf32) if needs_grad_output else None,
        _grad_input(grad_output, grad, input.shape, *ctx.rest, ctx.tf32) if needs_input else None,
        *(None,) * len(ctx.needs_input_grad[2:]),
    )


_convolve = operator("conv", fake=_fake_conv, setup_context=_conv_setup, backward=_conv_backward, autocast=True)
_grad_input = operator(
    "_conv_grad_input", fake=_fake_grad_input, setup_context=_grad_setup, backward=_grad_input_backward
)
_grad_weight = operator(
    "_conv_grad_weight", fake=_fake_grad_weight, setup_context=_grad_setup, backward=_grad_weight_backward
)
