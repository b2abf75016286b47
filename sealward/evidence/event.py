"""One opened event: what its span says, where its entry stands, and the proof of that."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from google.protobuf.message import DecodeError

from sealward.api.audit.v1.audit_pb2 import Receipt
from sealward.api.audit.v1.export_pb2 import OpenedSpan, OpenedValue
from sealward.kit import attributes as names
from sealward.tlog.checkpoint import open_checkpoint
from sealward.tlog.errors import ReceiptEventError, TlogError
from sealward.tlog.leaf import SALT_SIZE, parse_leaf
from sealward.tlog.merkle import leaf_hash, split_hashes, verify_inclusion
from sealward.tlog.note import Verifier, parse_vkeys
from sealward.tlog.receipt import format_receipt

Attribute = str | int | float | bool | tuple[str, ...]
"""What an attribute of a record may be; bytes are shown as hex digits."""


class EvidenceError(Exception):
    """What came from the log does not hold together. Its text names places, never contents."""


@dataclass(frozen=True, slots=True)
class Span:
    """An opened span: ids in hex digits, times in nanoseconds since the epoch (UTC)."""

    name: str
    trace_id: str
    span_id: str
    parent_span_id: str
    start: int
    end: int
    attributes: Mapping[str, Attribute] = field(repr=False)


@dataclass(frozen=True, slots=True)
class LogHead:
    """A log at the moment of a checkpoint, whose signature holds: tree size and root (32 bytes).

    `verifiers` are the keys that it holds under. All events of the log share it, so that the
    signature is verified once.
    """

    origin: str
    size: int
    root: bytes
    checkpoint: bytes = field(repr=False)
    verifiers: tuple[Verifier, ...] = field(repr=False)
    vkeys: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Event:
    """An event with its entry. `path` is the inclusion path in the tree of the head."""

    event_id: bytes
    head: LogHead
    index: int
    leaf: bytes = field(repr=False)
    path: tuple[bytes, ...] = field(repr=False)
    span: Span = field(repr=False)

    @property
    def origin(self) -> str:
        """The log's name."""
        return self.head.origin

    @property
    def checkpoint(self) -> bytes:
        """The signed checkpoint that the path refers to."""
        return self.head.checkpoint

    @property
    def id(self) -> str:
        """The event's id as people write it."""
        return str(uuid.UUID(bytes=self.event_id))

    def text(self, name: str) -> str:
        """Return an attribute as text, empty when it is not there."""
        value = self.span.attributes.get(name, "")
        if isinstance(value, tuple):
            return " ".join(value)
        return str(value).lower() if isinstance(value, bool) else str(value)

    @property
    def type(self) -> str:
        """`sealward.event.type`; `otel.span` for a span that has none."""
        return self.text(names.EVENT_TYPE) or "otel.span"

    @property
    def outcome(self) -> str:
        """`ok`, `denied` or `failed`."""
        return self.text(names.OUTCOME) or "ok"

    @property
    def patient(self) -> str:
        """The patient: the reference in clear where the span has it, else the pseudonym."""
        return self.text(names.PATIENT_REFERENCE) or self.text(names.PATIENT)

    @property
    def identified(self) -> bool:
        """True when the span names the patient in clear."""
        return names.PATIENT_REFERENCE in self.span.attributes

    def pseudonymous(self) -> Event:
        """Return the event without the patient reference in clear."""
        if not self.identified:
            return self
        kept = {k: v for k, v in self.span.attributes.items() if k != names.PATIENT_REFERENCE}
        return replace(self, span=replace(self.span, attributes=kept))

    @property
    def trust_domain(self) -> str:
        """The first part of the log's origin."""
        return self.origin.split("/", 1)[0]

    def proof(self, salt: bytes = bytes(SALT_SIZE)) -> bytes:
        """Return the receipt (C2SP tlog-proof). The salt is the caller's; zeroes stand for it."""
        return format_receipt(self.index, self.path, self.leaf, salt, self.checkpoint)

    def check(self) -> None:
        """Verify that the entry is in the log and is this event's; raise EvidenceError."""
        try:
            if parse_leaf(self.leaf).event_id != self.event_id:
                raise ReceiptEventError("entry is about another event")
            hashed = leaf_hash(self.leaf)
            verify_inclusion(hashed, self.index, self.head.size, self.path, self.head.root)
        except TlogError as error:
            raise EvidenceError(f"entry {self.index} does not verify: {error}") from None
        said = self.text(names.EVENT_ID).replace("-", "")
        if said and said != self.event_id.hex():
            raise EvidenceError(f"entry {self.index} opens to another event")


def read_span(data: bytes) -> Span:
    """Read a serialised opentelemetry.proto.trace.v1.Span; raise EvidenceError."""
    try:
        span = OpenedSpan.FromString(data)
    except DecodeError:
        raise EvidenceError("a span is not well-formed") from None
    attributes = {pair.key: _value(pair.value) for pair in span.attributes}
    return Span(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        {name: value for name, value in attributes.items() if value is not None},
    )


def open_head(checkpoint: bytes, vkeys: str) -> LogHead:
    """Verify a checkpoint with verifier keys, one a line; raise EvidenceError."""
    try:
        verifiers = tuple(parse_vkeys(vkeys))
        opened = open_checkpoint(checkpoint, verifiers)
    except TlogError as error:
        raise EvidenceError(f"a checkpoint does not verify: {error}") from None
    return LogHead(opened.origin, opened.size, opened.root, checkpoint, verifiers, vkeys)


def make_event(event_id: bytes, span: bytes, receipt: Receipt, head: LogHead) -> Event:
    """Put together what the audit service answers, and check it; raise EvidenceError."""
    try:
        path = tuple(split_hashes(receipt.path))
    except TlogError as error:
        raise EvidenceError(f"entry {receipt.log_index} does not verify: {error}") from None
    event = Event(event_id, head, receipt.log_index, receipt.leaf, path, read_span(span))
    event.check()
    return event


def _value(value: OpenedValue) -> Attribute | None:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return tuple(str(_value(item)) for item in value.array_value.values)
    if kind == "bytes_value":
        return value.bytes_value.hex()
    found: Attribute = getattr(value, kind)
    return found
