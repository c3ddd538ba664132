"""What runs once `current` is at another version: a command, here, and the servers in `servers`."""

import os
import signal
import subprocess
from collections.abc import Iterable

from foldin.errors import FoldinError, HookFailed
from foldin.follower.events import Hook, Swap, Withdrawable

DEFAULT_SECONDS = 600.0

_STDERR = 2


class Command:
    """A shell command, which is told of the swap by its environment; its output goes to stderr.

    Args:
      command: for /bin/sh.
      seconds: how long it may take; then it and all that it started in its process group is killed.
    """

    def __init__(self, command: str, seconds: float = DEFAULT_SECONDS) -> None:
        self._command = command
        self._seconds = seconds

    def __call__(self, swap: Swap) -> None:
        """Run it. Raises HookFailed."""
        environment = {
            **os.environ,
            "FOLDIN_ALIAS": swap.alias,
            "FOLDIN_VERSION": str(swap.version),
            "FOLDIN_SNAPSHOT": str(swap.snapshot),
            "FOLDIN_CURRENT": str(swap.current),
            "FOLDIN_PREVIOUS_VERSION": str(swap.previous or ""),
        }
        process = subprocess.Popen(
            self._command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=_STDERR,
            start_new_session=True,
            env=environment,
        )
        try:
            status = process.wait(self._seconds)
        except subprocess.TimeoutExpired:
            raise HookFailed(f"the command took longer than {self._seconds:g} s and was killed.") from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if status:
            ended = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
            raise HookFailed(f"the command {ended}.")


def run_hooks(hooks: Iterable[Hook], swap: Swap) -> str:
    """Run hooks in their order until one fails, and return why it did, or nothing."""
    for hook in hooks:
        try:
            hook(swap)
        except FoldinError as error:
            return str(error)
        except Exception as error:  # a caller's own hook: whatever it raises is its way to fail
            return f"{getattr(hook, '__name__', type(hook).__name__)} failed: {type(error).__name__}: {error}"
    return ""


def withdraw(hooks: Iterable[Hook]) -> str:
    """Have servers do without a version, where they can, and return what failed, or nothing."""
    complaints: list[str] = []
    for hook in hooks:
        if isinstance(hook, Withdrawable):
            try:
                hook.withdraw()
            except Exception as error:  # the others are still to be withdrawn
                complaints.append(str(error))
    return " ".join(complaints)
