"""The emulator against the hardware: its own examples, compiled by nvcc and run on the GPU, give what it
says they give.

A test of a kernel on the emulator is worth as much as the emulator's idea of a shuffle, an asynchronous
copy or a tensor core is right; here a GPU is asked."""

import ctypes
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import test_emulator as examples
import torch

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def _library() -> ctypes.CDLL:
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    target = ROOT / "build" / "examples" / "libexamples.so"
    target.parent.mkdir(parents=True, exist_ok=True)
    source = ROOT / "tests" / "emulator"
    capability = "".join(map(str, torch.cuda.get_device_capability()))
    chip = "90a" if capability == "90" else capability
    subprocess.run(
        [nvcc, "-x", "cu", "-std=c++17", f"-gencode=arch=compute_{chip},code=sm_{chip}", "-shared", "-Xcompiler",
         "-fPIC", f"-DFASTCONV_NEWEST_CHIP={capability}", f"-DFASTCONV_WARPGROUPS={int(chip == '90a')}",
         f"-I{ROOT / 'csrc'}", f"-I{source}", str(source / "examples.cpp"), "-o", str(target)],
        check=True,
    )  # fmt: skip
    return ctypes.CDLL(str(target))


class Buffer:
    def __init__(self, array: np.ndarray) -> None:
        self.array = np.ascontiguousarray(array)
        self.memory = torch.from_numpy(self.array.view(np.uint8).reshape(-1).copy()).cuda()
        self.address = self.memory.data_ptr()

    def download(self) -> np.ndarray:
        torch.cuda.synchronize()
        return self.memory.cpu().numpy().view(self.array.dtype).reshape(self.array.shape)


class Gpu:
    """What emulated.Emulator does, on a GPU."""

    @contextmanager
    def buffers(self, *specs: tuple[str, np.ndarray, int, bool]) -> Iterator[list[Buffer]]:
        yield [Buffer(array) for _, array, _, _ in specs]
        torch.cuda.synchronize()

    def call(self, entry: str, *arguments: object) -> None:
        function = getattr(_library(), entry)
        function.restype = ctypes.c_char_p
        torch.cuda.synchronize()
        error = function(*(ctypes.c_int64(a) if isinstance(a, int) else a for a in arguments))
        assert error is None, error.decode()


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


@pytest.mark.parametrize("n", [1, 31, 128, 1000])
def test_block_sum(gpu: Gpu, n: int) -> None:
    examples.test_block_sum(gpu, n)


def test_shuffles(gpu: Gpu) -> None:
    examples.test_shuffles(gpu)


@pytest.mark.parametrize("holds", [[0] * 32, [1] * 32, [0, 1] * 16])
def test_votes(gpu: Gpu, holds: list[int]) -> None:
    examples.test_votes(gpu, holds)


@pytest.mark.parametrize("values", [[7] * 32, list(range(32)), [0, 1, 2**31, 1] * 8], ids=["same", "all", "some"])
def test_matches(gpu: Gpu, values: list[int]) -> None:
    examples.test_matches(gpu, values)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_are_rounded(gpu: Gpu, dtype: type) -> None:
    examples.test_products_are_rounded(gpu, dtype)


def test_histogram(gpu: Gpu) -> None:
    examples.test_histogram(gpu)


@pytest.mark.parametrize("n", [1, 4, 128, 129, 515, 1024])
def test_copies_arrive_when_waited_for(gpu: Gpu, n: int) -> None:
    examples.test_copies_arrive_when_waited_for(gpu, n)


@pytest.mark.parametrize("name", ["product_bfloat16", "product_float16", "product_loaded", "product_tf32"])
def test_tensor_cores(gpu: Gpu, name: str) -> None:
    examples.test_tensor_cores(gpu, name)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
@pytest.mark.parametrize("warpgroups", [1, 2])
def test_products_of_warpgroups(gpu: Gpu, warpgroups: int, name: str) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("a GPU without these instructions")
    examples.test_products_of_warpgroups(gpu, warpgroups, name)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_conversions(gpu: Gpu, name: str) -> None:
    examples.test_conversions(gpu, name)


def test_sync_warp_orders_shared_memory(gpu: Gpu) -> None:
    examples.test_sync_warp_orders_shared_memory(gpu)


def test_three_dimensions_of_grid_and_block(gpu: Gpu) -> None:
    examples.test_three_dimensions_of_grid_and_block(gpu)
