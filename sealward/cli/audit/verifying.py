"""What `sealward audit verify` does: reads files, verifies, says what was found."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sealward.cli.audit.common import cosigners
from sealward.cli.audit.following import Follower
from sealward.cli.errors import CliError, unreadable, usage
from sealward.cli.output import check_writable
from sealward.cli.suite import write_private
from sealward.tlog.checkpoint import Checkpoint, open_checkpoint
from sealward.tlog.errors import TlogError
from sealward.tlog.logdir import (
    LogReport,
    LogVerificationError,
    directory_reader,
    verify_directory,
    verify_log,
)
from sealward.tlog.note import Verifier, parse_note
from sealward.tlog.policy import CosignedCheckpoint, Policy, open_cosigned
from sealward.tlog.receipt import open_receipt
from sealward.tlog.tiles import CHECKPOINT_PATH, COSIGNED_PATH

_LARGEST_RECEIPT = 1 << 20
# A log that has just begun is published before its witnesses have answered.
_COSIGN_SECONDS = 60.0


Printed = tuple[dict[str, Any], str]
"""What to print: as JSON, and as text."""


class Verification:
    """Verifies a log: whole, or after the checkpoint that a file of state holds.

    `checkpoints` are files with ones seen earlier. The file of state is written when all that was
    read is right; it is worth as much as who may write to it. With a policy the newest checkpoint
    that satisfies it must be a beginning of the log.
    """

    def __init__(
        self,
        log: Path,
        vkeys: Sequence[Verifier],
        checkpoints: Sequence[Path],
        policy: Policy | None,
        state: Path | None,
        *,
        progress: bool,
    ) -> None:
        if not log.is_dir():
            raise usage(f"{log} is not a folder", "--log DIR")
        self._log = log
        self._vkeys = vkeys
        self._known = [_checkpoint(path, vkeys) for path in checkpoints]
        self._policy = policy
        self._state = state
        self._after = _checkpoint(state, vkeys) if state is not None and state.exists() else None
        if state is not None:
            check_writable(state)
        self._progress = progress
        self._following = False
        self._patient_until = 0.0
        # By origin: where the log was when it was last verified, and what was cosigned of it.
        self._beside: dict[str, tuple[Path, CosignedCheckpoint | None]] = {}

    def once(self) -> Printed:
        """Verify; raise CliError naming the first bad entry."""
        follower = Follower(self._log, self._vkeys, self._verify)
        printed = [self._done(report) for report in follower.begin(self._after)]
        return printed[-1][0], "\n".join(text for _, text in printed)

    def follow(self) -> Iterator[Printed]:
        """Verify, then go on with what comes; raise CliError for the first thing wrong."""
        follower = Follower(self._log, self._vkeys, self._verify)
        yield from map(self._done, follower.begin(self._after))
        self._following = True
        yield from map(self._done, follower.follow())

    def _verify(self, log: Path, vkeys: Sequence[Verifier], after: Checkpoint | None) -> LogReport:
        if self._following and after is None:
            self._patient_until = time.monotonic() + _COSIGN_SECONDS
        # Read before the log: what is published meanwhile continues it.
        cosigned = self._cosigned(log, vkeys)
        known = [*self._known, *([cosigned.checkpoint] if cosigned is not None else [])]
        try:
            with _progress_bar(self._progress) as progress:
                if after is None:
                    report = verify_directory(log, vkeys, progress, known=known)
                else:
                    reader = directory_reader(log)
                    report = verify_log(reader, vkeys, progress, known=known, after=after)
        except LogVerificationError as error:
            raise _refused(error) from None
        if cosigned is not None and cosigned.checkpoint.origin != report.origin:
            raise CliError(
                f"what is cosigned is another log, {cosigned.checkpoint.origin}", verified=False
            )
        self._beside[report.origin] = (log, cosigned)
        return report

    def _cosigned(self, log: Path, vkeys: Sequence[Verifier]) -> CosignedCheckpoint | None:
        if self._policy is None:
            return None
        try:
            return _cosigned(log, vkeys, self._policy)
        except CliError:
            if time.monotonic() < self._patient_until:
                return None
            raise

    def _done(self, report: LogReport) -> Printed:
        if self._state is not None:
            write_private(self._state, report.note)
        log, cosigned = self._beside[report.origin]
        result, text = result_of(report), text_of(report)
        if cosigned is not None:
            result["cosigned"] = {"size": cosigned.checkpoint.size, "by": cosigners(cosigned)}
            text += f"\n  cosigned {cosigned.checkpoint.size} entries {_by(cosigned)}"
        elif others := _unchecked(log):
            text += f"\n  carries cosignatures of {', '.join(others)}: not checked (--policy FILE)"
        return result, text


def result_of(report: LogReport) -> dict[str, Any]:
    """Return what `--json` prints of a verified log."""
    return {
        "verified": True,
        "origin": report.origin,
        "size": report.size,
        "after": report.after,
        "root": report.root.hex(),
        "signers": list(report.signers),
        "files": report.files,
        "entry_bytes": report.entry_bytes,
        "unknown_files": list(report.unknown),
        "cosigned": None,
    }


def text_of(report: LogReport) -> str:
    """Return what is printed of a verified log."""
    new = f" ({report.size - report.after} of them new)" if report.after else ""
    text = (
        f"verified: {report.size} entries{new} of {report.origin}\n"
        f"  root   {report.root.hex()}\n  signed {', '.join(report.signers)}"
    )
    for name in report.unknown:
        text += f"\n  note: {name} is no part of a log"
    return text


def _refused(error: LogVerificationError) -> CliError:
    first = error.findings[0]
    more = f" (and {error.count - 1} more)" if error.count > 1 else ""
    return CliError(
        f"the log does not verify: {first}{more}",
        advice="keep this copy; compare it with a backup and with clients' checkpoints",
        verified=False,
        entry=first.entry,
        path=first.path,
        findings=[{"path": f.path, "entry": f.entry, "message": f.message} for f in error.findings],
    )


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
