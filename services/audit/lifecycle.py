"""What becomes of the logs: puts retention, holds and their service together, and shows it."""

from __future__ import annotations

import threading
from typing import Protocol

import structlog

from services.audit.backend import Backend
from services.audit.destruction import DestructionServicer
from services.audit.events import OwnEvents
from services.audit.holds import Holds
from services.audit.logadmin import LogAdminServicer
from services.audit.metrics import AuditMetrics
from services.audit.patientdestruction import PatientDestruction
from services.audit.retention import Retention, SteadyClock
from services.audit.rollover import Rollover
from services.audit.segments import KeyRing
from services.audit.settings import AuditSettings
from services.audit.shard import Shard
from services.audit.wrapping import LogKeyHolder


class MovingRing(KeyRing, Protocol):
    """A ring that is told when a key was wrapped anew (sealward.kit.keysclient.KeyRing)."""

    def moved(self, old: bytes, new: bytes) -> None:
        """Renew with another wrapped form from now on."""


class Lifecycle:
    """Retention of all logs. `servicer` serves LogAdminService, `holder` has the wrapped keys.

    `destruction` serves DestructionService.
    """

    def __init__(
        self,
        rollover: Rollover,
        backend: Backend,
        ring: MovingRing,
        wrapping: threading.Lock,
        events: OwnEvents,
        settings: AuditSettings,
        metrics: AuditMetrics,
        logger: structlog.typing.FilteringBoundLogger,
        clock: SteadyClock,
    ) -> None:
        """Compose, and complete what a power cut left half done; raise StartupError."""
        changes = threading.Lock()
        self._rollover = rollover
        self._metrics = metrics
        self._clock = clock
        holds = Holds(rollover.shards)
        self._retention = Retention(
            rollover.shards, backend, holds, logger, years=settings.retention_years, clock=clock
        )
        self._retention.resume()
        rollover.before_turn = lambda shard, _successor: events.by_itself(
            "audit.freeze", shard.origin
        )
        self.servicer = LogAdminServicer(
            rollover,
            self._retention,
            holds,
            events,
            ring,
            overlap_days=settings.key_overlap_days,
            clock=clock,
            changes=changes,
        )
        self.destruction = DestructionServicer(
            rollover,
            holds,
            events,
            changes,
            PatientDestruction(
                rollover,
                self._retention,
                holds,
                wrapping,
                years=settings.patient_years,
                clock=clock,
            ),
        )
        self.holder = LogKeyHolder(rollover, self._retention, wrapping, changes, ring.moved)

    def observe(self) -> None:
        """Set the gauges of the logs. To be called now and then."""
        now = self._clock()
        counts = dict.fromkeys(("current", "frozen", "archived", "purged"), 0)
        for tenant in self._rollover.shards.tenants:
            for shard in self._rollover.shards.all(tenant):
                counts[shard.state] += 1
            started = _started(self._rollover.shards.current(tenant))
            self._metrics.log_age.labels(tenant).set(max(0, now - started) / 1e9 if started else 0)
        for state, count in counts.items():
            self._metrics.logs.labels(state).set(count)
        first = self._retention.next_purge()
        self._metrics.next_purge.set(float("inf") if first is None else (first - now) / 1e9)


def _started(shard: Shard) -> int:
    """Return when a log began, by the id of its first entry (a UUIDv7), 0 for an empty one."""
    if not shard.log.head[0]:
        return 0
    (leaf,) = shard.store.leaves(0, 1)
    return int.from_bytes(leaf[1:7], "big") * 1_000_000
