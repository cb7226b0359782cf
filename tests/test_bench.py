"""The benchmark measures what it says: consistent cases, fair turns, no time for a wrong result, honest sums."""

import base64
import csv
import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from rich.console import Console

import fastconv
from fastconv import _timing, cli
from fastconv._native import ISAS, native
from fastconv._timing import alternate, summarise
from fastconv.bench import command, machine, measure, roofline, tables
from fastconv.bench.cases import FAMILIES, FLOOR, QUICK, SHAPES, TARGETS, ConvCase, read_conv, select, target
from fastconv.bench.measure import LAYOUTS, judge, means, run_case, smallest

CASES = read_conv()
with SHAPES.open(newline="") as file:
    TABLE = {row["id"]: row for row in csv.DictReader(file) if row["id"] in CASES}


def small(family="dense", C=4, K=6, groups=1, size=(6, 5), kernel=(3, 3), stride=(1, 1), N=2) -> ConvCase:
    """A case that takes no time."""
    padding, (H, W) = (kernel[0] // 2, kernel[1] // 2), size
    if family == "transposed":
        output = [(n - 1) * s - 2 * p + k for n, s, p, k in zip(size, stride, padding, kernel, strict=True)]
    else:
        output = [(n + 2 * p - k) // s + 1 for n, s, p, k in zip(size, stride, padding, kernel, strict=True)]
    return ConvCase(
        *("X01", family, "a network", "a layer", N, N, C, H, W, K, *kernel, stride, padding, (1, 1), groups, *output)
    )


SMALL = {
    "dense": small(),
    "strided": small(stride=(2, 1)),
    "grouped": small("grouped", C=6, K=12, groups=3),
    "depthwise": small("depthwise", C=5, K=10, groups=5),
    "1-D": small("dilated", size=(1, 9), kernel=(1, 3)),
    "1-D depthwise": small("depthwise", C=4, K=4, groups=4, size=(1, 9), kernel=(1, 3)),
    "transposed": small("transposed", stride=(2, 2)),
    "transposed, grouped": small("transposed", C=6, K=12, groups=3, stride=(2, 2)),
    "transposed, 1-D": small("transposed", size=(1, 9), kernel=(1, 4), stride=(1, 2)),
}


# ---- cases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_cases_are_consistent(case):
    """PyTorch, given the row's arguments, makes the row's output, in one dimension and in two."""
    for dims in (1, 2) if case.one_dimensional else (2,):
        input, weight, output = (
            list(shape[:2] + shape[4 - dims :])
            for shape in (case.input_shape(3), case.weight_shape, case.output_shape(3))
        )
        layer = measure.operator(case, "PyTorch", dims)
        made = layer(torch.empty(input, device="meta"), torch.empty(weight, device="meta"))
        assert list(made.shape) == output
    assert case.groups == (case.C if case.family == "depthwise" else case.groups)
    assert case.target_class in TARGETS


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_amounts_are_those_of_the_table(case):
    row = TABLE[case.id]
    assert case.flops(case.N_gpu) / 1e9 == pytest.approx(float(row["GFLOP"]), rel=2e-3)
    shapes = (case.input_shape(case.N_gpu), case.weight_shape, case.output_shape(case.N_gpu))
    assert 2 * sum(map(math.prod, shapes)) / 1e6 == pytest.approx(float(row["MB_bf16"]), rel=2e-3)
    if not case.transposed:  # where the table says nothing of what is cropped
        assert case.live == pytest.approx(float(row["valid_tap_frac"]), abs=2e-3)


def test_what_is_cropped_is_not_live():
    case = replace(CASES["T03"], H=2, W=2, P=4, Q=4)  # 4x4 s2 p1: 2 of 8 positions in each dimension are cropped
    assert case.live == pytest.approx((6 / 8) ** 2)


def test_classes():
    assert {case.target_class for case in CASES.values()} == set(TARGETS)
    expected = {
        "dense 3x3": "D02 D05 D16",
        "dense, other": "D01 D03 D07 D12 D23",
        "grouped, 4 a group": "G01 G06",
        "grouped, 8 a group": "G02 G03",
        "grouped, 16 to 32 a group": "G04 G05",
        "grouped, over 32 a group": "G08 G09 G16",
        "depthwise 3x3 and 5x5": "W01 W10",
        "depthwise 7x7": "W13 W26",
        "depthwise 13x13 and larger": "W18 W19 W23 W24",
        "depthwise 1xS": "W25 W27 W28",
        "depthwise dilated": "W29",
        "dilated": "L02 L22",
        "transposed": "T03 T11",
    }
    assert {id: CASES[id].target_class for ids in expected.values() for id in ids.split()} == {
        id: name for name, ids in expected.items() for id in ids.split()
    }


@pytest.mark.parametrize(
    ("name", "direction", "dtype", "expected"),
    [
        ("grouped, 4 a group", "fwd", "float32", 3.0),
        ("grouped, 4 a group", "train", "bfloat16", 4.0),
        ("grouped, 4 a group", "bwd", "float32", None),
        ("grouped, over 32 a group", "fwd", "float32", None),
        ("dense 3x3", "train", "float32", 1.3),
        ("dense 3x3", "fwd", "bfloat16", 1.0),
        ("dense 3x3", "fwd", "float16", 50.0),
        ("dilated", "train", "float16", 20.0),
        ("dilated", "train", "float64", None),
    ],
)
def test_targets(name, direction, dtype, expected):
    assert target(name, direction, dtype) == expected


def test_select():
    assert [case.id for case in select(["W03", "G01", "G01"])] == ["G01", "W03"]
    assert {case.id for case in select()} == QUICK
    assert [case.id for case in select(families=["dilated"])] == ["L02", "L06", "L22"]
    assert {case.family for case in select(families=["dilated"], full=True)} == {"dilated"}
    assert len(select(full=True)) == len(CASES) == 23 + 17 + 29 + 19 + 12


def test_text():
    assert CASES["G01"].text() == "3x3 128@56 g32"
    assert CASES["W27"].text(8) == "1x31 512@1x1000 n8"
    assert CASES["L22"].text() == "1x2 64@1x16000 d16"
    assert CASES["D01"].text() == "7x7 3->64@224 s2"


# ---- data and check --------------------------------------------------------------------------------------------------


def test_data_is_the_same_in_every_layout():
    data = measure.tensors(SMALL["dense"], 2, "bfloat16")
    for plain, last in zip(data["contiguous"], data["channels_last"], strict=True):
        assert torch.equal(plain, last)
        assert plain.dtype == torch.bfloat16
        assert plain.is_contiguous()
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert not last.is_contiguous()
    data = measure.tensors(SMALL["1-D"], 2, "float32")
    assert [list(t.shape) for t in data["contiguous"]] == [[2, 4, 9], [6, 4, 3], [2, 6, 9]]
    assert [list(t.shape) for t in data["channels_last"]] == [[2, 4, 1, 9], [6, 4, 1, 3], [2, 6, 1, 9]]


@pytest.mark.parametrize("direction", ["fwd", "bwd", "train"])
@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("case", SMALL.values(), ids=list(SMALL))
def test_reference(case, share, direction):
    """PyTorch agrees with it, and a single wrong value in the last channel shows."""
    names = measure.DIRECTIONS[direction]
    data = measure.tensors(case, 2, "float64")
    expected = measure.reference(case, direction, data["channels_last"], share)
    assert set(expected) == set(names)
    for layout, tensors in data.items():
        layer = measure.operator(case, "PyTorch", tensors[0].dim() - 2)
        made = dict(zip(names, measure.runner(layer, direction, tensors)(), strict=True))
        assert measure.error(made, expected) < 1e-14, layout
        for name in names:
            wrong = made[name].detach().clone()
            wrong[(-1,) * wrong.dim()] += 1
            assert measure.error({**made, name: wrong}, expected) > 0.01, (layout, name)
            wrong[(-1,) * wrong.dim()] = math.nan
            assert math.isnan(measure.error({**made, name: wrong}, expected)), (layout, name)


def test_large_cases_are_checked_in_part():
    assert measure.check_share(SMALL["dense"], 1, "train") == 1
    case = CASES["L05"]
    share = measure.check_share(case, 1, "fwd")
    assert share * case.flops(1) == pytest.approx(measure.CHECK_FLOPS)
    assert measure.check_share(CASES["W28"], 1, "fwd") * 2 * 12288 * 16384 < 1.01 * measure.CHECK_ELEMENTS


def test_training_batch(monkeypatch):
    assert measure.choose_batch(CASES["T01"], "float32", "fwd") == 16
    case = small(N=5)
    assert measure.choose_batch(case, "float32", "train") == 5
    monkeypatch.setattr(measure, "STEP", 0)
    assert measure.choose_batch(case, "float32", "train") == 1


# ---- timing ----------------------------------------------------------------------------------------------------------


def test_turns_are_fair():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    rounds = []
    samples = alternate(functions, repeats=60, seconds=0, on_round=lambda done, total: rounds.append((done, total)))
    assert {name: len(times) for name, times in samples.items()} == {"a": 60, "b": 60, "c": 60}
    assert rounds == [(done, 60) for done in range(1, 61)]
    turns = ["".join(calls[start : start + 3]) for start in range(0, len(calls), 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert set(turns[-60:]) == {"abc", "acb", "bac", "bca", "cab", "cba"}


def test_rounds_without_a_core_for_each_thread_are_thrown_away(monkeypatch):
    disturbed = iter([False, True, True])
    monkeypatch.setattr(_timing, "_undisturbed", lambda: not next(disturbed, False))
    calls = []
    samples = alternate({"a": lambda: calls.append(None)}, repeats=6, seconds=0)
    # Of the warm-up one call; then a round is thrown away for what came after it, before it, or both.
    assert (len(samples["a"]), len(calls)) == (6, 1 + 3 + 6)


def test_patience_with_disturbances_ends(monkeypatch):
    monkeypatch.setattr(_timing, "_undisturbed", lambda: False)
    monkeypatch.setattr(_timing, "_PATIENCE", 0.0)
    assert len(alternate({"a": lambda: None}, repeats=6, seconds=0)["a"]) == 6


def test_short_functions_are_repeated_up_to_the_limit():
    samples = alternate({"a": lambda: None}, repeats=2, seconds=60, limit=50)
    assert len(samples["a"]) == 50


@pytest.mark.parametrize("least", [3, 5])
def test_a_budget_ends_it_early(least):
    samples = alternate({"a": lambda: None, "b": lambda: None}, repeats=50, seconds=60, budget=0, least=least)
    assert {name: len(times) for name, times in samples.items()} == {"a": least, "b": least}


def test_summarise():
    assert summarise([5.0, 1.0, 4.0, 2.0, 3.0]) == (3.0, 2.0, 4.0)


# ---- arithmetic of rows ----------------------------------------------------------------------------------------------


def row(id="G01", direction="fwd", threads=1, times=(2.0, 1.0, 0.5, 4.0), **changes):
    """A timed row: seconds of PyTorch contiguous, channels_last, fastconv contiguous, channels_last."""
    names = [f"{library} {layout}" for library in ("PyTorch", "fastconv") for layout in LAYOUTS]
    case = CASES[id]
    return {
        "id": id,
        "text": case.text(),
        "family": case.family,
        "class": case.target_class,
        "network": case.network,
        "layer": case.layer,
        "direction": direction,
        "dtype": "float32",
        "threads": threads,
        "batch": 1,
        "flops": 8e9,
        "live": 0.5,
        "bytes": 1e9,
        "status": "timed",
        "seconds": {
            name: {"median": time, "low": 0.9 * time, "high": 1.1 * time, "samples": [time]}
            for name, time in zip(names, times, strict=True)
        },
        **changes,
    }


BANDWIDTH = {1: {2**20: 1e12, 2**30: 4e9}}
PEAK = {"float32": {1: 10e9}}


def test_judge():
    judged = judge(row(), BANDWIDTH, PEAK)
    assert judged["ratio"] == {"contiguous": 2.0, "channels_last": 0.25}  # against PyTorch's faster layout, 1 s
    assert judged["gflops"] == {"contiguous": 16.0, "channels_last": 2.0}
    assert judged["gbps"] == {"contiguous": 2.0, "channels_last": 0.25}
    # 0.8 s by the definition, 0.4 s without padding, 0.25 s for the bytes at the bandwidth of a copy of that size
    assert judged["bound"] == "compute"
    assert judged["limit"]["contiguous"] == pytest.approx([1.6, 0.8])
    memory = judge(row(flops=1e9), BANDWIDTH, PEAK)
    assert memory["bound"] == "memory"
    assert memory["limit"]["contiguous"] == pytest.approx([0.5, 0.5])
    wrong = row(status="wrong")
    assert judge(wrong, BANDWIDTH, PEAK) == wrong


def test_one_layout_alone():
    one = row()
    del one["seconds"]["fastconv contiguous"]
    assert judge(one, BANDWIDTH, PEAK)["ratio"] == {"channels_last": 0.25}


def judged_rows():
    rows = [
        row("G01"),
        row("G06", times=(1.0, 9.0, 2.0, 1.0)),
        row("G02", times=(1.0, 1.0, 0.25, 0.25)),
        row("G01", direction="train", times=(1.0, 1.0, 1.0, 1.0)),
        row("W19", status="wrong", reason="differs"),
    ]
    return [judge(each, BANDWIDTH, PEAK) for each in rows]


def test_means():
    found = means(judged_rows(), "class")
    by_key = {(mean["direction"], mean["class"]): mean for mean in found}
    assert set(by_key) == {
        ("fwd", "grouped, 4 a group"),
        ("fwd", "grouped, 8 a group"),
        ("train", "grouped, 4 a group"),
    }
    four = by_key["fwd", "grouped, 4 a group"]
    assert four["cases"] == 2
    assert four["mean"] == pytest.approx({"contiguous": math.sqrt(2.0 * 0.5), "channels_last": math.sqrt(0.25 * 1.0)})
    assert four["least"] == 0.25
    (family,) = (mean for mean in means(judged_rows(), "family") if mean["direction"] == "fwd")
    assert family["family"] == "grouped"
    assert family["mean"]["contiguous"] == pytest.approx((2.0 * 0.5 * 4.0) ** (1 / 3))


def test_smallest():
    ratio, found, layout = smallest(judged_rows())
    assert (ratio, found["id"], layout) == (0.25, "G01", "channels_last")
    assert smallest([row(status="wrong")]) is None


def test_verdict_hides_nothing():
    rows = judged_rows()
    rows[1]["checked"] = 0.5
    rows[2]["seconds"]["PyTorch contiguous"]["high"] = 1.3
    said = tables.verdict(rows)
    assert re.search(r"Smallest ratio: \S*0\.25\S* \(G01 3x3 128@56 g32, channels_last; Forward", said)
    assert f"Below {FLOOR}: 2 of 8." in said
    assert "Times of 1 of 4 rows vary by over 30%" in said
    assert "1 of 5 rows were compared with float64 in a share" in said
    assert "W19, Forward, float32, 1 thread: wrong, differs" in said


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit(width):
    """Every number is whole; a narrow terminal leaves columns out."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(tables.run_table(("fwd", "float32", 1), judged_rows()[:3], width))
    console.print(tables.class_table(judged_rows()))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for number in ("2000.000", "500.000", "compute 160/80%", "2.00", "0.25", "3.00"):
        assert number in text
    assert ("GFLOP/s" in text) == (" 20%" in text) == (width == 120)


@pytest.mark.parametrize("isa", ISAS)
def test_register_peak(isa):
    """Operations are counted by the width of the vectors, and twice the rounds are twice the work."""
    if not native.isa_select(isa):
        pytest.skip(f"no {isa} here")
    lanes = {"baseline": 4, "avx2": 8}.get(isa, 16)
    assert native.peak_work(False, 10, 1) % (2 * 10 * lanes) == 0
    assert native.peak_work(False, 10, 1) == 2 * native.peak_work(True, 10, 1)
    assert native.peak_work(False, 20, 2) == 4 * native.peak_work(False, 10, 1)


def test_roofline_is_measured(monkeypatch):
    monkeypatch.setattr(roofline, "SECONDS", 0)
    torch.set_num_threads(1)
    bandwidth, peak = roofline.measure(["float32", "bfloat16"], [1, 2])
    assert torch.get_num_threads() == 1
    assert set(bandwidth) == {1, 2}
    assert all(1e7 < speed < 1e14 for copies in bandwidth.values() for speed in copies.values())
    assert all(1e7 < peak[dtype][count] < 1e17 for dtype in ("float32", "bfloat16") for count in (1, 2))
    assert peak["bfloat16"][1] >= peak["float32"][1]
    assert roofline.bandwidth_for(3e6, {2**20: 1.0, 2**22: 2.0, 2**24: 3.0}) == 2.0
    assert "2 threads" in roofline.text(bandwidth, peak)


# ---- rows of real layers ---------------------------------------------------------------------------------------------


def run(case, direction="fwd", dtype="float32", threads=(1,), **settings):
    return list(run_case(case, direction, dtype, threads=threads, budget=0, **settings))


@pytest.mark.parametrize("direction", ["fwd", "bwd", "train"])
@pytest.mark.parametrize("name", [name for name, case in SMALL.items() if not case.transposed])
def test_run_case(name, direction):
    case = SMALL[name]
    found = run(case, direction, threads=(1, 2))
    assert [each["threads"] for each in found] == [1, 2]
    for each in found:
        assert each["status"] == "timed", each
        assert set(each["seconds"]) == {
            f"{library} {layout}" for library in ("PyTorch", "fastconv") for layout in LAYOUTS
        }
        assert all(len(timing["samples"]) == 3 for timing in each["seconds"].values())
        assert max(each["error"].values()) < 1e-6
        assert each["batch"] == 2
        assert each["flops"] == case.flops(2) * {"fwd": 1, "bwd": 2, "train": 3}[direction]
        input, weight, output = map(math.prod, (case.input_shape(2), case.weight_shape, case.output_shape(2)))
        forward, backward = input + weight + output, output + 2 * input + 2 * weight
        assert each["bytes"] == 4 * {"fwd": forward, "bwd": backward, "train": forward + backward}[direction]


@pytest.mark.parametrize(("name", "dims"), [("transposed, grouped", 2), ("transposed, 1-D", 1)])
def test_transposed_runs_where_fastconv_has_it(monkeypatch, name, dims):
    for each in (1, 2):
        operator = f"conv_transpose{each}d"
        monkeypatch.setattr(fastconv, operator, getattr(F, operator), raising=False)
    assert run(SMALL[name], "train")[0]["status"] == "timed"
    monkeypatch.delattr(fastconv, f"conv_transpose{dims}d")
    (found,) = run(SMALL[name], "train")
    assert (found["status"], found["reason"]) == ("skipped", f"fastconv has no conv_transpose{dims}d")


def test_one_layout(monkeypatch):
    (found,) = run(SMALL["dense"], layouts=["channels_last"])
    assert set(found["seconds"]) == {"PyTorch contiguous", "PyTorch channels_last", "fastconv channels_last"}


def test_dimensions_are_those_of_the_layer(monkeypatch):
    """conv1d where contiguous, conv2d in channels_last."""
    calls = []
    for name in ("conv1d", "conv2d"):
        original = getattr(fastconv, name)
        monkeypatch.setattr(
            fastconv, name, lambda *args, n=name, f=original, **kwargs: calls.append(n) or f(*args, **kwargs)
        )
    assert run(SMALL["1-D"], layouts=["contiguous"])[0]["status"] == "timed"
    assert set(calls) == {"conv1d"}
    calls.clear()
    assert run(SMALL["1-D"], layouts=["channels_last"])[0]["status"] == "timed"
    assert set(calls) == {"conv2d"}


def test_what_does_not_fit_is_skipped(monkeypatch):
    # Input and output are 0.8 GB each. Two of both and a gradient, and what is computed.
    sizes = {direction: measure.footprint(CASES["W28"], 1, "float32", direction) for direction in measure.DIRECTIONS}
    assert sizes == pytest.approx({"fwd": 4.03e9, "train": 4.83e9, "bwd": 7.25e9}, rel=0.01)
    assert measure.footprint(CASES["W28"], 1, "bfloat16", "fwd") == sizes["fwd"] / 2
    needed = sizes["fwd"]
    monkeypatch.setattr(measure, "available_memory", lambda: 3 * needed - 3)
    (found,) = run(CASES["W28"])
    assert found["status"] == "skipped"
    assert re.fullmatch(r"needs \d\.\d GB, over a third of \d+\.\d GB", found["reason"])


def test_memory_makes_the_training_batch_smaller(monkeypatch):
    case = small(N=8)
    monkeypatch.setattr(measure, "available_memory", lambda: 3 * measure.footprint(case, 3, "float32", "train"))
    assert run(case, "train")[0]["batch"] == 2


def test_available_memory():
    assert 2**26 < measure.available_memory() < 2**50


def test_an_error_is_a_failure_but_a_kernel_that_does_not_serve_is_not(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("conv2d: kernel must be able to serve these arguments (got rows)\nmore")

    monkeypatch.setattr(fastconv, "conv2d", refuse)
    for direction in ("fwd", "bwd"):
        assert run(SMALL["dense"], direction)[0]["status"] == "failed"
        (found,) = run(SMALL["dense"], direction, kernel="rows")
        assert found["status"] == "skipped"
        assert found["reason"] == "conv2d: kernel must be able to serve these arguments (got rows)"


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
        (["--case", "P01"], "bench: --case must name ids of shapes.csv, as W03 (got 'P01')"),
        (["--family", "dense,pool"], f"bench: --family must be of {', '.join(FAMILIES)} (got 'pool')"),
        (["--direction", "sideways"], "bench: --direction must be of fwd, bwd, train (got 'sideways')"),
        (["--dtype", "int8"], "bench: --dtype must be of float32, bfloat16, float16, float64 (got 'int8')"),
        (["--layout", "NHWC"], "bench: --layout must be of contiguous, channels_last (got 'NHWC')"),
        (["--threads", "1,0"], "bench: --threads must be positive integers (got '1,0')"),
        (["--threads", "all"], "bench: --threads must be positive integers (got 'all')"),
        (["--dtype", ","], "bench: the options must leave something to measure (got nothing)"),
        (["--kernel", "fastest"], f"bench: --kernel must be of {', '.join(native.conv_kernels())} (got 'fastest')"),
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
        rows = [row("G01", times=(2.0, 1.0, factor, 4.0)), row("D02", times=(1.0, 1.0, 2 * factor, 1.0))]
        rows.append(row("W19", status="wrong", reason="differs <badly>"))
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

    before = [row("G01"), row("G02"), row("G06", status="wrong"), row("G04", batch=8)]
    after = [row("G01", times=(9.0, 9.0, 0.25, 8.0)), row("G02", threads=2), row("G06"), row("G04")]
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
