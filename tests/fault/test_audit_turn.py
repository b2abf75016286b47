"""A log's writer is killed at every step of a turn: the next start completes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sealward.tlog.logchange import LogFinal, LogSuccessor, parse_change_leaf
from sealward.tlog.logdir import verify_directory
from sealward.tlog.note import parse_vkeys
from services.audit.log import Placed
from tests.support.audit_shards import Clock, opened
from tests.support.audit_suite import entry_bytes


@pytest.mark.parametrize(("tenant", "stride"), [("default", 1), ("north", 3)])
def test_a_turn_that_was_killed_is_completed(tmp_path: Path, tenant: str, stride: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.audit_shards", str(tmp_path), tenant, str(stride)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    runs = done.stdout.split("step ")[1:]
    assert runs[-1].endswith("done\n")
    assert len(runs) > 10 / stride
    turned = 0
    for run in runs:
        number, promised, *_ = run.split("\n")
        turned += _check(tmp_path / number, tenant, promised.split())
    # The first steps only announce; from the one on that says what is meant, it is completed.
    assert turned >= len(runs) - 5


def _check(folder: Path, tenant: str, promised: list[str]) -> bool:
    assert len(promised) == 300
    with opened(folder, clock=Clock()) as logs:
        shards = list(reversed(logs.shards.all(tenant)))
        assert len(shards) in (1, 2), folder
        found = []
        for shard in shards:
            size = shard.log.head[0]
            found += [leaf for leaf in shard.store.leaves(0, size) if leaf[0] == 1]
        assert [leaf[1:17].hex() for leaf in found] == promised
        (placed,) = logs.append(entry_bytes(tenant=tenant))
        assert isinstance(placed, Placed)
        if len(shards) == 1:
            logs.rollover.turn(tenant)
            shards = list(reversed(logs.shards.all(tenant)))
            turned = False
        else:
            turned = True
        old, new = shards
        size, note = old.log.head
        last = parse_change_leaf(old.store.leaves(size - 1, size)[0])[1]
        first = parse_change_leaf(new.store.leaves(0, 1)[0])[1]
        assert last == LogFinal(old.origin, new.origin, new.vkeys[0])
        assert first == LogSuccessor(new.origin, old.origin, note)
        keys = parse_vkeys((folder / "log.vkey").read_text())
        assert verify_directory(old.place.published, keys).size == size
        assert not (folder / "next").exists()
    assert verify_directory(shards[1].place.published, keys).size == shards[1].log.head[0]
    return turned
