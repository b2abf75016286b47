"""AU-01: every attempt is in the record, once, with who, what, when and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sealward.api.oip.v2.open_inference_pb2 import ModelMetadataRequest
from sealward.check import questions
from sealward.check.deployment import Deployment, Reply
from sealward.check.row import Notes, Row

_CALL = (
    "event.type", "event.id", "outcome", "code", "actor.id", "actor.kind", "actor.roles",
    "actor.cert", "session.id", "purpose", "policy.id", "policy.digest", "model.name",
    "model.version", "model.digest", "patient", "input.digest", "output.digest", "rows",
    "data.category", "data.origin", "runtime.digest",
)  # fmt: skip
_OUTCOMES = {"answered": "ok", "against the policy": "denied"}


def run(deployment: Deployment, notes: Notes) -> None:
    """Make one call of each kind and look each of them up."""
    person = deployment.person("clinician")
    model = questions.models(deployment)[0]
    message = questions.prediction(model)
    patient = f"{deployment.settings.canary}-AU01"
    wrong = questions.prediction(model)
    wrong.inputs[0].shape[:] = [1]
    metadata = ModelMetadataRequest(name=model.name).SerializeToString()
    control = f"{questions.GATEWAY}UserService/ListUsers"
    read = "/inference.GRPCInferenceService/ModelMetadata"

    def infer(**options: Any) -> Reply:
        return questions.infer(deployment, person, options.pop("message", message), **options)

    replies = {
        "answered": infer(purpose="TREAT", patient=patient),
        "against the policy": infer(purpose="HMARKT", patient=patient),
        "with a wrong input": infer(message=wrong, purpose="TREAT"),
        "without a session": infer(purpose="TREAT", token=""),
        "no message at all": deployment.call("gateway", questions.INFER, b"\xff" * 4, who=person),
        "a control call": deployment.call("gateway", read, metadata, who=person),
        "a refused control call": deployment.call("gateway", control, who=person),
        "another service's call": deployment.call(
            "keys", f"{questions.KEYS}KeysService/GetStatus", who=person
        ),
    }
    if not replies["answered"].ok:
        notes.cannot(f"a prediction is not answered: {replies['answered'].said}")
    last = replies.pop("another service's call")
    seen = questions.until(lambda: bool(_of_keys(deployment, person.name)), 15.0)
    notes.check(
        last.ok is False and seen,
        "a refusal of an inner service is in the record",
        "a refusal of an inner service is not in the record",
    )
    for what, reply in replies.items():
        if not notes.check(
            bool(reply.event_id), f"in the record: {what}", f"not in the record: {what}"
        ):
            continue
        about = questions.record(deployment, reply.event_id)
        _says(notes, what, about, reply, person.name)
    rows = questions.events(deployment, user=person.name, limit=1000)
    twice = [key for key, count in Counter(row.event_id for row in rows).items() if count > 1]
    notes.check(not twice, "no event is there twice", f"{len(twice)} events are there twice")
    notes.limit("calls that were cancelled or ran out of time; predictions on streams")


def _says(notes: Notes, what: str, about: Mapping[str, Any], reply: Reply, name: str) -> None:
    if what == "answered":
        missing = [key for key in _CALL if about.get(f"sealward.{key}") in (None, "", ())]
        notes.check(
            not missing,
            f"a prediction's record has {len(_CALL)} particulars",
            f"a prediction's record lacks {', '.join(missing)}",
        )
    outcome = _OUTCOMES.get(what) or ("ok" if reply.ok else "")
    wrong = (
        about.get("sealward.actor.id") != name
        or (outcome and about.get("sealward.outcome") != outcome)
        or (not reply.ok and about.get("sealward.reason") != reply.reason)
        or (not reply.ok and about.get("sealward.outcome") == "ok")
    )
    if wrong:
        notes.fault(f"the record of a call that was {what} says something else")


def _of_keys(deployment: Deployment, name: str) -> bool:
    rows = questions.events(deployment, user=name, reason="IDENTITY_FORBIDDEN", limit=100)
    return any(row.producer.startswith("keys") for row in rows)


ROW = Row(
    id="AU-01",
    title="Every attempt is recorded, refused and failed ones too",
    current="45 CFR 164.312(b)",
    nprm="proposed 45 CFR 164.312 (audit trail and system log controls)",
    proves="calls that were answered, refused, wrong, malformed or without a session each have "
    "their record; a prediction's names who, why, which model and policy, and the patient by "
    "pseudonym",
    not_proven="what happens outside of Sealward with an answer",
    duty="say which events are to be looked at, and look",
    run=run,
)
