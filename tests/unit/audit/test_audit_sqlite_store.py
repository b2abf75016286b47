"""What is SQLite's own in the embedded store: rows of entries, several readers, an end."""

from __future__ import annotations

import secrets
import sqlite3
import threading
from pathlib import Path

import pytest

from sealward.tlog.merkle import leaf_hashes
from services.audit.sqlite_store import SqliteStore
from services.audit.store import EventKey, Head, StoreBrokenError


def fill(store: SqliteStore, count: int) -> list[bytes]:
    leaves = [b"%d" % n for n in range(count)]
    keys = [EventKey(secrets.token_bytes(16), bytes(16)) for _ in leaves]
    store.commit(0, leaves, leaf_hashes(leaves), keys, Head(count, bytes(32)))
    return leaves


def test_an_entry_is_read_without_its_whole_batch(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "log.db")
    leaves = fill(store, 300)
    assert store.leaves(250, 251) == leaves[250:251]
    store.close()
    rows = sqlite3.connect(tmp_path / "log.db").execute("SELECT first, count FROM batches")
    assert rows.fetchall() == [(0, 64), (64, 64), (128, 64), (192, 64), (256, 44)]


def test_a_long_reading_holds_up_no_other(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "log.db")
    leaves = fill(store, 5)
    entered, go = threading.Event(), threading.Event()

    def wait() -> int:
        entered.set()
        return int(not go.wait(20))

    slow = store._readers.get()
    slow.set_progress_handler(wait, 1)
    store._readers.put(slow)
    found: list[list[bytes]] = []
    thread = threading.Thread(target=lambda: found.append(store.leaves(0, 5)), daemon=True)
    thread.start()
    assert entered.wait(20)
    assert store.leaves(2, 4) == leaves[2:4]
    assert not found
    go.set()
    thread.join(20)
    assert found == [leaves]
    store.close()


def test_a_closed_store_answers_nothing(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "log.db")
    fill(store, 1)
    store.close()
    with pytest.raises(StoreBrokenError):
        store.leaves(0, 1)
    with pytest.raises(StoreBrokenError):
        store.find([bytes(16)])
