"""Unpooling against the reference and PyTorch: values, gradients, indices that occur twice, indices that are wrong.

The cases reach every branch of csrc/pool/unpool.h: planes of one step and of several, windows of more channels than a
step, indices that go forwards, backwards and nowhere. Those of 2^15 elements and more run with several threads, and in
parts where they are few planes.
"""

import inspect
import random
import warnings
from typing import Any

import pytest
import reference
import torch
import torch.nn.functional as F
from layouts import LAYOUTS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fastconv

ops = torch.ops.fastconv
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def randn(*size: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.randn(size, dtype=dtype).requires_grad_(grad)


def pooled(size, *windows) -> tuple[Tensor, Tensor, list[int]]:
    """Values and indices of a pooling, and the size of its planes."""
    values, indices = F.max_pool2d(torch.randn(size, dtype=torch.float64), *windows, return_indices=True)
    return values, indices, list(size[2:])


def drawn(size, plane: list[int]) -> tuple[Tensor, Tensor, list[int]]:
    """Any indices, some of them several times."""
    return torch.randn(size, dtype=torch.float64), torch.randint(plane[0] * plane[1], size), plane


def descending(size, plane: list[int]) -> tuple[Tensor, Tensor, list[int]]:
    last = plane[0] * plane[1] - 1
    indices = (last - torch.arange(size[2] * size[3])).clamp(min=0).view(size[2:]).expand(size)
    return torch.randn(size, dtype=torch.float64), indices, plane


# ---- max_unpool ------------------------------------------------------------------------------------------------------

MAX = {
    # values, indices, the size of the planes; kernel_size, stride and padding
    "2x2": lambda: (*pooled((2, 5, 8, 12), 2), (2,)),
    "2x2, odd": lambda: (*pooled((2, 3, 9, 13), 2), (2,)),
    "2x2, more windows than a step": lambda: (*pooled((1, 3, 80, 90), 2), (2,)),
    "2x2, more windows than a chunk": lambda: (*pooled((1, 2, 182, 186), 2), (2,)),
    "2x2, channels": lambda: (*pooled((1, 70, 20, 24), 2), (2,)),
    "2x2, more channels than a step": lambda: (*pooled((1, 1100, 4, 4), 2), (2,)),
    "2x2, more channels than a chunk": lambda: (*pooled((1, 8200, 2, 2), 2), (2,)),
    "2x2, many images": lambda: (*pooled((9, 20, 6, 8), 2), (2,)),
    "2x3 s3x4, gaps": lambda: (*pooled((2, 17, 12, 19), (2, 3), (3, 4)), ((2, 3), (3, 4))),
    "3x3 s2 p1, duplicates": lambda: (*pooled((2, 18, 11, 15), 3, 2, 1), (3, 2, 1)),
    "5x5 s1 p2, many duplicates": lambda: (*pooled((1, 15, 30, 41), 5, 1, 2), (5, 1, 2)),
    "a pixel": lambda: (*pooled((2, 3, 2, 2), 2), (2,)),
    "no image": lambda: (*drawn((0, 3, 2, 2), [4, 4]), (2,)),
    "anywhere": lambda: (*drawn((2, 40, 9, 10), [18, 20]), (2,)),
    "anywhere, one channel": lambda: (*drawn((1, 1, 100, 80), [200, 160]), (2,)),
    "backwards": lambda: (*descending((1, 20, 40, 30), [80, 60]), (2,)),
    "all to the last": lambda: (torch.randn(1, 6, 20, 60).double(), torch.full((1, 6, 20, 60), 4799), [40, 120], (2,)),
}


@pytest.mark.parametrize("name", MAX)
def test_max(name: str, isa: str) -> None:
    torch.manual_seed(0)
    values, indices, plane, windows = MAX[name]()
    rng = random.Random(f"{name} {isa}")
    for dtype in DTYPES:
        x, grad = values.to(dtype), torch.randn(*values.shape[:2], *plane).to(dtype)
        expected = reference.max_unpool(x, indices, plane)
        expected_grad = reference.max_unpool_grad(grad, indices)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            names = [rng.choice(list(LAYOUTS)) for _ in range(3)]
            leaf = LAYOUTS[names[0]](x.clone()).requires_grad_()
            where = LAYOUTS[names[1]](indices)
            output = fastconv.max_unpool2d(leaf, where, *windows, output_size=plane)
            assert output.dtype == dtype
            assert torch.equal(output, expected), names
            (got,) = torch.autograd.grad(output, leaf, LAYOUTS[names[2]](grad))
            assert torch.equal(got, expected_grad), names
            assert torch.equal(where, indices)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("of_indices", LAYOUTS)
@pytest.mark.parametrize("of_input", LAYOUTS)
def test_every_pair_of_layouts(of_input: str, of_indices: str, dtype: torch.dtype) -> None:
    values, indices, plane = pooled((2, 19, 8, 10), 2)
    x, where = LAYOUTS[of_input](values.to(dtype)), LAYOUTS[of_indices](indices)
    output = fastconv.max_unpool2d(x, where, 2)
    assert torch.equal(output, reference.max_unpool(values.to(dtype), indices, plane))
    last = of_input in ("channels_last", "sliced_channels_last")
    assert output.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    assert output.stride() == F.max_unpool2d(x, where, 2).stride()


def test_bits_are_moved_as_they_are() -> None:
    """NaN with its payload, and the signs of zeros."""
    x = torch.tensor([0x7FC12345, -0x80000000, 0x7F800001, 0x00000001], dtype=torch.int32).view(torch.float32)
    output = fastconv.max_unpool2d(x.view(1, 1, 2, 2), torch.tensor([0, 2, 8, 10]).view(1, 1, 2, 2), 2)
    assert torch.equal(output.flatten()[[0, 2, 8, 10]].view(torch.int32), x.view(torch.int32))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_last_of_equal_indices_stays(layout: str) -> None:
    values = torch.arange(2 * 40 * 64.0).view(1, 40, 1, 128)[..., :64].reshape(1, 40, 8, 8)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        output = fastconv.max_unpool2d(LAYOUTS[layout](values), torch.full(values.shape, 3), 2)
        assert torch.equal(output.flatten(2)[0, :, 3], values[0, :, -1, -1])
        assert output.count_nonzero() == 40


def test_one_dimension() -> None:
    for size, windows in (((2, 5, 36), (2,)), ((2, 5, 37), (3, 2, 1)), ((1, 3, 5000), (2,))):
        values, indices = F.max_pool1d(torch.randn(size), *windows, return_indices=True)
        for layout in LAYOUTS.values():
            x = layout(values.clone()).requires_grad_()
            output = fastconv.max_unpool1d(x, layout(indices), *windows, output_size=size)
            assert torch.equal(output, reference.max_unpool(values, indices, size[2:]))
            grad = torch.randn(size)
            (got,) = torch.autograd.grad(output, x, layout(grad))
            assert torch.equal(got, reference.max_unpool_grad(grad, indices))
        alone = fastconv.max_unpool1d(values[0], indices[0], *windows, output_size=size[2:])
        assert torch.equal(alone, output[0])


def test_unbatched() -> None:
    values, indices, _ = pooled((2, 3, 8, 10), 2)
    for given in (2, 2, 0, None), (2, 2, 0, (9, 11)), (2, None, 0, [8, 11]):
        batched = fastconv.max_unpool2d(values, indices, *given)
        assert torch.equal(fastconv.max_unpool2d(values[1], indices[1], *given), batched[1])
        assert torch.equal(fastconv.avg_unpool2d(values[1], *given), fastconv.avg_unpool2d(values, *given)[1])


def test_gradients_of_stride_zero() -> None:
    values, indices, _ = pooled((1, 3, 8, 10), 2)
    x = values.requires_grad_()
    (grad,) = torch.autograd.grad(fastconv.max_unpool2d(x, indices, 2).sum(), x)
    assert torch.equal(grad, torch.ones_like(grad))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_derivatives_of_max(layout: str) -> None:
    values, indices, _ = pooled((2, 3, 6, 8), 2)
    x = LAYOUTS[layout](values.clone()).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: fastconv.max_unpool2d(x, indices, 2), x)
    assert torch.autograd.gradgradcheck(lambda x: fastconv.max_unpool2d(x, indices, 2) * x.sum(), x)
    # The gradient is one of its own where indices occur twice, and its derivatives are those of what it does.
    _, indices, plane = drawn((2, 3, 3, 5), [3, 4])
    grad = LAYOUTS[layout](torch.randn(2, 3, *plane, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda grad: ops._max_unpool_grad(grad, indices), grad)
    assert torch.autograd.gradgradcheck(lambda grad: ops._max_unpool_grad(grad, indices) * grad.sum(), grad)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [(2, 20, 3, 4), (1, 3, 50, 50), (1, 1700, 2, 2)])
@pytest.mark.parametrize("beyond", [-1, None, 2**62, -(2**63)])
def test_wrong_indices(beyond: int | None, size: tuple[int, ...], layout: str) -> None:
    """The first in memory is named, wherever it is, and however many there are. None: the first beyond the plane."""
    positions = size[2] * size[3] * 4
    bad = positions if beyond is None else beyond
    message = rf"max_unpool2d: indices must lie in \[0, {positions}\) \(got {bad}\)"
    x, grad = LAYOUTS[layout](torch.randn(size)), torch.randn(*size[:2], 2 * size[2], 2 * size[3])
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for place in ((0, 0, 0, 0), (-1, -1, -1, -1), (0, size[1] // 2, -1, 0)):
            indices = LAYOUTS[layout](torch.zeros(size, dtype=torch.int64))
            indices[place] = bad
            with pytest.raises(RuntimeError, match=message):
                fastconv.max_unpool2d(x, indices, 2)
            with pytest.raises(RuntimeError, match=message):
                ops._max_unpool_grad(LAYOUTS[layout](grad), indices)
        indices = LAYOUTS[layout](torch.full(size, positions + 5))
        indices[0, 0, 0, 0] = bad
        with pytest.raises(RuntimeError, match=message):
            fastconv.max_unpool2d(x, indices, 2)


def test_an_empty_plane() -> None:
    x, indices = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    for module in (F, fastconv):
        assert module.max_unpool2d(x, indices, 2, padding=1).shape == (1, 1, 0, 0)
    assert fastconv.avg_unpool2d(x, 2, padding=1).shape == (1, 1, 0, 0)
    assert torch.equal(fastconv.avg_unpool2d(x, 2, padding=1, output_size=(1, 1)), x)


# ---- avg_unpool2d ----------------------------------------------------------------------------------------------------

AVG: dict[str, tuple] = {
    # (N, C, P, Q); kernel_size, stride, padding, output_size
    "2x2": ((2, 5, 4, 9), 2),
    "2x2, channels": ((1, 70, 3, 4), 2),
    "2x2, larger output": ((1, 4, 3, 9), 2, None, 0, (7, 19)),
    "2x2, smaller output": ((1, 4, 3, 9), 2, None, 0, (5, 17)),
    "3x3 s2 p1": ((2, 17, 5, 9), 3, 2, 1),
    "3x3 s2 p1, larger and smaller": ((2, 5, 5, 9), 3, 2, 1, (10, 16)),
    "3x3 s1 p1": ((1, 6, 6, 33), 3, 1, 1),
    "5x4 s2x3": ((1, 3, 4, 8), (5, 4), (2, 3)),
    "2x3 s3x5, gaps": ((1, 18, 4, 5), (2, 3), (3, 5)),
    "2x3 s3x2, gaps and overlaps": ((1, 5, 4, 5), (2, 3), (3, 2), (1, 1)),
    "last windows beyond the output": ((1, 4, 4, 5), (2, 2), (4, 3), (1, 0), (9, 12)),
    "one window": ((2, 3, 1, 1), (3, 4)),
    "no image": ((0, 3, 2, 2), 2),
}


@pytest.mark.parametrize("name", AVG)
def test_avg(name: str, isa: str) -> None:
    torch.manual_seed(0)
    size, *windows = AVG[name]
    rng = random.Random(f"{name} {isa}")
    for dtype in DTYPES:
        values = torch.randn(size, dtype=torch.float64).to(dtype)
        torch.set_num_threads(rng.choice([1, 2]))
        leaf = LAYOUTS[rng.choice(list(LAYOUTS))](values.clone()).requires_grad_()
        output = fastconv.avg_unpool2d(leaf, *windows)
        expected = reference.avg_unpool(values, output.shape[2:], *windows[:3])
        assert output.dtype == dtype
        torch.testing.assert_close(output.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        grad = LAYOUTS[rng.choice(list(LAYOUTS))](torch.randn(output.shape).to(dtype))
        (got,) = torch.autograd.grad(output, leaf, grad)
        wide = values.double().requires_grad_()
        exact = reference.avg_unpool(wide, output.shape[2:], *windows[:3])
        (wanted,) = torch.autograd.grad(exact, wide, grad.double()) if wide.numel() else (wide,)
        torch.testing.assert_close(got.double(), wanted.detach(), rtol=0, atol=20 * TOLERANCE[dtype])


def test_the_mean_of_what_was_spread() -> None:
    for dtype in DTYPES:
        y = torch.randn(2, 5, 4, 6).to(dtype)
        for kernel in (2, 4, (1, 3)):
            back = fastconv.avg_pool2d(fastconv.avg_unpool2d(y, kernel), kernel)
            torch.testing.assert_close(back, y, rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.parametrize("value", [1.0, 1 / 3, 60000.0])
def test_constants_stay_constant(value: float) -> None:
    for dtype in DTYPES:
        y = torch.full((1, 3, 5, 7), value).to(dtype)
        for layout in ("contiguous", "channels_last"):
            for windows in ((2,), (3, 1, 1), (5, 1, 2), (3, 2, 1)):
                x = fastconv.avg_unpool2d(LAYOUTS[layout](y), *windows)
                exact = dtype in (torch.bfloat16, torch.float16)
                torch.testing.assert_close(
                    x, y[:1, :, :1, :1].expand_as(x), rtol=0 if exact else 4 * TOLERANCE[dtype], atol=0
                )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_format_of_means(layout: str) -> None:
    y = LAYOUTS[layout](torch.randn(2, 3, 4, 5))
    last = layout in ("channels_last", "sliced_channels_last")
    for windows in ((2,), (3, 2, 1), (2, 2, 0, (7, 11)), (3, 2, 1, (6, 10))):
        output = fastconv.avg_unpool2d(y, *windows)
        assert output.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("windows", [(2,), (3, 2, 1), (2, 3), (3, 2, 1, (4, 6))])
def test_derivatives_of_avg(windows: tuple) -> None:
    y = randn(1, 2, 3, 3, dtype=torch.float64, grad=True)
    assert torch.autograd.gradcheck(lambda y: fastconv.avg_unpool2d(y, *windows), y)
    assert torch.autograd.gradgradcheck(lambda y: fastconv.avg_unpool2d(y, *windows) * y.sum(), y)


# ---- among PyTorch's other parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [False, True])
def test_opcheck(last: bool) -> None:
    format = torch.channels_last if last else torch.contiguous_format
    for values, indices, plane in (pooled((2, 5, 6, 8), 2), pooled((2, 5, 7, 8), 3, 2, 1), drawn((0, 5, 2, 3), [4, 6])):
        x = values.contiguous(memory_format=format).requires_grad_()
        grad = torch.randn(*x.shape[:2], *plane).contiguous(memory_format=format).requires_grad_()
        torch.library.opcheck(ops.max_unpool.default, (x, indices, plane))
        torch.library.opcheck(ops._max_unpool_grad.default, (grad, indices))
    values, indices = F.max_pool1d(torch.randn(2, 3, 8), 2, return_indices=True)
    torch.library.opcheck(ops.max_unpool.default, (values.requires_grad_(), indices, [8]))


class Net(nn.Module):
    """One of everything, with a gradient through it."""

    def forward(self, x: Tensor) -> Tensor:
        y, indices = fastconv.max_pool2d(x, 2, return_indices=True)  # type: ignore[misc]
        up = fastconv.max_unpool2d(y * y, indices, 2, output_size=x.shape[-2:])
        means = fastconv.avg_unpool2d(y, 3, 2, 1) ** 2
        row, where = fastconv.max_pool1d(x[0], 2, return_indices=True)  # type: ignore[misc]
        rows = fastconv.max_unpool1d(row * row, where, 2)
        return (up**2).sum() + (means**2).sum() + (rows**2).sum() + (fastconv.avg_unpool2d(y, 2) ** 2).sum()


def gradients(function: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    output = function(leaf)
    return output.detach(), torch.autograd.grad(output, leaf)[0]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool, last: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(Net(), backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for height in (17, 22):
        x = torch.randn(2, 4, height, 18)
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        torch.testing.assert_close(gradients(compiled, x), gradients(Net(), x))
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), Net()(x))


def test_export() -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Net(), (torch.randn(2, 4, 16, 18),), dynamic_shapes={"x": {0: batch}})
    wider = torch.randn(5, 4, 16, 18)
    torch.testing.assert_close(program.module()(wider), Net()(wider))


def test_func() -> None:
    values, indices, _ = pooled((2, 4, 6, 8), 2)
    got = torch.func.grad(lambda x: (fastconv.max_unpool2d(x, indices, 2) ** 2).sum())(values)
    torch.testing.assert_close(got, 2 * values)
    stacked = torch.func.vmap(lambda x, i: fastconv.max_unpool2d(x, i, 2))(values[:, None], indices[:, None])
    assert torch.equal(stacked[:, 0], F.max_unpool2d(values, indices, 2))
    got = torch.func.grad(lambda x: (fastconv.avg_unpool2d(x, 3, 2, 1) ** 2).sum())(values)
    x = values.clone().requires_grad_()
    (wanted,) = torch.autograd.grad((fastconv.avg_unpool2d(x, 3, 2, 1) ** 2).sum(), x)
    torch.testing.assert_close(got, wanted)
    stacked = torch.func.vmap(lambda x: fastconv.avg_unpool2d(x, 3, 2, 1))(values[:, None])
    torch.testing.assert_close(stacked[:, 0], fastconv.avg_unpool2d(values, 3, 2, 1))


@pytest.mark.parametrize("name", ["MaxUnpool1d", "MaxUnpool2d"])
def test_modules(name: str) -> None:
    dims = int(name[-2])
    for given in ((2,), (3, 2, 1)):
        theirs, ours = (getattr(module, name)(*given) for module in (nn, fastconv.nn))
        assert isinstance(ours, type(theirs))
        assert inspect.signature(type(ours)) == inspect.signature(type(theirs))
        assert repr(ours) == repr(theirs)
        x = torch.randn(2, 5, 9, 7) if dims == 2 else torch.randn(2, 5, 9)
        values, indices = getattr(F, f"max_pool{dims}d")(x, *given, return_indices=True)
        assert torch.equal(ours(values, indices, output_size=x.size()), theirs(values, indices, output_size=x.size()))
        converted = fastconv.convert(nn.Sequential(theirs))
        assert type(converted[0]) is type(ours)
        assert type(fastconv.convert(converted, reverse=True)[0]) is type(theirs)


def test_module_of_means() -> None:
    y = torch.randn(2, 5, 4, 3)
    module = fastconv.nn.AvgUnpool2d((3, 2), 2, (1, 0))
    assert torch.equal(module(y, (8, 6)), fastconv.avg_unpool2d(y, (3, 2), 2, (1, 0), (8, 6)))
    assert repr(module) == "AvgUnpool2d(kernel_size=(3, 2), stride=2, padding=(1, 0))"
    assert torch.equal(fastconv.nn.AvgUnpool2d(2)(y), y.repeat_interleave(2, 2).repeat_interleave(2, 3))


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
NAMES = ["max_unpool1d", "max_unpool2d"]
OPERATORS = {op.name.removeprefix("nn.functional."): op for op in op_db if not op.variant_test_name}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_samples(name: str, dtype: torch.dtype) -> None:
    """Duplicates of a pooling have equal values, so that PyTorch's threads may take them in any order."""
    count = 0
    for sample in OPERATORS[name].sample_inputs("cpu", dtype, requires_grad=True):
        results = []
        for module in (fastconv, F):
            output = getattr(module, name)(sample.input, *sample.args, **sample.kwargs)
            (grad,) = torch.autograd.grad(output, sample.input, output.detach().sin(), create_graph=True)
            results.append((output, grad))
        (ours, our_grad), (theirs, their_grad) = results
        assert torch.equal(ours, theirs), sample
        assert torch.equal(our_grad, their_grad), sample
        assert ours.stride() == theirs.stride() or 1 in theirs.shape
        count += 1
    assert count >= 100


@pytest.mark.parametrize("name", NAMES)
def test_errors_have_the_same_type(name: str) -> None:
    count = 0
    for error in OPERATORS[name].error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises(error.error_type) as raised:
            getattr(fastconv, name)(sample.input, *sample.args, **sample.kwargs)
        assert str(raised.value).startswith(f"{name}: "), raised.value
        count += 1
    assert count >= 1


# ---- what is refused -------------------------------------------------------------------------------------------------

X = (1, 4, 5, 6)
BAD: list[tuple[type[Exception], dict, str]] = [
    (RuntimeError, {"kernel_size": 0}, "kernel_size must be positive (got [0, 0])"),
    (RuntimeError, {"kernel_size": (2, 2, 2)}, "kernel_size must have 2 elements (got [2, 2, 2])"),
    (RuntimeError, {"stride": (1, -1)}, "stride must be positive (got [1, -1])"),
    (RuntimeError, {"padding": -1}, "padding must not be negative (got [-1, -1])"),
    (ValueError, {"padding": 6, "kernel_size": 3, "stride": 1}, "output_size must not be negative (got [-5, -4])"),
    (ValueError, {"output_size": (8, 12)}, "output_size must lie between 9 and 11 in dimension 0 (got [8, 12])"),
    (ValueError, {"output_size": (10, 14)}, "output_size must lie between 11 and 13 in dimension 1 (got [10, 14])"),
    (ValueError, {"output_size": (10, 12, 1)}, "output_size must have 2 or 4 elements (got [10, 12, 1])"),
    (ValueError, {"output_size": 10}, "output_size must have 2 or 4 elements (got [10])"),
    (TypeError, {"output_size": (10, 12.0)}, "output_size must be an integer or 2 integers (got [10, 12.0])"),
    (TypeError, {"kernel_size": 1.5}, "kernel_size must be an integer or 2 integers (got 1.5)"),
    (TypeError, {"stride": "2"}, "stride must be an integer or 2 integers (got '2')"),
    (RuntimeError, {"input": (1, 0, 5, 6)}, "input must not be empty but for its batch (got [1, 0, 5, 6])"),
    (RuntimeError, {"input": (1, 4, 5, 0)}, "input must not be empty but for its batch (got [1, 4, 5, 0])"),
    (RuntimeError, {"input": (4, 5)}, "input must have 4 dimensions, or 3 without a batch (got [4, 5])"),
    (RuntimeError, {"dtype": torch.int64}, "input must be float32, float64, bfloat16 or float16 (got int64)"),
    (TypeError, {"input": "x"}, "input must be a Tensor (got 'x')"),
]
BAD_INDICES: list[tuple[type[Exception], dict, str]] = [
    (RuntimeError, {"indices": (1, 4, 5, 5)}, "indices must have shape [1, 4, 5, 6] (got [1, 4, 5, 5])"),
    (RuntimeError, {"indices": (4, 5, 6)}, "indices must have shape [1, 4, 5, 6] (got [4, 5, 6])"),
    (RuntimeError, {"input": (4, 5, 6), "indices": X}, "indices must have shape [4, 5, 6] (got [1, 4, 5, 6])"),
    (RuntimeError, {"of": torch.int32}, "indices must be int64 (got int32)"),
    (RuntimeError, {"of": torch.float32}, "indices must be int64 (got float32)"),
    (TypeError, {"indices": None}, "indices must be a Tensor (got None)"),
]


def refused(name: str, error: type[Exception], given: dict, message: str) -> None:
    rest = {"input": X, "kernel_size": 2, "dtype": torch.float32, "of": torch.int64, **given}
    input = rest.pop("input")
    indices = rest.pop("indices", input)
    dtype, of = rest.pop("dtype"), rest.pop("of")

    def call() -> None:
        arguments = [torch.ones(input, dtype=dtype) if isinstance(input, tuple) else input]
        if name.startswith("max"):
            arguments.append(torch.ones(indices, dtype=of) if isinstance(indices, tuple) else indices)
            if isinstance(input, str):
                arguments[1] = torch.ones(X, dtype=of)
        with pytest.raises(error) as raised:
            getattr(fastconv, name)(*arguments, **rest)
        assert str(raised.value) == f"{name}: {message}"

    call()
    with FakeTensorMode():
        call()


@pytest.mark.parametrize(("error", "given", "message"), BAD, ids=[b[2][:50] for b in BAD])
@pytest.mark.parametrize("name", ["max_unpool2d", "avg_unpool2d"])
def test_refused(name: str, error: type[Exception], given: dict, message: str) -> None:
    refused(name, error, given, message)


@pytest.mark.parametrize(("error", "given", "message"), BAD_INDICES, ids=[b[2][:60] for b in BAD_INDICES])
def test_refused_indices(error: type[Exception], given: dict, message: str) -> None:
    refused("max_unpool2d", error, given, message)


def test_refused_by_one_alone() -> None:
    refused(
        "avg_unpool2d", RuntimeError, {"padding": (1, 2)},
        "padding must be at most half of what a window spans, 2 in dimension 1 (got [1, 2])",
    )  # fmt: skip
    ones = torch.ones(1, 2, 3)
    with pytest.raises(RuntimeError, match=r"max_unpool1d: indices must lie in \[0, 6\) \(got 6\)"):
        fastconv.max_unpool1d(ones, torch.full((1, 2, 3), 6), 2)
    with pytest.raises(RuntimeError, match=r"max_unpool1d: input must have 3 dimensions, or 2 without a batch"):
        fastconv.max_unpool1d(ones[None], ones[None].long(), 2)
    with pytest.raises(ValueError, match=r"max_unpool1d: output_size must lie between 5 and 7 in dimension 0"):
        fastconv.max_unpool1d(ones, ones.long(), 2, output_size=[8])


@pytest.mark.parametrize("fake", [False, True])
def test_refused_by_the_operators(fake: bool) -> None:
    def call() -> None:
        x = torch.ones(X)
        where = x.long()
        for size, message in (
            ([10], r"output_size must have 2 elements \(got \[10\]\)"),
            ([10, -1], r"output_size must not be negative \(got \[10, -1\]\)"),
        ):
            with pytest.raises(RuntimeError, match=f"max_unpool2d: {message}"):
                ops.max_unpool(x, where, size)
        with pytest.raises(RuntimeError, match=r"max_unpool2d: input must have 3 or 4 dimensions \(got \[5, 6\]\)"):
            ops.max_unpool(x[0, 0], where[0, 0], [10, 12])
        with pytest.raises(RuntimeError, match=r"max_unpool2d: indices must be int64 \(got float32\)"):
            ops._max_unpool_grad(x, x)
        with pytest.raises(RuntimeError, match="max_unpool2d: indices must have the batch and the channels of grad"):
            ops._max_unpool_grad(x, where[:, 1:])

    if fake:
        with FakeTensorMode():
            call()
    else:
        call()


def test_a_plane_that_no_memory_holds() -> None:
    x = torch.ones(1, 1, 2, 2)
    with pytest.raises(RuntimeError, match="output must fit into memory"):
        fastconv.max_unpool2d(x, x.long(), 1, 2**30)
