"""The memory of this process."""

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import Literal

_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 1024 * 1024


def return_large_blocks_at_once() -> None:
    """Have the allocator give large blocks back to the system when they are freed.

    glibc raises its own limit as large blocks come and go, and then keeps what it got: tens of chunks, several tensors.
    """
    with suppress(AttributeError):  # another C library than glibc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def return_free_memory() -> None:
    """Have the allocator give everything that is free back to the system."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes(field: Literal["VmRSS", "VmHWM"]) -> int:
    """Return the resident memory of this process now (VmRSS) or at its peak (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> None:
    """Let the peak of resident memory begin anew."""
    Path("/proc/self/clear_refs").write_text("5")
