"""What a row of the check is, and what it notes while it looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sealward.check.deployment import Deployment


class State(StrEnum):
    """How a row ended. There is no state for a guess."""

    MET = "met"
    FAILED = "failed"
    NOT_TESTABLE = "not-testable"


class NotTestable(Exception):  # noqa: N818 - not an error of ours: the row says what it lacks
    """A row cannot be tested here. Its text says why; it is written by us and names nobody."""


@dataclass(slots=True)
class Notes:
    """What a row saw. `faults` make it red; without one thing that held it is never green."""

    evidence: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)

    def held(self, text: str) -> None:
        """Note something that is as it has to be."""
        self.evidence.append(text)

    def fault(self, text: str) -> None:
        """Note something that is not as it has to be."""
        self.faults.append(text)

    def check(self, held: bool, text: str, otherwise: str) -> bool:
        """Note `text` when it holds, the fault `otherwise` when not; return which."""
        if held:
            self.held(text)
        else:
            self.fault(otherwise)
        return held

    def limit(self, text: str) -> None:
        """Note what this row did not look at, so that nobody takes it for looked at."""
        self.limits.append(text)

    def cannot(self, text: str) -> NoReturn:
        """End the row: the rest cannot be tested here."""
        raise NotTestable(text)


@dataclass(frozen=True, slots=True)
class Row:
    """One safeguard.

    `current` cites the rule in force, `nprm` the proposed one (90 FR 898); `proves` says what is
    tried, `not_proven` what is not, `duty` what the covered entity still has to do. `writes`: it
    makes principals, calls or files. `last`: it looks back at the others.
    """

    id: str
    title: str
    current: str
    nprm: str
    proves: str
    not_proven: str
    duty: str
    run: Callable[[Deployment, Notes], None]
    writes: bool = True
    last: bool = False

    def rule(self, profile: str) -> str:
        """Return the citation under a profile."""
        return self.nprm if profile == "nprm" else self.current


@dataclass(frozen=True, slots=True)
class Result:
    """How a row ended, and why. `took_ms` in milliseconds."""

    row: Row
    state: State
    reason: str
    notes: Notes
    took_ms: int = 0
