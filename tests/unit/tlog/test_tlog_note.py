import pytest

from sealward.tlog.errors import NoteError, SignatureError
from sealward.tlog.note import (
    Ed25519Signer,
    Ed25519Verifier,
    Verifier,
    open_note,
    parse_note,
    parse_vkey,
    parse_vkeys,
    sign_note,
)
from sealward.tlog.text import encode_base64
from tests.support.tlog_logs import signer

# The example of golang.org/x/mod/sumdb/note.
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb"
    "6KE6RyyBwJnAM=\n"
).encode()
TEXT = b"one\n\ntwo\n"


def test_reads_a_note_and_a_key_that_go_made() -> None:
    verifier = parse_vkey(GO_VKEY)
    note = open_note(GO_NOTE, [verifier])
    assert note.text.startswith(b"If you think")
    assert [line.name for line in note.verified] == ["PeterNeumann"]
    assert isinstance(verifier, Ed25519Verifier)
    assert verifier.vkey == GO_VKEY


def test_reads_the_key_of_the_go_checksum_database() -> None:
    parse_vkey("sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8")


def test_sign_and_open() -> None:
    one, two = signer(1), signer(2)
    data = sign_note(TEXT, [one, two])
    note = open_note(data, parse_vkeys(f"{one.vkey}\n\n{two.vkey}\n"))
    assert note.text == TEXT
    assert [line.key_id for line in note.verified] == [one.key_id, two.key_id]
    assert open_note(data, [two.verifier]).verified[0].key_id == two.key_id


def test_generated_key_signs_again_from_its_private_bytes() -> None:
    made, private = Ed25519Signer.generate("example.com/log")
    again = Ed25519Signer("example.com/log", private)
    assert again.vkey == made.vkey
    assert sign_note(TEXT, [again]) == sign_note(TEXT, [made])


def test_remembered_signatures_hold_for_their_own_text_alone() -> None:
    one = signer(1)
    texts = [b"text %d\n" % i for i in range(20)]
    signatures = [one.sign(text) for text in texts]
    for _ in range(2):
        for i, text in enumerate(texts):
            assert one.verifier.verify(text, signatures[i])
            assert not one.verifier.verify(text, signatures[i - 1])
            assert not one.verifier.verify(texts[i - 1], signatures[i])
    assert len(one.verifier._held) == 8


def test_unknown_keys_are_ignored_and_known_ones_needed() -> None:
    data = sign_note(TEXT, [signer(2)])
    for strangers in ([], [signer(1).verifier], [signer(2, "other.name").verifier]):
        with pytest.raises(SignatureError, match="not signed by a known key"):
            open_note(data, strangers)


def test_one_bad_line_of_a_known_key_refuses_the_note() -> None:
    one, two = signer(1), signer(2)
    forged = encode_base64(two.key_id + one.sign(TEXT))
    data = sign_note(TEXT, [one]) + f"— {two.name} {forged}\n".encode()
    open_note(data, [one.verifier])
    with pytest.raises(SignatureError, match="does not hold"):
        open_note(data, [one.verifier, two.verifier])


def test_same_line_twice_counts_once() -> None:
    one = signer(1)
    data = sign_note(TEXT, [one, one])
    assert len(open_note(data, [one.verifier]).verified) == 1


def test_sixteen_and_more_signatures_are_accepted_but_not_any_number() -> None:
    many = [signer(i) for i in range(100)]
    open_note(sign_note(TEXT, many), [many[99].verifier])
    with pytest.raises(NoteError, match="too many"):
        parse_note(sign_note(TEXT, [*many, signer(100)]))


def test_every_flipped_bit_of_a_note_is_refused() -> None:
    data = sign_note(TEXT, [signer()])
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(NoteError):
            open_note(bytes(flipped), [signer().verifier])


def test_every_flipped_bit_of_a_verifier_key_is_refused() -> None:
    vkey = signer().vkey
    for bit in range(len(vkey) * 7):
        flipped = bytearray(vkey.encode())
        flipped[bit // 7] ^= 1 << bit % 7
        try:
            line = parse_vkey(flipped.decode())
        except NoteError:
            continue
        pytest.fail(f"bit {bit} gives a key named {line.name!r}")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"text\n",
        b"text\n\n",
        b"text\n\nno dash name AAAAAAA=\n",
        "text\n\n— name\n".encode(),
        "text\n\n— name AAAA\n".encode(),
        "text\n\n— name AAAAAA==\n".encode(),
        "text\n\n— na+me AAAAAAA=\n".encode(),
        "text\n\n—  AAAAAAA=\n".encode(),
        "text\n\n— name AAAAAAB=\n".encode(),
        "text\n\n— name AAAAAAA=".encode(),
        "text\n\n— name AAAAAAA= \n".encode(),
        "te\txt\n\n— name AAAAAAA=\n".encode(),
        b"te\xffxt\n\n\xe2\x80\x94 name AAAAAAA=\n",
        "text\r\n\n— name AAAAAAA=\n".encode(),
        b"x" * (1 << 20) + "\n\n— name AAAAAAA=\n".encode(),
    ],
)
def test_malformed_notes_are_refused(data: bytes) -> None:
    with pytest.raises(NoteError):
        parse_note(data)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "name",
        "name+00000000",
        "name+00000000+AAAA",
        "name+00000000+",
        "name+c74f20a3+not base64",
        GO_VKEY.replace("c74f", "C74F"),
        GO_VKEY.replace("Peter", "Pieter"),
        GO_VKEY.replace("Peter", "Pe ter"),
        GO_VKEY[:-4],
        GO_VKEY + "+",
        "+" + GO_VKEY.split("+", 1)[1],
    ],
)
def test_malformed_verifier_keys_are_refused(line: str) -> None:
    with pytest.raises(NoteError):
        parse_vkey(line)


def test_a_key_file_needs_a_key() -> None:
    with pytest.raises(NoteError, match="no verifier key"):
        parse_vkeys("\n \n")


def test_two_keys_of_one_identity_are_refused() -> None:
    with pytest.raises(NoteError, match="share name and id"):
        open_note(GO_NOTE, [parse_vkey(GO_VKEY), parse_vkey(GO_VKEY)])


@pytest.mark.parametrize("text", [b"", b"no newline", b"bell\x07\n", b"\xff\n"])
def test_only_text_is_signed(text: bytes) -> None:
    with pytest.raises(NoteError):
        sign_note(text, [signer()])


def test_a_note_needs_a_signer() -> None:
    with pytest.raises(NoteError):
        sign_note(TEXT, [])


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\u2003b", "a\nb", "a\x1fb"])
def test_names_that_cannot_be_keys(name: str) -> None:
    with pytest.raises(NoteError):
        signer(1, name)


def test_other_signature_types_plug_in() -> None:
    class Reversed:
        """Takes the reversed text for a signature."""

        def __init__(self, name: str, public_key: bytes) -> None:
            self.name, self.key_id = name, public_key[:4]

        def verify(self, text: bytes, signature: bytes) -> bool:
            return signature == text[::-1]

        def sign(self, text: bytes) -> bytes:
            return text[::-1]

    key: Verifier = parse_vkey("toy+61626364+/2FiY2Q=", {0xFF: Reversed})
    assert isinstance(key, Reversed)
    assert open_note(sign_note(TEXT, [key]), [key]).verified
    with pytest.raises(NoteError, match="unknown type"):
        parse_vkey("toy+61626364+/2FiY2Q=")


def test_wrong_key_lengths_are_refused() -> None:
    with pytest.raises(NoteError):
        Ed25519Signer("name", bytes(31))
    with pytest.raises(NoteError):
        Ed25519Verifier("name", bytes(33))
