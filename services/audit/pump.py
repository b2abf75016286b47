"""The hot path: takes what waits at the front, appends it as one batch, answers all.

Whatever arrived while the last batch was made durable is the next batch. There is no timer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import structlog

from sealward.api.audit.v1.audit_pb2 import Receipt
from sealward.kit.errors import SealwardError
from sealward.kit.logging import where
from sealward.kit.reasons import Reason
from sealward.kit.seam import Answer, Call, Front
from services.audit.committer import Appender
from services.audit.entry import Candidate, Maker
from services.audit.log import Placed


class AppendPump:
    """Serves AuditService.Append from a front, in a thread of its own."""

    def __init__(
        self,
        front: Front,
        log: Appender,
        maker: Maker,
        logger: structlog.typing.FilteringBoundLogger,
        on_conflicts: Callable[[Sequence[Candidate]], None],
        on_refused: Callable[[Reason], None] = lambda _reason: None,
    ) -> None:
        self._front = front
        self._log = log
        self._maker = maker
        self._logger = logger
        self._on_conflicts = on_conflicts
        self._on_refused = on_refused
        self._thread = threading.Thread(target=self._run, name="append", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait for the last batch after the front was closed."""
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while calls := self._front.recv():
            try:
                groups = self.handle(calls)
            except Exception as error:  # noqa: BLE001 - who waits must get an answer
                self._logger.error(
                    "append.failed", error_type=type(error).__name__, where=where(error)
                )
                failed = SealwardError(Reason.INTERNAL, "internal error")
                groups = {b"": [Answer(call.id, error=failed) for call in calls]}
            for checkpoint, answers in groups.items():
                self._front.reply(answers, checkpoint)

    def handle(self, calls: Sequence[Call]) -> dict[bytes, list[Answer]]:
        """Append a batch of calls; return the answers by the checkpoint that they share.

        One group is the rule: entries of one tenant, into one log. What has no receipt is with any.
        """
        answers: list[Answer] = []
        accepted: list[Call] = []
        candidates: list[Candidate] = []
        appended = self._maker.appended
        for call in calls:
            try:
                candidates.append(appended(call.body, call.peer.identity))
                accepted.append(call)
            except SealwardError as error:
                self._on_refused(error.reason)
                answers.append(Answer(call.id, error=error))
        if not candidates:
            return {b"": answers}
        try:
            done = self._log.append(candidates, urgent=True)
        except SealwardError as error:
            answers += [Answer(call.id, error=error) for call in accepted]
            return {b"": answers}
        groups = {done.checkpoint: answers}
        for call, result in zip(accepted, done.results, strict=True):
            if isinstance(result, Placed):
                body = Receipt(log_index=result.index, leaf=result.leaf, path=result.path)
                answer = Answer(call.id, body.SerializeToString())
                if result.checkpoint:
                    groups.setdefault(result.checkpoint, []).append(answer)
                else:
                    answers.append(answer)
            else:
                answers.append(Answer(call.id, error=result))
        if done.conflicts:
            self._on_conflicts([candidates[n] for n in done.conflicts])
        return groups
