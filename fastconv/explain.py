"""Says which kernel a call would run, why, and how long it must take at least."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan, nan, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastconv import _roofline
from fastconv._arguments import each
from fastconv._native import native
from fastconv._operator import memory_format as format_of
from fastconv.conv import _arguments, conv1d, conv2d, tf32_is_allowed
from fastconv.conv_transpose import conv_transpose1d, conv_transpose2d

__all__ = ["Explanation", "Run", "explain"]


@dataclass(frozen=True)
class Run:
    """One run of a kernel, and how it was chosen."""

    #: its name, None where the only one that may run cannot serve the arguments and the call is an error
    kernel: str | None
    #: the kernels that were asked before it, each with the reason why it is not the one
    passed_by: tuple[tuple[str, str], ...]
    #: bytes of weights in the order in which the kernel reads them
    packed_bytes: int
    #: bytes of scratch memory, of all threads together
    scratch_bytes: int
    threads: int
    #: whether the input is copied first, into a layout that the kernels read
    copies_input: bool


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found. Times in seconds, sizes in bytes; ``print`` shows it all."""

    op: str
    dtype: torch.dtype
    memory_format: torch.memory_format
    #: the instruction set; "cuda" for CUDA tensors
    isa: str
    #: sizes of the tensors that are read and of the output
    operands: dict[str, tuple[int, ...]]
    output: tuple[int, ...]
    #: what the call comes down to, in order; a convolution is one run, none where its output is empty
    runs: tuple[Run, ...]
    #: how a transposed convolution is done: ``"product"``, ``"patches"``, ``"backwards"``, ``"spread"`` or
    #: ``"residues"`` (``print`` says what they are); empty for a convolution
    way: str
    #: floating-point operations by the definition, two for each product, those with padding included
    flops: int
    #: of everything that is read once and written once
    bytes: int
    #: FLOP/s and bytes/s of this machine with the threads that are used; NaN for CUDA tensors, of whose GPU nothing is
    #: measured
    peak: float
    bandwidth: float

    @property
    def kernel(self) -> str | None:
        """The kernel that runs; where there are several, joined with ``+``. None where nothing runs, or not all can."""
        names = dict.fromkeys(run.kernel for run in self.runs)
        return None if None in names else "+".join(filter(None, names)) or None

    @property
    def threads(self) -> int:
        return max((run.threads for run in self.runs), default=1)

    @property
    def intensity(self) -> float:
        """Operations for each byte."""
        return self.flops / self.bytes if self.bytes else 0.0

    @property
    def seconds(self) -> float:
        """The shortest time in which this machine could compute and move as much."""
        return max(self.flops / self.peak, self.bytes / self.bandwidth)

    @property
    def bound(self) -> str:
        """What that time is spent on: ``"compute"`` or ``"memory"``."""
        return "compute" if self.flops / self.peak > self.bytes / self.bandwidth else "memory"

    def __str__(self) -> str:
        layout = str(self.memory_format).removeprefix("torch.").removesuffix("_format")
        dtype = str(self.dtype).removeprefix("torch.")
        operands = ", ".join(f"{name} {list(size)}" for name, size in self.operands.items())
        threads = "" if self.isa == "cuda" else f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        lines = [
            f"{self.op}: {operands} to {list(self.output)}, {dtype}, {layout}, {self.isa}{threads}",
            *([f"  way      {_WAYS[self.way]}"] if self.way else []),
            *(line for runs in _alike(self.runs) for line in _describe(runs)),
            f"  work     {_unit(self.flops, 'FLOP')}, {_unit(self.bytes, 'B')}, {self.intensity:.3g} FLOP/B",
        ]
        if not isnan(self.peak):
            lines.append(
                f"  at best  {_unit(self.seconds, 's')}, bound by {self.bound} "
                f"({_unit(self.peak, 'FLOP/s')}, {_unit(self.bandwidth, 'B/s')})"
            )
        return "\n".join(lines)


#: What the native library calls the ways of a transposed convolution.
_WAYS = {
    "product": "a product of matrices, for images of one pixel",
    "patches": "a convolution for each residue of the rows modulo the stride, with the columns' residues as channels",
    "turned": "the same in channels_last, between copies of an image's input and of its rows",
    "backwards": "one convolution, the weights read backwards",
    "spread": "one run for all residues of the position modulo the stride",
    "residues": "a convolution for each residue of the position modulo the stride: no kernel serves all in one run",
}


def _alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Those of one kernel, chosen for the same reasons, together."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault((run.kernel, run.passed_by), []).append(run)
    return list(groups.values())


def _describe(runs: list[Run]) -> list[str]:
    times = f", {len(runs)} times" if len(runs) > 1 else ""
    lines = [f"  kernel   {runs[0].kernel or 'none: an error'}{times}"]
    lines += [f"           not {name}: {reason}" for name, reason in runs[0].passed_by]
    packed, scratch = max(run.packed_bytes for run in runs), max(run.scratch_bytes for run in runs)
    lines.append(f"  memory   {_unit(packed, 'B')} packed weights, {_unit(scratch, 'B')} scratch")
    if runs[0].copies_input:
        lines.append("           and the input is copied into a layout that kernels read")
    return lines


def _unit(value: float, unit: str) -> str:
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0), ("m", 1e-3)):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value / 1e-6:.3g} µ{unit}" if value else f"0 {unit}"


def explain(
    op: str | Callable[..., Tensor],
    *shapes: Sequence[int] | Tensor,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    threads: int | None = None,
    device: str | None = None,
    **kwargs: Any,
) -> Explanation:
    """Which kernel a call would run, why, and how long it must take at least. Computes nothing.

    Args:
        op: a function of fastconv, or its name: ``conv1d``, ``conv2d``, ``conv_transpose1d``, ``conv_transpose2d``.
        shapes: its tensors (input, weight, and bias where there is one), or their shapes.
        dtype: of tensors that are given by their shape; by default that of the given tensors, else float32.
        memory_format: of the input, where it is given by its shape.
        threads: how many may be used; by default PyTorch's number.
        device: ``"cpu"`` or ``"cuda"``; by default that of the given tensors, else the CPU. What CUDA tensors would run
            can be asked on any machine; how long it must take cannot.
        kwargs: the other arguments of the function; a residual as a tensor or a shape.

    Returns:
        An :class:`Explanation`. The machine's limits in it are measured at the first call with this dtype and number of
        threads, which takes about 0.2 seconds.

    Raises:
        ValueError: a function that cannot be explained, a number of threads below one, another device.
        RuntimeError, TypeError: what the function would raise.

    >>> found = explain("conv2d", (1, 64, 56, 56), (64, 64, 3, 3), padding=1)
    >>> found.flops, found.output
    (231211008, (1, 64, 56, 56))
    >>> explain(conv2d, (1, 32, 30, 30), (32, 1, 3, 3), groups=32).kernel
    'depthwise_rows'
    >>> explain("conv_transpose2d", (1, 64, 32, 32), (64, 32, 4, 4), stride=2, padding=1).way
    'spread'
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", None)
    family = _FAMILIES.get(name) if isinstance(name, str) else None
    if family is None or op not in (name, family.function):
        raise ValueError(f"explain: op must be one of fastconv's {', '.join(_FAMILIES)}, or its name (got {op!r})")
    if len(shapes) > len(_POSITIONAL):
        raise TypeError(f"explain: shapes must be those of {', '.join(_POSITIONAL)} (got {len(shapes)} of them)")
    if threads is None:
        threads = torch.get_num_threads()
    if threads < 1:
        raise ValueError(f"explain: threads must be positive (got {threads})")
    given: dict[str, Any] = dict(zip(_POSITIONAL, shapes, strict=False))
    if given.get("bias") is None:
        given.pop("bias", None)
    given |= {key: kwargs.pop(key) for key in ("bias", "residual") if kwargs.get(key) is not None}
    if dtype is None:
        dtype = next((t.dtype for t in given.values() if isinstance(t, Tensor)), torch.float32)
    device = _device(given, device)
    operands = {
        key: _without_data(value, dtype, memory_format if key == "input" else None) for key, value in given.items()
    }
    with torch.no_grad():
        output = family.function(**operands, **kwargs)  # refuses what a call would refuse
    flops, query = family.query(operands["input"], operands["weight"], output, **kwargs)
    cuda = device == "cuda"
    query |= {"cuda": cuda, "allow_tf32": cuda and tf32_is_allowed()}
    runs, way = _ask(operands, output, threads, query)
    used = max((run.threads for run in runs), default=1)
    return Explanation(
        op=family.function.__name__,
        dtype=output.dtype,
        memory_format=format_of(operands["input"]),
        isa="cuda" if device == "cuda" else native.isa(),
        operands={key: tuple(t.shape) for key, t in operands.items()},
        output=tuple(output.shape),
        runs=runs,
        way=way,
        flops=flops,
        bytes=sum(t.numel() * t.itemsize for t in (*operands.values(), output)),
        peak=nan if device == "cuda" else _roofline.peak(output.dtype, used),
        bandwidth=nan if device == "cuda" else _roofline.bandwidth(used),
    )


def _device(given: dict[str, Any], device: str | None) -> str:
    """The one that is asked for; refuses tensors of another."""
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"explain: device must be 'cpu' or 'cuda' (got {device!r})")
    for name, value in given.items():
        own = value.device.type if isinstance(value, Tensor) else "meta"
        if own == "meta":
            continue
        if own not in ((device,) if device else ("cpu", "cuda")):
            raise ValueError(f"explain: {name} must be on {device or 'the CPU or CUDA'} (got {value.device})")
        device = own
    return device or "cpu"


def _without_data(given: Any, dtype: torch.dtype, memory_format: torch.memory_format | None) -> Tensor:
    """The tensor, or one of this shape, on the device "meta"."""
    if isinstance(given, Tensor):
        return torch.empty_strided(given.shape, given.stride(), dtype=given.dtype, device="meta")
    format = memory_format if memory_format and len(given) == 4 else torch.contiguous_format
    return torch.empty(tuple(given), dtype=dtype, device="meta", memory_format=format)


def _ask(operands: dict[str, Tensor], output: Tensor, threads: int, query: dict) -> tuple[tuple[Run, ...], str]:
    """The runs of a call, and the way."""
    input, weight = operands["input"], operands["weight"]
    if output.numel() == 0:
        return (), ""
    if input.dim() == weight.dim() - 1:
        input = input.unsqueeze(0)
    answer = native.conv_explain(
        dtype=str(output.dtype).removeprefix("torch."),
        input=input.shape,
        input_strides=input.stride(),
        weight=weight.shape,
        weight_strides=weight.stride(),
        threads=threads,
        bias="bias" in operands,
        **query,
    )
    runs = tuple(
        Run(
            kernel=run["kernel"] or None,
            passed_by=tuple(run["passed_by"]),
            packed_bytes=run["packed"],
            scratch_bytes=run["scratch"],
            threads=answer["threads"],
            copies_input=answer["copies_input"],
        )
        for run in answer["runs"]
    )
    return runs, answer["way"]


# ---- families ------------------------------------------------------------------------------------------------------


class _Family(NamedTuple):
    """``query(input, weight, output, **kwargs)`` gives the operations of a call, and how to ask for its runs."""

    function: Callable[..., Tensor]
    query: Callable[..., tuple[int, dict]]


def _convolution(
    input: Tensor,
    weight: Tensor,
    output: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: str | None = None,
) -> tuple[int, dict]:
    dims = weight.dim() - 2
    lists = _arguments(f"conv{dims}d", dims, input, weight, None, stride, padding, dilation, groups)
    query = dict(zip(("stride", "padding", "dilation", "groups"), lists, strict=True))
    return 2 * output.numel() * prod(weight.shape[1:]), query


def _transposed(
    input: Tensor,
    weight: Tensor,
    output: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> tuple[int, dict]:
    dims = weight.dim() - 2
    lists = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    query = {name: each(f"conv_transpose{dims}d", name, value, dims) for name, value in lists.items()}
    return 2 * input.numel() * prod(weight.shape[1:]), {**query, "groups": groups, "transposed": True}


_POSITIONAL = ("input", "weight", "bias")
_FAMILIES = {
    family.function.__name__: family
    for family in (
        _Family(conv1d, _convolution),
        _Family(conv2d, _convolution),
        _Family(conv_transpose1d, _transposed),
        _Family(conv_transpose2d, _transposed),
    )
}
