"""The thread between the seam and the models: takes what waits, has it answered, goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import structlog

from sealward.kit.errors import SealwardError
from sealward.kit.logging import where
from sealward.kit.reasons import Reason
from sealward.kit.seam import Answer, Call, Front
from services.inference.batching import Batcher
from services.inference.runspans import Traced


class Worker:
    """Serves one front with one batcher. `on_death` is told when the thread ends unasked.

    `release` takes over answers whose runs are to be recorded first.
    """

    def __init__(
        self,
        front: Front,
        batcher: Batcher,
        log: structlog.typing.FilteringBoundLogger,
        on_death: Callable[[str], None],
        release: Callable[[Sequence[Traced]], None],
    ) -> None:
        self._front = front
        self._batcher = batcher
        self._log = log
        self._on_death = on_death
        self._release = release
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait for the end: it comes when the front is closed and its calls were taken."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while calls := self._front.recv():
                self._serve(calls)
        except BaseException as error:
            self._log.critical("worker.died", error_type=type(error).__name__, where=where(error))
            self._on_death("the worker thread died")
            raise

    def _serve(self, calls: Sequence[Call]) -> None:
        owed = {call.id for call in calls}

        def reply(answers: Sequence[Answer]) -> None:
            owed.difference_update(answer.id for answer in answers)
            self._front.reply(answers)

        def release(traced: Sequence[Traced]) -> None:
            owed.difference_update(one.answer.id for one in traced)
            self._release(traced)

        try:
            self._batcher.handle(calls, reply, self._front.cancelled, release)
        except Exception as error:  # noqa: BLE001 - a fault of ours: these calls fail, we serve on
            self._log.error("batch.failed", error_type=type(error).__name__, where=where(error))
        if owed:
            lost = SealwardError(Reason.INTERNAL, "internal error")
            self._front.reply([Answer(number, error=lost) for number in sorted(owed)])
