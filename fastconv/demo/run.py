"""Loads the photograph, builds the networks, compares the outputs and takes the times; prints nothing."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastconv._timing import alternate, summarise
from fastconv.convert import convert
from fastconv.demo.networks import Network, calibrate, initialise

__all__ = ["LAYOUTS", "TOLERANCE", "Photo", "Result", "load_photo", "relative_difference", "run_network"]

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}

#: Largest difference between the outputs that rounding explains: float32 keeps seven digits, Winograd
#: convolution spends three of them at worst, and fifty layers pass their errors on.
TOLERANCE = 1e-3

#: Seconds for the times of one network: on a slow or a busy machine the demo still ends within two minutes.
BUDGET = 25.0


@dataclass(frozen=True)
class Photo:
    """The photograph as the networks see it."""

    #: the square that goes through the networks, ``Tensor[3, S, S]``, 0 to 1
    pixels: Tensor
    #: the same, normalised, ``Tensor[1, 3, S, S]``
    input: Tensor
    #: shifted and mirrored squares of the same photograph, normalised, ``Tensor[8, 3, S, S]``
    crops: Tensor


def load_photo(size: int = 224) -> Photo:
    """The portrait of Grace Hopper that matplotlib ships (public domain)."""
    import matplotlib
    from PIL import Image

    with Image.open(Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")) as image:
        side, margin = image.width, size // 8
        square = image.convert("RGB").crop((0, 0, side, side)).resize((size + margin, size + margin))
    pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
    pixels = pixels.view(size + margin, size + margin, 3).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of ImageNet
    normal = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)

    def crop(image: Tensor, top: int, left: int) -> Tensor:
        return image[:, top : top + size, left : left + size]

    corners = [crop(normal, top, left) for top in (0, margin) for left in (0, margin)]
    centre = margin // 2
    return Photo(
        pixels=crop(pixels, centre, centre).contiguous(),
        input=crop(normal, centre, centre)[None].contiguous(),
        crops=torch.stack(corners + [corner.flip(2) for corner in corners]),
    )


@dataclass
class Result:
    """What the demo found for one network. Times are in seconds, by library and layout."""

    name: str
    parameters: int
    #: layers that fastconv computes
    layers: int
    #: of fastconv's output, by layout, against PyTorch's NCHW output
    difference: dict[str, float]
    #: of PyTorch's own channels_last output against its NCHW output: the scale to judge the others by
    pytorch_difference: float
    #: output of the stage that the picture shows, computed by fastconv, ``Tensor[C, H, W]``
    features: Tensor
    samples: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    @property
    def agrees(self) -> bool:
        # So worded that a NaN does not agree.
        return all(value <= TOLERANCE for value in self.difference.values())

    def median(self, library: str, layout: str) -> float:
        return summarise(self.samples[library, layout]).median

    def ratio(self, layout: str) -> float:
        """How many times faster fastconv is in this layout than PyTorch in the faster of its two."""
        return min(self.median("PyTorch", each) for each in LAYOUTS) / self.median("fastconv", layout)

    @property
    def spread(self) -> float:
        """The widest distance between the quartiles of any of the times, relative to its median."""
        timings = map(summarise, self.samples.values())
        return max((timing.high - timing.low) / timing.median for timing in timings)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "parameters": self.parameters,
            "layers_converted": self.layers,
            "largest_relative_difference": self.difference,
            "pytorch_between_its_layouts": self.pytorch_difference,
            "seconds": {
                library: {
                    layout: {**summarise(samples)._asdict(), "samples": samples}
                    for (name, layout), samples in self.samples.items()
                    if name == library
                }
                for library in ("PyTorch", "fastconv")
            },
            "ratio_to_faster_pytorch_layout": {layout: self.ratio(layout) for layout in LAYOUTS},
        }


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected magnitude; NaN where either has one."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def run_network(
    network: Network,
    photo: Photo,
    *,
    seed: int = 0,
    repeats: int = 20,
    seconds: float = 1.0,
    on_round: Callable[[int, int], None] | None = None,
) -> Result:
    """One network, both libraries, both layouts. Takes no times where the outputs do not agree."""
    model: nn.Sequential = network.build()
    initialise(model, seed)
    calibrate(model, photo.crops)
    pytorch = {
        layout: copy.deepcopy(model).to(memory_format=memory_format)  # type: ignore[call-overload]
        for layout, memory_format in LAYOUTS.items()
    }
    models = {("PyTorch", layout): pytorch[layout] for layout in LAYOUTS}
    models |= {("fastconv", layout): convert(pytorch[layout]) for layout in LAYOUTS}
    inputs = {layout: photo.input.contiguous(memory_format=LAYOUTS[layout]) for layout in LAYOUTS}

    with torch.inference_mode():
        outputs = {key: run(inputs[key[1]]) for key, run in models.items()}
        expected = outputs["PyTorch", "NCHW"]
        converted = models["fastconv", "NCHW"]
        features = inputs["NCHW"]
        for stage in list(converted)[: network.shown + 1]:
            features = stage(features)
    result = Result(
        name=network.name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=sum(type(module).__module__.startswith("fastconv.nn") for module in converted.modules()),
        difference={layout: relative_difference(outputs["fastconv", layout], expected) for layout in LAYOUTS},
        pytorch_difference=relative_difference(outputs["PyTorch", "channels_last"], expected),
        features=features[0].clone(),
    )
    if result.agrees:
        candidates = {" ".join(key): partial(run, inputs[key[1]]) for key, run in models.items()}
        with torch.inference_mode():
            samples = alternate(candidates, repeats=repeats, seconds=seconds, budget=BUDGET, on_round=on_round)
        result.samples = {key: samples[" ".join(key)] for key in models}
    return result
