"""In a process that uses keys, nothing but a Secret refers to the bytes of one.

All objects that Python's collector knows are asked what they refer to. What a cipher keeps in its
own memory is not seen here, and cannot be printed, logged or pickled either.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sealward.kit.keysclient import KeyRing
from sealward.seal.context import EncryptionContext
from sealward.seal.lease import Lease
from sealward.seal.rootkey import UnlockSecret, new_identity
from sealward.seal.secret import Secret
from sealward.tlog.leaf import leaf_prefix
from services.audit.digests import IndexKeys
from services.audit.embedded_store import EmbeddedStore
from services.audit.origin import open_log_keys
from services.audit.segments import Segments
from services.inference import package
from services.inference.store import ModelStore
from services.keys.authority import KeystoreAuthority, new_authority, utc_now
from services.keys.keystore import open_or_create
from services.keys.keystoreformat import Content
from services.keys.providers.embedded import EmbeddedBranchKeys
from tests.support.keystore import derived, scalar

TD = "sealward.local"
SHIPPED = Path(package.__file__).parent / "shipped"
IDENTITY = new_identity()


class Seen:
    """Every key that came by, to be looked for."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []

    def add(self, key: bytes) -> None:
        self.keys += [key, *derived(key)]


class Source:
    """The key source of a ring, straight from a provider."""

    def __init__(self, provider: EmbeddedBranchKeys, seen: Seen) -> None:
        self._provider = provider
        self._seen = seen

    def create(self, context: EncryptionContext, timeout: float) -> tuple[bytes, bytes, Lease]:
        key, wrapped = self._provider.create(context)
        self._seen.add(key)
        return key, wrapped, Lease(300, 900, 1 << 20, 1 << 30)

    def open(
        self, context: EncryptionContext, wrapped: bytes, timeout: float
    ) -> tuple[bytes, Lease]:
        key = self._provider.open(context, wrapped)
        self._seen.add(key)
        return key, Lease(300, 900, 1 << 20, 1 << 30)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def process(tmp_path: Path, seen: Seen) -> Iterator[list[Any]]:
    """What a service holds: a keystore with its authority, a ring, a log, a package, a session."""
    secret = UnlockSecret(IDENTITY)
    keystore, _ = open_or_create(
        tmp_path,
        lambda _creating: secret,
        lambda deployment: Content(deployment, TD, (new_authority(TD, utc_now()),)),
    )
    authority = KeystoreAuthority(keystore)
    provider = EmbeddedBranchKeys(keystore)
    ring = KeyRing(Source(provider, seen))
    store = EmbeddedStore(tmp_path / "log.db")
    log_keys = open_log_keys(store, ring, TD, lambda: f"{TD}/0a1b2c3d/default/2026")
    index = IndexKeys(log_keys.index.use)
    assert index.fingerprint(b"a span") != index.digest(b"a span").encode()
    segments = Segments(store, ring, log_keys.origin)
    prefix = leaf_prefix(bytes(16), bytes(32))
    (sealed,) = segments.seal_all([(prefix, b"a span")])
    assert segments.open(prefix, sealed) == b"a span"
    models = ModelStore(tmp_path / "models")
    keys = package.RingKeys(ring, 5)
    package.push(models, keys, package.read_folder(SHIPPED / "breast-cancer"))
    package.load(models, keys, "breast-cancer", "1")
    session = ring.create(EncryptionContext("default", "session", "gateway"))
    assert session.open(session.seal(b"a session", "x"), "x") == b"a session"
    for keks in keystore.content.keks.values():
        seen.keys += [kek.key.reveal() for kek in keks]
    seen.keys += [scalar(item.key.reveal()) for item in keystore.content.authorities]
    seen.keys += [item.key.reveal() for item in keystore.content.authorities]
    yield [keystore, authority, provider, ring, log_keys, index, segments, session, secret]
    ring.close()
    store.close()
    keystore.close()


def shows(part: bytes | bytearray | str, keys: list[bytes]) -> bool:
    if len(part) < 32:
        return False
    data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
    return any(key in data for key in keys)


def holders(seen: Seen) -> list[str]:
    """Objects that refer to the bytes of a key, or to something with them in it."""
    gc.collect()
    return [
        f"{type(item).__module__}.{type(item).__qualname__}"
        for item in gc.get_objects()
        if type(item) is not Secret and item is not seen.keys
        for part in gc.get_referents(item)
        if isinstance(part, (bytes, bytearray, str)) and shows(part, seen.keys)
    ]


def test_only_secrets_refer_to_keys(process: list[Any], seen: Seen) -> None:
    assert len(seen.keys) > 30
    assert all(len(key) >= 32 for key in seen.keys)
    assert holders(seen) == []


def test_the_search_finds_what_it_looks_for(process: list[Any], seen: Seen) -> None:
    class Careless:
        def __init__(self, key: bytes) -> None:
            self.key = key

    for key in (seen.keys[0], seen.keys[-1], b"before" + seen.keys[3] + b"behind"):
        careless = Careless(key)
        assert len(holders(seen)) == 1
        del careless
    assert Secret(seen.keys[0])
    assert holders(seen) == []
