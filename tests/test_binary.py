"""What must hold of the compiled library, and no result can show: no code of one instruction set where
another's runs, nothing of PyTorch but its stable interface, one OpenMP runtime, no path of the machine that
built it.

Every kernel source is compiled once per instruction set. If two such objects defined the same weak symbol (an
inline function, a template), the linker would keep one of them, perhaps the AVX-512 one, for all; an older
machine would crash. And a static constructor would run while the library loads, before any instruction set is
chosen.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastconv import _native
from fastconv._native import ISAS

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = Path(_native.native.__file__)
BUILD = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
OBJECTS = {isa: sorted(BUILD.glob(f"CMakeFiles/fastconv_{isa}.dir/**/*.o")) for isa in ISAS}

pytestmark = pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm and readelf (binutils)")


def lines_of(*command: str | Path) -> list[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout.splitlines()


def weak_symbols(*command: str | Path) -> list[str]:
    """Defined weak (W, V) and unique (u) symbols; `w` and `v` are weak too, but undefined."""
    return [line for line in lines_of(*command) if re.search(r" [WVu] ", line)]


@pytest.mark.parametrize("isa", ISAS)
def test_objects_define_no_weak_symbol(isa: str) -> None:
    if not OBJECTS[isa]:
        pytest.skip("no object files: not built in this source tree (the library itself is looked at below)")
    for path in OBJECTS[isa]:
        assert not weak_symbols("nm", "--defined-only", "-C", path), path


@pytest.mark.parametrize("isa", ISAS)
def test_objects_have_no_static_constructor(isa: str) -> None:
    if not OBJECTS[isa]:
        pytest.skip("no object files: not built in this source tree (the library itself is looked at below)")
    for path in OBJECTS[isa]:
        sections = "\n".join(lines_of("readelf", "-SW", path))
        assert not re.search(r"\.(init_array|ctors)", sections), path
        assert not [line for line in lines_of("nm", path) if "_GLOBAL__sub_I" in line], path
        assert not [line for line in lines_of("nm", path) if "__cxa_guard" in line], path


@pytest.mark.parametrize("isa", ISAS)
def test_objects_define_only_their_namespace(isa: str) -> None:
    """What an object offers to the others is in the namespace of its instruction set."""
    if not OBJECTS[isa]:
        pytest.skip("no object files: not built in this source tree (the library itself is looked at below)")
    for path in OBJECTS[isa]:
        offered = [line.split(" ", 2) for line in lines_of("nm", "--defined-only", "--extern-only", "-C", path)]
        names = [name for _, kind, name in offered if not name.startswith("DW.ref.")]
        assert names, path
        assert all(name.startswith(f"fastconv::{isa}::") for name in names), names


def test_library_has_kernels_only_under_an_instruction_set() -> None:
    """The finished library, where no objects are at hand: nothing weak of the kernels' was linked in."""
    if not lines_of("nm", LIBRARY):
        if any(OBJECTS.values()):
            return  # stripped, but its objects were looked at above
        pytest.skip("a stripped library and no object files")
    symbols = weak_symbols("nm", "--defined-only", "-C", LIBRARY)
    assert not [line for line in symbols if re.search(rf"fastconv::({'|'.join(ISAS)})::", line)]


def undefined_symbols() -> list[str]:
    return [line.split()[-1].split("@")[0] for line in lines_of("nm", "-D", "--undefined-only", LIBRARY)]


def needed() -> list[str]:
    return re.findall(r"\(NEEDED\).*\[(.*)\]", "\n".join(lines_of("readelf", "-dW", LIBRARY)))


def test_pytorch_only_through_its_stable_interface() -> None:
    """So that one build serves every PyTorch from 2.11 on: C functions named aoti_torch_* and torch_*, and no
    C++."""
    mangled = [name for name in undefined_symbols() if re.search(r"(2at|3c10|5torch|8torch)", name)]
    assert not mangled
    known = re.compile(r"aoti_torch_|torch_|Py|_Py|_Z|__cxa_|__gxx_|_Unwind_|GOMP_|omp_|_ITM_|__gmon_start__|__")
    libc = {
        "abort", "abs", "bcmp", "calloc", "dl_iterate_phdr", "exp", "fprintf", "fputc", "fputs", "free", "fwrite",
        "getenv", "madvise", "malloc", "memchr", "memcmp", "memcpy", "memmove", "memset", "pthread_getspecific",
        "pthread_key_create", "pthread_mutex_lock", "pthread_mutex_unlock", "pthread_self",
        "pthread_setspecific", "realloc", "snprintf", "stderr", "strchr", "strcmp", "strdup", "strlen",
        "strncmp", "strstr", "strtol", "strtoull", "syscall", "sysconf", "vsnprintf",
    }  # fmt: skip
    unknown = [name for name in undefined_symbols() if not known.match(name) and name not in libc]
    assert not unknown
    cpp = [name for name in undefined_symbols() if name.startswith("_Z")]
    demangled = subprocess.run(["c++filt"], input="\n".join(cpp), capture_output=True, text=True).stdout.splitlines()
    for name in demangled:
        assert re.search(r"std::|operator (new|delete)|__cxxabiv1|__gnu_cxx::", name), name


def test_needs_no_other_library() -> None:
    """One OpenMP runtime, by the name under which PyTorch has loaded it; no libpython, as everywhere in Linux
    wheels."""
    libraries = needed()
    assert [name for name in libraries if "omp" in name] == ["libgomp.so.1"]
    assert not [name for name in libraries if name.startswith(("libpython", "libc10", "libtorch_python"))]
    allowed = r"lib(gomp|torch_cpu|stdc\+\+|gcc_s|c|m|pthread|dl)\.so.*|ld-linux-.*"
    assert not [name for name in libraries if not re.fullmatch(allowed, name)], libraries


def test_no_path_of_the_build_machine() -> None:
    dynamic = "\n".join(lines_of("readelf", "-dW", LIBRARY))
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


def test_only_the_module_is_exported() -> None:
    exported = [line.split()[-1] for line in lines_of("nm", "-D", "--defined-only", LIBRARY)]
    linker = {"_end", "_edata", "__bss_start", "_init", "_fini"}
    assert [name for name in exported if not name.startswith("_Z") and name not in linker] == ["PyInit__C"]
    assert not [name for name in exported if "fastconv" in name]


def test_setup_py_stays_short() -> None:
    setup = ROOT / "setup.py"
    if not setup.exists():
        pytest.skip("not a source tree")
    assert len(setup.read_text().splitlines()) <= 80
