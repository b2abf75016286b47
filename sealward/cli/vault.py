"""`sealward vault`: prepares a Vault (or OpenBao) server to hold a deployment's keys.

By an administrator of Vault, with a token that the suite never sees. The work is done by the
package of the keys service, the only one that talks to Vault.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sealward.cli.errors import CliError, Exit, usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, line
from sealward.cli.suite import Suite

app = typer.Typer(help="A Vault server to hold the keys.", no_args_is_help=True)

_MODULE = "services.keys.providers.vault"
_WRAP_MINUTES = 60

Addr = Annotated[
    str,
    typer.Option("--addr", metavar="URL", help="Vault's address.", envvar="VAULT_ADDR"),
]
TokenFile = Annotated[
    Path, typer.Option("--token-file", metavar="FILE", help="File with the administrator's token.")
]
Out = Annotated[
    Path,
    typer.Option("--out", metavar="DIR", help="Where the keys service's login is written to."),
]
Prefix = Annotated[
    str, typer.Option("--prefix", metavar="NAME", help="What everything in Vault is below.")
]
CaCert = Annotated[
    Path | None,
    typer.Option(
        "--ca-cert", metavar="FILE", help="PEM to verify Vault with.", envvar="VAULT_CACERT"
    ),
]
Namespace = Annotated[
    str,
    typer.Option("--namespace", metavar="NAME", help="Namespace.", envvar="VAULT_NAMESPACE"),
]
WrapMinutes = Annotated[
    int,
    typer.Option("--wrap-minutes", min=1, max=1440, help="How long the login waits to be taken."),
]

DEFAULT_OUT = Path("vault-credentials")


@app.command()
def setup(
    addr: Addr,
    token_file: TokenFile,
    out: Out = DEFAULT_OUT,
    prefix: Prefix = "sealward",
    trust_domain: Annotated[
        str, typer.Option("--trust-domain", metavar="NAME", help="Of every name that is certified.")
    ] = "sealward.local",
    ca_cert: CaCert = None,
    namespace: Namespace = "",
    cidr: Annotated[
        list[str] | None,
        typer.Option("--cidr", help="Where the keys service may log in from. May be repeated."),
    ] = None,
    secret_id_uses: Annotated[
        int, typer.Option("--secret-id-uses", min=0, help="Logins that a secret id is good for.")
    ] = 0,
    secret_id_life: Annotated[
        str, typer.Option("--secret-id-life", metavar="TIME", help="How long, such as 720h.")
    ] = "0",  # noqa: S107 - a time
    login_ca: Annotated[
        Path | None,
        typer.Option(
            "--login-ca", metavar="FILE", help="PEM: its certificates log the keys service in too."
        ),
    ] = None,
    login_name: Annotated[
        str,
        typer.Option(
            "--login-name", metavar="URI", help="Name of that certificate; else the SPIFFE ID."
        ),
    ] = "",
    wrap_minutes: WrapMinutes = _WRAP_MINUTES,
    as_json: Json = False,
) -> None:
    """Make engines, CA, roles, policies and logins, and hand out the keys service's login.

    May be run again: keys and CA stay, the rest is brought up to date. 0 uses or life: no bound.
    """
    result = _run(
        "setup", *_common(addr, token_file, out, prefix, ca_cert, namespace, wrap_minutes),
        "--trust-domain", trust_domain,
        *(word for each in cidr or () for word in ("--cidr", each)),
        "--secret-id-uses", str(secret_id_uses), "--secret-id-life", secret_id_life,
        *(("--login-ca", str(login_ca)) if login_ca else ()), "--login-name", login_name,
    )  # fmt: skip
    made = ", ".join(result["made"]) or "nothing new"
    emit(result, as_json=as_json, text=f"made: {made}\n{_handed_out(addr, result)}")


@app.command(name="secret-id")
def secret_id(
    addr: Addr,
    token_file: TokenFile,
    out: Out = DEFAULT_OUT,
    prefix: Prefix = "sealward",
    ca_cert: CaCert = None,
    namespace: Namespace = "",
    wrap_minutes: WrapMinutes = _WRAP_MINUTES,
    as_json: Json = False,
) -> None:
    """Hand out the keys service's login anew: role id, and a wrapped secret id."""
    common = _common(addr, token_file, out, prefix, ca_cert, namespace, wrap_minutes)
    result = _run("secret-id", *common)
    emit(result, as_json=as_json, text=_handed_out(addr, result))


@app.command(name="shredder-login")
def shredder_login(
    credentials: Annotated[
        Path,
        typer.Option(
            "--vault-credentials", metavar="DIR", help="As `sealward vault secret-id` wrote it."
        ),
    ],
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Bring a suite the login that may destroy, while it runs: for the next act, or the next ones.

    Keys that are to be destroyed and wait for it are destroyed within seconds.
    """
    from sealward.cli.provider import take_shredder

    suite = Suite.at(directory)
    take_shredder(suite, credentials)
    emit(
        {"taken": str(credentials)},
        as_json=as_json,
        text="the keys service logs the shredder in with it at the next act: sealward keys rewrap"
        " --retire, or what sealward keys destroy list --open shows",
    )


@app.command()
def policies(prefix: Prefix = "sealward", as_json: Json = False) -> None:
    """Print the policies that `setup` installs, to review them or to install them otherwise."""
    found = _run("policies", "--prefix", prefix)["policies"]
    if as_json:
        emit(found, as_json=True)
        return
    for name, text in found.items():
        line(f"# --- {name} ---\n{text}")


def _common(
    addr: str,
    token_file: Path,
    out: Path,
    prefix: str,
    ca_cert: Path | None,
    namespace: str,
    wrap_minutes: int,
) -> list[str]:
    words = ["--addr", addr, "--token-file", str(token_file), "--out", str(out)]
    words += ["--prefix", prefix, "--namespace", namespace, "--wrap-minutes", str(wrap_minutes)]
    return words + (["--ca-cert", str(ca_cert)] if ca_cert else [])


def _handed_out(addr: str, result: dict[str, Any]) -> str:
    return (
        f"the login of the keys service is in {result['credentials']}, for"
        f" {result['wrapped_for_seconds'] // 60} minutes and one use\n"
        f"  sealward up --vault {addr} --vault-credentials {result['credentials']}"
    )


def _run(*arguments: str) -> dict[str, Any]:
    from sealward.cli.processes import services_roots

    paths = [*services_roots(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    done = subprocess.run(
        [sys.executable, "-P", "-m", _MODULE, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        raise usage(f"sealward vault {arguments[0]}: {last}") from None
    if done.returncode != 0:
        raise CliError(result["error"], code=Exit(done.returncode))
    return result
