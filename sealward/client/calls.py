"""The caller's own list of its calls, and the numbers that they carry.

    calls.ndjson           the newest calls, one line when a call is sent and one when it ended
    calls-000001.ndjson    earlier ones, the oldest with the lowest number
    sequence               how far the numbers of each session have come; also the lock of all three

The format is in kit/calllist.py. It is what the caller holds against the operator's log: receipts
show only what the operator chose to write. A call is in the list before it is sent, so a call whose
answer never came is there too.

Every process that shares the folder writes to the same list. A line survives the death of its
process; the lines of the last second may be lost when the machine stops without warning, and then
the numbers go on above every number that can have been sent. Needs file locks (POSIX).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from sealward.client.errors import CallError, ProfileError, TrustError
from sealward.client.numbers import boot_of_machine, locked, tag_of
from sealward.client.verify import Proof
from sealward.kit.calllist import (
    NO_ANSWER,
    UNTRUSTED,
    Begins,
    Ended,
    Line,
    Sent,
    Skipped,
    write_line,
)

CURRENT = "calls.ndjson"

_LOG = logging.getLogger("sealward.client")
_PART_BYTES = 16 << 20
_DEFAULT_MIB = 256
_SYNC_SECONDS = 1.0
_APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class ListedCall:
    """A call that is in the list. Whoever made it says how it ended, once."""

    def __init__(self, calls: CallList, session: str, seq: int) -> None:
        self._calls = calls
        self.session = session
        self.seq = seq

    def answered(self, proof: Proof) -> None:
        """It was answered, and its receipt holds."""
        self._end(proof.outcome, proof.event_id, proof.origin, proof.log_index)

    def failed(self, error: BaseException) -> None:
        """It ended with an error. One that says nothing of the call leaves it without an end."""
        if isinstance(error, CallError):
            code, reason = error.code.name, error.reason
            if error.outcome:
                self._end(
                    error.outcome, error.event_id, error.origin, error.log_index, code, reason
                )
            else:
                self._end(NO_ANSWER, code=code, reason=reason)
        elif isinstance(error, TrustError):
            self._end(UNTRUSTED)

    def _end(
        self,
        outcome: str,
        event_id: str = "",
        log: str = "",
        log_index: int | None = None,
        code: str = "",
        reason: str = "",
    ) -> None:
        found = UUID(event_id).bytes if event_id else b""
        now = time.time_ns()
        self._calls.end(
            Ended(self.session, self.seq, now, outcome, found, log, log_index, code, reason)
        )


class CallList:
    """The list of one profile folder. Thread-safe, and safe between processes.

    `mib` bounds the files together; what is older is removed. It comes from SEALWARD_CALLS_MIB when
    it is not given.
    """

    def __init__(
        self,
        folder: Path,
        user: str,
        *,
        mib: int | None = None,
        part_bytes: int = _PART_BYTES,
        boot: bytes | None = None,
    ) -> None:
        self._folder = folder
        self._user = user
        self._state = folder / "sequence"
        self._current = folder / CURRENT
        self._part_bytes = part_bytes
        self._parts = max(2, ((_configured_mib() if mib is None else mib) << 20) // part_bytes)
        self._boot = boot_of_machine() if boot is None else boot
        self._synced = float("-inf")
        self._complained = False

    def begin(self, token: str, seq: int | None = None) -> ListedCall:
        """Number a call of the session of this token and put it into the list, before it is sent.

        `seq` is a number that the caller chose itself. Raises ProfileError: then it must not be
        sent.
        """
        try:
            with locked(self._state) as numbers:
                slot = numbers.slot(tag_of(token))
                now, before = time.time_ns(), slot.count
                number = slot.count_on(self._boot) if seq is None else seq
                slot.used = now
                numbers.keep(slot)
                lines: list[Line] = [Sent(slot.label, number, now)]
                if seq is None and number > before + 1:
                    lines.insert(0, Skipped(slot.label, before + 1, number - 1, now))
                try:
                    self._append(lines)
                except OSError:
                    # It is not sent: its number is the next one's.
                    slot.count = number - 1 if seq is None else before
                    numbers.keep(slot)
                    raise
                return ListedCall(self, slot.label, number)
        except OSError:
            raise ProfileError(f"{self._folder} cannot be written") from None

    def learn(self, token: str, session_id: str) -> None:
        """Keep the public id of the session of a token. Raises ProfileError."""
        try:
            session = bytes.fromhex(session_id)
        except ValueError:
            return
        if len(session) != 16:
            return
        try:
            with locked(self._state) as numbers:
                slot = numbers.slot(tag_of(token))
                slot.session, slot.used = session, time.time_ns()
                numbers.keep(slot)
        except OSError:
            raise ProfileError(f"{self._folder} cannot be written") from None

    def end(self, line: Ended) -> None:
        """Say how a call ended. A disk that does not take it is no reason to lose the answer."""
        try:
            with locked(self._state):
                self._append((line,))
            now = time.monotonic()
            if now - self._synced >= _SYNC_SECONDS:
                self._synced = now
                self._sync()
        except (OSError, ProfileError):
            if not self._complained:
                self._complained = True
                _LOG.warning("%s cannot be written: calls are listed without end", self._current)

    def close(self) -> None:
        """Put what was written on the disk."""
        with suppress(OSError):
            self._sync()

    def _append(self, lines: Sequence[Line]) -> None:
        descriptor = self._open()
        try:
            _write(descriptor, b"".join(map(write_line, lines)))
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        """Open the newest file; begin another one when it is full."""
        descriptor = os.open(self._current, _APPEND, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                # The disk was full, or the machine stopped: only that one line is spoilt.
                _write(descriptor, b"\n")
            if size and size < self._part_bytes:
                return descriptor
            earlier = self._earlier()
            number = (_number(earlier[-1]) if earlier else 0) + 1
            if size:
                self._current.rename(self._folder / f"calls-{number:06d}.ndjson")
                number += 1
                for old in earlier[: max(0, len(earlier) + 2 - self._parts)]:
                    old.unlink(missing_ok=True)
                os.close(descriptor)
                descriptor = os.open(self._current, _APPEND, 0o600)
            _write(descriptor, write_line(Begins(self._user, number, time.time_ns())))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _earlier(self) -> list[Path]:
        return sorted(p for p in self._folder.glob("calls-*.ndjson") if _number(p))

    def _sync(self) -> None:
        descriptor = os.open(self._current, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)


def _number(path: Path) -> int:
    """Return which file of the list this is; 0 for one that is none."""
    digits = path.name.removeprefix("calls-").removesuffix(".ndjson")
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def _write(descriptor: int, data: bytes) -> None:
    if os.write(descriptor, data) != len(data):
        raise OSError("the disk is full")


def _configured_mib() -> int:
    text = os.environ.get("SEALWARD_CALLS_MIB", "")
    if not text:
        return _DEFAULT_MIB
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 1 << 20):
        raise ProfileError("SEALWARD_CALLS_MIB is a number of MiB from 1 to 1048576")
    return int(text)
