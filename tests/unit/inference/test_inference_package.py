"""Packages: one form, sealed, bound to their place, and nothing in clear."""

from __future__ import annotations

import io
import secrets
import tarfile
from pathlib import Path

import pytest

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from sealward.seal.errors import SealBrokenError
from sealward.seal.objects import open_object, seal_object
from services.inference import package
from services.inference.package import PackageError
from services.inference.settings import SHIPPED
from services.inference.store import ModelStore
from tests.support.inference_models import refusal


class Key:
    """A branch key with the real sealed format, held in memory."""

    def __init__(self, context: EncryptionContext, key: bytes, wrapped: bytes) -> None:
        self._context, self._key = context, key
        self.wrapped = wrapped
        self.closed = False

    def seal(self, plaintext: bytes) -> bytes:
        return seal_object(self._key, self._context, plaintext)

    def open(self, sealed: bytes) -> bytes:
        try:
            return open_object(self._key, self._context, sealed)
        except SealBrokenError:
            raise SealwardError(Reason.SEAL_BROKEN, "does not open") from None

    def close(self) -> None:
        self.closed = True


class Keys:
    """Wraps keys by remembering them, bound to their context as the keys service does."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[EncryptionContext, bytes]] = {}
        self.given: list[Key] = []
        self.away = False

    def create(self, context: EncryptionContext) -> Key:
        wrapped = secrets.token_bytes(40)
        self._known[wrapped] = context, secrets.token_bytes(32)
        return self.open(context, wrapped)

    def open(self, context: EncryptionContext, wrapped: bytes) -> Key:
        if self.away:
            raise SealwardError(Reason.KEYS_UNAVAILABLE, "away")
        bound, key = self._known.get(wrapped, (None, b""))
        if bound != context:
            raise SealwardError(Reason.SEAL_BROKEN, "not a key of this context")
        self.given.append(Key(context, key, wrapped))
        return self.given[-1]


@pytest.fixture
def files() -> dict[str, bytes]:
    return package.read_folder(SHIPPED / "diabetes-progression")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def test_the_archive_has_one_form(files: dict[str, bytes]) -> None:
    archive = package.pack(files)
    assert archive == package.pack(dict(reversed(files.items())))
    assert package.unpack(archive) == files


def test_other_archives_are_refused(files: dict[str, bytes]) -> None:
    archive = package.pack(files)
    other_order = io.BytesIO()
    with tarfile.open(fileobj=other_order, mode="w") as tar:
        for name in sorted(files, reverse=True):
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            tar.addfile(info, io.BytesIO(files[name]))
    link = io.BytesIO()
    with tarfile.open(fileobj=link, mode="w") as tar:
        info = tarfile.TarInfo("manifest.json")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    for bad in (b"", b"x" * 2000, archive[:-512], archive + b"\0" * 512, archive[:3000],
                other_order.getvalue(), link.getvalue()):  # fmt: skip
        with pytest.raises(PackageError):
            package.unpack(bad)


def test_what_is_pushed_can_be_loaded(store: ModelStore, files: dict[str, bytes]) -> None:
    keys = Keys()
    pushed = package.push(store, keys, files)
    assert store.list() == [("diabetes-progression", "1")]
    assert package.load(store, keys, "diabetes-progression", "1") == pushed
    assert pushed.onnx == files["model.onnx"]
    assert len(keys.given) == 2
    assert all(key.closed for key in keys.given)


def test_nothing_is_written_in_clear(
    store: ModelStore, files: dict[str, bytes], tmp_path: Path
) -> None:
    package.push(store, Keys(), files)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 2
    for path in written:
        content = path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600
        for clear in (b"skl2onnx", b"LinearRegressor", files["model.onnx"][100:140], b"summary"):
            assert clear not in content


def test_a_version_is_never_replaced(store: ModelStore, files: dict[str, bytes]) -> None:
    keys = Keys()
    package.push(store, keys, files)
    before = store.read("diabetes-progression", "1")
    assert refusal(package.push, store, keys, files).reason is Reason.ALREADY_EXISTS
    assert store.read("diabetes-progression", "1") == before


def test_every_flipped_byte_is_found(store: ModelStore, files: dict[str, bytes]) -> None:
    keys = Keys()
    package.push(store, keys, files)
    name, version = "diabetes-progression", "1"
    sealed, wrapped = store.read(name, version)
    for at in {*range(0, 600, 7), *range(600, len(sealed), 997), len(sealed) - 1}:
        changed = bytearray(sealed)
        changed[at] ^= 0x10
        store.write(name, version, bytes(changed), wrapped)
        with pytest.raises(PackageError, match="does not open"):
            package.load(store, keys, name, version)
    for cut in (0, 10, len(sealed) - 1):
        store.write(name, version, sealed[:cut], wrapped)
        with pytest.raises(PackageError):
            package.load(store, keys, name, version)


def test_a_package_opens_in_its_own_place_only(store: ModelStore, files: dict[str, bytes]) -> None:
    keys = Keys()
    package.push(store, keys, files)
    package.push(store, keys, package.read_folder(SHIPPED / "breast-cancer"))
    sealed, wrapped = store.read("breast-cancer", "1")
    _, other_key = store.read("diabetes-progression", "1")
    for name, version, key in (
        ("diabetes-progression", "1", wrapped),
        ("diabetes-progression", "1", other_key),
        ("breast-cancer", "2", wrapped),
    ):
        store.write(name, version, sealed, key)
        with pytest.raises(PackageError, match="does not open"):
            package.load(store, keys, name, version)


def test_a_package_of_another_model_is_refused_though_its_seal_is_right(
    store: ModelStore, files: dict[str, bytes]
) -> None:
    keys = Keys()
    key = keys.create(package.context_of("breast-cancer", "1"))
    store.write("breast-cancer", "1", key.seal(package.pack(files)), key.wrapped)
    with pytest.raises(PackageError, match="another model"):
        package.load(store, keys, "breast-cancer", "1")


def test_keys_away_is_not_the_packages_fault(store: ModelStore, files: dict[str, bytes]) -> None:
    keys = Keys()
    package.push(store, keys, files)
    keys.away = True
    error = refusal(package.load, store, keys, "diabetes-progression", "1")
    assert error.reason is Reason.KEYS_UNAVAILABLE


def test_parts_must_fit_together(files: dict[str, bytes]) -> None:
    other = package.read_folder(SHIPPED / "breast-cancer")
    for change, names in (
        ({"model.onnx": files["model.onnx"] + b"\0"}, "digest"),
        ({"golden.json": other["golden.json"]}, "self-test"),
        ({"manifest.json": b"{}"}, "manifest"),
        ({"card.md": b"\xff"}, "UTF-8"),
        ({"surplus": b""}, "exactly"),
    ):
        with pytest.raises(PackageError, match=names):
            package.read_package({**files, **change})


def test_names_cannot_leave_the_store(store: ModelStore, tmp_path: Path) -> None:
    for name, version in (("..", "1"), ("a/b", "1"), ("a", "../1"), ("", "1"), ("a", "1\n")):
        with pytest.raises(ValueError, match="not the name"):
            store.write(name, version, b"x", b"y")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_leftovers_of_a_crash_are_no_package(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    store = ModelStore(folder)
    store.write("a", "1", b"sealed", b"key")
    (folder / "a" / "2.sealed.tmp").write_bytes(b"half")
    (folder / "a" / "3.key").write_bytes(b"key without package")
    (folder / "Odd").mkdir()
    (folder / "Odd" / "1.sealed").write_bytes(b"x")
    again = ModelStore(folder)
    assert again.list() == [("a", "1")]
    assert not (folder / "a" / "2.sealed.tmp").exists()
    with pytest.raises(OSError, match="3"):
        again.read("a", "3")
