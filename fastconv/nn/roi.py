"""Modules of regions of interest, with the names and arguments of ``torchvision.ops``; none has parameters."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastconv.pool import Ints
from fastconv.roi import Boxes, multi_scale_roi_align, ps_roi_align, ps_roi_pool, roi_align, roi_pool

__all__ = ["MultiScaleRoIAlign", "PSRoIAlign", "PSRoIPool", "RoIAlign", "RoIPool"]


class _Regions(torch.nn.Module):
    """What the modules of one map have in common."""

    def __init__(self, output_size: Ints, spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


class RoIAlign(_Regions):
    """The mean of bilinear samples in each bin of each box: :func:`fastconv.roi_align`.

    Shape:
        ``Tensor[N, C, H, W]`` and boxes to ``Tensor[K, C, P, Q]``.

    >>> RoIAlign(2, 1.0, 2, aligned=True)(torch.ones(1, 3, 8, 8), [torch.tensor([[1., 1., 7., 7.]])]).shape
    torch.Size([1, 3, 2, 2])
    """

    def __init__(self, output_size: Ints, spatial_scale: float, sampling_ratio: int, aligned: bool = False) -> None:
        super().__init__(output_size, spatial_scale)
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Boxes) -> Tensor:
        return roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"


class RoIPool(_Regions):
    """The largest pixel in each bin of each box: :func:`fastconv.roi_pool`.

    Shape:
        ``Tensor[N, C, H, W]`` and boxes to ``Tensor[K, C, P, Q]``.

    >>> RoIPool(2, 0.5)(torch.ones(1, 3, 8, 8), [torch.tensor([[0., 0., 15., 15.]])]).shape
    torch.Size([1, 3, 2, 2])
    """

    def forward(self, input: Tensor, rois: Boxes) -> Tensor:
        return roi_pool(input, rois, self.output_size, self.spatial_scale)


class PSRoIAlign(_Regions):
    """Position-sensitive :class:`RoIAlign`: :func:`fastconv.ps_roi_align`.

    Shape:
        ``Tensor[N, C * P * Q, H, W]`` and boxes to ``Tensor[K, C, P, Q]``.

    >>> PSRoIAlign(2, 1.0, 2)(torch.ones(1, 12, 8, 8), [torch.tensor([[1., 1., 7., 7.]])]).shape
    torch.Size([1, 3, 2, 2])
    """

    def __init__(self, output_size: Ints, spatial_scale: float, sampling_ratio: int) -> None:
        super().__init__(output_size, spatial_scale)
        self.sampling_ratio = sampling_ratio

    def forward(self, input: Tensor, rois: Boxes) -> Tensor:
        return ps_roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sampling_ratio={self.sampling_ratio}"


class PSRoIPool(_Regions):
    """Position-sensitive means of whole pixels: :func:`fastconv.ps_roi_pool`.

    Shape:
        ``Tensor[N, C * P * Q, H, W]`` and boxes to ``Tensor[K, C, P, Q]``.

    >>> PSRoIPool(2, 1.0)(torch.ones(1, 12, 8, 8), [torch.tensor([[1., 1., 7., 7.]])]).shape
    torch.Size([1, 3, 2, 2])
    """

    def forward(self, input: Tensor, rois: Boxes) -> Tensor:
        return ps_roi_pool(input, rois, self.output_size, self.spatial_scale)


class MultiScaleRoIAlign(torch.nn.Module):
    """:class:`RoIAlign` over a pyramid of maps: :func:`fastconv.multi_scale_roi_align`.

    The scale of a map is found from its size and that of the images, the nearest power of two, as in torchvision.

    Shape:
        a dictionary of ``Tensor[N, C, H, W]``, a list of ``Tensor[L, 4]`` and a list of ``(height, width)`` of the
        images to ``Tensor[K, C, P, Q]``.

    >>> maps = {"0": torch.ones(1, 5, 64, 64), "1": torch.ones(1, 5, 32, 32), "other": torch.ones(1, 5, 9, 9)}
    >>> pooler = MultiScaleRoIAlign(["0", "1"], 3, 2)
    >>> pooler(maps, [torch.tensor([[0., 0., 90., 90.], [0., 0., 200., 200.]])], [(256, 256)]).shape
    torch.Size([2, 5, 3, 3])
    """

    def __init__(
        self,
        featmap_names: list[str],
        output_size: Ints,
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        self.featmap_names = featmap_names
        self.output_size = output_size
        self.sampling_ratio = sampling_ratio
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: Sequence[tuple[int, int]]) -> Tensor:
        if not isinstance(x, dict):
            raise TypeError(f"multi_scale_roi_align: x must be a dictionary of maps (got {x!r})")
        maps = [each for name, each in x.items() if name in self.featmap_names]
        if not maps:
            names = list(self.featmap_names)
            raise ValueError(f"multi_scale_roi_align: x must have a map of {names} (got {list(x)})")
        if not image_shapes:
            raise ValueError("multi_scale_roi_align: image_shapes must have at least one (got none)")
        size = [max(shape[d] for shape in image_shapes) for d in (0, 1)]
        scales = [_scale(list(each.shape[-2:]), size) for each in maps]
        return multi_scale_roi_align(
            maps,
            boxes,
            self.output_size,
            scales,
            self.sampling_ratio,
            canonical_scale=self.canonical_scale,
            canonical_level=self.canonical_level,
        )

    def extra_repr(self) -> str:
        return (
            f"featmap_names={self.featmap_names}, output_size={self.output_size}, sampling_ratio={self.sampling_ratio}"
        )


def _scale(map: list[int], image: list[int]) -> float:
    """The power of two that is nearest to the ratio of the heights."""
    return float(2 ** torch.tensor(map[0] / image[0]).log2().round())
