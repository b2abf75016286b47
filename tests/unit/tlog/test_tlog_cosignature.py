"""Cosignatures of both types: what Go made, what is signed, what is refused."""

from hashlib import sha256
from pathlib import Path

import pytest

from sealward.tlog.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from sealward.tlog.cosignature import (
    COSIGNATURE_TYPES,
    Cosigner,
    Ed25519CosignatureVerifier,
    MlDsa44CosignatureVerifier,
    ml_dsa_supported,
    timestamp_of,
)
from sealward.tlog.errors import CheckpointError, NoteError, SignatureError
from sealward.tlog.merkle import EMPTY_ROOT
from sealward.tlog.note import (
    Signature,
    add_signatures,
    open_note,
    parse_note,
    parse_vkey,
    parse_vkeys,
    sign_note,
)
from tests.support.cosigners import NOW, ed25519, ml_dsa
from tests.support.tlog_logs import ORIGIN, signer

VECTORS = Path(__file__).parent / "vectors"
CHECKPOINT = Checkpoint(ORIGIN, 5, sha256(b"root").digest())
TEXT = CHECKPOINT.marshal()
BOTH = pytest.mark.parametrize("cosigner", [ed25519("w.example/1"), ml_dsa("w.example/1")])


def test_this_installation_has_ml_dsa() -> None:
    assert ml_dsa_supported()


def test_reads_what_go_cosigned() -> None:
    """transparency-dev/formats v0.1.1 made it: one line of the log, one of each type."""
    keys = parse_vkeys((VECTORS / "cosigned.vkeys").read_text(), COSIGNATURE_TYPES)
    note = open_note((VECTORS / "cosigned").read_bytes(), keys)
    assert [line.name for line in note.verified] == ["witness.example/w1"] * 2
    assert [timestamp_of(line.signature) for line in note.verified] == [1_795_532_849] * 2
    assert [type(key) for key in keys] == [Ed25519CosignatureVerifier, MlDsa44CosignatureVerifier]
    assert [parse_vkey(key.vkey, COSIGNATURE_TYPES).key_id for key in keys] == [  # type: ignore[attr-defined]
        key.key_id for key in keys
    ]


def test_one_cosigner_signs_as_go_did() -> None:
    """Ed25519 is deterministic: the same key, time and text give Go's bytes."""
    go = parse_note((VECTORS / "cosigned").read_bytes())
    (line,) = [s for s in go.signatures if s.key_id.hex() == "02174a32"]
    from sealward.tlog.cosignature import ed25519_cosigner

    seed = sha256(b"golden witness").digest()
    ours = ed25519_cosigner("witness.example/w1", seed, lambda: 1_795_532_849)
    assert ours.sign(go.text) == line.signature


@BOTH
def test_a_cosigned_checkpoint_opens(cosigner: Cosigner) -> None:
    data = sign_note(TEXT, [signer(), cosigner])
    note = open_note(data, [signer().verifier, parse_vkey(cosigner.vkey, COSIGNATURE_TYPES)])
    assert [line.name for line in note.verified] == [ORIGIN, "w.example/1"]
    assert timestamp_of(note.verified[1].signature) == NOW
    # Who knows the log's key alone reads it as before.
    assert open_checkpoint(data, [signer().verifier]) == CHECKPOINT


@BOTH
def test_every_flipped_bit_of_a_cosignature_is_refused(cosigner: Cosigner) -> None:
    signature = cosigner.sign(TEXT)
    step = 1 if len(signature) < 100 else 97
    for bit in range(0, len(signature) * 8, step):
        flipped = bytearray(signature)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not cosigner.verifier.verify(TEXT, bytes(flipped))
    assert cosigner.verifier.verify(TEXT, signature)
    assert not cosigner.verifier.verify(TEXT, signature[:-1])
    assert not cosigner.verifier.verify(TEXT, b"")


@BOTH
def test_a_cosignature_is_of_one_checkpoint(cosigner: Cosigner) -> None:
    signature = cosigner.sign(TEXT)
    for other in (
        Checkpoint(ORIGIN, 6, CHECKPOINT.root),
        Checkpoint(ORIGIN, 5, sha256(b"other").digest()),
        Checkpoint(f"{ORIGIN}-2", 5, CHECKPOINT.root),
    ):
        assert not cosigner.verifier.verify(other.marshal(), signature)


def test_extension_lines_are_covered_by_ed25519_alone() -> None:
    extended = Checkpoint(ORIGIN, 5, CHECKPOINT.root, ("more",)).marshal()
    one, two = ed25519("w"), ml_dsa("w")
    assert not one.verifier.verify(extended, one.sign(TEXT))
    assert two.verifier.verify(extended, two.sign(TEXT))


def test_ml_dsa_commits_to_the_name() -> None:
    signature = ml_dsa("w").sign(TEXT)
    other = MlDsa44CosignatureVerifier("x", ml_dsa("w").verifier.public_key)
    assert not other.verify(TEXT, signature)


def test_the_message_of_ml_dsa_is_the_structure_of_the_specification() -> None:
    message = ml_dsa("w1").verifier.message(Checkpoint("o", 0, EMPTY_ROOT).marshal(), 1)
    assert message == (
        b"subtree/v1\n\0" + b"\x02w1" + bytes(7) + b"\x01" + b"\x01o" + bytes(16) + EMPTY_ROOT
    )


@BOTH
def test_nothing_but_a_checkpoint_is_cosigned(cosigner: Cosigner) -> None:
    for text in (
        b"",
        b"a note\n",
        TEXT[:-1],
        TEXT + b"\n",
        b"o\n05\n" + TEXT.split(b"\n")[2] + b"\n",
    ):
        with pytest.raises(CheckpointError):
            cosigner.sign(text)
        assert not cosigner.verifier.verify(text, bytes(8 + 64))


@pytest.mark.parametrize("time", [0, -1, 1 << 63])
def test_a_cosignature_has_a_time(time: int) -> None:
    with pytest.raises(ValueError, match="no time"):
        ed25519("w", lambda: time).sign(TEXT)


def test_a_time_beyond_the_specification_is_refused() -> None:
    cosigner = ed25519("w", lambda: (1 << 63) - 1)
    signature = cosigner.sign(TEXT)
    assert cosigner.verifier.verify(TEXT, signature)
    assert not cosigner.verifier.verify(TEXT, b"\x80" + signature[1:])
    with pytest.raises(CheckpointError):
        timestamp_of(b"\x80" + signature[1:])


def test_names_too_long_for_ml_dsa() -> None:
    for cosigner, text in (
        (ml_dsa("w" * 256), TEXT),
        (ml_dsa("w"), Checkpoint("o" * 256, 5, CHECKPOINT.root).marshal()),
    ):
        with pytest.raises(CheckpointError, match="too long"):
            cosigner.sign(text)


def test_keys_of_another_length_or_type_are_refused() -> None:
    with pytest.raises(NoteError, match="32 bytes"):
        Ed25519CosignatureVerifier("w", bytes(31))
    with pytest.raises(NoteError, match="1312 bytes"):
        MlDsa44CosignatureVerifier("w", bytes(32))
    with pytest.raises(NoteError, match="unknown type"):
        parse_vkey(signer().vkey, COSIGNATURE_TYPES)
    with pytest.raises(NoteError, match="unknown type"):
        parse_vkey(ed25519("w").vkey)


def test_the_same_key_as_a_log_key_and_as_a_witness_key_has_two_ids() -> None:
    log = signer(1, "w")
    witness = Ed25519CosignatureVerifier("w", log.verifier.public_key)
    assert witness.key_id != log.key_id


def test_lines_are_added_once() -> None:
    data = sign_checkpoint(CHECKPOINT, [signer()])
    lines = [Signature(c.name, c.key_id, c.sign(TEXT)) for c in (ed25519("w"), ml_dsa("w"))]
    cosigned = add_signatures(data, lines)
    assert add_signatures(cosigned, lines) == cosigned
    assert cosigned.startswith(data)
    verified = open_note(cosigned, [ed25519("w").verifier, ml_dsa("w").verifier]).verified
    assert list(verified) == lines


def test_a_bad_cosignature_refuses_the_note_of_who_knows_the_key() -> None:
    other = Checkpoint(ORIGIN, 4, CHECKPOINT.root).marshal()
    witness = ed25519("w")
    line = Signature(witness.name, witness.key_id, witness.sign(other))
    data = add_signatures(sign_checkpoint(CHECKPOINT, [signer()]), [line])
    assert open_checkpoint(data, [signer().verifier]) == CHECKPOINT
    with pytest.raises(SignatureError):
        open_note(data, [signer().verifier, witness.verifier])
