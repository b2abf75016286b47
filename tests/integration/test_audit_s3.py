"""Tiles in an S3-compatible store: what a reader finds there is a log, at every moment."""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sealward.kit.errors import StartupError
from sealward.kit.logging import get_logger
from sealward.tlog.logdir import LogReport, verify_directory
from sealward.tlog.note import Signature, add_signatures, parse_note
from services.audit.publisher import Publisher, check_published, write_vkey
from services.audit.s3_sink import S3Bucket, S3Sink
from services.audit.tilesink import SinkMovedError, SinkUnavailableError
from tests.support import tlog_go
from tests.support.audit_suite import Ring, Suite, open_suite
from tests.support.cosigners import ed25519
from tests.support.s3_server import S3Server, download, s3_server
from tests.support.suites import until

# The first run fetches and builds versitygw.
pytestmark = pytest.mark.timeout(700)


@pytest.fixture(scope="module", params=["moto", "versitygw"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[S3Server]:
    started = s3_server(request.param, tmp_path_factory.mktemp("s3"))
    started.start()
    started.make_bucket().close()
    yield started
    started.stop()


@pytest.fixture
def bucket(server: S3Server) -> Iterator[S3Bucket]:
    opened = server.bucket()
    yield opened
    opened.close()


@pytest.fixture
def prefix() -> str:
    return f"logs/{secrets.token_hex(8)}"


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    opened = open_suite(tmp_path / "audit", Ring())
    yield opened
    opened.close()


def publisher(suite: Suite, sink: S3Sink, **options: Any) -> Publisher:
    logger = get_logger("test", io.StringIO())
    return Publisher(suite.log, suite.store, sink, logger, interval=0.01, **options)


def append(suite: Suite, count: int) -> None:
    suite.log.append([suite.entry() for _ in range(count)])


def verify(suite: Suite, bucket: S3Bucket, prefix: str, folder: Path) -> LogReport:
    report = verify_directory(download(bucket, prefix, folder), (suite.signer.verifier,))
    assert report.unknown == ()
    return report


def keys(bucket: S3Bucket, prefix: str) -> set[str]:
    pages = bucket.client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket.name, Prefix=f"{prefix}/"
    )
    return {
        found["Key"].removeprefix(f"{prefix}/")
        for page in pages
        for found in page.get("Contents", ())
    }


def test_each_publication_verifies_with_tools_of_others(
    suite: Suite, bucket: S3Bucket, prefix: str, tmp_path: Path
) -> None:
    sink = S3Sink(bucket, prefix)
    files = publisher(suite, sink, linger=0.0)
    files.rebuild()
    for number, more in enumerate((1, 3, 250, 5, 250, 30)):
        append(suite, more)
        files.publish()
        sink.flush()
        report = verify(suite, bucket, prefix, tmp_path / f"copy{number}")
        assert report.size == suite.log.head[0]
    found = keys(bucket, prefix)
    assert not {path for path in found if path.startswith(("tile/0/000.p", "tile/entries/000.p"))}
    assert "tile/0/002.p/27" in found
    write_vkey(tmp_path / "log.vkey", suite.signer.vkey)
    program = tlog_go.build(tmp_path)
    status, output = tlog_go.verify(program, tmp_path / "copy5", tmp_path / "log.vkey")
    assert status == 0, output


def test_tiles_may_be_cached_and_the_checkpoint_not(
    suite: Suite, bucket: S3Bucket, prefix: str
) -> None:
    append(suite, 300)
    publisher(suite, S3Sink(bucket, prefix)).rebuild()

    def head(path: str) -> tuple[str, str]:
        found = bucket.client.head_object(Bucket=bucket.name, Key=f"{prefix}/{path}")
        return found["CacheControl"], found["ContentType"]

    assert head("checkpoint") == ("no-store", "text/plain; charset=utf-8")
    for path in ("tile/0/000", "tile/entries/000", "tile/entries/001.p/44"):
        assert head(path) == ("max-age=31536000, immutable", "application/octet-stream")


def test_a_cosigned_checkpoint_stands_beside_the_newest(
    suite: Suite, bucket: S3Bucket, prefix: str, tmp_path: Path
) -> None:
    files = publisher(suite, S3Sink(bucket, prefix))
    files.rebuild()
    witness = ed25519("w.example")
    notes = []
    for number in range(2):
        append(suite, 3)
        files.publish()
        size, note = suite.log.head
        line = Signature(witness.name, witness.key_id, witness.sign(parse_note(note).text))
        notes.append(add_signatures(note, [line]))
        files.cosigned(size, notes[-1])
        files.publish()
        for name in ("checkpoint", "checkpoint.cosigned"):
            found = bucket.client.get_object(Bucket=bucket.name, Key=f"{prefix}/{name}")
            assert found["Body"].read() == notes[-1]
            assert found["CacheControl"] == "no-store"
        verify(suite, bucket, prefix, tmp_path / str(number))
    # The next start finds nothing to put right.
    again = S3Sink(bucket, prefix)
    assert check_published(again, (suite.signer.verifier,), suite.log)
    assert publisher(suite, again).rebuild() == 0


def test_full_tiles_are_locked_when_that_is_set(
    suite: Suite, server: S3Server, prefix: str
) -> None:
    append(suite, 300)
    bucket = server.bucket(retention_days=1, lock_mode="GOVERNANCE")
    publisher(suite, S3Sink(bucket, prefix)).rebuild()

    def mode_of(path: str) -> str | None:
        found = bucket.client.head_object(Bucket=bucket.name, Key=f"{prefix}/{path}")
        mode: str | None = found.get("ObjectLockMode")
        return mode

    assert (mode_of("tile/0/000"), mode_of("tile/entries/000")) == ("GOVERNANCE", "GOVERNANCE")
    assert (mode_of("tile/entries/001.p/44"), mode_of("checkpoint")) == (None, None)
    bucket.close()


def test_what_is_missing_or_changed_is_put_right_at_the_start(
    suite: Suite, bucket: S3Bucket, prefix: str, tmp_path: Path
) -> None:
    append(suite, 600)
    publisher(suite, S3Sink(bucket, prefix)).rebuild()
    assert publisher(suite, S3Sink(bucket, prefix)).rebuild() == 0
    bucket.client.delete_object(Bucket=bucket.name, Key=f"{prefix}/tile/0/001")
    bucket.client.put_object(Bucket=bucket.name, Key=f"{prefix}/tile/entries/000", Body=b"other")
    assert publisher(suite, S3Sink(bucket, prefix)).rebuild() == 2
    assert verify(suite, bucket, prefix, tmp_path / "copy").size == 600


def test_a_store_that_was_rolled_back_stops_the_start(
    suite: Suite, bucket: S3Bucket, prefix: str, tmp_path: Path
) -> None:
    verifiers = (suite.signer.verifier,)
    assert check_published(S3Sink(bucket, prefix), verifiers, suite.log)
    append(suite, 5)
    publisher(suite, S3Sink(bucket, prefix)).rebuild()
    assert check_published(S3Sink(bucket, prefix), verifiers, suite.log)
    other = open_suite(tmp_path / "other", Ring())
    with pytest.raises(StartupError, match="move it away"):
        check_published(S3Sink(bucket, prefix), (other.signer.verifier,), other.log)
    other.close()


def test_who_was_taken_over_puts_no_old_checkpoint_back(
    suite: Suite, bucket: S3Bucket, prefix: str, tmp_path: Path
) -> None:
    append(suite, 3)
    old = publisher(suite, S3Sink(bucket, prefix))
    old.rebuild()
    held = suite.log._head
    append(suite, 4)
    publisher(suite, S3Sink(bucket, prefix)).rebuild()
    newest = verify(suite, bucket, prefix, tmp_path / "new")
    # To the old one the log is shorter than what is published by now.
    suite.log._head = (5, held[1].replace(b"\n3\n", b"\n5\n"))
    with pytest.raises(SinkMovedError):
        old.publish()
    with pytest.raises(SinkMovedError):
        old.rebuild()
    still = verify(suite, bucket, prefix, tmp_path / "still")
    assert (still.size, still.root) == (newest.size, newest.root)


def test_the_log_goes_on_without_the_store_and_publishing_catches_up(
    suite: Suite, tmp_path: Path
) -> None:
    server = s3_server("moto", tmp_path)
    server.start()
    server.make_bucket().close()
    bucket = server.bucket()
    files = publisher(suite, S3Sink(bucket, "log"))
    try:
        files.start()
        append(suite, 10)
        files.changed()
        until(lambda: files.behind == 0.0, "the first is published")
        server.stop()
        append(suite, 600)
        files.changed()
        until(lambda: files._failing, "publishing fails")
        assert files.behind > 0.0
        append(suite, 10)
        with pytest.raises(StartupError, match="does not answer"):
            check_published(S3Sink(bucket, "log"), (suite.signer.verifier,), suite.log)
        server.start()
        # This server forgets what it had when it ends; a real one does not, and none is to be lost.
        server.make_bucket().close()
        files._compared = False
        files.changed()
        until(lambda: files.behind == 0.0, "publishing has caught up")
    finally:
        files.stop(20)
        assert verify(suite, bucket, "log", tmp_path / "copy").size == 620
        bucket.close()
        server.stop()


def test_a_missing_bucket_is_not_an_empty_log(server: S3Server, suite: Suite) -> None:
    bucket = server.bucket()
    bucket.name = "no-such-bucket"
    with pytest.raises(SinkUnavailableError):
        S3Sink(bucket, "x").read("checkpoint")
    with pytest.raises(StartupError, match="does not answer"):
        check_published(S3Sink(bucket, "x"), (suite.signer.verifier,), suite.log)
    bucket.close()
