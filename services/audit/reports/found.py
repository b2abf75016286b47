"""An event as the reports see it."""

from __future__ import annotations

from typing import NamedTuple

from services.audit.index import Row


class Found(NamedTuple):
    """A row with its place: the log's origin and the leaf's index in it."""

    origin: str
    place: int
    row: Row
