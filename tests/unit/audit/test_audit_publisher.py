"""The published files: any tlog tool must be able to read them at any time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sealward.kit.errors import StartupError
from sealward.tlog.logdir import LogReport, verify_directory
from sealward.tlog.note import Signature, add_signatures, parse_note, parse_vkeys
from services.audit.publisher import Publisher, check_published, write_vkey
from tests.support.audit_suite import Ring, Suite, open_suite
from tests.support.cosigners import ed25519

Reopen = Callable[..., Suite]
STORE = ("log.db", "log.entries")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit" / "log"


def publisher(suite: Suite, folder: Path, logger: Any, **options: Any) -> Publisher:
    return Publisher(suite.log, suite.store, folder, logger, **options)


def verify(suite: Suite, folder: Path) -> LogReport:
    write_vkey(folder.parent / "log.vkey", suite.signer.vkey)
    report = verify_directory(folder, parse_vkeys((folder.parent / "log.vkey").read_text()))
    assert report.unknown == ()
    assert report.ahead == 0
    return report


def test_each_publication_verifies_from_files_alone(
    suite: Suite, folder: Path, logger: Any
) -> None:
    files = publisher(suite, folder, logger, linger=0.0)
    assert files.rebuild() == 0
    assert verify(suite, folder).size == 0
    sizes = (1, 3, 250, 5, 250, 30)
    for more in sizes:
        suite.log.append([suite.entry() for _ in range(more)])
        files.publish()
        assert verify(suite, folder).size == suite.log.head[0]
    assert not (folder / "tile/0/000.p").exists()
    assert not (folder / "tile/entries/000.p").exists()
    assert (folder / "tile/0/002.p").is_dir()


def test_readers_of_an_earlier_checkpoint_find_its_tiles(
    suite: Suite, folder: Path, logger: Any
) -> None:
    files = publisher(suite, folder, logger)
    suite.log.append([suite.entry() for _ in range(200)])
    files.rebuild()
    earlier = (folder / "checkpoint").read_bytes()
    suite.log.append([suite.entry() for _ in range(200)])
    files.publish()
    assert verify(suite, folder).size == 400
    (folder / "checkpoint").write_bytes(earlier)
    report = verify_directory(folder, (suite.signer.verifier,))
    assert report.size == 200


def test_files_are_private(suite: Suite, folder: Path, logger: Any) -> None:
    suite.log.append([suite.entry()])
    publisher(suite, folder, logger).rebuild()
    found = [folder, *folder.rglob("*")]
    assert len(found) > 5
    assert all(path.stat().st_mode & 0o077 == 0 for path in found)


def test_the_thread_follows_the_log_and_publishes_the_rest_on_stop(
    reopen: Reopen, folder: Path, logger: Any
) -> None:
    changes: list[int] = []
    suite = reopen(on_change=lambda size, _checkpoint: changes.append(size))
    files = publisher(suite, folder, logger, interval=0.01, on_published=changes.append)
    files.start()
    for _ in range(10):
        suite.log.append([suite.entry() for _ in range(7)])
        files.changed()
    files.stop(20)
    assert verify(suite, folder).size == 70
    assert changes[-1] == 70


def test_what_a_crash_left_is_repaired(suite: Suite, folder: Path, logger: Any) -> None:
    suite.log.append([suite.entry() for _ in range(600)])
    publisher(suite, folder, logger).rebuild()
    (folder / "tile/entries/001").write_bytes(b"")
    (folder / "tile/0/000").unlink()
    shutil.copy(folder / "tile/0/001", folder / "tile/0/002.p/88")
    (folder / "tile/0/.001.new").write_bytes(b"left over")
    suite.log.append([suite.entry() for _ in range(3)])
    fresh = publisher(suite, folder, logger)
    # Two full files, an earlier partial one, two partial files of the new size, the checkpoint.
    assert fresh.rebuild() == 2 + 1 + 2 + 1
    verify(suite, folder)
    assert fresh.rebuild() == 0


def test_a_store_that_was_rolled_back_stops_the_start(
    reopen: Reopen, tmp_path: Path, folder: Path, logger: Any
) -> None:
    suite = reopen()
    suite.log.append([suite.entry() for _ in range(5)])
    suite.close()
    for name in STORE:
        shutil.copy(tmp_path / "audit" / name, tmp_path / name)
    suite = reopen()
    suite.log.append([suite.entry() for _ in range(5)])
    publisher(suite, folder, logger).rebuild()
    assert check_published(folder, (suite.signer.verifier,), suite.log)
    suite.close()
    for name in STORE:
        shutil.copy(tmp_path / name, tmp_path / "audit" / name)
    suite = reopen()
    with pytest.raises(StartupError, match="rolled back"):
        check_published(folder, (suite.signer.verifier,), suite.log)
    # Grown again to the same size, with other entries: a fork.
    suite.log.append([suite.entry() for _ in range(6)])
    with pytest.raises(StartupError, match="not the log"):
        check_published(folder, (suite.signer.verifier,), suite.log)


@pytest.mark.parametrize("name", STORE)
def test_a_file_of_the_store_that_was_rolled_back_alone_stops_the_start(
    reopen: Reopen, tmp_path: Path, name: str
) -> None:
    suite = reopen()
    suite.log.append([suite.entry() for _ in range(5)])
    suite.close()
    shutil.copy(tmp_path / "audit" / name, tmp_path / name)
    suite = reopen()
    # A start begins a segment: its key is in one file, its entries in the other.
    suite.log.append([suite.entry() for _ in range(5)])
    suite.close()
    shutil.copy(tmp_path / name, tmp_path / "audit" / name)
    with pytest.raises(StartupError, match="rolled back"):
        reopen()


def test_another_log_is_not_written_over(
    suite: Suite, tmp_path: Path, folder: Path, logger: Any
) -> None:
    assert check_published(folder, (suite.signer.verifier,), suite.log)
    other = open_suite(tmp_path / "other", Ring())
    other.log.append([other.entry()])
    publisher(other, folder, logger).rebuild()
    with pytest.raises(StartupError, match="move it away"):
        check_published(folder, (suite.signer.verifier,), suite.log)
    other.close()


def test_a_torn_checkpoint_is_written_anew(suite: Suite, folder: Path, logger: Any) -> None:
    suite.log.append([suite.entry()])
    publisher(suite, folder, logger).rebuild()
    (folder / "checkpoint").write_bytes(b"")
    assert not check_published(folder, (suite.signer.verifier,), suite.log)
    assert publisher(suite, folder, logger).rebuild() == 1
    assert verify(suite, folder).size == 1


def test_a_failure_to_publish_is_made_good(suite: Suite, folder: Path, logger: Any) -> None:
    folder.parent.mkdir(exist_ok=True)
    folder.write_bytes(b"in the way")
    files = publisher(suite, folder, logger)
    suite.log.append([suite.entry()])
    assert not files._guard(files._first)
    folder.unlink()
    assert files._guard(files._first)
    assert verify(suite, folder).size == 1


def cosigned(suite: Suite) -> tuple[int, bytes]:
    """The newest checkpoint with a witness's line."""
    size, note = suite.log.head
    witness = ed25519("w.example")
    line = Signature(witness.name, witness.key_id, witness.sign(parse_note(note).text))
    return size, add_signatures(note, [line])


def test_a_cosigned_checkpoint_is_published_beside_the_newest(
    suite: Suite, folder: Path, logger: Any
) -> None:
    suite.log.append([suite.entry()])
    files = publisher(suite, folder, logger)
    files.rebuild()
    assert files.published == suite.log.head
    size, note = cosigned(suite)
    files.cosigned(size, note)
    files.publish()
    # The log has not grown: it is the checkpoint itself as well.
    assert (folder / "checkpoint").read_bytes() == note
    assert (folder / "checkpoint.cosigned").read_bytes() == note
    verify(suite, folder)
    suite.log.append([suite.entry()])
    files.publish()
    assert (folder / "checkpoint").read_bytes() == suite.log.head[1]
    assert (folder / "checkpoint.cosigned").read_bytes() == note
    # One that comes late does not go before the newest.
    files.cosigned(size, note)
    files.publish()
    assert (folder / "checkpoint").read_bytes() == suite.log.head[1]
    verify(suite, folder)


def test_a_cosigned_checkpoint_waits_for_its_tiles(suite: Suite, folder: Path, logger: Any) -> None:
    files = publisher(suite, folder, logger)
    files.rebuild()
    suite.log.append([suite.entry()])
    files.cosigned(*cosigned(suite))
    files._publish_cosigned()
    assert not (folder / "checkpoint.cosigned").exists()
    files.publish()
    assert (folder / "checkpoint.cosigned").exists()


def test_a_start_leaves_a_cosigned_checkpoint_alone_and_nothing_else(
    suite: Suite, folder: Path, logger: Any
) -> None:
    suite.log.append([suite.entry()])
    files = publisher(suite, folder, logger)
    files.rebuild()
    _, note = cosigned(suite)
    (folder / "checkpoint").write_bytes(note)
    assert check_published(folder, (suite.signer.verifier,), suite.log)
    assert publisher(suite, folder, logger).rebuild() == 0
    assert (folder / "checkpoint").read_bytes() == note
    for wrong in (note + b"more", note[:-1], note.replace(b"\n", b"\n\n", 1)):
        (folder / "checkpoint").write_bytes(wrong)
        assert publisher(suite, folder, logger).rebuild() == 1
        assert (folder / "checkpoint").read_bytes() == suite.log.head[1]
