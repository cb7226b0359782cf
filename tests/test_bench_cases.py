"""The cases of the benchmark are consistent, and their amounts those of the table."""

import csv
import math
from dataclasses import replace

import pytest
import torch
from bench_rows import CASES

from fastconv.bench import conv
from fastconv.bench.cases import QUICK, SHAPES, TARGETS, read_cases, select, target

with SHAPES.open(newline="") as file:
    TABLE = {row["id"]: row for row in csv.DictReader(file) if row["id"] in CASES}


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_cases_are_consistent(case):
    """PyTorch, given the row's arguments, makes the row's output, in one dimension and in two."""
    for dims in (1, 2) if case.one_dimensional else (2,):
        input, weight, output = (
            list(shape[:2] + shape[4 - dims :])
            for shape in (case.input_shape(3), case.weight_shape, case.output_shape(3))
        )
        layer = conv.operator(case, "PyTorch", dims)
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
    assert {case.target_class for case in read_cases().values()} == set(TARGETS)
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
    assert len(select(full=True)) == len(read_cases()) == 23 + 17 + 29 + 19 + 12 + 20 + 2 + 6 + 6 + 10


def test_text():
    assert CASES["G01"].text() == "3x3 128@56 g32"
    assert CASES["W27"].text(8) == "1x31 512@1x1000 n8"
    assert CASES["L22"].text() == "1x2 64@1x16000 d16"
    assert CASES["D01"].text() == "7x7 3->64@224 s2"
