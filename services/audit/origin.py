"""A log's name and keys: made with the log, opened at every later start.

The origin is `<trust domain>/<deployment id>/<tenant>/<label>`, the label `<year>`, or `<year>-<n>`
for a log that a year has beside its first. The deployment id is drawn once, so that two
installations never share a log's name. Signing keys are Ed25519 keys made here and kept in the
store, each sealed under a branch key of purpose `log-signing`; a log may have several, of which one
or two sign (logkeys.py changes them). The index key is a branch key of purpose `audit-index`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sealward.kit.errors import StartupError
from sealward.seal.context import EncryptionContext
from sealward.seal.entries import PREFIX_BYTES, EntryOpener, EntrySealer
from sealward.seal.errors import SealBrokenError
from sealward.tlog.note import Ed25519Signer
from services.audit.entry import DEFAULT_TENANT
from services.audit.segments import BranchKey, KeyRing
from services.audit.store import LogStore

ORIGIN = "origin"
INDEX_KEY = "index/wrapped"
KEYS = "signing/keys"
# The seed is sealed in the format of entries (Tink AES-256-GCM with a key commitment), in a place
# where no entry can be: a segment id and a clear part that no entry has, under a key of its own.
_PLACE = b"log-sign"
_PREFIX = b"sealward/log-signing-key/v1".ljust(PREFIX_BYTES, b"\0")


@dataclass(frozen=True, slots=True)
class LogName:
    """An origin, taken apart."""

    trust_domain: str
    deployment: str
    tenant: str
    label: str

    @classmethod
    def parse(cls, origin: str) -> LogName:
        """Read an origin of ours; raise StartupError."""
        parts = origin.split("/")
        if len(parts) != 4 or not all(parts):
            raise StartupError("the audit store holds a log with a name that is none of ours")
        return cls(*parts)

    @property
    def origin(self) -> str:
        """The whole name."""
        return f"{self.trust_domain}/{self.deployment}/{self.tenant}/{self.label}"

    @property
    def year(self) -> int:
        """The year whose events it holds."""
        year = self.label.partition("-")[0]
        return int(year) if year.isdecimal() else 0


def new_name(trust_domain: str, year: int, tenant: str = DEFAULT_TENANT) -> str:
    """Draw the origin of the first log of an installation."""
    return LogName(trust_domain, secrets.token_hex(4), tenant, str(year)).origin


@dataclass(frozen=True, slots=True)
class KeyState:
    """Which keys of a log sign. Numbers count from 1; `vkeys` are all lines, by number.

    `until` (nanoseconds since the epoch) is when `leaving` signs no more; 0 = nothing leaves.
    """

    active: int
    vkeys: tuple[str, ...]
    leaving: int = 0
    until: int = 0

    def encode(self) -> bytes:
        """Return the stored form."""
        return json.dumps(
            {
                "active": self.active,
                "vkeys": self.vkeys,
                "leaving": self.leaving,
                "until": self.until,
            }
        ).encode()

    @classmethod
    def decode(cls, data: bytes) -> KeyState:
        """Read the stored form; raise StartupError."""
        try:
            value = json.loads(data)
            return cls(value["active"], tuple(value["vkeys"]), value["leaving"], value["until"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise StartupError("the list of the log's keys cannot be read: it is damaged") from None


@dataclass(frozen=True, slots=True)
class LogKeys:
    """Name and keys of a log. `signers` sign now, the active one first."""

    origin: str
    signers: tuple[Ed25519Signer, ...]
    index: BranchKey
    state: KeyState = field(default_factory=lambda: KeyState(1, ()))

    @property
    def signer(self) -> Ed25519Signer:
        """The active key."""
        return self.signers[0]

    @property
    def vkeys(self) -> list[str]:
        """The verifier key lines, the active one first, then those that signed before."""
        return vkey_lines(self.state)


def vkey_lines(state: KeyState) -> list[str]:
    """Return the verifier key lines of a log, the active one first."""
    active = state.vkeys[state.active - 1]
    return [active, *(line for line in reversed(state.vkeys) if line != active)]


def stored_origin(store: LogStore, trust_domain: str) -> str | None:
    """Return the name of the log in a store, None for a new store; raise StartupError."""
    stored = store.get(ORIGIN)
    if stored is None:
        if store.head() is not None:
            raise StartupError("the audit store has entries but no origin: it is damaged")
        return None
    name = LogName.parse(stored.decode())
    if name.trust_domain != trust_domain:
        raise StartupError(f"the audit log is of another trust domain: {name.trust_domain}")
    return name.origin


def open_log_keys(
    store: LogStore, ring: KeyRing, trust_domain: str, new_origin: Callable[[], str]
) -> LogKeys:
    """Open the log's keys, or make them under `new_origin()` when the store is new.

    Raise StartupError when the store belongs to another trust domain or its keys do not open,
    SealwardError KEYS_UNAVAILABLE when the keys service does not answer.
    """
    origin = stored_origin(store, trust_domain)
    if origin is None:
        origin = new_origin()
        store.put(new_log_keys(ring, origin))
    return _open(store, ring, origin)


def new_log_keys(ring: KeyRing, origin: str) -> list[tuple[str, bytes]]:
    """Make the keys of a new log; return the named values that its store begins with."""
    index = ring.create(_context("audit-index", origin))
    wrapped = index.wrapped
    index.close()
    signer, signing = new_signing_key(ring, origin, 1)
    return [
        (ORIGIN, origin.encode()),
        *signing,
        (KEYS, KeyState(1, (signer.vkey,)).encode()),
        (INDEX_KEY, wrapped),
    ]


def new_signing_key(
    ring: KeyRing, origin: str, number: int
) -> tuple[Ed25519Signer, list[tuple[str, bytes]]]:
    """Make a signing key; return it and the named values that keep it."""
    branch = ring.create(_context("log-signing", origin))
    signer, seed = Ed25519Signer.generate(origin)
    sealed = EntrySealer(branch.use(len(seed)), _PLACE, origin).seal(_PREFIX, seed)
    wrapped_name, sealed_name = key_names(number)
    values = [(wrapped_name, branch.wrapped), (sealed_name, sealed)]
    branch.close()
    return signer, values


def open_signing_key(store: LogStore, ring: KeyRing, origin: str, number: int) -> Ed25519Signer:
    """Open one of the log's signing keys; raise StartupError or SealwardError."""
    wrapped, sealed = (store.get(name) for name in key_names(number))
    if wrapped is None or sealed is None:
        raise StartupError("the audit store lacks the log's keys: it is damaged")
    branch = ring.open(_context("log-signing", origin), wrapped)
    try:
        seed = EntryOpener(branch.use(len(sealed)), _PLACE, origin).open(_PREFIX, sealed)
    except SealBrokenError:
        raise StartupError("the log's signing key does not open: store or key is damaged") from None
    branch.close()
    return Ed25519Signer(origin, seed)


def open_index_key(store: LogStore, ring: KeyRing, origin: str) -> BranchKey:
    """Open the log's index key; raise StartupError or SealwardError."""
    wrapped = store.get(INDEX_KEY)
    if wrapped is None:
        raise StartupError("the audit store lacks the log's keys: it is damaged")
    return ring.open(_context("audit-index", origin), wrapped)


def key_names(number: int) -> tuple[str, str]:
    """Return the names under which a signing key is kept: its branch key, its sealed seed."""
    # The first one has the names that stores had when there was no other.
    middle = "" if number == 1 else f"{number}/"
    return f"signing/{middle}wrapped", f"signing/{middle}sealed"


def key_state(store: LogStore, signers: Sequence[Ed25519Signer] = ()) -> KeyState:
    """Return which keys sign. A store from before keys could change has one and no list."""
    stored = store.get(KEYS)
    if stored is not None:
        return KeyState.decode(stored)
    return KeyState(1, tuple(signer.vkey for signer in signers))


def _open(store: LogStore, ring: KeyRing, origin: str) -> LogKeys:
    state = key_state(store)
    signers = [open_signing_key(store, ring, origin, state.active)]
    if state.leaving:
        signers.append(open_signing_key(store, ring, origin, state.leaving))
    if not state.vkeys:
        state = key_state(store, signers)
        store.put([(KEYS, state.encode())])
    return LogKeys(origin, tuple(signers), open_index_key(store, ring, origin), state)


def _context(purpose: str, origin: str) -> EncryptionContext:
    return EncryptionContext(LogName.parse(origin).tenant, purpose, origin)
