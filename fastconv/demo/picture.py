"""Draws the demo's picture: the times as bars, beside what each network makes of the photograph."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from fastconv.demo.run import LAYOUTS, Photo, Result

__all__ = ["COLOURS", "INK", "MUTED", "draw", "supported_suffixes", "write_heading"]

MAPS = 4
INK, MUTED = "#1f2430", "#6b7280"
COLOURS = {
    ("PyTorch", "NCHW"): "#c3c8d1",
    ("PyTorch", "channels_last"): "#9aa1ad",
    ("fastconv", "NCHW"): "#f59e0b",
    ("fastconv", "channels_last"): "#d9480f",
}


def supported_suffixes() -> list[str]:
    return sorted(f".{suffix}" for suffix in Figure().canvas.get_supported_filetypes())


def draw(results: list[Result], photo: Photo, machine: dict[str, Any], path: Path) -> None:
    """One row a network: bars on the left, the photograph and ``MAPS`` feature maps on the right."""
    height = 1.2 + 2.2 * len(results)
    top, bottom = 0.85 / height, 0.3 / height
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.09, wspace=0.02, rect=(0.01, bottom, 0.98, 1 - top - bottom))
    figure = Figure(figsize=(13, height), facecolor="white", layout=layout)
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    write_heading(
        figure,
        "One photograph, whole networks, the same weights",
        f"Median time per image, batch 1, float32, {threads} of {machine['cpu']} "
        f"({machine['isa']}). fastconv {machine['fastconv']}, PyTorch {machine['pytorch']}.",
    )
    grid = figure.add_gridspec(len(results), 2 + MAPS, width_ratios=[3.1] + [1] * (1 + MAPS))
    for row, result in enumerate(results):
        draw_bars(figure.add_subplot(grid[row, 0]), result)
        image = figure.add_subplot(grid[row, 1])
        image.imshow(photo.pixels.permute(1, 2, 0).numpy())
        image.set_title("input", size=9, color=MUTED)
        for column, channel in enumerate(liveliest(result.features, MAPS)):
            axes = figure.add_subplot(grid[row, 2 + column])
            feature = result.features[channel]
            low, high = feature.quantile(0.01).item(), feature.quantile(0.99).item()
            axes.imshow(feature.numpy(), cmap="magma", vmin=low, vmax=high, interpolation="bicubic")
            axes.set_title(f"channel {channel}, {feature.shape[0]}x{feature.shape[1]}", size=9, color=MUTED)
    for axes in figure.axes:
        if axes.images:
            axes.set_axis_off()
    figure.text(
        0.984,
        0.17 / height,
        "Factors: against the faster of PyTorch's two layouts. "
        "Feature maps: an early stage, computed by fastconv with random weights.",
        size=8.5,
        color=MUTED,
        ha="right",
        va="center",
    )
    figure.savefig(path, dpi=130)


def write_heading(figure: Figure, heading: str, text: str) -> None:
    """At the upper edge of a picture, as high on each."""
    height = figure.get_figheight()
    figure.text(0.016, 1 - 0.32 / height, heading, size=17, color=INK, weight="bold", va="center")
    figure.text(0.016, 1 - 0.66 / height, text, size=10, color=MUTED, va="center")


def draw_bars(axes: Axes, result: Result) -> None:
    keys = list(COLOURS)
    times = [1e3 * result.median(*key) for key in keys]
    axes.barh(range(len(keys)), times, color=[COLOURS[key] for key in keys], height=0.74)
    for place, (key, time) in enumerate(zip(keys, times, strict=True)):
        label = f" {time:.1f} ms"
        if key[0] == "fastconv":
            label += f"   {result.ratio(key[1]):.2f}x"
        axes.text(
            time,
            place,
            label,
            va="center",
            size=9.5,
            color=INK,
            weight="bold" if key[0] == "fastconv" else "normal",
        )
    axes.set_yticks(range(len(keys)), [f"{library} {layout}" for library, layout in keys], size=9.5, color=INK)
    axes.set_xlim(0, 1.4 * max(times))
    axes.invert_yaxis()
    worst = max(result.difference[layout] for layout in LAYOUTS)
    axes.set_title(result.name, loc="left", size=12, weight="bold", color=INK)
    axes.set_xlabel(
        f"{result.parameters / 1e6:.1f} M parameters; outputs differ by at most {worst:.0e}, relative",
        loc="left",
        size=8.5,
        color=MUTED,
    )
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color("#d5d8de")
    axes.tick_params(length=0)
    axes.set_xticks([])


def liveliest(features: Tensor, count: int) -> list[int]:
    """The channels in which the most is to be seen: of those that vary, the smooth ones. A channel that
    varies from one position to the next as much as over the whole map shows noise."""
    spread = features.flatten(1).std(1)
    rough = (features[:, 1:] - features[:, :-1]).abs().mean((1, 2)) / spread.clamp_min(1e-6)
    alive = spread > spread.median()
    score = rough.masked_fill(~alive, float("inf"))
    return score.argsort()[:count].tolist()
