"""Quotas in annotations of policies: how much whom a policy permits may ask. Pure.

    @quota("calls=600/minute, rows=20000/day, concurrent=8")
    @shared_quota("calls=$service.limit/hour")

`@quota` counts each caller alone, `@shared_quota` all whom the policy permits together. An amount
may be a parameter of the caller's membership; one that is missing or no number is 0, so it closes.
Every quota of every policy that permits a call counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

QUOTA, SHARED = "quota", "shared_quota"
CALLS, ROWS, CONCURRENT = "calls", "rows", "concurrent"
PERIODS: Mapping[str, int] = {"minute": 60, "hour": 3600, "day": 86_400}
LARGEST = 10**12

_ITEM = re.compile(
    r"(calls|rows|concurrent)=([0-9]{1,12}|\$[a-z][a-z-]{0,31}\.[a-z][a-z0-9_]{0,31})"
    r"(?:/(minute|hour|day))?"
)
_NUMBER = re.compile(r"[0-9]{1,12}")
_MOST_ITEMS = 16


class PolicyError(Exception):
    """A policy set that cannot be used. The message says where and why; it quotes policies only."""


class Written(NamedTuple):
    """A quota as a policy has it; `amount` is a number or `$role.key`; `seconds` 0 = concurrent."""

    kind: str
    amount: str
    seconds: int
    shared: bool


class Limit(NamedTuple):
    """A quota of one caller's call: at most `amount` in `seconds`, 0 = at the same time."""

    rule: str
    kind: str
    amount: int
    seconds: int
    shared: bool

    @property
    def text(self) -> str:
        """As a policy has it."""
        return f"{self.kind}={self.amount}{period(self.seconds)}"


def written(given: Mapping[str, object], name: str) -> tuple[Written, ...]:
    """Return the quotas among a policy's annotations; raise PolicyError, which names `name`."""
    found: list[Written] = []
    for annotation in (QUOTA, SHARED):
        if annotation not in given:
            continue
        items = [item.strip() for item in str(given[annotation] or "").split(",")]
        for item in items:
            match = _ITEM.fullmatch(item)
            if match is None or (match[1] == CONCURRENT) is (match[3] is not None):
                raise PolicyError(
                    f"{name}: @{annotation} is a list of calls=N/minute, rows=N/hour, calls=N/day, "
                    "concurrent=N …, where N may be $role.name"
                )
            seconds = PERIODS[match[3]] if match[3] else 0
            found.append(Written(match[1], match[2], seconds, annotation == SHARED))
    if len({(w.kind, w.seconds, w.shared) for w in found}) != len(found):
        raise PolicyError(f"{name}: a quota is there twice")
    if len(found) > _MOST_ITEMS:
        raise PolicyError(f"{name}: at most {_MOST_ITEMS} quotas")
    return tuple(found)


def resolve(rule: str, quota: Written, parameters: Mapping[str, str]) -> Limit:
    """Return the quota for a caller with these parameters."""
    amount = quota.amount
    if amount.startswith("$"):
        amount = parameters.get(amount[1:], "")
    number = min(int(amount), LARGEST) if _NUMBER.fullmatch(amount) else 0
    return Limit(rule, quota.kind, number, quota.seconds, quota.shared)


def period(seconds: int) -> str:
    """Return `/minute`, `/hour`, `/day`, or nothing for 0."""
    return next((f"/{name}" for name, length in PERIODS.items() if length == seconds), "")


def loosens(before: tuple[Limit, ...], after: tuple[Limit, ...]) -> bool:
    """Whether a quota of the first is gone from the second, or larger there."""
    amounts = {(q.kind, q.seconds, q.shared): q.amount for q in after}
    return any(amounts.get((q.kind, q.seconds, q.shared), LARGEST + 1) > q.amount for q in before)
