"""The cases: layers of published networks, one a row of shapes.csv; the classes they form, how to choose among them."""

import csv
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

SHAPES = Path(__file__).with_name("shapes.csv")
CONV_FAMILIES = ("dense", "grouped", "depthwise", "dilated", "transposed")
POOL_FAMILIES = ("pool", "adaptive_pool", "max_unpool")
DEFORM_FAMILIES = ("deform",)
SAMPLE_FAMILIES = ("deform_sample",)
ROI_FAMILIES = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")
#: Those that PyTorch alone lacks: they are compared with torchvision's.
TORCHVISION_FAMILIES = DEFORM_FAMILIES + ROI_FAMILIES
FAMILIES = CONV_FAMILIES + POOL_FAMILIES + DEFORM_FAMILIES + SAMPLE_FAMILIES + ROI_FAMILIES
#: What runs unless more is asked for: a few minutes on two cores.
QUICK = frozenset(
    ("D01", "D02", "D05", "D07", "D16", "G01", "G02", "G04", "G09", "G12")
    + ("W01", "W02", "W10", "W13", "W19", "L02", "L06", "L22", "T03", "T08")
    + ("P01", "P07", "P11", "P21", "P26", "N02", "F01", "F12", "R02", "R04")
)

#: The classes that a speed-up is sought for, and how large a one: of forward, and of forward and backward, float32.
#: None where the only aim is to lose nowhere.
CONV_TARGETS: dict[str, tuple[float, float] | None] = {
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
}
TARGETS = CONV_TARGETS | {
    "max pooling": (1.5, 1.5),
    "max pooling, 5x5 and larger of stride 1": (20.0, 20.0),
    "average pooling": (1.5, 1.5),
    "adaptive and global pooling": (1.5, 1.5),
    "max unpooling": (1.5, 1.5),
    "deformable": (8.0, 10.0),
    "deformable sampling, over grid_sample": None,
    "RoI align": (15.0, 20.0),
    "RoI pool": (15.0, 20.0),
    "position-sensitive RoI": (5.0, 5.0),
}
#: No single case may be slower than this.
FLOOR = 0.95
#: What deformable convolution should cost at most, in plain convolutions of the same shape.
MOST_OF_PLAIN = 1.8
#: Shortest and longest side of the boxes, in pixels of the image, that a level of a feature pyramid is given; without
#: levels, those of all objects.
SIDES = {"P2": (16.0, 112.0), "P3": (112.0, 224.0), "P4": (224.0, 448.0), "": (32.0, 512.0)}


@dataclass(frozen=True)
class Layer:
    """What the layers of all families have: where they come from, and what they look at."""

    id: str
    family: str
    network: str
    layer: str
    N_gpu: int
    N_cpu: int
    C: int
    H: int
    W: int

    one_dimensional = False
    live = 1.0

    def input_shape(self, batch: int) -> tuple[int, int, int, int]:
        return batch, self.C, self.H, self.W

    @property
    def size(self) -> str:
        return str(self.H) if self.H == self.W else f"{self.H}x{self.W}"

    def results(self, direction: str) -> tuple[str, ...]:
        """What the direction computes."""
        return {"fwd": ("output",), "bwd": self.gradients, "train": ("output", *self.gradients)}[direction]

    @property
    def gradients(self) -> tuple[str, ...]:
        """What the backward pass computes: gradients of the first of what the layer is given."""
        return ("grad_input",)

    def passes(self, direction: str) -> int:
        """How often the direction does as many operations as the forward pass."""
        return len(self.results(direction))


@dataclass(frozen=True)
class ConvCase(Layer):
    """One convolution layer, with the field's names; a pair is (height, width)."""

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
    def one_dimensional(self) -> bool:  # type: ignore[override]
        return self.H == self.R == 1

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        if self.transposed:
            return self.C, self.K // self.groups, self.R, self.S
        return self.K, self.C // self.groups, self.R, self.S

    def output_shape(self, batch: int) -> tuple[int, int, int, int]:
        return batch, self.K, self.P, self.Q

    def given_shapes(self, batch: int) -> list[tuple[int, ...]]:
        """Of what the layer is given: input and weight."""
        return [self.input_shape(batch), self.weight_shape]

    @property
    def gradients(self) -> tuple[str, ...]:
        return "grad_input", "grad_weight"

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
        channels = str(self.C) if self.C == self.K else f"{self.C}->{self.K}"
        parts = [f"{self.R}x{self.S} {channels}@{self.size}"]
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
    def live(self) -> float:  # type: ignore[override]
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
class DeformCase(ConvCase):
    """One deformable convolution, with a mask; offsets and mask belong to groups of channels of their own."""

    offset_groups: int = 1

    live = 1.0  # where samples fall, the offsets decide

    def given_shapes(self, batch: int) -> list[tuple[int, ...]]:
        """Of input, offset, weight and mask."""
        taps = self.offset_groups * self.R * self.S
        offset, mask = ((batch, count, self.P, self.Q) for count in (2 * taps, taps))
        return [self.input_shape(batch), offset, self.weight_shape, mask]

    @property
    def gradients(self) -> tuple[str, ...]:
        return "grad_input", "grad_offset", "grad_weight", "grad_mask"

    def passes(self, direction: str) -> int:
        """The backward pass is two products, with weights and with samples, that also yield the other gradients."""
        return {"fwd": 1, "bwd": 2, "train": 3}[direction]

    @property
    def target_class(self) -> str:
        return "deformable"

    def text(self, batch: int = 1) -> str:
        plain, _, images = super().text(batch).partition(" n")
        groups = f" dg{self.offset_groups}" if self.offset_groups > 1 else ""
        return f"deform {plain}{groups}{f' n{images}' if images else ''}"

    def flops(self, batch: int) -> float:
        """Those of the convolution, and eight for each sample, which is between four pixels."""
        return super().flops(batch) + 8.0 * batch * self.C * self.P * self.Q * self.R * self.S


@dataclass(frozen=True)
class SampleCase(DeformCase):
    """One deformable sampling: each channel is a group of its own, whose weights are the masks."""

    def given_shapes(self, batch: int) -> list[tuple[int, ...]]:
        """Of input, offset and mask."""
        input, offset, _, mask = super().given_shapes(batch)
        return [input, offset, mask]

    @property
    def gradients(self) -> tuple[str, ...]:
        return "grad_input", "grad_offset", "grad_mask"

    @property
    def target_class(self) -> str:
        return "deformable sampling, over grid_sample"

    def text(self, batch: int = 1) -> str:
        return super().text(batch).replace("deform", "deform_sample")


@dataclass(frozen=True)
class PoolCase(Layer):
    """One pooling or unpooling layer over windows; a pair is (height, width)."""

    P: int
    Q: int
    kind: str  # "max" or "avg"
    #: Unless they adapt: the windows, and whether the indices of the winners are made, or taken, as well.
    kernel: tuple[int, int] = (0, 0)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    ceil_mode: bool = False
    indices: bool = False

    @property
    def adaptive(self) -> bool:
        return self.family == "adaptive_pool"

    @property
    def unpool(self) -> bool:
        return self.family == "max_unpool"

    def output_shape(self, batch: int) -> tuple[int, int, int, int]:
        return batch, self.C, self.P, self.Q

    def given_shapes(self, batch: int) -> list[tuple[int, ...]]:
        return [self.input_shape(batch)]

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
        if self.adaptive:
            parts = [f"{self.kind} {self.C}@{self.size}", f"to {self.P}"]
        elif self.unpool:
            parts = [f"unpool {self.C}@{self.size}", f"to {self.P}x{self.Q}"]
        else:
            parts = [f"{self.kind} {self.kernel[0]}x{self.kernel[1]} {self.C}@{self.size}", f"s{self.stride[0]}"]
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


@dataclass(frozen=True)
class RoiCase(Layer):
    """One layer that cuts boxes out of a map and brings each to P times Q bins."""

    P: int
    Q: int
    #: Boxes of an image, and between what sides of theirs (in its pixels) they are drawn.
    boxes: int
    sides: tuple[float, float]
    scale: float
    #: Samples of a bin, squared; 0 for what looks at every pixel.
    sampling: int

    @property
    def position_sensitive(self) -> bool:
        """Whether each bin has a channel of the input of its own."""
        return self.family.startswith("ps_")

    @property
    def K(self) -> int:
        return self.C // (self.P * self.Q) if self.position_sensitive else self.C

    def output_shape(self, batch: int) -> tuple[int, int, int, int]:
        return batch * self.boxes, self.K, self.P, self.Q

    def given_shapes(self, batch: int) -> list[tuple[int, ...]]:
        """Of input and boxes."""
        return [self.input_shape(batch), (batch * self.boxes, 5)]

    def bytes_moved(self, batch: int, direction: str, size: int) -> int:
        """Input, boxes and output, or the gradients of the first and the last: each once, however boxes overlap. Which
        pixel was a bin's maximum is not counted."""
        each = size * (sum(map(math.prod, self.given_shapes(batch))) + math.prod(self.output_shape(batch)))
        return each * self.passes(direction)

    @property
    def target_class(self) -> str:
        """Its key in TARGETS."""
        if self.position_sensitive:
            return "position-sensitive RoI"
        return "RoI align" if self.family == "roi_align" else "RoI pool"

    def text(self, batch: int = 1) -> str:
        """The layer in a few characters: "roi_align 7x7 of 1000, 256@200x272"."""
        images = f" n{batch}" if batch != 1 else ""
        return f"{self.family} {self.P}x{self.Q} of {batch * self.boxes}, {self.C}@{self.size}{images}"

    def flops(self, batch: int) -> float:
        """Eight for each sample, which is between four pixels. Where every pixel is looked at, one for each, in boxes
        of the mean side."""
        least, most = self.sides
        side = (most - least) / math.log(most / least) * self.scale  # whose logarithm is uniform
        each = 8.0 * self.sampling**2 if self.sampling else side * side / (self.P * self.Q)
        return math.prod(self.output_shape(batch)) * each


Case = ConvCase | PoolCase | RoiCase


def pair(text: str) -> tuple[int, int]:
    first, _, second = text.partition("x")
    return int(first), int(second)


def rows_of(families: Iterable[str]) -> Iterator[dict[str, str]]:
    """The rows of these families, in the order of the file."""
    with SHAPES.open(newline="") as file:
        yield from (row for row in csv.DictReader(file) if row["family"] in families)


def names(row: dict[str, str]) -> dict[str, Any]:
    return {"id": row["id"], "family": row["family"], "network": row["net"], "layer": row["layer"]}


def integers(row: dict[str, str], columns: Iterable[str]) -> dict[str, Any]:
    return {name: int(row[name]) for name in columns}


def settings(row: dict[str, str]) -> dict[str, str]:
    """What stands in the column of output padding of families that have none: "sr=2 scale=1/4"."""
    return dict(part.split("=") for part in row["outpad"].split())


def conv_fields(row: dict[str, str]) -> dict[str, Any]:
    """What a row says of any kind of convolution."""
    geometry = {"stride": pair(row["stride"]), "padding": pair(row["pad"]), "dilation": pair(row["dil"])}
    return names(row) | integers(row, ("N_gpu", "N_cpu", *"CHWKRSPQ", "groups")) | geometry


def read_conv() -> dict[str, ConvCase]:
    """The convolution cases by id, in the order of the file."""
    return {
        row["id"]: ConvCase(**conv_fields(row), output_padding=(int(row["outpad"] or 0),) * 2)
        for row in rows_of(CONV_FAMILIES)
    }


def read_deform() -> dict[str, DeformCase]:
    """The deformable convolutions by id, in the order of the file."""
    return {
        row["id"]: DeformCase(**conv_fields(row), offset_groups=int(settings(row)["dg"]))
        for row in rows_of(DEFORM_FAMILIES)
    }


def read_sample() -> dict[str, SampleCase]:
    """The deformable samplings by id, in the order of the file, which counts no groups of theirs but those of
    offsets."""
    return {
        row["id"]: SampleCase(**conv_fields(row) | {"groups": int(row["C"])}, offset_groups=int(settings(row)["dg"]))
        for row in rows_of(SAMPLE_FAMILIES)
    }


def read_pool() -> dict[str, PoolCase]:
    """The pooling cases by id, in the order of the file."""
    cases = {}
    for row in rows_of(POOL_FAMILIES):
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
        numbers = integers(row, ("N_gpu", "N_cpu", *"CHWPQ"))
        if row["family"] == "max_unpool":  # of windows that do not overlap, which the file leaves out
            windows = {"kernel": (each := (numbers["P"] // numbers["H"], numbers["Q"] // numbers["W"]))}
            windows |= {"stride": each, "indices": True}
        cases[row["id"]] = PoolCase(**names(row), **numbers, kind="avg" if "avg" in kind else "max", **windows)
    return cases


def read_roi() -> dict[str, RoiCase]:
    """The cases of regions of interest by id, in the order of the file, whose K are the boxes of all N_cpu images."""
    cases = {}
    for row in rows_of(ROI_FAMILIES):
        given, level = settings(row), row["layer"].split()[0]
        cases[row["id"]] = RoiCase(
            **names(row),
            **integers(row, ("N_gpu", "N_cpu", *"CHWPQ")),
            boxes=int(row["K"]) // int(row["N_cpu"]),
            sides=SIDES[level if level in SIDES else ""],
            scale=float(Fraction(given["scale"])),
            sampling=int(given["sr"]),
        )
    return cases


def read_cases() -> dict[str, Case]:
    """All of them, families together."""
    return {**read_conv(), **read_pool(), **read_deform(), **read_sample(), **read_roi()}


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
    if dtype == "float16" and name in CONV_TARGETS:  # for CPUs on which PyTorch has no arithmetic for it
        return (50.0, 20.0)[column]
    if dtype == "bfloat16" and name.startswith("dense"):
        return 1.0
    pair = TARGETS[name]
    return pair[column] if pair else None
