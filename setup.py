"""Hands the native build to CMake (CMakeLists.txt); all else about the package is in pyproject.toml."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def require_tools() -> None:
    """Says in one sentence what is missing, before CMake says it in fifty."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit("fastconv needs PyTorch 2.11 or later to build: pip install 'torch>=2.11'")
    version = re.search(r"'(\d+)\.(\d+)", Path(spec.origin).with_name("version.py").read_text())
    if version is None or (int(version[1]), int(version[2])) < (2, 11):
        found = version[0].strip("'") if version else "an unknown version"
        sys.exit(f"fastconv needs PyTorch 2.11 or later to build (found {found}): pip install 'torch>=2.11'")
    if importlib.util.find_spec("pybind11") is None:
        sys.exit("fastconv needs pybind11 3 or later to build: pip install 'pybind11>=3'")
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            sys.exit(f"fastconv needs {tool} to build: pip install {tool}")
    if not any(shutil.which(c) for c in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        sys.exit("fastconv needs a C++17 compiler to build: install g++ (apt install g++) or set CXX")
    places = [os.environ.get("PATH", ""), os.environ.get("CUDA_HOME", "") + "/bin", "/usr/local/cuda/bin"]
    nvcc = shutil.which(os.environ.get("CUDACXX") or "nvcc", path=os.pathsep.join(places))
    if os.environ.get("FASTCONV_CUDA") == "1" and not nvcc:
        sys.exit("fastconv was asked for CUDA (FASTCONV_CUDA=1) but found no nvcc: install CUDA or set CUDACXX")


class CMakeBuild(build_ext):
    def run(self) -> None:
        require_tools()
        in_place = self.inplace or self.editable_mode
        prefix = ROOT if in_place else Path(self.build_lib).resolve()
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        configure = [
            "cmake",
            "-S",
            ROOT,
            "-B",
            build,
            "-G",
            "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",  # an isolated build leaves a path that is gone
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_INSTALL_PREFIX={prefix}",
        ]
        for command in (configure, ["cmake", "--build", build], ["cmake", "--install", build]):
            try:
                subprocess.run(list(map(str, command)), check=True)
            except subprocess.CalledProcessError as error:
                sys.exit(f"fastconv: building the native code failed at `{' '.join(map(str, error.cmd))}`")

    def get_outputs(self) -> list[str]:
        return [str(path) for path in Path(self.build_lib, "fastconv").glob("_C*.so")]


setup(ext_modules=[Extension("fastconv._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
