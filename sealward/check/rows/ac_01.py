"""AC-01: nothing is permitted but what the policy in force permits."""

from __future__ import annotations

from collections.abc import Iterable

from sealward.api.gateway.v1 import policy_pb2
from sealward.check import questions
from sealward.check.deployment import Deployment, Person
from sealward.check.row import Notes, NotTestable, Row
from sealward.evidence.purposes import WORDS
from sealward.kit.access import OPEN, RPCS

ROLES = (
    "clinician", "service", "operator", "model-admin", "security-admin", "privacy-officer",
    "break-glass",
)  # fmt: skip
_PREFIXES = ("/inference.GRPCInferenceService/", "/sealward.api.gateway.v1.")
# The second says that a second factor would do.
_DENIED = frozenset({"POLICY_DENIED", "STEP_UP_REQUIRED"})
_ONE_IN = 6
# An empty one would end a shadow that stands.
_BODIES = {
    "SetShadowPolicy": policy_pb2.SetShadowPolicyRequest(text="no policy").SerializeToString()
}
# One's own certificate renews itself without a rule.
_UNDECIDED = frozenset({"IssueUserCertificate"})


def methods() -> dict[str, str]:
    """Return the gateway's RPCs that a person may try: short name → path."""
    return {
        path.rpartition("/")[2]: path
        for path, who in RPCS.items()
        if path.startswith(_PREFIXES) and "user" in who and path.rpartition("/")[2] not in OPEN
    }


def run(deployment: Deployment, notes: Notes) -> None:
    """Ask the policy for every question, then try what it refuses, and every prediction."""
    people = {role: deployment.person(role) for role in ROLES}
    control = {name: path for name, path in methods().items() if name != "ModelInfer"}
    _control_calls(deployment, notes, people, control)
    _predictions(deployment, notes, people)
    notes.limit("control calls that the policy permits are not made: some of them change things")


def _control_calls(
    deployment: Deployment, notes: Notes, people: dict[str, Person], control: dict[str, str]
) -> None:
    refused = asked = 0
    for name, path in control.items():
        try:
            results = questions.decided(
                deployment, [questions.question(people[role], name) for role in ROLES]
            )
        except NotTestable:
            notes.fault(f"no policy decides about {name}")
            continue
        asked += len(results)
        for role, result in zip(ROLES, results, strict=True):
            if result.permitted or name in _UNDECIDED:
                continue
            reply = deployment.call("gateway", path, _BODIES.get(name, b""), who=people[role])
            refused += 1
            if reply.reason not in _DENIED:
                notes.fault(f"{name} by {role}: the policy refuses it, observed {reply.said}")
    notes.held(
        f"{len(control)} control RPCs x {len(ROLES)} roles: {asked} decided by the policy, "
        f"{refused} refusals tried"
    )


def _predictions(deployment: Deployment, notes: Notes, people: dict[str, Person]) -> None:
    decided = tried = answered = 0
    for model in questions.models(deployment):
        message = questions.prediction(model)
        permits = {
            role: _permitted(deployment, person, model.name) for role, person in people.items()
        }
        purposes = _worth_trying(permits.values())
        for role, person in people.items():
            decided += len(permits[role])
            for purpose in purposes:
                reply = questions.infer(deployment, person, message, purpose=purpose)
                tried += 1
                answered += reply.ok
                permitted = permits[role][purpose]
                if permitted is (reply.reason in _DENIED):
                    word = "permits" if permitted else "refuses"
                    notes.fault(
                        f"{model.name} by {role} for {purpose}: the policy {word} it, "
                        f"observed {reply.said}"
                    )
    notes.held(
        f"predictions: {decided} roles x models x purposes decided, {tried} tried, {answered} "
        "answered"
    )
    notes.limit(f"of the purposes that nobody is permitted, one in {_ONE_IN} is tried")


def _permitted(deployment: Deployment, person: Person, model: str) -> dict[str, bool]:
    asked = [questions.question(person, "ModelInfer", model, purpose) for purpose in sorted(WORDS)]
    results = questions.decided(deployment, asked)
    return dict(zip(sorted(WORDS), (result.permitted for result in results), strict=True))


def _worth_trying(permits: Iterable[dict[str, bool]]) -> list[str]:
    """Return every purpose that somebody is permitted, and some of the others."""
    permitted = {purpose for each in permits for purpose, yes in each.items() if yes}
    return sorted(permitted | set(sorted(set(WORDS) - permitted)[::_ONE_IN]))


ROW = Row(
    id="AC-01",
    title="Access is denied unless the policy permits it, by role, RPC, model and purpose",
    current="45 CFR 164.312(a)(1)",
    nprm="proposed 45 CFR 164.312(a)(1)",
    proves="every RPC is decided by the policy; every refused control call and every prediction "
    "(role x model x purpose) is tried and ends as the policy in force says",
    not_proven="that the policy is the right one; facts such as grants and second factors",
    duty="decide who needs what (164.308(a)(4)), approve the policy set, review it when jobs "
    "change",
    run=run,
)
