"""A whole suite: what the command line says of witnesses, and a rollback that `up` refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from sealward.client import Client
from tests.support.suites import RunningSuite, running, until


def test_the_command_line_shows_who_cosigned(suite: RunningSuite, tmp_path: Path) -> None:
    answer = suite.ask(suite.user("witnessed"))

    def current() -> bool:
        (log,) = suite.sealward("audit", "witness")["logs"]
        return bool(log["cosigned"] > answer.proof.log_index)

    until(current, "the answer is under a cosigned checkpoint")
    found = suite.sealward("audit", "witness", "show")
    assert [(w["name"], w["state"], w["counts"]) for w in found["witnesses"]] == [
        ("built-in", "ok", True)
    ]
    status = suite.sealward("status")
    assert status["witness"]["witnesses"] == found["witnesses"]
    # The proof, the policy and the receipt verify without the suite.
    policy, proof = tmp_path / "policy", tmp_path / "proof"
    suite.sealward("audit", "witness", "policy", "--output", str(policy))
    shown = suite.sealward(
        "audit", "prove", answer.proof.event_id, "--cosigned", "--output", str(proof)
    )
    assert [c["witness"] for c in shown["cosigned"]] == ["built-in"]
    done = subprocess.run(
        [
            sys.executable, "-m", "sealward.cli.main", "audit", "verify", "--json",
            *("--receipt", proof, "--policy", policy),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["cosigned"]["by"] == shown["cosigned"]
    verified = suite.sealward("audit", "verify", "--policy", str(policy))
    assert verified["cosigned"]["size"] > answer.proof.log_index


def test_a_client_has_its_receipt_cosigned(suite: RunningSuite) -> None:
    name = suite.user("cautious")
    answer = suite.ask(name)
    policy = suite.suite.policy_file.read_bytes()
    until(
        lambda: suite.sealward("audit", "witness")["logs"][0]["cosigned"] > answer.proof.log_index,
        "the answer is under a cosigned checkpoint",
    )
    with Client.from_profile(suite.suite.clients / name) as client:
        found = client.cosigned(answer.proof.receipt, policy)
        assert found.event_id == answer.proof.event_id
        assert list(found.witnesses) == ["built-in"]


def test_up_refuses_a_log_that_was_rolled_back(tmp_path: Path) -> None:
    with running(tmp_path / "data") as started:
        started.ask(started.user("ann"))
        started.down()
        audit = started.suite.root / "audit"
        shutil.copytree(audit, tmp_path / "old")
        started.up()
        started.ask("ann")
        started.down()
        shutil.rmtree(audit)
        shutil.copytree(tmp_path / "old", audit)
        refused = started.sealward("up", "--detach", code=3)
        assert "it was rolled back" in refused["error"]["message"]
        assert started.sealward_any("status") != 0
        # The way on after a loss: the witness is told, while nothing runs, and it is recorded.
        origin = (audit / "log" / "checkpoint").read_text().split("\n")[0]
        assert started.sealward_any("audit", "witness", "forget", origin) == 2
        started.sealward("audit", "witness", "forget", origin, "--confirm", origin)
        started.up()
        until(
            lambda: bool(started.sealward("audit", "query", "--type", "witness.forget")["events"]),
            "what was told is in the log",
        )
