"""ID tokens (OpenID Connect Core 1.0 section 3.1.3.7): checked. Pure: the clock is passed in."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.gateway.tokens import (
    FindKey,
    TokenError,
    check_times,
    text_claim,
    time_claim,
    verified_claims,
)

ALGORITHMS = frozenset({"RS256", "ES256"})
"""What providers sign with; the hash of both is SHA-256, which at_hash is made with."""
OLDEST_SECONDS = 600
"""A token that was issued longer ago is not from this login."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a token of this login has to say."""

    issuer: str
    client_id: str
    nonce: str
    access_token: str


@dataclass(frozen=True, slots=True)
class Person:
    """Who logged in. `issuer` and `subject` together never come to mean somebody else."""

    issuer: str
    subject: str
    claims: Mapping[str, Any]


def check_id_token(
    token: str, expected: Expected, find_key: FindKey, now: float, leeway: float
) -> Person:
    """Check a token; raise TokenError. `find_key` may raise errors of its own."""
    claims = verified_claims(token, find_key, ALGORITHMS)
    if text_claim(claims, "iss") != expected.issuer:
        raise TokenError("iss is not the provider")
    _check_audience(claims, expected.client_id)
    check_times(claims, now, leeway=leeway)
    if time_claim(claims, "iat") < now - OLDEST_SECONDS - leeway:
        raise TokenError("iat is too long ago")
    if not hmac.compare_digest(text_claim(claims, "nonce").encode(), expected.nonce.encode()):
        raise TokenError("nonce is of another login")
    if "at_hash" in claims:
        half = hashlib.sha256(expected.access_token.encode()).digest()[:16]
        right = base64.urlsafe_b64encode(half).rstrip(b"=")
        if not hmac.compare_digest(text_claim(claims, "at_hash").encode(), right):
            raise TokenError("at_hash is of another access token")
    return Person(expected.issuer, text_claim(claims, "sub", longest=255), claims)


def _check_audience(claims: Mapping[str, Any], client_id: str) -> None:
    audience = claims.get("aud")
    named = audience if isinstance(audience, list) else [audience]
    if client_id not in named:
        raise TokenError("aud is another client")
    if len(named) > 1 and "azp" not in claims:
        raise TokenError("azp is missing beside several audiences")
    if "azp" in claims and claims["azp"] != client_id:
        raise TokenError("azp is another client")
