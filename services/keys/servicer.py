"""KeysService: messages to domain calls and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sealward.api.keys.v1 import keys_pb2
from sealward.api.keys.v1.keys_pb2_grpc import KeysServiceServicer
from sealward.kit.chain import call_of, peer_of
from sealward.kit.errors import SealwardError
from sealward.kit.identity import Identity
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from sealward.seal.errors import ContextError
from sealward.seal.lease import Lease
from services.keys import grants
from services.keys.profiles import Lives, identity_to_certify, parse_der_request, profile_of
from services.keys.providers.base import BranchKeys
from services.keys.revocations import Issuance
from services.keys.succession import Succession

_LARGEST_WRAPPED = 4096
_LARGEST_REQUEST = 16 << 10


class KeysServicer(KeysServiceServicer):
    """The RPCs. Access by identity is checked before; who may have which purpose, here."""

    def __init__(
        self,
        branches: BranchKeys,
        authority: Issuance,
        lease: Lease,
        lives: Lives,
        succession: Succession,
        destroyed: Callable[[str, str], int] = lambda _tenant, _purpose: 0,
    ) -> None:
        """`destroyed`: the newest version of a key that was destroyed on purpose."""
        self._branches = branches
        self._authority = authority
        self._lease = keys_pb2.Lease(
            soft_seconds=int(lease.soft_seconds),
            hard_seconds=int(lease.hard_seconds),
            max_messages=lease.max_messages,
            max_bytes=lease.max_bytes,
        )
        self._lives = lives
        self._succession = succession
        self._destroyed = destroyed

    def CreateBranchKey(
        self, request: keys_pb2.CreateBranchKeyRequest, context: Any
    ) -> keys_pb2.CreateBranchKeyResponse:
        """Make a branch key."""
        about = self._granted(request.context, context)
        key, wrapped = self._branches.create(about)
        return keys_pb2.CreateBranchKeyResponse(key=key, wrapped=wrapped, lease=self._lease)

    def OpenBranchKey(
        self, request: keys_pb2.OpenBranchKeyRequest, context: Any
    ) -> keys_pb2.OpenBranchKeyResponse:
        """Open a wrapped branch key."""
        about = self._granted(request.context, context)
        if not 0 < len(request.wrapped) <= _LARGEST_WRAPPED:
            raise SealwardError(
                Reason.FIELD_INVALID,
                f"wrapped must have 1 to {_LARGEST_WRAPPED} bytes",
                field="wrapped",
            )
        through = self._destroyed(about.tenant, about.purpose)
        if through and self._branches.version_of(request.wrapped) <= through:
            raise SealwardError(
                Reason.KEY_DESTROYED, "the key was destroyed: nothing opens what it sealed"
            )
        key = self._branches.open(about, request.wrapped)
        return keys_pb2.OpenBranchKeyResponse(key=key, lease=self._lease)

    def IssueCertificate(
        self, request: keys_pb2.IssueCertificateRequest, context: Any
    ) -> keys_pb2.IssueCertificateResponse:
        """Sign a certificate request."""
        peer = peer_of(context)
        caller: Identity = peer.identity
        identity = identity_to_certify(caller, request.spiffe_id)
        call_of(context).attributes["target"] = identity.uri
        if len(request.csr) > _LARGEST_REQUEST:
            raise SealwardError(
                Reason.FIELD_INVALID, f"csr may have {_LARGEST_REQUEST} bytes", field="csr"
            )
        issued = self._authority.issue(
            profile_of(identity, self._lives), parse_der_request(request.csr), peer
        )
        return keys_pb2.IssueCertificateResponse(
            certificate_pem=issued.chain_pem.decode("ascii"),
            bundle_pem=self._authority.bundle_pem.decode("ascii"),
            not_after=issued.not_after,
        )

    def GetTrustBundle(
        self, request: keys_pb2.GetTrustBundleRequest, context: Any
    ) -> keys_pb2.GetTrustBundleResponse:
        """Return the certificates to trust, and note what the caller has."""
        self._succession.seen(
            peer_of(context),
            request.bundle_sha256,
            certificate_current=request.certificate_current,
        )
        return keys_pb2.GetTrustBundleResponse(
            bundle_pem=self._authority.bundle_pem.decode("ascii"),
            renew_before=self._succession.renew_before,
        )

    def GetStatus(
        self, _request: keys_pb2.GetStatusRequest, _context: Any
    ) -> keys_pb2.GetStatusResponse:
        """Return the state of the provider."""
        condition = self._branches.condition()
        return keys_pb2.GetStatusResponse(
            provider=self._branches.name,
            state=condition.state,
            single_host=self._branches.single_host,
            trouble=condition.trouble,
            since=int(condition.since),
        )

    def _granted(self, about: keys_pb2.EncryptionContext, context: Any) -> EncryptionContext:
        """Read the encryption context and check that the caller may have keys of its purpose."""
        try:
            wanted = EncryptionContext(about.tenant, about.purpose, about.resource)
        except ContextError as error:
            raise SealwardError(Reason.FIELD_INVALID, str(error), field="context") from None
        call_of(context).attributes["target"] = (
            f"{wanted.tenant}/{wanted.purpose}/{wanted.resource}"
        )
        grants.check(peer_of(context).identity, wanted)
        return wanted
