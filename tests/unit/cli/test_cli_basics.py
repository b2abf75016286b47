"""Exit codes, errors, times, passwords: what scripts rely on without a running suite."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sealward.cli.errors import CliError
from sealward.cli.output import check_writable, fail
from sealward.cli.passwords import read_password
from sealward.cli.times import parse_time, show_nanos

NOW = dt.datetime(2026, 5, 1, 12, 0, tzinfo=dt.UTC)


def sealward(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sealward.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def test_help_names_every_verb() -> None:
    done = sealward("--help")
    assert done.returncode == 0
    for verb in (
        "up", "down", "status", "doctor", "user", "login", "logout", "session", "infer", "model",
        "audit", "keys", "certs", "healthcheck", "config", "demo",
    ):  # fmt: skip
        assert f"\n  {verb} " in done.stdout


@pytest.mark.parametrize("arguments", [["nonsense"], ["infer"], ["healthcheck", "nobody"]])
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    assert sealward(*arguments).returncode == 2


@pytest.mark.parametrize("pattern", ["keys.destroy*", "*", "*.read", "keys.*.*", "key*.*"])
def test_a_pattern_that_would_find_nothing_is_wrong_usage(pattern: str) -> None:
    done = sealward("audit", "query", "--type", pattern)
    assert (done.returncode, done.stdout) == (2, "")
    assert "try: as keys.*" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"], ["user", "list"], ["session", "list"], ["audit", "query"], ["keys", "status"],
        ["healthcheck", "gateway"], ["model", "list"], ["certs", "rotate"],
        ["certs", "show"],
    ],
)  # fmt: skip
def test_without_a_suite_it_is_3_with_advice(arguments: list[str], tmp_path: Path) -> None:
    done = sealward(*arguments, "--dir", str(tmp_path / "none"))
    assert done.returncode == 3
    assert done.stderr.startswith("error: ")
    assert "try: " in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_in_json(tmp_path: Path) -> None:
    done = sealward("status", "--dir", str(tmp_path / "none"), "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["exit"] == 3


def test_down_without_a_suite_is_fine(tmp_path: Path) -> None:
    done = sealward("down", "--dir", str(tmp_path / "none"), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"stopped": False}


def test_verify_of_nothing_is_a_usage_error(tmp_path: Path) -> None:
    done = sealward("audit", "verify", "--log", str(tmp_path), "--vkey", str(tmp_path / "no"))
    assert done.returncode == 2


def test_times() -> None:
    second = 1_000_000_000
    noon = int(NOW.timestamp()) * second
    assert parse_time("2h", NOW) == noon - 7200 * second
    assert parse_time("2026-05-01T12:00:00Z", NOW) == noon
    assert parse_time("2026-05-01T12:00:00.25+00:00", NOW) == noon + second // 4
    assert show_nanos(noon + 1_500_000) == "2026-05-01T12:00:00.001Z"
    with pytest.raises(CliError, match="not a time"):
        parse_time("soon", NOW)


def test_a_password_file_holds_one_line(tmp_path: Path) -> None:
    file = tmp_path / "p"
    file.write_bytes(b" with spaces \r\n")
    assert read_password(file, "") == " with spaces "
    for content in (b"", b"\n", b"a\nb\n", b"\xff"):
        file.write_bytes(content)
        with pytest.raises(CliError):
            read_password(file, "")


def test_a_password_is_not_asked_without_a_terminal() -> None:
    done = sealward("login", "--user", "ada")
    assert done.returncode == 2
    assert "--password-file" in done.stderr


def test_a_time_outside_what_a_record_can_have_is_the_nearest() -> None:
    assert parse_time("1960-01-01T00:00:00Z", NOW) == 1
    assert parse_time("1970-01-01T00:00:00Z", NOW) == 1
    assert parse_time("9999-12-30T00:00:00Z", NOW) == (1 << 63) - 1
    with pytest.raises(CliError, match="not a time"):
        parse_time("999999w", NOW)


def test_an_open_password_file_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p"
    file.write_text("a password of words\n")
    file.chmod(0o600)
    assert read_password(file, "") == "a password of words"
    assert not capsys.readouterr().err
    file.chmod(0o644)
    assert read_password(file, "") == "a password of words"
    captured = capsys.readouterr()
    assert not captured.out
    assert f"{file} is open to other accounts" in captured.err


def test_a_missing_password_file_is_called_missing(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="cannot be read: no such file") as caught:
        read_password(tmp_path / "none", "")
    assert caught.value.code == 2


def test_a_refusal_says_its_field_reason_and_record(capsys: pytest.CaptureFixture[str]) -> None:
    error = CliError(
        "the shape is wrong", field="measurements", reason="INPUT_SHAPE", event_id="e", log_index=0
    )
    assert fail(error, as_json=False) == 1
    assert capsys.readouterr().err == (
        "error: the shape is wrong\n  field: measurements\n  reason: INPUT_SHAPE\n"
        "  event: e, entry 0 of the log\n"
    )


def test_a_file_to_write_is_looked_at_first(tmp_path: Path) -> None:
    check_writable(tmp_path / "new")
    for wrong in (tmp_path, tmp_path / "no" / "new"):
        with pytest.raises(CliError) as caught:
            check_writable(wrong)
        assert caught.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["up", "--detach"], 2), (["status"], 3), (["down"], 0), (["certs", "show"], 3),
        (["audit", "query"], 3),
    ],
)  # fmt: skip
def test_a_file_in_place_of_the_folder(arguments: list[str], code: int, tmp_path: Path) -> None:
    file = tmp_path / "suite"
    file.write_bytes(b"")
    done = sealward(*arguments, "--dir", str(file))
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    done = sealward("up", "--detach", "--dir", str(tmp_path / "file" / "suite"))
    assert done.returncode == 2
    assert "cannot be made" in done.stderr


def test_the_system_s_own_error_is_a_line(tmp_path: Path) -> None:
    folder = tmp_path / "suite"
    (folder / "run" / "supervisor.lock").mkdir(parents=True)
    done = sealward("down", "--dir", str(folder), "--json")
    assert done.returncode == 1
    assert "Is a directory" in json.loads(done.stdout)["error"]["message"]
    assert "Traceback" not in done.stderr


def test_a_negative_timeout_is_wrong_usage(tmp_path: Path) -> None:
    done = sealward("infer", "m", "--user", "u", "--input", "-", "--timeout", "-1")
    assert done.returncode == 2
