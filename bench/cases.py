"""The cases: layers of published networks, one a row of shapes.csv, and how to choose among them."""

import csv
from dataclasses import dataclass
from pathlib import Path

SHAPES = Path(__file__).with_name("shapes.csv")


@dataclass(frozen=True)
class ConvCase:
    """One convolution layer, with the field's names; ``pair`` is (height, width)."""

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

    @property
    def text(self) -> str:
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
        if self.N_cpu != 1:
            parts.append(f"n{self.N_cpu}")
        return " ".join(parts)

    def flops(self, batch: int) -> float:
        """Floating-point operations of the forward pass by the definition, padding included."""
        return 2.0 * batch * self.K * self.P * self.Q * (self.C // self.groups) * self.R * self.S


def pair(text: str) -> tuple[int, int]:
    first, _, second = text.partition("x")
    return int(first), int(second)


def read_conv(families: tuple[str, ...]) -> dict[str, ConvCase]:
    """The convolution cases of these families by id, in the order of the file."""
    cases = {}
    with SHAPES.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["family"] not in families:
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
            )
    return cases


def select(cases: dict[str, ConvCase], names: tuple[str, ...]) -> list[ConvCase]:
    """The cases named, each by id, family or "all", once each and in the order of the file.

    Raises:
        KeyError: a name is none of these.
    """
    chosen = set()
    for name in names:
        found = {id for id, case in cases.items() if name in ("all", id, case.family)}
        if not found:
            raise KeyError(name)
        chosen |= found
    return [case for id, case in cases.items() if id in chosen]
