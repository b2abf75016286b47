"""A keys service without its process: the real embedded provider and the real rotation RPCs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sealward.api.common.v1 import holder_pb2
from sealward.api.keys.v1 import rotation_pb2 as pb
from sealward.kit.chain import ControlCall
from sealward.kit.errors import SealwardError
from sealward.kit.holding import Holder, HolderServicer
from sealward.kit.identity import Peer, parse_identity
from sealward.kit.keysclient import KeyRing
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from sealward.seal.lease import Lease
from sealward.seal.rootkey import UnlockSecret, new_identity
from services.keys.authority import new_authority, utc_now
from services.keys.keystore import open_or_create
from services.keys.keystoreformat import Content
from services.keys.providers.embedded import EmbeddedBranchKeys
from services.keys.rotation import Confirmations, RotationServicer

TD = "sealward.local"
_AUTHORITY = new_authority(TD, utc_now())
_SECRET = new_identity()


class Records:
    """Where events go; `full` = it cannot take any."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, dict[str, Any]]] = []
        self.full = False

    def record(self, event_type: str, outcome: str, **attributes: Any) -> bytes:
        if self.full:
            raise SealwardError(Reason.AUDIT_UNAVAILABLE, "the audit spool is full")
        self.rows.append((event_type, outcome, attributes))
        return b""


def context_as(who: str, method: str = "/sealward.api.keys.v1.RotationService/X") -> Any:
    """The context of a call that this identity (`service/audit`) makes."""
    peer = Peer(parse_identity(f"spiffe://{TD}/{who}"), b"\x01" * 32, "127.0.0.1:1")
    call = ControlCall(method, peer, {}, None, 0, 0.0)
    return SimpleNamespace(sealward_call=call, is_active=lambda: True)


class LocalKeys:
    """Keys in a folder; also a KeySource. `down`: it does not answer."""

    def __init__(self, folder: Path, lease: Lease | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.lease = lease or Lease(300, 900, 1 << 20, 1 << 40)
        self.records = Records()
        self.down = False
        self.calls = 0
        self._folder = folder
        self._open()

    def _open(self) -> None:
        self.keystore, _ = open_or_create(
            self._folder,
            lambda _creating: UnlockSecret(_SECRET),
            lambda deployment: Content(deployment, TD, (_AUTHORITY,)),
        )
        self.provider = EmbeddedBranchKeys(self.keystore)
        self.servicer = RotationServicer(self.provider, Confirmations(), self.records)

    def restart(self) -> None:
        self.keystore.close()
        self._open()

    def close(self) -> None:
        self.keystore.close()

    # --- KeySource ---------------------------------------------------------------------------

    def create(self, context: EncryptionContext, timeout: float) -> tuple[bytes, bytes, Lease]:
        self._answer()
        return (*self.provider.create(context), self.lease)

    def open(
        self, context: EncryptionContext, wrapped: bytes, timeout: float
    ) -> tuple[bytes, Lease]:
        self._answer()
        return self.provider.open(context, wrapped), self.lease

    def _answer(self) -> None:
        self.calls += 1
        if self.down:
            raise SealwardError(Reason.KEYS_UNAVAILABLE, "down", retry_after=1.0)

    # --- rotation ----------------------------------------------------------------------------

    def ring(self) -> KeyRing:
        return KeyRing(self)

    def rotate(self) -> None:
        """A new version of every key."""
        for tenant, purpose in self.provider.names():
            self.provider.rotate(tenant, purpose)

    def retire(self) -> None:
        """Destroy what nobody needs: refused unless every holder has confirmed."""
        for tenant, purpose in self.provider.names():
            newest = self.provider.versions(tenant, purpose).newest
            request = pb.RetireKeyRequest(tenant=tenant, purpose=purpose, below=newest)
            self.servicer.RetireKey(request, context_as("admin/local"))

    def holder(self, holder: Holder, who: str) -> HolderServicer:
        """The RPC of a holder, with these keys behind it."""
        return _Held(holder, self, who)

    def move(self, holder: Holder, who: str) -> dict[str, holder_pb2.RewrapResponse]:
        """Let a holder move its keys on; return the last answer of each key."""
        answers = self.holder(holder, who).Rewrap(holder_pb2.RewrapRequest(), context_as(who))
        return {f"{a.tenant}/{a.purpose}": a for a in answers if a.done}


class _Held(HolderServicer):
    def __init__(self, holder: Holder, keys: LocalKeys, who: str) -> None:
        self._holder = holder
        self._local = keys
        self._who = who

    def _call(self, method: str, request: Any) -> Any:
        self._local._answer()
        return getattr(self._local.servicer, method)(request, context_as(self._who))


def versions(keys: LocalKeys, wrapped: Sequence[bytes]) -> set[int]:
    """The versions that some wrapped keys are under."""
    return {keys.provider.version_of(one) for one in wrapped}
