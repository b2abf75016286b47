"""Asks the witnesses, round by round, from two threads of its own.

The built-in witness is asked as often as something was published, so that it is never far behind
and never waits for anybody. Witnesses elsewhere are asked more slowly, all at once, for a
checkpoint that the built-in one has cosigned where the policy counts it: a quorum needs one
checkpoint. A witness that fails is left alone for a while, longer each time.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.logging import where
from sealward.kit.reasons import Reason
from services.audit.cosigning.asking import (
    Conflict,
    Cosigned,
    Refused,
    Witness,
    WitnessAwayError,
    ask,
)
from services.audit.cosigning.builtin import BuiltinWitness
from services.audit.cosigning.introducing import RUNBOOK, Introducer, contradicts
from services.audit.cosigning.policy import Witnesses
from services.audit.cosigning.watched import Newest, WatchedLog
from services.audit.shard import LiveShard, PastShard
from services.audit.shards import Shards
from services.audit.store import StoreError

BUILTIN_SECONDS = 1.0
"""Between two rounds of the built-in witness, while something is published."""

REFRESH_SECONDS = 3600.0
"""A log that does not grow is cosigned anew as often: the time says that it has not grown."""

_LONGEST_BUILTIN, _LONGEST_OUTSIDE = 5.0, 300.0
_TICK_SECONDS = 1.0
_POLL_SECONDS = 0.02


@dataclass
class WitnessRecord:
    """What a witness last said. `cosigned`: seconds since the epoch, 0 = never since the start."""

    witness: Witness
    longest: float
    state: str = ""
    cosigned: int = 0
    failures: int = 0
    next_try: float = 0.0
    claims: dict[str, int] = field(default_factory=dict)

    def succeeded(self, origin: str) -> None:
        """Note a cosignature."""
        self.state, self.cosigned, self.failures, self.next_try = "ok", int(time.time()), 0, 0.0
        self.claims.pop(origin, None)

    def failed(self, state: str) -> None:
        """Note that there was none, and when to try again."""
        self.state = state
        self.failures += 1
        delay = min(self.longest, 2.0 ** min(self.failures - 1, 16))
        self.next_try = time.monotonic() + delay * random.uniform(0.5, 1.0)  # noqa: S311


class Rounds:
    """Keeps the logs cosigned. `on_fork(origin, size, who)` is called once, with what it was."""

    def __init__(
        self,
        shards: Shards,
        builtin: BuiltinWitness,
        witnesses: Witnesses,
        introducer: Introducer,
        logger: structlog.typing.FilteringBoundLogger,
        *,
        outside_seconds: float,
        on_cosigned: Callable[[WatchedLog, Newest], None],
        on_failure: Callable[[str], None],
        on_fork: Callable[[str, int, str], None],
        builtin_seconds: float = BUILTIN_SECONDS,
    ) -> None:
        self._shards = shards
        self._builtin = WitnessRecord(builtin, _LONGEST_BUILTIN)
        self._outside = [WitnessRecord(w, _LONGEST_OUTSIDE) for w in witnesses.outside]
        self._witnesses = witnesses
        self._introducer = introducer
        self._logger = logger
        self._on_cosigned = on_cosigned
        self._on_failure = on_failure
        self._on_fork = on_fork
        self._forked = False
        self._logs: dict[str, WatchedLog] = {}
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(max(1, len(self._outside)), thread_name_prefix="witness")
        self._threads = [
            threading.Thread(target=self._run, args=work, name=name, daemon=True)
            for name, work in (
                ("cosigner", (self._builtin_round, builtin_seconds, self._changed)),
                ("cosigner-outside", (self._outside_round, outside_seconds, None)),
            )
            if self._outside or name == "cosigner"
        ]

    @property
    def records(self) -> list[WitnessRecord]:
        """What each witness last said, the built-in one first."""
        return [self._builtin, *self._outside]

    @property
    def waiting(self) -> float:
        """For how many seconds the entries of some log have waited to be cosigned; 0 = none do."""
        return max((log.waiting for log in self.logs()), default=0.0)

    def start(self) -> None:
        """Begin."""
        self.logs()
        for thread in self._threads:
            thread.start()

    def changed(self) -> None:
        """Say that something was published. Cheap, from any thread."""
        self._changed.set()

    def finish(self, timeout: float) -> None:
        """Wait until the built-in witness has cosigned all there is, unless it is away.

        To be called when nothing is appended any more.
        """
        ends = time.monotonic() + timeout
        while not self._builtin.failures and time.monotonic() < ends:
            heads = [
                (log.shard.log.head[0], log.asked.get(self._builtin.witness.name))
                for log in self.logs()
                if isinstance(log.shard, LiveShard) and not log.shard.closed
            ]
            if all(not size or (asked and asked.size >= size) for size, asked in heads):
                return
            self._changed.set()
            self._stop.wait(_POLL_SECONDS)

    def stop(self, timeout: float) -> None:
        """End; a request under way is not waited for longer than that."""
        self._stop.set()
        self._changed.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def logs(self) -> list[WatchedLog]:
        """Return the logs that are to be cosigned: ends first, then those that grow."""
        wanted: list[LiveShard | PastShard] = []
        for tenant in self._shards.tenants:
            logs = self._shards.of(tenant)
            wanted += [
                past for past in logs.past if past.state == "frozen" and not past.cosigned[0]
            ]
            wanted.append(logs.current)
        with self._lock:
            before, self._logs = self._logs, {}
            for shard in wanted:
                log = before.get(shard.origin)
                if log is None or log.shard is not shard:
                    log = WatchedLog(shard, self._witnesses.policy, self._on_cosigned)
                    if isinstance(shard, LiveShard) and shard.left:
                        log.adopt(shard.left)
                self._logs[shard.origin] = log
            return list(self._logs.values())

    def _run(
        self, round_: Callable[[], None], interval: float, changed: threading.Event | None
    ) -> None:
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                round_()
            except Exception as error:  # noqa: BLE001 - the next round tries again
                self._logger.error(
                    "witness.round-failed", error_type=type(error).__name__, where=where(error)
                )
            self._stop.wait(max(0.0, begun + interval - time.monotonic()))
            if changed is not None:
                changed.wait(_TICK_SECONDS)
                changed.clear()

    # --- the built-in witness -------------------------------------------------------------------

    def _builtin_round(self) -> None:
        record = self._builtin
        for log in self.logs():
            size, note = log.published()
            if time.monotonic() < record.next_try or self._stop.is_set():
                return
            if self._is_due(log, record, size):
                self._ask(record, log, size, note)

    # --- witnesses elsewhere --------------------------------------------------------------------

    def _outside_round(self) -> None:
        works = []
        for log in self.logs():
            size, note = self._for_outside(log)
            if size:
                log.pinned = size
                works.append((log, size, note))
        now = time.monotonic()
        due = [record for record in self._outside if now >= record.next_try]
        for future in [self._pool.submit(self._ask_all, record, works) for record in due]:
            future.result()

    def _for_outside(self, log: WatchedLog) -> tuple[int, bytes]:
        """Return what others are asked for: what the built-in one has cosigned, if it counts."""
        published = log.published()
        if not self._witnesses.builtin or self._builtin.failures:
            return published
        return log.newest_of(self._builtin.witness.verifiers) or published

    def _ask_all(
        self, record: WitnessRecord, works: Sequence[tuple[WatchedLog, int, bytes]]
    ) -> None:
        for log, size, note in works:
            if self._stop.is_set():
                return
            if self._is_due(log, record, size) and not self._ask(record, log, size, note):
                return

    # --- both ------------------------------------------------------------------------------------

    def _is_due(self, log: WatchedLog, record: WitnessRecord, size: int) -> bool:
        asked = log.asked.get(record.witness.name)
        if not size or log.given_up or (asked is not None and asked.size > size):
            return False
        if asked is None or asked.size < size:
            return True
        return isinstance(log.shard, LiveShard) and asked.age >= REFRESH_SECONDS

    def _ask(self, record: WitnessRecord, log: WatchedLog, size: int, note: bytes) -> bool:
        """Ask one witness about one log; return whether it cosigned."""
        name = record.witness.name
        try:
            result, known = ask(record.witness, log.log, size, note, log.known.get(name, 0))
            if (
                record is self._builtin
                and isinstance(result, Refused)
                and result.state != "away"
                and self._introduce(log)
            ):
                result, known = ask(record.witness, log.log, size, note, known)
        except (StoreError, SealwardError, StartupError) as error:
            self._failed(record, log, "refused", type(error).__name__)
            return False
        log.known[name] = known
        if log.given_up:
            return False
        if isinstance(result, Cosigned):
            if record.failures:
                self._logger.info("witness.recovered", name=name, origin=log.origin)
            record.succeeded(log.origin)
            log.note_asked(name, size)
            log.cosigned(size, note, result.lines)
            return True
        if isinstance(result, Conflict):
            self._failed(record, log, "conflict", "")
            self._conflict(record, log, result.size)
        else:
            self._failed(record, log, result.state, "")
        return False

    def _introduce(self, log: WatchedLog) -> bool:
        """Make a log or its newest key known to the built-in witness; return whether it is."""
        try:
            self._introducer.introduce(log.shard, self._shards.of(log.shard.tenant))
        except SealwardError as error:
            # A log that ended before there was a witness stays as it is.
            log.given_up = isinstance(log.shard, PastShard) and error.reason is Reason.LOG_STATE
            self._logger.warning(
                "witness.not-introduced", origin=log.origin, reason=error.reason.name
            )
            return False
        return True

    def _failed(self, record: WitnessRecord, log: WatchedLog, state: str, kind: str) -> None:
        record.failed(state)
        self._on_failure(record.witness.name)
        # Once when it begins, and now and then: not every few seconds for days.
        if record.failures & (record.failures - 1) == 0:
            self._logger.warning(
                "witness.failed", name=record.witness.name, origin=log.origin, state=state,
                count=record.failures, error_type=kind,
            )  # fmt: skip

    def _conflict(self, record: WitnessRecord, log: WatchedLog, size: int) -> None:
        """Stop where the conflict is proven, or believed by too many to go on without them."""
        try:
            note = record.witness.latest(log.origin)
        except WitnessAwayError:
            note = b""
        proven = contradicts(note, log.verifiers, log.log)
        record.claims[log.origin] = size
        claiming = {
            (v.name, v.key_id)
            for other in self.records
            if log.origin in other.claims
            for v in other.witness.verifiers
        }
        others = {w.identity for w in self._witnesses.policy.witnesses} - claiming
        if proven or record is self._builtin or not self._witnesses.policy.satisfied(others):
            with self._lock:
                first, self._forked = not self._forked, True
            if first:
                self._on_fork(log.origin, size, record.witness.name)


def fork_message(origin: str, cosigned: int, size: int, who: str) -> str:
    """Return the one line with which the service ends."""
    return (
        f"the log {origin} was rolled back or forked: witness {who} has cosigned {cosigned}"
        f" entries, which the {size} here do not continue; {RUNBOOK}"
    )
