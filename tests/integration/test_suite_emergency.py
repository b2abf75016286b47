"""The glass breaks while the identity provider and every approver are away; who looks, sees it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.test_gateway_oidc import CLIENT, PEOPLE, ROLES, new_keys
from tests.support.oidc_provider import IdentityProvider
from tests.support.suites import rest_json, running

PATIENT = "MRN-outage-1"


def test_emergency_access_needs_neither_provider_nor_approver(tmp_path: Path) -> None:
    idp = IdentityProvider(tmp_path, PEOPLE, [CLIENT], new_keys())
    roles = tmp_path / "roles.json"
    roles.write_text(json.dumps(ROLES))
    settings = {
        "OIDC_ISSUER": idp.issuer, "OIDC_CLIENT_ID": "sealward", "OIDC_CA_FILE": str(idp.ca_file),
        "OIDC_ROLES_FILE": str(roles),
    }  # fmt: skip
    environ = {f"SEALWARD_GATEWAY_{name}": value for name, value in settings.items()}
    try:
        with running(tmp_path / "data", environ) as suite:
            # Nobody who could approve anything exists here, and the provider goes.
            eve = suite.user("eve", "break-glass")
            idp.stop()
            error = suite.sealward("login", "--oidc", "--user", eve, "--no-browser", code=3)
            assert error["error"]["reason"] == "PROVIDER_UNAVAILABLE"
            suite.login(eve)
            opened = suite.sealward(
                "access", "break-glass", "--user", eve, "--patient", PATIENT,
                "--reason", "no-approver",
            )  # fmt: skip
            file = tmp_path / "in.json"
            file.write_text(rest_json())
            answer = suite.sealward(
                "infer", "breast-cancer", "--input", str(file), "--user", eve,
                "--patient", PATIENT, "--break-glass",
            )  # fmt: skip
            assert answer["outputs"]
            waiting = {
                item["event_id"]: item
                for item in suite.sealward("audit", "review", "list")["items"]
            }
            assert answer["event_id"] in waiting
            begun = suite.events(type="session.break-glass", outcome="ok")
            assert [event.target for event in begun] == [opened["session_id"]]
    finally:
        idp.stop()
