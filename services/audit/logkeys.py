"""Changes the key that signs a log, while it goes on growing.

The change stands in the log itself: an entry in clear names the old key and the new one, and the
checkpoint over it carries the signatures of both. For some days both sign; a client that knows the
old key alone goes on, and has the new one by the time the old one stops. Every key that ever signed
stays in the file of verifier keys, so that old receipts verify.
"""

from __future__ import annotations

import json
from dataclasses import replace

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from sealward.kit.recorder import new_event_id
from sealward.tlog.logchange import LogKey, change_leaf
from sealward.tlog.note import Ed25519Signer
from services.audit.origin import (
    KEYS,
    KeyState,
    key_state,
    new_signing_key,
    open_signing_key,
)
from services.audit.segments import KeyRing
from services.audit.shard import LiveShard

_CHANGE = "signing/change"
SECOND = 1_000_000_000
DAY = 24 * 3600 * SECOND


def rotate(shard: LiveShard, ring: KeyRing, until: int) -> KeyState:
    """Let a new key sign a log; the old one signs along until then (nanoseconds since the epoch).

    Raise SealwardError: LOG_STATE while an earlier change is still under way.
    """
    state = key_state(shard.store, shard.keys.signers)
    if state.leaving or shard.store.get(_CHANGE):
        raise SealwardError(Reason.LOG_STATE, "an earlier change of the key is still under way")
    number = len(state.vkeys) + 1
    _, kept = new_signing_key(ring, shard.origin, number)
    change = {"number": number, "event_id": new_event_id().hex(), "until": until}
    shard.store.put([*kept, (_CHANGE, json.dumps(change).encode())])
    return resume(shard, ring) or state


def resume(shard: LiveShard, ring: KeyRing) -> KeyState | None:
    """Complete a change of key that was begun; return the state after it, None without one."""
    stored = shard.store.get(_CHANGE)
    if not stored:
        return None
    try:
        change = json.loads(stored)
        number, until = int(change["number"]), int(change["until"])
        event_id = bytes.fromhex(change["event_id"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise StartupError("what was written about the log's new key cannot be read") from None
    new = open_signing_key(shard.store, ring, shard.origin, number)
    state = key_state(shard.store, shard.keys.signers)
    old = shard.keys.signers[0]
    leaf = change_leaf(event_id, LogKey(shard.origin, old.vkey, new.vkey))
    _, checkpoint = shard.log.change(leaf, signers=(new, old))
    state = KeyState(number, (*state.vkeys, new.vkey), state.active, until)
    shard.store.put(
        [
            (f"signing/{number}/checkpoint", checkpoint),
            (KEYS, state.encode()),
            (_CHANGE, b""),
        ]
    )
    _sign(shard, state, (new, old))
    return state


def expire(shard: LiveShard, now: int) -> bool:
    """Let a key that was replaced stop signing when its time is over; return whether it did."""
    state = shard.keys.state
    if not state.leaving or now < state.until:
        return False
    state = replace(state, leaving=0, until=0)
    shard.store.put([(KEYS, state.encode())])
    _sign(shard, state, shard.keys.signers[:1])
    return True


def _sign(shard: LiveShard, state: KeyState, signers: tuple[Ed25519Signer, ...]) -> None:
    shard.keys = replace(shard.keys, signers=signers, state=state)
    shard.log.sign_with(signers)
