"""The CUDA kernels of convolution on the emulator, against the slow reference, at sizes that reach every branch."""

import ctypes
from dataclasses import replace

import pytest
import torch
from cases import CASES, TRANSPOSED_CASES, TransposedCase, problem
from conv_emulated import (
    ACTIVATIONS,
    ALL_DTYPES,
    CHIP,
    DTYPES,
    FORWARDS,
    PART,
    SUMS,
    TERMS,
    WEIGHTS,
    Gpu,
    case_of,
)
from emulated import Emulator, KernelError, emulator
from test_pool_cuda import ALL_BLOCKS, BOTH_LAYOUTS

__all__ = ["emulator"]

FORWARD = ["depthwise_planes", "depthwise_pixels", "implicit_gemm", "grouped", "general"]
GRAD_WEIGHT = ["depthwise", "grouped", "implicit_gemm", "general"]
BY_NAME = {case.name: case for case in [*CASES, *TRANSPOSED_CASES]}

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
    case_of("tiles of pixels and channels", 4, 24, (9, 11), 70, 3, padding=1),
    case_of("a kernel of one", 3, 32, (5, 7), 24, 1),
    case_of("planes in tiles", 1, 2, (70, 70), 2, 3, padding=1, groups=2),
    case_of("many small planes", 5, 9, (5, 6), 9, 3, padding=1, groups=9),
    case_of("up_planes_in_tiles", 1, 2, (33, 40), 2, 4, of=TransposedCase, stride=2, padding=1, groups=2),
    case_of("up_planes in tiles, rows without taps", 1, 2, (70, 70), 2, 1, of=TransposedCase, stride=2, groups=2),
    case_of("planes in tiles, rows in the padding", 1, 2, (47, 47), 2, 1, padding=1, groups=2),
    case_of("a plane too large to share", 1, 1, (1, 2), 1, (3, 3), padding=(200, 200), dilation=200, groups=1),
]
#: Small ones, for everything else, by the kernel that is chosen for them.
USUAL = {
    "implicit_gemm": case_of("gemm", 2, 32, (5, 7), 40, 3, padding=1, stride=(1, 2), groups=2),
    "grouped": case_of("grouped", 2, 16, (5, 7), 24, 3, padding=1, stride=(2, 1), groups=4),
    "odd groups": case_of("odd groups", 2, 6, (5, 7), 9, 3, padding=1, groups=3),
    "depthwise": case_of("depthwise", 2, 16, (6, 7), 16, 3, padding=1, groups=16),
}
BY_NAME |= {case.name: case for case in [*OWN, *USUAL.values()]}


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
    case_of("products of warpgroups", 3, 72, (13, 11), 136, 3, padding=1),
    case_of("products_of_warpgroups in groups", 5, 144, (15, 13), 160, (3, 2), padding=1, stride=2, dilation=(1, 2),
          groups=2),
    case_of("products_of_warpgroups of one tap", 4, 104, (10, 12), 72, 1),
    case_of("up_products of warpgroups", 5, 80, (9, 10), 72, 4, of=TransposedCase, stride=2, padding=1),
    case_of("up_products of warpgroups, dilated", 7, 80, (7, 8), 72, 2, of=TransposedCase, stride=3, dilation=2),
    case_of("up_products of warpgroups, rows without taps", 7, 72, (8, 7), 80, 1, of=TransposedCase, stride=2),
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


@pytest.mark.parametrize("terms", [TERMS, 8])
@pytest.mark.parametrize(("dtype", "tf32"), [(torch.bfloat16, False), (torch.float32, True)], ids=str)
def test_planes_are_copied_to_channels_last(emulator: Emulator, dtype: torch.dtype, tf32: bool, terms: int) -> None:
    """For tensor cores, where they pay: of the input, and for the weights' gradient of both tensors; in parts too."""
    case = case_of("planes to copy", 2, 72, (9, 11), 80, 3, padding=1, stride=(2, 1))
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


@pytest.mark.parametrize("name", ["products of warpgroups", "up_products of warpgroups"])
def test_copied_planes_go_to_warpgroups(emulator: Emulator, name: str) -> None:
    for terms, last in ((1 << 40, "conv_wgmma_products<"), (8, "conv_add_outputs<")):
        assert Gpu(emulator, BY_NAME[name], torch.bfloat16, terms=terms).check_forward()
        launched = emulator.launched()
        assert launched[0].startswith("conv_channels_last<")
        assert launched[-1].startswith(last)


def test_copies_that_would_not_pay(emulator: Emulator) -> None:
    """Of patches, whose elements are loaded once, and beside a tensor that cannot be loaded by 16 bytes."""
    patches = Gpu(emulator, case_of("patches of 2x2", 2, 32, (8, 6), 40, 2, stride=2), torch.bfloat16)
    stem = Gpu(emulator, case_of("three channels", 1, 3, (9, 7), 64, 3, padding=1), torch.bfloat16, True)
    for gpu in (patches, replace(stem, output_last=False)):
        for check in (gpu.check_forward, gpu.check_grad_weight):
            assert check()
            assert not any("conv_channels_last" in name for name in emulator.launched())


def test_an_empty_input_is_not_copied(emulator: Emulator) -> None:
    case = case_of("all of it padding", 2, 32, (0, 5), 32, 3, padding=2)
    gpu = Gpu(emulator, case, torch.bfloat16)
    bias = torch.arange(32.0)
    given = {"input": torch.zeros(2, 32, 0, 5), "weight": torch.ones(32, 32, 3, 3), "bias": bias}
    got = gpu.run(FORWARDS, given, "output", gpu.sizes[1])
    assert torch.equal(got.float(), bias.view(1, -1, 1, 1).expand_as(got))


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
