"""Restores a backup of the embedded keystore into a data folder, and tries one out.

Everything is opened and compared before anything is written. What is there is kept aside, never
changed. The service must not run meanwhile: the keystore is locked.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from sealward.kit.enroll import private_folder
from sealward.kit.errors import SealwardError, StartupError
from sealward.seal.durable import sync_folder
from sealward.seal.errors import SealBrokenError, UnlockError
from sealward.seal.objects import ObjectSealer, open_object
from sealward.seal.rootkey import UnlockSecret, new_identity
from sealward.seal.secret import Secret
from services.keys.archive import (
    CANARY,
    LARGEST_BYTES,
    MANIFEST_SEALED,
    RECOVERY,
    REVOCATIONS,
    Archive,
    ArchiveError,
    unpack,
)
from services.keys.backup import MANIFEST_SCHEMA, canary_context, manifest_context
from services.keys.destructions import FILE as DESTRUCTIONS
from services.keys.destructions import read_destructions
from services.keys.files import FileProblemError, read_checked, write_durable
from services.keys.halves import FILE as HALVES_FILE
from services.keys.halves import Halves, open_halves, seal_halves, write_halves
from services.keys.keystore import (
    BUSY,
    FOLDER,
    SEALED_FILE,
    Keystore,
    Unlock,
    lacking,
    lock_keystore,
    open_folder,
    read_generation,
    write_generation,
)
from services.keys.keystoreformat import Content, format_head, open_content, parse_head
from services.keys.providers.embedded import EmbeddedBranchKeys
from services.keys.register import Register
from services.keys.revocations import open_list
from services.keys.witness.opening import begin_anew

_NEW = ".keystore.restored"
REGISTER = "register.sqlite"


class RestoreError(Exception):
    """A backup is not restored. The text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A backup whose root key was opened and whose every part was verified."""

    archive: Archive
    sha256: str
    root: Secret
    content: Content


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did. `aside`: where what was there is now; `lost`: see `restore`.

    `destroyed`: keys of the backup that were destroyed since, and are not brought back.
    """

    deployment: str
    generation: int
    made_at: int
    aside: str
    lost: tuple[str, ...]
    revocations: str
    new_witness: bool
    destroyed: tuple[str, ...] = ()


def read_backup(path: Path) -> tuple[Archive, str]:
    """Read a backup file and check its sums; return it and its SHA-256; raise RestoreError."""
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise RestoreError(f"{path} is too large for a backup")
        data = path.read_bytes()
    except OSError as error:
        raise RestoreError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return unpack(data), hashlib.sha256(data).hexdigest()
    except ArchiveError as error:
        raise RestoreError(f"{path}: {error}") from None


def open_backup(path: Path, unlock: Callable[[], Unlock], recovery: UnlockSecret | None) -> Opened:
    """Open a backup with a recovery identity, else the unlock secret, and verify all of it.

    Raises RestoreError.
    """
    found, sha256 = read_backup(path)
    secret: Unlock = recovery if recovery is not None else unlock()
    name = RECOVERY if recovery is not None else secret.file_name
    if name not in found.members:
        raise RestoreError(
            f"{path} is sealed to no recovery recipient: it opens with the unlock secret alone"
            if recovery is not None
            else f"{path} has no {name}: it is of a keystore that was unlocked in another way"
        )
    try:
        root, deployment = parse_head(secret.open(found.members[name]))
        sealer = ObjectSealer(root, key_name="root", schema=MANIFEST_SCHEMA)
        told = sealer.open(manifest_context(deployment), found.members[MANIFEST_SEALED])
        content = open_content(root, deployment, found.members[SEALED_FILE])
    except UnlockError as error:
        if error.said.startswith(BUSY):
            raise StartupError("this machine is too busy for a passphrase now: try again") from None
        which = "recovery identity" if recovery is not None else "unlock secret"
        raise RestoreError(f"{path} does not open: this is not its {which}") from None
    except (SealBrokenError, ValueError, KeyError, TypeError):
        raise RestoreError(f"{path} is not whole: its parts do not belong together") from None
    manifest = found.manifest
    if told != hashlib.sha256(found.manifest_json).digest() or (
        manifest.deployment, manifest.generation, manifest.trust_domain
    ) != (content.deployment, content.generation, content.trust_domain):  # fmt: skip
        raise RestoreError(f"{path} is not whole: it says of itself what it is not")
    return Opened(found, sha256, Secret(root), content)


def open_canary(opened: Opened, keystore: Keystore) -> None:
    """Open the canary of a backup with a keystore, and fail to under another context.

    Raises RestoreError.
    """
    try:
        canary = json.loads(opened.archive.members[CANARY])
        context = canary_context(canary["name"])
        wrapped, sealed = (base64.b64decode(canary[part]) for part in ("wrapped", "sealed"))
        branches = EmbeddedBranchKeys(keystore)
        key = branches.open(context, wrapped)
        plain = open_object(key, context, sealed)
    except (SealwardError, SealBrokenError, ValueError, KeyError, TypeError):
        raise RestoreError("the canary of the backup does not open") from None
    if hashlib.sha256(plain).hexdigest() != canary["sha256"]:
        raise RestoreError("the canary of the backup is another one")
    other = context.about("another")
    with suppress(SealwardError):
        branches.open(other, wrapped)
        raise RestoreError("a key opens under another context than it was made for")
    with suppress(SealBrokenError):
        open_object(key, other, sealed)
        raise RestoreError("an object opens under another context than it was sealed for")


def read_other_halves(opened: Opened, path: Path) -> Halves:
    """Read a copy of the other halves of a backup's keys; raise RestoreError."""
    try:
        data = read_checked(path, frozenset({os.geteuid()}))
        return open_halves(opened.root, opened.content.deployment, data)
    except FileNotFoundError:
        raise RestoreError(f"{path} is not there") from None
    except FileProblemError as error:
        raise RestoreError(f"{path} {error}") from None
    except (SealBrokenError, ValueError, KeyError, TypeError):
        raise RestoreError(
            f"{path} does not open with this backup: it is damaged, or another deployment's"
        ) from None


def halves_beside(path: Path, deployment: str) -> Path:
    """Where the copy of the other halves lies that came with a backup."""
    return path.parent / f"sealward-{deployment}.halves"


def restore(
    opened: Opened,
    data_dir: Path,
    unlock: Callable[[], Unlock],
    *,
    force: bool,
    now: float,
    copies: Sequence[Path] = (),
) -> Restored:
    """Put a verified backup into a data folder; what is there is kept aside.

    The root key is sealed to the unlock secret anew. A folder that has had a later generation, or
    is another deployment's, is left alone unless `force`; `lost` names the keys that it has and the
    backup lacks. The other halves of the keys are the newest of what the folder has and of `copies`
    that are there: a key that was destroyed since the backup is not brought back by it. Raises
    RestoreError, StartupError when the keystore is in use.
    """
    private_folder(data_dir)
    if (data_dir / "provider.json").exists():
        raise RestoreError(f"{data_dir} is of a deployment whose keys are in Vault")
    lock = lock_keystore(data_dir)
    try:
        secret = unlock()
        lost = _compare(opened, data_dir, secret, force=force)
        halves, without = _halves(opened, data_dir, copies, force=force)
        lost = tuple(dict.fromkeys([*lost, *without]))
        # Read back from the disk, and tried, before it takes anything's place.
        _write_new(opened, data_dir / _NEW, secret)
        root, content = open_folder(data_dir / _NEW, secret)
        keystore = Keystore(data_dir / _NEW, root, content, lock, secret.file_name, halves)
        open_canary(opened, keystore)
        stamp = dt.datetime.fromtimestamp(now, dt.UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = _swap(data_dir, opened.content.generation, stamp)
        write_generation(data_dir, opened.content.generation)
        if halves.generation:
            _keep_others(opened, data_dir / HALVES_FILE, stamp)
            write_halves(data_dir / HALVES_FILE, seal_halves(opened.root, halves))
        revocations = _restore_revocations(opened, data_dir, keystore, stamp)
        _keep_destructions(data_dir, keystore, stamp)
        new_witness = begin_anew(data_dir)
    except OSError as error:
        raise RestoreError(f"{data_dir} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(data_dir / _NEW, ignore_errors=True)
        os.close(lock)
    return Restored(
        opened.content.deployment,
        opened.content.generation,
        opened.archive.manifest.made_at,
        aside,
        lost,
        revocations,
        new_witness,
        tuple(
            f"{name}@{kek.version}"
            for name, keks in sorted(opened.content.keks.items())
            for kek in keks
            if kek.version <= halves.destroyed.get(name, 0)
        ),
    )


def change_unlock(data_dir: Path, old: Unlock, new: Unlock) -> Content:
    """Seal the root key of a keystore in another way; return the content.

    The old file is removed once the new one was read back and opens the keystore. Killed before
    that, both are there: the service does not start until it is done again. Raises StartupError.
    """
    folder = data_dir / FOLDER
    lock = lock_keystore(data_dir)
    try:
        root, content = open_folder(folder, old)
        head = format_head(Secret(root), content.deployment)
        sealed = new.seal(head)
        # Before anything is written: where both are of one kind, it takes the old one's place.
        if new.open(sealed) != head:
            raise StartupError("what was sealed in the new way does not open; nothing was changed")
        write_durable(folder / new.file_name, sealed)
        open_folder(folder, new)
        if new.file_name != old.file_name:
            (folder / old.file_name).unlink()
            sync_folder(folder)
    except (OSError, UnlockError):
        raise StartupError(f"{folder} cannot be changed: see its disk, and the token") from None
    finally:
        os.close(lock)
    return content


def drill(
    path: Path,
    unlock: Callable[[], Unlock],
    recovery: UnlockSecret | None,
    copy: Path | None = None,
) -> tuple[Opened, float]:
    """Restore a backup into an empty temporary folder and open its canary.

    `copy`: of the other halves; None = the one beside the backup.

    Returns the backup and how long it took, seconds; raises RestoreError. Nothing is left behind.
    """
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="sealward-drill-"))
    try:
        opened = open_backup(path, unlock, recovery)
        # As on a machine that has nothing: the root key is sealed to a secret of this moment.
        throwaway = UnlockSecret(new_identity())
        halves = halves_beside(path, opened.content.deployment)
        restore(
            opened,
            folder / "keys",
            lambda: throwaway,
            force=False,
            now=time.time(),
            copies=[halves if copy is None else copy],
        )
        root, content = open_folder(folder / "keys" / FOLDER, throwaway)
        if root != opened.root.reveal() or content != opened.content:
            raise RestoreError("what was restored is not what was backed up")
    except StartupError as error:
        raise RestoreError(str(error)) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return opened, time.monotonic() - started


def _compare(opened: Opened, data_dir: Path, secret: Unlock, *, force: bool) -> tuple[str, ...]:
    """Name what the folder has and the backup lacks; raise RestoreError unless that is wanted."""
    backup = opened.content
    newest = read_generation(data_dir)
    there: Content | None = None
    with suppress(StartupError):
        there = open_folder(data_dir / FOLDER, secret)[1]
    if there is not None:
        newest = max(newest, there.generation)
    lost = _lost(backup, there, newest)
    if there is not None and there.deployment != backup.deployment:
        problem = f"it holds the keystore of another deployment ({there.deployment})"
    elif backup.generation < newest:
        problem = f"it has had generation {newest}, the backup is of {backup.generation}"
    else:
        return lost
    if not force:
        raise RestoreError(
            f"{data_dir} is left as it is: {problem}. Restored all the same (--force), what is "
            f"sealed under these would not open: {', '.join(lost) or 'nothing that is known'}"
        )
    return lost


def _halves(
    opened: Opened, data_dir: Path, copies: Sequence[Path], *, force: bool
) -> tuple[Halves, list[str]]:
    """Return the newest other halves, and the keys that have none; raise RestoreError."""
    content = opened.content
    found = [Halves(content.deployment)]
    for path in (data_dir / HALVES_FILE, *copies):
        if not path.exists():
            continue
        try:
            found.append(read_other_halves(opened, path))
        except RestoreError:
            # What is in the folder may be damaged, or another deployment's: that is why somebody
            # restores. A copy that was named is meant.
            if path != data_dir / HALVES_FILE:
                raise
    newest = max(found, key=lambda halves: halves.generation)
    missing = lacking(content, newest)
    if not missing:
        return newest, []
    if not force:
        where = ", ".join(map(str, copies)) or "no copy was named"
        raise RestoreError(
            f"{data_dir} is left as it is: the other halves of {', '.join(missing[:5])} are not"
            f" here ({where}). --halves FILE names a copy; restored all the same (--force), what is"
            " sealed under these would not open"
        )
    for name in {name.rpartition("@")[0] for name in missing}:
        newest = newest.without(name, content.keks[name][-1].version + 1)
    return replace(newest, generation=max(newest.generation, content.halves)), missing


def _keep_others(opened: Opened, path: Path, stamp: str) -> None:
    """Put other halves aside that are not this backup's: they are all that another keystore has."""
    if path.exists():
        try:
            read_other_halves(opened, path)
        except RestoreError:
            _rename_aside(path, stamp)


def _lost(backup: Content, there: Content | None, newest: int) -> tuple[str, ...]:
    if there is None:
        if newest <= backup.generation:
            return ()
        return (f"keys that were made in generations {backup.generation + 1} to {newest}",)
    held = {(name, kek.version): kek.key for name, keks in backup.keks.items() for kek in keks}
    return tuple(
        f"{name}@{kek.version}"
        for name, keks in sorted(there.keks.items())
        for kek in keks
        if held.get((name, kek.version)) != kek.key
    )


def _write_new(opened: Opened, folder: Path, secret: Unlock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    head = format_head(opened.root, opened.content.deployment)
    write_durable(folder / secret.file_name, secret.seal(head))
    write_durable(folder / SEALED_FILE, opened.archive.members[SEALED_FILE])


def _swap(data_dir: Path, generation: int, stamp: str) -> str:
    """Put the new folder in the place of the old one; return where the old one is now."""
    target = data_dir / FOLDER
    # Killed between the two renames, the service finds that a keystore is gone, and makes none.
    write_generation(data_dir, max(generation, read_generation(data_dir)))
    aside = ""
    if target.exists():
        aside = str(_rename_aside(target, stamp))
    (data_dir / _NEW).rename(target)
    sync_folder(data_dir)
    return aside


def _rename_aside(path: Path, stamp: str) -> Path:
    to = path.with_name(f"{path.name}.aside-{stamp}")
    while to.exists():
        to = to.with_name(f"{to.name}-")
    path.rename(to)
    return to


def _keep_destructions(data_dir: Path, keystore: Keystore, stamp: str) -> None:
    """Put a list of destructions aside that does not open: the halves know what is destroyed."""
    path = data_dir / DESTRUCTIONS
    try:
        read_destructions(path, EmbeddedBranchKeys(keystore))
    except StartupError:
        _rename_aside(path, stamp)


def _restore_revocations(opened: Opened, data_dir: Path, keystore: Keystore, stamp: str) -> str:
    """Keep the later of two lists of revoked certificates; return what became of it."""
    path = data_dir / REGISTER
    try:
        register = Register(path)
    except StartupError:
        for name in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
            if name.exists():
                _rename_aside(name, stamp)
        register = Register(path)
    try:
        branches = EmbeddedBranchKeys(keystore)
        there = _version(branches, register.sealed_revocations())
        backed_up = _revocations_of(opened)
        if _version(branches, backed_up) > there and backed_up is not None:
            register.put_revocations(*backed_up)
            return "restored"
        if there < 0:
            register.forget_revocations()
            return "lost"
        return "kept"
    finally:
        register.close()


def _version(branches: EmbeddedBranchKeys, sealed: tuple[bytes, bytes] | None) -> int:
    """Version of a list; 0 where there is none, -1 where it does not open."""
    if sealed is None:
        return 0
    try:
        return open_list(branches, *sealed)[0]
    except SealBrokenError:
        return -1


def _revocations_of(opened: Opened) -> tuple[bytes, bytes] | None:
    member = opened.archive.members.get(REVOCATIONS)
    if member is None:
        return None
    try:
        found = json.loads(member)
        return base64.b64decode(found["wrapped"]), base64.b64decode(found["sealed"])
    except (ValueError, KeyError, TypeError):
        raise RestoreError("the backup is not whole: its list of revoked certificates") from None
