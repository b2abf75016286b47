"""Second factors: codes by time, once each; recovery codes; what a thief of the file gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyotp
import pytest

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from services.gateway.factors import recovery, totp
from services.gateway.factors.factors import Factors
from services.gateway.factors.store import FactorStore
from services.gateway.throttle import LoginThrottle
from tests.support.key_source import local_ring


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FactorStore]:
    ring = local_ring()
    opened = FactorStore(tmp_path / "factors.db", ring)
    yield opened
    opened.close()
    ring.close()


@pytest.fixture
def factors(store: FactorStore, clock: Clock) -> Factors:
    return Factors(store, LoginThrottle(clock), clock)


def enrol(factors: Factors, clock: Clock, user: str = "ann") -> tuple[str, list[str]]:
    secret, _ = factors.begin(f"id-{user}", user)
    codes = factors.confirm(f"id-{user}", user, pyotp.TOTP(secret).at(int(clock.now)))
    return secret, codes


def refused(reason: Reason) -> pytest.RaisesExc[SealwardError]:
    return pytest.RaisesExc(SealwardError, check=lambda error: error.reason is reason)


# RFC 6238 appendix B gives eight digits; six are their last.
@pytest.mark.parametrize(
    ("when", "code"),
    [(59, "287082"), (1111111109, "081804"), (1234567890, "005924"), (20000000000, "353130")],
)
def test_vectors_of_the_rfc(when: int, code: str) -> None:
    secret = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
    assert totp.matching_step(secret, code, when, 0) == when // 30
    assert totp.matching_step(secret, code, when + 90, 0) is None


@pytest.mark.parametrize(
    "code", ["", "12345", "1234567", "12345a", "１２３４５６", "123456\n", " 12345"]
)
def test_what_is_no_code_is_wrong(code: str) -> None:
    assert totp.matching_step(totp.new_secret(), code, 1_800_000_000, 0) is None


def test_enrolment_counts_once_it_is_confirmed(factors: Factors, clock: Clock) -> None:
    secret, uri = factors.begin("id-ann", "ann")
    assert uri.startswith("otpauth://totp/Sealward:ann?secret=")
    assert not factors.enrolled("id-ann")
    wrong = "000000" if pyotp.TOTP(secret).at(int(clock.now)) != "000000" else "000001"
    with refused(Reason.SECOND_FACTOR_WRONG):
        factors.confirm("id-ann", "ann", wrong)
    assert not factors.enrolled("id-ann")
    codes = factors.confirm("id-ann", "ann", pyotp.TOTP(secret).at(int(clock.now)))
    assert factors.enrolled("id-ann")
    assert len(set(codes)) == factors.recovery_left("id-ann") == recovery.COUNT
    with refused(Reason.ALREADY_EXISTS):
        factors.begin("id-ann", "ann")
    with refused(Reason.NOT_FOUND):
        factors.confirm("id-ann", "ann", "000000")


def test_a_code_is_worth_one_use(factors: Factors, clock: Clock) -> None:
    secret, _ = enrol(factors, clock)
    code = pyotp.TOTP(secret).at(int(clock.now))
    with refused(Reason.SECOND_FACTOR_WRONG):
        factors.prove("id-ann", "ann", code)
    clock.now += 30
    code = pyotp.TOTP(secret).at(int(clock.now))
    factors.prove("id-ann", "ann", code)
    with refused(Reason.SECOND_FACTOR_WRONG):
        factors.prove("id-ann", "ann", code)
    # Nor is the one of the step before, which nobody used.
    clock.now += 60
    factors.prove("id-ann", "ann", pyotp.TOTP(secret).at(int(clock.now)))
    with refused(Reason.SECOND_FACTOR_WRONG):
        factors.prove("id-ann", "ann", pyotp.TOTP(secret).at(int(clock.now) - 30))


def test_a_recovery_code_is_worth_one_use(factors: Factors, clock: Clock) -> None:
    _, codes = enrol(factors, clock)
    factors.prove("id-ann", "ann", codes[0].upper().replace("-", ""))
    with refused(Reason.SECOND_FACTOR_WRONG):
        factors.prove("id-ann", "ann", codes[0])
    assert factors.recovery_left("id-ann") == recovery.COUNT - 1
    fresh = factors.new_recovery_codes("id-ann")
    with refused(Reason.SECOND_FACTOR_WRONG):
        factors.prove("id-ann", "ann", codes[1])
    factors.prove("id-ann", "ann", fresh[1])


def test_codes_of_one_are_not_anothers(factors: Factors, clock: Clock) -> None:
    _, codes = enrol(factors, clock)
    secret, _ = enrol(factors, clock, "bob")
    with refused(Reason.SECOND_FACTOR_WRONG):
        factors.prove("id-bob", "bob", codes[0])
    clock.now += 30
    with refused(Reason.SECOND_FACTOR_WRONG):
        factors.prove("id-ann", "ann", pyotp.TOTP(secret).at(int(clock.now)))


def test_whoever_guesses_has_to_wait(factors: Factors, clock: Clock) -> None:
    enrol(factors, clock)
    clock.now += 30
    for _ in range(5):
        with refused(Reason.SECOND_FACTOR_WRONG):
            factors.prove("id-ann", "ann", "aaaaaa")
    with refused(Reason.RATE_LIMITED):
        factors.prove("id-ann", "ann", "aaaaaa")


def test_removed_factors_open_nothing(factors: Factors, clock: Clock) -> None:
    _, codes = enrol(factors, clock)
    factors.remove("id-ann")
    assert not factors.enrolled("id-ann")
    with refused(Reason.SECOND_FACTOR_WRONG):
        factors.prove("id-ann", "ann", codes[0])


def test_a_thief_of_the_file_gets_no_code(
    tmp_path: Path, store: FactorStore, factors: Factors, clock: Clock
) -> None:
    secret, codes = enrol(factors, clock)
    enrol(factors, clock, "bob")
    raw = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.encode() not in raw
    assert not any(code.encode() in raw or code.replace("-", "").encode() in raw for code in codes)
    # A secret that is moved to another user does not open.
    store._db.execute(
        "UPDATE totp SET sealed = (SELECT sealed FROM totp WHERE user_id = 'id-ann')"
        " WHERE user_id = 'id-bob'"
    )
    with refused(Reason.SEAL_BROKEN):
        factors.prove("id-bob", "bob", "123456")


def test_a_file_that_is_none_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "factors.db").write_bytes(b"x" * 4096)
    with pytest.raises(StartupError):
        FactorStore(tmp_path / "factors.db", local_ring())
