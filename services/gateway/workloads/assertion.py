"""Client assertions: the profile of SMART Backend Services (HL7 SMART App Launch 2.2, RFC 7523).

Pure: the clock is passed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.gateway import jwks
from services.gateway.tokens import TokenError, check_times, text_claim, verified_claims

ALGORITHMS = frozenset({"RS384", "ES384"})
"""What SMART asks servers to know; no other counts, `none` and those with a shared key least."""
LONGEST_SECONDS = 300
"""How far `exp` may lie ahead."""
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
"""The one type of assertion (RFC 7523 section 2.2)."""


@dataclass(frozen=True, slots=True)
class Assertion:
    """What is left to do: `jti` counts once, until `until` (seconds since the epoch)."""

    jti: str
    until: float


def check_assertion(
    token: str,
    client: str,
    keys: Sequence[Mapping[str, str]],
    audience: str,
    now: float,
    leeway: float,
) -> Assertion:
    """Check an assertion of a client with these registered keys; raise TokenError.

    `leeway` is the seconds that the clocks may be apart.
    """
    claims = verified_claims(token, lambda kid, alg: jwks.find(keys, kid, alg), ALGORITHMS)
    for name in ("iss", "sub"):
        if text_claim(claims, name) != client:
            raise TokenError(f"{name} must be the client's id, which is in its certificate")
    if claims.get("aud") != audience:
        raise TokenError("aud must be this server's, as one text")
    expires = check_times(claims, now, leeway=leeway, longest=LONGEST_SECONDS)
    return Assertion(text_claim(claims, "jti", longest=128), expires + leeway)
