"""The embedded keystore: two files in one folder.

    keystore/root.age         the root key, sealed to the unlock secret (age); or
    keystore/root.jwe         the root key, sealed to a key in a PKCS#11 token (JWE)
    keystore/keystore.sealed  all the rest, sealed under the root key (AWS Encryption SDK message)

All key-encryption keys and the certificate authority stand in the one sealed file, so a missing or
exchanged key is a broken seal, never a key that is quietly made anew. Both files appear together by
one rename; later writes replace `keystore.sealed` whole. What is damaged stops the start: nothing
is repaired or made anew over it.

Of each key-encryption key only one half is in the sealed file; the other one is in `halves.sealed`
beside the folder (`halves.py`), which no backup has. Keys from before that are whole, until they
are rotated.

Each write of the sealed file is a generation. The newest one that this folder has had stands beside
it, in `keystore.generation`: an older file put back by hand, which lacks keys that are in use (or
has some that were destroyed), and a folder that is gone, stop the start too.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from sealward.seal.damage import find_age_damage, find_damage
from sealward.seal.durable import sync_folder
from sealward.seal.errors import SealBrokenError, UnlockError
from sealward.seal.objects import KEY_BYTES
from sealward.seal.secret import Secret
from services.keys.files import LARGEST_BYTES, read_private, write_durable
from services.keys.halves import (
    FILE,
    Halves,
    combine,
    open_halves,
    seal_halves,
    write_halves,
)
from services.keys.keystoreformat import (
    Authority,
    Content,
    Kek,
    context_of,
    format_head,
    open_content,
    parse_head,
    root_sealer,
    seal_content,
)

ROOT_FILE = "root.age"
HSM_ROOT_FILE = "root.jwe"
SEALED_FILE = "keystore.sealed"
# What the age library says when a passphrase would take far longer than when it was set.
BUSY = "Excessive work"
# A tenant has a handful of purposes; beyond this somebody is making up names.
MAX_KEKS = 4096
FOLDER = "keystore"
GENERATION_FILE = "keystore.generation"
RESTORE = "sealward keys restore --from BACKUP --dir DIR"
"""What to do about a keystore that is lost, as it is told to the operator."""
_UNFINISHED = ".keystore.new"
_UNLOCKED_BY = {
    ROOT_FILE: "is unlocked by a secret (root.age), and the settings name a PKCS#11 token: "
    "sealward keys unlock-with --pkcs11",
    HSM_ROOT_FILE: "is unlocked by a PKCS#11 token (root.jwe): set SEALWARD_KEYS_PKCS11_MODULE, "
    "_TOKEN, _KEY and _PIN_FILE",
}


class Unlock(Protocol):
    """Seals and opens the root key (UnlockSecret, services.keys.hsm.Hsm)."""

    @property
    def file_name(self) -> str:
        """Name of the file that holds the root key sealed in this way."""

    def seal(self, root: bytes) -> bytes:
        """Return the content of that file."""

    def open(self, sealed: bytes) -> bytes:
        """Return the root key; raise UnlockError."""


class Keystore:
    """An open keystore. Thread-safe; one process at a time."""

    def __init__(
        self,
        folder: Path,
        root: bytes,
        content: Content,
        lock: int,
        root_file: str = ROOT_FILE,
        halves: Halves | None = None,
    ) -> None:
        self._folder = folder
        self._files = (root_file, SEALED_FILE)
        self._root = Secret(root)
        self._sealer = root_sealer(root)
        self._content = content
        self._halves = halves or Halves(content.deployment)
        self._whole: dict[str, tuple[Kek, ...]] = {}
        self._flock = lock
        self._lock = threading.Lock()
        self._combine()

    @property
    def halves(self) -> Halves:
        """The other halves, and what was destroyed."""
        return self._halves

    @property
    def content(self) -> Content:
        """What the keystore holds now."""
        return self._content

    def kek_names(self) -> list[tuple[str, str]]:
        """Tenant and purpose of every key-encryption key, sorted."""
        return sorted((tenant, purpose) for tenant, purpose in map(_split, self._content.keks))

    def keks(self, tenant: str, purpose: str) -> tuple[Kek, ...]:
        """Versions of a key-encryption key, whole, lowest first; empty when there is none."""
        return self._whole.get(f"{tenant}/{purpose}", ())

    def ensure_kek(self, tenant: str, purpose: str) -> tuple[Kek, ...]:
        """As `keks`, after making the first one; raise KEYSTORE_UNAVAILABLE.

        The key is on the disk before it is used.
        """
        with self._lock:
            existing = self.keks(tenant, purpose)
            if existing:
                return existing
            if len(self._content.keks) >= MAX_KEKS:
                raise SealwardError(Reason.KEYSTORE_UNAVAILABLE, "the keystore is full")
            self._add(tenant, purpose, (), self._halves.of(f"{tenant}/{purpose}").lowest)
            return self.keks(tenant, purpose)

    def add_kek(self, tenant: str, purpose: str) -> Kek | None:
        """Make the next version of a key; None when there is no such key.

        Raises KEYSTORE_UNAVAILABLE. The version is on the disk before it is used.
        """
        with self._lock:
            existing = self._content.keks.get(f"{tenant}/{purpose}", ())
            if not existing:
                return None
            self._add(tenant, purpose, existing, existing[-1].version + 1)
            return self.keks(tenant, purpose)[-1]

    def drop_keks(self, tenant: str, purpose: str, below: int) -> None:
        """Destroy the versions before `below`, but never the newest; raise KEYSTORE_UNAVAILABLE.

        Their other halves go first: from then on they are in no backup either.
        """
        name = f"{tenant}/{purpose}"
        with self._lock:
            existing = self._content.keks.get(name, ())
            kept = tuple(kek for kek in existing if kek.version >= below) or existing[-1:]
            if kept != existing:
                self._put_halves(self._halves.without(name, kept[0].version))
                self._put_keks(tenant, purpose, kept)

    def note_destroyed(self, tenant: str, purpose: str, through: int) -> None:
        """Keep that a key was destroyed on purpose, with the halves; raise KEYSTORE_UNAVAILABLE.

        The halves of these versions go, so this is the destruction itself.
        """
        name = f"{tenant}/{purpose}"
        with self._lock:
            if self._halves.destroyed.get(name, 0) < through:
                self._put_halves(self._halves.after_destruction(name, through))

    def put_authorities(self, authorities: tuple[Authority, ...], issuing: int) -> None:
        """Replace the authorities; raise KEYSTORE_UNAVAILABLE."""
        with self._lock:
            self._put(replace(self._content, authorities=authorities, issuing=issuing))

    def copy(self) -> tuple[Content, dict[str, bytes], Secret]:
        """Return the content, the two files as they are on the disk, and the root key.

        Raises KEYSTORE_UNAVAILABLE.
        """
        with self._lock:
            try:
                files = {name: (self._folder / name).read_bytes() for name in self._files}
            except OSError:
                raise SealwardError(
                    Reason.KEYSTORE_UNAVAILABLE, "the keystore cannot be read", retry_after=1.0
                ) from None
            return self._content, files, self._root

    def copy_halves(self) -> tuple[int, bytes]:
        """Return the generation of the other halves and their file; raise KEYSTORE_UNAVAILABLE.

        To be called after `copy`: halves may be newer than the keystore, not older.
        """
        with self._lock:
            return self._halves.generation, seal_halves(self._root, self._halves)

    def finish(self) -> bool:
        """Drop the versions that were destroyed, as after a crash or a restore.

        Returns whether there were any; raises KEYSTORE_UNAVAILABLE.
        """
        with self._lock:
            kept = {}
            for name, keks in self._content.keks.items():
                lowest = self._halves.of(name).lowest
                left = tuple(kek for kek in keks if kek.version >= lowest)
                if left:
                    kept[name] = left
            if kept == self._content.keks:
                return False
            self._put(replace(self._content, keks=kept))
            return True

    def _add(self, tenant: str, purpose: str, existing: tuple[Kek, ...], version: int) -> None:
        """Make a version; its other half is on the disk first."""
        name = f"{tenant}/{purpose}"
        self._put_halves(
            self._halves.with_half(name, version, Secret(secrets.token_bytes(KEY_BYTES)))
        )
        self._put_keks(tenant, purpose, (*existing, _new_kek(version)))

    def _put_halves(self, halves: Halves) -> None:
        """Replace the other halves, on the disk first. To be called under the lock."""
        try:
            write_halves(self._folder.parent / FILE, seal_halves(self._root, halves))
        except OSError:
            raise SealwardError(
                Reason.KEYSTORE_UNAVAILABLE, "the keystore cannot be written", retry_after=1.0
            ) from None
        self._halves = halves
        self._combine()

    def _combine(self) -> None:
        """Make the keys whole again; a half whose other half was destroyed is left out."""
        whole = {}
        for name, keks in self._content.keks.items():
            halves = self._halves.of(name).halves
            whole[name] = tuple(
                replace(kek, key=Secret(combine(kek.key.reveal(), halves[kek.version].reveal())))
                if kek.split
                else kek
                for kek in keks
                if not kek.split or kek.version in halves
            )
        self._whole = whole

    def _put_keks(self, tenant: str, purpose: str, keks: tuple[Kek, ...]) -> None:
        self._put(replace(self._content, keks={**self._content.keks, f"{tenant}/{purpose}": keks}))

    def _put(self, content: Content) -> None:
        """Replace the content, on the disk first. To be called under the lock."""
        content = replace(
            content,
            generation=self._content.generation + 1,
            halves=max(content.halves, self._halves.generation),
        )
        sealed = seal_content(self._sealer, content)
        if len(sealed) > LARGEST_BYTES:
            # It would be refused at the next start.
            raise SealwardError(Reason.KEYSTORE_UNAVAILABLE, "the keystore is full")
        try:
            write_durable(self._folder / SEALED_FILE, sealed)
            self._content = content
            self._combine()
            # After the file: killed in between, the file is newer than what is known of it.
            write_generation(self._folder.parent, content.generation)
        except OSError:
            raise SealwardError(
                Reason.KEYSTORE_UNAVAILABLE, "the keystore cannot be written", retry_after=1.0
            ) from None

    def close(self) -> None:
        """Let another process open the keystore."""
        os.close(self._flock)


def open_or_create(
    data_dir: Path,
    unlock: Callable[[bool], Unlock],
    initial: Callable[[str], Content],
) -> tuple[Keystore, bool]:
    """Open the keystore below `data_dir`, or create it on the first start.

    `unlock(creating)` gives the unlock secret, `initial(deployment id)` the first content. Returns
    the keystore and whether it was created; raises StartupError with one clear line.
    """
    folder = data_dir / FOLDER
    lock = lock_keystore(data_dir)
    try:
        _discard_unfinished(data_dir)
        newest = read_generation(data_dir)
        created = not folder.exists()
        if created and newest:
            raise StartupError(f"the keystore {folder} is gone; {RESTORE} brings it back")
        secret = unlock(created)
        if all((folder / name).exists() for name in (ROOT_FILE, HSM_ROOT_FILE)):
            raise StartupError(
                f"{folder} is unlocked in two ways: a change was cut off. Finish it: sealward keys"
                " unlock-with"
            )
        if created:
            _create(folder, secret, initial)
        root, content = open_folder(folder, secret)
        if content.generation < newest:
            raise StartupError(
                f"{folder / SEALED_FILE} is an older one (generation {content.generation}, this "
                f"folder has had {newest}); {RESTORE} --force goes back on purpose"
            )
        try:
            write_generation(data_dir, content.generation)
        except OSError:
            raise StartupError(f"{data_dir / GENERATION_FILE} cannot be written") from None
        halves = read_halves(data_dir, Secret(root), content)
        keystore = Keystore(folder, root, content, lock, secret.file_name, halves)
        try:
            keystore.finish()
        except SealwardError as error:
            raise StartupError(error.message) from None
    except BaseException:
        os.close(lock)
        raise
    return keystore, created


def read_halves(data_dir: Path, root: Secret, content: Content) -> Halves:
    """Read the other halves of a keystore's keys; raise StartupError where they are not its own."""
    path = data_dir / FILE
    try:
        halves = open_halves(root, content.deployment, read_private(path))
    except FileNotFoundError:
        if content.halves:
            raise StartupError(
                f"{path} is gone: the other halves of the keys; {RESTORE} --halves FILE"
            ) from None
        return Halves(content.deployment)
    except (SealBrokenError, ValueError, KeyError, TypeError):
        raise StartupError(
            f"{path} is damaged, or does not belong to this keystore; {RESTORE} --halves FILE"
        ) from None
    if halves.generation < content.halves:
        raise StartupError(
            f"{path} is an older one (generation {halves.generation}, the keystore is of"
            f" {content.halves}): put the newest back"
        )
    missing = lacking(content, halves)
    if missing:
        raise StartupError(f"{path} lacks {', '.join(missing[:5])}; {RESTORE} --force")
    return halves


def lacking(content: Content, halves: Halves) -> list[str]:
    """Name the versions of a keystore whose other half is neither there nor destroyed."""
    return [
        f"{name}@{kek.version}"
        for name, keks in sorted(content.keks.items())
        for kek in keks
        if kek.split
        and kek.version >= halves.of(name).lowest
        and kek.version not in halves.of(name).halves
    ]


def lock_keystore(data_dir: Path) -> int:
    """Keep every other process from the keystore; raise StartupError when one has it."""
    path = data_dir / "keystore.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        raise StartupError(f"{path} cannot be written") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StartupError("the keystore is in use by another process") from None
    return descriptor


def read_generation(data_dir: Path) -> int:
    """Return the newest generation that a folder has had; 0 when there is none."""
    path = data_dir / GENERATION_FILE
    try:
        return int(read_private(path))
    except FileNotFoundError:
        return 0
    except ValueError:
        raise StartupError(f"{path} is not a number: write 0 into it to go on") from None


def write_generation(data_dir: Path, generation: int) -> None:
    """Note the newest generation, durably, unless it is noted; raise OSError."""
    path = data_dir / GENERATION_FILE
    try:
        if int(path.read_bytes()) == generation:
            return
    except (OSError, ValueError):
        pass
    write_durable(path, b"%d\n" % generation)


def _discard_unfinished(data_dir: Path) -> None:
    """Remove what a start or a write that died has left; it was never in use."""
    shutil.rmtree(data_dir / _UNFINISHED, ignore_errors=True)
    for leftover in (data_dir / "keystore").glob(f".{SEALED_FILE}.*"):
        leftover.unlink(missing_ok=True)


def _create(folder: Path, secret: Unlock, initial: Callable[[str], Content]) -> None:
    content = initial(secrets.token_hex(4))
    root = secrets.token_bytes(KEY_BYTES)
    unfinished = folder.with_name(_UNFINISHED)
    try:
        unfinished.mkdir(mode=0o700)
        write_durable(
            unfinished / secret.file_name,
            secret.seal(format_head(Secret(root), content.deployment)),
        )
        sealer = root_sealer(root)
        write_durable(unfinished / SEALED_FILE, seal_content(sealer, content))
        unfinished.rename(folder)
        sync_folder(folder.parent)
    except OSError:
        raise StartupError(f"the keystore {folder} cannot be written") from None


def open_folder(folder: Path, secret: Unlock) -> tuple[bytes, Content]:
    """Open the two files and return the root key and the content; raise StartupError."""
    sealed = {}
    root_file = secret.file_name
    for name in (root_file, SEALED_FILE):
        try:
            sealed[name] = read_private(folder / name)
        except FileNotFoundError:
            other = HSM_ROOT_FILE if name == ROOT_FILE else ROOT_FILE
            if name == root_file and (folder / other).exists():
                raise StartupError(f"{folder} {_UNLOCKED_BY[other]}") from None
            raise StartupError(
                f"the keystore {folder} is damaged: {name} is missing; {RESTORE}"
            ) from None
    root, deployment = _open_root(folder / root_file, secret, sealed[root_file])
    try:
        content = open_content(root, deployment, sealed[SEALED_FILE])
    except SealBrokenError:
        sealer = root_sealer(root)
        damage = find_damage(sealer, context_of(deployment), sealed[SEALED_FILE])
        raise StartupError(
            f"{folder / SEALED_FILE} is damaged, or does not belong to {root_file}: {damage};"
            f" {RESTORE}"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise StartupError(f"{folder / SEALED_FILE} is not a keystore of this version") from None
    return root, content


def _open_root(path: Path, secret: Unlock, sealed: bytes) -> tuple[bytes, str]:
    """Open the root key's file and return root key and deployment; raise StartupError."""
    try:
        root, deployment = parse_head(secret.open(sealed))
        if len(root) != KEY_BYTES:
            raise ValueError("another length")
    except UnlockError as error:
        if error.said.startswith(BUSY):
            raise StartupError(
                f"{path} is not opened: this machine is too busy for a passphrase now (scrypt);"
                " start again"
            ) from None
        if path.name == HSM_ROOT_FILE:
            raise StartupError(
                f"{path} does not open: the key in the token is another one, or the file is"
                f" damaged; if the token is right, {RESTORE}"
            ) from None
        damage = find_age_damage(sealed, error.said)
        if damage is not None:
            raise StartupError(f"{path} is damaged: {damage}; {RESTORE}") from None
        raise StartupError(
            f"{path} does not open: wrong unlock secret, or its header is damaged;"
            f" if the secret is right, {RESTORE}"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise StartupError(f"{path} is not a root key of this version") from None
    return root, deployment


def _new_kek(version: int) -> Kek:
    return Kek(version, int(time.time()), Secret(secrets.token_bytes(KEY_BYTES)), split=True)


def _split(name: str) -> tuple[str, str]:
    tenant, _, purpose = name.partition("/")
    return tenant, purpose
