"""The witness itself: what it takes on, what it cosigns, what it keeps.

Nothing is cosigned that is smaller than what was cosigned before, or does not continue it. What is
about to be cosigned is on the disk before the cosignature leaves, and nothing else is judged
meanwhile: a process that dies in between has promised nothing that it does not know.

A tenant has one log that grows. A log that nobody vouches for is taken on only where the witness
knows of none of that tenant, or only of such that have ended; the next log, and the next key of a
log, are vouched for by an entry in the log that the witness knows (sealward.tlog.logchange).
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from sealward.tlog.checkpoint import Checkpoint, open_checkpoint
from sealward.tlog.errors import LeafError, NoteError, TlogError, WitnessFormatError
from sealward.tlog.logchange import LogFinal, LogKey, parse_change_leaf
from sealward.tlog.merkle import leaf_hash, verify_inclusion
from sealward.tlog.note import Signature, Verifier, format_signatures, parse_vkey
from sealward.tlog.proof import TlogProof
from sealward.tlog.witness import (
    SIZE_TYPE,
    AddCheckpoint,
    Judgement,
    KnownLog,
    Status,
    format_size,
    judge,
)
from services.keys.records import Recorder, RefusalLimit
from services.keys.witness.cosigning import Clock, WitnessKeys
from services.keys.witness.folder import WatchedLog, WitnessFolder, with_checkpoint

MAX_LOGS = 4096
"""A deployment has some tenants and one log a year of each; beyond this somebody makes up names."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the protocol: HTTP status, body, content type."""

    status: int
    body: bytes = b""
    content_type: str = ""


class Witness:
    """Thread-safe. One process at a time has the folder."""

    def __init__(
        self,
        folder: Path,
        keys: WitnessKeys,
        recorder: Recorder,
        logger: structlog.typing.FilteringBoundLogger,
        *,
        trust_domain: str,
        clock: Clock,
    ) -> None:
        """Read what is known; raise StartupError when it is damaged or in use."""
        self._folder = WitnessFolder(folder)
        self._keys = keys
        self._recorder = recorder
        self._logger = logger
        self._trust_domain = trust_domain
        self._clock = clock
        self._lock = threading.Lock()
        self._conflicts = RefusalLimit()
        self._flock = _lock(folder)
        try:
            self._logs = self._folder.load(keys.verifiers)
        except BaseException:
            os.close(self._flock)
            raise

    def rewrap(self) -> bool:
        """Move its wrapped key on; return whether there was anything to do. Raise SealwardError."""
        return self._keys.rewrap()

    @property
    def verifiers(self) -> list[str]:
        """The witness's verifier key lines, Ed25519 first."""
        return [verifier.vkey for verifier in self._keys.verifiers]

    def logs(self) -> list[WatchedLog]:
        """Return what is known, by origin."""
        with self._lock:
            return [self._logs[origin] for origin in sorted(self._logs)]

    def add_checkpoint(self, body: bytes) -> Answer:
        """Answer `add-checkpoint` of the witness protocol.

        Raise SealwardError KEYSTORE_UNAVAILABLE when the key or the disk cannot be had,
        AUDIT_UNAVAILABLE when a fork cannot be recorded.
        """
        try:
            request = AddCheckpoint.parse(body)
        except WitnessFormatError:
            return Answer(Status.BAD_REQUEST)
        with self._lock:
            judgement = judge(request, self._known)
            checkpoint = judgement.checkpoint
            if judgement.status is Status.CONFLICT:
                return Answer(Status.CONFLICT, format_size(judgement.known), SIZE_TYPE)
            if checkpoint is None or judgement.status not in {Status.OK, Status.UNPROCESSABLE}:
                return Answer(judgement.status)
            log = self._logs[checkpoint.origin]
            if judgement.status is Status.UNPROCESSABLE or _grows_after_its_end(log, checkpoint):
                self._conflict(log, judgement)
                return Answer(Status.UNPROCESSABLE)
            return Answer(Status.OK, self._cosign(log, judgement))

    def add_log(self, vkey: str, proof: bytes) -> bool:
        """Take on a log, or another key of one that is known; return whether anything changed.

        `proof` is a tlog-proof whose extra data is the entry in clear that names the key: a
        `log-key` entry of the same log, or the `log-final` entry of the log before. Without one the
        log is taken on at first sight, unless its tenant has one that grows. Recorded before it
        takes effect. Raise SealwardError FIELD_INVALID, LOG_STATE, AUDIT_UNAVAILABLE or
        KEYSTORE_UNAVAILABLE.
        """
        try:
            origin = parse_vkey(vkey).name
        except NoteError as error:
            raise _invalid(str(error), "vkey") from None
        self._check_origin(origin)
        with self._lock:
            known = self._logs.get(origin)
            if proof:
                return self._vouched(vkey, origin, known, proof)
            if known is not None and vkey in known.vkeys:
                return False
            if known is not None:
                raise SealwardError(
                    Reason.LOG_STATE, "another key of this log needs the entry that names it"
                )
            for log in self._logs.values():
                if _tenant(log.origin) == _tenant(origin) and not log.successor:
                    raise SealwardError(
                        Reason.LOG_STATE,
                        f"the witness knows the log {log.origin} of {log.size} entries, which has"
                        " not ended: the store was lost, rolled back or exchanged",
                    )
            if len(self._logs) >= MAX_LOGS:
                raise SealwardError(Reason.KEYSTORE_UNAVAILABLE, "the witness knows too many logs")
            self._recorder.record("witness.log", "ok", target=origin)
            self._write(lambda: self._folder.put_vkeys(origin, [vkey]))
            self._logs[origin] = WatchedLog(origin, (vkey,))
            self._logger.info("witness.log", origin=origin)
            return True

    def forget(self, origin: str) -> None:
        """Forget a log, so that it may be taken on anew at any size; raise SealwardError.

        Recorded before it takes effect; what was known stays on the disk as evidence.
        """
        with self._lock:
            log = self._logs.get(origin)
            if log is None:
                raise SealwardError(
                    Reason.NOT_FOUND, "the witness knows no such log", field="origin"
                )
            self._recorder.record("witness.forget", "ok", target=origin, count=log.size)
            self._write(lambda: self._folder.forget(origin, log.size))
            del self._logs[origin]
            self._logger.warning("witness.forgotten", origin=origin, size=log.size)

    def close(self) -> None:
        """Let another process have the folder."""
        os.close(self._flock)

    def _known(self, origin: str) -> KnownLog | None:
        log = self._logs.get(origin)
        return None if log is None else KnownLog(log.verifiers, log.size, log.root)

    def _cosign(self, log: WatchedLog, judgement: Judgement) -> bytes:
        """Keep and cosign a checkpoint; return the lines."""
        cosigners = self._keys.cosigners()
        # It says what the largest tree was at its time: the time does not go back.
        at = max(self._clock(), log.time)
        lines = [Signature(c.name, c.key_id, c.sign_at(judgement.text, at)) for c in cosigners]
        signed = format_signatures([*judgement.signatures, *lines])
        note = judgement.text + b"\n" + signed
        grown = with_checkpoint(log, note, log.verifiers, self._keys.verifiers)
        self._write(lambda: self._folder.put_checkpoint(log.origin, note))
        self._logs[log.origin] = grown
        return format_signatures(lines)

    def _conflict(self, log: WatchedLog, judgement: Judgement) -> None:
        """Record that a log signed what does not continue what it signed before."""
        stands_for = self._conflicts.admit(log.origin)
        if not stands_for:
            return
        self._recorder.record(
            "witness.conflict", "failed", reason=Reason.LOG_STATE.name, target=log.origin,
            count=stands_for,
        )  # fmt: skip
        self._logger.error("witness.conflict", origin=log.origin, size=log.size)
        if not log.conflict:
            note = judgement.text + b"\n" + format_signatures(judgement.signatures)
            self._write(lambda: self._folder.put_conflict(log.origin, note))
            self._logs[log.origin] = replace(log, conflict=note)

    def _vouched(self, vkey: str, origin: str, known: WatchedLog | None, proof: bytes) -> bool:
        try:
            read = TlogProof.parse(proof)
            change = parse_change_leaf(read.extra or b"")[1]
        except (TlogError, LeafError):
            raise _invalid("not the proof of an entry that names a key", "proof") from None
        voucher = self._logs.get(change.origin)
        if voucher is None:
            raise SealwardError(Reason.LOG_STATE, "the witness does not know the log of this entry")
        checkpoint = _check_proof(read, voucher.verifiers, voucher.origin)
        match change:
            case LogKey(_, old, new) if (
                new == vkey and change.origin == origin and known and old in known.vkeys
            ):
                return self._add_key(vkey, known)
            case LogFinal(before, successor, key) if (
                key == vkey and successor == origin and read.index == checkpoint.size - 1
                and _tenant(before) == _tenant(origin)
            ):  # fmt: skip
                return self._take_over(vkey, origin, voucher, checkpoint)
        raise _invalid("the entry does not name this key", "proof")

    def _add_key(self, vkey: str, known: WatchedLog) -> bool:
        if vkey in known.vkeys:
            return False
        self._recorder.record("witness.key", "ok", target=known.origin)
        vkeys = (*known.vkeys, vkey)
        self._write(lambda: self._folder.put_vkeys(known.origin, vkeys))
        self._logs[known.origin] = replace(known, vkeys=vkeys)
        self._logger.info("witness.key", origin=known.origin)
        return True

    def _take_over(
        self, vkey: str, origin: str, voucher: WatchedLog, checkpoint: Checkpoint
    ) -> bool:
        if voucher.successor == origin and origin in self._logs:
            return False
        if voucher.successor not in {"", origin}:
            raise SealwardError(Reason.LOG_STATE, "another log follows the log before")
        if (voucher.size, voucher.root) != (checkpoint.size, checkpoint.root):
            raise SealwardError(
                Reason.LOG_STATE, "the end of the log before has not been cosigned yet"
            )
        if origin not in self._logs:
            self._recorder.record("witness.log", "ok", target=origin)
            self._write(lambda: self._folder.put_vkeys(origin, [vkey]))
            self._logs[origin] = WatchedLog(origin, (vkey,))
        # Last: until then no third log is taken on, and who asks again completes it.
        self._write(lambda: self._folder.put_successor(voucher.origin, origin))
        self._logs[voucher.origin] = replace(voucher, successor=origin)
        self._logger.info("witness.log", origin=origin)
        return True

    def _check_origin(self, origin: str) -> None:
        parts = origin.split("/")
        if len(parts) != 4 or not all(parts) or parts[0] != self._trust_domain:
            raise _invalid("not the key of a log of this trust domain", "vkey")

    def _write(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError:
            raise SealwardError(
                Reason.KEYSTORE_UNAVAILABLE, "what the witness knows cannot be written",
                retry_after=1.0,
            ) from None  # fmt: skip


def _lock(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StartupError("the witness is in use by another process") from None
    return descriptor


def _grows_after_its_end(log: WatchedLog, checkpoint: Checkpoint) -> bool:
    return bool(log.successor) and checkpoint.size > log.size


def _tenant(origin: str) -> str:
    """Return whose log an origin of ours names (trust domain / deployment / tenant / label)."""
    return origin.split("/")[2]


def _check_proof(proof: TlogProof, verifiers: Sequence[Verifier], origin: str) -> Checkpoint:
    """Check that the entry is in a tree that the log signed; raise SealwardError."""
    try:
        checkpoint = open_checkpoint(proof.checkpoint, verifiers, origin)
        verify_inclusion(
            leaf_hash(proof.extra or b""), proof.index, checkpoint.size, proof.path,
            checkpoint.root,
        )  # fmt: skip
    except TlogError as error:
        raise _invalid(f"the entry is not shown to be in the log: {error}", "proof") from None
    return checkpoint


def _invalid(message: str, field: str) -> SealwardError:
    return SealwardError(Reason.FIELD_INVALID, message, field=field)
