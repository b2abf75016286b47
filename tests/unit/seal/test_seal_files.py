"""Sealed files: two passes, constant memory, and nothing released that was not verified."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sealward.seal.context import OBJECT_SCHEMA, EncryptionContext
from sealward.seal.errors import SealBrokenError
from sealward.seal.files import OpenedFile, open_file, seal_file
from sealward.seal.objects import FRAME_BYTES, ObjectSealer
from tests.support.esdk import sdk_open, sdk_seal

KEY = bytes(range(32))
CONTEXT = EncryptionContext("default", "job", "0a1b2c")
PAIRS = dict(CONTEXT.pairs(OBJECT_SCHEMA))
SEALER = ObjectSealer(KEY)
HEADER = SEALER.header_size(CONTEXT)
FRAME = 16 + FRAME_BYTES + 16
BLOCK = 1 << 20
# Around frames and around blocks of sixteen.
SIZES = [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1]
SIZES += [BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + FRAME_BYTES, 3 * BLOCK, 3 * BLOCK + 12_345]
# Three blocks, the last of which holds two regular frames and the final one.
TEXT = os.urandom(2 * BLOCK + 2 * FRAME_BYTES + 1000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "object.sealed"


def sealed_file(path: Path, text: bytes = TEXT) -> Path:
    assert seal_file(SEALER, CONTEXT, io.BytesIO(text), path) == len(text)
    return path


def opened(path: Path) -> bytes:
    with open_file(SEALER, CONTEXT, path) as file:
        return file.read()


def refused(path: Path, sealed: bytes, context: EncryptionContext = CONTEXT) -> None:
    path.write_bytes(sealed)
    with pytest.raises(SealBrokenError):
        open_file(SEALER, context, path)


@pytest.mark.parametrize("size", SIZES)
def test_opens_what_it_sealed_and_so_do_others(path: Path, size: int) -> None:
    text = os.urandom(size)
    sealed = sealed_file(path, text).read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    with open_file(SEALER, CONTEXT, path) as file:
        assert file.size == size
        assert file.read() == text
        assert file.read() == b""
    assert SEALER.open(CONTEXT, sealed) == text
    assert sdk_open(KEY, sealed)[0] == text


@pytest.mark.parametrize("frame", [128, 4096, BLOCK])
def test_opens_what_the_sdk_sealed(path: Path, frame: int) -> None:
    for size in (0, frame, 100_000):
        path.write_bytes(sdk_seal(KEY, PAIRS, TEXT[:size], frame=frame))
        assert opened(path) == TEXT[:size]


def test_any_way_of_reading(path: Path, tmp_path: Path) -> None:
    sealed_file(path)
    with open_file(SEALER, CONTEXT, path) as file:
        assert b"".join(iter(lambda: file.read(100_003), b"")) == TEXT
    with open_file(SEALER, CONTEXT, path) as file, (tmp_path / "copy").open("wb") as copy:
        shutil.copyfileobj(file, copy)
    assert (tmp_path / "copy").read_bytes() == TEXT
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(tmp_path / "copy", "text")
    sealed_file(path, archive.getvalue())
    with open_file(SEALER, CONTEXT, path) as file, tarfile.open(fileobj=file, mode="r|") as tar:
        member = tar.next()
        assert member is not None
        content = tar.extractfile(member)
        assert content is not None
        assert content.read() == TEXT


def test_a_source_may_give_as_little_as_it_likes(path: Path) -> None:
    class Slow(io.BytesIO):
        def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
            return super().readinto(buffer[: 1 + (self.tell() % 70_001)])

    assert seal_file(SEALER, CONTEXT, Slow(TEXT), path) == len(TEXT)
    assert opened(path) == TEXT


def test_it_appears_whole_or_not_at_all(path: Path) -> None:
    class Failing(io.BytesIO):
        def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
            if self.tell() >= BLOCK:
                raise OSError("the source is gone")
            return super().readinto(buffer)

    for _ in range(2):
        before = path.read_bytes() if path.exists() else None
        with pytest.raises(OSError, match="gone"):
            seal_file(SEALER, CONTEXT, Failing(TEXT), path)
        assert (path.read_bytes() if path.exists() else None) == before
        assert list(path.parent.iterdir()) == ([path] if before else [])
        sealed_file(path)


def test_nothing_lies_in_clear_while_it_is_sealed(path: Path) -> None:
    """What a crash at any moment would leave."""
    seen: list[bytes] = []

    class Watching(io.BytesIO):
        def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
            seen.extend(found.read_bytes() for found in path.parent.iterdir())
            return super().readinto(buffer)

    seal_file(SEALER, CONTEXT, Watching(b"CANARY--" * (BLOCK // 2)), path)
    assert max(map(len, seen)) > 3 * BLOCK
    assert not [content for content in [*seen, path.read_bytes()] if b"CANARY--" in content]


def test_every_changed_byte_of_a_small_one(path: Path) -> None:
    sealed = sealed_file(path, b"a small object").read_bytes()
    for at in range(len(sealed)):
        refused(path, sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])


def test_every_truncation_of_a_small_one_and_any_tail(path: Path) -> None:
    sealed = sealed_file(path, b"a small object").read_bytes()
    for length in range(len(sealed)):
        refused(path, sealed[:length])
    refused(path, sealed + b"\x00")
    refused(path, sealed + sealed)


def test_truncations_at_every_frame(path: Path) -> None:
    sealed = sealed_file(path).read_bytes()
    for frames in range(len(TEXT) // FRAME_BYTES + 1):
        for away in (-1, 0, 1, 40):
            refused(path, sealed[: HEADER + frames * FRAME + away])


def test_frames_that_are_gone_swapped_or_foreign(path: Path) -> None:
    sealed = sealed_file(path).read_bytes()
    foreign = sealed_file(path).read_bytes()

    def frame(message: bytes, number: int) -> bytes:
        return message[HEADER + number * FRAME : HEADER + (number + 1) * FRAME]

    def put(number: int, content: bytes) -> bytes:
        return sealed[: HEADER + number * FRAME] + content + sealed[HEADER + (number + 1) * FRAME :]

    for changed in (
        put(0, b""),
        put(16, b""),
        put(16, frame(sealed, 17)),
        put(16, frame(foreign, 16)),
        put(33, frame(sealed, 0)),
        foreign[:HEADER] + sealed[HEADER:],
    ):
        refused(path, changed)


def test_another_context_or_key(path: Path) -> None:
    sealed = sealed_file(path).read_bytes()
    refused(path, sealed, CONTEXT.about("0a1b2d"))
    with pytest.raises(SealBrokenError):
        open_file(ObjectSealer(bytes(32)), CONTEXT, path)
    with pytest.raises(SealBrokenError):
        open_file(ObjectSealer(KEY, key_name="root"), CONTEXT, path)


def test_what_is_not_a_file(path: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        open_file(SEALER, CONTEXT, path)
    os.mkfifo(path)
    for odd in (path, tmp_path):
        with pytest.raises((SealBrokenError, OSError)):
            open_file(SEALER, CONTEXT, odd)
    real = sealed_file(tmp_path / "real")
    (tmp_path / "link").symlink_to(real)
    with pytest.raises(OSError, match="symbolic"):
        open_file(SEALER, CONTEXT, tmp_path / "link")


# --- between the passes ----------------------------------------------------------------------


def overwritten(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the very file, and set its time back: only its bytes give it away."""
    before = path.stat()
    content = change(path.read_bytes())
    with path.open("r+b") as file:
        file.write(content)
        file.truncate(len(content))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def read_until_refused(file: OpenedFile) -> bytes:
    got = io.BytesIO()
    with pytest.raises(SealBrokenError):
        shutil.copyfileobj(file, got, 50_000)
    for _ in range(2):
        with pytest.raises(SealBrokenError):
            file.read(1)
    return got.getvalue()


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda sealed: sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]


@pytest.mark.parametrize(
    ("change", "blocks"),
    [
        (flip(5), 0),
        (flip(HEADER - 1), 0),
        (flip(HEADER + 3 * FRAME + 100), 0),
        (flip(HEADER + 16 * FRAME + 100), 1),
        (flip(HEADER + 33 * FRAME), 2),
        (lambda sealed: flip(len(sealed) - 1)(sealed), 2),
        (lambda sealed: sealed[:-1], 2),
        (lambda sealed: sealed[: HEADER + 20 * FRAME], 1),
        (lambda sealed: sealed + b"\x00", 2),
        (lambda sealed: b"", 0),
    ],
)
def test_a_change_after_the_first_pass_is_found_before_release(
    path: Path, change: Callable[[bytes], bytes], blocks: int
) -> None:
    sealed_file(path)
    with open_file(SEALER, CONTEXT, path) as file:
        overwritten(path, change)
        assert read_until_refused(file) == TEXT[: blocks * BLOCK]


def test_a_whole_other_object_after_the_first_pass(path: Path, tmp_path: Path) -> None:
    other = sealed_file(tmp_path / "other").read_bytes()
    sealed_file(path)
    with open_file(SEALER, CONTEXT, path) as file:
        overwritten(path, lambda _: other)
        assert read_until_refused(file) == b""


@pytest.mark.parametrize("frame", [20, 32, 33, 34])
def test_frames_that_its_own_sealer_made_are_compared_too(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frame: int
) -> None:
    """Two messages with one header: only the tags tell them apart."""
    message = SEALER.begin(CONTEXT)
    with monkeypatch.context() as patch:
        patch.setattr(SEALER, "begin", lambda _context: message)
        second = sealed_file(tmp_path / "second", TEXT[::-1]).read_bytes()
        sealed_file(path)
    begins = HEADER + frame * FRAME
    ends = min(begins + FRAME, len(second))

    def mix(sealed: bytes) -> bytes:
        return sealed[:begins] + second[begins:ends] + sealed[ends:]

    with open_file(SEALER, CONTEXT, path) as file:
        overwritten(path, mix)
        released = read_until_refused(file)
    assert len(released) == 2 * BLOCK


def test_a_file_put_in_its_place_is_not_read(path: Path, tmp_path: Path) -> None:
    sealed_file(path)
    with open_file(SEALER, CONTEXT, path) as file:
        sealed_file(tmp_path / "other", b"other").replace(path)
        assert file.read() == TEXT


def test_a_file_whose_time_has_changed_is_refused_at_its_end(path: Path) -> None:
    sealed_file(path)
    with open_file(SEALER, CONTEXT, path) as file:
        os.utime(path, ns=(0, 1))
        assert read_until_refused(file) == TEXT[: 2 * BLOCK]


# --- the lease, progress, memory -------------------------------------------------------------


class SpentError(Exception):
    pass


class Meter:
    def __init__(self, most: int) -> None:
        self.left = most

    def __call__(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise SpentError


def test_work_ends_with_the_meter(path: Path) -> None:
    with pytest.raises(SpentError):
        seal_file(SEALER, CONTEXT, io.BytesIO(TEXT), path, meter=Meter(BLOCK))
    assert list(path.parent.iterdir()) == []
    size = sealed_file(path).stat().st_size
    with pytest.raises(SpentError):
        open_file(SEALER, CONTEXT, path, meter=Meter(size - 1))
    with (
        open_file(SEALER, CONTEXT, path, meter=Meter(size + 2 * BLOCK)) as file,
        pytest.raises(SpentError),
    ):
        file.read()
    with open_file(SEALER, CONTEXT, path, meter=Meter(2 * size)) as file:
        assert file.read() == TEXT


def test_progress_is_told(path: Path) -> None:
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))

    source = io.BytesIO(TEXT)
    seal_file(SEALER, CONTEXT, source, path, progress=progress, size=len(TEXT))
    assert [done for done, _ in told] == [BLOCK, 2 * BLOCK, len(TEXT)]
    assert {total for _, total in told} == {len(TEXT)}
    told.clear()
    with open_file(SEALER, CONTEXT, path, progress=progress) as file:
        file.read()
    size = path.stat().st_size
    assert len(told) == 6
    assert told == sorted(told)
    assert (told[2], told[-1]) == ((size, 2 * size), (2 * size, 2 * size))


PROGRAM = """
import json, os, sys
from pathlib import Path

from sealward.seal.context import EncryptionContext
from sealward.seal.files import open_file, seal_file
from sealward.seal.objects import ObjectSealer

written, folder = [], Path(sys.argv[1])

def watch(event, arguments):
    # An open file that is wrapped comes by again, by its number.
    if event == "open" and isinstance(arguments[0], (str, Path)) and arguments[2] & 3:
        written.append(os.path.basename(str(arguments[0])))

class Generated:
    def __init__(self, size):
        self.left, self.block = size, b"CANARY--" * 8192

    def readinto(self, buffer):
        size = min(len(buffer), self.left, len(self.block))
        buffer[:size] = self.block[:size]
        self.left -= size
        return size

def run(size):
    sealer, context = ObjectSealer(bytes(32)), EncryptionContext("default", "job", "x")
    path = folder / "sealed"
    seal_file(sealer, context, Generated(size), path)
    read = 0
    with open_file(sealer, context, path) as file:
        while piece := file.read(1 << 20):
            read += len(piece)
    path.unlink()
    assert read == size

def peak():
    # Not ru_maxrss, which begins with that of the parent process.
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

before = peak()
sys.addaudithook(watch)
run(300 << 20)
print(json.dumps({"grown": peak() - before, "written": written}))
"""


def test_constant_memory_and_no_file_in_clear(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # KiB: 300 MiB go through buffers of 1 MiB, one on each side of the cipher.
    assert found["grown"] < 12 * 1024
    assert len(found["written"]) == 1
    assert found["written"][0].startswith(".sealed.")
