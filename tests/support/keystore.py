"""Opens the embedded keystore of a suite with its unlock secret, for tests that know its keys."""

from __future__ import annotations

import base64
import json
import sqlite3
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sealward.seal.context import EncryptionContext
from sealward.seal.header import key_name_of
from sealward.seal.objects import ObjectSealer
from sealward.seal.rootkey import UnlockSecret
from tests.support.esdk import sdk_open

_MESSAGE = b"\x02\x04\x78"


class OpenedKeystore:
    """Every key of a suite in clear: root, key-encryption keys, authority, branch keys."""

    def __init__(self, root: Path) -> None:
        self._root = root
        folder = root / "keys" / "keystore"
        unlock = UnlockSecret((root / "secrets" / "unlock").read_text())
        head = json.loads(unlock.open((folder / "root.age").read_bytes()))
        self.root_key = base64.b64decode(head["root"])
        sealer = ObjectSealer(self.root_key, key_name="root", schema="sealward/keystore/v1")
        context = EncryptionContext("default", "keystore", head["deployment"])
        content = json.loads(sealer.open(context, (folder / "keystore.sealed").read_bytes()))
        self.keks = {
            f"kek/{name}/{kek['version']}": base64.b64decode(kek["key"])
            for name, keks in content["keks"].items()
            for kek in keks
        }
        self.authorities = [
            scalar(base64.b64decode(item["key"])) for item in content["authorities"]
        ]

    def branch_key(self, wrapped: bytes) -> bytes:
        """Open any wrapped branch key; what it is for stands in it."""
        name = key_name_of(wrapped)
        return sdk_open(self.keks[name], wrapped, name=name)[0]

    def branch_keys(self) -> dict[str, bytes]:
        """Open every wrapped branch key that lies in the folders of inference and audit."""
        found = {
            str(path.relative_to(self._root)): path.read_bytes()
            for path in self._root.glob("inference/models/*/*.key")
        }
        for database in self._root.glob("audit/**/log.db"):
            with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as store:
                rows = store.execute("SELECT name, value FROM meta").fetchall()
            found |= {f"audit {name}": value for name, value in rows if value[:3] == _MESSAGE}
        return {name: self.branch_key(wrapped) for name, wrapped in found.items()}


def scalar(der: bytes) -> bytes:
    """The 32 bytes of a P-256 private key."""
    key = serialization.load_der_private_key(der, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.private_numbers().private_value.to_bytes(32, "big")


def derived(branch_key: bytes) -> list[bytes]:
    """What audit derives from a branch key: the key of entries, those of pseudonyms and digests."""
    entry = HKDF(hashes.SHA256(), 64, salt=None, info=b"sealward/audit-entry/v1")
    index = HKDF(hashes.SHA256(), 96, salt=None, info=b"sealward/audit-index/v1")
    material = index.derive(branch_key)
    return [entry.derive(branch_key)[:32], material[:32], material[32:64], material[64:]]
