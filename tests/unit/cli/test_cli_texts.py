"""What people read: nothing is left unsaid, and nothing said fifty times."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sealward.api.gateway.v1 import policy_pb2 as pb
from sealward.cli.demo import _called
from sealward.cli.policy import _beside_the_table, _explained
from sealward.cli.session import _ended
from sealward.cli.suite import Suite
from sealward.cli.up import _why_not


def test_a_set_that_differs_in_nothing_that_is_asked_is_not_called_the_same() -> None:
    other = pb.DiffPolicyResponse(before="a", after="b", added=["billing-infer"], compared=9)
    added, *rest = _beside_the_table(other)
    assert added == "added: billing-infer"
    assert "parameters of memberships" in rest[0]
    # A condition of a policy that was there: no id is new.
    assert _beside_the_table(pb.DiffPolicyResponse(before="a", after="b")) == rest
    assert _beside_the_table(pb.DiffPolicyResponse(before="a", after="a", compared=9)) == []


def test_changes_that_turn_the_answer_alike_are_one_line() -> None:
    changes = [
        pb.PolicyChange(what="purpose", value=value, rule="default-deny")
        for value in ("BTG", "GOV")
    ]
    changes.append(pb.PolicyChange(what="purpose", value="TREAT", rule="no-treat"))
    answer = pb.ExplainPolicyResponse(permitted=True, rule="r", roles=["service"], changes=changes)
    assert _explained(answer).splitlines()[-2:] == [
        "  purpose BTG, GOV  (default-deny)",
        "  purpose TREAT  (no-treat)",
    ]


def test_a_session_that_was_not_open_is_not_read_as_one_that_was_ended() -> None:
    assert _ended(1, "c2e0") == "sessions ended: 1"
    assert "none of c2e0 was open" in _ended(0, "c2e0")
    assert _ended(0, "") == "sessions ended: 0"


@pytest.mark.parametrize(
    ("as_called", "named"),
    [
        (".venv/bin/sealward", ".venv/bin/sealward"), ("/usr/bin/sealward", "/usr/bin/sealward"),
        ("/src/sealward/cli/main.py", "sealward"),
    ],
)  # fmt: skip
def test_the_demonstration_names_a_command_that_is_there(
    as_called: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [as_called, "demo"])
    assert _called() == named


def test_a_start_that_takes_too_long_says_what_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = Suite.at(tmp_path)
    suite.logs.mkdir()
    said = json.dumps({"event": "start.refused", "reason": "waited in vain for sessions"})
    for name in ("gateway", "audit"):
        (suite.logs / f"{name}.log").write_text(f"{said}\n")
    processes = {"gateway": {"restarts": 1}, "audit": {"restarts": 0}}
    monkeypatch.setattr(Suite, "state", lambda _suite: {"processes": processes})
    # What audit's log says is of an earlier start.
    assert _why_not(suite, ["gateway", "audit", "keys"]) == (
        "gateway (waited in vain for sessions), audit, keys"
    )
