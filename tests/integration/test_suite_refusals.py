"""Bad input and bad callers: a clear error with a stable reason, recorded, naming no value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from sealward.api.audit.v1 import audit_pb2
from sealward.api.keys.v1 import keys_pb2
from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest, ModelMetadataRequest
from sealward.cli.connect import open_channel, user_channel, user_material
from sealward.cli.rpc import error_info, trailers
from sealward.cli.suite import SERVICES
from sealward.tlog.note import parse_vkeys
from sealward.tlog.receipt import open_receipt
from tests.conftest import CertificateAuthority
from tests.support.suites import RunningSuite, request, running, until

CANARY = "ZZVALUE7719"


def wrong_shape(message: ModelInferRequest) -> None:
    message.inputs[0].shape[:] = [1, 29]
    del message.inputs[0].contents.fp32_contents[29:]


def bytes_do_not_fill_the_shape(message: ModelInferRequest) -> None:
    message.inputs[0].shape[:] = [2, 30]


def wrong_datatype(message: ModelInferRequest) -> None:
    message.inputs[0].datatype = "FP64"
    values = list(message.inputs[0].contents.fp32_contents)
    message.inputs[0].ClearField("contents")
    message.inputs[0].contents.fp64_contents.extend(values)


def not_a_number(message: ModelInferRequest) -> None:
    message.inputs[0].contents.fp32_contents[3] = math.nan


def infinite(message: ModelInferRequest) -> None:
    message.inputs[0].contents.fp32_contents[3] = math.inf


def out_of_range(message: ModelInferRequest) -> None:
    message.inputs[0].contents.fp32_contents[0] = 77191.0


def unknown_input(message: ModelInferRequest) -> None:
    message.inputs[0].name = CANARY


def missing_input(message: ModelInferRequest) -> None:
    del message.inputs[:]


def unknown_output(message: ModelInferRequest) -> None:
    message.outputs.add(name=CANARY)


def unknown_model(message: ModelInferRequest) -> None:
    message.model_name = "no-such-model"


def unknown_version(message: ModelInferRequest) -> None:
    message.model_version = "99"


@pytest.mark.parametrize(
    ("spoil", "reason", "status"),
    [
        (wrong_shape, "INPUT_SHAPE", "INVALID_ARGUMENT"),
        (bytes_do_not_fill_the_shape, "INPUT_SHAPE", "INVALID_ARGUMENT"),
        (wrong_datatype, "INPUT_DATATYPE", "INVALID_ARGUMENT"),
        (not_a_number, "INPUT_NOT_FINITE", "INVALID_ARGUMENT"),
        (infinite, "INPUT_NOT_FINITE", "INVALID_ARGUMENT"),
        (out_of_range, "INPUT_RANGE", "INVALID_ARGUMENT"),
        (unknown_input, "INPUT_NAME", "INVALID_ARGUMENT"),
        (missing_input, "INPUT_NAME", "INVALID_ARGUMENT"),
        (unknown_output, "OUTPUT_NAME", "INVALID_ARGUMENT"),
        (unknown_model, "MODEL_UNKNOWN", "NOT_FOUND"),
        (unknown_version, "MODEL_UNKNOWN", "NOT_FOUND"),
    ],
)
def test_a_wrong_input(
    suite: RunningSuite, spoil: Callable[[ModelInferRequest], None], reason: str, status: str
) -> None:
    name = suite.user("ada")
    message = request()
    spoil(message)
    error = suite.refusal(name, message)
    assert (error.details["reason"], error.details["status"]) == (reason, status)
    assert CANARY not in error.message
    assert "77191" not in error.message
    recorded(suite, error.details, reason)
    suite.ask(name)


def test_the_field_is_named(suite: RunningSuite) -> None:
    message = request()
    out_of_range(message)
    error = suite.refusal(suite.user("ada"), message)
    assert "mean radius" in error.message + str(error.details["field"])


def test_a_message_that_is_too_large(suite: RunningSuite) -> None:
    message = request()
    message.inputs[0].contents.fp32_contents.extend([1.0] * (2 << 20))
    error = suite.refusal(suite.user("ada"), message)
    assert error.details["status"] == "RESOURCE_EXHAUSTED"
    assert error.code == 1
    assert error.details["reason"] == "MESSAGE_TOO_LARGE"
    recorded(suite, error.details, "MESSAGE_TOO_LARGE")


def test_bytes_that_are_no_message(suite: RunningSuite) -> None:
    name = suite.user("ada")
    details = refused(suite, name, bearer(suite, name), b"\xff\xff\xff\xff")
    assert details["reason"] == "REQUEST_MALFORMED"
    recorded(suite, details, "REQUEST_MALFORMED")


def test_a_role_without_default_purpose_must_name_one(suite: RunningSuite) -> None:
    name = suite.user("robot", "service")
    error = suite.refusal(name)
    assert error.details["reason"] == "PURPOSE_REQUIRED"
    recorded(suite, error.details, "PURPOSE_REQUIRED")
    suite.ask(name, purpose="TREAT")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("sealward-purpose", "ZZNOTACODE", "PURPOSE_UNKNOWN"),
        ("sealward-purpose", "HMARKT", "POLICY_DENIED"),
        ("sealward-nonsense", CANARY, "METADATA_UNKNOWN"),
        ("sealward-seq", CANARY, "METADATA_INVALID"),
        ("sealward-idempotency-key", "a-b-c", "NOT_SUPPORTED"),
    ],
)
def test_wrong_metadata(suite: RunningSuite, key: str, value: str, reason: str) -> None:
    name = suite.user("ada")
    details = refused(suite, name, (*bearer(suite, name), (key, value)))
    assert details["reason"] == reason
    assert value not in details["message"]
    recorded(suite, details, reason)


def test_a_foreign_key_of_others_is_ignored(suite: RunningSuite) -> None:
    name = suite.user("ada")
    suite.raw(name, (*bearer(suite, name), ("x-user", "root"), ("traceparent", "x")))


def test_a_role_without_permission(suite: RunningSuite) -> None:
    error = suite.refusal(suite.user("oscar", "operator"), purpose="TREAT")
    assert error.details["reason"] == "POLICY_DENIED"
    recorded(suite, error.details, "POLICY_DENIED")


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), "SESSION_MISSING"),
        ((("authorization", "Basic YTpi"),), "SESSION_MISSING"),
        ((("authorization", "Bearer " + "A" * 43),), "SESSION_INVALID"),
    ],
)
def test_no_session(
    suite: RunningSuite, metadata: tuple[tuple[str, str], ...], reason: str
) -> None:
    name = suite.user("ada")
    details = refused(suite, name, metadata)
    assert (details["status"], details["reason"]) == ("UNAUTHENTICATED", reason)
    recorded(suite, details, reason)


def test_a_refused_call_is_found_by_the_model_it_asked_for(suite: RunningSuite) -> None:
    name = suite.user("ada")
    error = suite.refusal(name, purpose="HRESCH")
    assert error.details["reason"] == "POLICY_DENIED"

    def found(*more: str) -> list[str]:
        query = ("audit", "query", "--model", "breast-cancer", "--outcome", "denied", *more)
        return [event["event_id"] for event in suite.sealward(*query)["events"]]

    assert error.details["event_id"] in found("--user", name)
    with pytest.raises(grpc.RpcError) as caught:
        ask_metadata(suite, suite.user("nobody", "clinician"), "breast-cancer", ())
    assert trailers(caught.value)["sealward-event-id"] in found("--type", "model.metadata")


def test_a_model_name_that_is_not_listed_is_in_no_record(suite: RunningSuite) -> None:
    name = suite.user("ada")
    message = request()
    message.model_name = CANARY
    for purpose in ("TREAT", "HRESCH"):
        error = suite.refusal(name, message, purpose=purpose)
        shown = suite.event(error.details["event_id"])
        assert CANARY not in str(shown)
        assert shown["model"] == ""
    with pytest.raises(grpc.RpcError):
        ask_metadata(suite, name, CANARY, bearer(suite, name))
    assert CANARY not in str(suite.sealward("audit", "query", "--limit", "20"))
    for log in suite.suite.root.glob("logs/*"):
        assert CANARY.encode() not in log.read_bytes()


def test_a_stolen_token(suite: RunningSuite) -> None:
    victim, thief = suite.user("ada"), suite.user("thief")
    details = refused(suite, thief, bearer(suite, victim))
    assert details["reason"] == "SESSION_CERTIFICATE_MISMATCH"
    recorded(suite, details, "SESSION_CERTIFICATE_MISMATCH")
    suite.ask(victim)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuite]:
    root = tmp_path_factory.mktemp("short") / "data"
    with running(root, {"SEALWARD_GATEWAY_IDLE_SECONDS": "5"}) as started:
        yield started


def test_an_expired_session(short: RunningSuite) -> None:
    name = short.user("ada")
    short.ask(name)

    def expired() -> bool:
        # Asking would keep it alive: the list of sessions says when it is over.
        return not short.sealward("session", "list", "--user", name)["sessions"]

    until(expired, "the session ends")
    error = short.refusal(name)
    reason = error.details["reason"]
    assert reason in ("SESSION_EXPIRED", "SESSION_INVALID")
    assert error.details["status"] == "UNAUTHENTICATED"
    recorded(short, error.details, reason)
    short.login(name)
    short.ask(name)


def test_a_certificate_of_another_authority(
    suite: RunningSuite, authority: CertificateAuthority
) -> None:
    name = suite.user("ada")
    ours = user_material(suite.suite, name)
    foreign = authority.issue(f"spiffe://sealward.local/user/{name}", bundle=ours.bundle_pem)
    for service in SERVICES:
        address = suite.suite.address(service)
        with (
            open_channel(foreign, address, f"{service}.sealward.local") as channel,
            pytest.raises(grpc.RpcError) as caught,
        ):
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    suite.ask(name)


def test_plaintext_and_no_certificate(suite: RunningSuite) -> None:
    bundle = user_material(suite.suite, suite.user("ada")).bundle_pem
    for service in SERVICES:
        address = suite.suite.address(service)
        options = [("grpc.ssl_target_name_override", f"{service}.sealward.local")]
        for channel in (
            grpc.insecure_channel(address),
            grpc.secure_channel(address, grpc.ssl_channel_credentials(bundle), options),
        ):
            with channel, pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("service", "method", "message"),
    [
        (
            "keys",
            "/sealward.api.keys.v1.KeysService/OpenBranchKey",
            keys_pb2.OpenBranchKeyRequest(),
        ),
        ("keys", "/sealward.api.keys.v1.KeysService/GetStatus", keys_pb2.GetStatusRequest()),
        (
            "audit",
            "/sealward.api.audit.v1.AuditService/QueryEvents",
            audit_pb2.QueryEventsRequest(),
        ),
        ("inference", "/sealward.api.inference.v1.InferenceService/ListModels", None),
    ],
)
def test_a_users_certificate_opens_no_inner_service(
    suite: RunningSuite, service: str, method: str, message: Any
) -> None:
    material = user_material(suite.suite, suite.user("ada"))
    address = suite.suite.address(service)
    body = message.SerializeToString() if message else b""
    with (
        open_channel(material, address, f"{service}.sealward.local") as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary(method)(body, timeout=10)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert error_info(caught.value)[0] == "IDENTITY_FORBIDDEN"


def test_odd_paths_are_not_served(suite: RunningSuite) -> None:
    name = suite.user("ada")
    material = user_material(suite.suite, name)
    with open_channel(
        material, suite.suite.address("gateway"), "gateway.sealward.local"
    ) as channel:
        for path in (
            "/inference.GRPCInferenceService/ModelInfer/",
            "//inference.GRPCInferenceService/ModelInfer",
            "/inference.GRPCInferenceService/modelinfer",
            "/sealward.api.audit.v1.AuditService/QueryEvents",
        ):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(path)(b"", metadata=bearer(suite, name), timeout=10)
            assert caught.value.code() in (
                grpc.StatusCode.UNIMPLEMENTED,
                grpc.StatusCode.PERMISSION_DENIED,
            )


# --- helpers ---------------------------------------------------------------------------------


def ask_metadata(
    suite: RunningSuite, name: str, model: str, metadata: tuple[tuple[str, str], ...]
) -> None:
    """Ask what a model declares."""
    body = ModelMetadataRequest(name=model).SerializeToString()
    with user_channel(suite.suite, name) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata")
        ask(body, metadata=metadata, timeout=10)


def bearer(suite: RunningSuite, name: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {suite.token(name)}"),)


def refused(
    suite: RunningSuite,
    name: str,
    metadata: tuple[tuple[str, str], ...],
    message: bytes | None = None,
) -> dict[str, Any]:
    """What a call with metadata of one's own is refused with."""
    with pytest.raises(grpc.RpcError) as caught:
        suite.raw(name, metadata, message)
    found = trailers(caught.value)
    return {
        "status": caught.value.code().name,
        "message": caught.value.details(),
        "reason": error_info(caught.value)[0],
        "event_id": found.get("sealward-event-id"),
        "log_index": int(found["sealward-log-index"]) if "sealward-log-index" in found else None,
        "receipt": found.get("sealward-receipt-bin"),
    }


def recorded(suite: RunningSuite, details: dict[str, Any], reason: str) -> None:
    """The refusal is in the log, with its reason, and its receipt holds."""
    rows = [e for e in suite.events(limit=50) if e.log_index == details["log_index"]]
    assert [row.reason for row in rows] == [reason]
    assert rows[0].outcome in ("denied", "failed")
    receipt = details["receipt"]
    if isinstance(receipt, str):
        import base64

        receipt = base64.b64decode(receipt)
    opened = open_receipt(receipt, parse_vkeys(Path(suite.suite.vkey_file).read_text()))
    assert opened.index == details["log_index"]
