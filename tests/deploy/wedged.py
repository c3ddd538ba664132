"""`foldind` whose merge loop hangs once a file is there, and whose steps are given less time than usual."""

import sys
import threading
from pathlib import Path

from foldind import pulse, service
from foldind.cli import app

mark, *arguments = sys.argv[1:]
keep_house = service.keep_house


def hang(*given: object) -> bool:
    if Path(mark).exists():
        threading.Event().wait()
    return keep_house(*given)  # type: ignore[arg-type]


pulse.STEP_SECONDS = 1
service.HOUSEKEEPING_SECONDS = 0.1  # type: ignore[assignment]
service.keep_house = hang
app(arguments)
