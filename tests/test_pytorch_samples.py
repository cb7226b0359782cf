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
    # Rounded once from float32 sums: half a unit in the last place and a little. The reference is PyTorch in float64,
    # since some of PyTorch's own float16 sums (conv_transpose2d) are off by several percent.
    torch.bfloat16: {"rtol": 2**-8, "atol": 1e-3},
    torch.float16: {"rtol": 2**-11 * 1.01, "atol": 1e-3},
}


def test_pytorch_has_samples() -> None:
    assert set(NAMES) <= set(OPERATORS)


def run(module, name: str, sample, grad_output=None) -> tuple[torch.Tensor, ...]:
    """The output of one sample and its gradients with regard to everything that wants one."""
    output = getattr(module, name)(sample.input, *sample.args, **sample.kwargs)
    if grad_output is None:
        grad_output = output.detach().sin()
    tensors = [t for t in (sample.input, *sample.args) if isinstance(t, torch.Tensor) and t.requires_grad]
    return output, *(torch.autograd.grad(output, tensors, grad_output.to(output)) if output.numel() else ())


def in_float64(value):
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().double().requires_grad_(value.requires_grad)


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_samples(name: str, dtype: torch.dtype) -> None:
    count = 0
    for sample in OPERATORS[name].sample_inputs("cpu", dtype, requires_grad=True):
        mine = run(fastconv, name, sample)
        theirs = getattr(F, name)(sample.input, *sample.args, **sample.kwargs)
        assert mine[0].stride() == theirs.stride() or 1 in theirs.shape
        exact = run(F, name, sample.transform(in_float64), mine[0].detach().sin())
        for result, expected in zip(mine, exact, strict=True):
            assert result.dtype == dtype
            torch.testing.assert_close(
                result.double(), expected, **TOLERANCES[dtype], msg=lambda m, s=sample: f"{s}\n{m}"
            )
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
