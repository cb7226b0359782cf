"""CUDA kernels on the host, for tests: builds tests/emulator when it is needed, and passes numpy arrays in
and out.

The emulator (see tests/emulator/emulator.h) checks every access of a kernel; what it finds is raised as
KernelError, with the kernel, the block, the thread and the line."""

import ctypes
import fcntl
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tests" / "emulator"
BUILD = ROOT / "build" / "emulator"


class KernelError(Exception):
    """A kernel did something wrong: which kernel, block and thread, what, and where in the source."""


@functools.cache
def _library() -> ctypes.CDLL:
    BUILD.mkdir(parents=True, exist_ok=True)
    # g++ even where another compiler is the default: see tests/emulator/CMakeLists.txt.
    compiler = ["-DCMAKE_CXX_COMPILER=g++"] if "CXX" not in os.environ and shutil.which("g++") else []
    generator = ["-G", "Ninja"] if shutil.which("ninja") and not (BUILD / "Makefile").exists() else []
    with open(BUILD / "lock", "w") as lock:  # several test processes may want it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (
            ["cmake", "-S", str(SOURCE), "-B", str(BUILD), *generator, *compiler],
            ["cmake", "--build", str(BUILD)],  # does nothing where nothing has changed
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"building the CUDA emulator failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    library = ctypes.CDLL(str(BUILD / "libemulator.so"))
    library.emulator_allocate.restype = ctypes.c_void_p
    library.emulator_allocate.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t]
    library.emulator_launched.restype = ctypes.c_char_p
    library.emulator_release.argtypes = [ctypes.c_void_p]
    library.emulator_upload.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.emulator_download.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.emulator_download.restype = ctypes.c_size_t
    return library


class Buffer:
    """Device memory: ``array`` as a kernel sees it, its first byte ``offset`` beyond a multiple of 256."""

    def __init__(self, name: str, array: np.ndarray, offset: int, filled: bool) -> None:
        self.array = np.ascontiguousarray(array)
        self.address = _library().emulator_allocate(name.encode(), array.nbytes, offset)
        if filled:
            _library().emulator_upload(self.address, self.array.ctypes.data)

    def download(self) -> np.ndarray:
        """What the kernel wrote; every byte of it must have been written."""
        result = np.empty_like(self.array)
        missing = _library().emulator_download(self.address, result.ctypes.data)
        assert missing == 0, f"{missing} of {result.nbytes} bytes were never written"
        return result


class Emulator:
    """A GPU without a GPU."""

    @contextmanager
    def buffers(self, *specs: tuple[str, np.ndarray, int, bool]) -> Iterator[list[Buffer]]:
        made = [Buffer(*spec) for spec in specs]
        try:
            yield made
        finally:
            for buffer in made:
                _library().emulator_release(buffer.address)

    def call(self, entry: str, *arguments: object) -> None:
        """Calls an entry of the library that returns an error or nothing. Integers are passed as int64."""
        function: Callable[..., bytes | None] = getattr(_library(), entry)
        function.restype = ctypes.c_char_p  # type: ignore[attr-defined]
        error = function(*(ctypes.c_int64(a) if isinstance(a, int) else a for a in arguments))
        if error is not None:
            raise KernelError(re.sub(r"\[at (0x[0-9a-f]+)\]", lambda m: f"[{_line(m[1])}]", error.decode()))

    def launched(self) -> list[str]:
        """The kernels launched since this was last asked, with their template arguments."""
        return _library().emulator_launched().decode().split("\n")[:-1]

    @property
    def library(self) -> ctypes.CDLL:
        return _library()


def _line(address: str) -> str:
    """The line of a kernel's source that an address in the library belongs to."""
    if shutil.which("addr2line") is None:
        return f"at {address}"
    found = subprocess.run(
        ["addr2line", "-e", str(BUILD / "libemulator.so"), address], capture_output=True, text=True
    ).stdout.split()
    return Path(found[0]).name if found else f"at {address}"


@pytest.fixture(scope="session")
def emulator() -> Emulator:
    _library()
    return Emulator()
