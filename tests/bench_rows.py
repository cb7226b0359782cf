"""What the tests of the benchmark start from: its cases, some that take no time, and timed rows."""

from fastconv.bench.cases import ConvCase, read_conv
from fastconv.bench.data import LAYOUTS
from fastconv.bench.measure import judge

CASES = read_conv()
BANDWIDTH = {1: {2**20: 1e12, 2**30: 4e9}}
PEAK = {"float32": {1: 10e9}}


def small(family="dense", C=4, K=6, groups=1, size=(6, 5), kernel=(3, 3), stride=(1, 1), N=2) -> ConvCase:
    """A case that takes no time."""
    padding, (H, W) = (kernel[0] // 2, kernel[1] // 2), size
    if family == "transposed":
        output = [(n - 1) * s - 2 * p + k for n, s, p, k in zip(size, stride, padding, kernel, strict=True)]
    else:
        output = [(n + 2 * p - k) // s + 1 for n, s, p, k in zip(size, stride, padding, kernel, strict=True)]
    return ConvCase(
        *("X01", family, "a network", "a layer", N, N, C, H, W, K, *kernel, stride, padding, (1, 1), groups, *output)
    )


SMALL = {
    "dense": small(),
    "strided": small(stride=(2, 1)),
    "grouped": small("grouped", C=6, K=12, groups=3),
    "depthwise": small("depthwise", C=5, K=10, groups=5),
    "1-D": small("dilated", size=(1, 9), kernel=(1, 3)),
    "1-D depthwise": small("depthwise", C=4, K=4, groups=4, size=(1, 9), kernel=(1, 3)),
    "transposed": small("transposed", stride=(2, 2)),
    "transposed, grouped": small("transposed", C=6, K=12, groups=3, stride=(2, 2)),
    "transposed, 1-D": small("transposed", size=(1, 9), kernel=(1, 4), stride=(1, 2)),
}


def timed_row(id="G01", direction="fwd", threads=1, times=(2.0, 1.0, 0.5, 4.0), **changes):
    """A timed row: seconds of PyTorch contiguous, channels_last, fastconv contiguous, channels_last."""
    names = [f"{library} {layout}" for library in ("PyTorch", "fastconv") for layout in LAYOUTS]
    case = CASES[id]
    return {
        "id": id,
        "text": case.text(),
        "family": case.family,
        "class": case.target_class,
        "network": case.network,
        "layer": case.layer,
        "direction": direction,
        "dtype": "float32",
        "threads": threads,
        "batch": 1,
        "flops": 8e9,
        "live": 0.5,
        "bytes": 1e9,
        "status": "timed",
        "seconds": {
            name: {"median": time, "low": 0.9 * time, "high": 1.1 * time, "samples": [time]}
            for name, time in zip(names, times, strict=True)
        },
        **changes,
    }


def judged_rows():
    rows = [
        timed_row("G01"),
        timed_row("G06", times=(1.0, 9.0, 2.0, 1.0)),
        timed_row("G02", times=(1.0, 1.0, 0.25, 0.25)),
        timed_row("G01", direction="train", times=(1.0, 1.0, 1.0, 1.0)),
        timed_row("W19", status="wrong", reason="differs"),
    ]
    return [judge(each, BANDWIDTH, PEAK) for each in rows]
