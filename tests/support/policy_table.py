"""A policy set as a plain table: the oracle that the policy engine is compared with.

Role × RPC × model × purpose; forbid beats permit; nothing matches, nothing is permitted. `text`
writes the same table as Cedar policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ANY = "*"


@dataclass(frozen=True)
class Rule:
    """One row; `*` among the RPCs, models or purposes stands for all."""

    name: str
    permit: bool
    roles: frozenset[str]
    rpcs: frozenset[str]
    models: frozenset[str]
    purposes: frozenset[str]

    def matches(self, roles: Sequence[str], rpc: str, model: str, purpose: str) -> bool:
        return (
            any(role in self.roles for role in roles)
            and bool({rpc, ANY} & self.rpcs)
            and (ANY in self.models or (bool(model) and model in self.models))
            and (ANY in self.purposes or (bool(purpose) and purpose in self.purposes))
        )

    def text(self) -> str:
        effect = "permit" if self.permit else "forbid"
        action = "action" if ANY in self.rpcs else f"action in {_set('Action', self.rpcs)}"
        conditions = [f"principal in {_set('Role', self.roles)}"]
        if ANY not in self.models:
            conditions.append(f"{_set('Model', self.models)}.contains(resource)")
        if ANY not in self.purposes:
            among = f"{_set('Purpose', self.purposes)}.contains(context.purpose)"
            conditions.append(f"(context has purpose && {among})")
        scope = "resource" if ANY in self.models else "resource is Model"
        return (
            f'@id("{self.name}")\n{effect} (principal, {action}, {scope})\n'
            f"when {{ {' && '.join(conditions)} }};\n"
        )


@dataclass(frozen=True)
class Table:
    """Rules in their order."""

    rules: tuple[Rule, ...]

    def decide(
        self, roles: Sequence[str], rpc: str, model: str, purpose: str
    ) -> tuple[bool, str | None]:
        """Return whether it is permitted and the rule that decided, None for none."""
        matching = [rule for rule in self.rules if rule.matches(roles, rpc, model, purpose)]
        forbidding = [rule for rule in matching if not rule.permit]
        deciding = forbidding or matching
        return bool(matching) and not forbidding, deciding[0].name if deciding else None

    def text(self) -> str:
        return "\n".join(rule.text() for rule in self.rules)


def _set(kind: str, names: frozenset[str]) -> str:
    return "[" + ", ".join(f'{kind}::"{name}"' for name in sorted(names)) + "]"
