"""`python -m services.keys.recovery`: what is done to a keystore while the service does not run.

Started by `sealward keys restore|drill|unlock-with`, with the environment of the keys service.
Prints one JSON object; exit status 0, 1 where the backup is refused, 3 where the folder is in use
or the unlock secret is not to be had.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.hardening import harden
from sealward.kit.recorder import Recorder
from sealward.kit.settings import load
from sealward.kit.spool import Spool
from sealward.seal.rootkey import UnlockSecret
from services.keys import restore as restoring
from services.keys.keystore import Unlock
from services.keys.restore import Opened, RestoreError
from services.keys.settings import KeysSettings
from services.keys.unlock import unlock_from_file, unlock_of

_REFUSED, _UNAVAILABLE = 1, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Do one thing and say how it went."""
    parser = argparse.ArgumentParser(prog="sealward-keys-recovery")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("restore", "drill"):
        verb = verbs.add_parser(name)
        verb.add_argument("--from", dest="file", type=Path, required=True)
        verb.add_argument("--recovery-identity", type=Path)
        verb.add_argument("--force", action="store_true")
        verb.add_argument("--halves", type=Path, help="copy of the other halves of the keys")
    change = verbs.add_parser("unlock-with")
    change.add_argument("--old", type=Path, help="unlock file; none = the token of the settings")
    change.add_argument("--new", type=Path, help="unlock file; none = the token of the settings")
    arguments = parser.parse_args(argv)
    try:
        harden()
        settings = load(KeysSettings, "keys")
        if settings.provider != "embedded":
            raise RestoreError("the keys are in Vault: see docs/runbooks/keys-backup.md")
        do = {"restore": _restore, "drill": _drill, "unlock-with": _unlock_with}[arguments.verb]
        answer, code = do(arguments, settings)
    except RestoreError as error:
        answer, code = {"error": str(error)}, _REFUSED
    except StartupError as error:
        answer, code = {"error": str(error)}, _UNAVAILABLE
    except SealwardError as error:
        answer, code = {"error": error.message}, _UNAVAILABLE
    print(json.dumps(answer))  # noqa: T201 - it is the answer
    return code


def _restore(arguments: argparse.Namespace, settings: KeysSettings) -> tuple[dict[str, Any], int]:
    unlock = _unlock(settings)
    opened = restoring.open_backup(arguments.file, unlock, _recovery(arguments))
    started = time.time_ns()
    copy = arguments.halves or restoring.halves_beside(arguments.file, opened.content.deployment)
    if arguments.halves is not None:
        # Named, so it has to be there and to open.
        restoring.read_other_halves(opened, copy)
    done = restoring.restore(
        opened, settings.data_dir, unlock, force=arguments.force, now=time.time(), copies=[copy]
    )
    target = f"{done.deployment}@{done.generation}"
    _record(settings, "keys.restore", started, target, len(done.lost))
    return {
        "deployment": done.deployment,
        "generation": done.generation,
        "made_at": done.made_at,
        "kept_aside": done.aside,
        "will_not_open": list(done.lost),
        "revocations": done.revocations,
        "new_witness": done.new_witness,
        "destroyed": list(done.destroyed),
    }, 0


def _unlock_with(
    arguments: argparse.Namespace, settings: KeysSettings
) -> tuple[dict[str, Any], int]:
    def named(path: Path | None) -> Unlock:
        if path is not None:
            return unlock_from_file(path)
        hsm = settings.hsm()
        if hsm is None:
            raise StartupError("no PKCS#11 token: SEALWARD_KEYS_PKCS11_MODULE is not set")
        return hsm

    old, new = named(arguments.old), named(arguments.new)
    started = time.time_ns()
    content = restoring.change_unlock(settings.data_dir, old, new)
    _record(settings, "keys.unlock-change", started, f"{content.deployment}@{new.file_name}")
    return {"deployment": content.deployment, "unlocked_by": new.file_name}, 0


def _record(
    settings: KeysSettings, event: str, started: int, target: str, count: int | None = None
) -> None:
    """Record what was done; it reaches the log with the next start of the service."""
    spool = Spool(settings.data_dir / "spool.sqlite")
    try:
        Recorder(spool, "keys").record(
            event,
            "ok",
            start_unix_nano=started,
            target=target,
            count=count,
            actor_id="local",
            actor_kind="admin",
        )
    finally:
        spool.close()


def _drill(arguments: argparse.Namespace, settings: KeysSettings) -> tuple[dict[str, Any], int]:
    manifest, sha256 = None, ""
    try:
        found, sha256 = restoring.read_backup(arguments.file)
        manifest = found.manifest
        opened, seconds = restoring.drill(
            arguments.file, _unlock(settings), _recovery(arguments), arguments.halves
        )
    except RestoreError as error:
        failed: dict[str, Any] = {"passed": False, "error": str(error), "sha256": sha256}
        if manifest is not None:
            failed |= {"generation": manifest.generation, "made_at": manifest.made_at}
        return failed, _REFUSED
    return {"passed": True, "seconds": round(seconds, 3), **_told(opened)}, 0


def _told(opened: Opened) -> dict[str, Any]:
    manifest = opened.archive.manifest
    return {
        "deployment": manifest.deployment,
        "generation": manifest.generation,
        "made_at": manifest.made_at,
        "sha256": opened.sha256,
        "keys": sum(map(len, opened.content.keks.values())),
        "recipients": len(manifest.recipients),
    }


def _unlock(settings: KeysSettings) -> Callable[[], Unlock]:
    source = unlock_of(settings)
    kept: list[Unlock] = []

    def once() -> Unlock:
        if not kept:
            kept.append(source(False))
        return kept[0]

    return once


def _recovery(arguments: argparse.Namespace) -> UnlockSecret | None:
    path: Path | None = arguments.recovery_identity
    return None if path is None else unlock_from_file(path)


if __name__ == "__main__":
    sys.exit(main())
