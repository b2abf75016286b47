"""`sealward audit logs|hold|reindex` without a suite, and the keys that client folders hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import pytest
from typer.testing import CliRunner

from sealward.api.audit.v1 import logs_pb2 as pb
from sealward.cli.audit import app, reindex
from sealward.cli.audit import logs as logs_verbs
from sealward.cli.certificates import spread_vkeys
from sealward.cli.errors import CliError, Exit
from sealward.cli.suite import Suite, write_private


def test_clients_get_the_keys_as_they_are_now(tmp_path: Path) -> None:
    suite = Suite.at(tmp_path)
    folder = suite.clients / "alice"
    folder.mkdir(parents=True)
    suite.vkey_file.parent.mkdir()
    spread_vkeys(suite)
    write_private(folder / "key.pem", b"k")
    suite.vkey_file.write_text("this year\nnext year\n")
    spread_vkeys(suite)
    assert (folder / "log.vkey").read_text() == "this year\nnext year\n"
    written = (folder / "log.vkey").stat().st_ino
    spread_vkeys(suite)
    assert (folder / "log.vkey").stat().st_ino == written
    # A file that is just being made says nothing.
    suite.vkey_file.write_text("")
    spread_vkeys(suite)
    assert (folder / "log.vkey").read_text() == "this year\nnext year\n"


def test_a_purge_wants_the_name_twice(tmp_path: Path) -> None:
    for given in ([], ["--confirm", "yes"]):
        with pytest.raises(CliError) as caught:
            CliRunner().invoke(
                app,
                ["logs", "purge", "a/b/default/2016", "--dir", str(tmp_path), *given],
                catch_exceptions=False,
            )
        assert caught.value.code is Exit.USAGE


@pytest.mark.parametrize(
    "verb", [["query"], ["export", "--output", "all.csv"], ["hold", "place"]], ids="-".join
)
@pytest.mark.parametrize("option", ["--patient", "--user"])
def test_an_empty_option_is_not_everybody(verb: list[str], option: str, tmp_path: Path) -> None:
    with pytest.raises(CliError, match=f"{option} is empty") as caught:
        CliRunner().invoke(app, [*verb, option, "", "--dir", str(tmp_path)], catch_exceptions=False)
    assert caught.value.code is Exit.USAGE


class Stub:
    """Answers a reindex as a service whose index was (not) the log's."""

    def __init__(self, before: bytes) -> None:
        self.before = before

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def Reindex(self, _request: object, timeout: float) -> Any:
        assert timeout > 60
        yield pb.ReindexResponse(origin="o", size=2)
        yield pb.ReindexResponse(origin="o", done=2, size=2, before=self.before, digest=b"d" * 32)


@pytest.mark.parametrize(("before", "same"), [(b"d" * 32, True), (b"e" * 32, False)])
def test_another_index_is_a_failed_check(
    monkeypatch: pytest.MonkeyPatch, before: bytes, same: bool
) -> None:
    monkeypatch.setattr(reindex, "log_admin", lambda _directory, _what: Stub(before))
    if same:
        done = CliRunner().invoke(app, ["reindex", "--json"], catch_exceptions=False)
        assert (b"d" * 32).hex() in done.stdout
        return
    with pytest.raises(CliError) as caught:
        CliRunner().invoke(app, ["reindex"], catch_exceptions=False)
    assert caught.value.code is Exit.FAILED


def test_logs_without_a_verb_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lister(Stub):
        def ListLogs(self, request: pb.ListLogsRequest, timeout: float) -> pb.ListLogsResponse:
            assert timeout
            log = pb.LogInfo(origin=f"o/{request.tenant}", state=pb.LOG_STATE_ARCHIVED, size=7)
            return pb.ListLogsResponse(logs=[log])

    monkeypatch.setattr(logs_verbs, "log_admin", lambda _directory, _what: Lister(b""))
    for words in (["logs", "--tenant", "north"], ["logs", "list", "--tenant", "north"]):
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert "o/north  archived  7" in done.stdout
