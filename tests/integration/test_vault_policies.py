"""The shipped policies on a real server: what each login may do, and nothing else."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from sealward.kit.tls import make_csr, new_key
from services.keys.providers.vault.login import ROLE, SHREDDER_ROLE
from services.keys.providers.vault.names import Names
from services.keys.providers.vault.setup import POLICIES, Administrator, Plan
from tests.support.vault import VaultServer, shared
from tests.support.vault_provider import TD, plan_of, target_of

# The first run builds the server.
pytestmark = pytest.mark.timeout(900)

CONTEXT = base64.b64encode(bytes(32)).decode()
OTHER = base64.b64encode(bytes(31) + b"1").decode()
KEK = "kek-default.session"


@dataclass
class Deployment:
    """A prefix that is set up, a neighbour's beside it, and tokens under our policies."""

    server: VaultServer
    names: Names
    neighbour: Names
    tokens: dict[str, str]
    wrapped: str

    def ask(self, who: str, method: str, path: str, body: Any = None) -> int:
        path = path.format(
            transit=self.names.transit, pki=self.names.pki, approle=self.names.approle,
            cert=self.names.cert, policy=self.names.policy(""), other=self.neighbour.transit,
            other_pki=self.neighbour.pki, kek=f"{self.names.transit}/keys/{KEK}",
        )  # fmt: skip
        code, _ = self.server.status(method, path, body, self.tokens[who])
        return code


def login(server: VaultServer, names: Names, role: str) -> str:
    """A token of a role, as the service gets it."""
    role_id = server.ask("get", f"{names.approle}/role/{role}/role-id")["data"]["role_id"]
    secret = server.ask("post", f"{names.approle}/role/{role}/secret-id", {})["data"]["secret_id"]
    answer = server.ask(
        "post", f"{names.approle}/login", {"role_id": role_id, "secret_id": secret}, ""
    )
    assert "default" not in answer["auth"]["policies"]
    return str(answer["auth"]["client_token"])


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    server = shared()
    plans = [plan_of(server), plan_of(server)]
    admin = Administrator(target_of(server, timeout=20.0), server.token)
    for plan in plans:
        admin.set_up(plan)
        for name in (KEK, "kek-default.model"):
            body = {"type": "aes256-gcm96", "derived": True}
            server.ask("post", f"{plan.names.key(name)}", body)
    admin.close()
    names = plans[0].names
    tokens = {"keys": login(server, names, ROLE), "shredder": login(server, names, SHREDDER_ROLE)}
    for name in ("auditor", "admin"):
        body = {"policies": [names.policy(name)], "no_default_policy": True, "ttl": "10m"}
        tokens[name] = server.ask("post", "auth/token/create", body)["auth"]["client_token"]
    path = f"{names.transit}/datakey/plaintext/{KEK}"
    wrapped = server.ask("post", path, {"context": CONTEXT})["data"]["ciphertext"]
    yield Deployment(server, names, plans[1].names, tokens, wrapped)
    for token in tokens.values():
        server.status("post", "auth/token/revoke-self", {}, token)


CSR = make_csr(new_key(), "x").public_bytes(Encoding.PEM).decode()


def signing(name: str, **changes: str) -> dict[str, str]:
    return {
        "csr": CSR, "common_name": name, "uri_sans": f"spiffe://{TD}/service/{name}",
        "alt_names": f"{name}.{TD}", "ttl": "3600s", **changes,
    }  # fmt: skip


KEYS_MAY = [
    ("post", "{transit}/datakey/plaintext/" + KEK, {"context": CONTEXT}),
    ("post", "{transit}/decrypt/" + KEK, {"context": CONTEXT, "ciphertext": "@wrapped"}),
    ("post", "{transit}/rewrap/" + KEK,
     {"batch_input": [{"context": CONTEXT, "ciphertext": "@wrapped"}]}),
    ("post", "{transit}/keys/kek-new.session", {"type": "aes256-gcm96", "derived": True}),
    ("get", "{kek}", None),
    ("list", "{transit}/keys", None),
    ("post", "{kek}/rotate", {}),
    ("post", "{pki}/sign/service-inference", signing("inference")),
    ("list", "{pki}/issuers", None),
    ("get", "{pki}/issuer/default/json", None),
    ("get", "auth/token/lookup-self", None),
    ("post", "auth/token/renew-self", {}),
]  # fmt: skip

KEYS_MAY_NOT = [
    # Keys: out of Vault, away, opened without a context, or made in a weaker form.
    ("get", "{transit}/export/encryption-key/" + KEK, None),
    ("get", "{transit}/backup/" + KEK, None),
    ("post", "{transit}/restore", {"backup": "x"}),
    ("delete", "{kek}", None),
    ("post", "{kek}/config", {"deletion_allowed": True}),
    ("post", "{kek}/config", {"min_decryption_version": 1}),
    ("post", "{kek}/config", {"exportable": True}),
    ("post", "{kek}/trim", {"min_available_version": 1}),
    ("post", "{transit}/keys/kek-bad.session",
     {"type": "aes256-gcm96", "derived": True, "exportable": True}),
    ("post", "{transit}/keys/kek-bad.session",
     {"type": "aes256-gcm96", "derived": True, "allow_plaintext_backup": True}),
    ("post", "{transit}/keys/kek-bad.session", {"type": "aes256-gcm96", "derived": False}),
    ("post", "{transit}/keys/kek-bad.session", {"type": "rsa-2048", "derived": True}),
    ("post", "{transit}/keys/kek-bad.session",
     {"type": "aes256-gcm96", "derived": True, "convergent_encryption": True}),
    ("post", "{transit}/datakey/plaintext/" + KEK, {}),
    ("post", "{transit}/decrypt/" + KEK, {"ciphertext": "@wrapped"}),
    ("post", "{transit}/rewrap/" + KEK, {"context": CONTEXT, "ciphertext": "@wrapped"}),
    ("post", "{transit}/encrypt/" + KEK, {"context": CONTEXT, "plaintext": "AAAA"}),
    ("post", "{transit}/sign/" + KEK, {"input": "AAAA"}),
    ("post", "{transit}/hmac/" + KEK, {"input": "AAAA"}),
    ("post", "{transit}/cache-config", {"size": 0}),
    # Certificates: of names without bounds, with a key from Vault, or an authority's key taken out.
    ("post", "{pki}/sign-verbatim", {"csr": CSR}),
    ("post", "{pki}/sign-verbatim/service-inference", {"csr": CSR}),
    ("post", "{pki}/sign-self-issued", {"certificate": "x"}),
    ("post", "{pki}/root/sign-intermediate", {"csr": CSR, "common_name": "x"}),
    ("post", "{pki}/issue/service-inference", {"common_name": "inference"}),
    ("post", "{pki}/issuer/default/sign-verbatim", {"csr": CSR}),
    ("post", "{pki}/issuers/generate/root/exported", {"common_name": "x"}),
    ("post", "{pki}/root/generate/exported", {"common_name": "x"}),
    ("post", "{pki}/issuers/generate/root/internal", {"common_name": "x", "alt_names": "x.test"}),
    ("post", "{pki}/issuers/import/bundle", {"pem_bundle": "x"}),
    ("post", "{pki}/config/ca", {"pem_bundle": "x"}),
    ("post", "{pki}/roles/service-inference", {"allow_any_name": True}),
    ("get", "{pki}/roles/service-inference", None),
    ("delete", "{pki}/root", None),
    ("delete", "{pki}/issuer/default", None),
    ("list", "{pki}/keys", None),
    ("post", "{pki}/issuer/default", {"usage": "read-only"}),
    # The neighbour's.
    ("post", "{other}/datakey/plaintext/" + KEK, {"context": CONTEXT}),
    ("get", "{other}/keys/" + KEK, None),
    ("post", "{other_pki}/sign/service-inference", signing("inference")),
    # Vault itself: more rights, more logins, what there is.
    ("post", "auth/token/create", {"policies": ["default"]}),
    ("post", "auth/token/create-orphan", {}),
    ("get", "sys/mounts", None),
    ("get", "sys/auth", None),
    ("post", "sys/mounts/more", {"type": "transit"}),
    ("get", "sys/policies/acl/{policy}keys", None),
    ("put", "sys/policies/acl/{policy}keys", {"policy": ""}),
    ("post", "{approle}/role/keys/secret-id", {}),
    ("get", "{approle}/role/keys/role-id", None),
    ("post", "{approle}/role/keys", {"token_policies": ["root"]}),
    ("put", "sys/seal", None),
    ("get", "sys/audit", None),
    ("put", "sys/audit/more", {"type": "file", "options": {"file_path": "discard"}}),
    ("get", "secret/anything", None),
]  # fmt: skip


def filled(body: Any, wrapped: str) -> Any:
    if isinstance(body, dict):
        return {name: filled(value, wrapped) for name, value in body.items()}
    if isinstance(body, list):
        return [filled(value, wrapped) for value in body]
    return wrapped if body == "@wrapped" else body


def named(table: list[tuple[str, str, Any]]) -> list[Any]:
    return [pytest.param(*row, id=f"{row[0]} {row[1]} {at}") for at, row in enumerate(table)]


@pytest.mark.parametrize(("method", "path", "body"), named(KEYS_MAY))
def test_keys_may(deployment: Deployment, method: str, path: str, body: Any) -> None:
    code = deployment.ask("keys", method, path, filled(body, deployment.wrapped))
    assert 200 <= code < 300


@pytest.mark.parametrize(("method", "path", "body"), named(KEYS_MAY_NOT))
def test_keys_may_not(deployment: Deployment, method: str, path: str, body: Any) -> None:
    assert deployment.ask("keys", method, path, filled(body, deployment.wrapped)) == 403


@pytest.mark.parametrize(
    ("role", "changes"),
    [
        ("inference", {"uri_sans": f"spiffe://{TD}/service/audit"}),
        ("inference", {"uri_sans": f"spiffe://{TD}/service/inference,spiffe://{TD}/admin/local"}),
        ("inference", {"alt_names": f"audit.{TD}"}),
        ("inference", {"alt_names": "hospital.test"}),
        ("inference", {"ip_sans": "127.0.0.1"}),
        ("inference", {"common_name": "audit"}),
        ("inference", {"common_name": "*.sealward.local"}),
        ("inference", {"other_sans": "1.3.6.1.4.1.311.20.2.3;utf8:root@hospital.test"}),
    ],
)
def test_a_role_signs_its_own_names_alone(
    deployment: Deployment, role: str, changes: dict[str, str]
) -> None:
    path = f"{{pki}}/sign/service-{role}"
    assert deployment.ask("keys", "post", path, signing(role)) == 200
    assert deployment.ask("keys", "post", path, signing(role, **changes)) == 400


@pytest.mark.parametrize("kind", ["user", "workload"])
def test_a_callers_role_signs_no_other_kind(deployment: Deployment, kind: str) -> None:
    body = {
        "csr": CSR, "common_name": "alice", "uri_sans": f"spiffe://{TD}/{kind}/alice",
        "exclude_cn_from_sans": True,
    }  # fmt: skip
    path = f"{{pki}}/sign/{kind}"
    assert deployment.ask("keys", "post", path, body) == 200
    for uri in (
        f"spiffe://{TD}/service/keys",
        f"spiffe://{TD}/admin/local",
        f"spiffe://x/{kind}/a",
    ):
        assert deployment.ask("keys", "post", path, {**body, "uri_sans": uri}) == 400
    for changes in ({"alt_names": "x.test"}, {"ip_sans": "10.0.0.1"}):
        assert deployment.ask("keys", "post", path, {**body, **changes}) == 400


SHREDDER_MAY_NOT = [
    ("post", "{transit}/datakey/plaintext/" + KEK, {"context": CONTEXT}),
    ("post", "{transit}/decrypt/" + KEK, {"context": CONTEXT, "ciphertext": "@wrapped"}),
    ("post", "{transit}/keys/kek-bad.session", {"type": "aes256-gcm96"}),
    ("get", "{kek}", None),
    ("post", "{kek}/rotate", {}),
    ("post", "{kek}/config", {"exportable": True}),
    ("get", "{transit}/export/encryption-key/" + KEK, None),
    ("post", "{pki}/sign/service-inference", signing("inference")),
    ("delete", "{pki}/root", None),
    ("post", "auth/token/create", {}),
    ("get", "{other}/keys/" + KEK, None),
    ("delete", "{other}/keys/" + KEK, None),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body"), named(SHREDDER_MAY_NOT))
def test_the_shredder_may_not(deployment: Deployment, method: str, path: str, body: Any) -> None:
    assert deployment.ask("shredder", method, path, filled(body, deployment.wrapped)) == 403


def test_the_shredder_destroys(deployment: Deployment) -> None:
    key = f"{deployment.names.transit}/keys/kek-default.doomed"
    deployment.server.ask("post", key, {"type": "aes256-gcm96", "derived": True})
    deployment.server.ask("post", f"{key}/rotate", {})
    for path, body in (
        ("config", {"min_decryption_version": 2}),
        ("config", {"min_encryption_version": 2}),
        ("trim", {"min_available_version": 2}),
        ("config", {"deletion_allowed": True}),
    ):
        assert deployment.ask("shredder", "post", f"{key}/{path}", body) == 200
    assert deployment.ask("shredder", "delete", key) == 204
    assert deployment.server.status("get", key)[0] == 404


def test_the_auditor_reads_and_no_more(deployment: Deployment) -> None:
    for path in (
        "{kek}", "{pki}/roles/service-keys", "{pki}/issuer/default", "{pki}/config/issuers",
        "{approle}/role/keys", "sys/policies/acl/{policy}keys",
    ):  # fmt: skip
        assert deployment.ask("auditor", "get", path) == 200
    reads = {"{kek}", "{pki}/roles/service-inference", "sys/policies/acl/{policy}keys"}
    for method, path, body in (*KEYS_MAY[:4], *KEYS_MAY[6:8], *KEYS_MAY_NOT):
        if method != "get" or path not in reads:
            code = deployment.ask("auditor", method, path, filled(body, deployment.wrapped))
            assert code == 403, (method, path)


def test_setting_up_again_needs_no_root_and_changes_no_key(deployment: Deployment) -> None:
    """With the admin's policy alone: what there was still opens, the CA is the same."""
    server, names = deployment.server, deployment.names
    before = server.ask("get", f"{names.pki}/issuer/default/json")["data"]["certificate"]
    admin = Administrator(target_of(server, timeout=20.0), deployment.tokens["admin"])
    assert admin.set_up(Plan(names, TD)) == []
    assert admin.wrapped_secret_id(names, ROLE, 60)
    admin.close()
    assert server.ask("get", f"{names.pki}/issuer/default/json")["data"]["certificate"] == before
    body = {"context": CONTEXT, "ciphertext": deployment.wrapped}
    assert deployment.ask("keys", "post", "{transit}/decrypt/" + KEK, body) == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    named(
        [
            # A secret id that is not wrapped; a login with more than its policy; the keys.
            ("post", "{approle}/role/keys/secret-id", {}),
            ("post", "{transit}/datakey/plaintext/" + KEK, {"context": CONTEXT}),
            ("post", "{transit}/decrypt/" + KEK, {"context": CONTEXT, "ciphertext": "@wrapped"}),
            ("post", "{pki}/sign/service-inference", signing("inference")),
            ("post", "{pki}/issuers/generate/root/exported", {"common_name": "x"}),
            ("delete", "{kek}", None),
            ("post", "auth/token/create", {}),
            ("put", "sys/policies/acl/more", {"policy": ""}),
            ("post", "sys/mounts/more", {"type": "transit"}),
            ("post", "sys/auth/more", {"type": "approle"}),
            ("put", "sys/seal", None),
        ]
    ),
)
def test_the_admin_may_not(deployment: Deployment, method: str, path: str, body: Any) -> None:
    assert deployment.ask("admin", method, path, filled(body, deployment.wrapped)) == 403


def test_the_key_itself_binds_the_context(deployment: Deployment) -> None:
    body = {"context": OTHER, "ciphertext": deployment.wrapped}
    assert deployment.ask("keys", "post", "{transit}/decrypt/" + KEK, body) == 400


def test_a_login_is_bound_to_where_it_may_come_from(tmp_path: Path) -> None:
    server = shared()
    plan = plan_of(server, cidrs=("192.0.2.0/24",))
    admin = Administrator(target_of(server, timeout=20.0), server.token)
    admin.set_up(plan)
    admin.close()
    with pytest.raises(AssertionError):
        login(server, plan.names, ROLE)


def test_policies_are_those_that_are_shipped(deployment: Deployment) -> None:
    for name in POLICIES:
        found = deployment.server.ask("get", f"sys/policies/acl/{deployment.names.policy(name)}")
        text = found["data"]["policy"]
        # Nothing of the default prefix is left in another deployment's policy.
        assert '"sealward' not in text
        assert "/sealward" not in text
        assert deployment.names.prefix in text
