"""The examples in the docstrings run, and print what they say."""

import doctest

import pytest
import torch

import fastconv.bilinear_pool
import fastconv.conv
import fastconv.conv_transpose
import fastconv.lp_pool
import fastconv.nn.pool
import fastconv.nn.roi
import fastconv.pool
import fastconv.rearrange
import fastconv.roi
import fastconv.spatial_pyramid_pool
import fastconv.stochastic_pool

MODULES = [
    fastconv.bilinear_pool,
    fastconv.conv,
    fastconv.conv_transpose,
    fastconv.lp_pool,
    fastconv.nn.pool,
    fastconv.nn.roi,
    fastconv.pool,
    fastconv.rearrange,
    fastconv.roi,
    fastconv.spatial_pyramid_pool,
    fastconv.stochastic_pool,
]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_examples_of_docstrings(module) -> None:
    examples = {name: getattr(module, name) for name in module.__all__} | {"torch": torch}
    result = doctest.testmod(module, extraglobs=examples)
    assert result.attempted >= len(module.__all__)
    assert result.failed == 0
