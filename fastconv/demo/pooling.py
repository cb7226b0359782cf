"""What the page of poolings shows: every pooling of fastconv on the photograph, as numbers; draws nothing.

The title of a panel is the call whose result it shows, in Python: the tests evaluate it. A sentence under the panel
says what there is to see.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastconv.bilinear_pool import bilinear_pool2d, compact_bilinear_pool2d
from fastconv.conv import conv2d
from fastconv.demo.run import Photo
from fastconv.lp_pool import lp_pool2d
from fastconv.pool import (
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    avg_pool1d,
    avg_pool2d,
    global_avg_pool2d,
    global_max_pool2d,
    max_pool1d,
    max_pool2d,
)
from fastconv.spatial_pyramid_pool import spatial_pyramid_pool2d
from fastconv.stochastic_pool import stochastic_pool2d
from fastconv.unpool import avg_unpool2d, max_unpool1d, max_unpool2d

__all__ = ["Curve", "Gradient", "Heat", "Image", "Matrix", "Panel", "Row", "Scatter", "Sketch", "pooling_rows"]

#: Draws that are averaged.
DRAWS = 64
#: Levels of the pyramid.
LEVELS = (1, 2, 4, 8)
#: The row of the photograph that is pooled as a line: it crosses the glasses.
LINE = 90
#: Directions of the edges that are pooled bilinearly.
DIRECTIONS = 16
#: Length of the sketch of their products.
SKETCH = 64


@dataclass(frozen=True)
class Panel:
    """One picture of the page."""

    title: str
    caption: str
    values: Tensor


@dataclass(frozen=True)
class Image(Panel):
    """Colours between 0 and 1, ``Tensor[3, H, W]``."""

    #: positions to mark on it, ``Tensor[K, 2]`` of rows and columns
    dots: Tensor | None = None
    #: rows and columns of the windows whose borders are drawn over it
    grid: tuple[int, int] | None = None
    #: a box to mark on it, x1, y1, x2, y2 in pixels, and the rows and columns of its bins
    box: tuple[float, float, float, float, int, int] | None = None


@dataclass(frozen=True)
class Heat(Panel):
    """Numbers that are not negative, dark where they are small, ``Tensor[H, W]``."""

    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Gradient(Panel):
    """The gradient of an input, between -1 and 1, ``Tensor[H, W]``."""

    grid: tuple[int, int]


@dataclass(frozen=True)
class Matrix(Panel):
    """A few numbers that are not negative, ``Tensor[A, A]``."""

    #: of the rows, which are those of the columns, too
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Curve(Panel):
    """What pooling makes of a line of pixels: ``Tensor[Q]``, a number for each window, or ``Tensor[W]``, for each
    pixel."""

    #: the pixels, ``Tensor[W]``
    line: Tensor


@dataclass(frozen=True)
class Sketch(Panel):
    """A list of numbers of either sign, ``Tensor[D]``."""


@dataclass(frozen=True)
class Scatter(Panel):
    """Numbers, ``Tensor[K]``, against what they should be."""

    expected: Tensor


@dataclass(frozen=True)
class Row:
    """Panels about one thing."""

    heading: str
    text: str
    panels: tuple[Panel, ...]
    #: what the titles call their tensors
    names: dict[str, Tensor]


def pooling_rows(photo: Photo, seed: int = 0) -> list[Row]:
    """The whole page, of a photograph of 224x224 pixels; the seed gives what is left to chance."""
    x = photo.pixels
    grey = x.mean(0, keepdim=True)
    generator = torch.Generator().manual_seed(seed)
    return [
        windows(x),
        chance(x, grey, generator),
        sizes(x),
        pyramid(x),
        ways_back(x, grey),
        gradients(grey, generator),
        lines(x, grey),
        products(x, grey),
    ]


def windows(x: Tensor) -> Row:
    panels = (
        Image("x", "The photograph.", x),
        Image(
            "max_pool2d(x, 8)",
            "The largest of each 8x8 window:\nbright details survive and grow.",
            values_of(max_pool2d(x, 8)),
        ),
        Image("avg_pool2d(x, 8)", "The mean: what is fine is blurred,\nthe brightness stays.", avg_pool2d(x, 8)),
        Image(
            "lp_pool2d(x, 4, 8) / 64 ** 0.25",
            "The mean of fourth powers, and its root:\nbetween the mean and the maximum.",
            lp_pool2d(x, 4, 8) / 64**0.25,
        ),
        Image(
            "max_pool2d(x, 13, 1, 6)",
            "13x13 windows around every pixel:\nas large as before; spots are squares.",
            values_of(max_pool2d(x, 13, 1, 6)),
        ),
    )
    text = "x is the photograph, 3 channels of 224x224. Of every window of every channel one number is left."
    return Row("A window becomes one number", text, panels, {"x": x})


def chance(x: Tensor, grey: Tensor, generator: torch.Generator) -> Row:
    draws = torch.stack([values_of(stochastic_pool2d(x, 8, generator=generator)) for _ in range(DRAWS)])
    _, drawn = stochastic_pool2d(grey, 16, generator=generator, return_indices=True)
    panels = (
        Image("stochastic_pool2d(x, 8)", "A draw; every channel has its own,\nhence the colours.", draws[0]),
        Image("stochastic_pool2d(x, 8)", "Another draw: a network in training\nnever sees the same twice.", draws[1]),
        Image("draws.mean(0)", f"The mean of {DRAWS} such draws\ncomes close to ...", draws.mean(0)),
        Image(
            "stochastic_pool2d(x, 8, training=False)",
            "... the weighted mean that is taken\nonce the network is trained.",
            values_of(stochastic_pool2d(x, 8, training=False)),
        ),
        Image(
            "stochastic_pool2d(grey, 16,\n    return_indices=True)[1]",
            "Where the elements drawn from 16x16\nwindows of the brightness lie.",
            x,
            dots=positions(drawn, x.shape[2]),
        ),
    )
    text = (
        "Stochastic pooling draws one element of each window, the brighter the likelier. "
        "grey is the mean of the channels."
    )
    return Row("Left to chance", text, panels, {"x": x, "grey": grey, "draws": draws})


def sizes(x: Tensor) -> Row:
    means = global_avg_pool2d(x)
    brightest, where = global_max_pool2d(x, return_indices=True)
    panels = (
        Image("adaptive_avg_pool2d(x, 14)", "14x14 windows, and the mean of each.", adaptive_avg_pool2d(x, 14)),
        Image("adaptive_max_pool2d(x, 14)", "Their maxima.", values_of(adaptive_max_pool2d(x, 14))),
        Image(
            "adaptive_avg_pool2d(x, (None, 5))",
            "None keeps the rows; the 224 columns\nmake 5 windows of 45 or 46.",
            adaptive_avg_pool2d(x, (None, 5)),
        ),
        Image("global_avg_pool2d(x)", f"The mean of red, green and blue:\n{numbers(means)}.", means),
        Image(
            "global_max_pool2d(x,\n    return_indices=True)[1]",
            f"The largest of red, green and blue:\n{numbers(brightest)}, and where it is.",
            x,
            dots=positions(where, x.shape[2]),
        ),
    )
    text = "Adaptive windows share the image out, whatever its size; global pooling has one window, the image."
    return Row("As many numbers as are asked for", text, panels, {"x": x})


def pyramid(x: Tensor) -> Row:
    y = spatial_pyramid_pool2d(x, LEVELS, "avg")
    captions = (
        "The mean of the whole image, ...",
        "... of its quarters, ...",
        "... of quarters of quarters, ...",
        "... and once more: every window is cut\ninto four by the next level.",
    )
    panels, start = [], 0
    for level, caption in zip(LEVELS, captions, strict=True):
        end = start + 3 * level * level
        panels.append(Image(f"y[{start}:{end}]", caption, y[start:end].view(3, level, level), grid=(level, level)))
        start = end
    # Every position a pixel, row by row; the end of the last row stays white.
    colours = torch.cat([panel.values.flatten(1) for panel in panels], 1)
    side = math.ceil(colours.shape[1] ** 0.5)
    listed = torch.ones(3, side * side)
    listed[:, : colours.shape[1]] = colours
    caption = f"The list, row by row: {len(y)} numbers\nfor an image of any size."
    panels.append(Image("y", caption, listed.view(3, side, side), grid=(side, side)))
    text = f"y = spatial_pyramid_pool2d(x, {LEVELS}, 'avg'), its levels placed back."
    return Row("A pyramid of grids", text, tuple(panels), {"y": y})


def ways_back(x: Tensor, grey: Tensor) -> Row:
    _, winners = max_pool2d(grey, 16, return_indices=True)
    y, indices = max_pool2d(x, 4, return_indices=True)
    means = avg_pool2d(x, 8)
    panels = (
        Image(
            "max_pool2d(grey, 16,\n    return_indices=True)[1]",
            "The winners: where the brightest pixel\nof each 16x16 window lies.",
            x,
            dots=positions(winners, x.shape[2]),
        ),
        Image(
            "max_unpool2d(y, indices, 4)",
            "Every maximum at its place again,\n1 of 16 in a channel; zeros elsewhere.",
            max_unpool2d(y, indices, 4),
        ),
        Image("avg_unpool2d(means, 8)", "Every mean all over its window.", avg_unpool2d(means, 8)),
        Image(
            "avg_unpool2d(\n    avg_pool2d(x, 16, 4), 16, 4)",
            "16x16 windows at every fourth pixel:\nthe mean of those that overlap is smooth.",
            avg_unpool2d(avg_pool2d(x, 16, 4), 16, 4),
        ),
        Heat(
            "(x - avg_unpool2d(means, 8)\n    ).abs().mean(0)",
            "What the means have lost:\nedges and whatever is small.",
            (x - avg_unpool2d(means, 8)).abs().mean(0),
        ),
    )
    text = "y, indices = max_pool2d(x, 4, return_indices=True) and means = avg_pool2d(x, 8), unpooled to full size."
    names = {"x": x, "grey": grey, "y": y, "indices": indices, "means": means}
    return Row("Winners, and the way back", text, panels, names)


def gradients(grey: Tensor, generator: torch.Generator) -> Row:
    # The middle of the face: few enough pixels for each to be seen.
    part = grey[:, 56:120, 74:138].contiguous()

    def gradient(pool: Callable[[Tensor], Any]) -> Tensor:
        leaf = part.clone().requires_grad_()
        return torch.autograd.grad(pool(leaf).sum(), leaf)[0][0]

    panels = (
        Image("part", "The piece: 64x64 pixels, 8x8 windows.", part.expand(3, -1, -1), grid=(8, 8)),
        Gradient(
            "max_pool2d(part, 8)", "All of it to the winner.", gradient(lambda part: max_pool2d(part, 8)), grid=(8, 8)
        ),
        Gradient(
            "avg_pool2d(part, 8)", "1/64 to every pixel.", gradient(lambda part: avg_pool2d(part, 8)), grid=(8, 8)
        ),
        Gradient(
            "stochastic_pool2d(part, 8)",
            "All of it to the pixel that was drawn.",
            gradient(lambda part: stochastic_pool2d(part, 8, generator=generator)),
            grid=(8, 8),
        ),
        Gradient(
            "stochastic_pool2d(part, 8, training=False)",
            "More to bright pixels; below zero, blue,\nwhere light would lower the mean.",
            gradient(lambda part: stochastic_pool2d(part, 8, training=False)),
            grid=(8, 8),
        ),
    )
    text = "part is a piece of the brightness; each window sends a gradient of 1 back to where its value came from."
    return Row("Where the gradient goes", text, panels, {"part": part})


def lines(x: Tensor, grey: Tensor) -> Row:
    line = grey[:, LINE]
    y, indices = max_pool1d(line, 8, return_indices=True)
    columns = torch.arange(0, line.shape[1], 8)
    panels = (
        Image(
            f"grey[:, {LINE}]",
            "The line, dotted where its windows begin.",
            x,
            dots=torch.stack([torch.full_like(columns, LINE), columns], 1),
        ),
        Curve("max_pool1d(line, 8)", "The upper edge of the line: peaks stay.", y[0], line[0]),
        Curve("avg_pool1d(line, 8)", "Its course: peaks are evened out.", avg_pool1d(line, 8)[0], line[0]),
        Curve(
            "max_unpool1d(y, indices, 8)",
            "The peaks at their places again, and zeros between.",
            max_unpool1d(y, indices, 8)[0],
            line[0],
        ),
    )
    text = f"line is row {LINE} of the brightness, grey; y, indices = max_pool1d(line, 8, return_indices=True)."
    return Row("One line of the photograph", text, panels, {"grey": grey, "line": line, "y": y, "indices": indices})


def products(x: Tensor, grey: Tensor) -> Row:
    edges = conv2d(grey, edge_filters(DIRECTIONS), padding="same").relu()
    tiles = torch.stack([tile for band in edges.chunk(4, 1) for tile in band.chunk(4, 2)])
    exact = normalize(bilinear_pool2d(tiles))
    sketched = normalize(compact_bilinear_pool2d(tiles, output_dim=SKETCH))
    first, second = torch.triu_indices(len(tiles), len(tiles), 1)
    panels = (
        Matrix(
            "bilinear_pool2d(x) / 224 ** 2",
            "Mean products of red, green and blue.",
            (bilinear_pool2d(x) / 224**2).view(3, 3),
            names=("red", "green", "blue"),
        ),
        Heat(
            "edges",
            f"{DIRECTIONS} channels: edges of the brightness,\nby the direction they face.",
            torch.cat([torch.cat(list(quarter), 1) for quarter in edges.chunk(4)]),
            grid=(4, 4),
        ),
        Matrix(
            "bilinear_pool2d(edges)",
            f"{DIRECTIONS}x{DIRECTIONS} products: edges that face nearly\nthe same way occur together.",
            bilinear_pool2d(edges).view(DIRECTIONS, DIRECTIONS),
        ),
        Sketch(
            f"compact_bilinear_pool2d(\n    edges, output_dim={SKETCH})",
            f"The same {DIRECTIONS**2} products, added up\nwith signs in a sketch of {SKETCH} numbers.",
            compact_bilinear_pool2d(edges, output_dim=SKETCH),
        ),
        Scatter(
            "bilinear_pool2d(tiles) and\n    its sketch, compared",
            "How alike any two of 16 tiles are:\nexactly to the right, sketched upwards.",
            (sketched[first] * sketched[second]).sum(1),
            (exact[first] * exact[second]).sum(1),
        ),
    )
    text = "Bilinear pooling asks which channels are large at the same places, and forgets the places."
    return Row("Products of channels", text, panels, {"x": x, "edges": edges})


def edge_filters(directions: int, size: int = 7) -> Tensor:
    """Derivatives of a bell along as many directions, ``Tensor[directions, 1, size, size]``."""
    offsets = torch.arange(size) - (size - 1) / 2
    down, right = offsets[:, None], offsets[None]
    bell = (-(down**2 + right**2) / (2 * (size / 5) ** 2)).exp()
    angles = [2 * math.pi * direction / directions for direction in range(directions)]
    return torch.stack([bell * (math.sin(angle) * down + math.cos(angle) * right) for angle in angles])[:, None]


def values_of(pooled: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """What was pooled without indices, as the type it has."""
    assert isinstance(pooled, Tensor)
    return pooled


def positions(indices: Tensor, width: int) -> Tensor:
    """Flat indices as rows and columns, ``Tensor[K, 2]``."""
    flat = indices.flatten()
    return torch.stack([flat // width, flat % width], 1)


def numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.2f}" for value in values.flatten().tolist())
