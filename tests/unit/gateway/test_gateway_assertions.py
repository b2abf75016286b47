"""Client assertions: made by another library, refused for every way in which they can be wrong."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealward.client.assertion import new_key, sign_assertion
from sealward.client.errors import ProfileError
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.jwks import JwksError, read_jwks
from services.gateway.ledgers import Ledgers
from services.gateway.session import Session
from services.gateway.tokens import TokenError
from services.gateway.workloads.assertion import ALGORITHMS, Assertion, check_assertion
from services.gateway.workloads.clients import ClientDirectory

NOW = 1_800_000_000
AUDIENCE = "https://gateway.sealward.local/sealward.api.gateway.v1.WorkloadService/IssueToken"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP384R1())
OTHER = ec.generate_private_key(ec.SECP384R1())
SMALL = ec.generate_private_key(ec.SECP256R1())


def jwk(key: Any, kid: str, **more: str) -> dict[str, str]:
    """The public JWK, as PyJWT writes it."""
    kinds: Any = jwt.algorithms
    public = key.public_key()
    maker = kinds.ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else kinds.RSAAlgorithm
    return {**json.loads(maker.to_jwk(public)), "kid": kid, "use": "sig", **more}


JWKS = json.dumps({"keys": [jwk(RSA, "rsa-1"), jwk(EC, "ec-1", alg="ES384")]}).encode()
KEYS = read_jwks(JWKS, ALGORITHMS, strict=True)


def claims(**changes: Any) -> dict[str, Any]:
    made = {
        "iss": "lab", "sub": "lab", "aud": AUDIENCE, "jti": "j-1", "exp": NOW + 240, "iat": NOW,
    } | changes  # fmt: skip
    return {name: value for name, value in made.items() if value is not None}


def assertion(
    key: Any = EC, algorithm: str = "ES384", kid: Any = "ec-1", headers: Any = None, **changes: Any
) -> str:
    return jwt.encode(claims(**changes), key, algorithm, {"kid": kid, **(headers or {})})


def check(token: str, leeway: float = 30) -> Assertion:
    return check_assertion(token, "lab", KEYS, AUDIENCE, NOW, leeway)


def by_hand(header: dict[str, Any], payload: bytes, signature: bytes) -> str:
    parts = (json.dumps(header).encode(), payload, signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"), [(EC, "ES384", "ec-1"), (RSA, "RS384", "rsa-1")]
)
def test_a_right_one_is_accepted(key: Any, algorithm: str, kid: str) -> None:
    assert check(assertion(key, algorithm, kid)) == Assertion("j-1", NOW + 240 + 30)


def test_our_own_maker_makes_what_another_library_reads() -> None:
    private, public = new_key()
    token = sign_assertion(private, "lab", AUDIENCE)
    key = jwt.PyJWKSet.from_json(public.decode()).keys[0]
    read = jwt.decode(token, key, ["ES384"], audience=AUDIENCE, issuer="lab")
    assert read["sub"] == "lab"
    assert read["exp"] - read["iat"] <= 300
    assert read_jwks(public, ALGORITHMS, strict=True)
    with pytest.raises(ProfileError):
        sign_assertion(public, "lab", AUDIENCE)


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "other"}, {"sub": "other"}, {"iss": None}, {"sub": None},
        {"aud": AUDIENCE + "/"}, {"aud": [AUDIENCE]}, {"aud": None}, {"aud": AUDIENCE.upper()},
        {"exp": None}, {"exp": NOW - 30}, {"exp": NOW + 331}, {"exp": str(NOW + 100)},
        {"exp": True}, {"exp": -1}, {"exp": 2**60},
        {"iat": NOW + 31}, {"nbf": NOW + 31}, {"nbf": "soon"},
        {"jti": None}, {"jti": ""}, {"jti": "\ud800"}, {"jti": "x" * 129}, {"jti": 7},
    ],
    ids=str,
)  # fmt: skip
def test_every_claim_counts(changes: dict[str, Any]) -> None:
    token = by_hand_signed(changes)
    with pytest.raises(TokenError):
        check(token)


def by_hand_signed(changes: dict[str, Any]) -> str:
    """PyJWT refuses to make some of these; the signature over them is right all the same."""
    payload = json.dumps(claims(**changes)).encode()
    return jwt.PyJWS().encode(payload, EC, "ES384", {"kid": "ec-1"})


@pytest.mark.parametrize("exp", [NOW - 29, NOW + 300, NOW + 330])
def test_clocks_may_be_apart_by_the_leeway_and_no_more(exp: int) -> None:
    assert check(assertion(exp=exp)).until == exp + 30
    if exp != NOW + 300:
        with pytest.raises(TokenError):
            check(assertion(exp=exp), leeway=0)


def test_algorithms_are_not_confused() -> None:
    payload = json.dumps(claims()).encode()
    refused = [by_hand({"alg": "none", "kid": "ec-1"}, payload, b"")]
    refused += [by_hand({"alg": alg, "kid": "ec-1"}, payload, b"") for alg in ("None", "", 5)]
    # The public key as a shared secret, in the forms in which an attacker has it.
    for kid, key in (("ec-1", EC), ("rsa-1", RSA)):
        public = key.public_key()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for secret in (pem, der, json.dumps(jwk(key, kid)).encode()):
            for alg, digest in (("HS256", "sha256"), ("HS384", "sha384"), ("RS384", "sha384")):
                header = {"alg": alg, "kid": kid}
                signed = by_hand(header, payload, b"").rpartition(".")[0]
                tag = hmac.digest(secret, signed.encode(), digest)
                refused.append(by_hand(header, payload, tag))
    # Keys that are known, under an algorithm that is not theirs or not of ours.
    refused += [
        assertion(RSA, "RS384", "ec-1"), assertion(EC, "ES384", "rsa-1"),
        assertion(RSA, "RS256", "rsa-1"), assertion(RSA, "PS384", "rsa-1"),
        assertion(RSA, "RS512", "rsa-1"), assertion(SMALL, "ES256", "ec-1"),
        assertion(OTHER), assertion(kid="ec-2"), assertion(kid="x" * 200),
    ]  # fmt: skip
    for token in refused:
        with pytest.raises(TokenError):
            check(token)


def test_keys_in_the_header_count_for_nothing() -> None:
    mine = jwk(OTHER, "ec-1")
    for headers in (
        {"jwk": mine},
        {"jku": "https://evil.example/jwks"},
        {"x5u": "https://evil.example/chain"},
        {"x5c": ["AAAA"]},
    ):
        with pytest.raises(TokenError, match="signature"):
            check(assertion(OTHER, headers=headers))
        # With the registered key such a header does no harm.
        if "x5c" not in headers:
            assert check(assertion(headers=headers)).jti == "j-1"
    with pytest.raises(TokenError, match="critical"):
        check(assertion(headers={"crit": ["exp"]}))


def test_what_is_no_token_is_refused() -> None:
    good = assertion()
    header, payload, signature = good.split(".")
    twice = b'{"iss":"lab","iss":"lab","sub":"lab"}'
    bad = [
        "", ".", "..", "a.b", "a.b.c.d", "é.é.é", "x" * 20_000, good + ".",
        f"{header}..{signature}",
        f"{header}.{payload}.", f"{header}.{payload}.{signature[:-4]}", f"!.{payload}.{signature}",
        by_hand({"alg": "ES384"}, b"{}", b""), by_hand({"alg": "ES384", "kid": 3}, b"{}", b""),
        jwt.PyJWS().encode(twice, EC, "ES384", {"kid": "ec-1"}),
        jwt.PyJWS().encode(b'{"exp":NaN}', EC, "ES384", {"kid": "ec-1"}),
        jwt.PyJWS().encode(b"[" * 9000, EC, "ES384", {"kid": "ec-1"}),
        jwt.PyJWS().encode(b"[]", EC, "ES384", {"kid": "ec-1"}),
    ]  # fmt: skip
    flipped = "A" if payload[5] != "A" else "B"
    bad.append(f"{header}.{payload[:5]}{flipped}{payload[6:]}.{signature}")
    for token in bad:
        with pytest.raises(TokenError):
            check(token)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ([], "1 to"),
        ([jwk(SMALL, "a")], "type"),
        ([{"kty": "oct", "kid": "a", "k": "AAAA"}], "private"),
        ([{**jwk(EC, "a"), "d": "AAAA"}], "private"),
        ([jwk(EC, "a"), jwk(RSA, "a")], "same kid"),
        ([jwk(EC, "a", use="enc")], "use"),
        ([jwk(EC, "a", alg="RS384")], "alg"),
        ([jwk(EC, "a", alg="HS384")], "alg"),
        ([{k: v for k, v in jwk(EC, "a").items() if k != "kid"}], "kid"),
        ([jwk(EC, "a" * 129)], "kid"),
        ([{**jwk(EC, "a"), "x": jwk(EC, "a")["y"]}], "numbers"),
        ([{**jwk(RSA, "a"), "n": jwk(RSA, "a")["n"][:100]}], "bits"),
        (["x"], "object"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_only_public_keys_of_our_kinds_are_registered(keys: list[Any], why: str) -> None:
    with pytest.raises(JwksError, match=why):
        read_jwks(json.dumps({"keys": keys}).encode(), ALGORITHMS, strict=True)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"keys": 3}', b"\xff", b"x" * 70_000])
def test_what_is_no_set_is_refused(data: bytes) -> None:
    with pytest.raises(JwksError):
        read_jwks(data, ALGORITHMS, strict=False)


@pytest.fixture
def clients(tmp_path: Path) -> Iterator[ClientDirectory]:
    made = ClientDirectory(tmp_path / "clients.db")
    yield made
    made.close()


def refusal(call: Any) -> Reason:
    with pytest.raises(SealwardError) as caught:
        call()
    return caught.value.reason


def test_clients_are_kept_and_never_deleted(clients: ClientDirectory, tmp_path: Path) -> None:
    made = clients.register("lab", ["service"], JWKS)
    assert [key["kid"] for key in made.keys] == ["rsa-1", "ec-1"]
    assert refusal(lambda: clients.register("lab", ["service"], JWKS)) is Reason.ALREADY_EXISTS
    for name, roles, keys in (
        ("Lab", ["service"], JWKS), ("x", ["nobody"], JWKS), ("x", [], JWKS),
        ("x", ["break-glass"], JWKS), ("x", ["service", "service"], JWKS), ("x", ["service"], b""),
    ):  # fmt: skip
        assert refusal(lambda n=name, r=roles, k=keys: clients.register(n, r, k)) is (
            Reason.FIELD_INVALID
        )
    clients.used(made.client_id, NOW)
    only = json.dumps({"keys": [jwk(EC, "ec-2")]}).encode()
    assert [key["kid"] for key in clients.rotate("lab", only).keys] == ["ec-2"]
    assert clients.disable("lab").disabled
    assert refusal(lambda: clients.disable("other")) is Reason.NOT_FOUND
    again = ClientDirectory(tmp_path / "clients.db")
    assert again.get("lab") == clients.get("lab")
    assert again.all()[0].last_used == NOW
    again.close()


def test_the_ledger_of_a_session_is_its_owners(clients: ClientDirectory) -> None:
    class People:
        ended: list[str] = []  # noqa: RUF012 - of one test

        def live(self, session: Session) -> bool:
            return session.session_id not in self.ended

        def end_session(self, session_id: str, until: int) -> None:
            self.ended.append(session_id)

        def end_sessions(self, user_id: str) -> None:
            self.ended.append(user_id)

    def session(user_id: str, number: str) -> Session:
        return Session(number, user_id, "lab", ("service",), hashlib.sha256().digest(), 0, 9)

    people = People()
    ledger = Ledgers(people, clients)
    made = clients.register("lab", ["service"], JWKS)
    of_client, of_person = session(made.client_id, "1"), session("u1", "2")
    assert ledger.live(of_client)
    assert ledger.live(of_person)
    ledger.end_session("1", 2**33)
    assert not ledger.live(of_client)
    ledger.end_sessions(made.client_id)
    assert people.ended == ["1"]
    assert not ledger.live(session(made.client_id, "3"))
    assert not ledger.live(session("client-nobody", "4"))
