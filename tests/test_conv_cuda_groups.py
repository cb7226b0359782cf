"""Groups of few channels, and depthwise kernels of many taps, by the CUDA kernels that have tiles of the input in
shared memory, on the emulator; and which kernels groups go to."""

import pytest
import torch
from cases import TransposedCase, problem
from conv_emulated import CHIP, FORWARDS, WEIGHTS, Gpu, case_of
from emulated import Emulator, emulator
from test_pool_cuda import BOTH_LAYOUTS

__all__ = ["emulator"]

#: Several groups at once: channels that fill a product or do not, that share what they read by two and four, tails of
#: slabs of 64, windows that begin within a piece, tiles of several shapes, residues, kernels of one and of many.
GROUPS = [
    case_of("groups of 4", 2, 48, (9, 21), 48, 3, padding=1, groups=12),
    case_of("groups of 8", 1, 88, (7, 30), 88, 3, padding=1, stride=2, groups=11),
    case_of("groups of 16", 2, 96, (13, 11), 96, 3, padding=(2, 1), dilation=(2, 1), groups=6),
    case_of("groups of 32", 1, 96, (10, 12), 96, 3, padding=1, groups=3),
    case_of("groups of 12 to 20", 1, 48, (7, 9), 80, (3, 2), padding=1, groups=4),
    case_of("groups of 3 to 1", 1, 72, (9, 5), 24, 3, groups=24),
    case_of("groups of 2 to 6", 2, 16, (5, 19), 48, 5, padding=2, groups=8),
    case_of("groups of 32 to 8", 1, 64, (9, 11), 16, 1, groups=2),
    case_of("groups of 8 to 40", 1, 24, (8, 9), 120, 3, padding=3, groups=3),
    case_of("groups on a line", 2, 32, (1, 150), 32, (1, 9), padding=(0, 4), groups=8),
    case_of("groups far apart", 1, 64, (19, 21), 64, 3, padding=4, dilation=4, stride=2, groups=16),
    case_of("up_groups of 8", 2, 32, (6, 7), 32, 4, of=TransposedCase, stride=2, padding=1, groups=4),
    case_of("up_groups of 24 to 4", 1, 96, (5, 6), 16, 3, of=TransposedCase, stride=(3, 2), padding=1, groups=4),
    case_of("up_groups without taps", 1, 32, (5, 6), 32, 2, of=TransposedCase, stride=3, dilation=3, groups=8),
]
#: Depthwise with more than nine taps: runs of 16 outputs with and without tails, rows of taps for one group of warps
#: and for two, several passes, tails of slabs of 64.
TAPS = [
    case_of("taps of 7x7", 2, 24, (9, 20), 24, 7, padding=3, groups=24),
    case_of("taps of 5x5", 1, 72, (7, 37), 72, 5, padding=2, stride=(2, 1), groups=72),
    case_of("taps of 31x31", 1, 8, (14, 14), 8, 31, padding=15, groups=8),
    case_of("taps on a line", 2, 16, (1, 150), 16, (1, 33), padding=(0, 16), groups=16),
    case_of("taps down a column", 1, 8, (40, 9), 8, (13, 3), padding=(6, 0), groups=8),
    case_of("taps far apart", 3, 8, (19, 11), 8, (5, 4), padding=(4, 1), dilation=(3, 1), groups=8),
]
BY_NAME = {case.name: case for case in [*GROUPS, *TAPS]}


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


@pytest.mark.parametrize(
    ("kernel", "rest", "pays"),
    [
        (11, {"padding": 5}, True),
        (3, {"padding": 8, "dilation": 8}, True),  # all of what a tile loads is read, if only by one of three taps
        (1, {"stride": 2}, False),  # a quarter of it is
        (2, {"dilation": 40}, False),
    ],
    ids=str,
)
def test_tiles_pay_where_what_they_load_is_read(emulator: Emulator, kernel: int, rest: dict, pays: bool) -> None:
    case = case_of(f"groups of {kernel}x{kernel}, {rest}", 1, 16, (43, 47), 16, kernel, groups=4, **rest)
    gpu = Gpu(emulator, case, torch.bfloat16)
    assert gpu.check_forward()
    assert any("conv_group_products" in name for name in emulator.launched()) == pays


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
    case = case_of(f"{channels} to {out} in {groups}", 1, channels, plane, out, 3, padding=1, groups=groups)
    for chip, kernels in zip((CHIP, 75), chosen, strict=True):
        gpu = Gpu(emulator, case, dtype, True, chip=chip)
        for check, kernel in zip((gpu.check_forward, gpu.check_grad_weight), kernels, strict=True):
            assert check()
            assert any(name.startswith(f"{kernel}<") for name in emulator.launched())
