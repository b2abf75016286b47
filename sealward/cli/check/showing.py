"""The report for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

_WIDTH = 100
_WORDS = {"met": "met", "failed": "FAILED", "not-testable": "could not be tested"}


def text(report: Mapping[str, Any]) -> str:
    """Return the report as text: the rows, then the counts and what it does not claim."""
    return "\n".join(_lines(report))


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"Safeguards check of {report['deployment']}, {report['ended']}, "
        f"profile {report['profile']}, Sealward {report['sealward']}"
    )
    for row in report["rows"]:
        yield ""
        yield f"{row['id']}  {_WORDS[row['state']]}  {row['title']}"
        yield from _wrapped("rule: ", row["rule"])
        if row["reason"]:
            yield from _wrapped("why:  ", row["reason"])
        for seen in row["evidence"]:
            yield from _wrapped("seen: ", seen)
        for limit in row["limits"]:
            yield from _wrapped("not:  ", limit)
        yield from _wrapped("you:  ", row["duty"])
    yield ""
    counts = report["counts"]
    yield ", ".join(f"{counts[state]} {word}" for state, word in _WORDS.items())
    for change in report.get("changes", ()):
        yield f"  {change['id']}: {change['before']} -> {change['after']}"
    if "compared_with" in report and not report["changes"]:
        yield f"  no row ended otherwise than on {report['compared_with']['ended']}"
    yield from textwrap.wrap(report["statement"], _WIDTH)
    attestation = report["attestation"]
    yield f"signed by the log: event {attestation['event_id']}; sealward check verify FILE"


def _wrapped(lead: str, words: str) -> list[str]:
    return textwrap.wrap(
        words, _WIDTH, initial_indent=f"    {lead}", subsequent_indent=" " * (4 + len(lead))
    )
