"""The keys service dies around the moment at which its witness makes a checkpoint durable."""

from __future__ import annotations

import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from sealward.tlog.checkpoint import Checkpoint
from sealward.tlog.note import parse_note
from tests.integration.test_audit_witness import Watched
from tests.support.inference_suite import until


def kept(pair: Watched, origin: str) -> Checkpoint:
    """What the witness has on its disk."""
    place = pair.keys.data / "witness" / sha256(origin.encode()).hexdigest()
    return Checkpoint.parse(parse_note((place / "checkpoint").read_bytes()).text)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_around_the_disk_the_witness_goes_on_with_one_history(
    tmp_path: Path, moment: str
) -> None:
    pair = Watched(tmp_path)
    try:
        pair.start()
        pair.receipt_when_cosigned(pair.append()[0])
        (log,) = pair.witness().logs
        until(lambda: pair.cosigning().logs[0].waiting_seconds == 0)
        pair.audit.end()
        shutil.copytree(pair.audit.data, tmp_path / "old")
        pair.audit.start()
        pair.keys.end()
        answered = kept(pair, log.origin)
        normal = pair.keys.program
        pair.keys.program = ["-m", "tests.support.keys_killed", moment, "1"]
        process = pair.keys.start().process
        assert process is not None
        (event_id,) = pair.append(20)[:1]
        assert process.wait(60) == -9
        found = kept(pair, log.origin)
        # Nobody has got a cosignature of that: it counts all the same, once it is on the disk.
        assert pair.cosigned_size() <= answered.size
        assert (found.size > answered.size) is (moment == "after")
        pair.keys.program = normal
        pair.keys.start()
        pair.receipt_when_cosigned(event_id)
        assert pair.cosigned_size() > found.size - 1
        assert not pair.witness().logs[0].conflict
        pair.audit.end()
        shutil.rmtree(pair.audit.data)
        (tmp_path / "old").rename(pair.audit.data)
        assert "rolled back" in pair.refused()
    finally:
        pair.end()
