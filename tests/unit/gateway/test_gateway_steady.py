"""A clock that never goes back, whatever it is set to."""

from services.gateway.steady import SteadyClock


def test_it_follows_ahead_and_never_back() -> None:
    now = [100.0]
    clock = SteadyClock(lambda: now[0])
    assert clock.now() < 0
    assert clock.observe(1_000.0) == 1_000.0
    now[0] += 5
    assert clock.observe(500.0) == 1_005.0  # set back: it goes on
    assert clock.now() == 1_005.0
    assert clock.observe(4_000.0) == 4_000.0  # set ahead: things end early
    now[0] += 1
    assert clock.observe(1_007.0) == 4_001.0
