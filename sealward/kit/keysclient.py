"""Branch keys from the keys service, held under leases and renewed while the process runs.

A key that cannot be renewed is used until its hard limit and then forgotten: from there on every
use is refused with KEYS_UNAVAILABLE, until the keys service answers again. The wrapped key is kept
for that, so nobody has to restart anything.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import grpc

from sealward.api.keys.v1 import keys_pb2
from sealward.api.keys.v1.keys_pb2_grpc import KeysServiceStub
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.kit.status import reason_of
from sealward.seal.context import EncryptionContext
from sealward.seal.errors import LeaseExpiredError, SealBrokenError
from sealward.seal.files import OpenedFile, Progress, Source, no_progress, open_file, seal_file
from sealward.seal.lease import Lease, LeasedKey
from sealward.seal.objects import ObjectSealer

_TIMEOUT_SECONDS = 5.0
_SHORTEST_TIMEOUT = 0.1
_FIRST_RETRY = 0.5
_LONGEST_RETRY = 15.0
_IDLE_SECONDS = 60.0
# Wrapped keys that were replaced lately: as many as may be on their way from a disk to the ring.
_MOVED = 4096
# What the keys service says of a key for good, as opposed to not being able to answer now.
_REFUSALS = frozenset(
    {
        Reason.SEAL_BROKEN, Reason.KEY_DESTROYED, Reason.IDENTITY_FORBIDDEN, Reason.FIELD_INVALID,
    }
)  # fmt: skip


class KeySource(Protocol):
    """Where branch keys come from. Raises SealwardError; a call may take `timeout` seconds."""

    def create(self, context: EncryptionContext, timeout: float) -> tuple[bytes, bytes, Lease]:
        """Make a branch key; return key, wrapped key and lease."""

    def open(
        self, context: EncryptionContext, wrapped: bytes, timeout: float
    ) -> tuple[bytes, Lease]:
        """Open a wrapped branch key; return key and lease."""


class ChannelSource(Protocol):
    """Where the channel to keys comes from (sealward.kit.channel.Channels)."""

    def get(self) -> grpc.Channel:
        """Return the channel in use."""


class RingMetrics(Protocol):
    """What a ring tells of its keys (sealward.kit.keymetrics.LeaseMetrics)."""

    def uses(self, purpose: str) -> Callable[[], None]:
        """Return what counts one served use."""

    def refused(self, purpose: str, bound: str) -> None:
        """Count a use that a bound refused."""

    def asked(self, purpose: str, kind: str, outcome: str) -> None:
        """Count a request: `create`, `open` or `renew`; `ok`, `failed` or `refused`."""

    def follow(self, held: Callable[[], Iterable[tuple[str, float]]]) -> None:
        """Take what tells the purpose of each key held, and the seconds that it has left."""


class _Unmeasured:
    def uses(self, purpose: str) -> Callable[[], None]:  # noqa: ARG002
        return lambda: None

    def refused(self, purpose: str, bound: str) -> None:
        pass

    def asked(self, purpose: str, kind: str, outcome: str) -> None:
        pass

    def follow(self, held: Callable[[], Iterable[tuple[str, float]]]) -> None:
        pass


class KeysServiceSource:
    """KeySource over the keys RPC. Waits out a keys service that is starting."""

    def __init__(self, channels: ChannelSource) -> None:
        self._channels = channels

    def create(self, context: EncryptionContext, timeout: float) -> tuple[bytes, bytes, Lease]:
        """Make a branch key; raise SealwardError."""
        request = keys_pb2.CreateBranchKeyRequest(context=_context_to_proto(context))
        stub = KeysServiceStub(self._channels.get())
        try:
            answer = stub.CreateBranchKey(request, timeout=timeout, wait_for_ready=True)
            return answer.key, answer.wrapped, _lease_from_proto(answer.lease)
        except (grpc.RpcError, ValueError) as error:
            raise as_sealward_error(error) from None

    def open(
        self, context: EncryptionContext, wrapped: bytes, timeout: float
    ) -> tuple[bytes, Lease]:
        """Open a wrapped branch key; raise SealwardError."""
        request = keys_pb2.OpenBranchKeyRequest(context=_context_to_proto(context), wrapped=wrapped)
        stub = KeysServiceStub(self._channels.get())
        try:
            answer = stub.OpenBranchKey(request, timeout=timeout, wait_for_ready=True)
            return answer.key, _lease_from_proto(answer.lease)
        except (grpc.RpcError, ValueError) as error:
            raise as_sealward_error(error) from None


Kept = Callable[[], bytes | None]
"""Returns the wrapped form of a key as it is kept now, None when that cannot be said. Must not
block for long."""


class BranchKey:
    """A branch key in use. Thread-safe. Made by KeyRing."""

    def __init__(
        self,
        ring: KeyRing,
        context: EncryptionContext,
        wrapped: bytes,
        leased: LeasedKey,
        kept: Kept | None = None,
    ) -> None:
        self.context = context
        self.wrapped = wrapped
        self.kept = kept
        self._ring = ring
        self._leased = leased
        self._sealer: ObjectSealer | None = None
        self.next_try = leased.soft_at
        self.failures = 0
        self.destroyed = False
        """Said by the keys service: it was destroyed on purpose, and never comes back."""
        self._lock = threading.Lock()
        self._served = ring.metrics.uses(context.purpose)

    @property
    def live(self) -> bool:
        """True while the key may be used."""
        return self._leased.live

    @property
    def renewal_due(self) -> bool:
        """True when the key should be asked for anew."""
        return self._leased.renewal_due

    @property
    def hard_at(self) -> float:
        """When the key is forgotten unless renewed (clock of the ring)."""
        return self._leased.hard_at

    def use(self, size: int = 0, messages: int = 1) -> bytes:
        """Count a use and return the key (32 bytes), for immediate use only.

        Whoever derives something from it and keeps that calls `use` again before each use and drops
        it when this raises SealwardError KEYS_UNAVAILABLE: the lease has run out.
        """
        leased = self._leased
        try:
            key = leased.use(size, messages)
        except LeaseExpiredError as error:
            self._sealer = None
            self._ring.wake(self)
            self._ring.metrics.refused(self.context.purpose, error.bound)
            if self.destroyed:
                raise SealwardError(
                    Reason.KEY_DESTROYED, "the key was destroyed: nothing opens what it sealed"
                ) from None
            raise SealwardError(
                Reason.KEYS_UNAVAILABLE, "the lease of a key has run out", retry_after=1.0
            ) from None
        if leased.renewal_due:
            self._ring.wake(self)
        self._served()
        return key

    def seal(self, plaintext: bytes, resource: str = "") -> bytes:
        """Seal an object for this key's context, or for another resource of it.

        Raises SealwardError KEYS_UNAVAILABLE.
        """
        return self._objects(len(plaintext)).seal(self._context(resource), plaintext)

    def open(self, sealed: bytes, resource: str = "") -> bytes:
        """Open an object; raise SealwardError SEAL_BROKEN or KEYS_UNAVAILABLE."""
        sealer = self._objects(len(sealed))
        try:
            return sealer.open(self._context(resource), sealed)
        except SealBrokenError:
            raise SealwardError(Reason.SEAL_BROKEN, "a sealed object does not open") from None

    def seal_file(
        self, source: Source, target: Path, resource: str = "", *, progress: Progress = no_progress
    ) -> int:
        """Seal all that `source` gives into a file, in constant memory; return how many bytes.

        The lease is asked before each block of it, so the work ends where the lease does. Raises
        SealwardError KEYS_UNAVAILABLE, OSError and what the source raises.
        """
        return seal_file(
            self._objects(0), self._context(resource), source, target,
            meter=self._meter, progress=progress,
        )  # fmt: skip

    @contextmanager
    def open_file(
        self, path: Path, resource: str = "", *, progress: Progress = no_progress
    ) -> Iterator[OpenedFile]:
        """Verify a sealed file whole, then give what it holds to be read, in constant memory.

        Raises SealwardError SEAL_BROKEN, also while it is read: then nothing was opened. Raises
        KEYS_UNAVAILABLE when the lease ends on the way, and OSError.
        """
        sealer = self._objects(0)
        try:
            with open_file(
                sealer, self._context(resource), path, meter=self._meter, progress=progress
            ) as opened:
                yield opened
        except SealBrokenError:
            raise SealwardError(Reason.SEAL_BROKEN, "a sealed object does not open") from None

    def close(self) -> None:
        """Forget the key and renew it no more."""
        self._ring.release(self)
        self.forget()

    def forget(self) -> None:
        """Forget the key until it is renewed."""
        self._leased.forget()
        self._sealer = None

    def install(self, leased: LeasedKey) -> None:
        """Take a renewed lease into use."""
        with self._lock:
            self._leased, self._sealer = leased, None

    def _objects(self, size: int) -> ObjectSealer:
        key = self.use(size)
        sealer = self._sealer
        if sealer is None:
            sealer = self._sealer = ObjectSealer(key)
        return sealer

    def _meter(self, size: int) -> None:
        self.use(size, messages=0)

    def _context(self, resource: str) -> EncryptionContext:
        return self.context.about(resource) if resource else self.context

    def __repr__(self) -> str:
        return f"BranchKey(purpose={self.context.purpose!r}, live={self.live})"


class KeyRing:
    """The branch keys of a process. Thread-safe.

    `on_ready` is called with False when a key is past its hard limit and with True when all are
    live again; it must not block. `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        source: KeySource,
        *,
        on_ready: Callable[[bool], None] = lambda _ready: None,
        clock: Callable[[], float] = time.monotonic,
        metrics: RingMetrics | None = None,
    ) -> None:
        self.metrics = metrics or _Unmeasured()
        self._source = source
        self._on_ready = on_ready
        self._clock = clock
        self._changed = threading.Condition()
        self._keys: list[BranchKey] = []
        self._moved: OrderedDict[bytes, bytes] = OrderedDict()
        self._ready = True
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="key-leases", daemon=True)
        self._started = False
        self.metrics.follow(self._held)

    def create(
        self,
        context: EncryptionContext,
        *,
        timeout: float = _TIMEOUT_SECONDS,
        kept: Kept | None = None,
    ) -> BranchKey:
        """Make a branch key; its `wrapped` is to be kept beside what it seals.

        `kept` is asked when the wrapped form that the ring knows opens no more: others may have
        replaced it. Raises SealwardError, KEYS_UNAVAILABLE when there is no answer within `timeout`
        seconds.
        """
        asked = self._clock()
        with self._counted(context, "create"):
            key, wrapped, lease = self._source.create(context, timeout)
        return self._hold(context, wrapped, LeasedKey(key, lease, self._clock, asked), kept)

    def open(
        self,
        context: EncryptionContext,
        wrapped: bytes,
        *,
        timeout: float = _TIMEOUT_SECONDS,
        kept: Kept | None = None,
    ) -> BranchKey:
        """Open a wrapped branch key; raise SealwardError. `kept`: as in `create`.

        KEYS_UNAVAILABLE when there is no answer within `timeout` seconds, SEAL_BROKEN when it is
        not a key of this context.
        """
        asked = self._clock()
        with self._counted(context, "open"):
            key, lease = self._source.open(context, wrapped, timeout)
        return self._hold(context, wrapped, LeasedKey(key, lease, self._clock, asked), kept)

    def close(self) -> None:
        """Forget every key."""
        with self._changed:
            self._stopped = True
            keys, self._keys = self._keys, []
            self._changed.notify_all()
        for key in keys:
            key.forget()

    def moved(self, old: bytes, new: bytes) -> None:
        """Renew with another wrapped form from now on: the same key, wrapped anew.

        To be called once the new one is kept. Who has read the old one just before and opens it a
        moment later is served with the new one too.
        """
        with self._changed:
            self._moved[old] = new
            while len(self._moved) > _MOVED:
                self._moved.popitem(last=False)
            for key in self._keys:
                if key.wrapped == old:
                    key.wrapped = new

    def recheck(self) -> None:
        """Keys were destroyed: ask for every key anew at once, and forget those that are gone."""
        with self._changed:
            now = self._clock()
            for key in self._keys:
                key.next_try = now
            self._changed.notify_all()

    def release(self, branch: BranchKey) -> None:
        """Renew a key no more (BranchKey.close calls this)."""
        with self._changed:
            self._keys = [key for key in self._keys if key is not branch]

    def wake(self, branch: BranchKey) -> None:
        """A use was counted that makes renewal due: renew now, unless that has just failed."""
        with self._changed:
            now = self._clock()
            if not branch.failures and branch.next_try > now:
                branch.next_try = now
                self._changed.notify_all()

    def renew_due(self) -> None:
        """Renew what is due and forget what is over."""
        now = self._clock()
        with self._changed:
            keys = list(self._keys)
        for branch in keys:
            if branch.next_try <= now:
                self._renew(branch)
            if not branch.live:
                branch.forget()
        self._tell(all(branch.live for branch in keys))

    def _renew(self, branch: BranchKey) -> None:
        asked, wrapped = self._clock(), branch.wrapped
        try:
            with self._counted(branch.context, "renew"):
                key, lease = self._source.open(branch.context, wrapped, self._patience(asked))
        except SealwardError as error:
            if error.reason in (Reason.SEAL_BROKEN, Reason.KEY_DESTROYED) and branch.kept:
                branch.wrapped = branch.kept() or branch.wrapped
            if branch.wrapped != wrapped:
                # It was wrapped anew meanwhile: the answer was about a form that is not kept.
                return
            if error.reason in _REFUSALS:
                # Destroyed or taken away: that beats the time that the lease has left.
                branch.destroyed = error.reason is Reason.KEY_DESTROYED
                branch.forget()
            delay = min(_LONGEST_RETRY, _FIRST_RETRY * 2 ** min(branch.failures, 10))
            branch.failures += 1
            branch.next_try = self._clock() + delay
            return
        branch.install(LeasedKey(key, lease, self._clock, asked))
        branch.next_try = asked + lease.soft_seconds
        branch.failures = 0

    @contextmanager
    def _counted(self, context: EncryptionContext, kind: str) -> Iterator[None]:
        try:
            yield
        except SealwardError as error:
            outcome = "refused" if error.reason in _REFUSALS else "failed"
            self.metrics.asked(context.purpose, kind, outcome)
            raise
        self.metrics.asked(context.purpose, kind, "ok")

    def _held(self) -> list[tuple[str, float]]:
        """Purpose of each key, and the seconds until it is forgotten; 0 = it is gone."""
        with self._changed:
            now, keys = self._clock(), list(self._keys)
        return [(key.context.purpose, key.hard_at - now if key.live else 0.0) for key in keys]

    def _patience(self, now: float) -> float:
        """Seconds to wait for a renewal: no key's hard limit may pass unnoticed meanwhile."""
        with self._changed:
            left = min((key.hard_at - now for key in self._keys if key.live), default=math.inf)
        return max(_SHORTEST_TIMEOUT, min(_TIMEOUT_SECONDS, left))

    def _tell(self, ready: bool) -> None:
        if ready is not self._ready:
            self._ready = ready
            self._on_ready(ready)

    def _hold(
        self, context: EncryptionContext, wrapped: bytes, leased: LeasedKey, kept: Kept | None
    ) -> BranchKey:
        with self._changed:
            if self._stopped:
                raise SealwardError(Reason.DRAINING, "the service is shutting down")
            branch = BranchKey(self, context, self._moved.get(wrapped, wrapped), leased, kept)
            self._keys.append(branch)
            if not self._started:
                self._started = True
                self._thread.start()
            self._changed.notify_all()
        return branch

    def _run(self) -> None:
        while not self._stopped:
            self.renew_due()
            with self._changed:
                if not self._stopped:
                    self._changed.wait(self._pause())

    def _pause(self) -> float:
        """Seconds until a key is to be renewed or forgotten."""
        turns = [key.next_try for key in self._keys]
        turns += [key.hard_at for key in self._keys if key.live]
        return max(0.0, min(turns, default=self._clock() + _IDLE_SECONDS) - self._clock())


def _context_to_proto(context: EncryptionContext) -> keys_pb2.EncryptionContext:
    return keys_pb2.EncryptionContext(
        tenant=context.tenant, purpose=context.purpose, resource=context.resource
    )


def _lease_from_proto(lease: keys_pb2.Lease) -> Lease:
    return Lease(lease.soft_seconds, lease.hard_seconds, lease.max_messages, lease.max_bytes)


def as_sealward_error(error: Exception) -> SealwardError:
    """Tell what a failed call to the keys service means for whoever needs a key."""
    # ValueError is a channel that was swapped under the call, or a lease without room.
    reason = reason_of(error) if isinstance(error, grpc.Call) else None
    if reason is not None and reason in _REFUSALS:
        return SealwardError(reason, f"the keys service refuses this key: {reason.name}")
    return SealwardError(
        Reason.KEYS_UNAVAILABLE, "the keys service does not answer", retry_after=1.0
    )
