"""Power-average pooling against PyTorch's in float64: values and gradients, on every instruction set."""

import inspect
import math
import random

import pytest
import torch
import torch.nn.functional as F
from layouts import LAYOUTS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fastconv
from fastconv import lp_pool2d

ops = torch.ops.fastconv
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
#: Roundings of a sum and a root; 16-bit results and the roots that gradients divide by are rounded once each.
TOLERANCE = {torch.float32: 4e-6, torch.float64: 1e-14, torch.bfloat16: 2**-6, torch.float16: 2**-9}

#: (N, C, H, W), kernel_size, stride, ceil_mode: both walks, rows joined column by column and window by window.
CASES: dict[str, tuple] = {
    "2x2": ((2, 5, 8, 9), 2, None, False),
    "3x3 s2 ceil": ((2, 17, 14, 38), 3, 2, True),
    "3x3 s1": ((1, 33, 7, 17), 3, 1, False),
    "4x4 s3 ceil": ((1, 20, 9, 15), 4, 3, True),
    "2x5 s1x3": ((1, 16, 9, 50), (2, 5), (1, 3), False),
    "9x9 s1": ((1, 4, 12, 30), 9, 1, False),
    "the whole input": ((2, 70, 12, 19), (12, 19), None, False),
    "wide windows, few of them": ((1, 3, 6, 400), (2, 90), (2, 100), True),
    "no image": ((0, 3, 4, 5), 2, None, False),
}
NORMS = [1, 2, 3, 1.5, -2, 0.5, math.inf, -math.inf]


def values(size, norm: float) -> Tensor:
    """With negative elements where their powers are real, and channels of zeros where zero has a power."""
    x = torch.randn(size, dtype=torch.float64)
    if norm not in (1, 2, math.inf, -math.inf):
        x = x.abs() + 0.1
    if norm >= 1 and len(x):
        x[0, 1] = 0
    return x


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("norm", NORMS)
def test_against_pytorch(norm: float, name: str, isa: str) -> None:
    size, kernel, stride, ceil = CASES[name]
    rng = random.Random(f"{name} {norm} {isa}")
    dtype = rng.choice(DTYPES)
    torch.set_num_threads(rng.choice([1, 2]))
    x = values(size, norm).to(dtype)
    leaf = x.double().requires_grad_()
    wanted = F.lp_pool2d(leaf, norm, kernel, stride, ceil)
    grad = torch.randn_like(wanted).to(dtype)
    (wanted_grad,) = torch.autograd.grad(wanted, leaf, grad.double())
    # Sums of both signs cancel: in units of the sums of magnitudes.
    scale = F.lp_pool2d(x.double().abs(), norm, kernel, stride, ceil) if norm == 1 else wanted.detach().abs()
    for layout in LAYOUTS:
        input = LAYOUTS[layout](x).detach().requires_grad_()
        output = lp_pool2d(input, norm, kernel, stride, ceil)
        assert output.dtype == dtype
        assert ((output.double() - wanted).abs() <= TOLERANCE[dtype] * scale + 1e-7 * (dtype == torch.float16)).all()
        (got,) = torch.autograd.grad(output, input, grad)
        tolerance = 8 * TOLERANCE[dtype]
        torch.testing.assert_close(got.double(), wanted_grad, rtol=tolerance, atol=tolerance)
        last = layout in ("channels_last", "sliced_channels_last") and output.numel() > 0
        assert output.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_dtype(layout: str, dtype: torch.dtype) -> None:
    x = torch.randn(2, 19, 9, 11, dtype=torch.float64).to(dtype)
    got = lp_pool2d(LAYOUTS[layout](x), 2, 3, 2)
    wanted = F.lp_pool2d(x.double(), 2, 3, 2)
    torch.testing.assert_close(got.double(), wanted, rtol=TOLERANCE[dtype], atol=0)


def test_float16_does_not_overflow() -> None:
    x = torch.full((1, 1, 4, 4), 3000.0, dtype=torch.float16, requires_grad=True)
    output = lp_pool2d(x, 2, 2)
    assert (output == 6000).all()
    (grad,) = torch.autograd.grad(output.sum(), x)
    assert (grad == 0.5).all()
    tiny = torch.full((1, 1, 4, 4), 2.0**-20, dtype=torch.float16, requires_grad=True)
    (grad,) = torch.autograd.grad(lp_pool2d(tiny, 2, 2).sum(), tiny)
    assert (grad == 0.5).all()


@pytest.mark.parametrize("norm", [0.5, 1, 2, 3])
@pytest.mark.parametrize("ceil", [False, True])
def test_windows_of_zeros_have_no_gradient(norm: float, ceil: bool) -> None:
    x = torch.zeros(1, 2, 5, 5)
    x[0, 0, 0, 0] = 1
    x.requires_grad_()
    output = lp_pool2d(x, norm, 2, 2, ceil)
    (grad,) = torch.autograd.grad(output.sum(), x)
    assert grad.isfinite().all()
    assert grad[0, 1].count_nonzero() == 0
    assert grad[0, 0, 2:].count_nonzero() == grad[0, 0, :, 2:].count_nonzero() == 0
    assert grad[0, 0, 0, 0] == 1
    if norm >= 1:
        (theirs,) = torch.autograd.grad(F.lp_pool2d(x, norm, 2, 2, ceil).sum(), x)
        torch.testing.assert_close(grad, theirs)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_second_gradients(layout: str, norm: float) -> None:
    # Far enough apart that no step of the numerical gradient changes which is the largest.
    x = LAYOUTS[layout]((torch.randperm(2 * 3 * 6 * 7).double().view(2, 3, 6, 7) + 3) / 50).requires_grad_()
    for kernel, stride, ceil in ((2, None, False), (3, 2, True), (3, 1, False)):

        def pool(x: Tensor, windows: tuple = (kernel, stride, ceil)) -> Tensor:
            return lp_pool2d(x, norm, *windows)

        assert torch.autograd.gradcheck(pool, x)
        assert torch.autograd.gradgradcheck(lambda x, pool=pool: pool(x) * x.sum(), x)


def test_unbatched_and_empty() -> None:
    x = torch.randn(3, 8, 9)
    for norm in (1, 2, 4, math.inf):
        one = lp_pool2d(x, norm, 2)
        torch.testing.assert_close(one, lp_pool2d(x[None], norm, 2)[0])
        empty = lp_pool2d(x[None][:0].requires_grad_(), norm, 2)
        assert empty.shape == (0, 3, 4, 4)
        empty.sum().backward()


# ---- among PyTorch's other parts ---------------------------------------------------------------------------


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("ceil", [False, True])
def test_opcheck(ceil: bool, last: bool) -> None:
    x = torch.randn(2, 5, 8, 8)
    x = (x.to(memory_format=torch.channels_last) if last else x).requires_grad_()
    torch.library.opcheck(ops._l2_pool.default, (x, [3, 2, 2, 1, 0, 0, 1, 1], ceil))


class Net(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        pooled = [lp_pool2d(x, norm, 3, 2, True) for norm in (1, 2, 4, math.inf)]
        return sum((each**2).sum() for each in pooled)  # type: ignore[return-value]


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(Net(), backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for height in (16, 22):
        x = torch.randn(2, 4, height, 19, requires_grad=True)
        results = [(net(x), torch.autograd.grad(net(x), x)[0]) for net in (compiled, Net())]
        torch.testing.assert_close(*results)


def test_export() -> None:
    x = torch.randn(2, 4, 17, 19)
    program = torch.export.export(Net(), (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=2, max=64)}})
    wider = torch.randn(5, 4, 17, 19)
    torch.testing.assert_close(program.module()(wider), Net()(wider))


def test_func() -> None:
    x = torch.randn(2, 4, 9, 8)
    got, wanted = (torch.func.grad(lambda x, m=m: (m.lp_pool2d(x, 2, 3, 2) ** 3).sum())(x) for m in (fastconv, F))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("arguments", [(2, 3), (1.5, (2, 3), 2, True), (math.inf, 2)])
def test_module(arguments: tuple) -> None:
    theirs, ours = (module.LPPool2d(*arguments) for module in (nn, fastconv.nn))
    assert isinstance(ours, nn.LPPool2d)
    assert inspect.signature(type(ours)) == inspect.signature(nn.LPPool2d)
    assert repr(ours) == repr(theirs)
    x = torch.rand(2, 5, 9, 8)
    torch.testing.assert_close(ours(x), theirs(x))
    assert type(fastconv.convert(nn.Sequential(theirs))[0]) is fastconv.nn.LPPool2d


# ---- what is refused ---------------------------------------------------------------------------------------

X = (1, 4, 5, 6)
BAD: list[tuple[tuple, dict, type, str]] = [
    (X, {"norm_type": 2, "kernel_size": 0}, RuntimeError, "kernel_size must be positive (got [0, 0])"),
    (X, {"norm_type": 3, "kernel_size": 0}, RuntimeError, "kernel_size must be positive (got [0, 0])"),
    (X, {"norm_type": 1, "kernel_size": 2, "stride": 0}, RuntimeError, "stride must be positive (got [0, 0])"),
    (X, {"norm_type": 2, "kernel_size": 6}, RuntimeError, "kernel_size must not span more than the padded input, 6"),
    (X, {"norm_type": math.inf, "kernel_size": 6}, RuntimeError, "kernel_size must not span more than the padded"),
    ((4, 5), {"norm_type": 2, "kernel_size": 2}, RuntimeError, "input must have 4 dimensions, or 3 without a batch"),
    ((1, 0, 5, 6), {"norm_type": 2, "kernel_size": 2}, RuntimeError, "input must not be empty but for its batch"),
    (X, {"norm_type": 2, "kernel_size": 1.5}, TypeError, "kernel_size must be an integer or 2 integers (got 1.5)"),
    (X, {"norm_type": "2", "kernel_size": 2}, TypeError, "norm_type must be a number (got '2')"),
    (X, {"norm_type": 0, "kernel_size": 2}, ValueError, "norm_type must be a number other than 0 (got 0)"),
    (X, {"norm_type": math.nan, "kernel_size": 2}, ValueError, "norm_type must be a number other than 0 (got nan)"),
]


@pytest.mark.parametrize(("size", "kwargs", "error", "message"), BAD)
def test_refused(size: tuple, kwargs: dict, error: type, message: str) -> None:
    def call() -> None:
        with pytest.raises(error) as raised:
            lp_pool2d(torch.ones(size), **kwargs)
        assert str(raised.value).startswith(f"lp_pool2d: {message}")

    call()
    with FakeTensorMode():
        call()


@pytest.mark.parametrize("norm", [1, 2, 3, math.inf])
def test_integers_are_refused(norm: float) -> None:
    with pytest.raises(RuntimeError, match="lp_pool2d: input must be float32, float64, bfloat16 or float16"):
        lp_pool2d(torch.ones(1, 4, 5, 6, dtype=torch.int64), norm, 2)
    with pytest.raises(TypeError, match="lp_pool2d: input must be a Tensor"):
        lp_pool2d("x", norm, 2)  # type: ignore[arg-type]
