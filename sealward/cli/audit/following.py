"""`sealward audit verify --follow`: verifies what a log publishes, as it is published.

Trust begins with the keys given and goes on by what the log itself says under them: an entry that
changes its key names the new one, the last entry of a log names the log that follows and its key,
and the first entry of that one holds the final checkpoint of the one before. So nobody who
exchanges the key file beside the log leads a watcher astray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sealward.cli import interrupt
from sealward.cli.errors import CliError
from sealward.tlog.checkpoint import Checkpoint, open_checkpoint
from sealward.tlog.errors import TlogError
from sealward.tlog.logchange import LogChange, LogFinal, LogKey, LogSuccessor
from sealward.tlog.logdir import LogReport
from sealward.tlog.note import Verifier, parse_vkey
from sealward.tlog.tiles import CHECKPOINT_PATH

Verify = Callable[[Path, Sequence[Verifier], Checkpoint | None], LogReport]
"""Verifies the log in a folder after a checkpoint, or whole; raises CliError."""

_LOOK_SECONDS = 0.5
# A turn of the log moves folders; for so long there may be none.
_MISSING_SECONDS = 10.0


class Follower:
    """Follows the log in a folder, and the one after it. Trusts `vkeys` and what they lead to."""

    def __init__(
        self,
        folder: Path,
        vkeys: Sequence[Verifier],
        verify: Verify,
        *,
        patience: float = _MISSING_SECONDS,
        pause: Callable[[], None] = lambda: interrupt.pause(_LOOK_SECONDS),
    ) -> None:
        self._folder = folder
        self._vkeys = list(vkeys)
        self._verify = verify
        self._patience = patience
        self._pause = pause
        self._note = b""
        self._at: Checkpoint | None = None
        self._final: LogFinal | None = None

    def begin(self, after: Checkpoint | None) -> list[LogReport]:
        """Verify what is there, after a checkpoint if one is given; raise CliError.

        The log of that checkpoint may have ended since; then it and its successor are verified.
        """
        if after is not None:
            try:
                origin = _origin_of((self._folder / CHECKPOINT_PATH).read_bytes())
            except OSError:
                # The verification says what is wrong with it.
                origin = after.origin
            if after.origin != origin:
                self._at = after
                return self._turn(origin)
        return [self._go_on(self._folder, after)]

    def follow(self) -> Iterator[LogReport]:
        """Yield a report for each growth, without end; raise CliError for the first thing wrong."""
        while True:
            reports = self.step()
            yield from reports
            if not reports:
                self._pause()

    def step(self) -> list[LogReport]:
        """Verify what has come since the last time; raise CliError."""
        note = self._read()
        if note == self._note:
            return self._elsewhere()
        origin = _origin_of(note)
        if self._at is None or origin == self._at.origin:
            before = self._at
            report = self._go_on(self._folder, before)
            # The same tree with one more signature is no growth.
            return [report] if report.checkpoint != before else []
        return self._turn(origin)

    def _turn(self, origin: str) -> list[LogReport]:
        """The folder holds another log now: finish the one before, then begin this one."""
        reports = []
        if self._final is None and self._at is not None:
            moved = _place_of(self._folder.parent / "logs", self._at.origin)
            if not (moved / CHECKPOINT_PATH).exists():
                raise CliError(
                    f"{self._folder} holds another log now, {origin}; what came last in"
                    f" {self._at.origin} after {self._at.size} entries has not been seen",
                    advice=f"sealward audit verify --log {moved}, then follow again",
                    verified=False,
                )
            reports.append(self._go_on(moved, self._at))
            if self._final is None:
                # Its last entry was verified before, by somebody who did not keep what it says.
                self._go_on(moved, None)
        return [*reports, self._succeed(self._folder, origin)]

    def _elsewhere(self) -> list[LogReport]:
        """Look for the successor of a log that has ended and stays where it is."""
        if self._final is None:
            return []
        folder = _place_of(self._folder.parent.parent.parent, self._final.successor)
        if folder == self._folder or not (folder / CHECKPOINT_PATH).exists():
            return []
        self._folder = folder
        return [self._succeed(folder, self._final.successor)]

    def _succeed(self, folder: Path, origin: str) -> LogReport:
        ended, final = self._at, self._final
        if ended is None or final is None or final.successor != origin:
            raise CliError(
                f"{folder} holds a log that does not follow the one before: {origin}",
                verified=False,
            )
        self._at, self._final = None, None
        report = self._go_on(folder, None)
        place, first = report.changes[0] if report.changes else (0, None)
        if (
            place
            or not isinstance(first, LogSuccessor)
            or first.origin != origin
            or self._checkpoint_of(first) != ended
        ):
            raise CliError(
                f"the log {origin} does not begin with the final checkpoint of {ended.origin}",
                verified=False,
                entry=0,
            )
        return report

    def _checkpoint_of(self, change: LogSuccessor) -> Checkpoint | None:
        try:
            return open_checkpoint(change.checkpoint, self._vkeys)
        except TlogError:
            return None

    def _go_on(self, folder: Path, after: Checkpoint | None) -> LogReport:
        report = self._verify(folder, self._vkeys, after)
        self._at, self._note = report.checkpoint, report.note
        if report.size != report.after:
            # A log that goes on after its end has not ended.
            self._final = None
        for place, change in report.changes:
            self._learn(change, report, last=place == report.size - 1)
        return report

    def _learn(self, change: LogChange, report: LogReport, *, last: bool) -> None:
        """Trust the key that an entry of a verified log names."""
        if change.origin != report.origin:
            return
        if isinstance(change, LogKey):
            self._trust(change.new)
        elif isinstance(change, LogFinal) and last:
            self._trust(change.key)
            self._final = change

    def _trust(self, line: str) -> None:
        key = parse_vkey(line)
        if all((key.name, key.key_id) != (known.name, known.key_id) for known in self._vkeys):
            self._vkeys.append(key)

    def _read(self) -> bytes:
        """Return the published checkpoint; wait while there is none."""
        ends = time.monotonic() + self._patience
        while True:
            try:
                return (self._folder / CHECKPOINT_PATH).read_bytes()
            except OSError:
                if time.monotonic() >= ends:
                    raise CliError(
                        f"{self._folder / CHECKPOINT_PATH} cannot be read any more", verified=False
                    ) from None
                self._pause()


def _origin_of(note: bytes) -> str:
    """Return the log that a checkpoint, not verified yet, names."""
    return note.partition(b"\n")[0].decode("utf-8", "replace")


def _place_of(logs: Path, origin: str) -> Path:
    """Return where a suite keeps a log that is not the first tenant's current one."""
    *_, tenant, label = origin.split("/")
    return logs / tenant / label / "log"
