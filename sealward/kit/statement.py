"""Statements that people sign with the key of their certificate: JWS JSON Serialization (RFC 7515).

One payload, one ES256 signature a person, each with the certificate in its `x5c` header, so that
any JOSE library verifies it. Nothing in here decides whether a certificate is trusted.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from sealward.kit.errors import SealwardError
from sealward.kit.identity import Peer, peer_from_certificate
from sealward.kit.reasons import Reason
from sealward.kit.unreadable import X509_ERRORS

ALGORITHM = "ES256"
LARGEST = 4 << 20
_MOST_SIGNATURES = 8
_UNREADABLE: tuple[type[Exception], ...] = (
    *X509_ERRORS, KeyError, AttributeError, RecursionError, JoseError, SealwardError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Statement:
    """A verified statement: the payload and who signed it, by their certificates."""

    payload: bytes
    signers: tuple[Peer, ...]


def sign(payload: bytes, key_pem: bytes, chain_pem: bytes) -> bytes:
    """Sign a payload with the key of a certificate (P-256); return the statement."""
    leaf = x509.load_pem_x509_certificates(chain_pem)[0]
    der = leaf.public_bytes(serialization.Encoding.DER)
    header = {"alg": ALGORITHM, "x5c": [base64.b64encode(der).decode()]}
    made = jws.serialize_json(
        [{"protected": header}], payload, ECKey.import_key(key_pem), registry=_registry()
    )
    return _dump(cast("dict[str, Any]", made))


def join(statements: Sequence[bytes]) -> bytes:
    """Put the signatures of several statements about the same payload into one."""
    parsed = [_load(statement) for statement in statements]
    return _dump(
        {
            "payload": parsed[0]["payload"],
            "signatures": [entry for one in parsed for entry in one["signatures"]],
        }
    )


def verify(statement: bytes) -> Statement:
    """Verify every signature with the key of its own certificate; raise FIELD_INVALID."""
    value = _load(statement)
    signers = tuple(_signer(value["payload"], entry) for entry in value["signatures"])
    return Statement(_payload(value["payload"]), signers)


class _Registry(jws.JWSRegistry):
    """Sizes of certificates and of policies, where the library expects those of tokens."""

    max_header_length = 8 << 10
    max_payload_length = LARGEST


def _registry() -> _Registry:
    return _Registry(algorithms=[ALGORITHM])


def _signer(payload: str, entry: dict[str, Any]) -> Peer:
    single = {"payload": payload, "signatures": [entry]}
    try:
        # Read before it is verified, only to find the key that has to verify it.
        header = json.loads(_decode(entry["protected"]))
        (der,) = header["x5c"]
        leaf = x509.load_der_x509_certificate(base64.b64decode(der, validate=True))
        spki = leaf.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        key = ECKey.import_key(spki)
        jws.deserialize_json(cast("Any", single), key, registry=_registry())
        return peer_from_certificate(leaf.public_bytes(serialization.Encoding.PEM), "")
    except _UNREADABLE:
        raise _invalid("a signature does not verify with the certificate that it names") from None


def _load(statement: bytes) -> dict[str, Any]:
    if len(statement) > LARGEST:
        raise _invalid(f"a statement has at most {LARGEST} bytes")
    try:
        value = json.loads(statement)
    except (ValueError, RecursionError):
        raise _invalid("it is not JSON") from None
    if (
        not isinstance(value, dict)
        or set(value) != {"payload", "signatures"}
        or not isinstance(value["payload"], str)
        or not isinstance(value["signatures"], list)
        or not 1 <= len(value["signatures"]) <= _MOST_SIGNATURES
        or not all(
            isinstance(entry, dict) and set(entry) == {"protected", "signature"}
            for entry in value["signatures"]
        )
    ):
        raise _invalid("it is not a JWS in JSON Serialization with protected headers alone")
    return value


def _payload(encoded: str) -> bytes:
    try:
        return _decode(encoded)
    except ValueError:
        raise _invalid("the payload is not base64url") from None


def _decode(encoded: str) -> bytes:
    return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _invalid(why: str) -> SealwardError:
    return SealwardError(
        Reason.FIELD_INVALID, f"the signed statement is refused: {why}", field="jws"
    )
