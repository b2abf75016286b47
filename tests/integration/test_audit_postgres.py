"""The PostgreSQL of the production store as it is to be set up: TLS, and a role of few rights."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from sealward.kit.errors import StartupError
from services.audit.postgres_database import Database
from services.audit.postgres_schema import statements
from tests.conftest import CertificateAuthority
from tests.support.audit_suite import Ring, open_suite
from tests.support.audit_writer import database
from tests.support.postgres import Server, running


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


def test_the_service_needs_no_right_to_change_what_is_logged(
    server: Server, tmp_path: Path
) -> None:
    server.sql("CREATE ROLE sealward LOGIN")
    url = server.url("sealward")
    with pytest.raises(StartupError, match=r"may not make it: see docs/storage.md"):
        Database(url, "audit")
    server.sql(statements("audit", "sealward"))
    for expected in (0, 5):
        backend = database(tmp_path, url, "audit")
        suite = open_suite(tmp_path, Ring(), backend=backend)
        assert suite.log.head[0] == expected
        suite.log.append([suite.entry() for _ in range(5)])
        assert len(suite.query()) == expected + 5
        before = suite.rows.digest()
        assert suite.indexer.rebuild() == before
        suite.store.put([("segment/x", b"x")])
        assert suite.store.forget("segment/x") == 1
        suite.close()
        backend.close()
    with psycopg.connect(url, autocommit=True) as db:
        for statement in (
            "UPDATE audit.batches SET leaves = leaves",
            "DELETE FROM audit.batches",
            "UPDATE audit.ids SET idx = 0",
            "DELETE FROM audit.logs",
            "INSERT INTO audit.version VALUES (2)",
            "TRUNCATE audit.ids",
            "DROP TABLE audit.batches",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                db.execute(statement)


def test_a_server_that_may_lose_commits_is_refused(server: Server) -> None:
    server.sql("ALTER SYSTEM SET full_page_writes = off", "SELECT pg_reload_conf()")
    try:
        with psycopg.connect(server.url()) as db:
            assert db.execute("SHOW full_page_writes").fetchone() == ("off",)
        with pytest.raises(StartupError, match="full_page_writes=on"):
            Database(server.url(), "other")
    finally:
        server.sql("ALTER SYSTEM RESET full_page_writes", "SELECT pg_reload_conf()")


def test_a_schema_of_a_newer_version_is_left_alone(server: Server) -> None:
    Database(server.url(), "newer").close()
    server.sql("INSERT INTO newer.version VALUES (99)")
    with pytest.raises(StartupError, match=r"newer version \(99\)"):
        Database(server.url(), "newer")


def test_over_the_network_the_server_proves_who_it_is(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    material = authority.issue("spiffe://sealward.local/service/database")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    roots = {name: tmp_path / f"{name}.pem" for name in ("right", "wrong")}
    roots["right"].write_bytes(authority.pem)
    roots["wrong"].write_bytes(CertificateAuthority("other").pem)
    with running(listen_addresses="127.0.0.1", port=str(port), ssl="off") as server:
        key, chain = server.data / "server.key", server.data / "server.crt"
        key.write_bytes(material.key_pem)
        chain.write_bytes(material.chain_pem)
        for file in (key, chain):
            os.chown(file, server.data.stat().st_uid, server.data.stat().st_gid)
            file.chmod(0o600)
        server.sql("ALTER ROLE postgres PASSWORD 'p'")
        url = f"host=127.0.0.1 port={port} user=postgres dbname=postgres sslmode=verify-full"
        with pytest.raises(StartupError):
            Database(f"{url} sslrootcert={roots['right']}", "audit", patience=0.0)
        server.stop()
        server.options["ssl"] = "on"
        server.start()
        with pytest.raises(StartupError):
            Database(f"{url} sslrootcert={roots['wrong']}", "audit", patience=0.0)
        opened = Database(f"{url} sslrootcert={roots['right']}", "audit")
        query = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert opened.read(query) == [("TLSv1.3",)]
        opened.close()
        with pytest.raises(StartupError):
            Database(f"{url} sslrootcert={roots['right']} host=localhost", "audit", patience=0.0)
