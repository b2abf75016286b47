"""A change of the policy set takes two people: one proposes, another approves.

Both sign the same payload with the keys of their certificates, over the connection that the
certificate opened; the two signatures stay with the set. A proposal names the set that it replaces,
so of two changes that race the second is refused and has to be made again.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.identity import Peer
from sealward.kit.reasons import Reason
from sealward.kit.statement import Statement, join, verify
from services.gateway.policy.cedar import CedarPolicy
from services.gateway.policy.interface import PolicyError
from services.gateway.policy.live import LivePolicy
from services.gateway.policy.store import Bundle, PolicyStore

_MOST_PROPOSALS = 32


class PolicyChanges:
    """Reads, proposes, approves. Thread-safe. `fixed`: an operator's file decides, for good."""

    def __init__(self, store: PolicyStore, shipped: CedarPolicy, *, fixed: bool) -> None:
        """Put the newest set of the store in force; raise StartupError when it is damaged."""
        self._store = store
        self._lock = threading.Lock()
        self.fixed = fixed
        self._shipped = Bundle(0, shipped.digest, shipped.text)
        self.live = LivePolicy(shipped)
        active = None if fixed else store.active()
        if active is not None:
            self.live.exchange(_stored(active))

    @property
    def active(self) -> Bundle:
        """The set in force."""
        return self._shipped if self.fixed else self._store.active() or self._shipped

    def history(self) -> list[Bundle]:
        """Return what was in force, newest first, with the set of the deployment as the oldest."""
        return [*([] if self.fixed else self._store.history()), self._shipped]

    def proposals(self) -> list[Bundle]:
        """Return what is proposed, oldest first."""
        return self._store.proposals()

    def propose(self, jws: bytes, peer: Peer) -> Bundle:
        """Keep a proposal that its author signed; raise FIELD_INVALID or POLICY_CHANGED."""
        self._changeable()
        statement = _signed_by(jws, peer)
        version, previous, text = parse_payload(statement.payload)
        with self._lock:
            active = self.active
            _check_base(active, version, previous)
            policy = parse_policy(text)
            if policy.digest == active.digest:
                raise _invalid("this set is in force already")
            if len(self._store.proposals()) >= _MOST_PROPOSALS:
                raise SealwardError(Reason.OVERLOADED, "too many proposals wait", retry_after=60.0)
            bundle = Bundle(version, policy.digest, text, jws, person(peer), "", int(time.time()))
            known = self.find(policy.digest)
            if known is not None and known.proposed_by != bundle.proposed_by:
                raise SealwardError(
                    Reason.ALREADY_EXISTS, "somebody else proposed the same set", field="jws"
                )
            self._store.propose(bundle)
        return bundle

    def approve(self, digest: str, jws: bytes, peer: Peer) -> tuple[Bundle, Bundle]:
        """Put a proposal of somebody else in force; return what was and what is in force."""
        self._changeable()
        statement = _signed_by(jws, peer)
        with self._lock:
            proposal = self._proposal(digest)
            proposed = verify(proposal.jws)
            if statement.payload != proposed.payload:
                raise _invalid("the signature is about another payload than the proposal's")
            if _same_person(proposed.signers[0], peer):
                raise SealwardError(
                    Reason.POLICY_DENIED, "a change takes two people: somebody else approves it"
                )
            before = self.active
            version, previous, text = parse_payload(statement.payload)
            _check_base(before, version, previous)
            policy = parse_policy(text)
            after = replace(
                proposal,
                jws=join([proposal.jws, jws]),
                approved_by=person(peer),
                time=int(time.time()),
            )
            if not self._store.activate(after):
                raise _changed()
            self.live.exchange(policy)
        return before, after

    def undo(self, before: Bundle, after: Bundle) -> None:
        """Take a change back whose record the log did not take."""
        with self._lock:
            self._store.deactivate(after.version)
            self.live.exchange(
                parse_policy(before.text) if before.version else parse_policy(self._shipped.text)
            )

    def reject(self, digest: str) -> None:
        """Forget a proposal; raise NOT_FOUND."""
        if not self._store.reject(digest):
            raise _no_proposal()

    def find(self, digest: str) -> Bundle | None:
        """Return the proposal with this digest."""
        return next((p for p in self._store.proposals() if p.digest == digest), None)

    def _proposal(self, digest: str) -> Bundle:
        found = self.find(digest)
        if found is None:
            raise _no_proposal()
        return found

    def _changeable(self) -> None:
        if self.fixed:
            raise SealwardError(
                Reason.NOT_SUPPORTED,
                "the operator's policy file decides here (SEALWARD_GATEWAY_POLICY_FILE)",
            )


def payload(version: int, previous: str, text: str) -> bytes:
    """Write what is signed: the number, the digest of the set that is replaced, the policies."""
    value = {"version": version, "previous": previous, "text": text}
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def parse_payload(data: bytes) -> tuple[int, str, str]:
    """Read what `payload` wrote; raise FIELD_INVALID."""
    try:
        value = json.loads(data)
        version, previous, text = value["version"], value["previous"], value["text"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _invalid("the payload is not version, previous and text") from None
    if (
        type(version) is not int
        or not isinstance(previous, str)
        or not isinstance(text, str)
        or payload(version, previous, text) != data
    ):
        raise _invalid("the payload is not version, previous and text, sorted, without spaces")
    return version, previous, text


def parse_policy(text: str) -> CedarPolicy:
    """Read policies; raise FIELD_INVALID in words."""
    try:
        return CedarPolicy(text)
    except PolicyError as error:
        # Its words are about the policies and quote nothing else.
        raise SealwardError(Reason.FIELD_INVALID, str(error), field="text") from None


def person(peer: Peer) -> str:
    """Name who signed: `kind/name`."""
    return f"{peer.identity.kind}/{peer.identity.name}"


def _same_person(one: Peer, other: Peer) -> bool:
    return one.identity.uri == other.identity.uri or one.spki_sha256 == other.spki_sha256


def _signed_by(jws: bytes, peer: Peer) -> Statement:
    statement = verify(jws)
    if len(statement.signers) != 1:
        raise _invalid("it has one signature, the caller's own")
    (signer,) = statement.signers
    if signer.spki_sha256 != peer.spki_sha256 or signer.identity != peer.identity:
        raise _invalid("it is not signed by the key of the caller's certificate")
    return statement


def _stored(bundle: Bundle) -> CedarPolicy:
    """Return the set of a bundle whose two signatures hold; raise StartupError."""
    damaged = StartupError(f"policy set {bundle.version} in the policy store is damaged")
    try:
        statement = verify(bundle.jws)
        version, _, text = parse_payload(statement.payload)
        policy = parse_policy(text)
    except SealwardError:
        raise damaged from None
    people = [person(signer) for signer in statement.signers]
    if (
        people != [bundle.proposed_by, bundle.approved_by]
        or _same_person(*statement.signers)
        or (version, text, policy.digest) != (bundle.version, bundle.text, bundle.digest)
    ):
        raise damaged
    return policy


def _check_base(active: Bundle, version: int, previous: str) -> None:
    if (version, previous) != (active.version + 1, active.digest):
        raise _changed()


def _changed() -> SealwardError:
    return SealwardError(
        Reason.POLICY_CHANGED, "another change came first: propose it again", field="jws"
    )


def _no_proposal() -> SealwardError:
    return SealwardError(Reason.NOT_FOUND, "there is no such proposal", field="digest")


def _invalid(why: str) -> SealwardError:
    return SealwardError(Reason.FIELD_INVALID, why, field="jws")
