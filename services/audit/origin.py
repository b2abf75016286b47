"""The log's name and keys: made at the first start, opened at every later one.

The origin is `<trust domain>/<deployment id>/default/<year>`; the deployment id is drawn once, so
that two installations never share a log's name. The signing key is an Ed25519 key made here and
kept in the store, sealed under a branch key of purpose `log-signing`. The index key is a branch key
of purpose `audit-index`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from sealward.kit.errors import StartupError
from sealward.seal.context import EncryptionContext
from sealward.seal.entries import PREFIX_BYTES, EntryOpener, EntrySealer
from sealward.seal.errors import SealBrokenError
from sealward.tlog.note import Ed25519Signer
from services.audit.segments import TENANT, BranchKey, KeyRing
from services.audit.store import LogStore

_ORIGIN, _SIGNING_KEY, _SIGNING_SEED, _INDEX_KEY = (
    "origin", "signing/wrapped", "signing/sealed", "index/wrapped",
)  # fmt: skip
# The seed is sealed in the format of entries (Tink AES-256-GCM with a key commitment), in a place
# where no entry can be: a segment id and a clear part that no entry has, under a key of its own.
_PLACE = b"log-sign"
_PREFIX = b"sealward/log-signing-key/v1".ljust(PREFIX_BYTES, b"\0")


@dataclass(frozen=True, slots=True)
class LogKeys:
    """Name and keys of a log."""

    origin: str
    signer: Ed25519Signer
    index: BranchKey


def open_log_keys(store: LogStore, ring: KeyRing, trust_domain: str, year: int) -> LogKeys:
    """Open the log's keys, or make them when the store is new.

    Raise StartupError when the store belongs to another trust domain or its keys do not open,
    SealwardError KEYS_UNAVAILABLE when the keys service does not answer.
    """
    stored = store.get(_ORIGIN)
    if stored is None:
        if store.head() is not None:
            raise StartupError("the audit store has entries but no origin: it is damaged")
        return _create(store, ring, f"{trust_domain}/{secrets.token_hex(4)}/{TENANT}/{year}")
    origin = stored.decode()
    if origin.split("/", 1)[0] != trust_domain:
        raise StartupError(f"the audit log is of another trust domain: {origin.split('/', 1)[0]}")
    return _open(store, ring, origin)


def _create(store: LogStore, ring: KeyRing, origin: str) -> LogKeys:
    signing = ring.create(_context("log-signing", origin))
    index = ring.create(_context("audit-index", origin))
    signer, seed = Ed25519Signer.generate(origin)
    sealed = EntrySealer(signing.use(len(seed)), _PLACE, origin).seal(_PREFIX, seed)
    store.put(
        [
            (_ORIGIN, origin.encode()),
            (_SIGNING_KEY, signing.wrapped),
            (_SIGNING_SEED, sealed),
            (_INDEX_KEY, index.wrapped),
        ]
    )
    signing.close()
    return LogKeys(origin, signer, index)


def _open(store: LogStore, ring: KeyRing, origin: str) -> LogKeys:
    wrapped, sealed, index_wrapped = (
        store.get(name) for name in (_SIGNING_KEY, _SIGNING_SEED, _INDEX_KEY)
    )
    if wrapped is None or sealed is None or index_wrapped is None:
        raise StartupError("the audit store lacks the log's keys: it is damaged")
    signing = ring.open(_context("log-signing", origin), wrapped)
    try:
        seed = EntryOpener(signing.use(len(sealed)), _PLACE, origin).open(_PREFIX, sealed)
    except SealBrokenError:
        raise StartupError("the log's signing key does not open: store or key is damaged") from None
    signing.close()
    index = ring.open(_context("audit-index", origin), index_wrapped)
    return LogKeys(origin, Ed25519Signer(origin, seed), index)


def _context(purpose: str, origin: str) -> EncryptionContext:
    return EncryptionContext(TENANT, purpose, origin)
