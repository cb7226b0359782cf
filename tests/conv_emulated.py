"""The CUDA kernels of convolution on the emulator: what they compute of a case, held against the slow reference."""

import ctypes
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from cases import Case, TransposedCase, problem
from emulated import Emulator
from layouts import assert_close_to_reference
from test_pool_cuda import ALL_BLOCKS
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # in the order of Dtype
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: str(t).removeprefix("torch."))
ACTIVATIONS = ["", "relu", "relu6", "silu", "hardswish"]  # in the order of Activation
PART, SUMS, TERMS, CHIP = 512, 8 << 20, 128, 90  # of ConvLimits
FORWARDS, TURNED, WEIGHTS = 0, 1, 2  # directions


def settled(size: tuple[int, ...], last: bool) -> tuple[int, ...]:
    """Strides of a dense tensor as the host operators give them to the kernels: where there is one channel or one
    column they say the layout."""
    _, C, H, W = size
    n, c, h, w = (C * H * W, 1, W * C, C) if last else (C * H * W, H * W, W, 1)
    if C == 1:
        c = size[0] * n if w == 1 else 1
    if W == 1:
        w = C if c == 1 and C > 1 else 1
    return n, c, h, w


@dataclass(frozen=True)
class Gpu:
    """Runs the kernels of one case, in one layout and at limits that tests lower."""

    emulator: Emulator
    case: Case
    dtype: torch.dtype = torch.float32
    input_last: bool = False
    output_last: bool | None = None  # that of the input by default
    kernel: str | None = None
    max_grid: int = ALL_BLOCKS
    part: int = PART
    sums: int = SUMS
    terms: int = TERMS
    chip: int = CHIP
    shift: int = 0  # elements from a multiple of 256 bytes
    activation: str = ""
    tf32: bool = False

    @property
    def turned(self) -> bool:
        return isinstance(self.case, TransposedCase)

    @property
    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of input and output of the convolution; a transposed one turns it round."""
        sizes = self.case.input_size, self.case.output_size()
        return sizes[::-1] if self.turned else sizes

    def fields(self) -> ctypes.Array:
        (N, _, H, W), (_, _, P, Q) = self.sizes
        K, C, R, S = self.case.weight_size
        geometry, groups = self.case.geometry, self.case.groups
        output_last = self.input_last if self.output_last is None else self.output_last
        strides = (*settled(self.sizes[0], self.input_last), *settled(self.sizes[1], output_last))
        values = [N, groups, C, K // groups, H, W, P, Q, R, S, *geometry["stride"], *geometry["dilation"],
                  *geometry["padding"][:2], *strides]  # fmt: skip
        return (ctypes.c_int64 * len(values))(*values)

    def last(self, name: str) -> bool:
        if name in ("output", "residual") and self.output_last is not None:
            return self.output_last
        return self.input_last and name not in ("weight", "bias")

    def run(self, direction: int, given: dict[str, Tensor], result: str, size: tuple[int, ...]) -> Tensor | None:
        """What is written to `result`, one of the given names' place; None where the kernel does not serve it."""
        specs = []
        for name, x in {**given, result: torch.zeros(size)}.items():
            x = x.to(self.dtype)
            x = (x.permute(0, 2, 3, 1) if self.last(name) else x).contiguous()
            memory = (x.view(torch.int16) if x.element_size() == 2 else x).numpy()
            specs.append((name, memory, self.shift * self.dtype.itemsize, name != result))
        with self.emulator.buffers(*specs) as buffers:
            at = {spec[0]: buffer.address for spec, buffer in zip(specs, buffers, strict=True)}
            names = ["input", "weight", "bias", "output", "residual"]
            memory = (ctypes.c_void_p * 5)(*(at.get(name) for name in names))
            kernel = ctypes.c_char_p(self.kernel.encode() if self.kernel else None)
            limits = (ctypes.c_int64 * 5)(self.max_grid, self.part, self.sums, self.terms, self.chip)
            dtype, fields = DTYPES.index(self.dtype), self.fields()
            ask = self.emulator.library.emulated_conv_scratch
            ask.restype = ctypes.c_int64
            tf32 = ctypes.c_int64(self.tf32)
            scratch = ask(ctypes.c_int64(direction), kernel, ctypes.c_int64(dtype), tf32, fields, memory, limits)
            if scratch < 0:
                return None
            self.emulator.launched()
            with self.emulator.buffers(("scratch", np.empty(max(1, scratch), np.uint8), 0, False)) as (own,):
                self.emulator.call("emulated_conv", direction, kernel, dtype, tf32, ACTIVATIONS.index(self.activation),
                                   fields, memory, ctypes.c_void_p(own.address), limits)  # fmt: skip
            written = torch.from_numpy(buffers[-1].download()).view(self.dtype)
            return written.permute(0, 3, 1, 2) if self.last(result) else written

    def four(self, x: Tensor) -> Tensor:
        """With the height that a 1-D convolution does not have."""
        return x.unsqueeze(2) if x.dim() == 3 else x

    def check_forward(self) -> bool:
        p, (whole, out) = problem(self.case), self.sizes
        x, weight = self.four(p.input), self.four(p.weight)
        if self.turned:
            got = self.run(TURNED, {"output": x, "weight": weight, "bias": p.bias}, "input", whole)
        else:
            got = self.run(FORWARDS, {"input": x, "weight": weight, "bias": p.bias}, "output", out)
        return self.compare("output", got)

    def check_grad_input(self) -> bool:
        p, (whole, out) = problem(self.case), self.sizes
        grad, weight = self.four(p.grad_output), self.four(p.weight)
        if self.turned:
            got = self.run(FORWARDS, {"input": grad, "weight": weight}, "output", out)
        else:
            got = self.run(TURNED, {"output": grad, "weight": weight}, "input", whole)
        return self.compare("grad_input", got)

    def check_grad_weight(self) -> bool:
        p = problem(self.case)
        x, grad = self.four(p.input), self.four(p.grad_output)
        given = {"input": grad, "output": x} if self.turned else {"input": x, "output": grad}
        return self.compare("grad_weight", self.run(WEIGHTS, given, "weight", self.case.weight_size))

    def compare(self, name: str, got: Tensor | None) -> bool:
        if got is None:
            return False
        p = problem(self.case)
        expected, scale = self.four(getattr(p, name)), self.four(getattr(p, f"scale_{name}"))
        assert_close_to_reference(name, got, expected, scale, tf32=self.tf32)
        return True

    def check(self) -> None:
        assert self.check_forward()
        assert self.check_grad_input()
        assert self.check_grad_weight()


def case_of(name: str, *sizes, of=Case, **rest) -> Case:
    N, C, (H, W), K, kernel = sizes
    return of(name, N, C, H, W, K, kernel, **rest)
