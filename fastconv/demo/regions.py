"""What the page of poolings shows of boxes and of offsets: regions of interest, and deformable convolution."""

import math

import torch
from torch import Tensor

from fastconv.deform import deform_conv2d, deform_sample2d
from fastconv.demo.pooling import Image, Row
from fastconv.pool import avg_pool2d
from fastconv.roi import ps_roi_align, ps_roi_pool, roi_align, roi_pool

__all__ = ["deformation", "regions"]

#: The face, in pixels of the photograph: x1, y1, x2, y2.
FACE = (71.0, 43.0, 144.0, 152.0)
BINS = 7


def regions(x: Tensor) -> Row:
    y = avg_pool2d(x, 8)[None]
    boxes = torch.tensor([[0.0, *FACE]])
    places = torch.arange(BINS * BINS)
    bright = torch.where(places % 2 == 0, 1.0, 0.35)
    z = (y[:, :, None] * bright.view(1, 1, -1, 1, 1)).flatten(1, 2)
    x1, y1, x2, y2 = (edge / 8 - 0.5 for edge in FACE)
    panels = (
        Image(
            "y[0]",
            f"A map an eighth as large, a box on it,\nand its {BINS}x{BINS} bins.",
            y[0],
            box=(x1, y1, x2, y2, BINS, BINS),
        ),
        Image(
            f"roi_pool(y, boxes, {BINS}, 1 / 8)[0]",
            "The largest pixel of each bin; box\nand bins are rounded to whole pixels.",
            roi_pool(y, boxes, BINS, 1 / 8)[0],
        ),
        Image(
            f"roi_align(y, boxes, {BINS}, 1 / 8,\n    2, True)[0]",
            "Means of samples between the pixels:\nnothing is rounded.",
            roi_align(y, boxes, BINS, 1 / 8, 2, True)[0],
        ),
        Image(
            f"ps_roi_align(z, boxes, {BINS}, 1 / 8, 2)[0]",
            "Every bin has channels of its own:\nthose of every other bin are dark in z.",
            ps_roi_align(z, boxes, BINS, 1 / 8, 2)[0],
        ),
        Image(
            f"ps_roi_pool(z, boxes, {BINS}, 1 / 8)[0]",
            "The same of whole pixels.",
            ps_roi_pool(z, boxes, BINS, 1 / 8)[0],
        ),
    )
    text = f"y = avg_pool2d(x, 8)[None]; boxes has one, of the face. Whatever its size, {BINS}x{BINS} numbers are left."
    return Row("A box becomes a few numbers", text, panels, {"y": y, "z": z, "boxes": boxes})


def deformation(x: Tensor) -> Row:
    image, size = x[None], x.shape[1]
    one = torch.eye(3).view(3, 3, 1, 1)
    swirl, wave = swirled(size), waved(size)
    spread = outward(size)
    where = torch.tensor([[60, 60], [60, 164], [112, 112], [164, 60], [164, 164]])
    panels = (
        Image(
            "taps",
            "The nine taps of five pixels of a 3x3\nkernel, dilated: a grid wherever it lies.",
            x,
            dots=taps(where),
        ),
        Image(
            "taps, with offsets",
            "The same with offsets that grow with the\ndistance from the middle.",
            x,
            dots=taps(where, spread),
        ),
        Image(
            "deform_sample2d(image, spread, None,\n    3, 1, 12, 12)[0] / 9",
            "The mean of what these nine taps see,\nfor every pixel: sharp only in the middle.",
            deform_sample2d(image, spread, None, 3, 1, 12, 12)[0] / 9,
        ),
        Image(
            "deform_conv2d(image, swirl, one)[0]",
            "One tap, and an offset that turns\naround the middle.",
            deform_conv2d(image, swirl, one)[0],
        ),
        Image(
            "deform_conv2d(image, wave, one)[0]",
            "One tap that looks up and down in waves;\nwhat is outside is black.",
            deform_conv2d(image, wave, one)[0],
        ),
    )
    text = "Each tap of each pixel looks where an offset says; a network learns the offsets. Here they are made up."
    names = {"image": image, "spread": spread, "swirl": swirl, "wave": wave, "one": one}
    return Row("Taps that look elsewhere", text, panels, names)


def grid(size: int) -> tuple[Tensor, Tensor]:
    """How far down and to the right of the middle each pixel is, ``Tensor[size, size]`` both."""
    line = torch.arange(size) - (size - 1) / 2
    down, right = torch.meshgrid(line, line, indexing="ij")
    return down, right


def swirled(size: int) -> Tensor:
    down, right = grid(size)
    angle = 1.5 * (1 - (down.square() + right.square()).sqrt() / (size / 2)).clamp(min=0)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * down + sin * right - down, cos * right - sin * down - right])[None]


def waved(size: int) -> Tensor:
    _, right = grid(size)
    return torch.stack([8 * (right * (2 * math.pi / 56)).sin(), torch.zeros_like(right)])[None]


def outward(size: int) -> Tensor:
    """Offsets of nine taps, 12 pixels apart, that draw them together in the middle and leave them at the edge."""
    down, right = grid(size)
    share = ((down.square() + right.square()).sqrt() / (size / 2)).clamp(max=1) - 1
    offsets = [12 * step * share for r in (-1, 0, 1) for s in (-1, 0, 1) for step in (r, s)]
    return torch.stack(offsets)[None]


def taps(where: Tensor, offset: Tensor | None = None) -> Tensor:
    """Where the nine taps of these pixels look, ``Tensor[9 * K, 2]`` of rows and columns."""
    steps = torch.tensor([[12 * r, 12 * s] for r in (-1, 0, 1) for s in (-1, 0, 1)])
    places = (where[:, None] + steps).float()
    if offset is not None:
        at = offset[0].unflatten(0, (9, 2))[:, :, where[:, 0], where[:, 1]]  # [9, 2, K]
        places = places + at.permute(2, 0, 1)
    return places.flatten(0, 1)
