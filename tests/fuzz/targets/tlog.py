"""Decoders of the transparency log: what an auditor, a client or a witness reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from sealward.tlog import cbor
from sealward.tlog.checkpoint import Checkpoint, open_checkpoint
from sealward.tlog.cose import parse_receipt, sign_receipt, verify_receipt
from sealward.tlog.cosignature import COSIGNATURE_TYPES, ed25519_cosigner, timestamp_of
from sealward.tlog.errors import ProofError, TlogError
from sealward.tlog.leaf import Outcome, parse_leaf
from sealward.tlog.logchange import (
    LogChange,
    LogFinal,
    LogKey,
    LogSuccessor,
    change_leaf,
    format_change,
    parse_change_leaf,
)
from sealward.tlog.logdir import LogVerificationError, verify_log
from sealward.tlog.merkle import leaf_hash, split_hashes, verify_consistency, verify_inclusion
from sealward.tlog.note import (
    VKEY_TYPES,
    Verifier,
    open_note,
    parse_note,
    parse_vkey,
    parse_vkeys,
    sign_note,
)
from sealward.tlog.policy import LOG_TYPES, Policy, open_cosigned
from sealward.tlog.proof import TlogProof
from sealward.tlog.receipt import format_receipt, open_receipt
from sealward.tlog.receipt import verify_receipt as verify_call
from sealward.tlog.tiles import decode_bundle, encode_bundle, parse_path
from sealward.tlog.witness import AddCheckpoint, KnownLog, judge
from tests.fuzz.harness import target
from tests.support.tlog_logs import ORIGIN, entries, log_files, reader, signer, tree_of

_LEAVES = 7
_COSIGNER = ed25519_cosigner("witness.example", bytes(range(32)), lambda: 1_790_000_000)
_VERIFIERS: list[Verifier] = [signer().verifier]


@cache
def _files() -> dict[str, bytes]:
    return log_files(entries(_LEAVES), (3,))


@cache
def _note() -> bytes:
    return _files()["checkpoint"]


@cache
def _cosigned() -> bytes:
    text = parse_note(_note()).text
    return sign_note(text, [signer(), _COSIGNER])


def _receipt() -> bytes:
    tree = tree_of(entries(_LEAVES))
    return format_receipt(5, tree.inclusion(5), entries(_LEAVES)[5], bytes(32), _note())


def _changes() -> Sequence[LogChange]:
    old, new = signer(1), signer(2)
    after = signer(3, "sealward.local/0123abcd/default/2027")
    return (
        LogKey(ORIGIN, old.vkey, new.vkey),
        LogFinal(ORIGIN, after.name, after.vkey),
        LogSuccessor(after.name, ORIGIN, _note()),
    )


@target(TlogError, seeds=lambda: [_note(), _cosigned(), log_files([])["checkpoint"]])
def checkpoint(data: bytes) -> None:
    """A signed checkpoint."""
    found = open_checkpoint(data, _VERIFIERS)
    assert found.marshal() == parse_note(data).text


@target(TlogError, seeds=lambda: [parse_note(_note()).text, b"a\n1\n" + b"A" * 43 + b"=\nmore\n"])
def checkpoint_text(data: bytes) -> None:
    """The text of a checkpoint, whoever signed it."""
    assert Checkpoint.parse(data).marshal() == data


@target(TlogError, seeds=lambda: [_note(), _cosigned(), sign_note(b"any text\n", [signer()])])
def note(data: bytes) -> None:
    """A signed note, with its lines and with signatures of both kinds."""
    parsed = parse_note(data)
    assert data.startswith(parsed.text)
    opened = open_note(data, [*_VERIFIERS, _COSIGNER.verifier])
    assert opened.verified


@target(TlogError, seeds=lambda: [_cosigned()])
def cosignature(data: bytes) -> None:
    """A note of which witnesses' lines count."""
    opened = open_note(data, [_COSIGNER.verifier])
    for line in opened.verified:
        assert timestamp_of(line.signature) > 0


@target(TlogError, seeds=lambda: [signer().vkey.encode(), _COSIGNER.vkey.encode()])
def vkey(data: bytes) -> None:
    """One verifier key, of the log's types and of the witnesses'."""
    text = data.decode("utf-8", "replace")
    for types in (VKEY_TYPES, COSIGNATURE_TYPES, LOG_TYPES):
        try:
            assert parse_vkey(text, types).vkey == text
        except TlogError:
            continue
        return
    raise TlogError("of no type")


@target(
    TlogError,
    seeds=lambda: [f"{signer(1).vkey}\n\n{signer(2).vkey}\n".encode(), signer().vkey.encode()],
)
def vkeys(data: bytes) -> None:
    """A file of verifier keys."""
    assert parse_vkeys(data.decode("utf-8", "replace"))


@target(TlogError, seeds=lambda: [_receipt(), TlogProof(1, (bytes(32),), _note()).format()])
def proof(data: bytes) -> None:
    """A tlog-proof: one spelling."""
    assert TlogProof.parse(data).format() == data


@target(TlogError, seeds=lambda: [_receipt()])
def receipt(data: bytes) -> None:
    """A receipt, as far as the log goes: what is taken is the one receipt there is."""
    opened = open_receipt(data, _VERIFIERS)
    assert opened.leaf.sealed == parse_leaf(entries(_LEAVES)[opened.index]).sealed
    try:
        verify_call(
            data,
            vkeys=_VERIFIERS,
            request_digest=b"",
            response_digest=b"",
            model_digest=b"",
            outcome=Outcome.OK,
        )
    except TlogError:
        return


@target(TlogError, seeds=lambda: [entries(1)[0], *(change_leaf(bytes(16), c) for c in _changes())])
def leaf(data: bytes) -> None:
    """An entry, sealed or in clear."""
    if data[:1] == b"\x02":
        event_id, change = parse_change_leaf(data)
        assert change_leaf(event_id, change) == data
        assert format_change(change)
        return
    found = parse_leaf(data)
    assert b"\x01" + found.event_id + found.binding + found.sealed == data


@target(
    TlogError, seeds=lambda: [encode_bundle([b"", b"ab", b"x" * 300]), encode_bundle(entries(3))]
)
def bundle(data: bytes) -> None:
    """A bundle of three entries: one spelling."""
    assert encode_bundle(decode_bundle(data, 3)) == data


@target(TlogError, seeds=lambda: [path.encode() for path in (*_files(), "tile/0/x001/x234/067")
                                  if path != "checkpoint"])  # fmt: skip
def tile_path(data: bytes) -> None:
    """The path of a tile: one spelling."""
    text = data.decode("utf-8", "replace")
    assert parse_path(text).path == text


@target(TlogError, seeds=lambda: [
    cbor.encode({1: [b"x", "y", None, -5], "z": cbor.Tag(18, (1 << 40, {}))}), cbor.encode(0),
    cbor.encode([[[[[[["deep"]]]]]]]),
])  # fmt: skip
def deterministic_cbor(data: bytes) -> None:
    """CBOR in its one deterministic spelling."""
    assert cbor.encode(cbor.decode(data)) == data


def _cose() -> bytes:
    tree = tree_of(entries(_LEAVES))
    return sign_receipt(signer(), _LEAVES, 5, b"".join(tree.inclusion(5)), tree.root())


@target(TlogError, seeds=lambda: [_cose()])
def cose_receipt(data: bytes) -> None:
    """A COSE receipt: what is taken leads to the signed root."""
    parse_receipt(data)
    verify_receipt(data, entries(_LEAVES)[5], _VERIFIERS)


@target(LogVerificationError, seeds=lambda: [
    bytes([number]) + content for number, content in enumerate(_files().values())
])  # fmt: skip
def log_folder(data: bytes) -> None:
    """A whole log of which one file holds other bytes: it never verifies."""
    files = _files()
    path = list(files)[data[0] % len(files)] if data else "checkpoint"
    verify_log(reader(files | {path: data[1:]}), _VERIFIERS, files=files)
    if path == "checkpoint":
        # Lines of unknown keys may stand beside the log's own.
        assert parse_note(data[1:]).text == parse_note(_note()).text
    else:
        assert data[1:] == files[path]


@target(TlogError, seeds=lambda: [
    AddCheckpoint(0, (), _note()).format(), AddCheckpoint(3, (bytes(32),) * 2, _cosigned()).format()
])  # fmt: skip
def witness_request(data: bytes) -> None:
    """What a log asks of a witness; the witness accepts nothing but growth."""
    request = AddCheckpoint.parse(data)
    assert request.format() == data
    known = KnownLog(_VERIFIERS, 3, tree_of(entries(_LEAVES)).root(3))
    judged = judge(request, lambda origin: known if origin == ORIGIN else None)
    if judged.checkpoint is not None and judged.status == 200:
        assert judged.checkpoint.root == tree_of(entries(_LEAVES)).root(judged.checkpoint.size)


def _policy() -> bytes:
    return (
        f"log {signer().vkey} https://log.example/\nwitness w1 {_COSIGNER.vkey}\n"
        "group g any w1\nquorum g\n"
    ).encode()


@target(TlogError, seeds=lambda: [_policy(), f"log {signer().vkey}\nquorum none\n".encode()])
def witness_policy(data: bytes) -> None:
    """A policy file, and a checkpoint under it."""
    open_cosigned(_cosigned(), Policy.parse(data))


@target(ProofError, seeds=lambda: [
    b"\x05\x07" + b"".join(tree_of(entries(_LEAVES)).inclusion(5)),
    b"\x03\x07" + b"".join(tree_of(entries(_LEAVES)).consistency(3, 7)),
])  # fmt: skip
def merkle_proof(data: bytes) -> None:
    """Inclusion and consistency proofs: only the true ones hold."""
    tree = tree_of(entries(_LEAVES))
    old, new = (*data[:2], 0, 0)[:2]
    hashes = split_hashes(data[2:])
    root = tree.root(new) if new <= _LEAVES else bytes(32)
    try:
        hashed = leaf_hash(entries(_LEAVES)[5])
        verify_inclusion(hashed, old, new, hashes, root)
        assert (old, hashes) == (5, tree.inclusion(5, new))
    except ProofError:
        verify_consistency(old, new, hashes, tree.root(min(old, _LEAVES)), root)
        # Every tree continues the empty one.
        assert hashes == (tree.consistency(old, new) if old else [])
