"""A part that is missing: no answer, UNAVAILABLE, nothing lost, and recovery without help."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sealward.cli.errors import CliError
from tests.support.suites import TRANSIENT, RunningSuite, until


def test_no_answer_without_the_log(suite: RunningSuite) -> None:
    name = suite.user("ada")
    before = suite.ask(name)
    with suite.stopped("audit"):
        error = suite.refusal(name, timeout=20)
        assert error.details["reason"] == "AUDIT_UNAVAILABLE"
        assert "receipt" not in error.as_json()["error"]
    suite.answers_again(name)
    after = suite.ask(name)
    suite.assert_each_once([before, after])


def test_no_answer_while_the_disk_takes_nothing(suite: RunningSuite) -> None:
    name = suite.user("ada")
    before = suite.ask(name)
    pid = suite.pid("audit")
    assert pid is not None
    # A limit on the size of files stands for a full disk: writes fail, the process lives.
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, hard))
    try:
        error = suite.refusal(name, timeout=20)
        assert error.details["status"] == "UNAVAILABLE"
        assert error.details["reason"] == "AUDIT_UNAVAILABLE"
    finally:
        if suite.pid("audit") == pid:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
    suite.answers_again(name)
    after = suite.ask(name)
    suite.assert_each_once([before, after])
    suite.verify(before.proof.checkpoint.note)


def test_no_answer_without_the_session_store(suite: RunningSuite) -> None:
    name = suite.user("ada")
    suite.ask(name)
    with suite.stopped("valkey"):

        def refused() -> bool:
            # Until the silent link is noticed a cached session is still served. The client's own
            # question for a consistency proof needs the store, and fails before that.
            try:
                suite.ask(name, timeout=20)
            except CliError as error:
                reasons.append(error.details["reason"])
            return "SESSION_STORE_UNAVAILABLE" in reasons

        reasons: list[str] = []
        until(refused, "the cache empties", seconds=15)
        assert set(reasons) <= {"SESSION_STORE_UNAVAILABLE", "ConsistencyUnavailableError"}
    suite.answers_again(name)


def test_sessions_outlive_a_killed_session_store(suite: RunningSuite) -> None:
    name = suite.user("ada")
    token = suite.token(name)
    suite.restarted("valkey", suite.kill("valkey"))
    suite.answers_again(name)
    assert suite.token(name) == token


def test_keys_are_leased_and_come_back(suite: RunningSuite) -> None:
    name = suite.user("ada")
    with suite.stopped("keys"):
        suite.ask(name)
        error = suite.sealward("certs", "rotate", "--user", name, code=3)["error"]
        assert error["status"] in TRANSIENT
    suite.sealward("certs", "rotate", "--user", name)
    suite.restarted("keys", suite.kill("keys"))
    until(lambda: health(suite, "keys"), "keys serve")
    suite.sealward("certs", "rotate", "--user", name)
    suite.ask(name)


def test_no_answer_without_inference(suite: RunningSuite) -> None:
    name = suite.user("ada")
    old = suite.kill("inference")
    error = suite.refusal(name, timeout=20)
    assert error.details["reason"] in ("INFERENCE_UNAVAILABLE", "MODEL_NOT_READY")
    assert error.details["status"] == "UNAVAILABLE"
    assert error.details["receipt"]
    suite.restarted("inference", old)
    suite.answers_again(name)


def test_health_follows_what_a_service_needs(suite: RunningSuite) -> None:
    with suite.stopped("valkey"):
        until(lambda: not health(suite, "gateway"), "the gateway is not ready")
    until(lambda: health(suite, "gateway"), "the gateway is ready")


def test_a_suite_ends_with_its_killed_supervisor_and_starts_again(suite: RunningSuite) -> None:
    name = suite.user("ada")
    before = suite.ask(name)
    supervisor = suite.suite.supervisor_pid()
    assert supervisor is not None
    children = [pid for child in ("keys", "audit", "inference", "gateway", "valkey")
                if (pid := suite.pid(child)) is not None]  # fmt: skip
    assert len(children) == 5
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "children end")
    assert suite.suite.supervisor_pid() is None
    suite.sealward("status", code=3)
    endpoints = suite.suite.endpoints()
    suite.up()
    assert suite.suite.endpoints() == endpoints
    after = suite.ask(name)
    suite.assert_each_once([before, after])
    suite.verify(before.proof.checkpoint.note)


def test_ctrl_c_ends_an_attached_suite(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    process = subprocess.Popen(
        [sys.executable, "-m", "sealward.cli.main", "up", "--dir", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready in")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        with pytest.raises(CliError):
            RunningSuite(folder).suite.require_running()
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_damaged_start_says_why(tmp_path: Path) -> None:
    broken = RunningSuite(tmp_path / "data", {"SEALWARD_KEYS_NONSENSE": "1"})
    error = broken.sealward("up", "--detach", code=3)["error"]
    assert "SEALWARD_KEYS_NONSENSE" in error["message"]
    assert broken.suite.supervisor_pid() is None


def test_a_taken_address_is_named(tmp_path: Path) -> None:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        taken = RunningSuite(tmp_path / "data", {"SEALWARD_AUDIT_ADDRESS": address})
        error = taken.sealward("up", "--detach", code=3)["error"]
    assert address in error["message"]


def health(suite: RunningSuite, name: str) -> bool:
    found = suite.sealward_any("healthcheck", name)
    assert found in (0, 1, 3)
    return found == 0
