"""All logs of all tenants: which one takes an entry, which one has an event, which one is named.

An entry goes to the current log of its tenant. A log may end between the moment an entry was made
and the moment it is appended; it then waits for the successor and is made anew under its keys.
An id that an ended log has already gets the place that it has there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from sealward.api.audit.v1.audit_pb2 import Entry
from sealward.kit.errors import SealwardError
from sealward.kit.identity import Identity
from sealward.kit.reasons import Reason
from sealward.tlog.leaf import NO_BINDING
from services.audit.entry import DEFAULT_TENANT, Candidate, EntryMaker, read_entry
from services.audit.log import Committed, LogEndedError, Placed
from services.audit.shard import LiveShard, PastShard, Shard
from services.audit.store import StoreError

# An id older than this after the end of a log cannot be one that was on its way to it.
_LATE_MS = 24 * 3600 * 1000
_TURN_SECONDS = 10.0
_UUID7 = 7


class TenantLogs:
    """The logs of one tenant: one that grows, and those that have ended, the newest first."""

    def __init__(self, tenant: str, current: LiveShard, past: Sequence[PastShard] = ()) -> None:
        self.tenant = tenant
        self._condition = threading.Condition()
        self._current = current
        self._past: tuple[PastShard, ...] = ()
        # Event ids below this may be in a log that has ended: the first six bytes of a UUIDv7.
        self._horizon = b""
        self._set(current, past)

    @property
    def current(self) -> LiveShard:
        """The log that grows."""
        return self._current

    @property
    def past(self) -> tuple[PastShard, ...]:
        """The logs that have ended, the newest first."""
        return self._past

    def turned(self, current: LiveShard, past: Sequence[PastShard]) -> None:
        """Put the successor in the place of a log that has ended; let go on who waits for it."""
        with self._condition:
            self._set(current, past)
            self._condition.notify_all()

    def _set(self, current: LiveShard, past: Sequence[PastShard]) -> None:
        self._past = tuple(sorted(past, key=lambda shard: shard.ended, reverse=True))
        self._current = current
        newest = max((shard.ended for shard in self._past), default=0)
        self._horizon = (newest // 1_000_000 + _LATE_MS).to_bytes(6, "big") if newest else b""

    def append(
        self, candidates: Sequence[Candidate], *, urgent: bool = False, proofs: bool = True
    ) -> Committed:
        """See committer.Appender. Waits while one log is followed by the next."""
        ends = time.monotonic() + _TURN_SECONDS
        while True:
            shard = self._current
            try:
                if self._horizon and any(map(self._late, candidates)):
                    return self._append_late(shard, candidates, urgent=urgent, proofs=proofs)
                made = _made_by(shard.maker, candidates)
                return shard.log.append(made, urgent=urgent, proofs=proofs)
            except LogEndedError:
                self._await_successor(shard, ends)

    def _await_successor(self, ended: LiveShard, until: float) -> None:
        with self._condition:
            there = self._condition.wait_for(
                lambda: self._current is not ended, max(0.0, until - time.monotonic())
            )
        if not there:
            raise SealwardError(
                Reason.AUDIT_UNAVAILABLE, "the log's successor is not there yet", retry_after=1.0
            )

    def _late(self, candidate: Candidate) -> bool:
        """Whether an id may be in a log that has ended. One that tells no time may always be."""
        event_id = candidate.key.event_id
        return event_id[:6] <= self._horizon or event_id[6] >> 4 != _UUID7

    def _append_late(
        self, shard: LiveShard, candidates: Sequence[Candidate], *, urgent: bool, proofs: bool
    ) -> Committed:
        old = self._find_past(candidates)
        fresh = [c for c in candidates if c.key.event_id not in old]
        done = shard.log.append(_made_by(shard.maker, fresh), urgent=urgent, proofs=proofs)
        rest = iter(done.results)
        results: list[Placed | SealwardError] = []
        conflicts = []
        for number, candidate in enumerate(candidates):
            result = (
                _there(candidate, *found)
                if (found := old.get(candidate.key.event_id))
                else next(rest)
            )
            if isinstance(result, SealwardError):
                conflicts.append(number)
            results.append(result)
        return Committed(results, done.checkpoint, conflicts, done.added)

    def _find_past(
        self, candidates: Sequence[Candidate]
    ) -> dict[bytes, tuple[PastShard, int, bytes]]:
        wanted = [c.key.event_id for c in candidates if self._late(c)]
        found: dict[bytes, tuple[PastShard, int, bytes]] = {}
        try:
            for shard in self._past:
                for event_id, (index, print_) in shard.find(wanted).items():
                    found.setdefault(event_id, (shard, index, print_))
        except StoreError:
            raise _unavailable() from None
        return found


class Shards:
    """All logs. Thread-safe. Also the Appender of the pump and of the committer."""

    def __init__(self, tenants: Mapping[str, TenantLogs]) -> None:
        """Take the logs by tenant; `default` is among them."""
        self._tenants = dict(tenants)

    @property
    def tenants(self) -> list[str]:
        """The tenants, `default` first."""
        return sorted(self._tenants, key=lambda name: (name != DEFAULT_TENANT, name))

    def of(self, tenant: str) -> TenantLogs:
        """Return a tenant's logs, `default` for an empty name; raise FIELD_INVALID."""
        found = self._tenants.get(tenant or DEFAULT_TENANT)
        if found is None:
            raise SealwardError(Reason.FIELD_INVALID, "there is no such tenant", field="tenant")
        return found

    def current(self, tenant: str = "") -> LiveShard:
        """Return the log that a tenant's entries go into; raise FIELD_INVALID."""
        return self.of(tenant).current

    def all(self, tenant: str = "") -> list[Shard]:
        """Return a tenant's logs, the newest first; raise FIELD_INVALID."""
        logs = self.of(tenant)
        return [logs.current, *logs.past]

    def readable(self, tenant: str = "") -> list[Shard]:
        """Return those of a tenant's logs whose entries still open, the newest first."""
        return [shard for shard in self.all(tenant) if shard.state != "purged"]

    def everything(self) -> list[Shard]:
        """Return every log."""
        return [shard for tenant in self.tenants for shard in self.all(tenant)]

    def by_origin(self, origin: str) -> Shard:
        """Return the log of a name, the default tenant's current one for an empty one.

        Raise NOT_FOUND.
        """
        if not origin:
            return self.current()
        for shard in self.everything():
            if shard.origin == origin:
                return shard
        raise SealwardError(Reason.NOT_FOUND, "there is no such log", field="origin")

    def find(self, event_id: bytes, tenant: str = "") -> Shard:
        """Return the log that has an event, the newest that does; raise NOT_FOUND or StoreError.

        `tenant` empty = of any tenant.
        """
        shards = self.all(tenant) if tenant else self.everything()
        # An event that somebody asks for is mostly a young one: logs that grow come first.
        for shard in sorted(shards, key=lambda shard: shard.state != "current"):
            if shard.store.find((event_id,)):
                return shard
        raise SealwardError(Reason.NOT_FOUND, "no such event", field="event_id")

    def append(
        self, candidates: Sequence[Candidate], *, urgent: bool = False, proofs: bool = True
    ) -> Committed:
        """See committer.Appender. A batch of several tenants becomes one batch for each."""
        tenants = {_tenant(candidate) for candidate in candidates}
        if len(tenants) == 1:
            return self.of(tenants.pop()).append(candidates, urgent=urgent, proofs=proofs)
        results: list[Placed | SealwardError | None] = [None] * len(candidates)
        conflicts: list[int] = []
        added = 0
        for tenant in sorted(tenants):
            numbers = [n for n, c in enumerate(candidates) if _tenant(c) == tenant]
            try:
                done = self.of(tenant).append(
                    [candidates[n] for n in numbers], urgent=urgent, proofs=proofs
                )
            except SealwardError as error:
                # One tenant's log may fail while the other's holds: each gets what became of it.
                for number in numbers:
                    results[number] = error
                continue
            for number, result in zip(numbers, done.results, strict=True):
                if isinstance(result, Placed):
                    result.checkpoint = result.checkpoint or done.checkpoint
                results[number] = result
            conflicts += [numbers[n] for n in done.conflicts]
            added += done.added
        return Committed([r for r in results if r is not None], b"", sorted(conflicts), added)


class TenantMaker:
    """Makes candidates under the keys of the log that takes them now (entry.Maker)."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def appended(self, body: bytes, identity: Identity) -> Candidate:
        """See EntryMaker. Raises FIELD_INVALID for a tenant that is not configured."""
        entry: Entry = read_entry(body)
        return self._shards.current(entry.tenant).maker.of_entry(entry, body, identity)

    def exported(self, body: bytes, identity: Identity) -> Candidate:
        """See EntryMaker: into the default tenant's log."""
        return self._shards.current().maker.exported(body, identity)

    def own(
        self,
        event_id: bytes,
        span: bytes,
        identity: Identity,
        patient: str,
        binding: bytes = NO_BINDING,
        tenant: str = "",
    ) -> Candidate:
        """See EntryMaker: into the default tenant's log, unless another one is named."""
        maker = self._shards.current(tenant).maker
        return maker.own(event_id, span, identity, patient, binding, tenant)


def _tenant(candidate: Candidate) -> str:
    return candidate.source.maker.tenant if candidate.source else DEFAULT_TENANT


def _made_by(maker: EntryMaker, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    for candidate in candidates:
        if candidate.source is None or candidate.source.maker is not maker:
            return [maker.again(c) for c in candidates]
    return candidates


def _there(
    candidate: Candidate, shard: PastShard, index: int, fingerprint: bytes
) -> Placed | SealwardError:
    """Return the place that an id has in an ended log, or the error that it is another's."""
    taken = SealwardError(Reason.ALREADY_EXISTS, "this event id is taken", field="event_id")
    if shard.state == "purged":
        return taken
    if shard.maker.again(candidate).key.fingerprint != fingerprint:
        return taken
    try:
        size, checkpoint = shard.log.head
        placed = shard.log.placed(index, size, repeated=True)
    except StoreError:
        raise _unavailable() from None
    placed.checkpoint = checkpoint
    return placed


def _unavailable() -> SealwardError:
    return SealwardError(
        Reason.AUDIT_UNAVAILABLE, "a log that has ended cannot be read", retry_after=1.0
    )
