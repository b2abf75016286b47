"""Explanations: what is said of model and proof is so, and a patient reads no member of staff."""

from __future__ import annotations

import json

import pytest

from sealward.evidence.explain import Card, Page, Step, for_patient, for_reviewer
from sealward.kit import attributes as names
from tests.support.evidence_events import (
    DENIED,
    LOGIN,
    MODEL_DIGEST,
    PREDICTION,
    REFERENCE,
    make_events,
)

MANIFEST = {
    "summary": "Probability that a mass is malignant.",
    "data": {"category": "x", "source": "A public data set"},
    "regulatory": {"status": "research", "jurisdiction": "US"},
    "protected_inputs": [],
    "changelog": ["first", "retrained"],
}
CARD = Card("breast-cancer", "1", MODEL_DIGEST.hex(), json.dumps(MANIFEST))
(EVENT,) = make_events([PREDICTION])


def found(page: Page, label: str) -> str:
    lines = [text for _, section in page.sections for name, text in section if name == label]
    assert len(lines) == 1, (label, lines)
    return lines[0]


def test_the_page_says_who_why_what_and_where() -> None:
    step = Step("0-1", EVENT.span.start + 5, "otel.span", "ok", "inference")
    page = for_reviewer(EVENT, CARD, [step])
    assert found(page, "actor") == "user dr-smith"
    assert found(page, "purpose") == "TREAT: treatment"
    assert found(page, "policy") == "clinician-predicts"
    assert found(page, "card") == "of this very file"
    assert found(page, "summary") == MANIFEST["summary"]
    assert found(page, "trained on") == "A public data set"
    assert found(page, "last change") == "retrained"
    assert found(page, "rows") == "1"
    assert found(page, "place") == f"entry {EVENT.index} of 6"
    assert found(page, "patient") == "p1:8c1f00d2 (pseudonym)"
    assert "otel.span, answered, by inference (0-1)" in page.as_text()


@pytest.mark.parametrize(
    ("card", "asked", "said"),
    [
        (None, True, "this version is no longer there"),
        (None, False, "the model service does not answer: not looked up"),
        (
            Card("breast-cancer", "1", "ab" * 32, json.dumps(MANIFEST)),
            True,
            f"CHANGED: version 1 is now another file ({'ab' * 32})",
        ),
        (Card("breast-cancer", "1", MODEL_DIGEST.hex(), "no json"), True, "of this very file"),
    ],
)
def test_the_card_is_of_the_file_that_answered(card: Card | None, asked: bool, said: str) -> None:
    page = for_reviewer(EVENT, card, models_asked=asked)
    assert found(page, "card") == said
    assert "Probability" not in page.as_text()


def test_a_patient_reads_when_to_whom_what_and_why_and_no_staff() -> None:
    record = {
        **PREDICTION,
        names.PURPOSE: "HRESCH",
        names.ORGANIZATION: "Registry of Examples",
        names.PATIENT_REFERENCE: REFERENCE,
    }
    (event,) = make_events([record])
    page = for_patient(event, CARD)
    assert found(page, "When") == "21 September 2026, 14:13 (UTC)"
    assert found(page, "To whom") == "Registry of Examples"
    assert found(page, "Why") == "healthcare research"
    assert found(page, "The model") == MANIFEST["summary"]
    assert found(page, "In your accounting of disclosures").startswith("Yes")
    for text in (page.as_text(), page.as_html(), json.dumps(page.as_json())):
        for hidden in ("dr-smith", "5f2c", "clinician", "HRESCH", "inference.predict"):
            assert hidden not in text


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (PREDICTION, "were given to a computer model"),
        (DENIED, "refused; nothing was given out"),
        ({**PREDICTION, names.OUTCOME: "failed"}, "could not be given; nothing was given out"),
    ],
)
def test_a_patient_reads_whether_anything_was_given_out(record: dict[str, str], said: str) -> None:
    (event,) = make_events([record])
    page = for_patient(event, None)
    assert said in found(page, "What")
    accounted = "accounting" in page.as_text()
    assert accounted == (record[names.OUTCOME] == "ok")
    if accounted:
        assert found(page, "In your accounting of disclosures").startswith("No")


def test_an_event_without_model_or_patient_is_explained_too() -> None:
    (event,) = make_events([LOGIN])
    page = for_reviewer(event, None)
    assert found(page, "type") == "session.login"
    assert "Model" not in [title for title, _ in page.sections]


def test_nothing_of_a_record_is_read_as_html() -> None:
    (event,) = make_events([{**PREDICTION, names.TARGET: "<script>alert(1)</script>"}])
    text = for_reviewer(event, CARD).as_html()
    assert "&lt;script&gt;alert(1)" in text
    assert "<script" not in text
