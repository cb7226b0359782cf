"""Channel shuffle's CUDA kernels on the emulator, against a transposition in numpy, at sizes that reach
every branch."""

import ctypes

import numpy as np
import pytest
from emulated import Emulator, KernelError, emulator

__all__ = ["emulator"]

DTYPES = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}
ALL_BLOCKS = (1 << 31) - 1


def transpose(
    emulator: Emulator,
    shape: tuple[int, int, int, int],
    size: int,
    *,
    offsets: tuple[int, int] = (0, 0),
    max_grid: int = ALL_BLOCKS,
) -> str:
    """Transposes the middle axes of [outer, rows, columns, inner], checks it, returns the kernel's name."""
    values = np.random.default_rng(0).integers(0, 256, np.prod(shape) * size, np.uint8)
    input = values.view(DTYPES[size]).reshape(shape)
    expected = np.ascontiguousarray(input.transpose(0, 2, 1, 3))
    emulator.launched()
    with emulator.buffers(("input", input, offsets[0], True), ("output", expected, offsets[1], False)) as (
        source,
        target,
    ):
        emulator.call(
            "emulated_transpose",
            ctypes.c_void_p(source.address),
            ctypes.c_void_p(target.address),
            *shape,
            size,
            max_grid,
        )
        np.testing.assert_array_equal(target.download().view(np.uint8), expected.view(np.uint8))
    (kernel,) = emulator.launched()
    return kernel


# ---- planes: contiguous memory ----


@pytest.mark.parametrize("size", DTYPES)
@pytest.mark.parametrize("rows", [2, 3, 4, 8, 12])
@pytest.mark.parametrize("inner", [3, 7, 49, 64])
def test_planes(emulator: Emulator, size: int, rows: int, inner: int) -> None:
    assert transpose(emulator, (3, rows, 24 // rows, inner), size).startswith("transpose_planes<")


@pytest.mark.parametrize(
    ("inner", "size", "offsets", "kernel"),
    [
        (784, 2, (0, 0), "<uint4, uint4, unsigned int>"),
        (196, 2, (0, 0), "<uint2, uint2, unsigned int>"),
        (49, 4, (0, 0), "<unsigned int, unsigned int, unsigned int>"),
        (49, 2, (0, 0), "<unsigned int, unsigned short, unsigned int>"),
        (49, 1, (0, 0), "<unsigned int, unsigned char, unsigned int>"),
        # Views into larger tensors: the base address lies off what the size would allow.
        (784, 2, (2, 0), "<unsigned int, unsigned short, unsigned int>"),
        (784, 2, (8, 8), "<uint2, uint2, unsigned int>"),
        (784, 4, (0, 4), "<unsigned int, unsigned int, unsigned int>"),
        (784, 2, (0, 2), "<unsigned short, unsigned short, unsigned int>"),
        (784, 1, (1, 0), "<unsigned int, unsigned char, unsigned int>"),
        (784, 1, (3, 3), "<unsigned char, unsigned char, unsigned int>"),
    ],
)
def test_access_width(emulator: Emulator, inner: int, size: int, offsets: tuple[int, int], kernel: str) -> None:
    assert transpose(emulator, (5, 2, 3, inner), size, offsets=offsets) == "transpose_planes" + kernel


@pytest.mark.parametrize("outer", [1, 2, 4, 5, 8, 9])
@pytest.mark.parametrize("size", [1, 2])
def test_ragged_samples(emulator: Emulator, outer: int, size: int) -> None:
    """Samples of an odd number of elements: 32-bit words span samples, and the last word is cut short."""
    transpose(emulator, (outer, 3, 5, 7), size)


@pytest.mark.parametrize("outer", [1, 100, 5000])
def test_small_samples_share_a_block(emulator: Emulator, outer: int) -> None:
    transpose(emulator, (outer, 2, 2, 3), 2)


@pytest.mark.parametrize("max_grid", [1, 3])
@pytest.mark.parametrize("inner", [1, 49])
def test_fewer_blocks_than_work(emulator: Emulator, max_grid: int, inner: int) -> None:
    """The loop over the grid, which only tensors beyond 2^31 blocks reach on a GPU."""
    transpose(emulator, (40 if inner > 1 else 3000, 3, 8, inner), 2, max_grid=max_grid)


# ---- pixels: channels_last memory ----


@pytest.mark.parametrize("size", DTYPES)
@pytest.mark.parametrize("rows", [2, 3, 4, 8, 29])
@pytest.mark.parametrize("inverse", [False, True])
def test_pixels(emulator: Emulator, size: int, rows: int, inverse: bool) -> None:
    columns = 58 if rows == 2 else 8 if rows == 29 else 20
    shape = (70, columns, rows, 1) if inverse else (70, rows, columns, 1)
    gather = "true" if shape[1] <= shape[2] else "false"
    kernel = transpose(emulator, shape, size)
    assert kernel.startswith("transpose_pixels<")
    assert kernel.endswith(f", {gather}>")


@pytest.mark.parametrize("size", DTYPES)
@pytest.mark.parametrize("offsets", [(1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("rows", [3, 7])
def test_pixels_of_a_view(emulator: Emulator, size: int, offsets: tuple[int, int], rows: int) -> None:
    kernel = transpose(emulator, (33, rows, 5, 1), size, offsets=(size * offsets[0], size * offsets[1]))
    assert kernel.startswith("transpose_pixels<")


@pytest.mark.parametrize("pixels", [1, 2, 7, 8, 9, 127])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_pixel_tails(emulator: Emulator, pixels: int, size: int) -> None:
    """Pixels of 15 elements: tiles that end within 16 bytes."""
    transpose(emulator, (pixels, 3, 5, 1), size)


@pytest.mark.parametrize(("rows", "columns"), [(2, 7000), (7000, 2), (1, 24), (24, 1), (1, 1)])
def test_extreme_groups(emulator: Emulator, rows: int, columns: int) -> None:
    """Pixels of more than 16 KiB, and transpositions that change nothing."""
    transpose(emulator, (3, rows, columns, 1), 2)


def test_pixels_too_large_for_shared_memory(emulator: Emulator) -> None:
    assert transpose(emulator, (2, 3, 9001, 1), 2).startswith("transpose_planes<")


@pytest.mark.parametrize(("inner", "size"), [(2, 1), (2, 2), (4, 2), (8, 2), (2, 8), (16, 1)])
def test_short_planes_are_wide_pixels(emulator: Emulator, inner: int, size: int) -> None:
    assert transpose(emulator, (40, 3, 8, inner), size).startswith("transpose_pixels<")


@pytest.mark.parametrize(("inner", "size", "offset"), [(1, 16, 8), (2, 8, 8), (4, 2, 2), (1, 4, 2), (1, 2, 1)])
def test_addresses_off_the_element_size(emulator: Emulator, inner: int, size: int, offset: int) -> None:
    """What torch.frombuffer and other libraries may hand over."""
    transpose(emulator, (20, 3, 8, inner), size, offsets=(offset, 0))


def test_64_bit_index(emulator: Emulator) -> None:
    """The kernel that is chosen where a sample has 2^31 elements and more, run on a small one."""
    shape = (5, 3, 4, 49)
    values = np.random.default_rng(0).integers(0, 1 << 16, shape).astype(np.uint16)
    expected = np.ascontiguousarray(values.transpose(0, 2, 1, 3))
    emulator.launched()
    with emulator.buffers(("input", values, 0, True), ("output", expected, 0, False)) as (source, target):
        emulator.call("emulated_transpose_64", ctypes.c_void_p(source.address), ctypes.c_void_p(target.address), *shape)
        np.testing.assert_array_equal(target.download(), expected)
    assert emulator.launched() == ["transpose_planes<unsigned int, unsigned short, unsigned long>"]


@pytest.mark.parametrize("inner", [1, 49])
def test_buffer_too_short_is_found(emulator: Emulator, inner: int) -> None:
    """The checks above mean something: the same call on an input that lacks its last element fails."""
    values = np.zeros(8 * 6 * inner - 1, np.uint16)
    with (
        emulator.buffers(("input", values, 0, True), ("output", np.zeros(8 * 6 * inner, np.uint16), 0, False)) as (
            i,
            o,
        ),
        pytest.raises(KernelError, match=r"kernel transpose_.*of input, which has"),
    ):
        emulator.call(
            "emulated_transpose",
            ctypes.c_void_p(i.address),
            ctypes.c_void_p(o.address),
            8,
            2,
            3,
            inner,
            2,
            ALL_BLOCKS,
        )
