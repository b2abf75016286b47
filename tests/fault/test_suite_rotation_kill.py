"""kill -9 in the middle of every rotation: it goes on after the restart, and everything opens."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.soak.load import SdkCall
from benchmarks.soak.rotation import ROW, Soak
from tests.support.suites import RunningSuite, until

COMMANDS = {
    "rotate": ("keys", "rotate"),
    "rewrap": ("keys", "rewrap"),
    "retire": ("keys", "rewrap", "--retire"),
    "ca": ("certs", "rotate", "--ca", "--now", "--wait"),
}
# How long each of them takes about, seconds: the kill comes somewhere within.
TAKES = {"rotate": 1.0, "rewrap": 1.5, "retire": 2.0, "ca": 12.0}
ATTEMPTS = 20


class Broken(Soak):
    """A suite whose processes are killed while a command runs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.running = RunningSuite(folder, self._environ)

    def killed_during(self, command: str, service: str) -> None:
        """Run a command and kill a service, or the command itself (`cli`), in the middle of it."""
        began = subprocess.Popen(
            [
                sys.executable, "-m", "sealward.cli.main", *COMMANDS[command],
                "--dir", str(self.suite.root), "--json",
            ],
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        # Not a wait for something: the moment is what is drawn.
        time.sleep(random.SystemRandom().uniform(0.3, TAKES[command]))
        if service == "cli":
            os.kill(began.pid, signal.SIGKILL)
        else:
            old = self.running.kill(service)
            self.running.restarted(service, old)
        began.wait(180)

    def completed(self, command: str) -> None:
        """Run it again until it says that it is done, as an operator would."""
        for attempt in range(ATTEMPTS):
            try:
                self.sealward(*COMMANDS[command])
            except RuntimeError:
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(0.5)
            else:
                return

    def answers(self) -> None:
        def answered() -> bool:
            try:
                with SdkCall(self.profile, ROW) as ask:
                    ask()
            except Exception:  # noqa: BLE001 - it starts anew; in the end it has to answer
                return False
            return True

        until(answered, "answers again")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    made = Broken(tmp_path_factory.mktemp("rotation") / "data")
    try:
        made.begin()
        yield made
    finally:
        made.sealward("down")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("service", ["keys", "audit", "inference", "gateway", "cli"])
def test_keys_move_on_whoever_dies(broken: Broken, service: str) -> None:
    broken.answers()
    for command in ("rotate", "rewrap", "retire"):
        broken.killed_during(command, service)
        broken.answers()
    broken.completed("rotate")
    broken.completed("retire")
    keys = broken.sealward("keys", "status")["keys"]
    assert {key["lowest"] == key["newest"] for key in keys} == {True}
    broken.answers()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("service", ["keys", "cli"])
def test_an_authority_is_replaced_whoever_dies(broken: Broken, service: str) -> None:
    def fingerprints() -> list[str]:
        found = broken.sealward("certs", "show")["authority"]["authorities"]
        return [one["fingerprint"] for one in found]

    broken.answers()
    before = fingerprints()
    broken.killed_during("ca", service)
    broken.answers()

    def replaced() -> bool:
        found = broken.sealward("certs", "show")["authority"]
        if not found["under_way"] and fingerprints() == before:
            # It died before anything was begun.
            broken.completed("ca")
        return not found["under_way"] and fingerprints() != before

    # Nobody asks for it again: keys goes on by itself.
    until(replaced, "the authority is replaced", 120)
    assert len(fingerprints()) == 1
    broken.answers()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_in_the_end_everything_opens(broken: Broken) -> None:
    done = broken.sealward("keys", "rotate", "--everything")
    assert {row["purpose"] for row in done["rotated"]} >= {"model", "session", "audit-segment"}
    assert [row["tenant"] for row in done["logs"] if row["new_vkey"]] == ["default"]
    assert done["certificates"]["services"] == ["keys", "audit", "inference", "gateway"]
    # It waits for the life of the longest certificate.
    assert done["authority"]["under_way"]
    assert not done["authority"]["now"]
    again = broken.sealward("keys", "rotate", "--everything")
    assert [row["new_vkey"] for row in again["logs"]] == [None]
    broken.read_everything_anew()
    assert broken.report.unreadable == []
    assert broken.report.entries > 50
