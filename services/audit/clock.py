"""Records how the clock stands, beside the checkpoints.

Once at the start, and from then on once for a time in which the log grew by anything else, at most
once a minute: an idle log does not grow by entries about its clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sealward.kit.clock import Reading
from sealward.kit.errors import SealwardError
from services.audit.metrics import AuditMetrics
from services.audit.shards import Shards

EVERY_SECONDS = 60.0


class ClockKeeper:
    """To be called every second. `record(reading, origin, size)` raises SealwardError."""

    def __init__(
        self,
        read: Callable[[], Reading],
        record: Callable[[Reading, str, int], None],
        metrics: AuditMetrics,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._record = record
        self._metrics = metrics
        self._monotonic = monotonic
        self._due = 0.0
        # Entries of all logs when the last one of ours was among them.
        self._seen = -1

    def tick(self, shards: Shards) -> None:
        """Record the clock if it is due."""
        now = self._monotonic()
        if now < self._due:
            return
        entries = sum(shards.current(tenant).log.head[0] for tenant in shards.tenants)
        # The turn of a log begins another one: then there are fewer.
        if entries == self._seen:
            return
        reading = self._read()
        self._show(reading)
        size, origin = shards.current().log.head[0], shards.current().origin
        try:
            self._record(reading, origin, size)
        except SealwardError:
            # The log takes nothing now; it is tried again with the next tick.
            return
        self._seen = entries + 1
        self._due = now + EVERY_SECONDS

    def _show(self, reading: Reading) -> None:
        self._metrics.clock_synchronised.set(reading.synchronised == "yes")
        unknown = float("nan")
        for gauge, value in (
            (self._metrics.clock_offset, reading.offset_us),
            (self._metrics.clock_error, reading.error_us),
        ):
            gauge.set(unknown if value is None else value / 1e6)
