"""Signed tokens of others (JWS compact, RFC 7515): read, with the key chosen by us. Pure.

The algorithm has to be on a list and to fit the key, and the key is one that was known before the
token came: of the header `alg`, `kid` and `crit` are looked at, and a key or the address of one in
it (`jwk`, `jku`, `x5c`, `x5u`) counts for nothing.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Collection
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

LARGEST = 16 << 10
"""Characters that a token may have."""

Key = ECKey | RSAKey
FindKey = Callable[[str, str], Key | None]
"""Key id and algorithm → the key, None for an unknown one."""


class TokenError(Exception):
    """A token that is refused. The text names what is wrong and repeats nothing of the token."""


class _Registry(jws.JWSRegistry):
    """Headers of any size up to ours: what is in them is not used."""

    max_header_length = LARGEST
    max_payload_length = LARGEST
    max_signature_length = 2048


def verified_claims(token: str, find_key: FindKey, algorithms: Collection[str]) -> dict[str, Any]:
    """Return the claims of a token whose signature is right; raise TokenError.

    `find_key` may raise errors of its own.
    """
    if len(token) > LARGEST or token.count(".") != 2 or not token.isascii():
        raise TokenError("it is no signed token in compact form")
    header = _object(_decode(token.split(".", 1)[0]), "header")
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in algorithms:
        raise TokenError("alg must be one of " + ", ".join(sorted(algorithms)))
    if "crit" in header or "b64" in header:
        raise TokenError("critical header parameters are not supported")
    if not isinstance(key_id, str) or not 0 < len(key_id) <= 128:
        raise TokenError("the header must name a key in kid")
    key = find_key(key_id, algorithm)
    if key is None:
        raise TokenError("no known key has this kid and fits the algorithm")
    registry = _Registry(algorithms=[algorithm], strict_check_header=False)
    try:
        payload = jws.deserialize_compact(token, key, registry=registry).payload
    except (JoseError, ValueError, TypeError):
        raise TokenError("the signature is wrong") from None
    return _object(payload, "payload")


def text_claim(claims: dict[str, Any], name: str, longest: int = 256) -> str:
    """Return a claim that has to be a text of 1 to `longest` characters; raise TokenError."""
    value = claims.get(name)
    # Half a surrogate pair is a text in JSON and nowhere else.
    whole = isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)
    if not isinstance(value, str) or not whole or not 0 < len(value) <= longest:
        raise TokenError(f"{name} must be a text of 1 to {longest} characters")
    return value


def time_claim(claims: dict[str, Any], name: str) -> float:
    """Return a claim that has to be a NumericDate (RFC 7519 section 2); raise TokenError."""
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        raise TokenError(f"{name} must be seconds since the epoch")
    return float(value)


def check_times(
    claims: dict[str, Any], now: float, *, leeway: float, longest: float = math.inf
) -> float:
    """Check `exp`, and `nbf` and `iat` where given; return `exp`; raise TokenError.

    `leeway` is what clocks may be apart, `longest` how far `exp` may lie ahead, in seconds.
    """
    expires = time_claim(claims, "exp")
    if now >= expires + leeway:
        raise TokenError("exp has passed")
    if expires > now + longest + leeway:
        raise TokenError(f"exp is more than {longest:.0f} s ahead")
    for name in ("nbf", "iat"):
        if name in claims and time_claim(claims, name) > now + leeway:
            raise TokenError(f"{name} is in the future: compare the clocks")
    return expires


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(
            data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        raise TokenError(f"the {what} is not JSON, or says something twice") from None
    if not isinstance(found, dict):
        raise TokenError(f"the {what} is not a JSON object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _no_constant(_name: str) -> float:
    raise ValueError


def _decode(part: str) -> bytes:
    try:
        return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise TokenError("it is no signed token in compact form") from None
