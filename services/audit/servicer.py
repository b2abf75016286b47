"""AuditService but for Append: proto to domain and back. Who may call is the chassis's business."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Iterator
from typing import Any

import grpc

from sealward.api.audit.v1 import audit_pb2, audit_pb2_grpc
from sealward.kit import attributes as names
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.tlog.leaf import EVENT_ID_SIZE, PREFIX_SIZE, parse_leaf
from sealward.tlog.logchange import CHANGE_VERSION
from services.audit.index import IndexFailedError, Query
from services.audit.log import Placed
from services.audit.queries import asked, check_query, query_of, receipt_of, summary_of
from services.audit.reading import rows_of
from services.audit.receipts import Receipts
from services.audit.reports.found import Found
from services.audit.rows import RowReader
from services.audit.scanning import Scanned, scan
from services.audit.shard import Shard
from services.audit.shards import Shards
from services.audit.store import StoreError

_DEFAULT_LIMIT = 100
_MOST_SIZES = 64
_NAME = re.compile(r"[a-z][a-z0-9._-]{0,63}")


class AuditServicer(audit_pb2_grpc.AuditServiceServicer):
    """Review and proofs. Append is served by the front of the hot path."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._rows = RowReader()
        # Opening a whole log keeps a core busy: one at a time.
        self._scanning = threading.Semaphore()

    def Append(
        self,
        request_iterator: Iterator[audit_pb2.AppendRequest],  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> Iterator[audit_pb2.AppendResponse]:
        """Refused here: the front has the handler of this method (app.py)."""
        raise SealwardError(Reason.METHOD_UNKNOWN, "served by the front")

    def GetReceipt(
        self, request: audit_pb2.GetReceiptRequest, context: grpc.ServicerContext
    ) -> audit_pb2.GetReceiptResponse:
        """Place and proof of an event against the newest checkpoint, or the newest cosigned one."""
        event_id = _event_id(request.event_id)
        call_of(context).attributes[names.TARGET] = event_id.hex()
        shard, placed, checkpoint = self._receipt(event_id, cosigned=request.cosigned)
        return audit_pb2.GetReceiptResponse(
            receipt=receipt_of(placed),
            checkpoint=checkpoint,
            cose=shard.log.cose(placed, checkpoint) if request.cose else b"",
        )

    def GetConsistency(
        self, request: audit_pb2.GetConsistencyRequest, context: grpc.ServicerContext
    ) -> audit_pb2.GetConsistencyResponse:
        """Consistency proofs between neighbouring sizes."""
        sizes = list(request.sizes)
        if not 2 <= len(sizes) <= _MOST_SIZES:
            raise _invalid(f"sizes has 2 to {_MOST_SIZES} numbers", "sizes")
        call_of(context).attributes[names.COUNT] = len(sizes)
        try:
            log = self._shards.by_origin(request.origin).log
            proofs = [log.consistency(old, new) for old, new in itertools.pairwise(sizes)]
        except StoreError:
            raise _unavailable() from None
        return audit_pb2.GetConsistencyResponse(proofs=proofs)

    def QueryEvents(
        self, request: audit_pb2.QueryEventsRequest, context: grpc.ServicerContext
    ) -> audit_pb2.QueryEventsResponse:
        """The index rows that match, newest first."""
        left = call_of(context).attributes
        check_query(request)
        if request.patient:
            left[names.PATIENT_REFERENCE] = request.patient
        if _NAME.fullmatch(request.user):
            # Whose activity was looked at. What is no name may be anything, and is not kept.
            left[names.TARGET] = request.user
        found: list[Found] = []
        scans: list[audit_pb2.Scan] = []
        most = request.limit or _DEFAULT_LIMIT
        for shard in asked(self._shards, request):
            query = query_of(shard, request, most - len(found))
            if request.complete:
                scanned = self._scan(shard, query, context)
                scans.append(
                    audit_pb2.Scan(
                        origin=scanned.origin,
                        entries=scanned.entries,
                        root=scanned.root,
                        differences=scanned.differences,
                    )
                )
                found += scanned.found
            else:
                found += rows_of(shard, query, query.limit)
                if len(found) >= most:
                    break
        del found[most:]
        left[names.COUNT] = len(found)
        receipts = Receipts(self._shards)
        return audit_pb2.QueryEventsResponse(
            events=[summary_of(event.origin, event.place, event.row) for event in found],
            receipts=receipts.of(found) if request.receipts else (),
            checkpoints=receipts.checkpoints,
            scans=scans,
        )

    def GetEvent(
        self, request: audit_pb2.GetEventRequest, context: grpc.ServicerContext
    ) -> audit_pb2.GetEventResponse:
        """One event, opened, with its proof."""
        event_id = _event_id(request.event_id)
        call_of(context).attributes[names.TARGET] = event_id.hex()
        shard, placed, checkpoint = self._receipt(event_id)
        if placed.leaf[0] == CHANGE_VERSION:
            raise SealwardError(Reason.NOT_FOUND, "no event but a change of the log, in clear")
        leaf = parse_leaf(placed.leaf)
        span = shard.segments.open(placed.leaf[:PREFIX_SIZE], leaf.sealed)
        row = self._rows.read(leaf.event_id, span)
        return audit_pb2.GetEventResponse(
            summary=summary_of(shard.origin, placed.index, row),
            span=span,
            receipt=receipt_of(placed),
            checkpoint=checkpoint,
        )

    def _receipt(self, event_id: bytes, *, cosigned: bool = False) -> tuple[Shard, Placed, bytes]:
        try:
            shard = self._shards.find(event_id)
            head = shard.cosigned if cosigned else None
            return shard, *shard.log.receipt(event_id, head)
        except StoreError:
            raise _unavailable() from None

    def _scan(self, shard: Shard, query: Query, context: grpc.ServicerContext) -> Scanned:
        if query.before_index:
            raise _invalid("a complete reading begins at the newest entry", "before_index")
        if not self._scanning.acquire(blocking=False):
            raise SealwardError(Reason.OVERLOADED, "another log is being read", retry_after=5.0)
        try:
            return scan(shard, query, context.is_active)
        except (IndexFailedError, StoreError):
            raise _unavailable() from None
        finally:
            self._scanning.release()


def _event_id(value: bytes) -> bytes:
    if len(value) != EVENT_ID_SIZE:
        raise _invalid("event_id has 16 bytes", "event_id")
    return value


def _invalid(message: str, field: str) -> SealwardError:
    return SealwardError(Reason.FIELD_INVALID, message, field=field)


def _unavailable() -> SealwardError:
    return SealwardError(
        Reason.AUDIT_UNAVAILABLE, "the audit store cannot be read", retry_after=1.0
    )
