"""ID tokens that are wrong in one way each, files of roles, and servers that behave badly."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from services.gateway import jwks
from services.gateway.oidc.egress import LARGEST, Egress, EgressError
from services.gateway.oidc.idtoken import ALGORITHMS, Expected, check_id_token
from services.gateway.oidc.mapping import read_mapping
from services.gateway.oidc.provider import AT_ONCE, Provider
from services.gateway.tokens import TokenError
from tests.support.waiting import until

NOW = 1_800_000_000
ISSUER, CLIENT = "https://login.example/realm", "sealward"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ACCESS = "an access token"
AT_HASH = base64.urlsafe_b64encode(hashlib.sha256(ACCESS.encode()).digest()[:16]).decode()[:-2]
EXPECTED = Expected(ISSUER, CLIENT, "the nonce", ACCESS)


def public(key: Any, kid: str) -> dict[str, str]:
    kinds: Any = jwt.algorithms
    maker = kinds.ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else kinds.RSAAlgorithm
    return {**json.loads(maker.to_jwk(key.public_key())), "kid": kid}


KEYS = [public(RSA, "r"), public(EC, "e")]


def token(algorithm: str = "RS256", kid: str = "r", key: Any = None, **changes: Any) -> str:
    claims = {
        "iss": ISSUER, "sub": "s-ann", "aud": CLIENT, "exp": NOW + 300, "iat": NOW,
        "nonce": "the nonce", "at_hash": AT_HASH,
    } | changes  # fmt: skip
    payload = json.dumps({k: v for k, v in claims.items() if v is not None}).encode()
    signer = key or (RSA if algorithm != "ES256" else EC)
    return jwt.PyJWS().encode(payload, signer, algorithm, {"kid": kid})


def check(text: str) -> Any:
    find = lambda kid, alg: jwks.find(KEYS, kid, alg)  # noqa: E731
    return check_id_token(text, EXPECTED, find, NOW, 30)


@pytest.mark.parametrize(
    "right",
    [
        token(), token("ES256", "e"), token(at_hash=None), token(aud=[CLIENT]),
        token(azp=CLIENT), token(aud=[CLIENT, "other"], azp=CLIENT), token(exp=NOW - 29),
        token(iat=NOW + 30),
    ],
)  # fmt: skip
def test_right_ones(right: str) -> None:
    person = check(right)
    assert (person.issuer, person.subject) == (ISSUER, "s-ann")


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": ISSUER + "/"}, {"iss": None}, {"aud": "other"}, {"aud": ["other"]}, {"aud": None},
        {"aud": []}, {"aud": [CLIENT, "other"]}, {"azp": "other"}, {"azp": None, "aud": {}},
        {"aud": [CLIENT, "other"], "azp": "other"}, {"exp": NOW - 30}, {"exp": None},
        {"iat": NOW + 31}, {"iat": NOW - 631}, {"iat": None}, {"nbf": NOW + 31},
        {"nonce": "another"}, {"nonce": None}, {"nonce": 7}, {"at_hash": "AAAA"}, {"at_hash": 1},
        {"sub": ""}, {"sub": "\ud800"}, {"sub": None}, {"sub": "x" * 256},
    ],
    ids=str,
)  # fmt: skip
def test_every_claim_of_an_id_token_counts(changes: dict[str, Any]) -> None:
    with pytest.raises(TokenError):
        check(token(**changes))


def test_its_algorithm_and_key_count() -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    for wrong in (
        token("RS384"), token("RS512"), token("PS256"), token(kid="e"), token(kid="x"),
        token("ES256", "r"), token(key=other),
    ):  # fmt: skip
        with pytest.raises(TokenError):
            check(wrong)
    unsigned = jwt.PyJWS().encode(b"{}", "", "none", {"kid": "r"})
    with pytest.raises(TokenError):
        check(unsigned)


def test_keys_of_a_provider_that_are_not_for_us_are_left_out() -> None:
    keys = [
        *KEYS, {"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "o"}, {"kty": "RSA"}, "x",
        {**public(RSA, "enc"), "use": "enc"}, {**public(EC, "d"), "d": "AA"},
    ]  # fmt: skip
    read = jwks.read_jwks(json.dumps({"keys": keys}).encode(), ALGORITHMS, strict=False)
    assert [key["kid"] for key in read] == ["r", "e"]


# --- the file of roles ------------------------------------------------------------------------


def write(folder: Path, content: Any) -> Path:
    file = folder / "roles.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_only_what_the_file_names_gives_a_role(tmp_path: Path) -> None:
    named = {"claim": "groups", "roles": {"a": ["clinician"], "b": ["operator", "clinician"]}}
    mapping = read_mapping(write(tmp_path, {**named, "second_factor": ["mfa"]}))
    assert mapping.roles_of({"groups": ["a", "b", "c", 7]}) == ("clinician", "operator")
    for nothing in ({}, {"groups": []}, {"groups": {"a": 1}}, {"groups": "ab"}, {"roles": ["a"]}):
        assert mapping.roles_of(nothing) == ()
    assert mapping.roles_of({"groups": "a"}) == ("clinician",)
    assert mapping.proven({"amr": ["pwd", "mfa"]})
    assert not mapping.proven({"amr": ["pwd"]})
    assert not mapping.proven({})


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{", {"claim": "g"}, {"claim": "", "roles": {}}, {"claim": "g", "roles": []},
        {"claim": "g", "roles": {"a": ["root"]}}, {"claim": "g", "roles": {"a": "clinician"}},
        {"claim": "g", "roles": {}, "default": ["clinician"]},
        {"claim": "g", "roles": {}, "second_factor": "mfa"},
    ],
    ids=str,
)  # fmt: skip
def test_a_file_that_is_wrong_stops_the_start(tmp_path: Path, content: Any) -> None:
    with pytest.raises(StartupError):
        read_mapping(write(tmp_path, content))


def test_no_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError):
        read_mapping(tmp_path / "none.json")
    with pytest.raises(StartupError):
        Egress(["login.example"], tmp_path / "none.pem")


# --- a provider that behaves badly ------------------------------------------------------------

Answer = Callable[[ssl.SSLSocket], None]


class Badly:
    """A TLS server that answers each connection with the next of `answers`."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca_file = folder / "ca.pem"
        authority.cert_pem.write_to_path(self.ca_file)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"https://localhost:{self.port}"
        self.answers: list[Answer] = []
        self.asked: list[bytes] = []
        self._context = context
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self.listener.accept()
            except OSError:
                return
            with raw:
                try:
                    with self._context.wrap_socket(raw, server_side=True) as reached:
                        self.asked.append(reached.recv(65536))
                        self.answers.pop(0)(reached)
                except OSError:
                    continue


@contextmanager
def badly(folder: Path) -> Iterator[Badly]:
    server = Badly(folder)
    try:
        yield server
    finally:
        server.listener.close()


def says(body: Any, status: str = "200 OK", more: str = "") -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-length: {len(data)}\r\n{more}\r\n"
    return lambda reached: reached.sendall(head.encode() + data)


def dribbles(reached: ssl.SSLSocket) -> None:
    reached.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        reached.sendall(b"x: y\r\n")
        # Until the other end has had enough.
        reached.settimeout(0.02)
        try:
            if not reached.recv(1):
                return
        except TimeoutError:
            continue


def refused(call: Callable[[], object]) -> Reason:
    with pytest.raises(SealwardError) as caught:
        call()
    return caught.value.reason


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Badly]:
    with badly(tmp_path) as started:
        yield started


def test_answers_that_are_none(server: Badly) -> None:
    egress = Egress([f"localhost:{server.port}"], server.ca_file, seconds=0.5)
    server.answers = [says({"a": 1})]
    assert egress.get(server.url + "/x?y=1") == {"a": 1}
    assert server.asked[0].startswith(b"GET /x?y=1 HTTP/1.1")
    bad = [
        says(b"x" * (LARGEST + 1)), says(b"no json"), says([]), says(b"[" * 10_000),
        says({}, "302 Found", "location: https://localhost/\r\n"), says({}, "500 Oops"),
        says({}, "404 None"), says({}, "204 Nothing"), lambda s: s.sendall(b"nonsense\r\n\r\n"),
        lambda s: s.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{}"),
        lambda s: None, dribbles,
    ]  # fmt: skip
    for answer in bad:
        server.answers = [answer]
        assert refused(lambda: egress.get(server.url)) is Reason.PROVIDER_UNAVAILABLE
    server.answers = [says({"error": "invalid_grant"}, "400 Bad")]
    with pytest.raises(EgressError):
        egress.post(server.url, {}, {})


def test_nobody_else_is_asked(server: Badly) -> None:
    egress = Egress(["login.example", f"localhost:{server.port}"], server.ca_file)
    for address in ("https://login.example/", "https://LOGIN.example:443/x", server.url):
        assert egress.may_reach(address)
    others: tuple[object, ...] = (
        "http://login.example/", "https://login.example:444/", "https://login.example.evil/",
        "https://user@login.example/", "https://login.example@evil.example/", "https://evil/",
        "https://127.0.0.1/", "file:///etc/passwd", "", None, 7, "https://login.example:x/",
        "https://login.example/ \r\nx: y", "https://login.example/#x",
    )  # fmt: skip
    for other in others:
        assert not egress.may_reach(other)
    elsewhere = "https://evil.example/keys"
    assert refused(lambda: egress.get(elsewhere)) is Reason.PROVIDER_UNAVAILABLE
    discovered = {
        "issuer": server.url, "authorization_endpoint": server.url, "token_endpoint": server.url,
        "jwks_uri": server.url,
    }  # fmt: skip
    for lie in (
        {"jwks_uri": elsewhere}, {"token_endpoint": elsewhere}, {"jwks_uri": None},
        {"authorization_endpoint": elsewhere}, {"issuer": server.url + "/"},
        {"code_challenge_methods_supported": ["plain"]},
    ):  # fmt: skip
        server.answers = [says(discovered | lie)]
        provider = Provider(egress, server.url, "c", None)
        assert refused(provider.addresses) is Reason.PROVIDER_UNAVAILABLE
    server.answers = [says(discovered)]
    assert Provider(egress, server.url, "c", None).addresses().token == server.url


def test_keys_are_fetched_anew_for_an_unknown_one_but_not_for_each(server: Badly) -> None:
    clock = [0.0]
    egress = Egress([f"localhost:{server.port}"], server.ca_file)
    provider = Provider(egress, server.url, "c", None, clock=lambda: clock[0])
    discovered = dict.fromkeys(
        ("issuer", "authorization_endpoint", "token_endpoint", "jwks_uri"), server.url
    )
    server.answers = [says(discovered), says({"keys": [public(RSA, "r")]})]
    assert provider.key("r", "RS256") is not None
    for number in range(50):
        assert provider.key(f"made-up-{number}", "RS256") is None
    assert provider.key("r", "ES256") is None
    assert len(server.asked) == 2
    clock[0] = 31
    server.answers = [says({"keys": KEYS})]
    assert provider.key("e", "ES256") is not None
    assert len(server.asked) == 3
    # Keys that the provider has withdrawn are gone after an hour.
    clock[0] = 3700
    server.answers = [says(discovered), says({"keys": [public(EC, "e")]})]
    assert provider.key("r", "RS256") is None


def test_a_provider_that_hangs_holds_up_few(server: Badly) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def hangs(_connection: ssl.SSLSocket) -> None:
        reached.set()
        go_on.wait(30)

    clock = [0.0]
    server.answers = [hangs]
    egress = Egress([f"localhost:{server.port}"], server.ca_file, seconds=30)
    provider = Provider(egress, server.url, "c", None, clock=lambda: clock[0])
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = [pool.submit(refused, provider.addresses)]
        assert reached.wait(30)
        waiting += [pool.submit(refused, provider.addresses) for _ in range(AT_ONCE - 1)]
        until(lambda: not provider._room._value, "every place is taken")
        # All others are told at once, while those wait.
        for _ in range(20):
            assert refused(provider.addresses) is Reason.PROVIDER_UNAVAILABLE
        go_on.set()
        assert {done.result() for done in waiting} == {Reason.PROVIDER_UNAVAILABLE}
    # Those who had waited did not ask again.
    assert len(server.asked) == 1
    clock[0] = 3
    server.answers = [says(b"")]
    assert refused(provider.addresses) is Reason.PROVIDER_UNAVAILABLE
    assert len(server.asked) == 2
