"""What systemd is told: the sd_notify protocol, one datagram a message.

Everything here is a courtesy: without systemd nothing is sent, and nothing that goes wrong stops the daemon.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"


class Systemd:
    """The service manager that started this process, if it was one.

    Args:
      environment: of the process, with NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID where systemd set them.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ):
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._environment = environment
        self._status = ""

    def tell(self, *messages: str) -> None:
        """Send messages; without systemd do nothing."""
        if not self._address:
            return
        # A leading @ stands for the zero byte of a name in the abstract namespace.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            ) as sender:
                sender.sendto("\n".join(messages).encode(), address)
        except (OSError, ValueError) as error:
            log.warning("systemd could not be told %s: %s", messages[0], error)

    def tell_status(self, sentence: str) -> None:
        """Have `systemctl status` show a sentence."""
        if sentence != self._status:
            self._status = sentence
            self.tell(f"STATUS={' '.join(sentence.split())}")

    @property
    def watchdog_seconds(self) -> float:
        """How often to send WATCHDOG: half of what systemd waits for it; 0 if it does not wait for this process."""
        microseconds, pid = (self._environment.get(name, "") for name in ("WATCHDOG_USEC", "WATCHDOG_PID"))
        if not self._address or not microseconds or (pid.isdecimal() and int(pid) != os.getpid()):
            return 0
        if not microseconds.isdecimal() or not (pid.isdecimal() or not pid):
            log.warning("WATCHDOG_USEC=%s WATCHDOG_PID=%s make no sense; the watchdog is not fed", microseconds, pid)
            return 0
        return int(microseconds) / 2e6

    async def feed_watchdog(self, gets_on: Callable[[], bool]) -> None:
        """Send WATCHDOG for as long as systemd wants it, but only while the daemon gets on with its work.

        Args:
          gets_on: whether what the daemon is there for goes on; when it says no, systemd is left to act.
        """
        while seconds := self.watchdog_seconds:
            if gets_on():
                self.tell(WATCHDOG)
            await asyncio.sleep(seconds)
