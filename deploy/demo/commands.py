"""The installed commands `foldind` and `foldin`, run the way a person runs them."""

import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
"""The repository: where commands run, and what the paths in them are relative to."""


def program(name: str) -> str:
    """Return the path of an installed command, as short as it can be typed in the repository.

    Raises:
      FileNotFoundError: the project is not installed in this Python.
    """
    # Not resolved: the interpreter of a virtual environment is a link to one that has no foldin beside it.
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: install the project first, as `make demo` does.")
    return os.path.relpath(path, ROOT) if path.is_relative_to(ROOT) else str(path)


def run(console: Console, name: str, *arguments: str) -> None:
    """Show a command line and run it, with its output on the terminal.

    Raises:
      subprocess.CalledProcessError: it failed; it has said why.
    """
    show(console, name, *arguments)
    subprocess.run([program(name), *arguments], cwd=ROOT, check=True)


def show(console: Console, *words: str) -> None:
    """Show a command line that is about to be run."""
    console.print(f"[dim]$[/dim] {' '.join(words)}", highlight=False, soft_wrap=True)
    sys.stdout.flush()


def succeeds(name: str, *arguments: str) -> bool:
    """Run a command silently, and return whether it did what it was asked."""
    return subprocess.run([program(name), *arguments], cwd=ROOT, capture_output=True, check=False).returncode == 0
