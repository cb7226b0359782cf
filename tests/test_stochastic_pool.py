"""Stochastic pooling: what is drawn, against the generator and the rule of the draw written out; how often; gradients;
and that a draw depends on nothing but the seed and its place."""

import math
import random
from typing import Any

import pytest
import reference
import torch
from kernels import SUPPORTED
from layouts import LAYOUTS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fastconv
from fastconv import stochastic_pool2d
from fastconv._native import native

ops = torch.ops.fastconv
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
#: Of a mean in evaluation: one rounding of a result, and those of two sums.
TOLERANCE = {torch.float32: 4e-6, torch.float64: 1e-14, torch.bfloat16: 2**-8, torch.float16: 2**-10}

#: (N, C, H, W), kernel_size, stride, padding: widths and channels on and beside the lengths of vectors, strides of 1, 2
#: and more, windows that reach into the padding, rows that the next windows need again, taps in one and two bytes.
CASES: dict[str, tuple] = {
    "2x2": ((2, 5, 8, 9), 2, None, 0),
    "3x3 s2 p1": ((2, 17, 15, 37), 3, 2, 1),
    "3x3 s1 p1": ((1, 33, 7, 16), 3, 1, 1),
    "2x5 s1x3 p0x2": ((1, 16, 9, 50), (2, 5), (1, 3), (0, 2)),
    "stride beyond kernel": ((1, 3, 11, 40), (2, 3), (4, 7), 0),
    "the whole input": ((2, 3, 5, 19), (5, 19), None, 0),
    "17x17 s1 p8": ((1, 4, 18, 18), 17, 1, 8),
    "8x8 s1 p4, many channels": ((2, 32, 9, 10), 8, 1, 4),
    "a pixel": ((2, 3, 1, 1), 1, None, 0),
    "no image": ((0, 3, 4, 5), 2, None, 0),
}


def draw_input(size, seed: str, zeros: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(random.Random(seed).randrange(2**32))
    x = torch.rand(size, generator=generator, dtype=torch.float64)
    return x * (x > 0.5) if zeros else x


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- what is drawn -----------------------------------------------------------------------------------------


def test_philox() -> None:
    """The reference's generator gives the words that its authors publish (Random123's kat_vectors)."""
    assert reference.philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 0xFFFFFFFF
    assert reference.philox((ones,) * 4, (ones,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_draws(name: str, dtype: torch.dtype, isa: str) -> None:
    """Every draw, exactly, wherever the operator is asked for it."""
    size, kernel, stride, padding = CASES[name]
    rng = random.Random(f"{name} {dtype} {isa}")
    x = draw_input(size, name).to(dtype)
    seed = rng.randrange(-(2**63), 2**63)
    values, indices = reference.stochastic_pool(x, seed, kernel=kernel, stride=stride, padding=padding)
    torch.set_num_threads(rng.choice([1, 2]))
    for layout in LAYOUTS:
        input = LAYOUTS[layout](x)
        windows = [size for value in (kernel, stride or kernel, padding, 1) for size in reference._two(value)]
        output, ids = ops._stochastic_pool(input, torch.tensor([seed]), windows)
        assert output.dtype == dtype
        assert torch.equal(output.double(), values), layout
        got = ops._max_pool_indices(ids, list(size), windows, False)
        assert torch.equal(got, indices), layout
        last = layout in ("channels_last", "sliced_channels_last") and output.numel() > 0
        if last and size[1:] != (3, 1, 1):
            assert output.is_contiguous(memory_format=torch.channels_last)


def test_places_beyond_two_to_the_32() -> None:
    """The counter has 64 bits: two planes whose places differ by a multiple of 2^32 draw differently."""
    words = [reference.philox((5, high, 0, 0), (9, 0))[:2] for high in (0, 1)]
    assert words[0] != words[1]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_draw_depends_on_nothing_else(layout: str, threads: int, isa: str) -> None:
    x = draw_input((3, 19, 40, 41), "draw").float()
    native.isa_select(SUPPORTED[-1])
    torch.set_num_threads(1)
    wanted = stochastic_pool2d(x, 3, 2, 1, generator=seeded(), return_indices=True)
    native.isa_select(isa)
    torch.set_num_threads(threads)
    got = stochastic_pool2d(LAYOUTS[layout](x), 3, 2, 1, generator=seeded(), return_indices=True)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])


def test_seeds() -> None:
    x = draw_input((2, 8, 20, 20), "seeds", zeros=False).float()
    torch.manual_seed(3)
    first, second = stochastic_pool2d(x, 2), stochastic_pool2d(x, 2)
    torch.manual_seed(3)
    again = stochastic_pool2d(x, 2)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    assert torch.equal(stochastic_pool2d(x, 2, generator=seeded(1)), stochastic_pool2d(x, 2, generator=seeded(1)))
    assert not torch.equal(stochastic_pool2d(x, 2, generator=seeded(1)), stochastic_pool2d(x, 2, generator=seeded(2)))
    stochastic_pool2d(x, 2, training=False)
    assert torch.equal(torch.get_rng_state(), state), "a generator of its own leaves PyTorch's alone"


def quantile(degrees: int) -> float:
    """Of chi-square, exceeded once in a million times (Wilson and Hilferty)."""
    return degrees * (1 - 2 / (9 * degrees) + 4.7534 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_distribution(layout: str, dtype: torch.dtype) -> None:
    """Chi-square over 20,000 windows of the same nine values, of fixed seeds; and that neighbours are independent: the
    same over pairs of neighbours in every direction."""
    window = torch.tensor([[0.0, 1.0, 2.0], [4.0, 0.25, 8.0], [0.5, 3.0, 1.25]], dtype=dtype)
    chances = (window / window.double().sum()).flatten().double()
    x = LAYOUTS[layout](window.repeat(2, 20, 25, 20))
    _, indices = stochastic_pool2d(x, 3, generator=seeded(11), return_indices=True)  # type: ignore[misc]
    taps = indices // 60 % 3 * 3 + indices % 3
    possible = chances > 0
    counts = torch.bincount(taps.flatten(), minlength=9).double()
    assert counts[0] == 0
    wanted = chances * taps.numel()
    assert ((counts - wanted)[possible] ** 2 / wanted[possible]).sum() < quantile(7)
    for d in range(4):
        pairs = taps.narrow(d, 0, taps.shape[d] - 1) * 9 + taps.narrow(d, 1, taps.shape[d] - 1)
        counts = torch.bincount(pairs.flatten(), minlength=81).double()
        wanted = (chances[:, None] * chances).flatten() * pairs.numel()
        frequent = wanted > 5
        assert ((counts - wanted)[frequent] ** 2 / wanted[frequent]).sum() < quantile(int(frequent.sum()))


# ---- special values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_windows_of_zeros(dtype: torch.dtype, layout: str) -> None:
    """Zero, in both modes; the index of the first element in the input; nobody's gradient."""
    x = LAYOUTS[layout](torch.zeros(2, 17, 6, 20, dtype=dtype))
    x[0, 0, 0, 0] = 2
    x.requires_grad_()
    output, indices = stochastic_pool2d(x, 3, 1, 1, return_indices=True)  # type: ignore[misc]
    assert output.count_nonzero() == 4
    rows, columns = ((torch.arange(size) - 1).clamp(min=0) for size in (6, 20))
    first = rows[:, None] * 20 + columns
    assert torch.equal(indices, first.expand_as(indices))
    (grad,) = torch.autograd.grad(output.sum(), x)
    assert grad[0, 0, 0, 0] == 4
    assert grad.count_nonzero() == 1
    mean = stochastic_pool2d(x, 3, 1, 1, training=False)
    assert torch.equal(mean, output)
    (grad,) = torch.autograd.grad(mean.sum(), x)  # type: ignore[union-attr]
    assert grad.isfinite().all()
    assert grad[1].count_nonzero() == grad[0, 1:].count_nonzero() == 0


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_sums_that_overflow(dtype: torch.dtype, layout: str) -> None:
    """Windows whose sum is beyond the largest number are drawn as others are, beside windows of tiny numbers; an
    infinite element is drawn for certain, and is the mean."""
    window = torch.tensor([[1.0, 0.0], [2.0, 1.0]], dtype=dtype)
    x = window.repeat(1, 4, 20, 20)
    small, huge = x * 2.0**-100, x * 2.0 ** (1022 if dtype == torch.float64 else 126)
    assert huge.double().sum() > torch.finfo(dtype).max
    mixed = torch.where(torch.arange(4).view(4, 1, 1) % 2 == 0, small, huge)
    wanted = stochastic_pool2d(x, 2, generator=seeded(), return_indices=True)
    for values in (small, huge, mixed):
        _, indices = stochastic_pool2d(LAYOUTS[layout](values), 2, generator=seeded(), return_indices=True)
        assert torch.equal(indices, wanted[1])
    mean = stochastic_pool2d(LAYOUTS[layout](huge), 2, training=False)
    torch.testing.assert_close(mean / huge.max(), torch.full_like(mean, 0.75), rtol=2**-8, atol=0)  # type: ignore[call-overload]
    x[..., 1, 1] = torch.inf
    output, _ = stochastic_pool2d(LAYOUTS[layout](x), 2, generator=seeded(), return_indices=True)
    mean = stochastic_pool2d(LAYOUTS[layout](x), 2, training=False)
    for values in (output, mean):
        assert (values[..., 0, 0] == torch.inf).all()
        assert (values[..., 1:, 1:] <= 2).all()


@pytest.mark.parametrize("value", [-0.5, -math.inf, math.nan, -(2.0**-120)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 2, 4, 4), (0, 1, 3, 2)])
def test_negative_elements(value: float, training: bool, place: tuple, isa: str) -> None:
    for layout in ("contiguous", "channels_last"):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            x = LAYOUTS[layout](torch.ones(2, 30, 50, 50))
            x[place] = value
            with pytest.raises(RuntimeError) as raised:
                stochastic_pool2d(x, 2, training=training)
            text = f"{value:g}" if value != -(2.0**-120) else "-7.52316e-37"
            assert str(raised.value) == f"stochastic_pool2d: input must not be negative (got {text})"
    assert stochastic_pool2d(torch.full((1, 1, 2, 2), -0.0), 2).item() == 0  # type: ignore[union-attr]


# ---- evaluation, gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_evaluation(name: str, isa: str) -> None:
    size, kernel, stride, padding = CASES[name]
    rng = random.Random(f"{name} {isa}")
    dtype = rng.choice(DTYPES)
    x = draw_input(size, name).to(dtype)
    added = {"kernel": kernel, "stride": stride, "padding": padding, "divisor_override": 1}
    leaf = x.double().requires_grad_()
    sums, squares = (reference.avg_pool(t, **added) for t in (leaf, leaf**2))
    wanted = torch.where(sums == 0, 0, squares / torch.where(sums == 0, 1, sums))
    grad = draw_input(wanted.shape, name + "grad").to(dtype)
    (wanted_grad,) = torch.autograd.grad(wanted, leaf, grad.double())
    for layout in LAYOUTS:
        input = LAYOUTS[layout](x).detach().requires_grad_()
        output = stochastic_pool2d(input, kernel, stride, padding, training=False)
        assert output.dtype == dtype  # type: ignore[union-attr]
        close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
        torch.testing.assert_close(output.double(), wanted.detach(), **close)  # type: ignore[union-attr]
        (got,) = torch.autograd.grad(output, input, grad)  # type: ignore[arg-type]
        close = {name: 8 * value for name, value in close.items()}
        torch.testing.assert_close(got.double(), wanted_grad, **close)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("training", [True, False])
def test_gradients(training: bool, layout: str) -> None:
    for size, window in (((2, 3, 6, 7), (2,)), ((1, 2, 7, 6), (3, 2, 1)), ((1, 2, 5, 5), (3, 1, 1))):
        x = LAYOUTS[layout](draw_input(size, "gradients", zeros=False) + 0.1).requires_grad_()

        def pool(x: Tensor, window: tuple = window) -> Any:
            # A step of the numerical gradient moves no draw: the seed was chosen so.
            return stochastic_pool2d(x, *window, training=training, generator=seeded(4))

        assert torch.autograd.gradcheck(pool, x)
        assert torch.autograd.gradgradcheck(lambda x, pool=pool: pool(x) * x.sum(), x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_gradients_go_to_what_was_drawn(name: str, layout: str, isa: str) -> None:
    """Also where windows that overlap have drawn different elements of the same row, which those of maxima never do."""
    size, kernel, stride, padding = CASES[name]
    x = LAYOUTS[layout](draw_input(size, name, zeros=False)).requires_grad_()
    output, indices = stochastic_pool2d(x, kernel, stride, padding, return_indices=True, generator=seeded())
    grad = torch.rand(output.shape, dtype=torch.float64, generator=seeded())
    (got,) = torch.autograd.grad(output, x, grad)
    wanted = torch.zeros(size, dtype=torch.float64).flatten(2)
    wanted.scatter_add_(2, indices.flatten(2), grad.flatten(2))
    torch.testing.assert_close(got, wanted.view(size), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_do_not_depend_on_the_threads(layout: str, dtype: torch.dtype, isa: str) -> None:
    """Nor on the bands of rows into which these cut an image."""
    x = torch.zeros(1, 32, 64, 16, dtype=dtype)
    x[:, :, 2, 5] = 1
    x[:, :, 40:] = torch.rand(1, 32, 24, 16, dtype=dtype, generator=seeded())
    x = LAYOUTS[layout](x)
    grads = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaf = x.clone().requires_grad_()
        output = stochastic_pool2d(leaf, 8, 1, 4, generator=seeded())
        grad = torch.rand(output.shape, dtype=dtype, generator=seeded())  # type: ignore[union-attr]
        grads += torch.autograd.grad(output, leaf, grad)
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


def test_expected_gradient() -> None:
    """Over many draws an element receives as much gradient as its probability says, within five standard deviations."""
    window = torch.tensor([[1.0, 0.0], [2.0, 5.0]])
    x = window.repeat(1, 50, 20, 20).requires_grad_()
    output = stochastic_pool2d(x, 2, generator=seeded(5))
    (grad,) = torch.autograd.grad(output.sum(), x)  # type: ignore[union-attr]
    count = output.numel()  # type: ignore[union-attr]
    means = grad.unflatten(3, (20, 2)).unflatten(2, (20, 2)).sum((0, 1, 2, 4)) / count
    chances = window / window.sum()
    assert means[0, 1] == 0
    assert ((means - chances).abs() <= 5 * (chances * (1 - chances) / count).sqrt()).all()


def test_the_output_may_change_before_backward() -> None:
    x = draw_input((1, 2, 6, 6), "in place", zeros=False).requires_grad_()
    output = stochastic_pool2d(x, 2)
    (wanted,) = torch.autograd.grad(output.sum(), x, retain_graph=True)  # type: ignore[union-attr]
    (got,) = torch.autograd.grad(output.relu_().sum(), x)  # type: ignore[union-attr]
    assert torch.equal(got, wanted)


def test_unbatched_and_empty() -> None:
    x = draw_input((3, 8, 9), "unbatched").float()
    for training in (True, False):
        one = stochastic_pool2d(x, 2, training=training, generator=seeded())
        assert torch.equal(one, stochastic_pool2d(x[None], 2, training=training, generator=seeded())[0])  # type: ignore[arg-type]
        empty = stochastic_pool2d(x[None][:0].requires_grad_(), 2, training=training)
        assert empty.shape == (0, 3, 4, 4)  # type: ignore[union-attr]
        empty.sum().backward()  # type: ignore[union-attr]


# ---- among PyTorch's other parts ---------------------------------------------------------------------------


@pytest.mark.parametrize("last", [False, True])
def test_opcheck(last: bool) -> None:
    x = draw_input((2, 5, 7, 8), "opcheck", zeros=False).float()
    x = (x.to(memory_format=torch.channels_last) if last else x).requires_grad_()
    windows = [3, 2, 2, 1, 1, 0, 1, 1]
    torch.library.opcheck(ops._stochastic_pool.default, (x, torch.tensor([5]), windows))
    torch.library.opcheck(ops._stochastic_pool_mean.default, (x, windows))


class Net(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y, indices = stochastic_pool2d(x, 3, 2, 1, return_indices=True)  # type: ignore[misc]
        z = stochastic_pool2d(x, 2, training=False)
        return (y + 0 * indices).square().sum() + z.square().sum()  # type: ignore[union-attr]


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(Net(), backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for height in (17, 22):
        x = draw_input((2, 4, height, 19), "compile").requires_grad_()
        results = []
        for net in (compiled, Net()):
            torch.manual_seed(1)
            output = net(x)
            results.append((output, torch.autograd.grad(output, x)[0]))
        torch.testing.assert_close(*results)
        torch.manual_seed(2)
        first = compiled(x)
        assert not torch.equal(first, compiled(x)), "every call draws anew"


def test_export() -> None:
    x = draw_input((2, 4, 17, 19), "export").float()
    program = torch.export.export(Net(), (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=2, max=64)}})
    wider = draw_input((5, 4, 17, 19), "wider").float()
    results = []
    for net in (program.module(), Net()):
        torch.manual_seed(1)
        results.append(net(wider))
    torch.testing.assert_close(*results)


def test_func() -> None:
    x = draw_input((2, 4, 9, 8), "func").float()

    def loss(x: Tensor) -> Tensor:
        return (stochastic_pool2d(x, 3, 2, 1, generator=seeded()) ** 2).sum()  # type: ignore[operator]

    leaf = x.clone().requires_grad_()
    assert torch.equal(torch.func.grad(loss)(x), torch.autograd.grad(loss(leaf), leaf)[0])


def test_module() -> None:
    module = fastconv.nn.StochasticPool2d(3, 2, 1)
    x = draw_input((2, 5, 9, 9), "module").float()
    torch.manual_seed(4)
    output = module(x)
    torch.manual_seed(4)
    assert torch.equal(output, stochastic_pool2d(x, 3, 2, 1))  # type: ignore[arg-type]
    assert torch.equal(module.eval()(x), stochastic_pool2d(x, 3, 2, 1, training=False))  # type: ignore[arg-type]
    assert repr(module) == "StochasticPool2d(kernel_size=3, stride=2, padding=1)"


# ---- what is refused ---------------------------------------------------------------------------------------

X = (1, 4, 5, 6)
BAD: list[tuple[tuple, dict, type, str]] = [
    (X, {"kernel_size": 0}, RuntimeError, "kernel_size must be positive (got [0, 0])"),
    (X, {"kernel_size": 2, "stride": 0}, RuntimeError, "stride must be positive (got [0, 0])"),
    (X, {"kernel_size": 2, "padding": -1}, RuntimeError, "padding must not be negative (got [-1, -1])"),
    (X, {"kernel_size": 3, "padding": 2}, RuntimeError, "padding must be at most half of what a window spans, 3"),
    (X, {"kernel_size": 6}, RuntimeError, "kernel_size must not span more than the padded input, 6 > 5"),
    ((4, 5), {"kernel_size": 2}, RuntimeError, "input must have 4 dimensions, or 3 without a batch (got [4, 5])"),
    ((1, 0, 5, 6), {"kernel_size": 2}, RuntimeError, "input must not be empty but for its batch (got [1, 0, 5, 6])"),
    (X, {"kernel_size": 1.5}, TypeError, "kernel_size must be an integer or 2 integers (got 1.5)"),
    (X, {"kernel_size": 2, "generator": 5}, TypeError, "generator must be a torch.Generator (got 5)"),
    (
        X,
        {"kernel_size": 2, "training": False, "return_indices": True},
        ValueError,
        "return_indices must be False in evaluation (got True)",
    ),
]


@pytest.mark.parametrize(("size", "kwargs", "error", "message"), BAD, ids=[bad[3][:40] for bad in BAD])
def test_refused(size: tuple, kwargs: dict, error: type, message: str) -> None:
    def call() -> None:
        with pytest.raises(error) as raised:
            stochastic_pool2d(torch.ones(size), **kwargs)
        assert str(raised.value).startswith(f"stochastic_pool2d: {message}")

    call()
    with FakeTensorMode():
        call()


def test_refused_by_the_operator() -> None:
    x = torch.ones(1, 4, 5, 6)
    for seed in (torch.tensor([1, 2]), torch.tensor([1.0])):
        with pytest.raises(RuntimeError, match="stochastic_pool2d: seed must be int64 of one element"):
            ops._stochastic_pool(x, seed, [2, 2, 2, 2, 0, 0, 1, 1])
    with pytest.raises(RuntimeError, match="input must be float32, float64, bfloat16 or float16"):
        stochastic_pool2d(x.long(), 2)
