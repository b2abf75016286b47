"""The keys of sealed packages move on to newer key-encryption keys, and every package opens."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealward.kit.errors import SealwardError
from sealward.kit.keysclient import KeyRing
from sealward.kit.reasons import Reason
from services.inference import package, store
from services.inference.package import PackageError, RingKeys
from services.inference.settings import SHIPPED
from services.inference.store import ModelStore
from services.inference.wrapping import PackageKeys
from tests.support.local_keys import LocalKeys

WHO = "service/inference"
MODELS = ("breast-cancer", "diabetes-progression")


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[LocalKeys]:
    made = LocalKeys(tmp_path / "keys")
    yield made
    made.close()


@pytest.fixture
def ring(keys: LocalKeys) -> Iterator[KeyRing]:
    made = keys.ring()
    yield made
    made.close()


@pytest.fixture
def models(tmp_path: Path, ring: KeyRing) -> ModelStore:
    made = ModelStore(tmp_path / "models")
    for name in MODELS:
        package.push(made, RingKeys(ring, 5), package.read_folder(SHIPPED / name))
    return made


def all_open(models: ModelStore, ring: KeyRing) -> None:
    for name, version in models.list():
        assert package.load(models, RingKeys(ring, 5), name, version).manifest.name == name


def test_packages_open_after_their_keys_moved_on(
    keys: LocalKeys, ring: KeyRing, models: ModelStore
) -> None:
    sealed = [models.read(*model)[0] for model in models.list()]
    for _ in range(3):
        keys.rotate()
        all_open(models, ring)
        answer = keys.move(PackageKeys(models), WHO)["default/model"]
        assert (answer.total, answer.moved, answer.confirmed) == (2, 2, True)
        keys.retire()
        all_open(models, ring)
    # The data stays as it is.
    assert [models.read(*model)[0] for model in models.list()] == sealed
    assert (models._folder / MODELS[0] / "1.key").stat().st_mode & 0o777 == 0o600


def test_a_key_that_was_swapped_is_named_and_keeps_the_old_version_alive(
    keys: LocalKeys, ring: KeyRing, models: ModelStore
) -> None:
    one, other = (models._folder / name / "1.key" for name in MODELS)
    good = one.read_bytes()
    one.write_bytes(other.read_bytes())
    keys.rotate()
    answer = keys.move(PackageKeys(models), WHO)["default/model"]
    assert (list(answer.failed), answer.confirmed) == (["breast-cancer@1"], False)
    with pytest.raises(SealwardError) as caught:
        keys.retire()
    assert caught.value.reason is Reason.KEY_IN_USE
    one.write_bytes(good)
    assert keys.move(PackageKeys(models), WHO)["default/model"].confirmed
    keys.retire()
    all_open(models, ring)


def test_dying_at_any_step_of_a_pass_loses_nothing(
    keys: LocalKeys, ring: KeyRing, models: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call to the system in turn is the last one that happens."""

    class DiedError(BaseException):
        pass

    steps = 0
    died = True
    while died:
        left = steps
        steps += 1
        died = False

        def counted(real: object) -> object:
            def call(*arguments: object, **named: object) -> object:
                nonlocal left, died
                left -= 1
                if left < 0:
                    died = True
                    raise DiedError
                return real(*arguments, **named)  # type: ignore[operator]

            return call

        keys.rotate()
        with monkeypatch.context() as patch:
            for name in ("open", "fsync"):
                patch.setattr(store.os, name, counted(getattr(os, name)))
            patch.setattr(Path, "rename", counted(Path.rename))
            with contextlib.suppress(DiedError):
                keys.move(PackageKeys(models), WHO)
        # As after a restart.
        again = ModelStore(models._folder)
        all_open(again, ring)
        assert keys.move(PackageKeys(again), WHO)["default/model"].confirmed
        keys.retire()
        all_open(again, ring)
    assert steps > 8


def test_a_disk_that_fails_is_told(
    keys: LocalKeys, models: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    keys.rotate()
    with monkeypatch.context() as patch:
        patch.setattr(store.os, "fsync", full)
        with pytest.raises(SealwardError) as caught:
            keys.move(PackageKeys(models), WHO)
    assert caught.value.reason is Reason.KEYSTORE_UNAVAILABLE
    assert keys.move(PackageKeys(models), WHO)["default/model"].confirmed


def test_a_package_without_its_key_has_nothing_to_move(
    keys: LocalKeys, ring: KeyRing, models: ModelStore
) -> None:
    (models._folder / MODELS[0] / "1.key").unlink()
    keys.rotate()
    assert keys.move(PackageKeys(models), WHO)["default/model"].moved == 1
    with pytest.raises(PackageError):
        package.load(models, RingKeys(ring, 5), MODELS[0], "1")
