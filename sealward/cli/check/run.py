"""One run of the check: reach the deployment, run the rows, have the log vouch for the report."""

from __future__ import annotations

import datetime as dt
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealward import __version__
from sealward.cli.errors import CliError, unavailable, unreadable, usage
from sealward.cli.suite import Suite

if TYPE_CHECKING:
    from sealward.check.row import Result, Row
    from sealward.cli.check.live import Live
    from sealward.tlog.receipt import VerifiedReceipt

ATTEST = "/sealward.api.audit.v1.AttestService/AttestReport"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line."""

    directory: Path
    profile: str
    rows: list[str]
    read_only: bool = False
    disrupt: bool = False
    review_hours: int = 72
    patience: int = 30
    diff: Path | None = None
    endpoints: Path | None = None
    credentials: Path | None = None
    vkey: Path | None = None


def run_check(asked: Asked, told: Callable[[str], None]) -> dict[str, Any]:
    """Run the check; return the attested report. Raise CliError. `told` hears of the progress."""
    from sealward.check import report as reports
    from sealward.check.deployment import Settings

    rows = _chosen(asked.rows)
    last = None
    if asked.diff is not None:
        before, receipt = read_report(asked.diff, asked.vkey, asked.directory)
        last = reports.earlier(before, receipt.event_id.hex())
    settings = Settings(
        profile=asked.profile,
        canary=f"ZZPHICANARY{secrets.token_hex(8).upper()}",
        read_only=asked.read_only,
        disrupt=asked.disrupt,
        review_hours=asked.review_hours,
        patience=asked.patience,
        last=last,
    )
    began = _now()
    with _ended_in_order() as ended, _deployment(asked, settings) as live:
        live.ended = ended
        results = _run(live, rows, told)
        told("taking away what was made for it")
        live.clean_up()
        about = {
            "sealward": __version__,
            "deployment": live.domain,
            "began": began,
            "ended": _now(),
            "options": {
                "read_only": asked.read_only, "disrupt": asked.disrupt,
                "review_hours": asked.review_hours, "patience": asked.patience,
                "rows": [row.id for row in rows],
            },
        }  # fmt: skip
        made = reports.build(results, asked.profile, about, last)
        return _attested(live, made)


def _chosen(ids: list[str]) -> list[Row]:
    from sealward.check.catalogue import ROWS

    known = {row.id: row for row in ROWS}
    for wanted in ids:
        if wanted.upper() not in known:
            raise usage(f"there is no row {wanted}", f"--row {' | '.join(known)}")
    wanted_ids = {wanted.upper() for wanted in ids}
    return [row for row in ROWS if not ids or row.id in wanted_ids]


def _deployment(asked: Asked, settings: Any) -> Live:
    from sealward.cli.check.live import connect, connect_by_address, require_answers

    if (asked.endpoints is None) is not (asked.credentials is None):
        raise usage("--endpoints and --credentials go together")
    if asked.endpoints is not None and asked.credentials is not None:
        live = connect_by_address(asked.endpoints, asked.credentials, settings)
    else:
        live = connect(Suite.at(asked.directory), settings)
    require_answers(live)
    return live


def _run(live: Live, rows: list[Row], told: Callable[[str], None]) -> list[Result]:
    from sealward.check.runner import run

    place = {row.id: number for number, row in enumerate(rows)}
    results = []
    for result in run(live, rows, lambda row: told(f"{row.id}  {row.title}")):
        told(f"{result.row.id}  {result.state}  ({result.took_ms / 1000:.1f} s)")
        results.append(result)
    return sorted(results, key=lambda result: place[result.row.id])


def _attested(live: Live, made: dict[str, Any]) -> dict[str, Any]:
    from sealward.api.audit.v1 import attest_pb2
    from sealward.check import report as reports

    request = attest_pb2.AttestReportRequest(kind=reports.KIND, sha256=reports.digest(made))
    reply = live.call("audit", ATTEST, request.SerializeToString(deterministic=True))
    if not reply.ok:
        raise unavailable(
            f"the log does not vouch for the report: {reply.said}", "sealward status; then again"
        )
    answer = attest_pb2.AttestReportResponse.FromString(reply.body)
    return reports.attested(made, answer.event_id, answer.receipt)


def read_report(
    file: Path, vkey: Path | None, directory: Path
) -> tuple[dict[str, Any], VerifiedReceipt]:
    """Read a report and verify it; raise CliError."""
    from sealward.check import report as reports
    from sealward.cli.audit.common import read_vkeys

    try:
        data = file.read_bytes()
    except OSError as error:
        raise unreadable(file, error) from None
    vkeys = read_vkeys(vkey or Suite.at(directory).vkey_file)
    try:
        found = reports.read(data)
        return found, reports.verify(found, vkeys)
    except reports.ReportError as error:
        raise CliError(f"{file}: {error}", advice="is it the file as `check` wrote it?") from None


@contextmanager
def _ended_in_order() -> Iterator[threading.Event]:
    """Let a check that is told to end take away what it made.

    The event is set as well: an exception that is raised within a destructor is lost.
    """
    ended = threading.Event()

    def interrupt(_number: int, _frame: object) -> None:
        ended.set()
        raise KeyboardInterrupt

    try:
        before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    except ValueError:
        # Not in the main thread: nobody can interrupt it there.
        yield ended
        return
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _now() -> str:
    return f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
