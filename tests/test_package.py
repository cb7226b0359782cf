"""The package itself: a cheap import, one version, a small setup.py, examples that run."""

import doctest
import importlib
import importlib.metadata
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastconv
import fastconv.bench

ROOT = Path(__file__).resolve().parent.parent
# fastconv.bench lies beside the package in a source tree.
PLACES = ((fastconv.__path__, "fastconv."), (fastconv.bench.__path__, "fastconv.bench."))
MODULES = sorted(
    {name for place in PLACES for _, name, _ in pkgutil.walk_packages(*place) if not name.startswith("fastconv._C")}
)


def test_import_is_cheap():
    code = "import sys, torch; before = set(sys.modules); import fastconv; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    imported = run.stdout.split()
    assert "fastconv.convert" in imported
    packages = {name.partition(".")[0] for name in imported}
    assert packages <= {"fastconv", "torch"} | sys.stdlib_module_names
    heavy = ("torch._dynamo", "torch._inductor", "torch.export", "fastconv.cli", "fastconv.demo", "fastconv.bench")
    assert [name for name in imported if name.startswith(heavy)] == []


def test_public_names_exist():
    assert sorted(fastconv.__all__) == list(fastconv.__all__)
    for name in fastconv.__all__:
        assert hasattr(fastconv, name)
    for name in fastconv.nn.__all__:
        assert getattr(fastconv.nn, name).__doc__


def test_one_version():
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    assert fastconv.__version__ == declared[1]
    assert importlib.metadata.version("fastconv") == declared[1]


def test_every_package_is_installed():
    """They are listed one by one, because fastconv.bench does not lie where its name says."""
    listed = re.search(r"^packages = \[(.+)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert listed is not None
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "fastconv").rglob("__init__.py")}
    assert set(re.findall(r'"(.+?)"', listed[1])) == found | {"fastconv.bench"}


def test_setup_is_small():
    assert len((ROOT / "setup.py").read_text().splitlines()) <= 80


@pytest.mark.parametrize("name", MODULES)
def test_modules_say_why_they_exist_and_their_examples_run(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert doctest.testmod(module).failed == 0
