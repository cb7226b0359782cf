"""The command ``fastconv bench``, its report, and that both are part of the package."""

import base64
import json
import re
import subprocess
import sys

import pytest
import torch
from bench_rows import BANDWIDTH, PEAK, timed_row
from click.testing import CliRunner

import fastconv
from fastconv import cli
from fastconv._native import native
from fastconv._timing import summarise
from fastconv.bench import command, machine, roofline
from fastconv.bench.cases import FAMILIES, SHAPES
from fastconv.bench.data import LAYOUTS
from fastconv.bench.measure import judge, run_case

# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(monkeypatch):
    """Runs the command, without the seconds that the machine's limits take."""
    monkeypatch.setattr(roofline, "SECONDS", 0)
    runner = CliRunner()
    return lambda *arguments: runner.invoke(cli.main, ["bench", *map(str, arguments)], catch_exceptions=False)


def test_the_command(bench, tmp_path):
    file = tmp_path / "rows.json"
    torch.set_num_threads(2)
    result = bench("--case", "W06,G12", "--direction", "fwd,train", "--threads", "1,2", "--budget", 0.2, "--json", file)
    assert result.exit_code == 0, result.output
    assert torch.get_num_threads() == 2
    found = json.loads(file.read_text())
    assert found["format"] == command.FORMAT
    for fact in ("cpu", "isa", "fastconv", "pytorch", "python", "compiler", "commit"):
        assert fact in found["machine"]
    assert set(found["bandwidth"]) == set(found["peak"]["float32"]) == {"1", "2"}
    assert [(row["direction"], row["id"], row["threads"]) for row in found["rows"]] == [
        (direction, id, threads) for direction in ("fwd", "train") for id in ("G12", "W06") for threads in (1, 2)
    ]
    for row in found["rows"]:
        times = {name: timing["median"] for name, timing in row["seconds"].items()}
        best = min(times["PyTorch contiguous"], times["PyTorch channels_last"])
        for layout in LAYOUTS:
            assert row["ratio"][layout] == pytest.approx(best / times[f"fastconv {layout}"])
            samples = row["seconds"][f"fastconv {layout}"]["samples"]
            assert len(samples) >= 3
            assert times[f"fastconv {layout}"] == pytest.approx(summarise(samples).median, rel=1e-3)
        assert f"{row['id']} {row['text']}" in result.stdout
    assert [mean["family"] for mean in found["families"]] == ["grouped", "depthwise"] * 4
    assert {mean["class"] for mean in found["classes"]} == {"depthwise 3x3 and 5x5", "grouped, over 32 a group"}
    for expected in ("Forward, float32, 1 thread", "Forward and backward, float32, 2 threads", "depthwise, mean of 1"):
        assert expected in result.stdout
    least = min(ratio for row in found["rows"] for ratio in row["ratio"].values())
    assert f"Smallest ratio: {least:.2f}" in result.stdout
    assert "[8/8]" not in result.stderr
    assert "[4/4] W06" in result.stderr


def test_wrong_results_get_no_time(bench, monkeypatch, tmp_path):
    original = fastconv.conv2d
    monkeypatch.setattr(fastconv, "conv2d", lambda *args, **kwargs: original(*args, **kwargs) * 1.001)
    result = bench("--case", "W06,G12", "--threads", 1, "--json", tmp_path / "rows.json")
    assert result.exit_code == 1
    assert "Error: bench: some rows were wrong or failed: G12 fwd float32, W06 fwd float32" in result.stderr
    assert "W06, Forward, float32, 1 thread: wrong, differs from float64 by 1.0e-03" in result.stdout
    assert "Smallest ratio" not in result.stdout
    for row in json.loads((tmp_path / "rows.json").read_text())["rows"]:
        assert row["status"] == "wrong"
        assert "seconds" not in row


def test_kernel(bench, monkeypatch):
    forced = []
    monkeypatch.setattr(
        command.native, "conv_force_kernel", lambda name, f=native.conv_force_kernel: forced.append(name) or f(name)
    )
    result = bench("--case", "W06,G12", "--kernel", "depthwise", "--budget", 0, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert "G12, Forward, float32, 1 thread: skipped, conv2d: kernel must be able to serve" in result.stdout
    assert "depthwise, mean of 1" in result.stdout
    assert forced == ["depthwise", ""]


def test_an_interrupt_keeps_what_was_measured(bench, monkeypatch):
    def interrupted(case, *args, f=run_case, **kwargs):
        if case.id == "W06":
            raise KeyboardInterrupt
        return f(case, *args, **kwargs)

    monkeypatch.setattr(command, "run_case", interrupted)
    result = bench("--case", "W06,G12", "--budget", 0)
    assert "Interrupted after 1 of 2" in result.stderr
    assert "grouped, mean of 1" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "Z99"], "bench: --case must name ids of shapes.csv, as W03 (got 'Z99')"),
        (["--case", "S01"], "bench: --case must name ids of shapes.csv, as W03 (got 'S01')"),
        (["--family", "dense,sparse"], f"bench: --family must be of {', '.join(FAMILIES)} (got 'sparse')"),
        (["--direction", "sideways"], "bench: --direction must be of fwd, bwd, train (got 'sideways')"),
        (["--dtype", "int8"], "bench: --dtype must be of float32, bfloat16, float16, float64 (got 'int8')"),
        (["--layout", "NHWC"], "bench: --layout must be of contiguous, channels_last (got 'NHWC')"),
        (["--threads", "1,0"], "bench: --threads must be positive integers (got '1,0')"),
        (["--threads", "all"], "bench: --threads must be positive integers (got 'all')"),
        (["--dtype", ","], "bench: the options must leave something to measure (got nothing)"),
        (["--kernel", "fastest"], f"bench: --kernel must be of {', '.join(native.conv_kernels())} (got 'fastest')"),
        (["--kernel", "implicit_gemm"], "bench: --kernel must be of "),  # one of CUDA's
        (["--json", "missing/rows.json"], "bench: --json must lie in a folder that exists"),
        (
            ["report", "--output", "missing/page.html", SHAPES],
            "bench report: --output must lie in a folder that exists",
        ),
        (["report", SHAPES], f"bench report: FILE must be what `fastconv bench --json` writes (got {SHAPES})"),
    ],
)
def test_errors_are_one_sentence(bench, monkeypatch, arguments, message):
    monkeypatch.setattr(command, "run_case", lambda *args, **kwargs: pytest.fail("worked first"))
    result = bench(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output


# ---- report ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path):
    """Files of two runs, the second of which is twice as fast in one layout."""
    files = []
    for name, factor in (("before", 1.0), ("after", 0.5)):
        rows = [timed_row("G01", times=(2.0, 1.0, factor, 4.0)), timed_row("D02", times=(1.0, 1.0, 2 * factor, 1.0))]
        rows.append(timed_row("W19", status="wrong", reason="differs <badly>"))
        head = {
            "format": command.FORMAT,
            "machine": machine.describe(),
            "settings": {"threads": [1]},
            "bandwidth": BANDWIDTH,
            "peak": PEAK,
        }
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(command.to_json(head, [judge(each, BANDWIDTH, PEAK) for each in rows]))
    return files


def test_json_has_a_line_for_each_row(results):
    lines = results[0].read_text().splitlines()
    assert sum(line.startswith('{"id"') for line in lines) == 3


def test_report(bench, results, tmp_path):
    output, plots = tmp_path / "page.html", tmp_path / "plots"
    result = bench("report", *results, "--output", output, "--plots", plots)
    assert result.exit_code == 0, result.output
    html = output.read_text()
    sources = re.findall(r'src="([^"]*)"', html)
    pictures = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]
    assert sorted(pictures) == sorted(path.read_bytes() for path in plots.iterdir())
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert sorted(path.name for path in plots.iterdir()) == [
        f"{name}.png"
        for name in (
            "compared1-fwd-float32-1-ratio",
            "run0-fwd-float32-1-ratio",
            "run0-fwd-float32-1-roofline",
            "run1-fwd-float32-1-ratio",
            "run1-fwd-float32-1-roofline",
        )
    ]
    assert "http" not in html, "the page must need nothing else"
    text = re.sub(r"\s*<[^>]*>\s*", "|", re.sub(r"<img[^>]*>", "", html))
    assert re.search(r"\|grouped, 4 a group\|+1\|+1\.00\|+0\.25\|+0\.25\|+3\.00\|", text)  # the first run
    assert re.search(r"\|grouped, 4 a group\|+1\|+2\.00\|+0\.25\|+0\.25\|+3\.00\|", text)  # the second
    assert re.search(r"\|grouped, 4 a group\|+1\|+2\.00\|+1\.00\|+1\.00\|", text)  # compared
    assert "Smallest ratio: 0.25 (G01" in text
    assert "wrong: differs &lt;badly&gt;" in html


def test_only_the_same_is_compared():
    from fastconv.bench.report import compared

    before = [timed_row("G01"), timed_row("G02"), timed_row("G06", status="wrong"), timed_row("G04", batch=8)]
    after = [
        timed_row("G01", times=(9.0, 9.0, 0.25, 8.0)),
        timed_row("G02", threads=2),
        timed_row("G06"),
        timed_row("G04"),
    ]
    (found,) = compared(before, after)
    assert found["id"] == "G01"
    assert found["ratio"] == {"contiguous": 2.0, "channels_last": 0.5}


def test_report_says_what_is_missing(bench, monkeypatch, results):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "fastconv.bench.report", raising=False)
    result = bench("report", results[0])
    assert result.exit_code == 1
    assert result.stderr.strip() == "Error: bench report: jinja2 is missing: pip install 'fastconv[bench]'"


# ---- the installed package -------------------------------------------------------------------------------------------


def test_it_is_part_of_the_package():
    run = subprocess.run(
        [sys.executable, "-m", "fastconv.cli", "bench", "--help"], capture_output=True, text=True, cwd="/"
    )
    assert run.returncode == 0, run.stderr
    assert "--direction" in run.stdout


def test_commit_is_that_of_fastconv_alone(monkeypatch, tmp_path):
    """An installed package may lie in an environment within somebody's repository."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.commit() is None
    (tmp_path / "csrc").mkdir()
    assert re.fullmatch("[0-9a-f]{12}", machine.commit())
