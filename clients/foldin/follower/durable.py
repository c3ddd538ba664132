"""Changes that are whole or not there, also after a power cut."""

import os
from pathlib import Path


def write_file(path: Path, text: str) -> None:
    """Put a file in place of another at once. Raises OSError."""
    temporary = temporary_of(path)
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def point_link(link: Path, target: str) -> None:
    """Point a symbolic link at a target at once. Raises OSError."""
    temporary = temporary_of(link)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
    sync_folder(link.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_of(path: Path) -> Path:
    """Return where a successor of path is put together."""
    return path.with_name(f".{path.name}.tmp")
