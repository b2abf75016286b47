"""People and programs by one name: neither is taken for the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.passwords import Passwords
from services.gateway.subjects import Subjects
from services.gateway.throttle import LoginThrottle
from services.gateway.users import UserDirectory
from services.gateway.workloads.clients import ClientDirectory
from tests.unit.gateway.test_gateway_assertions import JWKS
from tests.unit.gateway.test_gateway_users import CHEAP, PASSWORD


def test_a_user_and_a_program_of_one_name(tmp_path: Path) -> None:
    passwords = Passwords(CHEAP)
    users = UserDirectory(tmp_path / "users.db", passwords, LoginThrottle(lambda: 0.0))
    clients = ClientDirectory(tmp_path / "clients.db")
    subjects = Subjects(users, clients)
    user = users.create("lab", ["clinician"], PASSWORD, one_time=False)
    client = clients.register("lab", ["service"], JWKS)
    person, program = subjects.named("lab"), subjects.named("workload/lab")
    assert (person.id, person.name, person.roles) == (user.user_id, "lab", ("clinician",))
    assert (program.id, program.name) == (client.client_id, "workload/lab")
    assert program.roles == ("service",)
    assert person.id != program.id
    assert (person.kind, person.actor) == ("user", "lab")
    assert (program.kind, program.actor) == ("workload", "lab")
    assert [s.name for s in subjects.all()] == ["lab", "workload/lab"]
    for nobody in ("", "ann", "workload/ann", "user/lab"):
        with pytest.raises(SealwardError) as caught:
            subjects.named(nobody)
        assert caught.value.reason is Reason.NOT_FOUND
    clients.close()
    users.close()
    passwords.close()
