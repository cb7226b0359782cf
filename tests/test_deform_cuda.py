"""The CUDA kernels of deformable convolution on the emulator, against the operators for CPUs on the same data."""

import ctypes
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from emulated import Emulator, emulator
from test_pool_cuda import ALL_BLOCKS, BOTH_LAYOUTS
from torch import Tensor

import fastconv

__all__ = ["emulator"]

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # in the order of Dtype
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2, torch.float16: 4e-3}
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: str(t).removeprefix("torch."))
READ = ["input", "offset", "mask", "weight", "bias", "output"]  # in the order of the emulator's entry
WANTED = ["input", "offset", "mask", "weight"]
PART, SUMS = 512, 8 << 20  # of DeformLimits
NATIVE = torch.ops.fastconv
assert fastconv.__version__  # it has registered the operators


@dataclass(frozen=True)
class Case:
    size: tuple[int, int, int, int] = (2, 8, 9, 11)
    out: int = 6  # channels of the output; 0: samples alone
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    offset_groups: int = 1
    mask: bool = True
    bias: bool = True
    far: float = 1.5  # how far taps look elsewhere

    @property
    def windows(self) -> list[int]:
        of = zip(self.size[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in of]

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """What is there of input, offset, mask, weight, bias; and `output`, a gradient."""
        N, C = self.size[:2]
        taps = self.offset_groups * self.kernel[0] * self.kernel[1]
        sizes = {"input": self.size, "offset": (N, 2 * taps, *self.windows)}
        sizes |= {"mask": (N, taps, *self.windows)} if self.mask else {}
        sizes |= {"weight": (self.out, C // self.groups, *self.kernel)} if self.out else {}
        sizes |= {"bias": (self.out,)} if self.out and self.bias else {}
        sizes |= {"output": (N, self.out or C, *self.windows)}
        generator = torch.Generator().manual_seed(0)
        made = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
        made["offset"] = (self.far * made["offset"]).round(decimals=1)  # some between no pixels
        return {name: t.to(dtype) for name, t in made.items()}

    def native(self, given: dict[str, Tensor]) -> Tensor:
        rest = list(self.stride), list(self.padding), list(self.dilation)
        mask = given.get("mask")
        if not self.out:
            return NATIVE.deform_sample2d(given["input"], given["offset"], mask, list(self.kernel), *rest)
        return NATIVE.deform_conv2d(given["input"], given["offset"], given["weight"], given.get("bias"), mask, *rest)

    def native_grads(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        rest = list(self.stride), list(self.padding), list(self.dilation), True, True
        tensors = [given[name] for name in ("output", "input", "offset")]
        mask = given.get("mask")
        if not self.out:
            grads = NATIVE._deform_sample2d_grad(*tensors, mask, list(self.kernel), *rest, self.mask)
            return self.named("input", "offset", "mask", grads=grads)
        grads = NATIVE._deform_conv2d_grad(*tensors, given["weight"], mask, *rest, True, self.mask)
        return self.named("input", "offset", "weight", "mask", grads=grads)

    def named(self, *names: str, grads: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {name: grad for name, grad in zip(names, grads, strict=True) if name != "mask" or self.mask}


class Gpu:
    """The operators of a case, in one layout and at limits that tests lower."""

    def __init__(self, emulator: Emulator, case: Case, dtype: torch.dtype, channels_last: bool, *,
                 offsets_last: bool | None = None, max_grid: int = ALL_BLOCKS, part: int = PART, sums: int = SUMS,
                 shift: int = 0) -> None:  # fmt: skip
        self.emulator, self.case, self.dtype, self.channels_last = emulator, case, dtype, channels_last
        self.offsets_last = channels_last if offsets_last is None else offsets_last
        self.limits, self.shift = (ctypes.c_int64 * 3)(max_grid, part, sums), shift

    def last(self, name: str) -> bool:
        return {"offset": self.offsets_last, "mask": self.offsets_last, "weight": False, "bias": False}.get(
            name, self.channels_last
        )

    def memory(self, name: str, x: Tensor) -> np.ndarray:
        x = (x.permute(0, 2, 3, 1) if self.last(name) else x).contiguous()
        return (x.view(torch.int16) if x.element_size() == 2 else x).numpy()

    def tensor(self, name: str, memory: np.ndarray) -> Tensor:
        x = torch.from_numpy(memory).view(self.dtype)
        return x.permute(0, 3, 1, 2) if self.last(name) else x

    def call(self, given: dict[str, Tensor], made: dict[str, Tensor], backward: bool) -> dict[str, Tensor]:
        """What has been written of `made`, which are as large as they have to be."""
        case = self.case
        groups = case.groups if case.out else 1
        sizes = (ctypes.c_int64 * 17)(*case.size, case.out or case.size[1], *case.kernel, *case.windows, *case.stride,
                                      *case.padding, *case.dilation, groups, case.offset_groups)  # fmt: skip
        shift = self.shift * self.dtype.itemsize
        specs = [(name, self.memory(name, x), shift, True) for name, x in given.items()]
        specs += [(f"new {name}", self.memory(name, x), shift, False) for name, x in made.items()]
        with self.emulator.buffers(*specs) as buffers:
            at = {spec[0]: buffer.address for spec, buffer in zip(specs, buffers, strict=True)}
            names = [f"new {n}" if n in made and not backward else n for n in READ] + [f"new {n}" for n in WANTED]
            memory = (ctypes.c_void_p * 10)(*(at.get(name) for name in names))
            layout = [DTYPES.index(self.dtype), int(self.channels_last), int(self.offsets_last)]
            size = self.emulator.library.emulated_deform_scratch
            size.restype = ctypes.c_int64
            scratch = size(*map(ctypes.c_int64, layout), sizes, memory, self.limits)
            self.emulator.launched()
            with self.emulator.buffers(("scratch", np.empty(max(1, scratch), np.uint8), 0, False)) as (own,):
                self.emulator.call("emulated_deform", int(backward), *layout, sizes, memory,
                                   ctypes.c_void_p(own.address), self.limits)  # fmt: skip
            return {n: self.tensor(n, b.download()) for n, b in zip(made, buffers[len(given) :], strict=True)}

    def forward(self, given: dict[str, Tensor]) -> Tensor:
        read = {name: t for name, t in given.items() if name != "output"}
        return self.call(read, {"output": torch.zeros_like(given["output"])}, False)["output"]

    def backward(self, given: dict[str, Tensor], wanted: list[str] = WANTED) -> dict[str, Tensor]:
        read = {name: t for name, t in given.items() if name != "bias"}
        return self.call(read, {n: torch.zeros_like(given[n]) for n in wanted if n in given}, True)


def close(got: Tensor, wanted: Tensor) -> None:
    tolerance = TOLERANCE[wanted.dtype]
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=3 * tolerance, equal_nan=True)


def check(gpu: Gpu) -> None:
    given = gpu.case.tensors(gpu.dtype)
    close(gpu.forward(given), gpu.case.native(given))
    wanted, got = gpu.case.native_grads(given), gpu.backward(given)
    assert set(got) == set(wanted)
    for name in wanted:
        close(got[name], wanted[name])


CASES = {
    "usual": Case(),
    "many output channels": Case(size=(1, 8, 6, 7), out=70),
    "several channel steps": Case(size=(1, 72, 5, 6), out=18, kernel=(1, 2), padding=(0, 0), bias=False),
    "groups": Case(size=(1, 12, 7, 5), out=9, groups=3, offset_groups=2),
    "depthwise": Case(size=(1, 5, 6, 7), out=10, groups=5, offset_groups=5, mask=False),
    "strides": Case(size=(1, 4, 20, 37), out=3, kernel=(2, 4), stride=(2, 3), padding=(3, 1), dilation=(3, 2)),
    "far": Case(size=(1, 4, 20, 37), out=17, kernel=(1, 2), padding=(0, 0), far=12),
    "many squares": Case(size=(1, 1, 1, 4112), out=0, kernel=(1, 1), padding=(0, 0), mask=False),
    "a pixel": Case(size=(2, 3, 1, 1), out=2, far=0.7),
    "samples": Case(out=0),
    "samples in groups": Case(size=(1, 24, 9, 11), out=0, offset_groups=3),
    "samples, many channels": Case(size=(1, 72, 5, 6), out=0, kernel=(1, 2), mask=False),
    "samples, tiles": Case(size=(1, 3, 20, 37), out=0, kernel=(2, 2), stride=(1, 2), far=4),
}
USUAL = {"products": Case(size=(2, 16, 5, 7), out=20, groups=2, offset_groups=2, kernel=(2, 2)),
         "samples": Case(size=(2, 16, 6, 7), out=0, offset_groups=2, kernel=(2, 2))}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@BOTH_LAYOUTS
def test_cases(emulator: Emulator, channels_last: bool, case: str) -> None:
    check(Gpu(emulator, CASES[case], torch.float32, channels_last))


@pytest.mark.parametrize("case", USUAL)
@BOTH_LAYOUTS
@ALL_DTYPES
def test_dtypes(emulator: Emulator, dtype: torch.dtype, channels_last: bool, case: str) -> None:
    check(Gpu(emulator, USUAL[case], dtype, channels_last))


@pytest.mark.parametrize("limits", [{"max_grid": 1}, {"shift": 1}, {"part": 8}, {"part": 8, "sums": 6000}], ids=str)
@pytest.mark.parametrize("case", USUAL)
@BOTH_LAYOUTS
def test_limits(emulator: Emulator, channels_last: bool, case: str, limits: dict) -> None:
    """One block for everything, tensors that begin anywhere, gradients of weights in parts."""
    check(Gpu(emulator, USUAL[case], torch.bfloat16 if "shift" in limits else torch.float32, channels_last, **limits))


@BOTH_LAYOUTS
def test_offsets_in_the_other_layout(emulator: Emulator, channels_last: bool) -> None:
    for case in USUAL.values():
        check(Gpu(emulator, case, torch.float32, channels_last, offsets_last=not channels_last))


@ALL_DTYPES
def test_accesses_are_wide_where_they_are_aligned(emulator: Emulator, dtype: torch.dtype) -> None:
    for case in USUAL.values():
        given = case.tensors(dtype)
        for shift in (0, 1):
            gpu = Gpu(emulator, case, dtype, True, shift=shift)
            gpu.forward(given)
            assert (", true" in emulator.launched()[-1]) == (shift == 0)
            for name in ("offset", "weight") if case.out else ("offset",):
                gpu.backward(given, [name])
                assert (", true" in emulator.launched()[-1]) == (shift == 0)


@pytest.mark.parametrize("case", USUAL)
@BOTH_LAYOUTS
def test_every_gradient_alone(emulator: Emulator, channels_last: bool, case: str) -> None:
    gpu = Gpu(emulator, USUAL[case], torch.float32, channels_last)
    given = gpu.case.tensors(torch.float32)
    together = gpu.backward(given)
    for name, grad in together.items():
        assert torch.equal(gpu.backward(given, [name])[name], grad)


@pytest.mark.parametrize("case", USUAL)
@BOTH_LAYOUTS
def test_samples_that_are_nowhere(emulator: Emulator, channels_last: bool, case: str) -> None:
    """Offsets that are NaN, infinite or far away: zeros without a gradient; not even a NaN of the mask's is seen."""
    gpu = Gpu(emulator, USUAL[case], torch.float32, channels_last)
    given = gpu.case.tensors(torch.float32)
    offset, mask = given["offset"].view(-1), given["mask"]
    for first, value in enumerate([float("nan"), float("inf"), -float("inf"), 3e38, -1e10, 2.0**31]):
        offset[first::41] = value
    nowhere = ~(given["offset"].abs() < 1e9).unflatten(1, (-1, 2)).all(2)
    mask[nowhere] = float("nan")
    output, wanted = gpu.forward(given), gpu.case.native(given)
    assert not wanted.isnan().any()
    close(output, wanted)
    grads, wanted_grads = gpu.backward(given), gpu.case.native_grads(given)
    for name in grads:
        assert not grads[name].isnan().any()
        close(grads[name], wanted_grads[name])
    assert (grads["mask"][nowhere] == 0).all()
    assert (grads["offset"].unflatten(1, (-1, 2)).movedim(2, -1)[nowhere] == 0).all()


@pytest.mark.parametrize("case", USUAL)
@BOTH_LAYOUTS
def test_a_nan_is_seen_by_samples_that_look_at_it(emulator: Emulator, channels_last: bool, case: str) -> None:
    gpu = Gpu(emulator, replace(USUAL[case], far=1), torch.float32, channels_last)
    given = gpu.case.tensors(torch.float32)
    given["input"][0, ::3, 0, 0] = given["input"][1, 1::4, 4, 3] = float("nan")
    wanted = gpu.case.native(given)
    assert 0 < wanted.isnan().sum() < wanted.numel() / 2
    close(gpu.forward(given), wanted)
    grads, wanted_grads = gpu.backward(given), gpu.case.native_grads(given)
    for name in grads:
        close(grads[name], wanted_grads[name])


@BOTH_LAYOUTS
def test_an_infinite_pixel_stays_one_at_the_edge(emulator: Emulator, channels_last: bool) -> None:
    """Beyond the edge are zeros, and not that pixel times zero."""
    case = Case(size=(1, 4, 3, 3), out=0, kernel=(1, 1), padding=(0, 0), mask=False)
    given = case.tensors(torch.float32)
    given["input"][:] = float("inf")
    given["offset"][:] = 0.5
    assert (Gpu(emulator, case, torch.float32, channels_last).forward(given) == float("inf")).all()
