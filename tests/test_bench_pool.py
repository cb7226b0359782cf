"""The benchmark's pooling cases: what is read from shapes.csv, what each library computes, and that it is checked."""

import math

import pytest
import torch

import fastconv
from fastconv.bench import measure, pool
from fastconv.bench.cases import FAMILIES, PoolCase, read_pool, select, target
from fastconv.bench.data import DIRECTIONS, LAYOUTS
from fastconv.bench.measure import run_case

CASES = read_pool()


def small(kind="max", family="pool", **changes) -> PoolCase:
    """A case that takes no time."""
    given = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "P": 4, "Q": 5} | changes
    return PoolCase("X01", family, "a network", "a layer", 2, 2, 5, 7, 9, given.pop("P"), given.pop("Q"), kind, **given)


SMALL = {
    "max": small(),
    "max with indices": small(indices=True),
    "max, stride 1": small(kernel=(5, 5), stride=(1, 1), padding=(2, 2), P=7, Q=9),
    "avg": small("avg"),
    "avg, ceil": small("avg", padding=(0, 0), ceil_mode=True, P=3, Q=4),
    "adaptive max": small("max", "adaptive_pool", P=2, Q=3),
    "adaptive avg": small("avg", "adaptive_pool", P=2, Q=3),
    "unpool": small("max", "max_unpool", kernel=(2, 2), padding=(0, 0), indices=True, P=15, Q=19),
}


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.id)
def test_sizes_are_those_of_the_windows(case: PoolCase) -> None:
    layer = pool.operator(case, "PyTorch", 2)
    assert layer is not None
    indices = [torch.empty(case.input_shape(3), dtype=torch.int64, device="meta")] * case.unpool
    made = layer(torch.empty(case.input_shape(3), device="meta"), *indices)
    assert tuple(made.shape) == case.output_shape(3)


def test_what_the_file_says() -> None:
    assert len(CASES) == 22
    assert {id for id, case in CASES.items() if case.kind == "avg"} == {"P09", "P10", *(f"P2{n}" for n in range(1, 8))}
    assert {id for id, case in CASES.items() if case.indices} == {"P11", "P12", "N01", "N02"}
    assert {id for id, case in CASES.items() if case.ceil_mode} == {"P06"}
    assert CASES["P01"].text() == "max 3x3 64@112 s2"
    assert CASES["P26"].text(8) == "avg 2048@60 to 6 n8"
    assert CASES["P12"].text() == "max 2x2 512@45x60 s2 indices"
    assert CASES["N02"].text() == "unpool 512@22x30 to 45x60"
    assert (CASES["N02"].kernel, CASES["N02"].stride) == ((2, 2), (2, 2))
    assert CASES["N01"].target_class == "max unpooling"
    assert {CASES[id].target_class for id in ("P07", "P08")} == {"max pooling, 5x5 and larger of stride 1"}
    assert CASES["P05"].target_class == "max pooling"
    assert target("max pooling", "fwd", "float16") == 1.5
    assert {case.id for case in select(families=["pool", "adaptive_pool"])} == {"P01", "P07", "P11", "P21", "P26"}
    assert {case.id for case in select(families=["max_unpool"])} == {"N02"}
    assert {"pool", "adaptive_pool", "max_unpool"} <= set(FAMILIES)


def test_bytes() -> None:
    case = CASES["P12"]
    input, output = 512 * 45 * 60, 512 * 22 * 30
    assert case.bytes_moved(2, "fwd", 4) == 2 * (4 * (input + output) + 8 * output)
    assert case.bytes_moved(2, "train", 4) == case.bytes_moved(2, "fwd", 4) + case.bytes_moved(2, "bwd", 4)
    assert case.bytes_moved(1, "bwd", 2) == 2 * (input + output)
    assert CASES["N02"].bytes_moved(1, "fwd", 4) == CASES["N02"].bytes_moved(1, "bwd", 4)
    assert CASES["N02"].bytes_moved(1, "fwd", 4) == 4 * (input + output) + 8 * output


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
def test_rows(case: PoolCase, direction: str) -> None:
    (row,) = run_case(case, direction, "float32", threads=[1], budget=0)
    assert row["status"] == "timed", row["reason"]
    assert set(row["seconds"]) == {f"{library} {layout}" for library in ("PyTorch", "fastconv") for layout in LAYOUTS}
    assert all(error < 1e-6 for error in row["error"].values())
    assert row["bytes"] == case.bytes_moved(row["batch"], direction, 4)
    assert math.isfinite(row["flops"])


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
def test_a_single_wrong_value_shows(case: PoolCase, direction: str) -> None:
    data = pool.tensors(case, 2, "float64")
    expected = pool.reference(case, direction, data["contiguous"], 1.0)
    layer = pool.operator(case, "fastconv", 2)
    assert layer is not None
    made = dict(zip(case.results(direction), measure.runner(layer, direction, data["channels_last"], 1)(), strict=True))
    assert measure.error(made, expected) < 1e-14
    for name, tensor in made.items():
        wrong = tensor.clone()
        wrong[-1, -1, -1, -1] += 1
        assert measure.error({**made, name: wrong}, expected) > 0.1


def test_what_fastconv_lacks_is_skipped(monkeypatch) -> None:
    monkeypatch.delattr(fastconv, "max_pool2d")
    (row,) = run_case(SMALL["max"], "fwd", "float32", threads=[1], budget=0)
    assert (row["status"], row["reason"]) == ("skipped", "fastconv has no max_pool2d")
