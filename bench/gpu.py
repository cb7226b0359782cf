#!/usr/bin/env python3
"""Times fastconv's CUDA operators on layers of published networks, against what a user would otherwise run.

One question for each row: how long does the GPU take, how long does the fastest of the peers take, and how
far is it from the memory's limit? Every output is compared with PyTorch's before anything is timed. What is
timed is the GPU alone, as replays of a CUDA graph over so many sets of buffers that the L2 cache is of no
use; fastconv and its peers take turns. The bandwidth that rows are measured by is that of a copy in the
same run.

    python bench/gpu.py [--family channel_shuffle] [--case S01,S05] [--dtype bfloat16,float32] [--json FILE]
"""

import argparse
import csv
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import fastconv

SHAPES = Path(__file__).resolve().parent / "shapes.csv"
ROUNDS = 7  # of which the median counts
COPY_BYTES = 1 << 30
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass
class Row:
    """One case, one type, one layout of fastconv's input."""

    case: str
    network: str
    layer: str
    dtype: str
    layout: str
    ok: bool
    bytes: int = 0
    samples: dict[str, list[float]] = field(default_factory=dict)  # microseconds, for each contestant
    fastest_peer: str = ""
    ratio: float = 0.0  # of the fastest peer's time to fastconv's
    bandwidth: float = 0.0  # bytes a second
    share: float = 0.0  # of the copy's bandwidth
    error: str = ""


def graph_of(function: Callable[[Tensor], Tensor], inputs: list[Tensor], repeats: int) -> torch.cuda.CUDAGraph:
    """Captures `repeats` rounds over all inputs. A round keeps its outputs, so that they are cold as well."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for x in inputs[:3]:
            function(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            kept = [function(x) for x in inputs]
            del kept
    return graph


def time_graph(graph: torch.cuda.CUDAGraph) -> float:
    """Milliseconds of one replay."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(1_000_000)  # half a millisecond, in which the graph is on its way: no waiting in what is timed
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def time_all(
    contestants: dict[str, tuple[Callable[[Tensor], Tensor], list[Tensor]]],
) -> dict[str, list[float]]:
    """Microseconds of one call, ROUNDS samples for each contestant, in turns."""
    graphs, calls = {}, {}
    for name, (function, inputs) in contestants.items():
        repeats = max(1, math.ceil(100 / len(inputs)))
        graphs[name] = graph_of(function, inputs, repeats)
        calls[name] = repeats * len(inputs)
        time_graph(graphs[name])
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            samples[name].append(1000 * time_graph(graph) / calls[name])
    return samples


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of the largest copy that a kernel of ours could be."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda").random_(0, 256)
    times = [min(samples) for samples in time_all({"copy": (torch.clone, [source])}).values()]
    return 2 * COPY_BYTES / (times[0] * 1e-6)


def views(x: Tensor, groups: int, layout: str = "contiguous") -> Tensor:
    """What torchvision's ShuffleNet does, and what a compiler fuses."""
    n, c, h, w = x.shape
    shuffled = x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)
    return shuffled.contiguous(memory_format=LAYOUTS[layout])


def channel_shuffle_rows(case: dict[str, str], dtype: torch.dtype, compiled: bool) -> list[Row]:
    shape = tuple(int(case[k]) for k in ("N_gpu", "C", "H", "W"))
    groups = int(case["groups"])
    size = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    copies = min(64, max(4, math.ceil(4 * l2 / (2 * size))))
    base = [torch.randn(shape, device="cuda").to(dtype) for _ in range(copies)]
    inputs = {name: [x.contiguous(memory_format=f) for x in base] for name, f in LAYOUTS.items()}
    wanted = views(base[0], groups)
    del base

    functions: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {}
    for layout in LAYOUTS:
        functions[f"fastconv, {layout}"] = (partial(fastconv.channel_shuffle, groups=groups), layout)
        functions[f"eager, {layout}"] = (partial(F.channel_shuffle, groups=groups), layout)
        if compiled:
            program = partial(torch.compile(views, dynamic=False), groups=groups, layout=layout)
            functions[f"torch.compile, {layout}"] = (program, layout)
    contestants, errors = {}, {}
    for name, (function, layout) in functions.items():
        try:
            if not torch.equal(function(inputs[layout][0]), wanted):
                errors[name] = "the output differs from PyTorch's"
                continue
        except Exception as error:  # a peer that does not run is reported, and is no reason to stop
            errors[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            continue
        contestants[name] = (function, inputs[layout])
    samples = time_all(contestants)

    medians = {name: statistics.median(s) for name, s in samples.items()}
    peers = {name: t for name, t in medians.items() if not name.startswith("fastconv")}
    rows = []
    for layout in LAYOUTS:
        name = f"fastconv, {layout}"
        row = Row(case["id"], case["net"], case["layer"], str(dtype).removeprefix("torch."), layout, name in medians)
        row.error = "; ".join(f"{n}: {e}" for n, e in errors.items())
        row.bytes = 2 * size
        row.samples = samples
        if row.ok and peers:
            row.fastest_peer = min(peers, key=peers.__getitem__)
            row.ratio = peers[row.fastest_peer] / medians[name]
            row.bandwidth = row.bytes / (medians[name] * 1e-6)
        rows.append(row)
    return rows


FAMILIES: dict[str, Callable[[dict[str, str], torch.dtype, bool], list[Row]]] = {
    "channel_shuffle": channel_shuffle_rows
}


def table(rows: list[Row], bandwidth: float) -> str:
    lines = [
        f"copy: {bandwidth / 1e12:.2f} TB/s",
        f"{'case':5} {'type':9} {'layout':14} {'fastconv':>10} {'of copy':>8} {'fastest peer':>13} {'ratio':>6}  peer",
    ]
    for row in rows:
        if not row.ok:
            lines.append(f"{row.case:5} {row.dtype:9} {row.layout:14} no time: {row.error}")
            continue
        own = statistics.median(row.samples[f"fastconv, {row.layout}"])
        peer = statistics.median(row.samples[row.fastest_peer]) if row.fastest_peer else math.nan
        lines.append(
            f"{row.case:5} {row.dtype:9} {row.layout:14} {own:7.2f} us {row.share:8.0%} {peer:10.2f} us "
            f"{row.ratio:6.2f}  {row.fastest_peer}{'  (' + row.error + ')' if row.error else ''}"
        )
    ratios = [row.ratio for row in rows if row.ok and row.ratio]
    if ratios:
        lines.append(f"geometric mean of the ratios: {statistics.geometric_mean(ratios):.2f}, least: {min(ratios):.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--family", default="all", help=f"of {', '.join(FAMILIES)}; several with commas")
    parser.add_argument("--case", default="all", help="identifiers in bench/shapes.csv, with commas")
    parser.add_argument("--dtype", default="bfloat16,float32")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no further case after this long")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench/gpu.py needs an NVIDIA GPU, and PyTorch finds none")
    started = time.monotonic()
    with open(SHAPES, newline="") as file:
        cases = [case for case in csv.DictReader(file) if case["family"] in FAMILIES]
    wanted = [c for c in cases if options.family == "all" or c["family"] in options.family.split(",")]
    wanted = [c for c in wanted if options.case == "all" or c["id"] in options.case.split(",")]
    if not wanted:
        sys.exit(f"no case of family {options.family} is called {options.case}")

    bandwidth = copy_bandwidth()
    rows: list[Row] = []
    skipped: list[str] = []
    with torch.inference_mode():
        for case in wanted:
            for dtype in options.dtype.split(","):
                if time.monotonic() - started > options.seconds:
                    skipped.append(f"{case['id']} {dtype}")
                    continue
                print(f"{case['id']} {dtype} ...", file=sys.stderr, flush=True)
                rows += FAMILIES[case["family"]](case, getattr(torch, dtype), not options.no_compile)
                torch.compiler.reset()  # or after a few shapes it would give up compiling
                torch.cuda.empty_cache()
    for row in rows:
        row.share = row.bandwidth / bandwidth
    print(table(rows, bandwidth))
    if skipped:
        print(f"out of time, not run: {', '.join(skipped)}")
    if options.json:
        report = {"copy_bandwidth": bandwidth, "rows": [asdict(row) for row in rows], "skipped": skipped}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if any(not row.ok for row in rows):
        sys.exit("an output of fastconv's was wrong, or had no time")


if __name__ == "__main__":
    main()
