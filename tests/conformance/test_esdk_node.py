"""Sealed objects and AWS's Encryption SDK for JavaScript: each opens what the other sealed."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from sealward.seal.context import OBJECT_SCHEMA, EncryptionContext
from sealward.seal.errors import SealBrokenError
from sealward.seal.files import open_file, seal_file
from sealward.seal.objects import BRANCH_KEY_NAME, FRAME_BYTES, ObjectSealer
from tests.support import esdk_node
from tests.support.esdk_node import NodeSdk

KEY = bytes(range(32))
CONTEXT = EncryptionContext("default", "model", "breast-cancer@1")
PAIRS = dict(CONTEXT.pairs(OBJECT_SCHEMA))
SEALER = ObjectSealer(KEY)
SIZES = [0, 1, 4096, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 2 * FRAME_BYTES, 3_000_000]
SUITE_0478 = 0x0478
OURS = "ALG_AES256_GCM_IV12_TAG16_HKDF_SHA512_COMMIT_KEY"
SIGNED = "ALG_AES256_GCM_IV12_TAG16_HKDF_SHA512_COMMIT_KEY_ECDSA_P384"


@pytest.fixture(scope="module")
def sdk() -> NodeSdk:
    return esdk_node.install()


def job(kind: str, path: Path, **more: Any) -> dict[str, Any]:
    made = {"do": kind, "key": KEY, "name": BRANCH_KEY_NAME, "path": path}
    return {**made, "into": path.with_name(path.name + "." + kind), **more}


def sealing(path: Path, **more: Any) -> dict[str, Any]:
    return job("seal", path, **{"context": PAIRS, "suite": OURS, "frame": FRAME_BYTES, **more})


def test_it_opens_what_we_sealed(sdk: NodeSdk, tmp_path: Path) -> None:
    texts = {tmp_path / f"{size}": os.urandom(size) for size in SIZES}
    for path, text in texts.items():
        path.write_bytes(SEALER.seal(CONTEXT, text))
        seal_file(SEALER, CONTEXT, io.BytesIO(text), path.with_name(path.name + "-file"))
    paths = [*texts, *(path.with_name(path.name + "-file") for path in texts)]
    answers = sdk.run([job("open", path) for path in paths])
    for path, answer in zip(paths, answers, strict=True):
        text = texts[path.with_name(path.name.removesuffix("-file"))]
        assert answer == {
            "size": len(text),
            "suite": SUITE_0478,
            "context": PAIRS,
            "keys": 1,
            "frame": FRAME_BYTES,
        }
        assert path.with_name(path.name + ".open").read_bytes() == text


@pytest.mark.parametrize("frame", [4096, FRAME_BYTES, 1 << 20])
def test_we_open_what_it_sealed(sdk: NodeSdk, tmp_path: Path, frame: int) -> None:
    texts = {tmp_path / f"{size}": os.urandom(size) for size in SIZES}
    for path, text in texts.items():
        path.write_bytes(text)
    answers = sdk.run([sealing(path, frame=frame) for path in texts])
    for (path, text), answer in zip(texts.items(), answers, strict=True):
        sealed = path.with_name(path.name + ".seal")
        assert answer == {"size": sealed.stat().st_size}
        assert SEALER.open(CONTEXT, sealed.read_bytes()) == text
        with open_file(SEALER, CONTEXT, sealed) as file:
            assert file.read() == text
        with pytest.raises(SealBrokenError):
            SEALER.open(CONTEXT.about("breast-cancer@2"), sealed.read_bytes())


def test_it_refuses_what_was_changed(sdk: NodeSdk, tmp_path: Path) -> None:
    sealed = SEALER.seal(CONTEXT, bytes(FRAME_BYTES + 100))
    head = SEALER.header_size(CONTEXT)
    places = [2, 20, 60, head - 60, head - 1, head + 500, len(sealed) - 1]
    changed = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in places]
    changed += [sealed[:-1], sealed[: head + 16 + FRAME_BYTES + 16], SEALER.seal(CONTEXT, b"")[:-9]]
    jobs = []
    for number, content in enumerate([*changed, sealed]):
        path = tmp_path / str(number)
        path.write_bytes(content)
        jobs.append(job("open", path))
    jobs.append({**jobs[-1], "key": bytes(32)})
    jobs.append({**jobs[-2], "name": "root"})
    answers = sdk.run(jobs)
    assert "error" not in answers[len(changed)]
    del answers[len(changed)]
    assert all("error" in answer for answer in answers), answers


def test_we_refuse_what_it_seals_otherwise(sdk: NodeSdk, tmp_path: Path) -> None:
    """Its default suite, 0x0578, and contexts that are not the same."""
    path = tmp_path / "text"
    path.write_bytes(b"plain")
    others: list[dict[str, Any]] = [
        {"suite": SIGNED},
        {"context": {**PAIRS, "more": "1"}},
        {"context": {name: value for name, value in PAIRS.items() if name != "tenant"}},
        {"name": "root"},
    ]
    jobs = [
        sealing(path, into=tmp_path / f"{number}.sealed", **other)
        for number, other in enumerate([{}, *others])
    ]
    answers = sdk.run(jobs)
    assert not [answer for answer in answers if "error" in answer]
    sealed = [made["into"].read_bytes() for made in jobs]
    assert SEALER.open(CONTEXT, sealed[0]) == b"plain"
    for message in sealed[1:]:
        with pytest.raises(SealBrokenError):
            SEALER.open(CONTEXT, message)
