"""Questions about policy sets: why, what if, and what would be different. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

from services.gateway.policy.cedar import CedarPolicy
from services.gateway.policy.interface import NO_FACTS, Decision, Facts, opens, same_effect
from services.gateway.policy.schema import POLICY_RPCS
from services.gateway.purposes import PURPOSES, groups_of
from services.gateway.users import ROLES

OTHER_MODEL = "*"
"""Stands for a model that no policy names."""
_PROVEN = Facts(second_factor=True, multi_factor=True)
ALL_OUTPUTS = "*"
"""Stands for every output of a model."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a call asks of a policy set."""

    roles: tuple[str, ...]
    rpc: str
    model: str = ""
    purpose: str = ""
    facts: Facts = NO_FACTS


@dataclass(frozen=True, slots=True)
class Change:
    """A single change of a question with which the answer would be the other one."""

    what: str
    value: str
    rule: str


@dataclass(frozen=True, slots=True)
class Difference:
    """Questions, alike but for their purposes, that two sets decide differently.

    Outputs are those of a prediction that may be released: `*` alone = all, none = refused.
    """

    role: str
    rpc: str
    model: str
    purposes: tuple[str, ...]
    opened: bool
    before_rule: str
    after_rule: str
    before_outputs: tuple[str, ...] = ()
    after_outputs: tuple[str, ...] = ()
    before_quotas: tuple[str, ...] = ()
    after_quotas: tuple[str, ...] = ()


def ask(policy: CedarPolicy, question: Question) -> Decision:
    """Decide."""
    return policy.decide(
        question.roles, question.rpc, question.model, question.purpose, question.facts
    )


def released(decision: Decision, rpc: str) -> tuple[str, ...]:
    """Return the outputs that a decision about a prediction releases; `*` = all."""
    if not decision.permitted or rpc != "ModelInfer":
        return ()
    return (ALL_OUTPUTS,) if decision.outputs is None else tuple(sorted(decision.outputs))


def limited(decision: Decision) -> tuple[str, ...]:
    """Return the quotas that a permitted call counts for, in words."""
    return tuple(
        f"{limit.text}{' shared' if limit.shared else ''} ({limit.rule})"
        for limit in decision.quotas
    )


def changes(policy: CedarPolicy, question: Question) -> list[Change]:
    """Return every single change that would turn the answer round."""
    answer = ask(policy, question).permitted
    found = []
    for what, value, other in _neighbours(question):
        decision = ask(policy, other)
        if decision.permitted is not answer:
            found.append(Change(what, value, decision.rule))
    return found


def _neighbours(question: Question) -> Iterator[tuple[str, str, Question]]:
    for role in ROLES:
        if role in question.roles:
            rest = tuple(r for r in question.roles if r != role)
            yield "role", f"-{role}", replace(question, roles=rest)
        else:
            yield "role", role, replace(question, roles=(*question.roles, role))
    for purpose in sorted(PURPOSES - {question.purpose}):
        yield "purpose", purpose, replace(question, purpose=purpose)
    facts = question.facts
    turned = {
        "granted": replace(facts, granted=not facts.granted),
        "break_glass": replace(facts, break_glass=not facts.break_glass),
        "patient": replace(facts, patient=not facts.patient),
        "second_factor": replace(facts, second_factor=not facts.second_factor),
        "multi_factor": replace(facts, multi_factor=not facts.multi_factor),
    }
    for what, other in turned.items():
        yield what, "yes" if getattr(other, what) else "no", replace(question, facts=other)


def differences(before: CedarPolicy, after: CedarPolicy) -> tuple[list[Difference], int]:
    """Compare two sets over every role, RPC, model and purpose; return how many questions it was.

    What no policy of either set names is decided alike, so one of its kind stands for all: a model
    that neither names is `*`. Each question is asked without a second factor and with one; other
    facts stay at their defaults.
    """
    # Predictions alone have outputs and quotas: no other RPC stands for them.
    named = before.named | after.named | {("Action", "ModelInfer")}
    models = sorted(name for kind, name in named if kind == "Model")
    other = next(n for n in (f"other-{i}" for i in itertools.count()) if n not in models)
    purposes = _alike(PURPOSES, named, "Purpose", groups_of)
    rpcs = _alike(POLICY_RPCS, named, "Action", lambda _rpc: ())
    found: dict[tuple[Any, ...], set[str]] = {}
    compared = 0
    for role, rpc, model in itertools.product(ROLES, rpcs, ["", *models, other]):
        for purpose, others in [("", [""]), *purposes.items()]:
            compared += 1
            for facts in (NO_FACTS, _PROVEN):
                old = before.decide((role,), rpc, model, purpose, facts)
                new = after.decide((role,), rpc, model, purpose, facts)
                if same_effect(old, new):
                    continue
                shown = OTHER_MODEL if model == other else model
                for each in rpcs[rpc]:
                    key = (
                        *(role, each, shown, opens(old, new), old.rule, new.rule),
                        *(released(old, each), released(new, each)),
                        *(limited(old), limited(new)),
                    )
                    found.setdefault(key, set()).update(others)
    rows = [
        Difference(role, rpc, model, tuple(sorted(among)), *rest)
        for (role, rpc, model, *rest), among in found.items()
    ]
    return rows, compared


def _alike(
    values: Iterable[str],
    named: AbstractSet[tuple[str, str]],
    kind: str,
    traits: Callable[[str], tuple[str, ...]],
) -> dict[str, list[str]]:
    """Return values that stand for others: a named one for itself, one for all that are alike."""
    classes: dict[object, list[str]] = {}
    for value in sorted(values):
        key = value if (kind, value) in named else traits(value)
        classes.setdefault(key, []).append(value)
    return {members[0]: members for members in classes.values()}


def added_and_removed(before: Sequence[str], after: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the ids that only the second list has, and those that only the first has."""
    return [n for n in after if n not in before], [n for n in before if n not in after]
