"""`sealward audit`: reading the record, proving it, verifying it.

`verify` needs the files alone; the other verbs ask the audit service as the local administrator,
and that reading is itself recorded.
"""

from __future__ import annotations

import base64
import datetime as dt
import sys
import time
import uuid
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealward.cli.errors import CliError, unreadable, usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import check_writable, emit, line, table
from sealward.cli.suite import Suite
from sealward.cli.times import parse_time, show_nanos

if TYPE_CHECKING:
    from sealward.api.audit.v1.audit_pb2 import EventSummary

app = typer.Typer(help="Read, prove and verify the audit log.", no_args_is_help=True)


class Outcome(StrEnum):
    """How a call ended."""

    OK = "ok"
    DENIED = "denied"
    FAILED = "failed"


Event = Annotated[str, typer.Argument(metavar="EVENT", help="Event id.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many.")]
_COLUMNS = ("index", "time", "type", "outcome", "reason", "actor", "model", "purpose", "event")
_FOLLOW_SECONDS = 0.5


@app.command()
def query(
    user: Annotated[str, typer.Option("--user", help="Actor.")] = "",
    patient: Annotated[
        str, typer.Option("--patient", help="Patient reference; audit looks up its pseudonym.")
    ] = "",
    model: Annotated[str, typer.Option("--model", help="Model name.")] = "",
    outcome: Annotated[Outcome | None, typer.Option("--outcome", help="How it ended.")] = None,
    event_type: Annotated[
        str, typer.Option("--type", help="Event type, whole or ending in `.*`.")
    ] = "",
    since: Annotated[str, typer.Option("--since", help="From then on: 2h, 7d, ISO time.")] = "",
    until: Annotated[str, typer.Option("--until", help="Before then.")] = "",
    limit: Limit = 100,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """List events, newest first."""
    now = dt.datetime.now(dt.UTC)
    events = _query(
        Suite.at(directory),
        user=user,
        patient=patient,
        model=model,
        outcome=str(outcome) if outcome else "",
        type=event_type,
        since_unix_nano=parse_time(since, now) if since else 0,
        until_unix_nano=parse_time(until, now) if until else 0,
        limit=limit,
    )
    if as_json:
        emit({"events": [_row(event) for event in events]}, as_json=True)
        return
    table(_COLUMNS, [_cells(event) for event in events], empty="no events")


@app.command()
def tail(
    limit: Limit = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones.")] = False,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Show the newest events, oldest of them first."""
    suite = Suite.at(directory)
    shown = -1
    while True:
        events = [e for e in reversed(_query(suite, limit=limit)) if e.log_index > shown]
        if as_json:
            import json

            for event in events:
                line(json.dumps(_row(event)))
        elif events:
            _print_rows(events, heading=shown < 0)
        shown = max([shown, *(event.log_index for event in events)])
        if not follow:
            return
        _await_growth(suite, shown + 1)


@app.command()
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


@app.command()
def prove(
    event: Event,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the proof here.")
    ] = None,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Print the C2SP tlog-proof that an event is in the log, checked before it is printed.

    Its `extra` line holds 32 zero bytes in place of the salt, which went to the caller alone.
    """
    from sealward.api.audit.v1 import audit_pb2
    from sealward.api.audit.v1.audit_pb2_grpc import AuditServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling
    from sealward.tlog.errors import TlogError
    from sealward.tlog.leaf import SALT_SIZE
    from sealward.tlog.receipt import format_receipt, open_receipt

    suite = Suite.at(directory)
    if output is not None:
        check_writable(output)
    with calling("proving the event"), Admin(suite).channel("audit") as channel:
        answer = AuditServiceStub(channel).GetReceipt(
            audit_pb2.GetReceiptRequest(event_id=event_id(event)), timeout=CALL_SECONDS
        )
    receipt = answer.receipt
    proof = format_receipt(
        receipt.log_index, receipt.path, receipt.leaf, bytes(SALT_SIZE), answer.checkpoint
    )
    try:
        opened = open_receipt(proof, _vkeys(suite.vkey_file))
    except TlogError as error:
        raise CliError(f"the proof does not hold: {error}") from None
    if output is not None:
        output.write_bytes(proof)
    if as_json:
        emit(
            {
                "event_id": str(uuid.UUID(bytes=opened.event_id)),
                "log_index": opened.index,
                "size": opened.checkpoint.size,
                "origin": opened.checkpoint.origin,
                "proof": base64.b64encode(proof).decode(),
            },
            as_json=True,
        )
    elif output is None:
        sys.stdout.write(proof.decode())
    else:
        line(f"entry {opened.index} of {opened.checkpoint.size}: {output}")


@app.command()
def verify(
    log: Annotated[
        Path | None, typer.Option("--log", metavar="DIR", help="The log; else the suite's.")
    ] = None,
    vkey: Annotated[
        Path | None, typer.Option("--vkey", metavar="FILE", help="Its verifier key.")
    ] = None,
    receipt: Annotated[
        Path | None,
        typer.Option("--receipt", metavar="FILE", help="Verify this receipt, not the whole log."),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoint", metavar="FILE", help="A checkpoint seen earlier; may be given again."
        ),
    ] = None,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Verify the log, or one receipt, with the public key alone. Works offline.

    Exit 1 names the first bad entry.
    """
    from sealward.cli.verifying import verify_log_command, verify_receipt_command

    suite = Suite.at(directory)
    vkeys = _vkeys(vkey or suite.vkey_file)
    if receipt is not None:
        result, text = verify_receipt_command(receipt, vkeys)
    else:
        result, text = verify_log_command(
            log or suite.log_dir, vkeys, checkpoint or [], progress=sys.stderr.isatty()
        )
    emit(result, as_json=as_json, text=text)


def event_id(text: str) -> bytes:
    """Return the 16 bytes of an event id; raise CliError."""
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        raise usage("EVENT must be an event id such as sealward infer prints") from None


def _query(suite: Suite, **fields: Any) -> list[EventSummary]:
    from sealward.api.audit.v1 import audit_pb2
    from sealward.api.audit.v1.audit_pb2_grpc import AuditServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    with calling("reading the log"), Admin(suite).channel("audit") as channel:
        answer = AuditServiceStub(channel).QueryEvents(
            audit_pb2.QueryEventsRequest(**fields), timeout=CALL_SECONDS
        )
    return list(answer.events)


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
    }


def _cells(event: EventSummary) -> list[object]:
    row = _row(event)
    return [
        row["log_index"], row["time"], row["type"], row["outcome"], row["reason"], row["actor"],
        row["model"], row["purpose"], row["event_id"],
    ]  # fmt: skip


def _print_rows(events: list[EventSummary], *, heading: bool) -> None:
    if heading:
        table(_COLUMNS, [_cells(event) for event in events])
        return
    for event in events:
        line("  ".join(str(cell) for cell in _cells(event) if cell != ""))


def _await_growth(suite: Suite, size: int) -> None:
    """Wait until the published log is larger than the events shown and our own reading of them.

    The folder is watched, not the service: each question to the service adds an entry.
    """
    while _published_size(suite) <= size + 1:
        suite.require_running()
        time.sleep(_FOLLOW_SECONDS)


def _published_size(suite: Suite) -> int:
    try:
        return int((suite.log_dir / "checkpoint").read_bytes().split(b"\n")[1])
    except (OSError, IndexError, ValueError):
        return 0


def _vkeys(path: Path) -> Any:
    from sealward.tlog.errors import TlogError
    from sealward.tlog.note import parse_vkeys

    try:
        return parse_vkeys(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error, "--vkey FILE") from None
    except TlogError:
        raise usage(f"{path} is not a list of verifier keys", "--vkey FILE") from None
