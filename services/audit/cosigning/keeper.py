"""Puts cosigning together: witnesses, rounds, what becomes of a cosigned checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.tlog.tiles import CHECKPOINT_PATH, COSIGNED_PATH
from services.audit.backend import Backend
from services.audit.committer import Appender
from services.audit.cosigning.builtin import BuiltinWitness
from services.audit.cosigning.introducing import Introducer
from services.audit.cosigning.policy import read_witnesses, shown_policy
from services.audit.cosigning.rounds import Rounds, fork_message
from services.audit.cosigning.watched import Newest, WatchedLog
from services.audit.directory_sink import replace_file
from services.audit.entry import DEFAULT_TENANT, Candidate
from services.audit.events import OwnEvents
from services.audit.log import Committed
from services.audit.metrics import AuditMetrics
from services.audit.settings import AuditSettings
from services.audit.shard import FINAL_COSIGNED, LiveShard, PastShard
from services.audit.shards import Shards
from services.audit.store import StoreError
from services.audit.tilesink import SinkMovedError, SinkUnavailableError

_FINISH_SECONDS = 2.0


class Cosigning:
    """The witnesses of all logs. `fail(reason)` stops the service."""

    def __init__(
        self,
        builtin: BuiltinWitness,
        shards: Shards,
        backend: Backend,
        events: OwnEvents,
        settings: AuditSettings,
        metrics: AuditMetrics,
        logger: structlog.typing.FilteringBoundLogger,
        *,
        policy_file: Path,
        fail: Callable[[str], None],
    ) -> None:
        """Read the policy; raise StartupError. The built-in witness has been asked before."""
        self.witnesses = read_witnesses(
            settings.witness_policy_file,
            builtin,
            seconds=settings.witness_timeout_seconds,
            ca_file=settings.witness_ca_file,
        )
        self._shards = shards
        self._backend = backend
        self._events = events
        self._metrics = metrics
        self._logger = logger
        self._policy_file = policy_file
        self._fail = fail
        self._hold = settings.witness_hold_seconds
        self.behind = False
        """True while entries have waited longer for their cosignatures than they may."""
        self._written = b""
        self.rounds = Rounds(
            shards,
            builtin,
            self.witnesses,
            Introducer(builtin),
            logger,
            outside_seconds=settings.witness_seconds,
            on_cosigned=self._cosigned,
            on_failure=lambda name: metrics.witness_failures.labels(name).inc(),
            on_fork=self._forked,
        )
        metrics.uncosigned.set_function(lambda: self.rounds.waiting)

    def start(self) -> None:
        """Begin."""
        self.write_policy()
        self.rounds.start()

    def tick(self) -> None:
        """Look how long entries have waited; keep the policy file. To be called every second."""
        waiting = self.rounds.waiting
        self.behind = 0 < self._hold < waiting
        self.write_policy()

    def stop(self, timeout: float) -> None:
        """Have what was published last cosigned by the built-in witness, and end."""
        self.rounds.finish(min(timeout, _FINISH_SECONDS))
        self.rounds.stop(timeout)
        for witness in self.witnesses.outside:
            witness.close()

    def policy_text(self) -> bytes:
        """Return the policy with the keys of the default tenant's current log."""
        return shown_policy(self.witnesses, self._shards.current().vkeys)

    def write_policy(self) -> None:
        """Write the policy beside the file of verifier keys, where it has changed."""
        text = self.policy_text()
        if text != self._written:
            replace_file(self._policy_file, text)
            self._written = text

    def _cosigned(self, log: WatchedLog, newest: Newest) -> None:
        shard = log.shard
        if isinstance(shard, PastShard):
            self._keep_end(shard, newest)
        elif isinstance(shard, LiveShard):
            shard.cosigned = (newest.size, newest.note)
            shard.publisher.cosigned(newest.size, newest.note)
        if shard.tenant == DEFAULT_TENANT and isinstance(shard, LiveShard):
            self._metrics.cosigned_size.set(newest.size)
            self._metrics.cosigned_time.set(newest.time)

    def _keep_end(self, shard: PastShard, newest: Newest) -> None:
        """Keep the cosigned end of a log with it, and publish it."""
        try:
            shard.store.put([(FINAL_COSIGNED, newest.note)])
            shard.cosigned = (newest.size, newest.note)
            sink = self._backend.sink(shard.place, shard.origin)
            sink.read(CHECKPOINT_PATH)
            for path in (COSIGNED_PATH, CHECKPOINT_PATH):
                sink.write(path, newest.note)
            sink.flush()
        except (StoreError, SinkUnavailableError, SinkMovedError, OSError) as error:
            # It may have been archived meanwhile: then it stays as it is.
            self._logger.warning(
                "witness.end-not-kept", origin=shard.origin, error_type=type(error).__name__
            )

    def _forked(self, origin: str, cosigned: int, who: str) -> None:
        """Record that a witness knows of another history, and stop."""
        size = self._shards.by_origin(origin).log.head[0]
        reason = fork_message(origin, cosigned, size, who)
        self._logger.critical("log.forked", origin=origin, name=who, size=cosigned)
        # The log may not take it, and the end does not wait for that.
        recorder = threading.Thread(
            target=self._record, args=(origin, cosigned), name="fork", daemon=True
        )
        recorder.start()
        recorder.join(5.0)
        self._fail(reason)

    def _record(self, origin: str, cosigned: int) -> None:
        try:
            self._events.fork(origin, cosigned)
        except SealwardError as error:
            self._logger.error("event.lost", name="audit.fork", reason=error.reason.name)


class HeldAppender:
    """Refuses what would be released while too much waits for its cosignatures."""

    def __init__(self, appender: Appender, behind: Callable[[], bool]) -> None:
        self._appender = appender
        self._behind = behind

    def append(
        self, candidates: Sequence[Candidate], *, urgent: bool = False, proofs: bool = True
    ) -> Committed:
        """See committer.Appender."""
        if urgent and self._behind():
            raise SealwardError(
                Reason.AUDIT_UNAVAILABLE,
                "the audit log waits for its witnesses",
                retry_after=5.0,
            )
        return self._appender.append(candidates, urgent=urgent, proofs=proofs)
