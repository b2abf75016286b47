"""What running services show as metrics is what the reference page lists, for each of them."""

from __future__ import annotations

import re

import pytest

from sealward.cli.certificates import ensure_admin
from tests.support.alerts import ROOT, series
from tests.support.scraping import samples, scrape
from tests.support.suites import RunningSuite

SPOOL = "inference and keys"
FOLLOWS = "gateway, inference"


@pytest.mark.parametrize(
    ("service", "headings"),
    [
        ("gateway", [FOLLOWS, "gateway"]),
        ("inference", [FOLLOWS, SPOOL, "inference"]),
        ("audit", [FOLLOWS, "audit"]),
        ("keys", [SPOOL, "keys"]),
    ],
)
def test_the_page_lists_what_a_service_shows(
    suite: RunningSuite, service: str, headings: list[str]
) -> None:
    suite.ask(suite.user("ada"))
    address = suite.suite.endpoints()[service]["metrics"]
    found = samples(scrape(address, ensure_admin(suite.suite)))
    shown = {name for name in found if not name.endswith("_created")}
    listed = {name for heading in ["Every service", *headings] for name in series(heading)}
    others = "the embedded keystore" if suite.provider == "vault" else "Vault"
    listed -= series(f"keys with {others}")
    # Of metrics with labels only what has happened is shown.
    page = (ROOT / "docs/reference/metrics.md").read_text()
    labelled = set(re.findall(r"^\| `(\w+)` \| \w+ \| \w", page, re.MULTILINE))
    plain = {name for name in listed if re.sub(r"_(bucket|sum|count)$", "", name) not in labelled}
    assert shown <= listed
    assert shown >= plain
    assert found["sealward_ready"] == 1
