"""Deformable convolution against the reference, values and all gradients: every case, dtype and layout; the module; and
against torchvision where it is installed."""

import random

import pytest
import torch
from deform_cases import CASES, NAMES, all_of, drawn, leaves_of, problem
from kernels import DTYPES, SUPPORTED
from layouts import LAYOUTS, assert_close_to_reference

import fastconv

#: The tensors are small.
pytestmark = pytest.mark.usefixtures("one_thread")


def run_and_compare(name: str, dtype: torch.dtype, layouts: dict[str, str]) -> None:
    case, p = CASES[name], problem(name, dtype)
    leaves = leaves_of(p.given, **layouts)
    asked = [name for name in NAMES if leaves[name] is not None]
    grad_output = LAYOUTS[layouts["grad_output"]](p.grad_output.clone())
    before = {name: leaves[name].detach().clone() for name in asked}
    results = all_of(case, leaves, grad_output, *asked)
    for of, got in zip(("output", *asked), results, strict=True):
        assert got.dtype == dtype
        what = "output" if of == "output" else f"grad_{of}"
        assert_close_to_reference(what, got, p.expected[of], p.scale[of])
    for of in asked:
        assert torch.equal(leaves[of].detach(), before[of]), f"{of} was written"
    assert torch.equal(grad_output, p.grad_output), "grad_output was written"


@pytest.mark.parametrize("name", CASES)
def test_against_the_reference(name: str, isa: str) -> None:
    """A case has one dtype, so that its reference is made once."""
    rng, dtype = random.Random(f"{name} {isa}"), random.Random(name).choice(DTYPES)
    torch.set_num_threads(rng.choice([1, 2]))
    run_and_compare(name, dtype, {of: rng.choice(list(LAYOUTS)) for of in ("grad_output", *NAMES[:3], "mask")})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["image", "17 channels", "33 channels", "all of it", "more pixels than several tiles"])
def test_every_dtype_and_thread(name: str, dtype: torch.dtype) -> None:
    rng = random.Random(f"{name} {dtype}")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        run_and_compare(name, dtype, {of: rng.choice(list(LAYOUTS)) for of in ("grad_output", *NAMES[:3], "mask")})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("of", ["input", "offset", "weight", "mask", "grad_output"])
def test_every_layout(of: str, layout: str) -> None:
    for others in ("contiguous", "channels_last"):
        layouts = dict.fromkeys(("grad_output", *NAMES), others) | {"bias": "contiguous", of: layout}
        run_and_compare("all of it", torch.float32, layouts)


def test_what_was_drawn() -> None:
    """Every dtype, layout and number of threads is met by some cases on every instruction set."""
    for isa in SUPPORTED:
        met = set()
        for name in CASES:
            rng = random.Random(f"{name} {isa}")
            met.add(random.Random(name).choice(DTYPES))
            met.update(enumerate((rng.choice([1, 2]), *(rng.choice(list(LAYOUTS)) for _ in range(5)))))
        assert len(met) == len(DTYPES) + 2 + 5 * len(LAYOUTS)


# ---- the module ------------------------------------------------------------------------------------------------------


def test_module() -> None:
    module = fastconv.nn.DeformConv2d(6, 9, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2), groups=3)
    assert list(module.state_dict()) == ["weight", "bias"]
    assert module.weight.shape == (9, 2, 3, 2)
    assert repr(module) == (
        "DeformConv2d(6, 9, kernel_size=(3, 2), stride=(2, 2), padding=(1, 0), dilation=(1, 2), groups=3)"
    )
    x = torch.randn(2, 6, 9, 10)
    offset, mask = torch.randn(2, 24, 5, 4), torch.rand(2, 12, 5, 4)
    rest = (module.stride, module.padding, module.dilation)
    expected = fastconv.deform_conv2d(x, offset, module.weight, module.bias, *rest, mask)
    assert torch.equal(module(x, offset, mask), expected)
    assert torch.equal(module(x, offset), fastconv.deform_conv2d(x, offset, module.weight, module.bias, *rest))
    plain = fastconv.nn.DeformConv2d(4, 8, 1, bias=False)
    assert repr(plain) == "DeformConv2d(4, 8, kernel_size=(1, 1), stride=(1, 1), bias=False)"
    assert list(plain.state_dict()) == ["weight"]
    assert plain.bias is None


def test_module_starts_as_a_convolution_does() -> None:
    torch.manual_seed(3)
    ours = fastconv.nn.DeformConv2d(8, 6, 3)
    torch.manual_seed(3)
    theirs = torch.nn.Conv2d(8, 6, 3)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)
    ours.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("mask", [False, True])
def test_torchvision(mask: bool) -> None:
    theirs = pytest.importorskip("torchvision").ops
    case = CASES["all of it"]._replace(mask=mask, groups=3)
    given, grad_output = drawn(case)
    rest = (case.stride, case.padding, case.dilation)
    results = []
    for function in (fastconv.deform_conv2d, theirs.deform_conv2d):
        leaves = leaves_of(given)
        arguments = [leaves[name] for name in ("input", "offset", "weight", "bias")]
        output = function(*arguments, *rest, leaves["mask"])
        asked = [leaf for leaf in leaves.values() if leaf is not None]
        results.append((output, *torch.autograd.grad(output, asked, grad_output)))
    torch.testing.assert_close(*results)
    modules = [m.DeformConv2d(6, 9, 3, 2, 1, 1, 3, False) for m in (fastconv.nn, theirs)]
    assert repr(modules[0]) == repr(modules[1])
    assert modules[0].load_state_dict(modules[1].state_dict())
