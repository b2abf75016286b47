"""COSE Receipts (RFC 9942): the inclusion proof of a leaf as a COSE_Sign1 over the tree's root.

    receipt     = 18([protected, {396: {-1: [proof]}}, null, signature])
    protected   = bstr .cbor {1: -8 (EdDSA), 4: key id, 15: {1: origin}, 395: 1 (RFC9162_SHA256)}
    proof       = bstr .cbor [tree size, leaf index, [path]]
    signature   = Ed25519 over ["Signature1", protected, h'', root] (RFC 9052, 4.4)

The root is detached: a verifier computes it from the leaf and the path, then checks the signature.
The key id is the one of the log's C2SP verifier key, the origin stands as the issuer (RFC 9597), so
that a receipt is not taken for one of another log. The same key signs checkpoints; no signature
passes for one of the other kind, since a note is UTF-8 text and 0x84, which the structure begins
with, begins no UTF-8 text.

The tree size is not under the signature of a COSE receipt, only the root that it leads to. Whoever
needs a signed size takes the tlog-proof of the same entry, whose checkpoint has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sealward.tlog.cbor import Tag, decode, encode
from sealward.tlog.errors import CborError, CoseError, SignatureError
from sealward.tlog.merkle import HASH_SIZE, leaf_hash, root_from_inclusion, split_hashes
from sealward.tlog.note import Signer, Verifier
from sealward.tlog.proof import MAX_PATH

COSE_SIGN1 = 18
"""CBOR tag of a COSE_Sign1."""

ALG, KID, CWT_CLAIMS, VDS, VDP = 1, 4, 15, 395, 396
"""Labels of header parameters."""

EDDSA = -8
RFC9162_SHA256 = 1
INCLUSION = -1
ISSUER = 1

MAX_SIZE = 16 << 10
"""Bytes; a longer receipt is refused unread."""


@dataclass(frozen=True, slots=True)
class CoseReceipt:
    """A receipt, taken apart. Nothing in it has been verified."""

    origin: str
    key_id: bytes
    size: int
    index: int
    path: tuple[bytes, ...]
    protected: bytes
    signature: bytes


def to_be_signed(protected: bytes, root: bytes) -> bytes:
    """Return the bytes under the signature: the Sig_structure of a detached root."""
    return encode(("Signature1", protected, b"", root))


def sign_root(signer: Signer, root: bytes) -> bytes:
    """Return key id[4] || signature[64]: what all receipts of one tree have in common.

    Whoever keeps it can make the receipt of any entry of that tree without the key.
    """
    protected = _protected(signer.name, signer.key_id)
    return signer.key_id + signer.sign(to_be_signed(protected, root))


def format_receipt(origin: str, signed: bytes, size: int, index: int, path: bytes) -> bytes:
    """Return the COSE receipt of the leaf at `index` in the tree whose root was signed.

    `signed` is what `sign_root` gave, `path` the leaf's inclusion path, joined. Raises CoseError
    for a tree of one entry: RFC 9942 has no proof without a path.
    """
    hashes = split_hashes(path)
    if not hashes:
        raise CoseError("a log of one entry has no COSE receipt")
    key_id, signature = signed[:4], signed[4:]
    return _spelling(
        CoseReceipt(
            origin, key_id, size, index, tuple(hashes), _protected(origin, key_id), signature
        )
    )


def sign_receipt(signer: Signer, size: int, index: int, path: bytes, root: bytes) -> bytes:
    """Return the COSE receipt of the leaf at `index` in the tree (`size`, `root`).

    As `format_receipt`, with a signature made now.
    """
    return format_receipt(signer.name, sign_root(signer, root), size, index, path)


def parse_receipt(data: bytes) -> CoseReceipt:
    """Take a receipt apart; raises CoseError for anything but what `sign_receipt` writes."""
    if len(data) > MAX_SIZE:
        raise CoseError("receipt is too large")
    try:
        protected, unprotected, _, signature = decode(data).value
        header = decode(protected)
        (proof,) = unprotected[VDP][INCLUSION]
        size, index, path = decode(proof)
        receipt = CoseReceipt(
            header[CWT_CLAIMS][ISSUER], header[KID], size, index, path, protected, signature
        )
    except CborError as error:
        raise CoseError("receipt is not well-formed CBOR") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise CoseError("receipt does not have the parts of an inclusion receipt") from error
    _check_types(receipt)
    if data != _spelling(receipt):
        raise CoseError("receipt has parts that do not belong there")
    return receipt


def verify_receipt(data: bytes, leaf: bytes, vkeys: Sequence[Verifier]) -> CoseReceipt:
    """Check that a receipt shows `leaf` (the entry's bytes) in a log of one of these keys.

    Raises CoseError (malformed), SignatureError (unknown key, or not its signature) or ProofError
    (the path cannot be of a tree of that size).
    """
    receipt = parse_receipt(data)
    root = root_from_inclusion(leaf_hash(leaf), receipt.index, receipt.size, receipt.path)
    signed = to_be_signed(receipt.protected, root)
    for verifier in vkeys:
        if (verifier.name, verifier.key_id) == (receipt.origin, receipt.key_id):
            if verifier.verify(signed, receipt.signature):
                return receipt
            raise SignatureError("signature does not hold for this leaf, path and log")
    raise SignatureError("receipt is not signed by a known key")


def _protected(origin: str, key_id: bytes) -> bytes:
    return encode({ALG: EDDSA, KID: key_id, CWT_CLAIMS: {ISSUER: origin}, VDS: RFC9162_SHA256})


def _spelling(receipt: CoseReceipt) -> bytes:
    """Write the receipt anew: whatever it had besides is missing then."""
    proof = encode((receipt.size, receipt.index, receipt.path))
    protected = _protected(receipt.origin, receipt.key_id)
    unprotected = {VDP: {INCLUSION: (proof,)}}
    return encode(Tag(COSE_SIGN1, (protected, unprotected, None, receipt.signature)))


def _check_types(receipt: CoseReceipt) -> None:
    """Check what the fields are: they come from outside, whatever their annotations say."""
    strings: list[tuple[Any, int]] = [(receipt.signature, 64), (receipt.key_id, 4)]
    path: Any = receipt.path
    if type(path) is not tuple or not 1 <= len(path) <= MAX_PATH:
        raise CoseError("receipt has a path that cannot be")
    strings += [(node, HASH_SIZE) for node in path]
    if any(type(value) is not bytes or len(value) != size for value, size in strings):
        raise CoseError("receipt has a hash, a key id or a signature of a wrong length")
    numbers: list[Any] = [receipt.size, receipt.index]
    if any(type(number) is not int or not 0 <= number < 1 << 63 for number in numbers):
        raise CoseError("receipt has a size or an index that cannot be")
    origin: Any = receipt.origin
    if type(origin) is not str:
        raise CoseError("receipt does not name its log")
