"""A log of a million events: what it takes in memory, to ask, to verify, to start."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from benchmarks import measure
from benchmarks.audit.load import Appender
from benchmarks.audit.services import Services
from benchmarks.audit.spans import entries
from sealward.api.audit.v1 import audit_pb2
from sealward.api.audit.v1.audit_pb2_grpc import AuditServiceStub
from sealward.kit.channel import Channels

_IN_FLIGHT = 256
_ASKED = 20


def run(services: Services, events: int, patients: int) -> dict[str, Any]:
    """Fill the log of running services and measure; the services go on."""
    appender = Appender(services.credentials("gateway"), services.address, entries(patients))
    elapsed = appender.run(_IN_FLIGHT, count=events)
    appender.close()
    if appender.failed:
        raise SystemExit(f"{appender.failed} entries were refused")
    return {
        "events": events,
        "filled_per_second": events / elapsed,
        "memory_mib": sum(measure.memory(services.audit_pid).values()),
        "accounting_ms": _accounting(services, patients),
        "verify": _verify(services),
        "restart_seconds": _restart(services),
        "memory_after_restart_mib": sum(measure.memory(services.audit_pid).values()),
    }


def _accounting(services: Services, patients: int) -> dict[str, float]:
    """Ask for all events of one patient with their proofs; milliseconds at the client."""
    channels = Channels(services.credentials("admin"), services.address, "audit.sealward.local")
    stub = AuditServiceStub(channels.get())
    taken: list[float] = []
    found = 0
    for number in range(_ASKED):
        request = audit_pb2.QueryEventsRequest(
            patient=f"patient-{number * patients // _ASKED}", limit=10_000, receipts=True
        )
        began = time.perf_counter()
        answer = stub.QueryEvents(request, timeout=30, wait_for_ready=True)
        taken.append((time.perf_counter() - began) * 1e3)
        if len(answer.receipts) != len(answer.events):
            raise SystemExit("an event came without its receipt")
        found += len(answer.events)
    channels.close()
    return {
        "p50": measure.percentile(taken, 0.5),
        "worst": max(taken),
        "events_each": found / _ASKED,
    }


def _verify(services: Services) -> dict[str, Any]:
    """Verify the published log with the command line, in a process of its own."""
    command = [sys.executable, "-m", "sealward.cli.main", "audit", "verify", "--json"]
    command += ["--log", str(services.log_folder), "--vkey", str(services.vkey_file)]
    began = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "entries": json.loads(done.stdout)["size"]}


def _restart(services: Services) -> float:
    services.stop("audit")
    return services.start("audit")
