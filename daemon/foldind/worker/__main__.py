"""The worker process: `python -m foldind.worker`. Started by the daemon, and by nobody else.

It reads requests from standard input and answers on what was standard output when it started. It never renames, never
touches the ledger, ignores the signals that are meant for the daemon, and goes when its pipe closes.
"""

import ctypes
import os
import signal
import sys
import threading
from dataclasses import replace
from queue import SimpleQueue
from typing import BinaryIO

from foldind.errors import CheckpointRefused
from foldind.memory import reset_peak, resident_bytes, return_free_memory
from foldind.state.durable import is_disk_trouble
from foldind.worker.fold import fold_submission
from foldind.worker.messages import (
    BasisDone,
    BasisRequest,
    Failed,
    FoldRequest,
    Message,
    Progress,
    PublishRequest,
    Ready,
    Refused,
    decode,
    encode,
)
from foldind.worker.prepare import prepare_bases
from foldind.worker.publish import publish

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve requests until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Whatever a library prints goes to the log, not into the conversation.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    requests: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, requests), daemon=True).start()
    _send(answers, Ready(resident_bytes("VmRSS")))
    while True:
        _send(answers, _answer(decode(requests.get()), answers))
        return_free_memory()


def _receive(pipe: BinaryIO, requests: SimpleQueue[bytes]) -> None:
    for line in pipe:
        requests.put(line)
    os._exit(0)  # the daemon is gone: whatever is being computed is of no use


def _answer(request: Message, answers: BinaryIO) -> Message:
    def report(progress: Progress) -> None:
        _send(answers, progress)

    reset_peak()
    result: Message = Failed(f"{type(request).__name__} is no request")
    try:
        match request:
            case FoldRequest():
                folded = fold_submission(request, report)
                result = replace(folded, peak_resident_bytes=resident_bytes("VmHWM"))
            case PublishRequest():
                published = publish(request, report)
                result = replace(published, peak_resident_bytes=resident_bytes("VmHWM"))
            case BasisRequest():
                prepare_bases(request)
                result = BasisDone()
    except CheckpointRefused as error:
        return Refused(error.reason, error.hint)
    except OSError as error:
        return Failed(str(error), disk_errno=(error.errno or 0) if is_disk_trouble(error) else 0)
    except Exception as error:
        return Failed(f"{type(error).__name__}: {error}")
    return result


def _send(answers: BinaryIO, message: Message) -> None:
    answers.write(encode(message))
    answers.flush()


if __name__ == "__main__":
    main()
