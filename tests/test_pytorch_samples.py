"""PyTorch's own sample inputs for these operators: what its test suite runs through F.conv1d, F.conv_transpose2d
and so on must come out the same here, with gradients, and what it knows to be an error must be the same error.
"""

import warnings

import pytest
import torch
import torch.nn.functional as F

import fastconv

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

NAMES = ["conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "channel_shuffle"]
OPERATORS = {op.name.removeprefix("nn.functional."): op for op in op_db}
TOLERANCES = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 2e-4},
    torch.bfloat16: {"rtol": 2**-6, "atol": 0.25},
    torch.float16: {"rtol": 2**-8, "atol": 0.03},
}


def test_pytorch_has_samples() -> None:
    assert set(NAMES) <= set(OPERATORS)


def tensors_of(sample) -> list[torch.Tensor]:
    return [t for t in (sample.input, *sample.args) if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_samples(name: str, dtype: torch.dtype) -> None:
    count = 0
    for sample in OPERATORS[name].sample_inputs("cpu", dtype, requires_grad=True):
        results, grad_output = [], None
        for module in (fastconv, F):
            output = getattr(module, name)(sample.input, *sample.args, **sample.kwargs)
            if grad_output is None:
                grad_output = output.detach().sin()
            wanted = [t for t in tensors_of(sample) if t.requires_grad]
            grads = torch.autograd.grad(output, wanted, grad_output) if output.numel() else ()
            results.append((output, *grads))
        assert results[0][0].stride() == results[1][0].stride() or 1 in results[0][0].shape
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs, **TOLERANCES[dtype], msg=lambda m, s=sample: f"{s}\n{m}")
        count += 1
    assert count >= 3


@pytest.mark.parametrize("name", ["conv1d", "conv2d"])  # PyTorch has none for the others
def test_errors_have_the_same_type(name: str) -> None:
    count = 0
    for error in OPERATORS[name].error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises(error.error_type) as raised:
            getattr(fastconv, name)(sample.input, *sample.args, **sample.kwargs)
        assert str(raised.value).startswith(f"{name}: "), raised.value
        count += 1
    assert count >= 5
