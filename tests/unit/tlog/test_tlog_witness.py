"""The witness protocol: the specification's examples, and every answer of a witness."""

import base64
from hashlib import sha256

import pytest

from sealward.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealward.tlog.errors import WitnessFormatError
from sealward.tlog.merkle import EMPTY_ROOT
from sealward.tlog.note import sign_note
from sealward.tlog.witness import (
    MAX_REQUEST_SIZE,
    AddCheckpoint,
    Judgement,
    KnownLog,
    Status,
    format_size,
    judge,
    parse_cosignatures,
    parse_size,
)
from tests.support.cosigners import ed25519, ml_dsa
from tests.support.tlog_logs import ORIGIN, entries, signer, tree_of

# The example of the specification.
REQUEST = (
    "old 20852014\n"
    "PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n"
    "jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=\n"
    "5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=\n"
    "/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=\n"
    "\n"
    "example.com/behind-the-sofa\n"
    "20852163\n"
    "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    "\n"
    "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/"
    "Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "— example.com/behind-the-sofa opLqBQsREYCgu6xQkYQwJr9fo45a62DN9EdmHXnZdXNqlcVGlCum2Wks+"
    "49/V6267UEjw6QUXTS5Rovnzv++qbSzm9Q=\n"
).encode()
ANSWER = (
    "— witness.example/w1 CMp+6LWBU0anHGH5aNDTJkH/gj79sG+T6+iP2ThYN5krrDJbR1HDnucjL39QsZTSvVjyQL"
    "rdk3DXDqI5G2HgLatVs0pWh6Up69HVOw==\n"
    "— witness.example/w1 I7rEps0pvK2UqkS2gSpVUDhrhVtQV9lgF6pRrWAvjJHjyWpW7VcE3SiOlVlbQNt64vWhO+"
    "DlkL0+UfzuOBMh9ChdMkP1vi/lCAsmlw==\n"
    "— witness.example/w2 AWui8Sk55XjYLOijihBjhqEH6nS1ndDymE0a+6idX7pLcnoB+dhnz0854aLZgrrKbYKA7n"
    "C3HNJhm/kWl7oJlqU3rXXvpysAdyP3wQ==\n"
).encode()

TREE = tree_of(entries(20))
OTHER = tree_of([b"x", *entries(20)[1:]])


def note(size: int, root: bytes | None = None, origin: str = ORIGIN) -> bytes:
    found = TREE.root(size) if root is None else root
    return sign_checkpoint(Checkpoint(origin, size, found), [signer(1, origin)])


def request(old: int, new: int, root: bytes | None = None) -> AddCheckpoint:
    proof = TREE.consistency(old, new) if old <= new else ()
    return AddCheckpoint(old, tuple(proof), note(new, root))


def ask(asked: AddCheckpoint, size: int = 0) -> Judgement:
    """What a witness answers that has cosigned the first `size` entries."""
    known = KnownLog([signer().verifier], size, TREE.root(size))
    return judge(asked, lambda origin: known if origin == ORIGIN else None)


def test_the_examples_of_the_specification() -> None:
    asked = AddCheckpoint.parse(REQUEST)
    assert (asked.old, len(asked.proof)) == (20_852_014, 4)
    assert asked.checkpoint.startswith(b"example.com/behind-the-sofa\n20852163\n")
    assert asked.format() == REQUEST
    assert [line.name for line in parse_cosignatures(ANSWER)] == [
        "witness.example/w1",
        "witness.example/w1",
        "witness.example/w2",
    ]


@pytest.mark.parametrize(("old", "new"), [(0, 0), (0, 1), (0, 20), (1, 2), (7, 13), (16, 20)])
def test_a_log_that_grows_is_cosigned(old: int, new: int) -> None:
    asked = request(old, new)
    answer = ask(AddCheckpoint.parse(asked.format()), old)
    assert answer.status is Status.OK
    assert answer.checkpoint == Checkpoint(ORIGIN, new, TREE.root(new))
    assert [line.name for line in answer.signatures] == [ORIGIN]


def test_the_same_tree_may_be_cosigned_again() -> None:
    assert ask(request(9, 9), 9).status is Status.OK


def test_who_does_not_know_what_was_cosigned_is_told() -> None:
    for old in (0, 3, 12):
        answer = ask(request(old, 12), 8)
        assert (answer.status, answer.known) == (Status.CONFLICT, 8)
        assert parse_size(format_size(answer.known)) == 8


def test_a_smaller_tree_is_never_cosigned() -> None:
    assert ask(request(5, 5), 8).status is Status.CONFLICT
    assert ask(AddCheckpoint(8, (), note(5)), 8).status is Status.BAD_REQUEST


def test_an_inconsistent_tree_is_never_cosigned() -> None:
    forged = AddCheckpoint(8, tuple(OTHER.consistency(8, 12)), note(12, OTHER.root(12)))
    answer = ask(forged, 8)
    assert answer.status is Status.UNPROCESSABLE
    # It is kept: the log has signed it.
    assert answer.checkpoint == Checkpoint(ORIGIN, 12, OTHER.root(12))
    assert ask(AddCheckpoint(8, (), note(8, OTHER.root(8))), 8).status is Status.UNPROCESSABLE
    assert ask(AddCheckpoint(8, (), note(12)), 8).status is Status.UNPROCESSABLE


def test_a_proof_where_none_may_be() -> None:
    assert ask(AddCheckpoint(0, (bytes(32),), note(5)), 0).status is Status.UNPROCESSABLE
    assert ask(AddCheckpoint(5, (bytes(32),), note(5)), 5).status is Status.UNPROCESSABLE


def test_an_empty_tree_has_one_root() -> None:
    text = f"{ORIGIN}\n0\n{base64.b64encode(sha256(b'x').digest()).decode()}\n".encode()
    answer = ask(AddCheckpoint(0, (), sign_note(text, [signer()])), 0)
    assert answer.status is Status.UNPROCESSABLE
    assert ask(AddCheckpoint(0, (), note(0, EMPTY_ROOT)), 0).status is Status.OK


def test_an_unknown_log() -> None:
    other = AddCheckpoint(0, (), note(5, origin="other.example/log"))
    assert ask(other).status is Status.NOT_FOUND


def test_a_checkpoint_that_no_trusted_key_signed() -> None:
    stranger = sign_checkpoint(Checkpoint(ORIGIN, 5, TREE.root(5)), [signer(2)])
    assert ask(AddCheckpoint(0, (), stranger)).status is Status.FORBIDDEN
    flipped = bytearray(note(5))
    flipped[-5] ^= 1
    with_bad_line = bytes(flipped)
    assert ask(AddCheckpoint(0, (), with_bad_line)).status in {
        Status.FORBIDDEN,
        Status.BAD_REQUEST,
    }


def test_other_lines_are_ignored_and_not_kept() -> None:
    text = Checkpoint(ORIGIN, 5, TREE.root(5)).marshal()
    signed = sign_note(text, [signer(2), signer(), ed25519("w"), ml_dsa("w")])
    answer = ask(AddCheckpoint(0, (), signed))
    assert answer.status is Status.OK
    assert [line.key_id for line in answer.signatures] == [signer().key_id]


@pytest.mark.parametrize(
    "checkpoint",
    [
        b"",
        b"not a note",
        f"{ORIGIN}\n5\n".encode(),
        sign_note(f"{ORIGIN}\n5\n".encode(), [signer()]),
        sign_note(f"{ORIGIN}\n05\n{'A' * 43}=\n".encode(), [signer()]),
        sign_note(f"{ORIGIN}\n5\nAAAA\n".encode(), [signer()]),
    ],
)
def test_what_is_no_checkpoint(checkpoint: bytes) -> None:
    assert ask(AddCheckpoint(0, (), checkpoint)).status is Status.BAD_REQUEST


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n\n",
        b"old 1",
        b"old 1\n",
        b"old 1\nnote\n",
        b"old\n\nnote\n",
        b"old \n\nnote\n",
        b"old -1\n\nnote\n",
        b"old 01\n\nnote\n",
        b"old +1\n\nnote\n",
        b"old 1 \n\nnote\n",
        b"Old 1\n\nnote\n",
        b"old 9223372036854775808\n\nnote\n",
        b"old 1\r\n\r\nnote\n",
        b"old 1\nAAAA\n\nnote\n",
        b"old 1\nnot base64\n\nnote\n",
        b"old 1\n" + base64.b64encode(bytes(32)).rstrip(b"=") + b"\n\nnote\n",
        b"old 1\n\xff\n\nnote\n",
        b"old 1\n" + (base64.b64encode(bytes(32)) + b"\n") * 64 + b"\nnote\n",
        b"old 1\n\n" + b"x" * MAX_REQUEST_SIZE,
    ],
)
def test_what_is_no_request(data: bytes) -> None:
    with pytest.raises(WitnessFormatError):
        AddCheckpoint.parse(data)


def test_the_longest_proof() -> None:
    asked = AddCheckpoint(1, (bytes(32),) * 63, note(5))
    assert AddCheckpoint.parse(asked.format()) == asked


@pytest.mark.parametrize(
    "body", [b"", b"5", b"05\n", b"5\n\n", b" 5\n", b"-5\n", b"5\r\n", b"\xff"]
)
def test_what_is_no_size(body: bytes) -> None:
    with pytest.raises(WitnessFormatError):
        parse_size(body)


@pytest.mark.parametrize("body", [b"", b"ok", b"ok\n", ANSWER[:-1], b"x" + ANSWER, b"\n" + ANSWER])
def test_what_is_no_answer(body: bytes) -> None:
    with pytest.raises(WitnessFormatError):
        parse_cosignatures(body)
