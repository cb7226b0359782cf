"""Channel shuffle on a GPU: every type, layout, width of access and way to be called, bit for bit.

The kernels' indexing is tested on any machine by test_rearrange_cuda.py; here it is the compiler for GPUs,
the launch, streams, graphs, devices and sizes that no emulator reaches."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import fastconv

DEVICE = "cuda"
DTYPES = [
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.int8, torch.int16,
    torch.int32,
    torch.int64, torch.bool, torch.complex64, torch.complex128,
]  # fmt: skip
BOTH = pytest.mark.kernels("transpose_planes", "transpose_pixels")


def reference(x: Tensor, groups: int) -> Tensor:
    n, c = x.shape[:2]
    return x.reshape(n, groups, c // groups, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


def values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(0)
    return torch.randint(0, 127, shape, device=DEVICE, generator=generator).to(dtype)


def check(x: Tensor, groups: int) -> None:
    shuffled = fastconv.channel_shuffle(x, groups)
    assert shuffled.shape == x.shape
    assert shuffled.dtype == x.dtype
    assert torch.equal(shuffled, reference(x, groups))
    assert torch.equal(fastconv.channel_unshuffle(shuffled, groups), x)


def contiguous(x: Tensor) -> Tensor:
    return x


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def strided(x: Tensor) -> Tensor:
    wide = x.repeat_interleave(2, -1)
    return wide[..., ::2]


def shifted(x: Tensor) -> Tensor:
    """The same values one element off the alignment that allocations have."""
    flat = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    view = flat[1:].view(x.shape)
    view.copy_(x)
    return view


def shifted_channels_last(x: Tensor) -> Tensor:
    return shifted(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)


LAYOUTS = [contiguous, channels_last, strided, shifted, shifted_channels_last]


@BOTH
@pytest.mark.sanitizer
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_types_and_layouts(dtype: torch.dtype, layout: Callable[[Tensor], Tensor]) -> None:
    check(layout(values((3, 24, 7, 7), dtype)), 3)


@BOTH
@pytest.mark.parametrize("groups", [1, 2, 3, 4, 8, 12, 24])
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (2, 2), (4, 4), (14, 14), (28, 28), (5, 13)])
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_groups_and_sizes(groups: int, size: tuple[int, int], layout: Callable[[Tensor], Tensor]) -> None:
    check(layout(values((5, 24, *size), torch.bfloat16)), groups)


@BOTH
@pytest.mark.parametrize("channels", [6, 116, 240, 1536, 20000, 60000])
def test_channels(channels: int) -> None:
    check(channels_last(values((2, channels, 3, 3), torch.bfloat16)), 2)


@BOTH
@pytest.mark.parametrize("shape", [(4, 6, 9), (4, 6, 3, 4, 5), (0, 6, 4, 4), (2, 6, 0, 4), (2, 6, 4, 0)])
def test_other_dimensions(shape: tuple[int, ...]) -> None:
    check(values(shape, torch.float32), 3)


@BOTH
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_memory_format_is_kept(layout: Callable[[Tensor], Tensor]) -> None:
    x = layout(values((2, 6, 4, 5), torch.float32))
    assert fastconv.channel_shuffle(x, 2).stride() == x.stride()


@pytest.mark.parametrize(
    ("kernel", "layout"),
    [
        pytest.param("transpose_planes", contiguous, marks=pytest.mark.kernels("transpose_planes")),
        pytest.param("transpose_pixels", channels_last, marks=pytest.mark.kernels("transpose_pixels")),
    ],
)
def test_layout_reaches_its_kernel(kernel: str, layout: Callable[[Tensor], Tensor]) -> None:
    x = layout(values((4, 24, 28, 28), torch.bfloat16))
    fastconv.channel_shuffle(x, 3)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        fastconv.channel_shuffle(x, 3)
        torch.cuda.synchronize()
    names = [event.name for event in profiler.events() if "transpose_" in event.name]
    assert names, "the profiler saw no kernel of fastconv's"
    assert all(kernel in name for name in names), names


@BOTH
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_current_stream(layout: Callable[[Tensor], Tensor]) -> None:
    """On a stream that is kept busy first: work on another one would read what is not there yet."""
    x = layout(torch.zeros((8, 24, 28, 28), device=DEVICE))
    wanted = layout(values((8, 24, 28, 28), torch.float32))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.copy_(wanted)
        shuffled = fastconv.channel_shuffle(x, 3)
    stream.synchronize()
    assert torch.equal(shuffled, reference(wanted, 3))


@BOTH
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_graph_capture(layout: Callable[[Tensor], Tensor]) -> None:
    x = layout(values((8, 24, 14, 14), torch.float16))
    fastconv.channel_shuffle(x, 3)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        shuffled = fastconv.channel_shuffle(x, 3)
    for step in range(3):
        x.add_(step + 1)
        graph.replay()
        assert torch.equal(shuffled, reference(x, 3))


@BOTH
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_another_device(layout: Callable[[Tensor], Tensor]) -> None:
    """The tensor's device counts, not the current one, which stays what it was."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    x = layout(values((2, 24, 7, 7), torch.float32)).to("cuda:1")
    with torch.cuda.device(0):
        shuffled = fastconv.channel_shuffle(x, 3)
        assert torch.cuda.current_device() == 0
    assert shuffled.device == x.device
    assert torch.equal(shuffled, reference(x, 3))


@pytest.mark.parametrize(
    ("shape", "groups", "layout"),
    [
        # A sample of more than 2^31 bytes: 64-bit indices within the sample.
        pytest.param((1, 4, 23171, 23171), 2, contiguous, marks=pytest.mark.kernels("transpose_planes")),
        # All samples together.
        pytest.param((70, 6, 2304, 2304), 3, contiguous, marks=pytest.mark.kernels("transpose_planes")),
        pytest.param((9, 6, 6500, 6400), 3, channels_last, marks=pytest.mark.kernels("transpose_pixels")),
    ],
)
def test_more_than_two_billion_elements(
    shape: tuple[int, ...], groups: int, layout: Callable[[Tensor], Tensor]
) -> None:
    elements = torch.Size(shape).numel()
    assert elements > 1 << 31
    free, _ = torch.cuda.mem_get_info()
    if free < 5 * elements:
        pytest.skip(f"needs {5 * elements >> 30} GiB of free GPU memory (found {free >> 30})")
    x = torch.empty(shape, dtype=torch.uint8, device=DEVICE).random_(0, 256)
    x = layout(x)
    shuffled = fastconv.channel_shuffle(x, groups)
    channels = shape[1]
    for c in range(channels):  # one at a time, for the sake of memory
        source = c % groups * (channels // groups) + c // groups
        assert torch.equal(shuffled[:, c], x[:, source])


@BOTH
def test_arguments_are_checked() -> None:
    x = values((2, 6, 4, 4), torch.float32)
    with pytest.raises(RuntimeError, match=r"channel_shuffle: groups must divide the number of channels 6 \(got 4\)"):
        fastconv.channel_shuffle(x, 4)
    with pytest.raises(RuntimeError, match=r"channel_unshuffle: groups must be positive \(got 0\)"):
        fastconv.channel_unshuffle(x, 0)


@BOTH
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("op", ["channel_shuffle", "channel_unshuffle"])
def test_opcheck(op: str, layout: Callable[[Tensor], Tensor]) -> None:
    x = layout(torch.randn((2, 6, 4, 5), device=DEVICE)).requires_grad_()
    torch.library.opcheck(getattr(torch.ops.fastconv, op).default, (x, 3))


@BOTH
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_gradient(layout: Callable[[Tensor], Tensor]) -> None:
    x = layout(values((2, 6, 4, 5), torch.float32)).requires_grad_()
    weight = values((2, 6, 4, 5), torch.float32).flip(0)
    (fastconv.channel_shuffle(x, 3) * weight).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, reference(weight, 2))  # the inverse of 3 groups of 2 is 2 groups of 3
