"""How the machine's clock stands, as the kernel knows it (adjtimex(2), read only)."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_CLOCKSOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_STA_UNSYNC = 0x0040
_STA_NANO = 0x2000
_TIME_ERROR = 5
# What the kernel says when nobody has told it anything: sixteen seconds.
_UNKNOWN_ERROR_US = 16_000_000


class Timex(ctypes.Structure):
    """`struct timex` of <sys/timex.h>, 64-bit."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("constant", ctypes.c_long),
        ("precision", ctypes.c_long),
        ("tolerance", ctypes.c_long),
        ("time_sec", ctypes.c_long),
        ("time_usec", ctypes.c_long),
        ("tick", ctypes.c_long),
        ("ppsfreq", ctypes.c_long),
        ("jitter", ctypes.c_long),
        ("shift", ctypes.c_int),
        ("stabil", ctypes.c_long),
        ("jitcnt", ctypes.c_long),
        ("calcnt", ctypes.c_long),
        ("errcnt", ctypes.c_long),
        ("stbcnt", ctypes.c_long),
        ("tai", ctypes.c_int),
        ("_reserved", ctypes.c_int * 11),
    )


@dataclass(frozen=True, slots=True)
class Reading:
    """How the clock stands.

    `source` is in words. Offset and largest error are in microseconds, None where the kernel does
    not know them.
    """

    source: str
    synchronised: Literal["yes", "no", "unknown"]
    offset_us: int | None = None
    error_us: int | None = None


Adjtimex = Callable[[Timex], int]
"""Fills a Timex; returns the clock's state, -1 when it may not be asked."""


def read_clock(source: str = "", adjtimex: Adjtimex | None = None) -> Reading:
    """Ask the kernel. `source` is what the operator calls the source of time; empty = unnamed."""
    said = source or f"system clock ({_clocksource()})"
    values = Timex()
    try:
        state = (adjtimex or _adjtimex())(values)
    except (OSError, AttributeError):
        state = -1
    if state < 0:
        return Reading(said, "unknown")
    in_step = state != _TIME_ERROR and not values.status & _STA_UNSYNC
    offset = values.offset // 1000 if values.status & _STA_NANO else values.offset
    if not in_step and values.maxerror >= _UNKNOWN_ERROR_US:
        # Nobody disciplines it: what stands there as offset and error is no measurement.
        return Reading(said, "no")
    return Reading(said, "yes" if in_step else "no", offset, values.maxerror)


def _adjtimex() -> Adjtimex:
    if sys.maxsize < 1 << 32:
        raise OSError("struct timex is laid out otherwise here")
    found = ctypes.CDLL(None, use_errno=True).adjtimex
    found.argtypes, found.restype = [ctypes.POINTER(Timex)], ctypes.c_int
    return lambda values: int(found(ctypes.byref(values)))


def _clocksource() -> str:
    try:
        return _CLOCKSOURCE.read_text(encoding="ascii").strip()[:32] or "unknown"
    except (OSError, UnicodeDecodeError):
        return "unknown"
