"""Just-in-time access: asked, approved by another, over by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from services.gateway.grants import REQUEST_SECONDS, Access, Grants


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def grants(tmp_path: Path, clock: Clock) -> Iterator[Grants]:
    opened = Grants(tmp_path / "grants.db", clock)
    yield opened
    opened.close()


def ask(grants: Grants, user: str = "ann", model: str = "heart", seconds: int = 600) -> Access:
    return grants.request(f"id-{user}", user, model, "HRESCH", seconds, "INC-7")


def refused(reason: Reason) -> pytest.RaisesExc[SealwardError]:
    return pytest.RaisesExc(SealwardError, check=lambda error: error.reason is reason)


def test_a_grant_covers_one_user_model_and_purpose_for_its_time(
    grants: Grants, clock: Clock
) -> None:
    asked = ask(grants)
    assert not grants.covers("id-ann", "heart", "HRESCH")
    clock.now += 100
    granted = grants.approve(asked.id, "user/pia", "id-pia")
    assert (granted.state, granted.expires) == ("granted", clock.now + 600)
    assert grants.covers("id-ann", "heart", "HRESCH")
    for other in (
        ("id-bob", "heart", "HRESCH"), ("id-ann", "lung", "HRESCH"), ("id-ann", "heart", "TREAT"),
    ):  # fmt: skip
        assert not grants.covers(*other)
    clock.now += 600
    assert not grants.covers("id-ann", "heart", "HRESCH")
    assert [a.state for a in grants.all()] == ["expired"]


def test_nobody_approves_their_own_request(grants: Grants) -> None:
    asked = ask(grants)
    with refused(Reason.POLICY_DENIED):
        grants.approve(asked.id, "user/ann", "id-ann")
    assert not grants.covers("id-ann", "heart", "HRESCH")
    assert grants.approve(asked.id, "admin/local", "").decided_by == "admin/local"


def test_what_was_denied_revoked_or_decided_is_not_decided_again(grants: Grants) -> None:
    asked = ask(grants)
    assert grants.deny(asked.id, "user/pia").state == "denied"
    with refused(Reason.NOT_FOUND):
        grants.approve(asked.id, "user/pia", "id-pia")
    for access_id in (asked.id, "0" * 32, "' OR 1=1 --"):
        with refused(Reason.NOT_FOUND):
            grants.deny(access_id, "user/pia")
        with refused(Reason.NOT_FOUND):
            grants.revoke(access_id, "user/pia")
    granted = grants.approve(ask(grants).id, "user/pia", "id-pia")
    grants.revoke(granted.id, "user/pia")
    assert not grants.covers("id-ann", "heart", "HRESCH")


def test_one_grant_that_ends_leaves_the_other(grants: Grants, clock: Clock) -> None:
    long = grants.approve(ask(grants, seconds=3600).id, "user/pia", "id-pia")
    short = grants.approve(ask(grants, seconds=60).id, "user/pia", "id-pia")
    clock.now += 61
    assert grants.covers("id-ann", "heart", "HRESCH")
    with refused(Reason.NOT_FOUND):
        grants.revoke(short.id, "user/pia")
    grants.revoke(long.id, "user/pia")
    assert not grants.covers("id-ann", "heart", "HRESCH")


def test_a_request_that_nobody_decides_ends(grants: Grants, clock: Clock) -> None:
    asked = ask(grants)
    clock.now += REQUEST_SECONDS
    with refused(Reason.NOT_FOUND):
        grants.approve(asked.id, "user/pia", "id-pia")
    assert grants.all(states=["expired"])[0].id == asked.id


def test_grants_are_there_after_a_restart(tmp_path: Path, grants: Grants, clock: Clock) -> None:
    grants.approve(ask(grants).id, "user/pia", "id-pia")
    again = Grants(tmp_path / "grants.db", clock)
    assert again.covers("id-ann", "heart", "HRESCH")
    assert (tmp_path / "grants.db").stat().st_mode & 0o777 == 0o600
    again.close()


def test_what_could_not_be_recorded_is_put_back(grants: Grants) -> None:
    asked = ask(grants)
    granted = grants.approve(asked.id, "user/pia", "id-pia")
    grants.put_back(asked)
    assert not grants.covers("id-ann", "heart", "HRESCH")
    grants.withdraw(asked.id)
    assert grants.get(granted.id) is None


@pytest.mark.parametrize(
    ("model", "purpose", "seconds", "ticket", "reason"),
    [
        ("", "HRESCH", 60, "", Reason.FIELD_INVALID),
        ("../x", "HRESCH", 60, "", Reason.FIELD_INVALID),
        ("m", "CURIOSITY", 60, "", Reason.PURPOSE_UNKNOWN),
        ("m", "", 60, "", Reason.PURPOSE_UNKNOWN),
        ("m", "HRESCH", 59, "", Reason.FIELD_INVALID),
        ("m", "HRESCH", 86_401, "", Reason.FIELD_INVALID),
        ("m", "HRESCH", 60, "for Jane Doe", Reason.FIELD_INVALID),
        ("m", "HRESCH", 60, "x" * 65, Reason.FIELD_INVALID),
    ],
)
def test_a_request_of_another_form_is_refused(
    grants: Grants, model: str, purpose: str, seconds: int, ticket: str, reason: Reason
) -> None:
    with refused(reason):
        grants.request("u", "ann", model, purpose, seconds, ticket)
    assert grants.all() == []


def test_too_many_requests_of_one_user_are_refused(grants: Grants) -> None:
    for _ in range(32):
        ask(grants)
    with refused(Reason.OVERLOADED):
        ask(grants)
    ask(grants, "bob")


def test_a_file_that_is_none_stops_the_start(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "grants.db").write_bytes(b"x" * 4096)
    with pytest.raises(StartupError):
        Grants(tmp_path / "grants.db", clock)
