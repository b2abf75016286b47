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
    opened, or stepped up, with one.
    """

    actor: str = ""
    kind: str = "user"
    granted: bool = False
    break_glass: bool = False
    patient: bool = False
    second_factor: bool = False


NO_FACTS = Facts()


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, by which rule of which policy set (SHA-256 of its text, hexadecimal)."""

    permitted: bool
    rule: str
    digest: str


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
