"""What the tests in this directory share: they need a GPU, and say so where there is none.

`make gpu-check` runs them. `@pytest.mark.kernels("name", ...)` says which CUDA kernels a test exercises; a
kernel counts as passed (docs/gpu-status.md) when every test that names it has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).resolve().parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: needs an NVIDIA GPU")
    config.addinivalue_line("markers", "kernels(*names): the CUDA kernels that a test exercises")
    config.addinivalue_line("markers", "sanitizer: small enough to run under compute-sanitizer")


def missing() -> str | None:
    """Why no CUDA test can run here, or None."""
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "PyTorch finds no NVIDIA GPU"
    from fastconv import _native

    if not _native.HAS_CUDA:
        return "fastconv is built without CUDA"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in Path(item.fspath).resolve().parents]
    reason = missing() if mine else None
    for item in mine:
        item.add_marker(pytest.mark.cuda)
        for mark in item.iter_markers("kernels"):  # for the report that tools/gpu_check.py reads
            item.user_properties += [("kernel", name) for name in mark.args]
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def capture() -> Callable[[Callable[[], Any]], tuple[torch.cuda.CUDAGraph, Any]]:
    """Captures a step, once run beforehand on a stream of its own, into a graph; gives the graph and what the step
    returned. The capture fails where anything waits for the GPU."""

    def capture(step: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = step()
        return graph, result

    return capture
