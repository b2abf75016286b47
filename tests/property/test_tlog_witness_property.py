"""Properties of the witness protocol and of policies: nothing crashes them, nothing forks a log."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import example, given, settings
from hypothesis import strategies as st

from sealward.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealward.tlog.errors import PolicyError, TlogError, WitnessFormatError
from sealward.tlog.merkle import EMPTY_ROOT, Tree, leaf_hash
from sealward.tlog.policy import Policy, open_cosigned
from sealward.tlog.witness import (
    AddCheckpoint,
    KnownLog,
    Status,
    judge,
    parse_cosignatures,
    parse_size,
)
from tests.support.cosigners import ed25519, policy_text
from tests.support.tlog_logs import ORIGIN, signer

STEADY = settings(deadline=None)
POLICY = policy_text("a", f"log {signer().vkey}", f"witness a {ed25519('a').vkey} https://a/")


@STEADY
@given(st.binary(max_size=300))
@example(b"old 1\n\n")
def test_no_bytes_crash_the_readers(data: bytes) -> None:
    for read in (AddCheckpoint.parse, parse_size, parse_cosignatures):
        with suppress(WitnessFormatError):
            read(data)
    with suppress(PolicyError):
        Policy.parse(data)
    with suppress(TlogError):
        open_cosigned(data, Policy.parse(POLICY))


WORDS = st.sampled_from(
    [b"log", b"witness", b"group", b"quorum", b"none", b"all", b"any", b"1", b"2", b"a", b"b", b"#",
     b"\xff", ed25519("a").vkey.encode(), ed25519("b").vkey.encode(), signer().vkey.encode()]
)  # fmt: skip


@STEADY
@given(st.lists(st.lists(WORDS, max_size=6), max_size=8))
def test_a_policy_is_read_or_refused_and_can_be_asked(lines: list[list[bytes]]) -> None:
    with suppress(PolicyError):
        policy = Policy.parse(b"".join(b" ".join(line) + b"\n" for line in lines))
        everyone = {w.identity for w in policy.witnesses}
        # More cosignatures never make less of a quorum.
        assert policy.satisfied(everyone) or not policy.satisfied(set())
        assert policy.satisfied(everyone)


@STEADY
@given(st.data())
def test_a_changed_request_is_refused_or_is_the_same(data: st.DataObject) -> None:
    tree = Tree(leaf_hash(b"%d" % i) for i in range(12))
    asked = AddCheckpoint(
        5,
        tuple(tree.consistency(5, 12)),
        sign_checkpoint(Checkpoint(ORIGIN, 12, tree.root()), [signer()]),
    ).format()
    at = data.draw(st.integers(0, len(asked) - 1))
    changed = asked[:at] + data.draw(st.binary(max_size=3)) + asked[at + 1 :]
    known = KnownLog([signer().verifier], 5, tree.root(5))
    with suppress(WitnessFormatError):
        answer = judge(AddCheckpoint.parse(changed), lambda origin: known)
        if answer.status is Status.OK:
            assert answer.checkpoint == Checkpoint(ORIGIN, 12, tree.root())


@STEADY
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 40)), max_size=30))
def test_what_is_cosigned_is_one_history(steps: list[tuple[bool, int, int]]) -> None:
    """Whatever is asked, of two histories with one key, in any order: one of them is cosigned."""
    histories = [Tree(leaf_hash(b"%d %d" % (n, i * n)) for i in range(41)) for n in (0, 1)]
    size, root = 0, EMPTY_ROOT
    cosigned: list[Checkpoint] = []
    for which, old, new in steps:
        tree = histories[which]
        proof = tuple(tree.consistency(old, new)) if old <= new else ()
        note = sign_checkpoint(Checkpoint(ORIGIN, new, tree.root(new)), [signer()])
        known = KnownLog([signer().verifier], size, root)
        answer = judge(AddCheckpoint(old, proof, note), lambda _origin, known=known: known)  # type: ignore[misc]
        if answer.status is Status.OK:
            assert answer.checkpoint is not None
            assert answer.checkpoint.size >= size
            size, root = answer.checkpoint.size, answer.checkpoint.root
            cosigned.append(answer.checkpoint)
    assert any(all(tree.root(c.size) == c.root for c in cosigned) for tree in histories)
