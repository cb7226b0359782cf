"""The benchmark measures what it says: consistent cases, fair turns, no time for a wrong result."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastconv._timing import alternate, summarise

BENCH = Path(__file__).resolve().parent.parent / "bench"
FAMILIES = ("dense", "grouped", "depthwise", "dilated")


def load(name):
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


cases = load("cases")
CASES = cases.read_conv(FAMILIES)


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_cases_are_consistent(case):
    sizes = zip((case.H, case.W), (case.R, case.S), case.stride, case.padding, case.dilation, strict=True)
    output = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes]
    assert output == [case.P, case.Q]
    assert case.C % case.groups == case.K % case.groups == 0
    assert case.groups == (case.C if case.family == "depthwise" else case.groups)


def test_flops_are_those_of_the_table():
    import csv

    with (BENCH / "shapes.csv").open(newline="") as file:
        given = {row["id"]: float(row["GFLOP"]) for row in csv.DictReader(file) if row["id"] in CASES}
    assert given.keys() == CASES.keys()
    for id, case in CASES.items():
        assert case.flops(case.N_gpu) / 1e9 == pytest.approx(given[id], rel=2e-3), id


def test_select():
    assert [case.id for case in cases.select(CASES, ("W03", "G01", "G01"))] == ["G01", "W03"]
    assert {case.family for case in cases.select(CASES, ("dilated",))} == {"dilated"}
    assert len(cases.select(CASES, ("all",))) == len(CASES)
    with pytest.raises(KeyError, match="nothing"):
        cases.select(CASES, ("G01", "nothing"))


def test_turns_are_fair():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    rounds = []
    samples = alternate(functions, repeats=6, seconds=0, on_round=lambda done, total: rounds.append((done, total)))
    assert {name: len(times) for name, times in samples.items()} == {"a": 6, "b": 6, "c": 6}
    assert rounds == [(done, 6) for done in range(1, 7)]
    turns = ["".join(calls[start : start + 3]) for start in range(0, len(calls), 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert {turn[0] for turn in turns[-3:]} == {"a", "b", "c"}


def test_short_functions_are_repeated_up_to_the_limit():
    samples = alternate({"a": lambda: None}, repeats=2, seconds=60, limit=50)
    assert len(samples["a"]) == 50


def test_a_budget_ends_it_early():
    samples = alternate({"a": lambda: None, "b": lambda: None}, repeats=50, seconds=60, budget=0)
    assert {name: len(times) for name, times in samples.items()} == {"a": 5, "b": 5}


def test_summarise():
    assert summarise([5.0, 1.0, 4.0, 2.0, 3.0]) == (3.0, 2.0, 4.0)


def bench(*arguments, code=None):
    command = [sys.executable, *(["-c", code] if code else [str(BENCH / "conv.py")]), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=BENCH)


def test_the_command(tmp_path):
    file = tmp_path / "rows.json"
    run = bench("--case", "W06,G12", "--direction", "fwd,train", "--threads", "1", "--json", file)
    assert run.returncode == 0, run.stderr
    found = json.loads(file.read_text())
    assert found["machine"]["threads"] == 1
    assert found["machine"]["cpu"]
    assert [(row["id"], row["direction"]) for row in found["rows"]] == [
        ("G12", "fwd"), ("W06", "fwd"), ("G12", "train"), ("W06", "train"),
    ]  # fmt: skip
    for row in found["rows"]:
        times = {name: timing["median"] for name, timing in row["seconds"].items()}
        best = min(times["PyTorch NCHW"], times["PyTorch channels_last"])
        for layout in ("NCHW", "channels_last"):
            assert row["ratio"][layout] == pytest.approx(best / times[f"fastconv {layout}"])
            assert len(row["seconds"][f"fastconv {layout}"]["samples"]) >= 20
        assert row["text"] in run.stdout
    assert "depthwise, mean of 1" in run.stdout


def test_wrong_results_get_no_time():
    # A fastconv whose results are one part in a thousand too large.
    code = """if True:
        import fastconv, sys
        original = fastconv.conv2d
        fastconv.conv2d = lambda *args: original(*args) * 1.001
        sys.argv[0] = "bench"
        import conv
        conv.main()"""
    run = bench("--case", "W06", "--threads", "1", code=code)
    assert run.returncode == 1
    assert "not timed" in run.stdout
    assert "fastconv differs from float64 in W06 fwd" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "Z99"], "bench: --case must name ids, families or all (got 'Z99')"),
        (["--direction", "sideways"], "bench: --direction must be fwd, train or both (got 'sideways')"),
        (["--json", "missing/rows.json"], "bench: --json must lie in a folder that exists"),
    ],
)
def test_errors_are_one_sentence(arguments, message):
    run = bench(*arguments)
    assert run.returncode == 1
    assert message in run.stderr
    assert "Traceback" not in run.stderr
