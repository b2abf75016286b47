"""How one certificate authority follows another while everything runs.

Three steps, each taken when nobody is left who could not follow it:

1. *announced*: the next authority is in the trust bundle and signs nothing;
2. *adopted*: it signs. Taken once every service that is alive has the bundle, and every certificate
   that was issued without it has come to its end;
3. *dropped*: the old one is trusted no more. Taken once every service that is alive has a
   certificate of the new one, and every certificate of the old one has come to its end.

`now` does not wait for the end of certificates but for a settling time: callers elsewhere that have
not renewed by then are refused. Where a replacement stands is in the provider; the file here keeps
only when the last step was taken, so losing it costs time and nothing else.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.identity import Peer
from services.keys.files import read_private, write_durable
from services.keys.providers.base import CertificateAuthority
from services.keys.records import Recorder

FILE = "certificates.json"
_ANNOUNCED, _ADOPTED = "announce", "adopt"
# Who has not asked for so many times is not there any more.
_MISSED = 4
_TICK_SECONDS = 1.0
_LONGEST_PAUSE = 60.0


@dataclass(frozen=True, slots=True)
class Times:
    """When the last `step` was taken, from when on certificates are good: epoch seconds."""

    step: str = ""
    since: int = 0
    now: bool = False
    renew_before: int = 0

    def encode(self) -> bytes:
        """Return the stored form."""
        return json.dumps(
            {
                "step": self.step,
                "since": self.since,
                "now": self.now,
                "renew_before": self.renew_before,
            }
        ).encode()

    @classmethod
    def decode(cls, data: bytes) -> Times:
        """Read the stored form; raise ValueError, KeyError or TypeError."""
        values = json.loads(data)
        return cls(
            str(values["step"]),
            int(values["since"]),
            bool(values["now"]),
            int(values["renew_before"]),
        )


@dataclass(frozen=True, slots=True)
class Follower:
    """A service that asked for the trust bundle, and what it had then. `at`: monotonic seconds."""

    peer: Peer
    at: float
    bundle: bytes
    certificate_current: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a replacement is; see AuthorityStatus in the protos.

    `followers`: who asked lately, whether it has the bundle, and a certificate of who signs.
    """

    since: int
    next_step: int
    now: bool
    followers: list[tuple[Follower, bool, bool]]


class Succession:
    """Thread-safe.

    `changed` has the service's own certificate renewed; `followed` tells whether it has the bundle
    and is of who signs.
    `longest`: life of the longest certificate, `settle`: what `now` waits instead, `every`: how
    often services ask. All in seconds.
    """

    def __init__(
        self,
        path: Path,
        authority: CertificateAuthority,
        recorder: Recorder,
        log: structlog.typing.FilteringBoundLogger,
        *,
        longest: float,
        settle: float,
        every: float,
        changed: Callable[[], None],
        followed: Callable[[], bool],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the times; raise StartupError when the file is damaged."""
        self._path = path
        self._authority = authority
        self._recorder = recorder
        self._log = log
        self._longest = longest
        self._settle = settle
        self._alive = _MISSED * every
        self._changed = changed
        self._followed = followed
        self._clock = clock
        self._monotonic = monotonic
        self._began = monotonic()
        self._lock = threading.RLock()
        self._recorded = ""
        self._followers: dict[bytes, Follower] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ca-succession", daemon=True)
        try:
            self._times = Times.decode(read_private(path))
        except FileNotFoundError:
            self._times = Times()
        except (ValueError, KeyError, TypeError):
            raise StartupError(f"{path} is damaged: remove it") from None
        taken = self._taken()
        if taken != self._times.step:
            # Died between a step and its time: the wait begins anew.
            self._keep(replace(self._times, step=taken, since=int(clock()) if taken else 0))

    @property
    def under_way(self) -> bool:
        """Whether an authority is being replaced."""
        return bool(self._taken())

    @property
    def renew_before(self) -> int:
        """Certificates made before this time are to be replaced, seconds since the epoch."""
        return self._times.renew_before

    def seen(self, peer: Peer, bundle_sha256: bytes, *, certificate_current: bool) -> None:
        """Note what a service has."""
        with self._lock:
            self._followers[peer.spki_sha256] = Follower(
                peer, self._monotonic(), bundle_sha256, certificate_current
            )

    def renew(self) -> int:
        """Have every service replace its certificate; return from when on they are good."""
        with self._lock:
            self._keep(replace(self._times, renew_before=int(self._clock()) + 1))
            self._changed()
            return self._times.renew_before

    def begin(self, *, now: bool) -> None:
        """Begin a replacement, or hurry the one that is under way. Raise SealwardError."""
        with self._lock:
            if self.under_way:
                if now and not self._times.now:
                    self._keep(replace(self._times, now=True))
                return
            self._step("announce", self._authority.announce, now=now)

    def standing(self) -> Standing:
        """Return how far it is."""
        with self._lock:
            if not self.under_way:
                return Standing(0, 0, False, self._judged())
            return Standing(
                self._times.since, self._times.since + self._wait, self._times.now, self._judged()
            )

    def tick(self) -> None:
        """Take the next step if its time has come. Raise SealwardError."""
        with self._lock:
            taken = self._taken()
            if not taken or not self._ready(taken):
                return
            if taken == _ANNOUNCED:
                self._step("adopt", self._authority.adopt, now=self._times.now)
            else:
                self._step("drop", self._authority.drop, now=False)

    def start(self) -> None:
        """Take steps from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Take no further step."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    @property
    def _wait(self) -> int:
        return int(self._settle if self._times.now else self._longest)

    def _taken(self) -> str:
        """Which step was taken last, by what the provider has; empty when nothing is replaced."""
        states = {one.state for one in self._authority.authorities()}
        if "next" in states:
            return _ANNOUNCED
        return _ADOPTED if "leaving" in states else ""

    def _ready(self, taken: str) -> bool:
        """Whether the time is over and every service that is alive can follow."""
        if self._clock() < self._times.since + self._wait:
            return False
        # After a start nobody has asked yet.
        if self._monotonic() < self._began + self._alive or not self._followed():
            return False
        return all(
            has_bundle and (taken == _ANNOUNCED or current)
            for _, has_bundle, current in self._judged()
        )

    def _judged(self) -> list[tuple[Follower, bool, bool]]:
        """Return who is alive, and of each whether it has the bundle and a current certificate."""
        now = self._monotonic()
        self._followers = {
            key: one for key, one in self._followers.items() if one.at > now - self._alive
        }
        bundle = sha256(self._authority.bundle_pem).digest()
        return [
            (one, one.bundle == bundle, one.bundle == bundle and one.certificate_current)
            for one in self._followers.values()
        ]

    def _step(self, name: str, take: Callable[[], None], *, now: bool) -> None:
        """Record a step, take it, keep its time. Dying in between, it is taken or repeated."""
        if self._recorded != name:
            self._recorder.record(
                f"keys.ca-{name}",
                "ok",
                actor_id="keys",
                actor_kind="service",
                target=self._about(name),
            )
            # A step that fails is tried again, and stands in the record once.
            self._recorded = name
        take()
        self._recorded = ""
        self._log.info(f"ca.{name}")
        try:
            taken = self._taken()
            since = int(self._clock()) if taken else 0
            self._keep(replace(self._times, step=taken, since=since, now=now))
        finally:
            self._changed()

    def _about(self, name: str) -> str | None:
        """The fingerprint of the authority that a step is about, where there is one already."""
        state = {"adopt": "next", "drop": "leaving"}.get(name)
        for one in self._authority.authorities():
            if one.state == state:
                return fingerprint(one.certificate_pem).hex()
        return None

    def _keep(self, times: Times) -> None:
        try:
            write_durable(self._path, times.encode())
        except OSError:
            self._log.error("ca.time-not-kept")
        self._times = times

    def _run(self) -> None:
        failures = 0
        while not self._stop.wait(min(_LONGEST_PAUSE, _TICK_SECONDS * 2**failures)):
            try:
                self.tick()
                failures = 0
            except SealwardError as error:
                self._log.error("ca.step-failed", reason=error.reason.name)
                failures = min(failures + 1, 10)


def fingerprint(certificate_pem: bytes) -> bytes:
    """Return the SHA-256 of a certificate (DER)."""
    return x509.load_pem_x509_certificate(certificate_pem).fingerprint(hashes.SHA256())
