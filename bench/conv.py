"""Times convolution layers of published networks against PyTorch (`make bench`).

PyTorch runs in both of its memory formats and the ratio is taken against the faster one, whichever the user
has: that is what a reader could otherwise run. Outputs are compared with float64 before anything is timed.
"""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from cases import ConvCase, read_conv, select
from machine import describe, headline
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fastconv
from fastconv._timing import alternate, summarise
from fastconv.cli import progress_bar

FAMILIES = ("grouped", "depthwise", "dense", "dilated")
#: What the README quotes: grouped with four channels a group, depthwise and dense 3x3.
DEFAULT_CASES = ("G01", "W03", "D02")
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
LIBRARIES: dict[str, Callable[..., Tensor]] = {"PyTorch": F.conv2d, "fastconv": fastconv.conv2d}
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
#: Largest error, relative to the largest value expected. In 16-bit types, rounding the output alone
#: costs 2^-9 (bfloat16) or 2^-12.
TOLERANCE = {"float64": 1e-12, "float32": 1e-4, "float16": 2e-3, "bfloat16": 1e-2}
Row = dict[str, Any]


def tensors(case: ConvCase, dtype: torch.dtype, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    """Input [N, C, H, W], weight [K, C / groups, R, S] and gradient of the output [N, K, P, Q], with the same
    values for every layout and library."""
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (case.N_cpu, case.C, case.H, case.W),
        (case.K, case.C // case.groups, case.R, case.S),
        (case.N_cpu, case.K, case.P, case.Q),
    )
    fan_in = case.C // case.groups * case.R * case.S
    input, weight, grad_output = (torch.randn(shape, generator=generator) for shape in shapes)
    made = (input, weight / math.sqrt(fan_in), grad_output)
    input, weight, grad_output = (each.to(dtype, memory_format=LAYOUTS[layout]) for each in made)
    return input, weight, grad_output


def runner(
    conv2d: Callable[..., Tensor], case: ConvCase, direction: str, data: tuple[Tensor, Tensor, Tensor]
) -> Callable[[], list[Tensor]]:
    """A function that runs the layer once and returns what it computes: the output, and in training the
    gradients of input and weight."""
    input, weight, grad_output = data
    arguments = (None, case.stride, case.padding, case.dilation, case.groups)
    if direction == "fwd":

        def forward() -> list[Tensor]:
            with torch.inference_mode():
                return [conv2d(input, weight, *arguments)]

        return forward
    input, weight = input.detach().requires_grad_(), weight.detach().requires_grad_()

    def train() -> list[Tensor]:
        output = conv2d(input, weight, *arguments)
        return [output, *torch.autograd.grad(output, (input, weight), grad_output)]

    return train


def error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """The largest error in any of the tensors, relative to its largest expected value; NaN if any is."""
    pairs = zip(actual, expected, strict=True)
    return torch.stack([(a.double() - e).abs().max() / e.abs().max() for a, e in pairs]).max().item()


def run_case(case: ConvCase, direction: str, dtype: str) -> Row:
    """Checks, then times, both libraries in both layouts."""
    data = {layout: tensors(case, DTYPES[dtype], layout) for layout in LAYOUTS}
    runs = {
        f"{library} {layout}": runner(conv2d, case, direction, data[layout])
        for library, conv2d in LIBRARIES.items()
        for layout in LAYOUTS
    }
    input, weight, grad_output = data["channels_last"]
    expected = runner(F.conv2d, case, direction, (input.double(), weight.double(), grad_output.double()))()
    errors = {name: error(run(), expected) for name, run in runs.items()}
    flops = case.flops(case.N_cpu) * (1 if direction == "fwd" else 3)
    row: Row = {
        "id": case.id,
        "family": case.family,
        "network": case.network,
        "layer": case.layer,
        "text": case.text,
        "direction": direction,
        "dtype": dtype,
        "batch": case.N_cpu,
        "gflop": flops / 1e9,
        "error": errors,
        "matches": all(errors[f"fastconv {layout}"] <= TOLERANCE[dtype] for layout in LAYOUTS),
    }
    if row["matches"]:
        samples = alternate(runs)
        timings = {name: summarise(each) for name, each in samples.items()}
        row["seconds"] = {name: {**timings[name]._asdict(), "samples": samples[name]} for name in runs}
        peer = min(timings[f"PyTorch {layout}"].median for layout in LAYOUTS)
        row["ratio"] = {layout: peer / timings[f"fastconv {layout}"].median for layout in LAYOUTS}
    return row


def geometric_mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def report(rows: list[Row], direction: str, dtype: str) -> Table:
    """Rows of one direction, grouped by family, each family closed by the geometric mean of its ratios."""
    what = "Forward" if direction == "fwd" else "Forward and backward"
    table = Table(
        box=box.SIMPLE,
        title=f"{what}, {dtype}, median milliseconds",
        title_justify="left",
        title_style="bold",
    )
    # A narrow terminal breaks the case's name, not the numbers.
    table.add_column("case")
    table.add_column("layout", no_wrap=True, min_width=13)
    for heading in ("PyTorch", "fastconv", "spread", "GFLOP/s", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    for family in FAMILIES:
        members = [row for row in rows if row["family"] == family]
        for row in members:
            title = f"{row['id']} {row['text']}"
            if not row["matches"]:
                table.add_row(title, "[red]not timed[/]")
                continue
            for layout in LAYOUTS:
                pytorch, ours = (row["seconds"][f"{library} {layout}"] for library in LIBRARIES)
                table.add_row(
                    title if layout == "NCHW" else "",
                    layout,
                    f"{1e3 * pytorch['median']:.3f}",
                    f"{1e3 * ours['median']:.3f}",
                    f"{(ours['high'] - ours['low']) / ours['median']:.0%}",
                    f"{row['gflop'] / ours['median']:.0f}",
                    coloured(row["ratio"][layout]),
                )
        timed = [row for row in members if row["matches"]]
        for layout in LAYOUTS if timed else ():
            title = f"{family}, mean of {len(timed)}" if layout == "NCHW" else ""
            mean = geometric_mean(row["ratio"][layout] for row in timed)
            table.add_row(title, layout, "", "", "", "", coloured(mean), style="bold")
        table.add_section()
    return table


def coloured(ratio: float) -> str:
    return f"[{'green' if ratio >= 1 else 'red'}]{ratio:.2f}[/]"


def split(_context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--case",
    "names",
    default=",".join(DEFAULT_CASES),
    show_default=True,
    callback=split,
    help=f"Ids of shapes.csv, families ({', '.join(FAMILIES)}) or all.",
)
@click.option("--direction", "directions", default="fwd", show_default=True, callback=split, help="fwd, train or both.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Threads to compute with; PyTorch's default otherwise.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write every sample here.")
def main(
    names: tuple[str, ...],
    directions: tuple[str, ...],
    dtype: str,
    threads: int | None,
    json_file: Path | None,
) -> None:
    """Time convolution layers of published networks against PyTorch."""
    try:
        cases = select(read_conv(FAMILIES), names)
    except KeyError as unknown:
        raise click.ClickException(f"bench: --case must name ids, families or all (got {unknown})") from None
    for direction in directions:
        if direction not in ("fwd", "train"):
            raise click.ClickException(f"bench: --direction must be fwd, train or both (got {direction!r})")
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise click.ClickException(f"bench: --json must lie in a folder that exists (got {str(json_file)!r})")
    if threads is not None:
        torch.set_num_threads(threads)

    machine = describe()
    console, screen = Console(), Console(stderr=True)
    if not console.is_terminal:
        console.width = 100  # a file or a pipe has no width to keep to
    console.print(headline(machine), highlight=False, soft_wrap=True)
    rows: list[Row] = []
    with progress_bar(screen) as progress:
        task = progress.add_task("", total=len(cases) * len(directions))
        for direction in directions:
            for case in cases:
                label = f"{case.id} {case.text} {direction}"
                progress.update(task, description=label, refresh=True)
                if not screen.is_terminal:
                    screen.print(f"[{len(rows) + 1}/{len(cases) * len(directions)}] {label}", markup=False)
                rows.append(run_case(case, direction, dtype))
                progress.advance(task)

    for direction in directions:
        console.print(report([row for row in rows if row["direction"] == direction], direction, dtype))
    console.print(
        "Spread: between the quartiles of fastconv's times. GFLOP/s: of fastconv, by the definition.\n"
        "Ratio: the faster of PyTorch's two layouts over fastconv; above 1 fastconv is faster. "
        "Means are geometric.",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )
    if json_file is not None:
        json_file.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
        click.echo(f"Wrote {json_file}")
    wrong = [f"{row['id']} {row['direction']} ({max(row['error'].values()):.1e})" for row in rows if not row["matches"]]
    if wrong:
        raise click.ClickException(f"bench: fastconv differs from float64 in {', '.join(wrong)}")


if __name__ == "__main__":
    main()
