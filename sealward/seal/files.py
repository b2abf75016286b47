"""Sealed objects that do not fit in memory: files, sealed and opened in constant memory.

Opening takes two passes over one open file. The first verifies every frame and the end; nothing is
released before. The second verifies each frame again before releasing it, since the file may have
been changed in between; the last block, up to 1 MiB, waits until header, frames and tags are found
to be those of the first pass. Nothing is written in clear, and there is no temporary file.

What is released before a change is seen is the true beginning of the object: frames are bound to
their message and their place. Who reads must still take an error for "nothing was opened".

Sealing writes sealed bytes only, into a temporary file that takes its name when it is durable.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from sealward.seal.context import EncryptionContext
from sealward.seal.durable import sync_folder
from sealward.seal.esdk import MAX_FRAMES, TAG_BYTES, Buffer, Message, broken
from sealward.seal.objects import ObjectSealer

# What is read and worked on at a time: a whole number of frames, about so many bytes.
_BLOCK_BYTES = 1 << 20

Meter = Callable[[int], None]
"""Called with the bytes that are next; may raise to end the work (the lease of the key)."""
Progress = Callable[[int, int], None]
"""Called with the bytes done and all bytes that there are to do, 0 where that is not known."""


def unmetered(size: int) -> None:
    """No lease stands behind the key."""


def no_progress(done: int, total: int) -> None:
    """Nobody watches."""


class Hash(Protocol):
    """A running hash."""

    def update(self, data: Buffer, /) -> None:
        """Take data in."""


class Source(Protocol):
    """Where plaintext comes from: a file, a pipe, anything with `readinto`."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Read at most a buffer; return how many bytes, 0 at the end."""


def seal_file(
    sealer: ObjectSealer,
    context: EncryptionContext,
    source: Source,
    target: Path,
    *,
    meter: Meter = unmetered,
    progress: Progress = no_progress,
    size: int = 0,
) -> int:
    """Seal all that `source` gives into a file of mode 0600; return how many bytes that were.

    The file replaces what has its name, at once and durably, or does not appear at all. `size` is
    for `progress` alone. Raises OSError and what source and meter raise.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            done = _write(sealer.begin(context), source, file, meter, progress, size)
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)
    return done


def _write(
    message: Message, source: Source, file: BinaryIO, meter: Meter, progress: Progress, total: int
) -> int:
    step = message.frame_bytes
    room = max(1, _BLOCK_BYTES // step)
    plain = memoryview(bytearray(room * step))
    sealed = memoryview(bytearray(room * message.stride + message.final_size(step)))
    _write_all(file, memoryview(message.header))
    number, done = 1, 0
    ended = False
    while not ended:
        got = _fill(source, plain)
        ended = got < len(plain)
        if number + room > MAX_FRAMES:
            raise ValueError("the object is larger than the format allows: 256 TiB")
        meter(got)
        at = 0
        for begins in range(0, got - got % step, step):
            at += message.seal_frame(number, plain[begins : begins + step], sealed[at:])
            number += 1
        if ended:
            at += message.seal_final(number, plain[got - got % step : got], sealed[at:])
        _write_all(file, sealed[:at])
        done += got
        progress(done, total)
    return done


def _fill(source: Source, buffer: memoryview) -> int:
    """Read until the buffer is full or the source has ended; return how many bytes."""
    got = 0
    while got < len(buffer):
        read = source.readinto(buffer[got:])
        if not read:
            break
        got += read
    return got


def _write_all(file: BinaryIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def open_file(
    sealer: ObjectSealer,
    context: EncryptionContext,
    path: Path,
    *,
    meter: Meter = unmetered,
    progress: Progress = no_progress,
) -> OpenedFile:
    """Verify a sealed file whole, then give what it holds to be read, once, from the beginning.

    Raises SealBrokenError as `ObjectSealer.open`, also for what is not a regular file, OSError, and
    what `meter` raises. `progress` counts both passes.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.fdopen(os.open(path, flags), "rb", buffering=0)
    try:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise broken()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        head = os.pread(file.fileno(), sealer.header_size(context), 0)
        message = sealer.read(context, head)
        return OpenedFile(file, found, message, meter, progress)
    except BaseException:
        file.close()
        raise


class OpenedFile(io.RawIOBase):
    """What a sealed file holds, verified whole before this exists and again while it is read.

    Reading raises SealBrokenError when the file was changed meanwhile, from then on always. Not
    thread-safe. Made by `open_file`.
    """

    def __init__(
        self,
        file: io.FileIO,
        found: os.stat_result,
        message: Message,
        meter: Meter,
        progress: Progress,
    ) -> None:
        self._file = file
        self._found = found
        self._message = message
        self._meter = meter
        self._progress = progress
        step = message.frame_bytes
        self._frames, rest = message.frames_in(found.st_size - message.size)
        self.size = self._frames * step + rest
        """Bytes of the object."""
        self._room = max(1, _BLOCK_BYTES // step)
        largest = self._room * message.stride + message.final_size(step)
        self._sealed = memoryview(bytearray(max(largest, message.size)))
        self._plain = memoryview(bytearray((self._room + 1) * step))
        self._ready = self._plain[:0]
        self._tags = b""
        for _ in self._pass(0):
            pass
        self._blocks: Iterator[memoryview] | None = self._pass(found.st_size)

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:  # type: ignore[override]
        """Read some of the object; return how many bytes, 0 at its end; raise SealBrokenError."""
        if self.closed:
            raise ValueError("the file is closed")
        out = memoryview(buffer).cast("B")
        while not self._ready:
            # A generator that has raised is at its end, which must not look like the object's.
            blocks, self._blocks = self._blocks, None
            if blocks is None:
                raise broken()
            ready = next(blocks, None)
            self._blocks = blocks
            if ready is None:
                return 0
            self._ready = ready
        size = min(len(out), len(self._ready))
        out[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def _pass(self, before: int) -> Iterator[memoryview]:
        """Go over the message; each block is good when it is given, the last when all of them are.

        The last block holds the final frame and up to a block of regular ones.
        """
        message, all_bytes = self._message, self._found.st_size
        if self._read(0, message.size) != message.header:
            raise broken()
        tags = hashlib.sha256()
        number, at, left = 1, message.size, self._frames
        while left > self._room:
            sealed = self._read(at, self._room * message.stride)
            size = self._open(number, sealed, self._room, tags)
            number, at, left = number + self._room, at + len(sealed), left - self._room
            self._progress(before + at, 2 * all_bytes)
            yield self._plain[:size]
        sealed = self._read(at, all_bytes - at)
        size = self._open(number, sealed, left, tags)
        final = sealed[left * message.stride :]
        size += message.open_final(number + left, final, self._plain[size:])
        tags.update(final[-TAG_BYTES:])
        self._compare(tags.digest())
        self._progress(before + all_bytes, 2 * all_bytes)
        yield self._plain[:size]

    def _open(self, number: int, sealed: memoryview, count: int, tags: Hash) -> int:
        """Open regular frames into the buffer; return how many bytes they hold."""
        step, stride = self._message.frame_bytes, self._message.stride
        for index in range(count):
            frame = sealed[index * stride : (index + 1) * stride]
            plain = self._plain[index * step : (index + 1) * step]
            self._message.open_frame(number + index, frame, plain)
            tags.update(frame[-TAG_BYTES:])
        return count * step

    def _compare(self, tags: bytes) -> None:
        """The end of a pass: the file is as it was, and the second time the same message."""
        now = os.fstat(self._file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._found.st_size, self._found.st_mtime_ns):
            raise broken()
        if not self._tags:
            self._tags = tags
        elif self._tags != tags:
            raise broken()

    def _read(self, at: int, size: int) -> memoryview:
        """Read exactly so many bytes into the buffer; raise SealBrokenError at the file's end."""
        self._meter(size)
        got = 0
        while got < size:
            read = os.preadv(self._file.fileno(), [self._sealed[got:size]], at + got)
            if not read:
                raise broken()
            got += read
        return self._sealed[:size]
