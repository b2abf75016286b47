"""Opens every tenant's logs, and lets one log be followed by the next."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Sequence

from services.audit.backend import Place, Places
from services.audit.entry import DEFAULT_TENANT
from services.audit.origin import LogName, new_name
from services.audit.shard import FINAL, LiveShard, Parts, PastShard
from services.audit.shards import Shards, TenantLogs


class Rollover:
    """The life of the logs: open, turn, close."""

    def __init__(
        self, parts: Parts, places: Places, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self._parts = parts
        self._places = places
        self._clock = clock
        self._shards: Shards | None = None

    @property
    def shards(self) -> Shards:
        """All logs; after `open`."""
        if self._shards is None:
            raise ValueError("the logs are not open")
        return self._shards

    def open(self, tenants: Sequence[str]) -> Shards:
        """Open the logs of the tenants, making what is not there; raise StartupError.

        `default` comes first: the others' names have its deployment id. SealwardError
        KEYS_UNAVAILABLE when the keys service does not answer: then nothing is open.
        """
        opened: dict[str, TenantLogs] = {}
        try:
            for tenant in tenants:
                opened[tenant] = self._open(tenant, opened)
        except Exception:
            for logs in opened.values():
                _close(logs)
            raise
        self._shards = Shards(opened)
        return self._shards

    def start(self) -> None:
        """Begin to publish and to index."""
        for tenant in self.shards.tenants:
            self.shards.current(tenant).start()

    def stop(self, timeout: float) -> None:
        """Publish and index what is left, and release everything."""
        ends = time.monotonic() + timeout
        for tenant in self.shards.tenants:
            logs = self.shards.of(tenant)
            logs.current.stop(max(1.0, ends - time.monotonic()))
            _close(logs)

    def tick(self) -> None:
        """Do what stores, indexes and logs need now and then; raise StoreError."""
        for tenant in self.shards.tenants:
            shard = self.shards.current(tenant)
            shard.store.maintain()
            shard.index.maintain()
            shard.log.probe()

    @property
    def year(self) -> int:
        """The year that it is (UTC)."""
        return dt.datetime.fromtimestamp(self._clock() / 1e9, dt.UTC).year

    def _open(self, tenant: str, opened: dict[str, TenantLogs]) -> TenantLogs:
        place, past = self._find(tenant)
        current = LiveShard(self._parts, place, lambda: self._new_origin(tenant, opened))
        return TenantLogs(tenant, current, past)

    def _find(self, tenant: str) -> tuple[Place, list[PastShard]]:
        """Return where a tenant's current log lies, and its logs that have ended."""
        current = self._places.first if tenant == DEFAULT_TENANT else None
        past = []
        for place in self._places.others(tenant):
            if not self._parts.backend.has_store(place):
                continue
            if self._has_ended(place):
                past.append(PastShard(self._parts, place))
            elif current is None:
                current = place
        return current or self._places.of(tenant, str(self.year)), past

    def _has_ended(self, place: Place) -> bool:
        store = self._parts.backend.store(place, sealed=place.manifest.exists())
        try:
            return store.get(FINAL) is not None
        finally:
            store.close()

    def _new_origin(self, tenant: str, opened: dict[str, TenantLogs]) -> str:
        domain = self._parts.trust_domain
        if tenant == DEFAULT_TENANT:
            return new_name(domain, self.year)
        first = opened[DEFAULT_TENANT].current.name
        return LogName(domain, first.deployment, tenant, str(self.year)).origin


def _close(logs: TenantLogs) -> None:
    logs.current.close()
    for shard in logs.past:
        shard.close()
