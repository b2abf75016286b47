"""A number that a producer never sent is recorded by a real audit service."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sealward.kit import attributes as names
from sealward.kit.exporter import EXPORT_METHOD, export_request
from tests.integration.test_audit_service import Pair
from tests.support.audit_suite import span_bytes
from tests.support.inference_suite import until


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("audit"))
    made.audit.settings["GAP_SECONDS"] = 1
    try:
        yield made.start()
    finally:
        made.end()


def send(pair: Pair, *numbers: int) -> None:
    spans = [
        span_bytes(extra={names.PRODUCER_SEQ: n, names.PRODUCER_INSTANCE: "feed5eed"})
        for n in numbers
    ]
    call = pair.to_audit("inference").get().unary_unary(EXPORT_METHOD)
    call(export_request(spans), timeout=20, wait_for_ready=True)


def gaps(pair: Pair) -> list[tuple[str, str]]:
    return [(e.outcome, e.target) for e in pair.events(type="audit.gap")]


def test_a_gap_is_recorded_and_its_end_too(pair: Pair) -> None:
    send(pair, 1, 2, 5)
    until(lambda: gaps(pair) == [("failed", "inference/feed5eed/3-4")])
    pair.audit.end()
    pair.audit.start()
    send(pair, 4, 3, 6)
    until(lambda: len(gaps(pair)) == 2)
    assert gaps(pair)[0] == ("ok", "inference/feed5eed/3-4")
