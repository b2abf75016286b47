"""Receipts for many events: each against one checkpoint of its log."""

from __future__ import annotations

from collections.abc import Iterable

from sealward.api.audit.v1 import audit_pb2
from services.audit.queries import receipt_of
from services.audit.reading import unavailable
from services.audit.reports.found import Found
from services.audit.shards import Shards
from services.audit.store import StoreError


class Receipts:
    """Collects the checkpoints that the receipts of one answer refer to."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._heads: dict[str, tuple[int, bytes]] = {}

    @property
    def checkpoints(self) -> list[bytes]:
        """The signed checkpoints, one for each log."""
        return [checkpoint for _, checkpoint in self._heads.values()]

    def of(self, found: Iterable[Found]) -> list[audit_pb2.Receipt]:
        """Return the receipts in the order of the events; raise SealwardError."""
        receipts = []
        try:
            for event in found:
                log = self._shards.by_origin(event.origin).log
                size, _ = self._heads.setdefault(event.origin, log.head)
                receipts.append(receipt_of(log.placed(event.place, size)))
        except StoreError:
            raise unavailable() from None
        return receipts
