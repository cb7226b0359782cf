"""What the arguments of every operator must be: integers, lists of them, dtypes, shapes; in the words of
``"<op>: <argument> must <rule> (got <value>)"`` (csrc/core/torch.h says the same where there is data)."""

import operator as arithmetic
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: Of strides, dilations and padding; far beyond use, and no sum or product of them overflows.
LARGEST = 2**31 - 1
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def integer(op: str, name: str, value: Any, rule: str) -> int:
    """As PyTorch takes them: numpy's integers and tensors of one are integers, True and 1.0 are not."""
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    try:
        if isinstance(value, bool):
            raise TypeError
        return arithmetic.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be {rule} (got {value!r})") from None


def each(op: str, name: str, value: int | Sequence[int], dims: int) -> list[int]:
    """One integer for each dimension; a single one counts for all."""
    if type(value) is int:
        if value <= LARGEST:
            return [value] * dims
        values: list[int] = [value] * dims
    else:
        rule = f"an integer or {dims} integers" if dims > 1 else "an integer"
        items = list(value) if isinstance(value, (tuple, list)) else [value]
        try:
            values = [integer(op, name, item, rule) for item in items]
        except TypeError:
            raise TypeError(f"{op}: {name} must be {rule} (got {value!r})") from None
        if len(values) == 1:
            values = values * dims
        if len(values) != dims:
            raise RuntimeError(f"{op}: {name} must have {dims} elements (got {values})")
    if max(values) > LARGEST:
        raise RuntimeError(f"{op}: {name} must be at most {LARGEST} (got {values})")
    return values


def check_list(op: str, name: str, values: list[int], count: int, least: int, rule: str) -> None:
    if len(values) != count:
        raise RuntimeError(f"{op}: {name} must have {count} elements (got {values})")
    for value in values:
        if value < least:
            raise RuntimeError(f"{op}: {name} must {rule} (got {values})")
        if value > LARGEST:
            raise RuntimeError(f"{op}: {name} must be at most {LARGEST} (got {values})")


def check_same(op: str, input: Tensor, **others: Tensor | None) -> None:
    if input.dtype not in DTYPES:
        raise RuntimeError(f"{op}: input must be float32, float64, bfloat16 or float16 (got {dtype_name(input)})")
    for name, other in others.items():
        if other is None:
            continue
        if other.dtype != input.dtype:
            raise RuntimeError(
                f"{op}: {name} must have the dtype of input, {dtype_name(input)} (got {dtype_name(other)})"
            )
        if other.device != input.device:
            raise RuntimeError(f"{op}: {name} must be on the device of input, {input.device} (got {other.device})")


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_shape(op: str, name: str, tensor: Tensor, size: Sequence[int]) -> None:
    if list(tensor.shape) != list(size):
        raise RuntimeError(f"{op}: {name} must have shape {list(size)} (got {list(tensor.shape)})")
