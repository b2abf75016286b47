"""Where the logs lie: one place a log, each with its store, its index and its published files.

DIR/audit is the place of the current log of the default tenant; the others lie in
DIR/audit/logs/<tenant>/<label>. A place that is not complete yet is DIR/audit/next.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.audit.directory_sink import DirectorySinks
from services.audit.embedded_store import ENTRIES, EmbeddedStore
from services.audit.entry import DEFAULT_TENANT
from services.audit.finder import VERSION
from services.audit.index import Index
from services.audit.migration import migrate, version_of
from services.audit.rewrapped import REWRAPPED, RewrappedStore, write_rewrapped
from services.audit.sqlite_index import SqliteIndex
from services.audit.sqlite_store import SqliteStore
from services.audit.store import LogStore
from services.audit.tilesink import Sinks, TileSink

_STORE, _INDEX = "log.db", "index.db"
# What is in several files is complete only together: what makes it a store goes last.
_FILES = (
    f"{_STORE}-wal", f"{_STORE}-shm", _STORE, f"{_INDEX}-wal", f"{_INDEX}-shm", _INDEX, "log",
    "log.vkey",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """One log's place: whose it is and the folder of its files."""

    tenant: str
    folder: Path

    @property
    def published(self) -> Path:
        """The folder of the C2SP files."""
        return self.folder / "log"

    @property
    def vkey(self) -> Path:
        """The file of the verifier keys."""
        return self.folder / "log.vkey"

    @property
    def manifest(self) -> Path:
        """The list of an archive's files with their SHA-256; there once it is archived."""
        return self.folder / "manifest.json"


class Backend(Protocol):
    """Opens what lies in a place. Methods raise StartupError unless they say otherwise."""

    def store(self, place: Place, *, sealed: bool = False) -> LogStore:
        """Open the store of a place; `sealed`: its files are read-only and stay so."""

    def index(self, place: Place, origin: str) -> Index:
        """Open the index of a place."""

    def sink(self, place: Place, origin: str) -> TileSink:
        """Return where the log in a place is published."""

    def rewrap(self, place: Place, values: Sequence[tuple[str, bytes]]) -> None:
        """Replace wrapped keys of an archive, durably, all or none; whoever has it open sees them.

        Raises StoreError or OSError.
        """

    def forget_rewrapped(self, place: Place) -> None:
        """Destroy what `rewrap` kept outside the store of a place."""

    def has_store(self, place: Place) -> bool:
        """Return whether there is a store in a place."""

    def move(self, old: Place, new: Place) -> None:
        """Move what lies in a place to another one. Done again, it goes on where it ended."""

    def discard(self, place: Place) -> None:
        """Delete a place that was never complete."""

    def drop_index(self, place: Place) -> None:
        """Delete the index of a place; nothing of its rows is left."""

    def close(self) -> None:
        """Release what all logs share. Stores and indexes are closed before."""


class FileBackend:
    """Store and index are files in the folder of the place."""

    def __init__(self, sinks: Sinks | None = None) -> None:
        """Publish to `sinks`, or in the folders of the places."""
        self._sinks = sinks or DirectorySinks()

    def store(self, place: Place, *, sealed: bool = False) -> LogStore:
        """See Backend."""
        path, entries = place.folder / _STORE, place.folder / ENTRIES
        version = version_of(path)
        store: LogStore
        if version and version < VERSION and place.manifest.exists():
            # An archive stays the files that its manifest lists.
            store = SqliteStore(path, sealed=sealed)
        else:
            if version and version < VERSION:
                migrate(path, entries)
            store = EmbeddedStore(path, sealed=sealed)
        return RewrappedStore(store, place.folder / REWRAPPED) if sealed else store

    def index(self, place: Place, origin: str) -> Index:
        """See Backend."""
        return SqliteIndex(place.folder / _INDEX, origin)

    def sink(self, place: Place, origin: str) -> TileSink:
        """See Backend."""
        return self._sinks.open(place.published, origin)

    def rewrap(self, place: Place, values: Sequence[tuple[str, bytes]]) -> None:
        """See Backend: the archive's file is not touched, they go into one beside it."""
        write_rewrapped(place.folder / REWRAPPED, values)

    def forget_rewrapped(self, place: Place) -> None:
        """See Backend."""
        _wipe(place.folder / REWRAPPED)

    def has_store(self, place: Place) -> bool:
        """See Backend."""
        return (place.folder / _STORE).exists()

    def move(self, old: Place, new: Place) -> None:
        """See Backend."""
        make_folder(new.folder)
        # In both places until the store has moved: whichever place has that is complete.
        entries, moved = old.folder / ENTRIES, new.folder / ENTRIES
        if entries.exists() and not moved.exists():
            os.link(entries, moved)
            _sync(new.folder)
        for name in _FILES:
            source, target = old.folder / name, new.folder / name
            if source.exists() and not target.exists():
                source.rename(target)
        _sync(new.folder)
        entries.unlink(missing_ok=True)
        _sync(old.folder)

    def discard(self, place: Place) -> None:
        """See Backend."""
        shutil.rmtree(place.folder, ignore_errors=True)

    def drop_index(self, place: Place) -> None:
        """See Backend."""
        for suffix in ("-wal", "-shm", ""):
            # The rows name people.
            _wipe(place.folder / f"{_INDEX}{suffix}")

    def close(self) -> None:
        """See Backend."""
        self._sinks.close()


class Places:
    """Which places there are below the data folder."""

    def __init__(self, data: Path) -> None:
        self._data = data

    @property
    def first(self) -> Place:
        """The place of the default tenant's current log."""
        return Place(DEFAULT_TENANT, self._data)

    @property
    def coming(self) -> Place:
        """Where the default tenant's next log is made before it takes the first place."""
        return Place(DEFAULT_TENANT, self._data / "next")

    def of(self, tenant: str, label: str) -> Place:
        """Return the place of another log."""
        return Place(tenant, self._data / "logs" / tenant / label)

    def others(self, tenant: str) -> list[Place]:
        """Return the places in a tenant's folder that are there."""
        folder = self._data / "logs" / tenant
        if not folder.is_dir():
            return []
        return [Place(tenant, found) for found in sorted(folder.iterdir()) if found.is_dir()]


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, each 0700."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _wipe(path: Path) -> None:
    """Remove a file; its pages are written over before they are given back."""
    if path.exists():
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
            os.fsync(file.fileno())
        path.unlink()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
