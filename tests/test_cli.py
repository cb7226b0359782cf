"""The command line: facts for readers and machines, and errors that are one sentence."""

import json
import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

import fastconv
from fastconv import _native, cli


@pytest.fixture
def run():
    return lambda *arguments: CliRunner().invoke(cli.main, arguments, catch_exceptions=False)


def test_info(run):
    result = run("info")
    assert result.exit_code == 0
    for fact in (fastconv.__version__, torch.__version__, _native.native.isa()):
        assert fact in result.stdout


def test_info_json(run):
    found = json.loads(run("info", "--json").stdout)
    assert found["fastconv"] == fastconv.__version__
    assert found["pytorch"] == torch.__version__
    assert found["isa"] == _native.native.isa()
    assert found["isa_supported"] == _native.native.isa_supported()
    assert found["threads"] == torch.get_num_threads()
    assert found["cuda_loaded"] == _native.HAS_CUDA
    assert found["cpu"]
    assert (found["gpu"] is not None) == torch.cuda.is_available()


def test_info_shows_the_cap():
    command = [sys.executable, "-m", "fastconv.cli", "info", "--json"]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "FASTCONV_CPU_ISA": "baseline"},
    )
    found = json.loads(run.stdout)
    assert found["isa"] == "baseline"
    line = cli.describe({**found, "isa_supported": "avx2"})["instruction set"]
    assert line == "baseline (best here: avx2)"


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        (dict(cuda_loaded=True, cuda_built=True, pytorch_cuda="13.0"), "built and loaded"),
        (
            dict(cuda_loaded=False, cuda_built=True, pytorch_cuda=None),
            "built, not loaded (this PyTorch has no CUDA)",
        ),
        (dict(cuda_loaded=False, cuda_built=False, pytorch_cuda="13.0"), "not built"),
    ],
)
def test_info_says_where_cuda_stands(facts, text):
    found = {**cli.facts(), **facts}
    assert cli.describe(found)["CUDA operators"].startswith(text)


def test_version(run):
    assert run("--version").stdout.strip() == f"fastconv, version {fastconv.__version__}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "missing/folder/x.png"], "demo: --output must lie in a folder that exists"),
        (["--output", "picture.xyz"], "demo: --output must end in"),
        (["--json", "missing/folder/x.json"], "demo: --json must lie in a folder that exists"),
        (["--threads", "0"], "--threads"),
    ],
)
def test_demo_refuses_before_it_works(run, monkeypatch, arguments, message):
    monkeypatch.setattr(cli, "run_networks", lambda *args: pytest.fail("worked first"))
    result = run("demo", *arguments)
    assert result.exit_code != 0
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_demo_says_what_is_missing(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "fastconv.demo.picture", raising=False)
    result = run("demo")
    assert result.exit_code == 1
    assert result.stderr.strip() == "Error: demo: matplotlib is missing: pip install 'fastconv[demo]'"
