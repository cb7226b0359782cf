"""Regions of interest over several maps, multi_scale_roi_align: which level a box belongs to, values and gradients."""

import pytest
import torch
from layouts import LAYOUTS
from roi_cases import DTYPES
from torch import Tensor

import fastconv

#: Sizes that belong to every level and to those that there are not; an empty box; exactly the canonical size.
PYRAMID = [
    torch.tensor([(0, 0, 30, 20), (5, 5, 117, 117), (3, 4, 227, 228), (10, 10, 460, 400), (7, 7, 7, 30)]).float(),
    torch.zeros(0, 4),
    torch.tensor([(0, 0, 480, 480), (20, 20, 132, 132), (2, 0, 60, 70), (100, 0, 99, 50)]).float(),
]
SCALES = [1 / 4, 1 / 8, 1 / 16]


def level_of(box: Tensor) -> int:
    """Equation 1 of the paper, in exact arithmetic as far as that matters; of boxes without a size the finest."""
    width, height = float(box[2] - box[0]), float(box[3] - box[1])
    if width * height <= 0:
        return 0
    level = 2  # of sizes up to 2^2 / 2^4 of the canonical one, the finest map's
    while level < 4 and width * height >= 224**2 * 4 ** (level + 1 - 4):
        level += 1
    return level - 2


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_levels(dtype: torch.dtype, layout: str) -> None:
    maps = [LAYOUTS[layout](torch.randn(3, 5, 480 // s, 480 // s).to(dtype)).requires_grad_() for s in (4, 8, 16)]
    by_hand = []
    for n, some in enumerate(PYRAMID):
        for box in some:
            level = level_of(box)
            rows = torch.cat([torch.tensor([float(n)]), box])[None]
            by_hand.append(fastconv.roi_align(maps[level], rows, (2, 3), SCALES[level], 2, True))
    expected = torch.cat(by_hand)
    output = fastconv.multi_scale_roi_align(maps, PYRAMID, (2, 3), SCALES, 2, True)
    assert torch.equal(output, expected)
    as_rows = torch.cat([torch.cat([torch.full((len(b), 1), float(n)), b], 1) for n, b in enumerate(PYRAMID)])
    assert torch.equal(fastconv.multi_scale_roi_align(maps, as_rows, (2, 3), SCALES, 2, True), expected)
    rounding = {torch.bfloat16: 2**-6, torch.float16: 2**-9}.get(dtype, 1e-5)
    grad = torch.randn(output.shape).to(dtype)
    for got, wanted in zip(*(torch.autograd.grad(each, maps, grad) for each in (output, expected)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=rounding, atol=rounding)


def test_levels_of_boxes() -> None:
    """On their borders, and of another canonical size; whatever the dtype of the boxes."""
    maps = [torch.full((1, 1, 512 >> i, 512 >> i), float(i)) for i in range(4)]
    sizes = {1: 0, 111: 0, 112: 1, 223: 1, 224: 2, 447: 2, 448: 3, 1024: 3}
    for dtype in DTYPES:
        given = [each.to(dtype) for each in maps]
        for size, level in sizes.items():
            box = torch.tensor([[0.0, 0, 0, size, size]]).to(dtype)
            if float(box[0, 3]) == size:
                output = fastconv.multi_scale_roi_align(given, box, 1, [1 / 4, 1 / 8, 1 / 16, 1 / 32], 1)
                assert output.item() == level, (dtype, size)
    other = dict(canonical_scale=56, canonical_level=3)
    box = torch.tensor([[0.0, 0, 0, 56, 56]])
    assert fastconv.multi_scale_roi_align(maps, box, 1, [1 / 4, 1 / 8, 1 / 16, 1 / 32], 1, **other).item() == 1


def test_no_box_is_lost_where_a_level_is_left_out() -> None:
    """The maps after it have the boxes of the level before theirs, as in torchvision, and the last all beyond."""
    maps = [torch.full((1, 1, 512 >> i, 512 >> i), float(i)) for i in (0, 2, 3)]
    boxes = [torch.tensor([[0.0, 0, size, size] for size in (60, 120, 230, 450)])]
    output = fastconv.multi_scale_roi_align(maps, boxes, 1, [1 / 4, 1 / 16, 1 / 32], 1)
    assert output.flatten().tolist() == [0, 2, 3, 3]


def test_large_boxes_of_float16_belong_to_their_level() -> None:
    """Their area is beyond float16's largest number."""
    maps = [torch.full((1, 1, 64 >> i, 64 >> i), float(i), dtype=torch.float16) for i in range(4)]
    box = torch.tensor([[0.0, 0, 0, 300, 300]], dtype=torch.float16)
    assert fastconv.multi_scale_roi_align(maps, box, 1, [1 / 4, 1 / 8, 1 / 16, 1 / 32], 1).item() == 2


def test_one_level_and_no_boxes() -> None:
    x = torch.randn(3, 5, 120, 120, requires_grad=True)
    output = fastconv.multi_scale_roi_align([x], PYRAMID, 2, [1 / 4], 2)
    assert torch.equal(output, fastconv.roi_align(x, PYRAMID, 2, 1 / 4, 2))
    maps = [x, torch.randn(3, 5, 60, 60, requires_grad=True)]
    for boxes in ([], [torch.zeros(0, 4)] * 3, torch.zeros(0, 5)):
        output = fastconv.multi_scale_roi_align(maps, boxes, (2, 3), [1 / 4, 1 / 8])
        assert output.shape == (0, 5, 2, 3)
        for grad in torch.autograd.grad(output.sum(), maps):
            assert torch.equal(grad, torch.zeros_like(grad))


def test_derivatives_of_several_levels() -> None:
    maps = [torch.randn(1, 1, n, n, dtype=torch.float64, requires_grad=True) for n in (6, 3)]
    boxes = [torch.tensor([(0, 0, 20, 20), (0, 0, 115, 116), (3, 2, 18, 15)], dtype=torch.float64)]

    def call(*maps: Tensor) -> Tensor:
        return fastconv.multi_scale_roi_align(maps, boxes, 2, [1 / 4, 1 / 8], 1)

    assert torch.autograd.gradcheck(call, maps)
    assert torch.autograd.gradgradcheck(lambda *maps: call(*maps) * maps[0].sum(), maps)
