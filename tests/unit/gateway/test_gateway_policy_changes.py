"""Changes of the policy set: two people, one at a time, signed; and questions about sets."""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.identity import Peer, peer_from_certificate
from sealward.kit.reasons import Reason
from sealward.kit.statement import join, sign, verify
from sealward.kit.tls import key_to_pem, new_key
from services.gateway.policy import Facts, load_policy
from services.gateway.policy.changes import PolicyChanges, payload
from services.gateway.policy.explain import Question, changes, differences
from services.gateway.policy.store import PolicyStore

OPEN = '@id("all") permit (principal, action, resource);'
NONE = '@id("none") forbid (principal, action, resource);'


class Person:
    """A certificate and its key."""

    def __init__(self, uri: str, key: object = None) -> None:
        key = key or new_key()
        self.key_pem = key_to_pem(key)  # type: ignore[arg-type]
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
        now = dt.datetime.now(dt.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())  # type: ignore[attr-defined]
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False
            )
            .sign(key, hashes.SHA256())  # type: ignore[arg-type]
        )
        self.pem = made.public_bytes(serialization.Encoding.PEM)
        self.peer: Peer = peer_from_certificate(self.pem, "")

    def sign(self, data: bytes) -> bytes:
        return sign(data, self.key_pem, self.pem)


ANN = Person("spiffe://sealward.local/user/ann")
BOB = Person("spiffe://sealward.local/user/bob")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PolicyStore]:
    opened = PolicyStore(tmp_path / "policies.db")
    yield opened
    opened.close()


def opened(store: PolicyStore, *, fixed: bool = False) -> PolicyChanges:
    return PolicyChanges(store, load_policy(None), fixed=fixed)


def proposal(made: PolicyChanges, text: str = OPEN) -> bytes:
    active = made.active
    return payload(active.version + 1, active.digest, text)


def refused(reason: Reason) -> pytest.RaisesExc[SealwardError]:
    return pytest.RaisesExc(SealwardError, check=lambda error: error.reason is reason)


def test_a_change_takes_two_people(store: PolicyStore) -> None:
    made = opened(store)
    data = proposal(made)
    proposed = made.propose(ANN.sign(data), ANN.peer)
    assert made.live.digest == made.active.digest != proposed.digest
    with refused(Reason.POLICY_DENIED):
        made.approve(proposed.digest, ANN.sign(data), ANN.peer)
    assert made.live.digest != proposed.digest
    before, after = made.approve(proposed.digest, BOB.sign(data), BOB.peer)
    assert (before.version, after.version) == (0, 1)
    assert made.live.digest == made.active.digest == proposed.digest
    assert (after.proposed_by, after.approved_by) == ("user/ann", "user/bob")
    assert [b.version for b in made.history()] == [1, 0]
    assert made.proposals() == []
    assert opened(store).live.digest == proposed.digest


def test_one_key_is_one_person(store: PolicyStore) -> None:
    made = opened(store)
    data = proposal(made)
    key = serialization.load_pem_private_key(ANN.key_pem, None)
    other_name = Person("spiffe://sealward.local/user/eve", key)
    other_key = Person("spiffe://sealward.local/user/ann")
    digest = made.propose(ANN.sign(data), ANN.peer).digest
    for person in (other_name, other_key):
        with refused(Reason.POLICY_DENIED):
            made.approve(digest, person.sign(data), person.peer)


def test_the_callers_own_key_signs(store: PolicyStore) -> None:
    made = opened(store)
    data = proposal(made)
    with refused(Reason.FIELD_INVALID):
        made.propose(BOB.sign(data), ANN.peer)
    with refused(Reason.FIELD_INVALID):
        made.propose(join([ANN.sign(data), BOB.sign(data)]), ANN.peer)
    digest = made.propose(ANN.sign(data), ANN.peer).digest
    with refused(Reason.FIELD_INVALID):
        made.approve(digest, ANN.sign(data), BOB.peer)
    with refused(Reason.FIELD_INVALID):
        made.approve(digest, BOB.sign(proposal(made, NONE)), BOB.peer)
    assert made.active.version == 0


def test_of_two_changes_that_race_the_second_is_made_again(store: PolicyStore) -> None:
    made = opened(store)
    first, second = proposal(made), proposal(made, NONE)
    one = made.propose(ANN.sign(first), ANN.peer)
    two = made.propose(BOB.sign(second), BOB.peer)
    made.approve(one.digest, BOB.sign(first), BOB.peer)
    with refused(Reason.NOT_FOUND):
        made.approve(two.digest, ANN.sign(second), ANN.peer)
    with refused(Reason.POLICY_CHANGED):
        made.propose(BOB.sign(second), BOB.peer)
    assert made.live.digest == one.digest


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b'{"version":1}',
        payload(1, "0" * 64, OPEN),
        payload(2, "", OPEN),
        b'{"previous": "", "text": "", "version": 1}',
        b'{"previous":"","text":"","version":true}',
        payload(1, "", OPEN) + b"\n",
    ],
)
def test_a_payload_of_another_form_is_refused(store: PolicyStore, data: bytes) -> None:
    made = opened(store)
    with pytest.raises(SealwardError):
        made.propose(ANN.sign(data), ANN.peer)
    assert made.proposals() == []


def test_policies_that_do_not_fit_are_refused_in_words(store: PolicyStore) -> None:
    made = opened(store)
    data = proposal(made, '@id("r") permit (principal in Role::"root", action, resource);')
    with pytest.raises(SealwardError, match="root"):
        made.propose(ANN.sign(data), ANN.peer)


def test_an_operators_file_is_not_changed_from_here(store: PolicyStore) -> None:
    made = opened(store, fixed=True)
    data = proposal(made)
    with refused(Reason.NOT_SUPPORTED):
        made.propose(ANN.sign(data), ANN.peer)


def test_a_change_that_was_not_recorded_is_taken_back(store: PolicyStore) -> None:
    made = opened(store)
    data = proposal(made)
    digest = made.propose(ANN.sign(data), ANN.peer).digest
    made.undo(*made.approve(digest, BOB.sign(data), BOB.peer))
    assert made.live.digest == made.active.digest == load_policy(None).digest
    assert opened(store).live.digest == made.active.digest


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE policy SET text = text || '\n'",
        "UPDATE policy SET approved_by = 'user/eve'",
        "UPDATE policy SET version = 7",
        "UPDATE policy SET jws = x'7b7d'",
        "UPDATE policy SET digest = lower(hex(randomblob(32)))",
    ],
)
def test_a_store_that_was_changed_stops_the_start(store: PolicyStore, change: str) -> None:
    made = opened(store)
    data = proposal(made)
    digest = made.propose(ANN.sign(data), ANN.peer).digest
    made.approve(digest, BOB.sign(data), BOB.peer)
    store._db.execute(change)
    with pytest.raises(StartupError, match="damaged"):
        opened(store)


def test_any_jose_library_verifies_the_signatures() -> None:
    value = json.loads(join([ANN.sign(b"payload"), BOB.sign(b"payload")]))
    for entry, person in zip(value["signatures"], (ANN, BOB), strict=True):
        compact = f"{entry['protected']}.{value['payload']}.{entry['signature']}"
        header = jwt.get_unverified_header(compact)
        leaf = x509.load_der_x509_certificate(base64.b64decode(header["x5c"][0]))
        assert leaf == x509.load_pem_x509_certificate(person.pem)
        read = jwt.api_jws.decode(compact, leaf.public_key(), algorithms=["ES256"])
        assert read == b"payload"


def test_a_statement_whose_bytes_were_changed_is_refused() -> None:
    good = ANN.sign(b"payload")
    assert verify(good).payload == b"payload"
    for at in range(len(good)):
        bad = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        try:
            found = verify(bad)
        except SealwardError:
            continue
        # base64url has spare bits at its end: the same bytes may be written in two ways.
        assert (found.payload, found.signers) == (b"payload", (ANN.peer,))


def test_the_shadow_decides_without_effect(store: PolicyStore) -> None:
    live = opened(store).live
    asked = (("clinician",), "ModelInfer", "m", "TREAT")
    assert live.shadowed() is None
    live.shadow(opened(store).live.current)
    live.decide(*asked)
    seen = live.shadowed()
    assert seen is not None
    assert (seen.decided, seen.counts) == ([1], {})
    from services.gateway.policy import CedarPolicy

    live.shadow(CedarPolicy(NONE))
    assert live.decide(*asked).permitted
    assert live.decide(*asked).permitted
    assert not live.decide(("operator",), "ModelInfer", "m", "TREAT").permitted
    seen = live.shadowed()
    assert seen is not None
    assert seen.decided == [3]
    ((kind, calls),) = seen.counts.items()
    assert (kind.roles, kind.opened, kind.rule, calls) == (("clinician",), False, "none", 2)


def test_single_changes_that_turn_the_answer_round() -> None:
    policy = load_policy(None)
    refused_ = Question(("operator",), "ModelInfer", "m", "TREAT", Facts())
    found = {(c.what, c.value): c.rule for c in changes(policy, refused_)}
    assert found == {
        ("role", "clinician"): "clinician-infer",
        ("role", "service"): "service-infer",
        ("granted", "yes"): "granted-infer",
    }
    permitted = Question(("clinician",), "ModelInfer", "m", "TREAT", Facts())
    found = {(c.what, c.value): c.rule for c in changes(policy, permitted)}
    assert ("role", "-clinician") in found
    assert ("purpose", "HMARKT") in found
    assert ("purpose", "COC") not in found


def test_differences_are_named_by_role_rpc_model_and_purpose() -> None:
    before = load_policy(None)
    from services.gateway.policy import CedarPolicy

    after = CedarPolicy(
        before.text
        + '@id("op") permit (principal in Role::"operator", action == Action::"ModelInfer",'
        ' resource == Model::"heart") when { context has purpose &&'
        ' [Purpose::"HOPERAT", Purpose::"HTEST"].contains(context.purpose) };'
        + '@id("no-lung") forbid (principal in Role::"clinician", action, resource)'
        ' when { resource == Model::"lung" };'
    )
    rows, compared = differences(before, after)
    assert 1_000 < compared < 50_000
    opened_ = [(r.role, r.rpc, r.model, r.purposes, r.after_rule) for r in rows if r.opened]
    assert opened_ == [("operator", "ModelInfer", "heart", ("HOPERAT", "HTEST"), "op")]
    closed = {(r.role, r.rpc, r.model) for r in rows if not r.opened}
    assert ("clinician", "ModelInfer", "lung") in closed
    assert {role for role, _, _ in closed} == {"clinician"}
    assert {model for _, _, model in closed} == {"lung"}
