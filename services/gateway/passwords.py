"""Passwords: argon2id (RFC 9106, its low-memory parameters) in a pool of its own.

One hash takes some tenths of a second and 64 MiB. The pool keeps that away from every other call:
one at a time, in a process of low priority (hashing.py), and its queue is bounded: more logins than
it can take are refused at once. When logins queue it rests between them, because what shares a core
or a cache with a hash is slowed by it whatever its priority.
"""

from __future__ import annotations

import base64
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import argon2

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.hashing import PARAMETERS, Hasher, LocalHasher

SHORTEST = 12
LONGEST = 1024

_A_QUEUE = 2
_LONGEST_REST = 1.0

_T = TypeVar("_T")


class Passwords:
    """Hashes and checks passwords. Thread-safe; every method may raise OVERLOADED."""

    def __init__(
        self,
        parameters: argon2.Parameters = PARAMETERS,
        *,
        threads: int = 1,
        queue: int = 16,
        share: float = 1.0,
        hasher: Hasher | None = None,
    ) -> None:
        """`hasher` computes with these parameters; without one this process does, in threads.

        `share` is how much of its time a thread computes while logins queue; it rests for the rest.
        """
        self._hasher = argon2.PasswordHasher.from_parameters(parameters)
        self._compute = hasher or LocalHasher(parameters)
        self._parameters = parameters
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="argon2")
        self._rest = 1 / share - 1
        self._waiting = 0
        self._last = 0.0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._room = threading.BoundedSemaphore(threads + queue)

    def hash(self, password: str) -> str:
        """Return the encoded hash (PHC string) to be stored."""
        return self._run(lambda: self._compute.hash(password))

    def verify(self, secret: str | None, password: str) -> bool:
        """Tell whether the password is the one of the stored hash.

        With None, for a user that does not exist, it takes the same time and is never true.
        """
        against = secret or self._decoy()
        return self._run(lambda: self._compute.verify(against, password)) and bool(secret)

    def outdated(self, secret: str) -> bool:
        """True when a stored hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(secret)

    def close(self) -> None:
        """Let running hashes end."""
        self._closing.set()
        self._pool.shutdown()
        self._compute.close()

    def _decoy(self) -> str:
        """A hash of nothing known, with today's parameters."""
        p = self._parameters
        salt, digest = (
            base64.b64encode(secrets.token_bytes(size)).rstrip(b"=").decode()
            for size in (p.salt_len, p.hash_len)
        )
        return f"$argon2id$v=19$m={p.memory_cost},t={p.time_cost},p={p.parallelism}${salt}${digest}"

    def _run(self, work: Callable[[], _T]) -> _T:
        if not self._room.acquire(blocking=False):
            raise SealwardError(Reason.OVERLOADED, "too many logins are waiting", retry_after=1.0)
        try:
            with self._lock:
                self._waiting += 1
            return self._pool.submit(self._paced, work).result()
        finally:
            with self._lock:
                self._waiting -= 1
            self._room.release()

    def _paced(self, work: Callable[[], _T]) -> _T:
        if self._waiting > _A_QUEUE and self._rest:
            self._closing.wait(min(_LONGEST_REST, self._last * self._rest))
        began = time.monotonic()
        try:
            return work()
        finally:
            self._last = time.monotonic() - began


def check_new(password: str, field: str, *, old: str | None = None) -> None:
    """Raise PASSWORD_UNACCEPTABLE when a new password does not meet the rules.

    Length is what counts (NIST SP 800-63B section 5.1.1.2): at least 12 characters, no rules about
    their kinds; and a changed password has to be another one.
    """
    if not SHORTEST <= len(password) <= LONGEST:
        raise SealwardError(
            Reason.PASSWORD_UNACCEPTABLE,
            f"a password has {SHORTEST} to {LONGEST} characters",
            field=field,
        )
    if password == old:
        raise SealwardError(
            Reason.PASSWORD_UNACCEPTABLE, "the new password is the old one", field=field
        )
