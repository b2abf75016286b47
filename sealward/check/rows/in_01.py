"""IN-01: which model answered is known, and the same input gives the same answer."""

from __future__ import annotations

import math

from sealward.api.inference.v1 import inference_pb2
from sealward.api.oip.v2.open_inference_pb2 import ModelInferResponse
from sealward.check import questions
from sealward.check.deployment import Deployment, Person
from sealward.check.row import Notes, Row


def run(deployment: Deployment, notes: Notes) -> None:
    """Ask each model twice, hold the record against the registry, and send what is no number."""
    person = deployment.person("clinician")
    for model in questions.models(deployment):
        message = questions.prediction(model)
        answers, records = [], []
        for _ in range(2):
            reply = questions.infer(deployment, person, message, purpose="TREAT")
            if not reply.ok:
                notes.cannot(f"{model.name} does not answer: {reply.said}")
            answers.append(_outputs(reply.body))
            records.append(questions.record(deployment, reply.event_id))
        digests = {record.get("sealward.model.digest") for record in records}
        notes.check(
            digests == {model.digest.hex()},
            f"{model.name} {model.version}: the record names the file that is loaded",
            f"{model.name}: the record names another file than the one that is loaded",
        )
        same = answers[0] == answers[1]
        how = str(records[0].get("sealward.determinism", ""))
        if how == "strict":
            notes.check(
                same,
                f"{model.name}: the same input gave the same bits",
                f"{model.name}: the same input gave other bits, in strict mode",
            )
        elif same:
            notes.held(f"{model.name}: the same input gave the same bits (mode {how})")
        notes.check(
            all(record.get("sealward.runtime.digest") for record in records),
            f"{model.name}: the record says on which runtime",
            f"{model.name}: the record does not say on which runtime",
        )
        _refused(deployment, notes, person, model)
    notes.limit("a model file is not altered here: it would take the model out of service")


def _outputs(body: bytes) -> list[bytes]:
    answer = ModelInferResponse.FromString(body)
    return [
        *(output.SerializeToString(deterministic=True) for output in answer.outputs),
        *answer.raw_output_contents,
    ]


def _refused(
    deployment: Deployment, notes: Notes, person: Person, model: inference_pb2.Model
) -> None:
    for what, value in (("NaN", math.nan), ("infinity", math.inf)):
        message = questions.prediction(model)
        contents = message.inputs[0].contents
        values = contents.fp32_contents or contents.fp64_contents
        if not values:
            notes.limit(f"{model.name} takes no floating-point numbers: {what} is not tried")
            continue
        values[0] = value
        reply = questions.infer(deployment, person, message, purpose="TREAT")
        if reply.ok:
            notes.fault(f"{model.name} answers {what}")
    message = questions.prediction(model)
    message.inputs[0].shape[:] = [1]
    reply = questions.infer(deployment, person, message, purpose="TREAT")
    if reply.ok:
        notes.fault(f"{model.name} answers an input of another shape")
    notes.held(f"{model.name}: what is no number, and another shape, is refused")


ROW = Row(
    id="IN-01",
    title="Models are what they say, and answer the same to the same",
    current="45 CFR 164.312(c)(1), 164.306(a)(1)",
    nprm="proposed 45 CFR 164.312 (integrity)",
    proves="the record names the digest of the model that is loaded and the runtime; the same "
    "input gives the same bits; wrong inputs are refused",
    not_proven="that an altered package does not load (tried by the tests of the product), and "
    "that the model is any good",
    duty="validate each model on patients of one's own before it is used",
    run=run,
)
