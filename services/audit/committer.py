"""The door to the log for everything that is no release: exported spans and the own events.

Callers of many threads wait here; one thread takes what has gathered and appends it as one batch,
so that they share one fsync. The queue is bounded: what does not fit is refused at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from sealward.kit.errors import SealwardError
from sealward.kit.logging import where
from sealward.kit.reasons import Reason
from services.audit.entry import Candidate
from services.audit.log import Committed, Placed
from services.audit.metrics import AuditMetrics

# One batch holds up an urgent one at most this long (some milliseconds).
_BATCH = 256

Result = Placed | SealwardError


class Appender(Protocol):
    """What appends (log.Log)."""

    def append(
        self, candidates: Sequence[Candidate], *, urgent: bool = False, proofs: bool = True
    ) -> Committed:
        """Append a batch durably; raise SealwardError (see log.Log)."""


class MeteredAppender:
    """Counts and times what is appended."""

    def __init__(self, log: Appender, metrics: AuditMetrics) -> None:
        self._log = log
        self._metrics = metrics

    def append(
        self, candidates: Sequence[Candidate], *, urgent: bool = False, proofs: bool = True
    ) -> Committed:
        """See Appender."""
        metrics = self._metrics
        started = time.perf_counter()
        try:
            done = self._log.append(candidates, urgent=urgent, proofs=proofs)
        except SealwardError as error:
            metrics.refused.labels(error.reason.name).inc(len(candidates))
            raise
        metrics.append_seconds.observe(time.perf_counter() - started)
        metrics.batch_entries.observe(len(candidates))
        metrics.entries.inc(done.added)
        metrics.conflicts.inc(len(done.conflicts))
        metrics.repeated.inc(len(candidates) - done.added - len(done.conflicts))
        dropped = sum(c.dropped for c in candidates)
        if dropped:
            metrics.attributes_dropped.inc(dropped)
        return done


class _Ticket:
    __slots__ = ("candidates", "done", "error", "results")

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = candidates
        self.results: list[Result] = []
        self.error: SealwardError | None = None
        self.done = threading.Event()


class Committer:
    """Gathers candidates and appends them. Thread-safe.

    `limit` bounds the candidates that wait. `on_conflicts` is called, after the batch, with the
    candidates whose ids were taken.
    """

    def __init__(
        self,
        log: Appender,
        logger: structlog.typing.FilteringBoundLogger,
        limit: int,
        on_conflicts: Callable[[Sequence[Candidate]], None],
        on_waiting: Callable[[int], None] = lambda _count: None,
    ) -> None:
        self._log = log
        self._logger = logger
        self._limit = limit
        self._on_conflicts = on_conflicts
        self._on_waiting = on_waiting
        self._condition = threading.Condition()
        self._queue: list[_Ticket] = []
        self._waiting = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)

    def start(self) -> None:
        """Begin to append."""
        self._thread.start()

    def submit(self, candidates: Sequence[Candidate]) -> list[Result]:
        """Append candidates and return each one's result when all are durable.

        Raise SealwardError: AUDIT_UNAVAILABLE with a time to wait when too much waits already, or
        what the log raises.
        """
        if not candidates:
            return []
        ticket = self._enter(candidates)
        ticket.done.wait()
        if ticket.error is not None:
            raise ticket.error
        return ticket.results

    def submit_later(self, candidates: Sequence[Candidate]) -> None:
        """Append candidates without waiting; raise SealwardError when too much waits already."""
        self._enter(candidates)

    def close(self, timeout: float) -> None:
        """Refuse new candidates and append those that wait."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _enter(self, candidates: Sequence[Candidate]) -> _Ticket:
        ticket = _Ticket(candidates)
        with self._condition:
            if self._closed:
                raise SealwardError(
                    Reason.DRAINING, "the service is shutting down", retry_after=1.0
                )
            if self._waiting and self._waiting + len(candidates) > self._limit:
                raise crowded()
            self._queue.append(ticket)
            self._waiting += len(candidates)
            self._on_waiting(self._waiting)
            self._condition.notify_all()
        return ticket

    def _run(self) -> None:
        while tickets := self._take():
            try:
                self._commit(tickets)
            except SealwardError as error:
                _fail(tickets, error)
            except Exception as error:  # noqa: BLE001 - who waits must get an answer
                self._logger.error(
                    "committer.failed", error_type=type(error).__name__, where=where(error)
                )
                _fail(tickets, SealwardError(Reason.INTERNAL, "internal error"))
            with self._condition:
                self._waiting -= sum(len(t.candidates) for t in tickets)
                self._on_waiting(self._waiting)

    def _take(self) -> list[_Ticket]:
        with self._condition:
            self._condition.wait_for(lambda: self._queue or self._closed)
            taken: list[_Ticket] = []
            size = 0
            while self._queue and (not taken or size + len(self._queue[0].candidates) <= _BATCH):
                ticket = self._queue.pop(0)
                size += len(ticket.candidates)
                taken.append(ticket)
            return taken

    def _commit(self, tickets: Sequence[_Ticket]) -> None:
        candidates = [c for ticket in tickets for c in ticket.candidates]
        results: list[Result] = []
        conflicts: list[Candidate] = []
        # A ticket larger than a batch is appended in parts; it is answered when all are durable,
        # and a repetition after a failure halfway finds the first parts already there.
        for start in range(0, len(candidates), _BATCH):
            part = candidates[start : start + _BATCH]
            # Nobody who waits here is given a receipt.
            done = self._log.append(part, proofs=False)
            results += done.results
            conflicts += [part[n] for n in done.conflicts]
        at = 0
        for ticket in tickets:
            ticket.results = results[at : at + len(ticket.candidates)]
            at += len(ticket.candidates)
            ticket.done.set()
        if conflicts:
            self._on_conflicts(conflicts)


def _fail(tickets: Sequence[_Ticket], error: SealwardError) -> None:
    for ticket in tickets:
        if not ticket.done.is_set():
            ticket.error = error
            ticket.done.set()


def crowded() -> SealwardError:
    """The error for what does not fit before the log any more."""
    return SealwardError(
        Reason.AUDIT_UNAVAILABLE, "too much waits for the audit log", retry_after=0.5
    )
