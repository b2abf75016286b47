"""The policy engine: Cedar (https://www.cedarpolicy.com), by its Rust implementation.

Policies, schema and the purposes are parsed once. What was decided is kept, because the same few
questions come again and again; a policy set never changes while the object lives.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cedarpy
from cedarpy import pst

from sealward.kit.errors import StartupError
from services.gateway.policy import limits, restrictions, schema
from services.gateway.policy.interface import (
    NO_FACTS,
    NO_RULE,
    RULE_FAILED,
    Decision,
    Facts,
    PolicyError,
)
from services.gateway.policy.profiles import with_profile
from services.gateway.purposes import PURPOSES

SHIPPED = Path(__file__).with_name("shipped.cedar")
LARGEST = 1 << 20
"""Bytes that the text of a policy set may have."""

_RULE_ID = re.compile(r"[a-z][a-z0-9-]{0,63}")
_CAPACITY = 4096
_PREDICTION = "ModelInfer"
_SAID_AT_MOST = 600


class CedarPolicy:
    """A validated policy set. Thread-safe."""

    def __init__(self, text: str) -> None:
        """Parse and validate; raise PolicyError that says what is wrong with it, and where."""
        if len(text.encode()) > LARGEST:
            raise PolicyError(f"the policy set has more than {LARGEST} bytes")
        self.text = text
        self._digest = hashlib.sha256(text.encode()).hexdigest()
        self._schema = cedarpy.Schema.from_str(schema.schema_text())
        try:
            self._policies = cedarpy.PolicySet.from_str(text)
            parsed = self._policies.to_pst()
        except ValueError as error:
            # The parser's own words, about the operator's own file.
            raise PolicyError(_said("the policy set cannot be read", str(error))) from None
        checked = cedarpy.validate_policies(text, self._schema)
        if not checked.validation_passed:
            raise PolicyError(
                _said("the policy set does not fit the schema", str(checked.errors[0]))
            )
        self._ids = _rule_ids(parsed)
        self.rules = tuple(self._ids.values())
        """The ids of the rules, in the order of the text."""
        named = set(pst.entity_uids(parsed))
        _check_purposes(named)
        self._outputs = {
            given: restrictions.outputs_of(parsed.static_policies[name].annotations, name)
            for name, given in self._ids.items()
        }
        self._quotas = {
            given: limits.written(parsed.static_policies[name].annotations, name)
            for name, given in self._ids.items()
        }
        self._counts = any(self._quotas.values())
        self._withholds = any(items is not None for items in self._outputs.values())
        # A question is the same one whatever parameters its caller has, if none is read.
        self._reads_parameters = any(mark in text for mark in ("getTag", "hasTag", "$"))
        # Unless a policy names somebody, it makes no difference who asks.
        self._names_people = bool({uid.type.basename for uid in named} & {"User", "Workload"})
        self.named = frozenset((uid.type.basename, uid.id) for uid in named)
        """What policies name, by type and id: `("Model", "heart")`, `("Purpose", "TREAT")` …"""
        self._parsed = parsed
        self._base = cedarpy.Entities.from_json_str(schema.entities_json())
        self._principals: dict[tuple[object, ...], cedarpy.Entities] = {}
        self._known: dict[tuple[object, ...], Decision] = {}

    @property
    def digest(self) -> str:
        """See Policy."""
        return self._digest

    def decide(
        self, roles: Sequence[str], rpc: str, model: str, purpose: str, facts: Facts = NO_FACTS
    ) -> Decision:
        """See Policy."""
        actor = facts.actor if self._names_people else ""
        key = (
            *(tuple(roles), rpc, model, purpose, actor, facts.kind, facts.granted),
            *(facts.break_glass, facts.patient, facts.second_factor, facts.multi_factor),
            facts.parameters if self._reads_parameters else (),
        )
        known = self._known.get(key)
        if known is None:
            known = self._decide(tuple(roles), rpc, model, purpose, facts, actor)
            if len(self._known) >= _CAPACITY:
                # Model names come from callers: whoever makes them up shall not fill the memory.
                self._known.clear()
            self._known[key] = known
        return known

    def permits(
        self, roles: Sequence[str], rpc: str, model: str, purpose: str, facts: Facts
    ) -> bool:
        """See Policy."""
        return self.decide(roles, rpc, model, purpose, facts).permitted

    def deciding(
        self, roles: Sequence[str], rpc: str, model: str, purpose: str, facts: Facts = NO_FACTS
    ) -> list[str]:
        """Return the ids of all policies that made a decision, in the order of the text."""
        actor = facts.actor if self._names_people else ""
        return self._evaluate(tuple(roles), rpc, model, purpose, facts, actor)[1]

    def rule(self, rule_id: str) -> tuple[str, str]:
        """Return effect and formatted text of a policy; raise KeyError for an unknown id."""
        name = next((n for n, given in self._ids.items() if given == rule_id), None)
        if name is None:
            raise KeyError(rule_id)
        policy = self._parsed.static_policies[name]
        nothing: pst.FrozenMap[str, pst.Template] = pst.FrozenMap()
        alone = pst.PolicySet(nothing, pst.FrozenMap({name: policy}), ())
        text = cedarpy.format_policies(str(cedarpy.PolicySet.from_pst(alone)))
        return str(policy.effect).lower(), text

    def _decide(
        self, roles: tuple[str, ...], rpc: str, model: str, purpose: str, facts: Facts, actor: str
    ) -> Decision:
        permitted, rules = self._evaluate(roles, rpc, model, purpose, facts, actor)
        outputs = None
        quotas: tuple[limits.Limit, ...] = ()
        if permitted and self._counts and rpc == _PREDICTION:
            quotas = self._limited(rules, facts.parameters)
        if permitted and self._withholds and rpc == _PREDICTION:
            outputs = self._released(rules, facts)
        # The first of the text, so that the same question names the same rule on every gateway.
        return Decision(permitted, rules[0] if rules else NO_RULE, self._digest, outputs, quotas)

    def _limited(
        self, rules: Iterable[str], parameters: tuple[tuple[str, str], ...]
    ) -> tuple[limits.Limit, ...]:
        """Return every quota of the policies that permit."""
        values = dict(parameters)
        return tuple(
            limits.resolve(rule, quota, values) for rule in rules for quota in self._quotas[rule]
        )

    def quotas_of(self, roles: Sequence[str], who: Facts) -> set[limits.Limit]:
        """See Policy."""
        if not self._counts:
            return set()
        models = [name for kind, name in self.named if kind == "Model"]
        other = next(n for n in (f"other-{i}" for i in itertools.count()) if n not in models)
        found: set[limits.Limit] = set()
        for model, purpose, granted, glass in itertools.product(
            [*models, other], sorted(PURPOSES), (False, True), (False, True)
        ):
            facts = replace(
                who, granted=granted, break_glass=glass, patient=True, second_factor=True
            )
            # Not kept: so many at once would push out what callers ask again and again.
            decided = self._decide(tuple(roles), _PREDICTION, model, purpose, facts, who.actor)
            found.update(decided.quotas)
        return found

    def _released(self, rules: Sequence[str], facts: Facts) -> frozenset[str] | None:
        """Return what the policies that permit release together; None for everything."""
        found: frozenset[str] = frozenset()
        parameters = dict(facts.parameters)
        for rule in rules:
            items = self._outputs[rule]
            if items is None:
                return None
            found |= restrictions.resolve(items, parameters)
        return found

    def _evaluate(
        self, roles: tuple[str, ...], rpc: str, model: str, purpose: str, facts: Facts, actor: str
    ) -> tuple[bool, list[str]]:
        if rpc not in schema.POLICY_RPCS or (purpose and purpose not in PURPOSES):
            return False, []
        context: dict[str, Any] = {
            "granted": facts.granted,
            "breakGlass": facts.break_glass,
            "patient": facts.patient,
            "secondFactor": facts.second_factor,
            "multiFactor": facts.multi_factor or facts.second_factor,
        }
        if purpose:
            context["purpose"] = {"__entity": {"type": "Purpose", "id": purpose}}
        result = cedarpy.is_authorized(
            {
                "principal": {"type": schema.principal_type(facts.kind), "id": actor},
                "action": {"type": "Action", "id": rpc},
                "resource": {"type": "Model", "id": model} if model else schema.DEPLOYMENT,
                "context": context,
            },
            self._policies,
            self._entities(facts.kind, actor, roles, facts.parameters),
            self._schema,
        )
        if result.diagnostics.errors:
            # Cedar skips a policy that fails; one that would have forbidden must not be skipped.
            return False, [RULE_FAILED]
        reasons = set(result.diagnostics.reasons)
        return result.allowed, [rule for name, rule in self._ids.items() if name in reasons]

    def _entities(
        self,
        kind: str,
        actor: str,
        roles: tuple[str, ...],
        parameters: tuple[tuple[str, str], ...],
    ) -> cedarpy.Entities:
        if not self._reads_parameters:
            parameters = ()
        key = (kind, actor, roles, parameters)
        found = self._principals.get(key)
        if found is None:
            if len(self._principals) >= _CAPACITY:
                self._principals.clear()
            found = self._base.with_added_json_str(
                schema.principal_json(kind, actor, roles, parameters)
            )
            self._principals[key] = found
        return found


def load_policy(path: Path | None, profile: str = "") -> CedarPolicy:
    """Read the policy set in `path`, or the shipped one, with a profile; raise StartupError."""
    try:
        text = (path or SHIPPED).read_text(encoding="utf-8")
        return CedarPolicy(with_profile(text, profile) if profile else text)
    except (OSError, UnicodeDecodeError):
        raise StartupError("the policy file cannot be read") from None
    except PolicyError as error:
        raise StartupError(f"the policy file is refused: {error}") from None


def _rule_ids(parsed: pst.PolicySet) -> dict[str, str]:
    """Return the parser's name of each policy with the id that it gives itself."""
    if parsed.templates:
        raise PolicyError("templates are not used here: write policies")
    found: dict[str, str] = {}
    for name, policy in parsed.static_policies.items():
        given = policy.annotations.get("id")
        if not isinstance(given, str) or not _RULE_ID.fullmatch(given):
            raise PolicyError(f"{name}: every policy has an @id that matches {_RULE_ID.pattern}")
        if given in found.values():
            raise PolicyError(f'two policies have the @id "{given}"')
        permits = str(policy.effect).lower() == "permit"
        restrictions.check_names(policy.annotations, name, permits=permits)
        if given in (NO_RULE, RULE_FAILED):
            raise PolicyError(f'"{given}" is kept for decisions that no policy made')
        found[name] = given
    return found


def _check_purposes(named: Iterable[pst.EntityUid]) -> None:
    """Refuse purposes that do not exist: the schema cannot list entities that have groups."""
    known = {"Purpose": PURPOSES, "PurposeGroup": schema.PURPOSE_GROUPS}
    for uid in sorted(named, key=str):
        if uid.id not in known.get(uid.type.basename, (uid.id,)):
            raise PolicyError(f"{uid} does not exist")


def _said(what: str, why: str) -> str:
    words = " ".join(why.split())
    return f"{what}: {words[:_SAID_AT_MOST]}"
