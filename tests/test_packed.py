"""Packed weights: the operator pair serves what it was made for and refuses all else, and a module in evaluation mode
never computes with weights that it no longer has."""

import copy
import gc
import io
import pickle
import threading
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case, problem
from kernels import DTYPES, SUPPORTED, dtypes_of, kernel_meets_isa
from layouts import LAYOUTS, assert_close_to_reference
from torch import nn
from torch.testing import assert_close

import fastconv
from fastconv import _packed
from fastconv._native import native

ops = torch.ops.fastconv
REST = ([1, 1], [1, 1, 1, 1], [1, 1], 1)


def randn(*size: int, last: bool = False) -> torch.Tensor:
    made = torch.randn(size)
    return made.to(memory_format=torch.channels_last) if last else made


# ---- the operator pair ---------------------------------------------------------------------------------------------


def lists(case: Case) -> tuple:
    """Stride, padding, dilation and groups as the operators take them."""
    made = [list(case.geometry[name]) for name in ("stride", "padding", "dilation")]
    if case.dims == 1:
        made = [made[0][1:], made[1][1::2], made[2][1:]]
    return (*made, case.groups)


@pytest.mark.parametrize(
    ("kernel", "isa"),
    [
        (k, isa)
        for k, isa in product(["auto", *native.conv_kernels()], SUPPORTED)
        if k == "auto" or kernel_meets_isa(k, isa)
    ],
)
def test_every_kernel(kernel: str, isa: str) -> None:
    """Packed once and run twice, on inputs of other values: the same as the reference, with all that a call has."""
    dtypes = DTYPES if kernel == "auto" else dtypes_of(kernel, isa)
    counts = dict.fromkeys(dtypes, 0)
    generator = torch.Generator().manual_seed(0)
    with fastconv.flags(kernel=kernel, isa=isa):
        for i, (case, (j, layout)) in enumerate(product(CASES, enumerate(LAYOUTS))):
            if case.input_size[2] * case.input_size[3] > 9000 or case.name == "weights_of_17_megabytes":
                continue
            if (i // 6 + j) % 2:  # half of the layouts of a case, in turns
                continue
            p, rest = problem(case), lists(case)
            dtype, place = dtypes[(i // 12 + j) % len(dtypes)], LAYOUTS[layout]
            torch.set_num_threads(1 + i // 2 % 2)
            x, weight, bias = place(p.input.to(dtype)), p.weight.to(dtype), p.bias.to(dtype)
            try:
                pack = ops._conv_pack(x, weight, *rest)
            except RuntimeError as error:
                if "kernel must be able to serve" not in str(error):
                    raise
                continue
            counts[dtype] += 1
            zero = ops._conv_packed(place(torch.zeros_like(x)), weight, None, pack, *rest)
            assert torch.equal(zero, torch.zeros_like(zero))
            residual = place(torch.randn(p.output.shape, generator=generator).to(dtype))
            got = ops._conv_packed(x, weight, bias, pack, *rest, residual, "relu")
            expected, scale = (p.output + residual).relu(), p.scale_output + residual.abs()
            patches = kernel.startswith("winograd") or (kernel == "auto" and case.patches)
            assert_close_to_reference(f"{case}, {dtype}, {layout}", got, expected, scale, patches=patches)
            assert got.stride() == ops.conv(x, weight, bias, *rest).stride()
    assert min(counts.values()) >= 2, counts


def refused(message: str, *arguments, **flags) -> None:
    with fastconv.flags(**flags), pytest.raises(RuntimeError) as raised:
        ops._conv_packed(*arguments)
    assert str(raised.value).startswith(f"conv2d: pack must be {message}"), raised.value


def test_a_pack_is_refused_with_anything_else() -> None:
    torch.set_num_threads(1)
    x, weight = randn(1, 32, 24, 24), randn(32, 32, 3, 3)
    pack = ops._conv_pack(x, weight, *REST)
    ops._conv_packed(x, weight, None, pack, *REST)
    other = "made for these sizes, layouts and arguments (got one for others)"
    for wrong in (
        randn(2, 32, 24, 24),
        randn(1, 32, 24, 23),
        randn(1, 32, 24, 24, last=True),
        randn(1, 32, 24, 48)[..., :24],
    ):
        refused(other, wrong, weight, None, pack, *REST)
    for rest in (
        ([2, 1], *REST[1:]),
        (REST[0], [1, 1, 1, 0], *REST[2:]),
        (REST[0], [1, 0, 0, 1], *REST[2:]),
        (REST[0], [2, 1, 1, 1], [2, 1], 1),
    ):
        refused(other, x, weight, None, pack, *rest)
    another = "made of this weight (got one of another)"
    refused(another, x, weight.clone(), None, pack, *REST)
    refused(another, x.bfloat16(), weight.bfloat16(), None, pack, *REST)
    refused(another, randn(1, 16, 24, 24), weight[:, 16:], None, pack, *REST)
    refused(other, x[:, :16], weight[:, :16], None, pack, *REST)  # which begins in the same place
    refused(other, x, weight.transpose(0, 1), None, pack, *REST)
    torch.set_num_threads(2)
    refused("made for 2 threads (got one for 1)", x, weight, None, pack, *REST)
    torch.set_num_threads(1)
    flags = "made under the flags in force (got one of others)"
    refused(flags, x, weight, None, pack, *REST, kernel="general")
    refused(flags, x, weight, None, pack, *REST, winograd=False)
    for isa in SUPPORTED[:-1]:
        refused(flags, x, weight, None, pack, *REST, isa=isa)


def test_a_pack_is_refused_when_its_weight_has_changed() -> None:
    x, weight = randn(1, 32, 24, 24), randn(32, 32, 3, 3)
    pack = ops._conv_pack(x, weight, *REST)
    changed = "made of this weight as it is (got one from before it was changed)"
    for change in (
        lambda: weight.mul_(2), lambda: weight.data.add_(1), lambda: weight[7].zero_(),
        lambda: weight.copy_(randn(32, 32, 3, 3)), lambda: weight.numpy().fill(1), lambda: weight.neg_(),
    ):  # fmt: skip
        change()
        refused(changed, x, weight, None, pack, *REST)
        pack = ops._conv_pack(x, weight, *REST)
        assert_close(ops._conv_packed(x, weight, None, pack, *REST), ops.conv(x, weight, None, *REST))


def test_what_is_no_pack_is_refused() -> None:
    x, weight = randn(1, 8, 6, 6), randn(8, 8, 3, 3)
    pack = ops._conv_pack(x, weight, *REST)
    cut = pack[:-64].clone()
    longer = torch.cat([pack, pack[:64]])
    for wrong in (
        torch.zeros(0, dtype=torch.uint8), torch.zeros_like(pack), torch.full_like(pack, 255), cut, longer,
        pack.float(), pack.view(-1, 64), pack[32:], pack.repeat_interleave(2)[::2], pack.view(torch.int64),
    ):  # fmt: skip
        refused("a tensor that _conv_pack made", x, weight, None, wrong, *REST)


def test_other_arguments_are_refused_in_the_same_words() -> None:
    x, weight = randn(1, 8, 6, 6), randn(8, 8, 3, 3)
    pack = ops._conv_pack(x, weight, *REST)
    for arguments, message in [
        ((x, weight, randn(7), pack, *REST), "conv2d: bias must have shape [8] (got [7])"),
        ((x, weight.double(), None, pack, *REST), "conv2d: weight must have the dtype of input, float32 (got float64)"),
        ((x, weight, None, pack, *REST, None, "gelu"), "conv2d: activation must be None, 'relu', 'relu6', 'silu' or"),
        ((x, weight, None, pack, *REST, x[:, :7]), "conv2d: residual must have shape [1, 8, 6, 6] (got [1, 7, 6, 6])"),
    ]:
        with pytest.raises(RuntimeError) as raised:
            ops._conv_packed(*arguments)
        assert str(raised.value).startswith(message)
    with pytest.raises(RuntimeError, match="groups must divide"):
        ops._conv_pack(x, weight, *REST[:3], 3)
    with fastconv.flags(kernel="depthwise"), pytest.raises(RuntimeError, match="kernel must be able to serve"):
        ops._conv_pack(x, weight, *REST)


def test_empty_batch() -> None:
    x, weight = randn(0, 8, 6, 6), randn(8, 8, 3, 3)
    pack = ops._conv_pack(x, weight, *REST)
    assert ops._conv_packed(x, weight, None, pack, *REST).shape == (0, 8, 6, 6)
    refused("a tensor that _conv_pack made", randn(1, 8, 6, 6), weight, None, pack, *REST)


# ---- modules -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_packs():
    _packed._packs.clear()


def is_packed(module: nn.Module) -> bool:
    return module in _packed._packs and _packed._packs[module].pack is not None


def layer(**kwargs) -> nn.Conv2d:
    return fastconv.nn.Conv2d(16, 24, 3, padding=1, **kwargs).eval()


def expected(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, module.weight, module.bias, module.stride, module.padding, module.dilation, module.groups)


def assert_right(module: nn.Module, x: torch.Tensor, packed: bool | None = None) -> None:
    with torch.no_grad():
        assert_close(module(x), expected(module, x), rtol=1e-3, atol=1e-3)
    if packed is not None:
        assert is_packed(module) == packed


def pack_of(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Calls it until its weight is packed, at the third call at the latest."""
    for _ in range(3):
        assert_right(module, x)
    assert is_packed(module)
    return _packed._packs[module].pack


@pytest.mark.parametrize("last", [False, True])
def test_packed_from_the_second_call_on(monkeypatch, last: bool) -> None:
    module, x = layer(), randn(2, 16, 12, 12, last=last)
    calls = []
    function = fastconv.nn.conv.conv2d
    monkeypatch.setattr(fastconv.nn.conv, "conv2d", lambda *arguments: calls.append(1) or function(*arguments))
    monkeypatch.setattr(fastconv.nn.conv.conv2d, "__name__", "conv2d")
    for packed in (False, True, True):
        assert_right(module, x, packed)
    pack = _packed._packs[module].pack
    assert len(calls) == 1
    assert_right(module, randn(2, 16, 12, 12, last=last), True)  # other values
    assert len(calls) == 1
    assert _packed._packs[module].pack is pack
    with torch.inference_mode():
        assert_close(module(x), expected(module, x))
    assert len(calls) == 1
    assert _packed._packs[module].pack is pack


CHANGES = {
    "in place": lambda m: m.weight.mul_(2),
    "in place, one channel": lambda m: m.weight[3].zero_(),
    "in place, one value": lambda m: m.weight[3, 2, 1, 0].add_(1),
    "nn.init": lambda m: nn.init.kaiming_normal_(m.weight),
    "another memory through .data": lambda m: setattr(m.weight, "data", torch.randn_like(m.weight)),
    "in place through .data": lambda m: m.weight.data.mul_(3),
    "one channel through .data": lambda m: m.weight.data[5].zero_(),
    "through numpy": lambda m: m.weight.detach().numpy().__imul__(-1),
    "another parameter": lambda m: setattr(m, "weight", nn.Parameter(torch.randn_like(m.weight))),
    "load_state_dict": lambda m: m.load_state_dict(layer().state_dict()),
    "load_state_dict, assigned": lambda m: m.load_state_dict(layer().state_dict(), assign=True),
    "set_": lambda m: m.weight.set_(torch.randn_like(m.weight)),
    "to another dtype and back": lambda m: m.bfloat16().float(),
    "to another layout": lambda m: m.to(memory_format=torch.channels_last),
    "swapped": lambda m: torch.utils.swap_tensors(m.weight, nn.Parameter(torch.randn_like(m.weight))),
    "stride": lambda m: setattr(m, "stride", (2, 2)),
    "padding": lambda m: setattr(m, "padding", (0, 0)),
    "dilation": lambda m: setattr(m, "dilation", (2, 1)),
    "bias": lambda m: m.bias.add_(1),
    "no bias": lambda m: setattr(m, "bias", None),
    "reset_parameters": lambda m: m.reset_parameters(),
    "share_memory": lambda m: m.share_memory(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_never_stale(change: str) -> None:
    module, x = layer(), randn(2, 16, 12, 12)
    with torch.no_grad():
        before = pack_of(module, x), module(x)
        CHANGES[change](module)
        assert_close(module(x), expected(module, x), rtol=1e-3, atol=1e-3)
        assert_close(module(x), expected(module, x), rtol=1e-3, atol=1e-3)
        assert_close(module(x), expected(module, x), rtol=1e-3, atol=1e-3)
        now = module(x)
    changed_values = change not in ("to another layout", "share_memory")
    assert changed_values != (now.shape == before[1].shape and torch.allclose(now, before[1], rtol=1e-3, atol=1e-3))
    assert (pack_of(module, x) is before[0]) == ("bias" in change)


def test_never_stale_after_an_optimizer_step() -> None:
    for make in (torch.optim.SGD, torch.optim.AdamW):
        module, x = layer(), randn(2, 16, 12, 12)
        optimizer = make(module.parameters(), lr=0.1)
        for _ in range(3):
            pack_of(module, x)
            before = module.weight.detach().clone()
            module(x).square().mean().backward()  # in evaluation mode, and with a gradient
            optimizer.step()
            assert not torch.equal(before, module.weight)
            assert_right(module, x)
            pack_of(module.eval(), x)
            module.train()(x).square().mean().backward()
            assert not is_packed(module)
            optimizer.step()
            module.eval()


def test_never_stale_when_memory_is_used_again() -> None:
    """Weights that come to lie where others lay, with the same version, again and again."""
    module, x = layer(), randn(2, 16, 12, 12)
    addresses, version = set(), module.weight._version
    for _ in range(20):
        pack_of(module, x)
        module.weight.data = torch.zeros(0)
        module.weight.data = torch.randn(24, 16, 3, 3)
        addresses.add(module.weight.data_ptr())
        assert_right(module, x, False)
    assert len(addresses) < 20  # else this test has shown nothing
    assert module.weight._version == version


def test_another_parameter_of_the_same_memory() -> None:
    """Whose own count of changes starts anew."""
    module, x = layer(), randn(2, 16, 12, 12)
    pack_of(module, x)
    module.weight = nn.Parameter(module.weight.data)
    with torch.no_grad():
        module.weight[:, 0].mul_(-1)
    assert_right(module, x, False)


def test_functional_call_has_other_weights() -> None:
    module, x = layer(), randn(2, 16, 12, 12)
    pack_of(module, x)
    other = {name: torch.randn_like(p) for name, p in module.named_parameters()}
    with torch.no_grad():
        for _ in range(3):
            got = torch.func.functional_call(module, other, (x,))
            assert_close(got, F.conv2d(x, other["weight"], other["bias"], padding=1), rtol=1e-3, atol=1e-3)
    assert_right(module, x)


def test_a_new_signature_is_packed_when_it_comes_twice() -> None:
    module = layer()
    small, large = randn(1, 16, 8, 8), randn(1, 16, 12, 12)
    pack_of(module, small)
    for x in (large, small, large, small):  # in turn: no pack serves both
        assert_right(module, x, False)
    pack_of(module, large)
    for x in (randn(1, 16, 12, 12, last=True), randn(1, 16, 12, 24)[..., ::2], randn(2, 16, 12, 12), randn(16, 12, 12)):
        pack_of(module, x)
    module.double()
    x = randn(1, 16, 12, 12).double()
    pack_of(module, x)


def test_threads_and_flags() -> None:
    module, x = layer(), randn(2, 16, 24, 24)
    torch.set_num_threads(1)
    pack_of(module, x)
    torch.set_num_threads(2)
    pack_of(module, x)
    for flags in (dict(isa="baseline"), dict(kernel="general"), dict(winograd=False)):
        with fastconv.flags(**flags):
            pack = pack_of(module, x)
        assert_right(module, x, False)
        assert pack_of(module, x) is not pack
    with fastconv.flags(kernel="general"):
        exact = fastconv.conv2d(x, module.weight, module.bias, padding=1)
        pack_of(module, x)
        assert torch.equal(module(x), exact)


@pytest.mark.parametrize("name", ["Conv1d", "Conv2d"])
def test_every_kind_of_layer(name: str) -> None:
    dims = int(name[4])
    for kwargs in (
        dict(groups=4, bias=False), dict(groups=16), dict(stride=2, padding=1), dict(padding="same", dilation=2),
        dict(padding="valid"), dict(padding=1, padding_mode="reflect"), dict(padding="same", padding_mode="circular"),
    ):  # fmt: skip
        ours = getattr(fastconv.nn, name)(16, 32, 3, **kwargs).eval()
        theirs = getattr(nn, name)(16, 32, 3, **kwargs)
        theirs.load_state_dict(ours.state_dict())
        for x in (randn(2, 16, *(9, 11)[:dims]), randn(16, *(9, 11)[:dims]), randn(0, 16, *(9, 11)[:dims])):
            if x.numel() == 0 and "padding_mode" in kwargs:
                continue
            with torch.no_grad():
                for _ in range(3):
                    assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-3)
            assert is_packed(ours)


def test_no_attribute_no_state_no_copy() -> None:
    module, x = layer(), randn(2, 16, 12, 12)
    before = set(vars(module)), list(module.state_dict())
    pack_of(module, x)
    assert (set(vars(module)), list(module.state_dict())) == before
    for made in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), fastconv.convert(module)):
        assert not is_packed(made)
        pack_of(made, x)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    back = fastconv.convert(module, reverse=True)
    assert type(back) is nn.Conv2d
    assert_close(back(x), expected(module, x))
    assert is_packed(module)


def test_a_pack_lives_as_long_as_its_module() -> None:
    module = layer()
    pack_of(module, randn(2, 16, 12, 12))
    assert len(_packed._packs) == 1
    del module
    gc.collect()
    assert len(_packed._packs) == 0


def test_the_weight_is_not_kept_alive() -> None:
    module = layer()
    pack_of(module, randn(2, 16, 12, 12))
    storage = _packed._packs[module].storage
    module.weight.data = torch.randn_like(module.weight)
    assert storage() is None


def test_conversion_of_parameters_by_swapping() -> None:
    """Which PyTorch refuses for tensors that something refers to weakly."""
    module, x = layer(), randn(2, 16, 12, 12)
    pack_of(module, x)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    pack_of(module, x.double())


# ---- where there must be no pack -----------------------------------------------------------------------------------


def test_not_where_a_gradient_is_wanted() -> None:
    module, x = layer(), randn(2, 16, 12, 12)
    for _ in range(3):
        module(x).sum().backward()
        assert not is_packed(module)
    pack_of(module, x)
    module.requires_grad_(False)
    for _ in range(2):
        assert not module(x).requires_grad
    assert is_packed(module)
    y = x.clone().requires_grad_()
    module(y).sum().backward()
    reference = x.clone().requires_grad_()
    expected(module, reference).sum().backward()
    assert_close(y.grad, reference.grad, rtol=1e-3, atol=1e-3)
    assert not is_packed(module)


def test_not_in_training() -> None:
    module, x = layer(), randn(2, 16, 12, 12)
    pack_of(module, x)
    module.train()
    for _ in range(3):
        assert_right(module, x, False)


def test_not_under_autocast() -> None:
    module, x = layer(), randn(2, 16, 12, 12)
    pack_of(module, x)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(3):
            assert module(x).dtype == torch.bfloat16
    assert not is_packed(module)


def test_not_in_graphs() -> None:
    module, x = layer(), randn(2, 16, 12, 12)
    pack_of(module, x)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    larger = randn(3, 16, 13, 12)
    with torch.no_grad():
        for _ in range(3):
            assert_close(compiled(x), expected(module, x), rtol=1e-3, atol=1e-3)
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("N", min=2)},))
        assert "fastconv.conv.default" in {str(node.target) for node in program.graph.nodes}
        traced = torch.jit.trace(module, x)
        graph = torch.fx.experimental.proxy_tensor.make_fx(module)(x)
        module.weight.mul_(2)
        assert_close(traced(larger), expected(module, larger), rtol=1e-3, atol=1e-3)
        assert "_conv_packed" not in graph.code
        assert_close(torch.vmap(module)(x[None]), expected(module, x)[None], rtol=1e-3, atol=1e-3)
    assert_right(module, x)


def test_not_for_tensors_that_are_more_than_memory() -> None:
    module, x = layer(), randn(2, 16, 12, 12)
    pack_of(module, x)

    class Named(torch.Tensor):
        pass

    with torch.no_grad():
        for _ in range(3):
            got = module(x.as_subclass(Named))
            assert_close(got.as_subclass(torch.Tensor), expected(module, x), rtol=1e-3, atol=1e-3)
        assert not is_packed(module)
    meta = layer().to("meta")
    for _ in range(3):
        assert meta(x.to("meta")).device.type == "meta"
    assert not is_packed(meta)


def test_not_for_weights_made_in_inference_mode() -> None:
    """PyTorch does not count their changes."""
    with torch.inference_mode():
        module, x = layer(), randn(2, 16, 12, 12)
        for _ in range(3):
            assert_close(module(x), expected(module, x), rtol=1e-3, atol=1e-3)
            module.weight[0, 0, 0, 0] += 1
    assert not is_packed(module)


def test_parametrised_weights() -> None:
    """Computed anew for every call."""
    module, x = nn.utils.parametrizations.weight_norm(layer()), randn(2, 16, 12, 12)
    for _ in range(3):
        assert_right(module, x)
        with torch.no_grad():
            module.parametrizations.weight.original0.mul_(2)


def test_errors_are_those_of_the_function() -> None:
    module, x = layer(), randn(2, 16, 12, 12)
    pack_of(module, x)
    module.bias = nn.Parameter(torch.ones(3))
    for _ in range(3):
        with torch.no_grad(), pytest.raises(RuntimeError, match=r"bias must have shape \[24\] \(got \[3\]\)"):
            module(x)
    module.bias, module.groups = None, 5
    for _ in range(3):
        with torch.no_grad(), pytest.raises(RuntimeError, match="groups must divide the number of output channels 24"):
            module(x)


def test_many_threads_call_one_module() -> None:
    module = layer()
    inputs = [randn(1, 16, 8 + i % 2, 9) for i in range(4)]
    with torch.no_grad():
        right = [expected(module, x) for x in inputs]
    wrong = []

    def work(i: int) -> None:
        with torch.no_grad():
            for _ in range(300):
                if not torch.allclose(module(inputs[i]), right[i], rtol=1e-3, atol=1e-3):
                    wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
