"""The switches of a process: instruction set, kernel, Winograd. All of them live in the native library."""

from types import TracebackType
from typing import Any

from fastconv._native import HAS_CUDA, ISAS, native, ops

__all__ = ["flags"]


class flags:
    """Sets switches for the whole process, for good or for the length of a ``with`` block.

    ``fastconv.flags(winograd=False)`` holds from then on; ``with fastconv.flags(winograd=False): ...`` puts back at the
    end what was before. Switches that are not named stay as they are. Blocks nest. Every thread of the process sees
    the same switches, so a block in one thread changes what the others run; calls that are running are not affected.

    Args:
        winograd: whether Winograd kernels may be chosen; they are faster and round more than the others.
        isa: the instruction set, ``"baseline"``, ``"avx2"``, ``"avx512"``, ``"avx512_bf16"`` or ``"amx"``, as far as
            the machine has it. At first it is the best one, or what ``FASTCONV_CPU_ISA`` in the environment caps it to.
        kernel: the only convolution kernel that may run, by its name in ``fastconv.explain``; arguments that it
            cannot serve are an error, and ``winograd`` is not asked. ``"auto"`` returns to the choice by arguments.
            CPU and CUDA have kernels of their own, some of the same name; a name that only one of the two knows is an
            error for tensors of the other.

    Raises:
        TypeError: a switch of another type, or given by position.
        ValueError: a name that does not exist, or an instruction set that the machine lacks. Nothing has been switched.

    >>> with flags(isa="baseline", winograd=False):
    ...     flags()
    flags(winograd=False, isa='baseline', kernel='auto')
    """

    def __init__(self, *, winograd: bool | None = None, isa: str | None = None, kernel: str | None = None) -> None:
        if not isinstance(winograd, bool | None):
            raise TypeError(f"flags: winograd must be True or False (got {winograd!r})")
        for name, value in (("isa", isa), ("kernel", kernel)):
            if not isinstance(value, str | None):
                raise TypeError(f"flags: {name} must be a string (got {value!r})")
        supported = ISAS[: ISAS.index(native.isa_supported()) + 1]
        if isa is not None and isa not in ISAS:
            raise ValueError(f"flags: isa must be one of {', '.join(ISAS)} (got {isa!r})")
        if isa is not None and isa not in supported:
            raise ValueError(f"flags: isa must be one that this machine has, {', '.join(supported)} (got {isa!r})")
        given = {"winograd": winograd, "isa": isa, "kernel": kernel}
        self._wanted = {name: value for name, value in given.items() if value is not None}
        self._before = {name: value for name, value in in_force().items() if name in self._wanted}
        try:
            _switch(self._wanted)
        except ValueError:  # a kernel that the instruction set does not have
            _switch(self._before)
            raise

    def __enter__(self) -> "flags":
        _switch(self._wanted)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _switch(self._before)

    def __repr__(self) -> str:
        """What is in force, whoever has switched it."""
        return f"flags({', '.join(f'{name}={value!r}' for name, value in in_force().items())})"


def in_force() -> dict[str, Any]:
    """The switches by name."""
    return {
        "winograd": native.conv_skipped_kernel() != "winograd",
        "isa": native.isa(),
        "kernel": native.conv_forced_kernel() or "auto",
    }


def _switch(wanted: dict[str, Any]) -> None:
    if "winograd" in wanted:
        native.conv_skip_kernel("" if wanted["winograd"] else "winograd")
    if "isa" in wanted:
        native.isa_select(wanted["isa"])
    if "kernel" in wanted:
        kernel = "" if wanted["kernel"] == "auto" else wanted["kernel"]
        if wanted["kernel"] == "" or not native.conv_force_kernel(kernel):
            kernels = [*dict.fromkeys(native.conv_kernels() + native.conv_cuda_kernels()), "auto"]
            raise ValueError(f"flags: kernel must be one of {', '.join(kernels)} (got {wanted['kernel']!r})")
        if HAS_CUDA:
            ops._conv_cuda_force(kernel)
