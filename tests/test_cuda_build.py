"""`_C_cuda` as it is built here, where nvcc is: it asks nothing of the machine it is built on, and brings
its own runtime."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_gpu_status import gpu_status, load

from fastconv import _native

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = Path(_native.__file__).with_name("_C_cuda.so")
built = pytest.mark.skipif(not LIBRARY.exists(), reason="fastconv is built without CUDA here")
cuda_report = load("cuda_report")
has_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")


@built
def test_needs_pytorch_and_nothing_of_cuda() -> None:
    """PyTorch's libtorch_cuda.so, which the current stream comes from; no library of the CUDA toolkit."""
    listing = subprocess.run(["readelf", "-d", str(LIBRARY)], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", listing))
    assert {"libtorch_cuda.so", "libtorch_cpu.so"} <= needed
    assert not {name for name in needed if re.match(r"lib(cuda|nv|cu)", name)}
    assert "RUNPATH" not in listing
    assert "RPATH" not in listing


@built
def test_needs_nothing_of_the_other_library() -> None:
    """What host operators of CUDA call has to stand in headers: `_C` hides its symbols, and loading would fail."""
    symbols = subprocess.run(
        ["nm", "-D", "-C", "--undefined-only", str(LIBRARY)], capture_output=True, text=True, check=True
    ).stdout
    assert not re.findall(r" U (fastconv::.*)", symbols)


@built
def test_keeps_its_cuda_runtime_to_itself() -> None:
    """PyTorch has loaded a CUDA runtime of its own; the two must not find each other's functions."""
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", str(LIBRARY)], capture_output=True, text=True, check=True
    ).stdout
    assert not re.findall(r" [TtWw] (cuda[A-Z]\w+|cu[A-Z]\w+|__cuda\w+)", symbols)


@built
@pytest.mark.skipif(torch.version.cuda is not None, reason="PyTorch has a libtorch_cuda.so of its own")
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on PATH")
def test_it_loads_and_is_told_which_kernel_may_run(tmp_path: Path) -> None:
    """Beside a PyTorch without CUDA, whose one function that the library asks for stands in a library of our own."""
    source, stub = tmp_path / "stub.c", tmp_path / "libtorch_cuda.so"
    source.write_text("int aoti_torch_get_current_cuda_stream(int device, void** stream) { return 1; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{stub.name}", "-o", stub, source], check=True)
    program = (
        "import sys, torch, fastconv\n"
        f"torch.ops.load_library({str(LIBRARY)!r})\n"
        "sys.modules['fastconv.flags'].HAS_CUDA = True\n"
        "with fastconv.flags(kernel='implicit_gemm'): print(fastconv.flags())\n"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert "kernel='implicit_gemm'" in done.stdout, done.stderr


@built
def test_no_kernel_spills() -> None:
    """More than the report's few: results would be right, and slow."""
    kernels = cuda_report.collect()
    if not kernels:
        pytest.skip("fastconv was built elsewhere: what ptxas said of its kernels is not here")
    assert not [k for k in kernels if k.spills_too_much]
    assert {k.kernel.partition("<")[0] for k in kernels} == {k.name for k in gpu_status.cuda_kernels()}
    for name in cuda_report.MAY_SPILL:
        assert any(k.kernel.startswith(name) for k in kernels), f"{name} is excused, and does not exist"


@built
def test_products_of_warpgroups_stay_in_flight() -> None:
    """They are compiled for the chip that has them, as 90a; and ptxas has not found that their sums are touched before
    they are waited for, and put more waits in between: it says so, and no more than that."""
    kernels = [k for k in cuda_report.collect() if k.kernel.startswith("conv_wgmma_products")]
    if not kernels:
        pytest.skip("fastconv was built elsewhere: what ptxas said of its kernels is not here")
    for k in kernels:
        assert (k.registers > 64) == (k.chip == "sm_90a"), f"{k.kernel} is empty on the wrong chip"
        assert k.chip != "sm_90"
    for log in cuda_report.OBJECTS.glob("*/*.ptxas"):
        assert not re.findall(r".*\(C75\d\d\).*", log.read_text())


def test_what_ptxas_says_is_read() -> None:
    symbol = "_ZN8fastconv12_GLOBAL__N_14poolIfLi2EEEvNS0_4ArgsIiEE"
    kernels = cuda_report.parse("pool", "".join(
        f"ptxas info    : Compiling entry function '{symbol}' for '{chip}'\n"
        f"ptxas info    : Function properties for {symbol}\n"
        f"    {spilled} bytes stack frame, {spilled} bytes spill stores, 12 bytes spill loads\n"
        f"ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, {shared}\n"
        f"ptxas info    : Compile time = 1.000 ms\n"
        for chip, spilled, shared in (("sm_80", 8, "264 bytes smem, 4 bytes cmem[0]"), ("sm_90a", 200, ""))
    ))  # fmt: skip
    first, second = kernels
    assert first == cuda_report.Resources("pool", "pool<float, 2>", "sm_80", 40, 8, 8, 12, 264)
    assert second == cuda_report.Resources("pool", "pool<float, 2>", "sm_90a", 40, 200, 200, 12, 0)
    assert not first.spills_too_much
    assert second.spills_too_much
    assert "pool<float, 2> sm_90a" in cuda_report.render(kernels)


def assemble(source: Path, chip: str, output: Path) -> None:
    command = ["nvcc", "-x", "cu", "-std=c++17", f"-gencode=arch=compute_{chip},code=sm_{chip}"]
    command += ["-Werror=all-warnings", "-cubin", f"-DFASTCONV_NEWEST_CHIP={chip[:2]}"]
    command += [f"-DFASTCONV_WARPGROUPS={int(chip == '90a')}"]
    command += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'emulator'}", str(source), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@has_nvcc
@pytest.mark.parametrize("chip", ["80", "90", "90a"])
def test_hardware_instructions_assemble(tmp_path: Path, chip: str) -> None:
    """The wrappers of core/device.cuh that no kernel uses yet: the emulator's examples use them all."""
    assemble(ROOT / "tests" / "emulator" / "examples.cpp", chip, tmp_path / "examples.cubin")


@has_nvcc
def test_gradients_of_weights_assemble_for_older_chips(tmp_path: Path) -> None:
    """Where there are neither tensor cores nor asynchronous copies, for which the library is not built by default."""
    source = tmp_path / "weights.cu"
    source.write_text(
        '#include "conv/cuda.cuh"\n'
        "void run(const fastconv::ConvParams& p) { fastconv::conv_grad_weight(p, nullptr, {}); }\n"
    )
    assemble(source, "75", tmp_path / "weights.cubin")


def configure(directory: Path, **environment: str) -> subprocess.CompletedProcess:
    command = ["cmake", "-S", str(ROOT), "-B", str(directory), f"-DPython_EXECUTABLE={sys.executable}"]
    if shutil.which("ninja"):
        command += ["-G", "Ninja"]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def test_cuda_asked_for_without_nvcc(tmp_path: Path) -> None:
    done = configure(tmp_path, FASTCONV_CUDA="1", CUDACXX="/no/such/nvcc")
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert "(FASTCONV_CUDA=1) but found no nvcc: install the CUDA toolkit or set CUDACXX" in said


def test_no_nvcc_is_no_failure(tmp_path: Path) -> None:
    done = configure(tmp_path, FASTCONV_CUDA="auto", CUDACXX="/no/such/nvcc")
    assert done.returncode == 0, done.stderr
    assert "-- CUDA: left out, no nvcc found" in done.stdout


def test_cuda_left_out(tmp_path: Path) -> None:
    done = configure(tmp_path, FASTCONV_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert "-- CUDA: left out (FASTCONV_CUDA=0)" in done.stdout


@pytest.mark.parametrize(("name", "value"), [("FASTCONV_CUDA", "yes"), ("FASTCONV_CUDA_ARCHS", "sm_90")])
def test_wrong_settings_are_named(tmp_path: Path, name: str, value: str) -> None:
    if name == "FASTCONV_CUDA_ARCHS" and shutil.which("nvcc") is None:
        pytest.skip("no nvcc on PATH")
    done = configure(tmp_path, **{name: value})
    assert done.returncode != 0
    assert f"{name} must" in done.stderr
    assert value in done.stderr
