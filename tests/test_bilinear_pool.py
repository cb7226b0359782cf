"""Bilinear pooling against the sum written out, and its sketch against the definition and the inner products it
keeps."""

import pytest
import torch
from layouts import LAYOUTS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fastconv
from fastconv import bilinear_pool, bilinear_pool2d, compact_bilinear_pool2d

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 2**-8, torch.float16: 2**-10}
#: Channels of both, rows and columns, length of the sketch: fewer pairs of channels than places of all positions'
#: sketches, and more.
SIZES = [(5, 7, 6, 4, 16), (19, 16, 3, 3, 33), (8, 9, 1, 1, 8), (1, 1, 2, 2, 1)]


def outer(x: Tensor, y: Tensor) -> Tensor:
    result = torch.zeros(x.shape[0], x.shape[1], y.shape[1], dtype=torch.float64)
    for h in range(x.shape[2]):
        for w in range(x.shape[3]):
            result += x[:, :, None, h, w].double() * y[:, None, :, h, w].double()
    return result


def sketch(pairs: Tensor, length: int, seed: int) -> Tensor:
    """Pair by pair, from the definition."""
    (h1, s1), (h2, s2) = (
        [t.tolist() for t in bilinear_pool._hashes(count, length, seed, which, pairs.device)]
        for which, count in enumerate(pairs.shape[1:])
    )
    result = torch.zeros(pairs.shape[0], length, dtype=torch.float64)
    for i in range(pairs.shape[1]):
        for j in range(pairs.shape[2]):
            result[:, (h1[i] + h2[j]) % length] += s1[i] * s2[j] * pairs[:, i, j]
    return result


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values(size: tuple, layout: str, dtype: torch.dtype) -> None:
    C1, C2, H, W, length = size
    x, y = (torch.randn(3, C, H, W, dtype=torch.float64).to(dtype) for C in (C1, C2))
    for second in (y, None):
        other = x if second is None else y
        pairs, scale = outer(x, other), outer(x.abs(), other.abs())
        given = (LAYOUTS[layout](x), second if second is None else LAYOUTS[layout](second))
        got = bilinear_pool2d(*given)
        assert got.dtype == dtype
        assert ((got.double() - pairs.flatten(1)).abs() <= TOLERANCE[dtype] * scale.flatten(1)).all()
        got = compact_bilinear_pool2d(*given, output_dim=length, seed=5)
        wanted = sketch(pairs, length, 5)
        assert got.dtype == dtype
        assert got.shape == (3, length)
        assert ((got.double() - wanted).abs() <= TOLERANCE[dtype] * scale.sum((1, 2))[:, None]).all()


@pytest.mark.parametrize("length", [1, 2, 7, 64])
def test_both_ways_to_the_sketch_agree(length: int) -> None:
    x, y = torch.randn(2, 6, 3, 4, dtype=torch.float64), torch.randn(2, 5, 3, 4, dtype=torch.float64)
    hashes = [bilinear_pool._hashes(t.shape[1], length, 3, which, t.device) for which, t in enumerate((x, y))]
    ways = (bilinear_pool._sketch_of_pairs, bilinear_pool._sketch_by_transforms)
    torch.testing.assert_close(*(way(x, y, *hashes, length) for way in ways))


def test_inner_products_of_sketches() -> None:
    """On average over seeds the inner product of two sketches is that of the bilinear features, here the squared inner
    product of two vectors; its variance is at most (3 |x|^4 |y|^4) / output_dim or so, of which the mean may be five
    standard errors off."""
    x, y = torch.randn(2, 1, 12, 1, 1, dtype=torch.float64)
    length, seeds = 64, 2000
    products = torch.stack(
        [
            (
                compact_bilinear_pool2d(x, output_dim=length, seed=s)
                * compact_bilinear_pool2d(y, output_dim=length, seed=s)
            ).sum()
            for s in range(seeds)
        ]
    )
    wanted = (x * y).sum() ** 2
    assert (bilinear_pool2d(x) * bilinear_pool2d(y)).sum() == pytest.approx(wanted.item())
    error = products.std() / seeds**0.5
    assert error > 0
    assert (products.mean() - wanted).abs() <= 5 * error
    assert products.var() <= 4 * (x.norm() * y.norm()) ** 4 / length


def test_hashes() -> None:
    """Fixed for good: a sketch that was stored stays comparable. Even, and different for each of the two maps."""
    places, signs = bilinear_pool._hashes(5, 1000, 0, 0, torch.device("cpu"))
    assert places.tolist() == PLACES
    assert signs.tolist() == SIGNS
    many, signs = bilinear_pool._hashes(64000, 64, 9, 1, torch.device("cpu"))
    counts = torch.bincount(many, minlength=64).double()
    assert ((counts - 1000) ** 2 / 1000).sum() < 140  # chi-square of 63 degrees, exceeded once in a million times
    assert signs.double().mean().abs() < 5 / 64000**0.5
    assert (signs * (many % 2 * 2 - 1)).double().mean().abs() < 5 / 64000**0.5
    drawn = [bilinear_pool._hashes(64, 2**20, *given, torch.device("cpu"))[0] for given in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(each.tolist()) for each in drawn}) == 3
    wide = [bilinear_pool._hashes(9, 64, s, 0, torch.device("cpu"))[0].tolist() for s in (-1, 2**64 - 1)]
    assert wide[0] == wide[1]


PLACES = [727, 700, 679, 636, 747]
SIGNS = [-1, 1, 1, -1, 1]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients(layout: str) -> None:
    for C1, C2, H, W, length in SIZES[:2]:
        x, y = (LAYOUTS[layout](torch.randn(2, min(C, 4), H, W).double()).requires_grad_() for C in (C1, C2))
        for function in (bilinear_pool2d, lambda *maps, d=length: compact_bilinear_pool2d(*maps, output_dim=d)):
            for maps in ((x, y), (x,)):
                assert torch.autograd.gradcheck(function, maps)
                assert torch.autograd.gradgradcheck(function, maps)
    x = LAYOUTS[layout](torch.randn(1, 5, 1, 2).double()).requires_grad_()  # more pairs than places
    assert torch.autograd.gradcheck(lambda x: compact_bilinear_pool2d(x, output_dim=4), x)
    assert torch.autograd.gradgradcheck(lambda x: compact_bilinear_pool2d(x, output_dim=4), x)


def test_unbatched_and_empty() -> None:
    x, y = torch.randn(3, 4, 5), torch.randn(2, 4, 5)
    for maps in ((x, y), (x,)):
        batched = [each[None] for each in maps]
        torch.testing.assert_close(bilinear_pool2d(*maps), bilinear_pool2d(*batched)[0])
        for length in (6, 1):
            one = compact_bilinear_pool2d(*maps, output_dim=length)
            torch.testing.assert_close(one, compact_bilinear_pool2d(*batched, output_dim=length)[0])
        empty = [each[:0].requires_grad_() for each in batched]
        assert bilinear_pool2d(*empty).shape == (0, 3 * maps[-1].shape[0])
        for length in (6, 1000):
            output = compact_bilinear_pool2d(*empty, output_dim=length)
            assert output.shape == (0, length)
            output.sum().backward()


def test_float16_does_not_overflow_on_the_way() -> None:
    """The pairs are beyond float16, what their signs leave of them is not."""
    x = torch.full((1, 2, 1, 1), 300.0, dtype=torch.float16)
    wide = compact_bilinear_pool2d(x.float(), output_dim=1, seed=SEED_THAT_CANCELS)
    assert wide.item() == 0
    assert compact_bilinear_pool2d(x, output_dim=1, seed=SEED_THAT_CANCELS).item() == 0


SEED_THAT_CANCELS = next(
    seed for seed in range(100) if bilinear_pool._hashes(2, 1, seed, 0, torch.device("cpu"))[1].sum() == 0
)


class Net(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        sketches = [compact_bilinear_pool2d(x, x[:, 1:], output_dim=length, seed=3) for length in (16, 1)]
        return torch.cat([bilinear_pool2d(x), *sketches], 1)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(Net(), backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for height in (6, 8):
        x = torch.randn(2, 4, height, 5, requires_grad=True)
        results = [(net(x), torch.autograd.grad(net(x).sin().sum(), x)[0]) for net in (compiled, Net())]
        torch.testing.assert_close(*results)


def test_export() -> None:
    program = torch.export.export(
        Net(), (torch.randn(2, 4, 6, 5),), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=2, max=64)}}
    )
    wider = torch.randn(5, 4, 6, 5)
    torch.testing.assert_close(program.module()(wider), Net()(wider))


def test_autocast() -> None:
    x = torch.randn(2, 4, 6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert bilinear_pool2d(x).dtype == torch.bfloat16  # as all products of matrices
        for length in (16, 1):
            got = compact_bilinear_pool2d(x, output_dim=length)
            assert got.dtype == torch.float32
    torch.testing.assert_close(got, compact_bilinear_pool2d(x, output_dim=1), rtol=0.05, atol=0.5)


def test_modules() -> None:
    x, y = torch.randn(2, 5, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(fastconv.nn.BilinearPool2d()(x, y), bilinear_pool2d(x, y))
    assert torch.equal(fastconv.nn.BilinearPool2d()(x), bilinear_pool2d(x))
    module = fastconv.nn.CompactBilinearPool2d(32, 4)
    assert torch.equal(module(x, y), compact_bilinear_pool2d(x, y, output_dim=32, seed=4))
    assert repr(module) == "CompactBilinearPool2d(output_dim=32, seed=4)"


X = torch.ones(2, 3, 4, 5)
BAD: list[tuple[tuple, type, str]] = [
    ((X[0, 0],), RuntimeError, "x must have 4 dimensions, or 3 without a batch (got [4, 5])"),
    ((X, X[0]), RuntimeError, "y must have the batch and positions of x, [2, 3, 4, 5] (got [3, 4, 5])"),
    ((X, X[:1]), RuntimeError, "y must have the batch and positions of x, [2, 3, 4, 5] (got [1, 3, 4, 5])"),
    ((X, X[..., 1:]), RuntimeError, "y must have the batch and positions of x, [2, 3, 4, 5] (got [2, 3, 4, 4])"),
    ((X, X.double()), RuntimeError, "y must have the dtype of x, float32 (got float64)"),
    ((X.long(),), RuntimeError, "x must be float32, float64, bfloat16 or float16 (got int64)"),
    ((X[:, :0],), RuntimeError, "x must not be empty but for its batch (got [2, 0, 4, 5])"),
    ((X, X[:, :0]), RuntimeError, "y must not be empty but for its batch (got [2, 0, 4, 5])"),
    ((3,), TypeError, "x must be a Tensor (got 3)"),
    ((X, 3), TypeError, "y must be a Tensor (got 3)"),
]


@pytest.mark.parametrize(("maps", "error", "message"), BAD, ids=[bad[2][:60] for bad in BAD])
def test_refused(maps: tuple, error: type, message: str) -> None:
    for name, kwargs in ("bilinear_pool2d", {}), ("compact_bilinear_pool2d", {"output_dim": 8}):

        def call(maps: tuple = maps, name: str = name, kwargs: dict = kwargs) -> None:
            with pytest.raises(error) as raised:
                getattr(fastconv, name)(*maps, **kwargs)
            assert str(raised.value).startswith(f"{name}: {message}")

        call()
        with FakeTensorMode() as mode:
            call(tuple(mode.from_tensor(m) if isinstance(m, Tensor) else m for m in maps))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"output_dim": 0}, ValueError, "output_dim must be positive (got 0)"),
        ({"output_dim": 1.5}, TypeError, "output_dim must be an integer (got 1.5)"),
        ({"output_dim": 8, "seed": "a"}, TypeError, "seed must be an integer (got 'a')"),
        ({"output_dim": 8, "seed": 2**64}, ValueError, f"seed must have 64 bits (got {2**64})"),
    ],
)
def test_refused_sketches(kwargs: dict, error: type, message: str) -> None:
    with pytest.raises(error) as raised:
        compact_bilinear_pool2d(X, **kwargs)
    assert str(raised.value) == f"compact_bilinear_pool2d: {message}"
