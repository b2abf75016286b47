"""One patient's references destroyed, by the real commands; everybody else's stay."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sealward.seal.header import key_name_of
from services.audit.patients import KEY_BYTES, PLACES
from tests.integration.test_suite_destroy import SETTINGS, becomes, destroy, recorded
from tests.support.keystore import OpenedKeystore
from tests.support.suites import RunningSuite, running

GONE, STAYS = "MRN-GONE-7", "MRN-STAYS-7"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuite]:
    settings = {**SETTINGS, "SEALWARD_AUDIT_PATIENT_YEARS": "0"}
    with running(tmp_path_factory.mktemp("patient") / "data", settings) as started:
        yield started


def about(suite: RunningSuite, patient: str) -> list[dict[str, Any]]:
    found = suite.sealward("audit", "query", "--patient", patient)["events"]
    return [row for row in found if row["type"] == "inference.predict"]


def pools(root: Path) -> dict[str, bytes]:
    """What is kept of the patients' keys in the default log."""
    with sqlite3.connect(f"file:{root}/audit/log.db?mode=ro", uri=True) as store:
        rows = store.execute("SELECT name, value FROM meta WHERE name LIKE 'patient/%'")
        return dict(rows.fetchall())


def test_one_patient_is_nobody_any_more(own: RunningSuite) -> None:
    ada = own.user("ada")
    pia = own.user("pia", "privacy-officer")
    gone = [own.ask(ada, patient=GONE) for _ in range(2)]
    stays = own.ask(ada, patient=STAYS)
    assert len(about(own, GONE)) == 2
    assert len(about(own, STAYS)) == 1
    before = pools(own.suite.root)
    assert {name.partition("/")[2].partition("/")[2] for name in before} == {"wrapped", "keys"}
    asked = ("audit", "patient", "destroy", "--patient", GONE, "--reason", "asked for by law")

    refused = own.sealward("audit", "patient", "destroy", "--patient", "MRN-NOBODY",
                           "--reason", "x", code=1)  # fmt: skip
    assert refused["error"]["reason"] == "NOT_FOUND"
    hold = own.sealward("audit", "hold", "place", "--patient", GONE)
    refused = own.sealward(*asked, code=1)
    assert refused["error"]["reason"] == "DESTRUCTION_HELD"
    # A hold on somebody else holds nobody back.
    own.sealward("audit", "hold", "release", hold["hold"])
    own.sealward("audit", "hold", "place", "--patient", STAYS)
    made = own.sealward(*asked)
    assert made["events"] >= 2
    assert made["events_not_covered"] == 0
    assert GONE not in str(made)
    destroy(own, "approve", made["id"], "--as", pia)
    becomes(own, made, "done")

    assert about(own, GONE) == []
    assert len(about(own, STAYS)) == 1
    for answer in gone:
        shown = own.event(answer.proof.event_id)
        assert shown["actor"] == ada
        assert GONE not in str(shown)
    assert STAYS in str(own.event(stays.proof.event_id))
    own.verify()
    # Reading the log whole finds the same; an index made anew is the same table.
    whole = own.sealward("audit", "query", "--user", ada, "--complete")
    assert len([row for row in whole["events"] if row["type"] == "inference.predict"]) == 3
    own.sealward("audit", "reindex")
    # Who comes again is somebody again.
    own.ask(ada, patient=GONE)
    assert len(about(own, GONE)) == 1
    for event in ("audit.patient-name", "audit.patient-destroy", "keys.destroyed"):
        recorded(own, event)

    after = pools(own.suite.root)
    changed = [name for name in before if name.endswith("/wrapped") and after[name] != before[name]]
    assert changed
    if own.provider == "embedded":
        # The copy in a backup of audit is wrapped under what is in no keystore any more.
        known = OpenedKeystore(own.suite.root).keks
        for name in changed:
            assert key_name_of(before[name]) not in known
            assert key_name_of(after[name]) in known
    sizes = {len(value) for name, value in after.items() if name.endswith("/keys")}
    assert all(size > PLACES * KEY_BYTES for size in sizes)


def test_it_stays_so_after_a_start(own: RunningSuite) -> None:
    own.down()
    own.up()
    own.login("ada")
    own.answers_again("ada")
    assert len(about(own, STAYS)) == 1
    assert len(about(own, GONE)) == 1
    assert own.sealward("keys", "rewrap")["holders"]["audit"]
