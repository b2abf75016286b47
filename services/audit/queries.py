"""Queries and their answers: proto to domain and back, for every servicer that lists events."""

from __future__ import annotations

from sealward.api.audit.v1 import audit_pb2
from sealward.kit import attributes as names
from sealward.kit.errors import SealwardError
from sealward.kit.patient import DESCRIPTION, is_reference
from sealward.kit.reasons import Reason
from services.audit.index import Query, Row
from services.audit.log import Placed
from services.audit.shard import Shard
from services.audit.shards import Shards

MOST_EVENTS = 10_000
"""Of one query."""

_MAX_TIME = (1 << 63) - 1


def check_query(request: audit_pb2.QueryEventsRequest, most: int = MOST_EVENTS) -> None:
    """Raise SealwardError FIELD_INVALID for a query that cannot be."""
    if request.outcome and request.outcome not in names.OUTCOMES:
        raise _invalid("outcome is ok, denied or failed", "outcome")
    if request.limit > most:
        raise _invalid(f"limit is at most {most}", "limit")
    if len(request.trace_id) not in (0, 16):
        raise _invalid("trace_id has 16 bytes", "trace_id")
    for field in ("since_unix_nano", "until_unix_nano", "before_index"):
        if getattr(request, field) > _MAX_TIME:
            raise _invalid(f"{field} is too large", field)
    if request.patient:
        check_patient(request.patient)


def check_patient(reference: str) -> str:
    """Return a patient reference as given; raise FIELD_INVALID for one that no call can name.

    It would be found nowhere (a blank at its end is enough), and that looks like an answer: nobody
    saw the record, nothing of it is held.
    """
    if not is_reference(reference):
        raise _invalid(f"a patient reference has {DESCRIPTION}", "patient")
    return reference


def asked(shards: Shards, request: audit_pb2.QueryEventsRequest) -> list[Shard]:
    """Return the logs that a query is about, the newest first; raise SealwardError."""
    found = shards.readable(request.tenant)
    if request.origin:
        found = [shard for shard in found if shard.origin == request.origin]
        if not found:
            raise SealwardError(Reason.NOT_FOUND, "there is no such log", field="origin")
    elif request.before_index and len(found) > 1:
        raise _invalid("an index is of one log: name it as origin", "before_index")
    return found


def query_of(shard: Shard, request: audit_pb2.QueryEventsRequest, limit: int) -> Query:
    """Return a query as the index of one log takes it; raise SealwardError."""
    patient = None
    if request.patient:
        # Each log has a key of its own, so that the pseudonyms of one say nothing of another's.
        shard.index_keys.check()
        patient = shard.index_keys.pseudonym(request.patient)
    return Query(
        user=request.user or None,
        patient=patient,
        model=request.model or None,
        outcome=request.outcome or None,
        type=request.type.removesuffix("*") or None,
        purpose=request.purpose or None,
        reason=request.reason or None,
        session=request.session or None,
        break_glass=request.break_glass,
        trace_id=request.trace_id or None,
        since=request.since_unix_nano,
        until=request.until_unix_nano,
        before_index=request.before_index,
        limit=limit,
    )


def receipt_of(placed: Placed) -> audit_pb2.Receipt:
    """Return a place as it goes over the wire."""
    return audit_pb2.Receipt(log_index=placed.index, leaf=placed.leaf, path=placed.path)


def summary_of(origin: str, index: int, row: Row) -> audit_pb2.EventSummary:
    """Return a row as it goes over the wire."""
    return audit_pb2.EventSummary(
        event_id=row.event_id,
        log_index=index,
        time_unix_nano=row.time,
        type=row.type,
        outcome=row.outcome,
        code=row.code,
        reason=row.reason,
        actor=row.actor,
        model=row.model,
        purpose=row.purpose,
        patient=row.patient,
        origin=origin,
        break_glass=bool(row.break_glass),
        session=row.session,
        caller_seq=row.caller_seq,
        producer=row.producer,
        producer_seq=row.producer_seq,
        actor_kind=row.actor_kind,
        model_version=row.model_version,
        organization=row.organization,
        target=row.target,
    )


def _invalid(message: str, field: str) -> SealwardError:
    return SealwardError(Reason.FIELD_INVALID, message, field=field)
