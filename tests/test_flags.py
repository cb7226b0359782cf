"""The switches of the process: what they switch, that they nest and come back, and what they refuse."""

import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from kernels import SUPPORTED

import fastconv
from fastconv._native import ISAS, native
from fastconv.flags import in_force

KERNELS = [*native.conv_kernels(), "depthwise_planes", "implicit_gemm", "auto"]


@pytest.fixture
def before() -> dict:
    return in_force()


def test_a_block_puts_back_what_was_before(before) -> None:
    with fastconv.flags(kernel="general", winograd=False, isa="baseline"):
        assert in_force() == {"winograd": False, "isa": "baseline", "kernel": "general"}
        with fastconv.flags(kernel="pixel"):
            assert in_force() == {"winograd": False, "isa": "baseline", "kernel": "pixel"}
            with fastconv.flags(kernel="auto", winograd=True):
                assert in_force() == {"winograd": True, "isa": "baseline", "kernel": "auto"}
            assert in_force() == {"winograd": False, "isa": "baseline", "kernel": "pixel"}
        assert in_force() == {"winograd": False, "isa": "baseline", "kernel": "general"}
    assert in_force() == before


def test_an_error_in_a_block_puts_back_too(before) -> None:
    with pytest.raises(ZeroDivisionError), fastconv.flags(kernel="general", isa="baseline"):
        1 / 0  # noqa: B018
    assert in_force() == before


def test_a_call_alone_holds(before) -> None:
    fastconv.flags(isa="baseline")
    assert in_force() == {**before, "isa": "baseline"}
    fastconv.flags(kernel="general")
    assert in_force() == {**before, "isa": "baseline", "kernel": "general"}
    fastconv.flags(kernel="auto", isa=before["isa"])
    assert in_force() == before


def test_a_block_leaves_alone_what_it_does_not_name(before) -> None:
    with fastconv.flags(isa="baseline"):
        fastconv.flags(kernel="general")
    assert in_force() == {**before, "kernel": "general"}


def test_a_block_can_be_entered_again(before) -> None:
    block = fastconv.flags(kernel="general")
    for _ in range(2):
        with block:
            assert in_force()["kernel"] == "general"
        assert in_force() == before


def test_it_shows_what_is_in_force() -> None:
    with fastconv.flags(kernel="pixel", isa="baseline"):
        assert repr(fastconv.flags()) == "flags(winograd=True, isa='baseline', kernel='pixel')"
    with fastconv.flags(winograd=False) as block:
        assert repr(block).startswith("flags(winograd=False, isa=")


def test_other_threads_see_them() -> None:
    seen = []
    with fastconv.flags(kernel="general"):
        worker = threading.Thread(target=lambda: seen.append(in_force()["kernel"]))
        worker.start()
        worker.join()
    assert seen == ["general"]


def test_kernel_and_isa_are_what_runs() -> None:
    x, weight = torch.randn(1, 40, 8, 8), torch.randn(40, 40, 3, 3)
    results = {}
    for kernel in ("auto", "channel", "pixel", "general"):
        for isa in SUPPORTED[:2]:
            with fastconv.flags(kernel=kernel, isa=isa):
                results[kernel, isa] = fastconv.conv2d(x, weight)
    for isa in SUPPORTED[:2]:
        assert torch.equal(results["auto", isa], results["channel", isa])
        assert not torch.equal(results["auto", isa], results["general", isa])
    if len(SUPPORTED) > 1:  # a fused multiply-add rounds once, the baseline's twice
        assert not torch.equal(results["general", "baseline"], results["general", "avx2"])
    with (
        fastconv.flags(kernel="depthwise"),
        pytest.raises(RuntimeError, match=r"conv2d: kernel must be able to serve these arguments \(got depthwise\)"),
    ):
        fastconv.conv2d(x, weight)


def test_a_kernel_of_cuda_is_an_error_on_the_cpu() -> None:
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3)
    for name in native.conv_cuda_kernels():
        assert name in KERNELS
    for name in set(native.conv_cuda_kernels()) - set(native.conv_kernels()):
        with (
            fastconv.flags(kernel=name),
            pytest.raises(RuntimeError, match=rf"conv2d: kernel must be able to serve these arguments \(got {name}\)"),
        ):
            fastconv.conv2d(x, weight)


def test_the_library_of_cuda_is_told(monkeypatch, before) -> None:
    """It keeps the name for itself: one library does not see what the other one has."""
    told: list[str] = []
    module = sys.modules["fastconv.flags"]
    monkeypatch.setattr(module, "HAS_CUDA", True)
    monkeypatch.setattr(module, "ops", SimpleNamespace(_conv_cuda_force=told.append))
    with fastconv.flags(kernel="implicit_gemm"):
        assert told[-1] == "implicit_gemm"
        with pytest.raises(ValueError, match="kernel must be one of"):
            fastconv.flags(kernel="fastest")
        assert told[-1] == "implicit_gemm"
        with fastconv.flags(kernel="auto"):
            assert told[-1] == ""
        assert told[-1] == "implicit_gemm"
    assert told[-1] == ""
    assert in_force() == before


def test_a_row_that_is_switched_off_is_not_asked() -> None:
    """What ``winograd=False`` does to the row of that name, shown by a row that is preferred elsewhere."""
    x, weight = torch.randn(2, 40, 9, 10), torch.randn(40, 2, 3, 3)

    def chosen() -> str | None:
        return fastconv.explain("conv2d", x, weight, groups=20).kernel

    first = fastconv.conv2d(x, weight, groups=20)
    name = chosen()
    assert native.conv_skip_kernel(name)
    try:
        assert native.conv_skipped_kernel() == name
        assert chosen() not in (name, None)
        second = fastconv.conv2d(x, weight, groups=20)
        with fastconv.flags(kernel=chosen()):
            assert torch.equal(fastconv.conv2d(x, weight, groups=20), second)
        with fastconv.flags(kernel=name):  # asked for by name it runs all the same
            assert torch.equal(fastconv.conv2d(x, weight, groups=20), first)
    finally:
        assert native.conv_skip_kernel("")
    assert chosen() == name
    assert torch.equal(fastconv.conv2d(x, weight, groups=20), first)
    assert not native.conv_skip_kernel("fastest")


def test_winograd_switches_its_row() -> None:
    assert native.conv_skipped_kernel() == ""
    with fastconv.flags(winograd=False):
        assert native.conv_skipped_kernel() == "winograd"
        with fastconv.flags(winograd=True):
            assert native.conv_skipped_kernel() == ""
        assert native.conv_skipped_kernel() == "winograd"
    assert native.conv_skipped_kernel() == ""


def test_the_number_of_the_choice_changes_with_it() -> None:
    """Packed weights are tied to it."""
    numbers = [native.conv_choice()]
    for flags in (
        dict(kernel="general"),
        dict(winograd=False),
        dict(kernel="auto"),
        dict(isa="baseline"),
        dict(winograd=True),
    ):
        if flags == {"isa": native.isa()}:
            continue
        fastconv.flags(**flags)
        assert native.conv_choice() not in numbers
        numbers.append(native.conv_choice())
        fastconv.flags(**flags)
        assert native.conv_choice() == numbers[-1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(isa="avx1024"), ValueError, f"isa must be one of {', '.join(ISAS)} (got 'avx1024')"),
        (dict(isa=""), ValueError, f"isa must be one of {', '.join(ISAS)} (got '')"),
        (dict(isa=1), TypeError, "isa must be a string (got 1)"),
        (
            dict(kernel="fastest"),
            ValueError,
            f"kernel must be one of {', '.join(KERNELS)} (got 'fastest')",
        ),
        (dict(kernel=""), ValueError, f"kernel must be one of {', '.join(KERNELS)} (got '')"),
        (dict(kernel=True), TypeError, "kernel must be a string (got True)"),
        (dict(winograd=1), TypeError, "winograd must be True or False (got 1)"),
        (dict(winograd="no"), TypeError, "winograd must be True or False (got 'no')"),
        (dict(isa="baseline", kernel="fastest"), ValueError, "kernel must be one of"),
        (dict(winograd=False, isa="avx1024"), ValueError, "isa must be one of"),
    ],
)
def test_refused(before, arguments, error, message) -> None:
    with pytest.raises(error) as raised:
        fastconv.flags(**arguments)
    assert str(raised.value).startswith(f"flags: {message}")
    assert in_force() == before


def test_an_instruction_set_that_the_machine_lacks(monkeypatch, before) -> None:
    monkeypatch.setattr(native, "isa_supported", lambda: "avx2")
    with pytest.raises(
        ValueError, match=r"flags: isa must be one that this machine has, baseline, avx2 \(got 'avx512'\)"
    ):
        fastconv.flags(isa="avx512")
    monkeypatch.undo()
    assert in_force() == before


def test_by_keyword_only() -> None:
    with pytest.raises(TypeError, match="positional"):
        fastconv.flags(False)
    with pytest.raises(TypeError, match="unexpected keyword"):
        fastconv.flags(cudnn=True)
