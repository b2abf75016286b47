"""The supervisor with real child processes of no special kind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealward.cli.processes import Spec
from sealward.cli.suite import Suite
from sealward.cli.supervisor import (
    BACKOFF_MOST,
    STABLE_SECONDS,
    Child,
    _open_log,
    _rotate,
    backoff,
)

SECONDS = 20.0

# Runs the real supervisor over the children given as JSON [[name, code], …].
DRIVER = """
import json, sys
from pathlib import Path
from sealward.cli.processes import Spec
from sealward.cli.suite import Suite
from sealward.cli.supervisor import Supervisor, _logger, acquire
suite = Suite.at(Path(sys.argv[1]))
if not acquire(suite):
    sys.exit(75)
specs = [Spec(n, (sys.executable, "-c", c), {}, 5.0) for n, c in json.loads(sys.argv[2])]
Supervisor(suite, specs, _logger("supervisor")).run(attached="--attached" in sys.argv)
"""

IDLE = "import time\nwhile True: time.sleep(60)"
NOTE_END = """
import signal, sys, time
def end(*_):
    with open("ends", "a") as file: file.write("{name}\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
open("{name}.up", "w").close()
while True: time.sleep(60)
"""


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    made = Suite.at(tmp_path / "suite")
    made.create({})
    return made


@contextmanager
def supervising(
    suite: Suite, *children: tuple[str, str], attached: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-c", DRIVER, str(suite.root), json.dumps(children)]
    process = subprocess.Popen(
        argv + (["--attached"] if attached else []),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    try:
        until(lambda: len(pids(suite)) == len(children), "children start")
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def pids(suite: Suite) -> dict[str, int]:
    found = suite.state().get("processes", {})
    return {name: child["pid"] for name, child in found.items() if child["pid"]}


def test_a_dead_child_is_started_again(suite: Suite) -> None:
    with supervising(suite, ("keys", IDLE), ("audit", IDLE)):
        before = pids(suite)
        os.kill(before["keys"], signal.SIGKILL)
        until(lambda: pids(suite).get("keys", before["keys"]) != before["keys"], "restart")
        state = suite.state()["processes"]
        assert state["keys"]["restarts"] == 1
        assert state["keys"]["last_exit"] == -signal.SIGKILL
        assert pids(suite)["audit"] == before["audit"]


def test_a_child_that_never_starts_is_tried_again_and_its_status_kept(suite: Suite) -> None:
    with supervising(suite, ("audit", IDLE)):
        pass
    argv = [sys.executable, "-c", DRIVER, str(suite.root), json.dumps([("keys", "exit(7)")])]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        until(
            lambda: suite.state()["processes"].get("keys", {}).get("restarts", 0) >= 2, "restarts"
        )
        assert suite.state()["processes"]["keys"]["last_exit"] == 7
    finally:
        process.kill()
        process.wait()


def test_children_end_with_a_killed_supervisor(suite: Suite) -> None:
    with supervising(suite, ("keys", IDLE), ("gateway", IDLE)) as process:
        children = list(pids(suite).values())
        process.kill()
        process.wait()
        until(lambda: not any(alive(pid) for pid in children), "children end")


def test_the_drain_follows_the_needs(suite: Suite) -> None:
    names = ("keys", "audit", "valkey", "inference", "gateway")
    children = [(name, NOTE_END.replace("{name}", name)) for name in names]
    with supervising(suite, *children) as process:
        until(lambda: all((suite.root / f"{n}.up").exists() for n in names), "handlers")
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
    assert (suite.root / "ends").read_text().split() == [
        "gateway", "inference", "audit", "keys", "valkey",
    ]  # fmt: skip


def test_an_attached_suite_ends_when_its_command_is_gone(suite: Suite) -> None:
    with supervising(suite, ("keys", IDLE), attached=True) as process:
        child = pids(suite)["keys"]
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(SECONDS) == 0
        assert not alive(child)


def test_the_lock_tells_who_runs(suite: Suite) -> None:
    assert suite.supervisor_pid() is None
    with supervising(suite, ("keys", IDLE)) as process:
        assert suite.supervisor_pid() == process.pid
        second = subprocess.run(
            [sys.executable, "-c", DRIVER, str(suite.root), "[]"], check=False, timeout=SECONDS
        )
        assert second.returncode == 75
        assert suite.supervisor_pid() == process.pid
    # Killed: the file is still there and means nothing.
    assert suite.lock_file.exists()
    assert suite.supervisor_pid() is None


def test_logs_are_closed_to_others(suite: Suite) -> None:
    with supervising(suite, ("keys", "print('{}', flush=True)\n" + IDLE)):
        log = suite.logs / "keys.log"
        until(lambda: log.read_text() == "{}\n", "log line")
        assert log.stat().st_mode & 0o077 == 0


def test_a_large_log_is_moved_aside(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealward.cli.supervisor._LARGEST_LOG", 1000)
    log = suite.logs / "keys.log"
    with _open_log(log) as output:
        output.write(b"x" * 1000)
        output.flush()
        _rotate(log)
        # The process goes on writing to the file that it has open.
        output.write(b"new")
    assert log.read_bytes() == b"new"
    assert (suite.logs / "keys.log.1").read_bytes() == b"x" * 1000


def test_backoff_grows_to_its_most() -> None:
    steps = [backoff(n) for n in range(1, 12)]
    assert steps == sorted(steps)
    assert steps[0] < 0.5
    assert steps[-1] == BACKOFF_MOST
    assert backoff(10_000) == BACKOFF_MOST


def test_a_stable_run_resets_the_backoff() -> None:
    child = Child(Spec("keys", (), {}))
    for _ in range(6):
        child.ended(now=1.0)
    late = child.next_start - 1.0
    child.started = 100.0
    child.ended(now=100.0 + STABLE_SECONDS)
    assert child.next_start == pytest.approx(100.0 + STABLE_SECONDS + backoff(1))
    assert backoff(1) < late
    assert child.restarts == 7
