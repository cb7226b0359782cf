"""Residual and activation in the convolution itself: every kernel on every instruction set, dtype and layout against
float64; gradients; and the same citizenship as the convolution without them."""

from itertools import cycle, product

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, problem, values
from kernels import SUPPORTED, dtypes_of, kernel_meets_isa
from layouts import LAYOUTS, assert_close_to_reference, sliced
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

import fastconv
from fastconv._native import native

ops = torch.ops.fastconv
ACTIVATIONS = {None: lambda x: x, "relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish}
#: Stride, padding, dilation and groups as the operator takes them.
REST = {dims: ([1] * dims, [0, 0] * dims, [1] * dims, 1) for dims in (1, 2)}
DIMS = pytest.mark.parametrize("dims", REST)


def randn(*size: int, last: bool = False, grad: bool = False, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    made = torch.randn(size, dtype=dtype)
    return (made.to(memory_format=torch.channels_last) if last else made).requires_grad_(grad)


def conv_of(dims: int, module=fastconv):
    """fastconv's or torch.nn.functional's."""
    return module.conv1d if dims == 1 else module.conv2d


# ---- values --------------------------------------------------------------------------------------------------------

#: One for each kernel's ways of storing: full vectors and what is left of one, strides, several tiles, one dimension.
NAMES = [
    "dense_17x33_w31", "dense_64x65_w5", "stride_2", "groups_5_of_3_to_1", "groups_4_of_1_to_3", "kernel_1",
    "depthwise_17_w17", "depthwise_33_w33", "kernel_7_depthwise", "1d", "1d_depthwise", "columns_600_depthwise",
]  # fmt: skip
SOME = [case for case in CASES if case.name in NAMES]


@pytest.mark.parametrize(
    ("kernel", "isa"), [pair for pair in product(native.conv_kernels(), SUPPORTED) if kernel_meets_isa(*pair)]
)
def test_every_kernel(kernel: str, isa: str) -> None:
    """The full product of dtypes, layouts and epilogues; the residual comes in each of the layouts too."""
    assert len(SOME) == len(NAMES)
    met, dtypes = set(), dtypes_of(kernel, isa)
    residual_layouts = cycle(LAYOUTS)
    with fastconv.flags(kernel=kernel, isa=isa):
        for case in SOME:
            p = problem(case)
            residual = values(p.output.shape, torch.Generator().manual_seed(1))
            for dtype, layout in product(dtypes, LAYOUTS):
                torch.set_num_threads(1 + len(met) % 2)
                x, weight, bias = LAYOUTS[layout](p.input.to(dtype)), p.weight.to(dtype), p.bias.to(dtype)
                if fastconv.explain(case.function(fastconv), x, weight, bias, **case.kwargs).kernel is None:
                    continue
                for activation, add in product(ACTIVATIONS, (False, True)):
                    r = LAYOUTS[next(residual_layouts)](residual.to(dtype)) if add else None
                    got = case.function(fastconv)(x, weight, bias, **case.kwargs, activation=activation, residual=r)
                    expected = ACTIVATIONS[activation](p.output + residual if add else p.output)
                    scale = p.scale_output + residual.abs() if add else p.scale_output
                    # No activation is steeper than 1.5, so errors grow by no more.
                    name = f"{case}, {dtype}, {layout}, {activation}, residual {add}"
                    assert_close_to_reference(name, got, expected, 1.5 * scale, patches=kernel.startswith("winograd"))
                    assert got.stride() == case.function(fastconv)(x, weight, bias, **case.kwargs).stride()
                    met.add((dtype, layout, activation, add))
    layouts = {layout for _, layout, _, _ in met}
    assert len(met) == len(dtypes) * len(layouts) * len(ACTIVATIONS) * 2
    # Kernels that read their input where it lies want its rows or its channels without gaps.
    in_place = {"depthwise_flat": 1, "depthwise_rows": 2, "depthwise_pixels": 2, "rows": 2, "panel": 2}
    assert len(layouts) >= in_place.get(kernel, len(LAYOUTS)), layouts


@pytest.mark.parametrize("isa", SUPPORTED)
@pytest.mark.parametrize("activation", ["relu", "relu6", "silu", "hardswish"])
def test_special_values(activation: str, isa: str) -> None:
    """As PyTorch's activations: where they are not smooth, at what overflows, and for what is no number."""
    special = [
        -torch.inf,
        -1e30,
        -200.0,
        -88.5,
        -3.0,
        -1e-30,
        -0.0,
        0.0,
        1e-30,
        3.0,
        6.0,
        88.5,
        1e30,
        torch.inf,
        torch.nan,
    ]
    x = torch.tensor(special * 5).view(1, 1, 5, -1)
    for dtype in (torch.float32, torch.float64):
        expected = ACTIVATIONS[activation](x.to(dtype))
        with fastconv.flags(isa=isa):
            got = fastconv.conv2d(x.to(dtype), torch.ones(1, 1, 1, 1, dtype=dtype), activation=activation)
        assert_close(got, expected, equal_nan=True, rtol=1e-6, atol=1e-35)


@pytest.mark.parametrize("isa", SUPPORTED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_results_are_rounded_once(dtype: torch.dtype, isa: str) -> None:
    x, residual = torch.randn(1, 1, 32, 64).to(dtype), torch.randn(1, 1, 32, 64).to(dtype)
    three = torch.full((1, 1, 1, 1), 3.0, dtype=dtype)
    exact = x.float() * 3
    expected = (exact + residual.float()).relu().to(dtype)
    twice = (exact.to(dtype) + residual).relu()
    assert not torch.equal(expected, twice)
    with fastconv.flags(isa=isa):
        got = fastconv.conv2d(x, three, activation="relu", residual=residual)
    assert torch.equal(got, expected)


@DIMS
def test_the_input_as_residual(dims: int) -> None:
    """A block that adds what it began with; nothing of it is written."""
    for last in {False, dims == 2}:
        x, weight = randn(2, 8, *(7, 9)[-dims:], last=last), randn(8, 8, *(3,) * dims)
        before = x.clone()
        got = conv_of(dims)(x, weight, padding=1, residual=x, activation="relu")
        assert_close(got, (conv_of(dims, F)(x, weight, padding=1) + x).relu(), rtol=1e-4, atol=1e-4)
        assert torch.equal(x, before)


def test_residual_of_any_strides() -> None:
    x, weight = randn(2, 4, 5, 6), randn(6, 4, 1, 1)
    for residual in (
        randn(2, 6, 1, 1).expand(2, 6, 5, 6), torch.tensor(2.0).expand(2, 6, 5, 6), randn(2, 6, 5, 6, last=True),
        sliced(randn(2, 6, 5, 6)), randn(2, 6, 5, 6).flip(3), randn(6, 5, 2, 6).permute(2, 0, 1, 3),
    ):  # fmt: skip
        got = fastconv.conv2d(x, weight, residual=residual)
        assert_close(got, F.conv2d(x, weight) + residual, rtol=1e-5, atol=1e-5)
        assert got.is_contiguous()


def test_one_row_or_column_of_output() -> None:
    """Where strides of dimensions of size one say nothing about the layout."""
    for size, last in product([(1, 7), (7, 1), (1, 1)], (False, True)):
        x, weight = randn(2, 5, *size, last=last), randn(3, 5, 1, 1)
        for residual in (randn(2, 3, *size), randn(2, 3, *size, last=True)):
            got = fastconv.conv2d(x, weight, residual=residual, activation="relu6")
            assert_close(got, F.relu6(F.conv2d(x, weight) + residual), rtol=1e-5, atol=1e-5)


@DIMS
def test_unbatched_and_empty(dims: int) -> None:
    size = (4, 5)[-dims:]
    x, weight, bias, residual = randn(3, *(6, 7)[-dims:]), randn(4, 3, *(3,) * dims), randn(4), randn(4, *size)
    expected = (conv_of(dims, F)(x, weight, bias) + residual).relu()
    assert_close(conv_of(dims)(x, weight, bias, residual=residual, activation="relu"), expected)
    empty = conv_of(dims)(x[None][:0], weight, residual=residual[None][:0], activation="silu")
    assert empty.shape == (0, 4, *size)


@DIMS
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_sum_of_nothing(activation: str | None, dims: int) -> None:
    """No input channels: what is left is the bias and the residual."""
    size = (4,) * dims
    bias, residual = randn(9), randn(2, 9, *size)
    x, weight = randn(2, 0, *size), randn(9, 0, *(3,) * dims)
    got = conv_of(dims)(x, weight, bias, padding=1, activation=activation, residual=residual)
    assert_close(got, ACTIVATIONS[activation](bias.view(9, *(1,) * dims) + residual))


# ---- gradients -----------------------------------------------------------------------------------------------------


@DIMS
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation: str | None, dims: int) -> None:
    """Once and twice, for every tensor; with the public function and with the operator itself."""
    spatial = (5, 4)[-dims:]
    tensors = [
        randn(*size, dtype=torch.float64, grad=True)
        for size in [(2, 4, *spatial), (6, 2, *(3,) * dims), (6,), (2, 6, *spatial)]
    ]

    def public(x, w, b, r):
        return conv_of(dims)(x, w, b, padding=1, groups=2, activation=activation, residual=r)

    def operator(x, w, b, r):
        return ops.conv(x, w, b, [1] * dims, [1] * 2 * dims, [1] * dims, 2, r, activation)

    for call in (public, operator):
        assert gradcheck(call, tensors)
        assert gradgradcheck(call, tensors)


@DIMS
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_of_only_what_asks_for_one(activation: str | None, dims: int) -> None:
    five, three = (5,) * dims, (3,) * dims
    tensors = [randn(2, 4, *five), randn(6, 4, *three), randn(6), randn(2, 6, *three)]
    for wanted in range(1, 16):
        mine = [t.clone().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(tensors)]
        theirs = [t.clone().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(tensors)]
        conv_of(dims)(*mine[:3], activation=activation, residual=mine[3]).square().sum().backward()
        ACTIVATIONS[activation](conv_of(dims, F)(*theirs[:3]) + theirs[3]).square().sum().backward()
        for a, b in zip(mine, theirs, strict=True):
            assert (a.grad is None) == (b.grad is None)
            if a.grad is not None:
                assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("activation", ["relu", "relu6", "silu", "hardswish"])
def test_gradient_where_the_activation_bends(activation: str) -> None:
    """At the bends, at infinity and at NaN: PyTorch's choice."""
    x = torch.tensor([-torch.inf, -4.0, -3.0, -2.0, -0.0, 0.0, 2.0, 3.0, 6.0, 7.0, torch.inf, torch.nan]).view(1, 1, -1)
    one = torch.ones(1, 1, 1)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    fastconv.conv1d(mine, one, activation=activation).sum().backward()
    ACTIVATIONS[activation](theirs).sum().backward()
    assert_close(mine.grad, theirs.grad, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_16_bit_gradients(activation: str | None, dtype: torch.dtype) -> None:
    results = []
    tensors = [t.to(dtype) for t in (randn(2, 8, 7, 7), randn(8, 8, 3, 3) / 8, randn(8), randn(2, 8, 5, 5))]
    for exact in (False, True):
        leaves = [(t.double() if exact else t.clone()).requires_grad_() for t in tensors]
        if exact:
            output = ACTIVATIONS[activation](F.conv2d(*leaves[:3]) + leaves[3])
        else:
            output = fastconv.conv2d(*leaves[:3], activation=activation, residual=leaves[3])
            assert output.dtype == dtype
        output.double().sin().sum().backward()
        results.append([output.detach().double(), *(t.grad.double() for t in leaves)])
    for mine, exactly in zip(*results, strict=True):
        difference = (mine - exactly).norm() / exactly.norm()
        assert difference < (0.02 if dtype == torch.bfloat16 else 0.003)


# ---- citizenship ---------------------------------------------------------------------------------------------------


@DIMS
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_opcheck(activation: str | None, residual: bool, dims: int) -> None:
    for grad, last, dtype in (
        (False, False, torch.float32),
        (True, dims == 2, torch.float32),
        (False, dims == 2, torch.bfloat16),
    ):
        tensors = (
            randn(2, 4, *(6, 7)[-dims:], last=last, grad=grad, dtype=dtype),
            randn(6, 4, *(3,) * dims, grad=grad, dtype=dtype),
            randn(6, dtype=dtype),
        )
        added = randn(2, 6, *(4, 5)[-dims:], grad=grad, dtype=dtype) if residual else None
        torch.library.opcheck(ops.conv.default, (*tensors, *REST[dims], added, activation))


class Block(torch.nn.Module):
    """Every activation, with and without a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 4, 3, 3) / 6)
        self.bias = torch.nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for activation in ACTIVATIONS:
            x = fastconv.conv2d(x, self.weight, self.bias, padding=1, activation=activation, residual=x)
            x = fastconv.conv2d(x, self.weight, padding=1, activation=activation)
        return x


class TorchBlock(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for activate in ACTIVATIONS.values():
            x = activate(F.conv2d(x, self.weight, self.bias, padding=1) + x)
            x = activate(F.conv2d(x, self.weight, padding=1))
        return x


def twins() -> tuple[Block, TorchBlock]:
    mine, theirs = Block(), TorchBlock()
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    torch._dynamo.reset()
    mine, theirs = twins()
    compiled = torch.compile(mine, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in [(2, 4, 9, 11), (3, 4, 12, 8)]:
        x = randn(*size)
        outputs = compiled(x), theirs(x)
        assert_close(*outputs, rtol=1e-4, atol=1e-4)
        grads = [
            torch.autograd.grad(output.square().mean(), list(module.parameters()))
            for output, module in zip(outputs, (mine, theirs), strict=True)
        ]
        for a, b in zip(*grads, strict=True):
            assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_inference_graph_is_fused() -> None:
    """One node for each call where no gradient is wanted."""
    mine, theirs = twins()
    x = randn(2, 4, 9, 11)
    with torch.no_grad():
        program = torch.export.export(mine, (x,), dynamic_shapes=({0: torch.export.Dim("N", min=2)},))
        calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        assert [c for c in calls if "conv" in c] == ["fastconv.conv.default"] * 2 * len(ACTIVATIONS)
        assert not [c for c in calls if "relu" in c or "silu" in c or "swish" in c or "add" in c]
        for size in [(2, 4, 9, 11), (5, 4, 9, 11)]:
            y = randn(*size)
            assert_close(program.module()(y), theirs(y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("direct", [False, True])
def test_autocast(direct: bool, activation: str | None) -> None:
    """Every tensor is cast, the residual among them; gradients come in each tensor's own dtype."""
    tensors = randn(2, 4, 6, 7), randn(6, 4, 3, 3), randn(6), randn(2, 6, 4, 5)
    leaves = [t.clone().requires_grad_() for t in tensors]
    x, w, b, r = leaves
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if direct:
            output = ops.conv(x, w, b, *REST[2], r, activation)
        else:
            output = fastconv.conv2d(x, w, b, activation=activation, residual=r)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert [t.grad.dtype for t in leaves] == [torch.float32] * 4
    expected = ACTIVATIONS[activation](F.conv2d(*tensors[:3]) + tensors[3])
    assert_close(output.float(), expected, rtol=2**-5, atol=0.06)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_torch_func(activation: str | None) -> None:
    x, w, b, r = (t.double() for t in (randn(2, 4, 6, 7), randn(4, 4, 3, 3), randn(4), randn(2, 4, 6, 7)))

    def mine(x, w, b, r):
        return fastconv.conv2d(x, w, b, padding=1, activation=activation, residual=r)

    def theirs(x, w, b, r):
        return ACTIVATIONS[activation](F.conv2d(x, w, b, padding=1) + r)

    grads = [
        torch.func.grad(lambda *t, f=f: f(*t).sin().sum(), argnums=(0, 1, 2, 3))(x, w, b, r) for f in (mine, theirs)
    ]
    for a, c in zip(*grads, strict=True):
        assert_close(a, c)
    for dims in ((0, None, None, 0), (None, None, None, 0), (0, None, None, None)):
        batch = [torch.stack([t, 2 * t]) if d == 0 else t for t, d in zip((x, w, b, r), dims, strict=True)]
        assert_close(torch.vmap(mine, in_dims=dims)(*batch), torch.vmap(theirs, in_dims=dims)(*batch))
    per_sample = [
        torch.vmap(torch.func.grad(lambda w, x, r, f=f: f(x[None], w, b, r[None]).sin().sum()), in_dims=(None, 0, 0))(
            w, x, r
        )
        for f in (mine, theirs)
    ]
    assert_close(*per_sample)
    twice = [
        torch.func.grad(lambda w, f=f: torch.func.grad(lambda x: f(x, w, b, r).sin().sum())(x).square().sum())(w)
        for f in (mine, theirs)
    ]
    assert_close(*twice)


@pytest.mark.parametrize(("dims", "last"), [(1, False), (2, False), (2, True)])
def test_meta_tensors(dims: int, last: bool) -> None:
    three = (3,) * dims
    tensors = [
        randn(2, 4, *(9, 10)[-dims:], last=last), randn(6, 2, *three), randn(6), randn(2, 6, *(5,) * dims)
    ]  # fmt: skip
    real = conv_of(dims)(*tensors[:3], 2, 1, groups=2, activation="silu", residual=tensors[3])
    x, w, b, r = (t.to("meta").requires_grad_() for t in tensors)
    meta = conv_of(dims)(x, w, b, 2, 1, groups=2, activation="silu", residual=r)
    assert (meta.shape, meta.stride(), meta.dtype) == (real.shape, real.stride(), real.dtype)
    meta.sum().backward()
    assert [t.grad.shape for t in (x, w, b, r)] == [t.shape for t in tensors]


# ---- errors --------------------------------------------------------------------------------------------------------

RULE = "activation must be None, 'relu', 'relu6', 'silu' or 'hardswish'"
#: What a residual may be instead of [1, 6, 3, 3] or, in one dimension, [1, 6, 3].
BAD = [
    (dict(residual=lambda size: torch.ones(*size[:-1], 4)), "residual must have shape {size} (got {given})"),
    (dict(residual=lambda size: torch.ones(size[1:])), "residual must have shape {size} (got {given})"),
    (dict(residual=lambda size: torch.ones(())), "residual must have shape {size} (got {given})"),
    (
        dict(residual=lambda size: torch.ones(size).double()),
        "residual must have the dtype of input, float32 (got float64)",
    ),
    (dict(activation=lambda size: "gelu"), f"{RULE} (got 'gelu')"),
    (dict(activation=lambda size: ""), f"{RULE} (got '')"),
    (dict(activation=lambda size: "ReLU"), f"{RULE} (got 'ReLU')"),
]


def small(dims: int, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and weight of a convolution whose output is 3 wide and high."""
    return torch.ones(1, 4, *(5,) * dims, **options), torch.ones(6, 4, *(3,) * dims, **options)


@DIMS
@pytest.mark.parametrize(("kwargs", "message"), BAD)
def test_bad_values(kwargs: dict, message: str, dims: int) -> None:
    """In the same words in the call, for tensors without data, under fake tensors and by the operator itself."""
    size = [1, 6, *(3,) * dims]

    def made(device: str) -> dict:
        values = {name: value(size) for name, value in kwargs.items()}
        return {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in values.items()}

    def call(device: str, grad: bool = False) -> None:
        x, weight = small(dims, device=device)
        conv_of(dims)(x, weight.requires_grad_(grad), **made(device))

    def fake() -> None:
        with FakeTensorMode():
            call("cpu")

    def operator(device: str) -> None:
        rest = [made(device).get(name) for name in ("residual", "activation")]
        ops.conv(*small(dims, device=device), None, *REST[dims], *rest)

    given = made("cpu").get("residual", torch.ones(())).shape
    for way in (
        lambda: call("cpu"), lambda: call("cpu", True), lambda: call("meta"), fake, lambda: operator("cpu"),
        lambda: operator("meta"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError) as raised:
            way()
        assert str(raised.value) == f"conv{dims}d: {message.format(size=size, given=list(given))}"


@DIMS
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(residual=1), "residual must be a Tensor (got 1)"),
        (dict(residual=[1.0]), "residual must be a Tensor (got [1.0])"),
        (dict(activation=True), f"{RULE} (got True)"),
        (dict(activation=F.relu), f"{RULE} (got {F.relu!r})"),
    ],
)
def test_bad_types(kwargs: dict, message: str, dims: int) -> None:
    with pytest.raises(TypeError) as raised:
        conv_of(dims)(*small(dims), **kwargs)
    assert str(raised.value) == f"conv{dims}d: {message}"


@DIMS
def test_by_keyword_only(dims: int) -> None:
    with pytest.raises(TypeError, match="positional"):
        conv_of(dims)(*small(dims), None, 1, 0, 1, 1, "relu")


@DIMS
def test_residual_on_another_device(dims: int) -> None:
    message = rf"conv{dims}d: residual must be on the device of input, cpu \(got meta\)"
    with pytest.raises(RuntimeError, match=message):
        conv_of(dims)(*small(dims), residual=torch.ones(1, 6, *(3,) * dims, device="meta"))
