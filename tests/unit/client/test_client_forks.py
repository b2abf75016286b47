"""A log that shows two histories is noticed; one that only grows never raises."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealward.client import (
    AsyncClient,
    Client,
    ConsistencyUnavailableError,
    ForkError,
    ProfileError,
)
from sealward.client.book import SIZES_A_CALL
from sealward.client.checkpoints import CheckpointTracker, Seen
from sealward.tlog.checkpoint import open_checkpoint
from sealward.tlog.merkle import Tree, leaf_hash
from sealward.tlog.note import parse_vkeys
from tests.support.gateway_double import GatewayDouble

ROWS = {"x": np.ones((1, 3), np.float32)}


def head(folder: Path) -> int:
    vkeys = parse_vkeys((folder / "log.vkey").read_text())
    return open_checkpoint((folder / "checkpoint").read_bytes(), vkeys).size


def test_growth_is_proven_with_every_call(gateway: GatewayDouble, folder: Path) -> None:
    with Client.from_profile(folder) as client:
        for _ in range(4):
            client.infer("m", ROWS)
            gateway.grow(3)
    assert gateway.calls["GetConsistency"] == 3
    assert head(folder) == 13


@pytest.mark.parametrize("size", [0, 3, 30])
def test_another_history_is_a_fork(gateway: GatewayDouble, folder: Path, size: int) -> None:
    gateway.grow(9)
    with Client.from_profile(folder) as client:
        client.infer("m", ROWS)
        gateway.rewrite(size)
        for _ in range(2):
            with pytest.raises(ForkError) as caught:
                client.infer("m", ROWS)
        vkeys = parse_vkeys((folder / "log.vkey").read_text())
        one, two = (open_checkpoint(n, vkeys) for n in (caught.value.seen, caught.value.shown))
        assert {one.size, two.size} >= {10}
    assert head(folder) == 10


def test_two_roots_for_one_size_need_no_proof(gateway: GatewayDouble, folder: Path) -> None:
    gateway.grow(9)
    with Client.from_profile(folder) as client:
        client.infer("m", ROWS)
        gateway.rewrite(9)
        with pytest.raises(ForkError, match="two roots"):
            client.infer("m", ROWS)
    assert "GetConsistency" not in gateway.calls


def test_a_fork_is_noticed_by_the_next_process(gateway: GatewayDouble, folder: Path) -> None:
    gateway.grow(9)
    with Client.from_profile(folder) as client:
        client.infer("m", ROWS)
    gateway.rewrite(20)
    with Client.from_profile(folder) as client, pytest.raises(ForkError):
        client.infer("m", ROWS)


def test_a_proof_that_does_not_hold_is_a_fork(gateway: GatewayDouble, folder: Path) -> None:
    gateway.spoil_proof = True
    with Client.from_profile(folder) as client:
        client.infer("m", ROWS)
        with pytest.raises(ForkError):
            client.infer("m", ROWS)


def test_no_proof_is_no_answer_and_no_fork(gateway: GatewayDouble, folder: Path) -> None:
    with Client.from_profile(folder) as client:
        client.infer("m", ROWS)
        gateway.proof_error = grpc.StatusCode.UNAVAILABLE
        with pytest.raises(ConsistencyUnavailableError):
            client.infer("m", ROWS)
        gateway.proof_error = None
        client.infer("m", ROWS)
    assert head(folder) == 3


def test_relaxed_checkpoints_are_chained_in_one_call(gateway: GatewayDouble, folder: Path) -> None:
    with Client.from_profile(folder, consistency_interval=3600) as client:
        for _ in range(20):
            client.infer("m", ROWS)
        assert "GetConsistency" not in gateway.calls
        client.settle()
        assert gateway.calls["GetConsistency"] == 1
        assert head(folder) == 20
        client.infer("m", ROWS)
    assert gateway.calls["GetConsistency"] == 2


def test_a_relaxed_fork_is_noticed_at_the_end(gateway: GatewayDouble, folder: Path) -> None:
    client = Client.from_profile(folder, consistency_interval=3600)
    for _ in range(SIZES_A_CALL + 6):
        client.infer("m", ROWS)
    gateway.rewrite(SIZES_A_CALL + 20)
    client.infer("m", ROWS)
    with pytest.raises(ForkError):
        client.close()
    assert head(folder) == 1


def test_many_threads_share_the_proofs(gateway: GatewayDouble, folder: Path) -> None:
    with Client.from_profile(folder) as client, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: client.infer("m", ROWS), range(80)))
    assert sorted(result.log_index for result in results) == list(range(80))
    sequence = sorted(int(sent["sealward-seq"]) for sent in gateway.metadata)
    assert sequence == list(range(1, 81))
    assert head(folder) == 80
    assert gateway.calls["GetConsistency"] < 80


def test_async_calls_in_flight_share_the_proofs(gateway: GatewayDouble, folder: Path) -> None:
    async def run() -> None:
        async with AsyncClient.from_profile(folder) as client:
            await asyncio.gather(*(client.infer("m", ROWS) for _ in range(40)))
            gateway.rewrite(60)
            with pytest.raises(ForkError):
                await client.infer("m", ROWS)

    asyncio.run(run())
    assert head(folder) == 40


def test_a_damaged_checkpoint_is_not_taken_for_none(gateway: GatewayDouble, folder: Path) -> None:
    with Client.from_profile(folder) as client:
        client.infer("m", ROWS)
    path = folder / "checkpoint"
    path.write_bytes(path.read_bytes().replace(b"\n1\n", b"\n2\n"))
    with pytest.raises(ProfileError, match="checkpoint"):
        Client.from_profile(folder)


def _seen(tree: Tree, size: int) -> Seen:
    return Seen(size, tree.root(size), b"note")


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.data())
def test_whatever_the_order_growth_is_accepted(sizes: list[int], data: st.DataObject) -> None:
    tree = Tree(leaf_hash(b"%d" % at) for at in range(60))
    tracker = CheckpointTracker()
    for size in sizes:
        tracker.observe(_seen(tree, size))
        if data.draw(st.booleans()):
            _settle(tracker, tree)
    _settle(tracker, tree)
    assert tracker.head == _seen(tree, max(sizes))
    assert not tracker.pending


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 60), st.data())
def test_a_checkpoint_of_another_tree_is_never_accepted(
    sizes: list[int], forged: int, data: st.DataObject
) -> None:
    tree = Tree(leaf_hash(b"%d" % at) for at in range(60))
    other = Tree(leaf_hash(b"x%d" % at) for at in range(60))
    prove: Callable[[CheckpointTracker], None] = lambda t: _settle(  # noqa: E731
        t, data.draw(st.sampled_from([tree, other]))
    )
    tracker = CheckpointTracker()
    for size in sizes:
        tracker.observe(_seen(tree, size))
    _settle(tracker, tree)

    def attack() -> None:
        tracker.observe(_seen(other, forged))
        prove(tracker)

    with pytest.raises(ForkError):
        attack()
    with pytest.raises(ForkError):
        tracker.observe(_seen(tree, max(sizes)))


def _settle(tracker: CheckpointTracker, tree: Tree) -> None:
    chain: Any = tracker.chain()
    if chain:
        pairs = itertools.pairwise(chain)
        tracker.settle(chain, [b"".join(tree.consistency(a.size, b.size)) for a, b in pairs])
