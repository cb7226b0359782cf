"""What this build is and what it runs on: `fastconv info` prints it, and every measurement records it."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from fastconv import __version__
from fastconv._native import HAS_CUDA, native

__all__ = ["facts"]


def facts() -> dict[str, Any]:
    """A dictionary of plain values, ready for JSON; ``None`` where something is absent or unknown."""
    return {
        "fastconv": __version__,
        "pytorch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "compiler": native.compiler,
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": native.isa(),
        "isa_supported": native.isa_supported(),
        "cuda_built": any(Path(__file__).parent.glob("_C_cuda*.so")),
        "cuda_loaded": HAS_CUDA,
        "pytorch_cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def cpu_name() -> str:
    """The processor's name as the kernel tells it, or its architecture where the kernel does not."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
