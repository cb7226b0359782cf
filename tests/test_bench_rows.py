"""Arithmetic of timed rows: ratios, limits, means, what is said of them."""

import io
import math
import re

import pytest
import torch
from bench_rows import BANDWIDTH, PEAK, judged_rows, timed_row
from rich.console import Console

from fastconv._native import ISAS, native
from fastconv.bench import roofline, tables
from fastconv.bench.cases import FLOOR
from fastconv.bench.measure import judge, means, smallest


def test_judge():
    judged = judge(timed_row(), BANDWIDTH, PEAK)
    assert judged["ratio"] == {"contiguous": 2.0, "channels_last": 0.25}  # against PyTorch's faster layout, 1 s
    assert judged["gflops"] == {"contiguous": 16.0, "channels_last": 2.0}
    assert judged["gbps"] == {"contiguous": 2.0, "channels_last": 0.25}
    # 0.8 s by the definition, 0.4 s without padding, 0.25 s for the bytes at the bandwidth of a copy of that size
    assert judged["bound"] == "compute"
    assert judged["limit"]["contiguous"] == pytest.approx([1.6, 0.8])
    memory = judge(timed_row(flops=1e9), BANDWIDTH, PEAK)
    assert memory["bound"] == "memory"
    assert memory["limit"]["contiguous"] == pytest.approx([0.5, 0.5])
    wrong = timed_row(status="wrong")
    assert judge(wrong, BANDWIDTH, PEAK) == wrong


def test_one_layout_alone():
    one = timed_row()
    del one["seconds"]["fastconv contiguous"]
    assert judge(one, BANDWIDTH, PEAK)["ratio"] == {"channels_last": 0.25}


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
    assert smallest([timed_row(status="wrong")]) is None


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
