"""The production store in trouble: everything is killed, its disk fills up, its answers are lost.

What was acknowledged is there once, and outsiders can verify it.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from sealward.tlog.leaf import parse_leaf
from sealward.tlog.logdir import verify_directory
from services.audit.log import Placed
from services.audit.publisher import write_vkey
from services.audit.store import StoreBrokenError
from tests.support import tlog_go
from tests.support.audit_suite import Ring, Suite, open_suite
from tests.support.audit_writer import database, publisher, start_writer
from tests.support.postgres import Server, binaries, folders, needs_mounts, running
from tests.support.postgres_proxy import Lose, proxied
from tests.support.suites import until


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


@pytest.fixture
def schema() -> str:
    return f"t{secrets.token_hex(8)}"


class Promises:
    """What a writer was told is durable: index → event id."""

    def __init__(self) -> None:
        self.made: dict[int, str] = {}

    def read(self, lines: list[str]) -> None:
        for line in lines:
            if not line.endswith("\n"):
                continue
            for word in line.split()[1:]:
                index, event_id = word.split(",")
                assert int(index) not in self.made
                self.made[int(index)] = event_id

    def check(self, folder: Path, url: str, schema: str) -> Path:
        """Compare with the log, publish it and verify what was published."""
        backend = database(folder, url, schema)
        suite = open_suite(folder, Ring(), backend=backend)
        leaves = suite.store.leaves(0, suite.log.head[0])
        ids = [parse_leaf(leaf).event_id.hex() for leaf in leaves]
        assert {index: ids[index] for index in self.made} == self.made
        assert len(set(ids)) == len(ids)
        rows = suite.query(limit=len(ids) + 1)
        assert [row.event_id.hex() for _, row in reversed(rows)] == ids
        publisher(suite, folder).rebuild()
        write_vkey(folder / "log.vkey", suite.signer.vkey)
        report = verify_directory(folder / "log", (suite.signer.verifier,))
        assert report.size == len(ids) >= len(self.made) > 0
        assert report.unknown == ()
        suite.close()
        backend.close()
        return folder / "log"


@contextmanager
def opened(folder: Path, url: str, schema: str, patience: float = 30.0) -> Iterator[Suite]:
    backend = database(folder, url, schema, patience)
    suite = open_suite(folder, Ring(), backend=backend)
    try:
        yield suite
    finally:
        suite.close()
        backend.close()


def append(suite: Suite, count: int = 3) -> list[int]:
    done = suite.log.append([suite.entry() for _ in range(count)])
    placed = [p.index for p in done.results if isinstance(p, Placed) and not p.repeated]
    assert len(placed) == count
    return placed


def lines_of(writer: subprocess.Popen[str], count: int) -> list[str]:
    assert writer.stdout is not None
    lines = [writer.stdout.readline() for _ in range(count)]
    assert all(lines), "the writer ended"
    return lines


def end(writer: subprocess.Popen[str]) -> list[str]:
    assert writer.stdout is not None
    writer.send_signal(signal.SIGKILL)
    lines = writer.stdout.read().splitlines(keepends=True)
    assert writer.wait(20) == -signal.SIGKILL
    return lines


def test_what_was_acknowledged_outlives_every_kill_of_the_writer(
    tmp_path: Path, server: Server, schema: str
) -> None:
    promises = Promises()
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    dice = random.Random(seed)  # noqa: S311
    for _ in range(4):
        with start_writer(tmp_path, server.url(), schema) as writer:
            lines = lines_of(writer, dice.randint(1, 40))
            # Somewhere within a batch.
            time.sleep(dice.random() * 0.01)
            promises.read(lines + end(writer))
    promises.check(tmp_path, server.url(), schema)


def test_a_server_that_is_killed_and_comes_back_costs_no_entry(tmp_path: Path, schema: str) -> None:
    promises = Promises()
    with running() as server:
        with start_writer(tmp_path, server.url(), schema) as writer:
            promises.read(lines_of(writer, 10))
            for how in (signal.SIGQUIT, signal.SIGKILL):
                server.stop(how)
                server.start()
                # More than the pipe may have held when the server went away.
                promises.read(lines_of(writer, 300))
            promises.read(end(writer))
        promises.check(tmp_path, server.url(), schema)


def test_a_failover_loses_and_doubles_nothing(tmp_path: Path, schema: str) -> None:
    program = tlog_go.build(tmp_path)
    folder = tmp_path / "audit"
    promises = Promises()
    with running() as primary, folders() as (place,):
        replica = primary.standby(place)
        url = f"host={primary.folder},{replica.folder} user=postgres dbname=postgres"
        try:
            replica.start()
            primary.sql(
                "ALTER SYSTEM SET synchronous_standby_names = 'standby'", "SELECT pg_reload_conf()"
            )
            state = "SELECT sync_state FROM pg_stat_replication"
            until(lambda: primary.sql(state) == [("sync",)], "the standby is synchronous")
            with start_writer(folder, url, schema) as writer:
                promises.read(lines_of(writer, 40))
                primary.stop(signal.SIGKILL)
                replica.run("pg_ctl", "promote", "-D", str(replica.data))
                promises.read(lines_of(writer, 300))
                promises.read(end(writer))
            log = promises.check(folder, url, schema)
        finally:
            replica.stop(signal.SIGQUIT)
    status, output = tlog_go.verify(program, log, folder / "log.vkey")
    assert status == 0, output


def test_an_answer_that_is_lost_is_found_out(
    tmp_path: Path, server: Server, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with folders() as (between,), proxied(between, server.folder) as proxy:
        url = f"host={between} user=postgres dbname=postgres"
        with opened(tmp_path, url, schema) as suite:
            assert append(suite) == [0, 1, 2]
            for number, loss in enumerate((Lose.ANSWER, Lose.REQUEST, Lose.ANSWER), 1):
                batch = [suite.entry() for _ in range(3)]
                # What is asked before a commit is not what is lost.
                with monkeypatch.context() as patched:
                    seal_all = suite.segments.seal_all

                    def sealed(texts: Any, loss: Lose = loss, seal: Any = seal_all) -> Any:
                        proxy.lose = loss
                        return seal(texts)

                    patched.setattr(suite.segments, "seal_all", sealed)
                    done = suite.log.append(batch)
                assert [p.index for p in done.results] == list(range(3 * number, 3 * number + 3))
                assert (proxy.lost, proxy.lose) == (number, Lose.NOTHING)
                again = suite.log.append(batch)
                assert [p.index for p in again.results] == [p.index for p in done.results]
            assert suite.log.head[0] == 12
            assert len(suite.store.leaves(0, 12)) == 12
            assert not suite.broken


def test_a_commit_that_the_standby_did_not_confirm_is_not_acknowledged(
    tmp_path: Path, schema: str
) -> None:
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' ORDER BY pid"
    with running() as server, opened(tmp_path, server.url(), schema) as suite:
        append(suite)
        server.sql("ALTER SYSTEM SET synchronous_standby_names = 'away'", "SELECT pg_reload_conf()")
        until(
            lambda: server.sql("SHOW synchronous_standby_names") == [("away",)],
            "a standby is asked",
        )
        places: list[list[int]] = []
        thread = threading.Thread(target=lambda: places.append(append(suite)), daemon=True)
        thread.start()
        until(lambda: len(server.sql(waiting)) == 1, "the commit waits for the standby")
        ((first,),) = server.sql(waiting)
        # PostgreSQL now says that it was committed, with a warning.
        server.sql(f"SELECT pg_cancel_backend({first})")
        until(lambda: server.sql(waiting) not in ([], [(first,)]), "the new epoch waits, too")
        assert not places
        assert suite.log.head[0] == 3
        server.sql("ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
        thread.join(30)
        assert places == [[3, 4, 5]]
        assert append(suite) == [6, 7, 8]


def test_a_second_writer_is_refused_while_the_first_is_there(
    tmp_path: Path, server: Server, schema: str
) -> None:
    with opened(tmp_path, server.url(), schema) as first:
        append(first)
        other = database(tmp_path / "other", server.url(), schema)
        other._wait = 0.0
        with pytest.raises(StartupError, match="another audit service"):
            open_suite(tmp_path / "other", Ring(), backend=other)
        other.close()
        assert append(first) == [3, 4, 5]


def writer_sessions(server: Server) -> list[tuple[object, ...]]:
    return server.sql(
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted ORDER BY pid"
    )


def test_who_was_taken_over_never_commits_again(
    tmp_path: Path, server: Server, schema: str
) -> None:
    with opened(tmp_path / "a", server.url(), schema) as first:
        append(first)
        before = writer_sessions(server)
        assert len(before) == 1
        server.sql(f"SELECT pg_terminate_backend({before[0][0]})")
        with opened(tmp_path / "b", server.url(), schema) as second:
            assert append(second) == [3, 4, 5]
        # The lock is free again and the connection can be had: the epoch is what keeps it out.
        for _ in range(2):
            with pytest.raises(SealwardError) as refused:
                first.log.append([first.entry()])
            assert refused.value.reason is Reason.AUDIT_UNAVAILABLE
        assert first.broken == ["another audit service has taken over this log"]
        for action in (lambda: first.store.put([("a", b"")]), lambda: first.store.forget("a")):
            with pytest.raises(StoreBrokenError, match="taken over"):
                action()
        with opened(tmp_path / "b", server.url(), schema) as second:
            assert append(second) == [6, 7, 8]


def test_an_epoch_ends_for_a_writer_whose_session_lives_on(
    tmp_path: Path, server: Server, schema: str
) -> None:
    with opened(tmp_path, server.url(), schema) as suite:
        append(suite)
        server.sql(f"UPDATE {schema}.logs SET epoch = epoch + 1")  # noqa: S608
        for action in (lambda: suite.store.put([("a", b"")]), lambda: suite.store.forget("a")):
            with pytest.raises(StoreBrokenError, match="taken over"):
                action()
        with pytest.raises(SealwardError):
            append(suite)
        assert suite.broken == ["another audit service has taken over this log"]
        assert suite.store.get("a") is None
        assert server.sql(f"SELECT size FROM {schema}.logs") == [(3,)]  # noqa: S608
        assert server.sql(f"SELECT count(*) FROM {schema}.ids") == [(3,)]  # noqa: S608


def test_an_idle_writer_notices_that_it_was_taken_over(
    tmp_path: Path, server: Server, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.audit.postgres_store._CHECK_SECONDS", 0.0)
    with opened(tmp_path / "a", server.url(), schema) as first:
        first.store.maintain()
        server.sql(f"SELECT pg_terminate_backend({writer_sessions(server)[0][0]})")
        first.store.maintain()
        assert len(writer_sessions(server)) == 1
        assert append(first) == [0, 1, 2]
        server.sql(f"UPDATE {schema}.logs SET epoch = epoch + 1")  # noqa: S608
        with pytest.raises(StoreBrokenError, match="taken over"):
            first.store.maintain()


def test_a_paused_writer_wakes_up_to_nothing(tmp_path: Path, server: Server, schema: str) -> None:
    promises = Promises()
    with start_writer(tmp_path, server.url(), schema) as writer:
        promises.read(lines_of(writer, 20))
        writer.send_signal(signal.SIGSTOP)
        ((session,),) = writer_sessions(server)
        server.sql(f"SELECT pg_terminate_backend({session})")
        with opened(tmp_path, server.url(), schema) as second:
            index = append(second)[0]
            writer.send_signal(signal.SIGCONT)
            assert writer.stdout is not None
            promises.read(writer.stdout.read().splitlines(keepends=True))
            assert writer.wait(20) == 1
            assert max(promises.made) < index
    promises.check(tmp_path, server.url(), schema)


def test_a_database_that_stays_away_stops_the_log(tmp_path: Path, schema: str) -> None:
    with running() as server:
        with opened(tmp_path, server.url(), schema, patience=1.0) as suite:
            append(suite)
            server.stop(signal.SIGKILL)
            for _ in range(2):
                with pytest.raises(SealwardError) as refused:
                    append(suite)
                assert refused.value.reason is Reason.AUDIT_UNAVAILABLE
            assert len(suite.broken) == 1
            assert suite.broken[0].startswith("the audit database failed: ")
            assert suite.log.head[0] == 3
            server.start()
            # What a commit did is not known to this process: it stays stopped.
            with pytest.raises(SealwardError):
                append(suite)
        with opened(tmp_path, server.url(), schema) as suite:
            assert append(suite) == [3, 4, 5]


def test_a_database_that_takes_no_writes_is_not_the_one_to_use(tmp_path: Path, schema: str) -> None:
    with running() as server, opened(tmp_path, server.url(), schema, patience=1.0) as suite:
        append(suite)
        server.sql("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
        until(
            lambda: server.sql("SHOW default_transaction_read_only") == [("on",)], "it is read-only"
        )
        with pytest.raises(SealwardError):
            append(suite)
        assert len(suite.broken) == 1
        assert suite.log.head[0] == 3


def test_a_full_disk_refuses_and_recovers_by_itself(tmp_path: Path, schema: str) -> None:
    needs_mounts()
    programs = binaries()
    with folders(2) as (folder, small):
        server = Server(folder, programs, {"autovacuum": "off"}, small)
        server.init()
        try:
            server.start()
            server.sql(f"CREATE TABLESPACE small LOCATION '{small}'")
            server.options["default_tablespace"] = "small"
            server.sql("ALTER SYSTEM SET default_tablespace = 'small'", "SELECT pg_reload_conf()")
            with opened(tmp_path, server.url(), schema) as suite:
                fill_and_empty(server, suite)
            with opened(tmp_path, server.url(), schema) as suite:
                assert suite.log.head[0] == 60
        finally:
            server.stop(signal.SIGQUIT)


def fill_and_empty(server: Server, suite: Suite) -> None:
    append(suite, 20)
    server.sql(
        "CREATE TABLE ballast (data bytea)", "ALTER TABLE ballast ALTER data SET STORAGE EXTERNAL"
    )
    for size in (1 << 20, 1 << 16, 1 << 12):
        inserts = [f"INSERT INTO ballast SELECT repeat('x', {size})::bytea"] * 100
        with pytest.raises(psycopg.errors.DiskFull):
            server.sql(*inserts)
    # The last pages of the tables may have some room left; then nothing goes any more.
    before = suite.log.head
    refused = []
    for _ in range(40):
        candidate = suite.entry()
        try:
            suite.log.append([candidate])
        except SealwardError as error:
            refused.append((candidate, error.reason))
        else:
            assert not refused
            before = suite.log.head
    assert {reason for _, reason in refused} == {Reason.AUDIT_UNAVAILABLE}
    assert len(refused) >= 5
    assert suite.log.head == before
    suite.log.probe()
    assert suite.full == [True]
    assert not suite.broken
    server.sql("DROP TABLE ballast", "CHECKPOINT")
    suite.log.probe()
    assert suite.full == [True, False]
    suite.log.append([candidate for candidate, _ in refused])
    append(suite, 60 - suite.log.head[0])
