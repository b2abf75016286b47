"""What the witness knows of each log, as files.

    witness/key.json                  the witness's own keys (cosigning.py)
    witness/witness.vkey              their public halves, one a line
    witness/<hash>/log.vkey           the log's keys that are trusted, oldest first
    witness/<hash>/checkpoint         the checkpoint cosigned last, with the cosignatures
    witness/<hash>/successor          origin of the log that follows, once it has ended
    witness/<hash>/conflict           a checkpoint that the log signed and that does not continue it
    witness/forgotten/<hash>.<size>.<time>    what was forgotten on command

`<hash>` is the SHA-256 of the origin in hex digits: the same path under which the witness protocol
has a checkpoint for monitors. Every file is written whole or not at all, and synced.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from sealward.kit.errors import StartupError
from sealward.seal.durable import sync_folder
from sealward.tlog.checkpoint import open_signed_checkpoint
from sealward.tlog.cosignature import CosignatureVerifier, timestamp_of
from sealward.tlog.errors import TlogError
from sealward.tlog.merkle import EMPTY_ROOT
from sealward.tlog.note import Verifier, parse_vkeys
from services.keys.files import read_private, write_durable

_HASH = re.compile(r"[0-9a-f]{64}")
_VKEYS, _CHECKPOINT, _SUCCESSOR, _CONFLICT = "log.vkey", "checkpoint", "successor", "conflict"


@dataclass(frozen=True, slots=True)
class WatchedLog:
    """What is known of a log. Never changed, only replaced.

    `checkpoint` is the signed and cosigned note, empty when nothing was cosigned yet; `size`,
    `root` and `time` (seconds since the epoch, of the newest cosignature) are its. `successor` is
    empty while the log grows. `conflict` is the note that showed a fork.
    """

    origin: str
    vkeys: tuple[str, ...]
    checkpoint: bytes = field(default=b"", repr=False)
    size: int = 0
    root: bytes = EMPTY_ROOT
    time: int = 0
    successor: str = ""
    conflict: bytes = field(default=b"", repr=False)

    @property
    def verifiers(self) -> list[Verifier]:
        """The keys that are trusted."""
        return parse_vkeys("\n".join(self.vkeys))


class WitnessFolder:
    """The files. For one thread at a time; methods raise OSError unless they say otherwise."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, cosigners: Sequence[CosignatureVerifier]) -> dict[str, WatchedLog]:
        """Read what is known, by origin; raise StartupError for what is damaged.

        Each checkpoint must carry a signature of the log and a cosignature of the witness, so that
        none is believed that was not cosigned here.
        """
        found: dict[str, WatchedLog] = {}
        for place in sorted(self._folder.iterdir()):
            if _HASH.fullmatch(place.name) and (place / _VKEYS).exists():
                log = _read(place, cosigners)
                found[log.origin] = log
        return found

    def put_vkeys(self, origin: str, vkeys: Sequence[str]) -> None:
        """Keep the keys that are trusted; makes the log's place."""
        place = self._place(origin)
        if not place.is_dir():
            place.mkdir(mode=0o700)
            sync_folder(self._folder)
        write_durable(place / _VKEYS, "".join(f"{line}\n" for line in vkeys).encode())

    def put_checkpoint(self, origin: str, note: bytes) -> None:
        """Keep what is about to be cosigned; when this returns it is on the disk."""
        write_durable(self._place(origin) / _CHECKPOINT, note)

    def put_successor(self, origin: str, successor: str) -> None:
        """Keep that a log has ended."""
        write_durable(self._place(origin) / _SUCCESSOR, f"{successor}\n".encode())

    def put_conflict(self, origin: str, note: bytes) -> None:
        """Keep the proof of a fork."""
        write_durable(self._place(origin) / _CONFLICT, note)

    def forget(self, origin: str, size: int) -> None:
        """Put away what is known of a log. It is kept as evidence, and read no more."""
        place = self._place(origin)
        away = self._folder / "forgotten"
        away.mkdir(mode=0o700, exist_ok=True)
        place.rename(away / f"{place.name}.{size}.{time.time_ns()}")
        sync_folder(away)
        sync_folder(self._folder)

    def _place(self, origin: str) -> Path:
        return self._folder / sha256(origin.encode()).hexdigest()


def _read(place: Path, cosigners: Sequence[CosignatureVerifier]) -> WatchedLog:
    for leftover in place.glob(".*"):
        # Of a write that died; it was never in use.
        leftover.unlink(missing_ok=True)
    try:
        lines = tuple(_optional(place / _VKEYS).decode().split())
        verifiers = parse_vkeys("\n".join(lines))
        origin = verifiers[0].name
        named = {verifier.name for verifier in verifiers} == {origin}
        if not named or sha256(origin.encode()).hexdigest() != place.name:
            raise StartupError(f"{place} holds what the witness knows of another log")
        log = WatchedLog(
            origin,
            lines,
            successor=_optional(place / _SUCCESSOR).decode().strip(),
            conflict=_optional(place / _CONFLICT),
        )
        note = _optional(place / _CHECKPOINT)
        return with_checkpoint(log, note, verifiers, cosigners) if note else log
    except (TlogError, UnicodeDecodeError):
        raise StartupError(f"{place} is damaged: restore what the witness knows") from None


def with_checkpoint(
    log: WatchedLog,
    note: bytes,
    verifiers: Sequence[Verifier],
    cosigners: Sequence[CosignatureVerifier],
) -> WatchedLog:
    """Return what is known after a checkpoint was cosigned; raise TlogError."""
    checkpoint, opened = open_signed_checkpoint(note, [*verifiers, *cosigners], log.origin)
    lines = {(line.name, line.key_id): line for line in opened.verified}
    known = {(v.name, v.key_id) for v in verifiers}
    times = [timestamp_of(lines[key].signature) for c in cosigners if (key := _id(c)) in lines]
    if not times or known.isdisjoint(lines):
        raise TlogError("checkpoint was not cosigned here")
    return replace(
        log, checkpoint=note, size=checkpoint.size, root=checkpoint.root, time=max(times)
    )


def _id(verifier: CosignatureVerifier) -> tuple[str, bytes]:
    return verifier.name, verifier.key_id


def _optional(path: Path) -> bytes:
    try:
        return read_private(path)
    except FileNotFoundError:
        return b""
    except OSError:
        raise StartupError(f"{os.fspath(path)} cannot be read") from None
