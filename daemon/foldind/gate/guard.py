"""`python -m foldind.gate.guard COMMAND`: runs a shell command, and ends it when the standard input closes.

That is when the daemon is gone. It leads a session of its own, so that all that the command started goes too.
"""

import os
import signal
import subprocess
import sys
import threading


def main() -> None:
    """Run the command, and end as it does."""
    command = subprocess.Popen(sys.argv[1], shell=True, stdin=subprocess.DEVNULL)  # the operator's own
    threading.Thread(target=_wait_for_end_of_input, daemon=True).start()
    status = command.wait()
    sys.exit(status if status >= 0 else 128 - status)


def _wait_for_end_of_input() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
