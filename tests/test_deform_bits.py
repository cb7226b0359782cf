"""Deformable convolution: bits depend neither on threads, nor on what else is asked for, nor on strides of 0; memory
formats of results; and that there is no column buffer."""

from typing import Any

import pytest
import torch
from deform_cases import CASES, NAMES, all_of, call, drawn, leaves_of, problem
from layouts import LAYOUTS

import fastconv

#: The tensors are small.
pytestmark = pytest.mark.usefixtures("one_thread")


#: Enough products for several threads.
LARGE = ["33 channels", "70 channels", "all of it", "more pixels than several tiles", "groups", "many images"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", LARGE)
def test_bits_do_not_depend_on_threads(name: str, layout: str, dtype: torch.dtype) -> None:
    case, p = CASES[name], problem(name, dtype)
    leaves = leaves_of(p.given, input=layout)
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append(all_of(case, leaves, p.grad_output, *NAMES[:3], "mask"))
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["17 channels", "all of it", "many images", "depthwise", "8 channels, v1, no bias"])
def test_subsets_of_gradients(name: str) -> None:
    case, p = CASES[name], problem(name, torch.float32)
    asked = [of for of in NAMES if p.given[of] is not None]
    together = dict(zip(asked, all_of(case, leaves_of(p.given), p.grad_output, *asked)[1:], strict=True))
    for subset in (*((of,) for of in asked), ("input", "weight"), ("offset", "weight"), ("input", "offset")):
        leaves = {of: t if t is None else t.clone().requires_grad_(of in subset) for of, t in p.given.items()}
        for of, got in zip(subset, all_of(case, leaves, p.grad_output, *subset)[1:], strict=True):
            assert torch.equal(got, together[of]), (of, subset)


def test_gradients_of_stride_0() -> None:
    case, p = CASES["17 channels"], problem("17 channels", torch.float32)
    for grad in (torch.ones(1), torch.randn(1, 31, 1, 1), torch.randn(2, 1, 8, 9)):
        spread = grad.expand(p.grad_output.shape)
        leaves = leaves_of(p.given)
        got, expected = (all_of(case, leaves, g, *NAMES[:3], "mask") for g in (spread, spread.contiguous()))
        for one, other in zip(got, expected, strict=True):
            assert torch.equal(one, other)
    (got,) = torch.autograd.grad(call(case, leaves).sum(), leaves["input"])
    (expected,) = torch.autograd.grad(call(case, leaves), leaves["input"], torch.ones(p.grad_output.shape))
    assert torch.equal(got, expected)


def test_arguments_of_stride_0() -> None:
    x, offset = torch.randn(1, 1, 6, 7).expand(2, 18, 6, 7), torch.randn(1, 2, 1, 1).expand(2, 2, 6, 7)
    weight, mask = torch.randn(1, 18, 1, 1).expand(5, 18, 1, 1), torch.randn(2, 1, 1, 7).expand(2, 1, 6, 7)
    spread, whole = (
        [one.detach().requires_grad_() for one in (x, offset, weight, mask)],
        [one.contiguous().requires_grad_() for one in (x, offset, weight, mask)],
    )
    outputs = [fastconv.deform_conv2d(x, o, w, mask=m) for x, o, w, m in (spread, whole)]
    assert torch.equal(*outputs)
    grad = torch.randn(outputs[0].shape)
    grads = [torch.autograd.grad(o, given, grad) for o, given in zip(outputs, (spread, whole), strict=True)]
    for got, expected in zip(*grads, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_format(layout: str) -> None:
    """The output's is the input's; a gradient's is that of what it belongs to, the weight's contiguous."""
    given, grad_output = drawn(CASES["17 channels"])
    last = layout in ("channels_last", "sliced_channels_last")
    leaves = leaves_of(given, input=layout, offset=layout, mask=layout, weight=layout)
    output = call(CASES["17 channels"], leaves)
    of_input = torch.channels_last if last else torch.contiguous_format
    assert output.is_contiguous(memory_format=of_input)
    grads = torch.autograd.grad(output, [leaves[name] for name in ("input", "offset", "mask", "weight")], grad_output)
    for grad in grads[:3]:
        assert grad.is_contiguous(memory_format=of_input)
    assert grads[3].is_contiguous()
    opposite = "contiguous" if last else "channels_last"
    leaves = leaves_of(given, input=layout, offset=opposite, mask=opposite)
    output = call(CASES["17 channels"], leaves)
    assert output.is_contiguous(memory_format=of_input)
    of_others = torch.contiguous_format if last else torch.channels_last
    for grad in torch.autograd.grad(output, [leaves["offset"], leaves["mask"]], grad_output):
        assert grad.is_contiguous(memory_format=of_others)


# ---- memory ----------------------------------------------------------------------------------------------------------


def most_memory(function: Any) -> int:
    """Bytes that PyTorch's allocator gave out at one time, results included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    changes: list[tuple[int, int]] = []

    def walk(events: list) -> None:
        for event in events:
            if event.tag == torch._C._profiler._EventType.Allocation:
                changes.append((event.start_time_ns, event.extra_fields.alloc_size))
            walk(event.children)

    assert profile.profiler is not None
    walk(profile.profiler.kineto_results.experimental_event_tree())
    now = most = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def test_there_is_no_column_buffer() -> None:
    """It would be nine times the input. Forward there is the output, the input turned over and a MB for each thread;
    backward the gradients, and for each thread two maps of half of the channels."""
    torch.set_num_threads(2)
    x, offset = torch.randn(1, 64, 96, 96).requires_grad_(), torch.randn(1, 18, 96, 96).requires_grad_()
    weight = torch.randn(64, 64, 3, 3).requires_grad_()
    plane = x.numel() * 4
    output = fastconv.deform_conv2d(x, offset, weight, padding=1)
    grad = torch.randn(output.shape)
    forward = most_memory(lambda: fastconv.deform_conv2d(x, offset, weight, padding=1))
    assert plane <= forward < 3 * plane
    backward = most_memory(lambda: torch.autograd.grad(output, (x, offset, weight), grad))
    assert plane <= backward < 6 * plane
