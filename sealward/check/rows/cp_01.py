"""CP-01: what is lost comes back from a backup."""

from __future__ import annotations

import time

from sealward.api.keys.v1 import backup_pb2
from sealward.check import questions
from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row

_STATE = f"{questions.KEYS}BackupService/GetBackupState"
NPRM_SECONDS = 48 * 3600


def run(deployment: Deployment, notes: Notes) -> None:
    """Drill the keystore's backup; of the rest say that it is not drilled yet."""
    reply = deployment.call("keys", _STATE)
    if reply.code == "UNIMPLEMENTED":
        notes.cannot("the keys are in Vault: drill Vault's own snapshots, and the folder's backup")
    if not reply.ok:
        notes.cannot(f"the keys service does not say how the backups are: {reply.said}")
    state = backup_pb2.GetBackupStateResponse.FromString(reply.body)
    if deployment.settings.profile == "nprm":
        age = time.time() - state.backup_made_at
        notes.check(
            bool(state.backup_made_at) and age <= NPRM_SECONDS,
            "the newest backup of the keystore is at most 48 hours old",
            "there is no backup of the keystore of the last 48 hours",
        )
    if state.drill_made_at and not state.drill_passed:
        notes.fault("the last drill of the keystore's backup failed")
    code, found = deployment.sealward("keys", "drill")
    if code == 0 and found.get("passed"):
        notes.held("a backup of the keystore was restored into an empty folder and opened a canary")
    elif code == 1:
        notes.fault("a backup of the keystore does not open")
    notes.cannot(
        "the keystore's backup was drilled; a backup of the whole deployment and its restore on an "
        "empty host are not part of this version"
    )


ROW = Row(
    id="CP-01",
    title="Backups are made, and restoring them is tried",
    current="45 CFR 164.308(a)(7)(ii)(A), (B), (D)",
    nprm="proposed 45 CFR 164.308(a) (contingency: backup at most 48 hours old, restored in 72)",
    proves="a backup of the keystore opens a canary in an empty folder",
    not_proven="everything else: the row is never green before the whole deployment is drilled",
    duty="back up the folder, keep copies elsewhere, say what comes back first",
    run=run,
)
