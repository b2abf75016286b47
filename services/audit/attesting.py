"""AttestService: the log vouches for a report by its digest."""

from __future__ import annotations

import os
from hashlib import sha256

import grpc

from sealward.api.audit.v1 import attest_pb2, attest_pb2_grpc
from sealward.kit import attributes as names
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.tlog.leaf import DIGEST_SIZE, SALT_SIZE, Outcome, binding
from sealward.tlog.receipt import format_receipt
from services.audit.events import OwnEvents
from services.audit.reading import unavailable
from services.audit.shards import Shards
from services.audit.store import StoreError

EVENT = "check.report"
KINDS = frozenset({"safeguards"})


class AttestServicer(attest_pb2_grpc.AttestServiceServicer):
    """See attest.proto."""

    def __init__(self, shards: Shards, events: OwnEvents) -> None:
        self._shards = shards
        self._events = events

    def AttestReport(
        self, request: attest_pb2.AttestReportRequest, context: grpc.ServicerContext
    ) -> attest_pb2.AttestReportResponse:
        """Record the digest and answer with the receipt of that record."""
        if request.kind not in KINDS:
            raise SealwardError(Reason.FIELD_INVALID, "kind is safeguards", field="kind")
        if len(request.sha256) != DIGEST_SIZE:
            raise SealwardError(Reason.FIELD_INVALID, "sha256 has 32 bytes", field="sha256")
        # As anybody writes it: a field that we do not know would be in the caller's bytes alone.
        asked = attest_pb2.AttestReportRequest(kind=request.kind, sha256=request.sha256)
        digest = sha256(asked.SerializeToString(deterministic=True)).digest()
        salt = os.urandom(SALT_SIZE)
        event_id = self._events.bound(
            call_of(context),
            EVENT,
            {names.TARGET: f"{request.kind}/{request.sha256.hex()}"},
            binding(salt, digest, b"", b"", Outcome.OK),
        )
        try:
            placed, checkpoint = self._shards.find(event_id).log.receipt(event_id, None)
        except StoreError:
            raise unavailable() from None
        receipt = format_receipt(placed.index, placed.path, placed.leaf, salt, checkpoint)
        return attest_pb2.AttestReportResponse(event_id=event_id, receipt=receipt)
