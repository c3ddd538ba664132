"""What the log looks like: lines for a console, or JSON objects; times in UTC, and what a line is about in a field."""

import logging
import time
from typing import Any, Literal

from pythonjsonlogger.json import JsonFormatter

LogFormat = Literal["console", "json"]

_CONSOLE = "%(asctime)s %(levelname)-7s %(about)s%(message)s"
_FIELDS = ["asctime", "levelname", "name", "message"]
_RENAMED = {"asctime": "time", "levelname": "level", "name": "logger"}
# A line is a record: text that submitters chose must not be able to begin another one, nor to steer a terminal.
_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) != "\t"}


def about(log: logging.Logger, submission_id: str) -> "logging.LoggerAdapter[logging.Logger]":
    """Return a log whose records carry a submission's id (if any): as the field `submission`, or before the text."""
    return logging.LoggerAdapter(log, {"submission": submission_id} if submission_id else {})


def configure(level: str, log_format: LogFormat) -> None:
    """Send the log to standard error.

    Args:
      level: the lowest that is shown; a name of logging's, in any case.
      log_format: `console` for people, `json` for one JSON object a line.
    """
    formatter: logging.Formatter
    handler = logging.StreamHandler()
    if log_format == "json":
        formatter = JsonFormatter(_FIELDS, rename_fields=_RENAMED)
    else:
        formatter = _ConsoleFormatter(_CONSOLE)
        handler.addFilter(_for_console)
    formatter.converter = time.gmtime
    formatter.default_time_format = "%Y-%m-%dT%H:%M:%S"
    formatter.default_msec_format = "%s.%03dZ"
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler])


class _ConsoleFormatter(logging.Formatter):
    def formatException(self, ei: Any) -> str:
        lines = super().formatException(ei).splitlines()
        return "\n".join(line.translate(_ESCAPED) for line in lines)


def _for_console(record: logging.LogRecord) -> bool:
    submission_id = getattr(record, "submission", "")
    record.about = f"submission {submission_id}: " if submission_id else ""
    record.msg, record.args = record.getMessage().translate(_ESCAPED), ()
    return True
