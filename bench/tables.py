"""Rows as tables for the terminal: by family, by class, and the one line that no reader should miss."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from fastconv._console import coloured

from .cases import FAMILIES, FLOOR, MOST_OF_PLAIN, target
from .data import LAYOUTS
from .measure import Row, Run, by_run, means, smallest

COLUMNS = ("layout", "PyTorch", "fastconv", "spread", "GFLOP/s", "GB/s", "limit", "ratio")
#: What a terminal narrower than WIDE leaves out.
LEFT_OUT, WIDE = ("spread", "GFLOP/s", "GB/s"), 112
#: Spread of the times from which on the reader is warned.
BUSY = 0.3
LEGEND = (
    "Ratio: the faster of PyTorch's two layouts over fastconv; above 1 fastconv is faster. Means are geometric. Where "
    "PyTorch alone lacks the operator (deform, roi_...), PyTorch means torchvision; of deform_sample, which "
    "both lack, the formulation of DCNv3's authors by PyTorch's grid_sample.\n"
    "Spread: between the quartiles of fastconv's times. GFLOP/s: of fastconv, by the definition. "
    "GB/s: of what must be read and written, each once.\n"
    "Limit: what bounds the layer, and the share of it that fastconv reaches; of two shares, the second leaves out "
    "products with padding."
)


def run_name(run: Run) -> str:
    direction, dtype, threads = run
    what = {"fwd": "Forward", "bwd": "Backward", "train": "Forward and backward"}[direction]
    return f"{what}, {dtype}, {threads} thread{'s' if threads > 1 else ''}"


def new_table(title: str, first: str, headings: Sequence[str]) -> Table:
    """With numbers in all but the first column, of which alone a narrow terminal breaks the lines."""
    table = Table(box=box.SIMPLE, title=title, title_justify="left", title_style="bold")
    table.add_column(first, min_width=12)
    for heading in headings:
        justify = "left" if heading == "layout" else "right"
        width = len("channels_last") if heading == "layout" else len(heading)
        table.add_column(heading, justify=justify, no_wrap=True, min_width=width)  # type: ignore[arg-type]
    return table


def run_table(run: Run, rows: Sequence[Row], width: int) -> Table:
    """The rows of one run, grouped by family, each closed by the geometric mean of its ratios."""
    columns = [name for name in COLUMNS if width >= WIDE or name not in LEFT_OUT]
    table = new_table(f"{run_name(run)}, median milliseconds", "case", columns)
    of_family = {mean["family"]: mean for mean in means(rows, "family")}
    for family in FAMILIES:
        for row in rows:
            if row["family"] != family:
                continue
            title = f"{row['id']} {row['text']}"
            if row["status"] != "timed":
                table.add_row(title, f"[{'dim' if row['status'] == 'skipped' else 'red'}]{row['status']}[/]")
                continue
            for name, layout in titled(title, row["ratio"]):
                found = cells(row, layout)
                table.add_row(name, *(found[column] for column in columns))
        if family in of_family:
            mean = of_family[family]
            for name, layout in titled(f"{family}, mean of {mean['cases']}", mean["mean"]):
                found = {"layout": layout, "ratio": coloured(mean["mean"][layout])}
                table.add_row(name, *(found.get(column, "") for column in columns), style="bold")
        table.add_section()
    return table


def cells(row: Row, layout: str) -> dict[str, str]:
    """What stands in each of COLUMNS."""
    pytorch, ours = (row["seconds"][f"{library} {layout}"] for library in ("PyTorch", "fastconv"))
    return {
        "layout": layout,
        "PyTorch": f"{1e3 * pytorch['median']:.3f}",
        "fastconv": f"{1e3 * ours['median']:.3f}",
        "spread": f"{spread(ours):.0%}",
        "GFLOP/s": f"{row['gflops'][layout]:.0f}",
        "GB/s": f"{row['gbps'][layout]:.1f}",
        "limit": limit_text(row["bound"], *row["limit"][layout]),
        "ratio": coloured(row["ratio"][layout]),
    }


def spread(timing: dict[str, Any]) -> float:
    """Between the quartiles, in medians."""
    return (timing["high"] - timing["low"]) / timing["median"]


def titled(title: str, layouts: dict[str, Any]) -> list[tuple[str, str]]:
    """Each layout with the title, which stands beside the first alone."""
    return [(title if place == 0 else "", layout) for place, layout in enumerate(layouts)]


def limit_text(bound: str, whole: float, live: float) -> str:
    """
    >>> limit_text("compute", 0.9, 0.5), limit_text("memory", 0.71, 0.71)
    ('compute 90/50%', 'memory 71%')
    """
    both = dict.fromkeys(f"{share:.0%}".removesuffix("%") for share in (whole, live))
    return f"{bound} {'/'.join(both)}%"


def class_table(rows: Sequence[Row]) -> Table:
    """Geometric means by class, for every run, against what is aimed at."""
    table = new_table("Means by class", "class", ("cases", *LAYOUTS, "least", "target"))
    for run, members in by_run(rows).items():
        table.add_row(run_name(run), style="bold")
        for mean in means(members, "class"):
            aim = target(mean["class"], *run[:2])
            reached = {layout: coloured(ratio, aim or FLOOR) for layout, ratio in mean["mean"].items()}
            table.add_row(
                f"  {mean['class']}",
                str(mean["cases"]),
                *(reached.get(layout, "") for layout in LAYOUTS),
                coloured(mean["least"], FLOOR),
                f"{aim:.2f}" if aim else "",
            )
        table.add_section()
    return table


def verdict(rows: Sequence[Row]) -> str:
    """The smallest ratio, how many are below the floor, and what is not in the numbers."""
    lines = []
    least = smallest(rows)
    if least is not None:
        ratio, row, layout = least
        run = run_name((row["direction"], row["dtype"], row["threads"]))
        all_ratios = [each for row in rows for each in row.get("ratio", {}).values()]
        below = sum(each < FLOOR for each in all_ratios)
        lines.append(
            f"Smallest ratio: {coloured(ratio, FLOOR)} ({row['id']} {escape(row['text'])}, {layout}; {run}). "
            f"Below {FLOOR}: {below} of {len(all_ratios)}."
        )
    timed = [row for row in rows if row["status"] == "timed"]
    deforming = [(times, row, layout) for row in timed for layout, times in row.get("plain", {}).items()]
    if deforming:
        times, row, layout = max(deforming, key=lambda each: each[0])
        run = run_name((row["direction"], row["dtype"], row["threads"]))
        lines.append(
            f"Deformable convolution takes up to {times:.2f} times PyTorch's plain convolution of the same shape "
            f"({row['id']} {escape(row['text'])}, {layout}; {run}); {MOST_OF_PLAIN} is aimed at."
        )
    busy = sum(max(map(spread, row["seconds"].values())) > BUSY for row in timed)
    if busy:
        lines.append(
            f"Times of {busy} of {len(timed)} rows vary by over {BUSY:.0%} between quartiles: the machine was busy. "
            "Better run this again."
        )
    part = [row for row in rows if row.get("checked", 1) < 1]
    if part:
        smallest_share = min(row["checked"] for row in part)
        lines.append(
            f"{len(part)} of {len(rows)} rows were compared with float64 in a share of their channels, "
            f"spread over all; the smallest share is {smallest_share:.1%}."
        )
    for row in rows:
        if row["status"] != "timed":
            run = run_name((row["direction"], row["dtype"], row["threads"]))
            lines.append(f"{row['id']}, {run}: {row['status']}, {escape(row['reason'])}")
    return "\n".join(lines)
