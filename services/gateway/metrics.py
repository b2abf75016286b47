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

        self._quotas = Counter(
            "sealward_gateway_quota_refused", "Calls that a used-up quota refused",
            ["policy", "kind"], registry=registry,
        )  # fmt: skip

        self._lockouts = Counter(
            "sealward_gateway_lockouts", "Locks after failed logins, by what was locked",
            ["kind"], registry=registry,
        )  # fmt: skip
        # There from the start: the first lock is an increase as well.
        for kind in ("user", "source"):
            self._lockouts.labels(kind)

    def locked(self, kind: str) -> None:
        """Count one lock, of a `user` or a `source`."""
        self._lockouts.labels(kind).inc()

    def quota_refused(self, policy: str, kind: str) -> None:
        """Count one refusal, by the policy's id and `calls`, `rows` or `concurrent`."""
        self._quotas.labels(policy, kind).inc()

    def glass_broken(self, reason: str) -> None:
        """Count one emergency, by its reason code."""
        self._broken_glass.labels(reason).inc()
