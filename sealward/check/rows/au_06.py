"""AU-06: the record is kept for six years at least."""

from __future__ import annotations

import time

from sealward.api.audit.v1 import logs_pb2
from sealward.check import questions
from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row

# Six years, two of them leap years at the most.
SIX_YEARS = (6 * 365 + 1) * 86400 * 1_000_000_000
_DAY = 86400 * 1_000_000_000
_ENDED = frozenset({logs_pb2.LOG_STATE_FROZEN, logs_pb2.LOG_STATE_ARCHIVED})
_REFUSED = frozenset({"LOG_STATE", "LOG_RETAINED"})


def run(deployment: Deployment, notes: Notes) -> None:
    """Read until when each ended log is kept; try to destroy what has to be kept."""
    reply = questions.asked(
        deployment, "audit", f"{questions.LOGS}ListLogs", logs_pb2.ListLogsRequest()
    )
    logs = logs_pb2.ListLogsResponse.FromString(reply.body).logs
    for log in logs:
        if log.state == logs_pb2.LOG_STATE_PURGED:
            notes.limit(f"{log.origin} was destroyed: its last entries cannot be dated here")
        elif log.state == logs_pb2.LOG_STATE_CURRENT:
            _try(deployment, notes, log.origin)
        elif log.state in _ENDED:
            kept = log.retained_until_unix_nano - log.last_unix_nano
            notes.check(
                kept >= SIX_YEARS,
                f"{log.origin} is kept {kept // (365 * _DAY)} years after its last entry",
                f"{log.origin} is kept less than six years",
            )
            if log.retained_until_unix_nano > time.time_ns() + _DAY:
                _try(deployment, notes, log.origin)
    if not any(log.state in _ENDED for log in logs):
        notes.cannot(
            "no log has ended yet: until when one is kept is told when it does "
            "(sealward audit logs freeze)"
        )


def _try(deployment: Deployment, notes: Notes, origin: str) -> None:
    # Only what must not be destroyed is asked for: a log whose time is over would be.
    request = logs_pb2.PurgeRequest(origin=origin, confirm=origin)
    reply = deployment.call("audit", f"{questions.LOGS}Purge", request.SerializeToString())
    notes.check(
        reply.reason in _REFUSED,
        f"{origin} cannot be destroyed before its time ({reply.said})",
        f"{origin} was destroyed before its time" if reply.ok else f"asked to purge: {reply.said}",
    )


ROW = Row(
    id="AU-06",
    title="The record is kept for six years at least",
    current="45 CFR 164.316(b)(2)(i)",
    nprm="proposed 45 CFR 164.316 (retention)",
    proves="each log that has ended says that it is kept six years after its last entry, and "
    "cannot be destroyed before",
    not_proven="that disks live that long; the rule is about documentation, audit logs are the "
    "usual reading of it",
    duty="keep copies apart, place holds when a lawsuit is near, know the state's own times",
    run=run,
)
