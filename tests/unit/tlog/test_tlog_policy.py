"""Policy files: the specification's example, every rule of its form, and quorums."""

from hashlib import sha256

import pytest

from sealward.tlog.checkpoint import Checkpoint
from sealward.tlog.cosignature import Ed25519CosignatureVerifier
from sealward.tlog.errors import (
    NoteError,
    PolicyError,
    PolicyUnsatisfiedError,
    SignatureError,
)
from sealward.tlog.note import sign_note
from sealward.tlog.policy import Policy, format_policy, open_cosigned, printable
from tests.support.cosigners import NOW, ed25519, ml_dsa, policy_text
from tests.support.tlog_logs import ORIGIN, signer

CHECKPOINT = Checkpoint(ORIGIN, 5, sha256(b"root").digest())
LOG = f"log {signer().vkey}"


def witness(name: str) -> str:
    return f"witness {name} {ed25519(name).vkey}"


EXAMPLE = policy_text(
    "X-and-Y",
    "# The example of the specification.",
    LOG,
    "",
    *(witness(name) for name in ("X1", "X2", "X3")),
    "group X-witnesses 2 X1 X2 X3",
    " \t ",
    *(witness(name) for name in ("Y1", "Y2", "Y3")),
    "\tgroup  Y-witnesses\tany Y1 Y2 Y3 ",
    "group X-and-Y all X-witnesses Y-witnesses",
)


def names(*witnesses: str) -> set[tuple[str, bytes]]:
    return {(ed25519(name).name, ed25519(name).key_id) for name in witnesses}


@pytest.mark.parametrize(
    ("cosigners", "enough"),
    [
        ([], False),
        (["X1", "X2"], False),
        (["X1", "Y1"], False),
        (["Y1", "Y2", "Y3"], False),
        (["X1", "X3", "Y2"], True),
        (["X1", "X2", "X3", "Y1", "Y2", "Y3"], True),
    ],
)
def test_the_example_of_the_specification(cosigners: list[str], enough: bool) -> None:
    policy = Policy.parse(EXAMPLE)
    assert policy.satisfied(names(*cosigners)) is enough
    assert [w.name for w in policy.witnesses] == ["X1", "X2", "X3", "Y1", "Y2", "Y3"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("log", "other items"),
        (f"log {signer().vkey} url more", "other items"),
        (f"log {signer().vkey}", "same key"),
        ("log no-key", "not of the form"),
        (f"witness A {signer().vkey}", "unknown type"),
        (f"witness A {ed25519('A').vkey} url more", "other items"),
        ("witness A", "other items"),
        (f"witness X1 {ed25519('A').vkey}", "name is taken"),
        (f"witness none {ed25519('A').vkey}", "name is taken"),
        (f"witness A {ed25519('X1').vkey}", "same key"),
        ("group G any", "other items"),
        ("group G", "other items"),
        ("group X1 any X2", "name is taken"),
        ("group G any Later", "not defined before"),
        ("group G any G", "not defined before"),
        ("group G any none", "not defined before"),
        ("group G all X1 X1", "one of a group already"),
        ("group G 0 X1", "1 to the number"),
        ("group G 3 X1 X2", "1 to the number"),
        ("group G 01 X1", "all, any or a number"),
        ("group G +1 X1", "all, any or a number"),
        ("group G some X1", "all, any or a number"),
        ("quorum X1", "already"),
        ("quorum", "other items"),
        ("quorum X1 X2", "other items"),
        ("Witness A b", "unknown keyword"),
        ("policy", "unknown keyword"),
    ],
)
def test_what_is_not_a_policy(line: str, says: str) -> None:
    lines = [LOG, witness("X1"), witness("X2"), "quorum X1", line]
    with pytest.raises(PolicyError, match=f"^line 5: .*{says}"):
        Policy.parse("".join(f"{text}\n" for text in lines).encode())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "newline"),
        (b"\n", "no quorum"),
        (b"quorum none", "newline"),
        (b"quorum none\r\n", "control"),
        (b"# \x00\nquorum none\n", "control"),
        (b"# \x7f\nquorum none\n", "control"),
        (b"quorum later\n", "not defined before"),
        (b"#" * (1 << 20) + b"\nquorum none\n", "too large"),
    ],
)
def test_what_is_not_a_file(data: bytes, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        Policy.parse(data)


def test_a_quorum_is_named_after_what_it_names() -> None:
    text = witness("X1")
    with pytest.raises(PolicyError, match="line 1"):
        Policy.parse(f"quorum X1\n{text}\n".encode())


def test_a_member_of_one_group_is_in_no_other() -> None:
    with pytest.raises(PolicyError, match="one of a group already"):
        Policy.parse(policy_text("G", witness("X1"), "group F any X1", "group G any X1"))


def test_the_same_public_key_under_another_name_is_a_duplicate() -> None:
    key = ed25519("X1").verifier.public_key
    other = Ed25519CosignatureVerifier("another.name", key).vkey
    with pytest.raises(PolicyError, match="same key"):
        Policy.parse(policy_text("X1", witness("X1"), f"witness A {other}"))


def test_names_are_octets() -> None:
    lines = [
        b"witness \xff " + ed25519("a").vkey.encode(),
        b"witness K " + ed25519("b").vkey.encode(),
        "witness \u212a ".encode() + ed25519("c").vkey.encode(),
        b"group \xfe all \xff K \xe2\x84\xaa",
        b"quorum \xfe",
    ]
    policy = Policy.parse(b"\n".join(lines) + b"\n")
    assert policy.satisfied(names("a", "b", "c"))
    assert not policy.satisfied(names("a", "b"))
    assert printable(policy.witnesses[0].name) == "\\udcff"
    with pytest.raises(PolicyError, match="line 1: a verifier key is not UTF-8"):
        Policy.parse(b"witness A \xff" + ed25519("a").vkey.encode() + b"\nquorum A\n")


def test_as_many_as_the_specification_recommends_and_more() -> None:
    lines = [f"log {signer(i, f'log.example/{i}').vkey}" for i in range(40)]
    lines += [witness(f"w{i}") for i in range(40)]
    # Each group has the one before: the deepest that there can be.
    lines += ["group g0 any w0"]
    lines += [f"group g{i} all g{i - 1}" for i in range(1, 2000)]
    policy = Policy.parse(policy_text("g1999", *lines))
    assert (len(policy.logs), len(policy.witnesses)) == (40, 40)
    assert policy.satisfied(names("w0"))
    assert not policy.satisfied(names("w1"))


def test_opens_a_checkpoint_that_satisfies_it() -> None:
    cosigners = [ed25519("X1"), ed25519("X2"), ed25519("Y3"), ml_dsa("stranger")]
    data = sign_note(CHECKPOINT.marshal(), [signer(), *cosigners])
    opened = open_cosigned(data, Policy.parse(EXAMPLE))
    assert opened.checkpoint == CHECKPOINT
    assert [(c.witness.name, c.time) for c in opened.cosignatures] == [
        ("X1", NOW),
        ("X2", NOW),
        ("Y3", NOW),
    ]


def test_too_few_cosignatures_say_whose_they_are() -> None:
    data = sign_note(CHECKPOINT.marshal(), [signer(), ed25519("X1"), ed25519("Y1")])
    with pytest.raises(PolicyUnsatisfiedError, match=r"cosigned by X1, Y1: .* quorum X-and-Y"):
        open_cosigned(data, Policy.parse(EXAMPLE))
    with pytest.raises(PolicyUnsatisfiedError, match="cosigned by no witness of the policy"):
        open_cosigned(sign_note(CHECKPOINT.marshal(), [signer()]), Policy.parse(EXAMPLE))


def test_witnesses_alone_do_not_make_a_log() -> None:
    everyone = [ed25519(name) for name in ("X1", "X2", "X3", "Y1")]
    data = sign_note(CHECKPOINT.marshal(), [*everyone, signer(2)])
    with pytest.raises(SignatureError, match="not signed by the log"):
        open_cosigned(data, Policy.parse(EXAMPLE))
    # Not even a witness that has the origin for its name.
    named = ed25519(ORIGIN)
    policy = Policy.parse(policy_text("A", LOG, f"witness A {named.vkey}"))
    with pytest.raises(SignatureError, match="not signed by the log"):
        open_cosigned(sign_note(CHECKPOINT.marshal(), [named]), policy)


def test_a_log_of_the_policy_signs_under_its_own_name_alone() -> None:
    other = Checkpoint("other.example/log", 5, CHECKPOINT.root)
    cosigners = [ed25519("X1"), ed25519("X2"), ed25519("Y1")]
    data = sign_note(other.marshal(), [signer(), *cosigners])
    with pytest.raises(SignatureError, match="not signed by the log"):
        open_cosigned(data, Policy.parse(EXAMPLE))


def test_a_bad_line_of_a_known_witness_refuses_it() -> None:
    data = sign_note(CHECKPOINT.marshal(), [signer(), ed25519("X1"), ed25519("X2"), ed25519("Y1")])
    broken = bytearray(data)
    broken[-10] ^= 1
    with pytest.raises(NoteError):
        open_cosigned(bytes(broken), Policy.parse(EXAMPLE))


def test_keys_of_the_log_may_come_from_elsewhere() -> None:
    policy = Policy.parse(policy_text("X1", witness("X1")))
    data = sign_note(CHECKPOINT.marshal(), [signer(), ed25519("X1")])
    assert open_cosigned(data, policy, [signer().verifier]).checkpoint == CHECKPOINT
    with pytest.raises(SignatureError, match="names a key of the log"):
        open_cosigned(data, policy)


def test_no_quorum_asks_for_no_witness() -> None:
    policy = Policy.parse(policy_text("none", LOG))
    opened = open_cosigned(sign_note(CHECKPOINT.marshal(), [signer()]), policy)
    assert opened.cosignatures == ()


def test_a_post_quantum_witness_and_a_post_quantum_log() -> None:
    log = ml_dsa(ORIGIN)
    policy = Policy.parse(
        policy_text("W", f"log {log.vkey}", f"witness W {ml_dsa('w.example').vkey} https://w/")
    )
    data = sign_note(CHECKPOINT.marshal(), [log, ml_dsa("w.example")])
    opened = open_cosigned(data, policy)
    assert opened.cosignatures[0].witness.url == "https://w/"


def test_a_policy_is_written() -> None:
    data = format_policy(
        [signer().vkey], {"builtin": ed25519("w").vkey}, "builtin", "of this deployment\nsecond"
    )
    assert data.splitlines()[:2] == [b"# of this deployment", b"# second"]
    policy = Policy.parse(data)
    assert (policy.quorum, policy.logs[0].verifier.name) == ("builtin", ORIGIN)
    with pytest.raises(PolicyError):
        format_policy([], {}, "nobody")
