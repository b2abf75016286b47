"""MN-01: no more is used and shown than the purpose needs."""

from __future__ import annotations

from sealward.api.gateway.v1 import policy_pb2
from sealward.api.inference.v1 import inference_pb2
from sealward.api.oip.v2.open_inference_pb2 import ModelInferResponse
from sealward.check import questions
from sealward.check.deployment import Deployment, Person
from sealward.check.row import Notes, Row

UNDECLARED = 20
DROPPED = "sealward_inputs_dropped"
_EXPLAIN = f"{questions.GATEWAY}PolicyService/ExplainPolicy"
_REFUSED = "INPUT_NAME"
_ALL = ["*"]


def run(deployment: Deployment, notes: Notes) -> None:
    """Send more than is declared; compare what comes back with what the policy releases."""
    person = deployment.person("clinician")
    for model in questions.models(deployment):
        _inputs(deployment, notes, person, model)
        _outputs(deployment, notes, person, model)
    notes.limit("fields of free text within a declared input")


def _inputs(
    deployment: Deployment, notes: Notes, person: Person, model: inference_pb2.Model
) -> None:
    plain = questions.infer(deployment, person, questions.prediction(model), purpose="TREAT")
    if not plain.ok:
        notes.cannot(f"{model.name} does not answer: {plain.said}")
    message = questions.prediction(model)
    canary = f"{deployment.settings.canary}MN01"
    for number in range(UNDECLARED):
        extra = message.inputs.add(name=f"pid-{number}", datatype="BYTES", shape=[1])
        extra.contents.bytes_contents.append(canary.encode())
    reply = questions.infer(deployment, person, message, purpose="TREAT")
    if reply.reason == _REFUSED:
        notes.held(f"{model.name}: a call with more than it declares is refused")
        return
    if not reply.ok:
        notes.cannot(f"{model.name} with more than it declares: {reply.said}")
    answer = ModelInferResponse.FromString(reply.body)
    dropped = answer.parameters[DROPPED].int64_param if DROPPED in answer.parameters else 0
    about = questions.record(deployment, reply.event_id)
    notes.check(
        dropped == UNDECLARED and about.get("sealward.inputs.dropped") == UNDECLARED,
        f"{model.name}: {UNDECLARED} inputs that it does not declare were dropped, as answer and "
        "record say",
        f"{model.name}: {UNDECLARED} inputs that it does not declare, {dropped} dropped",
    )
    same = _values(reply.body) == _values(plain.body)
    if about.get("sealward.determinism") == "strict":
        notes.check(
            same,
            f"{model.name}: they changed nothing in the answer",
            f"{model.name}: what it does not declare changed its answer",
        )


def _outputs(
    deployment: Deployment, notes: Notes, person: Person, model: inference_pb2.Model
) -> None:
    question = questions.question(person, "ModelInfer", model.name, "TREAT")
    explained = policy_pb2.ExplainPolicyResponse.FromString(
        questions.asked(
            deployment, "gateway", _EXPLAIN, policy_pb2.ExplainPolicyRequest(question=question)
        ).body
    )
    reply = questions.infer(deployment, person, questions.prediction(model), purpose="TREAT")
    seen = {output.name for output in ModelInferResponse.FromString(reply.body).outputs}
    released = list(explained.outputs)
    if released == _ALL:
        notes.held(f"{model.name}: the policy releases all {len(seen)} outputs for treatment")
        return
    notes.check(
        seen <= set(released),
        f"{model.name}: {len(seen)} outputs came, as the policy releases them",
        f"{model.name}: outputs came that the policy does not release",
    )


def _values(body: bytes) -> list[bytes]:
    answer = ModelInferResponse.FromString(body)
    return [
        *(output.SerializeToString(deterministic=True) for output in answer.outputs),
        *answer.raw_output_contents,
    ]


ROW = Row(
    id="MN-01",
    title="No more is used and shown than the purpose needs",
    current="45 CFR 164.502(b), 164.514(d)",
    nprm="45 CFR 164.502(b), 164.514(d) (not changed by 90 FR 898)",
    proves="inputs that a model does not declare are dropped or refused and change nothing; no "
    "output comes that the policy in force does not release",
    not_proven="that the policy withholds what it should: treatment is exempt by law, other "
    "purposes are not",
    duty="say which role needs which answer for which purpose, and put it into the policy",
    run=run,
)
