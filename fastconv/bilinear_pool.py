"""Bilinear pooling of two feature maps, whole and as a sketch."""

import torch
from torch import Tensor

from fastconv._arguments import DTYPES, dtype_name, integer

__all__ = ["bilinear_pool2d", "compact_bilinear_pool2d"]


def bilinear_pool2d(x: Tensor, y: Tensor | None = None) -> Tensor:
    """The outer product of two feature maps, added up over their positions.

    ``z[i * C2 + j] = sum over (h, w) of x[i, h, w] * y[j, h, w]``: a product of matrices, which reads both layouts
    where they lie.

    Args:
        x: ``Tensor[N, C1, H, W]`` or ``Tensor[C1, H, W]``; float32, float64, bfloat16 or float16; any strides. Not
            empty but for ``N``.
        y: ``Tensor[N, C2, H, W]`` or ``Tensor[C2, H, W]``, of the same dtype; ``x`` itself if None.

    Returns:
        ``Tensor[N, C1 * C2]``, or without a batch ``Tensor[C1 * C2]``.

    Raises:
        RuntimeError: wrong numbers of dimensions, sizes or dtypes that do not match, an empty input.
        TypeError: an input that is no tensor.

    Source: Lin, RoyChowdhury and Maji, *Bilinear CNN Models for Fine-grained Visual Recognition*, 2015.

    >>> bilinear_pool2d(torch.tensor([[[1., 2.]], [[3., 4.]]]))
    tensor([ 5., 11., 11., 25.])
    """
    x, y = _check("bilinear_pool2d", x, y)
    return _outer(x, y).flatten(-2)


def compact_bilinear_pool2d(x: Tensor, y: Tensor | None = None, *, output_dim: int, seed: int = 0) -> Tensor:
    """A sketch of :func:`bilinear_pool2d` in ``output_dim`` numbers.

    The Tensor Sketch: every pair of channels ``(i, j)`` is added to place ``(h1(i) + h2(j)) mod output_dim`` with the
    sign ``s1(i) * s2(j)``. ``h1``, ``h2``, ``s1`` and ``s2`` are hashes of the channel that only ``seed`` chooses, the
    same on every device. Inner products of two sketches are, on average over seeds, those of the bilinear features; of
    one map with itself, squares of inner products of its positions.

    Args:
        x, y: see :func:`bilinear_pool2d`; float16 and bfloat16 are computed in float32.
        output_dim: length of the sketch, positive.
        seed: of the hashes, any integer of 64 bits.

    Returns:
        ``Tensor[N, output_dim]``, or without a batch ``Tensor[output_dim]``.

    Raises:
        RuntimeError: as :func:`bilinear_pool2d`.
        ValueError: ``output_dim`` is not positive.
        TypeError: as :func:`bilinear_pool2d`, and an ``output_dim`` or ``seed`` that is no integer.

    Source: Gao, Beijbom, Zhang and Darrell, *Compact Bilinear Pooling*, 2016; Pham and Pagh, *Fast and Scalable
    Polynomial Kernels via Explicit Feature Maps*, 2013.

    >>> compact_bilinear_pool2d(torch.ones(2, 3, 1, 1), output_dim=8).shape
    torch.Size([2, 8])
    """
    op = "compact_bilinear_pool2d"
    length = integer(op, "output_dim", output_dim, "an integer")
    if length < 1:
        raise ValueError(f"{op}: output_dim must be positive (got {length})")
    seed = integer(op, "seed", seed, "an integer")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"{op}: seed must have 64 bits (got {seed})")
    x, y = _check(op, x, y)
    first, second = (_hashes(t.shape[-3], length, seed, which, t.device) for which, t in enumerate((x, y)))
    wide_x, wide_y = (t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in (x, y))
    positions = x.shape[-2] * x.shape[-1]
    # Products of all pairs of channels cost about as much each as the transform of a place of a position's sketch.
    fewer_pairs = x.shape[-3] * y.shape[-3] <= positions * length
    sketch = _sketch_of_pairs if fewer_pairs else _sketch_by_transforms
    return sketch(wide_x, wide_y, first, second, length).to(x.dtype)


def _check(op: str, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    y = x if y is None else y
    for name, tensor in ("x", x), ("y", y):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor (got {tensor!r})")
    if x.dim() not in (3, 4):
        raise RuntimeError(f"{op}: x must have 4 dimensions, or 3 without a batch (got {list(x.shape)})")
    if x.dtype not in DTYPES:
        raise RuntimeError(f"{op}: x must be float32, float64, bfloat16 or float16 (got {dtype_name(x)})")
    if y.dtype != x.dtype:
        raise RuntimeError(f"{op}: y must have the dtype of x, {dtype_name(x)} (got {dtype_name(y)})")
    if y.device != x.device:
        raise RuntimeError(f"{op}: y must be on the device of x, {x.device} (got {y.device})")
    if y.dim() != x.dim() or y.shape[:-3] != x.shape[:-3] or y.shape[-2:] != x.shape[-2:]:
        raise RuntimeError(f"{op}: y must have the batch and positions of x, {list(x.shape)} (got {list(y.shape)})")
    for name, tensor in ("x", x), ("y", y):
        if 0 in tensor.shape[-3:]:
            raise RuntimeError(f"{op}: {name} must not be empty but for its batch (got {list(tensor.shape)})")
    return x, y


def _outer(x: Tensor, y: Tensor) -> Tensor:
    """``[..., C1, C2]``. Both layouts flatten without a copy, to rows and to columns of a matrix."""
    return x.flatten(-2) @ y.flatten(-2).transpose(-1, -2)


def _sketch_of_pairs(x: Tensor, y: Tensor, first: tuple, second: tuple, length: int) -> Tensor:
    places = (first[0][:, None] + second[0]) % length
    pairs = _outer(x, y) * (first[1][:, None] * second[1])
    result = pairs.new_zeros(*x.shape[:-3], length)
    return result.index_add(-1, places.flatten(), pairs.flatten(-2))


def _sketch_by_transforms(x: Tensor, y: Tensor, first: tuple, second: tuple, length: int) -> Tensor:
    """The sketch of a product is the circular convolution of sketches, and transforms may be added up."""

    def transform(t: Tensor, places: Tensor, signs: Tensor) -> Tensor:
        signed = t.flatten(-2).transpose(-1, -2) * signs
        return torch.fft.rfft(signed.new_zeros(*signed.shape[:-1], length).index_add(-1, places, signed))

    return torch.fft.irfft((transform(x, *first) * transform(y, *second)).sum(-2), n=length)


_BITS = 2**64 - 1


def _signed(word: int) -> int:
    return word - 2**64 if word >> 63 else word


def _hashes(channels: int, length: int, seed: int, which: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A place and a sign for each channel: SplitMix64 (Steele, Lea and Flood, 2014), in integers that wrap around,
    which are the same on every device and part of a compiled graph."""
    step = 0x9E3779B97F4A7C15
    start = ((seed & _BITS) * 0xD1342543DE82EF95 + which * 0xA0761D6478BD642F) & _BITS
    words = torch.arange(1, channels + 1, device=device) * _signed(step) + _signed(start)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        words = (words ^ ((words >> shift) & (2 ** (64 - shift) - 1))) * _signed(factor)
    return (words & (2**63 - 1)) % length, 1 - 2 * (words < 0).long()
