"""What every test starts from: fixed seeds, and the process-wide choices (threads, kernel, instruction set)
put back.
"""

import random
from collections.abc import Iterator

import pytest
import torch
from kernels import SUPPORTED

import fastconv  # noqa: F401  registers the operators
from fastconv._native import native


@pytest.fixture(autouse=True)
def fresh_process_state() -> Iterator[None]:
    """Seeds, and what a test may switch: restored even where the test fails half-way."""
    isa, threads = native.isa(), torch.get_num_threads()
    torch.manual_seed(0)
    random.seed(0)
    yield
    assert native.conv_force_kernel("")
    assert native.isa_select(isa)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def cudnn_settings() -> Iterator[None]:
    """What a test tells PyTorch of TF32 is put back, and may be told where PyTorch's own tools for tests, which some
    other test has imported, forbid it for good. PyTorch keeps the older flag beside the precisions and raises at
    whoever reads it, `torch.export` for one, once they disagree: the flag first, which sets the precisions too."""
    places = torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    allowed, before = torch.backends.cudnn.allow_tf32, [place.fp32_precision for place in places]
    with torch.backends.__allow_nonbracketed_mutation():
        yield
        torch.backends.cudnn.allow_tf32 = allowed
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


@pytest.fixture(params=SUPPORTED)
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set that this machine has, in use while the test runs."""
    assert native.isa_select(request.param)
    return request.param


@pytest.fixture
def one_thread() -> None:
    """Unless the test says otherwise, for what is small."""
    torch.set_num_threads(1)
