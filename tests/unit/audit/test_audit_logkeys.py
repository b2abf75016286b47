"""A log changes its key: no receipt stops to verify, no client is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.tlog.checkpoint import open_checkpoint, open_signed_checkpoint
from sealward.tlog.errors import SignatureError
from sealward.tlog.logchange import LogKey, parse_change_leaf
from sealward.tlog.logdir import verify_directory
from sealward.tlog.note import parse_vkeys
from services.audit import logkeys
from services.audit.logkeys import DAY, rotate
from tests.support.audit_shards import Clock, Logs, opened
from tests.support.audit_suite import entry_bytes


def keys(text: str) -> list[str]:
    return [line for line in text.splitlines() if "/default/" in line]


def turn_key(logs: Logs) -> tuple[str, str]:
    shard = logs.shards.current()
    old = shard.vkeys[0]
    rotate(shard, logs.ring, logs.clock.now + 7 * DAY)
    logs.rollover.write_vkeys()
    return old, shard.vkeys[0]


def test_both_keys_sign_for_some_days(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, clock=clock) as logs:
        (first,) = logs.append(entry_bytes())
        old, new = turn_key(logs)
        assert keys((tmp_path / "log.vkey").read_text()) == [new, old]
        shard = logs.shards.current()
        (leaf,) = shard.store.leaves(1, 2)
        assert parse_change_leaf(leaf)[1] == LogKey(shard.origin, old, new)
        (during,) = logs.append(entry_bytes())
        for line in (old, new):
            assert open_checkpoint(during.checkpoint, parse_vkeys(line)).size == 3
        # The one over the entry, signed by both, is kept for whoever has the old key alone.
        bridge = shard.store.get("signing/2/checkpoint") or b""
        assert open_checkpoint(bridge, parse_vkeys(old)).size == 2
        logs.rollover.tick()
        assert len(open_signed_checkpoint(shard.log.head[1], parse_vkeys(old))[1].signatures) == 2
        clock.now += 7 * DAY
        logs.rollover.tick()
        (after,) = logs.append(entry_bytes())
        assert open_checkpoint(after.checkpoint, parse_vkeys(new)).size == 4
        with pytest.raises(SignatureError):
            open_checkpoint(after.checkpoint, parse_vkeys(old))
        both = parse_vkeys((tmp_path / "log.vkey").read_text())
        assert open_checkpoint(first.checkpoint, both).size == 1
    with opened(tmp_path, clock=clock) as logs:
        assert logs.shards.current().vkeys == [new, old]
        open_checkpoint(logs.shards.current().log.head[1], parse_vkeys(new))
        logs.shards.current().publisher.rebuild()
        assert verify_directory(tmp_path / "log", both).size == 4


def test_a_clock_that_cannot_be_believed_ends_no_key(tmp_path: Path) -> None:
    steady = [True]
    with opened(tmp_path, steady=lambda: steady[0]) as logs:
        old, _ = turn_key(logs)
        steady[0] = False
        logs.clock.now += 30 * DAY
        logs.rollover.tick()
        (placed,) = logs.append(entry_bytes())
        assert open_checkpoint(placed.checkpoint, parse_vkeys(old)).size == 2
        steady[0] = True
        logs.rollover.tick()
        (placed,) = logs.append(entry_bytes())
        with pytest.raises(SignatureError):
            open_checkpoint(placed.checkpoint, parse_vkeys(old))


def test_one_change_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path) as logs:
        turn_key(logs)
        with pytest.raises(SealwardError) as caught:
            turn_key(logs)
        assert caught.value.reason is Reason.LOG_STATE
        logs.clock.now += 8 * DAY
        logs.rollover.tick()
        turn_key(logs)
        assert len(logs.shards.current().vkeys) == 3


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_change_that_was_killed_is_completed(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as logs:
        logs.append(entry_bytes())
        shard = logs.shards.current()
        old = shard.vkeys[0]
        change = shard.log.change

        def die(*args: object, **named: object) -> tuple[int, bytes]:
            if when == "after":
                change(*args, **named)  # type: ignore[arg-type]
            raise KeyboardInterrupt

        monkeypatch.setattr(shard.log, "change", die)
        with pytest.raises(KeyboardInterrupt):
            rotate(shard, logs.ring, logs.clock.now + DAY)
        assert shard.vkeys == [old]
    with opened(tmp_path) as logs:
        shard = logs.shards.current()
        assert len(shard.vkeys) == 2
        assert shard.vkeys[1] == old
        leaves = shard.store.leaves(0, shard.log.head[0])
        assert [leaf[0] for leaf in leaves] == [1, 2]
        open_checkpoint(shard.log.head[1], parse_vkeys(shard.vkeys[0]))
        open_checkpoint(shard.log.head[1], parse_vkeys(old))
        assert logkeys.resume(shard, logs.ring) is None


def test_the_next_log_begins_with_its_own_key(tmp_path: Path) -> None:
    with opened(tmp_path) as logs:
        old, new = turn_key(logs)
        logs.rollover.turn("default")
        lines = keys((tmp_path / "log.vkey").read_text())
        assert lines[1:] == [new, old]
        assert lines[0] == logs.shards.current().vkeys[0]
        past = logs.shards.all()[1]
        for line in (old, new):
            open_checkpoint(past.log.head[1], parse_vkeys(line))
