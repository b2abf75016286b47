"""What a policy may say beside its rule, in annotations, and which outputs it releases. Pure.

    @outputs("malignant_probability, $service.outputs")

A permit without it releases every output. `$role.key` stands for a parameter of the caller's
membership in a role (memberships.py), a list too; one that the caller does not have stands for
nothing, so a missing parameter closes and never opens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from services.gateway.policy.interface import PolicyError
from services.gateway.policy.limits import QUOTA, SHARED

OUTPUTS = "outputs"
KNOWN = frozenset({"id", OUTPUTS, QUOTA, SHARED, "description", "doc"})
"""Annotations that a policy may have. A mistyped one is refused: it would open what it closes."""

_OUTPUT = re.compile(r"[A-Za-z_][A-Za-z0-9_./:-]{0,127}")
_PARAMETER = re.compile(r"\$[a-z][a-z-]{0,31}\.[a-z][a-z0-9_]{0,31}")
_MOST_ITEMS = 64


def check_names(given: Mapping[str, object], name: str, *, permits: bool) -> None:
    """Raise PolicyError for an annotation that means nothing, or that a forbid cannot have.

    `name` is what the errors call the policy.
    """
    unknown = sorted(set(given) - KNOWN)
    if unknown:
        raise PolicyError(
            f"{name}: @{unknown[0]} is not known; known are "
            + ", ".join(f"@{known}" for known in sorted(KNOWN))
        )
    if not permits and {OUTPUTS, QUOTA, SHARED} & set(given):
        raise PolicyError(f"{name}: only a permit has outputs and quotas")


def outputs_of(given: Mapping[str, object], name: str) -> tuple[str, ...] | None:
    """Return what `@outputs` among annotations names, None without one; raise PolicyError."""
    if OUTPUTS not in given:
        return None
    items = tuple(_items(str(given[OUTPUTS] or "")))
    if not items or len(items) > _MOST_ITEMS:
        raise PolicyError(f"{name}: @{OUTPUTS} names 1 to {_MOST_ITEMS} outputs, with commas")
    for item in items:
        if not (_PARAMETER if item.startswith("$") else _OUTPUT).fullmatch(item):
            raise PolicyError(f"{name}: @{OUTPUTS} has an item that is no output and no parameter")
    return items


def resolve(items: Iterable[str], parameters: Mapping[str, str]) -> frozenset[str]:
    """Return the outputs that items stand for, for a caller with these parameters."""
    found: set[str] = set()
    for item in items:
        if item.startswith("$"):
            found.update(_items(parameters.get(item[1:], "")))
        else:
            found.add(item)
    return frozenset(found)


def _items(text: str) -> Iterable[str]:
    return filter(None, (part.strip() for part in text.split(",")))
