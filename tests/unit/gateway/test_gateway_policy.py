"""The policy table: what it permits, and which tables are refused."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from sealward.kit.errors import StartupError
from services.gateway.policy import NO_RULE, POLICY_RPCS, TablePolicy, load_policy
from services.gateway.purposes import PURPOSES
from services.gateway.users import ROLES


def rule(**changes: Any) -> dict[str, Any]:
    return {
        "id": "r", "effect": "permit", "roles": ["clinician"], "rpcs": ["ModelInfer"],
        "models": ["*"], "purposes": ["TREAT"],
    } | changes  # fmt: skip


def table(*rules: dict[str, Any]) -> bytes:
    return json.dumps({"version": 1, "rules": list(rules)}).encode()


def test_nothing_is_permitted_by_an_empty_table() -> None:
    policy = TablePolicy(table())
    for role, rpc in itertools.product(ROLES, POLICY_RPCS):
        decision = policy.decide((role,), rpc, "m", "TREAT")
        assert not decision.permitted
        assert decision.rule == NO_RULE


def test_each_part_of_a_rule_counts() -> None:
    policy = TablePolicy(table(rule(models=["heart"])))
    assert policy.decide(("clinician",), "ModelInfer", "heart", "TREAT").permitted
    assert policy.decide(("operator", "clinician"), "ModelInfer", "heart", "TREAT").permitted
    assert not policy.decide(("operator",), "ModelInfer", "heart", "TREAT").permitted
    assert not policy.decide(("clinician",), "ModelMetadata", "heart", "TREAT").permitted
    assert not policy.decide(("clinician",), "ModelInfer", "lung", "TREAT").permitted
    assert not policy.decide(("clinician",), "ModelInfer", "heart", "HMARKT").permitted
    assert not policy.decide((), "ModelInfer", "heart", "TREAT").permitted


def test_forbid_beats_permit_wherever_it_stands() -> None:
    rules = [rule(), rule(id="no-lung", effect="forbid", models=["lung"])]
    for order in (rules, rules[::-1]):
        policy = TablePolicy(table(*order))
        decision = policy.decide(("clinician",), "ModelInfer", "lung", "TREAT")
        assert not decision.permitted
        assert decision.rule == "no-lung"
        assert policy.decide(("clinician",), "ModelInfer", "heart", "TREAT").rule == "r"


def test_the_decision_names_the_digest_of_the_file() -> None:
    one, two = TablePolicy(table(rule())), TablePolicy(table(rule(id="other")))
    assert one.digest != two.digest
    assert one.decide(("clinician",), "ModelInfer", "m", "TREAT").digest == one.digest


def test_made_up_model_names_do_not_fill_the_memory() -> None:
    policy = TablePolicy(table(rule()))
    for number in range(5000):
        policy.decide(("clinician",), "ModelInfer", f"m{number}", "TREAT")
    assert len(policy._known) <= 4096


def test_the_shipped_table() -> None:
    policy = load_policy(None)
    permitted = {
        (role, rpc, purpose)
        for role, rpc, purpose in itertools.product(ROLES, POLICY_RPCS, [*PURPOSES, ""])
        if policy.decide((role,), rpc, "any", purpose).permitted
    }
    infer = {(role, purpose) for role, rpc, purpose in permitted if rpc == "ModelInfer" and purpose}
    assert {purpose for role, purpose in infer if role == "clinician"} == {
        "TREAT", "CAREMGT", "COC", "PATSFTY",
    }  # fmt: skip
    assert {purpose for role, purpose in infer if role == "break-glass"} == {"ETREAT", "BTG"}
    assert {role for role, _ in infer} == {"clinician", "service", "break-glass", "model-admin"}
    people = {"CreateUser", "DisableUser", "ListUsers", "RevokeSessions", "ListSessions"}
    assert {role for role, rpc, _ in permitted if rpc in people} == {"security-admin"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"version": 1}',
        b'{"version": 2, "rules": []}',
        b'{"version": 1, "rules": {}}',
        b'{"version": 1, "rules": [], "rules": []}',
        b'{"version": 1, "rules": [], "more": 1}',
        table({"id": "r"}),
        table(rule(id="R")),
        table(rule(id=7)),
        table(rule(effect="allow")),
        table(rule(roles=["*"])),
        table(rule(roles=["root"])),
        table(rule(roles=[])),
        table(rule(roles="clinician")),
        table(rule(rpcs=["Infer"])),
        table(rule(purposes=["CURIOSITY"])),
        table(rule(models=["../x"])),
        table(rule(models=["a", "a"])),
        table(rule(models=[["a"]])),
        table(rule(extra=1)),
        table(rule(), rule()),
        b"[" * 100_000,
    ],
)
def test_a_table_that_is_not_strict_stops_the_start(data: bytes) -> None:
    with pytest.raises(StartupError):
        TablePolicy(data)


def test_a_policy_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError):
        load_policy(tmp_path / "none.json")
