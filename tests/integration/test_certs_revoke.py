"""A certificate that is revoked: every service refuses it at once, and the record says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from sealward.cli.certificates import ensure_admin, read_material
from sealward.cli.connect import open_channel, user_channel
from sealward.cli.errors import CliError
from sealward.cli.rpc import error_info
from sealward.cli.suite import SERVICES
from sealward.kit.tls import Material
from tests.support.suites import RunningSuite, request, running, until

TD = "sealward.local"
# One method of each service that its administrator may call.
ADMINS = {
    "keys": "/sealward.api.keys.v1.KeysService/GetStatus",
    "audit": "/sealward.api.audit.v1.LogAdminService/ListLogs",
    "inference": "/sealward.api.inference.v1.InferenceService/ListModels",
    "gateway": "/sealward.api.gateway.v1.UserService/ListUsers",
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuite]:
    """A suite of our own: others should not lose their certificates to us."""
    with running(tmp_path_factory.mktemp("revoke") / "data") as started:
        yield started


def reason(call: Any, body: bytes = b"", **options: Any) -> str:
    """Why a call is refused; empty when it is answered."""
    try:
        call(body, timeout=20, **options)
    except grpc.RpcError as error:
        return error_info(error)[0] or error.code().name
    return ""


def refuses(call: Any, why: str) -> Callable[[], bool]:
    return lambda: reason(call) == why


def revoke(suite: RunningSuite, why: str, *whom: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = suite.sealward("certs", "revoke", "--reason", why, *whom)[
        "revoked"
    ]
    return found


def serial_of(suite: RunningSuite, user: str) -> str:
    material = read_material(suite.suite.clients / user)
    assert material is not None
    return f"{material.serial:x}"


def recorded(suite: RunningSuite, **about: str) -> None:
    """The log has events of this kind; those of keys and inference come a moment later."""

    def found() -> bool:
        return any(
            all(getattr(event, key) == value for key, value in about.items())
            for event in suite.events(limit=200)
        )

    until(found, f"the log says {about}")


def test_a_user_is_refused_on_a_connection_that_is_open(own: RunningSuite) -> None:
    name = own.user("ada")
    metadata = (("authorization", f"Bearer {own.token(name)}"),)
    body = request().SerializeToString()
    with user_channel(own.suite, name) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        ready = channel.unary_unary("/inference.GRPCInferenceService/ModelReady")
        assert reason(infer, body, metadata=metadata) == ""
        (row,) = revoke(own, "superseded", "--serial", serial_of(own, name))
        assert (row["identity"], row["state"]) == (f"spiffe://{TD}/user/ada", "revoked")
        until(
            lambda: reason(infer, body, metadata=metadata) == "CERTIFICATE_REVOKED", "it is refused"
        )
        assert reason(ready, metadata=metadata) == "CERTIFICATE_REVOKED"
    error = own.refusal(name)
    assert error.details["reason"] == "CERTIFICATE_REVOKED"
    assert error.details["status"] == "UNAUTHENTICATED"
    shown = own.sealward("certs", "show")["certificates"]
    assert [r["state"] for r in shown if r["holder"] == f"user {name}"] == ["revoked"]
    recorded(own, type="inference.predict", actor=name, reason="CERTIFICATE_REVOKED")
    recorded(own, type="model.ready", actor=name, reason="CERTIFICATE_REVOKED")
    recorded(own, type="keys.revoke", outcome="ok")
    # Again changes nothing; an administrator's renewal gives a good one, of the same key here.
    assert revoke(own, "superseded", "--serial", row["serial"].upper()) == []
    own.sealward("certs", "rotate", "--user", name)
    own.ask(name)


def test_a_compromised_key_is_replaced(own: RunningSuite) -> None:
    name = own.user("eve")
    key = (own.suite.clients / name / "key.pem").read_bytes()
    assert len(revoke(own, "key-compromise", "--identity", f"user/{name}")) == 1
    with pytest.raises(CliError):
        own.ask(name)
    own.sealward("certs", "rotate", "--user", name)
    assert (own.suite.clients / name / "key.pem").read_bytes() != key
    # The session was bound to the old key.
    assert own.refusal(name).details["reason"] == "SESSION_CERTIFICATE_MISMATCH"
    own.login(name)
    own.ask(name)
    listed = own.sealward("certs", "list", "--identity", f"user/{name}")["certificates"]
    assert [row["state"] for row in listed] == ["ok", "revoked"]
    assert listed[1]["reason"] == "key-compromise"


def test_every_service_refuses_it_also_after_keys_was_killed(own: RunningSuite) -> None:
    stolen = ensure_admin(own.suite)
    channels = {name: open_as(own, stolen, name) for name in SERVICES}
    calls = {name: channels[name].unary_unary(method) for name, method in ADMINS.items()}
    try:
        assert {name: reason(call) for name, call in calls.items()} == dict.fromkeys(SERVICES, "")
        assert revoke(own, "key-compromise", "--identity", "admin/local")
        for name, call in calls.items():
            until(refuses(call, "CERTIFICATE_REVOKED"), f"{name} refuses it")
            recorded(own, reason="CERTIFICATE_REVOKED", actor="local", **producer(name))
        own.restarted("keys", own.kill("keys"))
        until(refuses(calls["keys"], "CERTIFICATE_REVOKED"), "keys refuses it again")
        assert reason(calls["gateway"]) == "CERTIFICATE_REVOKED"
    finally:
        for channel in channels.values():
            channel.close()
    # The command line has a new certificate of a new key.
    fresh = ensure_admin(own.suite)
    assert fresh.serial != stolen.serial
    assert fresh.key_pem != stolen.key_pem
    assert own.sealward("status")["ready"]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_a_new_certificate_at_once(own: RunningSuite, service: str) -> None:
    name = own.user("ada")
    own.ask(name)
    pid = own.pid(service)
    # More than one where the process was restarted before.
    old = {r["serial"] for r in revoke(own, "key-compromise", "--identity", f"service/{service}")}
    assert old

    def renewed() -> bool:
        shown = own.sealward("certs", "show")["certificates"]
        return any(
            row["holder"] == f"service {service}" and row["serial"] not in old for row in shown
        )

    until(renewed, f"{service} shows a new certificate")
    own.answers_again(name)
    assert own.pid(service) == pid
    assert own.sealward("status")["ready"]


def test_wrong_questions(own: RunningSuite) -> None:
    def error(*arguments: str, code: int) -> str:
        text: str = own.sealward("certs", "revoke", *arguments, code=code)["error"]["message"]
        return text

    assert "one certificate or one identity" in error("--reason", "cessation", code=2)
    assert "is not a reason" in error("--reason", "ZZ", "--serial", "1", code=2)
    assert "hex digits" in error("--reason", "cessation", "--serial", "xyz", code=1)
    assert "no living certificate" in error(
        "--reason", "cessation", "--identity", "user/nobody", code=1
    )
    assert "spiffe_id" in error(
        "--reason", "cessation", "--identity", "spiffe://other/user/ann", code=1
    )


def test_without_news_for_too_long_nobody_is_let_in(tmp_path: Path) -> None:
    """Each service refuses by itself once the list is older than its bound, and recovers."""
    bound = {f"SEALWARD_{name.upper()}_REVOCATION_SECONDS": "5" for name in SERVICES}
    with running(tmp_path / "data", bound) as suite:
        name = suite.user("ada")
        suite.ask(name)
        material = ensure_admin(suite.suite)
        with suite.stopped("keys"):
            until(
                lambda: refused_with(suite, name) == "REVOCATIONS_UNKNOWN", "the gateway is closed"
            )
            for service in ("audit", "inference"):
                with open_as(suite, material, service) as channel:
                    call = channel.unary_unary(ADMINS[service])
                    until(refuses(call, "REVOCATIONS_UNKNOWN"), service)
                    health = channel.unary_unary("/grpc.health.v1.Health/Check")
                    assert reason(health) == ""
        suite.answers_again(name)


def refused_with(suite: RunningSuite, name: str) -> str:
    try:
        suite.ask(name, timeout=5)
    except CliError as error:
        return str(error.details.get("reason"))
    return ""


def open_as(suite: RunningSuite, material: Material, service: str) -> grpc.Channel:
    return open_channel(material, suite.suite.address(service), f"{service}.{TD}")


def producer(name: str) -> dict[str, str]:
    """What tells a refusal of one service from that of another."""
    return {"type": "user.list"} if name == "gateway" else {"type": "access.denied"}
