"""Files that must be whole, ours and closed to others."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sealward.kit.errors import StartupError
from sealward.seal.durable import sync_folder

LARGEST_BYTES = 4 << 20


class FileProblemError(Exception):
    """A file is not what it must be. The text says how and names no content."""


def problem_of(found: os.stat_result, owners: frozenset[int]) -> str:
    """Say what is wrong with a file that must be ours alone; empty when nothing is."""
    if not stat.S_ISREG(found.st_mode):
        return "is not a regular file"
    if found.st_uid not in owners:
        return "belongs to another account"
    if found.st_mode & 0o077:
        return "is open to others: chmod 600"
    if found.st_nlink != 1:
        return "has more than one name (hard link)"
    return ""


def read_checked(
    path: Path, owners: frozenset[int], largest: int = LARGEST_BYTES, *, links: bool = True
) -> bytes:
    """Read a whole file that must be ours alone; raise FileProblemError or FileNotFoundError.

    What is checked is the open file, so nothing can be put in its place in between. `links`:
    whether the path may be a symbolic link.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError:
        raise FileProblemError("cannot be read") from None
    try:
        problem = problem_of(os.fstat(descriptor), owners)
        if problem:
            raise FileProblemError(problem)
        with os.fdopen(os.dup(descriptor), "rb") as file:
            data = file.read(largest + 1)
    finally:
        os.close(descriptor)
    if len(data) > largest:
        raise FileProblemError("is too large")
    return data


def read_private(path: Path, owners: frozenset[int] | None = None) -> bytes:
    """Read a file that must be ours (or of `owners`) alone; raise StartupError if it is not.

    Raises FileNotFoundError when it is not there.
    """
    try:
        return read_checked(path, owners or frozenset({os.geteuid()}))
    except FileProblemError as error:
        raise StartupError(f"{path} {error}") from None


def write_durable(path: Path, data: bytes) -> None:
    """Replace a file so that after a crash there is the old or the new one, whole.

    Temporary file, fsync, rename, fsync of the folder; mode 0600. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
