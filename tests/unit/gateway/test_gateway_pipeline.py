"""The path of a prediction, with fakes for both ends of each wire."""

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import structlog
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sealward.api.audit.v1.audit_pb2 import Entry, Receipt
from sealward.api.common.v1.batch_pb2 import Reply
from sealward.api.inference.v1.inference_pb2 import InferenceRecord
from sealward.api.oip.v2 import open_inference_pb2 as oip
from sealward.kit.errors import SealwardError
from sealward.kit.identity import Peer, parse_identity
from sealward.kit.reasons import Code, Reason
from sealward.kit.seam import Answer, Call, OutCall
from sealward.tlog.leaf import Outcome, binding
from sealward.tlog.merkle import Tree, leaf_hash, verify_inclusion
from sealward.tlog.proof import TlogProof
from services.gateway import events
from services.gateway.admission import Admission
from services.gateway.denials import DenialLimit
from services.gateway.emergency import patient_mark
from services.gateway.events import EventWriter
from services.gateway.exchange import Exchange
from services.gateway.pipeline import METHOD, Pipeline, audit_lost
from services.gateway.policy import load_policy
from services.gateway.session import Session, new_token, token_hash

SPKI = b"\x07" * 32
DIGEST = b"\x09" * 32
ADA = Peer(parse_identity("spiffe://sealward.local/user/ada"), SPKI, "ipv4:127.0.0.1:1")
KEYS = Peer(parse_identity("spiffe://sealward.local/service/keys"), SPKI, "ipv4:127.0.0.1:2")
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Front:
    """Takes the answers. Answering a call twice, or one that never came, is an error."""

    def __init__(self) -> None:
        self.answers: dict[int, Answer] = {}
        self.gone: set[int] = set()
        self.closed = threading.Event()

    def recv(self) -> list[Call]:
        self.closed.wait()
        return []

    def reply(self, answers: Sequence[Answer], shared: bytes = b"") -> None:
        for answer in answers:
            assert answer.id not in self.answers, "answered twice"
            self.answers[answer.id] = answer

    def cancelled(self, call_id: int) -> bool:
        return call_id in self.gone


class Wire:
    """A stream to a service that the test plays."""

    def __init__(self, lost: Reason) -> None:
        self.sent: list[OutCall] = []
        self.up = True
        self._lost = lost

    def send(self, calls: Sequence[OutCall]) -> None:
        if not self.up:
            raise SealwardError(self._lost, "down", retry_after=1.0)
        self.sent.extend(calls)

    def take(self) -> list[OutCall]:
        taken, self.sent = self.sent, []
        return taken


class Sessions:
    """A store with the sessions that the test puts in; `cold` ones have to be loaded."""

    def __init__(self) -> None:
        self.warm: dict[str, Session] = {}
        self.cold: dict[str, Session] = {}
        self.up = True

    def find(self, name: str, spki: bytes) -> Session | None:
        self._check(self.warm.get(name), spki)
        return self.warm.get(name)

    def load(self, name: str, spki: bytes) -> Session:
        self._check(self.cold.get(name), spki)
        if name not in self.cold:
            raise SealwardError(Reason.SESSION_INVALID, "not known")
        return self.cold[name]

    def _check(self, session: Session | None, spki: bytes) -> None:
        if not self.up:
            raise SealwardError(Reason.SESSION_STORE_UNAVAILABLE, "down")
        if session is not None and session.spki != spki:
            raise SealwardError(Reason.SESSION_CERTIFICATE_MISMATCH, "another certificate")


class Limits:
    def time_limit(self, model: str) -> float:
        return 0.0 if model == "instant" else 5.0


class Models:
    """What inference lists."""

    def attributes(self, model: str, version: str) -> bytes:
        if model != "breast-cancer":
            return b""
        return events.model(model, version if version == "1" else "")


class Granted:
    """Grants by user id, model and purpose."""

    def __init__(self) -> None:
        self.granted: set[tuple[str, str, str]] = set()

    def covers(self, user_id: str, model: str, purpose: str) -> bool:
        return (user_id, model, purpose) in self.granted


class Harness:
    """A pipeline with everything around it."""

    def __init__(self) -> None:
        self.front = Front()
        self.inference = Wire(Reason.INFERENCE_UNAVAILABLE)
        self.audit = Wire(Reason.AUDIT_UNAVAILABLE)
        self.sessions = Sessions()
        self.audit_ready = True
        self.tree = Tree()
        self.entries: list[Entry] = []
        self.spans: list[Span] = []
        self.denials = DenialLimit()
        self.to_inference = Exchange(
            lambda: SealwardError(Reason.INFERENCE_UNAVAILABLE, "lost"),
            lambda: SealwardError(Reason.DEADLINE_EXCEEDED, "late"),
        )
        self.to_inference.bind(self.inference)
        self.to_audit = Exchange(audit_lost, audit_lost)
        self.to_audit.bind(self.audit)
        self.writer = EventWriter()
        self.grants = Granted()
        self.pipeline = Pipeline(
            self.front,
            Admission(self.sessions, load_policy(None), self.grants, Limits(), 4096),
            self.to_inference,
            self.to_audit,
            self.writer,
            self.denials,
            Models(),
            structlog.get_logger(),
            audit_ready=lambda: self.audit_ready,
            append_seconds=5.0,
            max_response_bytes=4096,
            max_flights=100,
        )
        self.number = 0

    def login(
        self, roles: tuple[str, ...] = ("clinician",), *, cold: bool = False, emergency: str = ""
    ) -> str:
        token = new_token()
        session = Session("5" * 32, "u1", "ada", roles, SPKI, 0, 2**31)
        if emergency:
            mark = patient_mark(session.session_id, emergency)
            session = replace(session, break_glass="life-threat", patient=mark)
        (self.sessions.cold if cold else self.sessions.warm)[token_hash(token)] = session
        return token

    def call(
        self,
        token: str | None,
        *,
        body: bytes | None = None,
        peer: Peer = ADA,
        deadline: float = float("inf"),
        method: str = METHOD,
        **metadata: str,
    ) -> Call:
        self.number += 1
        headers: dict[str, str | bytes] = {k.replace("_", "-"): v for k, v in metadata.items()}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        return Call(
            self.number, method, peer, headers, deadline, request() if body is None else body
        )

    def run_model(self, answer: Callable[[OutCall], Reply] | None = None) -> None:
        calls = self.inference.take()
        self.to_inference.on_replies([(answer or ok)(call) for call in calls], b"")

    def commit(self) -> bytes:
        """Play audit: log what came, answer all of it with one checkpoint."""
        calls = self.audit.take()
        first = self.tree.size
        leaves = []
        for call in calls:
            entry = Entry.FromString(call.body)
            self.entries.append(entry)
            self.spans.append(Span.FromString(entry.span))
            leaves.append(b"\x01" + entry.event_id + entry.binding + b"s" * 90)
        self.tree.append([leaf_hash(leaf) for leaf in leaves])
        checkpoint = b"origin\n%d\n" % self.tree.size
        replies = [
            Reply(
                id=call.id,
                body=Receipt(
                    log_index=first + n,
                    leaf=leaf,
                    path=b"".join(self.tree.inclusion(first + n, self.tree.size)),
                ).SerializeToString(),
            )
            for n, (call, leaf) in enumerate(zip(calls, leaves, strict=True))
        ]
        self.to_audit.on_replies(replies, checkpoint)
        return checkpoint

    def attributes(self, index: int = -1) -> Mapping[str, Any]:
        return {
            a.key.removeprefix("sealward."): getattr(a.value, a.value.WhichOneof("value"))
            for a in self.spans[index].attributes
        }


def request(model: str = "breast-cancer", **fields: Any) -> bytes:
    return oip.ModelInferRequest(
        model_name=model, raw_input_contents=[b"\x00" * 120], **fields
    ).SerializeToString()


def ok(call: OutCall, **changes: Any) -> Reply:
    record = InferenceRecord(
        model_name="breast-cancer", model_version="1", model_digest=DIGEST, rows=1, batch_size=2,
        batch_position=1, runtime_digest="rt", determinism="strict",
    )  # fmt: skip
    for key, value in changes.items():
        setattr(record, key, value)
    body = oip.ModelInferResponse(model_name="breast-cancer").SerializeToString()
    return Reply(id=call.id, body=body, record=record.SerializeToString())


@pytest.fixture
def h() -> Harness:
    return Harness()


def test_a_call_without_a_trace_asks_for_no_span(h: Harness) -> None:
    h.pipeline.take([h.call(h.login())])
    assert h.inference.sent[0].trace == b""


def test_an_answer_leaves_after_its_record_and_with_its_receipt(h: Harness) -> None:
    call = h.call(h.login(), sealward_patient="Patient/7", sealward_seq="12", traceparent=TRACE)
    h.pipeline.take([call])
    assert h.inference.sent[0].body == call.body
    assert 0 < h.inference.sent[0].timeout_ms <= 5000
    traced = h.inference.sent[0].trace
    h.run_model()
    assert h.front.answers == {}, "released before it was recorded"
    checkpoint = h.commit()
    answer = h.front.answers[call.id]
    assert answer.error is None
    assert answer.body == oip.ModelInferResponse(model_name="breast-cancer").SerializeToString()

    trailers = dict(answer.trailers)
    proof = TlogProof.parse(bytes(trailers["sealward-receipt-bin"]))  # type: ignore[arg-type]
    assert proof.checkpoint == checkpoint
    assert str(proof.index) == trailers["sealward-log-index"] == "0"
    assert proof.extra is not None
    salt, leaf = proof.extra[:32], proof.extra[32:]
    verify_inclusion(leaf_hash(leaf), proof.index, h.tree.size, proof.path, h.tree.root())
    digest = hashlib.sha256
    expected = binding(
        salt, digest(call.body).digest(), digest(answer.body).digest(), DIGEST, Outcome.OK
    )
    assert leaf[17:49] == expected
    event_id = trailers["sealward-event-id"]
    assert isinstance(event_id, str)
    assert event_id.replace("-", "") == leaf[1:17].hex()
    assert [len(part) for part in event_id.split("-")] == [8, 4, 4, 4, 12]

    (entry,) = h.entries
    assert entry.patient == "Patient/7"
    assert entry.input_digest == digest(call.body).digest()
    assert entry.output_digest == digest(answer.body).digest()
    assert h.spans[0].parent_span_id.hex() == "00f067aa0ba902b7"
    # The run is recorded below the call's own span.
    assert traced == h.spans[0].trace_id + h.spans[0].span_id
    said = h.attributes()
    for key, value in {
        "event.type": "inference.predict", "event.id": leaf[1:17].hex(), "outcome": "ok",
        "code": "OK", "actor.id": "ada", "actor.kind": "user", "actor.cert": SPKI.hex(),
        "session.id": "5" * 32, "purpose": "TREAT", "policy.id": "clinician-infer",
        "model.name": "breast-cancer", "model.version": "1", "model.digest": DIGEST.hex(),
        "rows": 1, "batch.size": 2, "batch.position": 1, "determinism": "strict",
        "caller.seq": 12, "producer.seq": 1, "rpc.method": METHOD,
    }.items():  # fmt: skip
        assert said[key] == value, key
    assert "reason" not in said
    assert b"Patient/7" not in entry.span
    assert call.body not in entry.span


def refused(h: Harness, call: Call, reason: Reason, outcome: str) -> Mapping[str, Any]:
    """Check that a call is refused with a record and never reaches inference."""
    h.pipeline.take([call])
    assert h.inference.sent == []
    assert h.front.answers.get(call.id) is None, "answered before it was recorded"
    h.commit()
    answer = h.front.answers[call.id]
    assert answer.error is not None
    assert answer.error.reason is reason
    assert answer.body == b""
    proof = TlogProof.parse(bytes(dict(answer.trailers)["sealward-receipt-bin"]))  # type: ignore[arg-type]
    assert proof.extra is not None
    byte = {"denied": Outcome.DENIED, "failed": Outcome.FAILED}[outcome]
    expected = binding(proof.extra[:32], hashlib.sha256(call.body).digest(), b"", b"", byte)
    assert proof.extra[32:][17:49] == expected
    said = h.attributes()
    assert said["outcome"] == outcome
    assert said["reason"] == reason.name
    assert said["code"] == answer.error.code.name
    return said


def test_without_a_token(h: Harness) -> None:
    said = refused(h, h.call(None), Reason.SESSION_MISSING, "denied")
    assert said["actor.id"] == "ada"
    assert "session.id" not in said


def test_with_a_stolen_token(h: Harness) -> None:
    thief = Peer(parse_identity("spiffe://sealward.local/user/eve"), b"\x08" * 32, "x")
    call = h.call(h.login(), peer=thief)
    said = refused(h, call, Reason.SESSION_CERTIFICATE_MISMATCH, "denied")
    assert said["actor.id"] == "eve"
    assert said["actor.cert"] == (b"\x08" * 32).hex()


def test_with_an_identity_that_may_not_call(h: Harness) -> None:
    refused(h, h.call(h.login(), peer=KEYS), Reason.IDENTITY_FORBIDDEN, "denied")


def test_with_a_role_that_may_not(h: Harness) -> None:
    call = h.call(h.login(("operator",)), sealward_purpose="TREAT")
    said = refused(h, call, Reason.POLICY_DENIED, "denied")
    assert said["policy.id"] == "default-deny"
    assert said["session.id"] == "5" * 32


def test_for_a_purpose_that_no_rule_permits(h: Harness) -> None:
    call = h.call(h.login(), body=request(model_version="1"), sealward_purpose="HMARKT")
    said = refused(h, call, Reason.POLICY_DENIED, "denied")
    assert said["purpose"] == "HMARKT"
    assert (said["model.name"], said["model.version"]) == ("breast-cancer", "1")


@pytest.mark.parametrize(("model", "version"), [("jane-doe", "1"), ("breast-cancer", "jane-doe")])
def test_a_record_repeats_no_name_that_is_not_listed(h: Harness, model: str, version: str) -> None:
    body = request(model, model_version=version)
    said = refused(
        h, h.call(h.login(), body=body, sealward_purpose="HMARKT"), Reason.POLICY_DENIED, "denied"
    )
    assert b"jane-doe" not in h.entries[-1].span
    assert said.get("model.name") == ("breast-cancer" if model == "breast-cancer" else None)
    assert "model.version" not in said


def test_without_a_purpose_where_the_role_has_none(h: Harness) -> None:
    refused(h, h.call(h.login(("service",))), Reason.PURPOSE_REQUIRED, "denied")


def test_break_glass_says_so(h: Harness) -> None:
    token = h.login(("break-glass",), emergency="MRN-7")
    h.pipeline.take([h.call(token, sealward_patient="MRN-7")])
    h.run_model()
    h.commit()
    assert h.attributes()["break_glass"] is True
    assert h.attributes()["break_glass.reason"] == "life-threat"
    assert h.attributes()["purpose"] == "ETREAT"


@pytest.mark.parametrize("patient", [{}, {"sealward_patient": "MRN-8"}])
def test_broken_glass_is_about_one_patient(h: Harness, patient: dict[str, str]) -> None:
    token = h.login(("break-glass",), emergency="MRN-7")
    said = refused(h, h.call(token, **patient), Reason.POLICY_DENIED, "denied")
    assert said["break_glass"] is True


def test_the_role_alone_breaks_no_glass(h: Harness) -> None:
    call = h.call(h.login(("break-glass",)), sealward_patient="MRN-7")
    said = refused(h, call, Reason.POLICY_DENIED, "denied")
    assert "break_glass" not in said


def test_a_grant_opens_one_model_for_one_purpose(h: Harness) -> None:
    h.grants.granted.add(("u1", "breast-cancer", "HRESCH"))
    refused(h, h.call(h.login(), sealward_purpose="HMARKT"), Reason.POLICY_DENIED, "denied")
    h.pipeline.take([h.call(h.login(), sealward_purpose="HRESCH")])
    h.run_model()
    h.commit()
    assert h.attributes()["policy.id"] == "granted-infer"


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"sealward_what": "x"}, Reason.METADATA_UNKNOWN),
        ({"sealward_purpose": "X"}, Reason.PURPOSE_UNKNOWN),
        ({"sealward_seq": "x"}, Reason.METADATA_INVALID),
        ({"sealward_idempotency_key": "x"}, Reason.NOT_SUPPORTED),
    ],
)
def test_with_bad_metadata(h: Harness, metadata: dict[str, str], reason: Reason) -> None:
    refused(h, h.call(h.login(), **metadata), reason, "failed")


@pytest.mark.parametrize(
    ("body", "reason", "field"),
    [
        (b"\xff", Reason.REQUEST_MALFORMED, ""),
        (b"", Reason.FIELD_INVALID, "model_name"),
        (request("../etc/passwd"), Reason.FIELD_INVALID, "model_name"),
        (request("m" * 129), Reason.FIELD_INVALID, "model_name"),
        (request(model_version="a b"), Reason.FIELD_INVALID, "model_version"),
        (request() + b"\x00" * 5000, Reason.MESSAGE_TOO_LARGE, ""),
    ],
)
def test_with_a_bad_request(h: Harness, body: bytes, reason: Reason, field: str) -> None:
    call = h.call(h.login(), body=body)
    said = refused(h, call, reason, "failed")
    assert h.front.answers[call.id].error.field == field  # type: ignore[union-attr]
    assert "model.name" not in said, "a made-up name is free text"


def test_with_a_deadline_that_has_passed(h: Harness) -> None:
    call = h.call(h.login(), deadline=time.monotonic() - 1)
    refused(h, call, Reason.DEADLINE_EXCEEDED, "failed")


def test_the_model_sets_the_time_limit_of_a_call_without_one(h: Harness) -> None:
    refused(h, h.call(h.login(), body=request("instant")), Reason.DEADLINE_EXCEEDED, "failed")


def test_a_caller_that_left_costs_no_inference_but_leaves_its_record(h: Harness) -> None:
    call = h.call(h.login())
    h.front.gone.add(call.id)
    refused(h, call, Reason.CANCELLED, "failed")


def test_bad_neighbours_cost_nobody_an_answer(h: Harness) -> None:
    token = h.login()
    good = [h.call(token) for _ in range(3)]
    bad = [h.call(None), h.call(token, body=b"\xff"), h.call(token, sealward_x="")]
    h.pipeline.take([bad[0], good[0], bad[1], good[1], bad[2], good[2]])
    assert len(h.inference.sent) == 3
    h.run_model()
    h.commit()
    assert all(h.front.answers[call.id].error is None for call in good)
    assert all(h.front.answers[call.id].error is not None for call in bad)
    assert len(h.entries) == 6
    assert sorted(s["producer.seq"] for s in map(h.attributes, range(6))) == [1, 2, 3, 4, 5, 6]


def test_an_error_of_inference_is_recorded_and_passed_on(h: Harness) -> None:
    call = h.call(h.login())
    h.pipeline.take([call])
    h.run_model(
        lambda c: Reply(
            id=c.id,
            code=3,
            reason=int(Reason.INPUT_SHAPE),
            message="wrong shape",
            field="inputs[0].shape",
            record=InferenceRecord(model_name="breast-cancer").SerializeToString(),
        )
    )
    h.commit()
    error = h.front.answers[call.id].error
    assert error is not None
    assert (error.reason, error.message, error.field) == (
        Reason.INPUT_SHAPE, "wrong shape", "inputs[0].shape",
    )  # fmt: skip
    said = h.attributes()
    assert (said["outcome"], said["reason"]) == ("failed", "INPUT_SHAPE")
    assert said["model.name"] == "breast-cancer"


@pytest.mark.parametrize(
    "change",
    [
        {"model_name": "diabetes-progression"},
        {"model_name": ""},
        {"model_version": "2"},
        {"model_digest": b"short"},
    ],
)
def test_a_reply_about_another_model_than_was_permitted_is_not_released(
    h: Harness, change: dict[str, Any]
) -> None:
    call = h.call(h.login(), body=request(model_version="1"))
    h.pipeline.take([call])
    h.run_model(lambda c: ok(c, **change))
    h.commit()
    answer = h.front.answers[call.id]
    assert answer.error is not None
    assert answer.error.reason is Reason.INTERNAL
    assert answer.body == b""


def test_a_reply_without_a_record_is_not_released(h: Harness) -> None:
    call = h.call(h.login())
    h.pipeline.take([call])
    h.run_model(lambda c: Reply(id=c.id, body=b"answer"))
    h.commit()
    assert h.front.answers[call.id].error.reason is Reason.INTERNAL  # type: ignore[union-attr]


def test_a_response_over_the_limit_is_an_error(h: Harness) -> None:
    call = h.call(h.login())
    h.pipeline.take([call])
    big = oip.ModelInferResponse(raw_output_contents=[b"\x00" * 5000]).SerializeToString()
    h.run_model(lambda c: Reply(id=c.id, body=big, record=ok(c).record))
    h.commit()
    answer = h.front.answers[call.id]
    assert answer.error is not None
    assert answer.error.reason is Reason.MESSAGE_TOO_LARGE
    assert answer.body == b""


def test_inference_away_at_sending(h: Harness) -> None:
    call = h.call(h.login())
    h.inference.up = False
    said = refused(h, call, Reason.INFERENCE_UNAVAILABLE, "failed")
    assert said["model.name"] == "breast-cancer"


def test_inference_lost_during_the_call(h: Harness) -> None:
    call = h.call(h.login())
    h.pipeline.take([call])
    ids = [out.id for out in h.inference.take()]
    h.to_inference.on_broken(ids)
    h.commit()
    error = h.front.answers[call.id].error
    assert error is not None
    assert error.reason is Reason.INFERENCE_UNAVAILABLE
    # What comes after the end of a call changes nothing.
    h.to_inference.on_replies([ok(OutCall(ids[0], METHOD, b""))], b"")
    assert h.audit.sent == []


def test_inference_silent_until_the_deadline(h: Harness) -> None:
    call = h.call(h.login(), deadline=time.monotonic() + 1)
    h.pipeline.take([call])
    h.to_inference.tick(time.monotonic() + 2)
    h.commit()
    error = h.front.answers[call.id].error
    assert error is not None
    assert error.reason is Reason.DEADLINE_EXCEEDED
    h.run_model()
    assert len(h.entries) == 1


def nothing_released(h: Harness, call: Call) -> None:
    answer = h.front.answers[call.id]
    assert answer.error is not None
    assert answer.error.reason is Reason.AUDIT_UNAVAILABLE
    assert answer.error.code is Code.UNAVAILABLE
    assert answer.body == b""
    assert answer.trailers == ()


def test_audit_away_before_the_call_nothing_even_runs(h: Harness) -> None:
    call = h.call(h.login())
    h.audit_ready = False
    h.pipeline.take([call])
    nothing_released(h, call)
    assert h.inference.sent == []


def test_audit_away_when_the_record_is_sent(h: Harness) -> None:
    call = h.call(h.login())
    h.pipeline.take([call])
    h.audit.up = False
    h.run_model()
    nothing_released(h, call)


def test_audit_lost_while_it_writes(h: Harness) -> None:
    call = h.call(h.login())
    h.pipeline.take([call])
    h.run_model()
    h.to_audit.on_broken([out.id for out in h.audit.take()])
    nothing_released(h, call)


def test_audit_silent(h: Harness) -> None:
    call = h.call(h.login())
    h.pipeline.take([call])
    h.run_model()
    h.to_audit.tick(time.monotonic() + 6)
    nothing_released(h, call)
    h.commit()  # a late receipt releases nothing, and answers nobody twice


@pytest.mark.parametrize(
    "damage", ["refused", "checkpoint", "malformed", "event", "binding", "path"]
)
def test_a_reply_of_audit_that_is_no_receipt_releases_nothing(h: Harness, damage: str) -> None:
    call = h.call(h.login())
    h.pipeline.take([call])
    h.run_model()
    (out,) = h.audit.take()
    entry = Entry.FromString(out.body)
    event_id, bound, path = entry.event_id, entry.binding, b""
    if damage == "event":
        event_id = bytes(16)
    elif damage == "binding":
        bound = bytes(32)
    elif damage == "path":
        path = b"short"
    leaf = b"\x01" + event_id + bound + b"s" * 90
    reply = Reply(id=out.id, body=Receipt(leaf=leaf, path=path).SerializeToString())
    if damage == "refused":
        reply = Reply(id=out.id, code=8, reason=int(Reason.OVERLOADED), message="full")
    elif damage == "malformed":
        reply.body = b"\xff"
    h.to_audit.on_replies([reply], b"" if damage == "checkpoint" else b"cp")
    nothing_released(h, call)


def test_denied_calls_are_not_told_more_when_the_log_is_away(h: Harness) -> None:
    call = h.call(None)
    h.audit.up = False
    h.pipeline.take([call])
    nothing_released(h, call)


def test_a_flood_without_a_session_is_recorded_in_part_and_answered_whole(h: Harness) -> None:
    calls = [h.call(None) for _ in range(30)]
    h.pipeline.take(calls)
    h.commit()
    answers = [h.front.answers[call.id] for call in calls]
    assert {a.error.reason for a in answers if a.error} == {Reason.SESSION_MISSING}
    assert len(h.entries) == 10
    assert sum(bool(a.trailers) for a in answers) == 10
    assert h.denials.take() == {ADA.identity.uri: 20}


def test_refusals_with_a_session_are_all_recorded(h: Harness) -> None:
    token = h.login(("operator",))
    calls = [h.call(token, sealward_purpose="TREAT") for _ in range(30)]
    h.pipeline.take(calls)
    h.commit()
    assert len(h.entries) == 30


def test_more_than_the_bound_in_flight_is_refused_at_once(h: Harness) -> None:
    token = h.login()
    calls = [h.call(token) for _ in range(103)]
    h.pipeline.take(calls)
    assert len(h.inference.sent) == 100
    h.commit()
    over = h.front.answers[calls[-1].id].error
    assert over is not None
    assert (over.reason, over.code) == (Reason.OVERLOADED, Code.RESOURCE_EXHAUSTED)
    assert over.retry_after


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_session_that_is_not_cached_is_loaded_beside_the_path(h: Harness) -> None:
    known, unknown = h.call(h.login(cold=True)), h.call(new_token())
    h.pipeline.start()
    try:
        h.pipeline.take([known, unknown])
        until(lambda: len(h.inference.sent) == 1 and len(h.audit.sent) == 1)
        h.run_model()
        h.commit()
    finally:
        h.front.closed.set()
        h.pipeline.stop()
    assert h.front.answers[known.id].error is None
    assert h.front.answers[unknown.id].error.reason is Reason.SESSION_INVALID  # type: ignore[union-attr]


def test_the_session_store_away(h: Harness) -> None:
    call = h.call(h.login())
    h.sessions.up = False
    refused(h, call, Reason.SESSION_STORE_UNAVAILABLE, "failed")


def test_a_mistake_of_ours_fails_one_call_and_ends_nothing(
    h: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, fine = h.call(h.login(), sealward_patient="secret"), h.call(h.login())
    real = h.sessions.find

    def find(name: str, spki: bytes) -> Session | None:
        if name == token_hash(str(broken.metadata["authorization"]).split()[1]):
            raise RuntimeError("secret")
        return real(name, spki)

    monkeypatch.setattr(h.sessions, "find", find)
    h.pipeline.take([broken, fine])
    h.run_model()
    h.commit()
    error = h.front.answers[broken.id].error
    assert error is not None
    assert error.reason is Reason.INTERNAL
    assert "secret" not in error.message
    assert h.front.answers[fine.id].error is None
