"""What the gateway asks of a policy engine, and what it gets. No engine in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

NO_RULE = "default-deny"
"""The rule of a decision that no rule made: deny by default."""
RULE_FAILED = "rule-failed"
"""The rule of a decision in which a policy could not be evaluated: closed, whatever others say."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What else counts in a decision, as the gateway itself knows it; nothing of it is metadata.

    `actor` is the user's or workload's name, `kind` `user` or `workload`. `granted`: a just-in-time
    grant of this actor covers model and purpose now. `break_glass`: the session was opened by
    breaking the glass. `patient`: the call names a patient. `second_factor`: the session was
    opened, or stepped up, with one. `parameters`: those of the actor's memberships, pairs of
    `role.key` and value, sorted.
    """

    actor: str = ""
    kind: str = "user"
    granted: bool = False
    break_glass: bool = False
    patient: bool = False
    second_factor: bool = False
    parameters: tuple[tuple[str, str], ...] = ()


NO_FACTS = Facts()


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, by which rule of which policy set (SHA-256 of its text, hexadecimal).

    `outputs`: of a prediction that is permitted these outputs may be released; None = all.
    """

    permitted: bool
    rule: str
    digest: str
    outputs: frozenset[str] | None = None


def same_effect(one: Decision, other: Decision) -> bool:
    """Whether two decisions let the same call through with the same outputs."""
    return (one.permitted, one.outputs) == (other.permitted, other.outputs)


def opens(before: Decision, after: Decision) -> bool:
    """Whether the second decision lets something through that the first does not."""
    if not (before.permitted and after.permitted):
        return after.permitted
    if before.outputs is None:
        return False
    return after.outputs is None or not after.outputs <= before.outputs


class PolicyError(Exception):
    """A policy set that cannot be used. The message says where and why; it quotes policies only."""


class Policy(Protocol):
    """Decides. Deny by default; a rule that forbids beats all that permit."""

    @property
    def digest(self) -> str:
        """SHA-256 of the policy set's text, hexadecimal."""

    def decide(
        self, roles: Sequence[str], rpc: str, model: str, purpose: str, facts: Facts = NO_FACTS
    ) -> Decision:
        """Decide for a caller with these roles. `model` and `purpose` may be empty."""
