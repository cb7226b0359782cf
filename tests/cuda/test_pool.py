"""Pooling on a GPU, against the same operators on the CPU: maxima, winners and indices bit for bit, means and
gradients to rounding.

The kernels' indexing is tested on any machine by test_pool_cuda.py; here it is the compiler for GPUs, the
launch, streams, graphs, devices and sizes that no emulator reaches."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import fastconv

DEVICE = "cuda"
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FORWARD = ("pool_pixels", "pool_strips", "pool_spans", "pool_slices")
BACKWARD = ("pool_gather_pixels", "pool_gather_rows")
ALL = pytest.mark.kernels(*FORWARD, *BACKWARD, "pool_indices", "pool_pick")

Pool = Callable[..., Tensor]


def contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def strided(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1)[..., ::2]


def shifted(x: Tensor) -> Tensor:
    """The same values one element off the alignment that allocations have."""
    flat = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    view = flat[1:].view(x.shape)
    view.copy_(x)
    return view


def shifted_channels_last(x: Tensor) -> Tensor:
    return shifted(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)


LAYOUTS = [contiguous, channels_last, strided, shifted, shifted_channels_last]
MAX: list[Pool] = [
    partial(fastconv.max_pool2d, kernel_size=2),
    partial(fastconv.max_pool2d, kernel_size=3, stride=2, padding=1),
    partial(fastconv.max_pool2d, kernel_size=3, stride=2, ceil_mode=True),
    partial(fastconv.max_pool2d, kernel_size=3, stride=1, padding=1),
    partial(fastconv.max_pool2d, kernel_size=(5, 4), stride=(1, 3), padding=(2, 1)),
    partial(fastconv.max_pool2d, kernel_size=3, stride=2, padding=3, dilation=3),
    partial(fastconv.max_pool2d, kernel_size=13, stride=1, padding=6),
    partial(fastconv.max_pool2d, kernel_size=17, stride=2, padding=8),  # ids of two bytes
    partial(fastconv.adaptive_max_pool2d, output_size=(3, 5)),
    partial(fastconv.adaptive_max_pool2d, output_size=(1, 7)),
    fastconv.global_max_pool2d,
]
AVG: list[Pool] = [
    partial(fastconv.avg_pool2d, kernel_size=2),
    partial(fastconv.avg_pool2d, kernel_size=3, stride=2, padding=1),
    partial(fastconv.avg_pool2d, kernel_size=3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    partial(fastconv.avg_pool2d, kernel_size=3, stride=1, padding=1),
    partial(fastconv.avg_pool2d, kernel_size=(5, 4), stride=(1, 3), padding=(2, 1), divisor_override=7),
    partial(fastconv.avg_pool2d, kernel_size=13, stride=1, padding=6),
    partial(fastconv.adaptive_avg_pool2d, output_size=(3, 5)),
    partial(fastconv.adaptive_avg_pool2d, output_size=(1, 7)),
    fastconv.global_avg_pool2d,
]


def name_of(pool: Pool) -> str:
    if not isinstance(pool, partial):
        return pool.__name__
    return "-".join([pool.func.__name__, *(str(v).replace(" ", "") for v in pool.keywords.values())])


def values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """On the CPU; few numbers, so that there are ties, and some that are none."""
    x = torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    x.view(-1)[::97] = float("nan")
    x.view(-1)[::13] = float("-inf")
    return x


def check_max(pool: Pool, x: Tensor, layout: Callable[[Tensor], Tensor]) -> None:
    """`x` is on the CPU."""
    mine, theirs = layout(x.to(DEVICE)).requires_grad_(), layout(x).requires_grad_()
    output, indices = pool(mine, return_indices=True)
    wanted, wanted_indices = pool(theirs, return_indices=True)
    torch.testing.assert_close(output.cpu(), wanted, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(indices.cpu(), wanted_indices)
    assert output.stride() == wanted.stride()
    with torch.no_grad():
        torch.testing.assert_close(pool(mine).cpu(), wanted, rtol=0, atol=0, equal_nan=True)

    grad = torch.randint(-2, 3, wanted.shape).to(x.dtype)  # sums of these are exact
    given = grad.to(DEVICE).requires_grad_()
    (back,) = torch.autograd.grad(output, mine, given, create_graph=True)
    (wanted_back,) = torch.autograd.grad(wanted, theirs, grad)
    torch.testing.assert_close(back.detach().cpu(), wanted_back, rtol=0, atol=0)
    again = torch.randint(-2, 3, x.shape).to(x.dtype)
    (picked,) = torch.autograd.grad(back, given, again.to(DEVICE))
    flat = again.flatten(2).gather(2, wanted_indices.flatten(2).clamp(min=0)).view(wanted.shape)
    assert torch.equal(picked.cpu(), torch.where(wanted_indices < 0, 0, flat))


def check_avg(pool: Pool, x: Tensor, layout: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(x.dtype)
    mine, theirs = layout(x.to(DEVICE)).requires_grad_(), layout(x).requires_grad_()
    output, wanted = pool(mine), pool(theirs)
    torch.testing.assert_close(output.detach().cpu(), wanted.detach())
    assert output.stride() == wanted.stride()
    grad = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(x.dtype)
    output.backward(grad.to(DEVICE))
    wanted.backward(grad)
    assert mine.grad is not None
    torch.testing.assert_close(mine.grad.cpu(), theirs.grad)


SHAPES = [(2, 16, 28, 24), (3, 5, 17, 19), (1, 1, 20, 64)]


@ALL
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pool", MAX, ids=name_of)
def test_max(pool: Pool, dtype: torch.dtype, layout: Callable[[Tensor], Tensor]) -> None:
    for shape in SHAPES:
        check_max(pool, values(shape, dtype), layout)


@ALL
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pool", AVG, ids=name_of)
def test_avg(pool: Pool, dtype: torch.dtype, layout: Callable[[Tensor], Tensor]) -> None:
    for shape in SHAPES:
        check_avg(pool, values(shape, dtype), layout)


@ALL
@pytest.mark.sanitizer
@pytest.mark.parametrize("layout", [contiguous, channels_last, shifted])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_the_sanitizer(dtype: torch.dtype, layout: Callable[[Tensor], Tensor]) -> None:
    x = values((2, 8, 15, 16), dtype)
    for pool in (MAX[0], MAX[1], MAX[4], MAX[8], MAX[-1]):
        check_max(pool, x, layout)
    for pool in (AVG[1], AVG[6], AVG[-1]):
        check_avg(pool, x, layout)


@pytest.mark.kernels("pool_pixels", "pool_gather_rows", "pool_indices")
def test_one_dimension() -> None:
    x = values((2, 5, 100), torch.float32)
    check_max(partial(fastconv.max_pool1d, kernel_size=3, stride=2, padding=1), x, contiguous)
    check_avg(partial(fastconv.avg_pool1d, kernel_size=5, stride=2, padding=2), x, contiguous)


@pytest.mark.parametrize(
    ("kernel", "pool", "shape", "layout"),
    [
        pytest.param(kernel, *rest, marks=pytest.mark.kernels(kernel), id=f"{kernel}-{rest[2].__name__}")
        for kernel, *rest in [
            ("pool_strips", MAX[1], (8, 64, 56, 56), contiguous),
            ("pool_pixels", MAX[4], (8, 64, 56, 56), contiguous),
            ("pool_pixels", MAX[1], (8, 64, 56, 56), channels_last),
            ("pool_spans", fastconv.global_max_pool2d, (8, 256, 7, 7), contiguous),
            ("pool_slices", fastconv.global_max_pool2d, (8, 256, 7, 7), channels_last),
        ]
    ],
)
def test_layout_reaches_its_kernel(
    kernel: str, pool: Pool, shape: tuple[int, ...], layout: Callable[[Tensor], Tensor]
) -> None:
    x = layout(torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)).requires_grad_()
    pool(x).sum().backward()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        pool(x).sum().backward()
        torch.cuda.synchronize()
    names = [event.name for event in profiler.events()]
    gather = "pool_gather_rows" if layout is contiguous else "pool_gather_pixels"
    for wanted in (kernel, gather):
        assert any(wanted in name for name in names), names


@ALL
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_current_stream(layout: Callable[[Tensor], Tensor]) -> None:
    """On a stream that is kept busy first: work on another one would read what is not there yet."""
    x = layout(torch.zeros((8, 24, 28, 28), device=DEVICE))
    wanted = layout(torch.randn((8, 24, 28, 28), device=DEVICE))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.copy_(wanted)
        pooled = fastconv.max_pool2d(x, 3, 2, 1)
    stream.synchronize()
    assert torch.equal(pooled, fastconv.max_pool2d(wanted, 3, 2, 1))


@ALL
@pytest.mark.parametrize("pool", [MAX[1], MAX[-1], AVG[1], AVG[-1]], ids=name_of)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_graph_capture(layout: Callable[[Tensor], Tensor], pool: Pool, capture: Callable) -> None:
    """Forward and backward."""
    x = layout(torch.randn((8, 24, 14, 14), device=DEVICE)).requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        output = pool(x)
        return output, torch.autograd.grad(output.sum(), x)[0]

    graph, (output, grad) = capture(step)
    for seed in range(3):
        with torch.no_grad():
            x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        wanted_output, wanted_grad = step()
        assert torch.equal(output, wanted_output)
        assert torch.equal(grad, wanted_grad)


@ALL
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_another_device(layout: Callable[[Tensor], Tensor]) -> None:
    """The tensor's device counts, not the current one, which stays what it was."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    x = layout(torch.randn((2, 24, 7, 7), device="cuda:1"))
    with torch.cuda.device(0):
        pooled = fastconv.max_pool2d(x, 3, 2, 1)
        assert torch.cuda.current_device() == 0
    assert pooled.device == x.device
    assert torch.equal(pooled.cpu(), fastconv.max_pool2d(x.cpu(), 3, 2, 1))


@ALL
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_gradients_are_the_same_every_time(layout: Callable[[Tensor], Tensor]) -> None:
    x = layout(torch.randn((4, 32, 56, 56), device=DEVICE)).requires_grad_()
    grad = torch.randn((4, 32, 56, 56), device=DEVICE)
    for pool in (MAX[3], AVG[3], MAX[6]):
        first, second = (torch.autograd.grad(pool(x), x, grad)[0] for _ in range(2))
        assert torch.equal(first, second)


@pytest.mark.kernels("pool_pixels", "pool_gather_pixels", "pool_indices")
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_more_than_two_billion_elements(layout: Callable[[Tensor], Tensor]) -> None:
    """More windows than 32 bits count, and 64-bit indices on the way back."""
    shape = (3, 8, 9500, 9500)
    elements = torch.Size(shape).numel()
    assert elements > 1 << 31
    free, _ = torch.cuda.mem_get_info()
    needed = 24 * elements  # the input, its gradient, output, ids, and what makes them
    if free < needed:
        pytest.skip(f"needs {needed >> 30} GiB of free GPU memory (found {free >> 30})")
    x = torch.empty(shape, dtype=torch.float16, device=DEVICE)
    x = layout(x).random_(-100, 101).requires_grad_()
    output = fastconv.max_pool2d(x, 3, 1, 1)
    (grad,) = torch.autograd.grad(output.sum(), x)
    for n, c in ((0, 0), (2, 7)):
        plane = x.detach()[n, c][None, None].contiguous().requires_grad_()
        wanted = fastconv.max_pool2d(plane, 3, 1, 1)
        assert torch.equal(output[n, c], wanted[0, 0])
        (wanted_grad,) = torch.autograd.grad(wanted.sum(), plane)
        assert torch.equal(grad[n, c], wanted_grad[0, 0])


@ALL
def test_arguments_are_checked() -> None:
    x = torch.zeros((2, 6, 4, 4), device=DEVICE)
    with pytest.raises(RuntimeError, match=r"max_pool2d: padding must be at most half of what a window spans"):
        fastconv.max_pool2d(x, 2, padding=2)
    with pytest.raises(RuntimeError, match=r"avg_pool2d: divisor_override must not be zero"):
        fastconv.avg_pool2d(x, 2, divisor_override=0)


@ALL
@pytest.mark.parametrize("shape", [(0, 6, 4, 4), (6, 4, 4)])
def test_no_batch_and_an_empty_one(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, device=DEVICE).requires_grad_()
    for pool in (MAX[0], MAX[-1], AVG[0], AVG[-1]):
        output = pool(x)
        assert torch.equal(output.cpu(), pool(x.cpu()))
        output.sum().backward()


@ALL
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_opcheck(layout: Callable[[Tensor], Tensor]) -> None:
    x = layout(torch.randn((2, 6, 8, 9), device=DEVICE)).requires_grad_()
    ops = torch.ops.fastconv
    windows = ([3, 3, 2, 2, 1, 1, 1, 1], False)
    for op in (ops.max_pool, ops._max_pool_ids):
        torch.library.opcheck(op.default, (x, *windows))
    torch.library.opcheck(ops.avg_pool.default, (x, [3, 3, 2, 2, 1, 1, 1, 1], False, True, None))
