"""Verifies a whole log: signature, every entry, every tile, the root.

Needs the log's files and its verifier keys and nothing else. The order of the checks: the signed
checkpoint, then all entries and tiles from the leaves up (`logwalk`), then the root.
"""

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sealward.tlog.checkpoint import Checkpoint, open_signed_checkpoint
from sealward.tlog.errors import CheckpointError, NoteError, SignatureError, TlogError
from sealward.tlog.logchange import LogChange
from sealward.tlog.logwalk import Finding, LogWalk, Progress, Reader
from sealward.tlog.note import Verifier
from sealward.tlog.tiles import CHECKPOINT_PATH

__all__ = [
    "Finding",
    "LogReport",
    "LogVerificationError",
    "Progress",
    "Reader",
    "directory_reader",
    "verify_directory",
    "verify_log",
]


_LARGEST_BYTES = 32 << 20
"""A bundle of 256 entries of 64 KiB, and room."""


class LogVerificationError(TlogError):
    """The log does not verify. `findings` are in the order found, at most 100 of `count`."""

    def __init__(self, findings: Sequence[Finding], count: int | None = None) -> None:
        self.findings = tuple(findings)
        self.count = len(self.findings) if count is None else count
        super().__init__(str(self.findings[0]))


@dataclass(frozen=True, slots=True)
class LogReport:
    """What has been verified.

    `signers` are `name+key id in hex`. `files` counts the files read, `entry_bytes` the bytes of
    all entries. `ahead` counts files of a newer tree than the checkpoint's (a log that is being
    written to has some), `unknown` names files that no log has; both need a listing of the files.
    `after` entries were not read: they were verified before. `changes` are the entries in clear
    among those read, each with its place: keys that follow, the end of the log. `note` is the
    signed checkpoint as read.
    """

    origin: str
    size: int
    root: bytes
    signers: tuple[str, ...]
    files: int
    entry_bytes: int
    ahead: int
    unknown: tuple[str, ...]
    after: int = 0
    changes: tuple[tuple[int, LogChange], ...] = ()
    note: bytes = b""

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint up to which the log is verified now."""
        return Checkpoint(self.origin, self.size, self.root)


def verify_log(
    read: Reader,
    vkeys: Sequence[Verifier],
    progress: Progress | None = None,
    *,
    origin: str | None = None,
    known: Sequence[Checkpoint] = (),
    files: Iterable[str] = (),
    after: Checkpoint | None = None,
) -> LogReport:
    """Verify the log behind `read`; return the report or raise LogVerificationError.

    The checkpoint must be signed by one of `vkeys` under the origin that it names (`origin` where
    given). Each of the `known` checkpoints of this origin, seen earlier or taken from receipts,
    must be a beginning of this log: that finds a log that was cut, or rewritten as a whole by
    someone with its key. `files` lists the paths that exist, in any order: partial tiles of earlier
    sizes among them are verified as well, and what belongs to no log is reported.

    `after` is a checkpoint up to which all of it was verified before: then only what came later is
    read, and that it continues what was there. What was changed since in older files shows in a
    verification of the whole alone.
    """
    try:
        data = read(CHECKPOINT_PATH)
        checkpoint, note = open_signed_checkpoint(data, vkeys, origin)
    except FileNotFoundError as error:
        raise LogVerificationError([Finding(CHECKPOINT_PATH, "is missing")]) from error
    except OSError as error:
        raise LogVerificationError([Finding(CHECKPOINT_PATH, "cannot be read")]) from error
    except (NoteError, CheckpointError) as error:
        message = (
            "is not signed by a given key of the log that it names"
            if isinstance(error, SignatureError)
            else f"is malformed or of another log ({error})"
        )
        raise LogVerificationError([Finding(CHECKPOINT_PATH, message)]) from error
    if after is not None and after.origin != checkpoint.origin:
        message = f"is of another log than the one verified before, {after.origin}"
        raise LogVerificationError([Finding(CHECKPOINT_PATH, message)])
    walk = LogWalk(read, checkpoint, known, files, after)
    walk.run(progress)
    if walk.count:
        raise LogVerificationError(walk.findings, walk.count)
    return LogReport(
        origin=checkpoint.origin,
        size=checkpoint.size,
        root=checkpoint.root,
        signers=tuple(f"{line.name}+{line.key_id.hex()}" for line in note.verified),
        files=walk.files + 1,
        entry_bytes=walk.entry_bytes,
        ahead=sum(len(widths) for widths in walk.listed.values()),
        unknown=tuple(walk.unknown),
        after=after.size if after is not None else 0,
        changes=tuple(walk.changes),
        note=data,
    )


def verify_directory(
    directory: Path,
    vkeys: Sequence[Verifier],
    progress: Progress | None = None,
    *,
    origin: str | None = None,
    known: Sequence[Checkpoint] = (),
) -> LogReport:
    """Verify the log in a directory with every file in it; otherwise like `verify_log`."""
    files = [
        Path(folder, name).relative_to(directory).as_posix()
        for folder, _, names in os.walk(directory)
        for name in names
    ]
    reader = directory_reader(directory)
    return verify_log(reader, vkeys, progress, origin=origin, known=known, files=files)


def directory_reader(directory: Path) -> Reader:
    """Return the reader of a log in a directory.

    It raises OSError for what is no file, which it does not wait for, and for a file that is larger
    than any that a log has.
    """

    def read(path: str) -> bytes:
        # A pipe would keep whoever opens it until somebody writes.
        descriptor = os.open(directory / path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST_BYTES:
                raise OSError(errno.EINVAL, "no file of a log")
            return file.read()

    return read
