"""Alarms, their runbooks and the metrics that they name belong together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.alerts import ROOT, RULES, named_in, reference_tool, rules, series

README = ROOT / "services/audit/README.md"
ALERTS = rules()


def table() -> dict[str, tuple[set[str], str]]:
    """Alarm → metrics and runbook, as the README's table has them."""
    found = {}
    for line in README.read_text().partition("\n## Alarms\n")[2].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].startswith("`"):
            metrics, alarm, _, link = cells
            target = re.search(r"\((.*)\)", link)
            assert target
            found[alarm] = (set(re.findall(r"`(\w+)`", metrics)), target[1])
    return found


@pytest.mark.parametrize("alarm", ALERTS)
def test_an_alarm_names_metrics_that_exist_and_a_page_that_names_it(alarm: str) -> None:
    rule = ALERTS[alarm]
    named = named_in(rule["expr"])
    assert named
    assert named <= series() | {"up"}
    assert rule["labels"]["severity"] in ("page", "ticket")
    page = ROOT / rule["annotations"]["runbook"]
    assert page.parent == RULES.parent
    assert f"`{alarm}`" in page.read_text()


def test_the_table_of_alarms_is_that_of_the_rules() -> None:
    listed = table()
    assert set(listed) == set(ALERTS)
    for alarm, (metrics, link) in listed.items():
        named = {re.sub(r"_bucket$", "", name) for name in named_in(ALERTS[alarm]["expr"])}
        assert metrics == named, alarm
        runbook = (README.parent / link).resolve()
        assert runbook == ROOT / ALERTS[alarm]["annotations"]["runbook"], alarm


def test_the_judge_can_say_no() -> None:
    assert named_in('rate(sealward_no_such_total{reason="sealward_x"}[5m]) > up') == {
        "sealward_no_such_total", "up",
    }  # fmt: skip
    assert "sealward_no_such_total" not in series()


@pytest.mark.parametrize("page", sorted(RULES.parent.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_names_what_there_is(page: Path) -> None:
    text = page.read_text()
    known = series() | {name.removesuffix("_bucket") for name in series()}
    assert set(re.findall(r"`(sealward_\w+)`", text)) <= known
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert link.startswith("http") or (page.parent / link).exists(), link
    for alarm in re.findall(r"`((?:Audit|Spool|Keys|Revocations)[A-Z]\w+)`", text):
        assert alarm in ALERTS, alarm


@pytest.mark.parametrize("page", sorted(RULES.parent.glob("*.md")), ids=lambda page: page.stem)
def test_the_commands_of_a_page_are_commands(page: Path) -> None:
    import typer

    from sealward.cli.main import build

    main: Any = typer.main.get_command(build())
    for words in re.findall(r"(?:^|`)sealward ((?:[a-z-]+ ?)+)", page.read_text(), re.MULTILINE):
        command, given = main, words.split()
        for word in given:
            # `check` has a verb and works without one.
            if not hasattr(command, "commands") or word.startswith("-"):
                break
            assert word in command.commands, words
            command = command.commands[word]


def test_settings_that_pages_name_are_settings() -> None:
    from services.audit.settings import AuditSettings
    from services.gateway.settings import GatewaySettings
    from services.inference.settings import InferenceSettings
    from services.keys.settings import KeysSettings

    known = {
        f"SEALWARD_{service}_{name.upper()}"
        for service, settings in (
            ("AUDIT", AuditSettings),
            ("GATEWAY", GatewaySettings),
            ("INFERENCE", InferenceSettings),
            ("KEYS", KeysSettings),
        )
        for name in settings.model_fields
    }
    for page in RULES.parent.glob("*.md"):
        assert set(re.findall(r"`(SEALWARD_[A-Z_]+)`", page.read_text())) <= known, page.name


def test_the_reference_page_is_made_of_what_is_registered() -> None:
    page = reference_tool().metrics_page()
    for name in series():
        assert re.sub(r"_(bucket|sum|count)$", "", name) in page
