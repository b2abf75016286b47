"""One suite for every store and every index: what one backend promises, the other keeps."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from sealward.tlog.merkle import Tree, leaf_hash
from services.audit.backend import Backend, FileBackend, Place, Places
from services.audit.index import Index, IndexFailedError, Query, Row
from services.audit.postgres_backend import PostgresBackend
from services.audit.postgres_database import Database
from services.audit.store import EventKey, Head, LogStore, StoreBrokenError
from tests.support.postgres import Server, running

ORIGIN = "sealward.local/0011/default/2026"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


class Bench:
    """A backend and the logs in it, which may be opened again and again."""

    def __init__(self, backend: Backend, data: Path) -> None:
        self.backend = backend
        self.places = Places(data)
        self.opened: list[Any] = []

    def store(self, place: Place | None = None, *, sealed: bool = False) -> LogStore:
        store = self.backend.store(place or self.places.first, sealed=sealed)
        self.opened.append(store)
        return store

    def index(self, origin: str = ORIGIN) -> Index:
        index = self.backend.index(self.places.first, origin)
        self.opened.append(index)
        return index

    def close(self) -> None:
        while self.opened:
            self.opened.pop().close()


@pytest.fixture(params=["sqlite", "postgres"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    data = tmp_path / "audit"
    backend: Backend = FileBackend()
    database = None
    if request.param == "postgres":
        server: Server = request.getfixturevalue("server")
        database = Database(server.url(), f"t{secrets.token_hex(8)}", patience=5.0)
        backend = PostgresBackend(data, database)
    bench = Bench(backend, data)
    yield bench
    bench.close()
    if database is not None:
        database.close()


class Writer:
    """Appends batches of made-up leaves under right heads."""

    def __init__(self, store: LogStore) -> None:
        self.store = store
        self.tree = Tree()
        self.leaves: list[bytes] = []
        self.keys: list[EventKey] = []

    def batch(self, count: int) -> tuple[int, list[bytes], list[bytes], list[EventKey], Head]:
        leaves = [secrets.token_bytes(secrets.randbelow(2000) + 1) for _ in range(count)]
        keys = [EventKey(secrets.token_bytes(16), secrets.token_bytes(16)) for _ in leaves]
        hashes = [leaf_hash(leaf) for leaf in leaves]
        tree = Tree()
        tree.append([leaf_hash(leaf) for leaf in self.leaves] + hashes)
        return len(self.leaves), leaves, hashes, keys, Head(tree.size, tree.root())

    def append(self, count: int) -> None:
        batch = self.batch(count)
        self.store.commit(*batch)
        self.leaves += batch[1]
        self.keys += batch[3]

    def check(self, store: LogStore) -> None:
        size = len(self.leaves)
        head = store.head()
        assert head is not None
        tree = Tree()
        tree.append([leaf_hash(leaf) for leaf in self.leaves])
        assert head == Head(size, tree.root())
        assert store.leaves(0, size) == self.leaves
        assert store.hashes(0, size) == b"".join(leaf_hash(leaf) for leaf in self.leaves)
        for start, end in ((0, 0), (0, 1), (1, size), (size // 2, size // 2 + 1), (size - 2, size)):
            assert store.leaves(start, end) == self.leaves[start:end]
            assert len(store.hashes(start, end)) == 32 * (end - start)
        found = store.find([key.event_id for key in self.keys] + [bytes(16)])
        assert found == {
            key.event_id: (index, key.fingerprint) for index, key in enumerate(self.keys)
        }


def test_named_values_are_listed(bench: Bench) -> None:
    store = bench.store()
    store.put([("segment/b", b"1"), ("segment/a", b"2"), ("segmentx", b"3"), ("seg_ent/a", b"4")])
    assert store.names("segment/") == ["segment/a", "segment/b"]
    assert store.names("seg_") == ["seg_ent/a"]
    assert store.names("nothing/") == []
    store.forget("segment/")
    assert store.names("segment/") == []


def test_wrapped_keys_of_an_archive_are_replaced(bench: Bench) -> None:
    """Whoever has the archive open sees them, also after a restart."""
    place = bench.places.first
    store = bench.store()
    store.put([("segment/a", b"old a"), ("segment/b", b"old b"), ("index/wrapped", b"old")])
    store.seal()
    sealed = bench.store(sealed=True)
    bench.backend.rewrap(place, [("segment/a", b"new a")])
    bench.backend.rewrap(place, [("index/wrapped", b"new")])
    for found in (sealed, bench.store(sealed=True)):
        values = [found.get(name) for name in ("segment/a", "segment/b", "index/wrapped")]
        assert values == [b"new a", b"old b", b"new"]
        assert found.names("segment/") == ["segment/a", "segment/b"]
    bench.backend.rewrap(place, [("segment/a", b"newer a")])
    assert sealed.get("segment/a") == b"newer a"
    bench.backend.forget_rewrapped(place)
    assert b"newer" not in b"".join(p.read_bytes() for p in place.folder.rglob("*.json"))


def test_what_is_committed_is_there_and_again_after_a_restart(bench: Bench) -> None:
    store = bench.store()
    assert store.head() is None
    writer = Writer(store)
    for count in (1, 5, 1, 300, 40):
        writer.append(count)
    writer.check(store)
    bench.close()
    writer.check(bench.store())


def test_reading_past_the_end_is_an_error_and_not_less(bench: Bench) -> None:
    store = bench.store()
    writer = Writer(store)
    writer.append(3)
    for read in (store.leaves, store.hashes):
        with pytest.raises(StoreBrokenError):
            read(1, 4)
        with pytest.raises(StoreBrokenError):
            read(7, 9)


@pytest.mark.parametrize("bench", ["postgres"], indirect=True)
def test_a_batch_is_stored_whole_or_not_at_all(bench: Bench) -> None:
    """Of the embedded store's batches, whose ids its one writer has looked up, see entry files."""
    store = bench.store()
    writer = Writer(store)
    writer.append(4)
    first, leaves, hashes, keys, head = writer.batch(300)
    # Its last id is taken: by then the rest of the batch has been written.
    with pytest.raises(StoreBrokenError):
        store.commit(first, leaves, hashes, [*keys[:-1], writer.keys[0]], head)
    bench.close()
    store = bench.store()
    writer.check(store)
    assert store.find([keys[0].event_id]) == {}


def test_a_batch_that_does_not_follow_is_refused(bench: Bench) -> None:
    store = bench.store()
    writer = Writer(store)
    batch = writer.batch(2)
    store.commit(*batch)
    with pytest.raises(StoreBrokenError):
        store.commit(*batch)


def test_named_values_are_replaced_and_forgotten(bench: Bench) -> None:
    store = bench.store()
    assert store.get("origin") is None
    store.put([("origin", b"a"), ("segment/1", b"x"), ("segment/2", b"y"), ("segment_3", b"z")])
    store.put([("origin", b"b\0"), ("empty", b"")])
    assert (store.get("origin"), store.get("empty")) == (b"b\0", b"")
    assert store.forget("segment/") == 2
    assert store.get("segment/1") is None
    assert store.get("segment_3") == b"z"
    bench.close()
    assert bench.store().get("origin") == b"b\0"


def test_a_sealed_store_is_read_and_not_written(bench: Bench) -> None:
    store = bench.store()
    writer = Writer(store)
    writer.append(20)
    store.put([("origin", b"a")])
    store.seal()
    sealed = bench.store(sealed=True)
    writer.check(sealed)
    assert sealed.get("origin") == b"a"
    with pytest.raises(StoreBrokenError):
        sealed.put([("origin", b"b")])
    with pytest.raises(StoreBrokenError):
        sealed.commit(*writer.batch(1))


def test_a_log_moves_with_its_entries(bench: Bench) -> None:
    writer = Writer(bench.store())
    writer.append(3)
    bench.close()
    new = bench.places.of("default", "2025")
    assert not bench.backend.has_store(new)
    bench.backend.move(bench.places.first, new)
    bench.backend.move(bench.places.first, new)
    assert bench.backend.has_store(new)
    assert not bench.backend.has_store(bench.places.first)
    assert [place.folder for place in bench.places.others("default")] == [new.folder]
    writer.check(bench.store(new))
    assert bench.store().head() is None


def test_a_discarded_log_is_gone(bench: Bench) -> None:
    coming = bench.places.coming
    bench.store(coming).put([("origin", b"a")])
    bench.close()
    bench.backend.discard(coming)
    assert not bench.backend.has_store(coming)
    assert bench.store(coming).get("origin") is None


def row(number: int, **changes: Any) -> Row:
    values: dict[str, Any] = {
        name: f"{name}-{number % 3}" if kind is str else number % 3
        for name, kind in get_type_hints(Row).items()
    }
    values |= {
        "event_id": number.to_bytes(16, "big"),
        "trace_id": bytes([number % 3]) * 16,
        "span_id": number.to_bytes(8, "big"),
        "parent_id": bytes([number % 3]) * (8 if number % 3 else 0),
        "time": 1_790_000_000_000_000_000 + number,
        "type": ("inference.predict", "session.login", "inferences")[number % 3],
        "outcome": ("ok", "denied", "failed")[number % 3],
        "break_glass": number % 3 // 2,
        "caller_seq": (1 << 63) - 1 - number,
    }
    return Row(**{**values, **changes})


ROWS: list[Row | None] = [
    None,
    *(row(n) for n in range(1, 150)),
    row(150, target="a\0b\\0c\\\\", model="ünïcode 🩺", patient=""),
    None,
    row(152, target="tab\tnew\nline", actor="\\N", code="\\"),
]
QUERIES = [
    Query(limit=1000),
    Query(user="actor-1"),
    Query(user="\\N"),
    Query(patient="patient-2"),
    Query(model="ünïcode 🩺"),
    Query(outcome="ok"),
    Query(outcome="denied", oldest_first=True, after_index=10, limit=7),
    Query(type="inference."),
    Query(type="inferences"),
    Query(purpose="purpose-1"),
    Query(reason="reason-2"),
    Query(session="session-0"),
    Query(producer="producer-1"),
    Query(trace_id=b"\1" * 16),
    Query(producer="producer-1", instance="instance-1"),
    Query(break_glass=True),
    Query(since=1_790_000_000_000_000_030, until=1_790_000_000_000_000_040),
    Query(before_index=50, limit=3),
    Query(patient="nobody"),
    Query(patient=""),
]


def test_every_filter_of_a_query_is_tried() -> None:
    tried = {f.name for q in QUERIES for f in fields(Query) if getattr(q, f.name) != f.default}
    assert tried == {f.name for f in fields(Query)}


def fill(bench: Bench, index: Index) -> None:
    index.add(0, ROWS[:100])
    index.add(100, [])
    index.add(100, ROWS[100:])
    assert index.size == len(ROWS)


def test_an_index_gives_the_same_answers_whatever_keeps_it(bench: Bench, tmp_path: Path) -> None:
    bench.store()
    index = bench.index()
    fill(bench, index)
    other = FileBackend().index(Place("default", tmp_path / "other"), ORIGIN)
    fill(bench, other)
    for query in QUERIES:
        assert index.rows(query) == other.rows(query), query
    assert len(index.rows(QUERIES[0])) == len(ROWS) - 2
    assert sum(bool(index.rows(query)) for query in QUERIES) == len(QUERIES) - 2
    assert [index.row(at) for at in range(len(ROWS))] == ROWS
    assert index.digest() == other.digest()
    other.close()


def test_an_index_is_kept_cleared_and_begun_again_for_another_log(bench: Bench) -> None:
    bench.store()
    index = bench.index()
    fill(bench, index)
    digest = index.digest()
    bench.close()
    bench.store()
    index = bench.index()
    assert (index.size, index.digest()) == (len(ROWS), digest)
    with pytest.raises(IndexFailedError):
        index.add(3, [None])
    index.clear()
    assert (index.size, index.rows(Query())) == (0, [])
    fill(bench, index)
    bench.close()
    bench.store()
    assert bench.index("another/origin").size == 0


def test_a_dropped_index_leaves_no_row(bench: Bench) -> None:
    bench.store()
    fill(bench, bench.index())
    for opened in bench.opened[1:]:
        opened.close()
    bench.backend.drop_index(bench.places.first)
    assert (index := bench.index()).size == 0
    assert index.rows(Query()) == []
