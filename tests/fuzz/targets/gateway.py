"""What the gateway reads: metadata of any caller, values of the session store, other services."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError

from sealward.api.audit.v1.audit_pb2 import Receipt
from sealward.api.common.v1.batch_pb2 import Reply
from sealward.api.inference.v1.inference_pb2 import InferenceRecord
from sealward.kit.errors import SealwardError
from sealward.kit.identity import peer_from_certificate
from sealward.tlog.errors import TlogError
from sealward.tlog.note import parse_note
from sealward.tlog.receipt import open_receipt
from services.gateway.events import Event, run_of
from services.gateway.metadata import bearer_token, read_headers
from services.gateway.pipeline import receipt_trailers
from services.gateway.policy.cedar import SHIPPED
from services.gateway.policy.changes import parse_payload, parse_policy, payload
from services.gateway.servicer import _check_same_key
from services.gateway.session import Session, decode_session
from tests.fuzz.harness import target
from tests.support.issuing import material, request
from tests.support.tlog_logs import entries, log_files, signer, tree_of


def _metadata(data: bytes) -> dict[str, str | bytes]:
    """Read lines `key=value`; a key that ends in -bin has bytes."""
    found: dict[str, str | bytes] = {}
    for line in data.split(b"\n")[:50]:
        key, _, value = line.partition(b"=")
        name = key.decode("latin-1").lower()
        found[name] = value if name.endswith("-bin") else value.decode("latin-1")
    return found


@target(SealwardError, seeds=lambda: [
    b"authorization=Bearer " + b"a" * 43 + b"\nsealward-purpose=TREAT\nsealward-patient=MRN-1",
    b"authorization=bearer " + b"Z" * 43 + b"\nsealward-seq=9223372036854775807\ntraceparent=00-"
    + b"ab" * 16 + b"-" + b"cd" * 8 + b"-01",
])  # fmt: skip
def call_metadata(data: bytes) -> None:
    """The metadata of a call."""
    metadata = _metadata(data)
    headers = read_headers(metadata)
    assert headers.seq is None or 0 <= headers.seq < 1 << 63
    assert headers.patient.isascii()
    token = bearer_token(metadata)
    assert len(token) == 43


def _session() -> bytes:
    return Session("5e55", "u-1", "ann", ("clinician",), bytes(32), 1, 2).encode()


@target(SealwardError, seeds=lambda: [_session()])
def session_value(data: bytes) -> None:
    """A session as it lies, once opened, in the session store."""
    found = decode_session(data)
    assert isinstance(found.roles, tuple)


@target(DecodeError, seeds=lambda: [InferenceRecord(
    model_name="m", model_version="1", model_digest=bytes(32), rows=3, batch_size=3,
    runtime_digest="r", determinism="strict").SerializeToString()])  # fmt: skip
def inference_record(data: bytes) -> None:
    """What inference says of a run."""
    run_of.__wrapped__(data)


@target(SealwardError, seeds=lambda: [request(Encoding.DER)])
def renewal_request(data: bytes) -> None:
    """A caller's request for a certificate with the key of its present one."""
    _check_same_key(data, peer_from_certificate(material().chain_pem, "").spki_sha256)


def _receipts() -> Sequence[bytes]:
    tree = tree_of(entries(7))
    path = b"".join(tree.inclusion(5))
    return [Receipt(log_index=5, leaf=entries(7)[5], path=path).SerializeToString()]


@target(TlogError, seeds=_receipts)
def audit_receipt(data: bytes) -> None:
    """A receipt of audit on its way to a caller: none, or one about this event."""
    note = log_files(entries(7))["checkpoint"]
    leaf = entries(7)[5]
    event = Event(leaf[1:17], bytes(32), "t", "m", 1)
    event.prefix = leaf[:49]
    trailers = receipt_trailers(event, Reply(body=data), note)
    if trailers is not None:
        receipt = dict(trailers)["sealward-receipt-bin"]
        assert isinstance(receipt, bytes)
        opened = open_receipt(receipt, [signer().verifier])
        assert opened.event_id == event.event_id
        assert parse_note(opened.note).text == parse_note(note).text


_POLICY = SHIPPED.read_text()[:900].rpartition("\n@id")[0] + "\n"


@target(SealwardError, seeds=lambda: [payload(3, "ab" * 32, _POLICY), payload(1, "", "")])
def policy_payload(data: bytes) -> None:
    """What somebody signed to change the policies: one spelling."""
    assert payload(*parse_payload(data)) == data


@target(SealwardError, seeds=lambda: [_POLICY.encode(), SHIPPED.read_bytes()], rounds=60)
def policy_text(data: bytes) -> None:
    """Policies as they are proposed."""
    parse_policy(data.decode("utf-8", "replace"))
