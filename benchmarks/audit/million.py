"""A log of a million events: what it takes in memory, to ask, to verify, to start."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.audit.beside import Say
from benchmarks.audit.load import Appender
from benchmarks.audit.services import Services
from benchmarks.audit.spans import entries
from sealward.api.audit.v1 import review_pb2
from sealward.api.audit.v1.review_pb2_grpc import ReviewServiceStub
from sealward.kit.channel import Channels

_IN_FLIGHT = 256
_ASKED = 20


def run(services: Services, events: int, patients: int, say: Say) -> dict[str, Any]:
    """Fill the empty log of running services and measure; the services go on."""
    say(f"a log of {events:,} events")
    appender = Appender(services.credentials("gateway"), services.address, entries(patients))
    elapsed = appender.run(_IN_FLIGHT, count=events)
    appender.close()
    if appender.failed:
        raise SystemExit(f"{appender.failed} entries were refused")
    filled = {
        "events": events,
        "filled_per_second": events / elapsed,
        "memory_mib": sum(measure.memory(services.audit_pid).values()),
        "memory_peak_mib": _peak(services.audit_pid),
    }
    say("one patient's events")
    accounting = _ask(services, patients, access=False)
    access = _ask(services, patients, access=True)
    say("verification")
    verify = _verify(services)
    say("restart")
    services.stop("audit")
    restart = services.start("audit")
    return {
        **filled,
        "accounting_ms": accounting,
        "access_ms": access,
        "verify": verify,
        "restart_seconds": restart,
        "memory_after_restart_mib": sum(measure.memory(services.audit_pid).values()),
    }


def _ask(services: Services, patients: int, *, access: bool) -> dict[str, float]:
    """Ask for one patient after another; milliseconds at the client.

    `access`: everybody who looked; else the accounting of disclosures. Each event with its proof.
    """
    channels = Channels(services.credentials("admin"), services.address, "audit.sealward.local")
    stub = ReviewServiceStub(channels.get())
    taken: list[float] = []
    found = proofs = 0
    for number in range(_ASKED):
        request = review_pb2.ReportDisclosuresRequest(
            patient=f"patient-{number * patients // _ASKED}", receipts=True, access=access
        )
        began = time.perf_counter()
        answer = stub.ReportDisclosures(request, timeout=30, wait_for_ready=True)
        taken.append((time.perf_counter() - began) * 1e3)
        for row in answer.disclosures:
            if len(row.receipts) != len(row.events):
                raise SystemExit("an event came without its receipt")
            proofs += len(row.receipts)
        found += answer.events
    channels.close()
    return {
        "p50": measure.percentile(taken, 0.5),
        "worst": max(taken),
        "events_each": found / _ASKED,
        "proofs_each": proofs / _ASKED,
    }


def _verify(services: Services) -> dict[str, Any]:
    """Verify the published log with the command line, in a process of its own."""
    command = [sys.executable, "-m", "sealward.cli.main", "audit", "verify", "--json"]
    command += ["--log", str(services.log_folder), "--vkey", str(services.vkey_file)]
    began = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - began
    report = json.loads(done.stdout)
    return {"seconds": seconds, "entries": report["size"]}


def _peak(pid: int) -> float:
    """The most memory that a process has had resident, in MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    kib = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM:"))
    return kib / 1024
