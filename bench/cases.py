"""The cases: layers of published networks, one a row of shapes.csv; the classes they form, how to choose among them."""

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHAPES = Path(__file__).with_name("shapes.csv")
CONV_FAMILIES = ("dense", "grouped", "depthwise", "dilated", "transposed")
POOL_FAMILIES = ("pool", "adaptive_pool", "max_unpool")
FAMILIES = CONV_FAMILIES + POOL_FAMILIES
#: What runs unless more is asked for: a few minutes on two cores.
QUICK = frozenset(
    ("D01", "D02", "D05", "D07", "D16", "G01", "G02", "G04", "G09", "G12")
    + ("W01", "W02", "W10", "W13", "W19", "L02", "L06", "L22", "T03", "T08")
    + ("P01", "P07", "P11", "P21", "P26", "N02")
)

#: The classes that a speed-up is sought for, and how large a one: of forward, and of forward and backward, float32.
#: None where the only aim is to lose nowhere.
TARGETS: dict[str, tuple[float, float] | None] = {
    "dense 3x3": (1.4, 1.3),
    "dense, other": (1.0, 1.1),
    "grouped, 4 a group": (3.0, 4.0),
    "grouped, 8 a group": (2.0, 3.0),
    "grouped, 16 to 32 a group": (1.2, 1.5),
    "grouped, over 32 a group": None,
    "depthwise 3x3 and 5x5": (1.3, 3.0),
    "depthwise 7x7": (2.0, 5.0),
    "depthwise 13x13 and larger": (1.5, 5.0),
    "depthwise 1xS": None,
    "depthwise dilated": (1.5, 3.0),
    "dilated": (1.2, 1.4),
    "transposed": (1.2, 1.2),
    "max pooling": (1.5, 1.5),
    "max pooling, 5x5 and larger of stride 1": (20.0, 20.0),
    "average pooling": (1.5, 1.5),
    "adaptive and global pooling": (1.5, 1.5),
    "max unpooling": (1.5, 1.5),
}
#: No single case may be slower than this.
FLOOR = 0.95


@dataclass(frozen=True)
class ConvCase:
    """One convolution layer, with the field's names; a pair is (height, width)."""

    id: str
    family: str
    network: str
    layer: str
    N_gpu: int
    N_cpu: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    P: int
    Q: int
    output_padding: tuple[int, int] = (0, 0)

    @property
    def transposed(self) -> bool:
        return self.family == "transposed"

    @property
    def one_dimensional(self) -> bool:
        return self.H == self.R == 1

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        if self.transposed:
            return self.C, self.K // self.groups, self.R, self.S
        return self.K, self.C // self.groups, self.R, self.S

    def input_shape(self, batch: int) -> tuple[int, int, int, int]:
        return batch, self.C, self.H, self.W

    def output_shape(self, batch: int) -> tuple[int, int, int, int]:
        return batch, self.K, self.P, self.Q

    def given_shapes(self, batch: int) -> list[tuple[int, int, int, int]]:
        """Of what the layer is given: input and weight."""
        return [self.input_shape(batch), self.weight_shape]

    def results(self, direction: str) -> tuple[str, ...]:
        """What the direction computes."""
        gradients = ("grad_input", "grad_weight")
        return {"fwd": ("output",), "bwd": gradients, "train": ("output", *gradients)}[direction]

    def bytes_moved(self, batch: int, direction: str, size: int) -> int:
        """Of elements of ``size`` bytes: what the forward pass reads and writes, what the backward pass does."""
        given, output = sum(map(math.prod, self.given_shapes(batch))), math.prod(self.output_shape(batch))
        return size * ((direction != "bwd") * (given + output) + (direction != "fwd") * (2 * given + output))

    @property
    def target_class(self) -> str:
        """Its key in TARGETS."""
        if self.family == "dense":
            plain = (self.R, self.S, self.stride) == (3, 3, (1, 1)) and min(self.C, self.K) >= 32
            return "dense 3x3" if plain else "dense, other"
        if self.family == "grouped":
            channels = self.C // self.groups
            if channels > 32:
                return "grouped, over 32 a group"
            return f"grouped, {channels if channels in (4, 8) else '16 to 32'} a group"
        if self.family == "depthwise":
            if self.dilation != (1, 1):
                return "depthwise dilated"
            if self.R == 1:
                return "depthwise 1xS"
            if self.R >= 13 or self.S >= 13:
                return "depthwise 13x13 and larger"
            return "depthwise 7x7" if self.R == 7 else "depthwise 3x3 and 5x5"
        return self.family

    def text(self, batch: int = 1) -> str:
        """The layer in a few characters: "3x3 128@56", and what is not 1 after it."""
        size = str(self.H) if self.H == self.W else f"{self.H}x{self.W}"
        channels = str(self.C) if self.C == self.K else f"{self.C}->{self.K}"
        parts = [f"{self.R}x{self.S} {channels}@{size}"]
        if self.stride != (1, 1):
            parts.append(f"s{max(self.stride)}")
        if self.dilation != (1, 1):
            parts.append(f"d{max(self.dilation)}")
        if 1 < self.groups < self.C:
            parts.append(f"g{self.groups}")
        if batch != 1:
            parts.append(f"n{batch}")
        return " ".join(parts)

    def flops(self, batch: int) -> float:
        """Floating-point operations of the forward pass by the definition, padding included."""
        pixels = self.H * self.W if self.transposed else self.P * self.Q
        return 2.0 * batch * self.K * pixels * (self.C // self.groups) * self.R * self.S

    @property
    def live(self) -> float:
        """The share of those operations that is not a product with padding, or (transposed) cropped."""
        outer, inner = ((self.H, self.W), (self.P, self.Q)) if self.transposed else ((self.P, self.Q), (self.H, self.W))
        share = 1.0
        for axis, kernel in enumerate((self.R, self.S)):
            places = (
                position * self.stride[axis] - self.padding[axis] + tap * self.dilation[axis]
                for position in range(outer[axis])
                for tap in range(kernel)
            )
            share *= sum(0 <= place < inner[axis] for place in places) / (outer[axis] * kernel)
        return share


@dataclass(frozen=True)
class PoolCase:
    """One pooling or unpooling layer over windows; a pair is (height, width)."""

    id: str
    family: str
    network: str
    layer: str
    N_gpu: int
    N_cpu: int
    C: int
    H: int
    W: int
    P: int
    Q: int
    kind: str  # "max" or "avg"
    #: Unless they adapt: the windows, and whether the indices of the winners are made, or taken, as well.
    kernel: tuple[int, int] = (0, 0)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    ceil_mode: bool = False
    indices: bool = False

    one_dimensional = False

    @property
    def adaptive(self) -> bool:
        return self.family == "adaptive_pool"

    @property
    def unpool(self) -> bool:
        return self.family == "max_unpool"

    def input_shape(self, batch: int) -> tuple[int, int, int, int]:
        return batch, self.C, self.H, self.W

    def output_shape(self, batch: int) -> tuple[int, int, int, int]:
        return batch, self.C, self.P, self.Q

    def given_shapes(self, batch: int) -> list[tuple[int, int, int, int]]:
        return [self.input_shape(batch)]

    def results(self, direction: str) -> tuple[str, ...]:
        return {"fwd": ("output",), "bwd": ("grad_input",), "train": ("output", "grad_input")}[direction]

    def bytes_moved(self, batch: int, direction: str, size: int) -> int:
        """Input and output, or their gradients; indices where they are made or taken. The least: a maximum must be
        known to have won by something, which may be one bit and is not counted."""
        input, output = math.prod(self.input_shape(batch)), math.prod(self.output_shape(batch))
        indices = 8 * self.indices * (input if self.unpool else output)
        forward, backward = size * (input + output) + indices, size * (input + output) + indices * self.unpool
        return (direction != "bwd") * forward + (direction != "fwd") * backward

    @property
    def target_class(self) -> str:
        """Its key in TARGETS."""
        if self.adaptive:
            return "adaptive and global pooling"
        if self.unpool:
            return "max unpooling"
        if self.kind == "avg":
            return "average pooling"
        wide = self.stride == (1, 1) and min(self.kernel) >= 5
        return "max pooling, 5x5 and larger of stride 1" if wide else "max pooling"

    def text(self, batch: int = 1) -> str:
        """The layer in a few characters, as those of convolution."""
        size = str(self.H) if self.H == self.W else f"{self.H}x{self.W}"
        if self.adaptive:
            parts = [f"{self.kind} {self.C}@{size}", f"to {self.P}"]
        elif self.unpool:
            parts = [f"unpool {self.C}@{size}", f"to {self.P}x{self.Q}"]
        else:
            parts = [f"{self.kind} {self.kernel[0]}x{self.kernel[1]} {self.C}@{size}", f"s{self.stride[0]}"]
        if self.ceil_mode:
            parts.append("ceil")
        if self.indices and not self.unpool:
            parts.append("indices")
        if batch != 1:
            parts.append(f"n{batch}")
        return " ".join(parts)

    def flops(self, batch: int) -> float:
        """Comparisons or additions by the definition, padding included; of unpooling the values that move."""
        if self.unpool:
            return float(math.prod(self.input_shape(batch)))
        taps = self.H * self.W / (self.P * self.Q) if self.adaptive else self.kernel[0] * self.kernel[1]
        return batch * self.C * self.P * self.Q * taps

    @property
    def live(self) -> float:
        return 1.0


Case = ConvCase | PoolCase


def pair(text: str) -> tuple[int, int]:
    first, _, second = text.partition("x")
    return int(first), int(second)


def read_conv() -> dict[str, ConvCase]:
    """The convolution cases by id, in the order of the file."""
    cases = {}
    with SHAPES.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["family"] not in CONV_FAMILIES:
                continue
            numbers = {name: int(row[name]) for name in ("N_gpu", "N_cpu", *"CHWKRSPQ", "groups")}
            cases[row["id"]] = ConvCase(
                id=row["id"],
                family=row["family"],
                network=row["net"],
                layer=row["layer"],
                **numbers,
                stride=pair(row["stride"]),
                padding=pair(row["pad"]),
                dilation=pair(row["dil"]),
                output_padding=(int(row["outpad"] or 0),) * 2,
            )
    return cases


def read_pool() -> dict[str, PoolCase]:
    """The pooling cases by id, in the order of the file."""
    cases = {}
    with SHAPES.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["family"] not in POOL_FAMILIES:
                continue
            layer, _, kind = row["layer"].partition("[")
            windows: dict[str, Any] = {}
            if row["family"] == "pool":
                windows = {
                    "kernel": (int(row["R"]), int(row["S"])),
                    "stride": pair(row["stride"]),
                    "padding": pair(row["pad"]),
                    "ceil_mode": "ceil" in row["layer"],
                    "indices": "+idx" in layer,
                }
            numbers: dict[str, Any] = {name: int(row[name]) for name in ("N_gpu", "N_cpu", *"CHWPQ")}
            if row["family"] == "max_unpool":  # of windows that do not overlap, which the file leaves out
                windows = {"kernel": (each := (numbers["P"] // numbers["H"], numbers["Q"] // numbers["W"]))}
                windows |= {"stride": each, "indices": True}
            cases[row["id"]] = PoolCase(
                id=row["id"],
                family=row["family"],
                network=row["net"],
                layer=row["layer"],
                kind="avg" if "avg" in kind else "max",
                **numbers,
                **windows,
            )
    return cases


def read_cases() -> dict[str, Case]:
    """All of them, families together."""
    return {**read_conv(), **read_pool()}


def select(ids: Iterable[str] = (), families: Iterable[str] = FAMILIES, full: bool = False) -> list[Case]:
    """The cases with these ids; without ids those of the families, of the quick set unless ``full``. In the order of
    the file."""
    ids, families = set(ids), set(families)
    return [
        case
        for case in read_cases().values()
        if (case.id in ids if ids else case.family in families and (full or case.id in QUICK))
    ]


def target(name: str, direction: str, dtype: str) -> float | None:
    """The speed-up sought for a class; of the backward pass alone, and in float64, none is."""
    column = {"fwd": 0, "train": 1}.get(direction)
    if column is None or dtype == "float64":
        return None
    if dtype == "float16" and "pooling" not in name:  # for CPUs on which PyTorch has no arithmetic for it
        return (50.0, 20.0)[column]
    if dtype == "bfloat16" and name.startswith("dense"):
        return 1.0
    pair = TARGETS[name]
    return pair[column] if pair else None
