"""What this machine can do at most: operations and bytes a second, measured once a process and kept."""

import time
from collections.abc import Callable
from functools import cache

import torch

__all__ = ["bandwidth", "peak"]

#: Beyond every cache that a core has to itself, and most that cores share.
_COPY_BYTES = 64 << 20
#: Large enough for a matrix product to reach its speed, small enough where a dtype has no kernel of its own.
_PRODUCT_SIZE = 512
#: For each of the measurements, of which a caller needs two or three.
_SECONDS = 0.05


def peak(dtype: torch.dtype, threads: int) -> float:
    """FLOP/s of ``threads`` threads in ``dtype``: the speed of PyTorch's matrix product, the operation that libraries
    and processors are tuned for. 16-bit numbers can be computed with in float32, so theirs is at least that."""
    own = _product(dtype, threads)
    return max(own, _product(torch.float32, threads)) if dtype.itemsize == 2 else own


def bandwidth(threads: int) -> float:
    """Bytes/s that ``threads`` threads read and write together while they copy a tensor beyond the caches."""
    return _copy(threads)


@cache
def _product(dtype: torch.dtype, threads: int) -> float:
    a = torch.ones(_PRODUCT_SIZE, _PRODUCT_SIZE, dtype=dtype)
    result = torch.empty_like(a)
    return 2 * _PRODUCT_SIZE**3 / _fastest(lambda: torch.mm(a, a, out=result), threads)


@cache
def _copy(threads: int) -> float:
    source = torch.ones(_COPY_BYTES, dtype=torch.uint8)
    target = torch.ones_like(source)
    return 2 * _COPY_BYTES / _fastest(lambda: target.copy_(source), threads)


def _fastest(work: Callable[[], object], threads: int) -> float:
    """Seconds of the fastest of a few runs: what is measured is a limit."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        times: list[float] = []
        while sum(times) < _SECONDS:
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return min(times)
