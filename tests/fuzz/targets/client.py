"""What clients and readers of evidence read: answers of a gateway that need not be honest."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from io import BytesIO
from uuid import UUID

from sealward.api.audit.v1.audit_pb2 import Receipt
from sealward.api.gateway.v1.gateway_pb2 import GetConsistencyResponse, GetReceiptResponse
from sealward.api.oip.v2.open_inference_pb2 import ModelInferResponse
from sealward.cli.errors import CliError
from sealward.cli.oip_json import request_from_json, response_to_json
from sealward.cli.policy import _cases
from sealward.client import cosigned
from sealward.client.book import proofs_of
from sealward.client.checkpoints import CheckpointTracker, Seen
from sealward.client.errors import ForkError, MissingReceiptError, WrongReceiptError
from sealward.client.tensors import decode_response
from sealward.client.verify import (
    EVENT_ID,
    LOG_INDEX,
    MODEL_DIGEST,
    RECEIPT,
    ReceiptVerifier,
    Trailers,
)
from sealward.evidence.event import EvidenceError, make_event, open_head, read_span
from sealward.kit.calllist import Begins, Sent, write_line
from sealward.reconcile.hl7 import Fields
from sealward.reconcile.items import ListError
from sealward.reconcile.reading import open_list
from sealward.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealward.tlog.leaf import MIN_SEALED_SIZE, Outcome, binding, leaf_prefix
from sealward.tlog.note import sign_note
from sealward.tlog.policy import Policy
from sealward.tlog.receipt import format_receipt
from tests.fuzz.harness import target
from tests.fuzz.targets.audit import _spans
from tests.support.cosigners import ed25519, policy_text
from tests.support.tlog_logs import ORIGIN, entries, signer, tree_of

_DIGEST = sha256(b"model").digest()
_REQUEST = b"request"
_EVENT = bytes(range(16))


def _responses() -> Sequence[bytes]:
    made = []
    for raw in (True, False):
        response = ModelInferResponse(model_name="m", model_version="1", id="7")
        response.parameters[MODEL_DIGEST].string_param = _DIGEST.hex()
        one = response.outputs.add(name="y", datatype="FP32", shape=[1, 2])
        two = response.outputs.add(name="z", datatype="BYTES", shape=[1])
        small = response.outputs.add(name="s", datatype="UINT8", shape=[2])
        if raw:
            response.raw_output_contents.extend([bytes(8), b"\x02\x00\x00\x00ab", b"\x01\x02"])
        else:
            one.contents.fp32_contents.extend([1.5, 2.5])
            two.contents.bytes_contents.append(b"ab")
            small.contents.uint_contents.extend([1, 255])
        made.append(response.SerializeToString())
    return made


@target(WrongReceiptError, seeds=_responses, rounds=600)
def oip_response(data: bytes) -> None:
    """The answer to a prediction, as arrays."""
    decode_response(data)


@target(CliError, seeds=_responses)
def oip_response_shown(data: bytes) -> None:
    """The answer to a prediction, as the command line shows it."""
    try:
        response = ModelInferResponse.FromString(data)
    except Exception as error:
        raise CliError("malformed") from error
    response_to_json(response)


_JSON = (
    b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[[1.5,2]]}],"id":"7"}',
    b'{"inputs":[{"name":"s","datatype":"BYTES","shape":[1],"data":["a"],"parameters":{"p":true}}]}',
    b'{"inputs":[],"outputs":[{"name":"y"}],"parameters":{"a":1,"b":"x","c":1.5}}',
)


@target(CliError, seeds=lambda: _JSON)
def oip_json_request(data: bytes) -> None:
    """A request that a person wrote."""
    request_from_json("m", data.decode("utf-8", "replace"))


@cache
def _receipt() -> tuple[bytes, bytes]:
    """Return a response and the true receipt of it."""
    response = _responses()[0]
    digests = (sha256(_REQUEST).digest(), sha256(response).digest(), _DIGEST)
    bound = binding(bytes(32), *digests, Outcome.OK)
    leaves = [*entries(5), leaf_prefix(_EVENT, bound) + bytes(MIN_SEALED_SIZE)]
    tree = tree_of(leaves)
    note = sign_checkpoint(Checkpoint(ORIGIN, 6, tree.root()), [signer()])
    return response, format_receipt(5, tree.inclusion(5), leaves[5], bytes(32), note)


def _trailing() -> Sequence[bytes]:
    _, receipt = _receipt()
    return [b"\n".join((str(UUID(bytes=_EVENT)).encode(), b"5", receipt))]


@target(WrongReceiptError, MissingReceiptError, seeds=_trailing, rounds=400)
def call_trailers(data: bytes) -> None:
    """The trailers of an answered call: only the true receipt is taken for one."""
    event, _, rest = data.partition(b"\n")
    index, _, receipt = rest.partition(b"\n")
    trailers = Trailers.parse(
        ((EVENT_ID, event.decode("latin-1")), (LOG_INDEX, index.decode("latin-1")),
         (RECEIPT, receipt))
    )  # fmt: skip
    response, true = _receipt()
    proof = ReceiptVerifier([signer().verifier]).answered(_REQUEST, response, trailers)
    assert proof.log_index == 5
    assert receipt.startswith(true[:-200])


def _proofs() -> Sequence[bytes]:
    proof = b"".join(tree_of(entries(7)).consistency(3, 7))
    return [GetConsistencyResponse(proofs=[proof]).SerializeToString()]


@target(ForkError, seeds=_proofs)
def consistency_answer(data: bytes) -> None:
    """The answer of a log that has to prove its growth: proven, or a fork."""
    tree = tree_of(entries(7))
    tracker = CheckpointTracker(Seen(3, tree.root(3), b"old"))
    tracker.observe(Seen(7, tree.root(7), b"new"))
    tracker.settle(tracker.chain(), proofs_of(data))
    assert tracker.head is not None
    assert tracker.head.size == 7


@target(EvidenceError, seeds=_spans)
def evidence_span(data: bytes) -> None:
    """An opened span, as evidence is made of it."""
    read_span(data)


def _evidence() -> Sequence[bytes]:
    path = b"".join(tree_of(entries(7)).inclusion(5))
    return [Receipt(log_index=5, leaf=entries(7)[5], path=path).SerializeToString()]


@target(EvidenceError, seeds=_evidence)
def evidence_receipt(data: bytes) -> None:
    """A receipt in an export: of this very event, or refused."""
    tree = tree_of(entries(7))
    note = sign_checkpoint(Checkpoint(ORIGIN, 7, tree.root()), [signer()])
    head = open_head(note, signer().vkey + "\n")
    try:
        receipt = Receipt.FromString(data)
    except Exception as error:
        raise EvidenceError("malformed") from error
    event = make_event(entries(7)[5][1:17], _spans()[0], receipt, head)
    assert event.index == 5


_WITNESS = ed25519("w.example")


def _cosigned_answer() -> bytes:
    leaves = [*entries(5), _about_mine().extra[32:], *entries(8)[6:]]
    tree = tree_of(leaves)
    note = sign_note(Checkpoint(ORIGIN, 8, tree.root(8)).marshal(), [signer(), _WITNESS])
    proof = format_receipt(5, tree.inclusions(5, 6, 8)[0], leaves[5], bytes(32), note)
    return GetReceiptResponse(receipt=proof).SerializeToString()


@cache
def _about_mine() -> cosigned.Asked:
    policy = Policy.parse(policy_text("w", f"witness w {_WITNESS.vkey}"))
    return cosigned.ask(_receipt()[1], policy, [signer().verifier])


@target(WrongReceiptError, seeds=lambda: [_cosigned_answer()])
def cosigned_answer(data: bytes) -> None:
    """The receipt of a call against a checkpoint that witnesses cosigned: of the same entry."""
    found, _ = cosigned.read(_about_mine(), data, [signer().verifier])
    assert (found.event_id, found.log_index) == (str(UUID(bytes=_EVENT)), 5)
    assert found.size == 8
    assert set(found.witnesses) == {"w"}


_ID = "01929b5e-7a10-7cc2-8a3f-0123456789ab"
_LISTS = (
    write_line(Begins("ann", 2, 1_790_000_000_000_000_000))
    + write_line(Sent("5e55", 1, 1_790_000_000_000_000_000)),
    f"{_ID}\n{_ID}\n".encode(),
    f"event_id,session,seq,outcome,time\n{_ID},5e55,3,ok,2026-09-21T13:46:40Z\n".encode(),
    f'{{"events":[{{"event_id":"{_ID}","session":"5e55","seq":3}}]}}'.encode(),
    b'{"resourceType":"Bundle","entry":[{"resource":{"resourceType":"AuditEvent","entity":[{"what":'
    + f'{{"identifier":{{"value":"urn:uuid:{_ID}"}}}}}}]}}}}]}}'.encode(),
    f"MSH|^~\\&|A|B|C|D|20260921||ORU^R01|1|P|2.5\rOBX|1|ST|a||b||||||F|||||||{_ID}\r".encode(),
)


@target(ListError, seeds=lambda: _LISTS, rounds=600)
def list_of_the_other_party(data: bytes) -> None:
    """A list of calls, in whatever form, read to its end."""
    for _ in open_list(BytesIO(data), Fields()).found:
        pass


_CASE = b'{"name":"n","actor":"ann","roles":["clinician"],"purpose":"TREAT","permitted":true}'


@target(CliError, seeds=lambda: [b"[" + _CASE + b"]", b"[" + _CASE + b"," + _CASE + b"]", b"[]"])
def policy_cases(data: bytes) -> None:
    """The cases of `sealward policy test`."""
    _cases(data.decode("utf-8", "replace"))
