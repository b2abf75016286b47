"""One authority follows another: nobody is passed over, whenever the service dies."""

from __future__ import annotations

import io
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.identity import Peer, parse_identity
from sealward.kit.logging import get_logger
from sealward.kit.reasons import Reason
from services.keys import succession as module
from services.keys.authority import KeystoreAuthority
from services.keys.succession import FILE, Succession
from tests.support.local_keys import TD, LocalKeys, Records

LONGEST, SETTLE, EVERY = 86_400, 30, 5
ALIVE = 4 * EVERY


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Deployment:
    """Keys with its succession, and services that ask for the bundle."""

    def __init__(self, folder: Path) -> None:
        self.keys = LocalKeys(folder)
        self.path = folder / FILE
        self.clock = Clock()
        self.records = Records()
        self.told = 0
        self.own = True
        self.start()

    def start(self) -> None:
        self.authority = KeystoreAuthority(self.keys.keystore)
        self.succession = Succession(
            self.path,
            self.authority,
            self.records,
            get_logger("keys", io.StringIO()),
            longest=LONGEST,
            settle=SETTLE,
            every=EVERY,
            changed=self.changed,
            followed=lambda: self.own,
            clock=self.clock,
            monotonic=self.clock,
        )

    def restart(self) -> None:
        self.keys.restart()
        self.start()

    def changed(self) -> None:
        self.told += 1

    def asks(self, name: str, *, behind: bool = False, current: bool = True, key: int = 1) -> None:
        peer = Peer(
            parse_identity(f"spiffe://{TD}/service/{name}"), bytes([key]) * 32, "127.0.0.1:1"
        )
        bundle = b"an older one" if behind else self.authority.bundle_pem
        self.succession.seen(peer, sha256(bundle).digest(), certificate_current=current)

    def passes(self, seconds: float) -> None:
        self.clock.now += seconds

    def states(self) -> list[str]:
        self.succession.tick()
        return [one.state for one in self.authority.authorities()]

    def events(self) -> list[str]:
        return [event for event, _, _ in self.records.rows]


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(tmp_path / "keys")
    yield made
    made.keys.close()


ANNOUNCED, ADOPTED = ["issuing", "next"], ["issuing", "leaving"]


def test_each_step_waits_for_the_longest_life(deployment: Deployment) -> None:
    d = deployment
    assert d.states() == ["issuing"]
    d.succession.begin(now=False)
    d.passes(LONGEST - 1)
    assert d.states() == ANNOUNCED
    assert d.succession.standing().next_step == d.clock.now + 1
    d.passes(1)
    assert d.states() == ADOPTED
    d.passes(LONGEST - 1)
    assert d.states() == ADOPTED
    d.passes(1)
    assert d.states() == ["issuing"]
    assert not d.succession.under_way
    assert d.succession.standing().since == 0
    assert d.events() == ["keys.ca-announce", "keys.ca-adopt", "keys.ca-drop"]
    assert d.told == 3
    about = [attributes["target"] for _, _, attributes in d.records.rows]
    assert about[0] is None
    assert len({*about[1:]}) == 2


def test_now_waits_for_the_settling_time_alone(deployment: Deployment) -> None:
    d = deployment
    d.succession.begin(now=True)
    for state in (ANNOUNCED, ADOPTED):
        d.passes(SETTLE - 1)
        assert d.states() == state
        d.passes(1)
        d.states()
    assert d.states() == ["issuing"]


def test_a_replacement_under_way_is_hurried_and_not_begun_anew(deployment: Deployment) -> None:
    d = deployment
    d.succession.begin(now=False)
    bundle = d.authority.bundle_pem
    d.passes(SETTLE)
    d.succession.begin(now=False)
    assert d.states() == ANNOUNCED
    d.succession.begin(now=True)
    assert d.authority.bundle_pem == bundle
    assert d.states() == ADOPTED
    assert d.events() == ["keys.ca-announce", "keys.ca-adopt"]


def test_nobody_who_is_alive_is_passed_over(deployment: Deployment) -> None:
    d = deployment
    d.asks("gateway", key=1)
    d.succession.begin(now=True)
    d.passes(SETTLE)
    d.asks("gateway", key=1)
    d.asks("audit", behind=True, key=2)
    assert d.states() == ANNOUNCED
    # Another instance of the same service has its own key.
    d.asks("audit", key=3)
    assert d.states() == ANNOUNCED
    d.asks("audit", key=2)
    assert d.states() == ADOPTED
    d.passes(SETTLE)
    d.asks("audit", key=2, current=False)
    d.asks("gateway", key=1)
    assert d.states() == ADOPTED
    lacking = [
        follower.peer.identity.name
        for follower, bundle, current in d.succession.standing().followers
        if not (bundle and current)
    ]
    assert lacking == ["audit"]
    d.asks("audit", key=2)
    assert d.states() == ["issuing"]


def test_one_that_is_gone_holds_nothing_up(deployment: Deployment) -> None:
    d = deployment
    d.succession.begin(now=True)
    d.passes(SETTLE)
    d.asks("audit", behind=True)
    assert d.states() == ANNOUNCED
    d.passes(ALIVE - 1)
    assert d.states() == ANNOUNCED
    d.passes(1)
    assert d.states() == ADOPTED


def test_after_a_start_everybody_has_time_to_ask(deployment: Deployment) -> None:
    d = deployment
    d.succession.begin(now=True)
    d.passes(SETTLE)
    d.restart()
    assert d.states() == ANNOUNCED
    d.passes(ALIVE - 1)
    d.asks("audit", behind=True)
    assert d.states() == ANNOUNCED
    d.asks("audit")
    d.passes(1)
    assert d.states() == ADOPTED


def test_its_own_certificate_comes_first(deployment: Deployment) -> None:
    d = deployment
    d.succession.begin(now=True)
    d.own = False
    d.passes(10 * SETTLE)
    assert d.states() == ANNOUNCED
    d.own = True
    assert d.states() == ADOPTED


class DiedError(BaseException):
    """Nothing after this happens."""


@pytest.mark.parametrize("dies", ["before", "after"])
def test_dying_between_a_step_and_its_time_starts_the_wait_anew(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    """The provider has taken the step, the time of it is not on the disk."""
    d = deployment
    real = module.write_durable

    def die(path: Path, data: bytes) -> None:
        if dies == "after":
            real(path, data)
        raise DiedError

    def dying(call: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(module, "write_durable", die)
            with pytest.raises(DiedError):
                call()  # type: ignore[operator]
        d.passes(5)
        d.restart()

    dying(lambda: d.succession.begin(now=True))
    assert d.states() == ANNOUNCED
    if dies == "before":
        # That it was to be quick is not known either.
        d.succession.begin(now=True)
    d.passes(SETTLE - 6)
    assert d.states() == ANNOUNCED
    d.passes(6)
    dying(d.succession.tick)
    assert d.states() == ADOPTED
    d.passes(SETTLE - 6)
    assert d.states() == ADOPTED
    d.passes(6)
    dying(d.succession.tick)
    assert d.states() == ["issuing"]
    assert d.succession.standing().since == 0
    d.succession.begin(now=True)
    assert d.states() == ANNOUNCED


def test_without_a_record_no_step_is_taken(deployment: Deployment) -> None:
    d = deployment
    d.records.full = True
    with pytest.raises(SealwardError) as caught:
        d.succession.begin(now=True)
    assert caught.value.reason is Reason.AUDIT_UNAVAILABLE
    assert d.states() == ["issuing"]


def test_a_damaged_file_refuses_the_start(deployment: Deployment) -> None:
    d = deployment
    d.succession.begin(now=True)
    for data in (b"", b"{}", b'{"step": 1}'):
        d.path.write_bytes(data)
        with pytest.raises(StartupError, match="remove it"):
            d.restart()
    d.path.unlink()
    d.restart()
    assert d.states() == ANNOUNCED


def test_renewal_is_asked_of_everybody(deployment: Deployment) -> None:
    d = deployment
    assert d.succession.renew_before == 0
    assert d.succession.renew() == int(d.clock.now) + 1
    assert d.told == 1
    d.restart()
    assert d.succession.renew_before == int(d.clock.now) + 1
