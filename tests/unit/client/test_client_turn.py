"""A year's log ends and another begins: the client goes on, and believes no unknown log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sealward.client import Client, ForkError, WrongReceiptError
from sealward.client.profile import Profile
from tests.support.gateway_double import GatewayDouble

ROWS = {"x": np.ones((1, 3), np.float32)}
NEXT = "sealward.local/dep1/default/2027"


def know(folder: Path, *lines: str) -> None:
    (folder / "log.vkey").write_text("".join(f"{line}\n" for line in lines))


def test_a_client_meets_the_next_log(gateway: GatewayDouble, folder: Path) -> None:
    first = gateway.signer.vkey
    with Client.from_profile(folder) as client:
        client.infer("m", ROWS)
        gateway.turn(NEXT)
        # Its key is nowhere known yet: an answer of this log proves nothing.
        with pytest.raises(WrongReceiptError):
            client.infer("m", ROWS)
        # As `sealward up` or another process of the profile writes it.
        know(folder, gateway.signer.vkey, first)
        for _ in range(3):
            client.infer("m", ROWS)
    heads = Profile.load(folder).checkpoints()
    assert {origin: seen.size for origin, seen in heads.items()} == {
        gateway.signer.name: 4,
        next(iter(gateway.ended)): 1,
    }


def test_sizes_are_asked_of_the_log_that_they_are_of(gateway: GatewayDouble, folder: Path) -> None:
    """What waits for its proof when the log ends is proven by that log, not by its successor."""
    first = gateway.signer.vkey
    with Client.from_profile(folder, consistency_interval=1e6) as client:
        for _ in range(3):
            client.infer("m", ROWS)
        gateway.turn(NEXT)
        know(folder, gateway.signer.vkey, first)
        client.infer("m", ROWS)
        client.settle()
    assert Profile.load(folder).checkpoints()[next(iter(gateway.ended))].size == 3


def test_a_successor_may_not_fork_either(gateway: GatewayDouble, folder: Path) -> None:
    first = gateway.signer.vkey
    with Client.from_profile(folder) as client:
        client.infer("m", ROWS)
        gateway.turn(NEXT)
        know(folder, gateway.signer.vkey, first)
        gateway.grow(5)
        client.infer("m", ROWS)
        gateway.rewrite(8)
        with pytest.raises(ForkError):
            client.infer("m", ROWS)
