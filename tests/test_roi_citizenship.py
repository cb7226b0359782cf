"""Regions of interest among PyTorch's other parts: opcheck, compile, export, torch.func, modes and modules."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastconv
import fastconv.nn.roi
import fastconv.roi

ops = torch.ops.fastconv
OPERATORS = ["roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"]
#: What the operators are given beside input and boxes.
NUMBERS: dict[str, tuple] = {
    "roi_align": (0.5, [2, 3], 2, True),
    "roi_pool": (0.5, [2, 3]),
    "ps_roi_align": (0.5, [2, 3], 0),
    "ps_roi_pool": (0.5, [2, 3]),
}
#: One call of each function.
CALLS: dict[str, Any] = {
    "roi_align": lambda x, boxes: fastconv.roi_align(x, boxes, (2, 3), 0.5),
    "roi_pool": lambda x, boxes: fastconv.roi_pool(x, boxes, (2, 3), 0.5),
    "ps_roi_align": lambda x, boxes: fastconv.ps_roi_align(x, boxes, (2, 3), 0.5, 2),
    "ps_roi_pool": lambda x, boxes: fastconv.ps_roi_pool(x, boxes, (2, 3), 0.5),
}
EVERY_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def randn(*size: int, last: bool = False, grad: bool = True, dtype: torch.dtype = torch.float32) -> Tensor:
    made = torch.randn(size, dtype=dtype)
    return (made.to(memory_format=torch.channels_last) if last else made).requires_grad_(grad)


def boxes_for(images: int, dtype: torch.dtype = torch.float32) -> Tensor:
    rows = [(0, 1, 2, 9, 10), (images - 1, -3, 4, 12.5, 30), (0, 5, 5, 5, 5), (images - 1, 40, 40, 50, 50)]
    return torch.tensor(rows, dtype=dtype)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("op", OPERATORS)
def test_opcheck(op: str, last: bool) -> None:
    for count in (4,) if last else (4, 0):
        x, boxes = randn(2, 12, 7, 8, last=last), boxes_for(2)[:count]
        torch.library.opcheck(getattr(ops, op).default, (x, boxes, *NUMBERS[op]))
        output = getattr(ops, op)(x.detach(), boxes, *NUMBERS[op]).requires_grad_()
        if op != "roi_pool":
            grad = getattr(ops, f"_{op}_grad").default
            torch.library.opcheck(grad, (output, boxes, list(x.shape), last, *NUMBERS[op]))
            continue
        torch.library.opcheck(ops._roi_pool_ids.default, (x, boxes, *NUMBERS[op]))
        ids = ops._roi_pool_ids(x.detach(), boxes, *NUMBERS[op])[1]
        torch.library.opcheck(ops._roi_pool_grad.default, (output, ids, boxes, list(x.shape), last))
        torch.library.opcheck(ops._roi_pool_pick.default, (x, ids, boxes))


@pytest.mark.parametrize(
    "input",
    [
        lambda: randn(2, 14, 12, 8)[:, 1:13, ::2],
        lambda: randn(2, 12, 7, 8, dtype=torch.bfloat16),
        lambda: randn(2, 12, 1, 1, last=True),
        lambda: randn(2, 1, 6, 5).expand(2, 12, 6, 5),
    ],
    ids=["slice", "bfloat16", "a pixel", "expanded"],
)
def test_opcheck_inputs(input: Any) -> None:
    x = input().detach()
    tests = ("test_schema", "test_faketensor")
    for op in OPERATORS:
        torch.library.opcheck(getattr(ops, op).default, (x, boxes_for(2), *NUMBERS[op]), test_utils=tests)


class Net(nn.Module):
    """One of everything, with a gradient through it."""

    def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
        parts = [call(x, boxes) for call in CALLS.values()]
        lists = [boxes[:2, 1:], boxes[2:, 1:]]
        parts.append(fastconv.roi_align(x, lists, 3, 0.5, 2, True))
        parts.append(fastconv.multi_scale_roi_align([x], lists, 2, [0.5], 2))
        return sum((each**2).sum() for each in parts)  # type: ignore[return-value]


def gradients(function: Any, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    output = function(leaf, *rest)
    return output.detach(), torch.autograd.grad(output, leaf)[0]


@pytest.mark.parametrize(("dynamic", "last"), [(False, True), (True, False)])
def test_compile(dynamic: bool, last: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(Net(), backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for height in (9, 14):
        x, boxes = randn(2, 12, height, 11, last=last, grad=False), boxes_for(2)
        torch.testing.assert_close(gradients(compiled, x, boxes), gradients(Net(), x, boxes))
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, boxes), Net()(x, boxes))


def test_compile_several_levels() -> None:
    """How many boxes a level has depends on them: with such sizes, and with breaks in the graph, the values are the
    same."""
    torch.compiler.reset()

    def call(fine: Tensor, coarse: Tensor, boxes: Tensor) -> Tensor:
        return fastconv.multi_scale_roi_align([fine, coarse], boxes, 2, [1 / 4, 1 / 8], 2)

    maps, boxes = (torch.randn(1, 3, 40, 40), torch.randn(1, 3, 20, 20)), torch.tensor([[0.0, 0, 0, 150, 150]] * 3)
    boxes[1, 3:] = 30
    expected = call(*maps, boxes)
    torch.testing.assert_close(torch.compile(call, backend="aot_eager")(*maps, boxes), expected)


def test_export() -> None:
    dim = torch.export.Dim
    sizes = ({0: dim("N", min=2, max=64), 2: dim("H", min=2), 3: dim("W", min=2)}, {0: dim("K", min=2)})
    for call in CALLS.values():

        class Call(nn.Module):
            def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
                return call(x, boxes)  # noqa: B023

        given = randn(2, 12, 9, 11, grad=False), boxes_for(2)
        program = torch.export.export(Call(), given, dynamic_shapes=sizes)
        assert any("fastconv" in str(node.target) for node in program.graph.nodes)
        for size, count in (((2, 12, 9, 11), 4), ((5, 12, 16, 6), 3)):
            x, boxes = randn(*size, grad=False), boxes_for(size[0])[:count]
            torch.testing.assert_close(program.module()(x, boxes), call(x, boxes))


@EVERY_CALL
def test_func(call: Any) -> None:
    x, boxes = randn(2, 12, 9, 8, dtype=torch.float64), boxes_for(2, torch.float64)

    def loss(x: Tensor) -> Tensor:
        return call(x, boxes).pow(3).sum()

    (first,) = torch.autograd.grad(loss(x), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    given = x.detach()
    torch.testing.assert_close(torch.func.grad(loss)(given), first.detach())
    twice = torch.func.grad(lambda x: torch.func.grad(loss)(x).square().sum())(given)
    torch.testing.assert_close(twice, second)
    output, vjp = torch.func.vjp(lambda x: call(x, boxes), given)
    torch.testing.assert_close(vjp(3 * output.square())[0], first.detach())


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@EVERY_CALL
def test_vmap(call: Any) -> None:
    x, boxes = randn(3, 2, 12, 9, 8, grad=False), boxes_for(2)
    expected = torch.stack([call(each, boxes) for each in x])
    torch.testing.assert_close(torch.vmap(lambda x: call(x, boxes))(x), expected)
    torch.testing.assert_close(torch.vmap(call)(x, boxes.expand(3, -1, -1)), expected)


@EVERY_CALL
def test_autocast_leaves_the_dtype(call: Any) -> None:
    """What comes in decides, whatever the dtype of the boxes."""
    for own in (torch.float32, torch.bfloat16, torch.float16):
        x = randn(2, 12, 9, 8, dtype=own)
        with torch.autocast("cpu", torch.bfloat16):
            output = call(x, boxes_for(2))
        assert output.dtype == own
        assert torch.equal(output, call(x, boxes_for(2)))
        (grad,) = torch.autograd.grad(output.float().sum(), x)
        assert grad.dtype == own


@EVERY_CALL
@pytest.mark.parametrize("last", [False, True])
def test_meta_tensors(call: Any, last: bool) -> None:
    """Shape, strides and dtype of the real result, and of its gradient."""
    x, boxes = randn(2, 12, 9, 8, last=last), boxes_for(2)
    there = x.detach().to("meta").requires_grad_()
    real, meta = call(x, boxes), call(there, boxes.to("meta"))
    assert meta.device.type == "meta"
    assert (meta.shape, meta.stride(), meta.dtype) == (real.shape, real.stride(), real.dtype)
    real.sum().backward()
    meta.sum().backward()
    assert (there.grad.shape, there.grad.stride()) == (x.grad.shape, x.grad.stride())


@EVERY_CALL
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes(call: Any, mode: Any) -> None:
    x, boxes = randn(2, 12, 9, 8), boxes_for(2)
    with mode():
        output = call(x, boxes)
        assert output.requires_grad == (mode is torch.enable_grad)
        assert output.is_inference() == (mode is torch.inference_mode)
    assert torch.equal(output, call(x, boxes))


@EVERY_CALL
def test_boxes_have_no_gradient(call: Any) -> None:
    x, boxes = randn(2, 12, 9, 8), boxes_for(2).requires_grad_()
    got = torch.autograd.grad(call(x, boxes).sum(), (x, boxes), allow_unused=True)
    assert got[1] is None
    (alone,) = torch.autograd.grad(call(x.detach(), boxes).sum(), boxes, allow_unused=True)
    assert alone is None


def test_the_input_may_change_before_backward() -> None:
    """What has won was decided in the forward pass; means do not look at the input again."""
    for call in CALLS.values():
        x = randn(2, 12, 8, 8)
        y = x * 1
        output = call(y, boxes_for(2))
        (wanted,) = torch.autograd.grad(call(x * 1, boxes_for(2)).sum(), x)
        y.data.neg_()
        (got,) = torch.autograd.grad(output.sum(), x)
        assert torch.equal(got, wanted)


def test_a_gradient_of_the_operator_without_ids() -> None:
    """``roi_pool`` itself, called below the public function."""
    x = randn(2, 12, 9, 8)
    (got,) = torch.autograd.grad((ops.roi_pool(x, boxes_for(2), 0.5, [2, 3]) ** 2).sum(), x)
    (wanted,) = torch.autograd.grad((fastconv.roi_pool(x, boxes_for(2), (2, 3), 0.5) ** 2).sum(), x)
    assert torch.equal(got, wanted)


# ---- modules -----------------------------------------------------------------------------------------------

MODULES: dict[str, tuple[tuple, str, str]] = {
    "RoIAlign": ((2, 0.5, 2, True), "output_size=2, spatial_scale=0.5, sampling_ratio=2, aligned=True", "roi_align"),
    "RoIPool": (((2, 3), 0.5), "output_size=(2, 3), spatial_scale=0.5", "roi_pool"),
    "PSRoIAlign": (((2, 3), 0.5, 0), "output_size=(2, 3), spatial_scale=0.5, sampling_ratio=0", "ps_roi_align"),
    "PSRoIPool": (((3, 2), 0.5), "output_size=(3, 2), spatial_scale=0.5", "ps_roi_pool"),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    given, words, function = MODULES[name]
    module = getattr(fastconv.nn, name)(*given)
    assert repr(module) == f"{name}({words})"
    assert module.state_dict() == {}
    x, boxes = torch.randn(2, 12, 9, 8), boxes_for(2)
    assert torch.equal(module(x, boxes), getattr(fastconv, function)(x, boxes, *given))


def test_module_of_several_maps() -> None:
    names = ["fine", "coarse"]
    module = fastconv.nn.MultiScaleRoIAlign(names, (2, 3), 2, canonical_scale=112)
    assert repr(module) == (
        "MultiScaleRoIAlign(featmap_names=['fine', 'coarse'], output_size=(2, 3), sampling_ratio=2)"
    )
    assert module.state_dict() == {}
    # 99 by 90 pixels of a map for images of 400 by 360: a quarter, as far as whole pixels go.
    maps = {"fine": torch.randn(2, 5, 99, 90), "other": torch.randn(1), "coarse": torch.randn(2, 5, 50, 45)}
    boxes = [torch.tensor([[3.0, 5.0, 50.0, 40.0], [0.0, 0.0, 300.0, 300.0]]), torch.tensor([[9.0, 8.0, 77.0, 70.0]])]
    wanted = fastconv.multi_scale_roi_align(
        [maps[name] for name in names], boxes, (2, 3), [1 / 4, 1 / 8], 2, canonical_scale=112
    )
    assert torch.equal(module(maps, boxes, [(400, 300), (390, 360)]), wanted)


def test_names_are_exported() -> None:
    for name in fastconv.roi.__all__:
        assert getattr(fastconv, name) is getattr(fastconv.roi, name)
        assert "input" in str(inspect.signature(getattr(fastconv, name)))
    for name in fastconv.nn.roi.__all__:
        assert getattr(fastconv.nn, name) is getattr(fastconv.nn.roi, name)
