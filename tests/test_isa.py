"""Instruction sets: what is chosen, what caps it, and that all of them compute the same."""

import os
import subprocess
import sys

import pytest
import torch
from kernels import SUPPORTED
from layouts import LAYOUTS

import fastconv
from fastconv._native import ISAS, native


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_best_one_is_chosen_unless_capped() -> None:
    cap = os.environ.get("FASTCONV_CPU_ISA", native.isa_supported())
    assert native.isa() == SUPPORTED[min(ISAS.index(cap), len(SUPPORTED) - 1)]


@pytest.mark.parametrize("isa", ISAS)
def test_select(isa: str) -> None:
    before = native.isa()
    assert native.isa_select(isa) == (isa in SUPPORTED)
    assert native.isa() == (isa if isa in SUPPORTED else before)


@pytest.mark.parametrize("isa", ISAS)
def test_environment_caps(isa: str) -> None:
    code = (
        "import torch, fastconv; from fastconv._native import native; "
        "fastconv.conv2d(torch.ones(1, 20, 4, 4), torch.ones(20, 20, 3, 3)); print(native.isa())"
    )
    done = run_python(code, FASTCONV_CPU_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == SUPPORTED[min(ISAS.index(isa), len(SUPPORTED) - 1)]


@pytest.mark.parametrize("name", ["avx1024", "AVX2", ""])
def test_environment_unknown_name(name: str) -> None:
    done = run_python("import fastconv", FASTCONV_CPU_ISA=name)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message == (f"ImportError: fastconv: FASTCONV_CPU_ISA must be one of {', '.join(ISAS)} (got {name!r})")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("C", "K", "groups"), [(19, 21, 1), (18, 18, 18), (12, 24, 6)])
def test_instruction_sets_agree(C: int, K: int, groups: int, layout: str, dtype: torch.dtype) -> None:
    """Sums differ in their order at most: a rounding of the accumulation, and one of a 16-bit result."""
    input = LAYOUTS[layout](torch.randn(2, C, 9, 21).to(dtype)).requires_grad_()
    weight = torch.randn(K, C // groups, 3, 3).to(dtype).requires_grad_()
    results = []
    for isa in SUPPORTED:
        assert native.isa_select(isa)
        output = fastconv.conv2d(input, weight, padding=1, stride=2, groups=groups)
        results.append((output.detach(), *torch.autograd.grad(output.sin().sum(), (input, weight))))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 2**-6, torch.float16: 2**-8}[dtype]
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance * float(first.abs().max()))


@pytest.mark.parametrize("isa", ["avx512_bf16", "amx"])
def test_levels_beyond_avx512_add_kernels_and_keep_the_others(isa: str) -> None:
    if isa not in SUPPORTED:
        pytest.skip(f"this machine has no {isa}")
    native.isa_select("avx512")
    names, input, weight = native.conv_kernels(), torch.randn(1, 40, 8, 8), torch.randn(40, 40, 3, 3)
    expected = fastconv.conv2d(input, weight)
    native.isa_select(isa)
    assert native.conv_kernels() == ["winograd_bfloat16", "pixel_pairs", "pairs", *names]
    assert torch.equal(fastconv.conv2d(input, weight), expected)


def test_instruction_sets_are_really_different() -> None:
    """A fused multiply-add rounds once; the baseline has none and rounds twice."""
    if len(SUPPORTED) == 1:
        pytest.skip("this machine has only the baseline")
    input, weight = torch.randn(1, 40, 8, 8), torch.randn(40, 40, 3, 3)
    results = []
    for isa in ("baseline", "avx2"):
        native.isa_select(isa)
        results.append(fastconv.conv2d(input, weight))
    assert not torch.equal(*results)
