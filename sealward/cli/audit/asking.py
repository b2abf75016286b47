"""Questions to the review service, and the receipts that come with an answer."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealward.cli.errors import CliError, usage
from sealward.cli.suite import Suite
from sealward.cli.times import parse_time

if TYPE_CHECKING:
    from sealward.api.audit.v1.audit_pb2 import EventSummary, Receipt
    from sealward.api.audit.v1.review_pb2_grpc import ReviewServiceStub

Since = Annotated[str, typer.Option("--since", help="From then on: 2h, 7d, ISO time.")]
Until = Annotated[str, typer.Option("--until", help="Before then.")]
Tenant = Annotated[str, typer.Option("--tenant", help="Whose logs; else `default`.")]
ReceiptsTo = Annotated[
    Path | None,
    typer.Option("--receipts", metavar="DIR", help="Write the proof of every event there."),
]


def filled(param: typer.CallbackParam, value: str | None) -> str | None:
    """Refuse an option that is there and empty: it would mean everybody.

    So is what a script gives whose variable is not set.
    """
    if value == "":
        raise usage(f"--{param.name} is empty", f"leave --{param.name} out to mean all")
    return value


def known_pattern(value: str) -> str:
    """Refuse a pattern that nothing is found by: an empty answer would be taken for none."""
    if "*" in value and ("*" in value[:-1] or not value.endswith(".*")):
        raise usage("--type is a whole event type, or its beginning and `.*`", "as keys.*")
    return value


SECONDS = 120.0
"""How long a report may take."""


@contextmanager
def reviewing(directory: Path, what: str) -> Iterator[ReviewServiceStub]:
    """Give the review service to a verb."""
    from sealward.api.audit.v1.review_pb2_grpc import ReviewServiceStub
    from sealward.cli.connect import Admin
    from sealward.cli.rpc import calling

    with calling(what), Admin(Suite.at(directory)).channel("audit") as channel:
        yield ReviewServiceStub(channel)


def nanos(text: str) -> int:
    """Return nanoseconds since the epoch of a time as people write it; 0 for none."""
    return parse_time(text, dt.datetime.now(dt.UTC)) if text else 0


def write_receipts(
    folder: Path,
    suite: Suite,
    events: Sequence[EventSummary],
    receipts: Sequence[Receipt],
    checkpoints: Sequence[bytes],
) -> int:
    """Check every receipt and write it as `EVENT.tlog-proof`; return how many.

    Raise CliError when one does not hold: then nothing of the answer is to be believed.
    """
    from sealward.cli.audit.common import read_vkeys
    from sealward.tlog.checkpoint import open_checkpoint
    from sealward.tlog.errors import TlogError
    from sealward.tlog.leaf import SALT_SIZE
    from sealward.tlog.receipt import format_receipt, open_receipt

    if len(events) != len(receipts):
        raise CliError("the answer lacks receipts")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        raise usage(f"{folder} cannot be made", "--receipts DIR") from None
    vkeys = _all_vkeys(suite) or read_vkeys(suite.vkey_file)
    try:
        notes = {open_checkpoint(note, vkeys).origin: note for note in checkpoints}
        for event, receipt in zip(events, receipts, strict=True):
            note = notes.get(event.origin)
            if note is None:
                raise CliError("the answer lacks the checkpoint of a log")
            proof = format_receipt(
                receipt.log_index, receipt.path, receipt.leaf, bytes(SALT_SIZE), note
            )
            opened = open_receipt(proof, vkeys)
            if opened.event_id != event.event_id or opened.index != event.log_index:
                raise CliError("a receipt is about another event", verified=False)
            name = f"{uuid.UUID(bytes=event.event_id)}.tlog-proof"
            (folder / name).write_bytes(proof)
    except TlogError as error:
        raise CliError(f"a receipt does not hold: {error}", verified=False) from None
    return len(events)


def event_ids(events: Sequence[EventSummary]) -> list[dict[str, Any]]:
    """Return the events of a row as JSON has them."""
    return [
        {
            "event_id": str(uuid.UUID(bytes=event.event_id)),
            "log_index": event.log_index,
            "origin": event.origin,
        }
        for event in events
    ]


def _all_vkeys(suite: Suite) -> list[Any]:
    """Return the verifier keys of the current log and of those that have ended."""
    from sealward.tlog.errors import TlogError
    from sealward.tlog.note import parse_vkeys

    lines: dict[str, None] = {}
    for path in (suite.vkey_file, *sorted(suite.vkey_file.parent.glob("logs/*/*/log.vkey"))):
        try:
            lines |= dict.fromkeys(path.read_text(encoding="utf-8").split())
        except OSError:
            continue
    try:
        return list(parse_vkeys("\n".join(lines)))
    except TlogError:
        return []
