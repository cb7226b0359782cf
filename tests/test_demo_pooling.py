"""The page of poolings: it forgets none, its titles tell the truth, PyTorch agrees, and no text lies on another.

The title of a panel is a call. It is evaluated here, with fastconv's functions and with PyTorch's, and compared with
what the panel shows.
"""

import itertools
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from matplotlib.text import Text
from PIL import Image as Picture

import fastconv
from fastconv.demo.pooling import DRAWS, Gradient, Image, pooling_rows
from fastconv.demo.pooling_picture import draw_pooling, page
from fastconv.demo.regions import deformation, regions
from fastconv.demo.run import load_photo

POOLINGS = {
    name: getattr(fastconv, name)
    for name in fastconv.__all__
    if any(word in name for word in ("pool", "roi_", "deform_")) and name != "multi_scale_roi_align"
}
#: Panels whose titles are no expression for what is to be seen: a picture to look at beside others, a comparison.
OTHERS = {
    "y",
    "edges",
    "grey[:, 90]",
    "bilinear_pool2d(tiles) and\n    its sketch, compared",
    "taps",
    "taps, with offsets",
}


@pytest.fixture(scope="module")
def photo():
    return load_photo()


@pytest.fixture(scope="module")
def rows(photo):
    return [*pooling_rows(photo), regions(photo.pixels), deformation(photo.pixels)]


@pytest.fixture(scope="module")
def figure(rows):
    return page(rows, {"fastconv": fastconv.__version__})


def by_chance(panel):
    return "stochastic" in panel.title and "training=False" not in panel.title


def evaluate(panel, row, functions):
    """What the title of the panel says, in the form of what the panel shows."""
    if not isinstance(panel, Gradient):
        return eval(panel.title, functions | row.names)
    part = row.names["part"].clone().requires_grad_()
    eval(panel.title, functions | {"part": part}).sum().backward()
    return part.grad


def shown(panel, width):
    if isinstance(panel, Image) and panel.dots is not None:
        return panel.dots[:, 0] * width + panel.dots[:, 1]
    return panel.values


def test_every_pooling_is_shown(rows):
    said = "\n".join(row.text + "".join(f"\n{panel.title}" for panel in row.panels) for row in rows)
    assert [name for name in POOLINGS if f"{name}(" not in said] == []


def test_titles_are_the_calls(rows, photo):
    seen = 0
    for row in rows:
        for panel in row.panels:
            if panel.title in OTHERS or by_chance(panel):
                continue
            expected = evaluate(panel, row, POOLINGS)
            if panel.title == "part":
                expected = expected.expand(3, -1, -1)
            torch.testing.assert_close(shown(panel, photo.pixels.shape[2]).flatten(), expected.flatten())
            seen += 1
    assert seen >= 32


def test_pytorch_agrees(rows, photo):
    functions = {name: getattr(F, name) for name in POOLINGS if hasattr(F, name)}
    seen = set()
    for row in rows:
        for panel in row.panels:
            names = [name for name in POOLINGS if f"{name}(" in panel.title]
            if panel.title in OTHERS or not names or not functions.keys() >= set(names):
                continue
            expected = evaluate(panel, row, functions)
            torch.testing.assert_close(shown(panel, photo.pixels.shape[2]).flatten(), expected.flatten())
            seen.update(names)
    assert seen == functions.keys()


def test_what_the_texts_define(rows, photo):
    names = {row.heading: row.names for row in rows}
    x = photo.pixels
    back, line, pyramid = (
        names[heading] for heading in ("Winners, and the way back", "One line of the photograph", "A pyramid of grids")
    )
    for given, expected in (
        (back, F.max_pool2d(x, 4, return_indices=True)),
        (line, F.max_pool1d(x.mean(0, keepdim=True)[:, 90], 8, return_indices=True)),
    ):
        torch.testing.assert_close((given["y"], given["indices"]), expected)
    torch.testing.assert_close(back["means"], F.avg_pool2d(x, 8))
    # In float64: PyTorch's own means of quarters are off by 7e-5 in float32.
    levels = [F.adaptive_avg_pool2d(x.double(), level).flatten() for level in (1, 2, 4, 8)]
    torch.testing.assert_close(pyramid["y"], torch.cat(levels).float(), rtol=2e-5, atol=0)
    *grids, listed = next(row for row in rows if row.heading == "A pyramid of grids").panels
    positions = torch.cat([grid.values.flatten(1) for grid in grids], 1)
    torch.testing.assert_close(listed.values.flatten(1)[:, : positions.shape[1]], positions)


def test_what_is_drawn_lies_in_its_window_and_comes_near_the_mean(rows, photo):
    row = next(row for row in rows if row.heading == "Left to chance")
    x, draws = photo.pixels, row.names["draws"]
    assert len(draws) == DRAWS
    elements = F.unfold(x[:, None], 8, stride=8).view(3, 64, 28, 28)
    assert all((elements == draw[:, None]).any(1).all() for draw in draws)
    assert torch.equal(row.panels[0].values, draws[0])
    assert torch.equal(row.panels[1].values, draws[1])
    assert not torch.equal(draws[0], draws[1])
    # The mean of 64 draws is off by an eighth of their spread, and that is at most a half.
    weighted = fastconv.stochastic_pool2d(x, 8, training=False)
    assert (draws.mean(0) - weighted).square().mean().sqrt() < 0.0625
    down, right = row.panels[-1].dots.T
    assert torch.equal(down // 16 * 14 + right // 16, torch.arange(14 * 14))


def test_gradients(rows):
    row = next(row for row in rows if row.heading == "Where the gradient goes")
    largest, mean, drawn, weighted = (panel.values.unfold(0, 8, 8).unfold(1, 8, 8) for panel in row.panels[1:])
    for one in (largest, drawn):
        assert (one.sum((2, 3)) == 1).all()
        assert ((one != 0).sum((2, 3)) == 1).all()
    assert (mean == 1 / 64).all()
    assert not torch.equal(largest, drawn)
    assert (weighted < 0).any()


def test_the_seed_gives_the_page(rows, photo):
    def tensors(rows):
        panels = [panel for row in rows for panel in row.panels]
        values = [getattr(panel, field.name) for panel in panels for field in fields(panel)]
        return [value for value in values if isinstance(value, torch.Tensor)]

    assert all(map(torch.equal, tensors(rows), tensors(pooling_rows(photo, 0))))
    assert not all(map(torch.equal, tensors(rows), tensors(pooling_rows(photo, 1))))


def test_the_picture(tmp_path, rows):
    path = tmp_path / "page.png"
    draw_pooling(rows, {"fastconv": fastconv.__version__}, path)
    with Picture.open(path) as picture:
        width, height = picture.size
    assert (width, height) == (1690, 4823)


def test_no_text_lies_on_another(figure):
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
    overlaps = [(a, b) for (a, first), (b, second) in itertools.combinations(boxes, 2) if first.overlaps(second)]
    assert overlaps == []
