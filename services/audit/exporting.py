"""ExportService: opened events with their proofs, streamed.

What matches is counted before anything leaves, so that the record of the export (made by the chain
around the first answer) can say how many there are. All receipts of an export refer to one
checkpoint a log, the newest when it began. The stream is sent in parts of half a MiB; a caller
that does not take one in time is cut off, and so is an export that takes more than an hour.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sealward.api.audit.v1 import audit_pb2, export_pb2, export_pb2_grpc
from sealward.kit import attributes as names
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.tlog.leaf import EVENT_ID_SIZE, PREFIX_SIZE, parse_leaf
from services.audit.index import IndexFailedError
from services.audit.queries import asked, check_query, query_of, receipt_of, summary_of
from services.audit.rows import RowReader
from services.audit.shard import Shard
from services.audit.shards import Shards
from services.audit.store import StoreError
from services.audit.streaming import MOST_SECONDS, STALL_SECONDS, Streams

FORMS = ("fhir", "csv", "bundle")
MOST_EVENTS = 1_000_000
MOST_IDS = 1000
_AT_ONCE = 2
_PART_BYTES = 512 << 10
_PAGE = 10_000
# Filters that are codes of ours and may stand in the record as they are; of the others the name.
_CODES = ("outcome", "type", "purpose", "reason", "model", "user", "origin", "tenant")
_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9./*_-]{0,63}")
_TARGET_BYTES = 256


@dataclass(slots=True)
class _Part:
    """What is exported of one log: its checkpoint and the entries, oldest first."""

    shard: Shard
    size: int
    checkpoint: bytes
    entries: array[int] = field(default_factory=lambda: array("Q"))


class ExportServicer(export_pb2_grpc.ExportServiceServicer):
    """Streams exports, two at a time. Bounds in seconds: for one part, and for the whole."""

    def __init__(
        self,
        shards: Shards,
        stall_seconds: float = STALL_SECONDS,
        most_seconds: float = MOST_SECONDS,
    ) -> None:
        self._shards = shards
        self._streams = Streams("export", _AT_ONCE, stall_seconds, most_seconds)
        self._rows = RowReader()

    def ExportEvents(
        self, request: export_pb2.ExportEventsRequest, context: grpc.ServicerContext
    ) -> Iterator[export_pb2.ExportEventsResponse]:
        """See export.proto."""
        left = call_of(context).attributes
        _check(request)
        left[names.TARGET] = described(request)
        if request.query.patient:
            left[names.PATIENT_REFERENCE] = request.query.patient
        ends = self._streams.enter(context)
        try:
            parts = [_cosigned(part) for part in self._chosen(request)]
            total = sum(len(part.entries) for part in parts)
            left[names.COUNT] = total
            logs = [
                export_pb2.ExportedLog(
                    origin=part.shard.origin,
                    checkpoint=part.checkpoint,
                    vkeys="".join(f"{line}\n" for line in part.shard.vkeys),
                )
                for part in parts
            ]
            yield from self._streams.watched(
                context, export_pb2.ExportEventsResponse(total=total, logs=logs)
            )
            for events in self._events(parts, identified=request.identified):
                self._streams.check(ends)
                yield from self._streams.watched(
                    context, export_pb2.ExportEventsResponse(events=events)
                )
        except (StoreError, IndexFailedError):
            raise _unavailable("the audit log cannot be read") from None

    def _chosen(self, request: export_pb2.ExportEventsRequest) -> list[_Part]:
        if request.event_ids:
            return self._named(request.event_ids)
        query = request.query
        most = query.limit or MOST_EVENTS
        parts: list[_Part] = []
        left = most
        for shard in asked(self._shards, query):
            # One more than may be: a log that has more is not quietly cut.
            part = _matching(shard, query, left + (not query.limit))
            parts.append(part)
            left -= len(part.entries)
            if left <= 0:
                break
        if left < 0:
            raise _invalid(f"more than {MOST_EVENTS} events match: narrow the time", "query")
        return [part for part in reversed(parts) if part.entries]

    def _named(self, event_ids: Sequence[bytes]) -> list[_Part]:
        parts: dict[str, _Part] = {}
        for event_id in dict.fromkeys(event_ids):
            shard = self._shards.find(event_id)
            part = parts.get(shard.origin)
            if part is None:
                _await_index(shard)
                part = parts[shard.origin] = _Part(shard, *shard.log.head)
            index, _ = shard.store.find((event_id,))[event_id]
            if index >= part.size or shard.index.row(index) is None:
                raise SealwardError(Reason.NOT_FOUND, "no such event", field="event_ids")
            part.entries.append(index)
        for part in parts.values():
            part.entries = array("Q", sorted(part.entries))
        logs = [shard.origin for shard in self._shards.everything()]
        return sorted(parts.values(), key=lambda part: -logs.index(part.shard.origin))

    def _events(
        self, parts: Sequence[_Part], *, identified: bool
    ) -> Iterator[list[export_pb2.ExportedEvent]]:
        """Open the entries; yield them in parts."""
        events: list[export_pb2.ExportedEvent] = []
        size = 0
        for number, part in enumerate(parts):
            for index in part.entries:
                event = self._event(part, index, identified=identified)
                event.log = number
                events.append(event)
                size += event.ByteSize()
                if size >= _PART_BYTES:
                    yield events
                    events, size = [], 0
        if events:
            yield events

    def _event(self, part: _Part, index: int, *, identified: bool) -> export_pb2.ExportedEvent:
        placed = part.shard.log.placed(index, part.size)
        leaf = parse_leaf(placed.leaf)
        span = part.shard.segments.open(placed.leaf[:PREFIX_SIZE], leaf.sealed)
        row = self._rows.read(leaf.event_id, span)
        return export_pb2.ExportedEvent(
            summary=summary_of(part.shard.origin, index, row),
            span=span if identified else without_reference(span),
            receipt=receipt_of(placed),
        )


def _cosigned(part: _Part) -> _Part:
    """Let the receipts refer to the newest cosigned checkpoint, where that covers all of them."""
    size, checkpoint = part.shard.cosigned
    if part.entries and part.entries[-1] < size:
        part.size, part.checkpoint = size, checkpoint
    return part


def without_reference(span: bytes) -> bytes:
    """Return an opened span without the patient reference in clear."""
    if names.PATIENT_REFERENCE.encode() not in span:
        return span
    parsed = Span.FromString(span)
    kept = [pair for pair in parsed.attributes if pair.key != names.PATIENT_REFERENCE]
    del parsed.attributes[:]
    parsed.attributes.extend(kept)
    return parsed.SerializeToString()


def described(request: export_pb2.ExportEventsRequest) -> str:
    """Say in codes what an export is of: its form, who is named in it, its filters.

    Codes stand as they are; of a filter that may be free text, only that it was there. The patient
    is recorded apart, sealed.
    """
    who = "identified" if request.identified else "pseudonymous"
    words = [request.form, "deidentified" if request.deidentified else who]
    if request.event_ids:
        words.append(f"events={len(request.event_ids)}")
    query = request.query
    for name in _CODES:
        value = getattr(query, name)
        if value:
            words.append(f"{name}={value}" if _CODE.fullmatch(value) else name)
    words += [name for name in ("patient", "session", "break_glass") if getattr(query, name)]
    if query.since_unix_nano:
        words.append(f"since={query.since_unix_nano // 1_000_000_000}")
    if query.until_unix_nano:
        words.append(f"until={query.until_unix_nano // 1_000_000_000}")
    if query.limit:
        words.append(f"limit={query.limit}")
    return " ".join(words)[:_TARGET_BYTES]


def _matching(shard: Shard, query: audit_pb2.QueryEventsRequest, most: int) -> _Part:
    """Return the newest entries of a log that match, oldest first."""
    _await_index(shard)
    part = _Part(shard, *shard.log.head)
    before = min(query.before_index or part.size, part.size)
    while most > 0 and before > 0:
        page = audit_pb2.QueryEventsRequest()
        page.CopyFrom(query)
        page.before_index = before
        rows = shard.index.rows(query_of(shard, page, min(most, _PAGE)))
        part.entries.extend(index for index, _ in rows)
        most -= len(rows)
        if len(rows) < _PAGE:
            break
        before = rows[-1][0]
    part.entries.reverse()
    return part


def _await_index(shard: Shard) -> None:
    shard.indexer.wait(shard.log.head[0])


def _check(request: export_pb2.ExportEventsRequest) -> None:
    if request.form not in FORMS:
        raise _invalid("form is fhir, csv or bundle", "form")
    if len(request.event_ids) > MOST_IDS:
        raise _invalid(f"event_ids has at most {MOST_IDS}", "event_ids")
    if any(len(event_id) != EVENT_ID_SIZE for event_id in request.event_ids):
        raise _invalid("an event id has 16 bytes", "event_ids")
    if request.event_ids and request.query.ByteSize():
        raise _invalid("either event_ids or a query", "query")
    if request.deidentified and (
        request.identified
        or request.event_ids
        or request.form == "bundle"
        or request.query.patient
        or request.query.session
    ):
        raise _invalid("what is about one person is not de-identified", "deidentified")
    check_query(request.query, MOST_EVENTS)


def _invalid(message: str, field_: str) -> SealwardError:
    return SealwardError(Reason.FIELD_INVALID, message, field=field_)


def _unavailable(message: str) -> SealwardError:
    return SealwardError(Reason.AUDIT_UNAVAILABLE, message, retry_after=1.0)
