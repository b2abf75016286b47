"""kill -9 at every step of a patient's destruction: done again, nothing of the patient is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sealward.kit import attributes as names
from sealward.tlog.leaf import PREFIX_SIZE
from services.audit.index import Query
from services.audit.shard import Shard
from tests.support.audit_patient_killed import GONE, STAYS, destruction
from tests.support.audit_shards import opened


def test_a_destruction_that_was_killed_is_done_again(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.audit_patient_killed", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    runs = done.stdout.split("step ")[1:]
    assert runs[-1].endswith("done\n")
    assert len(runs) >= 5
    for run in runs:
        with opened(tmp_path / run.split("\n")[0]) as logs:
            roots = {shard.origin: shard.log.head for shard in logs.shards.all("default")}
            work = destruction(logs)
            work.destroy("default", GONE)
            # Also when the event that names the patient names nobody any more.
            work.destroy("default", "")
            for shard in logs.shards.all("default"):
                assert patients(shard) == {STAYS: 3, "": 3}
                assert shard.log.head == roots[shard.origin]
                assert rows(shard, GONE) == 0
                assert rows(shard, STAYS) == 3


def patients(shard: Shard) -> dict[str, int]:
    """How many events name whom, by what still opens."""
    found: dict[str, int] = {}
    for leaf in shard.store.leaves(0, shard.log.head[0]):
        if leaf[0] != 1:
            continue
        span = Span.FromString(shard.segments.open(leaf[:PREFIX_SIZE], leaf[PREFIX_SIZE:]))
        values = {pair.key: pair.value.string_value for pair in span.attributes}
        name = values.get(names.PATIENT_REFERENCE, "")
        found[name] = found.get(name, 0) + 1
    return found


def rows(shard: Shard, patient: str) -> int:
    shard.indexer.wait(shard.log.head[0])
    return len(shard.index.rows(Query(patient=shard.index_keys.pseudonym(patient))))
