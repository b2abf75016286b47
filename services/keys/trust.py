"""TrustService: messages to the list of revoked certificates and back."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from sealward.api.keys.v1 import trust_pb2
from sealward.api.keys.v1.trust_pb2_grpc import TrustServiceServicer
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.identity import parse_identity
from sealward.kit.joining import spki_sha256
from sealward.kit.reasons import Reason
from services.keys.joining import (
    DEFAULT_SECONDS,
    LONGEST_SECONDS,
    SHORTEST_SECONDS,
    JoinTokens,
)
from services.keys.register import IssuedRow, Register
from services.keys.revocations import REASONS, RevocationList, Revoked

_SERIAL = re.compile(r"[0-9a-f]{1,40}")
_LIMIT = 10_000
_REASON_NUMBERS = {
    text: trust_pb2.RevocationReason.Value(f"REVOCATION_REASON_{text.upper().replace('-', '_')}")
    for text in REASONS
}
_NO_REASON = trust_pb2.REVOCATION_REASON_UNSPECIFIED
_REASON_TEXTS = {number: text for text, number in _REASON_NUMBERS.items()}


class TrustServicer(TrustServiceServicer):
    """The RPCs. Access by identity is checked before."""

    def __init__(
        self,
        register: Register,
        revocations: RevocationList,
        tokens: JoinTokens,
        trust_domain: str,
        join_address: str,
        destructions: Callable[[], int] = lambda: 0,
    ) -> None:
        """`destructions`: how often keys were destroyed so far."""
        self._register = register
        self._tokens = tokens
        self._join_address = join_address
        self._revocations = revocations
        self._destructions = destructions
        self._trust_domain = trust_domain

    def WatchRevocations(
        self, _request: trust_pb2.WatchRevocationsRequest, context: Any
    ) -> Iterator[trust_pb2.WatchRevocationsResponse]:
        """Send the list and its changes until the caller goes."""
        for version, serials in self._revocations.follow(context.is_active):
            yield trust_pb2.WatchRevocationsResponse(
                version=version,
                complete=serials is not None,
                serials=serials or (),
                destructions=self._destructions(),
            )

    def Revoke(self, request: trust_pb2.RevokeRequest, context: Any) -> trust_pb2.RevokeResponse:
        """Revoke a certificate or an identity."""
        if bool(request.serial) == bool(request.spiffe_id):
            raise SealwardError(
                Reason.FIELD_INVALID, "either serial or spiffe_id has to be set", field="serial"
            )
        reason = _REASON_TEXTS.get(request.reason)
        if reason is None:
            raise SealwardError(Reason.FIELD_INVALID, "reason is not known", field="reason")
        serial = request.serial.lower().lstrip("0") if request.serial else ""
        if request.serial and not _SERIAL.fullmatch(serial):
            raise SealwardError(
                Reason.FIELD_INVALID, "serial has 1 to 40 hex digits", field="serial"
            )
        identity = self._identity(request.spiffe_id)
        attributes = call_of(context).attributes
        attributes["target"] = identity or serial
        caller = call_of(context).peer.identity
        if caller.kind != "admin" and (not identity or parse_identity(identity).kind != "user"):
            raise SealwardError(
                Reason.IDENTITY_FORBIDDEN, f"{caller.role} revokes certificates of users alone"
            )
        attributes["revocation_reason"] = reason
        revoked = self._revocations.revoke(reason, serial=serial, identity=identity)
        attributes["count"] = len(revoked)
        if serial and revoked and revoked[0].identity:
            attributes["target"] = f"{revoked[0].identity} {serial}"
        return trust_pb2.RevokeResponse(
            revoked=[self._certificate(self._register.find(r.serial), r) for r in revoked],
            version=self._revocations.version,
        )

    def ListCertificates(
        self, request: trust_pb2.ListCertificatesRequest, _context: Any
    ) -> trust_pb2.ListCertificatesResponse:
        """List what is out, or what was revoked."""
        identity = self._identity(request.spiffe_id)
        revoked = {entry.serial: entry for entry in self._revocations.entries(identity)}
        if request.revoked:
            found = [
                self._certificate(self._register.find(serial), entry)
                for serial, entry in list(revoked.items())[: _LIMIT + 1]
            ]
        else:
            rows = self._register.living(int(time.time()), identity, _LIMIT + 1)
            found = [self._certificate(row, revoked.get(row.serial)) for row in rows]
        return trust_pb2.ListCertificatesResponse(
            certificates=found[:_LIMIT],
            version=self._revocations.version,
            truncated=len(found) > _LIMIT,
        )

    def CreateJoinToken(
        self, request: trust_pb2.CreateJoinTokenRequest, context: Any
    ) -> trust_pb2.CreateJoinTokenResponse:
        """Make a join token."""
        if not self._join_address:
            raise SealwardError(
                Reason.NOT_SUPPORTED,
                "no machine can join: SEALWARD_KEYS_JOIN_ADDRESS is not set",
            )
        seconds = request.ttl_seconds or DEFAULT_SECONDS
        if not SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS:
            raise SealwardError(
                Reason.FIELD_INVALID,
                f"ttl_seconds is {SHORTEST_SECONDS} to {LONGEST_SECONDS}",
                field="ttl_seconds",
            )
        uri = self._identity(request.spiffe_id)
        if not uri:
            raise SealwardError(Reason.FIELD_INVALID, "spiffe_id has to be set", field="spiffe_id")
        call_of(context).attributes["target"] = uri
        authority = self._tokens.authority()
        token, expires_at = self._tokens.make(parse_identity(uri), seconds)
        return trust_pb2.CreateJoinTokenResponse(
            token=token,
            spiffe_id=uri,
            expires_at=expires_at,
            ca_pem=authority.public_bytes(Encoding.PEM).decode("ascii"),
            ca_spki_sha256=spki_sha256(authority),
            join_address=self._join_address,
        )

    def _identity(self, text: str) -> str:
        if not text:
            return ""
        try:
            identity = parse_identity(text)
        except SealwardError:
            identity = None
        if identity is None or identity.trust_domain != self._trust_domain:
            raise SealwardError(
                Reason.FIELD_INVALID,
                f"spiffe_id is spiffe://{self._trust_domain}/<kind>/<name>",
                field="spiffe_id",
            )
        return identity.uri

    @staticmethod
    def _certificate(row: IssuedRow | None, revoked: Revoked | None) -> trust_pb2.Certificate:
        return trust_pb2.Certificate(
            serial=row.serial if row else revoked.serial if revoked else "",
            spiffe_id=row.identity if row else revoked.identity if revoked else "",
            issued_at=row.issued_at if row else 0,
            not_after=row.not_after if row else revoked.until if revoked else 0,
            revoked_at=revoked.revoked_at if revoked else 0,
            reason=_REASON_NUMBERS[revoked.reason] if revoked else _NO_REASON,
        )
