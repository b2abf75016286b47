"""Events in a real log: sealed, signed, with proofs. Only the nonces differ from run to run."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from hashlib import sha256

from sealward.api.audit.v1.audit_pb2 import Receipt
from sealward.evidence.event import Event, make_event, open_head
from sealward.kit import attributes as names
from sealward.kit.spans import STATUS_OK, AttributeValue, SpanHead, attribute
from sealward.seal.entries import EntrySealer
from sealward.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealward.tlog.leaf import Outcome, binding, leaf_prefix
from sealward.tlog.merkle import Tree, leaf_hash
from tests.support.tlog_logs import ORIGIN, signer

REQUEST, RESPONSE = b"the request message", b"the response message"
MODEL_DIGEST = sha256(b"model file").digest()
SALT = sha256(b"salt").digest()
REFERENCE = "Patient/4711-canary"

PREDICTION: Mapping[str, AttributeValue] = {
    names.EVENT_TYPE: "inference.predict",
    names.OUTCOME: "ok",
    names.CODE: "OK",
    names.ACTOR_ID: "dr-smith",
    names.ACTOR_KIND: "user",
    names.ACTOR_ROLES: ("clinician",),
    names.ACTOR_CERT: sha256(b"key").hexdigest(),
    names.SESSION_ID: "5f2c",
    names.PURPOSE: "TREAT",
    names.PATIENT: "p1:8c1f00d2",
    names.MODEL_NAME: "breast-cancer",
    names.MODEL_VERSION: "1",
    names.MODEL_DIGEST: MODEL_DIGEST.hex(),
    names.ROWS: 1,
    names.DATA_CATEGORY: "measurements",
    names.POLICY_ID: "clinician-predicts",
    names.POLICY_DIGEST: sha256(b"policy").hexdigest(),
    names.PRODUCER_ID: "gateway",
    names.PRODUCER_SEQ: 7,
}
DENIED: Mapping[str, AttributeValue] = {
    **PREDICTION,
    names.OUTCOME: "denied",
    names.CODE: "PERMISSION_DENIED",
    names.REASON: "POLICY_DENIED",
}
LOGIN: Mapping[str, AttributeValue] = {
    names.EVENT_TYPE: "session.login",
    names.OUTCOME: "ok",
    names.CODE: "OK",
    names.ACTOR_ID: "dr-smith",
    names.ACTOR_KIND: "user",
    names.PRODUCER_ID: "gateway",
}
START: Mapping[str, AttributeValue] = {
    names.EVENT_TYPE: "audit.start",
    names.OUTCOME: "ok",
    names.COUNT: 0,
    names.PRODUCER_ID: "audit",
}


def event_id(number: int) -> bytes:
    """A UUIDv7 that depends on the number alone."""
    drawn = bytearray(sha256(b"id %d" % number).digest()[:16])
    drawn[6], drawn[8] = drawn[6] & 0x0F | 0x70, drawn[8] & 0x3F | 0x80
    return bytes(drawn)


def span_of(
    values: Mapping[str, AttributeValue], number: int = 0, start: int = 1_790_000_000_123_000_000
) -> bytes:
    """A span with these attributes and its event id."""
    said = {names.EVENT_ID: str(uuid.UUID(bytes=event_id(number))), **values}
    parts = [attribute(name, value) for name, value in said.items()]
    head = SpanHead(str(values.get(names.EVENT_TYPE, "span")))
    return head.build(start + number, start + number + 2_000_000, [*parts, STATUS_OK])


def make_events(
    records: Sequence[Mapping[str, AttributeValue]], before: int = 3, after: int = 2
) -> list[Event]:
    """Events about these records, in a log with some entries before and after them."""
    sealer = EntrySealer(bytes(range(32)), b"segment1", ORIGIN)
    count = before + len(records) + after
    spans = [
        span_of(records[n] if 0 <= n < len(records) else START, n)
        for n in range(-before, count - before)
    ]
    leaves = []
    for number, span in enumerate(spans, -before):
        bound = binding(
            SALT, sha256(REQUEST).digest(), sha256(RESPONSE).digest(), MODEL_DIGEST, Outcome.OK
        )
        prefix = leaf_prefix(event_id(number), bound)
        leaves.append(prefix + sealer.seal(prefix, span))
    tree = Tree(leaf_hash(leaf) for leaf in leaves)
    key = signer()
    note = sign_checkpoint(Checkpoint(ORIGIN, count, tree.root()), [key])
    head = open_head(note, key.verifier.vkey + "\n")
    return [
        make_event(
            event_id(at - before),
            spans[at],
            Receipt(log_index=at, leaf=leaves[at], path=b"".join(tree.inclusion(at, count))),
            head,
        )
        for at in range(before, before + len(records))
    ]
