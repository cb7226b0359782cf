"""`fastconv.convert` exchanges layers and nothing else: parameters, hooks, sharing and structure stay."""

import copy
import warnings

import pytest
import torch
from torch import nn

import fastconv


class Own(nn.Conv2d):
    """A subclass that computes something else, so that it must not be replaced."""

    def forward(self, input):
        return super().forward(input) + 1


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect")
        self.body = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.ChannelShuffle(2), nn.Conv2d(8, 8, 3, groups=8))
        self.again = self.body[3]
        self.pools = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), nn.AvgPool2d(2, 1, ceil_mode=True), nn.AdaptiveMaxPool2d((None, 6))
        )
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Sigmoid())
        self.heads = nn.ModuleDict({"a": nn.Conv2d(8, 2, 1), "own": Own(8, 2, 1)})
        self.up = nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1)
        self.signal = nn.Sequential(
            nn.ConvTranspose1d(2, 2, 2, stride=2), nn.MaxPool1d(3, 2), nn.Conv1d(2, 3, 3), nn.AvgPool1d(2)
        )
        self.by_reference = [self.first]  # not registered

    def forward(self, x):
        x = self.pools(self.again(self.body(self.by_reference[0](x))))
        x = x * self.squeeze(x)
        return self.signal(self.up(self.heads["a"](x) + self.heads["own"](x)).flatten(2))


def kinds(model):
    return [type(module) for module in model.modules()]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture
def x():
    return torch.randn(2, 4, 9, 9)


@pytest.mark.parametrize("inplace", [False, True])
def test_layers_are_exchanged_and_values_stay(model, x, inplace):
    expected = model(x)
    converted = fastconv.convert(model, inplace=inplace)
    assert (converted is model) == inplace
    assert type(converted.first) is fastconv.nn.Conv2d
    assert type(converted.body[2]) is fastconv.nn.ChannelShuffle
    assert type(converted.body[3]) is fastconv.nn.Conv2d
    assert type(converted.heads["a"]) is fastconv.nn.Conv2d
    assert type(converted.up) is fastconv.nn.ConvTranspose2d
    assert kinds(converted.pools)[1:] == [fastconv.nn.MaxPool2d, fastconv.nn.AvgPool2d, fastconv.nn.AdaptiveMaxPool2d]
    assert type(converted.squeeze[0]) is fastconv.nn.AdaptiveAvgPool2d
    layers = fastconv.nn.ConvTranspose1d, fastconv.nn.MaxPool1d, fastconv.nn.Conv1d, fastconv.nn.AvgPool1d
    assert kinds(converted.signal)[1:] == list(layers)
    assert type(converted.body[0]) is nn.BatchNorm2d
    assert type(converted.heads["own"]) is Own
    torch.testing.assert_close(converted(x), expected, rtol=1e-4, atol=1e-5)


def test_a_copy_leaves_the_model_as_it_was(model):
    before, attributes = kinds(model), {name: dict(m.__dict__) for name, m in model.named_modules()}
    converted = fastconv.convert(model)
    assert kinds(model) == before
    for name, module in model.named_modules():
        assert {key: id(value) for key, value in vars(module).items()} == {
            key: id(value) for key, value in attributes[name].items()
        }
    assert not set(map(id, converted.modules())) & set(map(id, model.modules()))
    converted.first.stride = (2, 2)
    converted.body.append(nn.ReLU())
    assert model.first.stride == (1, 1)
    assert len(model.body) == 4


def test_parameters_and_buffers_are_shared(model):
    converted = fastconv.convert(model)
    for ours, theirs in zip(converted.parameters(), model.parameters(), strict=True):
        assert ours is theirs
    for ours, theirs in zip(converted.buffers(), model.buffers(), strict=True):
        assert ours is theirs
    assert list(converted.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("inplace", [False, True])
def test_shared_modules_stay_shared(model, inplace):
    converted = fastconv.convert(model, inplace=inplace)
    assert converted.again is converted.body[3]
    assert converted.by_reference[0] is converted.first
    assert len(list(converted.modules())) == len(list(model.modules()))


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    model[1].weight = model[0].weight
    converted = fastconv.convert(model)
    assert converted[0].weight is converted[1].weight is model[0].weight


@pytest.mark.parametrize("inplace", [False, True])
def test_the_root_may_be_a_layer(inplace):
    layer = nn.Conv2d(2, 3, 3)
    converted = fastconv.convert(layer, inplace=inplace)
    assert type(converted) is fastconv.nn.Conv2d
    assert type(layer) is (fastconv.nn.Conv2d if inplace else nn.Conv2d)
    assert converted.weight is layer.weight


@pytest.mark.parametrize("inplace", [False, True])
def test_there_and_back(model, x, inplace):
    before = kinds(model)
    expected = model(x)
    back = fastconv.convert(fastconv.convert(model, inplace=inplace), inplace=inplace, reverse=True)
    assert kinds(back) == before
    assert torch.equal(back(x), expected)
    for own in (fastconv.nn.ChannelUnshuffle(2), fastconv.nn.GlobalAvgPool2d(), fastconv.nn.GlobalMaxPool2d()):
        assert type(fastconv.convert(own, reverse=True)) is type(own)


def test_converting_twice_changes_nothing_more(model):
    once = fastconv.convert(model)
    assert kinds(fastconv.convert(once)) == kinds(once)


def test_training_flags_are_kept(model):
    model.train()
    model.body.eval()
    converted = fastconv.convert(model)
    assert [m.training for m in converted.modules()] == [m.training for m in model.modules()]
    assert {True, False} == {m.training for m in converted.modules()}


@pytest.mark.parametrize("inplace", [False, True])
def test_hooks_are_kept(model, x, inplace):
    seen = []
    model.first.register_forward_pre_hook(lambda module, inputs: seen.append(("pre", type(module))))
    handle = model.body[3].register_forward_hook(lambda module, inputs, output: seen.append(("post", type(module))))
    model.register_full_backward_hook(lambda module, *gradients: seen.append(("backward", type(module))))
    converted = fastconv.convert(model, inplace=inplace)
    converted(x.requires_grad_()).sum().backward()
    twin = fastconv.nn.Conv2d
    assert seen == [("pre", twin), ("post", twin), ("post", twin), ("backward", Network)]
    if inplace:  # the handle belongs to the model it was made for
        handle.remove()
        seen.clear()
        converted(x)
        assert seen == [("pre", twin)]


def test_a_hook_added_to_the_copy_is_not_the_models(model, x):
    converted = fastconv.convert(model)
    seen = []
    converted.first.register_forward_hook(lambda *args: seen.append(1))
    model(x)
    assert seen == []
    converted(x)
    assert seen == [1]


def test_what_only_resembles_a_layer_is_left_alone():
    lazy = nn.LazyConv2d(4, 3)
    assert type(fastconv.convert(nn.Sequential(lazy))[0]) is nn.LazyConv2d
    parametrised = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    converted = fastconv.convert(nn.Sequential(parametrised))
    assert type(converted[0]) is type(parametrised)
    assert converted[0].parametrizations.weight.original0 is parametrised.parametrizations.weight.original0
    three = nn.Sequential(nn.Conv3d(2, 2, 3), nn.ConvTranspose3d(2, 2, 3))
    assert kinds(fastconv.convert(three)) == kinds(three)


def test_a_weight_computed_by_a_hook():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)))
    x = torch.randn(1, 3, 5, 5)
    expected = model(x)  # leaves a weight with a history behind, which deepcopy alone refuses
    converted = fastconv.convert(model)
    assert type(converted[0]) is fastconv.nn.Conv2d
    assert converted[0].weight_g is model[0].weight_g
    with torch.no_grad():
        model[0].weight_g.mul_(2)
    torch.testing.assert_close(
        converted(x) - converted[0].bias.view(-1, 1, 1), 2 * (expected - model[0].bias.view(-1, 1, 1)),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_script_modules_are_left_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(nn.Conv2d(2, 2, 1))
    model = nn.Sequential(scripted, nn.Conv2d(2, 2, 1))
    converted = fastconv.convert(model)
    assert converted[0] is scripted
    assert type(converted[1]) is fastconv.nn.Conv2d


def test_training_the_copy_trains_the_model(model, x):
    alone, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    converted = fastconv.convert(model)
    for each in (alone, converted):
        optimiser = torch.optim.SGD(each.parameters(), lr=0.1)
        each.train()
        each(x).square().mean().backward()
        optimiser.step()
    expected = alone.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for name in ("first.weight", "body.0.running_mean", "heads.a.bias", "up.weight", "signal.0.bias"):
        assert not torch.equal(model.state_dict()[name], before[name])


def test_what_is_not_a_module_is_refused():
    with pytest.raises(TypeError, match=r"convert: model must be a torch.nn.Module \(got type\)"):
        fastconv.convert(nn.Conv2d)
