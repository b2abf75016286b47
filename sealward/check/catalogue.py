"""All rows, in the order of the report."""

from __future__ import annotations

from sealward.check.row import Row
from sealward.check.rows import ac_01, ac_02, ac_06, au_03, au_08, id_01, ra_01, ts_01

ROWS: tuple[Row, ...] = tuple(
    module.ROW for module in (ac_01, ac_02, ac_06, au_03, au_08, id_01, ts_01, ra_01)
)
