"""Makes logs known to the built-in witness, and asks it at the start what it knows of them.

The tenant's first log is taken on at first sight. From then on each is vouched for by the one
before, and each new key by the log itself: the entry in clear that names it is shown to be in a
tree that a known key has signed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from sealward.tlog.checkpoint import open_checkpoint
from sealward.tlog.errors import LeafError, TlogError
from sealward.tlog.logchange import LogFinal, parse_change_leaf
from sealward.tlog.note import Verifier, parse_vkeys
from sealward.tlog.proof import format_proof
from services.audit.cosigning.asking import ask
from services.audit.cosigning.builtin import BuiltinWitness, Known
from services.audit.log import LogView
from services.audit.origin import key_state
from services.audit.shard import LiveShard, PastShard, Shard
from services.audit.shards import Shards, TenantLogs

RUNBOOK = "see docs/runbooks/witness.md"


def contradicts(note: bytes, verifiers: Sequence[Verifier], log: LogView) -> bool:
    """Return whether a checkpoint, signed by the log's key, is of a tree that the log is not.

    That is proof: the key has signed a larger tree, or another one of that size. False where the
    note proves nothing.
    """
    try:
        checkpoint = open_checkpoint(note, verifiers, log.origin)
    except TlogError:
        return False
    return checkpoint.size > log.head[0] or log.root(checkpoint.size) != checkpoint.root


class Introducer:
    """Speaks for the logs to the built-in witness. Methods raise StoreError as well."""

    def __init__(self, builtin: BuiltinWitness) -> None:
        self._builtin = builtin

    def check(self, shard: Shard) -> None:
        """Compare a log that is opened with what the witness has cosigned of it.

        Raise StartupError when the store was rolled back, or is another log; SealwardError when the
        keys service does not answer.
        """
        known = self._builtin.known().get(shard.origin)
        if known is None or not known.checkpoint:
            return
        size, _ = shard.log.head
        verifiers = parse_vkeys("\n".join(shard.vkeys))
        try:
            cosigned = open_checkpoint(known.checkpoint, verifiers, shard.origin)
        except TlogError:
            raise StartupError(
                f"the witness knows the log {shard.origin} under other keys than this store has:"
                f" it was exchanged; {RUNBOOK}"
            ) from None
        if cosigned.size > size:
            raise StartupError(
                f"the audit store has {size} entries of {shard.origin}, but the witness has"
                f" cosigned {cosigned.size}: it was rolled back; {RUNBOOK}"
            )
        if shard.log.root(cosigned.size) != cosigned.root:
            raise StartupError(
                f"the audit store is not the log {shard.origin} that the witness has cosigned;"
                f" {RUNBOOK}"
            )

    def begin(self, shards: Shards) -> None:
        """Make all logs known at the start, or raise StartupError where one is not to be.

        A store that was lost and made anew has another name: the witness refuses it, because it
        knows a log of the tenant that has not ended.
        """
        known = self._builtin.known()
        for tenant in shards.tenants:
            logs = shards.of(tenant)
            for past in logs.past:
                _check_ended(past, known)
            if logs.current.origin not in known:
                try:
                    self.introduce(logs.current, logs)
                except SealwardError as error:
                    if error.retry_after is not None:
                        raise
                    raise StartupError(f"{error.message}; {RUNBOOK}") from None

    def introduce(self, shard: LiveShard | PastShard, logs: TenantLogs) -> None:
        """Make a log, or the keys that it has got, known to the witness; raise SealwardError."""
        known = self._builtin.known().get(shard.origin)
        if known is not None:
            self._add_keys(shard, known)
            return
        proof = self._end_of_predecessor(shard, logs)
        try:
            self._builtin.add_log(shard.vkeys[0], proof)
        except SealwardError as error:
            if not proof or error.reason is not Reason.LOG_STATE:
                raise
            # The witness does not know the log before: it is younger than that.
            self._builtin.add_log(shard.vkeys[0], b"")

    def _add_keys(self, shard: Shard, known: Known) -> None:
        store = shard.store
        for number, vkey in enumerate(key_state(store).vkeys, 1):
            note = store.get(f"signing/{number}/checkpoint")
            if vkey in known.vkeys or note is None:
                continue
            # The entry that names the key is the last one under the checkpoint kept with it.
            size = open_checkpoint(note, parse_vkeys("\n".join(shard.vkeys))).size
            self._builtin.add_log(vkey, _last_entry(shard.log, size, note))

    def _end_of_predecessor(self, shard: Shard, logs: TenantLogs) -> bytes:
        """Return the proof of the entry that names a log as the next; empty where there is none."""
        for past in logs.past:
            size = past.checkpoint.size
            (leaf,) = past.store.leaves(size - 1, size)
            try:
                _, change = parse_change_leaf(leaf)
            except LeafError:
                continue
            if isinstance(change, LogFinal) and change.successor == shard.origin:
                # Its end has to be cosigned before.
                ask(self._builtin, past.log, size, past.final, 0)
                return _last_entry(past.log, size, past.final)
        return b""


def _check_ended(past: PastShard, known: Mapping[str, Known]) -> None:
    """As Introducer.check, of a log that has ended, without opening it."""
    note = known[past.origin].checkpoint if past.origin in known else b""
    if not note:
        return
    try:
        cosigned = open_checkpoint(note, parse_vkeys("\n".join(past.vkeys)), past.origin)
    except TlogError:
        cosigned = None
    end = past.checkpoint
    if (
        cosigned is None
        or cosigned.size > end.size
        or (cosigned.size == end.size and cosigned.root != end.root)
    ):
        raise StartupError(
            f"the ended log {past.origin} is not the one that the witness has cosigned: it was"
            f" rolled back or exchanged; {RUNBOOK}"
        )


def _last_entry(log: LogView, size: int, note: bytes) -> bytes:
    placed = log.placed(size - 1, size)
    return format_proof(size - 1, placed.path, note, placed.leaf)
