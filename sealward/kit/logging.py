"""JSON log lines that cannot carry a payload.

Only keys of an allow-list with values of simple types pass; the rest is dropped and counted in the
line itself (`dropped`). There is no key for free text from outside: an exception is logged as its
type, the place in our code and an incident id, never as its message.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, TextIO

import structlog

ALLOWED_KEYS = frozenset(
    {
        "event", "level", "time", "service", "reason", "method", "code", "event_id", "log_index",
        "duration_ms", "count", "size", "state", "name", "version", "address", "incident",
        "error_type", "where", "attempt", "seconds", "identity", "path", "dropped", "kind", "pid",
        "metrics", "transport", "origin", "not_after", "serial", "setting", "tenant",
    }
)  # fmt: skip
_LONGEST = 400


def _only_allowed(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    kept: dict[str, Any] = {}
    dropped = 0
    for key, value in event.items():
        if key not in ALLOWED_KEYS or not isinstance(value, str | int | float | bool | None):
            dropped += 1
        elif isinstance(value, str) and len(value) > _LONGEST:
            kept[key] = value[:_LONGEST] + "…"
        else:
            kept[key] = value
    if dropped:
        kept["dropped"] = dropped
    return kept


class _Lines:
    """Writes lines and outlives its stream: a full disk must not fail the call that is logged."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def msg(self, message: str) -> None:
        with self._lock:
            try:
                self._stream.write(message + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                return

    log = debug = info = warning = error = critical = fatal = msg


def get_logger(service: str, stream: TextIO | None = None) -> structlog.typing.FilteringBoundLogger:
    """Return the service's logger; lines go to `stream` (stdout when None)."""
    logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        _Lines(stream or sys.stdout),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            _only_allowed,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
        service=service,
    )
    return logger


def where(error: BaseException) -> str:
    """Say where an exception was raised: `file:line` of its innermost frames, without its text."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{f.filename.rsplit('/', 1)[-1]}:{f.lineno}" for f in reversed(frames))


def silence_foreign(log: structlog.typing.FilteringBoundLogger) -> None:
    """Route uncaught exceptions and every library's logging through `log`, without their text."""

    class _Foreign(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # A library's message may quote what it was given: only its name and level are kept.
            if record.levelno >= logging.WARNING:
                log.warning("library.log", name=record.name, kind=record.levelname)

    logging.basicConfig(handlers=[_Foreign()], level=logging.WARNING, force=True)

    def hook(kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
        log.critical("uncaught", error_type=kind.__name__, where=where(error))

    sys.excepthook = hook

    def thread_hook(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            log.critical("uncaught", error_type=args.exc_type.__name__, where=where(args.exc_value))

    threading.excepthook = thread_hook
