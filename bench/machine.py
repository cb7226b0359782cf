"""What a measurement was taken on: a time without this is worth nothing, so every file of bench/ has it."""

import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fastconv._info import facts

ROOT = Path(__file__).resolve().parent.parent


def describe() -> dict[str, Any]:
    """The facts of `fastconv info`, torchvision's version, and the commit, with "-dirty" where the tree differs from
    it."""
    try:
        torchvision = version("torchvision")
    except PackageNotFoundError:
        torchvision = None
    return {**facts(), "torchvision": torchvision, "commit": commit()}


def commit() -> str | None:
    """None in an installed package, a source archive, or on a machine without git."""
    if not (ROOT / "csrc").is_dir():
        return None  # what git would describe here is whatever repository the environment lies in
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def headline(machine: dict[str, Any], threads: Sequence[int]) -> str:
    counts = " and ".join(map(str, threads))
    return (
        f"fastconv {machine['fastconv']} ({machine['commit'] or 'no commit'}, {machine['isa']}) against "
        f"PyTorch {machine['pytorch']}, {counts} thread{'s' if counts != '1' else ''}, {machine['cpu']}"
    )
