"""What the machine can do at best, measured when the benchmark starts: the limit that every row is held against."""

import math
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from fastconv._native import native

#: Sizes of the copies, in bytes read: from what a core's own cache holds to what only memory does.
COPIES = tuple(1 << power for power in (19, 21, 23, 25, 27))
#: Sides of the matrices: small enough for the second level of cache, large enough to feed every thread.
MATRICES = (512, 1024)
#: Of multiply-adds in registers: some hundred microseconds.
ROUNDS = 100_000
SECONDS = 0.2

#: Bytes a second of a copy, by threads, then by the bytes that it reads and writes.
Bandwidth = dict[int, dict[int, float]]
#: Operations a second, by dtype, then by threads.
Peak = dict[str, dict[int, float]]


class Limit(NamedTuple):
    """The least time that something can take, and what that is bound by, "compute" or "memory"."""

    seconds: float
    bound: str


def limit(flops: float, bytes: float, peak: float, bandwidth: float) -> Limit:
    """The roofline model (Williams, Waterman and Patterson, 2009).

    >>> limit(flops=4e9, bytes=1e9, peak=2e9, bandwidth=1e9)
    Limit(seconds=2.0, bound='compute')
    """
    return max(Limit(flops / peak, "compute"), Limit(bytes / bandwidth, "memory"))


def bandwidth_for(bytes: float, copies: dict[int, float]) -> float:
    """The bandwidth of the copy that moves about as much, and so lies in about the same caches."""
    return copies[min(copies, key=lambda size: abs(math.log(size / bytes)))]


def measure(dtypes: Iterable[str], threads: Iterable[int]) -> tuple[Bandwidth, Peak]:
    """Takes about two seconds for each number of threads; leaves PyTorch's as it finds it."""
    before = torch.get_num_threads()
    bandwidth: Bandwidth = {}
    peak: Peak = {dtype: {} for dtype in dtypes}
    try:
        for count in threads:
            torch.set_num_threads(count)
            bandwidth[count] = {2 * size: 2 * size / copy_seconds(size) for size in COPIES}
            for dtype in peak:
                own = matrix_peak(getattr(torch, dtype))
                peak[dtype][count] = max(own, register_peak(dtype == "float64", count))
            for dtype in {"bfloat16", "float16"} & peak.keys():  # can always be computed with as float32
                peak[dtype][count] = max(peak[dtype][count], peak.get("float32", {}).get(count, 0))
    finally:
        torch.set_num_threads(before)
    return bandwidth, peak


def copy_seconds(size: int) -> float:
    source = torch.zeros(size, dtype=torch.uint8)
    target = torch.empty_like(source)
    return best_seconds(lambda: target.copy_(source))


def register_peak(wide: bool, threads: int) -> float:
    """Operations a second of multiply-adds in registers, in float64 if ``wide``, otherwise in float32."""
    work = native.peak_work(wide, ROUNDS, threads)
    return work / best_seconds(lambda: native.peak_work(wide, ROUNDS, threads))


def matrix_peak(dtype: torch.dtype) -> float:
    """Operations a second of the best of PyTorch's matrix products, which use what is made for them alone."""
    peaks = []
    for side in MATRICES:
        a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
        out = torch.empty(side, side, dtype=dtype)
        peaks.append(2 * side**3 / best_seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out)))  # type: ignore[misc]
    return max(peaks)


def best_seconds(function: Callable[[], object]) -> float:
    """The least of the times, not their median: a limit is what was reached once."""
    function()
    times: list[float] = []
    while sum(times) < SECONDS or len(times) < 3:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def text(bandwidth: Bandwidth, peak: Peak) -> str:
    """What was measured, a line for each number of threads."""
    lines = []
    for count, copies in bandwidth.items():
        speeds = ", ".join(f"{by_threads[count] / 1e9:.0f} GFLOP/s {dtype}" for dtype, by_threads in peak.items())
        moved = ", ".join(f"{speed / 1e9:.0f} GB/s at {size >> 20} MB" for size, speed in copies.items())
        lines.append(f"{count} thread{'s' if count > 1 else ''}: {speeds}; copies {moved}")
    return "\n".join(lines)
