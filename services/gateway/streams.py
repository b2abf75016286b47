"""Open streams end when what opened them does: their session, or the rule that permitted them.

Looked at whenever a session may have ended, and every second: expiry and a changed policy announce
nothing. A look is no use of a session, so an open stream does not keep one from becoming idle.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from sealward.kit.chain import ControlCall
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.authority import CALLER, Caller

_EVERY_SECONDS = 1.0
_MISSES = "stream-misses"
# Looks in a row for which the store may be away: a stream that cannot be looked at ends closed.
_MOST_MISSES = 2
_AWAY = frozenset({Reason.SESSION_STORE_UNAVAILABLE, Reason.KEYS_UNAVAILABLE})

Judge = Callable[[ControlCall], "SealwardError | None"]


class Server(Protocol):
    """What is needed of the listener."""

    def recheck(self, judge: Judge) -> Sequence[tuple[ControlCall, SealwardError]]:
        """See GrpcServer.recheck."""


class StreamGuard:
    """One daemon thread. `still` raises what stands against a call that was admitted before."""

    def __init__(
        self,
        server: Server,
        still: Callable[[ControlCall], None],
        record: Callable[[ControlCall, SealwardError], None],
    ) -> None:
        self._server = server
        self._still = still
        self._record = record
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stream-guard", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def look(self) -> None:
        """Look now. Never blocks."""
        self._wake.set()

    def stop(self) -> None:
        """End the streams of sessions: the service is shutting down."""
        self._stop.set()
        self._wake.set()
        draining = SealwardError(Reason.DRAINING, "the service is shutting down", retry_after=1.0)
        self._server.recheck(lambda call: draining if _session_of(call) else None)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(_EVERY_SECONDS)
            self._wake.clear()
            if self._stop.is_set():
                return
            for call, problem in self._server.recheck(self._judge):
                self._record(call, problem)

    def _judge(self, call: ControlCall) -> SealwardError | None:
        if not _session_of(call):
            return None
        try:
            self._still(call)
        except SealwardError as error:
            if error.reason not in _AWAY:
                return error
            misses = int(call.attributes.get(_MISSES, 0)) + 1
            call.attributes[_MISSES] = misses
            return error if misses > _MOST_MISSES else None
        call.attributes.pop(_MISSES, None)
        return None


def _session_of(call: ControlCall) -> bool:
    caller = cast("Caller | None", call.attributes.get(CALLER))
    return caller is not None and caller.session is not None
