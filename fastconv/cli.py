"""The command `fastconv`. Imported by nothing else: `import fastconv` needs neither click nor rich."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from fastconv import __version__
from fastconv._console import coloured, progress_bar, require_folder
from fastconv._info import facts
from fastconv.bench.command import bench

__all__ = ["main"]

#: Spread of the times from which on the demo warns its reader.
BUSY = 0.3


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastconv")
def main() -> None:
    """Fast convolution, pooling and region operators for PyTorch."""


main.add_command(bench)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the same facts for a machine.")
def info(as_json: bool) -> None:
    """Say what this build is and what it runs on."""
    found = facts()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    for name, value in describe(found).items():
        table.add_row(name, value)
    Console().print(table, highlight=False)


def describe(found: dict[str, Any]) -> dict[str, str]:
    """The facts as lines for a reader."""
    if found["cuda_loaded"]:
        cuda = "built and loaded"
    elif not found["cuda_built"]:
        cuda = "not built (set FASTCONV_CUDA=1 and install again, with nvcc)"
    elif found["pytorch_cuda"] is None:
        cuda = "built, not loaded (this PyTorch has no CUDA)"
    else:
        cuda = "built, not loaded"
    capped = "" if found["isa"] == found["isa_supported"] else f" (best here: {found['isa_supported']})"
    return {
        "fastconv": found["fastconv"],
        "PyTorch": f"{found['pytorch']} (CUDA {found['pytorch_cuda'] or 'none'})",
        "Python": found["python"],
        "compiler": found["compiler"],
        "processor": f"{found['cpu']}, {found['cores']} cores",
        "instruction set": f"{found['isa']}{capped}",
        "threads": str(found["threads"]),
        "CUDA operators": cuda,
        "GPU": found["gpu"] or "none",
    }


@main.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="fastconv-demo.png",
    show_default=True,
    help="Where the picture goes; that of the poolings goes next to it, as NAME-pooling.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write every sample to this file.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads to compute with; PyTorch's default otherwise.")
@click.option("--quick", is_flag=True, help="Fewer repeats.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the random weights and of stochastic pooling."
)
def demo(output: Path, json_file: Path | None, threads: int | None, quick: bool, seed: int) -> None:
    """Send a photograph through whole networks, with PyTorch's operators and with fastconv's.

    A second picture, next to the first, shows what each pooling, boxes and deformable convolution make of the
    photograph.
    """
    try:
        from fastconv.demo.picture import draw, supported_suffixes
        from fastconv.demo.pooling import pooling_rows
        from fastconv.demo.pooling_picture import draw_pooling
        from fastconv.demo.regions import deformation, regions
        from fastconv.demo.run import load_photo
    except ModuleNotFoundError as error:
        raise click.ClickException(f"demo: {error.name} is missing: pip install 'fastconv[demo]'") from None
    # Before minutes of work, not after them.
    require_folder("demo", "--output", output)
    if output.suffix not in supported_suffixes():
        suffixes = ", ".join(supported_suffixes())
        raise click.ClickException(f"demo: --output must end in {suffixes} (got {output.name!r})")
    if json_file is not None:
        require_folder("demo", "--json", json_file)

    if threads is not None:
        torch.set_num_threads(threads)
    machine = facts()
    console = Console()
    console.print(
        f"fastconv {machine['fastconv']} ({machine['isa']}) and PyTorch {machine['pytorch']}, "
        f"{machine['threads']} threads, {machine['cpu']}",
        highlight=False,
        soft_wrap=True,
    )
    photo = load_photo()
    settings: dict[str, Any] = {"seed": seed, "repeats": 5 if quick else 20, "seconds": 0.2 if quick else 2.0}
    results = run_networks(photo, settings)
    for result in results:
        if not result.agrees:
            found = ", ".join(f"{layout} {value:.1e}" for layout, value in result.difference.items())
            raise click.ClickException(f"demo: the output of {result.name} differs from PyTorch's ({found})")

    console.print(results_table(results))
    console.print(
        "Ratio: the faster of PyTorch's two layouts over fastconv; above 1 fastconv is faster.\n"
        "Difference: the largest between the outputs, relative to PyTorch's NCHW output.",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )
    spread = max(result.spread for result in results)
    if spread > BUSY:
        console.print(
            f"The machine was busy: times vary by {spread:.0%} between quartiles. Better run this again.",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
    draw(results, photo, machine, output)
    poolings = output.with_name(f"{output.stem}-pooling{output.suffix}")
    rows = [*pooling_rows(photo, seed), regions(photo.pixels), deformation(photo.pixels)]
    draw_pooling(rows, machine, poolings)
    if json_file is not None:
        networks = [result.to_json() for result in results]
        json_file.write_text(json.dumps({"machine": machine, "settings": settings, "networks": networks}, indent=1))
    for written in filter(None, (output, poolings, json_file)):
        click.echo(f"Wrote {written}")


def run_networks(photo: Any, settings: dict[str, Any]) -> list[Any]:
    """Runs every network, with a bar on a terminal and a line a network elsewhere; both on stderr."""
    from fastconv.demo.networks import NETWORKS
    from fastconv.demo.run import run_network

    screen = Console(stderr=True)
    results = []
    shown: dict[Any, float] = {}
    with progress_bar(screen) as progress:
        for number, network in enumerate(NETWORKS, 1):
            task = progress.add_task(network.name, total=None)
            progress.refresh()
            if not screen.is_terminal:
                print(f"[{number}/{len(NETWORKS)}] {network.name}", file=sys.stderr, flush=True)

            def on_round(
                done: int, total: int, task: Any = task, update: Callable[..., None] = progress.update
            ) -> None:
                drawn = time.monotonic() // 0.2  # a few times a second
                update(task, completed=done, total=total, refresh=drawn != shown.get(task) or done == total)
                shown[task] = drawn

            results.append(run_network(network, photo, on_round=on_round, **settings))
    return results


def results_table(results: list[Any]) -> Table:
    from fastconv.demo.run import LAYOUTS

    table = Table(box=box.SIMPLE, title="Median milliseconds per image", title_justify="left", title_style="bold")
    table.add_column("network", no_wrap=True)
    table.add_column("layout", no_wrap=True)
    for heading in ("PyTorch", "fastconv", "ratio", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        for layout in LAYOUTS:
            table.add_row(
                result.name if layout == "NCHW" else "",
                layout,
                f"{1e3 * result.median('PyTorch', layout):.2f}",
                f"{1e3 * result.median('fastconv', layout):.2f}",
                coloured(result.ratio(layout)),
                f"{result.difference[layout]:.0e}",
            )
        table.add_section()
    return table


if __name__ == "__main__":
    main()
