"""The modules are drop-ins: same constructors, same state, same values and gradients as their namesakes."""

import copy
import inspect

import pytest
import torch
from torch import nn

import fastconv
import fastconv.nn.conv

TWINS = [name for name in fastconv.nn.__all__ if hasattr(nn, name)]

CONV2D = [
    dict(kernel_size=3),
    dict(kernel_size=3, stride=2, padding=1, bias=False),
    dict(kernel_size=(1, 5), padding=(0, 2), stride=(1, 2)),
    dict(kernel_size=3, padding="same", dilation=2),
    dict(kernel_size=(2, 4), padding="same"),
    dict(kernel_size=3, padding="valid", groups=4),
    dict(kernel_size=3, padding=1, groups=8),
    dict(kernel_size=3, padding=2, dilation=2, groups=2),
]
CONV1D = [
    dict(kernel_size=3),
    dict(kernel_size=5, stride=2, padding=2, bias=False),
    dict(kernel_size=2, dilation=4, padding=4),
    dict(kernel_size=4, padding="same"),
    dict(kernel_size=3, padding="valid", groups=8),
]
CONV_TRANSPOSE = [
    dict(kernel_size=3),
    dict(kernel_size=4, stride=2, padding=1, bias=False),
    dict(kernel_size=3, stride=2, padding=1, output_padding=1),
    dict(kernel_size=2, stride=2, groups=4),
    dict(kernel_size=3, padding=2, dilation=3, output_padding=2, groups=8),
    dict(kernel_size=1, stride=3, output_padding=2),
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_pair(name, *args, **kwargs):
    """The module of torch.nn and its twin, with the same parameters (each its own copy)."""
    theirs = getattr(nn, name)(*args, **kwargs)
    ours = getattr(fastconv.nn, name)(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def ids(kwargs):
    return ",".join(f"{key}={value}" for key, value in kwargs.items())


@pytest.mark.parametrize("name", TWINS)
def test_constructor_is_the_namesakes(name):
    theirs, ours = getattr(nn, name), getattr(fastconv.nn, name)
    assert issubclass(ours, theirs)
    assert inspect.signature(ours) == inspect.signature(theirs)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # PyTorch about itself
@pytest.mark.parametrize("kwargs", CONV2D, ids=ids)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_conv2d_values_and_gradients(kwargs, memory_format):
    theirs, ours = make_pair("Conv2d", 8, 16, **kwargs)
    x = torch.randn(2, 8, 9, 12).to(memory_format=memory_format)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    expected, actual = theirs(inputs[0]), ours(inputs[1])
    close(actual, expected)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    actual.backward(gradient)
    close(inputs[1].grad, inputs[0].grad)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kwargs", CONV1D, ids=ids)
def test_conv1d_values(kwargs):
    theirs, ours = make_pair("Conv1d", 8, 16, **kwargs)
    x = torch.randn(2, 8, 21)
    close(ours(x), theirs(x))


@pytest.mark.parametrize("kwargs", CONV_TRANSPOSE, ids=ids)
@pytest.mark.parametrize("name", ["ConvTranspose1d", "ConvTranspose2d"])
def test_conv_transpose_values_and_gradients(name, kwargs):
    theirs, ours = make_pair(name, 8, 16, **kwargs)
    x = torch.randn(2, 8, 9, 6) if name[-2] == "2" else torch.randn(2, 8, 9)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    expected, actual = theirs(inputs[0]), ours(inputs[1])
    close(actual, expected)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    actual.backward(gradient)
    close(inputs[1].grad, inputs[0].grad)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    close(ours(x[0]), theirs(x[0]))
    assert ours(x[:0]).shape == theirs(x[:0]).shape


@pytest.mark.parametrize("unbatched", [False, True])
def test_output_size(unbatched):
    theirs, ours = make_pair("ConvTranspose2d", 4, 6, 3, stride=(2, 3), padding=1)
    x = torch.randn(4, 5, 6) if unbatched else torch.randn(2, 4, 5, 6)
    for size in [(9, 16), (10, 17), (9, 18)]:
        for asked in (size, [*x.shape[:-2], *size], torch.Size(size)):
            actual = ours(x, output_size=asked)
            assert actual.shape[-2:] == size
            close(actual, theirs(x, asked))
    for wrong in ((8, 16), (11, 16), (9, 19), (9,)):
        with pytest.raises(ValueError, match=r"output.size") as expected:
            theirs(x, wrong)
        with pytest.raises(ValueError, match=r"output.size") as actual:
            ours(x, wrong)
        assert str(actual.value) == str(expected.value)
    theirs, ours = make_pair("ConvTranspose1d", 4, 6, 4, stride=2, dilation=3)
    x = torch.randn(2, 4, 7)
    close(ours(x, [23]), theirs(x, [23]))


def test_transposed_padding_modes_are_refused():
    for name in ("ConvTranspose1d", "ConvTranspose2d"):
        with pytest.raises(ValueError, match='Only "zeros"'):
            getattr(fastconv.nn, name)(2, 2, 3, padding_mode="reflect")
        module = getattr(fastconv.nn, name)(2, 2, 3)
        module.padding_mode = "reflect"
        with pytest.raises(ValueError, match=rf"{name}: padding_mode must be 'zeros' \(got 'reflect'\)"):
            module(torch.zeros(2, 5, 5)[: int(name[-2]) + 1])


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [2, "same"])
def test_padding_modes(padding_mode, padding):
    theirs, ours = make_pair("Conv2d", 4, 6, (3, 4), padding=padding, padding_mode=padding_mode)
    x = torch.randn(2, 4, 8, 9)
    close(ours(x), theirs(x))
    theirs, ours = make_pair("Conv1d", 4, 6, 4, padding=padding, padding_mode=padding_mode)
    x = torch.randn(2, 4, 9)
    close(ours(x), theirs(x))


def test_padding_modes_differ():
    # So that the test above cannot pass with a padding mode that is ignored.
    x = torch.randn(1, 2, 6, 6)
    zeros = fastconv.nn.Conv2d(2, 2, 3, padding=1)
    for padding_mode in ("reflect", "replicate", "circular"):
        other = fastconv.nn.Conv2d(2, 2, 3, padding=1, padding_mode=padding_mode)
        other.load_state_dict(zeros.state_dict())
        assert not torch.allclose(other(x), zeros(x))


def test_unbatched_and_empty():
    theirs, ours = make_pair("Conv2d", 3, 5, 3, padding=1)
    x = torch.randn(3, 7, 7)
    close(ours(x), theirs(x))
    assert ours(torch.empty(0, 3, 7, 7)).shape == (0, 5, 7, 7)
    theirs, ours = make_pair("Conv1d", 3, 5, 3)
    x = torch.randn(3, 7)
    close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("name", "padding_mode"),
    [
        ("conv1d", "zeros"),
        ("conv1d", "reflect"),
        ("conv2d", "zeros"),
        ("conv2d", "reflect"),
        ("conv_transpose1d", "zeros"),
        ("conv_transpose2d", "zeros"),
    ],
)
def test_the_operator_is_fastconvs(monkeypatch, name, padding_mode):
    calls = []
    original = getattr(fastconv.nn.conv, name)
    monkeypatch.setattr(fastconv.nn.conv, name, lambda *args: calls.append(args) or original(*args))
    kind = "".join(word.capitalize() for word in name.split("_"))
    module = getattr(fastconv.nn, kind)(2, 2, 3, padding=1, padding_mode=padding_mode)
    module(torch.randn(1, 2, *[6] * int(name[-2])))
    assert len(calls) == 1


def test_initialisation_is_the_namesakes():
    torch.manual_seed(1)
    theirs = nn.Conv2d(4, 8, 3)
    torch.manual_seed(1)
    ours = fastconv.nn.Conv2d(4, 8, 3)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "ConvTranspose1d", "ConvTranspose2d"])
def test_state_dict_loads_either_way(name):
    theirs, ours = getattr(nn, name)(4, 8, 3), getattr(fastconv.nn, name)(4, 8, 3)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.weight, theirs.weight)
    with torch.no_grad():
        ours.weight.add_(1)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours.weight, theirs.weight)


def test_repr():
    arguments = dict(stride=2, padding=1, groups=2, bias=False, padding_mode="circular")
    theirs, ours = make_pair("Conv2d", 4, 8, 3, **arguments)
    assert repr(ours) == repr(theirs)
    theirs, ours = make_pair("ConvTranspose2d", 4, 8, 3, stride=2, output_padding=1)
    assert repr(ours) == repr(theirs)
    assert repr(fastconv.nn.ChannelShuffle(3)) == repr(nn.ChannelShuffle(3))
    assert repr(fastconv.nn.ChannelUnshuffle(3)) == "ChannelUnshuffle(groups=3)"
    assert repr(fastconv.nn.GlobalMaxPool2d()) == "GlobalMaxPool2d()"


def test_training_follows_the_namesake():
    def network(layers):
        return nn.Sequential(layers.Conv2d(3, 8, 3, padding=1), nn.ReLU(), layers.ChannelShuffle(4),
                             layers.MaxPool2d(3, 1, 1), layers.Conv2d(8, 8, 3, groups=8), nn.ReLU(),
                             layers.AvgPool2d(3, 1, 1), layers.Conv2d(8, 2, 1))  # fmt: skip

    theirs, ours = network(nn), network(fastconv.nn)
    ours.load_state_dict(theirs.state_dict())
    before = copy.deepcopy(ours.state_dict())
    x, target = torch.randn(4, 3, 10, 10), torch.randn(4, 2, 8, 8)
    for model in (theirs, ours):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(5):
            optimiser.zero_grad()
            nn.functional.mse_loss(model(x), target).backward()
            optimiser.step()
    for name, parameter in ours.state_dict().items():
        close(parameter, theirs.state_dict()[name])
        assert not torch.equal(parameter, before[name])


def test_channel_shuffle():
    x = torch.randn(2, 12, 5, 4)
    for groups in (1, 2, 3, 12):
        shuffled = fastconv.nn.ChannelShuffle(groups)(x)
        assert torch.equal(shuffled, nn.ChannelShuffle(groups)(x))
        assert torch.equal(fastconv.nn.ChannelUnshuffle(groups)(shuffled), x)
    with pytest.raises(RuntimeError, match="groups must"):
        fastconv.nn.ChannelShuffle(5)(x)
