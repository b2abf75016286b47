"""RotationService: versions of key-encryption keys, and when an old one may be destroyed.

What a holder confirmed is kept in memory only: after a start each holder looks through its keys
once more, which costs little, and a confirmation can never outlive the keystore it was given about.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from sealward.api.keys.v1 import rotation_pb2 as pb
from sealward.api.keys.v1.rotation_pb2_grpc import RotationServiceServicer
from sealward.kit.chain import call_of, peer_of
from sealward.kit.errors import SealwardError
from sealward.kit.identity import Identity
from sealward.kit.reasons import Code, Reason
from sealward.seal.context import EncryptionContext
from sealward.seal.errors import ContextError
from services.keys import grants
from services.keys.providers.base import MAX_REWRAP, BranchKeys
from services.keys.records import Recorder, about_call

_LARGEST_WRAPPED = 4096


class Confirmations:
    """Which versions the holders need no more. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._below: dict[tuple[str, str], int] = {}

    def note(self, tenant: str, purpose: str, version: int) -> None:
        """Note that nothing under a version before this one is needed."""
        with self._lock:
            known = self._below.get((tenant, purpose), 0)
            self._below[tenant, purpose] = max(known, version)

    def below(self, tenant: str, purpose: str) -> int:
        """Return below which version nothing is needed; 0 = nobody has said."""
        with self._lock:
            return self._below.get((tenant, purpose), 0)


class RotationServicer(RotationServiceServicer):
    """The RPCs. Access by identity is checked before; who has which purpose, here."""

    def __init__(
        self,
        branches: BranchKeys,
        confirmations: Confirmations,
        recorder: Recorder,
        destroyed: Callable[[str, str], int] = lambda _tenant, _purpose: 0,
    ) -> None:
        """`destroyed`: the newest version of a key that was destroyed on purpose."""
        self._branches = branches
        self._confirmed = confirmations
        self._recorder = recorder
        self._destroyed = destroyed

    def ListKeys(self, _request: pb.ListKeysRequest, context: Any) -> pb.ListKeysResponse:
        """Every key-encryption key, or those of the caller's purposes."""
        return self.listed(peer_of(context).identity)

    def listed(self, caller: Identity) -> pb.ListKeysResponse:
        """As ListKeys, for a caller."""
        keys = []
        for tenant, purpose in self._branches.names():
            if caller.kind == "service" and purpose not in grants.GRANTS.get(caller.role, ()):
                continue
            found = self._branches.versions(tenant, purpose)
            keys.append(
                pb.KeyEncryptionKey(
                    tenant=tenant,
                    purpose=purpose,
                    lowest=found.lowest,
                    newest=found.newest,
                    made=found.made,
                    holder=grants.holder_of(purpose),
                    confirmed=self._confirmed.below(tenant, purpose),
                )
            )
        return pb.ListKeysResponse(keys=keys)

    def RotateKey(self, request: pb.RotateKeyRequest, context: Any) -> pb.RotateKeyResponse:
        """Make the next version."""
        about = _about(context, request.tenant, request.purpose)
        version = self._branches.rotate(request.tenant, request.purpose)
        call_of(context).attributes["target"] = f"{about}@{version}"
        return pb.RotateKeyResponse(version=version)

    def RewrapKeys(self, request: pb.RewrapKeysRequest, context: Any) -> pb.RewrapKeysResponse:
        """Move branch keys on to the newest version."""
        _about(context, request.tenant, request.purpose)
        if len(request.keys) > MAX_REWRAP:
            raise _invalid(f"at most {MAX_REWRAP} keys at a time", "keys")
        items = [
            (_context(request.tenant, request.purpose, key.resource), _checked(key.wrapped))
            for key in request.keys
        ]
        grants.check_purpose(peer_of(context).identity, request.purpose)
        answers = []
        moved = 0
        through = self._destroyed(request.tenant, request.purpose)
        for (_, old), new in zip(items, self._branches.rewrap(items), strict=True):
            if new is None:
                answers.append(pb.RewrappedKey(destroyed=self._is_destroyed(old, through)))
                continue
            moved += new != old
            answers.append(
                pb.RewrappedKey(
                    wrapped=new if new != old else b"", version=self._branches.version_of(new)
                )
            )
        call_of(context).attributes["count"] = moved
        return pb.RewrapKeysResponse(keys=answers)

    def _is_destroyed(self, wrapped: bytes, through: int) -> bool:
        try:
            return self._branches.version_of(wrapped) <= through
        except SealwardError:
            return False

    def ConfirmRewrap(
        self, request: pb.ConfirmRewrapRequest, context: Any
    ) -> pb.ConfirmRewrapResponse:
        """Note that the holder needs no older version."""
        about = _about(context, request.tenant, request.purpose)
        grants.check_purpose(peer_of(context).identity, request.purpose)
        call_of(context).attributes["target"] = f"{about}@{request.version}"
        call_of(context).attributes["count"] = request.count
        return self.confirm(request)

    def confirm(self, request: pb.ConfirmRewrapRequest) -> pb.ConfirmRewrapResponse:
        """As ConfirmRewrap, of a caller who may."""
        newest = self._branches.versions(request.tenant, request.purpose).newest
        if not 0 < request.version <= newest:
            raise _invalid("there is no such version", "version")
        self._confirmed.note(request.tenant, request.purpose, request.version)
        return pb.ConfirmRewrapResponse()

    def RetireKey(self, request: pb.RetireKeyRequest, context: Any) -> pb.RetireKeyResponse:
        """Destroy older versions, if nobody needs them. The record comes first."""
        about = _about(context, request.tenant, request.purpose)
        call = call_of(context)
        call.attributes["target"] = f"{about}<{request.below}"
        found = self._branches.versions(request.tenant, request.purpose)
        if not 0 < request.below <= found.newest:
            raise _invalid("below is a version that there is; the newest one stays", "below")
        holder = grants.holder_of(request.purpose)
        if request.below > self._confirmed.below(request.tenant, request.purpose):
            raise SealwardError(
                Reason.KEY_IN_USE,
                f"{holder or 'its holder'} has not said that it needs older versions of {about}"
                " no more",
                field="below",
            )
        if request.below > found.lowest:
            self._recorder.record("keys.retire", "ok", code=Code.OK.name, **about_call(call))
            self._branches.retire(request.tenant, request.purpose, request.below)
        found = self._branches.versions(request.tenant, request.purpose)
        return pb.RetireKeyResponse(lowest=found.lowest)


def _about(context: Any, tenant: str, purpose: str) -> str:
    """Check tenant and purpose of a request and name them in its record."""
    _context(tenant, purpose, "any")
    about = f"{tenant}/{purpose}"
    call_of(context).attributes["target"] = about
    return about


def _context(tenant: str, purpose: str, resource: str) -> EncryptionContext:
    try:
        return EncryptionContext(tenant, purpose, resource)
    except ContextError as error:
        raise SealwardError(Reason.FIELD_INVALID, str(error), field="context") from None


def _checked(wrapped: bytes) -> bytes:
    if not 0 < len(wrapped) <= _LARGEST_WRAPPED:
        raise _invalid(f"wrapped must have 1 to {_LARGEST_WRAPPED} bytes", "keys.wrapped")
    return wrapped


def _invalid(message: str, field: str) -> SealwardError:
    return SealwardError(Reason.FIELD_INVALID, message, field=field)
