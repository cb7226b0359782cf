"""The largest of whole pixels, roi_pool: who wins, to the bit, and what empty bins and wrong ids do."""

import pytest
import torch
from layouts import LAYOUTS
from roi_cases import DTYPES, boxes_of

import fastconv

ops = torch.ops.fastconv
INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [1, 3, 8, 33])
def test_which_of_equal_pixels_wins(channels: int, layout: str, isa: str) -> None:
    """The first in row-major order; of several NaN the last; and negative infinity is a value like any other."""
    for dtype in DTYPES:
        x = LAYOUTS[layout](torch.zeros(1, channels, 4, 4, dtype=dtype))
        x[0, :, :2, :2] = torch.tensor([[1.0, 5.0], [5.0, 5.0]])
        x[0, :, :2, 2:] = torch.tensor([[NAN, INF], [NAN, 7.0]])
        x[0, :, 2:, :2] = -INF
        x[0, :, 2:, 2:] = torch.tensor([[-1.0, -2.0], [-0.5, -0.5]])
        values, ids = ops._roi_pool_ids(x, boxes_of((0, 0, 3, 3)).float(), 1.0, [2, 2])
        expected = torch.tensor([5.0, NAN, -INF, -0.5]).to(dtype)
        for c in range(channels):
            torch.testing.assert_close(values[0, c].flatten(), expected, equal_nan=True, rtol=0, atol=0)
        assert ids[0].flatten(1).tolist() == [[1, 6, 8, 14]] * channels
        # One wide bin too, which is read in vectors of channels alike.
        assert ops._roi_pool_ids(x, boxes_of((0, 0, 3, 3)).float(), 1.0, [1, 1])[1].flatten().tolist() == [6] * channels
        plane = LAYOUTS[layout](torch.full((1, channels, 3, 3), NAN, dtype=dtype))
        assert (
            ops._roi_pool_ids(plane, boxes_of((0, 0, 2, 2)).float(), 1.0, [1, 1])[1].flatten().tolist()
            == [8] * channels
        )


def test_bits_are_moved_as_they_are() -> None:
    """Signs of zeros, and denormal numbers, which sums may lose."""
    x = torch.tensor([-0.0, 1e-42, 1e-310], dtype=torch.float64)
    for dtype, values in ((torch.float32, x[:2]), (torch.float64, x), (torch.float16, torch.tensor([-0.0, 6e-8]))):
        for layout in ("contiguous", "channels_last"):
            for C in (1, 20):
                given = LAYOUTS[layout](values.to(dtype).view(-1, 1, 1, 1).expand(-1, C, 1, 1))
                boxes = torch.tensor([[n, 0, 0, 0, 0] for n in range(len(values))], dtype=dtype)
                output = fastconv.roi_pool(given, boxes, 1)
                assert torch.equal(output.flatten(1), given.flatten(1))
                assert torch.equal(output.signbit(), given.signbit())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_empty_bins(layout: str) -> None:
    """Zero, of no pixel, and no gradient goes anywhere."""
    x = LAYOUTS[layout](torch.full((1, 20, 5, 6), -3.0)).requires_grad_()
    boxes = boxes_of((10, 1, 14, 3), (-9, -9, -2, -2), (4, 3, 9, 8)).float()
    output, ids = ops._roi_pool_ids(x, boxes, 1.0, [2, 2])
    assert torch.equal(output == 0, ids < 0)
    assert (output[:2] == 0).all()
    assert output[2, 0].tolist() == [[-3.0, 0.0], [0.0, 0.0]]
    (grad,) = torch.autograd.grad(fastconv.roi_pool(x, boxes, 2).sum(), x)
    assert torch.equal(grad.sum((2, 3)), torch.ones(1, 20))
    assert torch.equal(ops._roi_pool_pick(x, ids, boxes)[:2], torch.zeros(2, 20, 2, 2))


def test_ids_that_are_in_no_plane_are_nobody() -> None:
    """The operators below are private, but anyone can call them: nothing outside of a plane is read or written."""
    x, boxes = torch.ones(1, 20, 4, 4), boxes_of((0, 0, 3, 3)).float()
    for wrong in (16, 2**31 - 1, -2, -(2**31)):
        ids = torch.full((1, 20, 2, 2), wrong, dtype=torch.int32)
        for last in (False, True):
            grad = ops._roi_pool_grad(torch.ones(1, 20, 2, 2), ids, boxes, [1, 20, 4, 4], last)
            assert torch.equal(grad, torch.zeros_like(x))
            given = x.contiguous(memory_format=torch.channels_last) if last else x
            assert torch.equal(ops._roi_pool_pick(given, ids, boxes), torch.zeros(1, 20, 2, 2))
