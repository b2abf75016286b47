"""The policy set in force, exchanged while calls are decided, and the one in its shadow."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from services.gateway.policy.interface import (
    NO_FACTS,
    Decision,
    Facts,
    Policy,
    opens,
    same_effect,
)
from services.gateway.policy.limits import Limit

_MOST_KINDS = 10_000


@dataclass(frozen=True, slots=True)
class Difference:
    """A kind of call that the shadow would have decided otherwise."""

    roles: tuple[str, ...]
    rpc: str
    model: str
    purpose: str
    opened: bool
    rule: str


@dataclass(frozen=True, slots=True)
class Shadow:
    """A policy set that decides beside the one in force. `since` is in seconds since the epoch."""

    policy: Policy
    since: int
    decided: list[int]
    counts: dict[Difference, int]


class LivePolicy:
    """See Policy. Thread-safe: a decision is one set's, whole, however often sets change."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._shadow: Shadow | None = None
        self._lock = threading.Lock()

    @property
    def digest(self) -> str:
        """See Policy."""
        return self._policy.digest

    @property
    def current(self) -> Policy:
        """The set in force."""
        return self._policy

    def exchange(self, policy: Policy) -> None:
        """Put another set in force, at once and for every thread."""
        self._policy = policy

    def decide(
        self, roles: Sequence[str], rpc: str, model: str, purpose: str, facts: Facts = NO_FACTS
    ) -> Decision:
        """See Policy."""
        decision = self._policy.decide(roles, rpc, model, purpose, facts)
        shadow = self._shadow
        if shadow is not None:
            self._compare(shadow, decision, (tuple(roles), rpc, model, purpose), facts)
        return decision

    def permits(
        self, roles: Sequence[str], rpc: str, model: str, purpose: str, facts: Facts
    ) -> bool:
        """See Policy."""
        return self._policy.permits(roles, rpc, model, purpose, facts)

    def quotas_of(self, roles: Sequence[str], who: Facts) -> set[Limit]:
        """See Policy."""
        return self._policy.quotas_of(roles, who)

    def shadow(self, policy: Policy | None) -> None:
        """Let a set decide beside the one in force, counting from zero; None ends that."""
        self._shadow = None if policy is None else Shadow(policy, int(time.time()), [0], {})

    def shadowed(self) -> Shadow | None:
        """Return a copy of what the shadow has seen; None when there is none."""
        shadow = self._shadow
        if shadow is None:
            return None
        with self._lock:
            return Shadow(shadow.policy, shadow.since, list(shadow.decided), dict(shadow.counts))

    def _compare(
        self,
        shadow: Shadow,
        decision: Decision,
        asked: tuple[tuple[str, ...], str, str, str],
        facts: Facts,
    ) -> None:
        roles, rpc, model, purpose = asked
        other = shadow.policy.decide(roles, rpc, model, purpose, facts)
        with self._lock:
            shadow.decided[0] += 1
            if same_effect(other, decision):
                return
            kind = Difference(roles, rpc, model, purpose, opens(decision, other), other.rule)
            # Model names come from callers: whoever makes them up shall not fill the memory.
            if kind in shadow.counts or len(shadow.counts) < _MOST_KINDS:
                shadow.counts[kind] = shadow.counts.get(kind, 0) + 1
