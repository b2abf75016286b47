"""Calls and replies: each call ends once, whatever happens."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sealward.api.common.v1.batch_pb2 import Reply
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.kit.seam import OutCall
from services.gateway.denials import DenialLimit
from services.gateway.exchange import Callbacks, Exchange, Outgoing, reply_error


class Stream:
    """Carries calls to a test that plays the other service."""

    def __init__(self) -> None:
        self.sent: list[OutCall] = []
        self.up = True

    def send(self, calls: Sequence[OutCall]) -> None:
        if not self.up:
            raise SealwardError(Reason.AUDIT_UNAVAILABLE, "down")
        self.sent.extend(calls)


class Log:
    """A sink that keeps what it was told."""

    def __init__(self) -> None:
        self.ended: list[tuple[Any, object]] = []
        self.sink = Callbacks(self.replied, self.lost)

    def replied(self, done: Sequence[tuple[Any, Reply]], shared: bytes) -> None:
        self.ended += [(item, (reply.body, shared)) for item, reply in done]

    def lost(self, items: Sequence[Any], error: SealwardError) -> None:
        self.ended += [(item, error.reason) for item in items]


def broken() -> SealwardError:
    return SealwardError(Reason.INFERENCE_UNAVAILABLE, "broken")


def late() -> SealwardError:
    return SealwardError(Reason.DEADLINE_EXCEEDED, "late")


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def exchange(stream: Stream) -> Exchange:
    exchange = Exchange(broken, late)
    exchange.bind(stream)
    return exchange


FAR = float("inf")


def test_replies_reach_their_own_sink_in_any_order(exchange: Exchange, stream: Stream) -> None:
    one, two = Log(), Log()
    exchange.send(one.sink, [Outgoing("a", b"A", FAR, "/m"), Outgoing("b", b"B", FAR, "/m")])
    exchange.send(two.sink, [Outgoing("c", b"C", time.monotonic() + 9, "/m")])
    assert [(call.body, call.method) for call in stream.sent] == [
        (b"A", "/m"), (b"B", "/m"), (b"C", "/m"),
    ]  # fmt: skip
    assert 8000 < stream.sent[2].timeout_ms <= 9000
    ids = {call.body: call.id for call in stream.sent}
    replies = [Reply(id=ids[body], body=body.lower()) for body in (b"C", b"B", b"A")]
    exchange.on_replies(replies, b"shared")
    assert one.ended == [("b", (b"b", b"shared")), ("a", (b"a", b"shared"))]
    assert two.ended == [("c", (b"c", b"shared"))]
    exchange.on_replies(replies, b"again")
    exchange.on_broken(list(ids.values()))
    exchange.tick(FAR)
    assert len(one.ended + two.ended) == 3
    assert len(exchange) == 0


def test_a_broken_stream_ends_its_calls(exchange: Exchange, stream: Stream) -> None:
    log = Log()
    exchange.send(log.sink, [Outgoing("a", b"", FAR), Outgoing("b", b"", FAR)])
    exchange.on_broken([stream.sent[0].id])
    assert log.ended == [("a", Reason.INFERENCE_UNAVAILABLE)]
    exchange.on_replies([Reply(id=call.id) for call in stream.sent], b"")
    assert [item for item, _ in log.ended] == ["a", "b"]


def test_time_ends_what_nobody_answers(exchange: Exchange, stream: Stream) -> None:
    log = Log()
    now = time.monotonic()
    exchange.send(log.sink, [Outgoing("a", b"", now + 5), Outgoing("b", b"", now + 50)])
    exchange.tick(now + 4)
    assert log.ended == []
    exchange.tick(now + 6)
    assert log.ended == [("a", Reason.DEADLINE_EXCEEDED)]
    exchange.on_replies([Reply(id=stream.sent[0].id)], b"")
    assert len(log.ended) == 1


def test_a_call_that_cannot_be_sent_raises_and_calls_nobody_back(
    exchange: Exchange, stream: Stream
) -> None:
    log = Log()
    stream.up = False
    with pytest.raises(SealwardError) as caught:
        exchange.send(log.sink, [Outgoing("a", b"", FAR)])
    assert caught.value.reason is Reason.AUDIT_UNAVAILABLE
    assert len(exchange) == 0
    exchange.tick(FAR)
    assert log.ended == []


def test_without_a_stream_nothing_is_sent() -> None:
    with pytest.raises(SealwardError):
        Exchange(broken, late).send(Log().sink, [Outgoing("a", b"", FAR)])


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (lambda e, n: e.on_replies([Reply(id=n, body=b"x")], b"s"), None),
        (lambda e, n: e.on_broken([n]), Reason.INFERENCE_UNAVAILABLE),
        (lambda e, _n: e.tick(FAR), Reason.DEADLINE_EXCEEDED),
    ],
)
def test_a_thread_that_waits_is_woken_by_each_end(
    exchange: Exchange,
    stream: Stream,
    end: Callable[[Exchange, int], None],
    expected: Reason | None,
) -> None:
    results: list[object] = []

    def wait() -> None:
        try:
            reply, shared = exchange.call("/m", b"body", time.monotonic() + 30)
            results.append((reply.body, shared))
        except SealwardError as error:
            results.append(error.reason)

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.monotonic() + 10
    while not stream.sent and time.monotonic() < deadline:
        time.sleep(0.001)
    end(exchange, stream.sent[0].id)
    thread.join(10)
    assert results == [(b"x", b"s") if expected is None else expected]


def test_an_error_in_a_reply_keeps_its_reason_and_field() -> None:
    error = reply_error(
        Reply(code=3, reason=int(Reason.INPUT_SHAPE), message="shape", field="inputs[0].shape")
    )
    assert (error.reason, error.message, error.field) == (
        Reason.INPUT_SHAPE, "shape", "inputs[0].shape",
    )  # fmt: skip
    assert reply_error(Reply(code=13, reason=9999, message="secret")).reason is Reason.INTERNAL
    assert "secret" not in reply_error(Reply(code=13, reason=9999, message="secret")).message


def test_refusals_are_recorded_ten_a_second_and_then_counted() -> None:
    limit = DenialLimit()
    allowed = [limit.allow("a", 100.0) for _ in range(25)]
    assert sum(allowed) == 10
    assert limit.allow("b", 100.0)
    assert [limit.allow("a", 100.5) for _ in range(6)] == [True] * 5 + [False]
    assert limit.take() == {"a": 16}
    assert limit.take() == {}
    limit.give_back("a", 3)
    assert limit.take() == {"a": 3}


def test_the_limit_forgets_the_longest_quiet_identity() -> None:
    limit = DenialLimit(capacity=2)
    for name in ("a", "b", "a", "c"):
        limit.allow(name, 1.0)
    assert set(limit._buckets) == {"a", "c"}
