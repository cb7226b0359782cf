"""The CUDA kernels of regions of interest on the emulator, against the operators for CPUs on the same data; and against
what is said of boxes that those would refuse, since on CUDA nobody looks at them before."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from emulated import Emulator, emulator
from test_pool_cuda import ALL_BLOCKS, BOTH_LAYOUTS, NARROW
from torch import Tensor

import fastconv

__all__ = ["emulator"]

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # in the order of Dtype
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 2e-3}
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: str(t).removeprefix("torch."))
KINDS = ["roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"]  # in the order of Roi
NATIVE = torch.ops.fastconv
assert fastconv.__version__  # it has registered the operators


def boxes_on(N: int, H: int, W: int, count: int, scale: float) -> Tensor:
    """Of a pixel or the whole map, on its edges, beyond them, and some that end before they begin."""
    rng = np.random.default_rng(count)
    centre, extent = rng.uniform(-0.1, 1.1, (count, 2)), rng.choice([0.01, 0.2, 0.6, 1.3, -0.15], (count, 2))
    corners = np.concatenate([centre - extent / 2, centre + extent / 2], 1) * [W, H, W, H] / scale
    return torch.tensor(np.column_stack([rng.integers(0, N, count), corners]))


@dataclass(frozen=True)
class Case:
    kind: str
    size: tuple[int, int, int, int] = (2, 20, 21, 26)
    bins: tuple[int, int] = (3, 3)
    scale: float = 0.25
    sampling: int = 2
    aligned: bool = False
    count: int = 12
    boxes: Callable[["Case"], Tensor] = field(default=lambda c: boxes_on(c.size[0], *c.size[2:], c.count, c.scale))

    @property
    def sensitive(self) -> bool:
        return self.kind.startswith("ps")

    @property
    def arguments(self) -> list:
        """What all operators take after tensors and sizes."""
        given = [self.scale, list(self.bins)]
        given += [self.sampling] if "align" in self.kind else []
        return given + ([self.aligned] if self.kind == "roi_align" else [])

    def output_size(self, boxes: Tensor) -> tuple[int, ...]:
        C = self.size[1]
        return len(boxes), C // (self.bins[0] * self.bins[1]) if self.sensitive else C, *self.bins


class Gpu:
    """The operators of a case, in one layout and at one of the limits that tests lower."""

    def __init__(self, emulator: Emulator, case: Case, dtype: torch.dtype, channels_last: bool, *,
                 max_grid: int = ALL_BLOCKS, narrow: int = NARROW, offset: int = 0) -> None:  # fmt: skip
        self.emulator, self.case, self.dtype, self.channels_last = emulator, case, dtype, channels_last
        self.limits, self.offset = (ctypes.c_int64 * 2)(max_grid, narrow), offset

    def memory(self, x: Tensor) -> np.ndarray:
        x = x.permute(0, 2, 3, 1) if self.channels_last else x
        x = x.contiguous()
        return (x.view(torch.int16) if x.element_size() == 2 else x).numpy()

    def tensor(self, memory: np.ndarray, dtype: torch.dtype) -> Tensor:
        x = torch.from_numpy(memory).view(dtype)
        return x.permute(0, 3, 1, 2) if self.channels_last else x

    def call(self, name: str, boxes: Tensor, input: Tensor, output: Tensor, ids: Tensor | None = None,
             written: str = "output") -> dict[str, Tensor]:  # fmt: skip
        """What has been written of input, output and ids, whose names are in `written`."""
        case = self.case
        rows = boxes.to(torch.float64 if self.dtype == torch.float64 else torch.float32).numpy()
        sizes = (ctypes.c_int64 * 7)(*input.shape, len(boxes), *case.bins)
        given = {"input": input, "output": output} | ({} if ids is None else {"ids": ids})
        specs = [("boxes", rows, 0, True)]
        specs += [(n, self.memory(x), self.offset * x.element_size(), n not in written) for n, x in given.items()]
        self.emulator.launched()
        with self.emulator.buffers(*specs) as buffers:
            where = [ctypes.c_void_p(b.address) for b in buffers] + [ctypes.c_void_p()] * (ids is None)
            self.emulator.call("emulated_roi", name.encode(), KINDS.index(case.kind), DTYPES.index(self.dtype),
                               int(self.channels_last), sizes, ctypes.byref(ctypes.c_double(case.scale)),
                               case.sampling, int(case.aligned), *where, self.limits)  # fmt: skip
            made = dict(zip(given, buffers[1:], strict=True))
            return {n: self.tensor(made[n].download(), given[n].dtype) for n in given if n in written}

    def kernel(self) -> str:
        """Which ran, of the call before."""
        (name,) = self.emulator.launched()
        return name

    def forward(self, boxes: Tensor, x: Tensor) -> Tensor:
        return self.call("forward", boxes, x, x.new_zeros(self.case.output_size(boxes)))["output"]

    def forward_ids(self, boxes: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        size = self.case.output_size(boxes)
        ids = torch.zeros(size, dtype=torch.int32)
        made = self.call("forward", boxes, x, x.new_zeros(size), ids, "output, ids")
        return made["output"], made["ids"]

    def backward(self, boxes: Tensor, grad: Tensor, ids: Tensor | None = None) -> Tensor:
        return self.call("backward", boxes, grad.new_zeros(self.case.size), grad, ids, "input")["input"]

    def pick(self, boxes: Tensor, x: Tensor, ids: Tensor) -> Tensor:
        return self.call("pick", boxes, x, x.new_zeros(ids.shape), ids)["output"]


def close(got: Tensor, wanted: Tensor) -> None:
    tolerance = TOLERANCE[wanted.dtype]
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance, equal_nan=True)


def native(case: Case, boxes: Tensor, x: Tensor) -> Tensor:
    return getattr(NATIVE, case.kind)(x, boxes.to(x.dtype if x.dtype == torch.float64 else torch.float32),
                                      *case.arguments)  # fmt: skip


def native_grad(case: Case, boxes: Tensor, grad: Tensor, ids: Tensor | None = None) -> Tensor:
    boxes = boxes.to(grad.dtype if grad.dtype == torch.float64 else torch.float32)
    if ids is not None:
        return NATIVE._roi_pool_grad(grad, ids, boxes, case.size, False)
    return getattr(NATIVE, f"_{case.kind}_grad")(grad, boxes, case.size, False, *case.arguments)


def random(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)


def check(gpu: Gpu) -> None:
    """Forward and backward, and of maxima the ids and what is picked by them."""
    case = gpu.case
    boxes = case.boxes(case)
    x, grad = random(case.size, gpu.dtype), random(case.output_size(boxes), gpu.dtype)
    if case.kind != "roi_pool":
        close(gpu.forward(boxes, x), native(case, boxes, x))
        close(gpu.backward(boxes, grad), native_grad(case, boxes, grad))
        return
    exact = boxes.to(torch.float64 if gpu.dtype == torch.float64 else torch.float32)
    wanted, ids = NATIVE._roi_pool_ids(x, exact, *case.arguments)
    output, own = gpu.forward_ids(boxes, x)
    assert torch.equal(output, wanted)
    assert torch.equal(own, ids)
    assert torch.equal(gpu.forward(boxes, x), wanted)
    assert torch.equal(gpu.pick(boxes, x, ids), NATIVE._roi_pool_pick(x, ids, exact))
    close(gpu.backward(boxes, grad, ids), native_grad(case, boxes, grad, ids))


def huge(case: Case) -> Tensor:
    """Far larger than the map, far from it, and so large that the size is not finite."""
    rows = [[1, -1e5, -1e5, 1e5, 1e5], [0, -2e6, 3, 1e7, 40], [1, 1e9, 1e9, 2e9, 2e9], [0, -3e38, 0, 3e38, 9],
            [0, 1e30, 5, -1e30, 9]]  # fmt: skip
    return torch.tensor(rows, dtype=torch.float64)


CASES = {
    "align": Case("roi_align", bins=(7, 7)),
    "align, aligned": Case("roi_align", size=(2, 5, 21, 26), aligned=True, bins=(2, 5)),
    "align, samples adapt": Case("roi_align", size=(2, 32, 21, 26), sampling=0, aligned=True),
    "align, many samples": Case("roi_align", size=(1, 6, 18, 9), sampling=7, bins=(1, 2)),
    "align, more bins than slots": Case("roi_align", size=(1, 4, 9, 11), bins=(35, 34), count=3, scale=1.0),
    "align, many boxes": Case("roi_align", size=(2, 4, 9, 17), bins=(1, 2), count=520),
    "align, a pixel": Case("roi_align", size=(1, 3, 1, 1), count=5),
    "align, huge": Case("roi_align", size=(2, 3, 9, 17), sampling=0, boxes=huge),
    "align, huge, many samples": Case("roi_align", size=(2, 3, 9, 17), sampling=900, aligned=True, boxes=huge),
    "pool": Case("roi_pool", bins=(7, 7)),
    "pool, several segments": Case("roi_pool", size=(1, 8, 50, 45), bins=(2, 9), scale=1.0),
    "pool, many boxes": Case("roi_pool", size=(2, 9, 9, 17), bins=(1, 2), count=70),
    "pool, huge": Case("roi_pool", size=(2, 3, 9, 17), boxes=huge),
    "ps align": Case("ps_roi_align", size=(2, 48, 21, 26), bins=(4, 4)),
    "ps align, samples adapt": Case("ps_roi_align", size=(2, 18, 21, 26), sampling=0, bins=(3, 2)),
    "ps align, huge": Case("ps_roi_align", size=(2, 4, 9, 17), sampling=0, bins=(2, 2), boxes=huge),
    "ps pool": Case("ps_roi_pool", size=(2, 48, 21, 26), bins=(4, 4)),
    "ps pool, a bin": Case("ps_roi_pool", size=(2, 5, 9, 17), bins=(1, 1)),
    "ps pool, huge": Case("ps_roi_pool", size=(2, 4, 9, 17), bins=(2, 2), boxes=huge),
}
USUAL = ["align", "pool", "ps align", "ps pool"]
SMALL = {name: replace(CASES[name], size=(2, 16, 10, 18), bins=(4, 2), count=6) for name in USUAL}


@pytest.mark.parametrize("case", CASES)
@BOTH_LAYOUTS
def test_cases(emulator: Emulator, channels_last: bool, case: str) -> None:
    check(Gpu(emulator, CASES[case], torch.float32, channels_last))


@pytest.mark.parametrize("case", USUAL)
@BOTH_LAYOUTS
@ALL_DTYPES
def test_dtypes(emulator: Emulator, dtype: torch.dtype, channels_last: bool, case: str) -> None:
    check(Gpu(emulator, SMALL[case], dtype, channels_last))


@pytest.mark.parametrize("limits", [{"max_grid": 1}, {"narrow": 0}, {"offset": 1}], ids=str)
@pytest.mark.parametrize("case", USUAL)
@BOTH_LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=lambda t: str(t).removeprefix("torch."))
def test_limits(emulator: Emulator, dtype: torch.dtype, channels_last: bool, case: str, limits: dict) -> None:
    """One block for everything, 64-bit arithmetic, tensors that begin anywhere."""
    check(Gpu(emulator, SMALL[case], dtype, channels_last, **limits))


@ALL_DTYPES
def test_accesses_are_wide_where_they_are_aligned(emulator: Emulator, dtype: torch.dtype) -> None:
    for case in (SMALL["align"], SMALL["pool"]):
        boxes = case.boxes(case)
        x, grad = random(case.size, dtype), random(case.output_size(boxes), dtype)
        for wide, arguments in ((True, {}), (False, {"offset": 1})):
            gpu = Gpu(emulator, case, dtype, True, **arguments)
            gpu.forward(boxes, x)
            assert (", true, " in gpu.kernel()) == wide
            if case.kind == "roi_align":
                gpu.backward(boxes, grad)
                assert (", true, " in gpu.kernel()) == wide


def broken(case: Case, N: int) -> tuple[Tensor, Tensor]:
    """Boxes, some of which are none, and which."""
    boxes = case.boxes(case)
    wrong = torch.zeros(len(boxes), dtype=torch.bool)
    nan, inf = float("nan"), float("inf")
    with_faults = [(0, 1, nan), (2, 2, inf), (3, 3, -inf), (4, 4, 3e38), (5, 0, -1), (7, 0, N), (8, 0, nan),
                   (9, 0, 2.0**40), (11, 0, -inf)]  # fmt: skip
    for row, column, value in with_faults:
        boxes[row, column], wrong[row] = value, True
    return boxes, wrong


@pytest.mark.parametrize("kind", KINDS)
@BOTH_LAYOUTS
@ALL_DTYPES
def test_wrong_boxes(emulator: Emulator, dtype: torch.dtype, channels_last: bool, kind: str) -> None:
    """NaN without an id, and no gradient; the other boxes as if they were alone."""
    case = Case(kind, size=(2, 16, 10, 18), bins=(4, 2), scale=4.0 if dtype != torch.float64 else 1e300)
    boxes, wrong = broken(case, case.size[0])
    x, grad = random(case.size, dtype), random(case.output_size(boxes), dtype)
    gpu = Gpu(emulator, case, dtype, channels_last)
    if kind == "roi_pool":
        output, ids = gpu.forward_ids(boxes, x)
        assert (ids[wrong] == -1).all()
        ids[wrong] = 7  # as nobody should have them
        picked = gpu.pick(boxes, x, ids)
        assert (picked[wrong] == 0).all()
        exact = boxes[~wrong].to(torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(picked[~wrong], NATIVE._roi_pool_pick(x, ids[~wrong], exact))
        got = gpu.backward(boxes, grad, ids)
        close(got, native_grad(case, boxes[~wrong], grad[~wrong], ids[~wrong]))
    else:
        output = gpu.forward(boxes, x)
        close(gpu.backward(boxes, grad), native_grad(case, boxes[~wrong], grad[~wrong]))
    assert output[wrong].isnan().all()
    close(output[~wrong], native(case, boxes[~wrong], x))


@BOTH_LAYOUTS
def test_ids_beyond_the_map_are_left_out(emulator: Emulator, channels_last: bool) -> None:
    case = SMALL["pool"]
    boxes = case.boxes(case).float()
    x, grad = random(case.size, torch.float32), random(case.output_size(boxes), torch.float32)
    _, ids = NATIVE._roi_pool_ids(x, boxes, *case.arguments)
    ids.view(-1)[::5] = 180
    ids.view(-1)[1::7] = 2**31 - 1
    ids.view(-1)[2::9] = -(2**31)
    gpu = Gpu(emulator, case, torch.float32, channels_last)
    close(gpu.backward(boxes, grad, ids), native_grad(case, boxes, grad, ids))
    assert torch.equal(gpu.pick(boxes, x, ids), NATIVE._roi_pool_pick(x, ids, boxes))


@pytest.mark.parametrize("kind", KINDS)
@BOTH_LAYOUTS
def test_infinite_and_nan_pixels(emulator: Emulator, channels_last: bool, kind: str) -> None:
    """They are seen by the bins that they count in and by no others, though some lie on a pixel exactly."""
    case = Case(kind, size=(2, 8, 10, 12), bins=(4, 2), scale=1.0, sampling=1)
    boxes = torch.cat([case.boxes(case), torch.tensor([[1.0, 2.5, 2.5, 6.5, 6.5], [0, 1, 1, 9, 5]]).double()])
    x, grad = random(case.size, torch.float32), random(case.output_size(boxes), torch.float32)
    x.view(-1)[::9], x.view(-1)[4::31] = float("inf"), float("nan")
    grad.view(-1)[::13], grad.view(-1)[5::41] = float("-inf"), float("nan")
    gpu = Gpu(emulator, case, torch.float32, channels_last)
    close(gpu.forward(boxes, x), native(case, boxes, x))
    if kind != "roi_pool":
        close(gpu.backward(boxes, grad), native_grad(case, boxes, grad))
        return
    _, ids = NATIVE._roi_pool_ids(x, boxes.float(), *case.arguments)
    assert torch.equal(gpu.forward_ids(boxes, x)[1], ids)


@pytest.mark.parametrize("aligned", [False, True])
def test_samples_are_counted_as_on_a_cpu(emulator: Emulator, aligned: bool) -> None:
    """Boxes whose bins are a whole number of pixels but for rounding: another rounding has another sample in each."""
    K, scale = 400, 0.3
    corners = torch.arange(K).float()[:, None] * torch.tensor([0.05, 0.02]) + 1
    boxes = torch.cat([torch.zeros(K, 1), corners, corners + 3 / scale], 1).double()
    case = Case("roi_align", size=(1, 4, 9, 17), bins=(3, 1), scale=scale, sampling=0, aligned=aligned,
                boxes=lambda _: boxes)  # fmt: skip
    check(Gpu(emulator, case, torch.float32, True))
