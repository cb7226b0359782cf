"""Checks and times one layer: fastconv and PyTorch, each contiguous and in channels_last, on the same data.

PyTorch runs in both of its memory formats and the ratio is taken against the faster one, whichever the user
has: that is what a reader could otherwise run. Of operators that it lacks, torchvision's are PyTorch's here, and of one
that both lack (``deform_sample2d``) what can be put together from PyTorch's. Outputs are compared with float64 before
anything is timed.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastconv._timing import alternate, summarise

from . import conv, deform, pool, roi
from .cases import Case, ConvCase, DeformCase, PoolCase, RoiCase, SampleCase
from .data import LAYOUTS, Data, Expected
from .roofline import Bandwidth, Peak, bandwidth_for, limit

Row = dict[str, Any]
DTYPES = ("float32", "bfloat16", "float16", "float64")
#: Largest error, relative to the largest value expected. In 16-bit types, rounding the output alone
#: costs 2^-9 (bfloat16) or 2^-12.
TOLERANCE = {"float64": 1e-12, "float32": 1e-4, "float16": 2e-3, "bfloat16": 1e-2}

#: Images of a training step, where it stays below STEP seconds in PyTorch's slower layout.
TRAIN_BATCH, STEP = 8, 1.0
#: Most samples of each contender; so many settle a median.
SAMPLES = 200


# ---- data and contenders -------------------------------------------------------------------------------------------


def family_of(case: Case) -> Any:
    """The module that makes the data of a case, knows its operators and what they should yield."""
    modules = {ConvCase: conv, DeformCase: deform, SampleCase: deform, PoolCase: pool, RoiCase: roi}
    return modules[type(case)]


def footprint(case: Case, batch: int, dtype: str, direction: str) -> int:
    """Bytes of all tensors that are there at once."""
    size = torch.empty((), dtype=getattr(torch, dtype)).element_size()
    given, output = sum(map(math.prod, case.given_shapes(batch))), math.prod(case.output_shape(batch))
    kept = output if direction != "bwd" else 2 * len(LAYOUTS) * output  # which every contender keeps
    gradients = given if direction != "fwd" else 0
    return size * (len(LAYOUTS) * (given + output) + kept + gradients)


def available_memory() -> int:
    """Bytes that can be had without swapping."""
    with open("/proc/meminfo") as file:
        facts = dict(line.split(":", 1) for line in file)
    return 1024 * int(facts["MemAvailable"].split()[0])


def runner(layer: Callable[..., Tensor], direction: str, data: Data, leaves: int) -> Callable[[], Sequence[Tensor]]:
    """A function that runs the layer once and returns what the direction computes, in newly made tensors. Gradients are
    those of the first ``leaves`` of what the layer is given: others, as boxes, have none."""
    *given, grad_output = data
    if direction == "fwd":

        def forward() -> Sequence[Tensor]:
            with torch.inference_mode():
                return (layer(*given),)

        return forward
    given = [each.detach().requires_grad_(place < leaves) for place, each in enumerate(given)]
    inputs = given[:leaves]
    if direction == "bwd":
        output = layer(*given)
        return lambda: torch.autograd.grad(output, inputs, grad_output, retain_graph=True)

    def train() -> Sequence[Tensor]:
        output = layer(*given)
        return output, *torch.autograd.grad(output, inputs, grad_output)

    return train


def undeformed(case: Case, direction: str, data: dict[str, Data]) -> dict[str, Callable[[], Sequence[Tensor]]]:
    """Of a deformable convolution PyTorch's plain one of the same shape, which says what deforming costs."""
    if type(case) is not DeformCase:
        return {}
    layer = conv.operator(case, "PyTorch", 2)
    assert layer is not None
    return {
        f"plain {layout}": runner(layer, direction, (input, weight, grad_output), 2)
        for layout, (input, _, weight, _, grad_output) in data.items()
    }


def choose_batch(case: Case, dtype: str, direction: str) -> int:
    """That of shapes.csv for the forward pass. In training TRAIN_BATCH, or what the network is trained with where that
    is smaller, halved until a step of PyTorch's takes at most STEP."""
    if direction == "fwd":
        return case.N_cpu
    largest = min(TRAIN_BATCH, case.N_gpu)
    if largest == 1:
        return largest  # what torchvision takes seconds for need not run to learn that
    family = family_of(case)
    data = family.tensors(case, 1, dtype)
    slowest = 0.0
    for layout in LAYOUTS:
        layer = family.operator(case, "PyTorch", data[layout][0].dim() - 2)
        assert layer is not None
        run = runner(layer, direction, data[layout], len(case.gradients))
        run()
        start = time.perf_counter()
        run()
        slowest = max(slowest, time.perf_counter() - start)
    return fitting_batch(largest, slowest)


def fitting_batch(largest: int, seconds: float) -> int:
    """``largest``, halved until it takes at most STEP where one image takes ``seconds``.

    >>> fitting_batch(8, 0.3)
    2
    """
    while largest > 1 and largest * seconds > STEP:
        largest //= 2
    return largest


# ---- check ---------------------------------------------------------------------------------------------------------


def error(actual: dict[str, Tensor], expected: Expected) -> float:
    """The largest error in any of the tensors, relative to its largest expected value; NaN if any is."""
    errors = []
    for name, tensor in actual.items():
        where, value = expected[name]
        if tensor.dim() == 3:
            tensor = tensor.unsqueeze(2)
        errors.append((tensor[where].double() - value).abs().max() / value.abs().max())
    return torch.stack(errors).max().item()


# ---- rows ----------------------------------------------------------------------------------------------------------


def run_case(
    case: Case,
    direction: str,
    dtype: str,
    *,
    threads: Sequence[int],
    layouts: Sequence[str] = tuple(LAYOUTS),
    batch: int | None = None,
    kernel: str = "",
    budget: float = 10.0,
) -> Iterator[Row]:
    """Checks, then times a layer. One row for each number of threads, with a "status":

    "timed", or without times "wrong" (an output differs), "failed" (an error) or "skipped" (there is a reason not
    to run it); "reason" says why.
    """
    row: Row = {
        "id": case.id,
        "text": case.text(batch or 1),
        "family": case.family,
        "class": case.target_class,
        "network": case.network,
        "layer": case.layer,
        "direction": direction,
        "dtype": dtype,
    }

    def ended(status: str, reason: str) -> Iterator[Row]:
        return ({**row, "threads": count, "status": status, "reason": reason} for count in threads)

    free = available_memory()
    least = batch or (case.N_cpu if direction == "fwd" else 1)
    needed = footprint(case, least, dtype, direction)
    if needed > free / 3:
        return (yield from ended("skipped", f"needs {needed / 1e9:.1f} GB, over a third of {free / 1e9:.1f} GB"))
    torch.set_num_threads(min(threads))
    try:
        batch = batch or choose_batch(case, dtype, direction)
    except RuntimeError as refusal:
        return (yield from ended(*refused(refusal, kernel)))
    while batch > least and footprint(case, batch, dtype, direction) > free / 3:
        batch //= 2
    names = case.results(direction)
    row |= {
        "text": case.text(batch),
        "batch": batch,
        "flops": case.flops(batch) * case.passes(direction),
        "live": case.live,
        "bytes": case.bytes_moved(batch, direction, torch.empty((), dtype=getattr(torch, dtype)).element_size()),
    }

    family = family_of(case)
    data = family.tensors(case, batch, dtype)
    dims = {layout: data[layout][0].dim() - 2 for layout in LAYOUTS}
    contenders = [("PyTorch", layout) for layout in LAYOUTS] + [("fastconv", layout) for layout in layouts]
    runs: dict[str, Callable[[], Sequence[Tensor]]] = {}
    for library, layout in contenders:
        layer = family.operator(case, library, dims[layout])
        if layer is None:
            return (yield from ended("skipped", f"{library} has no {family.operator_name(case, dims[layout])}"))
        try:
            runs[f"{library} {layout}"] = runner(layer, direction, data[layout], len(case.gradients))
        except RuntimeError as refusal:
            return (yield from ended(*refused(refusal, kernel)))

    timed = {**runs, **undeformed(case, direction, data)}
    torch.set_num_threads(max(threads))
    share = family.check_share(case, batch, direction)
    row["checked"] = share
    plain = [each.unsqueeze(2) if each.dim() == 3 else each for each in data["contiguous"]]
    expected = family.reference(case, direction, tuple(plain), share)
    for count in threads:
        torch.set_num_threads(count)
        found: Row = {**row, "threads": count}
        try:
            found["error"] = {name: error(dict(zip(names, run(), strict=True)), expected) for name, run in runs.items()}
        except RuntimeError as refusal:
            found["status"], found["reason"] = refused(refusal, kernel)
            yield found
            continue
        worst = max((found["error"][f"fastconv {layout}"] for layout in layouts), key=lambda e: (math.isnan(e), e))
        if worst <= TOLERANCE[dtype]:
            found["status"] = "timed"
            found["seconds"] = {
                name: {**summarise(samples)._asdict(), "samples": [float(f"{each:.4g}") for each in samples]}
                for name, samples in alternate(timed, limit=SAMPLES, least=3, budget=budget).items()
            }
        else:
            found["status"], found["reason"] = "wrong", f"differs from float64 by {worst:.1e}"
        yield found


def refused(error: RuntimeError, kernel: str) -> tuple[str, str]:
    """Status and reason of an exception. That a forced kernel does not serve every layer is no failure, nor that
    torchvision does not implement every dtype."""
    reason = str(error).splitlines()[0]
    serves_less = "not implemented for '" in reason or (kernel and "kernel must" in reason)
    return ("skipped" if serves_less else "failed"), reason


def judge(row: Row, bandwidth: Bandwidth, peak: Peak) -> Row:
    """The row with what follows from its times, by layout of fastconv: "ratio", "gflops", "gbps" and "limit"; of
    deformable convolutions also "plain", how many times the plain one they take.

    "limit" is the share that was reached of what the machine allows: of the operations of the definition, and
    of those that are not products with padding.
    """
    if row["status"] != "timed":
        return row
    medians = {name: timing["median"] for name, timing in row["seconds"].items()}
    peer = min(medians[f"PyTorch {layout}"] for layout in LAYOUTS)
    ours = {layout: medians[name] for layout in LAYOUTS if (name := f"fastconv {layout}") in medians}
    speed = peak[row["dtype"]][row["threads"]], bandwidth_for(row["bytes"], bandwidth[row["threads"]])
    whole = limit(row["flops"], row["bytes"], *speed)
    live = limit(row["flops"] * row["live"], row["bytes"], *speed)
    plain_ones = [seconds for name, seconds in medians.items() if name.startswith("plain ")]
    deforming = {"plain": {layout: s / min(plain_ones) for layout, s in ours.items()}} if plain_ones else {}
    return {
        **row,
        **deforming,
        "ratio": {layout: peer / seconds for layout, seconds in ours.items()},
        "gflops": {layout: row["flops"] / seconds / 1e9 for layout, seconds in ours.items()},
        "gbps": {layout: row["bytes"] / seconds / 1e9 for layout, seconds in ours.items()},
        "bound": live.bound,
        "limit": {layout: [whole.seconds / seconds, live.seconds / seconds] for layout, seconds in ours.items()},
    }


Run = tuple[str, str, int]  # direction, dtype, threads


def by_run(rows: Iterable[Row]) -> dict[Run, list[Row]]:
    """The rows of each direction, dtype and number of threads, in the order in which they first come."""
    runs: dict[Run, list[Row]] = {}
    for row in rows:
        runs.setdefault((row["direction"], row["dtype"], row["threads"]), []).append(row)
    return runs


def means(rows: Iterable[Row], by: str) -> list[Row]:
    """Geometric means of the ratios, by "family" or "class", of each run and layout."""
    found = []
    for (direction, dtype, threads), members in by_run(row for row in rows if row["status"] == "timed").items():
        ratios: dict[str, list[dict[str, float]]] = {}
        for row in members:
            ratios.setdefault(row[by], []).append(row["ratio"])
        for name, each in ratios.items():
            found.append(
                {
                    "direction": direction,
                    "dtype": dtype,
                    "threads": threads,
                    by: name,
                    "cases": len(each),
                    "mean": {layout: statistics.geometric_mean(ratio[layout] for ratio in each) for layout in each[0]},
                    "least": min(min(ratio.values()) for ratio in each),
                }
            )
    return found


def smallest(rows: Iterable[Row]) -> tuple[float, Row, str] | None:
    """The smallest ratio of all with its row and layout; None where nothing was timed."""
    ratios = [(ratio, row, layout) for row in rows for layout, ratio in row.get("ratio", {}).items()]
    return min(ratios, key=lambda each: each[0], default=None)
