"""The benchmark's deformable convolutions and regions of interest: what is read from shapes.csv, the data, that results
are checked, and what is said where torchvision is missing. A stand-in with fastconv's own functions is the peer."""

import json
import sys
from types import ModuleType

import pytest
import torch
from bench_rows import BANDWIDTH, PEAK, timed_row
from click.testing import CliRunner

import fastconv
from fastconv import cli
from fastconv.bench import data, measure, roofline, tables
from fastconv.bench.cases import (
    SAMPLE_FAMILIES,
    TORCHVISION_FAMILIES,
    DeformCase,
    RoiCase,
    SampleCase,
    read_deform,
    read_roi,
    read_sample,
    select,
    target,
)
from fastconv.bench.data import DIRECTIONS, LAYOUTS
from fastconv.bench.measure import family_of, judge, run_case

DEFORM, SAMPLE, ROI = read_deform(), read_sample(), read_roi()
CASES: dict[str, DeformCase | RoiCase] = {**DEFORM, **ROI}
OPERATORS = ("deform_conv2d", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")


def small_deform(**changes) -> DeformCase:
    """A case that takes no time."""
    given = {"groups": 1, "offset_groups": 2, "stride": (2, 1), "P": 4, "Q": 9} | changes
    numbers = {"N_gpu": 2, "N_cpu": 2, "C": 4, "H": 7, "W": 9, "K": 6, "R": 3, "S": 3}
    return DeformCase("X01", "deform", "a network", "a layer", **numbers, padding=(1, 1), dilation=(1, 1), **given)


def small_sample(**changes) -> SampleCase:
    given = {"stride": (2, 1), "padding": (1, 1), "dilation": (1, 1), "P": 4, "Q": 9} | changes
    numbers = {"N_gpu": 2, "N_cpu": 2, "C": 6, "H": 7, "W": 9, "K": 6, "R": 3, "S": 3, "groups": 6, "offset_groups": 2}
    return SampleCase("X03", "deform_sample", "a network", "a layer", **numbers, **given)


def small_roi(family="roi_align", **changes) -> RoiCase:
    given = {"C": 3, "P": 2, "Q": 3, "boxes": 5, "sides": (16.0, 64.0), "scale": 1 / 8, "sampling": 2} | changes
    return RoiCase("X02", family, "a network", "a layer", N_gpu=2, N_cpu=2, H=9, W=11, **given)


SMALL: dict[str, DeformCase | RoiCase] = {
    "deform": small_deform(),
    "deform, groups": small_deform(groups=2),
    "deform_sample": small_sample(),
    "deform_sample, dilated": small_sample(stride=(1, 2), padding=(2, 0), dilation=(2, 1), Q=4, P=7),
    "roi_align": small_roi(),
    "roi_pool": small_roi("roi_pool", sampling=0),
    "ps_roi_align": small_roi("ps_roi_align", C=12),
    "ps_roi_pool": small_roi("ps_roi_pool", C=12, sampling=0),
}


@pytest.fixture
def torchvision(monkeypatch) -> ModuleType:
    """A stand-in, whose functions the tests may replace."""
    module, ops = ModuleType("torchvision"), ModuleType("torchvision.ops")
    for name in OPERATORS:
        setattr(ops, name, getattr(fastconv, name))
    module.ops = ops  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", module)
    monkeypatch.setitem(sys.modules, "torchvision.ops", ops)
    return ops


@pytest.fixture
def bench(monkeypatch):
    """Runs the command, without the seconds that the machine's limits take."""
    monkeypatch.setattr(roofline, "SECONDS", 0)
    runner = CliRunner()
    return lambda *arguments: runner.invoke(cli.main, ["bench", *map(str, arguments)], catch_exceptions=False)


# ---- cases -----------------------------------------------------------------------------------------------------------


def test_what_the_file_says() -> None:
    assert list(DEFORM) == ["F01", "F02", "F03", "F04", "F05", "F06"]
    assert [case.offset_groups for case in DEFORM.values()] == [1] * 5 + [8]
    assert list(SAMPLE) == ["F11", "F12", "F13", "F14", "F15", "F16"]
    assert [case.offset_groups for case in SAMPLE.values()] == [4, 8, 16, 32, 7, 4]
    assert list(ROI) == [f"R{n:02}" for n in range(1, 11)]
    assert [ROI[id].boxes for id in ("R01", "R02", "R05", "R08")] == [512, 1000, 128, 128]
    assert [ROI[id].scale for id in ("R01", "R05", "R07")] == [1 / 4, 1 / 8, 1 / 16]
    assert [ROI[id].sampling for id in ("R01", "R07", "R09", "R10")] == [2, 0, 2, 0]
    assert [ROI[id].sides for id in ("R01", "R05", "R03")] == [(16.0, 112.0), (112.0, 224.0), (224.0, 448.0)]
    assert ROI["R06"].sides == ROI["R07"].sides == (32.0, 512.0)
    assert ROI["R09"].output_shape(1) == ROI["R10"].output_shape(1) == (300, 21, 7, 7)
    assert DEFORM["F06"].text(2) == "deform 3x3 64@180x320 dg8 n2"
    assert DEFORM["F02"].text() == "deform 3x3 128@200x336 s2"
    assert SAMPLE["F13"].text(8) == "deform_sample 3x3 256@14 dg16 n8"
    assert ROI["R01"].text(2) == "roi_align 7x7 of 1024, 256@200x272 n2"
    classes = {
        case.target_class: [target(case.target_class, each, "float32") for each in DIRECTIONS] for case in ROI.values()
    }
    assert classes == {
        "RoI align": [15, None, 20],
        "RoI pool": [15, None, 20],
        "position-sensitive RoI": [5, None, 5],
    }
    assert target("deformable", "fwd", "float16") == 8
    assert [case.id for case in select(families=TORCHVISION_FAMILIES)] == ["F01", "R02", "R04"]
    assert select(families=TORCHVISION_FAMILIES, full=True) == list(CASES.values())
    assert [case.id for case in select(families=SAMPLE_FAMILIES)] == ["F12"]
    assert select(families=SAMPLE_FAMILIES, full=True) == list(SAMPLE.values())
    assert target("deformable sampling, over grid_sample", "fwd", "float32") is None


@pytest.mark.parametrize(
    ("id", "gflop", "megabytes"), [("F11", 1.156, 94.73), ("F14", 0.1445, 11.84), ("F15", 2.023, 165.8)]
)
def test_amounts_of_samplings_are_those_of_the_table(id: str, gflop: float, megabytes: float) -> None:
    case = SAMPLE[id]
    assert case.flops(64) / 1e9 == pytest.approx(gflop, rel=1e-3)
    assert case.bytes_moved(64, "fwd", 2) / 1e6 == pytest.approx(megabytes, rel=1e-3)


def test_amounts() -> None:
    case = DEFORM["F01"]
    assert case.flops(2) == pytest.approx(10.22e9, rel=1e-3)
    assert [case.passes(direction) for direction in DIRECTIONS] == [1, 2, 3]
    assert case.bytes_moved(2, "fwd", 2) == pytest.approx(19.31e6, rel=1e-3)
    assert ROI["R06"].flops(2) == pytest.approx(6.577e9, rel=1e-3)
    assert ROI["R02"].bytes_moved(1, "fwd", 2) == pytest.approx(52.94e6, rel=1e-3)
    assert ROI["R02"].bytes_moved(1, "train", 2) == 2 * ROI["R02"].bytes_moved(1, "bwd", 2)
    assert ROI["R07"].flops(1) > ROI["R08"].flops(1) > 0


# ---- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
def test_data_is_that_of_the_case_in_every_layout(case: DeformCase | RoiCase) -> None:
    made = family_of(case).tensors(case, 2, "float32")
    for layout, memory_format in LAYOUTS.items():
        assert [tuple(each.shape) for each in made[layout]] == [*case.given_shapes(2), case.output_shape(2)]
        for each, other in zip(made[layout], made["contiguous"], strict=True):
            assert torch.equal(each, other)
            assert each.dim() != 4 or each.is_contiguous(memory_format=memory_format)


def test_offsets_are_exact_and_between_pixels() -> None:
    drawn = {
        dtype: family_of(SMALL["deform"]).tensors(SMALL["deform"], 2, dtype)["contiguous"] for dtype in measure.DTYPES
    }
    offset = drawn["float64"][1]
    assert (offset * 16 % 2 == 1).all()
    assert 1.5 < offset.std() < 2.5
    for dtype, (_, same, _, mask, _) in drawn.items():
        assert torch.equal(same.double(), offset), dtype
        assert 0 <= mask.min() < 0.1 < 0.9 < mask.max() <= 1


@pytest.mark.parametrize("id", ["R02", "R05", "R07", "R10"])
def test_boxes_lie_in_the_image(id: str) -> None:
    case = ROI[id]
    boxes = family_of(case).draw_boxes(case, 2, torch.Generator().manual_seed(0))
    assert boxes[:, 0].tolist() == [0.0] * case.boxes + [1.0] * case.boxes
    left, top, right, bottom = boxes[:, 1:].unbind(1)
    assert min(left.min(), top.min()) >= 0
    assert right.max() <= case.W / case.scale
    assert bottom.max() <= case.H / case.scale
    least, most = case.sides
    for side in (right - left, bottom - top):
        assert 0 < least / 2 <= side.min() < side.max() <= most * 1.001  # of what sticks out, half is left at least
        assert (side < (least * most) ** 0.5).float().mean() > 0.4  # as many below the middle of the logarithms


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
def test_rows(torchvision, case: DeformCase | RoiCase, direction: str) -> None:
    (row,) = run_case(case, direction, "float32", threads=[1], budget=0)
    assert row["status"] == "timed", row["reason"]
    libraries = ("PyTorch", "fastconv", "plain") if case.family == "deform" else ("PyTorch", "fastconv")
    assert set(row["seconds"]) == {f"{library} {layout}" for library in libraries for layout in LAYOUTS}
    assert all(error < 1e-5 for error in row["error"].values())
    assert row["bytes"] == case.bytes_moved(row["batch"], direction, 4)
    assert row["flops"] == case.flops(row["batch"]) * case.passes(direction)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
def test_a_single_wrong_value_shows(torchvision, case: DeformCase | RoiCase, direction: str) -> None:
    family = family_of(case)
    made = family.tensors(case, 2, "float64")
    expected = family.reference(case, direction, made["contiguous"], 1.0)
    layer = family.operator(case, "fastconv", 2)
    run = measure.runner(layer, direction, made["channels_last"], len(case.gradients))
    found = dict(zip(case.results(direction), run(), strict=True))
    assert measure.error(found, expected) < 1e-12
    for name, tensor in found.items():
        wrong = tensor.clone()
        wrong[-1, -1, -1, -1] += tensor.abs().max()
        assert measure.error({**found, name: wrong}, expected) > 0.1


@pytest.mark.parametrize("family", ["roi_align", "ps_roi_align"])
def test_a_share_of_the_channels(torchvision, family: str) -> None:
    case = small_roi(family, C=48)
    module = family_of(case)
    made = module.tensors(case, 2, "float64")["contiguous"]
    part, whole = (module.reference(case, "train", made, share) for share in (0.5, 1.0))
    for name, (where, value) in part.items():
        assert value.numel() * 2 == whole[name][1].numel()
        torch.testing.assert_close(whole[name][1][where], value)


@pytest.mark.parametrize(
    "case", [small_sample(), small_sample(stride=(3, 1), padding=(2, 3), dilation=(1, 2), P=3, Q=11)]
)
def test_the_peer_of_samplings_is_a_convolution_with_weights_of_one(torchvision, case: SampleCase) -> None:
    """Of which torchvision (the stand-in: fastconv) is the reference; also in both layouts and where 16 bits alone
    would put samples elsewhere."""
    module = family_of(case)
    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-4), ("bfloat16", 2e-2), ("float16", 2e-3)):
        made = module.tensors(case, 2, dtype)
        for layout in LAYOUTS:
            input, offset, mask, _ = made[layout]
            output = module.operator(case, "PyTorch", 2)(input, offset, mask)
            weight = torch.ones(case.weight_shape, dtype=torch.float64)
            wide = [each.double() for each in (input, offset, mask)]
            expected = torchvision.deform_conv2d(
                *wide[:2], weight, None, case.stride, case.padding, case.dilation, wide[2]
            )
            assert output.dtype == input.dtype
            torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)


def test_samplings_need_no_torchvision(bench, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.ops", raising=False)
    result = bench("--case", "F01,F14", "--direction", "fwd,train", "--budget", 0)
    assert result.exit_code == 0, result.output
    assert "bench: deform left out: torchvision is not installed" in result.stderr
    assert "[2/2] F14 deform_sample 3x3 512@7 dg32 train float32" in result.stderr
    assert "deformable sampling, over grid_sample" in result.stdout
    assert "of deform_sample, which both lack, the formulation of DCNv3's authors" in result.stdout


def test_only_fastconv_is_judged(torchvision, monkeypatch) -> None:
    original = fastconv.roi_align
    monkeypatch.setattr(fastconv, "roi_align", lambda *args, **kwargs: original(*args, **kwargs) * 1.001)
    (row,) = run_case(SMALL["roi_align"], "fwd", "float32", threads=[1], budget=0)
    assert (row["status"], row["reason"]) == ("wrong", "differs from float64 by 1.0e-03")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_dtype_that_the_peer_lacks_is_skipped(torchvision, direction: str) -> None:
    def refuse(input, *args, **kwargs):
        if input.dtype == torch.bfloat16:
            raise NotImplementedError("\"roi_align_forward_kernel\" not implemented for 'BFloat16'")
        return fastconv.roi_align(input, *args, **kwargs)

    torchvision.roi_align = refuse
    (row,) = run_case(SMALL["roi_align"], direction, "bfloat16", threads=[1], budget=0)
    assert row["status"] == "skipped"
    assert "not implemented for 'BFloat16'" in row["reason"]


def test_one_image_is_trained_on_without_a_trial(torchvision) -> None:
    torchvision.roi_align = lambda *args, **kwargs: pytest.fail("ran")
    assert measure.choose_batch(ROI["R02"], "float32", "train") == 1


def test_what_deforming_costs() -> None:
    row = timed_row(id="G01", family="deform")
    row["seconds"] |= {
        f"plain {layout}": {**row["seconds"]["PyTorch contiguous"], "median": 0.25} for layout in LAYOUTS
    }
    judged = judge(row, BANDWIDTH, PEAK)
    assert judged["plain"] == {"contiguous": 2.0, "channels_last": 16.0}
    assert judged["ratio"] == judge(timed_row(), BANDWIDTH, PEAK)["ratio"]
    assert "up to 16.00 times PyTorch's plain convolution of the same shape (G01" in tables.verdict([judged])
    assert "plain" not in judge(timed_row(), BANDWIDTH, PEAK)


# ---- torchvision -----------------------------------------------------------------------------------------------------


def test_the_command(bench, torchvision, monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules["fastconv.bench.command"].__dict__, "select", lambda *_: [SMALL["roi_align"]])
    result = bench("--budget", 0, "--threads", 1, "--json", tmp_path / "rows.json")
    assert result.exit_code == 0, result.output
    assert "X02 roi_align 2x3 of 10, 3@9x11 n2" in result.stdout
    assert "RoI align" in result.stdout
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert set(row["ratio"]) == set(LAYOUTS)


def test_without_torchvision_the_rest_runs(bench, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.ops", raising=False)
    result = bench("--case", "F01,R02,R07,G12", "--budget", 0)
    assert result.exit_code == 0, result.output
    assert "bench: deform, roi_align and roi_pool left out: torchvision is not installed" in result.stderr
    assert "[1/1] G12" in result.stderr
    result = bench("--family", "deform,roi_align")
    assert result.exit_code == 1
    expected = "Error: bench: there is nothing to compare deform and roi_align with (torchvision is not installed)"
    assert result.stderr.strip() == expected


def test_a_torchvision_that_does_not_fit(monkeypatch) -> None:
    def fail(name: str) -> ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(data, "import_module", fail)
    expected = "torchvision cannot be imported (operator torchvision::nms does not exist)"
    assert data.torchvision_lacks() == expected
    assert data.function("PyTorch", "roi_align") is None
    (row,) = run_case(SMALL["roi_align"], "fwd", "float32", threads=[1])
    assert (row["status"], row["reason"]) == ("skipped", "PyTorch has no roi_align")
