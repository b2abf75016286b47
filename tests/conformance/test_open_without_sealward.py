"""What a suite has sealed is opened with age, AWS's Encryption SDK and Tink, from the disk up.

These are the steps of docs/open-without-sealward.md. The unlock secret and the files are all that
is needed; no code of Sealward decrypts anything here.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sqlite3
import tarfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sealward.kit import attributes
from sealward.tlog.leaf import parse_leaf
from sealward.tlog.tiles import TILE_WIDTH, decode_bundle, entries_path
from tests.support import esdk_node
from tests.support.esdk_node import NodeSdk
from tests.support.seal_go import GoTools
from tests.support.suites import RunningSuite, until

pytestmark = pytest.mark.timeout(300)


class Reader:
    """Opens objects with AWS's SDK, and checks that their context is the one expected."""

    def __init__(self, sdk: NodeSdk, folder: Path) -> None:
        self._sdk = sdk
        self._folder = folder

    def open(self, key: bytes, name: str, sealed: bytes, **context: str) -> bytes:
        path, into = self._folder / "sealed", self._folder / "plain"
        path.write_bytes(sealed)
        job = {"do": "open", "key": key, "name": name, "path": path, "into": into}
        (answer,) = self._sdk.run([job])
        assert answer["context"] == {"tenant": "default", **context}, answer
        assert answer["suite"] == 0x0478
        return into.read_bytes()


class Keystore:
    """A keystore's content, opened with age and AWS's SDK."""

    def __init__(self, suite: RunningSuite, go: GoTools, reader: Reader) -> None:
        folder = suite.suite.root / "keys" / "keystore"
        root = go.age("open", suite.suite.unlock_file, (folder / "root.age").read_bytes())
        assert root is not None
        head = json.loads(root)
        sealed = (folder / "keystore.sealed").read_bytes()
        self._reader = reader
        self._content = json.loads(
            reader.open(
                base64.b64decode(head["root"]), "root", sealed,
                purpose="keystore", resource=head["deployment"], schema="sealward/keystore/v1",
            )
        )  # fmt: skip
        halves = (folder.parent / "halves.sealed").read_bytes()
        self._halves = json.loads(
            reader.open(
                base64.b64decode(head["root"]), "root", halves,
                purpose="halves", resource=head["deployment"], schema="sealward/halves/v1",
            )
        )["keys"]  # fmt: skip

    def branch_key(self, purpose: str, resource: str, wrapped: bytes) -> bytes:
        # The wrapped key names its version in clear.
        name = f"kek/default/{purpose}/"
        (kek,) = (
            kek
            for kek in self._content["keks"][f"default/{purpose}"]
            if f"{name}{kek['version']}\x00".encode() in wrapped
        )
        other = self._halves[f"default/{purpose}"]["halves"][str(kek["version"])]
        halves = zip(base64.b64decode(kek["half"]), base64.b64decode(other), strict=True)
        return self._reader.open(
            bytes(a ^ b for a, b in halves), f"{name}{kek['version']}", wrapped,
            purpose=purpose, resource=resource, schema="sealward/key/v1",
        )  # fmt: skip


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> GoTools:
    return GoTools(tmp_path_factory.mktemp("go"))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(esdk_node.install(), tmp_path_factory.mktemp("esdk"))


@pytest.fixture
def keystore(suite: RunningSuite, go: GoTools, reader: Reader) -> Keystore:
    if suite.provider != "embedded":
        pytest.skip("the keys of this suite are in Vault: there is no keystore to open")
    return Keystore(suite, go, reader)


def test_a_model_package(suite: RunningSuite, keystore: Keystore, reader: Reader) -> None:
    folder = suite.suite.root / "inference" / "models" / "breast-cancer"
    about = "breast-cancer@1"
    key = keystore.branch_key("model", about, (folder / "1.key").read_bytes())
    archive = reader.open(
        key, "branch", (folder / "1.sealed").read_bytes(),
        purpose="model", resource=about, schema="sealward/object/v1",
    )  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {name: tar.extractfile(name).read() for name in tar.getnames()}
    manifest = json.loads(files["manifest.json"])
    assert hashlib.sha256(files["model.onnx"]).hexdigest() == manifest["digest"]


def test_the_entries_of_the_log(
    suite: RunningSuite, keystore: Keystore, go: GoTools, reader: Reader
) -> None:
    answer = suite.ask(suite.user("ada"), patient="patient-4711")
    until(lambda: suite.published() > answer.proof.log_index, "the entry is published")
    index, place = divmod(answer.proof.log_index, TILE_WIDTH)
    width = min(TILE_WIDTH, suite.published() - index * TILE_WIDTH)
    bundle = (suite.suite.log_dir / entries_path(index, width)).read_bytes()
    leaf = decode_bundle(bundle, width)[place]
    segment = leaf[49:57]
    database = suite.suite.root / "audit" / "log.db"
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as store:
        (wrapped,) = store.execute(
            "SELECT value FROM meta WHERE name = ?", (f"segment/{segment.hex()}",)
        ).fetchone()
        (origin,) = store.execute("SELECT value FROM meta WHERE name = 'origin'").fetchone()
    key = keystore.branch_key("audit-segment", segment.hex(), wrapped)
    (text,), _ = go.entries(key, segment, origin.decode(), [leaf])
    assert text is not None
    found = {
        item.key: item.value.string_value or item.value.bytes_value or item.value.int_value
        for item in Span.FromString(text).attributes
    }
    assert found[attributes.EVENT_TYPE] == "inference.predict"
    # The reference is under the patient's own key, one of 256 in a pool.
    sealed = found[attributes.PATIENT_SEALED]
    assert isinstance(sealed, bytes)
    pool, place = sealed[:8].hex(), int.from_bytes(sealed[8:10], "big")
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as store:
        wrapped, keys = (
            store.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0]
            for name in (f"patient/{pool}/wrapped", f"patient/{pool}/keys")
        )
    keys = reader.open(
        keystore.branch_key("audit-patient", pool, wrapped), "branch", keys,
        purpose="audit-patient", resource=pool, schema="sealward/object/v1",
    )  # fmt: skip
    own = AESGCM(keys[32 * place : 32 * (place + 1)])
    assert own.decrypt(leaf[1:17], sealed[10:], sealed[:10]) == b"patient-4711"
    assert parse_leaf(leaf).event_id.hex() == answer.proof.event_id.replace("-", "")
