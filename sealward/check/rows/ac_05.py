"""AC-05: nothing is readable at rest."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from sealward.check import questions
from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row

_PART = 8 << 20
_MOST_BYTES = 8 << 30


def run(deployment: Deployment, notes: Notes) -> None:
    """Send canaries wherever a caller can put them; search every file for them."""
    root = deployment.root
    if root is None:
        notes.cannot("the files are not on this machine")
    person = deployment.person("clinician")
    canary = f"{deployment.settings.canary}AC05"
    message = questions.prediction(questions.models(deployment)[0])
    message.id = canary
    message.parameters["note"].string_param = canary
    reply = questions.infer(deployment, person, message, purpose="TREAT", patient=canary)
    if not reply.ok:
        notes.cannot(f"the call that carries the canary is not answered: {reply.said}")
    event = bytes.fromhex(reply.event_id.replace("-", ""))
    if not questions.until(lambda: _is_anywhere(root, event)):
        notes.cannot("the record of the call is in no file: what was searched is not its place")
    found = _search(notes, root, [canary, person.password, person.token])
    for path, what in found:
        notes.fault(f"{what} is readable in {path}")
    if not found:
        notes.held("patient, request id, parameters, password and token: readable in no file")
    _modes(notes, root)
    _sealed(notes, root)
    notes.limit("swap, backups that were taken elsewhere, and disks that were thrown away")


def forms(text: str) -> list[bytes]:
    """Return a text in the forms that it could be written in, lower case."""
    data = text.encode()
    found = [data, text.encode("utf-16-le"), text.encode("utf-16-be"), data.hex().encode()]
    for shift in range(3):
        # The middle of its base64, whatever stands before and behind it.
        encoded = base64.b64encode(b"\0" * shift + data)
        found.append(encoded[4 if shift else 0 : -4])
    return [form.lower() for form in found]


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                yield path


def parts(path: Path, overlap: int) -> Iterator[bytes]:
    """Yield a file in parts that overlap; nothing of one that has gone."""
    try:
        with path.open("rb") as file:
            before = b""
            while part := file.read(_PART):
                yield before + part
                before = part[-overlap:]
    except FileNotFoundError:
        # Files of a running deployment come and go.
        return


def _is_anywhere(root: Path, data: bytes) -> bool:
    folder = root / "audit"
    return any(data in part for path in _files(folder) for part in parts(path, len(data)))


def _search(notes: Notes, root: Path, texts: list[str]) -> list[tuple[str, str]]:
    wanted = {
        what: forms(text)
        for what, text in zip(("a canary", "a password", "a token"), texts, strict=True)
    }
    overlap = max(len(form) for each in wanted.values() for form in each)
    found, count, size = [], 0, 0
    for path in _files(root):
        count += 1
        name = str(path.relative_to(root)).lower().encode()
        for part in parts(path, overlap):
            size += len(part)
            data = name + b"\n" + part.lower()
            for what, each in wanted.items():
                if any(form in data for form in each):
                    found.append((str(path.relative_to(root)), what))
        if size > _MOST_BYTES:
            notes.cannot(f"more than {_MOST_BYTES >> 30} GiB: search the folder apart")
    notes.held(f"{count} files searched, {size} bytes")
    return list(dict.fromkeys(found))


def _modes(notes: Notes, root: Path) -> None:
    everything = [root, *(Path(f, name) for f, ds, fs in os.walk(root) for name in (*ds, *fs))]
    opened = [path for path in everything if _is_open(path)]
    notes.check(
        not opened,
        "every file and folder is closed to other accounts",
        f"{len(opened)} files or folders are open to other accounts",
    )


def _is_open(path: Path) -> bool:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISLNK(mode) and bool(mode & 0o077)


def _sealed(notes: Notes, root: Path) -> None:
    models = list((root / "inference").rglob("*.sealed"))
    plain = [path for path in _files(root / "inference") if path.suffix == ".onnx"]
    notes.check(
        bool(models) and not plain,
        f"{len(models)} model packages are sealed, none lies there in clear",
        "a model lies there in clear",
    )


ROW = Row(
    id="AC-05",
    title="What is at rest is encrypted",
    current="45 CFR 164.312(a)(2)(iv)",
    nprm="proposed 45 CFR 164.312 (encryption and decryption)",
    proves="made-up patient data, a password and a token are found in no file, plain, in "
    "hexadecimal or base64; files are closed to other accounts; model packages are sealed",
    not_proven="that the ciphertext is strong: the formats are published and opened by others' "
    "tools",
    duty="encrypt disks and backups as well; keep the unlock secret apart from the data",
    run=run,
)
