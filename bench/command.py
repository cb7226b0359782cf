"""`fastconv bench`: asks what to measure, shows that it goes on, prints tables. `fastconv bench report`: a page."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from fastconv._console import progress_bar, require_folder
from fastconv._native import native

from . import roofline
from .cases import FAMILIES, TORCHVISION_FAMILIES, Case, read_cases, select
from .data import DIRECTIONS, LAYOUTS, torchvision_lacks
from .machine import describe, headline
from .measure import DTYPES, Row, by_run, judge, means, run_case
from .tables import LEGEND, class_table, run_table, verdict

#: Version of the file that --json writes and report reads.
FORMAT = 2


def several(allowed: Sequence[str]) -> Callable[[click.Context, click.Parameter, str], tuple[str, ...]]:
    """Reads names with commas between them, once each."""

    def read(_context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
        for name in names:
            if name not in allowed:
                rule = f"be of {', '.join(allowed)}" if len(allowed) < 20 else "name ids of shapes.csv, as W03"
                raise click.ClickException(f"bench: {parameter.opts[0]} must {rule} (got {name!r})")
        return names

    return read


def counts(_context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    if value is None:
        return (torch.get_num_threads(),)
    try:
        found = tuple(dict.fromkeys(map(int, value.split(","))))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise click.ClickException(f"bench: {parameter.opts[0]} must be positive integers (got {value!r})")
    return found


@click.group(invoke_without_command=True)
@click.option(
    "--family",
    "families",
    default=",".join(FAMILIES),
    show_default=True,
    callback=several(FAMILIES),
    help="Kinds of layers.",
)
@click.option(
    "--case",
    "ids",
    default="",
    callback=several(tuple(read_cases())),
    help="Ids of shapes.csv, as W03,G01, instead of families.",
)
@click.option("--full", is_flag=True, help="Every case of the families, not the quick set.")
@click.option(
    "--direction",
    "directions",
    default="fwd",
    show_default=True,
    callback=several(DIRECTIONS),
    help="fwd, bwd (the backward pass alone), train (both).",
)
@click.option("--dtype", "dtypes", default="float32", show_default=True, callback=several(DTYPES))
@click.option(
    "--layout",
    "layouts",
    default=",".join(LAYOUTS),
    show_default=True,
    callback=several(tuple(LAYOUTS)),
    help="What fastconv is given; PyTorch always runs in both.",
)
@click.option("--threads", callback=counts, help="Numbers of threads, as 1,2; PyTorch's default otherwise.")
@click.option(
    "--batch", type=click.IntRange(min=1), help="Images; that of shapes.csv, or up to 8 in training, otherwise."
)
@click.option("--kernel", default="", help="Let fastconv use this kernel only.")
@click.option(
    "--budget",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="Seconds for the times of one row; what takes longer gets three samples.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write every sample here.")
@click.pass_context
def bench(
    context: click.Context,
    families: tuple[str, ...],
    ids: tuple[str, ...],
    full: bool,
    directions: tuple[str, ...],
    dtypes: tuple[str, ...],
    layouts: tuple[str, ...],
    threads: tuple[int, ...],
    batch: int | None,
    kernel: str,
    budget: float,
    json_file: Path | None,
) -> None:
    """Time layers of published networks against PyTorch, and torchvision where PyTorch alone lacks the operator.

    Options that take several values take them with commas in between.
    """
    if context.invoked_subcommand is not None:
        return
    if json_file is not None:
        require_folder("bench", "--json", json_file)
    cases = with_peers(select(ids, families, full))
    settings = {"batch": batch, "kernel": kernel, "budget": budget}
    if not (cases and directions and dtypes and layouts):
        raise click.ClickException("bench: the options must leave something to measure (got nothing)")
    if kernel not in ("", *native.conv_kernels()):
        raise click.ClickException(f"bench: --kernel must be of {', '.join(native.conv_kernels())} (got {kernel!r})")
    native.conv_force_kernel(kernel)

    machine = describe()
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file or a pipe has no width to keep to
    console.print(headline(machine, threads), highlight=False, soft_wrap=True)
    before = torch.get_num_threads()
    try:
        bandwidth, peak = roofline.measure(dtypes, threads)
        rows = run_all(cases, directions, dtypes, layouts=layouts, threads=threads, **settings)
    finally:
        native.conv_force_kernel("")
        torch.set_num_threads(before)
    rows = [judge(row, bandwidth, peak) for row in rows]

    console.print(roofline.text(bandwidth, peak), highlight=False, soft_wrap=True)
    for run, members in by_run(rows).items():
        console.print(run_table(run, members, console.width))
    console.print(class_table(rows))
    console.print(verdict(rows), highlight=False, soft_wrap=True)
    console.print(LEGEND, style="dim", highlight=False, soft_wrap=True)
    if json_file is not None:
        found = {
            "format": FORMAT,
            "machine": machine,
            "settings": {**settings, "layouts": layouts, "threads": threads},
            "bandwidth": bandwidth,
            "peak": peak,
            "families": means(rows, "family"),
            "classes": means(rows, "class"),
        }
        json_file.write_text(to_json(found, rows))
        click.echo(f"Wrote {json_file}")
    bad = [f"{row['id']} {row['direction']} {row['dtype']}" for row in rows if row["status"] in ("wrong", "failed")]
    if bad:
        raise click.ClickException(f"bench: some rows were wrong or failed: {', '.join(dict.fromkeys(bad))}")


def with_peers(cases: list[Case]) -> list[Case]:
    """The cases, but for those that only torchvision could be compared on where it is missing; says so. An error where
    that leaves none."""
    alone = [case for case in cases if case.family in TORCHVISION_FAMILIES]
    if not alone or not (reason := torchvision_lacks()):
        return cases
    left_out = list(dict.fromkeys(case.family for case in alone))
    if len(alone) == len(cases):
        raise click.ClickException(f"bench: there is nothing to compare {listed(left_out)} with ({reason})")
    click.echo(f"bench: {listed(left_out)} left out: {reason}", err=True)
    return [case for case in cases if case.family not in TORCHVISION_FAMILIES]


def listed(names: Sequence[str]) -> str:
    """
    >>> listed(["deform", "roi_align", "roi_pool"])
    'deform, roi_align and roi_pool'
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def run_all(cases: Sequence[Case], directions: Sequence[str], dtypes: Sequence[str], **settings: Any) -> list[Row]:
    """All rows, with a bar on a terminal and a line a case elsewhere; both on stderr. An interrupt ends it early."""
    screen = Console(stderr=True)
    jobs = [(case, direction, dtype) for direction in directions for case in cases for dtype in dtypes]
    rows: list[Row] = []
    done = 0
    with progress_bar(screen) as progress:
        task = progress.add_task("", total=len(jobs))
        try:
            for case, direction, dtype in jobs:
                label = f"{case.id} {case.text()} {direction} {dtype}"
                progress.update(task, description=label, refresh=True)
                if not screen.is_terminal:
                    screen.print(f"[{done + 1}/{len(jobs)}] {label}", markup=False, highlight=False, soft_wrap=True)
                rows += run_case(case, direction, dtype, **settings)
                progress.advance(task)
                done += 1
        except KeyboardInterrupt:
            screen.print(f"Interrupted after {done} of {len(jobs)}; what follows is what was measured.")
    return rows


def to_json(head: dict[str, Any], rows: Sequence[Row]) -> str:
    """An object with one row a line, so that a file of a million samples can still be looked at and compared."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    return json.dumps(head, indent=1).removesuffix("\n}") + f',\n "rows": [\n{lines}\n ]\n}}\n'


@bench.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="fastconv-bench.html",
    show_default=True,
    help="Where the page goes.",
)
@click.option(
    "--plots",
    type=click.Path(file_okay=False, path_type=Path),
    help="A folder to write the plots to as well, as PNG.",
)
def report(files: tuple[Path, ...], output: Path, plots: Path | None) -> None:
    """Make a page with plots of what --json has written; of several files, with a comparison to the first."""
    try:
        from .report import page
    except ModuleNotFoundError as error:
        raise click.ClickException(f"bench report: {error.name} is missing: pip install 'fastconv[bench]'") from None
    require_folder("bench report", "--output", output)
    runs = {}
    for file in files:
        try:
            found = json.loads(file.read_text())
            fits = found["format"] == FORMAT
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise click.ClickException(f"bench report: FILE must be what `fastconv bench --json` writes (got {file})")
        runs[str(file)] = found
    html, images = page(runs)
    output.write_text(html)
    click.echo(f"Wrote {output}")
    if plots is not None:
        plots.mkdir(parents=True, exist_ok=True)
        for name, data in images.items():
            (plots / f"{name}.png").write_bytes(data)
            click.echo(f"Wrote {plots / name}.png")
