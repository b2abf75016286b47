"""The path of a prediction: admission, inference, record, answer. Written for batches.

    front.recv ─▶ admission ─▶ inference ─▶ audit ─▶ front.reply
                      └─ refused ─────────────┘

Nothing is answered before its record is in the log, refusals and failures included; without the
log nothing is released and every caller is told AUDIT_UNAVAILABLE. Response bytes go out as they
came in, but for outputs that the caller's role may not see. A call is held in exactly one place at
a time, and whoever takes it from there ends it, so it is answered once.

Work happens in three places: `run` (admission), the reader thread of the inference stream
(records) and the reader thread of the audit stream (receipts). A session that is not in the cache
is loaded by a fourth, so that the store's round trip holds up nobody else.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog
from google.protobuf.message import DecodeError

from sealward.api.audit.v1.audit_pb2 import Receipt
from sealward.api.common.v1.batch_pb2 import Reply
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.kit.recorder import new_event_id
from sealward.kit.seam import Answer, Call, Front, Trailers
from sealward.kit.spans import TraceParent
from sealward.kit.status import as_sealward_error
from sealward.tlog.receipt import format_receipt
from services.gateway import events
from services.gateway.admission import Admission, Flight
from services.gateway.denials import DenialLimit
from services.gateway.events import Event, EventWriter
from services.gateway.exchange import Callbacks, Exchange, Outgoing, reply_error
from services.gateway.release import withhold

METHOD = "/inference.GRPCInferenceService/ModelInfer"
EVENT_TYPE = "inference.predict"
_DIGEST_BYTES = 32
_WAITING_LOADS = 256


def audit_lost() -> SealwardError:
    """The error for everything that the log did not take."""
    return SealwardError(
        Reason.AUDIT_UNAVAILABLE,
        "the audit log cannot take the record; nothing was released",
        retry_after=1.0,
    )


class Models(Protocol):
    """What the pipeline needs of the catalog."""

    def attributes(self, model: str, version: str) -> bytes:
        """See Catalog.attributes."""


class Pipeline:
    """Predictions from front to front. `append_seconds` bounds the wait for the log."""

    def __init__(
        self,
        front: Front,
        admission: Admission,
        inference: Exchange,
        audit: Exchange,
        writer: EventWriter,
        denials: DenialLimit,
        models: Models,
        log: structlog.typing.FilteringBoundLogger,
        *,
        audit_ready: Callable[[], bool],
        append_seconds: float,
        max_response_bytes: int,
        max_flights: int,
    ) -> None:
        self._front = front
        self._admission = admission
        self._inference = inference
        self._audit = audit
        self._writer = writer
        self._denials = denials
        self._models = models
        self._log = log
        self._audit_ready = audit_ready
        self._append_seconds = append_seconds
        self._max_response_bytes = max_response_bytes
        self._max_flights = max_flights
        self._from_inference = Callbacks(self._replied, self._fail)
        self._from_audit = Callbacks(self._recorded, self._unrecorded)
        self._loads: queue.Queue[Flight | None] = queue.Queue(_WAITING_LOADS)
        self._loader = threading.Thread(target=self._load, name="session-load", daemon=True)
        self._runner = threading.Thread(target=self.run, name="admission", daemon=True)

    def start(self) -> None:
        """Begin to take calls."""
        self._loader.start()
        self._runner.start()

    def stop(self, seconds: float = 5.0) -> None:
        """Wait until the closed front is empty."""
        if self._runner.is_alive():
            self._runner.join(seconds)
            self._loads.put(None)
            self._loader.join(seconds)

    def run(self) -> None:
        """Take calls until the front is closed."""
        while calls := self._front.recv():
            self.take(calls)

    def take(self, calls: Sequence[Call]) -> None:
        """Admit a batch."""
        if not self._audit_ready():
            # Not even begun: what cannot be recorded must not run.
            self._front.reply([Answer(call.id, error=audit_lost()) for call in calls])
            return
        begun: list[Flight] = []
        refused: list[Flight] = []
        room = self._max_flights - len(self._inference) - len(self._audit)
        for number, call in enumerate(calls):
            flight = Flight(call, _event(call))
            try:
                if number >= room:
                    raise _overloaded()
                if self._admission.begin(flight):
                    begun.append(flight)
                else:
                    self._loads.put_nowait(flight)
            except Exception as error:  # noqa: BLE001 - one call must not cost its neighbours theirs
                flight.error = self._as_error(error)
                refused.append(flight)
        self._infer(begun)
        self._append(refused)

    def _load(self) -> None:
        while (flight := self._loads.get()) is not None:
            try:
                self._admission.load(flight)
            except Exception as error:  # noqa: BLE001 - the thread has to live
                self._fail([flight], self._as_error(error))
            else:
                self._infer([flight])

    def _infer(self, flights: Sequence[Flight]) -> None:
        wanted: list[Flight] = []
        gone: list[Flight] = []
        for flight in flights:
            (gone if self._front.cancelled(flight.call.id) else wanted).append(flight)
        if gone:
            self._fail(gone, SealwardError(Reason.CANCELLED, "the caller cancelled"))
        if not wanted:
            return
        # Before sending: the reply may be here before the next line.
        for flight in wanted:
            flight.event.request = events.digest(flight.call.body)
        try:
            self._inference.send(
                self._from_inference,
                [Outgoing(f, f.call.body, f.deadline, METHOD, _trace(f)) for f in wanted],
            )
        except SealwardError as error:
            self._fail(wanted, error)

    def _replied(self, done: Sequence[tuple[Flight, Reply]], _shared: bytes) -> None:
        flights = []
        for flight, reply in done:
            try:
                self._read(flight, reply)
            except Exception as error:  # noqa: BLE001 - one call must not cost its neighbours theirs
                flight.error = self._as_error(error)
            flights.append(flight)
        self._append(flights)

    def _read(self, flight: Flight, reply: Reply) -> None:
        if reply.record:
            flight.run = events.run_of(reply.record)
        if reply.code:
            raise reply_error(reply)
        run = flight.run
        # The name that the policy saw is the name that ran, whatever else the request may say.
        if (
            run is None
            or run.model != flight.model
            or (flight.version and run.version != flight.version)
            or len(run.digest) != _DIGEST_BYTES
        ):
            flight.run = None
            raise ValueError("the reply's record is about another model")
        body = reply.body
        if len(body) > self._max_response_bytes:
            raise SealwardError(
                Reason.MESSAGE_TOO_LARGE,
                f"the response would have more than {self._max_response_bytes} bytes",
            )
        decided = flight.decision
        if decided is not None and decided.outputs is not None:
            body, flight.withheld = withhold(body, decided.outputs)
        flight.body = body
        flight.event.response = events.digest(body)
        flight.event.model = run.digest

    def _fail(self, flights: Sequence[Flight], error: SealwardError) -> None:
        for flight in flights:
            flight.error = error
        self._append(flights)

    def _append(self, flights: Sequence[Flight]) -> None:
        now = time.monotonic()
        end = time.time_ns()
        out: list[Outgoing] = []
        unrecorded: list[Answer] = []
        for flight in flights:
            if flight.taken is not None:
                flight.taken.done(flight.run.rows if flight.run else 0)
                flight.taken = None
            identity = flight.call.peer.identity.uri
            if flight.session is None and not self._denials.allow(identity, now):
                unrecorded.append(Answer(flight.call.id, error=flight.error))
                continue
            try:
                entry = self._writer.entry(self._complete(flight, end))
            except Exception as error:  # noqa: BLE001 - without a record there is no answer
                unrecorded.append(Answer(flight.call.id, error=self._as_error(error)))
                continue
            out.append(Outgoing(flight, entry, now + self._append_seconds))
        if unrecorded:
            self._front.reply(unrecorded)
        if not out:
            return
        try:
            self._audit.send(self._from_audit, out)
        except SealwardError as error:
            self._unrecorded([call.item for call in out], error)

    def _complete(self, flight: Flight, end: int) -> Event:
        event, call = flight.event, flight.call
        event.end = end
        event.error = flight.error
        if not event.request:
            event.request = events.digest(call.body)
        parts = [events.actor(call.peer.identity, call.peer.spki_sha256, flight.session)]
        decided = flight.decision
        if decided is not None:
            parts.append(events.decision(decided.rule, decided.digest, flight.purpose))
        run = flight.run
        if run is not None:
            parts.append(run.encoded)
        if run is None or not run.model:
            parts.append(self._models.attributes(flight.model, flight.version))
        if flight.withheld:
            parts.append(events.withheld(flight.withheld))
        headers = flight.headers
        if headers.seq is not None:
            parts.append(events.caller_seq(headers.seq))
        event.parts = parts
        event.parent = headers.parent
        event.patient = headers.patient
        return event

    def _recorded(self, done: Sequence[tuple[Flight, Reply]], checkpoint: bytes) -> None:
        self._front.reply([self._answer(flight, reply, checkpoint) for flight, reply in done])

    def _unrecorded(self, flights: Sequence[Flight], _error: SealwardError) -> None:
        # Whatever the log's trouble was, the caller has to know one thing: nothing was released.
        self._front.reply([Answer(flight.call.id, error=audit_lost()) for flight in flights])

    def _answer(self, flight: Flight, reply: Reply, checkpoint: bytes) -> Answer:
        trailers = receipt_trailers(flight.event, reply, checkpoint)
        if trailers is None:
            self._log.error("audit.no-receipt", method=METHOD, code=reply.code)
            return Answer(flight.call.id, error=audit_lost())
        if flight.error is not None:
            return Answer(flight.call.id, error=flight.error, trailers=trailers)
        return Answer(flight.call.id, flight.body, trailers=trailers)

    def _as_error(self, error: Exception) -> SealwardError:
        if isinstance(error, queue.Full):
            return _overloaded()
        return as_sealward_error(error, self._log, METHOD)[0]


def receipt_trailers(event: Event, reply: Reply, checkpoint: bytes) -> Trailers | None:
    """Assemble the receipt of an event from audit's reply; None when it is not one.

    The leaf has to begin with this event's id and binding: a receipt about anything else would
    reach a caller who then rightly calls the log a liar.
    """
    if reply.code or not checkpoint:
        return None
    try:
        receipt = Receipt.FromString(reply.body)
    except DecodeError:
        return None
    if not receipt.leaf.startswith(event.prefix) or len(receipt.path) % _DIGEST_BYTES:
        return None
    text = format_receipt(receipt.log_index, receipt.path, receipt.leaf, event.salt, checkpoint)
    return (
        ("sealward-event-id", events.event_name(event.event_id)),
        ("sealward-log-index", str(receipt.log_index)),
        ("sealward-receipt-bin", text),
    )


def _event(call: Call) -> Event:
    return Event(new_event_id(), secrets.token_bytes(32), EVENT_TYPE, call.method, time.time_ns())


def _trace(flight: Flight) -> bytes:
    """Return the span that the run of a traced call is recorded under: that of the call's event."""
    parent = flight.headers.parent
    if parent is None:
        return b""
    flight.event.span_id = secrets.token_bytes(8)
    return TraceParent(parent.trace_id, flight.event.span_id).encoded


def _overloaded() -> SealwardError:
    return SealwardError(Reason.OVERLOADED, "too much work is waiting", retry_after=0.1)
