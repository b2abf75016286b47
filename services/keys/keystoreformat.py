"""What the keystore's files hold, as bytes: pure, apart from the seal's own randomness.

`root.age` or `root.jwe` seals the head (root key and deployment); `keystore.sealed` is the content,
an AWS Encryption SDK message under the root key.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

from sealward.seal.context import EncryptionContext
from sealward.seal.objects import KEY_BYTES, ObjectSealer
from sealward.seal.secret import Secret

SCHEMA = "sealward/keystore/v1"


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority: private key (PKCS#8 DER) and certificate (DER)."""

    key: Secret
    certificate: bytes


@dataclass(frozen=True, slots=True)
class Kek:
    """A version of a key-encryption key. `made`: seconds since the epoch, 0 = not known.

    `split`: `key` is one half of it, as the sealed file has it.
    """

    version: int
    made: int
    key: Secret
    split: bool = False


@dataclass(frozen=True, slots=True)
class Content:
    """What the keystore holds. `keks`: versions, lowest first, by `tenant/purpose`.

    All `authorities` are trusted, oldest first; the one at the place `issuing` signs. `generation`
    grows by one with each change; 0 = written before generations were counted. `halves`: generation
    of the other halves when this was written, 0 = there were none.
    """

    deployment: str
    trust_domain: str
    authorities: tuple[Authority, ...]
    keks: dict[str, tuple[Kek, ...]] = field(default_factory=dict)
    issuing: int = 0
    generation: int = 1
    halves: int = 0


def open_content(root: bytes, deployment: str, sealed: bytes) -> Content:
    """Open a sealed file; raise SealBrokenError, or ValueError, KeyError or TypeError."""
    return _parse(json.loads(root_sealer(root).open(context_of(deployment), sealed)))


def format_head(root: Secret, deployment: str) -> bytes:
    """Return what is sealed to the unlock secret: the root key, and whose it is."""
    head = {"deployment": deployment, "root": _text(root.reveal()), "version": 1}
    return json.dumps(head).encode()


def parse_head(data: bytes) -> tuple[bytes, str]:
    """Return root key and deployment; raise ValueError, KeyError or TypeError."""
    head = json.loads(data)
    return _bytes(head["root"]), str(head["deployment"])


def context_of(deployment: str) -> EncryptionContext:
    """What the content is sealed for."""
    return EncryptionContext("default", "keystore", deployment)


def root_sealer(root: bytes) -> ObjectSealer:
    """What seals contents under a root key."""
    return ObjectSealer(root, key_name="root", schema=SCHEMA)


def seal_content(sealer: ObjectSealer, content: Content) -> bytes:
    """Return the sealed file."""
    document = {
        # Older programs would take a half for a key: they do not read version 3.
        "version": 3,
        "deployment": content.deployment,
        "trust_domain": content.trust_domain,
        "authorities": [
            {"key": _text(a.key.reveal()), "certificate": _text(a.certificate)}
            for a in content.authorities
        ],
        "issuing": content.issuing,
        "generation": content.generation,
        "halves": content.halves,
        "keks": {
            name: [
                {
                    "version": k.version,
                    "made": k.made,
                    "half" if k.split else "key": _text(k.key.reveal()),
                }
                for k in keks
            ]
            for name, keks in content.keks.items()
        },
    }
    return sealer.seal(context_of(content.deployment), json.dumps(document).encode())


def _parse(document: dict[str, Any]) -> Content:
    if document["version"] not in (1, 2, 3):
        raise ValueError("another version")
    read_keks = _read_first_keks if document["version"] == 1 else _read_keks
    content = Content(
        deployment=str(document["deployment"]),
        trust_domain=str(document["trust_domain"]),
        authorities=tuple(
            Authority(Secret(_bytes(a["key"])), _bytes(a["certificate"]))
            for a in document["authorities"]
        ),
        keks={name: read_keks(keks) for name, keks in document["keks"].items()},
        issuing=int(document.get("issuing", len(document["authorities"]) - 1)),
        generation=int(document.get("generation", 0)),
        halves=int(document.get("halves", 0)),
    )
    if not 0 <= content.issuing < len(content.authorities) or not all(
        map(_is_whole, content.keks.values())
    ):
        raise ValueError("incomplete")
    return content


def _read_keks(keks: list[dict[str, Any]]) -> tuple[Kek, ...]:
    return tuple(
        Kek(
            int(k["version"]),
            int(k["made"]),
            Secret(_bytes(k["half"] if "half" in k else k["key"])),
            "half" in k,
        )
        for k in keks
    )


def _read_first_keks(keks: list[str]) -> tuple[Kek, ...]:
    """Read what was written before versions had numbers: counted from 1, never retired."""
    return tuple(Kek(number, 0, Secret(_bytes(key))) for number, key in enumerate(keks, 1))


def _is_whole(keks: tuple[Kek, ...]) -> bool:
    versions = [kek.version for kek in keks]
    return (
        bool(keks)
        and versions == list(range(versions[0], versions[0] + len(keks)))
        and versions[0] > 0
        and all(len(kek.key) == KEY_BYTES for kek in keks)
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    # binascii.Error is a ValueError.
    return base64.b64decode(text, validate=True)
