"""The same values at other places in memory: the layouts tensors come in; and the comparison of results."""

import torch
from torch import Tensor


def contiguous(t: Tensor) -> Tensor:
    return t.contiguous()


def channels_last(t: Tensor) -> Tensor:
    """Channels innermost; for 3-D tensors too, where PyTorch has no name for it."""
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def _outside(t: Tensor) -> float | int:
    """What nobody may read: NaN, or the smallest integer."""
    return float("nan") if t.is_floating_point() or t.is_complex() else torch.iinfo(t.dtype).min


def sliced(t: Tensor) -> Tensor:
    """A window of a larger tensor: no stride is what the sizes say, and outside it lies NaN."""
    larger = t.new_full([size + 3 for size in t.shape], _outside(t))
    window = larger[tuple(slice(1, 1 + size) for size in t.shape)]
    return window.copy_(t)


def sliced_channels_last(t: Tensor) -> Tensor:
    return channels_last(t.new_full([size + 3 for size in t.shape], _outside(t)))[
        tuple(slice(2, 2 + size) for size in t.shape)
    ].copy_(t)


def strided(t: Tensor) -> Tensor:
    """Every second column of a wider tensor: neither columns nor channels are neighbours."""
    wider = t.new_full([*t.shape[:-1], 2 * t.shape[-1]], _outside(t))
    return wider[..., ::2].copy_(t)


def transposed(t: Tensor) -> Tensor:
    """The first two and the last two dimensions exchanged in memory."""
    return t.transpose(0, 1).transpose(-2, -1).contiguous().transpose(-2, -1).transpose(0, 1)


LAYOUTS = {
    "contiguous": contiguous,
    "channels_last": channels_last,
    "sliced": sliced,
    "sliced_channels_last": sliced_channels_last,
    "strided": strided,
    "transposed": transposed,
}

#: Rounding of the result itself, and smallest step of the dtype.
_OUTPUT_ROUNDING = {
    torch.float64: (0, 0),
    torch.float32: (0, 0),
    torch.bfloat16: (2**-8, 0),
    torch.float16: (2**-11, 2**-25),
}


def assert_close_to_reference(
    name: str, got: Tensor, expected: Tensor, scale: Tensor, *, patches: bool = False, tf32: bool = False
) -> None:
    """Each element within a few roundings of the sum that it is: relative to the magnitudes that were added
    up (``scale``), in the dtype of the accumulation, plus one rounding of a 16-bit result.

    ``patches``: Winograd's transforms may have been used. Then an element has roundings of its whole patch, and more of
    them (docs/numerics.md). ``tf32``: both factors of a product were rounded to 11 bits first.
    """
    assert got.shape == expected.shape, f"{name}: {list(got.shape)} instead of {list(expected.shape)}"
    rounding, smallest = _OUTPUT_ROUNDING[got.dtype]
    accumulation = 2e-15 if got.dtype == torch.float64 else 1e-6 + (2**-10 + 2**-22) * tf32
    if patches and got.dtype != torch.float64:
        accumulation = 1e-5
        scale = scale.amax((-2, -1), keepdim=True)
    error = (got.double() - expected).abs()
    allowed = accumulation * scale + rounding * expected.abs() + smallest
    wrong = ~(error <= allowed)
    if wrong.any():
        index = int((error - allowed).nan_to_num(nan=torch.inf).argmax())
        place = torch.unravel_index(torch.tensor(index), got.shape) if got.dim() else ()
        raise AssertionError(
            f"{name}: {int(wrong.sum())} of {got.numel()} elements are wrong; at {[int(i) for i in place]} "
            f"{float(got.flatten()[index])} instead of {float(expected.flatten()[index])}"
        )
