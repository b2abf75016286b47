from base64 import b64encode

import pytest

from sealward.tlog.errors import ProofFormatError
from sealward.tlog.merkle import leaf_hash
from sealward.tlog.proof import TlogProof, format_proof

NOTE = "example.com/log\n1\nAAAA\n\n— example.com/log AAAAAAA=\n".encode()
A, B = leaf_hash(b"a"), leaf_hash(b"b")


def test_text_is_that_of_the_specification() -> None:
    assert TlogProof(73894, (A, B), NOTE, b"extra data").format() == (
        b"c2sp.org/tlog-proof@v1\n"
        b"extra ZXh0cmEgZGF0YQ==\n"
        b"index 73894\n" + b64encode(A) + b"\n" + b64encode(B) + b"\n\n" + NOTE
    )


@pytest.mark.parametrize(
    "proof",
    [
        TlogProof(0, (), NOTE),
        TlogProof(0, (), NOTE, b""),
        TlogProof(5, (A,), NOTE, b"x"),
        TlogProof((1 << 63) - 1, (A,) * 63, NOTE, bytes(2100)),
    ],
)
def test_parse_is_the_way_back(proof: TlogProof) -> None:
    assert TlogProof.parse(proof.format()) == proof


def test_joined_paths_are_the_same() -> None:
    assert format_proof(1, A + B, NOTE, b"x") == format_proof(1, [A, B], NOTE, b"x")


GOOD = format_proof(7, [A, B], NOTE, b"extra")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[1:],
        GOOD.replace(b"@v1", b"@v2"),
        GOOD.replace(b"index 7", b"index 07"),
        GOOD.replace(b"index 7", b"index -7"),
        GOOD.replace(b"index 7", b"index"),
        GOOD.replace(b"index 7", b"index 9223372036854775808"),
        GOOD.replace(b"index 7\n", b""),
        GOOD.replace(b"extra ", b"extra  "),
        GOOD.replace(b"extra ZX", b"extra Z!"),
        GOOD.replace(b"extra ", b"Extra "),
        GOOD.replace(b"\nindex", b"\r\nindex"),
        GOOD.replace(b"=\n\nexample", b"\n\nexample"),
        GOOD.replace(b"\n\n", b"\n"),
        b"c2sp.org/tlog-proof@v1\n\n" + NOTE,
        format_proof(7, [A[:31]], NOTE),
        format_proof(7, [A] * 64, NOTE),
        b"\xff" + GOOD,
        GOOD + b"x" * (1 << 20),
    ],
)
def test_malformed_texts_are_refused(data: bytes) -> None:
    with pytest.raises(ProofFormatError):
        TlogProof.parse(data)
