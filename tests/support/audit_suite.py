"""A real log on a real SQLite file; only the keys service is replaced, by a ring that can fail."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from sealward.api.audit.v1.audit_pb2 import Entry
from sealward.kit import attributes as names
from sealward.kit.errors import SealwardError
from sealward.kit.identity import parse_identity
from sealward.kit.reasons import Reason
from sealward.kit.recorder import new_event_id
from sealward.kit.spans import STATUS_OK, AttributeValue, SpanHead, attribute
from sealward.seal.context import EncryptionContext
from sealward.tlog.note import Ed25519Signer
from services.audit.backend import Backend, FileBackend, Place
from services.audit.digests import IndexKeys
from services.audit.entry import Candidate, EntryMaker
from services.audit.index import Index, Query, Row
from services.audit.indexer import Indexer
from services.audit.log import Log
from services.audit.origin import LogKeys, new_name, open_log_keys
from services.audit.patients import Patients
from services.audit.segments import Segments
from services.audit.store import LogStore

GATEWAY = parse_identity("spiffe://sealward.local/service/gateway")
WORKLOAD = parse_identity("spiffe://sealward.local/workload/pacs")


class Branch:
    def __init__(self, ring: Ring, key: bytes, wrapped: bytes) -> None:
        self._ring, self._key, self.wrapped = ring, key, wrapped
        self.closed = False

    def use(self, size: int = 0, messages: int = 1) -> bytes:
        self._ring.answer()
        return self._key

    def close(self) -> None:
        self.closed = True


@dataclass
class Ring:
    """Branch keys that follow from wrapped form and context, so that they outlive a process."""

    down: bool = False

    def answer(self) -> None:
        if self.down:
            raise SealwardError(Reason.KEYS_UNAVAILABLE, "down", retry_after=1.0)

    def create(self, context: EncryptionContext) -> Branch:
        return self.open(context, secrets.token_bytes(16))

    def open(self, context: EncryptionContext, wrapped: bytes) -> Branch:
        self.answer()
        key = hashlib.sha256(repr(context).encode() + wrapped).digest()
        return Branch(self, key, wrapped)


@dataclass
class Suite:
    """Everything around one log."""

    folder: Path
    ring: Ring
    store: LogStore
    keys: LogKeys
    segments: Segments
    index: IndexKeys
    maker: EntryMaker
    log: Log
    rows: Index
    indexer: Indexer
    full: list[bool]
    broken: list[str]
    patients: Patients

    @property
    def signer(self) -> Ed25519Signer:
        return self.keys.signer

    def query(self, **query: Any) -> list[tuple[int, Row]]:
        self.indexer.wait(self.log.head[0])
        return self.rows.rows(Query(**query))

    def close(self) -> None:
        self.indexer.stop(10)
        self.rows.close()
        self.store.close()

    def entry(self, **changes: Any) -> Candidate:
        return self.maker.appended(entry_bytes(**changes), GATEWAY)


def open_suite(
    folder: Path, ring: Ring, *, backend: Backend | None = None, **log_options: Any
) -> Suite:
    backend, place = backend or FileBackend(), Place("default", folder)
    store = backend.store(place)
    keys = open_log_keys(store, ring, "sealward.local", lambda: new_name("sealward.local", 2026))
    segments = Segments(store, ring, keys.origin)
    index = IndexKeys(keys.index.use)
    patients = Patients(lambda: store, ring, "default", lambda: index)
    segments.reveal = patients.reveal
    full: list[bool] = []
    broken: list[str] = []
    rows = backend.index(place, keys.origin)
    indexer = Indexer(
        rows, store, segments.open, lambda: log.head[0], structlog.stdlib.get_logger()
    )
    options: dict[str, Any] = {
        "on_full": full.append,
        "on_broken": broken.append,
        "on_rows": indexer.committed,
        **log_options,
    }
    log = Log(store, segments, index, keys.signers, **options)
    indexer.start()
    return Suite(
        folder, ring, store, keys, segments, index,
        EntryMaker(index, patients=patients), log, rows, indexer, full, broken, patients,
    )  # fmt: skip


def span_bytes(
    event_type: str = "inference.predict",
    outcome: str = "ok",
    *,
    extra: dict[str, AttributeValue] | None = None,
    start: int = 1_790_000_000_000_000_000,
) -> bytes:
    values: dict[str, AttributeValue] = {
        names.EVENT_TYPE: event_type,
        names.OUTCOME: outcome,
        names.ACTOR_ID: "dr-smith",
        names.MODEL_NAME: "breast-cancer",
        names.PURPOSE: "TREAT",
        names.CODE: "OK",
        **(extra or {}),
    }
    parts = [attribute(name, value) for name, value in values.items()]
    return SpanHead(event_type).build(start, start + 1_000_000, [*parts, STATUS_OK])


def entry_bytes(**changes: Any) -> bytes:
    values: dict[str, Any] = {
        "event_id": new_event_id(),
        "binding": secrets.token_bytes(32),
        "span": span_bytes(),
        **changes,
    }
    return Entry(**values).SerializeToString()
