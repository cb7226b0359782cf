"""Draws the page of poolings, boxes and offsets: a row of panels about each thing they do, with titles and captions."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fastconv.demo.picture import COLOURS, INK, MUTED, write_heading
from fastconv.demo.pooling import Curve, Gradient, Heat, Image, Matrix, Panel, Row, Scatter, Sketch

__all__ = ["draw_pooling", "page"]

GREY, AMBER, ORANGE = (
    COLOURS[key] for key in (("PyTorch", "channels_last"), ("fastconv", "NCHW"), ("fastconv", "channels_last"))
)
PALE, BLUE = "#d5d8de", "#1d4ed8"
SIGNED = LinearSegmentedColormap.from_list("signed", [BLUE, "white", ORANGE])
WIDTH, ROW, HEAD, FOOT = 13.0, 3.6, 1.0, 0.1


def draw_pooling(rows: list[Row], machine: dict[str, Any], path: Path) -> None:
    """Writes the page to ``path``, in the format that its suffix says."""
    page(rows, machine).savefig(path, dpi=130)


def page(rows: list[Row], machine: dict[str, Any]) -> Figure:
    """Every row with its heading; its panels have the same height and fill the width."""
    height = HEAD + ROW * len(rows) + FOOT
    rect = (0.012, FOOT / height, 0.976, 1 - (HEAD + FOOT) / height)
    layout = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.05, wspace=0.02, rect=rect)
    figure = Figure(figsize=(WIDTH, height), facecolor="white", layout=layout)
    write_heading(
        figure,
        "Every pooling, boxes and offsets, on one photograph",
        f"Computed by fastconv {machine['fastconv']}. The title of a picture is the call that made it.",
    )
    # Always an array, also of one.
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for part, row in zip(parts, rows, strict=True):
        draw_row(part, row)
    return figure


def draw_row(part: SubFigure, row: Row) -> None:
    heading = part.suptitle(row.heading, x=0.0035, ha="left", size=12, weight="bold", color=INK)
    curves = sum(isinstance(panel, Curve) for panel in row.panels)
    wide = (5 - len(row.panels) + curves) / max(curves, 1)
    widths = [wide if isinstance(panel, Curve) else 1 for panel in row.panels]
    grid = part.add_gridspec(1, len(row.panels), width_ratios=widths)
    for column, (panel, width) in enumerate(zip(row.panels, widths, strict=True)):
        axes = part.add_subplot(grid[column])
        axes.set_box_aspect(1 / width)
        axes.set_anchor("N")
        draw_panel(axes, panel)
        # Two lines each, for the rows to be alike.
        axes.set_title(panel.title if "\n" in panel.title else f"\n{panel.title}", loc="left", size=8.5, color=INK)
        axes.set_xlabel(
            panel.caption if "\n" in panel.caption else f"{panel.caption}\n", loc="left", size=8.5, color=MUTED
        )
        axes.tick_params(which="both", length=0, pad=0)
        if column == 0:
            text = axes.annotate(
                row.text,
                (1, 0),
                xycoords=heading,
                xytext=(10, 0.6),
                textcoords="offset points",
                va="bottom",
                size=9.5,
                color=MUTED,
            )
            text.set_in_layout(False)


def draw_panel(axes: Axes, panel: Panel) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    match panel:
        case Image():
            draw_image(axes, panel)
        case Heat():
            axes.imshow(panel.values.numpy(), cmap="magma", vmin=0, vmax=panel.values.quantile(0.99).item())
            if panel.grid is not None:
                draw_grid(axes, *panel.grid, "white")
        case Gradient():
            # Cube roots, for the pale ones to be seen beside a whole one.
            roots = panel.values.sign() * panel.values.abs() ** (1 / 3)
            axes.imshow(roots.numpy(), cmap=SIGNED, vmin=-1, vmax=1)
            draw_grid(axes, *panel.grid, GREY)
            axes.spines[:].set(visible=True, color=GREY, linewidth=0.5)
        case Matrix():
            draw_matrix(axes, panel)
        case Curve():
            draw_curve(axes, panel)
        case Sketch():
            colours = [ORANGE if value > 0 else BLUE for value in panel.values.tolist()]
            axes.bar(range(len(panel.values)), panel.values.tolist(), width=0.8, color=colours)
            axes.axhline(0, color=PALE, linewidth=0.8)
        case Scatter():
            draw_scatter(axes, panel)


def draw_image(axes: Axes, panel: Image) -> None:
    # Few windows are squares of one colour; a photograph is smooth.
    interpolation = "nearest" if min(panel.values.shape[1:]) < 100 else "antialiased"
    axes.imshow(panel.values.clamp(0, 1).permute(1, 2, 0).numpy(), aspect="auto", interpolation=interpolation)
    if panel.grid is not None:
        draw_grid(axes, *panel.grid, "white")
    if panel.box is not None:
        draw_box(axes, *panel.box)
    if panel.dots is not None:
        down, right = panel.dots.unbind(1)
        size = 9 if len(panel.dots) > 20 else 45
        axes.scatter(right.tolist(), down.tolist(), s=size, color=AMBER, edgecolors=INK, linewidths=0.4)


def draw_grid(axes: Axes, rows: int, columns: int, colour: str) -> None:
    """The borders between as many windows."""
    right, left = axes.get_xlim()[::-1]
    bottom, top = axes.get_ylim()
    axes.set_xticks([left + (right - left) * k / columns for k in range(1, columns)], minor=True)
    axes.set_yticks([top + (bottom - top) * k / rows for k in range(1, rows)], minor=True)
    axes.grid(which="minor", color=colour, linewidth=0.5)


def draw_box(axes: Axes, x1: float, y1: float, x2: float, y2: float, rows: int, columns: int) -> None:
    for k in range(columns + 1):
        x = x1 + (x2 - x1) * k / columns
        axes.plot((x, x), (y1, y2), color=AMBER, linewidth=1.5 if k in (0, columns) else 0.6)
    for k in range(rows + 1):
        y = y1 + (y2 - y1) * k / rows
        axes.plot((x1, x2), (y, y), color=AMBER, linewidth=1.5 if k in (0, rows) else 0.6)


def draw_matrix(axes: Axes, panel: Matrix) -> None:
    values = panel.values
    axes.imshow(values.numpy(), cmap="magma", vmin=0)
    if panel.names:
        bright = values.max().item() / 2
        for down, line in enumerate(values.tolist()):
            for right, value in enumerate(line):
                label = f"{panel.names[down]} x {panel.names[right]}\n{value:.3f}"
                colour = INK if value > bright else "white"
                axes.text(right, down, label, size=7.5, color=colour, ha="center", va="center")


def draw_curve(axes: Axes, panel: Curve) -> None:
    pixels = len(panel.line)
    axes.fill_between(range(pixels), panel.line.tolist(), color="#eef0f3", step="mid")
    axes.step(range(pixels), panel.line.tolist(), where="mid", color=GREY, linewidth=1)
    if len(panel.values) < pixels:
        window = pixels / len(panel.values)
        edges = [window * k - 0.5 for k in range(len(panel.values) + 1)]
        axes.stairs(panel.values.tolist(), edges, baseline=None, color=ORANGE, linewidth=1.8)
    else:
        places = panel.values.nonzero().flatten().tolist()
        heights = panel.values[places].tolist()
        axes.vlines(places, 0, heights, color=ORANGE, linewidth=1)
        axes.plot(places, heights, "o", color=ORANGE, markersize=3.5)
    axes.axhline(0, color=PALE, linewidth=0.8)
    axes.set_xlim(-0.5, pixels - 0.5)
    axes.set_ylim(0, 1.03)


def draw_scatter(axes: Axes, panel: Scatter) -> None:
    points = panel.expected.tolist() + panel.values.tolist()
    ends = (min(0.0, *points), 1.05 * max(points))
    axes.plot(ends, ends, color=GREY, linewidth=1)
    axes.scatter(panel.expected.tolist(), panel.values.tolist(), s=9, color=ORANGE, alpha=0.7, linewidths=0)
    axes.set_xlim(ends)
    axes.set_ylim(ends)
    axes.spines[["left", "bottom"]].set_visible(True)
    axes.spines[:].set_color(PALE)
