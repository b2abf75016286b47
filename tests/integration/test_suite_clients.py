"""A program logs in with its own key and predicts, through the command line of a running suite."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sealward.client import AsyncClient, Client
from sealward.client.errors import CallError, ProfileError
from tests.support.suites import RunningSuite, heldout, rest_json


def test_a_client_from_its_key_to_its_end(suite: RunningSuite, tmp_path: Path) -> None:
    private, public = tmp_path / "lab.jwk", tmp_path / "lab.jwks"
    made = _without_dir(suite, "client", "key", "--out", str(private), "--jwks", str(public))
    assert made["jwks"] == str(public)
    assert private.stat().st_mode & 0o077 == 0
    registered = suite.sealward(
        "client", "register", "lab-engine", "--role", "service", "--jwks", str(public)
    )
    assert registered["roles"] == ["service"]
    getting = ["client", "token", "lab-engine", "--key-file"]
    got = suite.sealward(*getting, str(private))
    assert got["scope"] == "service"
    assert got["expires_in"] <= 300
    file = tmp_path / "in.json"
    file.write_text(rest_json())
    asking = [
        "infer",
        "breast-cancer",
        "--input",
        str(file),
        "--user",
        "lab-engine",
        "--purpose",
        "TREAT",
    ]
    answer = suite.sealward(*asking)
    event = suite.event(answer["event_id"])
    assert "workload" in str(event)
    # Another key is not the client's; the private one is never registered.
    other, others = tmp_path / "other.jwk", tmp_path / "other.jwks"
    _without_dir(suite, "client", "key", "--out", str(other), "--jwks", str(others))
    error = suite.sealward(*getting, str(other), code=1)["error"]
    assert error["reason"] == "ASSERTION_INVALID"
    rotating = ["client", "rotate-key", "lab-engine", "--jwks"]
    error = suite.sealward(*rotating, str(other), code=1)["error"]
    assert (error["reason"], error["field"]) == ("FIELD_INVALID", "jwks")
    assert suite.sealward(*rotating, str(others))["revoked"] == 1
    assert suite.sealward(*asking, code=1)["error"]["reason"] == "SESSION_INVALID"
    suite.sealward(*getting, str(other))
    suite.sealward(*asking)
    # The same from Python, as often as it takes.
    rows = np.array(heldout("breast-cancer")[:1], np.float32)
    with Client.from_profile(suite.suite.clients / "lab-engine") as client:
        client.logout()
        session = client.login_with_key(other.read_bytes())
        assert session.expires - time.time() <= 300
        assert client.infer("breast-cancer", rows, purpose="TREAT").event_id
        with pytest.raises(CallError) as caught:
            client.login_with_key(private.read_bytes())
        assert caught.value.reason == "ASSERTION_INVALID"
        with pytest.raises(ProfileError):
            client.login_with_key(b"{}")

    async def asynchronously() -> None:
        async with AsyncClient.from_profile(suite.suite.clients / "lab-engine") as client:
            await client.logout()
            await client.login_with_key(other.read_bytes())
            assert (await client.infer("breast-cancer", rows, purpose="TREAT")).event_id

    asyncio.run(asynchronously())
    shown = suite.sealward("client", "show", "lab-engine")
    assert shown["sessions"] == 1
    # Its certificate renews as everybody's does.
    assert suite.sealward_any("certs", "rotate", "--user", "lab-engine") == 0
    assert suite.sealward("client", "disable", "lab-engine")["client"] == "lab-engine"
    assert suite.sealward(*getting, str(other), code=1)["error"]["reason"] == "ASSERTION_INVALID"
    rows = suite.sealward("client", "list")["clients"]
    assert [row["disabled"] for row in rows if row["client"] == "lab-engine"] == [True]


def _without_dir(suite: RunningSuite, *arguments: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "sealward.cli.main", *arguments, "--json"],
        capture_output=True, text=True, check=True, env=suite.environ, timeout=60,
    )  # fmt: skip
    found: dict[str, str] = json.loads(done.stdout)
    return found
