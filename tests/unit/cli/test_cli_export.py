"""`sealward audit export`: wrong use is said before anything is asked, and files appear whole."""

from __future__ import annotations

import base64
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sealward.cli.audit.export import Format, _call, _new_file, _write_folder, export
from sealward.cli.errors import CliError, Exit
from tests.support.evidence_events import PREDICTION, REQUEST, RESPONSE, SALT, make_events

(EVENT,) = make_events([PREDICTION])


@pytest.mark.parametrize(
    "options",
    [
        {"output": Path("/nowhere/x")},
        {"output": Path(), "form": Format.BUNDLE},
        {"output": Path()},
        {"output": Path("x"), "request": Path("/dev/null")},
        {"output": Path("x"), "receipt": Path("/dev/null"), "request": Path("/dev/null")},
        {"output": Path("x"), "form": Format.BUNDLE, "receipt": Path("/dev/null")},
        {
            "output": Path("x"), "form": Format.BUNDLE, "receipt": Path("/dev/null"),
            "request": Path("/dev/null"),
        },
        {"output": Path("x"), "event": ["nonsense"]},
        {"output": Path("x"), "since": "yesterday-ish"},
    ],
)  # fmt: skip
def test_wrong_use_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CliError) as caught:
        export(directory=tmp_path / "no-suite", **options)
    assert caught.value.code == Exit.USAGE
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("encoded", [False, True])
def test_a_call_is_read_from_its_receipt_and_messages(tmp_path: Path, encoded: bool) -> None:
    receipt = EVENT.proof(SALT)
    files = {"receipt": receipt, "request": REQUEST, "response": RESPONSE}
    if encoded:
        files["receipt"] = base64.b64encode(receipt)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    call = _call(Format.BUNDLE, *(tmp_path / name for name in files))
    assert call is not None
    assert (call.event_id, call.salt) == (EVENT.event_id, SALT)
    unanswered = _call(Format.BUNDLE, tmp_path / "receipt", tmp_path / "request", None)
    assert unanswered is not None
    assert unanswered.response == bytes(32)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with suppress(ZeroDivisionError), _new_file(output) as write:
        write(b"half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with _new_file(output) as write:
        write(b"all")
        assert not output.exists()
    assert output.read_bytes() == b"all"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(FileExistsError):
        _write_folder(output, [("a/b", b"1"), ("a/b", b"2")])
    assert not list(tmp_path.iterdir())
    _write_folder(output, [("a/b", b"1"), ("c", b"2")])
    assert (output / "a" / "b").read_bytes() == b"1"
