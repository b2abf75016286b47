"""Opened events for the command line: asked of the audit service, verified before they are used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sealward.cli.errors import CliError
from sealward.cli.suite import Suite
from sealward.evidence.event import Event, EvidenceError, LogHead, make_event, open_head

if TYPE_CHECKING:
    import grpc

    from sealward.api.audit.v1.export_pb2 import ExportEventsRequest, ExportEventsResponse

EXPORT_SECONDS = 3600.0


def local_vkeys(suite: Suite) -> list[str]:
    """Return the verifier key lines of all logs in the suite's folder."""
    lines: list[str] = []
    for file in sorted([suite.vkey_file, *_others(suite)]):
        if file.is_file():
            lines += [line for line in file.read_text(encoding="utf-8").splitlines() if line]
    return list(dict.fromkeys(lines))


def head_of(suite: Suite, origin: str, checkpoint: bytes, said: str = "") -> LogHead:
    """Verify a log's checkpoint; raise CliError.

    The keys in the suite's folder count. `said` is what the service says the keys are: it counts
    for a log that the folder has no key of.
    """
    own = [line for line in local_vkeys(suite) if line.split("+", 1)[0] == origin]
    try:
        head = open_head(checkpoint, "".join(f"{line}\n" for line in own) or said)
    except EvidenceError as error:
        raise _broken(error) from None
    if head.origin != origin:
        raise CliError("a checkpoint is of another log", verified=False)
    return head


def get_event(suite: Suite, channel: grpc.Channel, event_id: bytes) -> Event:
    """Open one event and verify it; raise CliError."""
    from sealward.api.audit.v1 import audit_pb2
    from sealward.api.audit.v1.audit_pb2_grpc import AuditServiceStub
    from sealward.cli.connect import CALL_SECONDS
    from sealward.cli.rpc import calling

    with calling("reading the event"):
        answer = AuditServiceStub(channel).GetEvent(
            audit_pb2.GetEventRequest(event_id=event_id), timeout=CALL_SECONDS
        )
    head = head_of(suite, answer.summary.origin, answer.checkpoint)
    try:
        return make_event(answer.summary.event_id, answer.span, answer.receipt, head)
    except EvidenceError as error:
        raise _broken(error) from None


class Export:
    """An export under way. `total` is known when it is made; `recorded` when all was read."""

    def __init__(self, suite: Suite, channel: grpc.Channel, request: ExportEventsRequest) -> None:
        """Begin; raise CliError when it is refused."""
        from sealward.api.audit.v1.export_pb2_grpc import ExportServiceStub
        from sealward.cli.rpc import calling

        self._suite = suite
        self.recorded = ""
        with calling("exporting"):
            self._answers = ExportServiceStub(channel).ExportEvents(request, timeout=EXPORT_SECONDS)
            first: ExportEventsResponse = next(self._answers)
        self.total = first.total
        self.heads = [head_of(suite, log.origin, log.checkpoint, log.vkeys) for log in first.logs]

    def __iter__(self) -> Iterator[Event]:
        """Yield the events, each verified; raise CliError."""
        from sealward.cli.rpc import calling, trailers

        count = 0
        with calling("exporting"):
            for answer in self._answers:
                for event in answer.events:
                    count += 1
                    try:
                        yield make_event(
                            event.summary.event_id, event.span, event.receipt, self.heads[event.log]
                        )
                    except EvidenceError as error:
                        raise _broken(error) from None
        if count != self.total:
            raise CliError(f"{count} of {self.total} events came", verified=False)
        self.recorded = str(trailers(self._answers).get("sealward-event-id", ""))


def _others(suite: Suite) -> list[Path]:
    return list((suite.vkey_file.parent / "logs").glob("*/*/log.vkey"))


def _broken(error: EvidenceError) -> CliError:
    return CliError(str(error), advice="verify the log: sealward audit verify", verified=False)
