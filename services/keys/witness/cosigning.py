"""The keys that cosign: one Ed25519, one ML-DSA-44, under one name.

`WitnessKeys` is the interface: the keys may be in this process, as here, or stay in a provider that
signs. `SealedWitnessKeys` has both as seeds in one file, sealed under a branch key of purpose
`witness` of whatever provider there is; the public halves stand in it in clear.
"""

from __future__ import annotations

import base64
import json
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from sealward.seal.errors import SealBrokenError
from sealward.seal.objects import ObjectSealer
from sealward.tlog.cosignature import (
    COSIGNATURE_TYPES,
    SEED_SIZE,
    CosignatureVerifier,
    Cosigner,
    ed25519_cosigner,
    ml_dsa_44_cosigner,
    ml_dsa_supported,
)
from sealward.tlog.errors import NoteError
from sealward.tlog.note import parse_vkey
from services.keys.files import read_private, write_durable
from services.keys.providers.base import BranchKeys

TENANT, PURPOSE = "default", "witness"
CONTEXT = EncryptionContext(TENANT, PURPOSE, "cosigning")
FILE = "key.json"

Clock = Callable[[], int]
"""Gives seconds since the epoch."""


class WitnessKeys(Protocol):
    """The keys of a witness."""

    @property
    def verifiers(self) -> Sequence[CosignatureVerifier]:
        """The public halves, Ed25519 first; known without the provider."""

    def cosigners(self) -> Sequence[Cosigner]:
        """What cosigns; raise SealwardError when the provider cannot answer now."""

    def rewrap(self) -> bool:
        """Move what is kept on to the newest version of its key-encryption key, where it has one.

        Return whether there was anything to do; raise SealwardError.
        """


@dataclass(frozen=True, slots=True)
class _Stored:
    name: str
    vkeys: tuple[str, ...]
    wrapped: bytes = field(repr=False)
    sealed: bytes = field(repr=False)

    def encode(self) -> bytes:
        values = {
            "version": 1,
            "name": self.name,
            "vkeys": list(self.vkeys),
            "wrapped": base64.b64encode(self.wrapped).decode(),
            "sealed": base64.b64encode(self.sealed).decode(),
        }
        return json.dumps(values, indent=2).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> _Stored:
        """Raise ValueError, KeyError or TypeError."""
        values: dict[str, Any] = json.loads(data)
        if values["version"] != 1:
            raise ValueError("another version")
        wrapped, sealed = (
            base64.b64decode(values[name], validate=True) for name in ("wrapped", "sealed")
        )
        return cls(str(values["name"]), tuple(values["vkeys"]), wrapped, sealed)


class SealedWitnessKeys:
    """WitnessKeys in a file. Thread-safe."""

    def __init__(self, folder: Path, branches: BranchKeys, clock: Clock) -> None:
        """Read the file; raise StartupError when it is missing or damaged."""
        self._path = folder / FILE
        self._branches = branches
        self._clock = clock
        self._lock = threading.Lock()
        self._opened: tuple[Cosigner, ...] = ()
        try:
            self._stored = _Stored.decode(read_private(self._path))
            self._verifiers: tuple[CosignatureVerifier, ...] = tuple(
                parse_vkey(line, COSIGNATURE_TYPES)  # type: ignore[misc]
                for line in self._stored.vkeys
            )
        except FileNotFoundError:
            raise StartupError(f"the witness's key {self._path} is missing: restore it") from None
        except NoteError as error:
            raise StartupError(f"{self._path}: {error}") from None
        except (ValueError, KeyError, TypeError):
            raise StartupError(f"{self._path} is damaged: restore it") from None

    @classmethod
    def create(cls, folder: Path, branches: BranchKeys, name: str) -> None:
        """Make the keys and write the file; raise SealwardError or OSError."""
        seeds = secrets.token_bytes(2 * SEED_SIZE)
        branch, wrapped = branches.create(CONTEXT)
        sealed = ObjectSealer(branch).seal(CONTEXT, seeds)
        vkeys = tuple(cosigner.vkey for cosigner in _cosigners(name, seeds, lambda: 1))
        write_durable(folder / FILE, _Stored(name, vkeys, wrapped, sealed).encode())

    @property
    def name(self) -> str:
        """The witness's name."""
        return self._stored.name

    @property
    def verifiers(self) -> Sequence[CosignatureVerifier]:
        """See WitnessKeys."""
        return self._verifiers

    def cosigners(self) -> Sequence[Cosigner]:
        """See WitnessKeys. Raises SEAL_BROKEN when the file holds other keys than it says."""
        with self._lock:
            if not self._opened:
                self._opened = self._open()
            return self._opened

    def rewrap(self) -> bool:
        """Move the file on to the newest version of its key-encryption key; return whether it was.

        Raise SealwardError.
        """
        with self._lock:
            (wrapped,) = self._branches.rewrap([(CONTEXT, self._stored.wrapped)])
            if wrapped is None:
                raise _broken()
            if wrapped == self._stored.wrapped:
                return False
            moved = _Stored(self._stored.name, self._stored.vkeys, wrapped, self._stored.sealed)
            try:
                write_durable(self._path, moved.encode())
            except OSError:
                raise SealwardError(
                    Reason.KEYSTORE_UNAVAILABLE, "the witness's key cannot be written"
                ) from None
            self._stored = moved
            return True

    def _open(self) -> tuple[Cosigner, ...]:
        branch = self._branches.open(CONTEXT, self._stored.wrapped)
        try:
            seeds = ObjectSealer(branch).open(CONTEXT, self._stored.sealed)
            found = _cosigners(self._stored.name, seeds, self._clock)
        except (SealBrokenError, NoteError):
            raise _broken() from None
        if tuple(c.vkey for c in found)[: len(self._stored.vkeys)] != self._stored.vkeys:
            raise _broken()
        return found[: len(self._stored.vkeys)]


def _cosigners(name: str, seeds: bytes, clock: Clock) -> tuple[Cosigner, ...]:
    """Return the cosigners that this installation can be; raise NoteError."""
    one, two = seeds[:SEED_SIZE], seeds[SEED_SIZE:]
    found = (ed25519_cosigner(name, one, clock),)
    return (*found, ml_dsa_44_cosigner(name, two, clock)) if ml_dsa_supported() else found


def _broken() -> SealwardError:
    return SealwardError(Reason.SEAL_BROKEN, "the witness's key does not open")
