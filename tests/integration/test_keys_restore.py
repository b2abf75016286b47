"""Backup, drill and restore of a suite's keystore by the real command."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyrage
import pytest

from sealward.cli.certificates import ensure_admin
from sealward.kit.enroll import write_private
from sealward.seal.rootkey import new_identity
from tests.support.scraping import samples, scrape
from tests.support.suites import RunningSuite, running, until

RECOVERY = new_identity()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuite]:
    folder = tmp_path_factory.mktemp("backup")
    recipients = folder / "recipients"
    recipients.write_text(
        f"# in the safe\n{pyrage.x25519.Identity.from_str(RECOVERY).to_public()}\n"
    )
    settings = {"SEALWARD_KEYS_RECOVERY_RECIPIENTS_FILE": str(recipients)}
    with running(folder / "data", settings, provider="embedded") as suite:
        yield suite


def backed_up(suite: RunningSuite, to: Path) -> dict[str, Any]:
    answer: dict[str, Any] = suite.sealward("keys", "backup", "--to", str(to))
    return answer


def metric(suite: RunningSuite, name: str) -> float:
    address = suite.suite.endpoints()["keys"]["metrics"]
    return samples(scrape(address, ensure_admin(suite.suite)))[name]


def recorded(suite: RunningSuite, event: str, outcome: str = "ok") -> None:
    until(
        lambda: any((row.type, row.outcome) == (event, outcome) for row in suite.events(limit=200)),
        f"the log has {event} {outcome}",
    )


def test_backup_drill_status_and_metrics(site: RunningSuite, tmp_path: Path) -> None:
    status = site.sealward("keys", "status")["backup"]
    assert status["backup_made"] is None
    assert metric(site, "sealward_keys_backup_age_seconds") == float("inf")
    drill = site.sealward("keys", "drill")
    assert (drill["passed"], drill["recorded"]) == (True, True)

    file = tmp_path / "backup"
    answer = backed_up(site, file)
    assert file.stat().st_mode & 0o077 == 0
    assert (answer["recipients"], answer["unlock_secret_included"]) == (1, False)
    assert (
        "exists" in site.sealward("keys", "backup", "--to", str(file), code=2)["error"]["message"]
    )
    drill = site.sealward("keys", "drill", "--from", str(file))
    assert (drill["generation"], drill["sha256"]) == (answer["generation"], answer["sha256"])

    status = site.sealward("keys", "status")["backup"]
    assert status["backup_generation"] == status["generation"] == answer["generation"]
    assert status["backup_age_seconds"] < 600
    assert status["drill_passed"]
    assert metric(site, "sealward_keys_backup_behind") == 0
    assert metric(site, "sealward_keys_backup_age_seconds") < 600
    for event in ("keys.backup", "keys.drill"):
        recorded(site, event)
    # A change that the backup lacks is told.
    site.sealward("keys", "rotate", "--tenant", "default", "--purpose", "session")
    assert metric(site, "sealward_keys_backup_behind") >= 1


def test_a_drill_that_fails(site: RunningSuite, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    backed_up(site, file)
    data = bytearray(file.read_bytes())
    place = data.index(b"age-encryption.org")
    data[place + 300] ^= 1
    file.write_bytes(bytes(data))
    error = site.sealward("keys", "drill", "--from", str(file), code=1)["error"]
    assert error["message"].startswith("the drill failed")
    assert not error["passed"]
    backed_up(site, tmp_path / "good")
    wrong = tmp_path / "identity"
    write_private(wrong, new_identity().encode())
    arguments = ("--from", str(tmp_path / "good"), "--recovery-identity", str(wrong))
    error = site.sealward("keys", "drill", *arguments, code=1)["error"]
    assert "not its recovery identity" in error["message"]
    recorded(site, "keys.drill", "failed")
    assert metric(site, "sealward_keys_drill_age_seconds") == float("inf")
    write_private(wrong, RECOVERY.encode())
    assert site.sealward("keys", "drill", *arguments)["passed"]


def test_a_running_suite_is_not_restored_over(site: RunningSuite, tmp_path: Path) -> None:
    backed_up(site, tmp_path / "b")
    error = site.sealward("keys", "restore", "--from", str(tmp_path / "b"), code=3)["error"]
    assert "is running" in error["message"]


def test_a_damaged_keystore_is_restored_and_the_suite_goes_on(
    site: RunningSuite, tmp_path: Path
) -> None:
    name = site.user("ada")
    before = site.ask(name)
    file = tmp_path / "backup"
    backed_up(site, file)
    site.down()
    sealed = site.suite.root / "keys" / "keystore" / "keystore.sealed"
    data = bytearray(sealed.read_bytes())
    data[len(data) // 2] ^= 1
    sealed.write_bytes(bytes(data))
    refused = site.sealward("up", "--detach", code=3)["error"]["message"]
    assert "keystore.sealed" in refused

    done = site.sealward("keys", "restore", "--from", str(file))
    assert Path(done["kept_aside"], "keystore.sealed").read_bytes() == bytes(data)
    assert done["will_not_open"] == []
    site.up()
    # What was sealed before opens: the model, the session store's keys, the entries of the log.
    site.login(name)
    site.answers_again(name)
    assert site.event(before.proof.event_id)["actor"] == name
    recorded(site, "keys.restore")
    # An older backup than what the folder has had by now is not taken by mistake.
    site.sealward("keys", "rotate", "--tenant", "default", "--purpose", "model")
    site.down()
    error = site.sealward("keys", "restore", "--from", str(file), code=1)["error"]["message"]
    assert "--force" in error
    assert "default/model@" in error
    site.up()


def test_another_machine_with_the_recovery_identity(site: RunningSuite, tmp_path: Path) -> None:
    """Machine and unlock secret are gone; the backup and the identity in the safe are left."""
    file = tmp_path / "backup"
    answer = backed_up(site, file)
    identity = tmp_path / "identity"
    write_private(identity, RECOVERY.encode())
    other = RunningSuite(tmp_path / "elsewhere", {}, provider="embedded")
    without = ("keys", "restore", "--from", str(file))
    assert "does not hold it" in other.sealward(*without, code=2)["error"]["message"]
    done = other.sealward(*without, "--recovery-identity", str(identity))
    assert done["generation"] == answer["generation"]
    assert done["deployment"] == answer["deployment"]
    unlock = other.suite.unlock_file.read_text()
    assert unlock != site.suite.unlock_file.read_text()
    assert RECOVERY not in unlock
    try:
        other.up()
        opened = other.sealward("keys", "status")
        ours = {(k["tenant"], k["purpose"]): k["newest"] for k in opened["keys"]}
        theirs = site.sealward("keys", "status")["keys"]
        assert all(ours[k["tenant"], k["purpose"]] == k["newest"] for k in theirs)
        recorded(other, "keys.restore")
        assert other.sealward("keys", "drill")["passed"]
    finally:
        other.down()
        shutil.rmtree(tmp_path / "elsewhere")
    # A drill on a machine without a suite says that it was not recorded.
    nowhere = RunningSuite(tmp_path / "nowhere", {}, provider="embedded")
    drill = nowhere.sealward(
        "keys", "drill", "--from", str(file), "--recovery-identity", str(identity)
    )
    assert (drill["passed"], drill["recorded"]) == (True, False)
    assert not (tmp_path / "nowhere").exists()
