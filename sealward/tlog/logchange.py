r"""Entries in clear that change the log itself: its key, its end, its beginning.

    leaf = 0x02 || event id[16] || text

The text is UTF-8, each line ended by a newline; the first names the form. Whoever walks the log
reads them without a key, and each stands under a checkpoint like any other entry:

    sealward/log-key/v1         sealward/log-final/v1       sealward/log-successor/v1
    origin ORIGIN               origin ORIGIN               origin ORIGIN
    old VKEY                    successor ORIGIN            predecessor ORIGIN
    new VKEY                    key VKEY
                                                            CHECKPOINT (the predecessor's final one,
                                                            a signed note, after an empty line)

A `log-key` entry says that the new key signs from here on; the checkpoint over it is signed by the
old one. A `log-final` entry is the last of its log and names the log that follows with its key; a
`log-successor` entry is the first of that one. So who trusts one key is led to the next, and who
holds the newest log has the root of every one before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sealward.tlog.checkpoint import Checkpoint
from sealward.tlog.errors import LeafError, TlogError
from sealward.tlog.leaf import EVENT_ID_SIZE
from sealward.tlog.note import check_name, parse_note, parse_vkey
from sealward.tlog.tiles import MAX_ENTRY_SIZE

CHANGE_VERSION = 2
"""The first byte of a leaf in clear."""

_KEY, _FINAL, _SUCCESSOR = (f"sealward/log-{name}/v1" for name in ("key", "final", "successor"))


@dataclass(frozen=True, slots=True)
class LogKey:
    """The log's signing key changes: verifier key lines of both."""

    origin: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class LogFinal:
    """The log ends; `successor` is the origin of the next one and `key` its verifier key line."""

    origin: str
    successor: str
    key: str


@dataclass(frozen=True, slots=True)
class LogSuccessor:
    """The log begins after `predecessor`, whose final signed checkpoint this is."""

    origin: str
    predecessor: str
    checkpoint: bytes


LogChange = LogKey | LogFinal | LogSuccessor


def format_change(change: LogChange) -> str:
    """Return the text of a change; raises LeafError for values that have no text."""
    match change:
        case LogKey(origin, old, new):
            text = _lines(_KEY, origin=origin, old=old, new=new)
        case LogFinal(origin, successor, key):
            text = _lines(_FINAL, origin=origin, successor=successor, key=key)
        case LogSuccessor(origin, predecessor, checkpoint):
            text = _lines(_SUCCESSOR, origin=origin, predecessor=predecessor)
            text += "\n" + checkpoint.decode()
    if parse_change(text) != change:
        raise LeafError("a change of the log has values without a text")
    return text


def parse_change(text: str) -> LogChange:
    """Read the text of a change, and nothing but it; raises LeafError. No signature is checked."""
    head, gap, rest = text.partition("\n\n")
    if bool(gap) is not bool(rest) or not text.endswith("\n"):
        raise LeafError("a change of the log does not end where its last line does")
    form, *lines = (head if rest else head.removesuffix("\n")).split("\n")
    pairs = [line.partition(" ") for line in lines]
    names, values = [name for name, _, _ in pairs], [value for _, _, value in pairs]
    try:
        check_name(values[0] if values else "")
        if form == _KEY and names == ["origin", "old", "new"] and not rest:
            return _key(*values)
        if form == _FINAL and names == ["origin", "successor", "key"] and not rest:
            return _final(*values)
        if form == _SUCCESSOR and names == ["origin", "predecessor"] and rest:
            return _successor(values[0], values[1], rest.encode())
    except TlogError:
        raise LeafError("a change of the log has values that cannot be") from None
    raise LeafError("a change of the log is of an unknown form")


def change_leaf(event_id: bytes, change: LogChange) -> bytes:
    """Return the leaf of a change; raises ValueError for an id of another length, LeafError."""
    if len(event_id) != EVENT_ID_SIZE:
        raise ValueError("an event id is 16 bytes long")
    return bytes([CHANGE_VERSION]) + event_id + format_change(change).encode()


def parse_change_leaf(leaf: bytes) -> tuple[bytes, LogChange]:
    """Take a leaf in clear apart: event id and change; raises LeafError."""
    if not EVENT_ID_SIZE + 1 < len(leaf) <= MAX_ENTRY_SIZE or leaf[0] != CHANGE_VERSION:
        raise LeafError("leaf is not one in clear")
    try:
        text = leaf[1 + EVENT_ID_SIZE :].decode()
    except UnicodeDecodeError:
        raise LeafError("a change of the log is not UTF-8") from None
    return leaf[1 : 1 + EVENT_ID_SIZE], parse_change(text)


def _lines(form: str, **values: str) -> str:
    return "".join([f"{form}\n", *(f"{name} {value}\n" for name, value in values.items())])


def _key(origin: str, old: str, new: str) -> LogKey:
    if {parse_vkey(old).name, parse_vkey(new).name} != {origin} or old == new:
        raise LeafError("the keys are not two of this log")
    return LogKey(origin, old, new)


def _final(origin: str, successor: str, key: str) -> LogFinal:
    if parse_vkey(key).name != check_name(successor) or successor == origin:
        raise LeafError("the key is not that of the log that follows")
    return LogFinal(origin, successor, key)


def _successor(origin: str, predecessor: str, note: bytes) -> LogSuccessor:
    if Checkpoint.parse(parse_note(note).text).origin != predecessor or predecessor == origin:
        raise LeafError("the checkpoint is not that of the log before")
    return LogSuccessor(origin, predecessor, note)
