"""The embedded store: two files that belong together, and a finder that lags behind."""

from __future__ import annotations

import json
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sealward.kit.errors import StartupError
from sealward.tlog.merkle import leaf_hashes
from sealward.tlog.tiledtree import TiledTree
from services.audit import embedded_store, migration
from services.audit.backend import FileBackend, Place
from services.audit.embedded_store import EmbeddedStore
from services.audit.entryfile import EntryFile, Mark
from services.audit.finder import Finder
from services.audit.log import load_tree
from services.audit.migration import version_of
from services.audit.sqlite_store import SqliteStore
from services.audit.store import EventKey, Head, StoreBrokenError, StoreFullError
from tests.support.audit_entries import as_version_3, flip


class Filled:
    """What a store was given."""

    def __init__(self) -> None:
        self.leaves: list[bytes] = []
        self.keys: list[EventKey] = []
        self._tree = TiledTree(lambda _tile: b"")

    def add(self, store: EmbeddedStore, count: int, size: int = 60) -> None:
        keys = [EventKey(secrets.token_bytes(16), secrets.token_bytes(16)) for _ in range(count)]
        leaves = [b"\1" + key.event_id + secrets.token_bytes(size) for key in keys]
        hashes = leaf_hashes(leaves)
        growth = self._tree.grown(hashes)
        first = len(self.leaves)
        store.commit(first, leaves, hashes, keys, Head(first + count, growth.root))
        self._tree.adopt(growth)
        self.leaves += leaves
        self.keys += keys

    def check(self, store: Any) -> None:
        """Everything is there and found, and nothing else."""
        count = len(self.leaves)
        assert store.head() == (Head(count, self._tree.root()) if count else None)
        assert store.leaves(0, count) == self.leaves
        ids = [key.event_id for key in self.keys]
        places = {key.event_id: (n, key.fingerprint) for n, key in enumerate(self.keys)}
        assert store.find([*ids, bytes(16), b"\xff" * 16]) == places
        assert load_tree(store).size == count


@pytest.fixture
def given() -> Filled:
    return Filled()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


def test_an_entry_is_read_without_its_whole_batch(
    path: Path, given: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EmbeddedStore(path)
    given.add(store, 300, 2000)
    lengths: list[int] = []
    read = EntryFile.read

    def seen(file: EntryFile, at: int, length: int) -> bytes:
        lengths.append(length)
        return read(file, at, length)

    monkeypatch.setattr(EntryFile, "read", seen)
    assert store.leaves(250, 251) == given.leaves[250:251]
    assert sum(lengths) < 70_000
    store.close()


def test_a_closed_store_answers_nothing(path: Path, given: Filled) -> None:
    store = EmbeddedStore(path)
    given.add(store, 1)
    store.close()
    store.close()
    with pytest.raises(StoreBrokenError):
        store.leaves(0, 1)
    with pytest.raises(StoreBrokenError):
        store.find([bytes(16)])
    with pytest.raises(StoreBrokenError):
        store.get("origin")


def test_an_id_is_found_at_every_moment(
    path: Path, given: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_store, "_LAZY_SECONDS", 0.0)
    entered, go = threading.Event(), threading.Event()
    file = Finder.file

    def wait(finder: Finder, *args: Any) -> None:
        entered.set()
        assert go.wait(20)
        file(finder, *args)

    monkeypatch.setattr(Finder, "file", wait)
    store = EmbeddedStore(path)
    given.add(store, 3)
    given.check(store)
    assert entered.wait(20)
    # Those are being taken up, these came meanwhile.
    given.add(store, 2)
    given.check(store)
    go.set()
    store.close()
    with closing(Finder(path)) as finder:
        assert finder.mark.size == 5
    with closing(EmbeddedStore(path)) as again:
        given.check(again)
        given.add(again, 1)
        given.check(again)


def test_after_a_kill_the_finder_is_brought_up_to_date(path: Path, given: Filled) -> None:
    store = EmbeddedStore(path)
    store.put([("origin", b"x")])
    for count in (1, 300, 4):
        given.add(store, count)
    killed = path.parent / "killed"
    killed.mkdir()
    for name in ("log.db", "log.db-wal", "log.entries"):
        shutil.copy(path.parent / name, killed / name)
    store.close()
    with closing(EmbeddedStore(killed / "log.db")) as again:
        given.check(again)
        assert again.get("origin") == b"x"
        assert not again._fresh.ids
    with closing(Finder(killed / "log.db")) as finder:
        assert finder.mark.size == 305


def add_many(given: Filled, store: EmbeddedStore) -> None:
    for _ in range(20_000):
        given.add(store, 5)


def test_what_is_held_is_bounded(
    path: Path, given: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_MOST", 20), ("_STEP", 10), ("_RETRY_SECONDS", 0.0)):
        monkeypatch.setattr(embedded_store, name, value)
    full = True
    file = Finder.file

    def fill(finder: Finder, *args: Any) -> None:
        if full:
            raise StoreFullError("no space")
        file(finder, *args)

    monkeypatch.setattr(Finder, "file", fill)
    store = EmbeddedStore(path)
    with pytest.raises(StoreFullError):
        add_many(given, store)
    given.check(store)
    full = False
    while True:
        try:
            given.add(store, 5)
            break
        except StoreFullError:
            # Until its thread has found out.
            continue
    for _ in range(20):
        given.add(store, 5)
    given.check(store)
    store.close()
    with closing(EmbeddedStore(path)) as again:
        given.check(again)


def test_a_start_on_a_full_disk_takes_up_again_by_itself(
    path: Path, given: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_MOST", 20), ("_RETRY_SECONDS", 0.0), ("_LAZY_SECONDS", 0.0)):
        monkeypatch.setattr(embedded_store, name, value)
    EmbeddedStore(path).close()
    shutil.copy(path, path.with_name("early"))
    store = EmbeddedStore(path)
    for _ in range(10):
        given.add(store, 5)
    store.close()
    path.with_name("early").replace(path)
    full = True
    taken = threading.Event()
    file = Finder.file

    def fill(finder: Finder, *args: Any) -> None:
        if full:
            raise StoreFullError("no space")
        file(finder, *args)
        if finder.mark.size == 50:
            taken.set()

    monkeypatch.setattr(Finder, "file", fill)
    with closing(EmbeddedStore(path)) as again:
        given.check(again)
        with pytest.raises(StoreFullError):
            given.add(again, 1)
        full = False
        assert taken.wait(20)
        given.check(again)


@pytest.mark.parametrize(
    ("error", "why"),
    [(StoreBrokenError("the audit store failed (SQLITE_IOERR)"), "SQLITE_IOERR"),
     (ValueError("secret"), r"the finder failed \(ValueError\)")],
)  # fmt: skip
def test_a_finder_that_fails_stops_the_log(
    path: Path, given: Filled, monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    monkeypatch.setattr(embedded_store, "_LAZY_SECONDS", 0.0)

    def fail(_finder: Finder, *_args: Any) -> None:
        raise error

    monkeypatch.setattr(Finder, "file", fail)
    store = EmbeddedStore(path)
    with pytest.raises(StoreBrokenError, match=why):
        add_many(given, store)
    given.check(store)
    store.close()
    monkeypatch.undo()
    with closing(EmbeddedStore(path)) as again:
        given.check(again)


# --- two files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["log.db", "log.entries"])
def test_one_file_without_the_other_is_not_begun_anew(path: Path, given: Filled, lost: str) -> None:
    store = EmbeddedStore(path)
    given.add(store, 1)
    store.close()
    path.with_name(lost).rename(path.with_name("lost"))
    with pytest.raises(StartupError, match=lost):
        EmbeddedStore(path)
    path.with_name("lost").rename(path.with_name(lost))
    with closing(EmbeddedStore(path)) as again:
        given.check(again)


def test_files_of_two_stores_are_not_taken(path: Path, tmp_path: Path, given: Filled) -> None:
    for place in (path, tmp_path / "other" / "log.db"):
        store = EmbeddedStore(place)
        Filled().add(store, 1)
        store.close()
    shutil.copy(tmp_path / "other" / "log.entries", path.with_name("log.entries"))
    with pytest.raises(StartupError, match="belongs to"):
        EmbeddedStore(path)


def test_a_store_that_was_killed_while_it_was_made_is_made(path: Path, given: Filled) -> None:
    EntryFile.create(path.with_name("log.entries"), bytes(16))
    with closing(EmbeddedStore(path)) as store:
        given.add(store, 2)
        given.check(store)


@pytest.mark.parametrize("up_to_date", [True, False])
def test_a_bit_that_flips_anywhere_stops_the_start(
    path: Path, given: Filled, up_to_date: bool
) -> None:
    store = EmbeddedStore(path)
    store.close()
    if not up_to_date:
        shutil.copy(path, path.with_name("early"))
    store = EmbeddedStore(path)
    for count in (2, 1, 1):
        given.add(store, count, 5)
    store.close()
    if not up_to_date:
        # As a kill may leave it: the finder knows nothing.
        path.with_name("early").replace(path)
    entries = path.with_name("log.entries")
    kept, whole = path.read_bytes(), entries.read_bytes()
    for at in range(0, len(whole), 5):
        flip(entries, at, at % 8)
        with pytest.raises(StartupError), closing(EmbeddedStore(path)) as damaged:
            load_tree(damaged)
        entries.write_bytes(whole)
        path.write_bytes(kept)
    with closing(EmbeddedStore(path)) as again:
        given.check(again)


def test_a_sealed_store_is_two_files_that_nobody_writes(path: Path, given: Filled) -> None:
    store = EmbeddedStore(path)
    given.add(store, 300)
    store.seal()
    assert {file.name for file in path.parent.iterdir()} == {"log.db", "log.entries"}
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    for file in before:
        file.chmod(0o400)
    with closing(EmbeddedStore(path, sealed=True)) as sealed:
        given.check(sealed)
        with pytest.raises(StoreBrokenError):
            sealed.put([("a", b"b")])
        with pytest.raises(StoreBrokenError):
            given.add(sealed, 1)
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


@pytest.mark.parametrize("at", range(6))
def test_a_move_that_was_killed_is_completed(
    tmp_path: Path, given: Filled, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FileBackend()
    old, new = Place("default", tmp_path / "old"), Place("default", tmp_path / "new")
    store = backend.store(old)
    assert isinstance(store, EmbeddedStore)
    given.add(store, 3)
    store.close()
    for name in ("index.db", "log.vkey"):
        (old.folder / name).write_text(name)
    calls = 0

    def step(action: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > at:
                raise KeyboardInterrupt
            return action(*args, **options)

        return run

    with monkeypatch.context() as patched:
        for name in ("rename", "unlink"):
            patched.setattr(Path, name, step(getattr(Path, name)))
        patched.setattr("services.audit.backend.os.link", step(shutil.os.link))
        try:
            backend.move(old, new)
        except KeyboardInterrupt:
            # Whichever place has a store now, it is whole.
            for place in (old, new):
                if backend.has_store(place):
                    with closing(backend.store(place)) as found:
                        given.check(found)
    backend.move(old, new)
    assert not list(old.folder.iterdir())
    with closing(backend.store(new)) as found:
        given.check(found)


# --- earlier versions ---------------------------------------------------------------------------


def earlier(folder: Path, given: Filled, count: int = 700) -> Place:
    store = EmbeddedStore(folder / "log.db")
    given.add(store, count)
    store.put([("origin", b"x")])
    store.close()
    as_version_3(folder)
    return Place("default", folder)


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_migration_that_was_killed_goes_on(
    tmp_path: Path, given: Filled, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = earlier(tmp_path / "old", given)
    commits: list[int] = []
    commit, adopt = EntryFile.commit, migration.adopt_file

    def die(file: EntryFile, first: int, *args: Any) -> None:
        if len(commits) == at:
            raise KeyboardInterrupt
        commits.append(first)
        commit(file, first, *args)

    def adopted(temporary: Path, path: Path) -> None:
        adopt(temporary, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(EntryFile, "commit", die)
        # The fourth time it dies between the two files.
        patched.setattr(migration, "adopt_file", adopted)
        with pytest.raises(KeyboardInterrupt):
            FileBackend().store(place)
    assert version_of(place.folder / "log.db") == 3
    with monkeypatch.context() as patched:
        again: list[int] = []

        def count(file: EntryFile, first: int, *args: Any) -> None:
            again.append(first)
            commit(file, first, *args)

        patched.setattr(EntryFile, "commit", count)
        store = FileBackend().store(place)
    # What was there already is not written again.
    assert again == [0, 256, 512] if at == 3 else commits + again == [0, 256, 512]
    given.check(store)
    assert store.get("origin") == b"x"
    store.close()
    assert version_of(place.folder / "log.db") == 4
    assert {file.name for file in place.folder.iterdir()} == {"log.db", "log.entries"}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE head SET root = zeroblob(32)",
        "UPDATE head SET size = 699",
        "UPDATE batches SET leaves = substr(leaves, 1, 20) WHERE first = 64",
        "UPDATE ids SET idx = idx + 1 WHERE idx = 699",
        "DELETE FROM ids WHERE idx = 5",
    ],
)
def test_a_changed_store_is_not_taken_over(tmp_path: Path, given: Filled, statement: str) -> None:
    place = earlier(tmp_path / "old", given)
    with closing(sqlite3.connect(place.folder / "log.db")) as db:
        db.execute(statement)
        db.commit()
    with pytest.raises(StartupError):
        FileBackend().store(place)
    assert version_of(place.folder / "log.db") == 3


def test_an_archive_of_an_earlier_version_stays_what_it_is(tmp_path: Path, given: Filled) -> None:
    place = earlier(tmp_path / "old", given)
    SqliteStore(place.folder / "log.db").seal()
    place.manifest.write_text(json.dumps({"files": {}}))
    before = (place.folder / "log.db").read_bytes()
    (place.folder / "log.db").chmod(0o400)
    with closing(FileBackend().store(place, sealed=True)) as store:
        given.check(store)
        assert store.framed(3, 5) == b"".join(
            len(leaf).to_bytes(2) + leaf for leaf in given.leaves[3:5]
        )
        with pytest.raises(StoreBrokenError):
            store.commit(700, [b"x"], [bytes(32)], [EventKey(bytes(16), bytes(16))], Head(701, b""))
    assert {f.name: f.read_bytes() for f in place.folder.iterdir() if f != place.manifest} == {
        "log.db": before
    }


def test_an_earlier_store_without_entries_is_taken_over(tmp_path: Path, given: Filled) -> None:
    place = earlier(tmp_path / "old", given, 1)
    with closing(sqlite3.connect(place.folder / "log.db")) as db:
        db.executescript("DELETE FROM batches; DELETE FROM ids; DELETE FROM head;")
    with closing(FileBackend().store(place)) as store:
        Filled().check(store)


@pytest.mark.parametrize("undone", [True, False])
def test_a_step_of_the_finder_that_fails_leaves_nothing(path: Path, undone: bool) -> None:
    finder = Finder(path)
    finder.belong(bytes(16))
    real = finder._filler

    class Failing:
        in_transaction = True

        def execute(self, sql: str, values: Any = ()) -> Any:
            if sql == "COMMIT" or (sql == "ROLLBACK" and not undone):
                raise sqlite3.OperationalError("full")
            return real.execute(sql, values)

        executemany, close = real.executemany, real.close

    finder._filler = Failing()  # type: ignore[assignment]
    with pytest.raises(StoreBrokenError, match="undone" if not undone else "failed"):
        finder.file(0, [bytes(16)], bytes(16), [], Mark(40, 1, bytes(32), 7))
    assert finder.mark.size == 0
    assert not finder.find([bytes(16)])
    finder.close()
