"""The CUDA kernels of convolution on the emulator, against the slow reference, at sizes that reach every branch."""

import ctypes
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from cases import CASES, TRANSPOSED_CASES, Case, TransposedCase, problem
from emulated import Emulator, KernelError, emulator
from layouts import assert_close_to_reference
from test_pool_cuda import ALL_BLOCKS, BOTH_LAYOUTS
from torch import Tensor

__all__ = ["emulator"]

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # in the order of Dtype
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: str(t).removeprefix("torch."))
ACTIVATIONS = ["", "relu", "relu6", "silu", "hardswish"]  # in the order of Activation
FORWARD = ["depthwise_planes", "depthwise_pixels", "implicit_gemm", "grouped", "general"]
GRAD_WEIGHT = ["depthwise", "grouped", "implicit_gemm", "general"]
PART, SUMS, TERMS, CHIP = 512, 8 << 20, 128, 90  # of ConvLimits
FORWARDS, TURNED, WEIGHTS = 0, 1, 2  # directions


def settled(size: tuple[int, ...], last: bool) -> tuple[int, ...]:
    """Strides of a dense tensor as the host operators give them to the kernels: where there is one channel or one
    column they say the layout."""
    _, C, H, W = size
    n, c, h, w = (C * H * W, 1, W * C, C) if last else (C * H * W, H * W, W, 1)
    if C == 1:
        c = size[0] * n if w == 1 else 1
    if W == 1:
        w = C if c == 1 and C > 1 else 1
    return n, c, h, w


@dataclass(frozen=True)
class Gpu:
    """Runs the kernels of one case, in one layout and at limits that tests lower."""

    emulator: Emulator
    case: Case
    dtype: torch.dtype = torch.float32
    input_last: bool = False
    output_last: bool | None = None  # that of the input by default
    kernel: str | None = None
    max_grid: int = ALL_BLOCKS
    part: int = PART
    sums: int = SUMS
    terms: int = TERMS
    chip: int = CHIP
    shift: int = 0  # elements from a multiple of 256 bytes
    activation: str = ""
    tf32: bool = False

    @property
    def turned(self) -> bool:
        return isinstance(self.case, TransposedCase)

    @property
    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of input and output of the convolution; a transposed one turns it round."""
        sizes = self.case.input_size, self.case.output_size()
        return sizes[::-1] if self.turned else sizes

    def fields(self) -> ctypes.Array:
        (N, _, H, W), (_, _, P, Q) = self.sizes
        K, C, R, S = self.case.weight_size
        geometry, groups = self.case.geometry, self.case.groups
        output_last = self.input_last if self.output_last is None else self.output_last
        strides = (*settled(self.sizes[0], self.input_last), *settled(self.sizes[1], output_last))
        values = [N, groups, C, K // groups, H, W, P, Q, R, S, *geometry["stride"], *geometry["dilation"],
                  *geometry["padding"][:2], *strides]  # fmt: skip
        return (ctypes.c_int64 * len(values))(*values)

    def last(self, name: str) -> bool:
        if name in ("output", "residual") and self.output_last is not None:
            return self.output_last
        return self.input_last and name not in ("weight", "bias")

    def run(self, direction: int, given: dict[str, Tensor], result: str, size: tuple[int, ...]) -> Tensor | None:
        """What is written to `result`, one of the given names' place; None where the kernel does not serve it."""
        specs = []
        for name, x in {**given, result: torch.zeros(size)}.items():
            x = x.to(self.dtype)
            x = (x.permute(0, 2, 3, 1) if self.last(name) else x).contiguous()
            memory = (x.view(torch.int16) if x.element_size() == 2 else x).numpy()
            specs.append((name, memory, self.shift * self.dtype.itemsize, name != result))
        with self.emulator.buffers(*specs) as buffers:
            at = {spec[0]: buffer.address for spec, buffer in zip(specs, buffers, strict=True)}
            names = ["input", "weight", "bias", "output", "residual"]
            memory = (ctypes.c_void_p * 5)(*(at.get(name) for name in names))
            kernel = ctypes.c_char_p(self.kernel.encode() if self.kernel else None)
            limits = (ctypes.c_int64 * 5)(self.max_grid, self.part, self.sums, self.terms, self.chip)
            dtype, fields = DTYPES.index(self.dtype), self.fields()
            ask = self.emulator.library.emulated_conv_scratch
            ask.restype = ctypes.c_int64
            tf32 = ctypes.c_int64(self.tf32)
            scratch = ask(ctypes.c_int64(direction), kernel, ctypes.c_int64(dtype), tf32, fields, memory, limits)
            if scratch < 0:
                return None
            self.emulator.launched()
            with self.emulator.buffers(("scratch", np.empty(max(1, scratch), np.uint8), 0, False)) as (own,):
                self.emulator.call("emulated_conv", direction, kernel, dtype, tf32, ACTIVATIONS.index(self.activation),
                                   fields, memory, ctypes.c_void_p(own.address), limits)  # fmt: skip
            written = torch.from_numpy(buffers[-1].download()).view(self.dtype)
            return written.permute(0, 3, 1, 2) if self.last(result) else written

    def four(self, x: Tensor) -> Tensor:
        """With the height that a 1-D convolution does not have."""
        return x.unsqueeze(2) if x.dim() == 3 else x

    def check_forward(self) -> bool:
        p, (whole, out) = problem(self.case), self.sizes
        x, weight = self.four(p.input), self.four(p.weight)
        if self.turned:
            got = self.run(TURNED, {"output": x, "weight": weight, "bias": p.bias}, "input", whole)
        else:
            got = self.run(FORWARDS, {"input": x, "weight": weight, "bias": p.bias}, "output", out)
        return self.compare("output", got)

    def check_grad_input(self) -> bool:
        p, (whole, out) = problem(self.case), self.sizes
        grad, weight = self.four(p.grad_output), self.four(p.weight)
        if self.turned:
            got = self.run(FORWARDS, {"input": grad, "weight": weight}, "output", out)
        else:
            got = self.run(TURNED, {"output": grad, "weight": weight}, "input", whole)
        return self.compare("grad_input", got)

    def check_grad_weight(self) -> bool:
        p = problem(self.case)
        x, grad = self.four(p.input), self.four(p.grad_output)
        given = {"input": grad, "output": x} if self.turned else {"input": x, "output": grad}
        return self.compare("grad_weight", self.run(WEIGHTS, given, "weight", self.case.weight_size))

    def compare(self, name: str, got: Tensor | None) -> bool:
        if got is None:
            return False
        p = problem(self.case)
        expected, scale = self.four(getattr(p, name)), self.four(getattr(p, f"scale_{name}"))
        assert_close_to_reference(name, got, expected, scale, tf32=self.tf32)
        return True

    def check(self) -> None:
        assert self.check_forward()
        assert self.check_grad_input()
        assert self.check_grad_weight()


BY_NAME = {case.name: case for case in [*CASES, *TRANSPOSED_CASES]}


def _case(name: str, *sizes, of=Case, **rest) -> Case:
    N, C, (H, W), K, kernel = sizes
    return of(name, N, C, H, W, K, kernel, **rest)


#: Those that the table's own choice runs, in both layouts.
CHOSEN = [
    "dense_1x1_w1", "dense_7x8_w8", "dense_15x16_w16", "dense_17x33_w31", "dense_64x65_w5", "depthwise_3_w3",
    "depthwise_8_w8", "depthwise_32_w32", "stride_2", "stride_4", "stride_5_kernel_2", "stride_3_kernel_1_depthwise",
    "stride_2x3", "stride_beyond_input", "stem_7x7", "dilation_4_stride_2", "dilation_6_stride_4",
    "dilation_2_stride_3", "dilation_own_planes_padded", "dilation_own_planes_depthwise", "padding_5_kernel_3",
    "padding_6_depthwise", "padding_exceeds_input", "same_even_dilated", "same_even_depthwise", "kernel_1",
    "kernel_5_stride_2_depthwise", "kernel_7_stride_1_depthwise", "line_33_depthwise", "kernel_31_depthwise",
    "kernel_is_input", "groups_3_strided", "groups_4_of_1_to_3", "groups_5_of_3_to_1", "groups_33_of_2",
    "groups_2_of_20_to_12", "groups_2_of_20_to_35", "1d_strided", "1d_depthwise", "up_3x3", "up_4x4_from_pixel",
    "up_1d_grouped", "plain_dilated", "beyond_stride_and_padding", "all_but_bias", "stride_4_dilation_2",
    "stride_6_dilation_4", "stride_2_dilation_3", "stride_7_one_pixel", "in_place_cropped", "groups_of_20",
    "depthwise_6x6", "depthwise_odd", "depthwise_gaps", "depthwise_1d",
]  # fmt: skip
OWN = [
    _case("tiles of pixels and channels", 4, 24, (9, 11), 70, 3, padding=1),
    _case("a kernel of one", 3, 32, (5, 7), 24, 1),
    _case("planes in tiles", 1, 2, (70, 70), 2, 3, padding=1, groups=2),
    _case("many small planes", 5, 9, (5, 6), 9, 3, padding=1, groups=9),
    _case("up_planes_in_tiles", 1, 2, (33, 40), 2, 4, of=TransposedCase, stride=2, padding=1, groups=2),
    _case("up_planes in tiles, rows without taps", 1, 2, (70, 70), 2, 1, of=TransposedCase, stride=2, groups=2),
    _case("planes in tiles, rows in the padding", 1, 2, (47, 47), 2, 1, padding=1, groups=2),
    _case("a plane too large to share", 1, 1, (1, 2), 1, (3, 3), padding=(200, 200), dilation=200, groups=1),
]
#: Several groups at once: channels that fill a product or do not, that share what they read by two and four, tails of
#: slabs of 64, windows that begin within a piece, tiles of several shapes, residues, kernels of one and of many.
GROUPS = [
    _case("groups of 4", 2, 48, (9, 21), 48, 3, padding=1, groups=12),
    _case("groups of 8", 1, 88, (7, 30), 88, 3, padding=1, stride=2, groups=11),
    _case("groups of 16", 2, 96, (13, 11), 96, 3, padding=(2, 1), dilation=(2, 1), groups=6),
    _case("groups of 32", 1, 96, (10, 12), 96, 3, padding=1, groups=3),
    _case("groups of 12 to 20", 1, 48, (7, 9), 80, (3, 2), padding=1, groups=4),
    _case("groups of 3 to 1", 1, 72, (9, 5), 24, 3, groups=24),
    _case("groups of 2 to 6", 2, 16, (5, 19), 48, 5, padding=2, groups=8),
    _case("groups of 32 to 8", 1, 64, (9, 11), 16, 1, groups=2),
    _case("groups of 8 to 40", 1, 24, (8, 9), 120, 3, padding=3, groups=3),
    _case("groups on a line", 2, 32, (1, 150), 32, (1, 9), padding=(0, 4), groups=8),
    _case("groups far apart", 1, 64, (19, 21), 64, 3, padding=4, dilation=4, stride=2, groups=16),
    _case("up_groups of 8", 2, 32, (6, 7), 32, 4, of=TransposedCase, stride=2, padding=1, groups=4),
    _case("up_groups of 24 to 4", 1, 96, (5, 6), 16, 3, of=TransposedCase, stride=(3, 2), padding=1, groups=4),
    _case("up_groups without taps", 1, 32, (5, 6), 32, 2, of=TransposedCase, stride=3, dilation=3, groups=8),
]
#: Depthwise with more than nine taps: runs of 16 outputs with and without tails, rows of taps for one group of warps
#: and for two, several passes, tails of slabs of 64.
TAPS = [
    _case("taps of 7x7", 2, 24, (9, 20), 24, 7, padding=3, groups=24),
    _case("taps of 5x5", 1, 72, (7, 37), 72, 5, padding=2, stride=(2, 1), groups=72),
    _case("taps of 31x31", 1, 8, (14, 14), 8, 31, padding=15, groups=8),
    _case("taps on a line", 2, 16, (1, 150), 16, (1, 33), padding=(0, 16), groups=16),
    _case("taps down a column", 1, 8, (40, 9), 8, (13, 3), padding=(6, 0), groups=8),
    _case("taps far apart", 3, 8, (19, 11), 8, (5, 4), padding=(4, 1), dilation=(3, 1), groups=8),
]
#: Small ones, for everything else, by the kernel that is chosen for them.
USUAL = {
    "implicit_gemm": _case("gemm", 2, 32, (5, 7), 40, 3, padding=1, stride=(1, 2), groups=2),
    "grouped": _case("grouped", 2, 16, (5, 7), 24, 3, padding=1, stride=(2, 1), groups=4),
    "odd groups": _case("odd groups", 2, 6, (5, 7), 9, 3, padding=1, groups=3),
    "depthwise": _case("depthwise", 2, 16, (6, 7), 16, 3, padding=1, groups=16),
}
BY_NAME |= {case.name: case for case in [*OWN, *GROUPS, *TAPS, *USUAL.values()]}


@pytest.mark.parametrize("name", [*CHOSEN, *(case.name for case in OWN)])
@BOTH_LAYOUTS
def test_cases(emulator: Emulator, channels_last: bool, name: str) -> None:
    dtype = DTYPES[(len(name) + channels_last) % 4]
    Gpu(emulator, BY_NAME[name], dtype, channels_last).check()


#: On tensor cores: weights as they lie and packed with zeros behind, both sizes of tiles, tails in all directions.
TENSOR = ["tiles of pixels and channels", "a kernel of one", "kernel_1", "dense_17x33_w31", "groups_of_20",
          "groups_2_of_20_to_35", "in_place_cropped", "patches_16", "dilation_own_planes_padded", "up_3x3"]  # fmt: skip


@pytest.mark.parametrize("name", TENSOR)
@BOTH_LAYOUTS
def test_sixteen_bits(emulator: Emulator, channels_last: bool, name: str) -> None:
    dtype = [torch.bfloat16, torch.float16][(len(name) + channels_last) % 2]
    gpu = Gpu(emulator, BY_NAME[name], dtype, channels_last, kernel="implicit_gemm", chip=80)
    for check in (gpu.check_forward, gpu.check_grad_input):
        assert check()
        assert any("conv_tensor_products" in name for name in emulator.launched())
    assert gpu.check_grad_weight()
    assert any("conv_tensor_weights" in name for name in emulator.launched())


#: For warpgroups: tails of pixels and channels, steps that end within a tap and hold several, groups, residues, some of
#: which no tap reaches; weights that are packed and, of a kernel of one, that are not.
WARPGROUPS = [
    _case("products of warpgroups", 3, 72, (13, 11), 136, 3, padding=1),
    _case("products_of_warpgroups in groups", 5, 144, (15, 13), 160, (3, 2), padding=1, stride=2, dilation=(1, 2),
          groups=2),
    _case("products_of_warpgroups of one tap", 4, 104, (10, 12), 72, 1),
    _case("up_products of warpgroups", 5, 80, (9, 10), 72, 4, of=TransposedCase, stride=2, padding=1),
    _case("up_products of warpgroups, dilated", 7, 80, (7, 8), 72, 2, of=TransposedCase, stride=3, dilation=2),
    _case("up_products of warpgroups, rows without taps", 7, 72, (8, 7), 80, 1, of=TransposedCase, stride=2),
]  # fmt: skip
BY_NAME |= {case.name: case for case in WARPGROUPS}


@pytest.mark.parametrize("name", [case.name for case in WARPGROUPS])
@BOTH_LAYOUTS
def test_warpgroups(emulator: Emulator, channels_last: bool, name: str) -> None:
    """What is read in channels_last, what is written in both layouts; a block for each tile, and one for all."""
    dtype = [torch.bfloat16, torch.float16][(len(name) + channels_last) % 2]
    gpu = Gpu(emulator, BY_NAME[name], dtype, kernel="implicit_gemm", terms=1 << 40)
    for check, turned in (("check_forward", gpu.turned), ("check_grad_input", not gpu.turned)):
        layouts = {"input_last": channels_last or not turned, "output_last": channels_last or turned}
        for max_grid in (ALL_BLOCKS, 1):
            assert getattr(replace(gpu, max_grid=max_grid, **layouts), check)()
            assert emulator.launched()[-1].startswith("conv_wgmma_products<")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["products_of_warpgroups of one tap", "tiles of pixels and channels"])
def test_activation_and_residual_of_warpgroups(emulator: Emulator, name: str, activation: str) -> None:
    """Outputs by 16 bytes, and by one; weights as they lie, and packed."""
    gpu = Gpu(emulator, BY_NAME[name], torch.float16, True, activation=activation)
    p = problem(gpu.case)
    residual = 3 * torch.randn(gpu.sizes[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    function = getattr(torch.nn.functional, activation) if activation else lambda x: x
    given = {"input": p.input, "weight": p.weight, "bias": p.bias, "residual": residual}
    got = gpu.run(FORWARDS, given, "output", gpu.sizes[1])
    torch.testing.assert_close(got.double(), function(p.output + residual), rtol=1e-2, atol=3e-2)
    packs = [] if "one tap" in name else ["conv_pack<float16>"]
    assert emulator.launched() == [*packs, "conv_wgmma_products<float16>"]


@pytest.mark.parametrize(
    "different",
    [{"chip": 80}, {"input_last": False}, {"shift": 1}, {"terms": 8}, {"dtype": torch.float32, "tf32": True}],
    ids=str,
)
def test_what_warpgroups_leave_to_warps(emulator: Emulator, different: dict) -> None:
    """Other chips, layouts and types, addresses that are no multiple of 16 bytes, sums in parts."""
    more = {"dtype": torch.bfloat16, "input_last": True, "terms": 1 << 40} | different
    gpu = Gpu(emulator, BY_NAME["products_of_warpgroups of one tap"], **more)
    assert gpu.check_forward()
    kernels = emulator.launched()
    assert any("conv_tensor_products" in name for name in kernels)
    assert not any("wgmma" in name for name in kernels)


@pytest.mark.parametrize("kernel", FORWARD)
@BOTH_LAYOUTS
def test_every_kernel_by_its_name(emulator: Emulator, channels_last: bool, kernel: str) -> None:
    cases = [*USUAL.values(), BY_NAME["up_3x3"], BY_NAME["depthwise_odd"], BY_NAME["dilation_2_stride_3"]]
    served = []
    for case in cases:
        gpu = Gpu(emulator, case, torch.float32, channels_last, kernel=kernel)
        served += [case.name] * (gpu.check_forward() + gpu.check_grad_input())
    depthwise = ["depthwise"] * 2 + ["depthwise_odd"] * 2
    if kernel in ("implicit_gemm", "grouped", "general"):
        assert len(served) == 2 * len(cases)
    else:
        assert served == (depthwise if channels_last == (kernel == "depthwise_pixels") else [])


@pytest.mark.parametrize("kernel", GRAD_WEIGHT)
@BOTH_LAYOUTS
def test_every_gradient_of_weights_by_its_name(emulator: Emulator, channels_last: bool, kernel: str) -> None:
    dtype = torch.bfloat16 if kernel == "grouped" else torch.float32  # on tensor cores alone
    served = [
        case.name
        for case in USUAL.values()
        if Gpu(emulator, case, dtype, channels_last, kernel=kernel).check_grad_weight()
    ]
    some = {"depthwise": ["depthwise"], "grouped": ["gemm", "grouped", "depthwise"]}
    assert served == some.get(kernel, [case.name for case in USUAL.values()])


@pytest.mark.parametrize(("direction", "kernel"), [(FORWARDS, "depthwise_pixels"), (WEIGHTS, "depthwise")])
def test_a_kernel_that_cannot_serve_is_an_error(emulator: Emulator, direction: int, kernel: str) -> None:
    gpu = Gpu(emulator, USUAL["implicit_gemm"])
    nowhere, limits = (ctypes.c_void_p * 5)(), (ctypes.c_int64 * 5)(ALL_BLOCKS, PART, SUMS, TERMS, CHIP)
    with pytest.raises(KernelError, match=rf"^conv2d: kernel must be able to serve these arguments \(got {kernel}\)"):
        emulator.call("emulated_conv", direction, ctypes.c_char_p(kernel.encode()), 0, 0, 0, gpu.fields(), nowhere,
                      ctypes.c_void_p(), limits)  # fmt: skip


@pytest.mark.parametrize("case", USUAL)
@BOTH_LAYOUTS
@ALL_DTYPES
def test_dtypes(emulator: Emulator, dtype: torch.dtype, channels_last: bool, case: str) -> None:
    Gpu(emulator, USUAL[case], dtype, channels_last).check()


@pytest.mark.parametrize("limits", [{"max_grid": 1}, {"shift": 1}, {"part": 8}, {"part": 8, "sums": 12000}], ids=str)
@pytest.mark.parametrize("case", USUAL)
@BOTH_LAYOUTS
def test_limits(emulator: Emulator, channels_last: bool, case: str, limits: dict) -> None:
    """One block for everything, tensors that begin anywhere, gradients of weights in parts."""
    dtype = torch.bfloat16 if "shift" in limits else torch.float32
    Gpu(emulator, USUAL[case], dtype, channels_last, **limits).check()


@pytest.mark.parametrize("name", [name for name in TENSOR if name != "patches_16"])
@BOTH_LAYOUTS
def test_tf32(emulator: Emulator, channels_last: bool, name: str) -> None:
    gpu = Gpu(emulator, BY_NAME[name], torch.float32, channels_last, kernel="implicit_gemm", tf32=True)
    for check, kernel in (
        (gpu.check_forward, "conv_tensor_products<float, "),
        (gpu.check_grad_input, "conv_tensor_products<float, "),
        (gpu.check_grad_weight, "conv_tensor_weights<float, "),
    ):
        assert check()
        assert any(kernel in name for name in emulator.launched())


@pytest.mark.parametrize("name", ["gemm", "a kernel of one", "groups_2_of_20_to_35", "up_3x3"])
@pytest.mark.parametrize("terms", [TERMS, 8])
@BOTH_LAYOUTS
def test_without_tensor_cores(emulator: Emulator, channels_last: bool, terms: int, name: str) -> None:
    """What would be theirs is multiplied as float32: 16-bit types, and float32 without a rounding to TF32."""
    case = BY_NAME[name]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        more = {"terms": terms, "chip": 75, "tf32": dtype == torch.float32}
        gpu = Gpu(emulator, case, dtype, channels_last, kernel="implicit_gemm", **more)
        for check, kernel in ((gpu.check_forward, "conv_products<"), (gpu.check_grad_weight, "conv_weight_products<")):
            assert check()
            launched = emulator.launched()
            assert any(name.startswith(kernel) for name in launched)
            assert not any("tensor" in name for name in launched)
        assert gpu.check_grad_input()


@BOTH_LAYOUTS
def test_tf32_rounds_to_nearest(emulator: Emulator, channels_last: bool) -> None:
    """Of a number in the middle between two of 11 bits the larger one, not what is left when bits are cut off; and
    parts of sums are added up in float32."""
    case = BY_NAME["a kernel of one"]
    middle, small = 1 + 2**-11, 2**-20
    weight = torch.zeros(24, 32, 1, 1)
    weight[:, 0] = middle
    weight[:, 9] = 1
    x = torch.zeros(3, 32, 5, 7)
    x[:, 0] = -middle
    x[:, 9] = small
    for tf32, wanted in ((True, small - (1 + 2**-10) ** 2), (False, small - middle**2)):
        for terms in (TERMS, 8):
            gpu = Gpu(emulator, case, torch.float32, channels_last, kernel="implicit_gemm", tf32=tf32, terms=terms)
            got = gpu.run(FORWARDS, {"input": x, "weight": weight}, "output", gpu.sizes[1])
            assert torch.equal(got, torch.full_like(got, wanted))
            kernel = "conv_tensor_products<" if tf32 else "conv_products<"
            assert any(name.startswith(kernel) for name in emulator.launched())


@pytest.mark.parametrize("name", [case.name for case in GROUPS])
@BOTH_LAYOUTS
def test_several_groups_at_once(emulator: Emulator, channels_last: bool, name: str) -> None:
    for i, (dtype, tf32) in enumerate([(torch.bfloat16, False), (torch.float16, False), (torch.float32, True)]):
        more = [{}, {"shift": 1}, {"max_grid": 1, "part": 8}][(i + len(name)) % 3]
        gpu = Gpu(emulator, BY_NAME[name], dtype, channels_last, kernel="grouped", tf32=tf32, **more)
        for check in (gpu.check_forward, gpu.check_grad_input):
            assert check()
            assert any("conv_group_products" in kernel for kernel in emulator.launched())
        if tf32 and name == "groups far apart":
            continue  # with the outputs' gradient it does not fit into shared memory
        assert gpu.check_grad_weight()
        assert any("conv_group_weights" in kernel for kernel in emulator.launched())


@pytest.mark.parametrize("name", ["groups of 4", "groups of 12 to 20", "groups of 3 to 1", "groups of 32"])
@pytest.mark.parametrize("value", ["nan", "inf"])
@BOTH_LAYOUTS
def test_groups_keep_to_themselves(emulator: Emulator, channels_last: bool, value: str, name: str) -> None:
    """What is not finite reaches the outputs and weights that read it, and no others."""
    gpu = Gpu(emulator, BY_NAME[name], torch.bfloat16, channels_last, kernel="grouped")
    p = problem(gpu.case)
    x, weight, grad = p.input.clone(), p.weight.abs() + 1, p.grad_output.abs() + 1
    x[0, 1, 2, -1] = float(value)
    x[0, -1, -1, 2] = float(value)
    weight[0, 0, 0, 0] = float(value)
    x, weight = x.bfloat16().double(), weight.bfloat16().double()
    wanted = torch.nn.functional.conv2d(x, weight, p.bias, **gpu.case.kwargs)
    got = gpu.run(FORWARDS, {"input": x, "weight": weight, "bias": p.bias}, "output", gpu.sizes[1])
    assert torch.equal(got.isfinite(), wanted.isfinite())
    torch.testing.assert_close(got.double(), wanted.bfloat16().double(), rtol=0.02, atol=0.2, equal_nan=True)
    wanted = torch.nn.grad.conv2d_weight(x, weight.shape, grad, **gpu.case.kwargs)
    got = gpu.run(WEIGHTS, {"input": x, "output": grad}, "weight", gpu.case.weight_size)
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got.isinf(), wanted.isinf())


@pytest.mark.parametrize("activation", ["", "silu"])
@BOTH_LAYOUTS
def test_several_groups_with_activation_and_residual(emulator: Emulator, channels_last: bool, activation: str) -> None:
    gpu = Gpu(emulator, BY_NAME["groups of 16"], torch.float16, channels_last, activation=activation)
    p = problem(gpu.case)
    residual = torch.randn(gpu.sizes[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1)).half()
    given = {"input": p.input, "weight": p.weight, "bias": p.bias, "residual": residual}
    got = gpu.run(FORWARDS, given, "output", gpu.sizes[1])
    assert any("conv_group_products" in kernel for kernel in emulator.launched())
    wanted = p.output + residual
    if activation:
        wanted = getattr(torch.nn.functional, activation)(wanted)
    torch.testing.assert_close(got.double(), wanted, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("name", [case.name for case in TAPS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@BOTH_LAYOUTS
def test_many_taps(emulator: Emulator, channels_last: bool, dtype: torch.dtype, name: str) -> None:
    more = [{}, {"shift": 1}, {"max_grid": 1, "part": 8}][(len(name) + dtype.itemsize + channels_last) % 3]
    gpu = Gpu(emulator, BY_NAME[name], dtype, channels_last, **more)
    assert gpu.check_grad_weight()
    assert any("conv_depthwise_weights" in kernel for kernel in emulator.launched())


@BOTH_LAYOUTS
def test_outputs_that_are_not_there_read_nothing(emulator: Emulator, channels_last: bool) -> None:
    """A tile is larger than the plane; what is infinite at its edge reaches the taps that read it and no others."""
    gpu = Gpu(emulator, BY_NAME["taps of 7x7"], torch.bfloat16, channels_last)
    p = problem(gpu.case)
    x, grad = p.input.clone(), p.grad_output.abs() + 1
    x[0, 3, 8, 19] = float("inf")
    wanted = torch.nn.grad.conv2d_weight(x, gpu.case.weight_size, grad, **gpu.case.kwargs)
    got = gpu.run(WEIGHTS, {"input": x, "output": grad}, "weight", gpu.case.weight_size)
    assert torch.equal(got.isfinite(), wanted.isfinite())
    assert not wanted[3].isfinite().all()
    assert wanted[3].isfinite().any()


PRODUCTS = ("conv_tensor_products", "conv_tensor_weights"), ("conv_products", "conv_weight_products")
PACKED = "conv_group_products", "conv_group_weights"
SIMPLE = "conv_grouped", "conv_weight_pairs"


#: Which kernels are chosen for channels in groups and a plane, with tensor cores and without.
@pytest.mark.parametrize(
    ("channels", "out", "groups", "plane", "dtype", "chosen"),
    [
        (128, 128, 32, (5, 9), torch.bfloat16, (PACKED, SIMPLE)),
        (64, 64, 2, (5, 9), torch.bfloat16, (PACKED, PRODUCTS[1])),
        (128, 128, 32, (5, 9), torch.float32, (SIMPLE, SIMPLE)),
        (64, 128, 2, (5, 9), torch.bfloat16, PRODUCTS),
        (128, 32, 2, (5, 9), torch.bfloat16, PRODUCTS),  # many channels to few
        (64, 64, 2, (3, 3), torch.bfloat16, PRODUCTS),  # most of a tile would be empty
        (60, 60, 12, (5, 9), torch.bfloat16, (SIMPLE, SIMPLE)),  # not a multiple of 8
        (64, 64, 1, (5, 9), torch.bfloat16, PRODUCTS),
    ],
)
def test_which_groups_go_to_tensor_cores(
    emulator: Emulator, channels: int, out: int, groups: int, plane: tuple[int, int], dtype: torch.dtype, chosen: tuple
) -> None:
    case = _case(f"{channels} to {out} in {groups}", 1, channels, plane, out, 3, padding=1, groups=groups)
    for chip, kernels in zip((CHIP, 75), chosen, strict=True):
        gpu = Gpu(emulator, case, dtype, True, chip=chip)
        for check, kernel in zip((gpu.check_forward, gpu.check_grad_weight), kernels, strict=True):
            assert check()
            assert any(name.startswith(f"{kernel}<") for name in emulator.launched())


@pytest.mark.parametrize("terms", [TERMS, 8])
@pytest.mark.parametrize(("dtype", "tf32"), [(torch.bfloat16, False), (torch.float32, True)], ids=str)
def test_planes_are_copied_to_channels_last(emulator: Emulator, dtype: torch.dtype, tf32: bool, terms: int) -> None:
    """For tensor cores, where they pay: of the input, and for the weights' gradient of both tensors; in parts too."""
    case = _case("planes to copy", 2, 72, (9, 11), 80, (2, 3), padding=1, stride=(2, 1))
    for input_last, output_last in ((False, False), (False, True), (True, False)):
        for chip in (CHIP, 75):
            more = {"terms": terms, "tf32": tf32, "chip": chip, "max_grid": ALL_BLOCKS if terms == TERMS else 1}
            gpu = Gpu(emulator, case, dtype, input_last, output_last=output_last, **more)
            copies = (not input_last, not output_last, 2 - input_last - output_last)
            for check, count in zip(
                (gpu.check_forward, gpu.check_grad_input, gpu.check_grad_weight), copies, strict=True
            ):
                assert check()
                names = [name.split("<")[0] for name in emulator.launched()]
                assert names.count("conv_channels_last") == (count if chip == CHIP else 0)


#: Steps that end within a tap, parts of no step, tails of channels and pixels, residues, a kernel of one.
PARTS = ["gemm", "a kernel of one", "groups_2_of_20_to_35", "in_place_cropped", "up_3x3", "dilation_2_stride_3"]


@pytest.mark.parametrize(("dtype", "tf32"), [*((dtype, False) for dtype in DTYPES[:3]), (torch.float32, True)], ids=str)
@pytest.mark.parametrize("name", PARTS)
@BOTH_LAYOUTS
def test_sums_in_parts(emulator: Emulator, channels_last: bool, name: str, dtype: torch.dtype, tf32: bool) -> None:
    """Of few tiles several blocks have each a part of the sum, and the parts are added up; also by a single block."""
    for grid in (ALL_BLOCKS, 1):
        gpu = Gpu(
            emulator, BY_NAME[name], dtype, channels_last, kernel="implicit_gemm", max_grid=grid, terms=8, tf32=tf32
        )
        for check in (gpu.check_forward, gpu.check_grad_input):
            assert check()
            assert "conv_add_outputs" in emulator.launched()[-1]


@pytest.mark.parametrize("case", USUAL)
def test_input_and_output_in_different_layouts(emulator: Emulator, case: str) -> None:
    for last in (False, True):
        Gpu(emulator, USUAL[case], torch.float32, last, output_last=not last).check()


@ALL_DTYPES
def test_accesses_are_wide_where_they_are_aligned(emulator: Emulator, dtype: torch.dtype) -> None:
    for name, case in USUAL.items():
        for shift in (0, 1):
            kernel = None if name == "depthwise" else "implicit_gemm" if name == "implicit_gemm" else "grouped"
            chip = 75 if kernel == "grouped" else CHIP  # without tensor cores, whose kernel for groups has one name
            gpu = Gpu(emulator, case, dtype, True, shift=shift, kernel=kernel, chip=chip)
            gpu.check_forward()
            wide = "true>" in emulator.launched()[-1]
            assert wide == (
                shift == 0
                and (name == "depthwise" or name == "grouped" or (name == "implicit_gemm" and dtype.itemsize < 8))
            )
            if name != "implicit_gemm":
                replace(gpu, kernel=None).check_grad_weight()
                assert ("true>" in emulator.launched()[-1]) == (shift == 0 and name == "depthwise")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", USUAL)
@BOTH_LAYOUTS
def test_activation_and_residual(emulator: Emulator, channels_last: bool, case: str, activation: str) -> None:
    gpus = [Gpu(emulator, USUAL[case], torch.float32, channels_last, activation=activation, terms=terms)
            for terms in ([TERMS, 8] if case == "implicit_gemm" else [TERMS])]  # fmt: skip
    gpu = gpus[0]
    p = problem(gpu.case)
    residual = 3 * torch.randn(gpu.sizes[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    residual[0, 0, 0, 0] = float("nan")
    function = getattr(torch.nn.functional, activation) if activation else lambda x: x
    wanted = function(p.output + residual)
    given = {"input": p.input, "weight": p.weight, "bias": p.bias, "residual": residual}
    for one in gpus:  # with a sum in parts, too: nothing is added to the parts
        got = one.run(FORWARDS, given, "output", gpu.sizes[1])
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-4, equal_nan=True)


@BOTH_LAYOUTS
@pytest.mark.parametrize("case", USUAL)
def test_padding_is_not_read_through(emulator: Emulator, channels_last: bool, case: str) -> None:
    """A NaN is seen by the outputs that read it and by no other."""
    gpu = Gpu(emulator, USUAL[case], torch.float32, channels_last)
    p = problem(gpu.case)
    x = p.input.clone()
    x[0, 1, 2, 3] = float("nan")
    ones = torch.nn.functional.conv2d(x, torch.ones_like(p.weight), **gpu.case.kwargs)
    got = gpu.run(FORWARDS, {"input": x, "weight": p.weight}, "output", gpu.sizes[1])
    assert torch.equal(got.isnan(), ones.isnan())


@BOTH_LAYOUTS
def test_sums_of_nothing(emulator: Emulator, channels_last: bool) -> None:
    """Without input channels an output is its bias."""
    case = replace(USUAL["odd groups"], name="nothing", C=0, groups=1)
    gpu = Gpu(emulator, case, torch.float32, channels_last)
    bias = torch.arange(9.0)
    got = gpu.run(FORWARDS, {"input": torch.zeros(2, 0, 5, 7), "weight": torch.zeros(9, 0, 3, 3), "bias": bias},
                  "output", gpu.sizes[1])  # fmt: skip
    assert torch.equal(got, bias.view(1, -1, 1, 1).expand_as(got))
