"""Metrics of the gateway. Every name stands here."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class GatewayMetrics:
    """Counters of one process. No label carries an id."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._broken_glass = Counter(
            "sealward_gateway_break_glass", "Times that the glass was broken, by reason",
            ["reason"], registry=registry,
        )  # fmt: skip

    def glass_broken(self, reason: str) -> None:
        """Count one emergency, by its reason code."""
        self._broken_glass.labels(reason).inc()
