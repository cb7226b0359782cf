"""Pooling's CUDA kernels on the emulator, against windows that are walked one element at a time in numpy, at
sizes that reach every branch."""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from emulated import Emulator, KernelError, emulator

__all__ = ["emulator"]

DTYPES = {"float32": np.float32, "float64": np.float64, "bfloat16": np.uint16, "float16": np.float16}
WIDE = {"float32": 4, "float64": 2, "bfloat16": 8, "float16": 8}  # elements of 16 bytes
ALL_BLOCKS = (1 << 31) - 1
NARROW = (1 << 31) - 1
BOTH_LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES)


# ---- the reference: windows, element by element ----


@dataclass(frozen=True)
class Axis:
    """Windows along one dimension; `adapts`: as many as that."""

    size: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    ceil: bool = False
    adapts: int = 0

    @property
    def outputs(self) -> int:
        if self.adapts:
            return self.adapts
        room = self.size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1
        outputs = (room + (self.stride - 1 if self.ceil else 0)) // self.stride + 1
        return outputs - (self.ceil and (outputs - 1) * self.stride >= self.size + self.padding)

    @property
    def taps(self) -> int:
        """Of the largest window."""
        return max(end - begin for begin, end in self.bounds()) if self.adapts else self.kernel

    def bounds(self) -> list[tuple[int, int]]:
        return [(o * self.size // self.adapts, -(-(o + 1) * self.size // self.adapts)) for o in range(self.adapts)]

    def windows(self) -> list[list[tuple[int, int]]]:
        """For each window (tap, position) of what is in the input."""
        if self.adapts:
            return [[(i - begin, i) for i in range(begin, end)] for begin, end in self.bounds()]
        places = (
            [(t, o * self.stride - self.padding + t * self.dilation) for t in range(self.kernel)]
            for o in range(self.outputs)
        )
        return [[(t, i) for t, i in window if 0 <= i < self.size] for window in places]

    def count(self, o: int, padding_counts: bool) -> int:
        if self.adapts or not padding_counts:
            return len(self.windows()[o])
        start = o * self.stride - self.padding
        return min(start + self.kernel, self.size + self.padding) - start

    def fields(self) -> list[int]:
        kernel = self.taps + self.extra
        return [self.size, self.outputs, kernel, self.stride, self.padding, self.dilation, int(self.adapts > 0)]

    @property
    def extra(self) -> int:
        """The library counts the taps of windows that adapt by a bound, which may be one more than there are."""
        if self.adapts < 2:
            return 0
        return min(self.size, self.size // self.adapts + 2) - self.taps


@dataclass(frozen=True)
class Case:
    N: int
    C: int
    h: Axis
    w: Axis

    def __str__(self) -> str:
        def text(a: Axis) -> str:
            if a.adapts:
                return f"{a.size}to{a.adapts}"
            return f"{a.size}k{a.kernel}s{a.stride}p{a.padding}d{a.dilation}{'c' if a.ceil else ''}"

        return f"{self.N}x{self.C}-{text(self.h)}-{text(self.w)}"

    @property
    def input(self) -> tuple[int, int, int, int]:
        return self.N, self.C, self.h.size, self.w.size

    @property
    def output(self) -> tuple[int, int, int, int]:
        return self.N, self.C, self.h.outputs, self.w.outputs

    @property
    def columns(self) -> int:
        return self.w.fields()[2]

    @property
    def id_type(self) -> type:
        taps = self.h.fields()[2] * self.columns
        return np.uint8 if taps <= 1 << 8 else np.uint16 if taps <= 1 << 16 else np.uint32

    def windows(self) -> Iterator[tuple[int, int, list[tuple[int, int, int]]]]:
        """Each window's row and column, and (tap, row, column) of its elements."""
        for o, rows in enumerate(self.h.windows()):
            for q, columns in enumerate(self.w.windows()):
                yield o, q, [(r * self.columns + s, i, j) for r, i in rows for s, j in columns]


def max_of(case: Case, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The maxima, the taps and the flat indices they came from (-1, both, where a window has no element)."""
    output = np.full(case.output, -np.inf)
    ids, indices = np.full(case.output, -1), np.full(case.output, -1)
    for o, q, window in case.windows():
        for number, (tap, i, j) in enumerate(window):
            wins = (x[:, :, i, j] > output[:, :, o, q]) | np.isnan(x[:, :, i, j]) | (number == 0)
            output[:, :, o, q] = np.where(wins, x[:, :, i, j], output[:, :, o, q])
            ids[:, :, o, q] = np.where(wins, tap, ids[:, :, o, q])
            indices[:, :, o, q] = np.where(wins, i * case.w.size + j, indices[:, :, o, q])
    return output, ids, indices


def avg_of(case: Case, x: np.ndarray, divisor: int, padding_counts: bool) -> np.ndarray:
    output = np.zeros(case.output)
    for o, q, window in case.windows():
        for _, i, j in window:
            output[:, :, o, q] += x[:, :, i, j]
        output[:, :, o, q] /= divisor or case.h.count(o, padding_counts) * case.w.count(q, padding_counts)
    return output


def avg_grad_of(case: Case, grad: np.ndarray, divisor: int, padding_counts: bool) -> np.ndarray:
    result = np.zeros(case.input)
    for o, q, window in case.windows():
        share = grad[:, :, o, q] / (divisor or case.h.count(o, padding_counts) * case.w.count(q, padding_counts))
        for _, i, j in window:
            result[:, :, i, j] += share
    return result


def max_grad_of(case: Case, grad: np.ndarray, indices: np.ndarray) -> np.ndarray:
    result = np.zeros((case.N, case.C, case.h.size * case.w.size))
    for n, c, o, q in np.ndindex(case.output):
        if indices[n, c, o, q] >= 0:
            result[n, c, indices[n, c, o, q]] += grad[n, c, o, q]
    return result.reshape(case.input)


# ---- values as the kernels have them ----


def encode(x: np.ndarray, dtype: str) -> np.ndarray:
    """Values that bfloat16 holds exactly, as they are stored."""
    if dtype != "bfloat16":
        return x.astype(DTYPES[dtype])
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def decode(x: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != "bfloat16":
        return x.astype(np.float64)
    return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def same(got: np.ndarray, wanted: np.ndarray) -> None:
    """Every value, and the signs of zeros."""
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(np.signbit(got) & ~np.isnan(got), np.signbit(wanted) & ~np.isnan(wanted))


def numbers(shape: tuple[int, ...], least: int = -3, most: int = 4, seed: int = 0) -> np.ndarray:
    """Few enough that most windows have ties, zeros of both signs among them."""
    x = np.random.default_rng(seed).integers(least, most, shape).astype(np.float64)
    return np.where(x == 0, np.where(np.random.default_rng(seed + 1).random(shape) < 0.5, -0.0, 0.0), x)


@dataclass(frozen=True)
class Gpu:
    """How the operators are called: type, memory format, offsets of the tensors in elements, limits of a launch."""

    emulator: Emulator
    dtype: str
    channels_last: bool
    offset: int = 0
    max_grid: int = ALL_BLOCKS
    narrow: int = NARROW
    threads: int = 0

    def memory(self, x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1) if self.channels_last else x)

    def logical(self, x: np.ndarray) -> np.ndarray:
        return x.transpose(0, 3, 1, 2) if self.channels_last else x

    def call(self, name: str, case: Case, *, divisor: int = 0, padding_counts: bool = True, seed: int = 0,
             **tensors: np.ndarray | None) -> dict[str, np.ndarray]:  # fmt: skip
        """Runs an operator. Tensors that are None are written, and returned."""
        types = {"input": DTYPES[self.dtype], "output": DTYPES[self.dtype], "ids": case.id_type, "indices": np.int64}
        shapes = {"input": case.input}
        given = {
            n: self.memory(np.zeros(shapes.get(n, case.output)) if t is None else t).astype(types[n], copy=False)
            for n, t in tensors.items()
        }
        given["seed"] = np.array([seed])
        specs = [(n, x, self.offset * x.itemsize, tensors.get(n, x) is not None) for n, x in given.items()]
        with self.emulator.buffers(*specs) as buffers:
            addresses = {n: ctypes.c_void_p(b.address) for n, b in zip(given, buffers, strict=True)}
            pointers = [addresses.get(n, ctypes.c_void_p()) for n in ("input", "output", "ids")]
            self.emulator.call(
                "emulated_pool", name.encode(), list(DTYPES).index(self.dtype), int(self.channels_last), case.N,
                case.C,
                (ctypes.c_int64 * 14)(*case.h.fields(), *case.w.fields()), *pointers,
                np.dtype(case.id_type).itemsize if "ids" in given else 0,
                addresses.get("indices", ctypes.c_void_p()), divisor, int(padding_counts), addresses["seed"],
                (ctypes.c_int64 * 3)(self.max_grid, self.narrow, self.threads),
            )  # fmt: skip
            written = {n: b for n, b in zip(given, buffers, strict=True) if n in tensors and tensors[n] is None}
            return {n: self.logical(b.download()) for n, b in written.items()}


def kernel_of(emulator: Emulator) -> str:
    (kernel,) = emulator.launched()
    return kernel


def check_max(gpu: Gpu, case: Case, x: np.ndarray | None = None) -> tuple[str, str]:
    """All operators of max pooling; returns the kernels of forward (with ids) and of backward."""
    x = numbers(case.input) if x is None else x
    wanted, wanted_ids, wanted_indices = max_of(case, x)
    stored = encode(x, gpu.dtype)
    gpu.emulator.launched()
    got = gpu.call("max", case, input=stored, output=None, ids=None)
    forward = kernel_of(gpu.emulator)
    same(decode(got["output"], gpu.dtype), wanted)
    exists = wanted_indices >= 0
    np.testing.assert_array_equal(got["ids"][exists], wanted_ids[exists].astype(case.id_type))
    same(decode(gpu.call("max", case, input=stored, output=None)["output"], gpu.dtype), wanted)

    ids = got["ids"]
    indices = gpu.call("max_indices", case, ids=ids, indices=None)["indices"]
    np.testing.assert_array_equal(indices, wanted_indices)
    picked = decode(gpu.call("max_pick", case, input=stored, output=None, ids=ids)["output"], gpu.dtype)
    same(picked, np.where(exists, wanted, 0))

    grad = numbers(case.output, -2, 3, 5)
    gpu.emulator.launched()
    back = gpu.call("max_backward", case, input=None, output=encode(grad, gpu.dtype), ids=ids)["input"]
    backward = kernel_of(gpu.emulator)
    np.testing.assert_array_equal(decode(back, gpu.dtype), max_grad_of(case, grad, wanted_indices))
    return forward, backward


TOLERANCE = {"float32": 1e-6, "float64": 1e-14, "bfloat16": 1 / 256, "float16": 1 / 2048}


def check_avg(gpu: Gpu, case: Case, divisor: int = 0, padding_counts: bool = True) -> tuple[str, str]:
    """Both directions of average pooling; returns their kernels."""
    options = {"divisor": divisor, "padding_counts": padding_counts}
    x, grad = numbers(case.input), numbers(case.output, seed=7)
    gpu.emulator.launched()
    got = gpu.call("avg", case, input=encode(x, gpu.dtype), output=None, **options)["output"]
    forward = kernel_of(gpu.emulator)
    tolerance = TOLERANCE[gpu.dtype]
    wanted = avg_of(case, x, divisor, padding_counts)
    np.testing.assert_allclose(decode(got, gpu.dtype), wanted, rtol=tolerance, atol=tolerance)
    back = gpu.call("avg_backward", case, input=None, output=encode(grad, gpu.dtype), **options)["input"]
    backward = kernel_of(gpu.emulator)
    wanted = avg_grad_of(case, grad, divisor, padding_counts)
    np.testing.assert_allclose(decode(back, gpu.dtype), wanted, rtol=2 * tolerance, atol=4 * tolerance)
    return forward, backward


def square(N: int, C: int, H: int, W: int, kernel: int, stride: int, padding: int = 0, ceil: bool = False,
           dilation: int = 1) -> Case:  # fmt: skip
    return Case(N, C, *(Axis(size, kernel, stride, padding, dilation, ceil) for size in (H, W)))


def adaptive(N: int, C: int, H: int, W: int, P: int, Q: int) -> Case:
    return Case(N, C, Axis(H, adapts=P), Axis(W, adapts=Q))


# ---- every type and layout, windows of all kinds ----

CASES = [
    square(2, 3, 7, 9, 3, 2, 1),
    square(2, 16, 6, 8, 2, 2),
    square(1, 8, 9, 11, 3, 1, 1),
    square(2, 5, 9, 9, 3, 2, 0, True),
    square(1, 4, 8, 10, 3, 2, 1, True),
    square(1, 3, 8, 7, 5, 1, 2),
    square(1, 2, 9, 10, 2, 3, 1),
    Case(1, 5, Axis(6, 3, 2, 1), Axis(9, 4, 1, 2)),
    Case(1, 3, Axis(1), Axis(37, 5, 3, 2, ceil=True)),
    adaptive(1, 3, 7, 10, 3, 4),
    adaptive(2, 8, 5, 5, 7, 3),
    adaptive(1, 2, 4, 6, 1, 4),
]
DILATED = [
    square(1, 3, 9, 11, 3, 1, 2, dilation=2),
    square(1, 8, 10, 9, 3, 2, 3, dilation=3),
    Case(1, 4, Axis(8, 2, 3, 0, 4, True), Axis(12, 3, 2, 1, 2)),
]


@pytest.mark.parametrize("case", CASES + DILATED, ids=str)
@BOTH_LAYOUTS
@ALL_DTYPES
def test_max(emulator: Emulator, dtype: str, channels_last: bool, case: Case) -> None:
    check_max(Gpu(emulator, dtype, channels_last), case)


@pytest.mark.parametrize("case", CASES, ids=str)
@BOTH_LAYOUTS
@ALL_DTYPES
def test_avg(emulator: Emulator, dtype: str, channels_last: bool, case: Case) -> None:
    check_avg(Gpu(emulator, dtype, channels_last), case)


@pytest.mark.parametrize("options", [(0, False), (5, True), (-3, False)])
@pytest.mark.parametrize(
    "case", [square(1, 8, 7, 8, 3, 2, 1, True), square(1, 8, 8, 8, 3, 1, 1), square(1, 8, 9, 8, 2, 2)], ids=str
)
@BOTH_LAYOUTS
def test_what_the_mean_divides_by(
    emulator: Emulator, channels_last: bool, case: Case, options: tuple[int, bool]
) -> None:
    check_avg(Gpu(emulator, "float32", channels_last), case, *options)


# ---- ties, NaN, infinities ----

SPECIAL = [
    square(1, 8, 8, 16, 3, 2, 1),  # strips
    square(1, 8, 8, 16, 3, 1, 1),
    square(1, 8, 7, 9, 4, 2, 2),  # windows one by one
    square(1, 8, 9, 9, 3, 2, 3, dilation=3),
    adaptive(1, 8, 9, 10, 1, 1),  # shared windows
    adaptive(1, 8, 13, 14, 2, 2),
]


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
@pytest.mark.parametrize("case", SPECIAL, ids=str)
@BOTH_LAYOUTS
def test_special_values(emulator: Emulator, channels_last: bool, case: Case, value: float, share: float) -> None:
    x = numbers(case.input, 0, 2)
    x[np.random.default_rng(3).random(x.shape) < share] = value
    check_max(Gpu(emulator, "float32", channels_last), case, x)


@pytest.mark.parametrize("case", SPECIAL, ids=str)
@BOTH_LAYOUTS
@ALL_DTYPES
def test_padding_never_wins(emulator: Emulator, dtype: str, channels_last: bool, case: Case) -> None:
    """Also where all that is not padding is negative infinity: the first tap in the input does."""
    check_max(Gpu(emulator, dtype, channels_last), case, np.full(case.input, -np.inf))


@BOTH_LAYOUTS
def test_windows_without_an_element(emulator: Emulator, channels_last: bool) -> None:
    """Dilated past the input: negative infinity, no index, no gradient."""
    case = Case(2, 8, Axis(4, 2, 1, 1, 2), Axis(1, 2, 1, 1, 2))
    assert max_of(case, np.zeros(case.input))[2].min() == -1
    check_max(Gpu(emulator, "float32", channels_last), case)


# ---- which kernel, which accesses ----


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 2, 0), (3, 1, 1)])
@pytest.mark.parametrize("extra", [0, 8, 16, 24])
@pytest.mark.parametrize("ceil", [False, True])
@ALL_DTYPES
def test_strips(emulator: Emulator, dtype: str, ceil: bool, extra: int, kernel: int, stride: int, padding: int) -> None:
    """Contiguous memory; numbers of windows that whole strips have and have not."""
    case = square(2, 3, 7, 8 + extra, kernel, stride, padding, ceil)
    gpu = Gpu(emulator, dtype, False)
    name = f"{kernel}, {stride}, {padding}>"
    for kernels in (check_max(gpu, case), check_avg(gpu, case)):
        assert kernels[0].startswith("pool_strips<"), kernels
        assert kernels[0].endswith(name), kernels
        assert kernels[1].startswith("pool_gather_rows<"), kernels


@pytest.mark.parametrize("kernel", [1, 2, 3, 90])
def test_strips_of_other_heights(emulator: Emulator, kernel: int) -> None:
    """As many rows as one likes, while taps are numbered in a byte."""
    case = Case(1, 3, Axis(100, kernel, 50, kernel // 2), Axis(16, 3, 2, 1))
    forward, _ = check_max(Gpu(emulator, "float32", False, threads=1), case)
    assert forward.startswith("pool_strips<" if kernel < 90 else "pool_pixels<"), forward


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_strips_of_dilated_rows(emulator: Emulator, padding: int) -> None:
    case = Case(1, 3, Axis(9, 3, 2, padding, 2), Axis(16, 3, 1, 1))
    assert check_max(Gpu(emulator, "float16", False), case)[0].startswith("pool_strips<")


@pytest.mark.parametrize("offset", [0, 1, 2, 4])
@pytest.mark.parametrize("W", [9, 12, 15, 16, 17, 20, 22, 24])
@ALL_DTYPES
def test_rows_of_any_length(emulator: Emulator, dtype: str, W: int, offset: int) -> None:
    """Tails of 16 bytes, and rows that begin between multiples of it: accesses of 16 bytes, of 8 and of one element."""
    gpu = Gpu(emulator, dtype, False, offset)
    for case in (square(1, 3, 5, W, 3, 2, 1), square(1, 3, 5, W, 3, 1, 1), square(1, 3, 5, W, 3, 2, 0, True)):
        assert check_max(gpu, case)[0].startswith("pool_strips<")
        assert check_avg(gpu, case)[0].startswith("pool_strips<")


@pytest.mark.parametrize("C", [1, 2, 3, 4, 6, 8, 12, 16, 24])
@ALL_DTYPES
def test_channels(emulator: Emulator, dtype: str, C: int) -> None:
    """16 bytes of channels a thread, or one."""
    width = WIDE[dtype] if C % WIDE[dtype] == 0 else 1
    gpu, case = Gpu(emulator, dtype, True), square(2, C, 5, 6, 3, 2, 1)
    for forward, backward in (check_max(gpu, case), check_avg(gpu, case)):
        assert forward.startswith("pool_pixels<"), forward
        assert forward.endswith(f", {width}, int>"), forward
        assert backward.startswith("pool_gather_pixels<"), backward
        assert backward.endswith(f", {width}, int>"), backward


@pytest.mark.parametrize("offset", [1, 2, 4])
@BOTH_LAYOUTS
@ALL_DTYPES
def test_views(emulator: Emulator, dtype: str, channels_last: bool, offset: int) -> None:
    """Tensors that begin between multiples of 16 bytes."""
    gpu = Gpu(emulator, dtype, channels_last, offset)
    for case in (
        square(1, 16, 6, 16, 3, 2, 1),
        square(1, 16, 6, 16, 2, 2),
        adaptive(1, 16, 8, 8, 1, 1),
        adaptive(1, 16, 13, 16, 2, 2),
    ):
        check_max(gpu, case)
        check_avg(gpu, case)


@pytest.mark.parametrize("tensor", ["input", "output", "ids"])
@BOTH_LAYOUTS
def test_one_view(emulator: Emulator, channels_last: bool, tensor: str) -> None:
    """One tensor alone decides how wide the accesses are."""
    case = square(1, 16, 6, 16, 3, 1, 1)
    x = numbers(case.input)

    class Shifted(Emulator):
        def buffers(self, *specs):
            return super().buffers(*((n, a, a.itemsize * (n == tensor), f) for n, a, _, f in specs))

    check_max(Gpu(Shifted(), "float32", channels_last), case, x)


@pytest.mark.parametrize(
    ("case", "group"),
    [
        (adaptive(1, 5, 6, 6, 1, 1), 4),
        (adaptive(1, 5, 7, 9, 1, 1), 8),
        (adaptive(1, 40, 9, 11, 1, 1), 16),
        (adaptive(1, 5, 20, 20, 1, 1), 32),
        (adaptive(1, 3, 21, 19, 3, 2), 16),
        (adaptive(2, 3, 60, 8, 2, 1), 32),
        (square(1, 3, 20, 22, 9, 7, 3, True), 16),
        (square(1, 3, 20, 22, 6, 1, 3), 8),
        (Case(1, 3, Axis(30, 6, 5, 4, 3), Axis(33, 6, 5, 0, 2)), 8),
        (adaptive(1, 2, 1, 9001, 1, 1), 256),
        (adaptive(1, 2, 96, 96, 1, 1), 256),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_spans(emulator: Emulator, dtype: str, case: Case, group: int) -> None:
    """Windows of contiguous planes that a few threads share, a warp or a block."""
    gpu = Gpu(emulator, dtype, False)
    assert check_max(gpu, case)[0].startswith("pool_spans<")
    if case.h.dilation == 1:
        assert check_avg(gpu, case)[0].startswith("pool_spans<")


@pytest.mark.parametrize("case", [adaptive(1, 3, 7, 8, 1, 1), adaptive(1, 3, 40, 16, 3, 1)], ids=str)
@ALL_DTYPES
def test_wide_spans(emulator: Emulator, dtype: str, case: Case) -> None:
    """Windows of whole rows are read 16 bytes at once."""
    for forward, _ in (check_max(Gpu(emulator, dtype, False), case), check_avg(Gpu(emulator, dtype, False), case)):
        assert forward.startswith("pool_spans<"), forward
        assert forward.endswith(f", {WIDE[dtype]}>"), forward
    assert check_max(Gpu(emulator, dtype, False, 1), case)[0].endswith(", 1>")


@pytest.mark.parametrize(
    "case",
    [
        adaptive(2, 8, 7, 7, 1, 1),
        adaptive(1, 64, 6, 6, 1, 1),
        adaptive(1, 300, 6, 7, 1, 1),
        adaptive(1, 16, 13, 17, 2, 3),
        adaptive(1, 5, 20, 13, 1, 1),
        square(1, 16, 20, 22, 9, 7, 3, True),
        Case(1, 8, Axis(30, 6, 5, 4, 3), Axis(33, 6, 5, 0, 2)),
    ],
    ids=str,
)
@ALL_DTYPES
def test_slices(emulator: Emulator, dtype: str, case: Case) -> None:
    """Large windows of channels_last memory: threads share the elements of a channel."""
    gpu = Gpu(emulator, dtype, True)
    wide = f", {WIDE[dtype] if case.C % WIDE[dtype] == 0 else 1}>"
    forward, _ = check_max(gpu, case)
    assert forward.startswith("pool_slices<"), forward
    assert forward.endswith(wide), forward
    if case.h.dilation == 1:
        assert check_avg(gpu, case)[0].startswith("pool_slices<")
    # With windows enough to fill the GPU each is one thread's.
    assert check_max(replace(gpu, threads=1), case)[0].startswith("pool_pixels<")


@pytest.mark.parametrize("size", [256, 257, 300, 65536, 65537, 70000])
@BOTH_LAYOUTS
def test_id_sizes(emulator: Emulator, channels_last: bool, size: int) -> None:
    """Taps are numbered in one, two or four bytes; the winner has the largest number."""
    case = adaptive(1, 4, 1, size, 1, 1)
    assert np.dtype(case.id_type).itemsize == (1 if size <= 256 else 2 if size <= 65536 else 4)
    x = np.zeros(case.input)
    x[..., -1] = 1
    x[:, 1] = np.arange(size) == 200
    assert size <= 256 or max_of(case, x)[1].max() > 255
    check_max(Gpu(emulator, "float32", channels_last), case, x)


@pytest.mark.parametrize("case", [Case(1, 8, Axis(17, 17, 1, 8), Axis(18, 16, 3, 8))], ids=str)
@BOTH_LAYOUTS
@ALL_DTYPES
def test_wide_ids_of_small_windows(emulator: Emulator, dtype: str, channels_last: bool, case: Case) -> None:
    """Two bytes an id, in windows that are not shared."""
    assert case.id_type is np.uint16
    check_max(Gpu(emulator, dtype, channels_last, threads=1), case)


def test_windows_far_beyond_the_stride(emulator: Emulator) -> None:
    """Every position is in many windows; still each is gathered by one thread."""
    for channels_last in (False, True):
        gpu = Gpu(emulator, "bfloat16", channels_last, threads=1)
        check_max(gpu, square(1, 8, 10, 11, 7, 1, 3))
        check_avg(gpu, square(1, 8, 10, 11, 7, 1, 3))


# ---- launches ----

LAUNCHED = [
    square(3, 16, 12, 16, 3, 2, 1),
    square(3, 16, 12, 13, 4, 1, 1),
    adaptive(3, 24, 7, 9, 1, 1),
    adaptive(3, 24, 14, 13, 2, 2),
    adaptive(1, 3, 1, 9000, 1, 1),
]


@pytest.mark.parametrize("max_grid", [1, 3])
@pytest.mark.parametrize("case", LAUNCHED, ids=str)
@BOTH_LAYOUTS
def test_fewer_blocks_than_work(emulator: Emulator, channels_last: bool, case: Case, max_grid: int) -> None:
    """The loop over the grid, which only huge tensors reach on a GPU."""
    gpu = Gpu(emulator, "float32", channels_last, max_grid=max_grid)
    check_max(gpu, case)
    check_avg(gpu, case)


@pytest.mark.parametrize("case", [*LAUNCHED[:4], DILATED[0], CASES[9]], ids=str)
@BOTH_LAYOUTS
def test_64_bit_index(emulator: Emulator, channels_last: bool, case: Case) -> None:
    """What is chosen where a tensor or an axis passes 2^31, run on small ones."""
    gpu = Gpu(emulator, "bfloat16", channels_last, narrow=40)
    for forward, backward in [check_max(gpu, case)] + ([check_avg(gpu, case)] if case.h.dilation == 1 else []):
        assert forward.startswith("pool_pixels<"), forward
        assert forward.endswith(", 1, long>"), forward
        assert backward.startswith("pool_gather_pixels<"), backward
        assert backward.endswith(", 1, long>"), backward


@pytest.mark.parametrize(
    "axis", [Axis(60000, adapts=50000), Axis(1 << 30, 1, 1 << 10), Axis(5, 2, (1 << 31) - 1), Axis(9, 5, 1, 2, 1 << 29)]
)
def test_products_beyond_32_bits(emulator: Emulator, axis: Axis) -> None:
    """An axis whose positions pass 2^31, though the tensor has few elements: 64 bits. Nothing is read: one window of a
    tensor of no channels would do, but here it is the choice that is asked for."""
    case = Case(1, 1, Axis(1), axis)
    fields = (ctypes.c_int64 * 14)(*case.h.fields(), *axis.fields())
    null = ctypes.c_void_p()
    limits = (ctypes.c_int64 * 3)(1, NARROW, 0)
    with emulator.buffers(("output", np.zeros(1, np.float32), 0, False)) as (output,):
        emulator.launched()
        address = ctypes.c_void_p(output.address)
        with pytest.raises(KernelError, match="pool_pixels<float, Sum<float>, 1, long>"):
            emulator.call("emulated_pool", b"avg", 0, 0, 1, 1, fields, null, address, null, 0, null, 0, 1, null, limits)


@pytest.mark.parametrize(
    "case", [square(2, 8, 8, 16, 3, 2, 1), square(2, 8, 7, 9, 4, 2, 2), adaptive(2, 8, 7, 7, 1, 1)], ids=str
)
@BOTH_LAYOUTS
def test_buffer_too_short_is_found(emulator: Emulator, channels_last: bool, case: Case) -> None:
    """The checks above mean something: the same call on an input that lacks its last image fails."""
    gpu = Gpu(emulator, "float32", channels_last)
    short = encode(numbers((1, *case.input[1:])), "float32")
    with pytest.raises(KernelError, match=r"kernel pool_.*of input, which has"):
        gpu.call("max", case, input=short, output=None, ids=None)
