"""Exit codes, errors, times, passwords: what scripts rely on without a running suite."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sealward.cli.errors import CliError
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"], ["user", "list"], ["session", "list"], ["audit", "query"], ["keys", "status"],
        ["healthcheck", "gateway"], ["model", "list"], ["certs", "rotate"],
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
