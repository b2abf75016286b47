"""A login at the provider from its beginning to a person with roles. No gRPC in here."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlencode

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.challenges import Challenges
from services.gateway.oidc.identities import Identities
from services.gateway.oidc.idtoken import Expected, Person, check_id_token
from services.gateway.oidc.mapping import RoleMapping
from services.gateway.oidc.provider import Provider
from services.gateway.tokens import TokenError
from services.gateway.users import User, UserDirectory

LEEWAY_SECONDS = 30.0
"""How far the provider's clock may be from ours."""
_KIND = "oidc"
# RFC 8252 section 7.3: the loopback address itself, not a name for it.
_REDIRECT = re.compile(r"http://(127\.0\.0\.1|\[::1\]):[1-9][0-9]{0,4}/[A-Za-z0-9/_-]{0,64}")
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_STATE = re.compile(r"[A-Za-z0-9._~-]{16,128}")
_CODE = re.compile(r"[\x21-\x7e]{1,2048}")


@dataclass(frozen=True, slots=True)
class Proven:
    """Who logged in, as which user, with which roles, and whether with a second factor there."""

    person: Person
    user: User
    roles: tuple[str, ...]
    second_factor: bool


class OidcLogins:
    """Thread-safe. `provision` lets the first login of an unknown person make a user."""

    def __init__(
        self,
        provider: Provider,
        challenges: Challenges,
        identities: Identities,
        users: UserDirectory,
        mapping: RoleMapping,
        *,
        provision: bool,
        name_claim: str,
        reserved: Callable[[str], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`reserved` names are not to be given to anybody."""
        self.provider = provider
        self.challenges = challenges
        self._identities = identities
        self._users = users
        self._mapping = mapping
        self._provision = provision
        self._name_claim = name_claim
        self._reserved = reserved
        self._clock = clock

    def begin(
        self, name: str, spki: bytes, redirect_uri: str, challenge: str, state: str
    ) -> tuple[str, str]:
        """Return the id of a login and where the browser goes; raise FIELD_INVALID.

        `name` and `spki` are those of the caller's certificate: the end has to be of the same.
        """
        for field, value, form, what in (
            ("redirect_uri", redirect_uri, _REDIRECT, "http://127.0.0.1:PORT/PATH"),
            ("code_challenge", challenge, _CHALLENGE, "SHA-256 of the verifier, base64url"),
            ("state", state, _STATE, "16 to 128 unreserved characters"),
        ):
            if not form.fullmatch(value):
                raise SealwardError(Reason.FIELD_INVALID, f"must be {what}", field=field)
        addresses = self.provider.addresses()
        nonce = secrets.token_urlsafe(32)
        login_id = self.challenges.give(
            _KIND,
            _owner(name, spki),
            {"nonce": nonce, "redirect_uri": redirect_uri, "challenge": challenge},
        )
        query = {
            "response_type": "code", "client_id": self.provider.client_id,
            "scope": "openid profile", "redirect_uri": redirect_uri, "state": state, "nonce": nonce,
            "code_challenge": challenge, "code_challenge_method": "S256",
        }  # fmt: skip
        joint = "&" if "?" in addresses.authorization else "?"
        return login_id, addresses.authorization + joint + urlencode(query)

    def finish(self, name: str, spki: bytes, login_id: str, code: str, verifier: str) -> Proven:
        """Return who logged in; raise what stands against it. The login is used up by it."""
        if not _CODE.fullmatch(code):
            raise SealwardError(
                Reason.FIELD_INVALID, "must be the code that came back", field="authorization_code"
            )
        begun = self.challenges.take(_KIND, _owner(name, spki), login_id)
        made = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=")
        if not _VERIFIER.fullmatch(verifier) or not hmac.compare_digest(
            made, begun["challenge"].encode()
        ):
            raise SealwardError(
                Reason.FIELD_INVALID, "the challenge was not made of it", field="code_verifier"
            )
        id_token, access = self.provider.exchange(code, verifier, begun["redirect_uri"])
        expected = Expected(self.provider.issuer, self.provider.client_id, begun["nonce"], access)
        try:
            person = check_id_token(
                id_token, expected, self.provider.key, self._clock(), LEEWAY_SECONDS
            )
        except TokenError as error:
            raise SealwardError(
                Reason.ID_TOKEN_INVALID, f"the provider's ID token is refused: {error}"
            ) from None
        return self._known(name, person)

    def _known(self, name: str, person: Person) -> Proven:
        known = self._identities.user_of(person.issuer, person.subject)
        if known not in (None, name):
            raise _unknown("this person is another user here")
        roles = self._mapping.roles_of(person.claims)
        if not roles:
            raise SealwardError(
                Reason.ROLE_MISSING, "the provider says nothing of this person that is a role here"
            )
        user = self._users.get(name) if known else self._new(name, person, roles)
        if user is None or user.disabled:
            raise _unknown("there is no such active user")
        return Proven(person, user, roles, self._mapping.proven(person.claims))

    def _new(self, name: str, person: Person, roles: tuple[str, ...]) -> User:
        """Make the user of a person who comes for the first time."""
        if not self._provision:
            raise _unknown("nobody here is this person")
        # The certificate was given to a name: the provider has to call the person by it.
        if person.claims.get(self._name_claim) != name:
            raise _unknown(f"{self._name_claim} at the provider is not the certificate's name")
        if self._users.get(name) is not None or self._reserved(name):
            # Somebody who is known already becomes nobody else by a claim: that takes a link.
            raise _unknown("there is a user of this name, who is not linked")
        user = self._users.provision(name, roles)
        self._identities.link(person.issuer, person.subject, name)
        return user


def _owner(name: str, spki: bytes) -> str:
    return f"{name}\n{spki.hex()}"


def _unknown(message: str) -> SealwardError:
    return SealwardError(Reason.PERSON_UNKNOWN, message)
