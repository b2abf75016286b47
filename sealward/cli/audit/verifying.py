"""What `sealward audit verify` does: reads files, verifies, says what was found."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sealward.cli.audit.common import cosigners
from sealward.cli.errors import CliError, unreadable, usage
from sealward.tlog.checkpoint import Checkpoint, open_checkpoint
from sealward.tlog.errors import TlogError
from sealward.tlog.logdir import LogVerificationError, verify_directory
from sealward.tlog.note import Verifier, parse_note
from sealward.tlog.policy import CosignedCheckpoint, Policy, open_cosigned
from sealward.tlog.receipt import open_receipt
from sealward.tlog.tiles import CHECKPOINT_PATH, COSIGNED_PATH

_LARGEST_RECEIPT = 1 << 20


def verify_log_command(
    log: Path,
    vkeys: Sequence[Verifier],
    checkpoints: Sequence[Path],
    policy: Policy | None = None,
    *,
    progress: bool,
) -> tuple[dict[str, Any], str]:
    """Verify a log; return what to print. Raise CliError naming the first bad entry.

    With a policy the newest checkpoint that satisfies it must be a beginning of the log.
    """
    if not log.is_dir():
        raise usage(f"{log} is not a folder", "--log DIR")
    known = [_checkpoint(path, vkeys) for path in checkpoints]
    # Read before the log: what is published meanwhile continues it.
    cosigned = _cosigned(log, vkeys, policy) if policy is not None else None
    if cosigned is not None:
        known.append(cosigned.checkpoint)
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
        "cosigned": None,
    }
    text = (
        f"verified: {report.size} entries of {report.origin}\n"
        f"  root   {report.root.hex()}\n  signed {', '.join(report.signers)}"
    )
    if cosigned is not None:
        result["cosigned"] = {"size": cosigned.checkpoint.size, "by": cosigners(cosigned)}
        text += f"\n  cosigned {cosigned.checkpoint.size} entries {_by(cosigned)}"
    elif others := _unchecked(log):
        text += f"\n  carries cosignatures of {', '.join(others)}: not checked (--policy FILE)"
    for name in report.unknown:
        text += f"\n  note: {name} is no part of a log"
    return result, text


def verify_receipt_command(
    path: Path, vkeys: Sequence[Verifier], policy: Policy | None = None
) -> tuple[dict[str, Any], str]:
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
        cosigned = open_cosigned(receipt.note, policy, vkeys) if policy is not None else None
    except TlogError as error:
        raise CliError(f"the receipt does not verify: {error}", verified=False) from None
    event = str(uuid.UUID(bytes=receipt.event_id))
    result = {
        "verified": True,
        "event_id": event,
        "log_index": receipt.index,
        "size": receipt.checkpoint.size,
        "origin": receipt.checkpoint.origin,
        "cosigned": None,
    }
    text = (
        f"verified: event {event} is entry {receipt.index} of the {receipt.checkpoint.size} in"
        f" {receipt.checkpoint.origin}"
    )
    if cosigned is not None:
        result["cosigned"] = {"size": cosigned.checkpoint.size, "by": cosigners(cosigned)}
        text += f"\n  cosigned {_by(cosigned)}"
    return result, text


def _cosigned(log: Path, vkeys: Sequence[Verifier], policy: Policy) -> CosignedCheckpoint:
    """Return the newest checkpoint of a log's folder that satisfies a policy; raise CliError."""
    found: list[CosignedCheckpoint] = []
    reasons: list[str] = []
    for path in (CHECKPOINT_PATH, COSIGNED_PATH):
        try:
            found.append(open_cosigned((log / path).read_bytes(), policy, vkeys))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise unreadable(log / path, error) from None
        except TlogError as error:
            reasons.append(f"{path}: {error}")
    if not found:
        raise CliError(
            f"the log is not cosigned as the policy asks ({reasons[-1] if reasons else 'empty'})",
            advice="see sealward audit witness",
            verified=False,
        )
    return max(found, key=lambda one: one.checkpoint.size)


def _by(found: CosignedCheckpoint) -> str:
    return "by " + ", ".join(f"{c['witness']} at {c['time']}" for c in cosigners(found))


def _unchecked(log: Path) -> list[str]:
    """Return the names of the keys, other than the log's, that say to have cosigned it."""
    names: dict[str, None] = {}
    for path in (CHECKPOINT_PATH, COSIGNED_PATH):
        try:
            note = parse_note((log / path).read_bytes())
            origin = Checkpoint.parse(note.text).origin
        except (OSError, TlogError):
            continue
        names |= {line.name: None for line in note.signatures if line.name != origin}
    return list(names)


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
