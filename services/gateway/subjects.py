"""People and programs by one name: `ann`, or `workload/lab` for a registered program."""

from __future__ import annotations

from dataclasses import dataclass

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.users import UserDirectory
from services.gateway.workloads.clients import ClientDirectory

_WORKLOAD = "workload/"


@dataclass(frozen=True, slots=True)
class Subject:
    """Who has roles here: the id that sessions carry, the name as people write it, the roles."""

    id: str
    name: str
    roles: tuple[str, ...]

    @property
    def kind(self) -> str:
        """`user` or `workload`."""
        return "workload" if self.name.startswith(_WORKLOAD) else "user"

    @property
    def actor(self) -> str:
        """The name as policies have it."""
        return self.name.removeprefix(_WORKLOAD)


class Subjects:
    """Users and programs of this deployment."""

    def __init__(self, users: UserDirectory, clients: ClientDirectory) -> None:
        self._users = users
        self._clients = clients

    def named(self, name: str) -> Subject:
        """Return somebody by name; raise NOT_FOUND."""
        if name.startswith(_WORKLOAD):
            client = self._clients.get(name.removeprefix(_WORKLOAD))
            if client is not None:
                return Subject(client.client_id, f"{_WORKLOAD}{client.name}", client.roles)
        else:
            user = self._users.get(name)
            if user is not None:
                return Subject(user.user_id, user.name, user.roles)
        raise SealwardError(Reason.NOT_FOUND, "there is no such user", field="user")

    def all(self) -> list[Subject]:
        """Return everybody, people first."""
        people = [Subject(user.user_id, user.name, user.roles) for user in self._users.all()]
        programs = [
            Subject(client.client_id, f"{_WORKLOAD}{client.name}", client.roles)
            for client in self._clients.all()
        ]
        return people + programs
