"""Destroys the keys of a patient's references, in every log of a tenant.

Who is meant is the patient of one event, `audit.patient-name`, in the tenant's log: its reference
is sealed under the patient's own key like any other, and everybody else goes by the event's id. The
log that this event stands in comes last, and in each log the keys go at once and with a note that
its index has to be made anew: what was cut off anywhere is done again.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sealward.kit import attributes as names
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.tlog.leaf import PREFIX_SIZE
from services.audit.holds import Holds
from services.audit.index import IndexFailedError, Query, Row
from services.audit.patients import SINCE, Slot, find, slot_of
from services.audit.retention import DAY, Retention, SteadyClock
from services.audit.rollover import Rollover
from services.audit.rows import OWN
from services.audit.shard import PastShard, Shard
from services.audit.store import StoreError

_RESOURCE = re.compile(r"patient/([0-9a-f]{32})")
_NAMED = "audit.patient-name"
_YEAR = 366 * DAY
_PAGE = 1000
_STALE = "patients/stale"
"""`1` while the index of a log may still name a patient whose keys are gone."""


class PatientDestruction:
    """One at a time, by the lock of its caller. `years`: see AuditSettings.patient_years."""

    def __init__(
        self,
        rollover: Rollover,
        retention: Retention,
        holds: Holds,
        wrapping: threading.Lock,
        *,
        years: int,
        clock: SteadyClock,
    ) -> None:
        self._rollover = rollover
        self._retention = retention
        self._holds = holds
        self._wrapping = wrapping
        self._years = years
        self._clock = clock

    def count(self, tenant: str, reference: str) -> tuple[int, int]:
        """Return how many events name a patient under a key of their own, and how many do not."""
        sealed = older = 0
        for shard in self._logs(tenant):
            since = _since(shard)
            for index, _ in _rows(shard, _pseudonym(shard, reference)):
                sealed, older = (sealed + 1, older) if index >= since else (sealed, older + 1)
        return sealed, older

    def check(self, tenant: str, resource: str) -> None:
        """Raise DESTRUCTION_HELD where something about the patient has to be kept."""
        reference = self.reference(tenant, resource)
        if not reference:
            return
        if not self._clock.steady():
            raise _held("the clock was set by more than a day: restart with the right time")
        young = self._clock() - self._years * _YEAR
        for shard in self._logs(tenant):
            if self._holds.covering_patient(shard, reference):
                raise _held("a legal hold covers something about the patient")
            for _, row in _rows(shard, _pseudonym(shard, reference), since=young):
                # Who asked about the patient is no event about the patient's care.
                if row.producer != OWN and self._years:
                    raise _held(f"an event about the patient is younger than {self._years} years")

    def reference(self, tenant: str, resource: str) -> str:
        """Return the reference of the patient who is meant; empty when it was destroyed already.

        Raise NOT_FOUND, FIELD_INVALID.
        """
        found = _RESOURCE.fullmatch(resource)
        if found is None:
            raise SealwardError(
                Reason.FIELD_INVALID, "resource is patient/<event id>", field="resource"
            )
        span = self._named(tenant, bytes.fromhex(found[1]))
        values = {pair.key: pair.value for pair in Span.FromString(span).attributes}
        by = values.get(names.PRODUCER_ID)
        if (by and by.string_value) != OWN or values[names.EVENT_TYPE].string_value != _NAMED:
            raise _unknown()
        if names.PATIENT_REFERENCE not in values:
            return ""
        return str(values[names.PATIENT_REFERENCE].string_value)

    def destroy(self, tenant: str, reference: str) -> int:
        """Destroy the patient's keys and rows; return how many keys there were.

        Without a reference (it is destroyed) what was begun is finished. May be repeated. Raises
        SealwardError. Entries from before patients had keys of their own are left as they are.
        """
        destroyed = 0
        with self._rollover.still():
            # The newest last: the event that names the patient is in it.
            for shard in reversed(self._logs(tenant)):
                self._finish(shard)
                gone = -1
                # Once more after the index was made anew: what it did not show before.
                while reference and gone:
                    gone = self._destroy_in(shard, reference)
                    destroyed += gone
        return destroyed

    def _destroy_in(self, shard: Shard, reference: str) -> int:
        pseudonym = _pseudonym(shard, reference)
        slots = self._slots(shard, pseudonym)
        if not slots:
            return 0

        with self._wrapping:
            gone = shard.patients.destroy(
                pseudonym, slots, lambda values: self._keep(shard, [*values, (_STALE, b"1")])
            )
        self._finish(shard)
        return gone

    def _finish(self, shard: Shard) -> None:
        """Make an index anew from what still opens, where keys went: its rows name nobody then."""
        try:
            stale = shard.store.get(_STALE) == b"1"
        except StoreError:
            raise _unreadable() from None
        if stale:
            shard.indexer.rebuild()
            self._keep(shard, [(_STALE, b"0")])

    def _keep(self, shard: Shard, values: Sequence[tuple[str, bytes]]) -> None:
        if isinstance(shard, PastShard):
            self._retention.rewrap(shard, values)
            return
        try:
            shard.store.put(values)
        except StoreError:
            raise _unreadable() from None

    def _slots(self, shard: Shard, pseudonym: str) -> set[Slot]:
        """Return the places of a patient's keys, by the entries about the patient."""
        since = _since(shard)
        slots = set()
        try:
            for index, _ in _rows(shard, pseudonym):
                if index < since:
                    continue
                (leaf,) = shard.store.leaves(index, index + 1)
                found = find(shard.segments.open_as_it_is(leaf[:PREFIX_SIZE], leaf[PREFIX_SIZE:]))
                if found is not None:
                    slots.add(slot_of(found[1]))
        except StoreError:
            raise _unreadable() from None
        return slots

    def _named(self, tenant: str, event_id: bytes) -> bytes:
        """Open the event that names the patient."""
        try:
            for shard in self._logs(tenant):
                place = shard.store.find([event_id]).get(event_id)
                if place is not None:
                    (leaf,) = shard.store.leaves(place[0], place[0] + 1)
                    return shard.segments.open(leaf[:PREFIX_SIZE], leaf[PREFIX_SIZE:])
        except StoreError:
            raise _unreadable() from None
        raise _unknown()

    def _logs(self, tenant: str) -> list[Shard]:
        """Return the logs of a tenant that can be read, the newest first."""
        return list(self._rollover.shards.readable(self._rollover.shards.of(tenant).tenant))


def _pseudonym(shard: Shard, reference: str) -> str:
    shard.index_keys.check()
    return shard.index_keys.pseudonym(reference)


def _rows(shard: Shard, pseudonym: str, since: int = 0) -> Iterator[tuple[int, Row]]:
    after = -1
    try:
        shard.indexer.wait(shard.log.head[0])
        while rows := shard.index.rows(
            Query(patient=pseudonym, since=since, after_index=after, oldest_first=True, limit=_PAGE)
        ):
            yield from rows
            after = rows[-1][0]
    except (IndexFailedError, StoreError):
        raise _unreadable() from None


def _since(shard: Shard) -> int:
    """Return from which entry on patients have keys of their own in a log."""
    found = shard.store.get(SINCE)
    return int(found) if found is not None else shard.log.head[0]


def _held(why: str) -> SealwardError:
    return SealwardError(Reason.DESTRUCTION_HELD, f"nothing is destroyed: {why}", field="resource")


def _unknown() -> SealwardError:
    return SealwardError(Reason.NOT_FOUND, "no event names this patient", field="resource")


def _unreadable() -> SealwardError:
    return SealwardError(
        Reason.AUDIT_UNAVAILABLE, "a log cannot be read or written", retry_after=1.0
    )
