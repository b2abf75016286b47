"""Metrics of leased keys: served from memory, refused at a bound, asked of the keys service."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Held = tuple[str, float]
"""Purpose of a key, and seconds until it is forgotten unless renewed; at most 0 = it is gone."""


class LeaseMetrics:
    """sealward.kit.keysclient.RingMetrics over a registry.

    Labels: `purpose` from the table of grants; `outcome` of a use is `served` or the bound that
    refused it (`time`, `messages`, `bytes`, `forgotten`); a request is `create`, `open` or `renew`,
    and ends `ok`, `failed` (no answer) or `refused` (the key is destroyed or taken away).
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._uses = Counter(
            "sealward_key_uses", "Uses of leased keys; none of them asks the keys service",
            ["purpose", "outcome"], registry=registry,
        )  # fmt: skip
        self._requests = Counter(
            "sealward_key_requests", "What the keys service was asked for",
            ["purpose", "kind", "outcome"], registry=registry,
        )  # fmt: skip

    def uses(self, purpose: str) -> Callable[[], None]:
        """Return what counts one served use."""
        counted: Callable[[], None] = self._uses.labels(purpose, "served").inc
        return counted

    def refused(self, purpose: str, bound: str) -> None:
        """Count a use that a bound refused."""
        self._uses.labels(purpose, bound).inc()

    def asked(self, purpose: str, kind: str, outcome: str) -> None:
        """Count a request and how it ended."""
        self._requests.labels(purpose, kind, outcome).inc()

    def follow(self, held: Callable[[], Iterable[Held]]) -> None:
        """Show the keys that a ring holds, at each scrape."""
        self._registry.register(_Leases(held))


class _Leases(Collector):
    def __init__(self, held: Callable[[], Iterable[Held]]) -> None:
        self._held = held

    def collect(self) -> Iterator[Metric]:
        leases = GaugeMetricFamily(
            "sealward_key_leases", "Keys that are held under a lease", labels=["purpose", "state"]
        )
        left = GaugeMetricFamily(
            "sealward_key_lease_seconds",
            "Time until the first key of a purpose is forgotten unless it is renewed",
            labels=["purpose"],
        )
        shortest: dict[str, float] = {}
        counts: dict[tuple[str, str], int] = {}
        for purpose, seconds in self._held():
            state = "live" if seconds > 0 else "lost"
            counts[purpose, state] = counts.get((purpose, state), 0) + 1
            shortest[purpose] = min(max(0.0, seconds), shortest.get(purpose, seconds))
        for names, count in counts.items():
            leases.add_metric(names, count)
        for purpose, seconds in shortest.items():
            left.add_metric([purpose], seconds)
        return iter((leases, left))
