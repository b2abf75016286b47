"""Sets of public keys (JWKS, RFC 7517 section 5): read and checked. Pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from services.gateway.tokens import Key

LARGEST = 64 << 10
"""Bytes that a set may have."""
MOST_KEYS = 64
_SHORTEST_RSA = 2048
_LONGEST_RSA = 8192
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})

KINDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "RS256": ("RSA", ""),
        "RS384": ("RSA", ""),
        "ES256": ("EC", "P-256"),
        "ES384": ("EC", "P-384"),
    }
)
"""Algorithm → type and curve of its keys (RFC 7518 section 3.1)."""

_MEMBERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"RSA": ("n", "e"), "EC": ("crv", "x", "y")}
)


class JwksError(Exception):
    """A set of keys that cannot be used. The text names what is wrong and quotes no key."""


def read_jwks(data: bytes, algorithms: Collection[str], *, strict: bool) -> list[dict[str, str]]:
    """Return the public keys of a set, each with `kid` and what makes it; raise JwksError.

    A strict reading is for a set that somebody registers: it refuses what it would not use, and a
    private key above all. Otherwise such keys are left out: providers publish keys for much else.
    """
    if len(data) > LARGEST:
        raise JwksError(f"the set has more than {LARGEST} bytes")
    try:
        keys = json.loads(data)["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise JwksError('it is no JSON object with "keys"') from None
    if not isinstance(keys, list) or not 0 < len(keys) <= MOST_KEYS:
        raise JwksError(f'"keys" must be a list of 1 to {MOST_KEYS} keys')
    found: list[dict[str, str]] = []
    for number, key in enumerate(keys):
        try:
            found.append(_public(key, algorithms))
        except JwksError as error:
            if strict:
                raise JwksError(f"key {number}: {error}") from None
    names = [key["kid"] for key in found]
    if len(set(names)) != len(names):
        raise JwksError("two keys have the same kid")
    return found


def find(keys: Sequence[Mapping[str, str]], key_id: str, algorithm: str) -> Key | None:
    """Return the key of this id that fits the algorithm; None for none."""
    kind, curve = KINDS[algorithm]
    for key in keys:
        if key["kid"] != key_id:
            continue
        if key["kty"] != kind or key.get("crv", "") != curve:
            return None
        return None if key.get("alg", algorithm) != algorithm else _load(dict(key))
    return None


def _public(key: Any, algorithms: Collection[str]) -> dict[str, str]:
    if not isinstance(key, dict):
        raise JwksError("it is no JSON object")
    if _PRIVATE & set(key):
        raise JwksError("it holds a private or a shared key: give the public one")
    kind, curve = str(key.get("kty", "")), str(key.get("crv", ""))
    if (kind, curve) not in {KINDS[name] for name in algorithms}:
        wanted = sorted({f"{kty} {crv}".strip() for kty, crv in (KINDS[n] for n in algorithms)})
        raise JwksError(f"its type must be one of {', '.join(wanted)}")
    if key.get("use", "sig") != "sig":
        raise JwksError('its use must be "sig"')
    algorithm = key.get("alg")
    if algorithm is not None and (
        not isinstance(algorithm, str)
        or algorithm not in algorithms
        or KINDS[algorithm] != (kind, curve)
    ):
        raise JwksError("its alg does not fit")
    kept: dict[str, str] = {"kty": kind, **({} if algorithm is None else {"alg": algorithm})}
    for member in ("kid", *_MEMBERS[kind]):
        value = key.get(member)
        if not isinstance(value, str) or not value:
            raise JwksError(f"it lacks {member}")
        kept[member] = value
    if len(kept["kid"]) > 128:
        raise JwksError("its kid has more than 128 characters")
    _load(kept)
    return kept


def _load(key: dict[str, str]) -> Key:
    try:
        if key["kty"] == "RSA":
            modulus = base64.urlsafe_b64decode(key["n"] + "==")
            bits = int.from_bytes(modulus, "big").bit_length()
            if not _SHORTEST_RSA <= bits <= _LONGEST_RSA:
                raise JwksError(f"an RSA key has {_SHORTEST_RSA} to {_LONGEST_RSA} bits")
            rsa = RSAKey.import_key({**key})
            _ = rsa.public_key
            return rsa
        curve = ECKey.import_key({**key})
        # Only now is it tried whether the point is on the curve.
        _ = curve.public_key
    except (JoseError, ValueError, TypeError, OverflowError):
        raise JwksError("its numbers are no key") from None
    return curve
