"""ReviewService: what privacy officers ask. Proto to domain and back; the answers are in reports/.

Each question is recorded by the chain around the call before its answer leaves (events.py), with
the patient it was about, sealed, and a decision is nothing but its record.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator

import grpc

from sealward.api.audit.v1 import audit_pb2, review_pb2, review_pb2_grpc
from sealward.kit import attributes as names
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.tlog.leaf import EVENT_ID_SIZE
from services.audit.queries import check_patient, summary_of
from services.audit.reading import events, unavailable
from services.audit.receipts import Receipts
from services.audit.reports import activity, bursts, disclosures, reviews, uses
from services.audit.reports.found import Found
from services.audit.rows import OWN, RowReader
from services.audit.shards import Shards
from services.audit.store import StoreError

_YEAR = 31_557_600 * 1_000_000_000
_ACCOUNTED_YEARS = 6
_MAX_TIME = (1 << 63) - 1
_SECOND = 1_000_000_000
_MOST_ITEMS, _DEFAULT_ITEMS = 10_000, 100
_BURST, _BURST_SECONDS = 10, 300
_HOURS = 24
_NAME = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_AGENCY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,63}")


class ReviewServicer(review_pb2_grpc.ReviewServiceServicer):
    """See review.proto. `clock` returns nanoseconds since the epoch."""

    def __init__(self, shards: Shards, clock: Callable[[], int] = time.time_ns) -> None:
        self._shards = shards
        self._clock = clock
        self._rows = RowReader()

    def ReportDisclosures(
        self, request: review_pb2.ReportDisclosuresRequest, context: grpc.ServicerContext
    ) -> review_pb2.ReportDisclosuresResponse:
        """The accounting of one patient, or everybody who looked."""
        left = call_of(context).attributes
        patient = _patient(request.patient)
        left[names.PATIENT_REFERENCE] = patient
        left[names.TARGET] = "access" if request.access else "accounting"
        now = self._clock()
        until = _time(request.until_unix_nano, "until_unix_nano") or now
        since = _time(request.since_unix_nano, "since_unix_nano") or max(
            0, until - _ACCOUNTED_YEARS * _YEAR
        )
        asked = audit_pb2.QueryEventsRequest(
            patient=patient, since_unix_nano=since, until_unix_nano=until, tenant=request.tenant
        )
        found = list(events(self._shards, asked))
        suspended = audit_pb2.QueryEventsRequest(
            patient=patient, type=disclosures.SUSPENSION, tenant=request.tenant
        )
        report = disclosures.report(
            found,
            access=request.access,
            summarise=request.summarise,
            for_patient=request.for_patient,
            suspended_until=disclosures.suspensions(_own(events(self._shards, suspended))),
            now=now,
        )
        left[names.COUNT] = len(report.disclosures)
        receipts = Receipts(self._shards)
        rows = [
            review_pb2.Disclosure(
                first_unix_nano=row.first,
                last_unix_nano=row.last,
                count=row.count,
                recipient=row.recipient,
                recipient_kind=row.recipient_kind,
                what=row.what,
                purpose=row.purpose,
                type=row.type,
                outcome=row.outcome,
                suspended=row.suspended,
                events=[_summary(event) for event in row.events],
                receipts=receipts.of(row.events) if request.receipts else (),
            )
            for row in report.disclosures
        ]
        return review_pb2.ReportDisclosuresResponse(
            disclosures=rows,
            # What is suspended is not to be read off the totals either.
            events=0 if request.for_patient else report.events,
            excluded=report.excluded,
            checkpoints=receipts.checkpoints,
            since_unix_nano=since,
            until_unix_nano=until,
        )

    def SuspendAccounting(
        self, request: review_pb2.SuspendAccountingRequest, context: grpc.ServicerContext
    ) -> review_pb2.SuspendAccountingResponse:
        """Its record is what suspends."""
        left = call_of(context).attributes
        patient = _patient(request.patient)
        if not _AGENCY.fullmatch(request.agency):
            raise _invalid("agency is a name of letters, digits, dots and dashes", "agency")
        until = _time(request.until_unix_nano, "until_unix_nano")
        if request.tenant:
            # The record is an event of the default tenant; other tenants' logs have other keys.
            raise SealwardError(
                Reason.NOT_SUPPORTED, "suspensions are of the default tenant", field="tenant"
            )
        left[names.PATIENT_REFERENCE] = patient
        left[names.TARGET] = f"{request.agency}/{until}"
        return review_pb2.SuspendAccountingResponse()

    def ListBreakGlass(
        self, request: review_pb2.ListBreakGlassRequest, context: grpc.ServicerContext
    ) -> review_pb2.ListBreakGlassResponse:
        """The review queue."""
        limit = _limit(request.limit)
        asked = audit_pb2.QueryEventsRequest(
            break_glass=True,
            since_unix_nano=_time(request.since_unix_nano, "since_unix_nano"),
            until_unix_nano=_time(request.until_unix_nano, "until_unix_nano"),
            tenant=request.tenant,
        )
        items, waiting = reviews.queue(
            events(self._shards, asked), self._decisions(), decided=request.decided
        )
        call_of(context).attributes[names.COUNT] = len(items)
        return review_pb2.ListBreakGlassResponse(
            items=[_item(item) for item in items[:limit]], waiting=waiting
        )

    def SignOff(
        self, request: review_pb2.SignOffRequest, context: grpc.ServicerContext
    ) -> review_pb2.SignOffResponse:
        """Its record is the decision."""
        call = call_of(context)
        if len(request.event_id) != EVENT_ID_SIZE:
            raise _invalid("event_id has 16 bytes", "event_id")
        if request.verdict not in reviews.VERDICTS:
            raise _invalid("verdict is justified, not-justified or escalated", "verdict")
        event = self._event(request.event_id)
        if not event.row.break_glass or event.row.type == reviews.REVIEW:
            raise SealwardError(
                Reason.FIELD_INVALID, "this event was not under break-glass", field="event_id"
            )
        call.attributes[names.TARGET] = reviews.target(request.event_id, request.verdict)
        call.attributes[names.VERDICT] = request.verdict
        identity = call.peer.identity
        if (event.row.actor, event.row.actor_kind) == (identity.name, identity.kind):
            raise SealwardError(
                Reason.POLICY_DENIED, "nobody decides about what they did themselves"
            )
        items, _ = reviews.queue((event,), self._decisions(), decided=True)
        return review_pb2.SignOffResponse(earlier=items[0].verdict if items else "")

    def ListBursts(
        self, request: review_pb2.ListBurstsRequest, context: grpc.ServicerContext
    ) -> review_pb2.ListBurstsResponse:
        """Refusals that came close together."""
        asked = audit_pb2.QueryEventsRequest(
            outcome="denied",
            since_unix_nano=_time(request.since_unix_nano, "since_unix_nano"),
            until_unix_nano=_time(request.until_unix_nano, "until_unix_nano"),
            tenant=request.tenant,
        )
        found = bursts.bursts(
            events(self._shards, asked),
            threshold=request.threshold or _BURST,
            window=(request.window_seconds or _BURST_SECONDS) * _SECOND,
            logins=request.logins,
        )
        call_of(context).attributes[names.COUNT] = len(found)
        return review_pb2.ListBurstsResponse(bursts=[_burst(burst) for burst in found])

    def ListActivity(
        self, request: review_pb2.ListActivityRequest, context: grpc.ServicerContext
    ) -> review_pb2.ListActivityResponse:
        """What each user did, or what was done with each model."""
        left = call_of(context).attributes
        if _NAME.fullmatch(request.user):
            left[names.TARGET] = request.user
        if max(request.work_from, request.work_to) > _HOURS:
            raise _invalid("an hour is 0 to 24", "work_from")
        asked = audit_pb2.QueryEventsRequest(
            user=request.user,
            model=request.model,
            since_unix_nano=_time(request.since_unix_nano, "since_unix_nano"),
            until_unix_nano=_time(request.until_unix_nano, "until_unix_nano"),
            tenant=request.tenant,
        )
        rows = activity.activity(
            events(self._shards, asked),
            by_model=request.by_model,
            work_from=request.work_from,
            work_to=request.work_to,
        )
        left[names.COUNT] = len(rows)
        return review_pb2.ListActivityResponse(rows=[_activity(row) for row in rows])

    def ListUse(
        self, request: review_pb2.ListUseRequest, context: grpc.ServicerContext
    ) -> review_pb2.ListUseResponse:
        """When each actor last did what."""
        left = call_of(context).attributes
        if _NAME.fullmatch(request.user):
            left[names.TARGET] = request.user
        asked = audit_pb2.QueryEventsRequest(
            user=request.user,
            outcome="ok",
            since_unix_nano=_time(request.since_unix_nano, "since_unix_nano"),
            until_unix_nano=_time(request.until_unix_nano, "until_unix_nano"),
            tenant=request.tenant,
        )
        rows = uses.uses(events(self._shards, asked))
        left[names.COUNT] = len(rows)
        return review_pb2.ListUseResponse(
            rows=[
                review_pb2.Use(
                    actor=kind.actor, kind=kind.kind, type=kind.type, model=kind.model,
                    purpose=kind.purpose, last_unix_nano=last, count=count,
                )
                for kind, (last, count) in rows
            ]
        )  # fmt: skip

    def _decisions(self) -> list[Found]:
        # Reviewers' records are own events, and those are in the default tenant's logs.
        asked = audit_pb2.QueryEventsRequest(type=reviews.REVIEW)
        return list(_own(events(self._shards, asked)))

    def _event(self, event_id: bytes) -> Found:
        shard = self._shards.find(event_id)
        try:
            shard.indexer.wait(shard.log.head[0])
            place, _ = shard.store.find((event_id,))[event_id]
        except StoreError:
            raise unavailable() from None
        row = shard.index.row(place)
        if row is None:
            raise SealwardError(Reason.NOT_FOUND, "no such event", field="event_id")
        return Found(shard.origin, place, row)


def _own(found: Iterable[Found]) -> Iterator[Found]:
    """Yield the records that this service made itself (rows.OWN)."""
    return (event for event in found if event.row.producer == OWN)


def _summary(found: Found) -> audit_pb2.EventSummary:
    return summary_of(found.origin, found.place, found.row)


def _item(item: reviews.Item) -> review_pb2.ReviewItem:
    decision = item.decision
    return review_pb2.ReviewItem(
        event=_summary(item.event),
        verdict=item.verdict,
        reviewer=decision.row.actor if decision else "",
        decided_unix_nano=decision.row.time if decision else 0,
    )


def _burst(burst: bursts.Burst) -> review_pb2.Burst:
    return review_pb2.Burst(
        by=burst.by,
        who=burst.who,
        first_unix_nano=burst.first,
        last_unix_nano=burst.last,
        count=burst.count,
        reasons=[reason for reason, _ in burst.reasons.most_common()],
        event_ids=[found.row.event_id for found in burst.events],
    )


def _activity(row: activity.Activity) -> review_pb2.Activity:
    return review_pb2.Activity(
        name=row.name,
        ok=row.outcomes["ok"],
        denied=row.outcomes["denied"],
        failed=row.outcomes["failed"],
        patients=len(row.patients),
        off_hours=row.off_hours,
        break_glass=row.break_glass,
        first_unix_nano=row.first,
        last_unix_nano=row.last,
        days=len(row.days),
    )


def _patient(reference: str) -> str:
    if not reference:
        raise _invalid("patient is missing", "patient")
    return check_patient(reference)


def _time(nanoseconds: int, field: str) -> int:
    if nanoseconds > _MAX_TIME:
        raise _invalid(f"{field} is too large", field)
    return nanoseconds


def _limit(limit: int) -> int:
    if limit > _MOST_ITEMS:
        raise _invalid(f"limit is at most {_MOST_ITEMS}", "limit")
    return limit or _DEFAULT_ITEMS


def _invalid(message: str, field: str) -> SealwardError:
    return SealwardError(Reason.FIELD_INVALID, message, field=field)
