"""Audit entries and Tink for Go, root keys and age: each opens what the other sealed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sealward.seal.entries import PREFIX_BYTES, EntryOpener, EntrySealer
from sealward.seal.errors import UnlockError
from sealward.seal.rootkey import UnlockSecret, new_identity
from tests.support.seal_go import GoTools

KEY = bytes(range(32))
SEGMENT = b"segment1"
ORIGIN = "sealward.local/0a1b2c3d/default/2026"
TEXTS = [(b"\x01" + os.urandom(48), os.urandom(size)) for size in (0, 1, 900, 70_000)]


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> GoTools:
    return GoTools(tmp_path_factory.mktemp("seal-go"))


def test_tink_opens_our_entries(go: GoTools) -> None:
    sealed = EntrySealer(KEY, SEGMENT, ORIGIN).seal_all(TEXTS)
    leaves = [prefix + entry for (prefix, _), entry in zip(TEXTS, sealed, strict=True)]
    assert go.entries(KEY, SEGMENT, ORIGIN, leaves)[0] == [text for _, text in TEXTS]


def test_we_open_entries_that_tink_sealed(go: GoTools) -> None:
    _, leaves = go.entries(KEY, SEGMENT, ORIGIN, texts=TEXTS)
    opener = EntryOpener(KEY, SEGMENT, ORIGIN)
    for (prefix, text), leaf in zip(TEXTS, leaves, strict=True):
        assert leaf[:PREFIX_BYTES] == prefix
        assert opener.open(prefix, leaf[PREFIX_BYTES:]) == text


def test_tink_refuses_what_was_changed(go: GoTools) -> None:
    prefix, text = TEXTS[2]
    leaf = prefix + EntrySealer(KEY, SEGMENT, ORIGIN).seal(prefix, text)
    # Version, event id, binding; segment; commitment; Tink's prefix, nonce, ciphertext, tag.
    places = [0, 5, 40, 49, 57, 88, 89, 93, 94, 106, len(leaf) - 1]
    changed = [leaf[:at] + bytes([leaf[at] ^ 1]) + leaf[at + 1 :] for at in places]
    changed += [leaf[:-1], leaf + b"\x00"]
    assert go.entries(KEY, SEGMENT, ORIGIN, [*changed, leaf])[0] == [None] * len(changed) + [text]
    assert go.entries(bytes(32), SEGMENT, ORIGIN, [leaf])[0] == [None]
    assert go.entries(KEY, SEGMENT, ORIGIN + "0", [leaf])[0] == [None]


@pytest.mark.parametrize("text", [new_identity(), "correct horse battery staple"])
def test_age_and_we_open_each_others_root_keys(go: GoTools, tmp_path: Path, text: str) -> None:
    root, secret = os.urandom(100), UnlockSecret(text)
    file, other = tmp_path / "unlock", tmp_path / "other"
    file.write_text(text + "\n")
    other.write_text(new_identity())
    sealed = secret.seal(root)
    assert sealed.startswith(b"age-encryption.org/v1\n")
    assert go.age("open", file, sealed) == root
    assert go.age("open", other, sealed) is None
    assert go.age("open", file, sealed[:-1] + bytes([sealed[-1] ^ 1])) is None
    theirs = go.age("seal", file, root)
    assert theirs is not None
    assert secret.open(theirs) == root
    with pytest.raises(UnlockError):
        UnlockSecret(new_identity()).open(theirs)
