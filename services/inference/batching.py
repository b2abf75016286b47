"""Handles a batch of calls: check all, run all, answer all, and no call harms another.

The three steps go through the batch one after the other, because going from one to the next costs
more (cold caches) than the step itself. A strict model runs each request alone; a tolerance model
runs the rows of waiting requests together, and singly again when that fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import structlog
from google.protobuf.message import DecodeError

from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.kit.seam import Answer, Call
from sealward.kit.spans import TraceParent
from sealward.kit.status import as_sealward_error
from services.inference import questions
from services.inference.datatypes import Array
from services.inference.engine import RunError
from services.inference.metrics import ModelMetrics
from services.inference.registry import Model, Registry
from services.inference.runspans import Run, Traced
from services.inference.tensors import Decoded

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
# Runs longer than this are answered before the next one begins.
_FLUSH_SECONDS = 0.005

Reply = Callable[[Sequence[Answer]], None]
Release = Callable[[Sequence[Traced]], None]


def _untraced(_traced: Sequence[Traced]) -> None:
    """Nobody records spans: a traced call is not answered."""
    raise RuntimeError("there is nobody to record the runs of traced calls")


@dataclass(slots=True)
class _Job:
    """A call that passed its checks, on its way through its run."""

    call: Call
    model: Model
    request: Decoded
    outputs: Sequence[Array] = ()
    size: int = 0
    position: int = 0
    started: int = 0
    ended: int = 0


class Batcher:
    """Turns calls into answers. Stateless between batches; used by one thread at a time."""

    def __init__(
        self,
        registry: Registry,
        log: structlog.typing.FilteringBoundLogger,
        metrics: ModelMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._log = log
        self._metrics = metrics
        self._clock = clock

    def handle(
        self,
        calls: Sequence[Call],
        reply: Reply,
        cancelled: Callable[[int], bool] = lambda _: False,
        release: Release = _untraced,
    ) -> None:
        """Answer every call, once, in any order and in one or several goes.

        Through `reply`; what was run of traced calls through `release`, which records it first.
        """
        answers: list[Answer] = []
        jobs: dict[int, list[_Job]] = {}
        for call in calls:
            admitted = self._admit(call, cancelled)
            if isinstance(admitted, Answer):
                answers.append(admitted)
            else:
                jobs.setdefault(id(admitted.model), []).append(admitted)
        if answers:
            reply(answers)
        for same in jobs.values():
            self._run_model(same, reply, release)

    def _admit(self, call: Call, cancelled: Callable[[int], bool]) -> _Job | Answer:
        """Check a call up to the model's door; nothing that is wrong with it goes further."""
        model: Model | None = None
        try:
            if call.method != MODEL_INFER:
                return Answer(call.id, questions.answer(self._registry, call.method, call.body))
            if call.deadline <= self._clock():
                raise _too_late()
            if cancelled(call.id):
                raise SealwardError(Reason.CANCELLED, "the caller cancelled")
            request = ModelInferRequest.FromString(call.body)
            model = self._registry.find(request.model_name, request.model_version)
            return _Job(call, model, model.decoder.decode(request))
        except DecodeError:
            error = SealwardError(
                Reason.REQUEST_MALFORMED, "the request is not a message of its type"
            )
        except Exception as caught:  # noqa: BLE001 - one bad request must not harm the others
            error, _ = as_sealward_error(caught, self._log, call.method)
        return self._refusal(call, model, error)

    def _refusal(self, call: Call, model: Model | None, error: SealwardError) -> Answer:
        self._metrics.refused(model.manifest if model else None, error.reason)
        record = model.encoder.refused_record if model else b""
        return Answer(call.id, error=error, record=record)

    def _run_model(self, jobs: Sequence[_Job], reply: Reply, release: Release) -> None:
        """Run the jobs of one model and answer them; early when runs are long."""
        model = jobs[0].model
        strict = model.manifest.deterministic == "strict"
        groups = [[job] for job in jobs] if strict else _joined(jobs, model.manifest.max_rows)
        answers: list[Answer] = []
        traced: list[Traced] = []
        ran: list[_Job] = []
        calls = rows = 0
        started = flushed = self._clock()
        for group in groups:
            alive = []
            for job in group:
                if job.call.deadline <= self._clock():
                    answers.append(self._refusal(job.call, model, _too_late()))
                else:
                    alive.append(job)
            if alive:
                done = self._run_group(alive, answers)
                ran += done
                calls += len(done)
                rows += sum(job.request.rows for job in done)
            now = self._clock()
            if now - flushed >= _FLUSH_SECONDS:
                answers += self._encode(ran, traced)
                reply(answers)
                answers, ran, flushed = [], [], now
        answers += self._encode(ran, traced)
        self._metrics.ran(model.manifest, calls, rows, self._clock() - started)
        if answers:
            reply(answers)
        if traced:
            release(traced)

    def _run_group(self, group: Sequence[_Job], answers: list[Answer]) -> Sequence[_Job]:
        """Run jobs together; when that fails each alone, so that only the guilty one fails."""
        try:
            _run(group)
        except Exception as error:  # noqa: BLE001 - a model may fail in any way
            if len(group) > 1:
                return [job for one in group for job in self._run_group([one], answers)]
            job = group[0]
            kind = str(error) if isinstance(error, RunError) else type(error).__name__
            self._log.warning("run.failed", name=job.model.manifest.ident, error_type=kind)
            answers.append(
                self._refusal(
                    job.call,
                    job.model,
                    SealwardError(Reason.INTERNAL, "the model failed on this input"),
                )
            )
            return ()
        return group

    def _encode(self, jobs: Iterable[_Job], traced: list[Traced]) -> Sequence[Answer]:
        """Return the answers; those of traced calls go into `traced`."""
        answers: list[Answer] = []
        for job in jobs:
            encoder, rows = job.model.encoder, job.request.rows
            try:
                body = encoder.answer(job.request, job.outputs)
            except Exception as caught:  # noqa: BLE001 - one bad answer must not harm the others
                error, _ = as_sealward_error(caught, self._log, job.call.method)
                answers.append(self._refusal(job.call, job.model, error))
                continue
            dropped = job.request.dropped
            if dropped is not None:
                self._metrics.dropped(job.model.manifest, dropped.count)
            record = encoder.record(rows, job.size, job.position, dropped)
            answer = Answer(job.call.id, body=body, record=record)
            parent = TraceParent.decoded(job.call.trace) if job.call.trace else None
            if parent is None:
                answers.append(answer)
                continue
            run = Run(
                job.model.manifest, job.started, job.ended, rows, job.size, job.position
            )  # fmt: skip
            traced.append(Traced(answer, parent, run))
        return answers


def _run(group: Sequence[_Job]) -> None:
    """Run the rows of a group as one, and give each job its own rows of the outputs."""
    first = group[0]
    rows = sum(job.request.rows for job in group)
    started = time.time_ns()
    if len(group) == 1:
        first.outputs = first.model.engine.run(first.request.arrays, rows)
        first.size = rows
        first.started, first.ended = started, time.time_ns()
        return
    arrays = [
        np.concatenate(parts) for parts in zip(*(job.request.arrays for job in group), strict=True)
    ]
    outputs = first.model.engine.run(arrays, rows)
    ended = time.time_ns()
    position = 0
    for job in group:
        end = position + job.request.rows
        job.outputs = [output[position:end] for output in outputs]
        job.size, job.position = rows, position
        job.started, job.ended = started, ended
        position = end


def _joined(jobs: Sequence[_Job], most: int) -> Iterator[list[_Job]]:
    """Group jobs in their order, each group as large as fits into the model's largest run."""
    group: list[_Job] = []
    rows = 0
    for job in jobs:
        if group and rows + job.request.rows > most:
            yield group
            group, rows = [], 0
        group.append(job)
        rows += job.request.rows
    if group:
        yield group


def _too_late() -> SealwardError:
    return SealwardError(Reason.DEADLINE_EXCEEDED, "the deadline passed before the model ran")
