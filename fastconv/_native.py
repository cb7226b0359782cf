"""Finds and loads the native libraries: `_C` always, `_C_cuda` where PyTorch has CUDA."""

import os
from pathlib import Path

import torch

ISAS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx")
_cap = os.environ.get("FASTCONV_CPU_ISA")
if _cap is not None and _cap not in ISAS:
    raise ImportError(f"fastconv: FASTCONV_CPU_ISA must be one of {', '.join(ISAS)} (got {_cap!r})")

try:
    from fastconv import _C
except ImportError as error:
    raise ImportError(
        f"fastconv: its native library does not load under PyTorch {torch.__version__} ({error}); "
        "it needs PyTorch 2.11 or later, and a source tree needs `pip install -e .` first"
    ) from error

_cuda_library = Path(__file__).with_name("_C_cuda.so")
#: Whether the CUDA operators are registered.
HAS_CUDA = torch.version.cuda is not None and _cuda_library.exists()
if HAS_CUDA:
    torch.ops.load_library(str(_cuda_library))

ops = torch.ops.fastconv
native = _C
