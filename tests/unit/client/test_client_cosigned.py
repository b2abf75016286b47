"""Cosigned receipts: both clients against a gateway that lies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sealward.client import (
    AsyncClient,
    Client,
    CosignedReceipt,
    ForkError,
    UnavailableError,
    WrongReceiptError,
)
from sealward.tlog.note import parse_vkeys
from sealward.tlog.policy import Policy
from sealward.tlog.proof import TlogProof
from sealward.tlog.receipt import open_receipt
from tests.support.cosigners import NOW, ed25519, ml_dsa, policy_text
from tests.support.gateway_double import GatewayDouble

ROWS = {"x": np.ones((1, 3), np.float32)}
LINES = (f"witness one {ed25519('one').vkey}", f"witness two {ml_dsa('two').vkey}")
POLICY = policy_text("both", *LINES, "group both all one two")

Cosigned = Callable[[Any, bytes | Policy], tuple[Any, CosignedReceipt]]


def blocking(folder: Path, between: Callable[[], None], policy: Any) -> tuple[Any, CosignedReceipt]:
    with Client.from_profile(folder) as client:
        result = client.infer("m", ROWS)
        between()
        return result, client.cosigned(result.receipt, policy)


def asynchronous(
    folder: Path, between: Callable[[], None], policy: Any
) -> tuple[Any, CosignedReceipt]:
    async def run() -> tuple[Any, CosignedReceipt]:
        async with AsyncClient.from_profile(folder) as client:
            result = await client.infer("m", ROWS)
            between()
            return result, await client.cosigned(result.receipt, policy)

    return asyncio.run(run())


@pytest.fixture(params=[blocking, asynchronous], ids=["blocking", "async"])
def ask(request: pytest.FixtureRequest, folder: Path) -> Any:
    return lambda between=lambda: None, policy=POLICY: request.param(folder, between, policy)


@pytest.fixture(autouse=True)
def witnesses(gateway: GatewayDouble) -> None:
    gateway.witnesses = [ed25519("one"), ml_dsa("two"), ed25519("stranger")]


def test_the_same_call_against_a_cosigned_checkpoint(
    ask: Any, gateway: GatewayDouble, folder: Path
) -> None:
    result, found = ask(lambda: gateway.grow(7))
    assert (found.event_id, found.log_index) == (result.event_id, result.log_index)
    assert found.size == result.checkpoint.size + 7
    assert found.witnesses == {"one": NOW, "two": NOW}
    # It is a receipt like the first one: the salt of the call is in it.
    vkeys = parse_vkeys((folder / "log.vkey").read_text())
    first, second = (open_receipt(r, vkeys) for r in (result.receipt, found.receipt))
    assert (first.salt, first.leaf) == (second.salt, second.leaf)
    assert b"one" in second.note


def test_a_parsed_policy_does_as_well(ask: Any) -> None:
    assert ask(policy=Policy.parse(POLICY))[1].witnesses


def test_too_few_cosignatures(ask: Any, gateway: GatewayDouble) -> None:
    gateway.witnesses.pop(0)
    with pytest.raises(WrongReceiptError, match="cosigned by two: that is not the quorum both"):
        ask()


def test_none_yet(ask: Any, gateway: GatewayDouble) -> None:
    gateway.witnesses.clear()
    with pytest.raises(UnavailableError) as caught:
        ask()
    assert caught.value.reason == "NOT_COSIGNED"


def test_a_policy_that_is_none(ask: Any) -> None:
    with pytest.raises(ValueError, match="not a witness policy"):
        ask(policy=b"quorum\n")


def altered(change: Callable[[TlogProof], TlogProof]) -> Callable[[bytes], bytes]:
    return lambda data: change(TlogProof.parse(data)).format()


@pytest.mark.parametrize(
    "lie",
    [
        lambda _data: b"",
        lambda _data: b"c2sp.org/tlog-proof@v1\n",
        altered(lambda p: TlogProof(p.index + 1, p.path, p.checkpoint, p.extra)),
        altered(lambda p: TlogProof(p.index, p.path[:-1], p.checkpoint, p.extra)),
        altered(lambda p: TlogProof(p.index, p.path, p.checkpoint[:-2], p.extra)),
        altered(lambda p: TlogProof(p.index, p.path, p.checkpoint.replace(b"\n", b"x\n", 1))),
    ],
)
def test_a_proof_of_something_else(
    ask: Any, gateway: GatewayDouble, lie: Callable[[bytes], bytes]
) -> None:
    gateway.lie_of_receipt = lie
    with pytest.raises(WrongReceiptError):
        ask(lambda: gateway.grow(3))


def test_a_receipt_of_another_call(gateway: GatewayDouble, folder: Path) -> None:
    with Client.from_profile(folder) as client:
        first, second = (client.infer("m", ROWS) for _ in range(2))
        ids = list(gateway.entries)
        gateway.entries[ids[0]] = gateway.entries[ids[1]]
        with pytest.raises(WrongReceiptError):
            client.cosigned(first.receipt, POLICY)
        assert client.cosigned(second.receipt, POLICY).log_index == second.log_index


def test_a_receipt_that_does_not_hold(gateway: GatewayDouble, folder: Path) -> None:
    with Client.from_profile(folder) as client:
        result = client.infer("m", ROWS)
        with pytest.raises(WrongReceiptError):
            client.cosigned(result.receipt[:-3], POLICY)
    assert "GetReceipt" not in gateway.calls


def test_a_cosigned_checkpoint_of_another_history_is_a_fork(
    gateway: GatewayDouble, folder: Path
) -> None:
    """Witnesses that went along with a fork: the client's own checkpoints show it."""
    with Client.from_profile(folder) as client:
        gateway.grow(9)
        result = client.infer("m", ROWS)
        index, leaf = next(iter(gateway.entries.values()))
        from sealward.tlog.merkle import leaf_hash

        gateway.rewrite(index)
        gateway.tree.append([leaf_hash(leaf)])
        with pytest.raises(ForkError):
            client.cosigned(result.receipt, POLICY)
