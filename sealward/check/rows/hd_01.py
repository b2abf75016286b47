"""HD-01: processes may do no more than they have to."""

from __future__ import annotations

import re

from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row

_CORE = re.compile(r"^Max core file size\s+(\S+)", re.MULTILINE)


def run(deployment: Deployment, notes: Notes) -> None:
    """Read what Linux says of each process."""
    services = {name: pid for name, pid in deployment.processes().items() if name != "supervisor"}
    missing: dict[str, set[str]] = {}
    for name, pid in services.items():
        status = _fields(deployment.proc(pid, "status"))
        if name != "valkey":
            core = _CORE.search(deployment.proc(pid, "limits"))
            if core is None or core[1] != "0":
                notes.fault(f"{name} may write its memory into a core file")
        if status.get("TracerPid", "0") != "0":
            notes.fault(f"{name} is being traced by another process")
        if status.get("Uid", "0").split()[0] == "0":
            missing.setdefault("runs as root", set()).add(name)
        if status.get("NoNewPrivs") != "1":
            missing.setdefault("may gain privileges", set()).add(name)
        if status.get("Seccomp") != "2":
            missing.setdefault("has no system call filter", set()).add(name)
    notes.held(f"{len(services)} processes: no core file, nobody traces them")
    if missing:
        notes.cannot(
            "the sandbox of the processes is not part of this version: "
            + "; ".join(f"{what}: {', '.join(sorted(who))}" for what, who in missing.items())
        )
    notes.held("none runs as root, none can gain privileges, each has a filter of system calls")


def _fields(status: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in status.splitlines())
    return {name: value.strip() for name, _, value in pairs}


ROW = Row(
    id="HD-01",
    title="Processes are locked down",
    current="45 CFR 164.308(a)(1)(ii)(B)",
    nprm="proposed 45 CFR 164.312 (configuration management)",
    proves="no service may write a core file and none is traced; with a sandbox, that it is there",
    not_proven="the rest of the machine",
    duty="patch and harden the machine, run services under an account of their own",
    run=run,
    writes=False,
)
