"""The places of logs whose truth and index are in PostgreSQL (backend.py).

A log's name in the database is its place below the data folder. What is published, and the verifier
keys, stay files there: they are derived and made anew where they are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sealward.kit.errors import StartupError
from services.audit.backend import FileBackend, Place, make_folder
from services.audit.index import Index
from services.audit.postgres_database import Database
from services.audit.postgres_index import PostgresIndex
from services.audit.postgres_store import PostgresStore, SealedPostgresStore
from services.audit.store import LogStore, StoreBrokenError, StoreError
from services.audit.tilesink import Sinks, TileSink

_DISCARDED = "discarded/"


class PostgresBackend:
    """See Backend. `wait` (seconds) is how long another writer of a log is waited for."""

    def __init__(
        self, data: Path, database: Database, sinks: Sinks | None = None, *, wait: float = 0.0
    ) -> None:
        """Make the folders of the logs that the database has: this machine may be a new one."""
        self._data = data
        self._database = database
        self._wait = wait
        self._files = FileBackend(sinks)
        query = "SELECT name FROM logs WHERE NOT starts_with(name, %s)"
        for (name,) in self._run(query, _DISCARDED):
            make_folder(data / name)

    def store(self, place: Place, *, sealed: bool = False) -> LogStore:
        """See Backend."""
        if sealed:
            return SealedPostgresStore(self._database, self._name(place))
        make_folder(place.folder)
        return PostgresStore(self._database, self._name(place), wait=self._wait)

    def index(self, place: Place, origin: str) -> Index:
        """See Backend."""
        return PostgresIndex(self._database, self._name(place), origin)

    def sink(self, place: Place, origin: str) -> TileSink:
        """See Backend."""
        return self._files.sink(place, origin)

    def rewrap(self, place: Place, values: Sequence[tuple[str, bytes]]) -> None:
        """See Backend: an archive here has no file of the store that has to stay as it is."""
        try:
            store = self.store(place)
        except StartupError:
            raise StoreBrokenError("the archive cannot be written") from None
        try:
            store.put(values)
        finally:
            store.close()

    def forget_rewrapped(self, place: Place) -> None:
        """See Backend: nothing is kept outside the store."""

    def has_store(self, place: Place) -> bool:
        """See Backend."""
        return bool(self._run("SELECT 1 FROM logs WHERE name = %s", self._name(place)))

    def move(self, old: Place, new: Place) -> None:
        """See Backend."""
        names = (self._name(old), self._name(new))
        if not self.has_store(new):
            self._run("UPDATE logs SET name = %s WHERE name = %s RETURNING id", *reversed(names))
        self._files.move(old, new)

    def discard(self, place: Place) -> None:
        """See Backend. The service may not delete what is in a log, so its rows lose their name."""
        self._run(
            "UPDATE logs SET name = %s || id WHERE name = %s RETURNING id",
            _DISCARDED,
            self._name(place),
        )
        self._files.discard(place)

    def drop_index(self, place: Place) -> None:
        """See Backend. The pages go with the server's next VACUUM (docs/storage.md)."""
        self._run(
            "WITH log AS (SELECT id FROM logs WHERE name = %s), state AS ("
            " UPDATE index_state SET size = 0 FROM log WHERE index_state.log = log.id),"
            " gone AS (DELETE FROM events USING log WHERE events.log = log.id RETURNING 1)"
            " SELECT count(*) FROM gone",
            self._name(place),
        )

    def close(self) -> None:
        """Release the database."""
        self._files.close()
        self._database.close()

    def _name(self, place: Place) -> str:
        return place.folder.relative_to(self._data).as_posix()

    def _run(self, query: str, *values: str) -> list[Any]:
        try:
            return self._database.read(query, values)
        except StoreError as error:
            raise StartupError(f"the audit database failed: {error}") from None
