"""`sealward audit export`: events as FHIR, as CSV, or as a bundle of evidence."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import os
import secrets
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealward.cli.audit.asking import filled, known_pattern
from sealward.cli.audit.common import event_id
from sealward.cli.audit.events import Outcome
from sealward.cli.errors import CliError, unreadable, usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit
from sealward.cli.suite import Suite
from sealward.cli.times import parse_time

if TYPE_CHECKING:
    from sealward.api.audit.v1.export_pb2 import ExportEventsRequest
    from sealward.cli.audit.reading import Export
    from sealward.evidence.bundle import Call
    from sealward.evidence.event import Event

_LARGEST_FILE = 64 << 20
_AT_ONCE = 500  # events: two people each at most


class Format(StrEnum):
    """What is written."""

    FHIR = "fhir"
    CSV = "csv"
    BUNDLE = "bundle"


def export(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Where to: a file; for a bundle a new folder or a .zip file."
        ),
    ],
    form: Annotated[Format, typer.Option("--format", help="What to write.")] = Format.FHIR,
    event: Annotated[
        list[str] | None, typer.Option("--event", help="Only this event; may be given again.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="Actor.", callback=filled)] = None,
    patient: Annotated[
        str | None,
        typer.Option(
            "--patient", help="Patient reference; audit looks up its pseudonym.", callback=filled
        ),
    ] = None,
    model: Annotated[str, typer.Option("--model", help="Model name.")] = "",
    outcome: Annotated[Outcome | None, typer.Option("--outcome", help="How it ended.")] = None,
    purpose: Annotated[str, typer.Option("--purpose", help="Purpose of use.")] = "",
    event_type: Annotated[
        str,
        typer.Option("--type", help="Event type, whole or ending in `.*`.", callback=known_pattern),
    ] = "",
    since: Annotated[str, typer.Option("--since", help="From then on: 2h, 7d, ISO time.")] = "",
    until: Annotated[str, typer.Option("--until", help="Before then.")] = "",
    reason: Annotated[str, typer.Option("--reason", help="Reason of a refusal.")] = "",
    session: Annotated[
        str | None, typer.Option("--session", help="Session id.", callback=filled)
    ] = None,
    break_glass: Annotated[
        bool, typer.Option("--break-glass", help="Only events under break-glass.")
    ] = False,
    tenant: Annotated[str, typer.Option("--tenant", help="Whose logs.")] = "",
    limit: Annotated[
        int,
        typer.Option("--limit", "-n", min=0, max=1_000_000, help="The newest so many; 0 = all."),
    ] = 0,
    identified: Annotated[
        bool, typer.Option("--identified", help="Patients in clear, not by pseudonym. Recorded.")
    ] = False,
    deidentified: Annotated[
        bool,
        typer.Option(
            "--deidentified",
            help="Without identifiers (45 CFR 164.514(b)(2)), random codes for people. Recorded.",
        ),
    ] = False,
    project: Annotated[
        str,
        typer.Option(
            "--project", help="With --deidentified: codes that this project keeps, and uses again."
        ),
    ] = "",
    receipt: Annotated[
        Path | None,
        typer.Option(
            "--receipt", metavar="FILE", help="For a bundle: the caller's receipt of the event."
        ),
    ] = None,
    request: Annotated[
        Path | None, typer.Option("--request", metavar="FILE", help="Its request message.")
    ] = None,
    response: Annotated[
        Path | None, typer.Option("--response", metavar="FILE", help="Its response message.")
    ] = None,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Write events with their proofs. The export is recorded before the first one comes.

    Patients are pseudonyms unless `--identified` is given; with `--deidentified` nothing that
    identifies anybody is written, and what was removed is reported. Every event is verified against
    the log's key before it is written; nothing is left behind when one does not hold.
    """
    from sealward.api.audit.v1.audit_pb2 import QueryEventsRequest
    from sealward.api.audit.v1.export_pb2 import ExportEventsRequest

    now = dt.datetime.now(dt.UTC)
    suite = Suite.at(directory)
    _check_target(output, folder=form is Format.BUNDLE and output.suffix != ".zip")
    call = _call(form, receipt, request, response)
    query = QueryEventsRequest(
        user=user or "",
        patient=patient or "",
        model=model,
        outcome=str(outcome) if outcome else "",
        purpose=purpose,
        reason=reason,
        session=session or "",
        break_glass=break_glass,
        tenant=tenant,
        type=event_type,
        since_unix_nano=parse_time(since, now) if since else 0,
        until_unix_nano=parse_time(until, now) if until else 0,
        limit=limit,
    )
    ids = [event_id(text) for text in event or ()]
    if deidentified and (identified or form is Format.BUNDLE or ids or patient or session):
        raise usage(
            "--deidentified is for CSV or FHIR of many people: not with --identified, --event, "
            "--patient, --session or a bundle"
        )
    if call is not None and not ids and not query.ByteSize():
        ids = [call.event_id]
    if project and not deidentified:
        raise usage("--project is for --deidentified")
    wanted = ExportEventsRequest(
        query=None if ids else query, event_ids=ids, identified=identified, form=str(form),
        deidentified=deidentified,
    )  # fmt: skip
    summary = _run(suite, wanted, form, output, call, project)
    text = f"{summary['events']} events: {output}"
    if deidentified:
        text += _reported(summary["deidentification"])
    emit(summary, as_json=as_json, text=text)


def _run(
    suite: Suite,
    wanted: ExportEventsRequest,
    form: Format,
    output: Path,
    call: Call | None,
    project: str = "",
) -> dict[str, Any]:
    from sealward.cli.audit.reading import Export
    from sealward.cli.connect import Admin

    with Admin(suite).channel("audit") as channel:
        export_ = Export(suite, channel, wanted)
        if wanted.deidentified:
            written = _write_deidentified(suite, export_, form, output, project)
        elif form is Format.BUNDLE:
            written = _write_bundle(export_, output, call)
        else:
            written = _write_lines(export_, form, output)
    return {
        "format": str(form),
        "output": str(output),
        "events": export_.total,
        "identified": wanted.identified,
        "logs": [head.origin for head in export_.heads],
        **written,
        "export_event_id": str(uuid.UUID(export_.recorded)) if export_.recorded else "",
    }


def _write_lines(export_: Export, form: Format, output: Path) -> dict[str, Any]:
    from sealward.evidence import csv, fhir

    def lines(events: Iterable[Event]) -> Iterator[str]:
        return csv.lines(events) if form is Format.CSV else map(fhir.ndjson_line, events)

    return _write(export_, lines, output)


def _write_deidentified(
    suite: Suite, export_: Export, form: Format, output: Path, project: str
) -> dict[str, Any]:
    from sealward.evidence import deid

    kept: deid.OfProject | None = None
    with ExitStack() as stack:
        if project:
            kept = deid.OfProject(stack.enter_context(_drawing(suite, project)))
        made = deid.Deidentifier(kept or deid.OneExport(lambda: secrets.token_hex(8)))

        def ahead(events: Iterable[Event]) -> Iterator[Event]:
            """Have the codes of many events drawn at a time."""
            rest = iter(events)
            while some := list(itertools.islice(rest, _AT_ONCE)):
                if kept is not None:
                    kept.learn((*who, e.event_id) for e in some for who in made.people(e))
                yield from some

        def lines(events: Iterable[Event]) -> Iterator[str]:
            records = made.records(ahead(events))
            return deid.csv_lines(records) if form is Format.CSV else map(deid.fhir_line, records)

        written = _write(export_, lines, output)
    report = {**made.report.as_json(), "project": project}
    return {**written, "events": report["events"], "deidentification": report}


@contextmanager
def _drawing(
    suite: Suite, project: str
) -> Iterator[Callable[[Sequence[tuple[str, str, bytes]]], Sequence[str]]]:
    """Draw codes of a project, as the administrator."""
    from sealward.api.gateway.v1 import deid_pb2 as pb
    from sealward.api.gateway.v1.deid_pb2_grpc import DeidServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    with Admin(suite).channel("gateway") as channel:
        stub = DeidServiceStub(channel)

        def draw(people: Sequence[tuple[str, str, bytes]]) -> Sequence[str]:
            items = [pb.DeidItem(kind=k, identifier=i, event_id=e) for k, i, e in people]
            with calling("drawing codes"):
                answer = stub.DrawCodes(
                    pb.DrawCodesRequest(project=project, items=items), timeout=CALL_SECONDS
                )
            return list(answer.codes)

        yield draw


def _reported(report: Mapping[str, Any]) -> str:
    """Say what was taken out."""
    said = [
        f"  {item['field']}: {item['what']}, {item['values']} removed" for item in report["removed"]
    ]
    said += [f"  {item['field']}: {item['values']} refused" for item in report["refused"]]
    said += [
        f"  {kind}: {count} random codes in their place" for kind, count in report["codes"].items()
    ]
    said.append(
        f"  {report['left_out']} events left out: not written by this deployment's services"
    )
    return "\n" + "\n".join(said) + f"\n  not claimed: {report['not_claimed']}"


def _write(
    export_: Export, lines: Callable[[Iterable[Event]], Iterator[str]], output: Path
) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with _new_file(output) as write, _progress(export_) as events:
        for line in lines(events):
            data = line.encode()
            write(data)
            digest.update(data)
            size += len(data)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _write_bundle(export_: Export, output: Path, call: Call | None) -> dict[str, Any]:
    from sealward.evidence.bundle import MOST_EVENTS, archive, bundle_files
    from sealward.evidence.event import EvidenceError

    if not 1 <= export_.total <= MOST_EVENTS:
        raise usage(
            f"a bundle has 1 to {MOST_EVENTS} events; {export_.total} match", "narrow the filters"
        )
    with _progress(export_) as events:
        found = list(events)
    try:
        files = bundle_files(found, call)
    except EvidenceError as error:
        raise CliError(str(error), verified=False) from None
    if output.suffix == ".zip":
        data = archive(files, output.stem)
        with _new_file(output) as write:
            write(data)
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    _write_folder(output, files.items())
    return {"bytes": sum(map(len, files.values())), "files": len(files)}


def _write_folder(output: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write the files so that the folder is there with all of them or not at all."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        for name, data in files:
            target = temporary / name
            target.parent.mkdir(mode=0o700, exist_ok=True)
            with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
                f.write(data)
        temporary.rename(output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def _new_file(output: Path) -> Iterator[Callable[[bytes], object]]:
    """Write a file (0600) that appears under its name when all of it is there."""
    descriptor, name = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file.write
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(output)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CliError(f"{output} cannot be written: {error.strerror}") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _progress(export_: Export) -> Iterator[Iterable[Event]]:
    """Show how far it is, on a terminal."""
    if not sys.stderr.isatty():
        yield export_
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("exporting", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield bar.track(export_, total=export_.total)


def _check_target(output: Path, *, folder: bool) -> None:
    parent = output.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise usage(f"{parent} is not a folder that can be written to", "--output PATH")
    if folder and output.exists():
        raise usage(f"{output} is there already", "name a new folder")
    if not folder and output.is_dir():
        raise usage(f"{output} is a folder", "name a file")


def _call(
    form: Format, receipt: Path | None, request: Path | None, response: Path | None
) -> Call | None:
    """Return what the caller knows of its own call; None when nothing was given."""
    from sealward.evidence.bundle import Call
    from sealward.tlog.errors import TlogError
    from sealward.tlog.leaf import SALT_SIZE, parse_leaf
    from sealward.tlog.proof import TlogProof

    if receipt is None:
        if request or response:
            raise usage("--request and --response belong to a --receipt")
        return None
    if form is not Format.BUNDLE or request is None:
        raise usage("--receipt is for a bundle, with --request and, if answered, --response")
    try:
        extra = TlogProof.parse(_receipt_bytes(_read(receipt))).extra or b""
        leaf = parse_leaf(extra[SALT_SIZE:])
    except TlogError:
        raise usage(f"{receipt} is not a receipt") from None
    messages = [_read(file) if file else None for file in (request, response)]
    digests = [bytes(32) if m is None else hashlib.sha256(m).digest() for m in messages]
    return Call(leaf.event_id, extra[:SALT_SIZE], *digests)


def _receipt_bytes(data: bytes) -> bytes:
    """A receipt as it is, or as base64: `sealward infer --json` prints it so."""
    import base64
    import binascii

    if data.startswith(b"c2sp.org/"):
        return data
    try:
        return base64.b64decode(data, validate=False)
    except binascii.Error:
        return b""


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise unreadable(path, error) from None
    if len(data) > _LARGEST_FILE:
        raise usage(f"{path} is larger than a message can be")
    return data
