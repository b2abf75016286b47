"""Runs rows: each ends with a state, whatever happens in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from sealward.check.deployment import Deployment
from sealward.check.row import Notes, NotTestable, Result, Row, State

READ_ONLY = "it would write, and the check is read-only"


def run(
    deployment: Deployment,
    rows: Iterable[Row],
    told: Callable[[Row], None] = lambda _row: None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Result]:
    """Yield each row's result; `told` is called before a row begins. Never raises for a row."""
    for row in sorted(rows, key=lambda row: row.last):
        told(row)
        began = clock()
        result = _one(deployment, row)
        took = int((clock() - began) * 1000)
        yield Result(row, result.state, result.reason, result.notes, took)


def _one(deployment: Deployment, row: Row) -> Result:
    notes = Notes()
    if deployment.settings.read_only and row.writes:
        return Result(row, State.NOT_TESTABLE, READ_ONLY, notes)
    try:
        row.run(deployment, notes)
    except NotTestable as error:
        return _ended(row, notes, str(error))
    except Exception as error:  # noqa: BLE001 - its text may hold anything: the class has to do
        return _ended(row, notes, f"the row ended with {type(error).__name__}")
    return _ended(row, notes, "")


def _ended(row: Row, notes: Notes, missing: str) -> Result:
    # What was seen to be wrong is wrong, whatever could not be seen after it.
    if notes.faults:
        return Result(row, State.FAILED, "; ".join(notes.faults), notes)
    if missing or not notes.evidence:
        return Result(row, State.NOT_TESTABLE, missing or "nothing could be looked at", notes)
    return Result(row, State.MET, "", notes)
