"""The shapes that the convolution tests run: small, and chosen so that every branch of csrc/conv is taken.

Vector lengths are 2 to 16 elements, so channel counts and widths lie on and beside 4, 8, 16, 32 and 64; tiles
are rows of at most 512 columns; residues of strided gradients, phase planes and padding have cases of their
own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import reference
import torch
from torch import Tensor


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


@dataclass(frozen=True)
class Case:
    """One convolution. ``H`` None: a 1-D one. ``padding`` is an int, a pair or "same"."""

    name: str
    N: int
    C: int
    H: int | None
    W: int
    K: int
    kernel: int | tuple[int, int]
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] | str = 0
    dilation: int | tuple[int, int] = 1
    groups: int = 1

    def __str__(self) -> str:
        return self.name

    @property
    def dims(self) -> int:
        return 1 if self.H is None else 2

    @property
    def depthwise(self) -> bool:
        """One channel to a group on either side: what the depthwise kernel serves."""
        return self.groups == self.C == self.K

    @property
    def patches(self) -> bool:
        """Winograd's kernel may serve it."""
        return self.weight_size[2:] == (3, 3) and _pair(self.stride) == (1, 1)

    @property
    def input_size(self) -> tuple[int, int, int, int]:
        return self.N, self.C, 1 if self.H is None else self.H, self.W

    @property
    def weight_size(self) -> tuple[int, int, int, int]:
        R, S = (1, self.kernel) if self.H is None else _pair(self.kernel)
        return self.K, self.C // self.groups, R, S

    @cached_property
    def geometry(self) -> dict:
        """stride, padding (four), dilation and groups, as reference.py wants them."""
        stride, dilation = _pair(self.stride), _pair(self.dilation)
        if self.padding == "same":
            total = [d * (size - 1) for d, size in zip(dilation, self.weight_size[2:], strict=True)]
            padding = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
        else:
            padding = _pair(self.padding) * 2
        if self.H is None:
            stride, dilation = (1, stride[1]), (1, dilation[1])
            padding = (0, padding[1], 0, padding[3])
        return {"stride": stride, "padding": padding, "dilation": dilation, "groups": self.groups}

    @property
    def kwargs(self) -> dict:
        """What the public function takes beside the tensors."""
        names = ("stride", "padding", "dilation", "groups")
        return {name: getattr(self, name) for name in names}

    def output_size(self) -> tuple[int, int, int, int]:
        geometry = {name: value for name, value in self.geometry.items() if name != "groups"}
        return reference.output_size(self.input_size, self.weight_size, **geometry)

    def results(self, input: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> list[Tensor]:
        """Output and gradients of input and weight, by the reference."""
        return [
            reference.conv(input, weight, bias, **self.geometry),
            reference.grad_input(grad, weight, input.shape, **self.geometry),
            reference.grad_weight(grad, input, weight.shape, **self.geometry),
        ]

    def function(self, module) -> Callable[..., Tensor]:
        """fastconv's or torch.nn.functional's."""
        return module.conv1d if self.dims == 1 else module.conv2d

    def without_height(self, tensor: Tensor) -> Tensor:
        return tensor.squeeze(2) if self.H is None else tensor


@dataclass(frozen=True)
class TransposedCase(Case):
    """One transposed convolution."""

    output_padding: int | tuple[int, int] = 0

    @property
    def weight_size(self) -> tuple[int, int, int, int]:
        R, S = (1, self.kernel) if self.H is None else _pair(self.kernel)
        return self.C, self.K // self.groups, R, S

    @cached_property
    def geometry(self) -> dict:
        lists = {
            "stride": _pair(self.stride),
            "padding": _pair(self.padding),
            "output_padding": _pair(self.output_padding),
            "dilation": _pair(self.dilation),
        }
        if self.H is None:
            neutral = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}
            lists = {name: (neutral[name], pair[1]) for name, pair in lists.items()}
        return {**lists, "groups": self.groups}

    @property
    def kwargs(self) -> dict:
        return {**super().kwargs, "output_padding": self.output_padding}

    def output_size(self) -> tuple[int, int, int, int]:
        return reference.transposed_size(self.input_size, self.weight_size, **self.geometry)

    def results(self, input: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> list[Tensor]:
        return [
            reference.conv_transpose(input, weight, bias, **self.geometry),
            reference.transposed_grad_input(grad, weight, input.shape, **self.geometry),
            reference.transposed_grad_weight(grad, input, weight.shape, **self.geometry),
        ]

    def function(self, module) -> Callable[..., Tensor]:
        return module.conv_transpose1d if self.dims == 1 else module.conv_transpose2d


def _row(name, N, C, size, K, kernel, of=Case, **rest) -> Case:
    H, W = size if isinstance(size, tuple) else (None, size)
    return of(name, N, C, H, W, K, kernel, **rest)


def _up(name, *sizes, **rest) -> Case:
    return _row(name, *sizes, of=TransposedCase, **rest)


# Input and output channels, width: beside every vector length.
_DENSE = [
    (1, 1, 1), (1, 9, 3), (3, 16, 4), (4, 4, 7), (7, 8, 8), (8, 7, 9), (9, 17, 15), (15, 16, 16),
    (16, 15, 17), (17, 33, 31), (31, 32, 32), (32, 31, 33), (33, 63, 8), (63, 2, 63), (64, 65, 5),
    (65, 64, 7), (2, 1, 64), (5, 3, 65),
]  # fmt: skip
_DEPTHWISE = [1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65]
_WIDTHS = [1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65]

CASES = [
    *(
        _row(f"dense_{C}x{K}_w{W}", 1 + i % 2, C, (4, W), K, 3, padding=1)
        for i, (C, K, W) in enumerate(_DENSE)
    ),
    *(
        _row(f"depthwise_{C}_w{W}", 1 + i % 3, C, (5, W), C, 3, padding=1, stride=1 + i % 2, groups=C)
        for i, (C, W) in enumerate(zip(_DEPTHWISE, _WIDTHS, strict=False))
    ),
    # Tiles: columns beyond 512, rows beyond what the cache holds, many images.
    _row("columns_513", 1, 3, (2, 513), 5, 3, padding=1),
    _row("columns_1030_strided", 1, 2, (1, 2061), 3, (1, 3), stride=(1, 2), padding=(0, 1)),
    _row("columns_600_depthwise", 1, 5, (3, 600), 5, 3, padding=1, groups=5),
    _row("rows_300", 1, 4, (300, 3), 6, 3, padding=1),
    _row("rows_of_tiles", 1, 32, (44, 46), 40, 3, padding=1),
    _row("rows_of_tiles_grouped", 1, 8, (120, 121), 8, 3, padding=1, groups=4),
    _row("rows_of_tiles_depthwise", 1, 6, (150, 131), 6, 3, padding=1, groups=6),
    _row("images_3", 3, 5, (6, 6), 20, 3),
    # Strides, and the gradient's residues; stride > kernel leaves positions that no tap reaches.
    _row("stride_2", 2, 5, (9, 10), 7, 3, stride=2, padding=1),
    _row("stride_3", 1, 4, (11, 13), 9, 3, stride=3, padding=2),
    _row("stride_4", 1, 3, (14, 15), 17, 5, stride=4, padding=1),
    _row("stride_5_kernel_2", 1, 3, (13, 17), 4, 2, stride=5),
    _row("stride_2_kernel_1", 2, 6, (7, 8), 18, 1, stride=2),
    _row("stride_3_kernel_1_depthwise", 2, 18, (7, 8), 18, 1, stride=3, padding=1, groups=18),
    _row("stride_2x3", 1, 4, (9, 14), 6, (3, 2), stride=(2, 3), padding=(1, 0)),
    _row("stride_beyond_input", 1, 2, (4, 5), 3, 2, stride=(7, 9)),
    _row("stem_7x7", 1, 3, (20, 22), 16, 7, stride=2, padding=3),
    _row("patches_16", 2, 3, (32, 33), 24, 16, stride=16),
    # Pictures: rows of several chunks, bands of rows, kernel columns folded into channels, tiles of columns.
    _row("picture", 1, 3, (21, 150), 40, 3, padding=1),
    _row("picture_of_two_tiles", 1, 2, (3, 1100), 16, (2, 3), stride=(1, 2), padding=(1, 2)),
    _row("picture_cropped", 2, 4, (9, 40), 33, (3, 7), stride=3, padding=(0, 5)),
    # Dilations: with and without a common factor with the stride; beyond what a plane is kept for.
    _row("dilation_2", 1, 4, (9, 11), 5, 3, padding=2, dilation=2),
    _row("dilation_3_stride_2", 1, 4, (13, 12), 9, 3, stride=2, padding=3, dilation=3),
    _row("dilation_4_stride_2", 1, 4, (13, 14), 9, 3, stride=2, padding=4, dilation=4),
    _row("dilation_2_stride_4", 1, 3, (15, 16), 5, 5, stride=4, padding=3, dilation=2),
    _row("dilation_6_stride_4", 1, 3, (17, 18), 5, 4, stride=4, padding=6, dilation=6),
    _row("dilation_2_stride_3", 1, 3, (15, 16), 5, 4, stride=3, padding=1, dilation=2),
    _row("dilation_15_own_planes", 1, 3, (40, 41), 5, 3, dilation=15),
    _row("dilation_own_planes_padded", 1, 20, (10, 11), 20, 3, padding=18, dilation=18),
    _row("dilation_own_planes_strided", 1, 3, (40, 37), 5, 3, stride=3, dilation=14, padding=3),
    _row("dilation_own_planes_depthwise", 1, 9, (24, 25), 9, 3, dilation=10, groups=9),
    _row("dilation_1x5", 1, 3, (6, 20), 4, (2, 3), dilation=(1, 5), padding=(0, 5)),
    # Padding: beyond the kernel; in the gradient it becomes negative beyond dilation * (kernel - 1).
    _row("padding_5_kernel_1", 1, 3, (3, 4), 5, 1, padding=5),
    _row("padding_5_kernel_3", 1, 3, (3, 4), 17, 3, padding=5),
    _row("padding_4_stride_3", 1, 3, (5, 6), 5, 2, padding=4, stride=3),
    _row("padding_6_depthwise", 1, 7, (3, 4), 7, 3, padding=6, groups=7),
    _row("padding_0x3", 1, 3, (5, 6), 5, (2, 3), padding=(0, 3)),
    _row("padding_exceeds_input", 1, 2, (1, 1), 3, 3, padding=4, stride=2, dilation=2),
    _row("same_even", 1, 3, (5, 6), 5, (2, 4), padding="same"),
    _row("same_even_dilated", 1, 6, (7, 8), 6, (4, 3), padding="same", dilation=(3, 2), groups=3),
    _row("same_even_depthwise", 1, 5, (7, 8), 5, 4, padding="same", groups=5),
    # Kernels.
    _row("kernel_1", 2, 17, (5, 7), 33, 1),
    _row("kernel_2", 1, 5, (6, 7), 9, 2),
    _row("kernel_4", 1, 5, (8, 9), 3, 4, padding=1),
    _row("kernel_5", 1, 5, (8, 9), 17, 5, padding=2),
    _row("kernel_6", 1, 3, (9, 9), 4, 6, padding=3),
    _row("kernel_7_depthwise", 1, 17, (9, 10), 17, 7, padding=3, groups=17),
    # Rows of pixels, and diagonals with their weights in registers.
    *[
        _row(f"kernel_{R}_stride_{stride}_depthwise", 1, 17, (11, 23), 17, R, stride=stride, padding=R // 2, groups=17)
        for R in (5, 7)
        for stride in (1, 2)
    ],
    _row("line_9_depthwise", 2, 5, (3, 11), 5, (1, 9), padding=(1, 4), groups=5),
    _row("line_17_depthwise", 1, 3, (2, 150), 3, (1, 17), padding=(0, 3), groups=3),
    _row("line_33_depthwise", 1, 9, (1, 140), 9, (1, 33), padding=(0, 40), groups=9),
    _row("line_65_depthwise", 1, 9, (1, 72), 9, (1, 65), groups=9),
    # Bands of rows, of which some reach beyond the image.
    _row("bands_padded", 1, 16, (26, 25), 33, 3, padding=12, dilation=12),
    _row("kernel_1x5", 1, 4, (3, 12), 6, (1, 5), padding=(0, 2)),
    _row("kernel_5x1", 1, 4, (12, 3), 6, (5, 1), padding=(2, 0)),
    _row("kernel_31_depthwise", 1, 3, (9, 8), 3, 31, padding=15, groups=3),
    _row("kernel_is_input", 2, 5, (6, 7), 19, (6, 7)),
    # Groups, with any multiplier.
    _row("groups_2", 2, 6, (6, 7), 10, 3, padding=1, groups=2),
    _row("groups_3_strided", 1, 9, (7, 9), 51, 3, stride=2, padding=1, groups=3),
    _row("groups_4_of_1_to_3", 1, 4, (6, 7), 12, 3, padding=1, groups=4),
    _row("groups_5_of_3_to_1", 1, 15, (6, 7), 5, 3, padding=1, groups=5),
    _row("groups_32_of_4", 1, 128, (5, 6), 128, 3, padding=1, groups=32),
    _row("groups_33_of_2", 1, 66, (4, 4), 66, 3, padding=1, groups=33),
    # Bands of four rows: the last cut short, strips of them, full and empty vectors at the end of a row, any padding.
    _row("groups_6_of_8", 1, 48, (21, 31), 48, 3, padding=(1, 2), groups=6),
    _row("groups_3_of_5", 1, 15, (9, 47), 15, 3, padding=1, groups=3),
    _row("groups_2_of_20_to_12", 2, 40, (6, 15), 24, 3, padding=(2, 0), groups=2),
    _row("groups_2_of_20_to_35", 1, 40, (5, 5), 70, 1, groups=2),
    # Channels: several passes over the input's, weights that are too large to pack at once.
    _row("channel_passes", 1, 640, (2, 70), 17, 3, padding=1),
    _row("channel_passes_grouped", 1, 1320, (1, 64), 6, 3, padding=1, groups=2),
    _row("weights_of_17_megabytes", 2, 2050, (1, 1), 2100, 1),
    _row("one_to_many", 1, 1, (5, 6), 40, 3, padding=1),
    _row("many_to_one", 1, 40, (5, 6), 1, 3, padding=1),
    # One dimension.
    _row("1d", 2, 5, 20, 7, 3, padding=1),
    _row("1d_1_channel", 1, 1, 9, 1, 4),
    _row("1d_strided", 1, 16, 33, 17, 5, stride=3, padding=2),
    _row("1d_dilated", 2, 3, 40, 9, 3, padding=8, dilation=8),
    _row("1d_depthwise", 2, 17, 30, 17, 3, padding=1, groups=17),
    _row("1d_long", 1, 2, 1500, 3, 9, stride=2, padding=4),
    _row("1d_same_even", 1, 4, 15, 6, 4, padding="same", groups=2),
]  # fmt: skip

TRANSPOSED_CASES = [
    # Those of networks: U-Net, DCGAN, ENet, FCN-8s, HiFi-GAN, and their channels.
    _up("up_2x2", 2, 9, (5, 6), 17, 2, stride=2),
    _up("up_4x4", 1, 16, (4, 5), 33, 4, stride=2, padding=1),
    _up("up_4x4_to_3", 1, 34, (6, 17), 3, 4, stride=2, padding=1),
    _up("up_3x3", 2, 7, (5, 17), 20, 3, stride=2, padding=1, output_padding=1),
    _up("up_4x4_from_pixel", 3, 20, (1, 1), 33, 4),
    _up("up_16x16_by_8", 1, 5, (4, 5), 5, 16, stride=8, padding=4),
    _up("up_1d", 1, 17, 30, 9, 16, stride=8, padding=4),
    _up("up_1d_by_2", 2, 33, 65, 16, 4, stride=2, padding=1),
    _up("up_1d_odd", 2, 3, 9, 4, 3, stride=2, padding=1, output_padding=1, groups=1),
    _up("up_1d_grouped", 1, 8, 21, 12, 5, stride=3, padding=2, output_padding=2, dilation=2, groups=4),
    # Stride 1: one convolution, weights read backwards.
    _up("plain", 1, 5, (5, 9), 17, 3, padding=1),
    _up("plain_full", 2, 3, (3, 33), 4, (3, 5)),
    _up("plain_kernel_1", 1, 17, (4, 8), 33, 1),
    _up("plain_dilated", 1, 4, (6, 7), 9, 3, padding=3, dilation=(2, 3)),
    _up("plain_wide", 1, 2, (2, 600), 3, 3, padding=1),
    # Output padding beyond padding, beyond the stride, beyond both: outputs that are bias alone.
    _up("beyond_padding", 1, 3, (4, 5), 5, 3, stride=4, padding=1, output_padding=3),
    _up("beyond_stride", 1, 3, (4, 5), 5, 3, dilation=4, padding=2, output_padding=3),
    _up("beyond_stride_and_padding", 2, 2, (3, 4), 9, 2, stride=2, dilation=5, padding=1, output_padding=4),
    _up("all_but_bias", 1, 2, (1, 2), 3, 1, dilation=60, padding=20, output_padding=50),
    _up("output_padding_2x1", 1, 4, (4, 5), 6, (3, 2), stride=(3, 2), padding=(1, 0), output_padding=(2, 1)),
    # Strides and dilations with and without a common factor; positions that no tap reaches.
    _up("stride_3", 1, 4, (5, 6), 9, 5, stride=3, padding=2),
    _up("stride_5_kernel_2", 1, 3, (4, 5), 18, 2, stride=5, output_padding=4),
    _up("stride_3_kernel_1", 2, 9, (4, 5), 4, 1, stride=3),
    _up("stride_4_dilation_2", 1, 3, (5, 6), 4, 5, stride=4, dilation=2, padding=3),
    _up("stride_6_dilation_4", 1, 3, (4, 5), 5, 4, stride=6, dilation=4, padding=5, output_padding=5),
    _up("stride_2_dilation_3", 1, 20, (5, 17), 6, 3, stride=2, dilation=3, padding=3, output_padding=1),
    _up("stride_2x3", 1, 4, (5, 6), 6, (3, 4), stride=(2, 3), padding=(1, 0)),
    _up("stride_7_one_pixel", 2, 3, (1, 1), 4, 3, stride=7, padding=1),
    # Several blocks of channels, tiles of columns, passes over the channels, inputs read in place, a window of rows
    # beyond what one run serves, gaps between the outputs of many channels.
    _up("blocks_of_channels", 2, 40, (5, 9), 96, 4, stride=2, padding=1),
    _up("tiles_of_columns", 1, 18, (2, 290), 20, (1, 4), stride=(1, 2), padding=(0, 1)),
    _up("up_passes", 1, 1300, (2, 3), 33, 4, stride=2, padding=1),
    _up("in_place", 2, 32, (4, 17), 64, 2, stride=2),
    _up("in_place_cropped", 1, 32, (4, 5), 32, 2, stride=2, padding=(0, 1)),
    _up("far_apart", 1, 12, (3, 80), 20, (1, 3), stride=(1, 2), dilation=(1, 70)),
    _up("gaps_of_many_channels", 1, 24, (4, 5), 64, 1, stride=(2, 3), output_padding=(1, 0)),
    # Padding that leaves one output, and that leaves whole input rows out.
    _up("one_output", 1, 5, (5, 5), 9, 3, padding=3),
    _up("padding_beyond_kernel", 1, 3, (9, 10), 17, 2, stride=2, padding=5),
    # Groups and depthwise; 6x6 by 2 is four convolutions of 3x3.
    _up("groups_2", 1, 6, (5, 7), 10, 4, stride=2, padding=1, groups=2),
    _up("groups_of_20", 1, 40, (4, 5), 40, 3, stride=2, padding=1, output_padding=1, groups=2),
    _up("groups_5_to_1", 1, 15, (4, 5), 5, 3, stride=2, groups=5),
    _up("groups_4_multiplier", 2, 4, (4, 9), 12, 3, stride=2, padding=1, output_padding=1, groups=4),
    _up("depthwise_4x4", 2, 17, (5, 6), 17, 4, stride=2, padding=1, groups=17),
    _up("depthwise_6x6", 1, 33, (5, 17), 33, 6, stride=2, padding=2, groups=33),
    _up("depthwise_3x3", 1, 8, (6, 33), 8, 3, padding=1, groups=8),
    _up("depthwise_odd", 1, 9, (5, 7), 9, 3, stride=2, padding=1, output_padding=1, groups=9),
    _up("depthwise_gaps", 2, 16, (3, 5), 16, 2, stride=3, output_padding=2, groups=16),
    _up("depthwise_1d", 1, 20, 17, 20, 5, stride=2, padding=2, output_padding=1, groups=20),
    _up("pairs", 1, 16, (6, 33), 16, 6, stride=2, padding=2, groups=8),
    _up("one_channel", 1, 1, (5, 16), 1, 4, stride=2, padding=1),
]  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """The tensors of a case in float64 and what must come out. Values have 8 significant bits and moderate
    size, so that they are the same in every dtype. ``scale_*`` is the sum of the magnitudes of what is added
    up."""

    input: Tensor
    weight: Tensor
    bias: Tensor
    grad_output: Tensor
    output: Tensor
    grad_input: Tensor
    grad_weight: Tensor
    grad_bias: Tensor
    scale_output: Tensor
    scale_grad_input: Tensor
    scale_grad_weight: Tensor
    scale_grad_bias: Tensor


def values(size, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(size, generator=generator, dtype=torch.float32).clamp(-4, 4)
    return drawn.where(drawn.abs() > 2**-10, 0.5).bfloat16().double()


@lru_cache(maxsize=4)
def problem(case: Case) -> Problem:
    generator = torch.Generator().manual_seed(len(case.name) + case.C + case.W)
    input, weight = values(case.input_size, generator), values(case.weight_size, generator)
    bias, grad = values((case.K,), generator), values(case.output_size(), generator)

    def results(*arguments: Tensor) -> list[Tensor]:
        return [*(case.without_height(t) for t in case.results(*arguments)), reference.grad_bias(arguments[3])]

    arguments = (input, weight, bias, grad)
    given = [case.without_height(t) if t.dim() == 4 else t for t in arguments]
    return Problem(*given, *results(*arguments), *results(*(t.abs() for t in arguments)))
