"""`foldin follow`, killed by itself before the N-th step by which it changes its folder or starts a command.

python struck.py N FOLDER [arguments of foldin]; 0 kills never and prints how many steps there were on stderr.
"""

import os
import signal
import sys
from itertools import count

STEPS = {"os.rename", "os.symlink", "os.remove", "os.mkdir", "os.rmdir"}


def is_step(event: str, arguments: tuple[object, ...], folder: str) -> bool:
    if event == "open":
        written = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        return bool(written) and str(arguments[0]).startswith(folder)
    if event in {"os.remove", "os.rmdir"} and arguments[1] != -1:  # named below an open folder, as rmtree does
        return True
    return event == "subprocess.Popen" or (event in STEPS and str(arguments[0]).startswith(folder))


def main(last: int, folder: str) -> None:
    steps, seen = count(1), [0]

    def strike(event: str, arguments: tuple[object, ...]) -> None:
        if is_step(event, arguments, folder):
            seen[0] = next(steps)
            if seen[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(strike)
    from foldin.cli import app

    try:
        app()
    finally:
        print(f"steps: {seen[0]}", file=sys.stderr)


if __name__ == "__main__":
    step, place = int(sys.argv[1]), sys.argv[2]
    sys.argv = ["foldin", *sys.argv[3:]]
    main(step, place)
