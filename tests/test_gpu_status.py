"""The record of what has run on a GPU: it is up to date, complete, and says no more than is known."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


gpu_status = load("gpu_status")
gpu_check = load("gpu_check")

KERNELS = [gpu_status.Kernel("pool", "max_pool", "csrc/pool/cuda.cuh", "new"),
           gpu_status.Kernel("pool", "average_pool", "csrc/pool/cuda.cuh", "new")]  # fmt: skip


def report(gpu: str = "NVIDIA H200", commit: str = "abc", date: str = "2026-11-22T10:00:00+00:00") -> dict:
    return {
        "date": date, "commit": commit, "gpu": {"name": gpu, "driver": "580"},
        "versions": {"torch": "2.11", "cuda": "13.0", "nvcc": "nvcc 13.0"},
        "sanitizer": {"memcheck": "passed"},
        "tests": {"passed": 3, "failed": 0, "skipped": 0},
    }  # fmt: skip


def recorded(outcomes: dict[str, set[str]], previous: dict | None = None, finished: bool = True, **kwargs: str) -> dict:
    made = report(**kwargs)
    gpu_check.record(made, outcomes, finished, previous or {}, KERNELS)
    return made


def test_page_is_up_to_date() -> None:
    wanted = gpu_status.render(gpu_status.cuda_kernels(), gpu_status.load_results())
    assert gpu_status.PAGE.read_text() == wanted, "run `python tools/gpu_status.py`"


def test_kernels_are_read_off_the_sources(tmp_path: Path) -> None:
    names = {kernel.name for kernel in gpu_status.cuda_kernels()}
    assert {"transpose_planes", "transpose_pixels"} <= names
    family = tmp_path / "csrc" / "pool"
    family.mkdir(parents=True)
    (family / "cuda.cuh").write_text(
        "__global__ void plain(Params p) {}\n"
        "template <class T>\n__global__ void __launch_bounds__(kThreads, 2) bounded(const Params p) {}\n"
        "__device__ void helper(Params p) {}\n"
    )
    assert [(k.family, k.name) for k in gpu_status.cuda_kernels(tmp_path)] == [
        ("pool", "plain"),
        ("pool", "bounded"),
    ]


def test_no_kernel_is_overlooked() -> None:
    """As many kernels are listed as there are __global__ functions, however they are written."""
    for path in (ROOT / "csrc").glob("*/*.cu*"):
        listed = [k for k in gpu_status.cuda_kernels() if k.source == str(path.relative_to(ROOT))]
        assert len(listed) == path.read_text().count("__global__"), path


def test_every_kernel_has_a_test_on_a_gpu(tmp_path: Path) -> None:
    """Also where there is no GPU: the tests are skipped there, but say which kernels they are for."""
    junit = tmp_path / "junit.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT),
         "-o", "addopts=", "--import-mode=importlib", "-p", "no:cacheprovider", "-q", f"--junitxml={junit}",
         str(ROOT / "tests" / "cuda")],
        capture_output=True, text=True,
    )  # fmt: skip
    counts, outcomes, _ = gpu_check.read_junit(junit)
    assert sum(counts.values()) > 0, done.stdout + done.stderr
    assert {kernel.name for kernel in gpu_status.cuda_kernels()} <= set(outcomes)


def test_junit(tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    properties = '<properties><property name="kernel" value="max_pool"/></properties>'
    file.write_text(
        "<testsuites><testsuite>"
        f'<testcase classname="t" name="a">{properties}</testcase>'
        f'<testcase classname="t" name="b">{properties}<failure message="x"/></testcase>'
        f'<testcase classname="t" name="c"><skipped message="x"/></testcase>'
        "</testsuite></testsuites>"
    )
    counts, outcomes, failed = gpu_check.read_junit(file)
    assert counts == {"passed": 1, "failed": 1, "skipped": 1}
    assert outcomes == {"max_pool": {"passed", "failed"}}
    assert failed == ["t::b"]
    assert gpu_check.read_junit(tmp_path / "missing.xml")[0] == {"passed": 0, "failed": 0, "skipped": 0}


@pytest.mark.parametrize(
    ("outcomes", "finished", "verdict"),
    [
        ({"passed"}, True, "passed"),
        ({"passed", "skipped"}, True, "passed"),
        ({"passed", "failed"}, True, "failed"),
        ({"passed"}, False, "failed"),
        ({"skipped"}, True, "not tested"),
        (None, True, "not tested"),
    ],
)
def test_verdict(outcomes: set[str] | None, finished: bool, verdict: str) -> None:
    assert gpu_check.judge(outcomes, finished) == verdict


def test_page_without_results() -> None:
    page = gpu_status.render(KERNELS, [])
    assert "| pool | `max_pool` | never |" in page
    assert "None of the 2 CUDA kernels has ever passed" in page


def test_page_with_results() -> None:
    page = gpu_status.render(KERNELS, [recorded({"max_pool": {"passed"}})])
    assert "| pool | `max_pool` | NVIDIA H200, 2026-11-22, commit abc |" in page
    assert "| pool | `average_pool` | never |" in page
    assert "1 of the 2 CUDA kernels have never passed" in page
    assert "compute-sanitizer: memcheck: passed" in page


def test_failure_keeps_the_last_pass() -> None:
    first = recorded({"max_pool": {"passed"}, "average_pool": {"passed"}})
    second = recorded({"max_pool": {"failed"}, "average_pool": {"passed"}}, first, commit="def")
    page = gpu_status.render(KERNELS, [second])
    assert "commit abc<br>**fails on NVIDIA H200** (commit def) |" in page
    assert "| pool | `average_pool` | NVIDIA H200, 2026-11-22, commit def |" in page


def test_changed_source_is_said() -> None:
    first = recorded({"max_pool": {"passed"}})
    first["kernels"]["max_pool"]["last_passed"]["digest"] = "old"
    assert "commit abc; the source has changed since |" in gpu_status.render(KERNELS, [first])


@pytest.mark.skipif(gpu_check.no_gpu() is None, reason="there is a GPU")
def test_without_a_gpu_one_sentence() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "gpu_check.py")], capture_output=True, text=True)
    assert done.returncode == gpu_check.NO_GPU
    assert done.stderr.strip() == gpu_check.no_gpu()
    assert done.stderr.count("\n") == 1
