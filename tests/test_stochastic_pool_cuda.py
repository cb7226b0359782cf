"""Stochastic pooling's and lp pooling's CUDA kernels on the emulator: the same draws as on the CPU, bit for bit."""

import numpy as np
import pytest
import reference
import torch
from emulated import Emulator, emulator
from test_pool_cuda import (
    ALL_DTYPES,
    BOTH_LAYOUTS,
    CASES,
    SPECIAL,
    TOLERANCE,
    Case,
    Gpu,
    decode,
    encode,
    kernel_of,
    numbers,
    square,
)

__all__ = ["emulator"]

PLAIN = [case for case in CASES if not (case.h.adapts or case.w.adapts or case.h.ceil or case.w.ceil)]


def draw_input(case: Case, seed: int = 0) -> np.ndarray:
    """Not negative, many zeros, values that bfloat16 holds."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(case.input) < 0.4, 0, rng.integers(1, 128, case.input) / 8.0)


def expected(case: Case, x: np.ndarray, dtype: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    windows = {name: [getattr(axis, name) for axis in (case.h, case.w)] for name in ("kernel", "stride", "padding")}
    values, indices = reference.stochastic_pool(torch.from_numpy(x).to(getattr(torch, dtype)), seed, **windows)
    return values.numpy(), indices.numpy()


def check_draw(gpu: Gpu, case: Case, x: np.ndarray, seed: int) -> None:
    wanted, wanted_indices = expected(case, x, gpu.dtype, seed)
    gpu.emulator.launched()
    got = gpu.call("stochastic", case, input=encode(x, gpu.dtype), output=None, ids=None, seed=seed)
    assert kernel_of(gpu.emulator).startswith("pool_draw<")
    np.testing.assert_array_equal(decode(got["output"], gpu.dtype), wanted)
    indices = gpu.call("max_indices", case, ids=got["ids"], indices=None)["indices"]
    np.testing.assert_array_equal(indices, wanted_indices)


@pytest.mark.parametrize("case", [*PLAIN, square(2, 3, 5, 9, 17, 1, 8), square(1, 2, 3, 5, 1, 1)], ids=str)
@BOTH_LAYOUTS
@ALL_DTYPES
def test_draws(emulator: Emulator, dtype: str, channels_last: bool, case: Case) -> None:
    check_draw(Gpu(emulator, dtype, channels_last), case, draw_input(case), -(2**62) + 12345)


@pytest.mark.parametrize("limits", [{"max_grid": 1}, {"narrow": 0}, {"offset": 1}], ids=str)
@BOTH_LAYOUTS
def test_draws_at_the_limits(emulator: Emulator, channels_last: bool, limits: dict) -> None:
    case = square(2, 5, 17, 19, 3, 2, 1)
    check_draw(Gpu(emulator, "float32", channels_last, **limits), case, draw_input(case), 7)


@BOTH_LAYOUTS
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_sums_that_overflow(emulator: Emulator, dtype: str, channels_last: bool) -> None:
    """They are drawn from as those of the same elements times a power of two; infinite ones are drawn for certain."""
    case = square(1, 4, 8, 8, 2, 2)
    small = draw_input(case)
    factor = 2.0 ** (1023 - 4 if dtype == "float64" else 127 - 4)
    x = np.where(draw_input(case, 3) > 14, np.inf, small * factor)
    windows = x.reshape(1, 4, 4, 2, 4, 2).swapaxes(3, 4).reshape(1, 4, 4, 4, 4)
    infinite = np.isinf(windows).any(-1)
    assert infinite.any()
    largest = np.finfo("float64" if dtype == "float64" else "float32").max
    with np.errstate(over="ignore"):
        assert (windows.sum(-1)[~infinite] > largest).any()
    wanted, wanted_indices = expected(case, small, dtype, 3)
    first = np.isinf(windows).argmax(-1)
    rows, columns = np.arange(4)[:, None] * 2, np.arange(4) * 2
    first = (rows + first // 2) * 8 + columns + first % 2

    gpu = Gpu(emulator, dtype, channels_last)
    got = gpu.call("stochastic", case, input=encode(x, dtype), output=None, ids=None, seed=3)
    np.testing.assert_array_equal(decode(got["output"], dtype), np.where(infinite, np.inf, wanted * factor))
    indices = gpu.call("max_indices", case, ids=got["ids"], indices=None)["indices"]
    np.testing.assert_array_equal(indices, np.where(infinite, first, wanted_indices))
    mean = decode(gpu.call("weighted", case, input=encode(x, dtype), output=None)["output"], dtype)
    np.testing.assert_array_equal(np.isinf(mean), infinite)


@pytest.mark.parametrize("operator", ["stochastic", "weighted"])
@pytest.mark.parametrize("value", [-1.0, np.nan, -np.inf])
@BOTH_LAYOUTS
def test_windows_with_what_cannot_be_drawn(
    emulator: Emulator, channels_last: bool, value: float, operator: str
) -> None:
    """Nothing waits for the GPU to raise: they are NaN, and the others as ever."""
    case = square(1, 3, 6, 8, 2, 2)
    x = draw_input(case)
    wrong = x.copy()
    wrong[0, 1, 3, 5] = value
    gpu = Gpu(emulator, "float32", channels_last)
    ids = {"ids": None} if operator == "stochastic" else {}
    clean, got = (
        decode(gpu.call(operator, case, input=encode(v, "float32"), output=None, seed=5, **ids)["output"], "float32")
        for v in (x, wrong)
    )
    assert np.isnan(got[0, 1, 1, 2])
    clean[0, 1, 1, 2] = np.nan
    np.testing.assert_array_equal(got, clean)


@pytest.mark.parametrize("case", PLAIN, ids=str)
@BOTH_LAYOUTS
@ALL_DTYPES
def test_weighted_means(emulator: Emulator, dtype: str, channels_last: bool, case: Case) -> None:
    x = draw_input(case)
    sums, squares = np.zeros(case.output), np.zeros(case.output)
    for o, q, window in case.windows():
        for _, i, j in window:
            sums[:, :, o, q] += x[:, :, i, j]
            squares[:, :, o, q] += x[:, :, i, j] ** 2
    gpu = Gpu(emulator, dtype, channels_last)
    gpu.emulator.launched()
    got = decode(gpu.call("weighted", case, input=encode(x, dtype), output=None)["output"], dtype)
    assert kernel_of(emulator).startswith("pool_mean<")
    wanted = np.divide(squares, sums, out=np.zeros_like(sums), where=sums > 0)
    np.testing.assert_allclose(got, wanted, rtol=4 * TOLERANCE[dtype])


@pytest.mark.parametrize("case", [case for case in [*CASES, *SPECIAL] if case.h.dilation == 1], ids=str)
@BOTH_LAYOUTS
@ALL_DTYPES
def test_l2(emulator: Emulator, dtype: str, channels_last: bool, case: Case) -> None:
    """Sums where the divisor is 1; where it is 0 windows that are cut short count as whole ones."""
    x = numbers(case.input)
    for divisor in (0, 1):
        wanted = np.zeros(case.output)
        whole = case.h.fields()[2] * case.w.fields()[2]
        for o, q, window in case.windows():
            for _, i, j in window:
                wanted[:, :, o, q] += x[:, :, i, j] ** 2
            if not divisor:
                wanted[:, :, o, q] *= whole / (case.h.count(o, True) * case.w.count(q, True))
        gpu = Gpu(emulator, dtype, channels_last)
        got = decode(gpu.call("l2", case, input=encode(x, dtype), output=None, divisor=divisor)["output"], dtype)
        np.testing.assert_allclose(got, np.sqrt(wanted), rtol=2 * TOLERANCE[dtype])
