"""Ctrl-C that is not lost.

Python raises KeyboardInterrupt wherever it happens to be; within a destructor or a callback the
exception is printed and forgotten, and a command that follows something would go on for ever. So it
is noted as well, and looked at where such a command waits.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

_asked = threading.Event()


def watch() -> None:
    """Note interrupts from now on; they are raised as ever."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def pause(seconds: float) -> None:
    """Sleep; raise KeyboardInterrupt when one was lost before."""
    time.sleep(seconds)
    if _asked.is_set():
        raise KeyboardInterrupt


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    _asked.set()
    raise KeyboardInterrupt
