"""`--complete`: what an index hides, changes or invents, the log tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sealward.kit.errors import SealwardError
from services.audit.backend import FileBackend, Place
from services.audit.index import Query
from services.audit.scanning import matches, scan
from services.audit.shard import Shard
from services.audit.store import StoreBrokenError
from tests.integration.test_audit_stores import ORIGIN, QUERIES, ROWS
from tests.support.audit_shards import Logs, opened
from tests.support.audit_suite import entry_bytes, span_bytes


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    with opened(tmp_path / "audit") as logs:
        append(logs)
        made = logs.shards.current()
        made.indexer.wait(made.log.head[0])
        yield made


def append(logs: Logs) -> None:
    logs.append(
        *(
            entry_bytes(span=span_bytes(extra={"sealward.actor.id": f"user-{n % 2}"}))
            for n in range(20)
        )
    )


def always() -> bool:
    return True


@pytest.mark.parametrize(
    ("harm", "differences"),
    [
        ("DELETE FROM events WHERE idx = 7", 1),
        ("DELETE FROM events WHERE idx IN (1, 3, 5)", 3),
        ("UPDATE events SET actor = 'nobody' WHERE idx = 7", 1),
        ("UPDATE events SET patient = 'x' WHERE idx = 8", 1),
    ],
)
def test_what_the_index_hides_is_found_and_counted(
    shard: Shard, harm: str, differences: int
) -> None:
    asked = Query(user="user-1", limit=100)
    before = scan(shard, asked, always)
    assert before.differences == 0
    assert [found.place for found in before.found] == list(range(19, 0, -2))
    shard.index._writer.execute(harm)
    after = scan(shard, asked, always)
    assert after.differences == differences
    assert after.found == before.found
    assert after.root == before.root == shard.log.root(20)


def test_what_the_index_invents_is_not_found(shard: Shard) -> None:
    # The row of another user's event, under the name of this one.
    shard.index._writer.execute("UPDATE events SET actor = 'user-1' WHERE idx = 4")
    found = scan(shard, Query(user="user-1", limit=100), always)
    assert found.differences == 1
    assert 4 not in [event.place for event in found.found]
    assert 4 in [at for at, _ in shard.index.rows(Query(user="user-1", limit=100))]


def test_who_has_gone_is_not_read_for(shard: Shard) -> None:
    with pytest.raises(SealwardError, match="nobody waits"):
        scan(shard, Query(), lambda: False)


def test_entries_that_do_not_give_the_root_are_no_answer(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves = shard.store.leaves(0, 20)
    monkeypatch.setattr(
        shard.store, "leaves", lambda *_: [*leaves[:5], leaves[6], leaves[5], *leaves[7:]]
    )
    with pytest.raises(StoreBrokenError, match="root"):
        scan(shard, Query(), always)


@pytest.mark.parametrize("number", range(len(QUERIES)))
def test_the_words_of_a_query_are_those_of_its_sql(tmp_path: Path, number: int) -> None:
    index = FileBackend().index(Place("default", tmp_path), ORIGIN)
    index.add(0, ROWS)
    # Paging is of the index alone.
    query = replace(QUERIES[number], limit=1000, before_index=0, after_index=-1, oldest_first=True)
    words = [(at, row) for at, row in enumerate(ROWS) if row is not None and matches(row, query)]
    assert words == index.rows(query)
    index.close()
