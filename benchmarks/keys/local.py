"""Sealing beside the bare cipher, in a process of its own: `python -m benchmarks.keys.local`.

What is compared is measured in turns, A B A B, by processor time: no I/O is in it, and on a shared
machine wall time says more about the neighbours. Each figure is the median of its turns.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import aws_encryption_sdk
from aws_encryption_sdk.identifiers import (
    Algorithm,
    CommitmentPolicy,
    EncryptionKeyType,
    WrappingAlgorithm,
)
from aws_encryption_sdk.internal.crypto.wrapping_keys import WrappingKey
from aws_encryption_sdk.key_providers.raw import RawMasterKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealward.seal.context import OBJECT_SCHEMA, EncryptionContext
from sealward.seal.entries import PREFIX_BYTES, EntryOpener, EntrySealer
from sealward.seal.objects import FRAME_BYTES, ObjectSealer
from services.inference import package

KIB, MIB = 1 << 10, 1 << 20
ENTRY_BYTES = KIB
PACKAGE_BYTES = 10 * MIB
BATCH = 256
CONTEXT = EncryptionContext("default", "model", "benchmark@1")

Work = Callable[[], object]


def run(turns: int, seconds: float) -> dict[str, Any]:
    """Measure everything; `seconds` of processor time each and turn."""
    key = os.urandom(32)
    return {
        "entry": _side_by_side(_entries(key), turns, seconds),
        "object_1kib": _side_by_side(_objects(key, KIB), turns, seconds),
        "object_10mib": _side_by_side(_objects(key, PACKAGE_BYTES), turns, seconds),
        "package_10mib": _side_by_side(_package(key), turns, seconds),
    }


def _side_by_side(works: dict[str, Work], turns: int, seconds: float) -> dict[str, Any]:
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns):
        for name in sorted(works, reverse=bool(turn % 2)):
            taken[name].append(_seconds_each(works[name], seconds))
    return {
        name: {"seconds": median(values), "per_second": 1 / median(values), "raw": values}
        for name, values in taken.items()
    }


def _seconds_each(work: Work, seconds: float) -> float:
    work()
    done, began = 0, time.process_time()
    while (spent := time.process_time() - began) < seconds:
        for _ in range(max(1, done // 10)):
            work()
            done += 1
    return spent / done


def _entries(key: bytes) -> dict[str, Work]:
    """One entry each, also where a batch is sealed: `seal_all` is what the log calls."""
    segment, origin = os.urandom(8), "bench.example/log"
    prefix, text = os.urandom(PREFIX_BYTES), os.urandom(ENTRY_BYTES)
    about = prefix + segment + origin.encode()
    bare, opener = AESGCM(key), EntryOpener(key, segment, origin)
    # A segment key seals 2^20 entries and no more: sealers enough for the run.
    sealers = [EntrySealer(key, segment, origin)]
    sealed = sealers[0].seal(prefix, text)

    def sealer(count: int) -> EntrySealer:
        if sealers[-1].left < count:
            sealers.append(EntrySealer(key, segment, origin))
        return sealers[-1]

    return {
        "bare": lambda: bare.encrypt(os.urandom(12), text, about),
        "seal": lambda: sealer(1).seal(prefix, text),
        "seal_batch": lambda: sealer(BATCH).seal_all([(prefix, text)] * BATCH),
        "open": lambda: opener.open(prefix, sealed),
    }


def _objects(key: bytes, size: int) -> dict[str, Work]:
    text = os.urandom(size)
    sealer, bare, nonce = ObjectSealer(key), AESGCM(key), os.urandom(12)
    sealed, plain = sealer.seal(CONTEXT, text), bare.encrypt(nonce, text, None)
    client = aws_encryption_sdk.EncryptionSDKClient(
        commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT
    )
    master = RawMasterKey(
        key_id=b"branch",
        provider_id="sealward",
        wrapping_key=WrappingKey(
            wrapping_algorithm=WrappingAlgorithm.AES_256_GCM_IV12_TAG16_NO_PADDING,
            wrapping_key=key,
            wrapping_key_type=EncryptionKeyType.SYMMETRIC,
        ),
    )
    pairs = dict(CONTEXT.pairs(OBJECT_SCHEMA))
    if sealer.open(CONTEXT, sealed) != client.decrypt(source=sealed, key_provider=master)[0]:
        raise SystemExit("the Encryption SDK opens something else")

    return {
        "bare_encrypt": lambda: bare.encrypt(nonce, text, None),
        "bare_decrypt": lambda: bare.decrypt(nonce, plain, None),
        "seal": lambda: sealer.seal(CONTEXT, text),
        "open": lambda: sealer.open(CONTEXT, sealed),
        "sdk_seal": lambda: client.encrypt(
            source=io.BytesIO(text),
            key_provider=master,
            encryption_context=pairs,
            algorithm=Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY,
            frame_length=FRAME_BYTES,
        ),
        "sdk_open": lambda: client.decrypt(source=sealed, key_provider=master),
    }


def _package(key: bytes) -> dict[str, Work]:
    """A package with a model of 10 MiB, from sealed bytes to its files, as `load` opens it."""
    files = {name: b"{}" for name, _ in package.MEMBERS}
    files["model.onnx"] = os.urandom(PACKAGE_BYTES)
    archive = package.pack(files)
    sealer, bare, nonce = ObjectSealer(key), AESGCM(key), os.urandom(12)
    sealed, plain = sealer.seal(CONTEXT, archive), bare.encrypt(nonce, archive, None)
    return {
        "bare_decrypt": lambda: bare.decrypt(nonce, plain, None),
        "open": lambda: sealer.open(CONTEXT, sealed),
        "open_and_unpack": lambda: package.unpack(sealer.open(CONTEXT, sealed)),
    }


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), float(sys.argv[2]))))
