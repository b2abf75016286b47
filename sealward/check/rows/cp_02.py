"""CP-02: what still works when something is away is defined, and true."""

from __future__ import annotations

from sealward.check import questions
from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row

_RECOVERY_SECONDS = 30.0


def run(deployment: Deployment, notes: Notes) -> None:
    """Hold inference still: refused, then answered again by itself."""
    if deployment.settings.disrupt:
        _hold(deployment, notes)
    notes.cannot(
        "which calls are answered while which part is away is not written down yet, so there is "
        "nothing to hold it against"
    )


def _hold(deployment: Deployment, notes: Notes) -> None:
    person = deployment.person("clinician")
    message = questions.prediction(questions.models(deployment)[0])

    def answered() -> bool:
        return questions.infer(deployment, person, message, purpose="TREAT", seconds=10.0).ok

    if not answered():
        notes.cannot("a prediction is not answered before either")
    with deployment.held("inference"):
        held = questions.infer(deployment, person, message, purpose="TREAT", seconds=10.0)
        notes.check(
            not held.ok,
            f"without inference a prediction is refused ({held.said})",
            "a prediction was answered without inference",
        )
    notes.check(
        questions.until(answered, _RECOVERY_SECONDS),
        "and answered again, by itself, when it is back",
        "inference is back, and predictions are not answered again",
    )


ROW = Row(
    id="CP-02",
    title="Emergency mode: what still runs is defined",
    current="45 CFR 164.308(a)(7)(ii)(C)",
    nprm="proposed 45 CFR 164.308(a) (contingency: emergency mode operation)",
    proves="with --disrupt, that a prediction is refused without inference and answered again "
    "after it",
    not_proven="the other parts: the row is never green before their table is written",
    duty="write the emergency mode plan: how to work without the answers",
    run=run,
)
