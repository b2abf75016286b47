"""The session store: Redis or Valkey, with a cache in this process.

Redis holds, under `H = SHA-256(token)` in hexadecimal:

    sess:H              the sealed session; kept a while past its end, so that a late caller learns
                        that it expired
    sess-idle:H         there while the session is not idle; each use puts its end off
    sess-id:<id>        H, to find a session by its public id
    sess-user:<user id> the set of H of a user's sessions

and, for a minute, what ended: sess:s:<id> one session, sess:u:<user id> all of a user, sess:all.
Whoever caches hears of these too, so that an end reaches sessions that the store does not list.

Only `sess:` is tracked, so that putting off the idle end empties nobody's cache. Reads are answered
from the cache while the invalidation link is fresh; while it is silent the store itself is asked.

Whoever can write to the store can put old values back and take names out of a user's set. So the
end of a session is written to the ledger (the user directory) before the store is told, and what
the store holds is compared with it whenever it is read.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.emergency import patient_mark
from services.gateway.invalidation import STORE_ERRORS, InvalidationLink, store_unavailable
from services.gateway.session import (
    Session,
    decode_session,
    new_session_id,
    new_token,
    token_hash,
)
from services.gateway.steady import SteadyClock

PREFIX = "sess:"
_IDLE = "sess-idle:"
_BY_ID = "sess-id:"
_BY_USER = "sess-user:"
_LINGER_SECONDS = 600
_SOCKET_SECONDS = 0.5
# A connection through TLS takes several round trips.
_REMOTE_SECONDS = 1.0
_CAPACITY = 20_000
# A cached session is compared with the store and the ledger that often, whatever was announced.
_BELIEVED_SECONDS = 30.0
_ANNOUNCED_SECONDS = 60
# What was ended is remembered that much longer than it could live: clocks may be set.
_REMEMBERED_SECONDS = 7 * 86400
_USERS_AT_ONCE = 200
_NAME = re.compile(rb"[0-9a-f]{64}")


class Sealer(Protocol):
    """Seals session values. `name` is the token's hash: a value moved to another name fails."""

    def seal(self, plaintext: bytes, name: str) -> bytes:
        """Seal; raise KEYS_UNAVAILABLE."""

    def open(self, sealed: bytes, name: str) -> bytes:
        """Open; raise SEAL_BROKEN or KEYS_UNAVAILABLE."""


class Ledger(Protocol):
    """Remembers which sessions were ended, where the store cannot change it (users.py)."""

    def live(self, session: Session) -> bool:
        """Whether a session was not ended."""

    def end_session(self, session_id: str, until: int) -> None:
        """Remember the end of one session until then, seconds since the epoch."""

    def end_sessions(self, user_id: str) -> None:
        """Remember the end of every session that a user has now."""

    def end_everybody(self) -> list[str]:
        """Remember the end of every session of everybody; return the ids of all users."""


class _Entry:
    """A cached session. `until`: asked anew then; both on the monotonic clock."""

    __slots__ = ("idle_until", "session", "until")

    def __init__(self, session: Session, idle_until: float, until: float) -> None:
        self.session = session
        self.idle_until = idle_until
        self.until = until


def make_pool(
    url: str, password: str | None = None, remote: dict[str, Any] | None = None
) -> redis.ConnectionPool:
    """Make the pool that the store and its link connect with; `remote` is for one on the network.

    RESP2, because invalidation messages do not reach a subscriber with redis-py's default; short
    time limits and no retries, because a call that waits for the store holds up others.
    """
    seconds = _SOCKET_SECONDS if remote is None else _REMOTE_SECONDS
    options: dict[str, Any] = {
        "protocol": 2,
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "retry": Retry(NoBackoff(), 0),
    }
    if remote is not None:
        return redis.ConnectionPool(**options, **remote)
    if password is not None:
        options["password"] = password
    return redis.ConnectionPool.from_url(url, **options)


class SessionStore:
    """Sessions of this deployment. Thread-safe.

    Every method raises SESSION_STORE_UNAVAILABLE when the store cannot be reached, and
    KEYS_UNAVAILABLE when a value cannot be sealed or opened for want of the key.
    """

    def __init__(
        self,
        pool: redis.ConnectionPool,
        sealer: Sealer,
        ledger: Ledger,
        log: structlog.typing.FilteringBoundLogger,
        *,
        idle_seconds: int,
        life_seconds: int,
        on_state: Callable[[bool], None],
        mark: Callable[[], object] = lambda: None,
    ) -> None:
        """`mark` tells states of the connections' certificate apart (storetls.py)."""
        self.idle_seconds = idle_seconds
        self._life_seconds = life_seconds
        self._sealer = sealer
        self._ledger = ledger
        self._redis = redis.Redis(connection_pool=pool)
        self._lock = threading.Lock()
        self._cache: dict[str, _Entry] = {}
        self._reading: dict[str, object] = {}
        self._used: dict[str, None] = {}
        self._unsaid: dict[str, None] = {}
        self._clock = SteadyClock()
        self._listeners: list[Callable[[], None]] = []
        self._on_state = on_state
        self._log = log
        self._link = InvalidationLink(pool, PREFIX, self._invalid, on_state, log, mark)
        self._stop = threading.Event()
        self._writer = threading.Thread(target=self._write_back, name="session-idle", daemon=True)

    def start(self) -> None:
        """Open the link and begin to write idle touches back."""
        self._on_state(False)
        self._link.start()
        self._writer.start()

    def stop(self) -> None:
        """Write the last touches back and close the connections."""
        self._stop.set()
        if self._writer.is_alive():
            self._writer.join(timeout=3)
        self._link.stop()
        self._redis.close()

    def find(self, name: str, spki: bytes) -> Session | None:
        """Return a session from the cache, or None when `load` must be asked. Never blocks.

        `name` is the token's hash, `spki` the caller's certificate key. Counts as a use. Raises
        SESSION_CERTIFICATE_MISMATCH.
        """
        if not self._link.fresh():
            return None
        entry = self._cache.get(name)
        now = time.monotonic()
        if entry is None or now >= entry.idle_until or now >= entry.until:
            return None
        _check_spki(entry.session, spki)
        entry.idle_until = now + self.idle_seconds
        self._used[name] = None
        return entry.session

    def load(self, name: str, spki: bytes) -> Session:
        """Return a session from the store. Counts as a use.

        While the link is silent the store itself is asked for every call and nothing is cached.
        Raises SESSION_INVALID, SESSION_EXPIRED, SESSION_CERTIFICATE_MISMATCH, SEAL_BROKEN.
        """
        reading = object()
        with self._lock:
            self._reading[name] = reading
        try:
            session = self._open(name)
            _check_spki(session, spki)
        except SealwardError:
            with self._lock:
                self._reading.pop(name, None)
            raise
        with self._lock:
            # A change that was announced while we read would be missed otherwise.
            if self._reading.pop(name, None) is reading and self._link.fresh():
                while len(self._cache) >= _CAPACITY:
                    del self._cache[next(iter(self._cache))]
                now = time.monotonic()
                left = min(_BELIEVED_SECONDS, session.expires - self._clock.now())
                self._cache[name] = _Entry(session, now + self.idle_seconds, now + left)
        self._used[name] = None
        return session

    def peek(self, name: str, spki: bytes) -> Session:
        """Return a session without using it: its idle time goes on. Raises what `load` raises."""
        entry = self._cache.get(name)
        now = time.monotonic()
        if entry is not None and self._link.fresh() and now < min(entry.idle_until, entry.until):
            _check_spki(entry.session, spki)
            return entry.session
        session = self._open(name)
        _check_spki(session, spki)
        return session

    def on_end(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever some session may have ended. It must not block."""
        self._listeners.append(listener)

    def create(
        self,
        user_id: str,
        user: str,
        roles: Sequence[str],
        spki: bytes,
        generation: int = 0,
        *,
        break_glass: str = "",
        patient: str = "",
        life_seconds: int | None = None,
        second_factor: int = 0,
    ) -> tuple[str, Session]:
        """Make a session; return its token and the session.

        `break_glass` is a reason code, and then `patient` the reference of the one patient that it
        is for; `life_seconds` is for a life shorter than usual.

        `generation` is the user's from before the password was checked: whoever was disabled in
        the meantime has no session.
        """
        now = int(self._now())
        token = new_token()
        name = token_hash(token)
        session_id = new_session_id()
        life = min(self._life_seconds, life_seconds or self._life_seconds)
        session = Session(
            *(session_id, user_id, user, tuple(roles), spki, now, now + life, generation),
            break_glass,
            patient_mark(session_id, patient) if break_glass else "",
            second_factor,
        )
        sealed = self._sealer.seal(session.encode(), name)
        gone = session.expires + _LINGER_SECONDS
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(PREFIX + name, sealed, exat=gone)
            pipe.set(_IDLE + name, b"1", ex=self.idle_seconds)
            pipe.set(_BY_ID + session.session_id, name, exat=gone)
            pipe.sadd(_BY_USER + user_id, name)
            pipe.expireat(_BY_USER + user_id, gone)
            self._run(pipe.execute)
        return token, session

    def prove(self, name: str, session: Session, when: int) -> None:
        """Note in a session when its second factor was proven, seconds since the epoch.

        Raise SESSION_INVALID when it ended meanwhile: it is not brought back.
        """
        sealed = self._sealer.seal(replace(session, second_factor=when).encode(), name)
        done = self._run(lambda: self._redis.set(PREFIX + name, sealed, xx=True, keepttl=True))
        self._drop(lambda known: known.session_id == session.session_id)
        if not done:
            raise SealwardError(Reason.SESSION_INVALID, "the session token is not known")

    def end(self, session: Session) -> bool:
        """End one session; return whether it was still there."""
        return self.end_by_id(session.session_id)

    def end_by_id(self, session_id: str) -> bool:
        """End the session with this public id; return whether it was still there."""
        until = int(time.time()) + self._life_seconds + _REMEMBERED_SECONDS
        self._ledger.end_session(session_id, until)
        self._drop(lambda session: session.session_id == session_id)
        self._announce(f"s:{session_id}")
        found = self._run(lambda: self._redis.get(_BY_ID + session_id))
        return self._end(_well_formed([] if found is None else [found])) == 1

    def end_all(self, user_id: str) -> int:
        """End all of a user's sessions; return how many were still there."""
        self._ledger.end_sessions(user_id)
        self._drop(lambda session: session.user_id == user_id)
        self._announce(f"u:{user_id}")
        names = self._names(user_id)
        ended = self._end(names)
        self._run(lambda: self._redis.delete(_BY_USER + user_id))
        return ended

    def end_everybody(self) -> int:
        """End every session of everybody; return how many were still there."""
        user_ids = self._ledger.end_everybody()
        self._drop(lambda _session: True)
        self._announce("all")
        ended = 0
        for first in range(0, len(user_ids), _USERS_AT_ONCE):
            some = user_ids[first : first + _USERS_AT_ONCE]
            pipe: Any
            with self._redis.pipeline(transaction=False) as pipe:
                for user_id in some:
                    pipe.smembers(_BY_USER + user_id)
                found = self._run(pipe.execute)
            ended += self._end([name for names in found for name in _well_formed(names)])
        return ended

    def of_users(self, user_ids: Iterable[str]) -> list[Session]:
        """Return the live sessions of these users, newest first."""
        found: list[Session] = []
        for user_id in user_ids:
            gone: list[str] = []
            for name in self._names(user_id):
                sealed, idle_ms = self._read(name)
                if sealed is None or idle_ms <= 0:
                    gone.append(name)
                    continue
                try:
                    session = decode_session(self._sealer.open(sealed, name))
                except SealwardError as error:
                    if error.reason is not Reason.SEAL_BROKEN:
                        raise
                    # One value that somebody spoilt must not hide the others.
                    self._log.warning("sessions.broken")
                    continue
                if self._clock.now() < session.expires and self._ledger.live(session):
                    found.append(session)
            if gone:
                self._forget(user_id, gone)
        return sorted(found, key=lambda session: session.created, reverse=True)

    def _open(self, name: str) -> Session:
        sealed, idle_ms = self._read(name)
        if sealed is None:
            raise SealwardError(Reason.SESSION_INVALID, "the session token is not known")
        session = decode_session(self._sealer.open(sealed, name))
        if not self._ledger.live(session):
            raise SealwardError(Reason.SESSION_INVALID, "the session token is not known")
        if idle_ms <= 0 or self._clock.now() >= session.expires:
            self._cache.pop(name, None)
            raise SealwardError(Reason.SESSION_EXPIRED, "the session is over: log in again")
        return session

    def _read(self, name: str) -> tuple[bytes | None, int]:
        """Return the sealed value, if any, and the milliseconds until it is idle."""
        pipe: Any
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.get(PREFIX + name)
            pipe.pttl(_IDLE + name)
            pipe.time()
            sealed, idle_ms, store_time = self._run(pipe.execute)
        self._observe(store_time)
        return sealed, idle_ms

    def _now(self) -> float:
        return self._observe(self._run(self._redis.time))

    def _observe(self, store_time: tuple[int, int]) -> float:
        return self._clock.observe(store_time[0] + store_time[1] / 1e6)

    def _announce(self, what: str) -> None:
        """Tell every gateway what ended; raise when it has to be told later, which it then is."""
        self._unsaid[what] = None
        self._run(lambda: self._redis.set(PREFIX + what, b"1", ex=_ANNOUNCED_SECONDS))
        self._unsaid.pop(what, None)

    def _forget(self, user_id: str, names: Sequence[str]) -> None:
        self._run(lambda: self._redis.srem(_BY_USER + user_id, *names))

    def _names(self, user_id: str) -> list[str]:
        return sorted(_well_formed(self._run(lambda: self._redis.smembers(_BY_USER + user_id))))

    def _end(self, names: Sequence[str]) -> int:
        if not names:
            return 0
        for name in names:
            self._cache.pop(name, None)
        with self._redis.pipeline(transaction=True) as pipe:
            for name in names:
                pipe.delete(PREFIX + name)
                pipe.delete(_IDLE + name)
            results = self._run(pipe.execute)
        # Our own reads between the pop above and the deletion are dropped by the invalidation.
        return int(sum(results[::2]))

    def _drop(self, ended: Callable[[Session], bool]) -> None:
        """Forget cached sessions, whatever the store says of them, and what is being read."""
        with self._lock:
            self._reading.clear()
            for name, entry in list(self._cache.items()):
                if ended(entry.session):
                    self._cache.pop(name, None)
        for listener in self._listeners:
            listener()

    def _invalid(self, keys: Sequence[bytes] | None) -> None:
        names = (
            None if keys is None else [key.decode(errors="replace")[len(PREFIX) :] for key in keys]
        )
        if names is None or "all" in names:
            self._drop(lambda _session: True)
            return
        users = {name[2:] for name in names if name.startswith("u:")}
        ids = {name[2:] for name in names if name.startswith("s:")}
        if users or ids:
            self._drop(lambda session: session.user_id in users or session.session_id in ids)
        with self._lock:
            for name in names:
                self._cache.pop(name, None)
                self._reading.pop(name, None)
        for listener in self._listeners:
            listener()

    def _write_back(self) -> None:
        pause = min(1.0, self.idle_seconds / 4)
        stopping = False
        while not stopping:
            stopping = self._stop.wait(pause)
            for what in list(self._unsaid):
                with contextlib.suppress(SealwardError):
                    self._announce(what)
            used, self._used = self._used, {}
            if not used:
                continue
            try:
                with self._redis.pipeline(transaction=False) as pipe:
                    for name in used:
                        pipe.expire(_IDLE + name, self.idle_seconds)
                    pipe.execute()
            except STORE_ERRORS as error:
                if isinstance(error, redis.exceptions.ReadOnlyError):
                    self._demoted()
                self._log.warning("sessions.touch-lost", error_type=type(error).__name__)

    def _run(self, operation: Callable[[], Any]) -> Any:
        try:
            return operation()
        except redis.exceptions.ReadOnlyError:
            self._demoted()
            raise store_unavailable() from None
        except STORE_ERRORS:
            raise store_unavailable() from None

    def _demoted(self) -> None:
        """The server became a replica: the address has to be asked anew who the primary is."""
        self._log.warning("sessions.store-read-only")
        self._redis.connection_pool.disconnect(inuse_connections=False)
        self._link.reconnect()


def _well_formed(names: Iterable[bytes]) -> list[str]:
    """Leave out what no gateway wrote."""
    return [name.decode() for name in names if _NAME.fullmatch(name)]


def _check_spki(session: Session, spki: bytes) -> None:
    if session.spki != spki:
        raise SealwardError(
            Reason.SESSION_CERTIFICATE_MISMATCH, "the session belongs to another certificate"
        )
