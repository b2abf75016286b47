"""Every decoder that reads bytes from outside, on its seeds, on kept inputs, and near them.

The same inputs in every run. `make fuzz` goes on from here, guided by coverage.
"""

from __future__ import annotations

import os

import pytest

from tests.fuzz.harness import TARGETS, Target, load, mutations

load()
pytestmark = pytest.mark.filterwarnings(
    # A warning about a serial number is none of ours.
    "ignore::cryptography.utils.CryptographyDeprecationWarning"
)
SEED = os.environ.get("FUZZ_SEED", "sealward")


@pytest.fixture(params=sorted(TARGETS))
def target(request: pytest.FixtureRequest) -> Target:
    return TARGETS[str(request.param)]


def test_what_is_well_formed_is_taken(target: Target) -> None:
    assert target.seeds
    for seed in target.seeds:
        assert target.try_one(seed)


def test_nothing_comes_out_but_the_module_s_own_errors(target: Target) -> None:
    pool = [*target.seeds, *target.kept]
    for data in [*target.kept, b"", *mutations(pool, target.rounds, f"{SEED}/{target.name}")]:
        try:
            target.try_one(data)
        except BaseException as error:
            error.add_note(f"input of {target.name}: {data[:400]!r}")
            raise


def test_inputs_are_the_same_in_every_run() -> None:
    assert list(mutations([b"seed"], 50, "x")) == list(mutations([b"seed"], 50, "x"))
    assert list(mutations([b"seed"], 50, "x")) != list(mutations([b"seed"], 50, "y"))


def test_a_planted_fault_is_found() -> None:
    def decode(data: bytes) -> None:
        if data[:1] == b"k" and len(data) > 6 and data[5] > 0x7F:
            raise KeyError(data)
        raise ValueError

    planted = Target("planted", decode, (ValueError,), lambda: [b"k" * 20], 300)

    def run() -> None:
        for data in mutations(planted.seeds, planted.rounds, "x"):
            planted.try_one(data)

    with pytest.raises(KeyError):
        run()
