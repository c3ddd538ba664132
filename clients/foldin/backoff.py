"""How long to go on trying, and how long to wait between two tries."""

import random
import time

from foldin.errors import FoldinError

FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0


class Patience:
    """Exponential backoff with jitter that gives up after a while without success.

    The clock starts at the first failure after a success, so a long transfer survives any number of short outages.

    Args:
      seconds: how long failures may last.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends: float | None = None
        self._delay = FIRST_DELAY

    def reset(self) -> None:
        """Note a success."""
        self._ends = None
        self._delay = FIRST_DELAY

    def delay(self, error: FoldinError) -> float:
        """Return how many seconds to wait after this failure.

        Raises:
          FoldinError: error itself, once failures have lasted too long.
        """
        now = time.monotonic()
        if self._ends is None:
            self._ends = now + self._seconds
        if now >= self._ends:
            raise error
        delay = self._delay * random.uniform(0.5, 1.0)
        self._delay = min(self._delay * 2, LONGEST_DELAY)
        return min(delay, self._ends - now)

    def pause(self, error: FoldinError) -> None:
        """Wait before the next try.

        Raises:
          FoldinError: error itself, once failures have lasted too long.
        """
        time.sleep(self.delay(error))
