"""The ledger of ended sessions is kept where their owners are: with people, or with clients."""

from __future__ import annotations

from services.gateway.session import Session
from services.gateway.sessions import Ledger
from services.gateway.workloads.clients import ClientDirectory


class Ledgers:
    """See sessions.Ledger. Thread-safe, as both are."""

    def __init__(self, people: Ledger, clients: ClientDirectory) -> None:
        self._people = people
        self._clients = clients

    def live(self, session: Session) -> bool:
        """See Ledger."""
        return self._of(session.user_id).live(session)

    def end_session(self, session_id: str, until: int) -> None:
        """See Ledger. A session's id does not say whose it is: both remember it."""
        self._people.end_session(session_id, until)
        self._clients.end_session(session_id, until)

    def end_sessions(self, user_id: str) -> None:
        """See Ledger."""
        self._of(user_id).end_sessions(user_id)

    def end_everybody(self) -> list[str]:
        """See Ledger."""
        return [*self._people.end_everybody(), *self._clients.end_everybody()]

    def _of(self, user_id: str) -> Ledger:
        return self._clients if self._clients.owns(user_id) else self._people
