"""`sealward doctor`: looks for what commonly goes wrong and says what to do about it."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import typer

from sealward.cli.errors import CliError, Exit
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, line, table
from sealward.cli.suite import SERVICES, Suite, port_is_free

_DISK_WARNING = 1 << 30
_DISK_FAILURE = 64 << 20
_SLOW_SYNC_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: `state` is ok, warning or failed."""

    check: str
    state: str
    text: str
    advice: str = ""


def doctor(directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Check this machine, the folder and the running suite; exit 1 when something is broken."""
    suite = Suite.at(directory)
    findings = [finding for check in _CHECKS for finding in check(suite)]
    failed = any(finding.state == "failed" for finding in findings)
    if as_json:
        rows = [
            {"id": f.check, "state": f.state, "text": f.text, "advice": f.advice} for f in findings
        ]
        emit({"ok": not failed, "checks": rows}, as_json=True)
    else:
        table(["check", "state", "found"], [[f.check, f.state, f.text] for f in findings])
        for finding in findings:
            if finding.advice:
                line(f"{finding.check}: try {finding.advice}")
    if failed:
        raise typer.Exit(Exit.FAILED)


def _python(_suite: Suite) -> Iterator[Finding]:
    version = sys.version.split()[0]
    yield Finding("python", "ok" if sys.version_info >= (3, 11) else "failed", version)


def _packages(suite: Suite) -> Iterator[Finding]:
    from sealward.cli.processes import services_roots, valkey_binary
    from sealward.cli.store import has_own_store

    looks: list[tuple[str, Callable[[], object]]] = [("services", services_roots)]
    if has_own_store(suite, os.environ):
        looks.append(("valkey", valkey_binary))
    for name, look in looks:
        try:
            look()
            yield Finding(name, "ok", "installed")
        except CliError as error:
            yield Finding(name, "failed", error.message, error.advice)


def _folder(suite: Suite) -> Iterator[Finding]:
    if not suite.root.exists():
        yield Finding("folder", "ok", f"{suite.root} does not exist yet")
        return
    open_ones = [path for path in _walk(suite.root) if _is_open(path)]
    if open_ones:
        yield Finding(
            "permissions",
            "failed",
            f"{len(open_ones)} files or folders are open to other accounts, first {open_ones[0]}",
            f"chmod -R go= {suite.root}",
        )
    else:
        yield Finding("permissions", "ok", "closed to other accounts")
    if suite.root.stat().st_uid != os.geteuid():
        yield Finding("owner", "failed", f"{suite.root} belongs to another account")


def _walk(root: Path) -> Iterator[Path]:
    yield root
    for folder, names, files in os.walk(root):
        for name in (*names, *files):
            yield Path(folder, name)


def _is_open(path: Path) -> bool:
    try:
        return bool(path.lstat().st_mode & 0o077) and not path.is_symlink()
    except OSError:
        return False


def _disk(suite: Suite) -> Iterator[Finding]:
    place = next(path for path in (suite.root, *suite.root.parents) if path.exists())
    free = shutil.disk_usage(place).free
    state = "ok" if free > _DISK_WARNING else "warning" if free > _DISK_FAILURE else "failed"
    advice = (
        "" if state == "ok" else "make room: without it nothing is recorded, so nothing answered"
    )
    yield Finding("disk", state, f"{free / (1 << 30):.1f} GiB free", advice)
    if suite.run.is_dir():
        yield _sync_time(suite)


def _sync_time(suite: Suite) -> Finding:
    probe = suite.run / f".sync.{os.getpid()}"
    times = []
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for _ in range(5):
            os.write(descriptor, bytes(4096))
            began = time.perf_counter()
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - began)
    finally:
        os.close(descriptor)
        probe.unlink()
    middle = sorted(times)[len(times) // 2]
    return Finding(
        "disk sync",
        "ok" if middle < _SLOW_SYNC_SECONDS else "warning",
        f"{middle * 1000:.2f} ms an fdatasync; every answer waits for one",
    )


def _clock(_suite: Suite) -> Iterator[Finding]:
    from sealward.kit.clock import read_clock

    reading = read_clock()
    if reading.synchronised == "yes":
        error = "" if reading.error_us is None else f", within {reading.error_us / 1000:.1f} ms"
        yield Finding("clock", "ok", f"kept in step{error}")
    elif reading.synchronised == "no":
        yield Finding(
            "clock", "warning", "nothing keeps it in step, says the kernel",
            "run chrony or systemd-timesyncd: the record's times are this clock's",
        )  # fmt: skip
    else:
        yield Finding("clock", "warning", "the kernel does not say whether it is kept in step")


def _running(suite: Suite) -> Iterator[Finding]:
    if not suite.endpoints_file.exists():
        return
    if suite.supervisor_pid() is None:
        yield Finding("suite", "ok", "not running")
        for name, places in suite.endpoints().items():
            for kind in ("address", "metrics"):
                host, _, port = places[kind].rpartition(":")
                if not port_is_free(int(port), host.strip("[]")):
                    yield Finding(
                        f"port of {name}, {kind}", "failed", f"{places[kind]} is taken",
                        "stop the process that listens there",
                    )  # fmt: skip
        return
    from sealward.cli.status import collect

    found = collect(suite)
    for name in SERVICES:
        service = found["services"][name]
        advice = "" if service["health"] == "ready" else f"see {suite.logs}/{name}.log"
        state = "ok" if service["health"] == "ready" else "failed"
        yield Finding(name, state, service["health"], advice)
        if service["restarts"]:
            yield Finding(
                f"{name} restarts", "warning", f"{service['restarts']} since the start",
                f"see {suite.logs}/supervisor.log",
            )  # fmt: skip
    keys = found["keys"]
    if keys.get("trouble"):
        from sealward.cli.keys import ADVICE

        yield Finding(
            "key provider", "failed", f"{keys['state']}: {keys['trouble']} since {keys['since']}",
            ADVICE.get(keys["trouble"], f"see {suite.logs}/keys.log"),
        )  # fmt: skip
    if keys.get("single_host"):
        yield Finding("single host", "warning", "keys and data live on one machine (single-host)")


def _certificates(suite: Suite) -> Iterator[Finding]:
    if suite.supervisor_pid() is None:
        return
    from sealward.cli.certs import collect

    for row in collect(suite):
        if row["state"] == "expired":
            yield Finding(
                f"certificate of {row['holder']}", "failed", f"expired {row['not_after']}",
                "sealward certs rotate",
            )  # fmt: skip


_CHECKS: tuple[Callable[[Suite], Iterator[Finding]], ...] = (
    _python, _packages, _folder, _disk, _clock, _running, _certificates,
)  # fmt: skip
