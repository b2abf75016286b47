"""What people, programs and an identity provider show to log in."""

from __future__ import annotations

import json
from functools import cache
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from sealward.kit.errors import StartupError
from services.gateway import jwks
from services.gateway.factors.webauthn import RelyingParty, WebauthnError, named, text
from services.gateway.jwks import JwksError
from services.gateway.oidc.idtoken import Expected, check_id_token
from services.gateway.oidc.mapping import parse_mapping
from services.gateway.tokens import TokenError, verified_claims
from services.gateway.workloads.assertion import ALGORITHMS, check_assertion
from tests.fuzz.harness import target
from tests.support.authenticator import ORIGIN, Authenticator

NOW = 1_800_000_000
KEY = ec.derive_private_key(0xC0FFEE, ec.SECP384R1())
SMALL = ec.derive_private_key(0xC0FFEE, ec.SECP256R1())
CHALLENGE = bytes(range(32))


def _jwk(key: ec.EllipticCurvePrivateKey, curve: str) -> dict[str, str]:
    numbers, size = key.public_key().public_numbers(), (key.curve.key_size + 7) // 8
    x, y = (text(number.to_bytes(size, "big")) for number in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": curve, "x": x, "y": y, "kid": "k", "use": "sig"}


KEYS = [_jwk(KEY, "P-384")]
SMALL_KEYS = [_jwk(SMALL, "P-256")]


def _signed(payload: bytes, key: ec.EllipticCurvePrivateKey = KEY, alg: str = "ES384") -> str:
    """A token that is right whatever it says."""
    header = json.dumps({"alg": alg, "kid": "k", "typ": "JWT"}).encode()
    signed = f"{text(header)}.{text(payload)}"
    digest = hashes.SHA384() if alg == "ES384" else hashes.SHA256()
    der = key.sign(signed.encode(), ec.ECDSA(digest, deterministic_signing=True))
    size = (key.curve.key_size + 7) // 8
    both = b"".join(number.to_bytes(size, "big") for number in decode_dss_signature(der))
    return f"{signed}.{text(both)}"


def _claims(**more: Any) -> bytes:
    made = {"iss": "lab", "sub": "lab", "aud": "https://here", "exp": NOW + 60, "iat": NOW, **more}
    return json.dumps(made).encode()


@target(TokenError, seeds=lambda: [_signed(_claims(jti="1")).encode()])
def signed_token(data: bytes) -> None:
    """A token of a client: the one that was signed, or none."""
    shown = data.decode("latin-1")
    claims = verified_claims(shown, lambda kid, alg: jwks.find(KEYS, kid, alg), ALGORITHMS)
    assert claims == json.loads(_claims(jti="1"))


@target(TokenError, seeds=lambda: [_claims(jti="1"), _claims(jti="1", nbf=NOW)])
def assertion_claims(data: bytes) -> None:
    """What a client that has the key says in an assertion."""
    found = check_assertion(_signed(data), "lab", KEYS, "https://here", NOW, 30)
    assert NOW < found.until <= NOW + 360


_NOTHING = text(sha256(b"").digest()[:16])


@target(TokenError, seeds=lambda: [
    _claims(nonce="n", at_hash=_NOTHING), _claims(nonce="n", azp="https://here")])  # fmt: skip
def id_token_claims(data: bytes) -> None:
    """What a provider says in an ID token."""
    expected = Expected("lab", "https://here", "n", "")
    find = lambda kid, alg: jwks.find(SMALL_KEYS, kid, alg)  # noqa: E731
    person = check_id_token(_signed(data, SMALL, "ES256"), expected, find, NOW, 30)
    assert person.issuer == "lab"
    assert 0 < len(person.subject) <= 255


_RSA = {
    "kty": "RSA", "kid": "r", "e": "AQAB", "n": text((2**2047 + 9).to_bytes(256, "big")),
}  # fmt: skip


@target(JwksError, seeds=lambda: [
    json.dumps({"keys": keys}).encode() for keys in (KEYS, [*SMALL_KEYS, _RSA])])  # fmt: skip
def key_set(data: bytes) -> None:
    """A set of public keys, of a client or of a provider."""
    for key in jwks.read_jwks(data, jwks.KINDS, strict=False):
        assert not {"d", "k"} & set(key)
        assert sum(jwks.find([key], key["kid"], alg) is not None for alg in jwks.KINDS) >= 1


@target(StartupError, seeds=lambda: [
    b'{"claim": "groups", "roles": {"a": ["clinician"]}, "second_factor": ["mfa"]}'])  # fmt: skip
def role_mapping(data: bytes) -> None:
    """The operator's file of roles."""
    assert parse_mapping(data).roles_of({}) == ()


@cache
def _authenticator() -> tuple[RelyingParty, str, str, bytes]:
    party = RelyingParty("hospital.example", [ORIGIN])
    key = Authenticator(key=SMALL, credential_id=bytes(range(16)))
    made = key.create(party.registration_options("u", "ann", CHALLENGE, 60, []))
    public_key = party.registered(made, CHALLENGE).public_key
    got = key.get(party.assertion_options(CHALLENGE, 60, [text(bytes(range(16)))]))
    return party, made, got, public_key


@target(WebauthnError, seeds=lambda: [_authenticator()[1].encode()], rounds=150)
def key_registration(data: bytes) -> None:
    """A browser's answer to a registration."""
    party = _authenticator()[0]
    assert all(part.isascii() for part in named(data.decode("latin-1")))
    assert party.registered(data.decode("latin-1"), CHALLENGE).public_key


@target(WebauthnError, seeds=lambda: [_authenticator()[2].encode()], rounds=150)
def key_assertion(data: bytes) -> None:
    """A browser's answer to a proof."""
    party, _, _, public_key = _authenticator()
    assert party.asserted(data.decode("latin-1"), CHALLENGE, public_key) == 2
