"""The link on which the session store says which cached sessions are no longer true.

Client-side caching of Redis and Valkey in its RESP2 form: one connection subscribes to
`__redis__:invalidate`, another one turns tracking on in broadcast mode with the first as its
target (`CLIENT TRACKING ON REDIRECT <id> BCAST PREFIX sess:`) and stays open. A message may be
lost when either connection dies, so both are asked with PING all the time, and whoever uses the
cache asks `fresh()` first: it is true for one second after the sending of the last PING that both
answered. No answer for a second, for whatever reason, means no cache.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis
import structlog

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason

CHANNEL = b"__redis__:invalidate"
FRESH_SECONDS = 1.0
_PING_SECONDS = 0.2
_RETRY_SECONDS = 0.1

# `OSError` covers sockets that die under redis-py's own error types.
STORE_ERRORS = (redis.RedisError, OSError)


def store_unavailable() -> SealwardError:
    """The one error for a session store that does not answer."""
    return SealwardError(
        Reason.SESSION_STORE_UNAVAILABLE, "the session store cannot be reached", retry_after=1.0
    )


class InvalidationLink:
    """Watches one prefix. `on_invalid` gets the keys that changed, or None for all of them.

    `on_invalid(None)` is called whenever a message may have been missed; `on_state` tells of each
    change between there and not there. Both are called from the link's own thread.
    """

    def __init__(
        self,
        pool: redis.ConnectionPool,
        prefix: str,
        on_invalid: Callable[[Sequence[bytes] | None], None],
        on_state: Callable[[bool], None],
        log: structlog.typing.FilteringBoundLogger,
        mark: Callable[[], object] = lambda: None,
    ) -> None:
        """`mark` says what connections are made with: they are made anew when it changes."""
        self._pool = pool
        self._mark = mark
        self._prefix = prefix
        self._on_invalid = on_invalid
        self._on_state = on_state
        self._log = log
        self._fresh_until = 0.0
        self._stop = threading.Event()
        self._again = threading.Event()
        self._thread = threading.Thread(target=self._run, name="session-link", daemon=True)

    def start(self) -> None:
        """Connect, and reconnect until stop()."""
        self._thread.start()

    def stop(self) -> None:
        """Close the link."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=3)

    def fresh(self) -> bool:
        """True while cached values may be believed."""
        return time.monotonic() < self._fresh_until

    def reconnect(self) -> None:
        """Believe nothing and open everything anew: the server is not the one it was."""
        self._fresh_until = 0.0
        self._again.set()

    def _run(self) -> None:
        there = False
        while not self._stop.is_set():
            # redis-py's connections are typed in part only.
            pair: tuple[Any, Any] | None = None
            try:
                self._again.clear()
                pair = self._open()
                self._log.info("sessions.link-open")
                there = True
                while pair is not None and not self._stop.is_set():
                    pair = self._watch(*pair)
            except STORE_ERRORS as error:
                if there:
                    self._log.warning("sessions.link-lost", error_type=type(error).__name__)
            finally:
                self._fresh_until = 0.0
                self._on_invalid(None)
                if there:
                    there = False
                    self._on_state(False)
                _close(pair)
            self._stop.wait(_RETRY_SECONDS)

    def _open(self) -> tuple[Any, Any]:
        """Open the two connections; what is cached is from before."""
        feed: Any
        tracker: Any
        feed, tracker = pair = (self._pool.make_connection(), self._pool.make_connection())
        try:
            target = _ask(feed, "CLIENT", "ID")
            _ask(feed, "SUBSCRIBE", CHANNEL)
            _ask(
                tracker,
                *("CLIENT", "TRACKING", "ON", "REDIRECT", str(target)),
                *("BCAST", "PREFIX", self._prefix),
            )
        except BaseException:
            _close(pair)
            raise
        self._on_invalid(None)
        return pair

    def _watch(self, feed: Any, tracker: Any) -> tuple[Any, Any] | None:
        """Watch until something changes; return the connections to go on with, None at the end."""
        mark = self._mark()
        try:
            announced = False
            while not self._stop.is_set():
                sent = time.monotonic()
                feed.send_command("PING")
                _ask(tracker, "PING")
                self._listen(feed, sent)
                if not announced:
                    announced = True
                    self._on_state(True)
                if self._again.is_set():
                    raise redis.ConnectionError("to be opened anew")
                if self._mark() != mark:
                    return self._moved()
        finally:
            _close((feed, tracker))
        return None

    def _moved(self) -> tuple[Any, Any]:
        """Open connections with the new certificate, before those of the old one are closed."""
        pair = self._open()
        # Those in use are of the old certificate for as long as the pool keeps them.
        self._pool.disconnect(inuse_connections=False)
        self._log.info("sessions.link-renewed")
        return pair

    def _listen(self, feed: Any, sent: float) -> None:
        """Take messages for a while, and at least until the PING of this time was answered."""
        answered = False
        while (left := sent + _PING_SECONDS - time.monotonic()) > 0 or not answered:
            if left <= 0 and time.monotonic() - sent > FRESH_SECONDS:
                raise redis.TimeoutError
            if not feed.can_read(timeout=max(left, 0.01)):
                continue
            message = feed.read_response()
            if message[0] == b"pong":
                answered = True
                if not self._again.is_set():
                    self._fresh_until = sent + FRESH_SECONDS
            elif message[0] == b"message" and message[1] == CHANNEL:
                self._on_invalid(message[2])


def _ask(connection: Any, *command: str | bytes) -> Any:
    connection.send_command(*command)
    return connection.read_response()


def _close(pair: tuple[Any, Any] | None) -> None:
    for connection in pair or ():
        connection.disconnect()
