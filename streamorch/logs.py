"""Logs as JSON, one object a line, on standard error: never a key, a secret or a query string."""

import datetime
import logging
import sys
from contextvars import ContextVar

import msgspec

from streamorch import keys

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)  # of the request that this thread answers

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JSONFormatter(logging.Formatter):
    """time, level, logger, message, the request id inside a request, and whatever `extra` carries.

    Every text is searched for keys and blotted: a line of a library may quote what a client sent.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := REQUEST_ID.get()) is not None:
            line["request_id"] = request_id
        line.update((name, value) for name, value in vars(record).items() if name not in _OWN)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return keys.redact(msgspec.json.encode(line, enc_hook=str).decode())


def configure(level: str) -> None:
    """Send all logging to standard error in that form. `level`: debug, info, warning or error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # The pool tells of each failed attempt to connect; the database's own line says it once.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR if level != "debug" else logging.DEBUG)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
