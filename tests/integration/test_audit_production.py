"""The audit service as it runs in production: entries in PostgreSQL, tiles in an S3 store."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealward.kit.enroll import write_private
from sealward.kit.errors import StartupError
from sealward.tlog.logdir import LogReport, verify_directory
from sealward.tlog.note import parse_vkeys
from services.audit.directory_sink import DirectorySinks
from services.audit.s3_sink import S3Sinks
from services.audit.settings import AuditSettings
from services.audit.stores import open_backend, open_sinks
from tests.integration.test_audit_service import AppendStream, Pair, verify_receipt
from tests.support.audit_suite import entry_bytes
from tests.support.inference_suite import Service
from tests.support.postgres import Server, running
from tests.support.s3_server import ACCESS, BUCKET, SECRET, S3Server, download, s3_server


@pytest.fixture(scope="module")
def database() -> Iterator[Server]:
    with running() as started:
        yield started


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    started = s3_server("moto", tmp_path_factory.mktemp("s3"))
    started.start()
    started.make_bucket().close()
    yield started
    started.stop()


def settings_of(folder: Path, database: Server, tiles: S3Server) -> dict[str, object]:
    for name, text in (("url", database.url()), ("access", ACCESS), ("secret", SECRET)):
        write_private(folder / name, text.encode())
    return {
        "STORE": "postgres",
        "DATABASE_URL_FILE": folder / "url",
        "TILES": "s3",
        "S3_ENDPOINT": tiles.endpoint,
        "S3_BUCKET": BUCKET,
        "S3_PREFIX": "audit",
        "S3_ACCESS_KEY_FILE": folder / "access",
        "S3_SECRET_KEY_FILE": folder / "secret",
    }


def append(pair: Pair, count: int) -> int:
    stream = AppendStream(pair.to_audit().get())
    replies, note = stream.ask([entry_bytes(patient="p") for _ in range(count)])
    checkpoint = pair.checkpoint(note)
    for reply in replies:
        verify_receipt(reply, checkpoint)
    stream.close()
    return checkpoint.size


def published(pair: Pair, tiles: S3Server, origin: str, folder: Path) -> LogReport:
    bucket = tiles.bucket()
    vkeys = parse_vkeys((pair.audit.data / "log.vkey").read_text())
    report = verify_directory(download(bucket, f"audit/{origin}", folder), vkeys)
    bucket.close()
    return report


def test_a_service_moves_to_another_machine_with_its_log(
    tmp_path: Path, database: Server, tiles: S3Server
) -> None:
    pair = Pair(tmp_path, **settings_of(tmp_path, database, tiles))
    try:
        pair.start()
        size = append(pair, 30)
        origin = parse_vkeys((pair.audit.data / "log.vkey").read_text())[0].name
        assert not (pair.audit.data / "log.db").exists()
        assert not (pair.audit.data / "log").exists()
        pair.audit.end(signal.SIGKILL)
        # Nothing of what this machine had is needed: the log and its keys are in the database.
        shutil.rmtree(pair.audit.data)
        pair.audit.start()
        assert append(pair, 5) > size
        assert len(pair.events(patient="p", limit=100)) == 35
    finally:
        pair.end()
    report = published(pair, tiles, origin, tmp_path / "copy")
    assert report.size >= size + 5
    assert report.unknown == ()


def test_two_services_do_not_write_one_log(
    tmp_path: Path, database: Server, tiles: S3Server
) -> None:
    settings = settings_of(tmp_path, database, tiles) | {"DATABASE_SCHEMA": "two"}
    pair = Pair(tmp_path, **settings)
    try:
        pair.start()
        size = append(pair, 3)
        second = Service("audit", tmp_path, **{**pair.audit.settings, "START_SECONDS": 1})
        second.settings["DATA_DIR"] = tmp_path / "second"
        second.log = tmp_path / "second.log"
        assert second.launch().wait(60) != 0
        assert "another audit service writes the log" in second.log.read_text()
        assert append(pair, 3) > size
    finally:
        pair.end()


def made(tmp_path: Path, **values: object) -> AuditSettings:
    given = {"data_dir": tmp_path, "enroll_dir": tmp_path, **values}
    return AuditSettings(**given)


def test_what_the_settings_lack_is_said_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k\n")
    key = {"s3_access_key_file": tmp_path / "key", "s3_secret_key_file": tmp_path / "key"}
    right = {"tiles": "s3", "s3_endpoint": "https://s3.example", "s3_bucket": "b", **key}
    sinks = open_sinks(made(tmp_path, **right))
    assert isinstance(sinks, S3Sinks)
    sinks.close()
    assert isinstance(open_sinks(made(tmp_path)), DirectorySinks)
    for wrong, said in (
        ({"s3_endpoint": "http://s3.example"}, "https"),
        ({"s3_endpoint": ""}, "https"),
        ({"s3_bucket": ""}, "S3_BUCKET is not set"),
        ({"s3_access_key_file": None}, "S3_ACCESS_KEY_FILE is not set"),
        ({"s3_secret_key_file": tmp_path / "none"}, "S3_SECRET_KEY_FILE cannot be read"),
        ({"s3_ca_file": tmp_path / "none"}, "S3_CA_FILE cannot be read"),
    ):
        with pytest.raises(StartupError, match=said):
            open_sinks(made(tmp_path, **{**right, **wrong}))
    with pytest.raises(StartupError, match="DATABASE_URL_FILE is not set"):
        open_backend(made(tmp_path, store="postgres"))
