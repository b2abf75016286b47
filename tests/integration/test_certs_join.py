"""A second machine: from a join token to a certificate, by real processes over real TLS."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sealward.api.audit.v1 import audit_pb2
from sealward.api.audit.v1.audit_pb2_grpc import AuditServiceStub
from sealward.api.keys.v1 import enroll_pb2
from sealward.cli.certificates import ensure_admin
from sealward.cli.connect import is_serving, open_channel
from sealward.cli.rpc import error_info
from sealward.evidence.event import read_span
from sealward.kit.joining import IdentityFolder, JoinToken, join, parse_token
from sealward.kit.oldtls import refuse_old_tls
from sealward.kit.settings import split_address
from services.keys.authority import new_authority, utc_now
from tests.support.inference_suite import Service
from tests.support.suites import RunningSuite, running, until

TD = "sealward.local"
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
ENROLL = "/sealward.api.keys.v1.EnrollService/Enroll"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuite]:
    """The first machine, with the listener for joining. Certificates of services live 24 s."""
    settings = {
        "SEALWARD_KEYS_JOIN_ADDRESS": "127.0.0.1:0",
        "SEALWARD_KEYS_CERTIFICATE_SECONDS": "24",
    }
    with running(tmp_path_factory.mktemp("join") / "data", settings) as suite:
        yield suite


def token_for(suite: RunningSuite, tmp_path: Path, identity: str, name: str = "token") -> Path:
    path = tmp_path / name
    suite.sealward("certs", "join-token", "--identity", identity, "--to", str(path))
    return path


def joined(suite: RunningSuite, token: Path, out: Path, *more: str, code: int = 0) -> Any:
    arguments = ("certs", "join", "--token-file", str(token), "--out", str(out), *more)
    return sealward_without_suite(suite, *arguments, code=code)


def sealward_without_suite(suite: RunningSuite, *arguments: str, code: int) -> Any:
    """As on a machine that has no suite: the command is given no folder."""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "sealward.cli.main", *arguments, "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=suite.environ,
        timeout=60,
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout)


def joins(suite: RunningSuite) -> list[Mapping[str, Any]]:
    """The attributes of every record of joining."""
    with open_channel(
        ensure_admin(suite.suite), suite.suite.address("audit"), f"audit.{TD}"
    ) as channel:
        stub = AuditServiceStub(channel)
        rows = stub.QueryEvents(
            audit_pb2.QueryEventsRequest(type="keys.join", limit=1000), timeout=20
        ).events
        return [
            read_span(
                stub.GetEvent(audit_pb2.GetEventRequest(event_id=row.event_id), timeout=20).span
            ).attributes
            for row in rows
        ]


def recorded(suite: RunningSuite, identity: str, reason: str = "") -> None:
    uri = f"spiffe://{TD}/{identity}"
    until(
        lambda: any(
            row.get("sealward.reason", "") == reason and row.get("sealward.target") == uri
            for row in joins(suite)
        ),
        f"the log says {reason or 'ok'} of {identity}",
    )


def refused(token: JoinToken, address: str) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        join(token, address, 20)
    return caught.value.code(), error_info(caught.value)[0]


def test_a_workload_joins_and_is_let_in(first: RunningSuite, tmp_path: Path) -> None:
    token = token_for(first, tmp_path, "workload/pacs")
    assert token.stat().st_mode & 0o077 == 0
    out = tmp_path / "identity"
    answer = joined(first, token, out)
    assert answer["identity"] == f"spiffe://{TD}/workload/pacs"
    material = IdentityFolder(out).load()
    with open_channel(material, first.suite.address("audit"), f"audit.{TD}") as channel:
        channel.unary_unary(EXPORT)(b"", timeout=20)
    listed = first.sealward("certs", "list", "--identity", "workload/pacs")["certificates"]
    assert [row["serial"] for row in listed] == [answer["serial"]]
    recorded(first, "workload/pacs")
    # Once: another machine, or the same once more, gets nothing. The files are left as they are.
    again = joined(first, token, tmp_path / "other", code=1)
    assert again["error"]["reason"] == "JOIN_TOKEN_USED"
    assert joined(first, token, out, code=2)["error"]["message"].endswith("identity already")
    recorded(first, "workload/pacs", "JOIN_TOKEN_USED")
    assert IdentityFolder(out).load() == material


def test_a_used_token_stays_used_and_an_unused_one_good_after_kill(
    first: RunningSuite, tmp_path: Path
) -> None:
    used = parse_token(token_for(first, tmp_path, "workload/kill", "used").read_bytes())
    fresh = token_for(first, tmp_path, "workload/kill", "fresh")
    join(used, used.address, 20)
    first.restarted("keys", first.kill("keys"))
    until(lambda: first.sealward_any("status") == 0, "ready again")
    # The port was the kernel's choice: where it listens now is in the next token.
    address = parse_token(token_for(first, tmp_path, "workload/kill", "third").read_bytes()).address
    unauthenticated = grpc.StatusCode.UNAUTHENTICATED
    assert refused(used, address) == (unauthenticated, "JOIN_TOKEN_USED")
    joined(first, fresh, tmp_path / "out", "--keys", address)


def test_killed_right_after_the_token_was_shown(first: RunningSuite, tmp_path: Path) -> None:
    """Whether or not the answer came: shown again it gives nothing."""
    token = parse_token(token_for(first, tmp_path, "workload/race").read_bytes())
    request = enroll_pb2.EnrollRequest(token=token.token, spiffe_id=token.identity.uri)
    names = [("grpc.ssl_target_name_override", f"keys.{TD}"), ("grpc.enable_retries", 0)]
    credentials = grpc.ssl_channel_credentials(token.ca_pem)
    pid = first.pid("keys")
    assert pid is not None
    with grpc.secure_channel(token.address, credentials, names) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(ENROLL)(request.SerializeToString(), timeout=20)
        assert error_info(caught.value)[0] == "JOIN_TOKEN_MISMATCH"
        os.kill(pid, signal.SIGKILL)
    first.restarted("keys", pid)
    until(lambda: first.sealward_any("status") == 0, "ready again")
    address = parse_token(token_for(first, tmp_path, "workload/race", "next").read_bytes()).address
    assert refused(token, address)[1] == "JOIN_TOKEN_USED"


def test_a_token_is_for_one_identity_of_one_authority(first: RunningSuite, tmp_path: Path) -> None:
    document = json.loads(token_for(first, tmp_path, "workload/a", "a").read_bytes())
    document["spiffe_id"] = f"spiffe://{TD}/service/gateway"
    wrong = parse_token(json.dumps(document).encode())
    assert refused(wrong, wrong.address)[1] == "JOIN_TOKEN_MISMATCH"
    recorded(first, "workload/a", "JOIN_TOKEN_MISMATCH")

    # Of an authority that the token does not name the client does not even show the token.
    path = token_for(first, tmp_path, "workload/b", "b")
    token = parse_token(path.read_bytes())
    foreign = x509.load_der_x509_certificate(new_authority(TD, utc_now()).certificate)
    other = JoinToken(
        token.token, token.identity, foreign.public_bytes(Encoding.PEM), 0, token.address
    )
    assert refused(other, other.address) == (grpc.StatusCode.UNAVAILABLE, "")
    # A service that shows another name of the right authority is not the keys service either.
    gateway = first.suite.address("gateway")
    assert joined(first, path, tmp_path / "b-out", "--keys", gateway, code=3)["error"][
        "message"
    ].startswith("no keys service of the token's authority")
    joined(first, path, tmp_path / "b-out")


def test_a_guess(first: RunningSuite, tmp_path: Path) -> None:
    token = parse_token(token_for(first, tmp_path, "workload/guess").read_bytes())
    guess = JoinToken(bytes(32), token.identity, token.ca_pem, 0, token.address)
    assert refused(guess, token.address)[1] == "JOIN_TOKEN_UNKNOWN"
    until(
        lambda: any(row.get("sealward.reason") == "JOIN_TOKEN_UNKNOWN" for row in joins(first)),
        "the log says so",
    )
    # Who tries often is slowed down; the token is still good afterwards.
    reasons = [refused(guess, token.address)[1] for _ in range(12)]
    assert "RATE_LIMITED" in reasons

    def let_in() -> bool:
        try:
            return bool(join(token, token.address, 20))
        except grpc.RpcError as error:
            if error_info(error)[0] != "RATE_LIMITED":
                raise
            return False

    until(let_in, "it is let in")


def test_the_listener_serves_nothing_else(first: RunningSuite, tmp_path: Path) -> None:
    token = parse_token(token_for(first, tmp_path, "workload/else").read_bytes())
    refuse_old_tls(token.address)
    names = [("grpc.ssl_target_name_override", f"keys.{TD}")]
    credentials = grpc.ssl_channel_credentials(token.ca_pem)
    with grpc.secure_channel(token.address, credentials, names) as channel:
        for method in (
            "/sealward.api.keys.v1.KeysService/GetTrustBundle",
            "/sealward.api.keys.v1.KeysService/IssueCertificate",
            "/sealward.api.keys.v1.TrustService/CreateJoinToken",
            "/grpc.health.v1.Health/Check",
            f"{ENROLL}/",
        ):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(method)(b"", timeout=20)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        for body in (b"\xff\xff", bytes(64 << 10)):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(ENROLL)(body, timeout=20)
            assert caught.value.code() in (
                grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED,
            )  # fmt: skip
    with grpc.insecure_channel(token.address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(ENROLL)(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    # And on the other listeners nobody may call it, whatever the certificate.
    with (
        open_channel(
            ensure_admin(first.suite), first.suite.address("keys"), f"keys.{TD}"
        ) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary(ENROLL)(b"", timeout=20)
    assert error_info(caught.value)[0] == "METHOD_UNKNOWN"
    # Who asks for a certificate there shows none: a listener that asked for one would say so.
    context = ssl.create_default_context(cadata=token.ca_pem.decode())
    context.check_hostname = False
    with (
        socket.create_connection(split_address(token.address), timeout=10) as plain,
        context.wrap_socket(plain) as secure,
    ):
        assert secure.version() == "TLSv1.3"


def test_wrong_questions(first: RunningSuite, tmp_path: Path) -> None:
    def made(*arguments: str, code: int) -> str:
        answer = first.sealward("certs", "join-token", *arguments, code=code)
        text: str = answer["error"]["message"]
        return text

    assert "not a length of time" in made("--identity", "workload/x", "--ttl", "soon", code=2)
    assert "10 to 3600" in made("--identity", "workload/x", "--ttl", "2h", code=1)
    assert "a service but keys" in made("--identity", "service/keys", code=1)
    assert "a service but keys" in made("--identity", "admin/local", code=1)
    assert "no such service" in made("--identity", "service/billing", code=1)
    (tmp_path / "there").write_text("x")
    there = ("--to", str(tmp_path / "there"))
    assert "exists" in made("--identity", "workload/x", *there, code=2)
    token = token_for(first, tmp_path, "workload/x")
    token.chmod(0o644)
    assert "open to others" in joined(first, token, tmp_path / "o", code=2)["error"]["message"]


def test_without_the_listener_there_are_no_tokens(suite: RunningSuite) -> None:
    answer = suite.sealward("certs", "join-token", "--identity", "workload/x", code=1)
    assert "SEALWARD_KEYS_JOIN_ADDRESS" in answer["error"]["message"]


def test_a_service_on_a_second_machine(first: RunningSuite, tmp_path: Path) -> None:
    """It starts from what joining left, renews itself over the wire, and ends when revoked."""
    out = tmp_path / "identity"
    joined(first, token_for(first, tmp_path, "service/inference"), out)
    second = Service(
        "inference", tmp_path,
        ENROLL_DIR="", IDENTITY_DIR=out, START_SECONDS=20,
        KEYS_ADDRESS=first.suite.address("keys"), AUDIT_ADDRESS=first.suite.address("audit"),
    )  # fmt: skip
    try:
        second.start()
        with open_channel(ensure_admin(first.suite), second.address, f"inference.{TD}") as channel:
            until(lambda: is_serving(channel), "it serves")
        before = IdentityFolder(out).load()
        until(lambda: second.count("certificate.renewed") >= 1, "it renews its certificate")
        renewed = IdentityFolder(out).load()
        assert renewed.serial != before.serial
        assert renewed.key_pem != before.key_pem

        # A restart goes on with what the renewal left.
        assert second.end(signal.SIGKILL) == -signal.SIGKILL
        second.start()
        process = second.process
        assert process is not None

        def ended() -> bool:
            # It may renew itself in the same moment: its newest certificate is what counts.
            serial = f"{IdentityFolder(out).load().serial:x}"
            first.sealward("certs", "revoke", "--reason", "cessation", "--serial", serial)
            return process.poll() is not None

        until(ended, "it ends")
        assert process.returncode == 1
        assert "the certificate was revoked: join again" in second.log.read_text()
    finally:
        second.end(signal.SIGKILL)
    again = second.launch()
    assert again.wait(30) == 1
    assert second.log.read_text().count("error: the certificate was revoked: join again") == 2


def test_a_service_with_anothers_certificate_does_not_start(
    first: RunningSuite, tmp_path: Path
) -> None:
    out = tmp_path / "identity"
    joined(first, token_for(first, tmp_path, "service/audit"), out)
    second = Service(
        "inference", tmp_path, ENROLL_DIR="", IDENTITY_DIR=out, START_SECONDS=5,
        KEYS_ADDRESS=first.suite.address("keys"),
    )  # fmt: skip
    assert second.launch().wait(30) == 1
    assert "not of service/inference" in second.log.read_text()
    second.settings["IDENTITY_DIR"] = ""
    assert second.launch().wait(30) == 1
    assert "SEALWARD_INFERENCE_IDENTITY_DIR" in second.log.read_text()


def test_neither_key_nor_token_is_on_the_first_machine(first: RunningSuite, tmp_path: Path) -> None:
    token = parse_token(token_for(first, tmp_path, "workload/key").read_bytes())
    material = join(token, token.address, 20)
    # The second line: the first is the same in every key.
    body = material.key_pem.splitlines()[2]
    for path in first.suite.root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            assert body not in content
            assert token.token not in content
