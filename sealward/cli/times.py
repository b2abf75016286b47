"""Times as people write them on a command line, and as they read them."""

from __future__ import annotations

import datetime as dt
import re

from sealward.cli.errors import usage

_SPAN = re.compile(r"(\d{1,6})([smhdw])")
_LAST = (1 << 63) - 1
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_time(text: str, now: dt.datetime) -> int:
    """Return nanoseconds since the epoch for `15m`, `2h`, `7d`, `2026-05-01` or an ISO time.

    A span counts back from `now`; a time without a zone is local; times that no record can have
    become the nearest that one can. Raise CliError.
    """
    span = _SPAN.fullmatch(text)
    try:
        if span:
            moment = now - dt.timedelta(seconds=int(span[1]) * _SECONDS[span[2]])
        else:
            moment = dt.datetime.fromisoformat(text).astimezone(dt.UTC)
    except (ValueError, OverflowError):
        raise usage(
            f"{text} is not a time", "15m, 2h, 7d, 2026-05-01 or 2026-05-01T08:00:00Z"
        ) from None
    nanos = int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000
    # To the service 0 is no bound at all.
    return min(max(nanos, 1), _LAST)


def parse_span(text: str) -> int:
    """Return the seconds of `90s`, `15m`, `2h`, `7d`; raise CliError."""
    span = _SPAN.fullmatch(text)
    if span is None:
        raise usage(f"{text} is not a length of time", "90s, 15m, 2h or 7d")
    return int(span[1]) * _SECONDS[span[2]]


def show_nanos(nanos: int) -> str:
    """Return a time in UTC with milliseconds."""
    moment = dt.datetime.fromtimestamp(nanos // 1_000_000_000, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanos // 1_000_000 % 1000:03d}Z"


def show_seconds(seconds: int) -> str:
    """Return a time in UTC with seconds."""
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
