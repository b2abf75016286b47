"""Sets an empty Vault up for a deployment: engines, roles, the CA, policies and logins.

Done once by an administrator with a token of their own, and again after an upgrade; what is there
already is brought up to date, keys and the CA stay. The service never sees that token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from sealward.kit.identity import parse_identity, spiffe_id
from sealward.seal.secret import Secret
from services.keys.profiles import Lives, Profile, profile_of
from services.keys.providers.vault.api import Api, mount
from services.keys.providers.vault.config import Target
from services.keys.providers.vault.issuers import LEAVES_END_WITH_IT, LIFE, generated_in, root
from services.keys.providers.vault.login import ROLE, SHREDDER_ROLE
from services.keys.providers.vault.names import DEFAULT_PREFIX, PKI_ROLES, Names, pki_role
from services.keys.providers.vault.troubles import RefusedError, UnavailableError
from services.keys.providers.vault.wire import Answer, Wire

POLICIES = ("keys", "shredder", "auditor", "admin")
_SERVICE_SECONDS = 86_400
_USER_SECONDS = 7 * 86_400
_NOT_FOUND = 404


class SetupError(Exception):
    """Vault cannot be set up. The text is one line that says what to do; it holds no secret."""

    def __init__(self, text: str, *, unavailable: bool = False) -> None:
        super().__init__(text)
        self.unavailable = unavailable


@dataclass(frozen=True, slots=True)
class Plan:
    """What is wanted. `uses` and `life` bound a secret id: 0 and "0" mean no bound."""

    names: Names
    trust_domain: str
    cidrs: tuple[str, ...] = ()
    uses: int = 0
    life: str = "0"
    login_ca: str = ""
    """PEM of the CA whose certificates log the keys service in; empty = no such login."""
    login_name: str = ""
    """The URI name that the certificate must carry; empty = the keys service's SPIFFE ID."""


def policy_text(name: str, prefix: str) -> str:
    """Return a shipped policy for a deployment's prefix."""
    text = (
        files("services.keys.providers.vault").joinpath(f"policies/{name}.hcl").read_text("utf-8")
    )
    names = Names(prefix)
    return (
        text.replace(
            f'"sys/policies/acl/{DEFAULT_PREFIX}-', f'"sys/policies/acl/{names.policy("")}'
        )
        .replace(f"/{DEFAULT_PREFIX}-", f"/{prefix}-")
        .replace(f'"{DEFAULT_PREFIX}/', f'"{prefix}/')
        .replace(f"/{DEFAULT_PREFIX}/", f"/{prefix}/")
    )


class Administrator:
    """Vault under an administrator's token."""

    def __init__(self, target: Target, token: str) -> None:
        self._wire = Wire(target)
        self._token = Secret(token.encode("ascii"))
        self._api = Api(self._send)

    def close(self) -> None:
        """Close the connections."""
        self._wire.close()

    def set_up(self, plan: Plan) -> list[str]:
        """Bring Vault to what is wanted; return what was made, in words. Raise SetupError."""
        self._api.token.lookup_self()
        made = self._engines(plan.names) + self._logins(plan)
        for name in POLICIES:
            self._api.sys.create_or_update_acl_policy(
                plan.names.policy(name), policy_text(name, plan.names.prefix)
            )
        for name in PKI_ROLES:
            role = _pki_role(name, plan.trust_domain)
            self._api.pki.create_or_update_role(name, role, mount_point=plan.names.pki)
        return made + self._authority(plan)

    def role_id(self, names: Names, role: str) -> str:
        """The role id of a login; raise SetupError."""
        found: Answer = self._api.approle.read_role_id(role, mount_point=mount(names.approle))
        return str(found.data.get("role_id", ""))

    def wrapped_secret_id(self, names: Names, role: str, seconds: int) -> str:
        """Make a secret id; return a token that unwraps it, once, within `seconds`."""
        answer: Answer = self._api.approle.generate_secret_id(
            role, mount_point=mount(names.approle), wrap_ttl=f"{seconds}s"
        )
        wrapped = answer.body.get("wrap_info")
        if not isinstance(wrapped, dict) or not wrapped.get("token"):
            raise SetupError("Vault did not wrap the secret id: it is not handed out")
        return str(wrapped["token"])

    # --- steps -------------------------------------------------------------------------------

    def _engines(self, names: Names) -> list[str]:
        made = []
        mounted: Answer = self._api.sys.list_mounted_secrets_engines()
        for path, kind in ((names.transit, "transit"), (names.pki, "pki")):
            if _there(mounted.data, path, kind):
                continue
            # The longest life that the engine grants; the CA's own is the longest one.
            config = {"max_lease_ttl": LIFE} if kind == "pki" else {}
            self._api.sys.enable_secrets_engine(kind, path=path, config=config)
            made.append(f"engine {path}")
        return made

    def _logins(self, plan: Plan) -> list[str]:
        names = plan.names
        wanted = [(names.approle, "approle")] + ([(names.cert, "cert")] if plan.login_ca else [])
        made = []
        mounted: Answer = self._api.sys.list_auth_methods()
        for path, kind in wanted:
            if not _there(mounted.data, mount(path), kind):
                self._api.sys.enable_auth_method(kind, path=mount(path))
                made.append(f"login {path}")
        for role, policy, life, longest in (
            (ROLE, "keys", "20m", "24h"), (SHREDDER_ROLE, "shredder", "2m", "5m"),
        ):  # fmt: skip
            self._api.approle.create_or_update_approle(
                role,
                bind_secret_id=True,
                secret_id_num_uses=plan.uses,
                secret_id_ttl=plan.life,
                secret_id_bound_cidrs=list(plan.cidrs),
                mount_point=mount(names.approle),
                **_token(names.policy(policy), life, longest, plan.cidrs),
            )
        if plan.login_ca:
            # Not hvac's method, which knows no URI names.
            path = f"/v1/{names.cert}/certs/{ROLE}"
            self._api.adapter.post(path, json=self._cert_role(plan))
        return made

    def _cert_role(self, plan: Plan) -> dict[str, Any]:
        return {
            **_token(plan.names.policy("keys"), "20m", "24h", plan.cidrs),
            "certificate": plan.login_ca,
            "allowed_uri_sans": [
                plan.login_name or spiffe_id(plan.trust_domain, "service", "keys")
            ],
        }

    def _authority(self, plan: Plan) -> list[str]:
        pki, name = plan.names.pki, "sealward-1"
        listed: Answer = self._api.pki.list_issuers(mount_point=pki)
        if listed.data.get("keys"):
            return []
        wanted = root(plan.trust_domain, 1, name)
        made: Answer = self._api.adapter.post(generated_in(pki), json=wanted)
        kept = {"issuer_name": name, **LEAVES_END_WITH_IT}
        self._api.pki.update_issuer(str(made.data.get("issuer_id")), kept, mount_point=pki)
        return [f"CA of {plan.trust_domain}"]

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
    ) -> Answer:
        try:
            answer = self._wire.send(
                method, path, body, token=self._token, repeatable=False, headers=headers
            )
        except UnavailableError as error:
            raise SetupError(f"{error} ({self._wire.address})", unavailable=True) from None
        # An empty list is none to Vault.
        if answer.status >= 400 and (method, answer.status) != ("list", _NOT_FOUND):
            raise _refused(path, RefusedError(answer.status, answer.errors))
        return answer


def _refused(path: str, error: RefusedError) -> SetupError:
    if error.status == 403:
        return SetupError(
            f"the token may not use {path}: it needs the policy that `sealward vault policies`"
            " prints as admin, or a root token the first time"
        )
    return SetupError(f"Vault refuses {path} ({error.status})")


def _there(found: Mapping[str, Any], path: str, kind: str) -> bool:
    """True when something of this kind is at the path; raise SetupError when it is another."""
    entry = found.get(f"{path}/")
    if not isinstance(entry, dict):
        return False
    if entry.get("type") != kind:
        raise SetupError(f"something else is at {path} in Vault: choose another --prefix")
    return True


def _token(policy: str, life: str, longest: str, cidrs: tuple[str, ...]) -> dict[str, Any]:
    return {
        "token_policies": [policy],
        "token_no_default_policy": True,
        "token_type": "service",
        "token_ttl": life,
        "token_max_ttl": longest,
        "token_bound_cidrs": list(cidrs),
    }


def _pki_role(name: str, trust_domain: str) -> dict[str, Any]:
    """The bounds on one kind of certificate."""
    kind, _, who = name.partition("-")
    lives = Lives(_SERVICE_SECONDS, _USER_SECONDS)
    if kind in ("service", "admin"):
        profile = profile_of(parse_identity(spiffe_id(trust_domain, kind, who)), lives)
        uri = profile.identity.uri
        # The common name is a name of its own to Vault, and stands in no other certificate.
        names = {"allowed_domains": [who, *profile.dns], "allow_bare_domains": True}
    else:
        profile = profile_of(parse_identity(spiffe_id(trust_domain, kind, "x")), lives)
        uri = f"{profile.identity.uri.removesuffix('x')}*"
        # Whose name it is was decided before; there is no list of people in Vault.
        names = {"allowed_domains": [], "cn_validations": ["disabled"]}
    assert pki_role(profile.identity) == name  # noqa: S101 - two tables of ours
    return {**_bounds(profile), **names, "allowed_uri_sans": [uri]}


def _bounds(profile: Profile) -> dict[str, Any]:
    return {
        "allow_ip_sans": bool(profile.addresses),
        "allow_localhost": False,
        "allow_wildcard_certificates": False,
        "use_csr_common_name": False,
        "use_csr_sans": False,
        "key_type": "ec",
        "key_bits": 256,
        "client_flag": True,
        "server_flag": profile.server,
        "code_signing_flag": False,
        "email_protection_flag": False,
        "key_usage": ["DigitalSignature"],
        "basic_constraints_valid_for_non_ca": True,
        "not_before_duration": "60s",
        "max_ttl": f"{profile.seconds}s",
        # Short lives instead of a list of revoked ones; storing each would fill Vault.
        "no_store": True,
        "generate_lease": False,
    }
