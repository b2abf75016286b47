"""A package's archive has one form: what opens is byte for byte what `pack` writes."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.inference import package
from services.inference.package import MEMBERS, PackageError, pack, unpack

contents = st.fixed_dictionaries(
    {name: st.one_of(st.binary(max_size=1100), st.just(bytes(512))) for name, _ in MEMBERS}
)
FILES = {name: name.encode() * 50 for name, _ in MEMBERS}
ARCHIVE = pack(FILES)
spots = st.integers(0, len(ARCHIVE) - 1)


def one_form_or_refused(archive: bytes) -> None:
    try:
        files = unpack(archive)
    except PackageError:
        return
    assert pack(files) == archive


@given(contents)
def test_files_come_back_and_any_tar_reads_them(files: dict[str, bytes]) -> None:
    archive = pack(files)
    assert unpack(archive) == files
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert tar.getnames() == [name for name, _ in MEMBERS]


@given(spots, st.integers(1, 255))
def test_a_changed_byte(at: int, flip: int) -> None:
    one_form_or_refused(ARCHIVE[:at] + bytes([ARCHIVE[at] ^ flip]) + ARCHIVE[at + 1 :])


@given(spots, spots, st.binary(max_size=1100))
@example(len(ARCHIVE) - 512, len(ARCHIVE) - 1, b"")
@example(0, len(ARCHIVE) - 1, b"")
def test_a_piece_that_is_gone_or_other(one: int, other: int, piece: bytes) -> None:
    begin, end = sorted((one, other))
    one_form_or_refused(ARCHIVE[:begin] + piece + ARCHIVE[end:])


@given(st.binary(max_size=1100))
def test_bytes_that_are_no_archive(data: bytes) -> None:
    one_form_or_refused(data)
    one_form_or_refused(ARCHIVE + data)
    one_form_or_refused(ARCHIVE[:512] + data)


@pytest.mark.parametrize("zeros", [512, 1024, tarfile.RECORDSIZE])
def test_other_padding_is_refused(zeros: int) -> None:
    for archive in (ARCHIVE + bytes(zeros), ARCHIVE[:-zeros]):
        with pytest.raises(PackageError):
            unpack(archive)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "other.json"}, {"mode": 0o644}, {"uid": 1}, {"gname": "wheel"}, {"mtime": 1},
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, {"type": tarfile.DIRTYPE},
    ],
)  # fmt: skip
def test_other_headers_are_refused_though_their_checksum_is_right(fields: dict[str, Any]) -> None:
    name, _ = MEMBERS[0]
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(FILES[name]), 0o600
    assert unpack(member.tobuf(tarfile.USTAR_FORMAT) + ARCHIVE[512:]) == FILES
    for field, value in fields.items():
        setattr(member, field, value)
    with pytest.raises(PackageError):
        unpack(member.tobuf(tarfile.USTAR_FORMAT) + ARCHIVE[512:])


def test_a_size_beyond_its_limit_is_refused_before_it_is_believed() -> None:
    name, limit = MEMBERS[0]
    with pytest.raises(PackageError, match="too large"):
        unpack(package._header(name, limit + 1) + ARCHIVE[512:])
