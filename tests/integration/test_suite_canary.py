"""Nothing is readable at rest: what a call carries is found in no file, log line or metric."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import Message
from grpc_health.v1.health_pb2 import HealthCheckRequest

from sealward.api.audit.v1 import audit_pb2
from sealward.api.audit.v1.audit_pb2_grpc import AuditServiceStub
from sealward.api.gateway.v1 import gateway_pb2 as gw
from sealward.api.keys.v1 import keys_pb2
from sealward.api.oip.v2.open_inference_pb2 import ModelMetadataRequest, ModelReadyRequest
from sealward.cli.certificates import ensure_admin
from sealward.cli.connect import Admin, open_channel, user_material
from sealward.cli.errors import CliError
from sealward.cli.spans import span_to_json
from sealward.kit.attributes import PATIENT_REFERENCE
from sealward.kit.tls import make_csr, new_key
from tests.support.searching import scraped
from tests.support.suites import RunningSuite, request, running, until

TEXT = "ZZPHICANARY4415926535"
# Held in range by the model; their float32 bytes, side by side, are in no file by chance.
NUMBERS = (17.987611, 21.334477, 118.765, 1001.1234)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuite]:
    """A suite of its own: it is searched when it is down as well."""
    with running(tmp_path_factory.mktemp("canary") / "data") as started:
        yield started


def test_a_canary_is_found_nowhere(quiet: RunningSuite) -> None:
    name = quiet.user("ada")
    carry_canaries(quiet, name)
    carry_canaries_to_every_method(quiet, name)
    secrets = [quiet.password(name), quiet.token(name)]
    allowed = {Path("clients", name, "session")}
    until(lambda: not events_missing(quiet), "events are in the log")

    records = opened(quiet)
    assert len(records) >= 40
    assert not [record for record in records if TEXT.lower() in str(record).lower()]
    for metrics in scraped(quiet):
        assert not found_in(metrics, patterns([TEXT, *secrets]))
    for when in ("running", "down"):
        if when == "down":
            quiet.down()
        assert search(quiet, patterns([TEXT]), set()) == [], when
        assert search(quiet, patterns(secrets), allowed) == [], when


def test_the_search_finds_what_it_looks_for(quiet: RunningSuite) -> None:
    planted = quiet.suite.root / "planted"
    for wanted, content in (
        (TEXT, TEXT.encode()),
        (TEXT, b"\x01" + TEXT.encode("utf-16-le")),
        (TEXT, base64.b64encode(b"x" + TEXT.encode() + b"yy")),
        (TEXT, TEXT.encode().hex().upper().encode()),
        (TEXT, b"x" + np.array(NUMBERS, "<f4").tobytes() + b"x"),
        (TEXT, b"[17.987611, 2]"),
    ):
        planted.write_bytes(content)
        assert search(quiet, patterns([wanted]), set()) == [Path("planted")], content
    planted.unlink()


def carry_canaries(suite: RunningSuite, name: str) -> None:
    """Send the canary wherever a caller can put it: answered, refused and broken calls."""
    answered = request()
    answered.id = TEXT
    answered.parameters["note"].string_param = TEXT
    answered.inputs[0].contents.fp32_contents[:4] = NUMBERS
    dropped = answered.inputs.add(name=TEXT, datatype="BYTES", shape=[1])
    dropped.contents.bytes_contents.append(TEXT.encode())
    suite.ask(name, answered, patient=TEXT)

    text = request()
    text.inputs[0].datatype = "BYTES"
    text.inputs[0].ClearField("contents")
    text.inputs[0].contents.bytes_contents.append(TEXT.encode())
    tensor = request()
    tensor.inputs[0].name = TEXT
    model = request()
    model.model_name = TEXT.lower()
    version = request()
    version.model_version = TEXT
    for message in (text, tensor, model, version):
        suite.refusal(name, message, patient=TEXT)
    suite.refusal(name, purpose=TEXT)

    bearer = ("authorization", f"Bearer {suite.token(name)}")
    for metadata in (
        (bearer, ("sealward-unknown", TEXT)),
        (bearer, ("sealward-seq", TEXT)),
        (bearer, ("sealward-" + TEXT.lower(), "1")),
        (("authorization", f"Bearer {TEXT}"),),
    ):
        with pytest.raises(grpc.RpcError):
            suite.raw(name, metadata)
    suite.raw(name, (bearer, ("x-note", TEXT)))
    with pytest.raises(grpc.RpcError):
        suite.raw(name, (bearer,), TEXT.encode())
    with pytest.raises(CliError):
        suite.login_with(name, TEXT)


def carry_canaries_to_every_method(suite: RunningSuite, name: str) -> None:
    """Every text field of every control call, of a user and of the administrator; paths, names."""
    token, data = suite.token(name), TEXT.encode()
    csr = make_csr(new_key(), TEXT).public_bytes(Encoding.DER)
    parameters = request()
    parameters.parameters[TEXT].string_param = TEXT
    parameters.inputs[0].parameters[TEXT].string_param = TEXT
    parameters.outputs.add(name=TEXT).parameters[TEXT].string_param = TEXT
    context = keys_pb2.EncryptionContext(tenant=TEXT, purpose=TEXT, resource=TEXT)
    oip, gateway = "/inference.GRPCInferenceService/", "/sealward.api.gateway.v1."
    keys, audit = "/sealward.api.keys.v1.KeysService/", "/sealward.api.audit.v1.AuditService/"
    calls: list[tuple[str, str, Message | None]] = [
        ("gateway", f"{oip}ModelInfer", parameters),
        ("gateway", f"{oip}ModelReady", ModelReadyRequest(name=TEXT, version=TEXT)),
        ("gateway", f"{oip}ModelMetadata", ModelMetadataRequest(name=TEXT, version=TEXT)),
        ("gateway", f"{gateway}SessionService/Login", gw.LoginRequest(user=TEXT, password=TEXT)),
        (
            "gateway",
            f"{gateway}SessionService/Login",
            gw.LoginRequest(user=name, password=suite.password(name), new_password=TEXT[:11]),
        ),
        ("gateway", f"{gateway}SessionService/ListSessions", gw.ListSessionsRequest(user=TEXT)),
        ("gateway", f"{gateway}SessionService/RevokeSessions", gw.RevokeSessionsRequest(user=TEXT)),
        (
            "gateway",
            f"{gateway}SessionService/RevokeSessions",
            gw.RevokeSessionsRequest(session_id=TEXT),
        ),
        (
            "gateway",
            f"{gateway}UserService/CreateUser",
            gw.CreateUserRequest(user=TEXT, roles=[TEXT], password=TEXT),
        ),
        ("gateway", f"{gateway}UserService/DisableUser", gw.DisableUserRequest(user=TEXT)),
        (
            "gateway",
            f"{gateway}UserService/SetRoles",
            gw.SetRolesRequest(user=TEXT, roles=[TEXT]),
        ),
        (
            "gateway",
            f"{gateway}UserService/ResetPassword",
            gw.ResetPasswordRequest(user=TEXT, password=TEXT),
        ),
        (
            "gateway",
            f"{gateway}UserService/IssueUserCertificate",
            gw.IssueUserCertificateRequest(user=TEXT, csr=data),
        ),
        (
            "gateway",
            f"{gateway}UserService/IssueUserCertificate",
            gw.IssueUserCertificateRequest(user=name, csr=csr),
        ),
        ("gateway", f"{gateway}LogService/GetReceipt", gw.GetReceiptRequest(event_id=data)),
        ("gateway", f"/{TEXT}/{TEXT}", None),
        ("keys", f"{keys}CreateBranchKey", keys_pb2.CreateBranchKeyRequest(context=context)),
        (
            "keys",
            f"{keys}IssueCertificate",
            keys_pb2.IssueCertificateRequest(csr=data, spiffe_id=TEXT),
        ),
        ("keys", f"/{TEXT}", None),
        ("inference", f"/{TEXT}", None),
        ("audit", f"{audit}GetEvent", audit_pb2.GetEventRequest(event_id=data)),
        ("audit", f"/{TEXT}", None),
        ("gateway", "/grpc.health.v1.Health/Check", HealthCheckRequest(service=TEXT)),
    ]
    metadata = [("authorization", f"Bearer {token}"), ("x-note", TEXT), ("x-note-bin", data)]
    metadata += [("sealward-patient", TEXT)]
    materials = {name: user_material(suite.suite, name), "admin": ensure_admin(suite.suite)}
    for material in materials.values():
        for service, method, message in calls:
            body = message.SerializeToString() if message else data
            with (
                open_channel(
                    material, suite.suite.address(service), f"{service}.sealward.local"
                ) as channel,
                suppress(grpc.RpcError),
            ):
                channel.unary_unary(method)(body, metadata=metadata, timeout=20)
    enrolment = suite.suite.enroll_dir / f"{TEXT}.csr"
    enrolment.write_bytes(data)
    until(lambda: not enrolment.exists(), "the request is refused")


def opened(suite: RunningSuite) -> list[Any]:
    """What the records say when they are opened; the patient's reference stands in there only."""
    found = []
    with Admin(suite.suite).channel("audit") as channel:
        stub = AuditServiceStub(channel)
        for event in suite.events(limit=500):
            wanted = audit_pb2.GetEventRequest(event_id=event.event_id)
            span = span_to_json(stub.GetEvent(wanted, timeout=20).span)
            span["attributes"].pop(PATIENT_REFERENCE, None)
            found.append(span)
    return found


def events_missing(suite: RunningSuite) -> bool:
    return len(suite.events(user="ada", limit=100)) < 10


def patterns(texts: list[str]) -> list[re.Pattern[bytes]]:
    """What to look for: each text plain, UTF-16, hex and base64; the numbers as bytes and text."""
    wanted = [np.array(NUMBERS, kind).tobytes() for kind in ("<f4", ">f4", "<f8", ">f8")]
    wanted += [b"17.987611", b"17.98761"]
    for text in texts:
        data = text.encode()
        wanted += [data, text.encode("utf-16-le"), text.encode("utf-16-be"), data.hex().encode()]
        for shift in range(3):
            # The middle of its base64, whatever stands before and behind it.
            encoded = base64.b64encode(b"\x00" * shift + data)
            wanted.append(encoded[4 if shift else 0 : -4])
    return [re.compile(re.escape(item), re.IGNORECASE) for item in wanted]


def found_in(data: bytes, wanted: list[re.Pattern[bytes]]) -> bool:
    return any(pattern.search(data) for pattern in wanted)


def search(suite: RunningSuite, wanted: list[re.Pattern[bytes]], allowed: set[Path]) -> list[Path]:
    """Files below the suite's folder that hold what is wanted, in their name or content."""
    root = suite.suite.root
    found = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if name in allowed:
            continue
        try:
            data = path.read_bytes() if path.is_file() else b""
        except FileNotFoundError:
            continue
        if found_in(str(name).encode() + b"\n" + data, wanted):
            found.append(name)
    return found
