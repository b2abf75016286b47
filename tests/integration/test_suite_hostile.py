"""Callers who mean harm, and a store that lies, against the running services."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
import redis

from sealward.api.gateway.v1 import gateway_pb2
from sealward.api.keys.v1 import keys_pb2
from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest
from sealward.cli.certificates import ensure_admin
from sealward.cli.connect import open_channel, user_channel
from sealward.cli.errors import CliError
from sealward.cli.rpc import error_info, trailers
from sealward.kit.enroll import enroll
from sealward.kit.tls import Material
from services.gateway.session import token_hash
from tests.support.suites import RunningSuite, request, until

INFER = "/inference.GRPCInferenceService/ModelInfer"


def bearer(suite: RunningSuite, name: str) -> tuple[str, str]:
    return "authorization", f"Bearer {suite.token(name)}"


def refused(call: Any, *arguments: Any, **options: Any) -> tuple[str, bool]:
    """Return the reason of a refusal, and whether it came with a record."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)
    return error_info(caught.value)[0], "sealward-event-id" in trailers(caught.value)


def reason_of(suite: RunningSuite, name: str) -> str:
    """The reason that a prediction is refused with; empty when it is answered."""
    try:
        suite.ask(name)
    except CliError as error:
        return str(error.details["reason"])
    return ""


@pytest.mark.parametrize(
    ("key", "values", "reason"),
    [
        ("sealward-patient", ("MRN-1", "MRN-2"), "METADATA_INVALID"),
        ("sealward-patient", ("MRN-1", "MRN-2", "MRN-1"), "METADATA_INVALID"),
        ("sealward-purpose", ("HMARKT", "TREAT"), "PURPOSE_UNKNOWN"),
        ("sealward-seq", ("1", "2"), "METADATA_INVALID"),
        ("authorization", ("Bearer " + "A" * 43,), "SESSION_MISSING"),
    ],
)
def test_a_key_with_two_values_says_nothing(
    suite: RunningSuite, key: str, values: Sequence[str], reason: str
) -> None:
    name = suite.user("ada")
    metadata = (*((key, value) for value in values), bearer(suite, name))
    assert refused(suite.raw, name, metadata) == (reason, True)
    suite.raw(name, (bearer(suite, name), bearer(suite, name)))


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        (), (30,), (1, 30, 1), (0, 30), (-1, 30), (1, -30), (-(2**63), 30), (2**62, 30),
        (2**63 - 1, 30), (2**32 + 1, 30), (2**63 - 1, 2**63 - 1), (1, 29), (2, 30), (1025, 30),
    ],
)  # fmt: skip
def test_a_shape_that_the_bytes_do_not_fill(
    suite: RunningSuite, shape: Sequence[int], raw: bool
) -> None:
    message = request()
    tensor = message.inputs[0]
    tensor.shape[:] = shape
    if raw:
        message.raw_input_contents.append(struct.pack("<30f", *tensor.contents.fp32_contents))
        tensor.ClearField("contents")
    name = suite.user("ada")
    assert refused(suite.raw, name, (bearer(suite, name),), message.SerializeToString()) == (
        ("INPUT_SHAPE", True)
    )


def test_a_message_of_nothing_but_fields_costs_others_nothing(suite: RunningSuite) -> None:
    name = suite.user("ada")
    message = request().SerializeToString() + b"\x50\x00" * (2 << 20)
    message = message[: 4 << 20]
    assert ModelInferRequest.FromString(message).model_name == "breast-cancer"
    assert refused(suite.raw, name, (bearer(suite, name),), message) == ("REQUEST_MALFORMED", True)


def test_cancelled_calls_cost_others_nothing(suite: RunningSuite) -> None:
    name = suite.user("ada")
    body, metadata = request().SerializeToString(), (bearer(suite, name),)
    with user_channel(suite.suite, name) as channel, user_channel(suite.suite, name) as other:
        infer, kept = channel.unary_unary(INFER), other.unary_unary(INFER)
        gone = [infer.future(body, metadata=metadata, timeout=20) for _ in range(60)]
        calls = [kept.future(body, metadata=metadata, timeout=20) for _ in range(40)]
        for call in gone:
            call.cancel()
        answered = [dict(c.trailing_metadata())["sealward-event-id"] for c in calls if c.result()]
    assert len(set(answered)) == 40


def identities(suite: RunningSuite) -> dict[str, Material]:
    """Certificates of the right authority that are not a user's."""
    return {
        "admin": ensure_admin(suite.suite),
        "inference": enroll(suite.suite.enroll_dir, "inference", 20),
    }


def test_the_right_authority_and_the_wrong_kind_of_identity(suite: RunningSuite) -> None:
    name = suite.user("ada")
    user, domain = (bearer(suite, name),), "sealward.local"
    about = keys_pb2.EncryptionContext(tenant="default", purpose="session", resource="gateway")
    session = keys_pb2.CreateBranchKeyRequest(context=about)
    login = gateway_pb2.LoginRequest(user=name, password=suite.password(name))
    gateway, keys = "/sealward.api.gateway.v1.", "/sealward.api.keys.v1.KeysService/"
    attempts = {
        "inference": [
            ("gateway", INFER, request(), user),
            ("gateway", f"{gateway}SessionService/Login", login, ()),
            ("gateway", f"{gateway}UserService/ListUsers", None, ()),
            ("keys", f"{keys}CreateBranchKey", session, ()),
            (
                "keys",
                f"{keys}IssueCertificate",
                keys_pb2.IssueCertificateRequest(spiffe_id=f"spiffe://{domain}/admin/local"),
                (),
            ),
            ("audit", "/sealward.api.audit.v1.AuditService/QueryEvents", None, ()),
            ("inference", "/sealward.api.inference.v1.InferenceService/ListModels", None, ()),
        ],
        "admin": [
            ("gateway", INFER, request(), user),
            ("gateway", f"{gateway}SessionService/Login", login, ()),
            ("keys", f"{keys}CreateBranchKey", session, ()),
            ("audit", "/sealward.api.audit.v1.AuditService/Append", None, ()),
        ],
    }  # fmt: skip
    for who, material in identities(suite).items():
        for service, method, message, metadata in attempts[who]:
            body = message.SerializeToString() if message else b""
            with open_channel(
                material, suite.suite.address(service), f"{service}.{domain}"
            ) as channel:
                call = channel.unary_unary(method)
                reason, recorded = refused(call, body, metadata=metadata, timeout=10)
            assert reason == "IDENTITY_FORBIDDEN", (who, method)
            assert recorded or service != "gateway", method


@pytest.fixture
def store(suite: RunningSuite) -> Any:
    """What somebody holds who can write to the session store."""
    client = redis.Redis(unix_socket_path=str(suite.suite.run / "valkey.sock"))
    yield client
    client.close()


def test_a_store_that_lies_opens_no_door(suite: RunningSuite, store: Any) -> None:
    victim, name = suite.user("ada"), suite.user("trudy")
    key, other = (f"sess:{token_hash(suite.token(who))}" for who in (name, victim))
    value = store.get(key)
    suite.ask(name)

    def reason_with(forged: bytes) -> str:
        store.set(key, forged)
        store.set(key.replace("sess:", "sess-idle:"), b"1", ex=600)
        # The cache hears of the change a moment later.
        until(lambda: reason_of(suite, name) != "", "the value is read")
        return reason_of(suite, name)

    for forged in (b"", b"x" * 100_000, value[:-1], value[:-1] + b"\0", store.get(other)):
        assert reason_with(forged) == "SEAL_BROKEN"
    store.set(key, value)
    until(lambda: not reason_of(suite, name), "the right value opens")
    suite.sealward("session", "revoke", "--user", name)
    assert reason_with(value) == "SESSION_INVALID"
    suite.login(name)
    key = f"sess:{token_hash(suite.token(name))}"
    value = store.get(key)
    suite.ask(name)
    for index in store.scan_iter("sess-user:*"):
        if key[5:].encode() in store.smembers(index):
            store.delete(index)
    suite.sealward("user", "disable", name)
    out = ("SESSION_INVALID", "CERTIFICATE_REVOKED")
    assert reason_of(suite, name) in out
    assert reason_with(value) in out
    suite.ask(victim)
