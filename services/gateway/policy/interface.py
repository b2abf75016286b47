"""What the gateway asks of a policy engine, and what it gets. No engine in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.gateway.policy.limits import Limit, PolicyError, loosens

__all__ = [
    "NO_FACTS",
    "NO_RULE",
    "RULE_FAILED",
    "Decision",
    "Facts",
    "Policy",
    "PolicyError",
    "opens",
    "same_effect",
]

NO_RULE = "default-deny"
"""The rule of a decision that no rule made: deny by default."""
RULE_FAILED = "rule-failed"
"""The rule of a decision in which a policy could not be evaluated: closed, whatever others say."""


# One is made for each call; frozen, that would cost three times as much. Nobody changes one.
@dataclass(slots=True, unsafe_hash=True)
class Facts:
    """What else counts in a decision, as the gateway itself knows it; nothing of it is metadata.

    `actor` is the user's or workload's name, `kind` `user` or `workload`. `granted`: a just-in-time
    grant of this actor covers model and purpose now. `break_glass`: the session was opened by
    breaking the glass. `patient`: the call names a patient. `second_factor`: one was proven in the
    session lately; `multi_factor`: at any time. `parameters`: those of the memberships, pairs of
    `role.key` and value, sorted.
    """

    actor: str = ""
    kind: str = "user"
    granted: bool = False
    break_glass: bool = False
    patient: bool = False
    second_factor: bool = False
    parameters: tuple[tuple[str, str], ...] = ()
    multi_factor: bool = False


NO_FACTS = Facts()


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, by which rule of which policy set (SHA-256 of its text, hexadecimal).

    `outputs`: of a prediction that is permitted these outputs may be released; None = all.
    `quotas`: what it counts for.
    """

    permitted: bool
    rule: str
    digest: str
    outputs: frozenset[str] | None = None
    quotas: tuple[Limit, ...] = ()


def same_effect(one: Decision, other: Decision) -> bool:
    """Whether two decisions let the same call through with the same outputs and quotas."""
    mine, others = ({q[1:] for q in decision.quotas} for decision in (one, other))
    return (one.permitted, one.outputs, mine) == (other.permitted, other.outputs, others)


def opens(before: Decision, after: Decision) -> bool:
    """Whether the second decision lets something through that the first does not."""
    if not (before.permitted and after.permitted):
        return after.permitted
    if before.outputs is not None and (
        after.outputs is None or not after.outputs <= before.outputs
    ):
        return True
    return loosens(before.quotas, after.quotas)


class Policy(Protocol):
    """Decides. Deny by default; a rule that forbids beats all that permit."""

    @property
    def digest(self) -> str:
        """SHA-256 of the policy set's text, hexadecimal."""

    def decide(
        self, roles: Sequence[str], rpc: str, model: str, purpose: str, facts: Facts = NO_FACTS
    ) -> Decision:
        """Decide for a caller with these roles. `model` and `purpose` may be empty."""

    def permits(
        self, roles: Sequence[str], rpc: str, model: str, purpose: str, facts: Facts
    ) -> bool:
        """What `decide` would say, asked about no call: nobody counts it."""

    def quotas_of(self, roles: Sequence[str], who: Facts) -> set[Limit]:
        """Return the quotas that some prediction of a caller counts for, whatever else is true.

        Of `who` the actor, the kind and the parameters count.
        """
