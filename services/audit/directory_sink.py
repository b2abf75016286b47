"""A log published as a directory (0700, files 0600), for any static server or tool.

Files are written to a temporary name and renamed, and not synced: they are derived, and the start
compares each with what the store says.
"""

from __future__ import annotations

import os
from pathlib import Path

from sealward.tlog.tiles import Tile
from services.audit.tilesink import partial_folder


class DirectorySink:
    """A TileSink in a folder. See tilesink.py for the contract of each method."""

    def __init__(self, folder: Path) -> None:
        """Publish below `folder`, which is made with the first file."""
        self._folder = folder
        self._known: set[Path] = set()

    def __str__(self) -> str:
        return str(self._folder)

    def begin(self) -> None:
        """See TileSink."""
        self._known.clear()
        for left in self._folder.rglob(".*.new"):
            left.unlink()

    def read(self, path: str) -> bytes | None:
        """See TileSink."""
        try:
            return (self._folder / path).read_bytes()
        except FileNotFoundError:
            return None

    def holds(self, path: str, data: bytes) -> bool:
        """See TileSink."""
        try:
            return self.read(path) == data
        except OSError:
            return False

    def write(self, path: str, data: bytes) -> None:
        """See TileSink."""
        target = self._folder / path
        self._make(target.parent)
        replace_file(target, data)

    def flush(self) -> None:
        """See TileSink."""

    def forms(self, tile: Tile) -> list[int]:
        """See TileSink."""
        folder = self._folder / partial_folder(tile)
        if not folder.is_dir():
            return []
        return sorted(int(found.name) for found in folder.iterdir() if found.name.isdecimal())

    def drop_forms(self, tile: Tile) -> None:
        """See TileSink."""
        folder = self._folder / partial_folder(tile)
        for file in folder.iterdir():
            file.unlink(missing_ok=True)
        folder.rmdir()
        self._known.discard(folder)

    def _make(self, folder: Path) -> None:
        if folder not in self._known:
            # One by one: mkdir gives its mode to the last folder alone.
            if folder != self._folder:
                self._make(folder.parent)
            folder.mkdir(mode=0o700, parents=folder == self._folder, exist_ok=True)
            self._known.add(folder)


class DirectorySinks:
    """Sinks in the folders of the logs."""

    def open(self, folder: Path, origin: str) -> DirectorySink:  # noqa: ARG002
        """See Sinks."""
        return DirectorySink(folder)

    def close(self) -> None:
        """See Sinks."""


def replace_file(path: Path, data: bytes) -> None:
    """Write a file, mode 0600, under a temporary name and rename it."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    temporary.replace(path)
