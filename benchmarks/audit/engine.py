"""The log's engine in a process of its own: durable appends with a receipt each.

    python -m benchmarks.audit.engine FOLDER WRITERS SECONDS [noindex]

Each writer has one entry on its way: it sends the next when it holds the receipt of the last. What
arrived while a batch was made durable is the next batch, as in the service. An entry is sealed,
hashed, committed with its event id, and comes back with its proof. Tiles are published and the
index is written beside it, within the measured time; `noindex` leaves the index out, for the
comparison with an engine that has none. Keys are in memory; all else is what the service runs.
"""

from __future__ import annotations

import gc
import itertools
import json
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sealward.kit.logging import get_logger
from sealward.kit.recorder import new_event_id
from sealward.seal.context import EncryptionContext
from sealward.seal.entries import OVERHEAD_BYTES
from sealward.tlog.checkpoint import open_checkpoint
from sealward.tlog.leaf import PREFIX_SIZE, SALT_SIZE, leaf_prefix
from sealward.tlog.note import Ed25519Signer
from sealward.tlog.receipt import format_receipt, open_receipt
from services.audit.digests import IndexKeys
from services.audit.embedded_store import EmbeddedStore
from services.audit.entry import Candidate
from services.audit.index import Row
from services.audit.indexer import Indexer
from services.audit.log import Log, Placed
from services.audit.publisher import Publisher
from services.audit.segments import Segments
from services.audit.sqlite_index import SqliteIndex
from services.audit.store import EventKey

ORIGIN = "bench.example/log"
_WARM_SECONDS = 0.3
_ENTRY_BYTES = 1024
_CHECKED = 50
_AHEAD = 200_000


class Key:
    """A branch key without a lease."""

    wrapped = bytes(32)

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def use(self, size: int = 0, messages: int = 1) -> bytes:  # noqa: ARG002
        return self._key

    def close(self) -> None:
        """Nothing to release."""


class Ring:
    """Makes branch keys."""

    def create(self, context: EncryptionContext) -> Key:  # noqa: ARG002
        return Key()

    def open(self, context: EncryptionContext, wrapped: bytes) -> Key:
        raise NotImplementedError


class Engine:
    """One log in `folder`."""

    def __init__(self, folder: Path, *, indexed: bool = True) -> None:
        self.signer, _ = Ed25519Signer.generate(ORIGIN)
        self.store = EmbeddedStore(folder / "log.db")
        self.index = SqliteIndex(folder / "index.db", ORIGIN)
        self.segments = Segments(self.store, Ring(), ORIGIN)
        self.indexer = Indexer(
            self.index, self.store, self.segments.open, lambda: self.log.head[0],
            get_logger("bench"),
        )  # fmt: skip
        options: dict[str, Any] = {"on_rows": self.indexer.committed} if indexed else {}
        self.log = Log(
            self.store, self.segments, IndexKeys(Key().use), [self.signer],
            on_change=lambda _size, _checkpoint: self.publisher.changed(), **options,
        )  # fmt: skip
        self.publisher = Publisher(self.log, self.store, folder / "log", get_logger("bench"))
        self.publisher.start()
        if indexed:
            self.indexer.start()

    def close(self) -> None:
        self.publisher.stop(60)
        self.indexer.stop(60)
        self.index.close()
        self.store.close()


def candidates(size: int = _ENTRY_BYTES) -> Iterator[Candidate]:
    """Yield events of random bytes that are `size` bytes long once sealed.

    Ids, times and patients are new each time; the text is one of 512, which are at hand as what a
    service has just read is.
    """
    length = size - PREFIX_SIZE - OVERHEAD_BYTES
    texts = [secrets.token_bytes(length) for _ in range(512)]
    patients = [secrets.token_hex(16) for _ in range(10_000)]
    for text in itertools.cycle(texts):
        event_id = new_event_id()
        row = Row(
            event_id=event_id, time=time.time_ns(), type="inference.predict", outcome="ok",
            code="OK", reason="", actor="dr-smith", actor_kind="user", session="5e55",
            caller_seq=1, purpose="TREAT", break_glass=0, patient=secrets.choice(patients),
            model="breast-cancer", model_version="1", organization="", target="",
            producer="gateway", producer_seq=1, trace_id=event_id, span_id=event_id[8:],
            parent_id=b"", instance="9a3f51c2", counted=0, data_category="",
        )  # fmt: skip
        yield Candidate(leaf_prefix(event_id, bytes(32)), text, EventKey(event_id, event_id), row)


def run(folder: Path, writers: int, seconds: float, *, indexed: bool = True) -> dict[str, Any]:
    """Measure; return entries a second and the time from sending to receipt."""
    engine = Engine(folder, indexed=indexed)
    # Drawn ahead as far as that lasts, so that it is not counted as the log's work.
    made = candidates()
    ahead = list(itertools.islice(made, min(_AHEAD, int(writers * seconds * 3000))))
    # As in the service (kit/runner.py): what is there now is no business of the collector's.
    # Drawn in the order in which they are sent, as time goes.
    ahead.reverse()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    began = time.perf_counter()
    begins, ends = began + _WARM_SECONDS, began + _WARM_SECONDS + seconds
    taken: list[float] = []
    kept: list[tuple[Placed, bytes]] = []
    sent = began
    while (now := time.perf_counter()) < ends:
        batch = [ahead.pop() if ahead else next(made) for _ in range(writers)]
        sent = time.perf_counter()
        done = engine.log.append(batch, urgent=True)
        answered = time.perf_counter()
        if now >= begins:
            taken += [answered - sent] * len(batch)
        place = done.results[-1]
        assert isinstance(place, Placed)
        kept.append((place, done.checkpoint))
    elapsed = time.perf_counter() - begins
    for place, checkpoint in kept[:: max(1, len(kept) // _CHECKED)]:
        proof = format_receipt(place.index, place.path, place.leaf, bytes(SALT_SIZE), checkpoint)
        open_receipt(proof, [engine.signer.verifier])
    engine.close()
    published = open_checkpoint(
        (folder / "log" / "checkpoint").read_bytes(), [engine.signer.verifier]
    )
    if published.size != engine.log.head[0]:
        raise SystemExit("the log was not published")
    taken.sort()
    return {
        "per_second": len(taken) / elapsed,
        "p50_us": taken[len(taken) // 2] * 1e6,
        "p99_us": taken[int(len(taken) * 0.99)] * 1e6,
    }


if __name__ == "__main__":
    print(
        json.dumps(
            run(
                Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]),
                indexed="noindex" not in sys.argv[4:],
            )
        )
    )  # fmt: skip
