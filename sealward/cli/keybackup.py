"""`sealward keys backup|restore|drill|unlock-with`: the embedded keystore kept and brought back."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from sealward.cli.errors import CliError, Exit, unavailable, usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import check_folder, emit
from sealward.cli.processes import PKCS11_MODULE, services_roots
from sealward.cli.suite import Suite, write_private
from sealward.seal.durable import sync_folder

Recovery = Annotated[
    Path | None,
    typer.Option(
        "--recovery-identity", metavar="FILE",
        help="Age identity of a recovery recipient; else the unlock secret is used.",
    ),
]  # fmt: skip
Halves = Annotated[
    Path | None,
    typer.Option(
        "--halves", metavar="FILE",
        help="The newest copy of the other halves; else the one beside the backup.",
    ),
]  # fmt: skip
_MORE = "see docs/runbooks/keys-backup.md"


def backup(
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="A new file, mode 0600.")],
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Back the keystore up into one file. Everything secret in it is sealed.

    The unlock secret is not in it: keep that elsewhere, or set recovery recipients. The other
    halves of the keys go into a second file beside it, which replaces the one from before: keep the
    newest alone, so that what is destroyed is in no copy.
    """
    suite = Suite.at(directory)
    if to.exists():
        raise usage(f"{to} exists: a backup is never overwritten", "name a new file")
    found = _create(suite, to)
    alone = not found["recipients"]
    kept = "the unlock secret opens it, and is not in it: keep it elsewhere"
    emit(
        {"file": str(to), **found, "unlock_secret_included": False},
        as_json=as_json,
        text=f"{to}: generation {found['generation']} of deployment {found['deployment']}\n  "
        + (kept if alone else f"{found['recipients']} recovery recipients, or the unlock secret, "
           "open it; neither is in it")
        + f"\n  {found['halves']}: a restore needs it too; keep the newest alone, everywhere",
    )  # fmt: skip


def restore(
    file: Annotated[Path, typer.Option("--from", metavar="FILE", help="The backup.")],
    recovery_identity: Recovery = None,
    halves: Halves = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also where the folder has had a later keystore than this."),
    ] = False,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Restore the keystore of a suite that does not run, into an empty folder or a damaged one.

    What is there is kept aside. With a recovery identity the keystore is sealed to the folder's own
    unlock secret, which is made where there is none.
    """
    suite = Suite.at(directory)
    if suite.supervisor_pid() is not None:
        raise unavailable(f"the suite in {suite.root} is running", "sealward down")
    _check_file(file)
    suite.create(os.environ)
    _have_unlock_secret(suite, made=recovery_identity is not None)
    more = [*(["--force"] if force else []), *_named(halves)]
    done = _tool(suite, "restore", file, recovery_identity, *more)
    made = _time(done["made_at"])
    lines = [f"restored: generation {done['generation']} of {made} into {suite.root / 'keys'}"]
    if done["kept_aside"]:
        lines.append(f"  what was there is kept: {done['kept_aside']}")
    if done["will_not_open"]:
        lines.append(f"  what is sealed under these will not open: {_some(done['will_not_open'])}")
    if done["destroyed"]:
        lines.append(f"  destroyed since the backup, and not back: {_some(done['destroyed'])}")
    if done["revocations"] == "lost":
        lines.append("  the list of revoked certificates is lost: revoke again what has to be")
    if done["new_witness"]:
        lines.append("  the witness begins anew: whoever verifies needs its new witness.vkey")
    lines.append(f"  start it: sealward up --dir {suite.root}")
    emit({**done, "made_at": made, "dir": str(suite.root)}, as_json=as_json, text="\n".join(lines))


def drill(
    file: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="The backup; else a fresh one is made."),
    ] = None,
    recovery_identity: Recovery = None,
    halves: Halves = None,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Restore a backup into an empty temporary folder and open its canary; exit 1 if that fails.

    Nothing is left behind. The drill is recorded where the suite runs.
    """
    suite = Suite.at(directory)
    folder = Path(tempfile.mkdtemp(prefix="sealward-drill-"))
    try:
        if file is None:
            file = folder / "backup"
            _create(suite, file, confirm=False)
        _check_file(file)
        done = _run(suite, "drill", file, recovery_identity, *_named(halves))[0]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if "passed" not in done:
        raise unavailable(done["error"], _MORE)
    done["recorded"] = _record(suite, done)
    if "made_at" in done:
        done["made_at"] = _time(done["made_at"])
    if not done["passed"]:
        error = done.pop("error")
        raise CliError(f"the drill failed: {error}", advice=_MORE, **done)
    where = "recorded" if done["recorded"] else "not recorded: the suite does not run"
    emit(
        done,
        as_json=as_json,
        text=f"the backup of {done['made_at']} opens: generation {done['generation']}, "
        f"{done['keys']} keys, canary, {done['seconds']:.2f} s ({where})",
    )


def unlock_with(
    pkcs11: Annotated[
        bool,
        typer.Option("--pkcs11", help="The token of SEALWARD_KEYS_PKCS11_MODULE, _TOKEN, _KEY."),
    ] = False,
    unlock_file: Annotated[
        Path | None,
        typer.Option("--unlock-file", metavar="FILE", help="An age identity or a passphrase."),
    ] = None,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Seal the root key of a suite that does not run in another way; the old way opens it no more.

    Backups from before open in the old way still.
    """
    suite = Suite.at(directory)
    if pkcs11 is (unlock_file is not None):
        raise usage("name one way", "--pkcs11, or --unlock-file FILE")
    if suite.supervisor_pid() is not None:
        raise unavailable(f"the suite in {suite.root} is running", "sealward down")
    keystore = suite.root / "keys" / "keystore"
    by_secret, by_token = ((keystore / name).exists() for name in ("root.age", "root.jwe"))
    argv = [] if unlock_file is None else ["--new", str(unlock_file.absolute())]
    # Both are there where a change was cut off: it is finished.
    if by_secret and (pkcs11 or not by_token):
        argv += ["--old", os.environ.get("SEALWARD_KEYS_UNLOCK_FILE") or str(suite.unlock_file)]
    done = _checked(*_start(suite, "unlock-with", argv, secret=False))
    start = (
        "start it with SEALWARD_KEYS_PKCS11_MODULE, _TOKEN, _KEY and _PIN_FILE"
        if pkcs11
        else f"start it with SEALWARD_KEYS_UNLOCK_FILE={unlock_file}, and no PKCS#11 settings"
    )
    emit(
        done,
        as_json=as_json,
        text=f"{keystore / done['unlocked_by']} unlocks deployment {done['deployment']}\n  {start}"
        "\n  backups from before open in the old way still",
    )


def state(channel: Any, seconds: float) -> dict[str, Any]:
    """Ask the keys service for the last backup and drill; empty where the keys are in Vault."""
    import grpc

    from sealward.api.keys.v1 import backup_pb2
    from sealward.api.keys.v1.backup_pb2_grpc import BackupServiceStub

    try:
        answer = BackupServiceStub(channel).GetBackupState(
            backup_pb2.GetBackupStateRequest(), timeout=seconds
        )
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return {}
        raise
    now = dt.datetime.now(dt.UTC)
    made = answer.backup_made_at
    return {
        "generation": answer.generation,
        "backup_generation": answer.backup_generation or None,
        "backup_made": _time(made) or None,
        "backup_age_seconds": max(0, int(now.timestamp()) - made) if made else None,
        "recovery_recipients": answer.recipients,
        "drill_made": _time(answer.drill_made_at) or None,
        "drill_passed": answer.drill_passed if answer.drill_made_at else None,
        "halves_copy_opens_destroyed": answer.halves_copy_opens_destroyed,
    }


def state_text(found: dict[str, Any]) -> str:
    """Say in a line how the backups are; empty where there is nothing to say."""
    if not found:
        return ""
    if found["backup_made"] is None:
        return "backup: none; make one: sealward keys backup --to FILE"
    behind = found["generation"] - found["backup_generation"]
    text = f"backup: {found['backup_made']}, " + (
        f"lacks {behind} changes: make another" if behind else "has everything"
    )
    if found["halves_copy_opens_destroyed"]:
        text += "; its .halves is from before a destruction: replace it, and destroy other copies"
    if found["drill_made"] is None:
        return f"{text}; never tried: sealward keys drill"
    return f"{text}; drill {found['drill_made']} {'passed' if found['drill_passed'] else 'FAILED'}"


def _create(suite: Suite, to: Path, *, confirm: bool = True) -> dict[str, Any]:
    """Have an archive made and write it to a new file."""
    from sealward.api.keys.v1 import backup_pb2
    from sealward.api.keys.v1.backup_pb2_grpc import BackupServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    check_folder(to)
    with calling("backing up"), Admin(suite).channel("keys") as channel:
        stub = BackupServiceStub(channel)
        answer = stub.CreateBackup(backup_pb2.CreateBackupRequest(), timeout=CALL_SECONDS)
        _write_new(to, answer.archive)
        halves = to.parent / f"sealward-{answer.deployment}.halves"
        _replace(halves, answer.halves)
        if confirm:
            stub.ConfirmBackup(
                backup_pb2.ConfirmBackupRequest(sha256=answer.sha256), timeout=CALL_SECONDS
            )
    return {
        "deployment": answer.deployment,
        "generation": answer.generation,
        "recipients": answer.recipients,
        "sha256": answer.sha256,
        "halves": str(halves),
    }


def _named(halves: Path | None) -> list[str]:
    return [] if halves is None else ["--halves", str(halves.absolute())]


def _replace(path: Path, data: bytes) -> None:
    """Write a file in the place of one that was there, which is overwritten."""
    before = path.stat().st_size if path.exists() else 0
    if before:
        with path.open("r+b") as old:
            fresh = path.with_name(f".{path.name}.new")
            fresh.unlink(missing_ok=True)
            _write_new(fresh, data)
            fresh.replace(path)
            old.write(bytes(before))
            old.flush()
            os.fsync(old.fileno())
        return
    _write_new(path, data)


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _record(suite: Suite, done: dict[str, Any]) -> bool:
    """Have a drill recorded; False where the suite does not run or does not answer."""
    import grpc

    from sealward.api.keys.v1 import backup_pb2
    from sealward.api.keys.v1.backup_pb2_grpc import BackupServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin

    if not done.get("sha256") or suite.supervisor_pid() is None:
        return False
    request = backup_pb2.RecordDrillRequest(
        sha256=done["sha256"],
        generation=done.get("generation", 0),
        passed=done["passed"],
        duration_ms=int(done.get("seconds", 0) * 1000),
    )
    with suppress(grpc.RpcError, CliError), Admin(suite).channel("keys") as channel:
        BackupServiceStub(channel).RecordDrill(request, timeout=CALL_SECONDS)
        return True
    return False


def _have_unlock_secret(suite: Suite, *, made: bool) -> None:
    elsewhere = os.environ.get("SEALWARD_KEYS_UNLOCK_FILE") or os.environ.get(PKCS11_MODULE)
    if elsewhere or suite.unlock_file.exists():
        return
    if not made:
        raise usage(
            f"{suite.unlock_file} is missing, and the backup does not hold it",
            "put the unlock secret there, or give --recovery-identity FILE",
        )
    from pyrage import x25519

    write_private(suite.unlock_file, f"{x25519.Identity.generate()}\n".encode())


def _tool(suite: Suite, verb: str, file: Path, recovery: Path | None, *more: str) -> dict[str, Any]:
    return _checked(*_run(suite, verb, file, recovery, *more))


def _checked(answer: dict[str, Any], code: int) -> dict[str, Any]:
    if code == Exit.OK:
        return answer
    problem = str(answer["error"])
    if code == Exit.UNAVAILABLE:
        raise unavailable(problem, _MORE)
    raise CliError(problem, advice=_MORE)


def _run(
    suite: Suite, verb: str, file: Path, recovery: Path | None, *more: str
) -> tuple[dict[str, Any], int]:
    argv = ["--from", str(file.absolute()), *more]
    if recovery is not None:
        argv += ["--recovery-identity", str(recovery.absolute())]
    return _start(suite, verb, argv, secret=not os.environ.get(PKCS11_MODULE))


def _start(suite: Suite, verb: str, argv: list[str], *, secret: bool) -> tuple[dict[str, Any], int]:
    """Run services.keys.recovery with the settings that the keys service would have.

    `secret`: the keystore is unlocked by a secret; its file is named.
    """
    environ = dict(os.environ)
    file = environ.pop("SEALWARD_KEYS_UNLOCK_FILE", "") or str(suite.unlock_file)
    given = {
        "SEALWARD_KEYS_DATA_DIR": str(suite.root / "keys"),
        "SEALWARD_KEYS_ENROLL_DIR": str(suite.enroll_dir),
    }
    if secret:
        given["SEALWARD_KEYS_UNLOCK_FILE"] = file
    roots = [*services_roots(), *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "services.keys.recovery", verb, *argv],
        env={**environ, **given, "PYTHONPATH": os.pathsep.join(roots)},
        stdout=subprocess.PIPE,
        check=False,
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise CliError(f"{verb} ended with status {done.returncode}", advice=_MORE) from None
    return answer, done.returncode


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise usage(f"{file} is not a file", "--from FILE, as `sealward keys backup` made it")


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _time(seconds: int) -> str:
    if not seconds:
        return ""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")
