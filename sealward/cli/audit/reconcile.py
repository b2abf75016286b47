"""`sealward audit reconcile`: whether everything is there, and the other party's list agrees."""

from __future__ import annotations

import datetime as dt
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealward.cli.audit.asking import Since, Until
from sealward.cli.errors import CliError, Exit, unreadable, usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, line, table
from sealward.cli.spools import Waiting, waiting
from sealward.cli.suite import Suite
from sealward.cli.times import parse_time

if TYPE_CHECKING:
    from sealward.api.audit.v1.reconcile_pb2 import ReadTrailRequest
    from sealward.cli.connect import Admin
    from sealward.reconcile.hl7 import Fields
    from sealward.reconcile.report import Report, Window
    from sealward.reconcile.trail import Trail

_SECONDS = 3600.0
_END = (1 << 63) - 1
Advance = Callable[[int], None]


def reconcile(
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against",
            metavar="FILE",
            help="The other party's own list, or a client folder; may be given again.",
        ),
    ] = None,
    since: Since = "",
    until: Until = "",
    session: Annotated[str, typer.Option("--session", help="Only this session.")] = "",
    user: Annotated[
        str, typer.Option("--user", help="Everything of this user has to be in the list.")
    ] = "",
    hl7_fields: Annotated[
        str,
        typer.Option(
            "--hl7-fields", metavar="FIELDS", help="Fields of HL7 messages that name events."
        ),
    ] = "OBX-18,NTE-3,Z*",
    complete: Annotated[
        bool, typer.Option("--complete", help="Open every entry: do not trust the index.")
    ] = False,
    settle: Annotated[
        int,
        typer.Option(
            "--settle", min=0, max=86_400, help="Seconds that an event may be on its way."
        ),
    ] = 60,
    limit: Annotated[
        int,
        typer.Option("--limit", "-n", min=0, max=1_000_000, help="Of each kind; 0 = all."),
    ] = 100,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Find what the log lacks: exit 0 when nothing is missing, 1 when something is.

    Joins the numbers that producers and callers gave with the events and spans that are there. With
    `--against` it also names what the other party has and the log has not, and the other way round.
    """
    from sealward.reconcile.compare import compare, resolve
    from sealward.reconcile.completeness import check
    from sealward.reconcile.report import Report
    from sealward.reconcile.trail import Trail

    suite = Suite.at(directory)
    files = _files(against or [])
    if user and not files:
        raise usage("--user is for a comparison", "--against FILE")
    wanted = _wanted(since, until, user, complete=complete, against=bool(files))
    run = _Run()
    with Trail() as trail:
        for file in files:
            _read_list(trail, run, file, hl7_fields)
        _read_trail(suite, trail, run, wanted)
        window = _window(wanted, settle, session)
        report = Report(limit)
        with _busy("comparing"):
            trail.ready()
            resolve(trail)
            spools = {name: w.oldest if w else None for name, w in run.spools.items()}
            check(trail, report, window, spools)
            if files:
                compare(trail, report, window)
            result = _result(trail, run, report, window, user)
    if as_json:
        emit(result, as_json=True)
    else:
        _print(result, report)
    if not result["complete"]:
        raise typer.Exit(Exit.FAILED)


@dataclass(slots=True)
class _Run:
    """What one run has read."""

    logs: list[dict[str, Any]] = field(default_factory=list)
    lists: list[dict[str, Any]] = field(default_factory=list)
    spools: Mapping[str, Waiting | None] = field(default_factory=dict)
    events: int = 0
    recorded: str = ""


def _files(named: Sequence[Path]) -> list[Path]:
    """Return the files to compare with; of a client folder, its list of calls in order."""
    files: list[Path] = []
    for path in named:
        if path.is_dir():
            # `calls-000001.ndjson` and so on are older than `calls.ndjson`.
            found = [*sorted(path.glob("calls-*.ndjson")), *path.glob("calls.ndjson")]
            if not found:
                raise usage(f"{path} has no list of calls", "name a file, or a client folder")
            files += found
        else:
            files.append(path)
    return files


def _wanted(
    since: str, until: str, user: str, *, complete: bool, against: bool
) -> ReadTrailRequest:
    from sealward.api.audit.v1.reconcile_pb2 import ReadTrailRequest

    now = dt.datetime.now(dt.UTC)
    wanted = ReadTrailRequest(
        since_unix_nano=parse_time(since, now) if since else 0,
        until_unix_nano=parse_time(until, now) if until else 0,
        complete=complete,
        user=user,
        against=against,
    )
    if until and wanted.until_unix_nano <= wanted.since_unix_nano:
        raise usage("the time ends before it begins", "--since 7d --until 1h")
    return wanted


def _window(wanted: ReadTrailRequest, settle: int, session: str) -> Window:
    from sealward.reconcile.report import Window

    return Window(
        wanted.since_unix_nano,
        wanted.until_unix_nano or _END,
        time.time_ns(),
        settle * 1_000_000_000,
        session,
        bool(wanted.user),
    )


def _read_list(trail: Trail, run: _Run, file: Path, hl7_fields: str) -> None:
    """Read one list; raise CliError for one that is none."""
    from sealward.reconcile.hl7 import Fields
    from sealward.reconcile.items import ListError
    from sealward.reconcile.reading import open_path

    try:
        fields: Fields = Fields(hl7_fields.split(","))
        size = file.stat().st_size
        with _progress(f"reading {file.name}", size) as advance:
            opened, found = open_path(file, fields, advance)
            with opened:
                counts = trail.add_list(str(file), found.found)
    except ListError as error:
        raise usage(f"{file}: {error}", "see docs/reconcile.md for the forms of lists") from None
    except OSError as error:
        raise unreadable(file, error, "--against FILE") from None
    run.lists.append(
        {
            "file": str(file),
            "form": found.form,
            "unit": found.unit,
            "lines": counts.lines,
            "entries": counts.items,
            "other": counts.other,
            "malformed": counts.malformed_count,
        }
    )


def _read_trail(suite: Suite, trail: Trail, run: _Run, wanted: ReadTrailRequest) -> None:
    """Read what the logs hold; raise CliError."""
    from sealward.cli.connect import Admin

    admin = Admin(suite)
    # First: what leaves a spool meanwhile is in the log, or told as waiting.
    run.spools = waiting(suite, admin)
    with ExitStack() as stack:
        _stream(admin, trail, run, wanted, stack)


def _stream(
    admin: Admin, trail: Trail, run: _Run, wanted: ReadTrailRequest, stack: ExitStack
) -> None:
    from sealward.api.audit.v1.reconcile_pb2_grpc import ReconcileServiceStub
    from sealward.cli.rpc import calling, trailers

    stack.enter_context(calling("reading the log"))
    channel = stack.enter_context(admin.channel("audit"))
    answers = ReconcileServiceStub(channel).ReadTrail(wanted, timeout=_SECONDS)
    first = next(answers)
    for log in first.logs:
        trail.logs.append(log.origin)
        run.logs.append({"origin": log.origin, "tenant": log.tenant, "entries": log.size})
        if log.purged:
            run.logs[-1]["purged"] = True
    advance = stack.enter_context(_progress("reading the log", sum(log.size for log in first.logs)))
    ended = False
    for answer in answers:
        trail.add_rows(answer.rows)
        run.events += len(answer.rows)
        advance(answer.done)
        for earlier in answer.earlier:
            trail.heard_before(earlier.producer, earlier.instance)
        for scan in answer.scans:
            said = {"root": scan.root.hex(), "differences": scan.differences}
            run.logs[trail.logs.index(scan.origin)] |= said
        ended = not answer.rows
    if not ended:
        raise CliError("the reading of the log broke off", code=Exit.UNAVAILABLE)
    run.recorded = str(trailers(answers).get("sealward-event-id", ""))


def _result(trail: Trail, run: _Run, report: Report, window: Window, user: str) -> dict[str, Any]:
    import uuid

    from sealward.reconcile.completeness import runs
    from sealward.reconcile.report import MISSING, NOTES, instant

    differences = sum(log.get("differences", 0) for log in run.logs)
    return {
        "complete": report.complete and not differences,
        "since": instant(window.since) or None,
        "until": instant(window.until) if window.until != _END else None,
        "session": window.session or None,
        "user": user or None,
        "events": run.events,
        "logs": run.logs,
        "index_differences": differences,
        "runs": list(runs(trail)),
        "missing": report.part(MISSING),
        "notes": report.part(NOTES),
        "against": run.lists,
        "spools": {
            name: None if found is None else {
                "records": found.records, "oldest": instant(found.oldest) or None
            }
            for name, found in run.spools.items()
        },
        "event_id": str(uuid.UUID(run.recorded)) if run.recorded else None,
    }  # fmt: skip


def _print(result: dict[str, Any], report: Report) -> None:
    from sealward.reconcile.report import MISSING, NOTES

    for found in result["against"]:
        line(
            f"{found['file']}: {found['form']}, {found['lines']} {found['unit']}s,"
            f" {found['entries']} entries, {found['malformed']} malformed"
        )
    for kinds in (NOTES, MISSING):
        for kind, text in kinds.items():
            items = report.details.get(kind, [])
            if items:
                count = report.counts[kind]
                more = f", the first {len(items)}" if len(items) < count else ""
                columns = list(dict.fromkeys(name for item in items for name in item))
                table(
                    columns,
                    [[_cell(item.get(name)) for name in columns] for item in items],
                    title=f"{kind}: {text} ({count}{more})",
                )
    for name, found in result["spools"].items():
        if found is None:
            line(f"{name} does not say what waits in its spool")
        elif found["records"]:
            line(f"{name}: {found['records']} records wait in its spool")
    if result["index_differences"]:
        line(f"the index has {result['index_differences']} rows that the log does not bear out")
    read = f"{result['events']} events of {len(result['logs'])} logs"
    failed = [kind for kind in MISSING if report.counts[kind]]
    if result["complete"]:
        line(f"complete: {read}")
    else:
        line(f"not complete: {', '.join(failed) or 'the index'} ({read})")


def _cell(value: Any) -> object:
    return ", ".join(value) if isinstance(value, list) else value


@contextmanager
def _progress(what: str, total: int) -> Iterator[Advance]:
    """Show how far it is, on a terminal; give what is told how much is done."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    columns = (what, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def _busy(what: str) -> Iterator[None]:
    """Say on a terminal that something is under way whose length nobody knows."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield
