"""Keys destroyed on purpose, by the real commands: two people, a wait, a hold, backups."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sealward.cli.errors import CliError
from sealward.kit.statement import verify
from tests.support.suites import RunningSuite, request, running, until

SETTINGS = {"SEALWARD_KEYS_DEVELOPMENT": "true", "SEALWARD_KEYS_DESTROY_WAIT_SECONDS": "1"}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuite]:
    with running(tmp_path_factory.mktemp("destroy") / "data", SETTINGS) as started:
        yield started


def destroy(suite: RunningSuite, *arguments: str, code: int = 0) -> Any:
    return suite.sealward("keys", "destroy", *arguments, code=code)


def shown(suite: RunningSuite, found: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = destroy(suite, "show", found["id"])
    return answer


def becomes(suite: RunningSuite, found: dict[str, Any], state: str, blocked: str = "") -> None:
    def has_become() -> bool:
        now = shown(suite, found)
        return (now["state"], now["blocked"]) == (state, blocked)

    until(has_become, f"it is {state}")


def recorded(suite: RunningSuite, event: str, outcome: str = "ok", actor: str = "") -> None:
    until(
        lambda: any(
            (row.type, row.outcome) == (event, outcome) and actor in ("", row.actor)
            for row in suite.events(limit=300)
        ),
        f"the log has {event}",
    )


def reason_of(suite: RunningSuite, name: str) -> str:
    """The reason that a prediction is refused with; empty where it is answered."""
    try:
        suite.ask(name, request())
    except CliError as error:
        return str(error.details.get("reason"))
    return ""


def test_sessions_end_with_their_key(own: RunningSuite) -> None:
    ada = own.user("ada")
    sam = own.user("sam", "security-admin")
    pia = own.user("pia", "privacy-officer")
    own.ask(ada)
    asked = ("request", "--purpose", "session", "--reason", "a token may be with somebody else")

    refused = destroy(own, *asked, "--as", ada, code=1)
    assert refused["error"]["reason"] == "POLICY_DENIED"
    refused = destroy(own, "request", "--purpose", "witness", "--reason", "x", code=1)
    assert refused["error"]["reason"] == "NOT_SUPPORTED"
    refused = destroy(own, "request", "--purpose", "job", "--reason", "none there", code=1)
    assert refused["error"]["reason"] == "NOT_FOUND"

    made = destroy(own, *asked, "--as", sam)
    assert (made["state"], made["requested_by"]) == ("requested", "user/sam")
    again = destroy(own, *asked, "--as", pia, code=1)
    assert again["error"]["reason"] == "ALREADY_EXISTS"
    refused = destroy(own, "approve", made["id"][:12], "--as", sam, code=1)
    assert refused["error"]["reason"] == "POLICY_DENIED"
    off = destroy(own, "cancel", made["id"][:12], "--as", pia)
    assert (off["state"], off["cancelled_by"]) == ("cancelled", "user/pia")
    refused = destroy(own, "approve", made["id"], "--as", pia, code=1)
    assert refused["error"]["reason"] == "DESTRUCTION_STATE"

    made = destroy(own, *asked, "--as", sam)
    approved = destroy(own, "approve", made["id"][:12], "--as", pia)
    assert approved["approved_by"] == "user/pia"
    becomes(own, made, "done")
    signers = verify(json.dumps(shown(own, made)["statement"]).encode()).signers
    assert [s.identity.name for s in signers] == [sam, pia]

    # Every session was sealed under it: whoever wants to go on logs in again.
    until(lambda: own.sealward_any("session", "list", "--as", sam) != 0, "sessions have ended")
    for name in (ada, sam, pia):
        own.login(name)
    own.answers_again(ada)
    for event, actor in (
        ("keys.destroy-request", sam), ("keys.destroy-approve", pia), ("keys.destroy-cancel", pia),
        ("audit.destroy-permit", "keys"), ("keys.destroy", ""), ("keys.destroyed", ""),
    ):  # fmt: skip
        recorded(own, event, actor=actor)


def test_a_hold_keeps_keys_and_a_backup_does_not_bring_them_back(
    own: RunningSuite, tmp_path: Path
) -> None:
    ada = own.user("ada")
    pia = own.user("pia", "privacy-officer")
    before = own.ask(ada)
    file = tmp_path / "backup"
    old_halves = tmp_path / "old"
    if own.provider == "embedded":
        backup = own.sealward("keys", "backup", "--to", str(file))
        shutil.copy(backup["halves"], old_halves)
    asked = ("request", "--purpose", "model", "--reason", "the models' licence ended")

    hold = own.sealward("audit", "hold", "place", "--user", ada)
    refused = destroy(own, *asked, code=1)
    assert refused["error"]["reason"] == "DESTRUCTION_HELD"
    own.sealward("audit", "hold", "release", hold["hold"])
    made = destroy(own, *asked)
    # Placed after the request, it holds what is approved and due.
    hold = own.sealward("audit", "hold", "place", "--user", ada)
    refused = destroy(own, "approve", made["id"], "--as", pia, code=1)
    assert refused["error"]["reason"] == "DESTRUCTION_HELD"
    own.sealward("audit", "hold", "release", hold["hold"])
    destroy(own, "approve", made["id"], "--as", pia)
    becomes(own, made, "done")
    recorded(own, "audit.destroy-permit", "failed")

    # Nothing opens any more, and what is loaded is not served either; the log proves what it did.
    until(lambda: reason_of(own, ada) == "KEY_DESTROYED", "the model is refused")
    moved = own.sealward("keys", "rewrap", "--purpose", "model")["holders"]["inference"]
    assert [row["failures"] for row in moved] == [0]
    own.verify()
    assert own.event(before.proof.event_id)["actor"] == ada
    if own.provider != "embedded":
        return
    status = own.sealward("keys", "status")["backup"]
    assert status["halves_copy_opens_destroyed"]
    own.down()
    keys = own.suite.root / "keys"
    done = own.sealward("keys", "restore", "--from", str(file), "--force")
    assert "default/model@1" in done["destroyed"]
    own.up()
    own.login(ada)
    until(lambda: reason_of(own, ada) == "KEY_DESTROYED", "the backup has not brought it back")
    # Nor, on another machine, with the newest copy.
    newest = tmp_path / "newest"
    shutil.copy(keys / "halves.sealed", newest)
    unlock = {"SEALWARD_KEYS_UNLOCK_FILE": str(own.suite.unlock_file)}
    other = RunningSuite(tmp_path / "fresh", {**SETTINGS, **unlock})
    done = other.sealward("keys", "restore", "--from", str(file), "--halves", str(newest))
    assert "default/model@1" in done["destroyed"]
