import pytest

from sealward.tlog.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from sealward.tlog.errors import CheckpointError, SignatureError
from sealward.tlog.merkle import EMPTY_ROOT, leaf_hash
from sealward.tlog.note import sign_note
from tests.support.tlog_logs import ORIGIN, signer

ROOT = leaf_hash(b"root")
CHECKPOINT = Checkpoint(ORIGIN, 70, ROOT)


def test_text_is_that_of_the_specification() -> None:
    text = b"example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    checkpoint = Checkpoint.parse(text)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.root.hex().startswith("0ac5186a")
    assert checkpoint.marshal() == text


def test_extension_lines_survive() -> None:
    checkpoint = Checkpoint(ORIGIN, 1, ROOT, ("a line", "another"))
    assert Checkpoint.parse(checkpoint.marshal()) == checkpoint


def test_sign_and_open() -> None:
    data = sign_checkpoint(CHECKPOINT, [signer()])
    assert open_checkpoint(data, [signer().verifier], ORIGIN) == CHECKPOINT


def test_the_log_itself_must_have_signed() -> None:
    witness = signer(5, "witness.example")
    both = sign_checkpoint(CHECKPOINT, [witness, signer()])
    assert open_checkpoint(both, [witness.verifier, signer().verifier]) == CHECKPOINT
    with pytest.raises(SignatureError, match="the log that it names"):
        open_checkpoint(both, [witness.verifier])


def test_another_origin_is_refused() -> None:
    data = sign_checkpoint(CHECKPOINT, [signer()])
    with pytest.raises(CheckpointError, match="another log"):
        open_checkpoint(data, [signer().verifier], "sealward.local/0123abcd/default/2027")


def test_signed_nonsense_is_refused() -> None:
    with pytest.raises(CheckpointError):
        open_checkpoint(sign_note(b"hello\n", [signer()]), [signer().verifier])


ROOT64 = CHECKPOINT.marshal().split(b"\n")[2]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"origin\n1\n",
        b"origin\n1\n" + ROOT64,
        b"\n1\n" + ROOT64 + b"\n",
        b"origin\n01\n" + ROOT64 + b"\n",
        b"origin\n-1\n" + ROOT64 + b"\n",
        b"origin\n+1\n" + ROOT64 + b"\n",
        b"origin\n1 \n" + ROOT64 + b"\n",
        b"origin\n1_0\n" + ROOT64 + b"\n",
        "origin\n١\n".encode() + ROOT64 + b"\n",
        b"origin\n9223372036854775808\n" + ROOT64 + b"\n",
        b"origin\n" + b"9" * 5000 + b"\n" + ROOT64 + b"\n",
        b"origin\n0\n" + ROOT64 + b"\n",
        b"origin\n1\n" + ROOT64[:-4] + b"\n",
        b"origin\n1\n" + ROOT64[:-2] + b"B=\n",
        b"origin\n1\n" + ROOT64 + b"\n\n",
        b"origin\n1\n" + ROOT64 + b"\n\nmore\n",
        b"\xff\n1\n" + ROOT64 + b"\n",
    ],
)
def test_malformed_texts_are_refused(text: bytes) -> None:
    with pytest.raises(CheckpointError):
        Checkpoint.parse(text)


def test_empty_tree_has_its_own_root() -> None:
    checkpoint = Checkpoint(ORIGIN, 0, EMPTY_ROOT)
    assert Checkpoint.parse(checkpoint.marshal()) == checkpoint


@pytest.mark.parametrize(
    "checkpoint",
    [
        Checkpoint("two\nlines", 1, ROOT),
        Checkpoint(f"{ORIGIN}\n1\n{ROOT64.decode()}", 70, ROOT),
        Checkpoint(ORIGIN, 1, ROOT, ("two\nlines",)),
        Checkpoint("", 1, ROOT),
        Checkpoint(ORIGIN, -1, ROOT),
        Checkpoint(ORIGIN, 1, ROOT[:31]),
        Checkpoint(ORIGIN, 1, ROOT, ("",)),
    ],
)
def test_values_without_a_text_are_not_signed(checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError):
        sign_checkpoint(checkpoint, [signer()])
