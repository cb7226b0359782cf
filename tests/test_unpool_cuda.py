"""Unpooling's CUDA kernels on the emulator: values to their indices and back, in every place, alignment and size that
the kernels tell apart."""

import ctypes

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from emulated import Emulator, emulator
from test_pool_cuda import BOTH_LAYOUTS

__all__ = ["emulator"]

WIDTHS = pytest.mark.parametrize("bits", [np.uint16, np.uint32, np.uint64], ids=lambda t: t.__name__)


class Gpu:
    """The two operators, in one layout and at one of the limits that tests lower."""

    def __init__(self, emulator: Emulator, channels_last: bool, *, max_grid: int = 2**31 - 1, narrow: int = 2**31 - 1,
                 offset: int = 0) -> None:  # fmt: skip
        self.emulator, self.channels_last, self.offset = emulator, channels_last, offset
        self.limits = (ctypes.c_int64 * 2)(max_grid, narrow)

    def memory(self, x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x.swapaxes(1, 2) if self.channels_last else x)

    def call(self, scatters: bool, indices: np.ndarray, given: np.ndarray, positions: int) -> np.ndarray:
        """`indices` and values [N, C, windows], planes [N, C, positions]."""
        N, C, windows = indices.shape
        wanted = np.zeros((N, C, positions if scatters else windows), given.dtype)
        sizes = (int(self.channels_last), N, C, windows, positions)
        scratch = self.emulator.library.emulated_unpool_scratch
        scratch.restype = ctypes.c_int64
        room = np.zeros(scratch(*map(ctypes.c_int64, sizes), self.limits), np.uint8)
        shift = self.offset * given.itemsize
        specs = [
            ("indices", self.memory(indices), self.offset * 8, True),
            ("given", self.memory(given), shift, True),
            ("result", self.memory(wanted), shift, False),
            ("reaches", room, 0, False),
        ]
        with self.emulator.buffers(*specs) as buffers:
            where, source, result, reaches = (ctypes.c_void_p(b.address) for b in buffers)
            values, planes = (source, result) if scatters else (result, source)
            self.emulator.call("emulated_unpool", int(scatters), given.itemsize, *sizes, where, values, planes,
                               reaches, self.limits)  # fmt: skip
            got = buffers[2].download()
        return got.swapaxes(1, 2) if self.channels_last else got


def scattered(indices: np.ndarray, values: np.ndarray, positions: int) -> np.ndarray:
    planes = np.zeros((*indices.shape[:2], positions), values.dtype)
    for n, c, w in np.ndindex(*indices.shape):
        if 0 <= indices[n, c, w] < positions:
            planes[n, c, indices[n, c, w]] = values[n, c, w]
    return planes


def gathered(indices: np.ndarray, planes: np.ndarray) -> np.ndarray:
    inside = (indices >= 0) & (indices < planes.shape[2])
    return np.where(inside, np.take_along_axis(planes, np.where(inside, indices, 0), 2), 0).astype(planes.dtype)


def numbers(shape: tuple[int, ...], bits: type) -> np.ndarray:
    return np.random.default_rng(1).integers(1, np.iinfo(bits).max, shape, dtype=bits)


def check(gpu: Gpu, indices: np.ndarray, positions: int, bits: type) -> None:
    values, planes = numbers(indices.shape, bits), numbers((*indices.shape[:2], positions), bits)
    gpu.emulator.launched()
    got = gpu.call(True, indices, values, positions)
    assert [name.split("<")[0] for name in gpu.emulator.launched()] == ["unpool_reaches", "unpool_tiles"]
    np.testing.assert_array_equal(got, scattered(indices, values, positions))
    got = gpu.call(False, indices, planes, positions)
    assert gpu.emulator.launched()[0].startswith("unpool_gather<")
    np.testing.assert_array_equal(got, gathered(indices, planes))


def pooled(N: int, C: int, H: int, W: int, *windows: int) -> tuple[np.ndarray, int]:
    generator = torch.Generator().manual_seed(0)
    _, indices = F.max_pool2d(torch.rand(N, C, H, W, generator=generator), *windows, return_indices=True)
    return indices.flatten(2).numpy(), H * W


def anywhere(N: int, C: int, windows: int, positions: int) -> tuple[np.ndarray, int]:
    return np.random.default_rng(0).integers(0, positions, (N, C, windows)), positions


CASES = {
    "2x2": lambda: pooled(2, 5, 8, 12, 2),
    "2x2, odd": lambda: pooled(2, 3, 9, 13, 2),
    "2x2, planes of several tiles": lambda: pooled(1, 2, 130, 140, 2),
    "2x2, many planes a tile": lambda: pooled(3, 40, 6, 6, 2),
    "2x2, 16-byte channels": lambda: pooled(2, 16, 10, 14, 2),
    "2x2, channels of several groups": lambda: pooled(2, 72, 10, 14, 2),
    "2x2, channels of groups and a few": lambda: pooled(1, 37, 18, 30, 2),
    "3x3 s2 p1, windows that share positions": lambda: pooled(2, 18, 11, 15, 3, 2, 1),
    "5x5 s1 p2, many that do": lambda: pooled(1, 5, 30, 41, 5, 1, 2),
    "a pixel": lambda: pooled(1, 1, 2, 2, 2),
    "anywhere": lambda: anywhere(2, 6, 400, 1900),
    "anywhere, more steps than threads": lambda: anywhere(1, 1, 300 * 1024, 9000),
    "all to the last": lambda: (np.full((1, 6, 1200), 4799), 4800),
}


@pytest.mark.parametrize("case", CASES)
@BOTH_LAYOUTS
@WIDTHS
def test_unpool(emulator: Emulator, bits: type, channels_last: bool, case: str) -> None:
    if "more steps" in case and bits is not np.uint32:
        pytest.skip("of one width, for the time it takes")
    check(Gpu(emulator, channels_last), *CASES[case](), bits)


@pytest.mark.parametrize("limits", [{"max_grid": 1}, {"narrow": 0}, {"offset": 1}], ids=str)
@BOTH_LAYOUTS
@WIDTHS
def test_limits(emulator: Emulator, bits: type, channels_last: bool, limits: dict) -> None:
    """One block for everything, 64-bit arithmetic, tensors that begin anywhere."""
    gpu = Gpu(emulator, channels_last, **limits)
    for case in ("2x2, planes of several tiles", "2x2, channels of several groups", "5x5 s1 p2, many that do"):
        check(gpu, *CASES[case](), bits)


@BOTH_LAYOUTS
@WIDTHS
def test_wrong_indices_are_left_out(emulator: Emulator, bits: type, channels_last: bool) -> None:
    indices, positions = pooled(2, 20, 12, 16, 2)
    indices[0, 3, 5], indices[1, 0, 0], indices[1, 19, -1], indices[0, 0, 7] = -1, positions, 2**62, -(2**63)
    check(Gpu(emulator, channels_last), indices, positions, bits)
