"""One question to one witness: every answer, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sealward.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealward.tlog.merkle import Tree, leaf_hash
from sealward.tlog.note import Signature, format_signatures
from sealward.tlog.witness import AddCheckpoint, KnownLog, Status, format_size, judge
from services.audit.cosigning.asking import (
    Answer,
    Conflict,
    Cosigned,
    Refused,
    Result,
    WitnessAwayError,
    ask,
)
from tests.support.cosigners import ed25519, ml_dsa
from tests.support.tlog_logs import ORIGIN, signer

ONE = ed25519("w.example")


class Log:
    """A log of so many entries."""

    def __init__(self, size: int, what: bytes = b"entry") -> None:
        self.tree = Tree(leaf_hash(what + b" %d" % n) for n in range(size))

    @property
    def head(self) -> tuple[int, bytes]:
        return self.tree.size, self.note(self.tree.size)

    def note(self, size: int) -> bytes:
        return sign_checkpoint(Checkpoint(ORIGIN, size, self.tree.root(size)), [signer()])

    def consistency(self, old: int, new: int) -> bytes:
        return b"".join(self.tree.consistency(old, new))


class Scripted:
    """A witness that answers what it is told, or as the protocol has it."""

    name, url = "w", "https://w.example"

    def __init__(self, *answers: Answer | Exception, size: int = 0, of: Log | None = None) -> None:
        self.verifiers = [ONE.verifier]
        self._answers = list(answers)
        self._size, self._of = size, of
        self.asked: list[AddCheckpoint] = []

    def latest(self, origin: str) -> bytes:
        return b""

    def add_checkpoint(self, body: bytes) -> Answer:
        request = AddCheckpoint.parse(body)
        self.asked.append(request)
        if self._answers:
            answer = self._answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        assert self._of is not None
        known = KnownLog([signer().verifier], self._size, self._of.tree.root(self._size))
        said = judge(request, lambda _origin: known)
        if said.status is Status.CONFLICT:
            return Answer(said.status, format_size(said.known))
        if said.status is not Status.OK or said.checkpoint is None:
            return Answer(said.status)
        self._size = said.checkpoint.size
        return Answer(said.status, lines(said.text))


def lines(text: bytes, *signatures: Signature) -> bytes:
    return format_signatures([Signature(ONE.name, ONE.key_id, ONE.sign(text)), *signatures])


def result(witness: Scripted, log: Log, size: int, known: int = 0) -> tuple[Result, int]:
    return ask(witness, log, size, log.note(size), known)


def test_the_first_time() -> None:
    log = Log(9)
    witness = Scripted(of=log)
    found, known = result(witness, log, 9)
    assert isinstance(found, Cosigned)
    assert [line.name for line in found.lines] == ["w.example"]
    assert (known, [asked.old for asked in witness.asked]) == (9, [0])


@pytest.mark.parametrize("thought", [0, 3, 7])
def test_it_starts_from_what_the_witness_has(thought: int) -> None:
    log = Log(9)
    witness = Scripted(size=5, of=log)
    found, known = result(witness, log, 9, thought)
    assert isinstance(found, Cosigned)
    assert (known, [asked.old for asked in witness.asked]) == (9, [thought, 5])


def test_it_knows_what_the_witness_has() -> None:
    log = Log(9)
    witness = Scripted(size=5, of=log)
    result(witness, log, 9, 5)
    assert [asked.old for asked in witness.asked] == [5]
    # The same again: the witness gives a younger cosignature.
    assert isinstance(result(witness, log, 9, 9)[0], Cosigned)


def test_a_witness_that_has_more_than_the_log() -> None:
    log = Log(9)
    witness = Scripted(size=12, of=Log(12))
    assert result(witness, log, 9) == (Conflict(12), 12)
    assert result(witness, log, 9, 12) == (Conflict(12), 12)


def test_a_witness_that_has_more_than_what_is_asked_but_not_more_than_the_log() -> None:
    """What is asked for was published before a restart; the log has grown since."""
    log = Log(12)
    witness = Scripted(size=11, of=log)
    assert result(witness, log, 9) == (Refused("away"), 11)


def test_a_witness_that_has_another_history() -> None:
    log = Log(9)
    witness = Scripted(size=5, of=Log(20, b"other"))
    assert result(witness, log, 9) == (Conflict(5), 5)
    assert result(witness, Log(5), 5, 5) == (Conflict(5), 5)


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (Answer(404), "unknown-log"),
        (Answer(403), "refused"),
        (Answer(400), "refused"),
        (Answer(422), "refused"),
        (Answer(429), "refused"),
        (Answer(500, b"<html>"), "refused"),
        (Answer(302), "refused"),
        (Answer(200), "refused"),
        (Answer(200, b"fine\n"), "refused"),
        (Answer(409), "refused"),
        (Answer(409, b"five\n"), "refused"),
        (Answer(409, b"0\n"), "refused"),
        (WitnessAwayError(), "away"),
    ],
)
def test_what_is_neither_a_cosignature_nor_a_conflict(
    answer: Answer | Exception, state: str
) -> None:
    assert result(Scripted(answer), Log(9), 9) == (Refused(state), 0)  # type: ignore[arg-type]


def test_a_witness_that_changes_its_mind_is_not_asked_for_ever() -> None:
    witness = Scripted(Answer(409, b"3\n"), Answer(409, b"4\n"))
    assert result(witness, Log(9), 9) == (Refused("refused"), 4)
    assert len(witness.asked) == 2


def test_lines_of_other_keys_are_ignored() -> None:
    log = Log(9)
    text = log.note(9).split(b"\n\n")[0] + b"\n"
    other = ed25519("other.example")
    stranger = Signature(other.name, other.key_id, other.sign(text))
    found, _ = result(Scripted(Answer(200, lines(text, stranger))), log, 9)
    assert isinstance(found, Cosigned)
    assert [line.name for line in found.lines] == ["w.example"]
    alone = format_signatures([stranger])
    assert result(Scripted(Answer(200, alone)), log, 9)[0] == Refused("refused")


@pytest.mark.parametrize("wrong", ["another checkpoint", "no time", "one of two"])
def test_a_line_that_does_not_hold_spoils_the_answer(wrong: str) -> None:
    log = Log(9)
    text = log.note(9).split(b"\n\n")[0] + b"\n"
    made: dict[str, Callable[[], bytes]] = {
        "another checkpoint": lambda: lines(log.note(8).split(b"\n\n")[0] + b"\n"),
        "no time": lambda: format_signatures(
            [Signature(ONE.name, ONE.key_id, bytes(8) + ONE.sign(text)[8:])]
        ),
        "one of two": lambda: lines(text, Signature(ONE.name, ONE.key_id, bytes(72))),
    }
    assert result(Scripted(Answer(200, made[wrong]())), log, 9)[0] == Refused("refused")


def test_a_zero_time_is_no_cosignature_of_the_newest_tree() -> None:
    """ML-DSA-44 has a valid form without a time: it says nothing of how new the tree is."""
    log = Log(9)
    text = log.note(9).split(b"\n\n")[0] + b"\n"
    cosigner = ml_dsa("w.example")
    signature = bytes(8) + cosigner._sign(cosigner.verifier.message(text, 0))
    assert cosigner.verifier.verify(text, signature)
    body = format_signatures([Signature(cosigner.name, cosigner.key_id, signature)])
    witness = Scripted(Answer(200, body))
    witness.verifiers = [cosigner.verifier]  # type: ignore[list-item]
    assert result(witness, log, 9)[0] == Refused("refused")
