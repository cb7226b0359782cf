#!/usr/bin/env python3
"""Writes build/cuda-report.txt: registers, stack, spills and shared memory of every CUDA kernel, for every chip that
it was compiled for.

A kernel that runs out of registers still gives the right results, only slowly, so no other test sees it. What ptxas
said while the library was built lies beside the objects (cmake/keep_ptxas.sh), and is read from there.

    python tools/cuda_report.py     fails where a kernel spills more than it may
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}" / "CMakeFiles" / "_C_cuda.dir" / "csrc"
REPORT = ROOT / "build" / "cuda-report.txt"

#: Bytes that any kernel may spill: ptxas itself gives up a few registers where one more block is resident for it.
FEW = 64
#: Bytes that others may, by how their names begin: with 128 registers of these two blocks are resident and not one.
MAY_SPILL = {"deform_input_grads<float>": 192, "deform_products<double, 4": 128}

_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<chip>\w+)'\n"
    r".*Function properties for (?P=name)\n"
    r" *(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers(?P<rest>.*)\n"
)


@dataclass(frozen=True)
class Resources:
    """What one kernel needs on one chip; bytes are a thread's, those of shared memory a block's."""

    family: str
    kernel: str  # with its template arguments
    chip: str
    registers: int
    stack: int
    stores: int
    loads: int
    shared: int  # static; what a launcher asks for is not known here

    @property
    def spills_too_much(self) -> bool:
        allowed = (bytes for name, bytes in MAY_SPILL.items() if self.kernel.startswith(name))
        return max(self.stores, self.loads) > next(allowed, FEW)


def parse(family: str, log: str) -> list[Resources]:
    """The kernels of what ptxas said while it compiled a family."""
    found = list(_KERNEL.finditer(log))
    names = _demangled([match["name"] for match in found])
    kernels = []
    for match, name in zip(found, names, strict=True):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        numbers = [int(match[key]) for key in ("registers", "stack", "stores", "loads")]
        kernels.append(Resources(family, name, match["chip"], *numbers, int(shared[1]) if shared else 0))
    return kernels


def _demangled(symbols: list[str]) -> list[str]:
    """As a person would write them: without namespaces and parameters."""
    done = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    names = re.sub(r"fastconv::|\(anonymous namespace\)::", "", done.stdout).split("\n")[: len(symbols)]
    return [name.removeprefix("void ").rpartition("(")[0] for name in names]


def collect(objects: Path = OBJECTS) -> list[Resources]:
    """Every kernel of the library as it was last built; none where it was built without CUDA."""
    kernels = [k for log in sorted(objects.glob("*/*.ptxas")) for k in parse(log.parent.name, log.read_text())]
    return sorted(kernels, key=lambda k: (k.family, k.kernel, k.chip))


def render(kernels: list[Resources]) -> str:
    width = max(len(k.kernel) for k in kernels)
    lines = [
        "Bytes of stack and spills are a thread's. Shared memory that a launcher asks for is not counted.",
        "",
        f"{'family':10} {'kernel':{width}} {'chip':6} registers  stack  spill stores  spill loads  shared",
    ]
    for k in kernels:
        numbers = f"{k.registers:9} {k.stack:6} {k.stores:13} {k.loads:12} {k.shared:7}"
        lines.append(f"{k.family:10} {k.kernel:{width}} {k.chip:6} {numbers}")
    return "\n".join(lines) + "\n"


def main() -> None:
    kernels = collect()
    if not kernels:
        sys.exit("cuda-report: fastconv was not built with CUDA here (it needs nvcc, and FASTCONV_CUDA not 0)")
    REPORT.write_text(render(kernels))
    chips = ", ".join(sorted({k.chip for k in kernels}))
    print(f"{len(kernels)} kernels, for {chips}, in {REPORT.relative_to(ROOT)}")
    spilling = [k for k in kernels if k.spills_too_much]
    if spilling:
        sys.exit("These spill more registers than they may:\n" + render(spilling))


if __name__ == "__main__":
    main()
