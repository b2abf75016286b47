"""KM-01: keys are apart from the data, can be rotated, and what was sealed still opens."""

from __future__ import annotations

from sealward.api.keys.v1 import keys_pb2, rotation_pb2
from sealward.check import questions
from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row

_STATUS = f"{questions.KEYS}KeysService/GetStatus"
_LIST = f"{questions.KEYS}RotationService/ListKeys"
_ROTATE = f"{questions.KEYS}RotationService/RotateKey"
PURPOSE = "session"


def run(deployment: Deployment, notes: Notes) -> None:
    """Look at where the keys are; make a new version of one and read what is older."""
    status = keys_pb2.GetStatusResponse.FromString(
        questions.asked(deployment, "keys", _STATUS, keys_pb2.GetStatusRequest()).body
    )
    notes.held(f"the keys are with the provider {status.provider}")
    _apart(deployment, notes)
    listed = _keys(deployment)
    notes.check(
        bool(listed) and all(key.newest >= key.lowest >= 1 for key in listed),
        f"{len(listed)} key-encryption keys, each with its versions",
        "the keys service does not list its key-encryption keys",
    )
    person = deployment.person("clinician")
    reply = deployment.call(
        "keys", f"{questions.KEYS}KeysService/OpenBranchKey",
        keys_pb2.OpenBranchKeyRequest().SerializeToString(), who=person,
    )  # fmt: skip
    notes.check(
        reply.reason == "IDENTITY_FORBIDDEN",
        "no caller is handed a key",
        f"a caller is not refused a key: {reply.said}",
    )
    if not deployment.settings.disrupt:
        notes.cannot("it would make a new version of a key: add --disrupt")
    _rotate(deployment, notes)
    notes.limit("no key is destroyed here; see sealward keys --help for what destroys one")


def _apart(deployment: Deployment, notes: Notes) -> None:
    if deployment.root is None:
        notes.limit("where the root key lies is not seen from here")
        return
    keystore = deployment.root / "keys" / "keystore"
    if not keystore.is_dir():
        return
    roots = [path for path in keystore.iterdir() if path.name.startswith("root.")]
    sealed = [
        path for path in roots
        if path.suffix == ".jwe" or path.read_bytes().startswith(b"age-encryption.org/")
    ]  # fmt: skip
    notes.check(
        bool(roots) and sealed == roots,
        "the root key lies sealed",
        "the root key does not lie sealed",
    )
    inside = list(keystore.rglob("unlock*"))
    notes.check(
        not inside,
        "what unlocks it does not lie beside it",
        "what unlocks the keystore lies in the keystore",
    )


def _keys(deployment: Deployment) -> list[rotation_pb2.KeyEncryptionKey]:
    reply = questions.asked(deployment, "keys", _LIST, rotation_pb2.ListKeysRequest())
    return list(rotation_pb2.ListKeysResponse.FromString(reply.body).keys)


def _rotate(deployment: Deployment, notes: Notes) -> None:
    person = deployment.person("clinician")
    message = questions.prediction(questions.models(deployment)[0])
    before = next((key for key in _keys(deployment) if key.purpose == PURPOSE), None)
    if before is None:
        notes.cannot(f"there is no key for the purpose {PURPOSE} to rotate")
    rotate = rotation_pb2.RotateKeyRequest(tenant=before.tenant, purpose=before.purpose)
    questions.asked(deployment, "keys", _ROTATE, rotate)
    after = next(key for key in _keys(deployment) if key.purpose == PURPOSE)
    notes.check(
        after.newest == before.newest + 1,
        f"the key for {PURPOSE} has a new version, {after.newest}",
        "a rotation made no new version",
    )
    reply = questions.infer(deployment, person, message, purpose="TREAT")
    notes.check(
        reply.ok,
        "a session from before goes on",
        f"a session from before does not open any more: {reply.said}",
    )
    reply = deployment.login(person)
    notes.check(reply.ok, "and new ones open", f"nobody logs in after a rotation: {reply.said}")


ROW = Row(
    id="KM-01",
    title="Keys are apart from data, rotate, and never leave",
    current="45 CFR 164.312(a)(2)(iv)",
    nprm="proposed 45 CFR 164.312 (encryption and decryption)",
    proves="the root key is sealed, callers are refused keys, a new version is made and what is "
    "older still opens",
    not_proven="destruction, and a sealed Vault (tried by the tests of the product)",
    duty="keep the unlock secret and the recovery identity apart, in two hands",
    run=run,
)
