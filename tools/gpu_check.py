#!/usr/bin/env python3
"""Checks the CUDA kernels on the GPU of this machine, in one command and within ten minutes.

Builds fastconv against the PyTorch and CUDA toolkit found here (installs nothing, needs no network), runs
the tests of tests/cuda, a small sample of them under compute-sanitizer where there is one, and the CUDA
benchmark, and writes what came of it to bench/results/<gpu>/gpu-check.json and gpu-check.txt.
docs/gpu-status.md is generated from these files (tools/gpu_status.py); commit them together.

    python tools/gpu_check.py [--no-bench] [--minutes 10]

Ends with status 0 where everything passed, 1 where something failed, 2 where there is no GPU to check on.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import gpu_status

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "gpu-check"
SANITIZER_TOOLS = ("memcheck", "racecheck")
#: Kernels that one compute capability alone can run: others need not have tested them.
ONLY_ON = {"conv_wgmma_products": "9.0"}
NO_GPU = 2


@dataclass
class Step:
    """One command, its output shown as it runs and kept."""

    name: str
    code: int
    output: str
    seconds: float

    @property
    def ok(self) -> bool:
        return self.code == 0


class Checker:
    def __init__(self, minutes: float) -> None:
        self.deadline = time.monotonic() + 60 * minutes
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(BUILD), str(ROOT / "tests")]),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def run(
        self,
        name: str,
        command: list[str],
        limit: float,
        cwd: Path = BUILD,
        extra: dict[str, str] | None = None,
    ) -> Step:
        """Runs a command for at most `limit` seconds and what is left of the time.

        `cwd` is the build by default: Python looks there first, and so does not find the package in the
        source tree, which lacks these libraries.
        """
        limit = min(limit, self.left())
        print(f"\n== {name}", flush=True)
        begin = time.monotonic()
        if limit <= 0:
            return Step(name, 124, "not run: out of time", 0.0)
        log = BUILD / f"{re.sub(r'[^a-z]+', '-', name.lower())}.log"
        with open(log, "w") as out:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**self.environment, **(extra or {})},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
                process.wait()
                code = 124
        output = log.read_text(errors="replace") + (f"\nstopped after {limit:.0f} s" if code == 124 else "")
        print(output[-6000:] if code == 0 else output[-12000:], flush=True)
        return Step(name, code, output, time.monotonic() - begin)

    def python(self, name: str, arguments: list[str], limit: float) -> Step:
        return self.run(name, [sys.executable, *arguments], limit)

    def pytest(
        self,
        name: str,
        arguments: list[str],
        limit: float,
        prefix: list[str] | None = None,
        extra: dict[str, str] | None = None,
    ) -> Step:
        """Options of pyproject.toml that need a plugin which may be missing here are overridden."""
        command = [
            *(prefix or []), sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir",
            str(ROOT),
            "-o", "addopts=", "--import-mode=importlib", "-p", "no:cacheprovider", "-q", "-m", "cuda",
            *arguments, str(ROOT / "tests" / "cuda"),
        ]  # fmt: skip
        return self.run(name, command, limit, extra=extra)


def no_gpu() -> str | None:
    """Why there is nothing to check on, in one sentence."""
    try:
        import torch
    except ImportError:
        return "gpu-check needs PyTorch 2.11 or later with CUDA, and finds no PyTorch."
    if torch.version.cuda is None:
        return f"gpu-check needs a PyTorch with CUDA, and finds {torch.__version__}, which is built without."
    if not torch.cuda.is_available():
        return f"gpu-check needs an NVIDIA GPU, and PyTorch {torch.__version__} finds none on this machine."
    return None


def first_line(command: list[str], pattern: str = r"(.+)") -> str:
    try:
        output = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    match = re.search(pattern, output.stdout) if output.returncode == 0 else None
    return match[1].strip() if match else "unknown"


def commit() -> str:
    found = first_line(["git", "rev-parse", "--short=12", "HEAD"])
    dirty = first_line(["git", "status", "--porcelain", "--untracked-files=no"]) not in ("unknown", "")
    return found + ("-dirty" if dirty else "")


def describe_machine() -> tuple[dict, dict]:
    import torch

    properties = torch.cuda.get_device_properties(0)
    gpu = {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / (1 << 30), 1),
        "count": torch.cuda.device_count(),
        "driver": first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
    }
    versions = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nvcc": "nvcc " + first_line([os.environ.get("CUDACXX") or "nvcc", "--version"], r"release [\d.]+, V([\d.]+)"),
    }
    return gpu, versions


def read_junit(path: Path) -> tuple[dict[str, int], dict[str, set[str]], list[str]]:
    """Counts of outcomes; for each kernel the outcomes of the tests that name it; the failed tests."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    kernels: dict[str, set[str]] = {}
    failed: list[str] = []
    if not path.exists():
        return counts, kernels, failed
    for case in ET.parse(path).iter("testcase"):
        broken = case.find("failure") is not None or case.find("error") is not None
        outcome = "failed" if broken else "skipped" if case.find("skipped") is not None else "passed"
        counts[outcome] += 1
        if broken:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        for entry in case.iter("property"):
            if entry.get("name") == "kernel":
                kernels.setdefault(entry.get("value", ""), set()).add(outcome)
    return counts, kernels, failed


def judge(outcomes: set[str] | None, finished: bool) -> str:
    """A kernel has passed where a test that names it passed, none failed, and the tests came to their end."""
    if not outcomes or outcomes == {"skipped"}:
        return "not tested"
    return "passed" if finished and "failed" not in outcomes else "failed"


def record(
    report: dict,
    outcomes: dict[str, set[str]],
    finished: bool,
    previous: dict,
    kernels: list[gpu_status.Kernel],
) -> None:
    """Fills in report["kernels"]; a kernel that fails keeps the note of when it last passed."""
    report["kernels"] = {}
    for kernel in kernels:
        entry: dict = {"family": kernel.family, "result": judge(outcomes.get(kernel.name), finished)}
        if entry["result"] == "passed":
            entry["last_passed"] = {
                "date": report["date"],
                "commit": report["commit"],
                "digest": kernel.digest,
            }
        else:
            entry["last_passed"] = previous.get("kernels", {}).get(kernel.name, {}).get("last_passed")
        report["kernels"][kernel.name] = entry


def summarise(report: dict) -> str:
    gpu, versions, tests = report["gpu"], report["versions"], report["tests"]
    lines = [
        f"{gpu['name']}, driver {gpu['driver']}, PyTorch {versions['torch']}, {versions['nvcc']}",
        f"commit {report['commit']}, {report['date']}",
        "",
        f"tests: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped",
        *(f"  failed: {name}" for name in report["failed_tests"]),
        *(f"compute-sanitizer {tool}: {outcome}" for tool, outcome in report["sanitizer"].items()),
        *(f"kernel {name}: {entry['result']}" for name, entry in report["kernels"].items()),
        "",
        report["bench_table"],
        "",
        "seconds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in report["seconds"].items()),
    ]
    return "\n".join(lines) + "\n"


def find_sanitizer() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=f"{home}/bin")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything together")
    parser.add_argument("--no-bench", action="store_true", help="leave the benchmark out")
    parser.add_argument("--commit", help="what to record where this is not a git checkout")
    options = parser.parse_args()
    reason = no_gpu()
    if reason:
        print(reason, file=sys.stderr)
        sys.exit(NO_GPU)

    checker = Checker(options.minutes)
    gpu, versions = describe_machine()
    now = datetime.datetime.now(datetime.timezone.utc)
    report: dict = {
        "date": now.isoformat(timespec="seconds"), "commit": options.commit or commit(), "gpu": gpu,
        "versions": versions,
    }  # fmt: skip
    steps: list[Step] = []

    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    arch = gpu["capability"].replace(".", "")
    command = [sys.executable, "setup.py", "build", "--build-lib", str(BUILD)]
    settings = {"FASTCONV_CUDA": "1", "FASTCONV_CUDA_ARCHS": arch}
    steps.append(checker.run("build", command, 300, cwd=ROOT, extra=settings))
    if not steps[-1].ok:
        sys.exit("gpu-check: the build failed, nothing was checked")
    where = "import fastconv._native as n; print(n.__file__); assert n.HAS_CUDA, 'without CUDA operators'"
    loads = checker.python("load", ["-c", where], 120)
    if not loads.ok or str(BUILD) not in loads.output:
        sys.exit("gpu-check: the library just built does not load, nothing was checked")

    junit = BUILD / "junit.xml"
    tests = checker.pytest("tests", [f"--junitxml={junit}"], 240)
    steps.append(tests)
    report["tests"], outcomes, report["failed_tests"] = read_junit(junit)

    report["sanitizer"] = {}
    sanitizer = find_sanitizer()
    for tool in SANITIZER_TOOLS:
        if sanitizer is None:
            report["sanitizer"][tool] = "not found on this machine"
            continue
        # Without PyTorch's caching allocator: an access beyond one tensor would land in the next, unnoticed.
        step = checker.pytest(
            f"compute-sanitizer {tool}", ["-m", "cuda and sanitizer"], 120,
            prefix=[sanitizer, "--tool", tool, "--error-exitcode", "86", "--target-processes", "all"],
            extra={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )  # fmt: skip
        steps.append(step)
        ran = re.search(r"\b[1-9]\d* passed", step.output)  # all skipped is not passed
        report["sanitizer"][tool] = {0: "passed" if ran else "not run", 124: "out of time"}.get(step.code, "failed")

    report["bench"], report["bench_table"] = None, "no benchmark"
    if not options.no_bench:
        target = BUILD / "bench.json"
        limit = min(180.0, checker.left())
        step = checker.python(
            "benchmark",
            [str(ROOT / "bench" / "gpu.py"), "--json", str(target), "--seconds", str(max(0.0, limit - 40))],
            180,
        )
        steps.append(step)
        if target.exists():
            report["bench"] = json.loads(target.read_text())
        report["bench_table"] = "\n".join(line for line in step.output.splitlines() if not line.endswith("..."))[-4000:]

    directory = gpu_status.RESULTS / re.sub(r"[^a-z0-9]+", "-", gpu["name"].lower()).strip("-")
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "gpu-check.json"
    previous = json.loads(file.read_text()) if file.exists() else {}
    record(report, outcomes, tests.code in (0, 1), previous, gpu_status.cuda_kernels())
    report["seconds"] = {step.name: round(step.seconds, 1) for step in steps}
    file.write_text(json.dumps(report, indent=1) + "\n")
    (directory / "gpu-check.txt").write_text(summarise(report))
    print("\n" + summarise(report))
    print(f"written to {directory.relative_to(ROOT)}; commit it with docs/gpu-status.md (python tools/gpu_status.py)")
    untested = [
        name
        for name, entry in report["kernels"].items()
        if entry["result"] != "passed" and ONLY_ON.get(name, gpu["capability"]) == gpu["capability"]
    ]
    failed = [step.name for step in steps if not step.ok]
    if failed or untested:
        sys.exit(f"gpu-check: not all passed ({', '.join(failed + untested)})")


if __name__ == "__main__":
    main()
