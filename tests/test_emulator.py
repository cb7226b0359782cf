"""The CUDA emulator itself: it runs correct kernels correctly, and finds the fault in every broken one.

The kernels are in tests/emulator/examples.cpp and broken.cpp.
"""

import ctypes
from typing import Any

import numpy as np
import pytest
from emulated import BUILD, Emulator, KernelError, _library, emulator

__all__ = ["emulator"]


def run(
    emulator: Emulator,
    name: str,
    input: np.ndarray | None = None,
    output: np.ndarray | None = None,
    *,
    other: np.ndarray | None = None,
    n: int = 0,
    grid: tuple[int, ...] = (1, 1, 1),
    block: tuple[int, ...] = (32, 1, 1),
    shared: int = 0,
    fill_output: bool = False,
) -> np.ndarray:
    """Runs an example and returns its output."""
    empty = np.zeros(0, np.float32)
    output = empty if output is None else output
    with emulator.buffers(
        ("input", empty if input is None else input, 0, True),
        ("other", empty if other is None else other, 0, True),
        ("output", output, 0, fill_output),
    ) as buffers:
        emulator.call(
            "emulated_example",
            name.encode(),
            *(ctypes.c_void_p(b.address) for b in buffers),
            n,
            (ctypes.c_uint * 3)(*grid),
            (ctypes.c_uint * 3)(*block),
            shared,
        )
        return buffers[2].download()


def floats(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.float32)


# ---- what works ----


@pytest.mark.parametrize("n", [1, 31, 128, 1000])
def test_block_sum(emulator: Emulator, n: int) -> None:
    blocks = (n + 127) // 128
    out = run(
        emulator,
        "block_sum",
        floats(n),
        np.empty(blocks, np.float32),
        n=n,
        grid=(blocks, 1, 1),
        block=(128, 1, 1),
    )
    np.testing.assert_array_equal(out, [floats(n)[i : i + 128].sum() for i in range(0, n, 128)])


def test_shuffles(emulator: Emulator) -> None:
    out = run(emulator, "neighbours", output=np.empty((32, 3), np.int32))
    np.testing.assert_array_equal(out[:, 0], [*range(1, 32), 31])
    np.testing.assert_array_equal(out[:, 1], [0, *range(31)])
    np.testing.assert_array_equal(out[:, 2], [5] * 16 + [21] * 16)


@pytest.mark.parametrize("holds", [[0] * 32, [1] * 32, [0, 1] * 16])
def test_votes(emulator: Emulator, holds: list[int]) -> None:
    out = run(emulator, "votes", np.array(holds, np.int32), np.empty((32, 3), np.uint32))
    ballot = sum(1 << i for i, h in enumerate(holds) if h)
    np.testing.assert_array_equal(out, [[ballot, any(holds), all(holds)]] * 32)


@pytest.mark.parametrize("values", [[7] * 32, list(range(32)), [0, 1, 2**31, 1] * 8], ids=["same", "all", "some"])
def test_matches(emulator: Emulator, values: list[int]) -> None:
    out = run(emulator, "matches", np.array(values, np.uint32), np.empty(32, np.uint32))
    halves = [range(16)] * 16 + [range(16, 32)] * 16
    same = [sum(1 << j for j in half if values[j] == values[i]) for i, half in enumerate(halves)]
    np.testing.assert_array_equal(out, same)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_are_rounded(emulator: Emulator, dtype: type) -> None:
    a, b = np.random.default_rng(3).uniform(1, 2, (2, 32)).astype(dtype)
    out = run(emulator, f"rounded_product_{np.dtype(dtype)}", a, np.empty(32, dtype), other=b)
    np.testing.assert_array_equal(out, a * b - a)


def test_histogram(emulator: Emulator) -> None:
    values = np.random.default_rng(0).integers(0, 8, 1000).astype(np.int32)
    out = run(emulator, "histogram", values, np.zeros(8, np.int32), n=1000, grid=(3, 1, 1), block=(64, 1, 1),
              shared=32, fill_output=True)  # fmt: skip
    np.testing.assert_array_equal(out, np.bincount(values, minlength=8))


def test_atomic_maximum_and_exchange(emulator: Emulator) -> None:
    values = np.random.default_rng(1).permutation(32).astype(np.int32)
    out = run(emulator, "largest", values, np.array([-5, 0], np.int32), fill_output=True)
    np.testing.assert_array_equal(out, [31, 32])


@pytest.mark.parametrize("n", [1, 4, 128, 129, 515, 1024])
def test_copies_arrive_when_waited_for(emulator: Emulator, n: int) -> None:
    out = run(emulator, "pipeline", floats(n), np.empty(32, np.float32), n=n, shared=2 * 128 * 4)
    padded = np.pad(floats(n), (0, -n % 128)).reshape(-1, 32, 4).sum((0, 2))
    np.testing.assert_array_equal(out, np.roll(padded, -1))


def bfloat16_bits(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("name", ["product_bfloat16", "product_float16", "product_loaded", "product_tf32"])
def test_tensor_cores(emulator: Emulator, name: str) -> None:
    depth = 8 if name == "product_tf32" else 16
    rng = np.random.default_rng(2)
    a = rng.integers(-8, 8, (16, depth)).astype(np.float32)  # exact in every format
    b = rng.integers(-8, 8, (depth, 8)).astype(np.float32)
    convert = {
        "product_float16": lambda x: x.astype(np.float16).view(np.uint16),
        "product_tf32": lambda x: x,
    }.get(name, bfloat16_bits)
    out = run(emulator, name, convert(a), np.empty((16, 8), np.float32), other=convert(b))
    np.testing.assert_array_equal(out, a @ b)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
@pytest.mark.parametrize("warpgroups", [1, 2])
def test_products_of_warpgroups(emulator: Emulator, warpgroups: int, name: str) -> None:
    rng = np.random.default_rng(2)
    a = rng.integers(-8, 8, (64 * warpgroups, 64)).astype(np.float32)
    b = rng.integers(-8, 8, (128, 64)).astype(np.float32)
    convert = bfloat16_bits if name == "bfloat16" else lambda x: x.astype(np.float16).view(np.uint16)
    out = run(
        emulator,
        f"product_of_warpgroups_{name}",
        convert(a),
        np.empty((len(a), 128), np.float32),
        other=convert(b),
        block=(128 * warpgroups, 1, 1),
        shared=256 * 128 + 1024,
    )
    np.testing.assert_array_equal(out, a @ b.T)


def rounded(x: np.ndarray, name: str) -> np.ndarray:
    """float32 values as the 16-bit type has them."""
    if name == "float16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float32)
    bits = x.view(np.uint32).astype(np.uint64)
    wide = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return np.where(np.isnan(x), x, wide)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_conversions(emulator: Emulator, name: str) -> None:
    """Every 16-bit value, and as many float32 values: all exponents, ties, subnormal, infinite and NaN."""
    n = 1 << 16
    bits = np.arange(n, dtype=np.uint16)
    wide = bits.view(np.float16).astype(np.float32) if name == "float16" else None
    if wide is None:
        wide = (bits.astype(np.uint32) << 16).view(np.float32)
    values = np.random.default_rng(4).integers(0, 1 << 32, n, np.uint32).view(np.float32).copy()
    values[: n // 4] = np.exp2(np.random.default_rng(5).uniform(-27, 17, n // 4))
    values[n // 4 : n // 2] = (wide[: n // 4] + wide[1 : n // 4 + 1]) / 2  # halfway between neighbours
    values[-4:] = [np.inf, -np.inf, np.nan, 65520.0]
    out = run(
        emulator,
        name,
        bits,
        np.empty(2 * n, np.float32),
        other=values,
        n=n,
        grid=(4, 1, 1),
        block=(256, 1, 1),
    )
    np.testing.assert_array_equal(out[:n], wide)
    np.testing.assert_array_equal(out[n:], rounded(values, name))


def test_sync_warp_orders_shared_memory(emulator: Emulator) -> None:
    out = run(emulator, "warp_exchange", output=np.empty(64, np.int32), block=(64, 1, 1))
    np.testing.assert_array_equal(out, (np.arange(64) ^ 1) + 2)


def test_three_dimensions_of_grid_and_block(emulator: Emulator) -> None:
    grid, block = (3, 2, 2), (8, 4, 2)
    out = run(emulator, "barriers", output=np.empty(12 * 64, np.int32), grid=grid, block=block)
    assert (out == 10).all()


def test_many_threads(emulator: Emulator) -> None:
    """65,536 threads with eleven switches each, the size a test of a kernel may have."""
    out = run(emulator, "barriers", output=np.empty(1 << 16, np.int32), grid=(256, 1, 1), block=(256, 1, 1))
    assert (out == 10).all()


# ---- what is found ----


def fault(block: str, thread: str, words: str, /, **arguments: Any) -> tuple[str, str, str, dict[str, Any]]:
    """Where and in which words a fault is to be reported, and the arguments of run that provoke it."""
    return block, thread, words, arguments


#: For a product of one.
WARPGROUP: dict[str, Any] = {"output": floats(128), "block": (128, 1, 1), "shared": 192 * 128 + 1024}

BROKEN = {
    "reads_beyond": fault(
        "(1, 0, 0)",
        "(7, 0, 0)",
        "reads 4 bytes at offset 160 of input, which has 160 bytes",
        input=floats(40),
        output=floats(40),
        n=40,
        grid=(2, 1, 1),
    ),
    "reads_before": fault(
        "(0, 0, 0)",
        "(0, 0, 0)",
        "reads 4 bytes at offset -4 of input",
        input=floats(40),
        output=floats(40),
        n=40,
        grid=(2, 1, 1),
    ),
    "writes_beyond": fault(
        "(1, 0, 0)",
        "(8, 0, 0)",
        "writes 4 bytes at offset 160 of output, which has 160 bytes",
        output=floats(40),
        grid=(2, 1, 1),
    ),
    "vector_beyond": fault(
        "(0, 0, 0)",
        "(10, 0, 0)",
        "writes 16 bytes at offset 160 of output, which has 168 bytes",
        output=floats(42),
        n=42,
    ),
    "vector_misaligned": fault(
        "(0, 0, 0)",
        "(1, 0, 0)",
        "reads 16 bytes at an address that is 4 off a multiple of 16",
        input=floats(64),
        output=floats(32),
    ),
    "shared_beyond": fault(
        "(0, 0, 0)",
        "(31, 0, 0)",
        "writes 4 bytes at offset 128 of dynamic shared memory, which has 128 bytes",
        output=floats(32),
        shared=128,
    ),
    "forgets_barrier": fault(
        "(0, 0, 0)",
        "(0, 0, 0)",
        "which this block has not written",
        input=floats(64),
        output=floats(64),
        block=(64, 1, 1),
    ),
    "overwrites_early": fault(
        "(0, 0, 0)",
        "(1, 0, 0)",
        "a race: another thread read there",
        input=floats(64),
        output=floats(64),
        block=(64, 1, 1),
    ),
    "forgets_sync_warp": fault(
        "(0, 0, 0)", "(0, 0, 0)", "which this block has not written", input=floats(32), output=floats(32)
    ),
    "races_in_order": fault(
        "(0, 0, 0)",
        "(1, 0, 0)",
        "a race: thread (0, 0, 0) wrote there and no barrier lies between",
        input=floats(64),
        output=floats(64),
        block=(64, 1, 1),
    ),
    "writes_twice": fault(
        "(0, 0, 0)",
        "(1, 0, 0)",
        "a race: thread (0, 0, 0) wrote there and no barrier lies between",
        input=floats(64),
        output=floats(64),
        block=(64, 1, 1),
    ),
    "mixes_atomics": fault("(0, 0, 0)", "(9, 0, 0)", "a race: an atomic wrote there", output=floats(1), shared=4),
    "exits_before_barrier": fault(
        "(1, 0, 0)",
        "(0, 0, 0)",
        "for thread (8, 0, 0), which has exited",
        output=floats(40),
        n=40,
        grid=(2, 1, 1),
    ),
    "barriers_in_branches": fault(
        "(0, 0, 0)",
        "(0, 0, 0)",
        "for thread (1, 0, 0), which waits at __syncthreads (broken.cpp:",
        output=floats(32),
    ),
    "forgets_async_wait": fault(
        "(0, 0, 0)",
        "(0, 0, 0)",
        "where an asynchronous copy is in flight",
        input=floats(128),
        output=floats(32),
        shared=512,
    ),
    "waits_for_too_few": fault(
        "(0, 0, 0)",
        "(0, 0, 0)",
        "where an asynchronous copy is in flight",
        input=floats(32),
        output=floats(32),
        shared=128,
    ),
    "forgets_barrier_after_async": fault(
        "(0, 0, 0)",
        "(1, 0, 0)",
        "a race: thread (0, 0, 0) wrote there",
        input=floats(32),
        output=floats(32),
        shared=128,
    ),
    "async_beyond": fault(
        "(0, 0, 0)",
        "(31, 0, 0)",
        "reads 16 bytes asynchronously at offset 496 of input, which has 504 bytes",
        input=floats(126),
        shared=512,
    ),
    "async_misaligned": fault(
        "(0, 0, 0)",
        "(0, 0, 0)",
        "from an address that is not a multiple of 16",
        input=floats(200),
        shared=512,
    ),
    "shuffles_from_exited": fault("(0, 0, 0)", "(0, 0, 0)", "waits in shuffle_down (broken.cpp:", output=floats(20)),
    "shuffles_in_branch": fault(
        "(0, 0, 0)", "(0, 0, 0)", "for lane 16, which waits at __syncthreads", output=floats(32)
    ),
    "shuffles_outside_mask": fault(
        "(0, 0, 0)", "(0, 0, 0)", "shuffles from lane 16, which the mask leaves out", output=floats(32)
    ),
    "votes_without_itself": fault(
        "(0, 0, 0)", "(16, 0, 0)", "with a mask that leaves out the caller", output=floats(32)
    ),
    "reads_unwritten_shared": fault(
        "(0, 0, 0)", "(0, 0, 0)", "which this block has not written", output=floats(32), shared=128
    ),
    "reads_unwritten_output": fault("(0, 0, 0)", "(0, 0, 0)", "which nobody has written", output=floats(32)),
    "blocks_collide": fault(
        "(1, 0, 0)", "(0, 0, 0)", "a race: block (0, 0, 0) writes there", output=floats(32), grid=(2, 1, 1)
    ),
    "follows_host_pointer": fault("(0, 0, 0)", "(0, 0, 0)", "where no buffer is", output=floats(32)),
    "forgets_async_fence": fault(
        "(0, 0, 0)", "(126, 0, 0)", "thread (0, 0, 0) has written, with no fence_async_shared", **WARPGROUP
    ),
    "fences_after_barrier": fault(
        "(0, 0, 0)", "(126, 0, 0)", "thread (0, 0, 0) has written, with no fence_async_shared", **WARPGROUP
    ),
    "fences_before_copies": fault(
        "(0, 0, 0)", "(126, 0, 0)", "thread (0, 0, 0) has written, with no fence_async_shared", **WARPGROUP
    ),
    "forgets_barrier_before_product": fault(
        "(0, 0, 0)", "(126, 0, 0)", "thread (0, 0, 0) has written since the last barrier", **WARPGROUP
    ),
    "forgets_wgmma_fence": fault("(0, 0, 0)", "(127, 0, 0)", "multiplies without a wgmma_fence before", **WARPGROUP),
    "multiplies_in_branch": fault("(0, 0, 0)", "(0, 0, 0)", "for thread (96, 0, 0), which has exited", **WARPGROUP),
    "multiplies_other_terms": fault(
        "(0, 0, 0)", "(126, 0, 0)", "multiplies other matrices than its warpgroup", **WARPGROUP
    ),
    "forgets_wgmma_wait": fault("(0, 0, 0)", "(31, 0, 0)", "has exited with a product in flight", **WARPGROUP),
    "overwrites_sums": fault("(0, 0, 0)", "(30, 0, 0)", "has written to sums of a product in flight", **WARPGROUP),
    "overwrites_factors": fault(
        "(0, 0, 0)", "(0, 0, 0)", "writes 2 bytes at offset 896 of dynamic shared memory, which a product", **WARPGROUP
    ),
    "overwrites_factors_of_others": fault("(0, 0, 0)", "(0, 0, 0)", "which a product in flight reads", **WARPGROUP),
}


@pytest.mark.parametrize("name", BROKEN)
def test_fault_is_found(emulator: Emulator, name: str) -> None:
    block, thread, words, arguments = BROKEN[name]
    with pytest.raises(KernelError) as found:
        run(emulator, name, **arguments)
    message = str(found.value)
    assert message.startswith(f"kernel {name}, block {block}, thread {thread}: "), message
    assert words in message, message


def test_fault_names_the_line(emulator: Emulator) -> None:
    with pytest.raises(KernelError, match=r"\[broken\.cpp:\d+\]"):
        run(emulator, "writes_beyond", output=floats(40), grid=(2, 1, 1))


def test_a_fault_leaves_no_trace(emulator: Emulator) -> None:
    """After a kernel that was stopped half-way, the next one runs as if nothing had been."""
    for name in ("exits_before_barrier", "shuffles_in_branch", "forgets_async_wait", "overwrites_factors"):
        with pytest.raises(KernelError):
            run(emulator, name, **BROKEN[name][3])
        test_block_sum(emulator, 1000)


@pytest.mark.parametrize(
    ("grid", "block", "shared"),
    [
        ((1, 1, 1), (1025, 1, 1), 0),
        ((1, 65536, 1), (1, 1, 1), 0),
        ((0, 1, 1), (1, 1, 1), 0),
        ((1, 1, 1), (1, 1, 1), 1 << 18),
    ],
)  # fmt: skip
def test_launch_that_no_gpu_accepts(
    emulator: Emulator, grid: tuple[int, ...], block: tuple[int, ...], shared: int
) -> None:
    with pytest.raises(KernelError, match="no GPU launches a grid of"):
        run(emulator, "barriers", output=floats(1), grid=grid, block=block, shared=shared)


def test_missing_output_is_noticed(emulator: Emulator) -> None:
    with pytest.raises(AssertionError, match="4 of 132 bytes were never written"):
        run(emulator, "barriers", output=np.empty(33, np.int32))


def test_release_build_knows_nothing_of_it() -> None:
    """Only the one header that the emulator takes the place of, and its caller, mention it."""
    sources = (BUILD.parent.parent / "csrc").rglob("*")
    mention = {p.name for p in sources if p.is_file() and "emulator" in p.read_text().lower()}
    assert mention <= {"device.cuh", "launch.h"}


@pytest.mark.parametrize("divisor", [1, 2, 3, 5, 7, 8, 10, 49, 641, 65535, 65536, 65537, (1 << 31) - 1])
def test_division_by_multiplication(emulator: Emulator, divisor: int) -> None:
    edges = [0, 1, divisor - 1, divisor, divisor + 1, (1 << 31) - 1]
    multiples = ((1 << 31) // divisor - np.arange(1000)) * divisor
    values = np.concatenate([edges, multiples, multiples - 1, np.random.default_rng(3).integers(0, 1 << 31, 10000)])
    values = values[(values >= 0) & (values < 1 << 31)].astype(np.uint32)
    errors = _library().emulated_divisor_errors
    errors.restype = ctypes.c_int64
    assert errors(ctypes.c_uint32(divisor), ctypes.c_void_p(values.ctypes.data), ctypes.c_int64(len(values))) == 0
