"""The runs of traced calls: a span each, below the call's own, durable before the answer leaves.

A call comes with a trace when its caller sent one (`traceparent`). Its run is recorded in the
spool, from where it goes to the log; a reconciler finds an answer without it. The disk is waited
for in a thread of its own, so that no other call waits, and what gathered meanwhile shares one
write.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from sealward.kit.errors import SealwardError
from sealward.kit.logging import where
from sealward.kit.reasons import Reason
from sealward.kit.recorder import Recorder
from sealward.kit.seam import Answer, Front
from sealward.kit.spans import TraceParent
from sealward.kit.spool import Build
from services.inference.manifest import Manifest

EVENT_TYPE = "inference.run"


@dataclass(frozen=True, slots=True)
class Run:
    """What ran of one call: times (nanoseconds since the epoch), rows, place in the batch."""

    manifest: Manifest
    started: int
    ended: int
    rows: int
    size: int
    position: int


@dataclass(frozen=True, slots=True)
class Traced:
    """An answer that waits for the record of its run."""

    answer: Answer
    parent: TraceParent
    run: Run


class RunSpans:
    """Records runs and then releases their answers to `front`. Thread-safe.

    `on_death` is told when the thread ends unasked.
    """

    def __init__(
        self,
        front: Front,
        recorder: Recorder,
        log: structlog.typing.FilteringBoundLogger,
        on_death: Callable[[str], None],
    ) -> None:
        self._front = front
        self._recorder = recorder
        self._log = log
        self._on_death = on_death
        self._condition = threading.Condition()
        self._waiting: list[Traced] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="run-spans", daemon=True)

    def start(self) -> None:
        """Begin to record."""
        self._thread.start()

    def put(self, traced: Sequence[Traced]) -> None:
        """Take answers over; each is released once, or fails when its run cannot be recorded."""
        with self._condition:
            self._waiting += traced
            self._condition.notify()

    def close(self, timeout: float) -> None:
        """Release what waits and end. Nothing may be put after that."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while traced := self._take():
                self._release(traced)
        except BaseException as error:
            self._log.critical("spans.died", error_type=type(error).__name__, where=where(error))
            self._on_death("the thread that records runs died")
            raise

    def _take(self) -> list[Traced]:
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or self._closed)
            taken, self._waiting = self._waiting, []
            return taken

    def _release(self, traced: Sequence[Traced]) -> None:
        try:
            self._recorder.keep([self._compose(one) for one in traced])
            answers = [one.answer for one in traced]
        except SealwardError as error:
            answers = [Answer(t.answer.id, error=error, record=t.answer.record) for t in traced]
        except Exception as error:  # noqa: BLE001 - who waits must get an answer
            self._log.error("spans.failed", error_type=type(error).__name__, where=where(error))
            lost = SealwardError(Reason.INTERNAL, "internal error")
            answers = [Answer(t.answer.id, error=lost, record=t.answer.record) for t in traced]
        self._front.reply(answers)

    def _compose(self, traced: Traced) -> Build:
        run, manifest = traced.run, traced.run.manifest
        return self._recorder.compose(
            EVENT_TYPE,
            "ok",
            start_unix_nano=run.started,
            end_unix_nano=run.ended,
            parent=traced.parent,
            model_name=manifest.name,
            model_version=manifest.version,
            model_digest=manifest.digest,
            determinism=manifest.deterministic,
            rows=run.rows,
            batch_size=run.size,
            batch_position=run.position,
        )[1]
