"""A witness that we did not write, litewitness, beside the built-in one; read back by torchwood."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from sealward.tlog.leaf import SALT_SIZE
from sealward.tlog.policy import open_cosigned
from sealward.tlog.receipt import format_receipt
from sealward.tlog.text import encode_base64
from tests.integration.test_audit_service import reason_of
from tests.integration.test_audit_witness import Watched
from tests.support import tlog_go
from tests.support.inference_suite import free_port, until

SOURCE = Path(__file__).parent.parent / "conformance" / "witness_go"
LITEWITNESS = "filippo.io/torchwood/cmd/litewitness"


class Lite:
    """litewitness with its key in an agent and its logs in its database."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._socket = folder / "s"
        self._database = folder / "lite.db"
        self._agent = subprocess.Popen(
            [programs / "agent" / "program", self._socket],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._agent.stdout is not None
        self._fingerprint = self._agent.stdout.readline().strip()
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "lite.log"
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def vkey(self) -> str:
        found = re.search(r'vkey="?([^"\s]+)', self._log.read_text())
        assert found
        return found[1]

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._programs / "lite" / "program",
                    *("-name", "lite.example/w", "-db", self._database),
                    *("-ssh-agent", self._socket, "-key", self._fingerprint),
                    *("-listen", f"127.0.0.1:{self.port}"),
                ],
                stdout=log,
                stderr=log,
                cwd=self._folder,
            )
        until(lambda: self._log.read_text().count("listening") > 0)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(20)
        self._log.write_text("")

    def register(self, origin: str, vkey: str) -> None:
        """Do by hand what witnessctl does."""
        empty = encode_base64(bytes.fromhex(
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        ))  # fmt: skip
        with sqlite3.connect(self._database, timeout=20) as database:
            database.execute("INSERT INTO log VALUES (?, 0, ?)", (origin, empty))
            database.execute("INSERT INTO key VALUES (?, ?)", (origin, vkey))
        database.close()

    def size(self, origin: str) -> int:
        with sqlite3.connect(self._database, timeout=20) as database:
            row = database.execute("SELECT tree_size FROM log WHERE origin = ?", (origin,))
            (found,) = row.fetchone()
        database.close()
        return int(found)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        assert self._agent.stdin is not None
        assert self._agent.stdout is not None
        self._agent.stdin.close()
        self._agent.wait(20)
        self._agent.stdout.close()


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("go")
    for name, package in (("agent", "./agent"), ("lite", LITEWITNESS), ("read", ".")):
        (folder / name).mkdir()
        tlog_go.build(folder / name, package, SOURCE)
    return folder


@pytest.fixture
def lite(programs: Path, tmp_path: Path) -> Iterator[Lite]:
    folder = tmp_path / "l"
    folder.mkdir()
    started = Lite(programs, folder)
    yield started
    started.close()


@pytest.fixture
def pair(tmp_path: Path, lite: Lite) -> Iterator[Watched]:
    """Keys and audit whose policy asks for the built-in witness and litewitness."""
    folder = tmp_path / "p"
    folder.mkdir()
    made = Watched(folder)
    try:
        made.start()
        (log,) = made.witness().logs
        lite.register(log.origin, log.vkeys[0])
        text = (made.audit.data / "log.policy").read_text()
        (own,) = [line for line in text.splitlines() if line.startswith("witness ")]
        policy = made.folder / "policy"
        policy.write_text(
            f"{own}\nwitness lite {lite.vkey} {lite.url}\ngroup both all built-in lite\n"
            "quorum both\n"
        )
        made.audit.end()
        made.audit.settings |= {"WITNESS_POLICY_FILE": policy, "WITNESS_SECONDS": "0.2"}
        made.audit.start()
        yield made
    finally:
        made.end()


def read(programs: Path, policy: Path, data: bytes, folder: Path) -> tuple[int, str]:
    """Verify with torchwood."""
    (folder / "data").write_bytes(data)
    done = subprocess.run(
        [programs / "read" / "program", "policy", policy, folder / "data"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_two_witnesses_cosign_and_torchwood_verifies(
    pair: Watched, lite: Lite, programs: Path, tmp_path: Path
) -> None:
    for _ in range(3):
        (event_id,) = pair.append()
        answer = pair.receipt_when_cosigned(event_id)
    opened = open_cosigned(answer.checkpoint, pair.policy)
    assert [c.witness.name for c in opened.cosignatures] == ["built-in", "lite"]
    assert lite.size(opened.checkpoint.origin) >= opened.checkpoint.size
    assert abs(opened.cosignatures[1].time - time.time()) < 600
    policy = pair.audit.data / "log.policy"
    assert read(programs, policy, answer.checkpoint, tmp_path)[0] == 0
    receipt = answer.receipt
    proof = format_receipt(
        receipt.log_index, receipt.path, receipt.leaf, bytes(SALT_SIZE), answer.checkpoint
    )
    assert read(programs, policy, proof, tmp_path) == (0, "proof\n")
    # What only one of them has cosigned is not enough for torchwood either.
    lines = answer.checkpoint.decode().splitlines(keepends=True)
    alone = "".join(line for line in lines if "lite.example" not in line)
    assert read(programs, policy, alone.encode(), tmp_path)[0] == 1
    states = {w.name: (w.state, w.counts) for w in pair.cosigning().witnesses}
    assert states == {"built-in": ("ok", True), "lite": ("ok", True)}


def test_litewitness_away_stops_nothing_and_comes_back(pair: Watched, lite: Lite) -> None:
    pair.receipt_when_cosigned(pair.append()[0])
    lite.kill()
    (event_id,) = pair.append()
    until(lambda: pair.cosigning().witnesses[1].state == "away")
    with pytest.raises(grpc.RpcError) as caught:
        pair.receipt(event_id)
    assert reason_of(caught.value) == "NOT_COSIGNED"
    pair.append(3)
    lite.start()
    pair.receipt_when_cosigned(event_id)
    assert [w.state for w in pair.cosigning().witnesses] == ["ok", "ok"]


def test_a_machine_that_was_set_back_as_a_whole_stops(pair: Watched, lite: Lite) -> None:
    """Audit and keys come back from one old copy and agree; the witness elsewhere knows better."""
    pair.receipt_when_cosigned(pair.append()[0])
    pair.audit.end()
    pair.keys.end()
    for name in ("audit", "keys"):
        shutil.copytree(pair.folder / name, pair.folder / f"{name}-old")
    pair.keys.start()
    pair.audit.start()
    pair.append(50)
    pair.receipt_when_cosigned(pair.append()[0])
    origin = pair.cosigning().logs[0].origin
    pair.audit.end()
    pair.keys.end()
    for name in ("audit", "keys"):
        shutil.rmtree(pair.folder / name)
        shutil.move(pair.folder / f"{name}-old", pair.folder / name)
    known = lite.size(origin)
    pair.keys.start()
    before = len(pair.audit.log.read_text().splitlines())
    process = pair.audit.launch()
    assert process.wait(60) == 1
    pair.audit.process = None
    lines = pair.audit.log.read_text().splitlines()[before:]
    (line,) = [x for x in lines if x.startswith("error: ")]
    assert f"the log {origin} was rolled back or forked: witness lite has cosigned {known}" in line
    assert "docs/runbooks/witness.md" in line
    assert not any("Traceback" in x for x in lines)
    # What it came to is in the log that it could not go on with.
    del pair.audit.settings["WITNESS_POLICY_FILE"]
    pair.audit.start()
    (event,) = pair.events(type="audit.fork")
    assert (event.outcome, event.target) == ("failed", origin)
