"""Witness policies: whose cosignatures make a checkpoint believed (c2sp.org/tlog-policy).

    log <vkey> [<url>]
    witness <name> <vkey> [<url>]
    group <name> all|any|<k> <name>...
    quorum <name>|none

The file is one of octets: names are compared as they stand. Here they are text with the octets that
are no UTF-8 escaped (`surrogateescape`).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sealward.tlog.checkpoint import Checkpoint
from sealward.tlog.cosignature import (
    COSIGNATURE_TYPES,
    CosignatureVerifier,
    timestamp_of,
)
from sealward.tlog.errors import NoteError, PolicyError, PolicyUnsatisfiedError, SignatureError
from sealward.tlog.note import VKEY_TYPES, Signature, Verifier, open_note, parse_vkey
from sealward.tlog.text import decode_base64, decode_decimal

MAX_POLICY_SIZE = 1 << 20
"""Bytes; a longer file is refused unread."""

NONE = "none"
"""The quorum that asks for no cosignature."""

LOG_TYPES = {**VKEY_TYPES, **COSIGNATURE_TYPES}
"""Key types that a log may sign its checkpoints with."""

_ALLOWED = frozenset({0x09, 0x0A, *range(0x20, 0x7F), *range(0x80, 0x100)})

KeyIdentity = tuple[str, bytes]
"""Name and id of a key, as they stand in signature lines."""


@dataclass(frozen=True, slots=True)
class PolicyLog:
    """A log whose checkpoints are believed. `url` is empty where there is none."""

    verifier: Verifier
    url: str = ""


@dataclass(frozen=True, slots=True)
class PolicyWitness:
    """A witness. `name` is of the file alone; that of its key is in the verifier."""

    name: str
    verifier: CosignatureVerifier
    url: str = ""

    @property
    def identity(self) -> KeyIdentity:
        """Name and id of its key."""
        return self.verifier.name, self.verifier.key_id


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy, read. `quorum` is the name of a witness or a group, or NONE."""

    logs: tuple[PolicyLog, ...]
    witnesses: tuple[PolicyWitness, ...]
    quorum: str
    _groups: tuple[_Group, ...] = field(default=(), repr=False)

    @classmethod
    def parse(cls, data: bytes) -> "Policy":
        """Read a policy file; raises PolicyError, which names the line."""
        return _Reader().read(data)

    def satisfied(self, cosigners: Collection[KeyIdentity]) -> bool:
        """Return whether verified cosignatures of these keys are a quorum."""
        if self.quorum == NONE:
            return True
        # A group is defined after its members.
        holds = {w.name: w.identity in cosigners for w in self.witnesses}
        for group in self._groups:
            holds[group.name] = sum(holds[m] for m in group.members) >= group.threshold
        return holds[self.quorum]


@dataclass(frozen=True, slots=True)
class Cosignature:
    """A verified cosignature: by which witness of the policy, when (seconds since the epoch)."""

    witness: PolicyWitness
    time: int
    line: Signature


@dataclass(frozen=True, slots=True)
class CosignedCheckpoint:
    """A checkpoint that satisfies a policy, the note as it came, and who cosigned it."""

    checkpoint: Checkpoint
    note: bytes
    cosignatures: tuple[Cosignature, ...]


def open_cosigned(
    data: bytes, policy: Policy, vkeys: Sequence[Verifier] = ()
) -> CosignedCheckpoint:
    """Verify a signed checkpoint against a policy.

    It must be signed by a log of the policy, or by one of `vkeys`, under the origin that it names.
    Raises NoteError, SignatureError (a NoteError), CheckpointError, or PolicyUnsatisfiedError when
    all of its known lines hold and are too few.
    """
    logs = {(v.name, v.key_id): v for v in (*vkeys, *(log.verifier for log in policy.logs))}
    if not logs:
        raise SignatureError("neither the policy nor anything else names a key of the log")
    note = open_note(data, [*logs.values(), *(w.verifier for w in policy.witnesses)])
    checkpoint = Checkpoint.parse(note.text)
    lines = {(line.name, line.key_id): line for line in note.verified}
    if not any(key in logs and key[0] == checkpoint.origin for key in lines):
        raise SignatureError("checkpoint is not signed by the log that it names")
    found = tuple(
        Cosignature(w, timestamp_of(line.signature), line)
        for w in policy.witnesses
        if (line := lines.get(w.identity)) is not None
    )
    if not policy.satisfied({c.witness.identity for c in found}):
        who = ", ".join(printable(c.witness.name) for c in found) or "no witness of the policy"
        raise PolicyUnsatisfiedError(
            f"cosigned by {who}: that is not the quorum {printable(policy.quorum)}"
        )
    return CosignedCheckpoint(checkpoint, data, found)


def format_policy(
    logs: Iterable[str], witnesses: Mapping[str, str], quorum: str = NONE, note: str = ""
) -> bytes:
    """Return the text of a policy without groups: log keys, keys by name of witness, a comment.

    Raises PolicyError for what has no text.
    """
    lines = [f"# {line}" for line in note.splitlines()]
    lines += [f"log {vkey}" for vkey in logs]
    lines += [f"witness {name} {vkey}" for name, vkey in witnesses.items()]
    data = "".join(f"{line}\n" for line in (*lines, f"quorum {quorum}")).encode()
    Policy.parse(data)
    return data


def printable(name: str) -> str:
    """Return a name as it can be printed, whatever octets it has."""
    return name.encode("utf-8", "backslashreplace").decode()


class _Reader:
    """Reads a file line by line."""

    def __init__(self) -> None:
        self._logs: list[PolicyLog] = []
        self._witnesses: list[PolicyWitness] = []
        self._groups: list[_Group] = []
        self._names: set[str] = {NONE}
        self._members: set[str] = set()
        self._keys: set[tuple[str, bytes]] = set()
        self._quorum = ""

    def read(self, data: bytes) -> Policy:
        if len(data) > MAX_POLICY_SIZE:
            raise PolicyError("policy is too large")
        if not data.endswith(b"\n"):
            # What was cut off could have been the rest of a name.
            raise PolicyError("the last line of the policy does not end in a newline")
        if not _ALLOWED.issuperset(data):
            raise PolicyError("policy contains control characters (lines end in a newline alone)")
        for number, line in enumerate(data.decode("utf-8", "surrogateescape").split("\n"), 1):
            items = [item for part in line.split("\t") for item in part.split(" ") if item]
            if not items or items[0].startswith("#"):
                continue
            try:
                self._line(items)
            except PolicyError as error:
                raise PolicyError(f"line {number}: {error}") from None
        if not self._quorum:
            raise PolicyError("policy has no quorum line")
        return Policy(tuple(self._logs), tuple(self._witnesses), self._quorum, tuple(self._groups))

    def _line(self, items: Sequence[str]) -> None:
        match items:
            case ["log", vkey, *url] if len(url) <= 1:
                verifier = _verifier(vkey, LOG_TYPES)
                self._once("log", vkey)
                self._logs.append(PolicyLog(verifier, "".join(url)))
            case ["witness", name, vkey, *url] if len(url) <= 1:
                self._define(name)
                witness: CosignatureVerifier = _verifier(vkey, COSIGNATURE_TYPES)
                self._once("witness", vkey)
                self._witnesses.append(PolicyWitness(name, witness, "".join(url)))
            case ["group", name, threshold, *members] if members:
                for member in members:
                    self._use(member)
                self._define(name)
                self._groups.append(
                    _Group(name, _threshold(threshold, len(members)), tuple(members))
                )
            case ["quorum", name]:
                if self._quorum:
                    raise PolicyError("there is a quorum line already")
                if name not in self._names:
                    raise PolicyError("the quorum is not defined before")
                self._quorum = name
            case ["log" | "witness" | "group" | "quorum", *_]:
                raise PolicyError(f"a {items[0]} line has other items")
            case _:
                raise PolicyError("unknown keyword")

    def _define(self, name: str) -> None:
        if name in self._names:
            raise PolicyError("the name is taken")
        self._names.add(name)

    def _use(self, member: str) -> None:
        if member == NONE or member not in self._names:
            raise PolicyError("a member is not defined before")
        if member in self._members:
            raise PolicyError("a member is one of a group already")
        self._members.add(member)

    def _once(self, kind: str, vkey: str) -> None:
        """Refuse a second line with the same public key, whatever its name."""
        # The type byte goes: it is the key that counts.
        key = (kind, decode_base64(vkey.split("+", 2)[2])[1:])
        if key in self._keys:
            raise PolicyError(f"the same key is in another {kind} line")
        self._keys.add(key)


def _threshold(text: str, members: int) -> int:
    if text in {"all", "any"}:
        return members if text == "all" else 1
    try:
        number = decode_decimal(text)
    except ValueError:
        raise PolicyError("a group's threshold is all, any or a number") from None
    if not 1 <= number <= members:
        raise PolicyError("a group's threshold is 1 to the number of its members")
    return number


def _verifier(vkey: str, types: Mapping[int, object]) -> "CosignatureVerifier":
    try:
        vkey.encode()
        return parse_vkey(vkey, types)  # type: ignore[arg-type,return-value]
    except UnicodeEncodeError:
        raise PolicyError("a verifier key is not UTF-8") from None
    except NoteError as error:
        raise PolicyError(str(error)) from None
