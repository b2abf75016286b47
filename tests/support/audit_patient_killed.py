"""A patient's keys destroyed in two logs by a process that is killed before the n-th change.

`python -m tests.support.audit_patient_killed FOLDER`: for each n a process of its own; prints `step
n`, and `done` when the destruction came to its end first.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import structlog

from services.audit.entry import MAX_PATIENT_BYTES
from services.audit.holds import Holds
from services.audit.indexer import Indexer
from services.audit.patientdestruction import PatientDestruction
from services.audit.retention import Retention, SteadyClock
from tests.support.audit_shards import KillingBackend, Logs
from tests.support.audit_suite import entry_bytes

GONE, STAYS = "MRN-GONE", "MRN-STAYS"
assert len(GONE) < MAX_PATIENT_BYTES


def destruction(logs: Logs, years: int = 0) -> PatientDestruction:
    """What destroys a patient's keys in these logs."""
    clock = SteadyClock()
    holds = Holds(logs.shards)
    retention = Retention(
        logs.shards, logs.parts.backend, holds, structlog.stdlib.get_logger(), years=10, clock=clock
    )
    return PatientDestruction(
        logs.rollover, retention, holds, threading.Lock(), years=years, clock=clock
    )


def killed_at(folder: Path, step: int) -> None:
    """Append to two logs, and die at a step of the destruction."""
    backend = KillingBackend(step)
    logs = Logs(folder, backend=backend)
    logs.append(*(entry_bytes(patient=patient) for patient in (GONE, STAYS) * 3))
    logs.rollover.turn("default")
    logs.append(*(entry_bytes(patient=patient) for patient in (GONE, STAYS) * 3))
    real = Indexer.rebuild

    def rebuild(indexer: Indexer, *arguments: Any) -> bytes:
        backend.step()
        return real(indexer, *arguments)

    Indexer.rebuild = rebuild  # type: ignore[method-assign, assignment]
    backend.armed = True
    destruction(logs).destroy("default", GONE)
    backend.armed = False
    logs.close()
    sys.stdout.write("done\n")
    sys.stdout.flush()


if __name__ == "__main__":
    os.umask(0o077)
    number = 0
    while True:
        number += 1
        sys.stdout.write(f"step {number}\n")
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            killed_at(Path(sys.argv[1]) / str(number), number)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit(os.waitstatus_to_exitcode(status))
