"""The cases: layers of published networks, one a row of shapes.csv; the classes they form, how to choose among them."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SHAPES = Path(__file__).with_name("shapes.csv")
FAMILIES = ("dense", "grouped", "depthwise", "dilated", "transposed")
#: What runs unless more is asked for: a few minutes on two cores.
QUICK = frozenset(
    ("D01", "D02", "D05", "D07", "D16", "G01", "G02", "G04", "G09", "G12")
    + ("W01", "W02", "W10", "W13", "W19", "L02", "L06", "L22", "T03", "T08")
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


def pair(text: str) -> tuple[int, int]:
    first, _, second = text.partition("x")
    return int(first), int(second)


def read_conv() -> dict[str, ConvCase]:
    """The convolution cases by id, in the order of the file."""
    cases = {}
    with SHAPES.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["family"] not in FAMILIES:
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


def select(ids: Iterable[str] = (), families: Iterable[str] = FAMILIES, full: bool = False) -> list[ConvCase]:
    """The cases with these ids; without ids those of the families, of the quick set unless ``full``. In the order of
    the file."""
    ids, families = set(ids), set(families)
    return [
        case
        for case in read_conv().values()
        if (case.id in ids if ids else case.family in families and (full or case.id in QUICK))
    ]


def target(name: str, direction: str, dtype: str) -> float | None:
    """The speed-up sought for a class; of the backward pass alone, and in float64, none is."""
    column = {"fwd": 0, "train": 1}.get(direction)
    if column is None or dtype == "float64":
        return None
    if dtype == "float16":  # for CPUs on which PyTorch has no arithmetic for it
        return (50.0, 20.0)[column]
    if dtype == "bfloat16" and name.startswith("dense"):
        return 1.0
    pair = TARGETS[name]
    return pair[column] if pair else None
