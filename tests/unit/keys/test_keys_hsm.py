"""A keystore that a key in a PKCS#11 token unlocks: SoftHSM, and modules that misbehave."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealward.kit.enroll import write_private
from sealward.kit.errors import StartupError
from sealward.seal.errors import UnlockError
from sealward.seal.rootkey import UnlockSecret, new_identity
from services.keys.authority import new_authority, utc_now
from services.keys.hsm import Hsm
from services.keys.keystore import Keystore, Unlock, open_or_create
from services.keys.keystoreformat import Content
from services.keys.restore import change_unlock
from tests.support.softhsm import PIN, SoftHsm

TD = "sealward.local"
ROOT = b'{"root": "something secret"}'


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoftHsm:
    return SoftHsm(tmp_path / "hsm", monkeypatch.setenv)


def opened(folder: Path, unlock: Unlock) -> Keystore:
    folder.mkdir(mode=0o700, exist_ok=True)
    return open_or_create(
        folder,
        lambda _creating: unlock,
        lambda deployment: Content(deployment, TD, (new_authority(TD, utc_now()),)),
    )[0]


def decode(text: bytes) -> bytes:
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))


@pytest.mark.parametrize("kind", ["256", "rsa"])
def test_it_opens_what_it_sealed_and_nothing_that_was_changed(token: SoftHsm, kind: str) -> None:
    hsm = token.unlock(token.make("root", kind))
    sealed = hsm.seal(ROOT)
    assert ROOT not in sealed
    assert hsm.open(sealed) == ROOT
    assert hsm.seal(ROOT) != sealed
    parts = sealed.split(b".")
    changed = [sealed[:-4], b"", b"....", sealed + b".", sealed.replace(b".", b"", 1)]
    for place, part in enumerate(parts):
        if part:
            raw = bytearray(decode(part))
            raw[len(raw) // 2] ^= 1
            other = base64.urlsafe_b64encode(bytes(raw)).rstrip(b"=")
            changed.append(b".".join([*parts[:place], other, *parts[place + 1 :]]))
    for bad in changed:
        with pytest.raises(UnlockError):
            hsm.open(bad)
    another = token.unlock(token.make("another", kind))
    with pytest.raises(UnlockError):
        another.open(sealed)


def test_it_is_a_jwe_that_anybody_with_the_key_reads(token: SoftHsm) -> None:
    """RFC 7516 and 7518, read by hand with a key that only this test knows outside the token."""
    value = secrets.token_bytes(32)
    sealed = token.unlock(token.make("known", value=value)).seal(ROOT)
    header, wrapped, iv, body, tag = sealed.split(b".")
    assert json.loads(decode(header)) == {"alg": "dir", "enc": "A256GCM", "kid": "known"}
    assert wrapped == b""
    assert AESGCM(value).decrypt(decode(iv), decode(body) + decode(tag), header) == ROOT


def test_a_key_that_can_leave_the_token_is_refused(token: SoftHsm) -> None:
    hsm = token.unlock(token.make("loose", extractable=True))
    with pytest.raises(StartupError, match="can be taken out of the token"):
        hsm.seal(ROOT)


def test_what_is_missing_or_wrong_is_named(token: SoftHsm, tmp_path: Path) -> None:
    token.make("root")
    token.make("short", "128")
    for _ in range(2):
        token.make("twice")

    def problem(key: str = "root", **changes: object) -> str:
        with pytest.raises(StartupError) as caught:
            token.unlock(key, **changes).seal(ROOT)
        assert PIN not in str(caught.value)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "0 keys that are called none" in problem("none")
    assert "2 keys that are called twice" in problem("twice")
    assert "256 bits" in problem("short")
    assert "no token other" in problem(token="other")
    assert "not a PKCS#11 module" in problem(module=tmp_path / "no.so")
    (tmp_path / "text.so").write_text("not a library")
    assert "not a PKCS#11 module" in problem(module=tmp_path / "text.so")
    assert "does not exist" in problem(pin_file=tmp_path / "none")
    wrong = tmp_path / "wrong"
    write_private(wrong, b"000000")
    assert "PIN of token sealward is wrong" in problem(pin_file=wrong)
    wrong.chmod(0o644)
    assert "open to others" in problem(pin_file=wrong)


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("for (;;) pause();", "did not answer within 1 s"),
        ("abort();", "no answer"),
        ("_exit(0);", "no answer"),
        ('puts("{\\"data\\": 7"); fflush(stdout); _exit(3);', "no answer"),
    ],
)
def test_a_module_that_hangs_or_dies_takes_nobody_along(
    tmp_path: Path, behaviour: str, said: str
) -> None:
    source, module = tmp_path / "bad.c", tmp_path / "bad.so"
    source.write_text(
        "#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n"
        f"__attribute__((constructor)) static void load(void) {{ {behaviour} }}\n"
    )
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", module, source], check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("there is no C compiler: a module that hangs was not tried")
    pin = tmp_path / "pin"
    write_private(pin, b"1")
    pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed")
    seconds = 1.0 if "pause" in behaviour else 60.0
    with pytest.raises(StartupError, match=said):
        Hsm(module, "t", "k", pin, seconds).seal(ROOT)


def test_a_keystore_moves_to_the_token_and_back(token: SoftHsm, tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    secret, hsm = UnlockSecret(new_identity()), token.unlock(token.make("root"))
    store = opened(folder, secret)
    store.ensure_kek("default", "session")
    content = store.content
    store.close()
    with pytest.raises(StartupError, match="unlocked by a secret"):
        opened(folder, hsm)

    change_unlock(folder, secret, hsm)
    assert sorted(path.name for path in (folder / "keystore").iterdir()) == [
        "keystore.sealed", "root.jwe",
    ]  # fmt: skip
    with pytest.raises(StartupError, match="unlocked by a PKCS#11 token"):
        opened(folder, secret)
    store = opened(folder, hsm)
    assert store.content == content
    with pytest.raises(StartupError, match="in use"):
        change_unlock(folder, hsm, secret)
    assert set(store.copy()[1]) == {"root.jwe", "keystore.sealed"}
    store.close()
    with pytest.raises(StartupError, match="key in the token is another one"):
        opened(folder, token.unlock(token.make("another")))

    change_unlock(folder, hsm, secret)
    store = opened(folder, secret)
    assert store.content == content
    store.close()
    assert not (folder / "keystore" / "root.jwe").exists()


def test_a_change_that_was_cut_off_stops_the_start_until_it_is_done(
    token: SoftHsm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Died

    folder = tmp_path / "keys"
    secret, hsm = UnlockSecret(new_identity()), token.unlock(token.make("root"))
    opened(folder, secret).close()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", die)
        with pytest.raises(Died):
            change_unlock(folder, secret, hsm)
    for unlock in (secret, hsm):
        with pytest.raises(StartupError, match="unlocked in two ways"):
            opened(folder, unlock)
    change_unlock(folder, secret, hsm)
    opened(folder, hsm).close()


def test_the_helper_gets_no_secret_by_argument_or_variable(
    token: SoftHsm, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    run = subprocess.run

    def spy(argv: list[str], **options: object) -> object:
        seen.append((argv, dict(os.environ), options.get("env")))
        return run(argv, **options)  # type: ignore[call-overload]

    hsm = token.unlock(token.make("root"))
    monkeypatch.setattr(subprocess, "run", spy)
    hsm.open(hsm.seal(ROOT))
    assert len(seen) == 2
    assert PIN not in str(seen)
    assert base64.b64encode(ROOT).decode() not in str(seen)
