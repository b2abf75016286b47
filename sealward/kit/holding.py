"""Wrapped keys that a service keeps, and how they move on to a newer key-encryption key.

A service that keeps wrapped branch keys implements `Holder`; `HolderServicer` does the rest: asks
the keys service which versions there are, hands over what is kept in batches, tells how far it is,
and confirms when nothing is left under an older version. Killed anywhere, it starts over and skips
what is current.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from sealward.api.common.v1 import holder_pb2
from sealward.api.common.v1.holder_pb2_grpc import HolderServiceServicer
from sealward.api.keys.v1 import rotation_pb2
from sealward.api.keys.v1.rotation_pb2_grpc import RotationServiceStub
from sealward.kit.keysclient import ChannelSource, as_sealward_error
from sealward.seal.context import EncryptionContext

BATCH = 500
"""Wrapped keys in one call: what the keys service takes at a time."""

_CALL_SECONDS = 30.0
_TOLD_FAILURES = 20


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A wrapped branch key, and what it is for."""

    context: EncryptionContext
    wrapped: bytes


Rewrap = Callable[[Sequence[WrappedKey]], list[bytes | None]]
"""Wraps keys of one tenant and purpose anew: the new wrapped key, the same bytes where it is
current, None where it does not open. Raises SealwardError."""


class Holder(Protocol):
    """A service's wrapped keys. Methods raise SealwardError.

    Between the making of a branch key and the moment its wrapped form is kept, `places` waits: what
    it does not name is not kept, or was made later.
    """

    def places(self, tenant: str, purpose: str) -> Sequence[str]:
        """Name every place where a wrapped key of a tenant and purpose is kept.

        The names are told to the operator where a key does not open: opaque ids only.
        """

    def rewrap(self, places: Sequence[str], rewrap: Rewrap) -> tuple[int, list[str]]:
        """Move the keys in some places on, each place whole or not at all.

        Calls `rewrap` once at most, with the keys that are still there, and keeps what is new,
        durably, under the lock that guards these places. Returns how many were moved, and the
        places whose key does not open: they are left as they are.
        """


class Holders:
    """Several holders of one service as one. Each keeps keys of its own."""

    def __init__(self, *holders: Holder) -> None:
        self._holders = holders

    def places(self, tenant: str, purpose: str) -> Sequence[str]:
        """See Holder."""
        return [
            f"{number}/{place}"
            for number, holder in enumerate(self._holders)
            for place in holder.places(tenant, purpose)
        ]

    def rewrap(self, places: Sequence[str], rewrap: Rewrap) -> tuple[int, list[str]]:
        """See Holder. Places of one holder are handed over together."""
        moved, failed = 0, list[str]()
        for number, holder in enumerate(self._holders):
            own = [p.partition("/")[2] for p in places if p.partition("/")[0] == str(number)]
            if own:
                count, bad = holder.rewrap(own, rewrap)
                moved += count
                failed += [f"{number}/{place}" for place in bad]
        return moved, failed


class HolderServicer(HolderServiceServicer):
    """HolderService over a Holder. Access by identity is checked before."""

    def __init__(self, holder: Holder, keys: ChannelSource) -> None:
        self._holder = holder
        self._keys = keys

    def Rewrap(
        self, request: holder_pb2.RewrapRequest, context: grpc.ServicerContext
    ) -> Iterator[holder_pb2.RewrapResponse]:
        """Move keys on, telling how far it is."""
        keks = self._call("ListKeys", rotation_pb2.ListKeysRequest()).keys
        yield holder_pb2.RewrapResponse()
        for kek in keks:
            if request.tenant in ("", kek.tenant) and request.purpose in ("", kek.purpose):
                for state in self._one(kek):
                    if not context.is_active():
                        return
                    yield state

    def _one(self, kek: rotation_pb2.KeyEncryptionKey) -> Iterator[holder_pb2.RewrapResponse]:
        state = holder_pb2.RewrapResponse(
            tenant=kek.tenant, purpose=kek.purpose, version=kek.newest
        )
        # Asked for after the version: what is made from now on is under it, or a newer one. Keys
        # may be copied to another place meanwhile, so it is over when there is no further place.
        looked: set[str] = set()
        while places := [
            p for p in self._holder.places(kek.tenant, kek.purpose) if p not in looked
        ]:
            looked.update(places)
            state.total = len(looked)
            yield from self._move(kek, places, state)
        if not state.failures:
            self._call(
                "ConfirmRewrap",
                rotation_pb2.ConfirmRewrapRequest(
                    tenant=kek.tenant,
                    purpose=kek.purpose,
                    version=kek.newest,
                    count=len(looked),
                ),
            )
            state.confirmed = True
        state.done = True
        yield _copy(state)

    def _move(
        self,
        kek: rotation_pb2.KeyEncryptionKey,
        places: Sequence[str],
        state: holder_pb2.RewrapResponse,
    ) -> Iterator[holder_pb2.RewrapResponse]:
        for start in range(0, len(places), BATCH):
            batch = places[start : start + BATCH]
            moved, failed = self._holder.rewrap(
                batch, lambda keys: self._rewrap(kek.tenant, kek.purpose, keys)
            )
            state.seen += len(batch)
            state.moved += moved
            state.failures += len(failed)
            state.failed.extend(failed[: _TOLD_FAILURES - len(state.failed)])
            if state.seen < state.total:
                yield _copy(state)

    def _rewrap(self, tenant: str, purpose: str, keys: Sequence[WrappedKey]) -> list[bytes | None]:
        answer = self._call(
            "RewrapKeys",
            rotation_pb2.RewrapKeysRequest(
                tenant=tenant,
                purpose=purpose,
                keys=[
                    rotation_pb2.WrappedKey(resource=key.context.resource, wrapped=key.wrapped)
                    for key in keys
                ],
            ),
        )
        return [
            # What was destroyed on purpose stays as it is, and is in nobody's way.
            (new.wrapped or old.wrapped) if new.version or new.destroyed else None
            for old, new in zip(keys, answer.keys, strict=True)
        ]

    def _call(self, method: str, request: Any) -> Any:
        call = getattr(RotationServiceStub(self._keys.get()), method)
        try:
            return call(request, timeout=_CALL_SECONDS, wait_for_ready=True)
        except (grpc.RpcError, ValueError) as error:
            raise as_sealward_error(error) from None


def changed(
    keys: Sequence[WrappedKey], places: Sequence[str], rewrap: Rewrap
) -> tuple[list[tuple[str, bytes]], list[str]]:
    """Call `rewrap` and return what is to be kept, by place, and the places that failed."""
    if not keys:
        return [], []
    answers = list(zip(places, keys, rewrap(keys), strict=True))
    return (
        [(place, new) for place, old, new in answers if new is not None and new != old.wrapped],
        [place for place, _, new in answers if new is None],
    )


def _copy(state: holder_pb2.RewrapResponse) -> holder_pb2.RewrapResponse:
    copy = holder_pb2.RewrapResponse()
    copy.CopyFrom(state)
    return copy
