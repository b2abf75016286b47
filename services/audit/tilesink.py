"""Where a log is published: a directory or an object store, behind one small interface."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from sealward.tlog.tiles import TILE_WIDTH, Tile


class SinkUnavailableError(Exception):
    """What is published cannot be read or written now. Carries no data.

    What was written before is there: whoever publishes goes on where it was.
    """


class SinkMovedError(Exception):
    """Somebody else has published. Carries no data. All of it has to be compared again."""


class TileSink(Protocol):
    """The files of one log, by their paths of tlog-tiles. For one thread at a time.

    Methods raise SinkUnavailableError or OSError.
    """

    def begin(self) -> None:
        """Take stock of what is there, and remove what a crash left half written."""

    def read(self, path: str) -> bytes | None:
        """Return a file; None when it is not there."""

    def holds(self, path: str, data: bytes) -> bool:
        """Return whether a file is there with just this content. To be used after `begin`."""

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole or not at all; it may be there only after `flush`.

        Raise SinkMovedError for a checkpoint that another has written since this one read it.
        """

    def flush(self) -> None:
        """Return when everything that was written is there."""

    def forms(self, tile: Tile) -> Sequence[int]:
        """Return the widths of the partial forms of a tile that are there."""

    def drop_forms(self, tile: Tile) -> None:
        """Remove the partial forms of a tile."""


class Sinks(Protocol):
    """Where the logs of a deployment are published."""

    def open(self, folder: Path, origin: str) -> TileSink:
        """Return where the log `origin` is published; `folder` is its own on this machine."""

    def close(self) -> None:
        """Release what the sinks share."""


def partial_folder(tile: Tile) -> str:
    """Return the path of the folder in which the partial forms of a tile are."""
    return f"{Tile(tile.level, tile.index, TILE_WIDTH).path}.p"
