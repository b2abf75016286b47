"""COSE receipts of logs that grow and of logs that have ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.kit.recorder import new_event_id
from sealward.tlog.cose import verify_receipt
from sealward.tlog.errors import SignatureError
from sealward.tlog.note import parse_vkeys
from services.audit.shard import Shard
from tests.support.audit_shards import opened
from tests.support.audit_suite import entry_bytes


def check(shard: Shard, event_id: bytes) -> bytes:
    placed, checkpoint = shard.log.receipt(event_id)
    receipt = shard.log.cose(placed, checkpoint)
    vkeys = parse_vkeys("\n".join(shard.vkeys))
    found = verify_receipt(receipt, placed.leaf, vkeys)
    assert (found.index, found.size) == (placed.index, shard.log.head[0])
    with pytest.raises(SignatureError):
        verify_receipt(receipt, placed.leaf[:-1] + b"?", vkeys)
    return receipt


def test_receipts_before_and_after_the_log_has_ended(tmp_path: Path) -> None:
    ids = [new_event_id() for _ in range(5)]
    with opened(tmp_path) as logs:
        logs.append(*(entry_bytes(event_id=event_id) for event_id in ids))
        grown = logs.shards.find(ids[2])
        before, old_checkpoint = grown.log.receipt(ids[2])
        check(grown, ids[2])
        logs.rollover.turn("default")
        past = logs.shards.find(ids[2])
        assert past.state == "frozen"
        kept = check(past, ids[2])
        # Its key signed the final tree alone.
        with pytest.raises(SealwardError) as caught:
            past.log.cose(before, old_checkpoint)
        assert caught.value.reason == Reason.NOT_SUPPORTED
    with opened(tmp_path) as logs:
        assert check(logs.shards.find(ids[2]), ids[2]) == kept


def test_a_log_of_one_entry_has_none(tmp_path: Path) -> None:
    event_id = new_event_id()
    with opened(tmp_path, tenants=("default",)) as logs:
        logs.append(entry_bytes(event_id=event_id))
        shard = logs.shards.find(event_id)
        placed, checkpoint = shard.log.receipt(event_id)
        with pytest.raises(SealwardError) as caught:
            shard.log.cose(placed, checkpoint)
    assert caught.value.reason == Reason.NOT_SUPPORTED
