"""Legal holds: what has to be kept whatever its age.

A hold is its event: `audit.hold` in the log of the default tenant says what it covers, and
`audit.release` ends it. There is no other list that could be lost or changed. A patient stands in
the event as in any other, the reference sealed; what pseudonym it has in another log is computed
with that log's key when it is asked.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sealward.kit import attributes as names
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.tlog.leaf import PREFIX_SIZE
from services.audit.index import IndexFailedError, Query, Row
from services.audit.rows import OWN
from services.audit.shard import Shard
from services.audit.shards import Shards
from services.audit.spanattributes import MAX_TEXT_BYTES
from services.audit.store import StoreError

PLACED, RELEASED = "audit.hold", "audit.release"
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_ID = re.compile(r"[0-9a-f]{16}")
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Scope:
    """What a hold covers: everything of a tenant, less whatever a field leaves out.

    `since` is inclusive, `until` exclusive, in nanoseconds since the epoch; 0 = no bound. `patient`
    says that it is about one, whose reference is in the event.
    """

    tenant: str
    origin: str = ""
    user: str = ""
    patient: bool = False
    since: int = 0
    until: int = 0

    def encode(self, hold_id: str) -> str:
        """Return the target text of the event; raise FIELD_INVALID."""
        if self.user and not _USER.fullmatch(self.user):
            raise SealwardError(Reason.FIELD_INVALID, "user is not a user name", field="user")
        if self.until and self.until <= self.since:
            raise SealwardError(Reason.FIELD_INVALID, "until is after since", field="until")
        parts = [f"hold={hold_id}", f"tenant={self.tenant}"]
        if self.patient:
            parts.append("patient=1")
        for name in ("origin", "user", "since", "until"):
            value = getattr(self, name)
            if value:
                parts.append(f"{name}={value}")
        text = " ".join(parts)
        if len(text) > MAX_TEXT_BYTES:
            raise SealwardError(Reason.FIELD_INVALID, "the hold names too much", field="origin")
        return text


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold that stands. `pseudonym` is the patient's in the log `placed_in`."""

    id: str
    scope: Scope
    placed: int
    placed_in: str
    index: int
    event_id: bytes
    actor: str
    pseudonym: str


class Holds:
    """Reads the holds from the logs. Thread-safe; nothing is kept."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    @staticmethod
    def new_id() -> str:
        """Draw the id of a hold."""
        return secrets.token_hex(8)

    def standing(self) -> list[Hold]:
        """Return the holds that were placed and not released, the oldest first.

        Raise SealwardError when a log cannot be read: a hold that is not seen must not count as
        none.
        """
        released = {str(_parse(row.target).get("hold")) for _, _, row in self._events(RELEASED)}
        found = []
        for shard, index, row in self._events(PLACED):
            hold = _hold(shard, index, row)
            if hold.id not in released:
                found.append(hold)
        return sorted(found, key=lambda hold: hold.placed)

    def get(self, hold_id: str) -> Hold:
        """Return a standing hold; raise NOT_FOUND."""
        for hold in self.standing():
            if hold.id == hold_id:
                return hold
        raise SealwardError(Reason.NOT_FOUND, "there is no such hold", field="hold_id")

    def covering(self, shard: Shard) -> list[Hold]:
        """Return the standing holds that cover something in a log, or stand in it themselves.

        Raise SealwardError.
        """
        return [hold for hold in self.standing() if self._covers(hold, shard)]

    def covering_patient(self, shard: Shard, reference: str) -> list[Hold]:
        """Return the standing holds that cover something about a patient in a log.

        Raise SealwardError.
        """
        found = []
        for hold in self.standing():
            scope = hold.scope
            same = scope.patient and self._reference(hold) == reference
            if same and hold.placed_in == shard.origin:
                # Its own event would name nobody.
                found.append(hold)
                continue
            if scope.tenant != shard.tenant or scope.origin not in ("", shard.origin):
                continue
            if scope.patient and not same:
                continue
            if scope.user or scope.since or scope.until:
                shard.index_keys.check()
                query = Query(
                    user=scope.user or None,
                    patient=shard.index_keys.pseudonym(reference),
                    since=scope.since,
                    until=scope.until,
                    limit=1,
                )
                if not _rows(shard, query):
                    continue
            found.append(hold)
        return found

    def _covers(self, hold: Hold, shard: Shard) -> bool:
        if hold.placed_in == shard.origin:
            return True
        scope = hold.scope
        if scope.tenant != shard.tenant or (scope.origin and scope.origin != shard.origin):
            return False
        if not (scope.user or scope.patient or scope.since or scope.until):
            return True
        pseudonym = None
        if scope.patient:
            shard.index_keys.check()
            pseudonym = shard.index_keys.pseudonym(self._reference(hold))
        query = Query(
            user=scope.user or None,
            patient=pseudonym,
            since=scope.since,
            until=scope.until,
            limit=1,
        )
        return bool(_rows(shard, query))

    def _reference(self, hold: Hold) -> str:
        """Open the event of a hold and return the patient reference in it."""
        shard = self._shards.by_origin(hold.placed_in)
        try:
            (leaf,) = shard.store.leaves(hold.index, hold.index + 1)
        except StoreError:
            raise _unavailable() from None
        span = Span.FromString(shard.segments.open(leaf[:PREFIX_SIZE], leaf[PREFIX_SIZE:]))
        for pair in span.attributes:
            if pair.key == names.PATIENT_REFERENCE:
                return pair.value.string_value
        raise SealwardError(Reason.SEAL_BROKEN, "the event of a hold does not name its patient")

    def _events(self, event_type: str) -> Iterator[tuple[Shard, int, Row]]:
        for shard in self._shards.readable():
            after = -1
            while rows := _rows(
                shard,
                Query(
                    type=event_type,
                    outcome="ok",
                    producer=OWN,
                    after_index=after,
                    oldest_first=True,
                    limit=_PAGE,
                ),
            ):
                for index, row in rows:
                    yield shard, index, row
                after = rows[-1][0]


def _rows(shard: Shard, query: Query) -> list[tuple[int, Row]]:
    shard.indexer.wait(shard.log.head[0])
    try:
        return shard.index.rows(query)
    except (IndexFailedError, StoreError):
        raise _unavailable() from None


def _hold(shard: Shard, index: int, row: Row) -> Hold:
    said = _parse(row.target)
    scope = Scope(
        said.get("tenant", ""),
        said.get("origin", ""),
        said.get("user", ""),
        "patient" in said,
        int(said.get("since", "0")),
        int(said.get("until", "0")),
    )
    return Hold(
        said.get("hold", ""), scope, row.time, shard.origin, index, row.event_id, row.actor,
        row.patient,
    )  # fmt: skip


def _parse(target: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in target.split(" ") if "=" in part)


def check_id(hold_id: str) -> str:
    """Return a hold id as given; raise FIELD_INVALID."""
    if not _ID.fullmatch(hold_id):
        raise SealwardError(Reason.FIELD_INVALID, "a hold id has 16 hex digits", field="hold_id")
    return hold_id


def _unavailable() -> SealwardError:
    return SealwardError(
        Reason.AUDIT_UNAVAILABLE, "a log with holds cannot be read", retry_after=1.0
    )
