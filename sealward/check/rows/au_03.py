"""AU-03: a changed record is found, with the public key alone."""

from __future__ import annotations

from pathlib import Path

from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row
from sealward.tlog.checkpoint import Checkpoint
from sealward.tlog.errors import TlogError
from sealward.tlog.logdir import LogReport, verify_directory, verify_log
from sealward.tlog.note import Ed25519Signer, Verifier, parse_note, parse_vkeys, sign_note
from sealward.tlog.tiles import CHECKPOINT_PATH

LARGEST = 1_000_000


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
    """Reads a log that grows as it was at first: its checkpoint and what is not full yet are kept.

    Full tiles never change, and may be more than the memory holds.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[str, bytes] = {}
        self.seen: set[str] = set()

    def __call__(self, path: str) -> bytes:
        self.seen.add(path)
        if path in self._kept:
            return self._kept[path]
        data = (self._folder / path).read_bytes()
        if path == CHECKPOINT_PATH or ".p/" in path:
            self._kept[path] = data
        return data


def _whole_folder(notes: Notes, folder: Path, vkeys: list[Verifier], report: LogReport) -> None:
    known = Checkpoint.parse(parse_note(report.note).text)
    try:
        verify_directory(folder, vkeys, known=[known])
    except TlogError as error:
        notes.fault(f"the log's folder does not verify: {error}")
        return
    notes.held("every file of the folder belongs to the log and continues what was verified")


def _tampered(notes: Notes, kept: _Kept, vkeys: list[Verifier], report: LogReport) -> None:
    entries = min(path for path in kept.seen if path.startswith("tile/entries/"))
    tile = min(path for path in kept.seen if path.startswith("tile/0/"))
    checkpoint = kept(CHECKPOINT_PATH)
    lines = checkpoint.split(b"\n")
    other, _ = Ed25519Signer.generate(report.origin)
    forged = sign_note(parse_note(checkpoint).text, [other])
    shorter = b"\n".join([lines[0], str(report.size - 1).encode(), *lines[2:]])
    changed = {
        "a flipped bit of an entry": (entries, _flipped(kept(entries))),
        "a flipped bit of a tile": (tile, _flipped(kept(tile))),
        "a record cut off the end": (entries, kept(entries)[:-40]),
        "a shorter tree": (CHECKPOINT_PATH, shorter),
        "a checkpoint of another key": (CHECKPOINT_PATH, forged),
    }
    for what, (place, data) in changed.items():

        def read(path: str, place: str = place, data: bytes = data) -> bytes:
            return data if path == place else kept(path)

        try:
            verify_log(read, vkeys)
        except TlogError:
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
