"""What the tests of regions of interest start from: boxes that lie anywhere, cases, how they are called.

The cases reach every order of work of csrc/roi/passes.h: maps that are turned over and maps that are read too little
for it, blocks of several vectors, of one, and single channels. Calls of 2^14 elements and more run with several
threads.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import fastconv

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPERATORS = ["roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"]
MEANS = [op for op in OPERATORS if op != "roi_pool"]
LAST = ("channels_last", "sliced_channels_last")


def boxes_of(*rows: tuple[float, ...]) -> Tensor:
    """Of the first image."""
    return torch.tensor([(0.0, *row) for row in rows], dtype=torch.float64)


def drawn(count: int, size: tuple[int, ...], scale: float = 1.0, least: float = 0.0) -> Tensor:
    """Boxes that begin and end anywhere on the map or up to a quarter of it outside, most of them in order."""
    rng = np.random.default_rng(count)
    N, _, H, W = size
    rows = []
    for _ in range(count):
        x, y = (np.sort(rng.uniform(-0.25, 1.25, 2)) * extent / scale for extent in (W, H))
        x, y = ((a, max(b, a + least)) for a, b in (x, y))
        rows.append((rng.integers(N), x[0], y[0], x[1], y[1]))
    return torch.tensor(rows, dtype=torch.float64).reshape(count, 5)


class Case(NamedTuple):
    size: tuple[int, int, int, int]  # of the input; position-sensitive operators have up to so many channels a bin
    boxes: Callable[[], Tensor]
    output_size: tuple[int, int]
    scale: float = 1.0
    sampling: int = -1
    aligned: bool = False


#: Partly and wholly outside, on every side; the map is 9 by 12.
OUTSIDE = boxes_of(
    (-3, -4, 5, 6), (7, 5, 30, 25), (-40, 2, -30, 5), (2, 20, 8, 30), (-20, -20, 40, 40), (12, 9, 15, 12),
    (-6, -7, -1, -1), (11, 8, 11.5, 8.5), (-0.75, -0.75, 0.25, 0.25),
)  # fmt: skip
#: Of no width or no height, narrower than a pixel, and ending before they begin.
DEGENERATE = boxes_of(
    (3, 3, 3, 3), (2.5, 1, 2.5, 7), (1, 4.25, 9, 4.25), (4.1, 4.2, 4.4, 4.3), (8, 2, 3, 6), (2, 7, 6, 3), (9, 8, 2, 1),
    (5, 5, 5.0001, 5.0001),
)  # fmt: skip

CASES: dict[str, Case] = {
    "a pixel": Case((2, 3, 1, 1), lambda: drawn(6, (2, 3, 1, 1)), (2, 3)),
    "a pixel, aligned": Case((1, 1, 1, 1), lambda: boxes_of((0, 0, 1, 1), (-2, -1, 3, 2)), (2, 2), 1.0, 3, True),
    "a row": Case((2, 8, 1, 23), lambda: drawn(7, (2, 8, 1, 23)), (2, 3), 1.0, 2),
    "a column": Case((1, 3, 19, 1), lambda: drawn(5, (1, 3, 19, 1)), (3, 1), 1.0, -1, True),
    "no box": Case((2, 3, 5, 6), lambda: torch.zeros(0, 5, dtype=torch.float64), (2, 3)),
    "one box": Case((1, 17, 14, 15), lambda: boxes_of((2.3, 1.7, 11.9, 12.2)), (7, 7), 1.0, 2, True),
    "one bin": Case((2, 33, 12, 13), lambda: drawn(33, (2, 33, 12, 13)), (1, 1), 1.0, 2),
    "one channel": Case((3, 1, 12, 13), lambda: drawn(65, (3, 1, 12, 13), 0.5), (2, 3), 0.5),
    "70 channels": Case((2, 70, 9, 11), lambda: drawn(33, (2, 70, 9, 11), 0.25), (2, 3), 0.25, -1, True),
    "many bins": Case((1, 8, 20, 18), lambda: drawn(4, (1, 8, 20, 18)), (14, 14), 1.0, 1),
    "three samples": Case((2, 17, 10, 12), lambda: drawn(9, (2, 17, 10, 12)), (2, 3), 1.0, 3),
    "large bins": Case((1, 3, 40, 30), lambda: drawn(5, (1, 3, 40, 30)), (1, 2), 1.0, 0, True),
    "outside": Case((1, 8, 9, 12), lambda: OUTSIDE, (2, 3)),
    "outside, aligned": Case((1, 3, 9, 12), lambda: OUTSIDE, (3, 2), 1.0, 2, True),
    "degenerate": Case((1, 8, 9, 12), lambda: DEGENERATE, (2, 3)),
    "degenerate, aligned": Case((1, 17, 9, 12), lambda: DEGENERATE, (2, 3), 1.0, -1, True),
    "degenerate, two samples, aligned": Case((1, 3, 9, 12), lambda: DEGENERATE, (3, 2), 1.0, 2, True),
    "two threads": Case((2, 33, 13, 12), lambda: drawn(65, (2, 33, 13, 12)), (3, 3), 1.0, 2, True),
    # Of a map of which less is read than it has, planes stay as they are.
    "read too little to be turned over": Case((1, 33, 60, 70), lambda: drawn(2, (1, 33, 60, 70)), (2, 3), 1.0, 2),
}  # fmt: skip


def public(op: str, x: Tensor, boxes: Tensor, case: Case) -> Tensor:
    sampling = (case.sampling,) if op.endswith("align") else ()
    aligned = (case.aligned,) if op == "roi_align" else ()
    return getattr(fastconv, op)(x, boxes, case.output_size, case.scale, *sampling, *aligned)


def size_for(op: str, case: Case) -> tuple[int, int, int, int]:
    N, C, H, W = case.size
    return N, min(C, 9) * case.output_size[0] * case.output_size[1] if op.startswith("ps_") else C, H, W


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
