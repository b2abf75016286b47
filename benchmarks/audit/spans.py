"""Spans such as the suite writes: the root span of a prediction, with fresh ids in each."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable

from sealward.kit import attributes as names
from sealward.kit.exporter import export_request
from sealward.kit.recorder import new_event_id
from sealward.kit.spans import STATUS_OK, AttributeValue, SpanHead, attribute
from sealward.kit.wire import bytes_field, string_field

_ATTRIBUTES: dict[str, AttributeValue] = {
    names.EVENT_TYPE: "inference.predict", names.OUTCOME: "ok", names.CODE: "OK",
    names.ACTOR_ID: "dr-smith", names.ACTOR_KIND: "user", names.ACTOR_CERT: "ab" * 32,
    names.SESSION_ID: "5e55" * 8, names.PURPOSE: "TREAT", names.MODEL_NAME: "breast-cancer",
    names.MODEL_VERSION: "1", names.MODEL_DIGEST: "cd" * 32, names.ROWS: 1,
    names.POLICY_ID: "clinician-predict", names.POLICY_DIGEST: "ef" * 32,
}  # fmt: skip


def entries(patients: int = 0) -> Callable[[], bytes]:
    """Return a maker of serialised Entry messages, each about one of so many patients."""
    parts = [*(attribute(name, value) for name, value in _ATTRIBUTES.items()), STATUS_OK]
    head = SpanHead("inference.predict")

    def make() -> bytes:
        now = time.time_ns()
        body = (
            bytes_field(1, new_event_id())
            + bytes_field(2, os.urandom(32))
            + bytes_field(3, head.build(now - 1_000_000, now, parts))
        )
        if patients:
            body += string_field(4, f"patient-{secrets.randbelow(patients)}")
        return body

    return make


def export_requests(spans: int) -> Callable[[], bytes]:
    """Return a maker of ExportTraceServiceRequests of so many spans, 14 attributes each."""
    parts = [*(attribute(name, value) for name, value in _ATTRIBUTES.items()), STATUS_OK]
    now = time.time_ns()
    head = SpanHead("inference.predict")
    span = head.build(now - 1_000_000, now, parts)
    # trace id and span id are the first two fields: 0a 10 [16] 12 08 [8].
    tail = span[28:]

    def make() -> bytes:
        ids = os.urandom(24 * spans)
        made = [
            b"\x0a\x10" + ids[at : at + 16] + b"\x12\x08" + ids[at + 16 : at + 24] + tail
            for at in range(0, len(ids), 24)
        ]
        return export_request(made)

    return make
