"""All rows, in the order of the report."""

from __future__ import annotations

from importlib import import_module

from sealward.check.row import Row

IDS = (
    "AC-01", "AC-02", "AC-03", "AC-04", "AC-05", "AC-06", "AC-07",
    "AU-01", "AU-02", "AU-03", "AU-04", "AU-05", "AU-06", "AU-07", "AU-08",
    "TR-01", "IN-01", "ID-01", "ID-02", "ID-03", "TS-01", "MN-01", "DI-01", "DI-02",
    "KM-01", "CP-01", "CP-02", "RA-01", "NW-01", "IR-01", "HD-01", "EV-01",
)  # fmt: skip
"""The 32 safeguards. An id never changes its meaning: reports of years are compared by it."""


def _row(name: str) -> Row:
    module = import_module(f"sealward.check.rows.{name.lower().replace('-', '_')}")
    found: Row = module.ROW
    return found


ROWS: tuple[Row, ...] = tuple(_row(name) for name in IDS)
