"""From what a producer sends to what is sealed: one candidate for the log. Pure but for the keys.

A producer says what happened; who said it is taken from its certificate, and pseudonyms and keyed
digests are made here, so that no other service holds a key of the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import NamedTuple, Protocol

from google.protobuf.message import DecodeError

from sealward.api.audit.v1.audit_pb2 import Entry
from sealward.kit import attributes as names
from sealward.kit.errors import SealwardError
from sealward.kit.identity import Identity
from sealward.kit.reasons import Reason
from sealward.kit.spans import AttributeValue, TextAttribute, attribute
from sealward.kit.wire import string_field, varint
from sealward.seal.entries import OVERHEAD_BYTES
from sealward.tlog.leaf import (
    DIGEST_SIZE,
    EVENT_ID_SIZE,
    NO_BINDING,
    PREFIX_SIZE,
    leaf_prefix,
)
from services.audit.digests import KEYED_DIGITS, IndexKeys
from services.audit.index import Row
from services.audit.rows import row_of
from services.audit.spanfields import SpanError
from services.audit.spanfilter import FilteredSpan, SpanFilter
from services.audit.store import EventKey

DEFAULT_TENANT = "default"
"""Whose log takes what names no tenant: exported spans and the service's own events among it."""

MAX_RELEASING_BYTES = 2048
"""Bytes of a leaf that leaves in a receipt: trailers have to stay below 6 KiB."""

MAX_SPAN_BYTES = 48 << 10
"""Bytes of a leaf from an exported span."""

MAX_PATIENT_BYTES = 256
"""Bytes of a patient reference."""

_CLEAR_BYTES = PREFIX_SIZE + OVERHEAD_BYTES
_PATIENT, _INPUT_DIGEST, _OUTPUT_DIGEST = (
    TextAttribute(name, KEYED_DIGITS)
    for name in (names.PATIENT, names.INPUT_DIGEST, names.OUTPUT_DIGEST)
)
_REFERENCE_KEY = string_field(1, names.PATIENT_REFERENCE) + b"\x12"
_DERIVED = b"sealward/otlp-event/v1\n"
_MASK48 = (1 << 48) - 1
# Bits of the last ten bytes of a UUID: four of the version, two of the variant.
_NOT_VERSION = ~(0xF << 76 | 0x3 << 62) & (1 << 80) - 1
_VERSION_8 = 0x8 << 76 | 0x2 << 62
_TRACE = Row._fields.index("trace_id")

# What an outside producer may say. Who acted, with what outcome, on which model: these are
# statements of ours, and an outsider's span must not be able to look like one.
WORKLOAD_ATTRIBUTES = frozenset(
    {
        names.CALLER_SEQ, names.DATA_CATEGORY, names.DATA_ORIGIN, names.ORGANIZATION,
        names.MODEL_VERSION, names.METHOD, names.SERVICE_NAME, names.ROWS, names.PRODUCER_SEQ,
        names.PRODUCER_INSTANCE,
    }
)  # fmt: skip


class Candidate(NamedTuple):
    """An event that may enter the log: the clear part of its leaf, its span, its id, its row."""

    prefix: bytes
    span: bytes
    key: EventKey
    row: Row | None
    dropped: int = 0
    source: Source | None = None


class Source(NamedTuple):
    """What a candidate was made of, and by whom: a log that ended meanwhile is not to lose it."""

    maker: EntryMaker
    exported: bool
    body: bytes
    identity: Identity


class Maker(Protocol):
    """What makes candidates for whichever log takes them now (EntryMaker, shards.TenantMaker)."""

    def appended(self, body: bytes, identity: Identity) -> Candidate:
        """See EntryMaker."""

    def exported(self, body: bytes, identity: Identity) -> Candidate:
        """See EntryMaker."""

    def own(
        self,
        event_id: bytes,
        span: bytes,
        identity: Identity,
        patient: str,
        binding: bytes = NO_BINDING,
        tenant: str = "",
    ) -> Candidate:
        """See EntryMaker."""


class Producers:
    """What each identity says of itself in the record, encoded once."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[dict[str, AttributeValue], bytes]] = {}

    def of(self, identity: Identity) -> tuple[dict[str, AttributeValue], bytes]:
        """Return the producer's attributes, by name and encoded."""
        known = self._known.get(identity.uri)
        if known is None:
            ours = identity.kind in ("service", "admin")
            values: dict[str, AttributeValue] = {
                names.PRODUCER_ID: identity.name if ours else identity.uri
            }
            if not ours:
                values[names.ACTOR_ID] = identity.name
                values[names.ACTOR_KIND] = identity.kind
            encoded = b"".join([attribute(name, value) for name, value in values.items()])
            if len(self._known) > 4096:
                self._known.clear()
            known = self._known[identity.uri] = (values, encoded)
        return known


class PatientKeys(Protocol):
    """What seals patient references (services.audit.patients.Patients)."""

    def seal(self, event_id: bytes, pseudonym: str, reference: str) -> bytes:
        """Return the attribute with the sealed reference; raise SealwardError."""


class EntryMaker:
    """Makes candidates for one log, under its keys. Thread-safe. `tenant` is whose log it is.

    `patients`: None for a log that has ended, whose candidates are compared and never appended.
    """

    def __init__(
        self,
        keys: IndexKeys,
        tenant: str = DEFAULT_TENANT,
        patients: PatientKeys | None = None,
    ) -> None:
        self._keys = keys
        self.tenant = tenant
        self._patients = patients
        self._producers = Producers()
        # The producer's name is never taken from the span.
        self._ours = SpanFilter(names.ALLOWED, (names.PRODUCER_ID,))
        self._theirs = SpanFilter(WORKLOAD_ATTRIBUTES)

    def appended(self, body: bytes, identity: Identity) -> Candidate:
        """Read a serialised Entry; raise SealwardError naming the field that is wrong."""
        return self.of_entry(read_entry(body), body, identity)

    def of_entry(self, entry: Entry, body: bytes, identity: Identity) -> Candidate:
        """Make a candidate of an Entry and its serialised form; raise as `appended`."""
        _check_entry(entry)
        try:
            span = self._ours.filter(entry.span)
        except SpanError as error:
            raise _invalid(str(error), error.field) from None
        if names.EVENT_TYPE not in span.values:
            raise _invalid("the span has no event type", names.EVENT_TYPE)
        if span.values.get(names.OUTCOME) not in names.OUTCOMES:
            raise _invalid("the span has no outcome", names.OUTCOME)
        said, encoded = self._producers.of(identity)
        values = {**span.values, **said}
        added = [encoded]
        if entry.patient:
            values[names.PATIENT] = pseudonym = self._keys.pseudonym(entry.patient)
            if self._patients is None:
                added.append(_PATIENT.encode(pseudonym.encode()))
                added.append(_reference(entry.patient.encode()))
        if entry.input_digest:
            keyed = self._keys.digest(entry.input_digest)
            added.append(_INPUT_DIGEST.encode(keyed.encode()))
        if entry.output_digest:
            keyed = self._keys.digest(entry.output_digest)
            added.append(_OUTPUT_DIGEST.encode(keyed.encode()))
        if entry.patient and self._patients is not None:
            # The last one: by that it is found again.
            added.append(self._patients.seal(entry.event_id, pseudonym, entry.patient))
        whole = b"".join((span.body, *added))
        if len(whole) + _CLEAR_BYTES > MAX_RELEASING_BYTES:
            raise SealwardError(
                Reason.MESSAGE_TOO_LARGE,
                f"an entry may have {MAX_RELEASING_BYTES} bytes",
                field="span",
            )
        return Candidate(
            leaf_prefix(entry.event_id, entry.binding),
            whole,
            EventKey(entry.event_id, self._keys.fingerprint(body)),
            row_of(entry.event_id, span, values),
            span.dropped,
            Source(self, False, body, identity),
        )

    def exported(self, body: bytes, identity: Identity) -> Candidate:
        """Read a serialised Span from OTLP; raise SpanError when it can never be recorded."""
        ours = identity.kind == "service"
        span = (self._ours if ours else self._theirs).filter(body)
        said, added = self._producers.of(identity)
        event_id = _event_id(span.values.get(names.EVENT_ID)) if ours else None
        if event_id is None:
            event_id = derived_event_id(
                str(said[names.PRODUCER_ID]), span.trace_id, span.span_id, span.start
            )
        if span.values.get(names.OUTCOME, "ok") not in names.OUTCOMES:
            raise SpanError("the outcome is not one of its values", "sealward.outcome")
        whole = span.body + added
        if len(whole) + _CLEAR_BYTES > MAX_SPAN_BYTES:
            raise SpanError("the span is too large", "span")
        return Candidate(
            leaf_prefix(event_id, NO_BINDING),
            whole,
            EventKey(event_id, self._keys.fingerprint(whole)),
            _row_of_shape(event_id, span, said, identity.uri),
            span.dropped,
            Source(self, True, body, identity),
        )

    def again(self, candidate: Candidate) -> Candidate:
        """Make a candidate of another log's maker anew, under the keys of this log."""
        source = candidate.source
        if source is None or source.maker is self:
            return candidate
        make = self.exported if source.exported else self.appended
        return make(source.body, source.identity)

    def own(
        self,
        event_id: bytes,
        span: bytes,
        identity: Identity,
        patient: str,
        binding: bytes = NO_BINDING,
        tenant: str = "",
    ) -> Candidate:
        """Make an entry of the audit service's own; raise SealwardError."""
        return self.appended(
            Entry(
                event_id=event_id, binding=binding, span=span, patient=patient, tenant=tenant
            ).SerializeToString(),
            identity,
        )


def read_entry(body: bytes) -> Entry:
    """Parse a serialised Entry; raise SealwardError REQUEST_MALFORMED."""
    try:
        return Entry.FromString(body)
    except DecodeError:
        raise SealwardError(
            Reason.REQUEST_MALFORMED, "the entry is not a well-formed message"
        ) from None


def derived_event_id(producer: str, trace_id: bytes, span_id: bytes, start: int) -> bytes:
    """Return the event id of a span that has none: the same for every repetition of the span.

    A UUIDv8 (RFC 9562 section 5.8): the milliseconds of the start, as in a UUIDv7, so that ids that
    come together lie together in the store; then SHA-256 over producer, trace id and span id. The
    producer is in it so that nobody can occupy another's events. `start` is in nanoseconds.
    """
    drawn = int.from_bytes(
        sha256(_DERIVED + trace_id + span_id + producer.encode()).digest()[:10], "big"
    )
    time = start // 1_000_000 & _MASK48
    return (time << 80 | drawn & _NOT_VERSION | _VERSION_8).to_bytes(16, "big")


def _row_of_shape(
    event_id: bytes, span: FilteredSpan, said: Mapping[str, AttributeValue], who: str
) -> Row:
    """Return `row_of`; for spans that are alike only what differs is put in."""
    shape = span.shape
    if shape is None:
        return row_of(event_id, span, {**span.values, **said})
    known = shape.rows.get(who)
    if known is None:
        known = shape.rows[who] = row_of(event_id, span, {**span.values, **said})
    ids = (span.trace_id, span.span_id, span.parent_id)
    return Row._make((event_id, span.start, *known[2:_TRACE], *ids, *known[_TRACE + 3 :]))


def _event_id(value: AttributeValue | None) -> bytes | None:
    """Read `sealward.event.id`: 32 hex digits, with or without the dashes of a UUID."""
    if not isinstance(value, str):
        return None
    try:
        event_id = bytes.fromhex(value.replace("-", ""))
    except ValueError:
        return None
    return event_id if len(event_id) == EVENT_ID_SIZE else None


def _reference(patient: bytes) -> bytes:
    """Encode the patient reference as an attribute: `attribute()` with its key encoded once."""
    value = b"\x0a" + varint(len(patient)) + patient
    pair = _REFERENCE_KEY + varint(len(value)) + value
    return b"\x4a" + varint(len(pair)) + pair


def _check_entry(entry: Entry) -> None:
    event_id = entry.event_id
    if len(event_id) != EVENT_ID_SIZE or event_id[6] >> 4 != 7 or event_id[8] >> 6 != 2:
        raise _invalid("event_id is a UUIDv7 of 16 bytes", "event_id")
    if len(entry.binding) != DIGEST_SIZE:
        raise _invalid("binding has 32 bytes", "binding")
    if len(entry.patient.encode()) > MAX_PATIENT_BYTES:
        raise _invalid("patient is too long", "patient")
    if len(entry.input_digest) not in (0, DIGEST_SIZE):
        raise _invalid("a digest has 32 bytes or is empty", "input_digest")
    if len(entry.output_digest) not in (0, DIGEST_SIZE):
        raise _invalid("a digest has 32 bytes or is empty", "output_digest")


def _invalid(message: str, field: str) -> SealwardError:
    return SealwardError(Reason.FIELD_INVALID, message, field=field)
