"""What a measurement was taken on: a time without this is worth nothing, so every file of bench/ has it."""

import subprocess
from pathlib import Path
from typing import Any

from fastconv._info import facts

ROOT = Path(__file__).resolve().parent.parent


def describe() -> dict[str, Any]:
    """The facts of `fastconv info`, and the commit, with "-dirty" where the tree differs from it."""
    return {**facts(), "commit": commit()}


def commit() -> str | None:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # a source archive, or a machine without git


def headline(machine: dict[str, Any]) -> str:
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return (
        f"fastconv {machine['fastconv']} ({machine['commit'] or 'no commit'}, {machine['isa']}) against "
        f"PyTorch {machine['pytorch']}, {threads}, {machine['cpu']}"
    )
