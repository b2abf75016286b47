"""The suite from installed wheels: one carries the library alone, the other the services."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.suites import rest_json

REPOSITORY = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.timeout(420)


class Environment:
    """A virtual environment of its own; the libraries that we depend on are shared with ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
        # Plain paths: our own editable installation is not seen through them.
        shared = {*site.getsitepackages(), sysconfig.get_path("platlib")}
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        place = folder / "lib" / version / "site-packages" / "libraries.pth"
        place.write_text("\n".join(sorted(shared)))

    def install(self, project: Path) -> None:
        done = subprocess.run(
            [self.folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps",
             "--disable-pip-version-check", str(project)],
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
        )  # fmt: skip
        if done.returncode:
            last = (done.stderr.splitlines() or ["pip failed"])[-1]
            pytest.skip(f"{project.name} cannot be built: the wheels have not been tried ({last})")

    def sealward(self, arguments: Sequence[str], code: int = 0) -> str:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        done = subprocess.run(
            [self.folder / "bin" / "sealward", *arguments],
            capture_output=True,
            text=True,
            env=environ,
            cwd=self.folder,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = Environment(tmp_path_factory.mktemp("wheels"))
    made.install(REPOSITORY)
    return made


def test_a_client_has_no_services_and_says_so(installed: Environment) -> None:
    refused = installed.sealward(["up", "--detach", "--json", "--dir", "suite"], code=1)
    assert "the services are not installed here" in json.loads(refused)["error"]["message"]
    assert not (installed.folder / "suite").exists()


def test_the_suite_runs_from_installed_wheels(installed: Environment) -> None:
    installed.install(REPOSITORY / "packaging" / "server")
    where = ["--dir", "suite", "--json"]
    password, question = installed.folder / "password", installed.folder / "question.json"
    password.write_text("correct horse battery")
    password.chmod(0o600)
    question.write_text(rest_json())
    installed.sealward(["up", "--detach", *where])
    try:
        installed.sealward(
            ["user", "add", "ann", "--role", "clinician", "--password-file", "password", *where]
        )
        installed.sealward(["login", "--user", "ann", "--password-file", "password", *where])
        answer = json.loads(
            installed.sealward(
                ["infer", "breast-cancer", "--input", "question.json", "--user", "ann", *where]
            )
        )
        assert answer["receipt"]
        assert answer["log_index"] > 0
    finally:
        installed.sealward(["down", *where])
    verify = ["audit", "verify", "--log", "suite/audit/log", "--vkey", "suite/audit/log.vkey"]
    installed.sealward([*verify, "--json"])
