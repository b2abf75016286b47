"""AuthorityService: messages to the succession of authorities and back."""

from __future__ import annotations

from typing import Any

from cryptography import x509

from sealward.api.keys.v1 import authority_pb2 as pb
from sealward.api.keys.v1.authority_pb2_grpc import AuthorityServiceServicer
from services.keys.providers.base import CertificateAuthority, TrustedAuthority
from services.keys.succession import Succession, fingerprint

_STATES = {
    "next": pb.AUTHORITY_STATE_NEXT,
    "issuing": pb.AUTHORITY_STATE_ISSUING,
    "leaving": pb.AUTHORITY_STATE_LEAVING,
}


class AuthorityServicer(AuthorityServiceServicer):
    """The RPCs. Access by identity is checked before."""

    def __init__(self, authority: CertificateAuthority, succession: Succession) -> None:
        self._authority = authority
        self._succession = succession

    def GetAuthority(
        self, _request: pb.GetAuthorityRequest, _context: Any
    ) -> pb.GetAuthorityResponse:
        """How it stands."""
        return pb.GetAuthorityResponse(status=self._status())

    def RotateAuthority(
        self, request: pb.RotateAuthorityRequest, _context: Any
    ) -> pb.RotateAuthorityResponse:
        """Begin a replacement, or hurry the one that is under way."""
        self._succession.begin(now=request.now)
        return pb.RotateAuthorityResponse(status=self._status())

    def RenewCertificates(
        self, _request: pb.RenewCertificatesRequest, _context: Any
    ) -> pb.RenewCertificatesResponse:
        """Have every service renew."""
        return pb.RenewCertificatesResponse(renew_before=self._succession.renew())

    def _status(self) -> pb.AuthorityStatus:
        standing = self._succession.standing()
        return pb.AuthorityStatus(
            authorities=[_to_proto(one) for one in self._authority.authorities()],
            since=standing.since,
            next_step=standing.next_step,
            now=standing.now,
            holders=[
                pb.CertificateHolder(
                    spiffe_id=follower.peer.identity.uri,
                    spki_sha256=follower.peer.spki_sha256,
                    has_bundle=has_bundle,
                    has_certificate=has_certificate,
                )
                for follower, has_bundle, has_certificate in standing.followers
            ],
        )


def _to_proto(authority: TrustedAuthority) -> pb.Authority:
    certificate = x509.load_pem_x509_certificate(authority.certificate_pem)
    return pb.Authority(
        fingerprint=fingerprint(authority.certificate_pem),
        state=_STATES[authority.state],
        not_before=int(certificate.not_valid_before_utc.timestamp()),
        not_after=int(certificate.not_valid_after_utc.timestamp()),
    )
