"""The log's writer is killed at any moment, and its disk fills up: nothing promised is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sealward.tlog.leaf import parse_leaf
from sealward.tlog.logdir import verify_directory
from sealward.tlog.note import parse_vkeys
from tests.support import tlog_go
from tests.support.audit_suite import Ring, open_suite
from tests.support.audit_writer import publisher, start_writer


def acknowledged(lines: list[str]) -> dict[int, str]:
    """Index → event id of everything that the writer was told is durable."""
    found: dict[int, str] = {}
    for line in lines:
        for word in line.split()[1:]:
            index, event_id = word.split(",")
            assert int(index) not in found
            found[int(index)] = event_id
    return found


def test_what_was_acknowledged_outlives_every_kill(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    promised: dict[int, str] = {}
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    dice = random.Random(seed)  # noqa: S311
    for _ in range(6):
        with start_writer(folder) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline() for _ in range(dice.randint(1, 60))]
            # Somewhere within a batch: sealing, committing, publishing.
            time.sleep(dice.random() * 0.01)
            writer.send_signal(signal.SIGKILL)
            lines += writer.stdout.read().splitlines(keepends=True)
            assert writer.wait(20) == -signal.SIGKILL
        new = acknowledged([line for line in lines if line.endswith("\n")])
        assert not promised.keys() & new.keys()
        promised |= new
    suite = open_suite(folder, Ring())
    leaves = suite.store.leaves(0, suite.log.head[0])
    ids = [parse_leaf(leaf).event_id.hex() for leaf in leaves]
    assert {index: ids[index] for index in promised} == promised
    assert len(set(ids)) == len(ids)
    rows = suite.query(limit=len(ids) + 1)
    assert [row.event_id.hex() for _, row in reversed(rows)] == ids
    publisher(suite, folder).rebuild()
    report = verify_directory(folder / "log", (suite.signer.verifier,))
    assert report.size == len(ids) >= len(promised) > 0
    assert report.unknown == ()
    suite.close()
    # And in the eyes of a program that has none of our code.
    vkey = tmp_path / "log.vkey"
    vkey.write_text(f"{suite.signer.vkey}\n")
    status, output = tlog_go.verify(tlog_go.build(tmp_path), folder / "log", vkey)
    assert status == 0, output
    assert f"size {len(ids)}\n" in output


def test_a_published_log_verifies_at_every_moment(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    with start_writer(folder) as writer:
        assert writer.stdout is not None
        try:
            sizes = set()
            while len(sizes) < 5:
                line = writer.stdout.readline()
                assert line
                if not (folder / "log/checkpoint").exists():
                    continue
                vkeys = parse_vkeys((folder / "log.vkey").read_text())
                sizes.add(verify_directory(folder / "log", vkeys).size)
        finally:
            writer.send_signal(signal.SIGKILL)


def test_a_full_disk_refuses_and_recovers_by_itself(tmp_path: Path) -> None:
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("needs user namespaces (unshare -rm) to mount a small tmpfs")
    folder = tmp_path / "small"
    folder.mkdir(mode=0o700)
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-m", "tests.support.audit_writer", "full", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if "mount: EPERM" in done.stderr:
        pytest.skip("needs the right to mount a small tmpfs")
    assert done.stdout == "recovered\n", done.stderr


@pytest.mark.parametrize(
    ("how", "why"),
    [("eio", "failed ("), ("journal", "failed ("), ("limit", "EFBIG")],
)
def test_a_disk_that_fails_stops_the_log_and_costs_nothing_promised(
    tmp_path: Path, how: str, why: str
) -> None:
    command = [sys.executable, "-m", "tests.support.audit_writer", "fails", str(tmp_path), how]
    if how != "limit":
        command = ["unshare", "-m", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if "mount: " in done.stderr or "unshare" in done.stderr:
        pytest.skip("needs the right to mount a file system on a loop device")
    last = (done.stdout.splitlines() or [""])[-1]
    assert last.startswith("stopped: "), done.stderr
    assert why in last


def test_a_read_only_disk_stops_the_start_with_one_line(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.support.audit_writer", "readonly", str(tmp_path)]
    done = subprocess.run(
        ["unshare", "-rm", *program], capture_output=True, text=True, check=False, timeout=60
    )
    if "mount: " in done.stderr or "unshare" in done.stderr:
        pytest.skip("needs user namespaces (unshare -rm) to mount a small tmpfs")
    assert done.stdout.startswith("refused: the audit "), done.stderr
    assert "cannot be opened" in done.stdout
