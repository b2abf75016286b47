"""Wrapped keys of an archive that moved on: in a small file beside it, so that it stays what it is.

An archive's files are read-only and listed with their digests, and copies of them are elsewhere.
When its keys are wrapped anew, the new forms go into `rewrapped.json`, which is not listed: each of
them proves itself when it is opened. What stands there is taken before what the archive holds.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from services.audit.entryfile import adopt_file
from services.audit.store import EventKey, Head, LogStore, StoreBrokenError

REWRAPPED = "rewrapped.json"


class RewrappedStore:
    """An archive's LogStore with the keys that moved on. Thread-safe."""

    def __init__(self, store: LogStore, path: Path) -> None:
        self._store = store
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None
        self._values: dict[str, bytes] = {}

    def get(self, name: str) -> bytes | None:
        """See LogStore; raise StoreBrokenError when the file beside it cannot be read."""
        return self._rewrapped().get(name) or self._store.get(name)

    def names(self, prefix: str) -> list[str]:
        """See LogStore."""
        return self._store.names(prefix)

    def head(self) -> Head | None:
        """See LogStore."""
        return self._store.head()

    def begin(self, first: int, leaves: Sequence[bytes]) -> None:
        """See LogStore: it fails, the archive is read-only."""
        self._store.begin(first, leaves)

    def commit(
        self,
        first: int,
        leaves: Sequence[bytes],
        hashes: Sequence[bytes],
        keys: Sequence[EventKey],
        head: Head,
    ) -> None:
        """See LogStore: it fails, the archive is read-only."""
        self._store.commit(first, leaves, hashes, keys, head)

    def find(self, event_ids: Sequence[bytes]) -> dict[bytes, tuple[int, bytes]]:
        """See LogStore."""
        return self._store.find(event_ids)

    def leaves(self, start: int, end: int) -> list[bytes]:
        """See LogStore."""
        return self._store.leaves(start, end)

    def framed(self, start: int, end: int) -> bytes:
        """See LogStore."""
        return self._store.framed(start, end)

    def hashes(self, start: int, end: int) -> bytes:
        """See LogStore."""
        return self._store.hashes(start, end)

    def put(self, values: Iterable[tuple[str, bytes]]) -> None:
        """See LogStore: it fails, the archive is read-only."""
        self._store.put(values)

    def forget(self, prefix: str) -> int:
        """See LogStore: it fails, the archive is read-only."""
        return self._store.forget(prefix)

    def seal(self) -> None:
        """See LogStore."""
        self._store.seal()

    def maintain(self) -> None:
        """See LogStore."""
        self._store.maintain()

    def close(self) -> None:
        """See LogStore."""
        self._store.close()

    def _rewrapped(self) -> dict[str, bytes]:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return {}
        seen = (found.st_ino, found.st_mtime_ns)
        with self._lock:
            if seen != self._seen:
                self._values = read_rewrapped(self._path)
                self._seen = seen
            return self._values


def read_rewrapped(path: Path) -> dict[str, bytes]:
    """Return the keys by their names, none without a file; raise StoreBrokenError."""
    try:
        document = json.loads(path.read_bytes())
        return {
            str(name): base64.b64decode(value, validate=True)
            for name, value in document["wrapped"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StoreBrokenError(f"{path.name} of an archive is damaged: restore it") from None


def write_rewrapped(path: Path, values: Sequence[tuple[str, bytes]]) -> None:
    """Add keys, or replace those of the same names, durably; raise OSError or StoreBrokenError."""
    merged = {**read_rewrapped(path), **dict(values)}
    document = {
        "wrapped": {name: base64.b64encode(key).decode() for name, key in sorted(merged.items())}
    }
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(json.dumps(document, indent=1).encode())
        file.flush()
        os.fsync(file.fileno())
    adopt_file(temporary, path)
