"""What the commands share on the terminal. Needs click and rich, so only the command line imports it."""

from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["coloured", "progress_bar", "require_folder"]


def progress_bar(screen: Console) -> Progress:
    """A bar that is drawn only when it is told to: a thread of its own would disturb the measurement."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=screen, transient=True, auto_refresh=False, disable=not screen.is_terminal)


def coloured(ratio: float, least: float = 1.0) -> str:
    """The ratio in green or, below ``least``, in red."""
    return f"[{'green' if ratio >= least else 'red'}]{ratio:.2f}[/]"


def require_folder(command: str, option: str, path: Path) -> None:
    """Raises before minutes of work, not after them, where ``path`` cannot be written for want of its folder."""
    if not path.absolute().parent.is_dir():
        raise click.ClickException(f"{command}: {option} must lie in a folder that exists (got {str(path)!r})")
