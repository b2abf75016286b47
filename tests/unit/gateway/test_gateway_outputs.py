"""Outputs by role: what policies release, what is taken out of a response, what its record says."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealward.api.common.v1.batch_pb2 import Reply
from sealward.api.oip.v2.open_inference_pb2 import ModelInferResponse
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Code, Reason
from sealward.kit.seam import OutCall
from services.gateway.admission import Admission
from services.gateway.memberships import MOST, Memberships, digest, split
from services.gateway.policy import CedarPolicy, Facts, PolicyError
from services.gateway.policy.explain import differences
from services.gateway.policy.live import LivePolicy
from services.gateway.release import WITHHELD_PARAMETER, withhold
from tests.unit.gateway.test_gateway_pipeline import Harness, Limits, ok

INFER = 'permit (principal in Role::"{role}", action == Action::"ModelInfer", resource is Model)'
FIELDS = f"""
@id("billing") @outputs("score, $service.outputs")
{INFER.format(role="service")}
when {{ principal.hasTag("service.duty") && principal.getTag("service.duty") == "billing" }};
@id("clinician-infer") {INFER.format(role="clinician")};
"""
BILLING = (("service.duty", "billing"),)


def outputs(policy: CedarPolicy, role: str = "service", **facts: Any) -> frozenset[str] | None:
    decision = policy.decide((role,), "ModelInfer", "m", "TREAT", Facts("ada", **facts))
    assert decision.permitted
    return decision.outputs


def test_a_policy_releases_what_it_names_and_what_the_membership_says() -> None:
    policy = CedarPolicy(FIELDS)
    assert not policy.decide(("service",), "ModelInfer", "m", "TREAT", Facts("ada")).permitted
    assert outputs(policy, parameters=BILLING) == frozenset({"score"})
    more = (*BILLING, ("service.outputs", "factors, label"))
    assert outputs(policy, parameters=more) == frozenset({"score", "factors", "label"})
    assert outputs(policy, parameters=BILLING) == frozenset({"score"})
    assert outputs(policy, role="clinician") is None


def test_a_policy_that_forbids_by_parameter_is_heard() -> None:
    policy = CedarPolicy(
        FIELDS + '@id("away") forbid (principal, action, resource)'
        ' when { principal.hasTag("clinician.away") };'
    )
    asked = (("clinician",), "ModelInfer", "m", "TREAT")
    assert policy.decide(*asked, Facts("ada")).permitted
    away = policy.decide(*asked, Facts("ada", parameters=(("clinician.away", "yes"),)))
    assert (away.permitted, away.rule) == (False, "away")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'@id("a") @output("x") {INFER.format(role="service")};', "@output is not known"),
        (f'@id("a") @outputs("") {INFER.format(role="service")};', "1 to 64"),
        (f'@id("a") @outputs {INFER.format(role="service")};', "1 to 64"),
        (f'@id("a") @outputs("a b") {INFER.format(role="service")};', "no output"),
        (f'@id("a") @outputs("$outputs") {INFER.format(role="service")};', "no output"),
        (
            f'@id("a") @outputs("x") {INFER.format(role="service")};'.replace("permit", "forbid"),
            "only a permit",
        ),
    ],
)
def test_what_is_no_restriction_is_refused(text: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        CedarPolicy(text)


_NAMES = st.sampled_from(["score", "label", "factors", "heat"])
_RULES = st.lists(
    st.tuples(
        st.sampled_from(["clinician", "service", "operator"]),
        st.none() | st.lists(_NAMES, min_size=1, max_size=3),
    ),
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(_RULES, st.lists(st.sampled_from(["clinician", "service", "operator"]), unique=True))
def test_policies_that_permit_release_together(
    rules: list[tuple[str, list[str] | None]], roles: list[str]
) -> None:
    text = "".join(
        f'@id("r{n}") '
        + (f'@outputs("{", ".join(names)}") ' if names else "")
        + f"{INFER.format(role=role)};\n"
        for n, (role, names) in enumerate(rules)
    )
    decision = CedarPolicy(text).decide(roles, "ModelInfer", "m", "TREAT")
    matching = [names for role, names in rules if role in roles]
    assert decision.permitted is bool(matching)
    expected = (
        None
        if not matching or any(names is None for names in matching)
        else {name for names in matching for name in names or ()}
    )
    assert decision.outputs == expected


@st.composite
def responses(draw: st.DrawFn) -> ModelInferResponse:
    names = draw(st.lists(st.text("abcde", min_size=1, max_size=3), unique=True, max_size=6))
    made = ModelInferResponse(model_name="m", model_version="1", id=draw(st.text(max_size=8)))
    made.parameters["sealward_model_digest"].string_param = "0" * 64
    raw = draw(st.booleans())
    for name in names:
        tensor = made.outputs.add(name=name, datatype="FP32", shape=[1])
        if raw:
            made.raw_output_contents.append(name.encode() * draw(st.integers(0, 60)))
        else:
            tensor.contents.fp32_contents.append(1.0)
    return made


@given(responses(), st.frozensets(st.text("abcde", min_size=1, max_size=3)))
def test_what_is_left_is_what_was_there_without_the_withheld(
    response: ModelInferResponse, allowed: frozenset[str]
) -> None:
    names = [output.name for output in response.outputs]
    kept = [name for name in names if name in allowed]
    if names and not kept:
        with pytest.raises(SealwardError) as caught:
            withhold(response.SerializeToString(), allowed)
        assert caught.value.reason is Reason.OUTPUTS_WITHHELD
        return
    body, withheld = withhold(response.SerializeToString(), allowed)
    got = ModelInferResponse.FromString(body)
    assert [output.name for output in got.outputs] == kept
    assert list(withheld) == [name for name in names if name not in allowed]
    expected = ModelInferResponse()
    expected.CopyFrom(response)
    del expected.outputs[:], expected.raw_output_contents[:]
    for place, name in enumerate(names):
        if name in allowed:
            expected.outputs.append(response.outputs[place])
            expected.raw_output_contents.extend(response.raw_output_contents[place : place + 1])
    if withheld:
        expected.parameters[WITHHELD_PARAMETER].string_param = ",".join(withheld)
    assert got == expected


def test_a_response_out_of_form_does_not_go_out() -> None:
    response = ModelInferResponse(raw_output_contents=[b"1"])
    response.outputs.add(name="a")
    response.outputs.add(name="b")
    with pytest.raises(ValueError, match="belong together"):
        withhold(response.SerializeToString(), frozenset({"a"}))
    with pytest.raises(ValueError, match="no response has"):
        withhold(b"\x3a\x01x", frozenset({"a"}))


# --- on the path ------------------------------------------------------------------------------


def answer(call: OutCall) -> Reply:
    reply = ok(call)
    body = ModelInferResponse(model_name="breast-cancer", raw_output_contents=[b"1234", b"5678"])
    body.outputs.add(name="score", datatype="FP32", shape=[1])
    body.outputs.add(name="factors", datatype="FP32", shape=[1])
    reply.body = body.SerializeToString()
    return reply


def path(parameters: tuple[tuple[str, str], ...]) -> Harness:
    h = Harness()
    h.pipeline._admission = Admission(
        h.sessions, LivePolicy(CedarPolicy(FIELDS)), h.grants, Limits(), 4096,
        parameters=lambda _user_id, _roles: parameters,
    )  # fmt: skip
    return h


def test_the_receipt_is_about_what_was_released() -> None:
    h = path(BILLING)
    call = h.call(h.login(("service",)), sealward_purpose="HPAYMT")
    h.pipeline.take([call])
    h.run_model(answer)
    h.commit()
    done = h.front.answers[1]
    assert done.error is None
    released = ModelInferResponse.FromString(done.body)
    assert [output.name for output in released.outputs] == ["score"]
    assert list(released.raw_output_contents) == [b"1234"]
    assert released.parameters[WITHHELD_PARAMETER].string_param == "factors"
    entry, event = h.entries[-1], h.attributes()
    assert entry.output_digest == hashlib.sha256(done.body).digest()
    assert event["outputs.withheld"] == 1
    assert [v.string_value for v in event["outputs.withheld.names"].values] == ["factors"]
    assert event["policy.id"] == "billing"


def test_nothing_left_is_a_refusal_with_a_record() -> None:
    h = path(BILLING)
    h.pipeline.take([h.call(h.login(("service",)), sealward_purpose="HPAYMT")])

    def factors_alone(call: OutCall) -> Reply:
        reply = ok(call)
        body = ModelInferResponse(model_name="breast-cancer", raw_output_contents=[b"5678"])
        body.outputs.add(name="factors")
        reply.body = body.SerializeToString()
        return reply

    h.run_model(factors_alone)
    h.commit()
    error = h.front.answers[1].error
    assert error is not None
    assert (error.reason, error.code) == (Reason.OUTPUTS_WITHHELD, Code.PERMISSION_DENIED)
    assert h.attributes()["outcome"] == "denied"
    assert h.entries[-1].output_digest == b""


def test_whoever_may_see_everything_gets_the_bytes_as_they_are() -> None:
    h = path(())
    h.pipeline.take([h.call(h.login())])
    (sent,) = h.inference.sent
    body = answer(sent).body
    h.run_model(answer)
    h.commit()
    assert h.front.answers[1].body == body
    assert "outputs.withheld" not in h.attributes()


# --- memberships ------------------------------------------------------------------------------


def test_parameters_are_kept_and_belong_to_a_role(tmp_path: Path) -> None:
    file = tmp_path / "memberships.db"
    kept = Memberships(file)
    assert kept.of("u1", ("service",)) == ()
    assert kept.set("u1", "service", {"duty": "billing", "limit": "10"}) == {}
    kept.set("u1", "clinician", {"ward": "3 B"})
    assert kept.of("u1", ("service",)) == (("service.duty", "billing"), ("service.limit", "10"))
    assert kept.of("u1", ("clinician",)) == (("clinician.ward", "3 B"),)
    assert kept.of("u1", ("break-glass",)) == ()
    assert kept.of("u2", ("service",)) == ()
    assert file.stat().st_mode & 0o777 == 0o600
    kept.close()
    again = Memberships(file)
    assert again.get("u1", "service") == {"duty": "billing", "limit": "10"}
    assert again.set("u1", "service", {}) == {"duty": "billing", "limit": "10"}
    assert again.of("u1", ("service",)) == ()
    assert again.of("u1", ("clinician",)) == (("clinician.ward", "3 B"),)
    again.close()


@pytest.mark.parametrize(
    ("role", "parameters"),
    [
        ("nurse", {"a": "b"}),
        ("service", {"A": "b"}),
        ("service", {"a": ""}),
        ("service", {"a": "x\n"}),
        ("service", {"a": 'x"'}),
        ("service", {"a": "x" * 257}),
        ("service", {f"k{n}": "v" for n in range(MOST + 1)}),
    ],
)
def test_what_is_no_parameter_is_refused(
    tmp_path: Path, role: str, parameters: dict[str, str]
) -> None:
    kept = Memberships(tmp_path / "m.db")
    with pytest.raises(SealwardError) as caught:
        kept.set("u1", role, parameters)
    assert caught.value.reason is Reason.FIELD_INVALID
    assert kept.of("u1", ("service",)) == ()
    kept.close()


def test_questions_name_parameters_with_their_role() -> None:
    assert split({"service.b": "2", "service.a": "1"}) == (("service.a", "1"), ("service.b", "2"))
    for wrong in ({"duty": "billing"}, {"service.": "x"}, {"nurse.a": "b"}):
        with pytest.raises(SealwardError):
            split(wrong)
    assert digest({"b": "1", "a": "2"}) == digest({"a": "2", "b": "1"}) != digest({})


# --- questions about sets ---------------------------------------------------------------------


def test_a_difference_may_be_in_the_outputs_alone() -> None:
    before = CedarPolicy(f'@id("a") {INFER.format(role="service")};')
    after = CedarPolicy(f'@id("a") @outputs("score") {INFER.format(role="service")};')
    closed = differences(before, after)[0]
    assert closed
    assert {(row.role, row.opened, row.before_outputs, row.after_outputs) for row in closed} == {
        ("service", False, ("*",), ("score",))
    }
    assert {row.opened for row in differences(after, before)[0]} == {True}
    assert differences(after, after)[0] == []


def test_differences_are_seen_where_a_second_factor_is_asked_for() -> None:
    profile = Path("services/gateway/policy/second-factor.cedar").read_text()
    before = CedarPolicy(f'@id("a") {INFER.format(role="service")};{profile}')
    after = CedarPolicy(f'@id("a") @outputs("score") {INFER.format(role="service")};{profile}')
    rows = differences(before, after)[0]
    assert {(row.role, row.rpc, row.opened) for row in rows} == {("service", "ModelInfer", False)}
    everything = CedarPolicy('@id("a") permit (principal, action, resource);')
    less = CedarPolicy('@id("a") @outputs("score") permit (principal, action, resource);')
    assert {row.rpc for row in differences(everything, less)[0]} == {"ModelInfer"}
    without = CedarPolicy(f'@id("a") {INFER.format(role="service")};')
    assert {row.opened for row in differences(without, before)[0]} == {False}


def test_a_shadow_notices_other_outputs() -> None:
    live = LivePolicy(CedarPolicy(f'@id("a") {INFER.format(role="service")};'))
    live.shadow(CedarPolicy(f'@id("b") @outputs("score") {INFER.format(role="service")};'))
    live.decide(("service",), "ModelInfer", "m", "TREAT")
    shadow = live.shadowed()
    assert shadow is not None
    ((kind, calls),) = shadow.counts.items()
    assert (kind.opened, kind.rule, calls) == (False, "b", 1)
