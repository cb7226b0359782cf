"""What the benchmark measures: data, the check against float64, and rows of real layers."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from bench_rows import CASES, SMALL, small

import fastconv
from fastconv.bench import conv, measure
from fastconv.bench.data import CHECK_ELEMENTS, CHECK_FLOPS, DIRECTIONS, LAYOUTS
from fastconv.bench.measure import run_case

# ---- data and check --------------------------------------------------------------------------------------------------


def test_data_is_the_same_in_every_layout():
    data = conv.tensors(SMALL["dense"], 2, "bfloat16")
    for plain, last in zip(data["contiguous"], data["channels_last"], strict=True):
        assert torch.equal(plain, last)
        assert plain.dtype == torch.bfloat16
        assert plain.is_contiguous()
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert not last.is_contiguous()
    data = conv.tensors(SMALL["1-D"], 2, "float32")
    assert [list(t.shape) for t in data["contiguous"]] == [[2, 4, 9], [6, 4, 3], [2, 6, 9]]
    assert [list(t.shape) for t in data["channels_last"]] == [[2, 4, 1, 9], [6, 4, 1, 3], [2, 6, 1, 9]]


@pytest.mark.parametrize("direction", ["fwd", "bwd", "train"])
@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("case", SMALL.values(), ids=list(SMALL))
def test_reference(case, share, direction):
    """PyTorch agrees with it, and a single wrong value in the last channel shows."""
    names = case.results(direction)
    data = conv.tensors(case, 2, "float64")
    expected = conv.reference(case, direction, data["channels_last"], share)
    assert set(expected) == set(names)
    for layout, tensors in data.items():
        layer = conv.operator(case, "PyTorch", tensors[0].dim() - 2)
        made = dict(zip(names, measure.runner(layer, direction, tensors, 2)(), strict=True))
        assert measure.error(made, expected) < 1e-14, layout
        for name in names:
            wrong = made[name].detach().clone()
            wrong[(-1,) * wrong.dim()] += 1
            assert measure.error({**made, name: wrong}, expected) > 0.01, (layout, name)
            wrong[(-1,) * wrong.dim()] = math.nan
            assert math.isnan(measure.error({**made, name: wrong}, expected)), (layout, name)


def test_large_cases_are_checked_in_part():
    assert conv.check_share(SMALL["dense"], 1, "train") == 1
    case = CASES["L05"]
    share = conv.check_share(case, 1, "fwd")
    assert share * case.flops(1) == pytest.approx(CHECK_FLOPS)
    assert conv.check_share(CASES["W28"], 1, "fwd") * 2 * 12288 * 16384 < 1.01 * CHECK_ELEMENTS


def test_training_batch(monkeypatch):
    assert measure.choose_batch(CASES["T01"], "float32", "fwd") == 16
    case = small(N=5)
    assert measure.choose_batch(case, "float32", "train") == 5
    monkeypatch.setattr(measure, "STEP", 0)
    assert measure.choose_batch(case, "float32", "train") == 1


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
    sizes = {direction: measure.footprint(CASES["W28"], 1, "float32", direction) for direction in DIRECTIONS}
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
