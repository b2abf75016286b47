"""OTLP/gRPC trace ingest: exported spans into the same log (opentelemetry-proto, specification.md).

Acknowledged when durable. Overload and a full disk are UNAVAILABLE with RetryInfo, which every
exporter retries; `partial_success` is for spans that can never be recorded, because it must not be
retried. A repeated span is acknowledged again and stored once.

A request of 4 MiB may hold 87,000 spans: they go to the log in parts, so that what one request can
make wait, and the memory that it takes, stays bounded. A repetition after a part that was refused
finds the ones before it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceResponse,
)

from sealward.kit.chain import peer_of
from sealward.kit.errors import SealwardError
from sealward.kit.identity import Identity
from services.audit.committer import Committer
from services.audit.entry import Candidate, Maker
from services.audit.metrics import SPAN_INVALID, AuditMetrics
from services.audit.otlpwire import ExportRequest
from services.audit.spanfields import SpanError

PART_SPANS = 1024
"""Spans of one request that wait for the log at once."""

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


class TraceIngest:
    """TraceService/Export."""

    def __init__(self, committer: Committer, maker: Maker, metrics: AuditMetrics) -> None:
        self._committer = committer
        self._maker = maker
        self._metrics = metrics

    def Export(
        self, request: ExportRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        """Record the spans of a request; raise SealwardError when they are to be sent again."""
        return self.ingest(request, peer_of(context).identity)

    def ingest(self, request: ExportRequest, identity: Identity) -> ExportTraceServiceResponse:
        """Record the spans of a request that came from `identity`."""
        spans = request.spans
        rejected = sum(
            self._part(spans[begin : begin + PART_SPANS], identity)
            for begin in range(0, len(spans), PART_SPANS)
        )
        response = ExportTraceServiceResponse()
        if rejected:
            response.partial_success.rejected_spans = rejected
            response.partial_success.error_message = (
                "spans without valid ids and times, too large, or with an event id that is taken"
            )
        return response

    def _part(self, spans: Sequence[bytes], identity: Identity) -> int:
        """Record some spans; return how many can never be."""
        candidates: list[Candidate] = []
        invalid = 0
        exported = self._maker.exported
        for span in spans:
            try:
                candidates.append(exported(span, identity))
            except SpanError:
                invalid += 1
        if invalid:
            self._metrics.refused.labels(SPAN_INVALID).inc(invalid)
        results = self._committer.submit(candidates)
        return invalid + sum(isinstance(result, SealwardError) for result in results)


def add_to_server(ingest: TraceIngest, server: Any) -> None:
    """Register the handler, as the generated function of opentelemetry-proto does."""
    handler = grpc.unary_unary_rpc_method_handler(
        ingest.Export,
        request_deserializer=ExportRequest.FromString,
        response_serializer=ExportTraceServiceResponse.SerializeToString,
    )
    server.add_registered_method_handlers(SERVICE, {"Export": handler})
