"""What people read of a policy: nothing is left unsaid, and nothing said fifty times."""

from __future__ import annotations

from sealward.api.gateway.v1 import policy_pb2 as pb
from sealward.cli.policy import _beside_the_table, _explained


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
