"""Who may do what: deny by default, and the rule that decided is named.

A policy set is a table of rules over role × RPC × model × purpose of use. A rule permits or
forbids; one that forbids beats all that permit; where none matches, the answer is no. The table is
a strict JSON file:

    {"version": 1, "rules": [{"id": "…", "effect": "permit", "roles": ["clinician"],
                              "rpcs": ["ModelInfer"], "models": ["*"], "purposes": ["TREAT"]}]}

`*` stands for all. An RPC that acts on no model matches `models: ["*"]` only, and where an RPC has
no purpose of use the purposes are not looked at.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sealward.kit.access import RPCS
from sealward.kit.errors import StartupError
from services.gateway.purposes import PURPOSES
from services.gateway.users import ROLES

ANY = "*"
NO_RULE = "default-deny"
SHIPPED = Path(__file__).with_name("policy.json")

_SERVICES = ("/inference.GRPCInferenceService/", "/sealward.api.gateway.v1.")
POLICY_RPCS = frozenset(name.rsplit("/", 1)[1] for name in RPCS if name.startswith(_SERVICES))
_RULE_ID = re.compile(r"[a-z][a-z0-9-]{0,63}")
_MODEL = re.compile(r"\*|[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_CAPACITY = 4096


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, by which rule of which policy set (SHA-256 of the file, hexadecimal)."""

    permitted: bool
    rule: str
    digest: str


class Policy(Protocol):
    """Decides. Another engine stands behind the same two members."""

    digest: str

    def decide(self, roles: Sequence[str], rpc: str, model: str, purpose: str) -> Decision:
        """Decide for a caller with these roles. `model` and `purpose` may be empty."""


@dataclass(frozen=True, slots=True)
class _Rule:
    name: str
    permit: bool
    roles: frozenset[str]
    rpcs: frozenset[str]
    models: frozenset[str]
    purposes: frozenset[str]

    def matches(self, roles: Sequence[str], rpc: str, model: str, purpose: str) -> bool:
        return (
            any(role in self.roles for role in roles)
            and (rpc in self.rpcs or ANY in self.rpcs)
            and (model in self.models or ANY in self.models)
            and (not purpose or purpose in self.purposes or ANY in self.purposes)
        )


class TablePolicy:
    """The shipped engine. Decisions are kept; the table never changes while the process lives."""

    def __init__(self, data: bytes) -> None:
        """Read a table; raise StartupError naming what is wrong with it."""
        self.digest = hashlib.sha256(data).hexdigest()
        self._rules = _read(data)
        self._known: dict[tuple[object, ...], Decision] = {}

    def decide(self, roles: Sequence[str], rpc: str, model: str, purpose: str) -> Decision:
        """See Policy."""
        key = (roles, rpc, model, purpose)
        known = self._known.get(key)
        if known is None:
            known = self._decide(roles, rpc, model, purpose)
            if len(self._known) >= _CAPACITY:
                # Model names come from callers: whoever makes them up shall not fill the memory.
                self._known.clear()
            self._known[key] = known
        return known

    def _decide(self, roles: Sequence[str], rpc: str, model: str, purpose: str) -> Decision:
        matching = [rule for rule in self._rules if rule.matches(roles, rpc, model, purpose)]
        for rule in matching:
            if not rule.permit:
                return Decision(False, rule.name, self.digest)
        if matching:
            return Decision(True, matching[0].name, self.digest)
        return Decision(False, NO_RULE, self.digest)


def load_policy(path: Path | None) -> TablePolicy:
    """Read the table in `path`, or the shipped one; raise StartupError."""
    try:
        return TablePolicy((path or SHIPPED).read_bytes())
    except OSError:
        raise StartupError("the policy file cannot be read") from None


def _read(data: bytes) -> tuple[_Rule, ...]:
    try:
        table = json.loads(data, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        raise StartupError("the policy file is not JSON without repeated names") from None
    if (
        not isinstance(table, dict)
        or set(table) != {"version", "rules"}
        or table["version"] != 1
        or not isinstance(table["rules"], list)
    ):
        raise StartupError('the policy file must hold {"version": 1, "rules": [...]}')
    rules = tuple(_rule(number, item) for number, item in enumerate(table["rules"]))
    if len({rule.name for rule in rules}) != len(rules):
        raise StartupError("two rules of the policy file have the same id")
    return rules


def _rule(number: int, item: Any) -> _Rule:
    expected = {"id", "effect", "roles", "rpcs", "models", "purposes"}
    if not isinstance(item, dict) or set(item) != expected:
        raise StartupError(f"policy rule {number} must have exactly {', '.join(sorted(expected))}")
    if not isinstance(item["id"], str) or not _RULE_ID.fullmatch(item["id"]):
        raise StartupError(f"policy rule {number}: id must match {_RULE_ID.pattern}")
    if item["effect"] not in ("permit", "forbid"):
        raise StartupError(f"policy rule {number}: effect must be permit or forbid")

    def names(field: str, known: frozenset[str]) -> frozenset[str]:
        values = item[field]
        if (
            not isinstance(values, list)
            or not values
            or not all(isinstance(value, str) for value in values)
        ):
            raise StartupError(f"policy rule {number}: {field} must be a list of names")
        # `*` for roles would permit roles that do not exist yet.
        wrong = set(values) - known - (set() if field == "roles" else {ANY})
        if wrong or len(set(values)) != len(values):
            raise StartupError(f"policy rule {number}: {field} holds an unknown or repeated name")
        return frozenset(values)

    models = item["models"]
    shaped = (
        frozenset(m for m in models if isinstance(m, str) and _MODEL.fullmatch(m))
        if isinstance(models, list)
        else frozenset()
    )
    return _Rule(
        item["id"],
        item["effect"] == "permit",
        names("roles", frozenset(ROLES)),
        names("rpcs", POLICY_RPCS),
        names("models", shaped),
        names("purposes", PURPOSES),
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("repeated name")
    return found
