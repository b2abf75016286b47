"""`sealward demo`: the whole path on real data, from log-in to a receipt verified offline."""

from __future__ import annotations

import secrets
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from sealward.cli.errors import CliError, Exit
from sealward.cli.options import Json
from sealward.cli.output import emit, line, table
from sealward.cli.suite import Suite

DEFAULT = Path("demo-data")
CLINICIAN = "demo-clinician"
OPERATOR = "demo-operator"
_SHOWN = 6


@dataclass(slots=True)
class Report:
    """What the demonstration found; `ok` decides the exit code."""

    ready_seconds: float = 0.0
    models: dict[str, dict[str, float]] = field(default_factory=dict)
    milliseconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    denied: dict[str, Any] = field(default_factory=dict)
    tampered: dict[str, Any] = field(default_factory=dict)
    receipt: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return what `demo --json` prints."""
        times = sorted(self.milliseconds) or [0.0]
        return {
            "ok": not self.problems,
            "ready_seconds": round(self.ready_seconds, 2),
            "seconds": round(self.seconds, 2),
            "calls": len(self.milliseconds),
            "call_ms": {
                "p50": round(times[len(times) // 2], 2),
                "p99": round(times[int(len(times) * 0.99)], 2),
            },
            "models": self.models,
            "denied": self.denied,
            "tampered": self.tampered,
            "receipt": self.receipt,
            "problems": self.problems,
        }


def demo(
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Folder.")] = DEFAULT,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the suite running until Ctrl-C.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start the suite, predict held-out patients, and show what protects and proves it."""
    from sealward.cli.up import start

    suite = Suite.at(directory)
    began = time.monotonic()
    if suite.supervisor_pid() is not None:
        _say(as_json, f"using the suite that runs in {suite.root}")
        report = _demonstrate(suite, Report(), quiet=as_json)
        _finish(report, began, as_json=as_json)
        return
    _say(as_json, f"Starting the suite in {suite.root}")
    with start(suite, quiet=as_json) as started:
        _say(as_json, started.as_text())
        report = _demonstrate(suite, Report(ready_seconds=started.seconds), quiet=as_json)
        if keep and not report.problems:
            _finish(report, began, as_json=as_json)
            _say(as_json, "\nThe suite stays up. Try, in another terminal:")
            _say(as_json, f"  {_called()} status --dir {directory}")
            with suppress(KeyboardInterrupt):
                started.wait()
            return
    _finish(report, began, as_json=as_json)


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        line(text)


def _finish(report: Report, began: float, *, as_json: bool) -> None:
    report.seconds = time.monotonic() - began
    found = report.as_json()
    if as_json:
        emit(found, as_json=True)
    else:
        times = found["call_ms"]
        started = f"Ready in {found['ready_seconds']} s; " if report.ready_seconds else ""
        line(
            f"\n{started}{found['calls']} calls, each recorded, proven"
            f" and verified: median {times['p50']} ms, p99 {times['p99']} ms;"
            f" {found['seconds']} s in all."
        )
    if report.problems:
        if not as_json:
            line("FAILED: " + "; ".join(report.problems), err=True)
        raise typer.Exit(Exit.FAILED)
    _say(as_json, "The demonstration succeeded.")


def _demonstrate(suite: Suite, report: Report, *, quiet: bool) -> Report:
    from sealward.cli import demo_steps as steps

    try:
        _say(quiet, "\n1. A clinician and an operator get accounts and certificates, and log in")
        for user, role in ((CLINICIAN, "clinician"), (OPERATOR, "operator")):
            _sign_in(suite, user, role)
            _say(quiet, f"   {user} ({role}): session bound to the certificate in clients/{user}")
        _say(quiet, "\n2. The clinician asks about held-out patients, one call each")
        answers = []
        for shipped in steps.SHIPPED:
            result = steps.predict_heldout(suite, CLINICIAN, shipped)
            report.models[shipped.model] = result.agreement
            report.milliseconds += result.milliseconds
            report.problems += result.problems
            answers += result.answers
            if not quiet:
                table(result.columns, result.rows[:_SHOWN], title=f"\n{shipped.title}")
                line(f"… {len(result.rows)} patients in all: {result.summary}")
        _say(quiet, "\n3. An operator, who may start and stop but not ask, asks all the same")
        report.denied = steps.denied(suite, OPERATOR, answers[0].request)
        _say(quiet, f"   {report.denied['message']}")
        _say(
            quiet,
            f"   reason {report.denied['reason']}, recorded as entry {report.denied['log_index']}",
        )
        _say(quiet, "\n4. Somebody changes one byte in a copy of the log")
        report.tampered = steps.tampered_copy(suite, answers[-1].proof.log_index)
        _say(quiet, f"   untouched: verified, {report.tampered['size']} entries")
        _say(quiet, f"   changed:   {report.tampered['message']}")
        _say(quiet, "\n5. The receipt of the last answer, verified with the public key alone")
        report.receipt = steps.verify_offline(suite, answers[-1])
        if not quiet:
            line("   " + "\n   ".join(answers[-1].proof.receipt.decode().rstrip().split("\n")))
            line(
                f"   holds: entry {report.receipt['log_index']} of {report.receipt['size']} is"
                " about this request, this answer and this model"
            )
            line(f"   {report.receipt['other']}")
            line(
                f"   any time later: sealward audit verify --log {suite.log_dir}"
                f" --vkey {suite.vkey_file}"
            )
    except CliError as error:
        report.problems.append(error.message)
    return report


def _sign_in(suite: Suite, user: str, role: str) -> None:
    """Log a user in, added first where there is none. The password is kept for the next time."""
    from sealward.cli.login import start_session
    from sealward.cli.suite import write_private
    from sealward.cli.user import add_user

    file = suite.secrets / user
    if not file.exists():
        password = secrets.token_urlsafe(24)
        add_user(suite, user, [role], password)
        write_private(file, password.encode("ascii"))
    start_session(suite, user, file.read_text(encoding="ascii"))


def _called() -> str:
    """Return the command as this one was called: a fresh clone has it in .venv/bin alone."""
    name = Path(sys.argv[0])
    return str(name) if name.name == "sealward" else "sealward"
