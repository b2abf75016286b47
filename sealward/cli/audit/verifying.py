"""What `sealward audit verify` does: reads files, verifies, says what was found."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sealward.cli.errors import CliError, unreadable, usage
from sealward.tlog.checkpoint import Checkpoint, open_checkpoint
from sealward.tlog.errors import TlogError
from sealward.tlog.logdir import LogVerificationError, verify_directory
from sealward.tlog.note import Verifier
from sealward.tlog.receipt import open_receipt

_LARGEST_RECEIPT = 1 << 20


def verify_log_command(
    log: Path, vkeys: Sequence[Verifier], checkpoints: Sequence[Path], *, progress: bool
) -> tuple[dict[str, Any], str]:
    """Verify a log; return what to print. Raise CliError naming the first bad entry."""
    if not log.is_dir():
        raise usage(f"{log} is not a folder", "--log DIR")
    known = [_checkpoint(path, vkeys) for path in checkpoints]
    try:
        with _progress_bar(progress) as report_progress:
            report = verify_directory(log, vkeys, report_progress, known=known)
    except LogVerificationError as error:
        first = error.findings[0]
        raise CliError(
            f"the log does not verify: {first}"
            + (f" (and {error.count - 1} more)" if error.count > 1 else ""),
            advice="keep this copy; compare it with a backup and with clients' checkpoints",
            verified=False,
            entry=first.entry,
            path=first.path,
            findings=[
                {"path": f.path, "entry": f.entry, "message": f.message} for f in error.findings
            ],
        ) from None
    result = {
        "verified": True,
        "origin": report.origin,
        "size": report.size,
        "root": report.root.hex(),
        "signers": list(report.signers),
        "files": report.files,
        "entry_bytes": report.entry_bytes,
        "unknown_files": list(report.unknown),
    }
    text = (
        f"verified: {report.size} entries of {report.origin}\n"
        f"  root   {report.root.hex()}\n  signed {', '.join(report.signers)}"
    )
    for name in report.unknown:
        text += f"\n  note: {name} is no part of a log"
    return result, text


def verify_receipt_command(path: Path, vkeys: Sequence[Verifier]) -> tuple[dict[str, Any], str]:
    """Verify a receipt as far as the log goes; return what to print. Raise CliError.

    What call it is about is checked where the request and the response are: in the client.
    """
    import base64

    data = _read(path, _LARGEST_RECEIPT)
    if not data.startswith(b"c2sp.org/"):
        try:
            data = base64.b64decode(data, validate=False)
        except ValueError:
            raise usage(f"{path} is not a receipt") from None
    try:
        receipt = open_receipt(data, vkeys)
    except TlogError as error:
        raise CliError(f"the receipt does not verify: {error}", verified=False) from None
    event = str(uuid.UUID(bytes=receipt.event_id))
    result = {
        "verified": True,
        "event_id": event,
        "log_index": receipt.index,
        "size": receipt.checkpoint.size,
        "origin": receipt.checkpoint.origin,
    }
    text = (
        f"verified: event {event} is entry {receipt.index} of the {receipt.checkpoint.size} in"
        f" {receipt.checkpoint.origin}"
    )
    return result, text


def _checkpoint(path: Path, vkeys: Sequence[Verifier]) -> Checkpoint:
    try:
        return open_checkpoint(_read(path, 1 << 20), vkeys)
    except TlogError as error:
        raise CliError(f"{path}: {error}") from None


def _read(path: Path, largest: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(largest + 1)
    except OSError as error:
        raise unreadable(path, error) from None


@contextmanager
def _progress_bar(wanted: bool) -> Iterator[Callable[[int, int], None] | None]:
    if not wanted:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("verifying", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("verifying")
        yield lambda done, size: bar.update(task, completed=done, total=size)
