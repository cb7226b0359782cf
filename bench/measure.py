"""Checks and times one layer: fastconv and PyTorch, each contiguous and in channels_last, on the same data.

PyTorch runs in both of its memory formats and the ratio is taken against the faster one, whichever the user
has: that is what a reader could otherwise run. Outputs are compared with float64 before anything is timed.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastconv
from fastconv._timing import alternate, summarise

from .cases import ConvCase
from .roofline import Bandwidth, Peak, bandwidth_for, limit

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LIBRARIES: dict[str, ModuleType] = {"PyTorch": F, "fastconv": fastconv}
DTYPES = ("float32", "bfloat16", "float16", "float64")
#: What each direction computes, and its operations in multiples of the forward pass.
DIRECTIONS = {
    "fwd": ("output",),
    "bwd": ("grad_input", "grad_weight"),
    "train": ("output", "grad_input", "grad_weight"),
}
#: Largest error, relative to the largest value expected. In 16-bit types, rounding the output alone
#: costs 2^-9 (bfloat16) or 2^-12.
TOLERANCE = {"float64": 1e-12, "float32": 1e-4, "float16": 2e-3, "bfloat16": 1e-2}

#: Images of a training step, where it stays below STEP seconds in PyTorch's slower layout.
TRAIN_BATCH, STEP = 8, 1.0
#: What a comparison with float64 may cost. Above that, a share of the channels is compared.
CHECK_FLOPS, CHECK_ELEMENTS = 5e8, 5e7
#: Most samples of each contender; so many settle a median.
SAMPLES = 200

Row = dict[str, Any]
Data = tuple[Tensor, Tensor, Tensor]


# ---- data and contenders -------------------------------------------------------------------------------------------


def tensors(case: ConvCase, batch: int, dtype: str) -> dict[str, Data]:
    """Input, weight and gradient of the output in every layout, of the same values. A layer with one dimension is
    [N, C, W] where contiguous and [N, C, 1, W] in channels_last, which PyTorch has no other way to express."""
    generator = torch.Generator().manual_seed(0)
    shapes = (case.input_shape(batch), case.weight_shape, case.output_shape(batch))
    end = math.sqrt(3)  # of a uniform distribution of variance 1; a normal one takes seconds for the largest layers
    drawn = (torch.empty(shape).uniform_(-end, end, generator=generator) for shape in shapes)
    made = [each.to(getattr(torch, dtype)) for each in drawn]
    fan_in = case.C // case.groups * case.R * case.S / (math.prod(case.stride) if case.transposed else 1)
    made[1] /= math.sqrt(fan_in)
    data = {}
    for layout, memory_format in LAYOUTS.items():
        input, weight, grad_output = (each.contiguous(memory_format=memory_format) for each in made)
        data[layout] = (input, weight, grad_output)
        if case.one_dimensional and layout == "contiguous":
            data[layout] = (input.squeeze(2), weight.squeeze(2), grad_output.squeeze(2))
    return data


def footprint(case: ConvCase, batch: int, dtype: str, direction: str) -> int:
    """Bytes of all tensors that are there at once."""
    size = torch.empty((), dtype=getattr(torch, dtype)).element_size()
    shapes = (case.input_shape(batch), case.weight_shape, case.output_shape(batch))
    input, weight, output = map(math.prod, shapes)
    given = len(LAYOUTS) * (input + weight + output)
    computed = output if direction != "bwd" else 2 * len(LAYOUTS) * output  # which every contender keeps
    gradients = input + weight if direction != "fwd" else 0
    return size * (given + computed + gradients)


def available_memory() -> int:
    """Bytes that can be had without swapping."""
    with open("/proc/meminfo") as file:
        facts = dict(line.split(":", 1) for line in file)
    return 1024 * int(facts["MemAvailable"].split()[0])


def operator(case: ConvCase, library: str, dims: int) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The layer as a function of input and weight; None where the library has no such function."""
    function = getattr(LIBRARIES[library], operator_name(case, dims), None)
    if function is None:
        return None
    geometry = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}
    if case.transposed:
        geometry["output_padding"] = case.output_padding
    return partial(function, groups=case.groups, **{name: value[-dims:] for name, value in geometry.items()})


def operator_name(case: ConvCase, dims: int) -> str:
    return f"conv{'_transpose' if case.transposed else ''}{dims}d"


def runner(layer: Callable[[Tensor, Tensor], Tensor], direction: str, data: Data) -> Callable[[], Sequence[Tensor]]:
    """A function that runs the layer once and returns what the direction computes, in newly made tensors."""
    input, weight, grad_output = data
    if direction == "fwd":

        def forward() -> Sequence[Tensor]:
            with torch.inference_mode():
                return (layer(input, weight),)

        return forward
    leaves = input.detach().requires_grad_(), weight.detach().requires_grad_()
    if direction == "bwd":
        output = layer(*leaves)
        return lambda: torch.autograd.grad(output, leaves, grad_output, retain_graph=True)

    def train() -> Sequence[Tensor]:
        output = layer(*leaves)
        return output, *torch.autograd.grad(output, leaves, grad_output)

    return train


def choose_batch(case: ConvCase, dtype: str, direction: str) -> int:
    """That of shapes.csv for the forward pass. In training TRAIN_BATCH, or what the network is trained with where that
    is smaller, halved until a step of PyTorch's takes at most STEP."""
    if direction == "fwd":
        return case.N_cpu
    data = tensors(case, 1, dtype)
    slowest = 0.0
    for layout in LAYOUTS:
        layer = operator(case, "PyTorch", data[layout][0].dim() - 2)
        assert layer is not None
        run = runner(layer, direction, data[layout])
        run()
        start = time.perf_counter()
        run()
        slowest = max(slowest, time.perf_counter() - start)
    return fitting_batch(min(TRAIN_BATCH, case.N_gpu), slowest)


def fitting_batch(largest: int, seconds: float) -> int:
    """``largest``, halved until it takes at most STEP where one image takes ``seconds``.

    >>> fitting_batch(8, 0.3)
    2
    """
    while largest > 1 and largest * seconds > STEP:
        largest //= 2
    return largest


# ---- check ---------------------------------------------------------------------------------------------------------


def spread(count: int, share: float) -> Tensor:
    """Indices of a share of ``count``, spread from the first to the last, which always are among them.

    >>> spread(64, 0.06)
    tensor([ 0, 21, 42, 63])
    """
    return torch.linspace(0, count - 1, min(count, max(2, math.ceil(share * count)))).round().long()


def check_share(case: ConvCase, batch: int, direction: str) -> float:
    """How much of the channels is compared with float64, so that it does not take longer than the timing."""
    flops = case.flops(batch) * len(DIRECTIONS[direction])
    elements = math.prod(case.input_shape(batch)) + math.prod(case.output_shape(batch))
    return min(1.0, CHECK_FLOPS / flops, CHECK_ELEMENTS / elements)


Where = slice | Tensor
Expected = dict[str, tuple[tuple[Where, ...], Tensor]]


def reference(case: ConvCase, direction: str, data: Data, share: float) -> Expected:
    """What the direction computes, in float64 by PyTorch: for each tensor, where to compare and what to expect there.

    Of grouped layers whole groups are computed. Of others, output channels for the output and the gradient of
    the weight, input channels for the gradient of the input.
    """
    input, weight, grad_output = data  # of four dimensions
    every = slice(None)
    c_of_k: Where = every
    k_of_c: Where = every
    weight_k: tuple[Where, ...]
    weight_c: tuple[Where, ...]
    if case.groups > 1:
        groups = spread(case.groups, share)
        k = (groups[:, None] * (case.K // case.groups) + torch.arange(case.K // case.groups)).flatten()
        c = (groups[:, None] * (case.C // case.groups) + torch.arange(case.C // case.groups)).flatten()
        count, c_of_k, k_of_c = len(groups), c, k
        weight_k = weight_c = (c,) if case.transposed else (k,)
    else:
        k, c = spread(case.K, share), spread(case.C, share)
        count = 1
        weight_k, weight_c = ((every, k), (c,)) if case.transposed else ((k,), (every, c))
    geometry = (case.stride, case.padding, case.dilation, case.transposed, case.output_padding, count)
    forward = torch.ops.aten.convolution.default
    backward = torch.ops.aten.convolution_backward.default
    w_k, w_c = weight[weight_k].double(), weight[weight_c].double()
    outputs, grad_inputs, grad_weight = [], [], torch.zeros_like(w_k)
    # Image by image, because PyTorch unfolds all that it is given.
    for x, gy in zip(input.split(1), grad_output.split(1), strict=True):
        x_k = x[:, c_of_k].double()
        if direction != "bwd":
            outputs.append(forward(x_k, w_k, None, *geometry))
        if direction != "fwd":
            x_c, gy_c = x[:, c].double(), gy[:, k_of_c].double()
            grad_inputs.append(backward(gy_c, x_c, w_c, None, *geometry, [True, False, False])[0])
            grad_weight += backward(gy[:, k].double(), x_k, w_k, None, *geometry, [False, True, False])[1]
    expected: Expected = {}
    if outputs:
        expected["output"] = (every, k), torch.cat(outputs)
    if grad_inputs:
        expected["grad_input"] = (every, c), torch.cat(grad_inputs)
        expected["grad_weight"] = weight_k, grad_weight
    return expected


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
    case: ConvCase,
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
    batch = batch or choose_batch(case, dtype, direction)
    while batch > least and footprint(case, batch, dtype, direction) > free / 3:
        batch //= 2
    passes = len(DIRECTIONS[direction])
    shapes = (case.input_shape(batch), case.weight_shape, case.output_shape(batch))
    input, weight, output = map(math.prod, shapes)
    size = torch.empty((), dtype=getattr(torch, dtype)).element_size()
    row |= {
        "text": case.text(batch),
        "batch": batch,
        "flops": case.flops(batch) * passes,
        "live": case.live,
        # The forward pass reads two and writes one; the backward pass reads three and writes two.
        "bytes": size * ((direction != "bwd") * (input + weight + output))
        + size * ((direction != "fwd") * (2 * input + 2 * weight + output)),
    }

    data = tensors(case, batch, dtype)
    dims = {layout: data[layout][0].dim() - 2 for layout in LAYOUTS}
    contenders = [("PyTorch", layout) for layout in LAYOUTS] + [("fastconv", layout) for layout in layouts]
    runs: dict[str, Callable[[], Sequence[Tensor]]] = {}
    for library, layout in contenders:
        layer = operator(case, library, dims[layout])
        if layer is None:
            return (yield from ended("skipped", f"{library} has no {operator_name(case, dims[layout])}"))
        try:
            runs[f"{library} {layout}"] = runner(layer, direction, data[layout])
        except RuntimeError as refusal:
            return (yield from ended(*refused(refusal, kernel)))

    torch.set_num_threads(max(threads))
    share = check_share(case, batch, direction)
    row["checked"] = share
    plain = [each.unsqueeze(2) if each.dim() == 3 else each for each in data["contiguous"]]
    expected = reference(case, direction, (plain[0], plain[1], plain[2]), share)
    for count in threads:
        torch.set_num_threads(count)
        found: Row = {**row, "threads": count}
        try:
            found["error"] = {
                name: error(dict(zip(DIRECTIONS[direction], run(), strict=True)), expected)
                for name, run in runs.items()
            }
        except RuntimeError as refusal:
            found["status"], found["reason"] = refused(refusal, kernel)
            yield found
            continue
        worst = max((found["error"][f"fastconv {layout}"] for layout in layouts), key=lambda e: (math.isnan(e), e))
        if worst <= TOLERANCE[dtype]:
            found["status"] = "timed"
            found["seconds"] = {
                name: {**summarise(samples)._asdict(), "samples": [float(f"{each:.4g}") for each in samples]}
                for name, samples in alternate(runs, limit=SAMPLES, least=3, budget=budget).items()
            }
        else:
            found["status"], found["reason"] = "wrong", f"differs from float64 by {worst:.1e}"
        yield found


def refused(error: RuntimeError, kernel: str) -> tuple[str, str]:
    """Status and reason of an exception. That a forced kernel does not serve every layer is no failure."""
    reason = str(error).splitlines()[0]
    return ("skipped" if kernel and "kernel must" in reason else "failed"), reason


def judge(row: Row, bandwidth: Bandwidth, peak: Peak) -> Row:
    """The row with what follows from its times, by layout of fastconv: "ratio", "gflops", "gbps" and "limit".

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
    return {
        **row,
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
