"""Wrapped keys that this service keeps itself: of its witness, of revocations and destructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from sealward.api.keys.v1 import rotation_pb2 as pb
from sealward.kit.errors import SealwardError
from sealward.kit.holding import Holder, HolderServicer, Rewrap
from sealward.kit.identity import Identity
from sealward.kit.reasons import Reason
from services.keys.revocations import CONTEXT as REVOCATIONS
from services.keys.rotation import RotationServicer
from services.keys.witness.cosigning import PURPOSE as WITNESS
from services.keys.witness.cosigning import TENANT


class Rewraps(Protocol):
    """Something of this service that moves its own wrapped key on."""

    def rewrap(self) -> bool:
        """Move it on; return whether it was under an older version. Raise SealwardError."""


class OwnHolder:
    """Holder (sealward.kit.holding) of these keys. Their owners ask the provider themselves."""

    def __init__(self, witness: Rewraps, revocations: Rewraps, *others: Rewraps) -> None:
        """`others` have keys of the purpose that the list of revocations has."""
        trust = REVOCATIONS.purpose
        self._owners = {WITNESS: witness, trust: revocations}
        self._owners |= {f"{trust}/{number}": other for number, other in enumerate(others, 2)}

    def places(self, tenant: str, purpose: str) -> Sequence[str]:
        """See Holder. A place has the name of the purpose: each owner has one key."""
        if tenant != TENANT:
            return ()
        return [place for place in self._owners if place.partition("/")[0] == purpose]

    def rewrap(self, places: Sequence[str], rewrap: Rewrap) -> tuple[int, list[str]]:  # noqa: ARG002
        """See Holder."""
        moved, failed = 0, []
        for place in places:
            try:
                moved += self._owners[place].rewrap()
            except SealwardError as error:
                if error.reason is not Reason.SEAL_BROKEN:
                    raise
                failed.append(place)
        return moved, failed


class OwnKeysServicer(HolderServicer):
    """HolderService of the keys service: what others ask it over the wire, it asks itself."""

    def __init__(self, holder: Holder, rotation: RotationServicer, identity: Identity) -> None:
        self._holder = holder
        self._rotation = rotation
        self._identity = identity

    def _call(self, method: str, request: Any) -> Any:
        if method == "ListKeys":
            return self._rotation.listed(self._identity)
        if isinstance(request, pb.ConfirmRewrapRequest):
            return self._rotation.confirm(request)
        raise ValueError("the provider is asked without a call")
