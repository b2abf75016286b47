"""The access review: what each user and workload may do under a policy set. Pure.

Every question that the gateway could be asked is put to the policy set: each RPC, each model, each
purpose. What is permitted only under a fact is told apart: a grant, broken glass, a second factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from sealward.kit.access import OPEN
from services.gateway.emergency import ROLE as EMERGENCY_ROLE
from services.gateway.grants import Access
from services.gateway.policy.cedar import CedarPolicy
from services.gateway.policy.interface import Decision, Facts
from services.gateway.policy.schema import POLICY_RPCS
from services.gateway.purposes import PURPOSES

INFER = "ModelInfer"
_OF_A_MODEL = frozenset({"ModelReady", "ModelMetadata"})


@dataclass(frozen=True, slots=True)
class Subject:
    """A user or workload. Times are in seconds since the epoch."""

    id: str
    name: str
    kind: str
    roles: tuple[str, ...]
    disabled: bool
    created: int
    parameters: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Right:
    """One thing that somebody may do. `how` is standing, grant or emergency."""

    rpc: str
    model: str
    purposes: tuple[str, ...]
    rule: str
    how: str
    second_factor: bool
    expires: int = 0


def rights(
    policy: CedarPolicy, subject: Subject, models: Sequence[str], grants: Iterable[Access]
) -> list[Right]:
    """Return what a subject may do, RPC by RPC. `grants` are those that hold, of this subject."""
    if subject.disabled:
        return []
    facts = Facts(subject.name, subject.kind, parameters=subject.parameters)
    found = list(_control(policy, subject, models, facts))
    for model in models:
        found += _predictions(policy, subject, model, facts, "standing")
    for grant in grants:
        granted = replace(facts, granted=True)
        decision, second = _decide(
            policy, subject.roles, INFER, grant.model, grant.purpose, granted
        )
        if decision.permitted:
            found.append(
                Right(
                    INFER, grant.model, (grant.purpose,), decision.rule, "grant", second,
                    grant.expires,
                )
            )  # fmt: skip
    if EMERGENCY_ROLE in subject.roles:
        # A session under broken glass has this role alone.
        broken = replace(facts, break_glass=True, patient=True)
        alone = replace(subject, roles=(EMERGENCY_ROLE,))
        for model in models:
            found += _predictions(policy, alone, model, broken, "emergency")
    return found


def _control(
    policy: CedarPolicy, subject: Subject, models: Sequence[str], facts: Facts
) -> Iterator[Right]:
    for rpc in sorted(POLICY_RPCS - OPEN - {INFER}):
        for model in models if rpc in _OF_A_MODEL else ("",):
            decision, second = _decide(policy, subject.roles, rpc, model, "", facts)
            if decision.permitted:
                yield Right(rpc, model, (), decision.rule, "standing", second)


def _predictions(
    policy: CedarPolicy, subject: Subject, model: str, facts: Facts, how: str
) -> list[Right]:
    """Return one right for each rule, with all purposes that it permits."""
    by_rule: dict[tuple[str, bool], list[str]] = {}
    for purpose in sorted(PURPOSES):
        decision, second = _decide(policy, subject.roles, INFER, model, purpose, facts)
        if decision.permitted:
            by_rule.setdefault((decision.rule, second), []).append(purpose)
    return [
        Right(INFER, model, tuple(purposes), rule, how, second)
        for (rule, second), purposes in by_rule.items()
    ]


def _decide(
    policy: CedarPolicy, roles: Sequence[str], rpc: str, model: str, purpose: str, facts: Facts
) -> tuple[Decision, bool]:
    """Decide without a second factor; when that is refused, with one (then True)."""
    plain = policy.decide(roles, rpc, model, purpose, facts)
    if plain.permitted:
        return plain, False
    proven = policy.decide(roles, rpc, model, purpose, replace(facts, second_factor=True))
    return proven, proven.permitted
