"""Learns the list of revoked certificates from keys, for as long as the process lives.

Keys sends the whole list when the stream opens and after each change, and a sign of life every few
seconds. The stream is opened anew after a while even when nothing is wrong, so that one which hangs
without an error is not trusted for long.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc
import structlog

from sealward.api.keys.v1 import trust_pb2
from sealward.api.keys.v1.trust_pb2_grpc import TrustServiceStub
from sealward.kit.channel import Channels
from sealward.kit.reasons import Reason
from sealward.kit.revocation import Revocations
from sealward.kit.status import reason_of

_BACKOFF = (0.0, 0.05, 0.2, 0.5, 1.0)
_STREAM_SECONDS = 60.0
_TICK_SECONDS = 1.0


class RevocationWatch:
    """Two daemon threads: one reads the stream, one notices when nothing comes.

    `on_state` is told whether the list is confirmed; `on_refused` that keys refuses our own
    certificate as revoked. Both must not block.
    """

    def __init__(
        self,
        channels: Channels,
        revocations: Revocations,
        log: structlog.typing.FilteringBoundLogger,
        *,
        on_state: Callable[[bool], None],
        on_refused: Callable[[], None],
    ) -> None:
        self._channels = channels
        self._revocations = revocations
        self._log = log
        self._on_state = on_state
        self._on_refused = on_refused
        self._stop = threading.Event()
        self._learnt = threading.Event()
        self._settled = threading.Event()
        self._confirmed = False
        self._lost = False

    def start(self) -> None:
        """Begin to learn."""
        self._say(confirmed=False)
        threading.Thread(target=self._run, name="revocations", daemon=True).start()
        threading.Thread(target=self._tick, name="revocations-age", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Wait for the first list; False when it did not come, or we are refused as revoked."""
        self._settled.wait(seconds)
        return self._learnt.is_set()

    @property
    def refused(self) -> bool:
        """True when keys refuses our own certificate and there was never a list."""
        return self._settled.is_set() and not self._learnt.is_set()

    def stop(self) -> None:
        """Learn no more."""
        self._stop.set()
        self._channels.close()

    def _run(self) -> None:
        attempt = 0
        while not self._stop.wait(_BACKOFF[min(attempt, len(_BACKOFF) - 1)]):
            attempt = 0 if self._follow() else attempt + 1

    def _follow(self) -> bool:
        """Read one stream to its end; False when nothing came of it."""
        got = False
        try:
            stub = TrustServiceStub(self._channels.get())
            stream = stub.WatchRevocations(
                trust_pb2.WatchRevocationsRequest(), timeout=_STREAM_SECONDS, wait_for_ready=True
            )
            for message in stream:
                self._take(message)
                got = True
        except (grpc.RpcError, ValueError) as error:
            # ValueError: the channel was closed under us by a renewal, or a list of another form.
            code = error.code().name if isinstance(error, grpc.Call) else "CLOSED"
            if isinstance(error, grpc.Call) and reason_of(error) is Reason.CERTIFICATE_REVOKED:
                self._settled.set()
                self._on_refused()
            if not got and not self._lost and not self._stop.is_set():
                self._lost = True
                self._log.warning("revocations.lost", code=code)
        return got

    def _take(self, message: trust_pb2.WatchRevocationsResponse) -> None:
        if message.complete:
            before = self._revocations.version
            self._revocations.learn(message.version, [int(s, 16) for s in message.serials])
            if message.version < before:
                self._log.error("revocations.older", version=int(message.version))
        else:
            self._revocations.confirm(message.version)
        self._revocations.learn_destructions(message.destructions)
        if self._lost:
            self._lost = False
            self._log.info("revocations.found", version=int(message.version))
        self._say(confirmed=True)
        self._learnt.set()
        self._settled.set()

    def _tick(self) -> None:
        while not self._stop.wait(_TICK_SECONDS):
            self._revocations.tick()
            if self._learnt.is_set():
                self._say(confirmed=not self._revocations.stale)

    def _say(self, *, confirmed: bool) -> None:
        if confirmed is not self._confirmed or not self._learnt.is_set():
            self._confirmed = confirmed
            self._on_state(confirmed)
            if self._learnt.is_set() and not confirmed:
                self._log.error("revocations.stale", seconds=round(self._revocations.age))
