"""The index follows the log, and made anew from the log it is the same table."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sealward.kit import attributes as names
from sealward.kit.errors import SealwardError
from sealward.kit.spans import SpanHead, TraceParent
from services.audit.sqlite_index import SqliteIndex
from tests.support.audit_suite import GATEWAY, WORKLOAD, Ring, Suite, open_suite, span_bytes
from tests.support.inference_suite import until

EXTRA: dict[str, Any] = {
    names.ACTOR_KIND: "user", names.SESSION_ID: "5e55", names.CALLER_SEQ: 7,
    names.BREAK_GLASS: True, names.MODEL_VERSION: "1", names.ORGANIZATION: "clinic",
    names.TARGET: "bert", names.PRODUCER_SEQ: 12, names.REASON: "X",
    names.PRODUCER_INSTANCE: "ab12", names.COUNT: 3, names.DATA_CATEGORY: "lab",
}  # fmt: skip


def filled(suite: Suite) -> None:
    suite.log.append([suite.entry(span=span_bytes(extra=EXTRA), patient="p1")])
    suite.log.append([suite.maker.exported(span_bytes(outcome="failed", extra=EXTRA), GATEWAY)])
    suite.log.append([suite.maker.exported(span_bytes(extra=EXTRA), WORKLOAD)])
    suite.log.append([suite.entry() for _ in range(40)])
    suite.indexer.wait(43)


def test_a_row_has_all_that_is_asked_for(suite: Suite) -> None:
    filled(suite)
    row = suite.rows.row(0)
    assert row is not None
    assert len(row.span_id) == 8
    assert row._replace(event_id=b"", trace_id=b"", span_id=b"")._asdict() == {
        "event_id": b"", "trace_id": b"", "span_id": b"", "parent_id": b"",
        "time": 1_790_000_000_000_000_000,
        "type": "inference.predict", "outcome": "ok", "code": "OK", "reason": "X",
        "actor": "dr-smith", "actor_kind": "user", "session": "5e55", "caller_seq": 7,
        "purpose": "TREAT", "break_glass": 1, "patient": suite.index.pseudonym("p1"),
        "model": "breast-cancer", "model_version": "1", "organization": "clinic",
        "target": "bert", "producer": "gateway", "producer_seq": 12, "instance": "ab12",
        "counted": 3, "data_category": "lab",
    }  # fmt: skip
    assert [index for index, _ in suite.query(break_glass=True)] == [1, 0]
    assert [index for index, _ in suite.query(session="5e55")] == [1, 0]
    assert [index for index, _ in suite.query(trace_id=row.trace_id)] == [0]
    assert [index for index, _ in suite.query(after_index=40, oldest_first=True)] == [41, 42]


def test_made_anew_it_is_the_same_table(suite: Suite) -> None:
    filled(suite)
    before = suite.rows.digest()
    seen: list[tuple[int, int]] = []
    assert suite.indexer.rebuild(lambda done, size: seen.append((done, size))) == before
    assert seen[-1] == (43, 43)
    suite.rows._writer.execute("UPDATE events SET actor = 'nobody' WHERE idx = 3")
    assert suite.rows.digest() != before
    assert suite.indexer.rebuild() == before


@pytest.mark.parametrize("damage", ["lost", "garbage", "old", "other", "longer"])
def test_what_is_lost_is_read_from_the_log(tmp_path: Path, damage: str) -> None:
    ring = Ring()
    suite = open_suite(tmp_path, ring)
    filled(suite)
    before = suite.rows.digest()
    origin = suite.keys.origin
    suite.close()
    path = tmp_path / "index.db"
    if damage == "lost":
        path.unlink()
    elif damage == "garbage":
        path.write_bytes(b"no database" * 1000)
    elif damage == "old":
        with sqlite3.connect(path) as db:
            db.execute("DELETE FROM events WHERE idx >= 10")
            db.execute("UPDATE state SET size = 10")
        db.close()
    elif damage == "other":
        SqliteIndex(path, "another/log").close()
    else:
        with sqlite3.connect(path) as db:
            db.execute("UPDATE state SET size = 50")
        db.close()
    again = open_suite(tmp_path, ring)
    assert again.keys.origin == origin
    again.indexer.wait(43)
    assert again.rows.digest() == before
    again.close()


def test_a_query_waits_for_what_was_answered(suite: Suite) -> None:
    with suite.rows._write_lock:
        suite.log.append([suite.entry()])
        with pytest.raises(SealwardError) as caught:
            suite.indexer.wait(1, timeout=0.01)
    assert caught.value.retry_after
    suite.indexer.wait(1)
    assert suite.rows.size == 1


def test_an_index_that_stands_still_is_seen(suite: Suite) -> None:
    assert (suite.indexer.behind, suite.indexer.stalled) == (0, 0.0)
    with suite.rows._write_lock:
        suite.log.append([suite.entry() for _ in range(3)])
        assert suite.indexer.behind == 3
        first = suite.indexer.stalled
        assert suite.indexer.stalled > first > 0
    suite.indexer.wait(3)
    until(lambda: suite.indexer.stalled == 0)
    assert suite.indexer.behind == 0


def test_a_row_knows_the_span_and_its_parent(suite: Suite) -> None:
    parent = TraceParent(b"t" * 16, b"parent--")
    nobody = TraceParent(b"t" * 16, bytes(8))
    spans = [
        SpanHead("otel.span").build(n, n, [], parent=p, span_id=b"%8d" % n)
        for n, p in ((1, parent), (2, nobody), (3, None), (4, parent), (5, None))
    ]
    # Written in another order than our own spans, and alike ones.
    odd = Span.FromString(spans[0])
    odd.span_id, odd.name = b"odd-----", "any name"
    bodies = [*spans, odd.SerializeToString()]
    suite.log.append([suite.maker.exported(body, GATEWAY) for body in bodies])
    rows = [row for _, row in suite.query(oldest_first=True)]
    assert [row.span_id for row in rows] == [*(b"%8d" % n for n in (1, 2, 3, 4, 5)), b"odd-----"]
    assert [row.parent_id for row in rows] == [
        b"parent--", b"", b"", b"parent--", b"", b"parent--"
    ]  # fmt: skip
    before = suite.rows.digest()
    assert suite.indexer.rebuild() == before
