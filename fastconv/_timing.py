"""Times functions against each other fairly. The speed of a shared machine drifts by tens of percent within
seconds, so candidates take turns within one loop, and only numbers of the same loop are compared. Used by the
demo and by bench/.
"""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from fastconv._native import native

__all__ = ["Timing", "alternate", "summarise"]


#: What threads reach together, of what they reached at their best: with two on one core it is half.
_UNDISTURBED = 0.8
#: Multiply-adds of each of a dozen chains: some 50 microseconds.
_PROBE_ROUNDS = 16000
#: Seconds of disturbed rounds that are thrown away.
_PATIENCE = 5.0


class Timing(NamedTuple):
    """Median and quartiles of samples, in seconds."""

    median: float
    low: float
    high: float


def alternate(
    candidates: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 20,
    seconds: float = 0.5,
    limit: int = 1000,
    least: int = 5,
    budget: float = math.inf,
    on_round: Callable[[int, int], None] | None = None,
) -> dict[str, list[float]]:
    """Runs the candidates in turn until each has run ``repeats`` times and ``seconds``, or ``limit`` times.

    Every round has an order of its own, drawn from a fixed seed: whoever comes after another layout of the same library
    finds its code in the caches, 10 microseconds for a small layer, and in a fixed order would always be the same one.

    A round in which the threads had not a core each is thrown away, as long as that happens for less than 5 seconds.
    On a rented machine two virtual cores become one real one for seconds at a time; then what keeps the arithmetic
    units busy takes twice as long with two threads, what waits for memory does not, and a comparison says nothing.

    Args:
        candidates: functions by name; they must return only when their work is done (so, on the CPU).
        repeats: fewest samples of each.
        seconds: shortest time spent in each, not counting warm-up.
        limit: most samples of each, however short they are.
        least: samples of each that have to do after ``budget``.
        budget: seconds for all of them together.
        on_round: called after each round with the rounds done and an estimate of how many there will be.

    Returns:
        Samples in seconds by name, all of the same length, in the order they were taken.

    >>> {name: len(samples) for name, samples in alternate({"a": int, "b": str}, limit=30).items()}
    {'a': 30, 'b': 30}
    """
    names = list(candidates)
    samples: dict[str, list[float]] = {name: [] for name in names}
    spent = dict.fromkeys(names, 0.0)
    draw = random.Random(0)
    patience = _PATIENCE

    def run_round() -> dict[str, float]:
        times = {}
        for name in names:
            start = time.perf_counter()
            candidates[name]()
            times[name] = time.perf_counter() - start
        draw.shuffle(names)
        return times

    _settle_allocator()
    collecting = gc.isenabled()
    gc.disable()
    try:
        warming = 0.0
        for _ in range(20):
            warming += sum(run_round().values())
            if warming >= 0.2 * seconds:
                break
        done, total = 0, repeats
        undisturbed = _undisturbed()
        while done < total and (done < least or sum(spent.values()) < budget):
            before, start = undisturbed, time.perf_counter()
            times = run_round()
            undisturbed = _undisturbed()
            if not (before and undisturbed) and patience > 0:
                patience -= time.perf_counter() - start  # of functions that take no time the probe takes all of it
                continue
            for name, elapsed in times.items():
                samples[name].append(elapsed)
                spent[name] += elapsed
            done += 1
            slowest_to_fill = seconds / max(min(spent.values()) / done, 1e-9)
            total = min(max(repeats, int(slowest_to_fill) + 1), max(repeats, limit))
            if on_round is not None:
                on_round(done, total)
    finally:
        if collecting:
            gc.enable()
    return samples


_fastest: dict[int, float] = {}


def _undisturbed() -> bool:
    """Whether PyTorch's number of threads do multiply-adds at the speed they have once shown."""
    threads = torch.get_num_threads()
    start = time.perf_counter()
    native.peak_work(False, _PROBE_ROUNDS, threads)
    speed = 1 / (time.perf_counter() - start)
    _fastest[threads] = max(speed, _fastest.get(threads, 0.0))
    return speed > _UNDISTURBED * _fastest[threads]


def _settle_allocator() -> None:
    """Brings malloc to where it is after the first layers of a network.

    glibc gives large blocks back to the system until one of up to 32 MB has been freed, and keeps them from then
    on. In a fresh process every output would be paid for in page faults, more or fewer with each library's own
    pattern of allocation, and a layer of 0.2 ms was measured as 0.5.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def summarise(samples: list[float]) -> Timing:
    """The median of the samples and their quartiles.

    >>> summarise([3.0, 1.0, 2.0])
    Timing(median=2.0, low=1.5, high=2.5)
    """
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, low, high)
