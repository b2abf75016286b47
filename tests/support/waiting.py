"""Waiting for what comes by itself."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

SECONDS = 60.0


def until(condition: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    """Wait for a condition; fail the test when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.02)


def free_port() -> int:
    """A loopback port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
