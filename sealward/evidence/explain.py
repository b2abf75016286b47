"""One event on one page: who, why, which model, who decided, on what input, with what proof.

Two readers. For a reviewer every field is there, with its source: what is proven, what the record
says, what was looked up now. For a patient there are the four things that an accounting of
disclosures has to tell (45 CFR 164.528(b)(2): when, to whom, what, why) in plain words, and no name
of a member of staff beyond the recipient that the rule asks for.
"""

from __future__ import annotations

import datetime as dt
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sealward.evidence.event import Event
from sealward.evidence.fhir import instant, is_disclosure
from sealward.evidence.purposes import INSIDE, in_words
from sealward.kit import attributes as names
from sealward.tlog.leaf import NO_BINDING, parse_leaf
from sealward.tlog.merkle import leaf_hash

Lines = tuple[tuple[str, str], ...]
"""(label, text) pairs."""


@dataclass(frozen=True, slots=True)
class Card:
    """A model version as the model service lists it now. `manifest` is its canonical JSON."""

    name: str
    version: str
    digest: str
    manifest: str


@dataclass(frozen=True, slots=True)
class Step:
    """Another event of the same trace."""

    event_id: str
    time: int
    type: str
    outcome: str
    producer: str


@dataclass(frozen=True, slots=True)
class Page:
    """An explanation: a title, and sections of labelled lines."""

    title: str
    sections: tuple[tuple[str, Lines], ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        return {
            "title": self.title,
            "sections": [
                {"title": title, "lines": [{"label": k, "text": v} for k, v in lines]}
                for title, lines in self.sections
            ],
        }

    def as_text(self) -> str:
        """Return it as plain text."""
        out = [self.title, "=" * len(self.title)]
        for title, lines in self.sections:
            out += ["", title]
            width = max((len(label) for label, _ in lines), default=0)
            out += [f"  {label:<{width}}  {text}".rstrip() for label, text in lines]
        return "\n".join(out)

    def as_html(self) -> str:
        """Return it as one HTML page that loads nothing and runs nothing."""
        body = "".join(
            f"<h2>{html.escape(title)}</h2><table>"
            + "".join(
                f"<tr><th>{html.escape(label)}</th><td>{html.escape(text)}</td></tr>"
                for label, text in lines
            )
            + "</table>"
            for title, lines in self.sections
        )
        return _HTML.replace("%TITLE%", html.escape(self.title)).replace("%BODY%", body)


_HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>%TITLE%</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 1.4rem 0 .3rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; }
th { font-weight: 500; color: #4a4a55; width: 14rem; } td { overflow-wrap: anywhere; }
tr { border-bottom: 1px solid #ececf1; }
</style>
</head>
<body><h1>%TITLE%</h1>%BODY%</body>
</html>
"""

_OUTCOMES: Mapping[str, str] = MappingProxyType(
    {"ok": "answered", "denied": "refused", "failed": "failed"}
)
_DETERMINISM: Mapping[str, str] = MappingProxyType(
    {
        "strict": "in a run of its own: the same input gives the same bits on such a machine",
        "tolerance": "joined with other calls: the last bits may differ from a run of its own",
    }
)


def for_reviewer(
    event: Event, card: Card | None, steps: Sequence[Step] = (), *, models_asked: bool = True
) -> Page:
    """Explain an event to who reviews it. `models_asked` False: the models could not be listed."""
    sections = [
        ("What happened", _what(event)),
        ("Who", _who(event)),
        ("Why", _why(event)),
        ("Model", _model(event, card, models_asked=models_asked)),
        ("Decision", _decision(event)),
        ("Input, as the record says", _input(event)),
        ("Proof", _proof(event)),
        ("Same trace", _steps(steps)),
    ]
    title = f"{event.type}, {_OUTCOMES.get(event.outcome, event.outcome)}"
    return Page(f"{title}: event {event.id}", tuple((t, lines) for t, lines in sections if lines))


def for_patient(event: Event, card: Card | None) -> Page:
    """Explain an event to the patient whom it is about."""
    moment = dt.datetime.fromtimestamp(event.span.start // 1_000_000_000, dt.UTC)
    recipient = event.text(names.ORGANIZATION) or "a member of this organization's staff"
    purpose = event.text(names.PURPOSE)
    manifest = _manifest(card)
    model = event.text(names.MODEL_NAME)
    what = "Your measurements were given to a computer model, and its answer to the recipient."
    if event.outcome == "denied":
        what = "Somebody asked for an answer about you. It was refused; nothing was given out."
    elif event.outcome == "failed":
        what = (
            "Somebody asked for an answer about you. It could not be given; nothing was given out."
        )
    elif event.type == "session.break-glass":
        what = "Emergency access to you was opened. What was done under it has records of its own."
    elif event.type != "inference.predict":
        what = "Your record was used."
    lines = [
        ("When", f"{moment:%d %B %Y, %H:%M} (UTC)"),
        ("To whom", recipient),
        ("What", what),
    ]
    if model:
        lines.append(("The model", str(manifest.get("summary") or model)))
    lines.append(("Why", in_words(purpose) if purpose else "no purpose was recorded"))
    if event.outcome == "ok":
        listed = (
            "Yes: it was for something else than treatment, payment or running the organization."
            if is_disclosure(event)
            else "No: by itself it gave nothing out."
            if event.type in INSIDE
            else "No: treatment, payment, running the organization and your own wish are left out."
        )
        lines.append(("In your accounting of disclosures", listed))
    if event.text(names.BREAK_GLASS) == "true":
        lines.append(("Emergency access", "Yes. Such access is reviewed afterwards."))
    changed = (
        "No. It is sealed in a log that anybody can check, and was checked just now. Ask for the"
        " evidence to have it checked by somebody else."
    )
    proof = (("Number of this record", event.id), ("Can it be changed?", changed))
    return Page("A use of your health information", (("", tuple(lines)), ("The record", proof)))


def _what(event: Event) -> Lines:
    took = (event.span.end - event.span.start) / 1e6
    lines = [
        ("time", f"{instant(event.span.start)} (took {took:.1f} ms)"),
        ("type", event.type),
        ("outcome", _OUTCOMES.get(event.outcome, event.outcome)),
    ]
    if event.outcome != "ok":
        lines.append(("status", _joined(event, names.CODE, names.REASON)))
    if event.text(names.TARGET):
        lines.append(("on", event.text(names.TARGET)))
    if event.text(names.COUNT):
        lines.append(("number", event.text(names.COUNT)))
    return tuple(lines)


def _who(event: Event) -> Lines:
    return _present(
        ("actor", _joined(event, names.ACTOR_KIND, names.ACTOR_ID)),
        ("roles", event.text(names.ACTOR_ROLES)),
        ("organization", event.text(names.ORGANIZATION)),
        ("session", event.text(names.SESSION_ID)),
        ("their call", event.text(names.CALLER_SEQ)),
        ("certificate key", event.text(names.ACTOR_CERT)),
        ("patient", event.patient + ("" if event.identified else " (pseudonym)"))
        if event.patient
        else ("patient", ""),
        ("recorded by", event.text(names.PRODUCER_ID)),
    )


def _why(event: Event) -> Lines:
    purpose = event.text(names.PURPOSE)
    glass = event.text(names.BREAK_GLASS) == "true"
    return _present(
        ("purpose", f"{purpose}: {in_words(purpose)}" if purpose else ""),
        ("break-glass", f"yes: {event.text(names.BREAK_GLASS_REASON) or 'no reason given'}")
        if glass
        else ("break-glass", ""),
        ("disclosure", "to be listed in the patient's accounting" if is_disclosure(event) else ""),
    )


def _model(event: Event, card: Card | None, *, models_asked: bool) -> Lines:
    name, version = event.text(names.MODEL_NAME), event.text(names.MODEL_VERSION)
    if not name:
        return ()
    digest = event.text(names.MODEL_DIGEST)
    lines = [("model", f"{name} {version}".rstrip()), ("file, SHA-256", digest or "not recorded")]
    if not models_asked:
        lines.append(("card", "the model service does not answer: not looked up"))
    elif not version:
        lines.append(
            ("card", "the record names no version: the call was refused before one was found")
        )
    elif card is None:
        lines.append(("card", "this version is no longer there"))
    elif digest and card.digest != digest:
        lines.append(("card", f"CHANGED: version {version} is now another file ({card.digest})"))
    else:
        manifest = _manifest(card)
        data, rules = _part(manifest, "data"), _part(manifest, "regulatory")
        lines.append(("card", "of this very file" if digest else "of the version of that name"))
        lines += _present(
            ("summary", manifest.get("summary", "")),
            ("trained on", data.get("source", "")),
            ("regulatory", " / ".join(str(v) for v in rules.values())),
            ("protected inputs", ", ".join(manifest.get("protected_inputs", [])) or "none"),
            ("last change", (manifest.get("changelog") or [""])[-1]),
        )
    return tuple(lines)


def _decision(event: Event) -> Lines:
    return _present(
        ("policy", event.text(names.POLICY_ID)),
        ("policy set, SHA-256", event.text(names.POLICY_DIGEST)),
        ("reason", event.text(names.REASON)),
        ("review", event.text(names.VERDICT)),
    )


def _input(event: Event) -> Lines:
    determinism = event.text(names.DETERMINISM)
    batch = event.text(names.BATCH_SIZE)
    lines = _present(
        ("rows", event.text(names.ROWS)),
        ("category", event.text(names.DATA_CATEGORY)),
        ("origin", event.text(names.DATA_ORIGIN)),
        ("run", f"{batch} rows, this call's from row {event.text(names.BATCH_POSITION) or 0}")
        if batch
        else ("run", ""),
        ("computed", f"{determinism}: {_DETERMINISM.get(determinism, '')}")
        if determinism
        else ("", ""),
        ("runtime", event.text(names.RUNTIME_DIGEST)),
        ("input, keyed digest", event.text(names.INPUT_DIGEST)),
        ("output, keyed digest", event.text(names.OUTPUT_DIGEST)),
    )
    if lines and event.type == "inference.predict" and event.outcome == "ok":
        checked = "names, types, shapes and ranges held to the model's contract, or no answer"
        return (*lines, ("checked", checked))
    return lines


def _proof(event: Event) -> Lines:
    bound = parse_leaf(event.leaf).binding != NO_BINDING
    return (
        ("log", event.origin),
        ("place", f"entry {event.index} of {event.head.size}"),
        ("entry's hash", leaf_hash(event.leaf).hex()),
        ("root", event.head.root.hex()),
        ("signed by", ", ".join(v.name + "+" + v.key_id.hex() for v in event.head.verifiers)),
        ("verified now", "yes: signature, path and event id"),
        (
            "bound to a call",
            "yes: who has the salt and both messages can show it" if bound else "no: about no call",
        ),
    )


def _steps(steps: Sequence[Step]) -> Lines:
    return tuple(
        (
            instant(s.time),
            f"{s.type}, {_OUTCOMES.get(s.outcome, s.outcome)}, by {s.producer} ({s.event_id})",
        )
        for s in sorted(steps, key=lambda step: step.time)
    )


def _manifest(card: Card | None) -> dict[str, Any]:
    if card is None:
        return {}
    try:
        found = json.loads(card.manifest)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _part(manifest: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = manifest.get(name)
    return found if isinstance(found, dict) else {}


def _joined(event: Event, *attributes: str) -> str:
    return " ".join(filter(None, (event.text(name) for name in attributes)))


def _present(*lines: tuple[str, Any]) -> Lines:
    return tuple((label, str(text)) for label, text in lines if text not in ("", None))
