"""`sealward audit query|tail|show`: reading the record. The reading is itself recorded."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealward.cli import interrupt
from sealward.cli.audit.asking import ReceiptsTo, Tenant, filled, known_pattern, write_receipts
from sealward.cli.audit.common import Event, Limit, event_id
from sealward.cli.errors import CliError, Exit
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, line, table
from sealward.cli.suite import Suite
from sealward.cli.times import parse_time, show_nanos

if TYPE_CHECKING:
    from sealward.api.audit.v1.audit_pb2 import EventSummary, QueryEventsResponse


class Outcome(StrEnum):
    """How a call ended."""

    OK = "ok"
    DENIED = "denied"
    FAILED = "failed"


_COLUMNS = ("index", "time", "type", "outcome", "reason", "actor", "model", "purpose", "event")
_FOLLOW_SECONDS = 0.5
_FOLLOW_MORE = 100
_MOST = 10_000
_COMPLETE_SECONDS = 3600.0


def query(
    user: Annotated[str | None, typer.Option("--user", help="Actor.", callback=filled)] = None,
    patient: Annotated[
        str | None,
        typer.Option(
            "--patient", help="Patient reference; audit looks up its pseudonym.", callback=filled
        ),
    ] = None,
    model: Annotated[str, typer.Option("--model", help="Model name.")] = "",
    outcome: Annotated[Outcome | None, typer.Option("--outcome", help="How it ended.")] = None,
    event_type: Annotated[
        str,
        typer.Option("--type", help="Event type, whole or ending in `.*`.", callback=known_pattern),
    ] = "",
    since: Annotated[str, typer.Option("--since", help="From then on: 2h, 7d, ISO time.")] = "",
    until: Annotated[str, typer.Option("--until", help="Before then.")] = "",
    purpose: Annotated[str, typer.Option("--purpose", help="HL7 purpose of use.")] = "",
    reason: Annotated[str, typer.Option("--reason", help="Reason of a refusal.")] = "",
    session: Annotated[
        str | None, typer.Option("--session", help="Session id.", callback=filled)
    ] = None,
    break_glass: Annotated[
        bool, typer.Option("--break-glass", help="Only events under break-glass.")
    ] = False,
    complete: Annotated[
        bool,
        typer.Option(
            "--complete", help="Open every entry of the logs: shows that no other event is there."
        ),
    ] = False,
    receipts: ReceiptsTo = None,
    tenant: Tenant = "",
    limit: Limit = 100,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """List events, newest first."""
    now = dt.datetime.now(dt.UTC)
    suite = Suite.at(directory)
    answer = _ask(
        suite,
        seconds=_COMPLETE_SECONDS if complete else None,
        user=user or "",
        patient=patient or "",
        model=model,
        outcome=str(outcome) if outcome else "",
        type=event_type,
        since_unix_nano=parse_time(since, now) if since else 0,
        until_unix_nano=parse_time(until, now) if until else 0,
        purpose=purpose,
        reason=reason,
        session=session or "",
        break_glass=break_glass,
        complete=complete,
        receipts=receipts is not None,
        tenant=tenant,
        limit=limit,
    )
    events = list(answer.events)
    proofs = 0
    if receipts is not None:
        proofs = write_receipts(receipts, suite, events, answer.receipts, answer.checkpoints)
    scans = [
        {"origin": scan.origin, "entries": scan.entries, "root": scan.root.hex(),
         "differences": scan.differences}
        for scan in answer.scans
    ]  # fmt: skip
    if as_json:
        found: dict[str, Any] = {"events": [_row(event) for event in events]}
        if receipts is not None:
            found["receipts"] = proofs
        if complete:
            found["scans"] = scans
        emit(found, as_json=True)
    else:
        _print_table(events)
        for scan in scans:
            line(f"read whole: {scan['entries']} entries of {scan['origin']}, root {scan['root']}")
    if any(scan["differences"] for scan in scans):
        raise CliError("the index is not what the log says", advice="sealward audit reindex")


def tail(
    limit: Limit = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones.")] = False,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Show the newest events, oldest of them first."""
    suite = Suite.at(directory)
    events = _query(suite, limit=limit)
    shown: dict[str, int] = {}
    heading = True
    while True:
        events.reverse()
        if as_json:
            import json

            for event in events:
                line(json.dumps(_row(event)))
        elif events:
            _print_rows(events, heading=heading)
            heading = False
        for event in events:
            shown[event.origin] = max(event.log_index, shown.get(event.origin, -1))
        if not follow:
            return
        expected = _await_growth(suite, shown)
        try:
            events = _since(suite, shown, expected)
        except CliError as error:
            if error.code != Exit.UNAVAILABLE:
                raise
            # A log that is turning is not read for a moment, and the service may be restarting.
            events = []
            suite.require_running()
            interrupt.pause(_FOLLOW_SECONDS)


def _since(suite: Suite, shown: Mapping[str, int], expected: int) -> list[EventSummary]:
    """Return every event after those shown, the newest first, also of a log that followed.

    `shown` is the last index by the origin of its log; about `expected` events are new.
    """
    found: list[EventSummary] = []
    size = min(_MOST, expected + _FOLLOW_MORE)
    page = _query(suite, limit=size)
    while True:
        for event in page:
            if event.log_index <= shown.get(event.origin, -1):
                return found
            found.append(event)
        last = found[-1] if found else None
        if len(page) < size or last is None or not last.log_index:
            return found
        page = _query(suite, limit=size, origin=last.origin, before_index=last.log_index)


def show(event: Event, directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Open one event: the index row, its attributes, where it stands in the log."""
    from sealward.api.audit.v1 import audit_pb2
    from sealward.api.audit.v1.audit_pb2_grpc import AuditServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling
    from sealward.cli.spans import span_to_json

    with calling("reading the event"), Admin(Suite.at(directory)).channel("audit") as channel:
        answer = AuditServiceStub(channel).GetEvent(
            audit_pb2.GetEventRequest(event_id=event_id(event)), timeout=CALL_SECONDS
        )
    shown = {**_row(answer.summary), "span": span_to_json(answer.span)}
    if as_json:
        emit(shown, as_json=True)
        return
    rows: list[tuple[str, object]] = [(k, v) for k, v in _row(answer.summary).items() if v != ""]
    rows += [(k, v) for k, v in shown["span"]["attributes"].items()]
    table(["field", "value"], rows)


def _query(suite: Suite, **fields: Any) -> list[EventSummary]:
    return list(_ask(suite, **fields).events)


def _ask(suite: Suite, seconds: float | None = None, **fields: Any) -> QueryEventsResponse:
    from sealward.api.audit.v1 import audit_pb2
    from sealward.api.audit.v1.audit_pb2_grpc import AuditServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    with calling("reading the log"), Admin(suite).channel("audit") as channel:
        return AuditServiceStub(channel).QueryEvents(
            audit_pb2.QueryEventsRequest(**fields), timeout=seconds or CALL_SECONDS
        )


def _row(event: EventSummary) -> dict[str, Any]:
    return {
        "event_id": str(uuid.UUID(bytes=event.event_id)),
        "log_index": event.log_index,
        "time": show_nanos(event.time_unix_nano),
        "type": event.type,
        "outcome": event.outcome,
        "code": event.code,
        "reason": event.reason,
        "actor": event.actor,
        "model": event.model,
        "purpose": event.purpose,
        "patient": event.patient,
        "break_glass": event.break_glass,
        "session": event.session,
        "target": event.target,
        "origin": event.origin,
    }


def _cells(event: EventSummary) -> list[object]:
    row = _row(event)
    return [
        row["log_index"], row["time"], row["type"], row["outcome"], row["reason"], row["actor"],
        row["model"], row["purpose"], row["event_id"],
    ]  # fmt: skip


def _print_table(events: Sequence[EventSummary]) -> None:
    """Print events under headings, with what each was about where one of them says so."""
    rows = [_cells(event) for event in events]
    columns = list(_COLUMNS)
    if any(event.target for event in events):
        columns.append("target")
        rows = [[*row, event.target] for row, event in zip(rows, events, strict=True)]
    table(columns, rows, empty="no events")


def _print_rows(events: list[EventSummary], *, heading: bool) -> None:
    if heading:
        _print_table(events)
        return
    for event in events:
        line("  ".join(str(cell) for cell in _cells(event) if cell != ""))


def _await_growth(suite: Suite, shown: Mapping[str, int]) -> int:
    """Wait until more is published than the events shown and our own reading; return how much.

    The folder is watched, not the service: each question to the service adds an entry.
    """
    while True:
        origin, size = _published(suite)
        known = shown.get(origin, -1)
        if size > known + 2:
            return size - known
        suite.require_running()
        interrupt.pause(_FOLLOW_SECONDS)


def _published(suite: Suite) -> tuple[str, int]:
    """Return the origin and the size of the log that grows; no name and 0 for none."""
    try:
        origin, size, _ = (suite.log_dir / "checkpoint").read_text("utf-8").split("\n", 2)
        return origin, int(size)
    except (OSError, ValueError):
        return "", 0
