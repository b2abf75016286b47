"""What the gateway's records say, written as OTLP bytes.

Whatever does not change from call to call (who, by which rule, which model, how it ended) is
encoded once and kept; see kit/spans.py.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from sealward.api.audit.v1.audit_pb2 import Entry
from sealward.api.inference.v1.inference_pb2 import InferenceRecord
from sealward.kit import attributes as names
from sealward.kit.errors import SealwardError
from sealward.kit.identity import Identity
from sealward.kit.reasons import Reason
from sealward.kit.spans import (
    STATUS_ERROR,
    STATUS_OK,
    AttributeValue,
    IntAttribute,
    SpanHead,
    TextAttribute,
    TraceParent,
    attribute,
)
from sealward.tlog.leaf import Outcome, binding, leaf_prefix
from services.gateway.session import Session

_OUTCOMES = {Outcome.OK: "ok", Outcome.DENIED: "denied", Outcome.FAILED: "failed"}
# Reasons below this one are about who asks and what they may do; the others about what went wrong.
_FIRST_FAILURE = Reason.REQUEST_MALFORMED
_MOST_NAMES, _NAMES_BYTES = 16, 192
# Refusals whose numbers came later.
_DENIALS = frozenset(
    {
        Reason.OUTPUTS_WITHHELD,
        Reason.QUOTA_EXCEEDED,
        Reason.ASSERTION_INVALID,
        Reason.ASSERTION_REPLAYED,
        Reason.SCOPE_REFUSED,
        Reason.PROVIDER_REFUSED,
        Reason.ID_TOKEN_INVALID,
        Reason.PERSON_UNKNOWN,
        Reason.ROLE_MISSING,
        Reason.CHALLENGE_UNKNOWN,
        Reason.FACTOR_SUSPENDED,
    }
)
_METADATA = frozenset({Reason.PURPOSE_UNKNOWN, Reason.METADATA_UNKNOWN, Reason.METADATA_INVALID})


def outcome_of(error: SealwardError | None) -> Outcome:
    """Tell how a call ended: ok, denied (by us, for who asks or for what) or failed."""
    if error is None:
        return Outcome.OK
    if error.reason in _DENIALS:
        return Outcome.DENIED
    if error.reason < _FIRST_FAILURE and error.reason not in _METADATA:
        return Outcome.DENIED
    return Outcome.FAILED


def actor(identity: Identity, spki: bytes, session: Session | None) -> bytes:
    """Encode who asked. Before there is a session the certificate alone says it."""
    return _actor(
        *(identity.name, identity.kind, spki),
        *(
            ("", (), "")
            if session is None
            else (session.session_id, session.roles, session.break_glass)
        ),
    )


# Plain values make cheap keys: hashing a whole session costs more than all else here.
@lru_cache(maxsize=8192)
def _actor(
    name: str, kind: str, spki: bytes, session_id: str, roles: tuple[str, ...], break_glass: str
) -> bytes:
    parts = [
        attribute(names.ACTOR_ID, name),
        attribute(names.ACTOR_KIND, kind),
        attribute(names.ACTOR_CERT, spki.hex()),
    ]
    if session_id:
        parts += [attribute(names.ACTOR_ROLES, roles), attribute(names.SESSION_ID, session_id)]
        if break_glass:
            parts += [
                attribute(names.BREAK_GLASS, True),
                attribute(names.BREAK_GLASS_REASON, break_glass),
            ]
    return b"".join(parts)


@lru_cache(maxsize=1024)
def decision(rule: str, digest: str, purpose: str) -> bytes:
    """Encode which rule of which policy set decided, and the purpose of use."""
    parts = [attribute(names.POLICY_ID, rule), attribute(names.POLICY_DIGEST, digest)]
    if purpose:
        parts.append(attribute(names.PURPOSE, purpose))
    return b"".join(parts)


@lru_cache(maxsize=1024)
def model(name: str, version: str) -> bytes:
    """Encode which model was asked for, where none ran; `version` may be empty."""
    parts = [attribute(names.MODEL_NAME, name)]
    if version:
        parts.append(attribute(names.MODEL_VERSION, version))
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Run:
    """What inference says of a run, and the same encoded. `digest` is 32 bytes or empty.

    `rows` is 0 for a call that did not run.
    """

    model: str
    version: str
    digest: bytes
    encoded: bytes
    rows: int = 0


@lru_cache(maxsize=4096)
def run_of(record: bytes) -> Run:
    """Read a serialised InferenceRecord. Runs of one model differ little: most are known.

    Raises DecodeError.
    """
    r = InferenceRecord.FromString(record)
    values: list[tuple[str, AttributeValue]] = [
        (names.MODEL_NAME, r.model_name),
        (names.MODEL_VERSION, r.model_version),
        (names.MODEL_DIGEST, r.model_digest.hex()),
        (names.RUNTIME_DIGEST, r.runtime_digest),
        (names.DETERMINISM, r.determinism),
        (names.DATA_CATEGORY, r.data_category),
        (names.DATA_ORIGIN, r.data_origin),
    ]
    values = [(key, value) for key, value in values if value]
    if r.rows:
        values += [
            (names.ROWS, r.rows),
            (names.BATCH_SIZE, r.batch_size),
            (names.BATCH_POSITION, r.batch_position),
        ]
    if r.inputs_dropped:
        values.append((names.INPUTS_DROPPED, r.inputs_dropped))
    if r.dropped_names:
        values.append((names.INPUTS_DROPPED_NAMES, tuple(r.dropped_names)))
    encoded = b"".join(attribute(key, value) for key, value in values)
    return Run(r.model_name, r.model_version, r.model_digest, encoded, r.rows)


@lru_cache(maxsize=1024)
def withheld(outputs: tuple[str, ...]) -> bytes:
    """Encode how many outputs were left out of an answer, and names as there is room."""
    room, shown = _NAMES_BYTES, []
    for name in outputs[:_MOST_NAMES]:
        room -= len(name)
        if room < 0:
            break
        shown.append(name)
    parts = attribute(names.OUTPUTS_WITHHELD, len(outputs))
    return parts + (attribute(names.OUTPUTS_WITHHELD_NAMES, shown) if shown else b"")


_caller_seq = IntAttribute(names.CALLER_SEQ).encode
_producer_seq = IntAttribute(names.PRODUCER_SEQ).encode
_event_id = TextAttribute(names.EVENT_ID, 32).encode


def caller_seq(seq: int) -> bytes:
    """Encode the caller's own number of the call."""
    return _caller_seq(seq)


@dataclass(slots=True, eq=False)
class Event:
    """A call's record on its way: what has to be the same in the span, the leaf and the receipt.

    `event_id` is 16 bytes (UUIDv7), `salt` 32, `start` and `end` nanoseconds since the epoch.
    `request` and `response` are the SHA-256 of the messages, `model` of the model file; each is
    empty where there is none. `span_id` is there when others record spans below this one.
    """

    event_id: bytes
    salt: bytes
    type: str
    method: str
    start: int
    end: int = 0
    error: SealwardError | None = None
    parts: Sequence[bytes] = ()
    parent: TraceParent | None = None
    patient: str = ""
    request: bytes = b""
    response: bytes = b""
    model: bytes = b""
    prefix: bytes = b""
    span_id: bytes = b""


class EventWriter:
    """Writes entries for the log. Thread-safe.

    The numbers rise by one with each entry, from 1 at the start of the process: a gap shows an
    entry that got lost. Whose numbers they are audit adds, from the certificate that it sees.
    """

    def __init__(self) -> None:
        self._instance = attribute(names.PRODUCER_INSTANCE, secrets.token_hex(4))
        self._heads = {kind: SpanHead(kind) for kind in names.EVENT_TYPES}
        self._numbers = itertools.count(1)
        self._ends: dict[tuple[str, str, int], bytes] = {}

    def entry(self, event: Event) -> bytes:
        """Serialise the Entry of an event, and set its `prefix`, with which its leaf begins."""
        error = event.error
        outcome = outcome_of(error)
        bound = binding(event.salt, event.request, event.response, event.model, outcome)
        event.prefix = leaf_prefix(event.event_id, bound)
        span = self._heads[event.type].build(
            event.start,
            event.end,
            (
                _event_id(event.event_id.hex().encode()),
                self._end(event.type, event.method, error, outcome),
                _producer_seq(next(self._numbers)),
                self._instance,
                *event.parts,
            ),
            parent=event.parent,
            span_id=event.span_id or None,
        )
        return Entry(
            event_id=event.event_id,
            binding=bound,
            span=span,
            patient=event.patient,
            input_digest=event.request,
            output_digest=event.response,
        ).SerializeToString()

    def _end(
        self, event_type: str, method: str, error: SealwardError | None, outcome: Outcome
    ) -> bytes:
        key = (event_type, method, 0 if error is None else int(error.reason))
        known = self._ends.get(key)
        if known is None:
            parts = [
                attribute(names.SERVICE_NAME, "gateway"),
                attribute(names.EVENT_TYPE, event_type),
                attribute(names.OUTCOME, _OUTCOMES[outcome]),
                attribute(names.CODE, "OK" if error is None else error.code.name),
                STATUS_OK if error is None else STATUS_ERROR,
            ]
            if method:
                parts.append(attribute(names.METHOD, method))
            if error is not None:
                parts.append(attribute(names.REASON, error.reason.name))
            known = self._ends[key] = b"".join(parts)
        return known


def digest(message: bytes) -> bytes:
    """SHA-256 of a message, 32 bytes."""
    return hashlib.sha256(message).digest()


def event_name(event_id: bytes) -> str:
    """Write an event id the way the trailer has it: a UUID with dashes."""
    h = event_id.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"
