"""The examples in the docstrings run, and print what they say."""

import doctest

import pytest
import torch

import fastconv.conv
import fastconv.conv_transpose
import fastconv.pool
import fastconv.rearrange


@pytest.mark.parametrize(
    "module", [fastconv.conv, fastconv.conv_transpose, fastconv.pool, fastconv.rearrange], ids=lambda m: m.__name__
)
def test_examples_of_docstrings(module) -> None:
    examples = {name: getattr(module, name) for name in module.__all__} | {"torch": torch}
    result = doctest.testmod(module, extraglobs=examples)
    assert result.attempted >= len(module.__all__)
    assert result.failed == 0
