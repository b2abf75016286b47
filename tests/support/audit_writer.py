"""A process that writes a log, to be killed or to run out of space.

`write FOLDER COUNT [URL SCHEMA]`: appends COUNT batches (0 = without end) and publishes; prints a
line `size index,event id …` after each acknowledged batch, so that the reader knows what was
promised. With a database URL the log is in PostgreSQL.
`full FOLDER`: mounts a small tmpfs at FOLDER, fills it, empties it, and checks what the log does.
`fails FOLDER HOW`: the same for a disk that fails. HOW is `eio` (writes are taken and cannot be
synced), `journal` (the file system notices and gives up) or `limit` (no file may grow).
`readonly FOLDER`: opens a log on a disk that is read-only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import os
import random
import resource
import sqlite3
import subprocess
import sys
from pathlib import Path

import structlog

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.logging import get_logger
from sealward.kit.reasons import Reason
from sealward.tlog.logdir import verify_directory
from services.audit.log import Placed
from services.audit.postgres_backend import PostgresBackend
from services.audit.postgres_database import Database
from services.audit.publisher import Publisher, check_published, write_vkey
from tests.support.audit_suite import Ring, Suite, open_suite


def check(holds: bool) -> None:
    assert holds


def publisher(suite: Suite, folder: Path) -> Publisher:
    log = get_logger("test", io.StringIO())
    return Publisher(suite.log, suite.store, folder / "log", log, interval=0.01)


def database(folder: Path, url: str, schema: str, patience: float = 30.0) -> PostgresBackend:
    return PostgresBackend(folder, Database(url, schema, patience=patience), wait=20.0)


def write(folder: Path, count: int, *where: str) -> None:
    holder: list[Publisher] = []
    backend = database(folder, *where) if where else None
    suite = open_suite(
        folder, Ring(), backend=backend, on_change=lambda _s, _c: holder[0].changed()
    )
    if not check_published(folder / "log", (suite.signer.verifier,), suite.log):
        raise SystemExit("a torn checkpoint")
    holder.append(publisher(suite, folder))
    holder[0].start()
    write_vkey(folder / "log.vkey", suite.signer.vkey)
    batch = 0
    while not count or batch < count:
        batch += 1
        # From time to time a batch that fills a tile, for publishing to have something to do.
        size = 100 if batch % 20 == 0 else random.randint(1, 16)  # noqa: S311
        done = suite.log.append([suite.entry(patient="p") for _ in range(size)])
        placed = [p for p in done.results if isinstance(p, Placed)]
        assert len(placed) == size
        words = [f"{p.index},{p.leaf[1:17].hex()}" for p in placed]
        sys.stdout.write(f"{suite.log.head[0]} {' '.join(words)}\n")
        sys.stdout.flush()
        suite.store.maintain()
    holder[0].stop(20)
    suite.close()


def full(folder: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=3m,mode=700") != 0:
        raise SystemExit(f"mount: {errno.errorcode[ctypes.get_errno()]}")
    suite = open_suite(folder, Ring())
    files = publisher(suite, folder)
    acknowledged = [suite.entry() for _ in range(20)]
    suite.log.append(acknowledged)
    files.rebuild()
    published = (folder / "log/checkpoint").read_bytes()
    ballast = folder / "ballast"
    _fill(ballast)
    before = suite.log.head
    refused = 0
    waiting = [suite.entry() for _ in range(50)]
    # The write-ahead log may have some room left in its last page; then nothing goes any more.
    for candidate in waiting:
        try:
            suite.log.append([candidate])
        except SealwardError as error:
            check(error.reason is Reason.AUDIT_UNAVAILABLE)
            refused += 1
        else:
            assert not refused
            before = suite.log.head
    assert refused >= 10, refused
    assert suite.log.head == before
    check(suite.full == [True] and not suite.broken)
    assert not files._guard(files.publish) or before[0] == 20
    suite.log.probe()
    check(suite.log.full)
    ballast.unlink()
    suite.log.probe()
    check(not suite.log.full)
    done = suite.log.append(waiting)
    assert suite.log.head[0] == 70
    assert [r.index for r in done.results if isinstance(r, Placed)] == list(range(20, 70))
    files.rebuild()
    report = verify_directory(folder / "log", (suite.signer.verifier,))
    assert report.size == 70
    assert published != (folder / "log/checkpoint").read_bytes()
    suite.close()
    again = open_suite(folder, Ring())
    assert again.log.head == suite.log.head
    again.close()
    sys.stdout.write("recovered\n")


def fails(folder: Path, how: str) -> None:
    disk = folder / "disk"
    disk.mkdir(mode=0o700)
    if how != "limit":
        _mount(folder, journal=how == "journal")
    suite = open_suite(disk, Ring())
    files = publisher(suite, folder)
    promised = suite.log.append([suite.entry() for _ in range(20)]).results
    files.rebuild()
    if how == "limit":
        limit = (disk / "log.entries").stat().st_size + 65_536
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    else:
        _fill(folder / "back/ballast")
    failed = False
    for _ in range(2000):
        try:
            promised += suite.log.append([suite.entry()]).results
        except SealwardError as error:
            check(error.reason is Reason.AUDIT_UNAVAILABLE)
            failed = True
            break
    assert failed
    # The first failure ends it, also when the disk is well again: what was dropped is not known.
    head = suite.log.head
    assert head[0] == len(promised)
    check(len(suite.broken) == 1 and not suite.full)
    if how == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    else:
        (folder / "back/ballast").unlink()
    try:
        suite.log.append([suite.entry()])
    except SealwardError as error:
        check(error.reason is Reason.AUDIT_UNAVAILABLE)
    else:
        raise SystemExit("appended after a failure")
    check(suite.log.head == head)
    files._guard(files.publish)
    why = suite.broken[0]
    with contextlib.suppress(sqlite3.Error):
        suite.close()
    if how != "limit":
        subprocess.run(["umount", disk], check=True)
        subprocess.run(["e2fsck", "-p", "-f", folder / "back/image"], check=False,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        subprocess.run(["mount", "-o", "loop", folder / "back/image", disk], check=True)
    again = open_suite(disk, Ring())
    places = {p.index: p.leaf for p in promised if isinstance(p, Placed)}
    assert again.store.leaves(0, len(promised)) == [places[n] for n in range(len(promised))]
    check(check_published(folder / "log", (again.signer.verifier,), again.log))
    publisher(again, folder).rebuild()
    report = verify_directory(folder / "log", (again.signer.verifier,))
    assert report.size >= len(promised)
    again.close()
    if how != "limit":
        subprocess.run(["umount", disk], check=True)
    sys.stdout.write(f"stopped: {why}\n")


def readonly(folder: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=3m,mode=700") != 0:
        raise SystemExit(f"mount: {errno.errorcode[ctypes.get_errno()]}")
    suite = open_suite(folder, Ring())
    suite.log.append([suite.entry()])
    suite.close()
    remount_readonly = 32 | 1
    check(libc.mount(b"none", bytes(folder), None, remount_readonly, None) == 0)
    try:
        open_suite(folder, Ring())
    except StartupError as error:
        sys.stdout.write(f"refused: {error}\n")


def _mount(folder: Path, *, journal: bool) -> None:
    """Mount a file system whose device has less room than it says."""
    back = folder / "back"
    back.mkdir()
    options = [] if journal else ["-O", "^has_journal"]
    for command in (
        ["mount", "-t", "tmpfs", "-o", "size=12m", "none", back],
        ["truncate", "-s", "64M", back / "image"],
        ["mkfs.ext4", "-q", "-F", "-b", "4096", *options, back / "image"],
        ["mount", "-o", "loop,errors=continue", back / "image", folder / "disk"],
    ):
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            raise SystemExit(f"mount: {command[0]}")
    found = subprocess.run(
        ["findmnt", "-no", "SOURCE", folder / "disk"], capture_output=True, text=True, check=True
    )
    # A loop device calls a request done of which it wrote a part: none is more than a page, then.
    device = Path("/sys/block", Path(found.stdout.strip()).name, "queue/max_sectors_kb")
    device.write_text("4")


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            check(error.errno == errno.ENOSPC)


def start_writer(folder: Path, *where: str, count: int = 0) -> subprocess.Popen[str]:
    """Start `write` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", __name__, "write", str(folder), str(count), *where],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )


if __name__ == "__main__":
    os.umask(0o077)
    # Standard output is for what was promised.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
    elif sys.argv[1] == "fails":
        fails(Path(sys.argv[2]), sys.argv[3])
    elif sys.argv[1] == "readonly":
        readonly(Path(sys.argv[2]))
    else:
        full(Path(sys.argv[2]))
