"""Opens the keys of a suite with its unlock secret, or in its Vault, for tests that know them."""

from __future__ import annotations

import base64
import json
import sqlite3
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sealward.seal.context import KEY_SCHEMA, EncryptionContext
from sealward.seal.header import key_name_of
from sealward.seal.objects import ObjectSealer
from sealward.seal.rootkey import UnlockSecret
from services.keys.providers.vault.names import Names, derivation_context, kek_name
from tests.support.esdk import sdk_open
from tests.support.suites import RunningSuite


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
        sealer = ObjectSealer(self.root_key, key_name="root", schema="sealward/halves/v1")
        context = EncryptionContext("default", "halves", head["deployment"])
        halves = json.loads(sealer.open(context, (root / "keys/halves.sealed").read_bytes()))
        # In the keystore is one half of each key; the other one lies beside it.
        self.keks = {
            f"kek/{name}/{kek['version']}": bytes(
                a ^ b
                for a, b in zip(
                    base64.b64decode(kek["half"]),
                    base64.b64decode(halves["keys"][name]["halves"][str(kek["version"])]),
                    strict=True,
                )
            )
            for name, keks in content["keks"].items()
            for kek in keks
        }
        self.authorities = [
            scalar(base64.b64decode(item["key"])) for item in content["authorities"]
        ]

    def branch_key(self, wrapped: bytes, context: EncryptionContext) -> bytes:
        """Open a wrapped branch key; what it is for stands in it."""
        name = key_name_of(wrapped)
        key, header = sdk_open(self.keks[name], wrapped, name=name)
        assert header.encryption_context == context.pairs(KEY_SCHEMA)
        return key

    def keys(self) -> dict[str, bytes]:
        """All but the branch keys, by what they are."""
        found = {"root": self.root_key, **self.keks}
        return found | {f"authority {n}": key for n, key in enumerate(self.authorities)}


class VaultKeys:
    """The branch keys of a suite in clear, by Vault's administrator: no other key leaves Vault."""

    def __init__(self, suite: RunningSuite) -> None:
        assert suite.vault is not None
        self._server = suite.vault
        self._transit = Names(suite.vault.prefixes[-1]).transit

    def branch_key(self, wrapped: bytes, context: EncryptionContext) -> bytes:
        """Open a wrapped branch key."""
        path = f"{self._transit}/decrypt/{kek_name(context.tenant, context.purpose)}"
        body = {"ciphertext": wrapped.decode(), "context": derivation_context(context)}
        return base64.b64decode(self._server.ask("post", path, body)["data"]["plaintext"])

    def keys(self) -> dict[str, bytes]:
        """None of them is ours."""
        return {}


def wrapped_keys(root: Path) -> dict[str, tuple[bytes, EncryptionContext]]:
    """Every wrapped branch key in the folders of inference and audit, and what it is for."""
    found = {}
    for path in root.glob("inference/models/*/*.key"):
        about = EncryptionContext("default", "model", f"{path.parent.name}@{path.stem}")
        found[str(path.relative_to(root))] = (path.read_bytes(), about)
    for database in root.glob("audit/**/log.db"):
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as store:
            rows = dict(store.execute("SELECT name, value FROM meta"))
        origin = rows["origin"].decode()
        for name, value in rows.items():
            kind, _, rest = name.partition("/")
            if kind == "segment":
                about = EncryptionContext("default", "audit-segment", rest)
            elif kind == "patient" and rest.endswith("/wrapped"):
                pool = rest.partition("/")[0]
                about = EncryptionContext("default", "audit-patient", pool)
            elif rest.endswith("wrapped"):
                purpose = {"index": "audit-index", "signing": "log-signing"}[kind]
                about = EncryptionContext("default", purpose, origin)
            else:
                continue
            found[f"audit {name}"] = (value, about)
    return found


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
