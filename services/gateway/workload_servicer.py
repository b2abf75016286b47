"""WorkloadService: protos to domain and back."""

from __future__ import annotations

from typing import Any

from sealward.api.gateway.v1 import workload_pb2 as pb
from sealward.api.gateway.v1 import workload_pb2_grpc as pb_grpc
from sealward.kit import attributes as names
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.authority import Authority, Caller, note
from services.gateway.control import UNDO
from services.gateway.sessions import SessionStore
from services.gateway.spent import Spent
from services.gateway.steady import steady_time
from services.gateway.tokens import TokenError
from services.gateway.users import UserDirectory
from services.gateway.workloads.assertion import ASSERTION_TYPE, check_assertion
from services.gateway.workloads.clients import Client, ClientDirectory

TOKEN_SECONDS = 300
"""Longest life of a client's session."""
METHOD = "/sealward.api.gateway.v1.WorkloadService/IssueToken"


class WorkloadServicer(pb_grpc.WorkloadServiceServicer):
    """See the protos. `audience` is what assertions have as aud, `leeway` in seconds."""

    def __init__(
        self,
        authority: Authority,
        clients: ClientDirectory,
        users: UserDirectory,
        store: SessionStore,
        spent: Spent,
        *,
        audience: str,
        leeway: float,
    ) -> None:
        self._authority = authority
        self._clients = clients
        self._users = users
        self._store = store
        self._spent = spent
        self._audience = audience
        self._leeway = leeway

    def IssueToken(self, request: pb.IssueTokenRequest, context: Any) -> pb.IssueTokenResponse:
        """Log a client in. The certificate has to be the client's own, the assertion new."""
        call = call_of(context)
        identity = call.peer.identity
        if identity.kind != "workload":
            raise SealwardError(
                Reason.IDENTITY_FORBIDDEN, "the certificate is not of a workload: people log in"
            )
        call.attributes[names.TARGET] = identity.name
        for field, right in (
            ("grant_type", ("", "client_credentials")),
            ("client_assertion_type", (ASSERTION_TYPE,)),
        ):
            if getattr(request, field) not in right:
                raise SealwardError(Reason.FIELD_INVALID, f"must be {right[-1]}", field=field)
        client = self._clients.get(identity.name)
        now = steady_time()
        # Whoever is not registered has no keys, so that nothing fits and the answer is the same.
        active = None if client is None or client.disabled else client
        try:
            shown = check_assertion(
                request.client_assertion, identity.name, () if active is None else active.keys,
                self._audience, now, self._leeway,
            )  # fmt: skip
        except TokenError as error:
            raise SealwardError(
                Reason.ASSERTION_INVALID,
                f"the client assertion is refused: {error}",
                field="client_assertion",
            ) from None
        assert active is not None  # noqa: S101 - without keys no assertion is right
        if not self._spent.spend("jti", f"{active.client_id}\n{shown.jti}", shown.until - now):
            raise SealwardError(
                Reason.ASSERTION_REPLAYED,
                "the client assertion was used before: make a new one",
                field="client_assertion",
            )
        roles = _scope(request.scope, active)
        token, session = self._store.create(
            active.client_id, active.name, roles, call.peer.spki_sha256, active.generation,
            life_seconds=TOKEN_SECONDS,
        )  # fmt: skip
        note(call, Caller(identity, session))
        call.attributes[UNDO] = lambda: self._store.end(session)
        self._clients.used(active.client_id, int(now))
        return pb.IssueTokenResponse(
            access_token=token,
            token_type="Bearer",  # noqa: S106 - the name of a scheme
            expires_in=session.expires - session.created,
            scope=" ".join(roles),
            session_id=session.session_id,
        )

    def RegisterClient(
        self, request: pb.RegisterClientRequest, context: Any
    ) -> pb.RegisterClientResponse:
        """Add a client."""
        self._authority.admit(context)
        if self._users.get(request.client) is not None:
            # The record names both by their names.
            raise SealwardError(
                Reason.ALREADY_EXISTS, "there is a user of this name", field="client"
            )
        made = self._clients.register(request.client, request.roles, request.jwks)
        call_of(context).attributes[names.TARGET] = made.name
        return pb.RegisterClientResponse(client=_client(made, 0), audience=self._audience)

    def ListClients(self, request: pb.ListClientsRequest, context: Any) -> pb.ListClientsResponse:
        """List one client or all."""
        self._authority.admit(context)
        found = self._clients.all()
        if request.client:
            found = [client for client in found if client.name == request.client]
            if not found:
                raise SealwardError(Reason.NOT_FOUND, "there is no such client", field="client")
            call_of(context).attributes[names.TARGET] = request.client
        call_of(context).attributes[names.COUNT] = len(found)
        return pb.ListClientsResponse(
            clients=[
                _client(client, len(self._store.of_users([client.client_id]))) for client in found
            ],
            audience=self._audience,
        )

    def RotateClientKeys(
        self, request: pb.RotateClientKeysRequest, context: Any
    ) -> pb.RotateClientKeysResponse:
        """Replace the keys; who logged in with an old one is out."""
        self._authority.admit(context)
        client = self._clients.rotate(request.client, request.jwks)
        return pb.RotateClientKeysResponse(revoked=self._end(client, context))

    def DisableClient(
        self, request: pb.DisableClientRequest, context: Any
    ) -> pb.DisableClientResponse:
        """Stop a client, and end what is open."""
        self._authority.admit(context)
        client = self._clients.disable(request.client)
        return pb.DisableClientResponse(revoked=self._end(client, context))

    def _end(self, client: Client, context: Any) -> int:
        attributes = call_of(context).attributes
        attributes[names.TARGET] = client.name
        attributes[names.COUNT] = revoked = self._store.end_all(client.client_id)
        return revoked


def _scope(scope: str, client: Client) -> tuple[str, ...]:
    """The roles of a session: those asked for, all of which have to be registered."""
    asked = tuple(sorted(set(scope.split(" ")))) if scope else client.roles
    if not set(asked) <= set(client.roles):
        raise SealwardError(
            Reason.SCOPE_REFUSED,
            "scope names a role that is not registered for this client",
            field="scope",
        )
    return asked


def _client(client: Client, sessions: int) -> pb.Client:
    return pb.Client(
        client=client.name,
        client_id=client.client_id,
        roles=client.roles,
        key_ids=[key["kid"] for key in client.keys],
        disabled=client.disabled,
        created=client.created,
        last_used=client.last_used,
        sessions=sessions,
    )
