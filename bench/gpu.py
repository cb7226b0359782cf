#!/usr/bin/env python3
"""Times fastconv's CUDA operators on layers of published networks, against what a user would otherwise run.

One question for each row: how long does the GPU take, how long does the fastest of the peers take, and how
far is it from the memory's limit? Every output is compared with PyTorch's before anything is timed. What is
timed is the GPU alone, as replays of a CUDA graph over so many sets of buffers that the L2 cache is of no
use; fastconv and its peers take turns. The bandwidth that rows are measured by is that of a copy in the
same run.

    python bench/gpu.py [--family pool,adaptive_pool] [--case S01,S05] [--dtype bfloat16,float32] [--kernel NAME]
                        [--json FILE]
"""

import argparse
import csv
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastconv

try:
    import torchvision
except ImportError:  # a peer less
    torchvision = None

Given = Any  # a tensor, or a tuple of one and the indices that go with it
Function = Callable[[Given], Any]  # a contestant; what comes out is kept, and looked at once
SHAPES = Path(__file__).resolve().parent / "shapes.csv"
ROUNDS = 7  # of which the median counts
COPY_BYTES = 1 << 30
CONVOLUTIONS = ("dense", "grouped", "depthwise", "dilated", "transposed")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass
class Row:
    """One case, one type, one layout of fastconv's input; forward, or forward and backward ("train")."""

    case: str
    network: str
    layer: str
    dtype: str
    layout: str
    ok: bool
    direction: str = "forward"
    bytes: int = 0
    samples: dict[str, list[float]] = field(default_factory=dict)  # microseconds, for each contestant
    fastest_peer: str = ""
    ratio: float = 0.0  # of the fastest peer's time to fastconv's
    bandwidth: float = 0.0  # bytes a second
    share: float = 0.0  # of the copy's bandwidth
    error: str = ""


def graph_of(function: Function, inputs: list[Given], repeats: int) -> torch.cuda.CUDAGraph:
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
    contestants: dict[str, tuple[Function, list[Given]]],
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


@torch.inference_mode()
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


def input_copies(shape: tuple[int, ...], dtype: torch.dtype, moved: int) -> dict[str, list[Tensor]]:
    """Random inputs in each layout: so many that the `moved` bytes of all of them are far more than the L2 cache's."""
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    base = [torch.randn(shape, device="cuda").to(dtype) for _ in range(min(64, max(4, math.ceil(4 * l2 / moved))))]
    return {name: [x.contiguous(memory_format=f) for x in base] for name, f in LAYOUTS.items()}


def contest(
    case: dict[str, str],
    inputs: dict[str, list[Given]],
    functions: dict[str, tuple[Function, str]],
    agrees: Callable[[Any], bool],
    moved: int,
    direction: str = "forward",
) -> list[Row]:
    """A row for each layout of fastconv's. `functions`: "fastconv, <layout>" and its peers, with the layout they take;
    `agrees`: whether what comes out is right; `moved`: the bytes that have to be read and written."""
    contestants, errors = {}, {}
    for name, (function, layout) in functions.items():
        try:
            if not agrees(function(inputs[layout][0])):
                errors[name] = "the output differs from PyTorch's"
                continue
        except Exception as error:  # a peer that does not run is reported, and is no reason to stop
            errors[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            continue
        contestants[name] = (function, inputs[layout])
    samples = time_all(contestants)

    medians = {name: statistics.median(s) for name, s in samples.items()}
    peers = {name: t for name, t in medians.items() if not name.startswith("fastconv")}
    dtype = str(first_of(inputs["contiguous"][0]).dtype).removeprefix("torch.")
    rows = []
    for layout in LAYOUTS:
        name = f"fastconv, {layout}"
        row = Row(case["id"], case["net"], case["layer"], dtype, layout, name in medians, direction)
        row.error = "; ".join(f"{n}: {e}" for n, e in errors.items())
        row.bytes = moved
        row.samples = samples
        if row.ok and peers:
            row.fastest_peer = min(peers, key=peers.__getitem__)
            row.ratio = peers[row.fastest_peer] / medians[name]
            row.bandwidth = row.bytes / (medians[name] * 1e-6)
        rows.append(row)
    return rows


@torch.inference_mode()
def channel_shuffle_rows(case: dict[str, str], dtype: torch.dtype, compiled: bool) -> list[Row]:
    shape = tuple(int(case[k]) for k in ("N_gpu", "C", "H", "W"))
    groups = int(case["groups"])
    moved = 2 * math.prod(shape) * dtype.itemsize
    inputs = input_copies(shape, dtype, moved)
    wanted = views(inputs["contiguous"][0], groups)
    functions: dict[str, tuple[Function, str]] = {}
    for layout in LAYOUTS:
        functions[f"fastconv, {layout}"] = (partial(fastconv.channel_shuffle, groups=groups), layout)
        functions[f"eager, {layout}"] = (partial(F.channel_shuffle, groups=groups), layout)
        if compiled:
            program = partial(torch.compile(views, dynamic=False), groups=groups, layout=layout)
            functions[f"torch.compile, {layout}"] = (program, layout)
    return contest(case, inputs, functions, partial(torch.equal, wanted), moved)


def pool_of(case: dict[str, str], library: Any) -> Function:
    """The case's function, of fastconv or of torch.nn.functional: they have the same names and arguments."""
    if case["family"] == "max_unpool":
        return lambda given: library.max_unpool2d(*given, 2, output_size=(int(case["P"]), int(case["Q"])))
    kind = re.search(r"\[(adaptive )?(max|avg)\]", case["layer"])
    assert kind is not None, case["layer"]
    if kind[1]:
        size = int(case["P"]), int(case["Q"])
        return partial(getattr(library, f"adaptive_{kind[2]}_pool2d"), output_size=size)
    options: dict[str, Any] = {"kernel_size": (int(case["R"]), int(case["S"])), "ceil_mode": "ceil" in case["layer"]}
    for name, column in (("stride", "stride"), ("padding", "pad")):
        options[name] = tuple(map(int, case[column].split("x")))
    if "+idx" in case["layer"]:
        options["return_indices"] = True
    return partial(getattr(library, f"{kind[2]}_pool2d"), **options)


def first_of(tensors: Any) -> Tensor:
    """Without the indices."""
    return tensors if isinstance(tensors, Tensor) else tensors[0]


def trained(pool: Function, grad: Tensor) -> Function:
    """Forward and backward, with that gradient of the output."""

    def step(given: Given) -> tuple[Any, Tensor]:
        output = pool(given)
        return output, torch.autograd.grad(first_of(output), first_of(given), grad)[0]

    return step


def close(wanted: Any, got: Any, slack: float = 1) -> bool:
    """Of tensors, or nested tuples of them. Indices are the same; numbers as near as their type has it, since means
    and gradients are sums, or `slack` times as far."""
    if not isinstance(wanted, Tensor):
        return all(close(w, g, slack) for w, g in zip(wanted, got, strict=True))
    if wanted.dtype == torch.int64:
        return torch.equal(wanted, got)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}.get(got.dtype, 2e-2)
    return torch.allclose(wanted, got.to(wanted.dtype), slack * tolerance, slack * 2 * tolerance)


def pool_rows(case: dict[str, str], dtype: torch.dtype, compiled: bool) -> list[Row]:
    """Forward; then forward and backward. What has to be moved: the input and the output, in training their gradients
    too and twice the byte that says which element has won; indices where they are asked for, and where they are given
    in each direction."""
    shape = tuple(int(case[k]) for k in ("N_gpu", "C", "H", "W"))
    output_shape = (*shape[:2], int(case["P"]), int(case["Q"]))
    unpools = case["family"] == "max_unpool"
    windows = math.prod(shape if unpools else output_shape)
    both = (math.prod(shape) + math.prod(output_shape)) * dtype.itemsize
    indices = 8 * windows if "+idx" in case["layer"] or unpools else 0
    won = 2 * windows if "max" in case["layer"] else 0
    rows = []
    for direction, moved in (("forward", both + indices), ("train", 2 * both + won + indices * (1 + unpools))):
        training = direction == "train"
        with torch.inference_mode(not training), torch.set_grad_enabled(training):
            inputs: dict[str, list[Given]] = dict(input_copies(shape, dtype, moved))
            grads: dict[str, Tensor] = {}
            if training:
                for copies in inputs.values():
                    for x in copies:
                        x.requires_grad_()
                grad = torch.randn(output_shape, device="cuda").to(dtype)
                grads = {name: grad.contiguous(memory_format=f) for name, f in LAYOUTS.items()}
            functions: dict[str, tuple[Function, str]] = {}
            for layout in LAYOUTS:
                contestants = {"fastconv": pool_of(case, fastconv), "eager": pool_of(case, F)}
                if compiled:
                    contestants["torch.compile"] = torch.compile(pool_of(case, F), dynamic=False)
                for name, pool in contestants.items():
                    functions[f"{name}, {layout}"] = (trained(pool, grads[layout]) if training else pool, layout)
            exact: Given = inputs["contiguous"][0].detach().double().requires_grad_(training)
            if unpools:
                where = F.max_pool2d(torch.randn(output_shape, device="cuda"), 2, return_indices=True)[1]
                exact = exact, where
                for layout, copies in inputs.items():
                    inputs[layout] = [(x, where.clone(memory_format=LAYOUTS[layout])) for x in copies]
            wanted = pool_of(case, F)
            wanted = (trained(wanted, grads["contiguous"].double()) if training else wanted)(exact)
            rows += contest(case, inputs, functions, partial(close, wanted), moved, direction)
        torch.cuda.empty_cache()
    return rows


def roi_boxes(case: dict[str, str]) -> Tensor:
    """Boxes inside the map, of 4 to 28 pixels along each side, as a pyramid's levels are chosen to have them; numbers
    that every type has, so that all contestants see the same ones."""
    H, W, scale = int(case["H"]), int(case["W"]), roi_options(case)["spatial_scale"]
    generator = torch.Generator().manual_seed(0)
    side = 4 * 7 ** torch.rand(int(case["K"]), 2, generator=generator)
    first = torch.rand(side.shape, generator=generator) * (torch.tensor([W, H]) - side)
    image = torch.randint(int(case["N_gpu"]), (len(side), 1), generator=generator)
    boxes = torch.cat([image, first / scale, (first + side) / scale], 1)
    return boxes.bfloat16().float()


def roi_options(case: dict[str, str]) -> dict[str, Any]:
    """What the case's function takes after input and boxes; the same in torchvision."""
    given = re.search(r"sr=(\d+) scale=1/(\d+)", ",".join(case.values()))
    assert given is not None, case
    options: dict[str, Any] = {"output_size": (int(case["P"]), int(case["Q"])), "spatial_scale": 1 / int(given[2])}
    return options | ({"sampling_ratio": int(given[1])} if case["family"] == "roi_align" else {})


def roi_of(case: dict[str, str], library: Any, boxes: Tensor) -> Function:
    function, options = getattr(library, case["family"]), roi_options(case)
    return lambda x: function(x, boxes, **options)


def roi_rows(case: dict[str, str], dtype: torch.dtype, compiled: bool) -> list[Row]:
    """Forward; then forward and backward. The peer is torchvision, where there is one; outputs are compared with the
    CPU's in float32, since in another type samples lie elsewhere; by how float32 has coordinates, they are a bit apart
    anyhow. What has to be moved: the map and the bins, in training their gradients and twice the ids of maxima."""
    shape = tuple(int(case[k]) for k in ("N_gpu", "C", "H", "W"))
    output_shape = (int(case["K"]), shape[1], int(case["P"]), int(case["Q"]))
    both = (math.prod(shape) + math.prod(output_shape)) * dtype.itemsize
    pools = case["family"] == "roi_pool"
    boxes = roi_boxes(case)
    libraries = {"fastconv": fastconv} | ({"torchvision": torchvision.ops} if torchvision else {})
    rows = []
    for direction, moved in (("forward", both), ("train", 2 * both + 8 * math.prod(output_shape) * pools)):
        training = direction == "train"
        with torch.inference_mode(not training), torch.set_grad_enabled(training):
            inputs = input_copies(shape, dtype, moved)
            for x in (x for copies in inputs.values() for x in copies):
                x.requires_grad_(training)
            grad = torch.randn(output_shape, device="cuda").to(dtype)
            functions: dict[str, tuple[Function, str]] = {}
            for layout, memory in LAYOUTS.items():
                for name, library in libraries.items():
                    own = boxes.cuda() if name == "fastconv" else boxes.cuda().to(dtype)
                    roi, given = roi_of(case, library, own), grad.contiguous(memory_format=memory)
                    functions[f"{name}, {layout}"] = (trained(roi, given) if training else roi, layout)
            wanted = roi_of(case, fastconv, boxes)
            wanted = trained(wanted, grad.cpu().float()) if training else wanted
            result = wanted(inputs["contiguous"][0].detach().cpu().float().requires_grad_(training))
            result = tuple(t.cuda() for t in result) if training else result.cuda()
            rows += contest(case, inputs, functions, partial(close, result, slack=4), moved, direction)
        torch.cuda.empty_cache()
    return rows


def deform_of(case: dict[str, str], library: Any, weight: Tensor) -> Function:
    """With weights, or samples alone (DCNv3 and DCNv4, which torchvision lacks)."""
    stride, padding = (tuple(map(int, case[column].split("x"))) for column in ("stride", "pad"))
    if case["family"] == "deform_sample":
        kernel = int(case["R"]), int(case["S"])
        return lambda given: library.deform_sample2d(*given, kernel, stride, padding)
    return lambda given: library.deform_conv2d(*given[:2], weight, None, stride, padding, mask=given[2])


def trained_in_all(function: Function, grad: Tensor, weights: list[Tensor]) -> Function:
    """Forward and backward: the gradients of all tensors."""

    def step(given: Given) -> tuple[Tensor, ...]:
        output, tensors = function(given), given if isinstance(given, tuple) else (given,)
        return output, *torch.autograd.grad(output, [*tensors, *weights], grad)

    return step


def close_sums(wanted: Any, got: Any) -> bool:
    """As near as sums can be whose terms take each other's place: measured by how large those of a tensor are."""
    if not isinstance(wanted, Tensor):
        return all(close_sums(w, g) for w, g in zip(wanted, got, strict=True))
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-11}.get(got.dtype, 2e-2)
    wanted, got = wanted.detach(), got.detach().to(wanted.dtype)
    return torch.allclose(wanted, got, tolerance, tolerance * float(wanted.square().mean().sqrt()))


def deform_rows(case: dict[str, str], dtype: torch.dtype, compiled: bool) -> list[Row]:
    """Forward; then forward and backward, with the gradients of input, offset, mask and weight. The peer is
    torchvision, where there is one and where there are weights; outputs are compared with the CPU's in float64.
    Offsets are multiples of 1/64, so that all types see the same samples. What has to be moved: all tensors, and in
    training their gradients."""
    shape = tuple(int(case[k]) for k in ("N_gpu", "C", "H", "W"))
    alone, taps = case["family"] == "deform_sample", int(case["R"]) * int(case["S"])
    windows = int(case["P"]), int(case["Q"])
    channels = int(case["outpad"].removeprefix("dg=")) * taps
    output_shape = (shape[0], int(case["K"]), *windows)
    offset = (torch.randn(shape[0], 2 * channels, *windows, device="cuda").clamp(-2, 2) * 64).round().div(64).to(dtype)
    mask = torch.rand(shape[0], channels, *windows, device="cuda").to(dtype)
    weight_shape = (output_shape[1], shape[1], int(case["R"]), int(case["S"]))
    weight = torch.randn(weight_shape, device="cuda").div(math.sqrt(shape[1] * taps)).to(dtype)
    elements = math.prod(shape) + math.prod(output_shape) + offset.numel() + mask.numel()
    both = (elements + (0 if alone else weight.numel())) * dtype.itemsize
    libraries = {"fastconv": fastconv} | ({"torchvision": torchvision.ops} if torchvision and not alone else {})
    rows = []
    for direction, moved in (("forward", both), ("train", 2 * both)):
        training = direction == "train"
        with torch.inference_mode(not training), torch.set_grad_enabled(training):
            inputs: dict[str, list[Given]] = {}
            for layout, copies in input_copies(shape, dtype, moved).items():
                made = [(x, *(t.clone(memory_format=LAYOUTS[layout]) for t in (offset, mask))) for x in copies]
                inputs[layout] = [tuple(t.requires_grad_(training) for t in given) for given in made]
            own = weight.clone().requires_grad_(training)
            grad = torch.randn(output_shape, device="cuda").to(dtype)
            functions: dict[str, tuple[Function, str]] = {}
            for layout, memory in LAYOUTS.items():
                for name, library in libraries.items():
                    deform, given = deform_of(case, library, own), grad.contiguous(memory_format=memory)
                    step = trained_in_all(deform, given, [] if alone else [own]) if training else deform
                    functions[f"{name}, {layout}"] = (step, layout)
            exact = [t.detach().cpu().double().requires_grad_(training) for t in (*inputs["contiguous"][0], weight)]
            wanted = deform_of(case, fastconv, exact[3])
            if training:
                wanted = trained_in_all(wanted, grad.cpu().double(), [] if alone else [exact[3]])
            result = wanted(tuple(exact[:3]))
            result = tuple(t.cuda() for t in result) if training else result.cuda()
            rows += contest(case, inputs, functions, partial(close_sums, result), moved, direction)
        torch.cuda.empty_cache()
    return rows


def conv_of(case: dict[str, str], library: Any, weight: Tensor) -> Function:
    """The case's function, of fastconv or of torch.nn.functional: they have the same names and arguments."""
    names = {"stride": "stride", "padding": "pad", "dilation": "dil"}
    options: dict[str, Any] = {name: tuple(map(int, case[column].split("x"))) for name, column in names.items()}
    options["groups"] = int(case["groups"])
    if case["family"] != "transposed":
        return lambda x: library.conv2d(x, weight, None, **options)
    options["output_padding"] = int(case["outpad"] or 0)
    return lambda x: library.conv_transpose2d(x, weight, None, **options)


def conv_rows(case: dict[str, str], dtype: torch.dtype, compiled: bool) -> list[Row]:
    """Forward; then forward and backward. The peer is PyTorch, with cuDNN's choice by measurement; neither of the two
    uses TF32. Outputs are compared with PyTorch's in float64. What has to be moved: all tensors; in training their
    gradients too, and input, weight and the output's gradient once more."""
    shape = tuple(int(case[k]) for k in ("N_gpu", "C", "H", "W"))
    output_shape = (shape[0], int(case["K"]), int(case["P"]), int(case["Q"]))
    groups, kernel = int(case["groups"]), (int(case["R"]), int(case["S"]))
    turned = case["family"] == "transposed"
    pair = (shape[1], output_shape[1]) if turned else (output_shape[1], shape[1])
    weight = torch.randn(pair[0], pair[1] // groups, *kernel, device="cuda")
    weight = weight.div(math.sqrt(shape[1] // groups * math.prod(kernel))).to(dtype)
    both = (math.prod(shape) + math.prod(output_shape) + weight.numel()) * dtype.itemsize
    libraries = {"fastconv": fastconv, "eager": F}
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    rows = []
    for direction, moved in (("forward", both), ("train", 3 * both)):
        training = direction == "train"
        with torch.inference_mode(not training), torch.set_grad_enabled(training):
            inputs: dict[str, list[Given]] = dict(input_copies(shape, dtype, moved))
            for x in (x for copies in inputs.values() for x in copies):
                x.requires_grad_(training)
            grad = torch.randn(output_shape, device="cuda").to(dtype)
            functions: dict[str, tuple[Function, str]] = {}
            for layout, memory in LAYOUTS.items():
                for name, library in libraries.items():
                    own = weight.clone(memory_format=memory).requires_grad_(training)
                    conv, given = conv_of(case, library, own), grad.contiguous(memory_format=memory)
                    functions[f"{name}, {layout}"] = (trained_in_all(conv, given, [own]) if training else conv, layout)
            exact = [t.detach().double().requires_grad_(training) for t in (inputs["contiguous"][0], weight)]
            wanted = conv_of(case, F, exact[1])
            result = (trained_in_all(wanted, grad.double(), [exact[1]]) if training else wanted)(exact[0])
            rows += contest(case, inputs, functions, partial(close_sums, result), moved, direction)
        torch.cuda.empty_cache()
    return rows


FAMILIES: dict[str, Callable[[dict[str, str], torch.dtype, bool], list[Row]]] = {
    "channel_shuffle": channel_shuffle_rows,
    "pool": pool_rows,
    "adaptive_pool": pool_rows,
    "max_unpool": pool_rows,
    "roi_align": roi_rows,
    "roi_pool": roi_rows,
    "deform": deform_rows,
    "deform_sample": deform_rows,
    **dict.fromkeys(CONVOLUTIONS, conv_rows),
}


def in_turns(cases: list[dict[str, str]]) -> list[dict[str, str]]:
    """The first case of each family, then the second of each: when time runs out, every family has been seen."""
    place: dict[str, int] = dict.fromkeys(FAMILIES, 0)
    keys = []
    for case in cases:
        keys.append(place[case["family"]])
        place[case["family"]] += 1
    return [case for _, case in sorted(zip(keys, cases, strict=True), key=lambda pair: pair[0])]


def table(rows: list[Row], bandwidth: float) -> str:
    lines = [
        f"copy: {bandwidth / 1e12:.2f} TB/s",
        f"{'case':5} {'type':9} {'layout':14} {'':7} {'fastconv':>10} {'of copy':>8} {'fastest peer':>13} "
        f"{'ratio':>6}  peer",
    ]
    for row in rows:
        if not row.ok:
            lines.append(f"{row.case:5} {row.dtype:9} {row.layout:14} {row.direction:7} no time: {row.error}")
            continue
        own = statistics.median(row.samples[f"fastconv, {row.layout}"])
        peer = statistics.median(row.samples[row.fastest_peer]) if row.fastest_peer else math.nan
        lines.append(
            f"{row.case:5} {row.dtype:9} {row.layout:14} {row.direction:7} {own:7.2f} us {row.share:8.0%} "
            f"{peer:10.2f} us {row.ratio:6.2f}  {row.fastest_peer}{'  (' + row.error + ')' if row.error else ''}"
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
    parser.add_argument("--kernel", default="auto", help="the only convolution kernel of fastconv's that may run")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no further case after this long")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench/gpu.py needs an NVIDIA GPU, and PyTorch finds none")
    fastconv.flags(kernel=options.kernel)
    started = time.monotonic()
    with open(SHAPES, newline="") as file:
        cases = [case for case in csv.DictReader(file) if case["family"] in FAMILIES]
    wanted = [c for c in cases if options.family == "all" or c["family"] in options.family.split(",")]
    wanted = [c for c in wanted if options.case == "all" or c["id"] in options.case.split(",")]
    wanted = in_turns(wanted)
    if not wanted:
        sys.exit(f"no case of family {options.family} is called {options.case}")

    bandwidth = copy_bandwidth()
    rows: list[Row] = []
    skipped: list[str] = []
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
