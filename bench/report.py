"""Turns files of `fastconv bench --json` into one page with plots. Needs matplotlib and jinja2, the extra `bench`."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure
from rich.text import Text

from .cases import FLOOR, target
from .data import LAYOUTS
from .machine import headline
from .measure import Row, Run, by_run, means
from .tables import limit_text, run_name, verdict

COLOURS = {"contiguous": "#f59e0b", "channels_last": "#c2410c", "PyTorch": "#9aa1ad"}


def page(runs: dict[str, dict[str, Any]]) -> tuple[str, dict[str, bytes]]:
    """The page and its plots as PNG, by name, of what was read from files, by their names. Each is shown for
    itself; those after the first are compared with the first as well."""
    images: dict[str, bytes] = {}
    sections = []
    (first_name, first), *others = runs.items()
    for place, (name, found) in enumerate(runs.items()):
        title = headline(found["machine"], found["settings"]["threads"])
        sections.append(section(f"run{place}", name, title, found["rows"], found, images))
    for place, (name, found) in enumerate(others, 1):
        rows = compared(first["rows"], found["rows"])
        title = f"Ratio: time of fastconv in {first_name} over its time in {name}; above 1 the latter is faster"
        sections.append(section(f"compared{place}", f"{name} against {first_name}", title, rows, None, images))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text())
    return template.render(sections=sections, layouts=list(LAYOUTS), floor=FLOOR, limit_text=limit_text), images


def section(
    key: str, name: str, title: str, rows: Sequence[Row], found: dict[str, Any] | None, images: dict[str, bytes]
) -> dict[str, Any]:
    """What the template shows of one file, or (``found`` is None) of a comparison; its plots go into ``images``."""
    parts = []
    for run, members in by_run(rows).items():
        figures: dict[str, bytes] = {}
        timed = [row for row in members if row["status"] == "timed"]
        if timed:
            figures["ratio"] = png(speedups(timed, run))
            if found is not None:
                figures["roofline"] = png(roofline_plot(timed, run, found))
        images |= {"-".join(map(str, (key, *run, kind))): data for kind, data in figures.items()}
        plots = [base64.b64encode(data).decode() for data in figures.values()]
        classes = [{**mean, "target": found and target(mean["class"], *run[:2])} for mean in means(members, "class")]
        parts.append({"name": run_name(run), "rows": members, "classes": classes, "plots": plots})
    said = Text.from_markup(verdict(rows)).plain.splitlines()
    return {"name": name, "title": title, "said": said, "parts": parts}


def compared(before: Sequence[Row], after: Sequence[Row]) -> list[Row]:
    """The rows that both have timed, with the ratio of fastconv's own times."""

    def key(row: Row) -> tuple:
        return row["id"], row["direction"], row["dtype"], row["threads"], row.get("batch")

    old = {key(row): row for row in before if row["status"] == "timed"}
    rows = []
    for row in after:
        if row["status"] == "timed" and key(row) in old:
            times = row["seconds"], old[key(row)]["seconds"]
            names = {layout: f"fastconv {layout}" for layout in LAYOUTS}
            ratio = {
                layout: times[1][name]["median"] / times[0][name]["median"]
                for layout, name in names.items()
                if name in times[0] and name in times[1]
            }
            if ratio:
                rows.append({**row, "ratio": ratio})
    return rows


def speedups(rows: Sequence[Row], run: Run) -> Figure:
    """A bar for each case and layout, from 1 upwards or downwards."""
    figure = Figure(figsize=(max(6.0, 2 + 0.2 * len(rows)), 4), layout="constrained")
    axes = figure.add_subplot()
    layouts = list(rows[0]["ratio"])
    for number, layout in enumerate(layouts):
        places = [place + 0.4 * (number - (len(layouts) - 1) / 2) for place in range(len(rows))]
        heights = [row["ratio"][layout] - 1 for row in rows]
        axes.bar(places, heights, width=0.4, bottom=1, label=layout, color=COLOURS[layout])
    axes.axhline(1, color="black", linewidth=0.8)
    axes.axhline(FLOOR, color="black", linewidth=0.5, linestyle=":")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(range(len(rows)), [row["id"] for row in rows], rotation=90, size=8)
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.set_ylabel("ratio")
    axes.set_title(run_name(run), loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2, loc="upper right", bbox_to_anchor=(1, 1.12))
    return figure


def roofline_plot(rows: Sequence[Row], run: Run, found: dict[str, Any]) -> Figure:
    """Operations a second over operations a byte, below what the machine allows; without products with padding."""
    _, dtype, threads = run
    peak, copies = found["peak"][dtype][str(threads)], found["bandwidth"][str(threads)]
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    flops = [row["flops"] * row["live"] for row in rows]
    intensity = [each / row["bytes"] for each, row in zip(flops, rows, strict=True)]
    for name, bandwidth, style in (("cache", max(copies.values()), ":"), ("memory", min(copies.values()), "-")):
        ends = [min(intensity) / 2, peak / bandwidth, max(*intensity, peak / bandwidth) * 2]
        label = f"{bandwidth / 1e9:.0f} GB/s ({name}), {peak / 1e9:.0f} GFLOP/s"
        axes.plot(ends, [min(peak, end * bandwidth) / 1e9 for end in ends], "k", linestyle=style, label=label)
    for layout in ("PyTorch", *rows[0]["ratio"]):
        names = [f"PyTorch {each}" for each in LAYOUTS] if layout == "PyTorch" else [f"fastconv {layout}"]
        fastest = [min(row["seconds"][name]["median"] for name in names) for row in rows]
        speed = [each / seconds / 1e9 for each, seconds in zip(flops, fastest, strict=True)]
        label = "PyTorch, the faster layout" if layout == "PyTorch" else f"fastconv {layout}"
        axes.scatter(intensity, speed, s=14, color=COLOURS[layout], label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP / byte")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(run_name(run), loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
