"""Convolution on a GPU, against the same operators on the CPU.

The kernels' indexing is tested on any machine by test_conv_cuda.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from layouts import LAYOUTS
from on_gpu import DEVICE, TOLERANCE, close, placed, run
from torch import Tensor

import fastconv
from fastconv._native import native

WEIGHTS = ["conv_weight_pairs", "conv_weight_products", "conv_tensor_weights", "conv_add_parts"]
GROUPS = pytest.mark.kernels("conv_group_pack", "conv_group_products", "conv_group_weights", "conv_add_parts")
DEPTHWISE = pytest.mark.kernels(
    "conv_depthwise_planes", "conv_depthwise_pixels", "conv_depthwise_weights", "conv_pack", *WEIGHTS
)
PRODUCTS = pytest.mark.kernels(
    "conv_products",
    "conv_tensor_products",
    "conv_channels_last",
    "conv_add_outputs",
    "conv_grouped",
    "conv_general",
    "conv_pack",
    *WEIGHTS,
)
WARPGROUPS = pytest.mark.kernels("conv_wgmma_products")


@pytest.fixture(autouse=True)
def strict(cudnn_settings: None) -> None:
    """Without TF32, which PyTorch allows convolutions by default."""
    torch.backends.cudnn.allow_tf32 = False


@dataclass(frozen=True)
class Case:
    size: tuple[int, int, int, int] = (2, 32, 30, 41)
    out: int = 48
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: int = 1
    dilation: int = 1
    groups: int = 1
    transposed: bool = False

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        C = self.size[1]
        weight = (C, self.out // self.groups) if self.transposed else (self.out, C // self.groups)
        sizes = {"input": self.size, "weight": (*weight, *self.kernel), "bias": (self.out,)}
        generator = torch.Generator().manual_seed(0)
        made = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
        made["weight"] /= (C // self.groups) ** 0.5
        return {name: t.to(dtype) for name, t in made.items()}

    def __call__(self, tensors: dict[str, Tensor], **more: Any) -> Tensor:
        function = fastconv.conv_transpose2d if self.transposed else fastconv.conv2d
        geometry = {name: getattr(self, name) for name in ("stride", "padding", "dilation", "groups")}
        return function(*tensors.values(), **geometry, **more)


DEPTHWISE_CASES = {
    "3x3": Case(out=32, groups=32),
    "7x7": Case(size=(3, 96, 28, 27), out=96, kernel=(7, 7), padding=3, groups=96),
    "strided": Case(size=(2, 33, 57, 56), out=33, kernel=(5, 5), stride=2, padding=2, groups=33),
    "small planes": Case(size=(5, 64, 7, 7), out=64, groups=64),
    "dilated": Case(out=32, padding=6, dilation=6, groups=32),
    "a line": Case(size=(3, 64, 1, 300), out=64, kernel=(1, 31), padding=15, groups=64),
    "31x31": Case(size=(1, 16, 14, 14), out=16, kernel=(31, 31), padding=15, groups=16),
    "transposed": Case(out=32, kernel=(4, 4), stride=2, groups=32, transposed=True),
    "rows without taps": Case(out=32, size=(2, 32, 70, 70), kernel=(1, 1), padding=0, stride=2, groups=32),
    "rows in the padding": Case(out=32, size=(2, 32, 47, 47), kernel=(1, 1), groups=32),
}
#: 16-bit types, and float32 where it may be TF32, multiply several groups at once.
GROUPED_CASES = {
    "4": Case(size=(3, 128, 30, 41), out=128, groups=32),
    "8": Case(size=(2, 88, 30, 41), out=88, stride=2, groups=11),
    "16": Case(size=(2, 256, 14, 14), out=256, groups=16),
    "32": Case(size=(2, 96, 20, 21), out=96, padding=2, dilation=2, groups=3),
    "12 to 20": Case(size=(2, 48, 17, 19), out=80, groups=4),
    "3 to 1": Case(size=(2, 72, 19, 15), out=24, groups=24),
    "8 to 40": Case(size=(2, 24, 28, 29), out=120, kernel=(1, 1), padding=0, groups=3),
    "7x7": Case(size=(2, 64, 28, 28), out=64, kernel=(7, 7), padding=3, groups=16),
    "transposed": Case(size=(2, 64, 16, 17), out=64, kernel=(4, 4), stride=2, groups=8, transposed=True),
    "many pixels": Case(size=(4, 64, 150, 150), out=64, groups=16),
}
CASES = {
    "dense": Case(),
    "many channels": Case(size=(2, 136, 14, 13), out=200),
    "1x1": Case(size=(2, 64, 28, 28), out=128, kernel=(1, 1), padding=0),
    "few pixels": Case(size=(1, 256, 7, 7), out=200),  # a sum in parts
    "few pixels of groups": Case(size=(1, 520, 7, 5), out=70, kernel=(1, 1), padding=0, groups=2),
    "stem": Case(size=(2, 3, 64, 65), out=64, kernel=(7, 7), stride=2, padding=3),
    "dilated": Case(size=(1, 64, 20, 21), padding=12, dilation=12),
    "strided": Case(stride=2, kernel=(2, 5)),
    "groups": Case(size=(2, 64, 20, 21), out=64, groups=2),
    "small groups": Case(out=64, groups=8),
    "odd groups": Case(size=(2, 15, 30, 41), out=10, groups=5),
    "multiplier": Case(out=64, groups=32),
    "patches": Case(size=(2, 3, 64, 64), out=96, kernel=(16, 16), stride=16, padding=0),
    "transposed": Case(size=(2, 64, 16, 17), out=33, kernel=(4, 4), stride=2, transposed=True),
    "many pixels": Case(size=(1, 16, 280, 300), out=24),
    "many pixels to many channels": Case(size=(1, 16, 280, 300), out=136),  # tiles of 128 channels on every chip
    "many pixels of many channels": Case(size=(1, 136, 280, 300), out=24),
    "far apart": Case(size=(2, 32, 1, 1), out=32, stride=100003, transposed=True),
}
#: Of so many tiles of 128 pixels by 128 output channels that they fill the largest chip that warpgroups multiply on.
WARPGROUP_CASES = {
    "dense": Case(size=(4, 72, 70, 70), out=136),
    "1x1": Case(size=(4, 64, 70, 70), out=128, kernel=(1, 1), padding=0),
    "few terms": Case(size=(4, 8, 67, 68), out=72, kernel=(1, 1), padding=0),
    "odd channels": Case(size=(4, 64, 70, 70), out=131),
    "strided and dilated": Case(size=(4, 80, 141, 139), out=72, stride=2, padding=2, dilation=2),
    "groups": Case(size=(2, 144, 70, 71), out=160, groups=2),
    "transposed": Case(size=(4, 136, 35, 36), out=72, kernel=(4, 4), stride=2, transposed=True),
    "rows without taps": Case(size=(4, 72, 35, 36), out=80, kernel=(1, 1), padding=0, stride=2, transposed=True),
}


def check(case: Case, dtype: torch.dtype, layout: str) -> None:
    tensors = case.tensors(dtype)
    output = case(tensors)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    wanted, got = run(case, tensors, grad), run(case, placed(tensors, layout), LAYOUTS[layout](grad.to(DEVICE)))
    for name in wanted:
        close(got[name], wanted[name])


@PRODUCTS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_products(dtype: torch.dtype, layout: str) -> None:
    for case in CASES.values():
        check(case, dtype, layout)


@GROUPS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_groups(dtype: torch.dtype, layout: str) -> None:
    for case in GROUPED_CASES.values():
        check(case, dtype, layout)


@GROUPS
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_groups_keep_to_themselves(layout: str) -> None:
    """What is infinite in one channel reaches its own group's outputs and no others."""
    case = Case(size=(1, 64, 15, 16), out=64, groups=16)
    tensors = case.tensors(torch.bfloat16)
    tensors["input"][0, 5, 7, 7] = float("inf")
    got = case(placed(tensors, layout))
    assert torch.equal(got.isfinite().cpu(), case(tensors).isfinite())
    assert not got[:, 4:8].isfinite().all()


def needs_warpgroups() -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("compute capability 9.0 alone has these instructions")


@WARPGROUPS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", WARPGROUP_CASES)
def test_warpgroups(name: str, dtype: torch.dtype) -> None:
    needs_warpgroups()
    check(WARPGROUP_CASES[name], dtype, "channels_last")


@WARPGROUPS
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_activation_and_residual_of_warpgroups(activation: str) -> None:
    needs_warpgroups()
    for name in ("1x1", "odd channels"):
        case = WARPGROUP_CASES[name]
        tensors = case.tensors(torch.bfloat16)
        residual = torch.randn(case.size[0], case.out, *case.size[2:]).to(torch.bfloat16)
        wanted = case(tensors, activation=activation, residual=residual)
        own = placed(tensors, "channels_last")
        close(case(own, activation=activation, residual=residual.to(DEVICE)), wanted)


@WARPGROUPS
def test_every_call_of_warpgroups_gives_the_same_bits() -> None:
    needs_warpgroups()
    case = WARPGROUP_CASES["dense"]
    own = placed(case.tensors(torch.bfloat16), "channels_last")
    first = case(own)
    for _ in range(20):
        assert torch.equal(case(own), first)


@WARPGROUPS
@pytest.mark.sanitizer
def test_warpgroups_under_the_sanitizer() -> None:
    needs_warpgroups()
    check(WARPGROUP_CASES["few terms"], torch.bfloat16, "channels_last")


@DEPTHWISE
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_depthwise(dtype: torch.dtype, layout: str) -> None:
    for case in DEPTHWISE_CASES.values():
        check(case, dtype, layout)


@DEPTHWISE
@PRODUCTS
@GROUPS
@pytest.mark.sanitizer
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_under_the_sanitizer(layout: str) -> None:
    for groups, out in ((1, 24), (4, 16), (16, 16)):
        for dtype in (torch.float32, torch.bfloat16):
            for stride in (1, 2):
                check(Case(size=(2, 16, 17, 19), out=out, groups=groups, stride=stride), dtype, layout)
    for dtype in (torch.float32, torch.bfloat16):
        check(Case(size=(1, 64, 5, 5), out=24), dtype, layout)  # a sum in parts


@DEPTHWISE
@PRODUCTS
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_call_gives_the_same_bits(layout: str) -> None:
    for groups, dtype in ((1, torch.float32), (8, torch.float32), (8, torch.bfloat16), (32, torch.float32)):
        case = Case(size=(4, 32, 40, 40), out=32, groups=groups)
        tensors = placed(case.tensors(dtype), layout)
        grad = torch.randn(4, 32, 40, 40, device=DEVICE, dtype=dtype)
        first = run(case, tensors, grad)
        for _ in range(3):
            assert all(torch.equal(again, first[name]) for name, again in run(case, tensors, grad).items())


@DEPTHWISE
@PRODUCTS
@pytest.mark.parametrize("activation", ["relu", "relu6", "silu", "hardswish"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_activation_and_residual(layout: str, activation: str) -> None:
    cases = [Case(size=(2, 32, 20, 18), out=32, groups=groups) for groups in (1, 8, 32)]
    for case in [*cases, Case(size=(2, 256, 5, 5), out=32)]:
        tensors = case.tensors(torch.float32)
        residual = torch.randn(2, 32, *case.size[2:])
        wanted = case(tensors, activation=activation, residual=residual)
        close(case(placed(tensors, layout), activation=activation, residual=residual.to(DEVICE)), wanted)


@DEPTHWISE
@PRODUCTS
def test_second_derivatives() -> None:
    for groups in (1, 4):
        x = torch.randn(2, 4, 5, 6, dtype=torch.float64, device=DEVICE, requires_grad=True)
        weight = torch.randn(4, 4 // groups, 3, 2, dtype=torch.float64, device=DEVICE, requires_grad=True)
        function = lambda x, w, groups=groups: fastconv.conv2d(x, w, None, (2, 1), 1, groups=groups)  # noqa: E731
        assert torch.autograd.gradcheck(function, (x, weight))
        assert torch.autograd.gradgradcheck(function, (x, weight))


@PRODUCTS
def test_one_dimension_and_no_batch() -> None:
    x, weight = torch.randn(20, 33), torch.randn(24, 10, 5)
    wanted = fastconv.conv1d(x, weight, None, 2, 2, groups=2)
    close(fastconv.conv1d(x.to(DEVICE), weight.to(DEVICE), None, 2, 2, groups=2), wanted)


@PRODUCTS
def test_modules_in_evaluation_mode() -> None:
    """They keep no pack of CUDA weights."""
    module = fastconv.nn.Conv2d(16, 24, 3, padding=1).to(DEVICE).eval()
    x = torch.randn(1, 16, 9, 9, device=DEVICE)
    with torch.no_grad():
        first = module(x)
        for _ in range(3):
            assert torch.equal(module(x), first)


@PRODUCTS
def test_autocast() -> None:
    x, weight = torch.randn(1, 16, 9, 9, device=DEVICE), torch.randn(24, 16, 3, 3, device=DEVICE)
    with torch.autocast("cuda", torch.bfloat16):
        output = fastconv.conv2d(x, weight)
    assert output.dtype == torch.bfloat16
    close(output, fastconv.conv2d(x.cpu().bfloat16(), weight.cpu().bfloat16()))


@DEPTHWISE
@PRODUCTS
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_graph_capture(layout: str, capture: Callable) -> None:
    """Forward and backward; the input is new for each replay."""
    for groups in (1, 8, 32):
        case = Case(size=(2, 32, 20, 18), out=32, groups=groups)
        own = {name: t.requires_grad_() for name, t in placed(case.tensors(torch.float32), layout).items()}
        grad = torch.randn(2, 32, 20, 18, device=DEVICE)

        def step(case=case, own=own, grad=grad) -> list[Tensor]:
            output = case(own)
            return [output, *torch.autograd.grad(output, list(own.values()), grad)]

        graph, results = capture(step)
        for _ in range(2):
            with torch.no_grad():
                own["input"].copy_(torch.randn_like(own["input"]))
            graph.replay()
            for result, wanted in zip(results, step(), strict=True):
                assert torch.equal(result, wanted)


@PRODUCTS
@GROUPS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tf32(layout: str) -> None:
    """As near as factors of 11 bits allow, and not nearer: they were rounded. On chips older than 8.0 they are not."""
    names = ("dense", "many channels", "stem", "groups", "transposed", "few pixels")
    for case in [*(CASES[name] for name in names), *(GROUPED_CASES[name] for name in ("4", "16", "transposed"))]:
        tensors = {key: t.double() for key, t in case.tensors(torch.float32).items()}
        output = case(tensors)
        grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
        wanted = run(case, tensors, grad.double())
        own = placed({key: t.float() for key, t in tensors.items()}, layout)
        exact = run(case, own, LAYOUTS[layout](grad.to(DEVICE)))
        torch.backends.cudnn.allow_tf32 = True
        got = run(case, own, LAYOUTS[layout](grad.to(DEVICE)))
        torch.backends.cudnn.allow_tf32 = False
        for key in ("output", "input", "weight"):
            size = wanted[key].square().mean().sqrt()
            error, least = ((t[key].cpu().double() - wanted[key]).square().mean().sqrt() / size for t in (got, exact))
            assert error < 2**-10
            assert least < 1e-5
            assert error > 1e-5 or torch.cuda.get_device_capability() < (8, 0)


@DEPTHWISE
@PRODUCTS
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_kernel_that_is_asked_for_by_name(layout: str) -> None:
    """It runs, and gives what the others give; or it is an error, as `explain` says."""
    for groups in (1, 32):
        case = Case(size=(2, 32, 9, 10), out=32, groups=groups)
        tensors = case.tensors(torch.float32)
        wanted, own = case(tensors), placed(tensors, layout)
        for kernel in native.conv_cuda_kernels():
            with fastconv.flags(kernel=kernel):
                if fastconv.explain("conv2d", *own.values(), padding=1, groups=groups).kernel:
                    close(case(own), wanted)
                    continue
                with pytest.raises(RuntimeError, match=rf"conv2d: kernel must be able to serve .* \(got {kernel}\)"):
                    case(own)
        close(case(own), wanted)


@PRODUCTS
def test_arguments_are_checked() -> None:
    x = torch.zeros(1, 2, 3, 3, device=DEVICE)
    with pytest.raises(RuntimeError, match=r"conv2d: weight must be on the device of input, cuda"):
        fastconv.conv2d(x, torch.zeros(2, 2, 1, 1))
    with pytest.raises(RuntimeError, match=r"conv2d: weight must be on the device of input, cpu"):
        fastconv.conv2d(x.cpu(), torch.zeros(2, 2, 1, 1, device=DEVICE))


@DEPTHWISE
@PRODUCTS
def test_empty_batches_and_no_channels() -> None:
    x, weight = torch.zeros(0, 2, 3, 3, device=DEVICE), torch.ones(4, 2, 1, 1, device=DEVICE, requires_grad=True)
    output = fastconv.conv2d(x, weight)
    assert output.shape == (0, 4, 3, 3)
    output.sum().backward()
    assert weight.grad is not None
    assert (weight.grad == 0).all()
    nothing = fastconv.conv2d(torch.zeros(1, 0, 3, 3, device=DEVICE), torch.zeros(4, 0, 1, 1, device=DEVICE))
    assert torch.equal(nothing, torch.zeros(1, 4, 3, 3, device=DEVICE))
