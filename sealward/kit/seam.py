"""The seam between the wire and the hot path: batches in, batches out.

A service's hot path sees nothing but these types, so that it runs the same on every transport.
Handlers are written for a batch; one call is a batch of one. Whatever arrived while the last batch
was handled is the next batch: there is no timer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sealward.api.common.v1.batch_pb2 import Reply
from sealward.kit.errors import SealwardError
from sealward.kit.identity import Peer

Trailers = tuple[tuple[str, str | bytes], ...]


@dataclass(slots=True)
class Call:
    """One call as it came in. `deadline` is on the monotonic clock; infinite when there is none.

    `problem` is why its caller's certificate is good no more: to be refused, and recorded. `trace`
    (between our services only) is the sender's place in a trace as TraceParent.encoded has it;
    empty for a call that is not traced.
    """

    id: int
    method: str
    peer: Peer
    metadata: Mapping[str, str | bytes]
    deadline: float
    body: bytes
    problem: SealwardError | None = None
    trace: bytes = b""


@dataclass(slots=True)
class Answer:
    """The answer to one call: a body or an error.

    `record` is what the method's record message says of the call (between our services only).
    """

    id: int
    body: bytes = b""
    error: SealwardError | None = None
    trailers: Trailers = ()
    record: bytes = b""
    last: bool = True


class Front(Protocol):
    """The side that takes calls."""

    def recv(self) -> list[Call]:
        """Block until calls wait, and return them all (capped by count and bytes); [] = closed."""

    def reply(self, answers: Sequence[Answer], shared: bytes = b"") -> None:
        """Send answers. `shared` goes once with each batch, where the wire has a place for it."""

    def cancelled(self, call_id: int) -> bool:
        """True when nobody waits for this call any more."""


@dataclass(slots=True)
class OutCall:
    """One call to another service. `timeout_ms` 0 = none; `trace` as in Call."""

    id: int
    method: str
    body: bytes
    timeout_ms: int = 0
    trace: bytes = b""


class Upstream(Protocol):
    """The side that makes calls. Replies come to the callbacks given when it was made."""

    def send(self, calls: Sequence[OutCall]) -> None:
        """Send a batch; raise SealwardError at once when the other side is not there."""


OnReplies = Callable[[Sequence[Reply], bytes], None]
OnBroken = Callable[[Sequence[int]], None]


@dataclass(slots=True)
class Limits:
    """How much one batch may carry. Bytes bound the memory of a batch of large requests."""

    calls: int = 256
    bytes: int = field(default=8 << 20)
