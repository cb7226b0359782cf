"""The demo's networks are the published ones, fastconv agrees with PyTorch on them, the command works.

Parameter counts: ResNeXt-50 32x4d and MobileNetV2 as torchvision's models have them, ShuffleNet 1x (g=3) as
pytorchcv's.
"""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import fastconv.nn.conv
from fastconv import cli
from fastconv.demo.networks import NETWORKS, Network, calibrate, initialise
from fastconv.demo.run import LAYOUTS, load_photo, relative_difference, run_network

PARAMETERS = {"ResNeXt-50 32x4d": 25_028_904, "ShuffleNet 1x g=3": 1_865_728, "MobileNetV2": 3_504_872}
#: of weight-carrying convolutions and linear layers
LAYERS = {"ResNeXt-50 32x4d": 54, "ShuffleNet 1x g=3": 50, "MobileNetV2": 53}


@pytest.fixture(scope="module")
def photo():
    return load_photo(64)


@pytest.fixture(params=NETWORKS, ids=lambda network: network.name)
def network(request):
    return request.param


def test_networks_are_the_published_ones(network):
    model = network.build()
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[network.name]
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == LAYERS[network.name]
    model.eval()
    with torch.inference_mode():
        x = torch.zeros(1, 3, 224, 224)
        for stage in list(model)[:-1]:
            x = stage(x)
        assert x.shape[2:] == (7, 7)
        assert model[-1](x).shape == (1, 1000)


def test_photo():
    photo = load_photo(32)
    assert photo.pixels.shape == (3, 32, 32)
    assert photo.input.shape == (1, 3, 32, 32)
    assert photo.crops.shape == (8, 3, 32, 32)
    assert 0 <= photo.pixels.min() < 0.1
    assert 0.9 < photo.pixels.max() <= 1
    assert not torch.equal(photo.crops[0], photo.crops[1])
    assert torch.equal(photo.crops[0].flip(2), photo.crops[4])


def test_activations_neither_vanish_nor_explode(network, photo):
    model = network.build()
    initialise(model, 0)
    calibrate(model, photo.crops)
    assert not model.training
    x = photo.input
    with torch.inference_mode():
        for stage in model:
            x = stage(x)
            assert 0.1 < x.std() < 10


def test_weights_follow_the_seed(network):
    models = [network.build() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        initialise(model, seed)
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_fastconv_agrees_with_pytorch(network, photo):
    result = run_network(network, photo, repeats=1, seconds=0)
    assert result.agrees, result.difference
    assert result.layers >= LAYERS[network.name] - 1  # all but the linear one
    assert set(result.samples) == {(library, layout) for library in ("PyTorch", "fastconv") for layout in LAYOUTS}


def tiny():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))


@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_a_wrong_result_is_seen_and_not_timed(monkeypatch, photo, wrong):
    original = fastconv.nn.conv.conv2d
    monkeypatch.setattr(fastconv.nn.conv, "conv2d", lambda *args: original(*args) * wrong)
    network = Network("tiny", tiny, shown=1)
    result = run_network(network, photo, repeats=1, seconds=0)
    assert not result.agrees
    assert not result.samples
    monkeypatch.setattr("fastconv.demo.networks.NETWORKS", (network,))
    answer = fastconv_demo()
    assert answer.exit_code == 1
    assert "Error: demo: the output of tiny differs from PyTorch's (NCHW " in answer.stderr


def fastconv_demo():
    from click.testing import CliRunner

    return CliRunner().invoke(cli.main, ["demo", "--quick"], catch_exceptions=False)


def test_relative_difference():
    expected = torch.tensor([1.0, -4.0])
    assert relative_difference(torch.tensor([1.0, -3.0]), expected) == 0.25
    assert relative_difference(torch.tensor([float("nan"), -4.0]), expected) != 0


def test_the_command(tmp_path):
    picture, numbers = tmp_path / "demo.png", tmp_path / "demo.json"
    arguments = ["demo", "--quick", "--threads", "1", "--output", picture, "--json", numbers]
    run = subprocess.run([sys.executable, "-m", "fastconv.cli", *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for written in (picture, tmp_path / "demo-pooling.png"):
        assert written.read_bytes().startswith(b"\x89PNG")
        assert f"Wrote {written}\n" in run.stdout
    assert f"Wrote {numbers}\n" in run.stdout
    found = json.loads(numbers.read_text())
    assert found["machine"]["threads"] == 1
    assert [network["name"] for network in found["networks"]] == list(PARAMETERS)
    for network in found["networks"]:
        assert network["name"] in run.stdout
        assert network["name"] in run.stderr  # progress
        assert network["parameters"] == PARAMETERS[network["name"]]
        times = network["seconds"]
        best = min(times["PyTorch"][layout]["median"] for layout in LAYOUTS)
        for layout in LAYOUTS:
            assert len(times["fastconv"][layout]["samples"]) >= 5
            ratio = best / times["fastconv"][layout]["median"]
            assert network["ratio_to_faster_pytorch_layout"][layout] == pytest.approx(ratio)
