"""AU-03: a changed record is found, with the public key alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row
from sealward.tlog.checkpoint import Checkpoint
from sealward.tlog.errors import TlogError
from sealward.tlog.logdir import LogReport, verify_directory, verify_log
from sealward.tlog.note import Ed25519Signer, Verifier, parse_note, parse_vkeys, sign_note

LARGEST = 1_000_000
Reader = Callable[[str], bytes]


def run(deployment: Deployment, notes: Notes) -> None:
    """Verify the log as it is, then as it would be if somebody had changed it."""
    if deployment.root is None:
        notes.cannot("the log's folder is not on this machine: sealward audit verify beside it")
    folder = deployment.root / "audit" / "log"
    try:
        vkeys = parse_vkeys((deployment.root / "audit" / "log.vkey").read_text(encoding="utf-8"))
        size = int((folder / "checkpoint").read_bytes().split(b"\n")[1])
    except (OSError, ValueError, IndexError, TlogError):
        notes.fault("the log, or its verifier key, cannot be read")
        return
    if size > LARGEST:
        notes.cannot(f"the log has {size} entries: verify it apart, sealward audit verify")
    # It grows meanwhile: what is verified first is what is held against the changed ones.
    kept = _Kept(folder)
    try:
        report = verify_log(kept, vkeys)
    except TlogError as error:
        notes.fault(f"the log does not verify: {error}")
        return
    notes.held(f"{report.size} entries of {report.origin} verify with the public key alone")
    _whole_folder(notes, folder, vkeys, report)
    _tampered(notes, kept, vkeys, report)


class _Kept:
    """Reads a file once: a log that grows is the same for everybody who looks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files: dict[str, bytes] = {}

    def __call__(self, path: str) -> bytes:
        if path not in self.files:
            self.files[path] = (self._folder / path).read_bytes()
        return self.files[path]


def _whole_folder(notes: Notes, folder: Path, vkeys: list[Verifier], report: LogReport) -> None:
    known = Checkpoint.parse(parse_note(report.note).text)
    try:
        verify_directory(folder, vkeys, known=[known])
    except TlogError as error:
        notes.fault(f"the log's folder does not verify: {error}")
        return
    notes.held("every file of the folder belongs to the log and continues what was verified")


def _tampered(notes: Notes, kept: _Kept, vkeys: list[Verifier], report: LogReport) -> None:
    files = dict(kept.files)
    entries = max((p for p in files if p.startswith("tile/entries/")), key=lambda p: len(files[p]))
    tile = next(p for p in files if p.startswith("tile/0/"))
    lines = files["checkpoint"].split(b"\n")
    other, _ = Ed25519Signer.generate(report.origin)
    forged = sign_note(parse_note(files["checkpoint"]).text, [other])
    shorter = b"\n".join([lines[0], str(report.size - 1).encode(), *lines[2:]])
    changed = {
        "a flipped bit of an entry": {entries: _flipped(files[entries])},
        "a flipped bit of a tile": {tile: _flipped(files[tile])},
        "a record cut off the end": {entries: files[entries][:-40]},
        "a shorter tree": {"checkpoint": shorter},
        "a checkpoint of another key": {"checkpoint": forged},
    }
    for what, difference in changed.items():
        found = {**files, **difference}
        try:
            verify_log(lambda path, found=found: found[path], vkeys)  # type: ignore[misc]
        except (TlogError, KeyError):
            notes.held(f"found: {what}")
        else:
            notes.fault(f"not found: {what}")


def _flipped(data: bytes) -> bytes:
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


ROW = Row(
    id="AU-03",
    title="A changed, cut or exchanged record is found with the public key alone",
    current="45 CFR 164.312(c)(1), (c)(2)",
    nprm="proposed 45 CFR 164.312 (integrity)",
    proves="the whole log verifies; a flipped bit, a cut tail, a shorter tree and a forged "
    "checkpoint are each found",
    not_proven="that an earlier state was not shown to others: witnesses and clients' checkpoints "
    "do that",
    duty="keep the verifier key and checkpoints apart from the deployment; have somebody else "
    "verify",
    run=run,
    writes=False,
)
