"""Spans such as the suite writes: the root span of a prediction, with fresh ids in each."""

from __future__ import annotations

import itertools
import os
import secrets
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from sealward.kit import attributes as names
from sealward.kit.exporter import export_request
from sealward.kit.recorder import new_event_id
from sealward.kit.spans import STATUS_OK, AttributeValue, SpanHead, attribute
from sealward.kit.wire import bytes_field, string_field
from services.audit.entry import derived_event_id

# start_time_unix_nano and end_time_unix_nano with their tags.
_TIMES = struct.Struct("<BQBQ")
# Nanoseconds from one span of a request to the next (20,000 a second), and of each.
_APART, _LONG = 50_000, 1_000_000

_ATTRIBUTES: dict[str, AttributeValue] = {
    names.EVENT_TYPE: "inference.predict", names.OUTCOME: "ok", names.CODE: "OK",
    names.ACTOR_ID: "dr-smith", names.ACTOR_KIND: "user", names.ACTOR_CERT: "ab" * 32,
    names.SESSION_ID: "5e55" * 8, names.MODEL_NAME: "breast-cancer",
    names.MODEL_VERSION: "1", names.MODEL_DIGEST: "cd" * 32, names.ROWS: 1,
    names.POLICY_ID: "clinician-predict", names.POLICY_DIGEST: "ef" * 32,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """An ExportTraceServiceRequest, and what its spans are known by: ids (24 bytes each), times."""

    body: bytes
    ids: bytes
    first: int

    def event_ids(self) -> list[bytes]:
        """Return the event ids that audit gives these spans."""
        ids, first = self.ids, self.first
        return [
            derived_event_id(
                "gateway", ids[at : at + 16], ids[at + 16 : at + 24], first + n * _APART
            )
            for n, at in enumerate(range(0, len(ids), 24))
        ]


def entries(patients: int = 0) -> Callable[[], bytes]:
    """Return a maker of serialised Entry messages, each about one of so many patients.

    One in ten is for research, which the accounting of disclosures lists; the others for treatment.
    """
    heads = [
        [
            *(attribute(name, value) for name, value in _ATTRIBUTES.items()),
            attribute(names.PURPOSE, purpose), STATUS_OK,
        ]
        for purpose in ("HRESCH", *["TREAT"] * 9)
    ]  # fmt: skip
    head = SpanHead("inference.predict")
    turn = itertools.cycle(heads)

    def make() -> bytes:
        now = time.time_ns()
        body = (
            bytes_field(1, new_event_id())
            + bytes_field(2, os.urandom(32))
            + bytes_field(3, head.build(now - 1_000_000, now, next(turn)))
        )
        if patients:
            body += string_field(4, f"patient-{secrets.randbelow(patients)}")
        return body

    return make


def export_requests(spans: int) -> Callable[[], Request]:
    """Return a maker of export requests of so many spans, 14 attributes each.

    Each span has ids and times of its own: the calls of a service end one after another.
    """
    parts = [
        *(attribute(name, value) for name, value in _ATTRIBUTES.items()),
        attribute(names.PURPOSE, "TREAT"), STATUS_OK,
    ]  # fmt: skip
    span = SpanHead("inference.predict").build(1, 2, parts)
    # Trace id and span id are the first two fields: 0a 10 [16] 12 08 [8]; the times come together.
    times = span.index(_TIMES.pack(0x39, 1, 0x41, 2))
    head, tail = span[28:times], span[times + _TIMES.size :]

    def make() -> Request:
        ids = os.urandom(24 * spans)
        first = time.time_ns() - spans * _APART - _LONG
        made = []
        for at, start in zip(range(0, len(ids), 24), itertools.count(first, _APART), strict=False):
            when = _TIMES.pack(0x39, start, 0x41, start + _LONG)
            own = (b"\x0a\x10", ids[at : at + 16], b"\x12\x08", ids[at + 16 : at + 24])
            made.append(b"".join((*own, head, when, tail)))
        return Request(export_request(made), ids, first)

    return make
