"""`sealward config`: the settings that the services would start with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import typer

from sealward.cli.errors import CliError
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, line
from sealward.cli.suite import SERVICES, Suite

app = typer.Typer(help="Settings.", no_args_is_help=True)

# scheme://user:password@host
_PASSWORD = re.compile(r"(?<=://)([^/@:]*):[^/@]*@")
_CHECK = (
    "import importlib, sys; from sealward.kit.settings import ServiceSettings, load;"
    " from sealward.kit.errors import StartupError\n"
    "module = importlib.import_module(f'services.{sys.argv[1]}.settings')\n"
    "kinds = [k for k in vars(module).values() if isinstance(k, type)"
    " and issubclass(k, ServiceSettings) and k.__module__ == module.__name__]\n"
    "try: load(kinds[0], sys.argv[1])\n"
    "except StartupError as error: sys.exit(str(error))\n"
)


@app.command()
def show(directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Show each service's settings; of secrets, settings hold the names of their files alone."""
    found = _settings(Suite.at(directory))
    if as_json:
        emit(found, as_json=True)
        return
    for name, settings in found.items():
        line(name)
        for key, value in settings.items():
            line(f"  {key}={value}")


@app.command()
def check(directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Check the settings as each service would at its start; exit 1 naming what is wrong."""
    from sealward.cli.processes import service_environ, services_roots

    suite = Suite.at(directory)
    roots = services_roots()
    wrong: dict[str, str] = {}
    for name in SERVICES:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CHECK, name],
            env=service_environ(suite, name, os.environ, roots),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            wrong[name] = (done.stderr.strip().splitlines() or ["it cannot be loaded"])[-1]
    if wrong:
        raise CliError(
            "; ".join(f"{name}: {text}" for name, text in wrong.items()),
            advice="sealward config show",
            wrong=wrong,
        )
    emit({"ok": True}, as_json=as_json, text="the settings of every service are in order")


def _settings(suite: Suite) -> dict[str, dict[str, Any]]:
    from sealward.cli.processes import service_environ

    return {
        name: {
            key: _PASSWORD.sub(r"\1:…@", value)
            for key, value in sorted(service_environ(suite, name, os.environ).items())
            if key.startswith(("SEALWARD_", "VAULT_", "OTEL_")) or key == "REDIS_URL"
        }
        for name in reversed(SERVICES)
    }
