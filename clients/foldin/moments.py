"""Moments as text."""

from datetime import datetime


def iso(moment: datetime) -> str:
    """Return a moment as the contract's JSON has it."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
