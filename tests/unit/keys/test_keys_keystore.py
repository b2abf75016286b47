"""The sealed file keystore: what it keeps, and everything that it refuses."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from sealward.seal.objects import FRAME_BYTES
from sealward.seal.rootkey import UnlockSecret, new_identity
from sealward.seal.secret import Secret
from services.keys import files, keystore, keystoreformat
from services.keys.authority import KeystoreAuthority, new_authority, utc_now
from services.keys.keystore import (
    RESTORE,
    ROOT_FILE,
    SEALED_FILE,
    Keystore,
    open_or_create,
)
from services.keys.keystoreformat import Content

SECRET = UnlockSecret(new_identity())


def initial(deployment: str) -> Content:
    return Content(deployment, "sealward.local", (new_authority("sealward.local", utc_now()),))


def opened(
    folder: Path, secret: UnlockSecret = SECRET, first: Callable[[str], Content] = initial
) -> Keystore:
    store, _ = open_or_create(folder, lambda _creating: secret, first)
    return store


def never(_deployment: str) -> Content:
    raise AssertionError("an existing keystore was about to be made anew")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A closed keystore with one key-encryption key."""
    made = opened(tmp_path)
    made.ensure_kek("default", "session")
    made.close()
    return tmp_path


def refusal(folder: Path, secret: UnlockSecret = SECRET) -> str:
    """The start is refused, with one line, and nothing on the disk changes."""
    before = snapshot(folder / "keystore")
    with pytest.raises(StartupError) as caught:
        opened(folder, secret, never)
    assert snapshot(folder / "keystore") == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_created_on_the_first_start_only(tmp_path: Path) -> None:
    asked: list[bool] = []

    def unlock(creating: bool) -> UnlockSecret:
        asked.append(creating)
        return SECRET

    first, created = open_or_create(tmp_path, unlock, initial)
    content = first.content
    first.close()
    assert created
    second, created = open_or_create(tmp_path, unlock, never)
    second.close()
    assert not created
    assert second.content == content
    assert asked == [True, False]


def test_keys_survive(tmp_path: Path) -> None:
    first = opened(tmp_path)
    assert first.keks("default", "session") == ()
    made = first.ensure_kek("default", "session")
    assert first.ensure_kek("default", "session") == made
    other = first.ensure_kek("default", "model")
    assert other != made
    first.close()
    second = opened(tmp_path)
    assert second.keks("default", "session") == made
    assert second.keks("default", "model") == other
    second.close()


def test_versions_survive(tmp_path: Path) -> None:
    first = opened(tmp_path)
    assert first.add_kek("default", "session") is None
    (one,) = first.ensure_kek("default", "session")
    two, three = (first.add_kek("default", "session") for _ in range(2))
    assert two is not None
    assert three is not None
    assert len({kek.key.reveal() for kek in (one, two, three)}) == 3
    assert [kek.version for kek in (one, two, three)] == [1, 2, 3]
    assert one.made > 0
    first.drop_keks("default", "session", 2)
    first.drop_keks("default", "session", 2)
    first.close()
    second = opened(tmp_path)
    assert second.keks("default", "session") == (two, three)
    second.drop_keks("default", "session", 9)
    assert second.keks("default", "session") == (three,)
    next_one = second.add_kek("default", "session")
    assert next_one is not None
    assert next_one.version == 4
    second.close()


def test_authorities_survive(store: Path) -> None:
    reopened = opened(store)
    ca = KeystoreAuthority(reopened)
    ca.announce()
    reopened.close()
    for step in ("adopt", "drop", "announce"):
        again = opened(store, first=never)
        assert again.content == reopened.content
        ca = KeystoreAuthority(again)
        getattr(ca, step)()
        again.close()
        reopened = again
    assert [one.state for one in ca.authorities()] == ["issuing", "next"]


def test_reads_what_the_first_version_wrote(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before keys had numbered versions, a list of keys stood for each name."""
    reopened = opened(store)
    real = keystoreformat.json.dumps  # type: ignore[attr-defined]
    (kek,) = (replace(kek, split=False) for kek in reopened.ensure_kek("default", "session"))
    keys = [kek.key]

    def first(document: dict[str, Any]) -> str:
        old = {name: [k["key"] for k in keks] for name, keks in document["keks"].items()}
        document = {name: value for name, value in document.items() if name != "issuing"}
        return str(real({**document, "version": 1, "keks": old}))

    monkeypatch.setattr(keystoreformat.json, "dumps", first)  # type: ignore[attr-defined]
    second = replace(kek, version=2, key=Secret(os.urandom(32)))
    with reopened._lock:
        reopened._put(replace(reopened.content, keks={"default/session": (kek, second)}))
    reopened.close()
    monkeypatch.undo()
    again = opened(store, first=never)
    assert [(k.version, k.made) for k in again.keks("default", "session")] == [(1, 0), (2, 0)]
    assert again.keks("default", "session")[0].key == keys[0]
    third = again.add_kek("default", "session")
    again.close()
    last = opened(store, first=never)
    assert last.keks("default", "session")[2] == third
    last.close()


def test_a_keystore_that_could_not_be_read_again_is_not_written(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reopened = opened(store)
    before = reopened.content
    monkeypatch.setattr(keystore, "LARGEST_BYTES", 100)
    for change in (reopened.ensure_kek, reopened.add_kek):
        with pytest.raises(SealwardError) as caught:
            change("default", "model" if change == reopened.ensure_kek else "session")
        assert caught.value.reason is Reason.KEYSTORE_UNAVAILABLE
    reopened.close()
    monkeypatch.undo()
    again = opened(store, first=never)
    assert again.content == before
    again.close()


def test_files_are_closed_to_others_and_hold_no_key_in_clear(store: Path) -> None:
    reopened = opened(store)
    folder = store / "keystore"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(snapshot(folder)) == [SEALED_FILE, ROOT_FILE]
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    blob = b"".join(snapshot(folder).values())
    assert reopened.keks("default", "session")[0].key.reveal() not in blob
    assert reopened.content.authorities[0].key.reveal() not in blob
    assert "authorities" not in repr(reopened)
    assert reopened.content.authorities[0].key.reveal().hex() not in repr(reopened.content)
    assert repr(reopened.keks("default", "session")[0].key.reveal())[2:-1] not in repr(
        reopened.content
    )
    reopened.close()


@pytest.mark.parametrize("name", [ROOT_FILE, SEALED_FILE])
def test_a_changed_file_is_refused(store: Path, name: str) -> None:
    path = store / "keystore" / name
    good = path.read_bytes()
    for place in range(0, len(good), 7):
        changed = bytearray(good)
        changed[place] ^= 0x10
        path.write_bytes(bytes(changed))
        assert name in refusal(store)
    for length in (0, 1, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        assert name in refusal(store)
    path.write_bytes(good + b"\x00")
    assert name in refusal(store)
    path.write_bytes(good)
    opened(store, first=never).close()


RANGE = re.compile(r"bytes (\d+) to (\d+) \(([a-z0-9 ]+)\) do not verify")
ENDS = re.compile(r"it ends at byte (\d+), in the middle of its ([a-z0-9 ]+)")


def test_the_bytes_that_failed_are_named_and_what_to_do(store: Path) -> None:
    """Whoever has to restore it is told what is damaged, not only that something is."""
    reopened = opened(store)
    (kek,) = reopened.ensure_kek("default", "session")
    kek = replace(kek, split=False)
    many = {f"tenant-{number}/session": (kek,) for number in range(1500)}
    with reopened._lock:
        reopened._put(replace(reopened.content, keks=many))
    reopened.close()
    sealed = store / "keystore" / SEALED_FILE
    root = store / "keystore" / ROOT_FILE
    good, header = sealed.read_bytes(), ""
    assert len(good) > 2 * FRAME_BYTES
    named: list[tuple[str, int, int]] = []
    for place in (0, 100, len(good) // 4, FRAME_BYTES + 2000, len(good) - 1):
        changed = bytearray(good)
        changed[place] ^= 1
        sealed.write_bytes(bytes(changed))
        said = refusal(store)
        found = RANGE.search(said)
        assert found is not None, said
        start, end = int(found[1]), int(found[2])
        assert start <= place <= end
        assert end - start <= FRAME_BYTES + 32
        assert said.endswith(RESTORE)
        named.append((found[3], start, end))
    assert [part for part, _, _ in named][:2] == ["header", "header"]
    assert {part for part, _, _ in named[2:]} == {"frame 1", "frame 2", "frame 3"}
    for length in (10, FRAME_BYTES, len(good) - 1):
        sealed.write_bytes(good[:length])
        found = ENDS.search(refusal(store))
        assert found is not None
        assert int(found[1]) == length
        header = header or found[2]
    assert header == "header"
    sealed.write_bytes(good + b"xyz")
    assert f"bytes {len(good)} to {len(good) + 2} (behind its end)" in refusal(store)
    sealed.write_bytes(good)

    age = root.read_bytes()
    payload = age.index(b"\n", age.index(b"\n---") + 1) + 1
    for place, part in ((0, "header"), (payload - 3, "header"), (payload, "payload")):
        changed = bytearray(age)
        changed[place] ^= 1
        root.write_bytes(bytes(changed))
        said = refusal(store)
        found = RANGE.search(said)
        assert found is not None, said
        assert int(found[1]) <= place <= int(found[2])
        assert found[3] == part
        assert said.endswith(RESTORE)
    root.write_bytes(age[:-1])
    assert f"to {len(age) - 2} (payload)" in refusal(store)
    root.write_bytes(age[:50])
    assert "it ends at byte 50, in the middle of its header" in refusal(store)
    root.write_bytes(age)
    opened(store, first=never).close()


@pytest.mark.parametrize("name", [ROOT_FILE, SEALED_FILE])
def test_a_missing_file_is_refused_and_not_made_anew(store: Path, name: str) -> None:
    (store / "keystore" / name).unlink()
    assert f"is damaged: {name} is missing; sealward keys restore --from" in refusal(store)


def test_files_of_two_keystores_do_not_mix(store: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("other")
    opened(other).close()
    foreign = (other / "keystore" / SEALED_FILE).read_bytes()
    (store / "keystore" / SEALED_FILE).write_bytes(foreign)
    assert "does not belong to root.age" in refusal(store)


def test_another_secret_is_refused(store: Path) -> None:
    assert "wrong unlock secret" in refusal(store, UnlockSecret(new_identity()))
    assert "wrong unlock secret" in refusal(store, UnlockSecret("a passphrase, not a key"))


def test_another_version_is_refused(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reopened = opened(store)
    monkeypatch.setattr(keystoreformat.json, "dumps", lambda _document: '{"version": 4}')  # type: ignore[attr-defined]
    reopened.ensure_kek("default", "model")
    reopened.close()
    monkeypatch.undo()
    assert "not a keystore of this version" in refusal(store)


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604])
def test_files_open_to_others_are_refused(store: Path, mode: int) -> None:
    (store / "keystore" / ROOT_FILE).chmod(mode)
    assert "chmod 600" in refusal(store)


def test_a_hard_link_or_folder_in_its_place_is_refused(store: Path, tmp_path: Path) -> None:
    path = store / "keystore" / SEALED_FILE
    os.link(path, tmp_path / "copy")
    assert "hard link" in refusal(store)
    path.unlink()
    path.mkdir()
    with pytest.raises(StartupError, match="regular file"):
        opened(store, first=never)


def test_one_process_at_a_time(store: Path) -> None:
    first = opened(store)
    assert "in use" in refusal(store)
    first.close()
    opened(store).close()


def test_a_refused_start_leaves_no_lock_behind(store: Path) -> None:
    refusal(store, UnlockSecret(new_identity()))
    opened(store).close()


def test_a_first_start_that_died_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / ".keystore.new").mkdir()
    (tmp_path / ".keystore.new" / ROOT_FILE).write_bytes(b"half")
    opened(tmp_path).close()
    assert not (tmp_path / ".keystore.new").exists()


def test_dying_at_any_step_of_a_write_leaves_the_old_or_the_new(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each system call of a write in turn is the last one that happens."""
    names = ("fsync", "replace")
    for dies in names:
        reopened = opened(store)
        before = reopened.content

        class Died(BaseException):
            pass

        def die(*_arguments: object) -> None:
            raise Died

        with monkeypatch.context() as patch:
            patch.setattr(files.os if dies == "fsync" else files.Path, dies, die)
            with pytest.raises(Died):
                reopened.ensure_kek("default", f"purpose-{dies}")
            with pytest.raises(Died):
                reopened.add_kek("default", "session")
        assert reopened.content == before
        reopened.close()
        again = opened(store, first=never)
        assert again.content == before
        again.close()


def test_a_full_disk_is_an_answer_and_makes_no_key(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reopened = opened(store)

    def full(_path: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(keystore, "write_durable", full)
        with pytest.raises(SealwardError) as caught:
            reopened.ensure_kek("default", "model")
    assert caught.value.reason is Reason.KEYSTORE_UNAVAILABLE
    assert reopened.keks("default", "model") == ()
    assert reopened.ensure_kek("default", "model")
    reopened.close()


def test_leftovers_of_a_write_are_removed(store: Path) -> None:
    leftover = store / "keystore" / f".{SEALED_FILE}.4711"
    leftover.write_bytes(b"half")
    opened(store).close()
    assert not leftover.exists()


def test_names_without_end_are_refused(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keystore, "MAX_KEKS", 2)
    reopened = opened(store)
    reopened.ensure_kek("a", "session")
    with pytest.raises(SealwardError) as caught:
        reopened.ensure_kek("b", "session")
    assert caught.value.reason is Reason.KEYSTORE_UNAVAILABLE
    reopened.close()


# --- generations ----------------------------------------------------------------------------------


def test_each_change_is_a_generation(store: Path) -> None:
    assert (store / "keystore.generation").read_bytes() == b"2\n"
    reopened = opened(store)
    assert reopened.content.generation == 2
    reopened.ensure_kek("default", "session")
    assert reopened.content.generation == 2
    reopened.ensure_kek("default", "model")
    reopened.add_kek("default", "model")
    reopened.close()
    assert (store / "keystore.generation").read_bytes() == b"4\n"
    assert opened(store).content.generation == 4


def test_an_older_file_put_back_stops_the_start(store: Path) -> None:
    older = (store / "keystore" / SEALED_FILE).read_bytes()
    reopened = opened(store)
    reopened.add_kek("default", "session")
    reopened.close()
    (store / "keystore" / SEALED_FILE).write_bytes(older)
    message = refusal(store)
    assert "generation 2, this folder has had 3" in message
    assert "sealward keys restore --from BACKUP --dir DIR --force" in message


def test_a_keystore_that_is_gone_is_not_made_anew(store: Path) -> None:
    shutil.rmtree(store / "keystore")
    with pytest.raises(StartupError, match=r"is gone; sealward keys restore --from BACKUP"):
        opened(store, first=never)


def test_killed_after_the_file_and_before_its_number_it_goes_on(store: Path) -> None:
    reopened = opened(store)
    reopened.add_kek("default", "session")
    reopened.close()
    (store / "keystore.generation").write_bytes(b"2\n")
    again = opened(store)
    assert again.content.generation == 3
    again.close()
    assert (store / "keystore.generation").read_bytes() == b"3\n"
    (store / "keystore.generation").write_bytes(b"many")
    assert "keystore.generation is not a number" in refusal(store)


def test_a_keystore_of_before_generations_were_counted(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reopened = opened(store)
    dumps = keystoreformat.json.dumps  # type: ignore[attr-defined]

    def without(document: dict[str, Any]) -> str:
        return str(
            dumps(
                {k: v for k, v in document.items() if k != "generation" or "keks" not in document}
            )
        )

    monkeypatch.setattr(keystoreformat.json, "dumps", without)  # type: ignore[attr-defined]
    reopened.ensure_kek("default", "model")
    monkeypatch.undo()
    reopened.close()
    (store / "keystore.generation").unlink()
    again = opened(store)
    assert again.content.generation == 0
    again.ensure_kek("default", "user")
    assert again.content.generation == 1
    again.close()
    assert (store / "keystore.generation").read_bytes() == b"1\n"
