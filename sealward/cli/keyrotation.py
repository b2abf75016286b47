"""`sealward keys rotate` and `keys rewrap`: new versions of key-encryption keys, and the way there.

A rotation makes new versions and touches nothing else. Rewrapping has every service that keeps
wrapped keys move them on, in batches; cut off anywhere, it is run again and skips what is done.
What nobody needs any more is destroyed only when it is asked for.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealward.cli.errors import CliError, Exit, unavailable, usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, line
from sealward.cli.suite import Suite

if TYPE_CHECKING:
    from sealward.api.common.v1.holder_pb2 import RewrapResponse
    from sealward.api.keys.v1.rotation_pb2 import KeyEncryptionKey
    from sealward.cli.connect import Admin

HOLDERS = ("keys", "audit", "inference", "gateway")
"""The services that keep wrapped keys."""

_LONG_SECONDS = 3600.0
_ATTEMPTS = 5
_PAUSE_SECONDS = 2.0

Tenant = Annotated[str, typer.Option("--tenant", metavar="NAME", help="Of this tenant alone.")]
Purpose = Annotated[
    str, typer.Option("--purpose", metavar="NAME", help="Of this purpose alone, as `model`.")
]


def rotate(
    tenant: Tenant = "",
    purpose: Purpose = "",
    everything: Annotated[
        bool,
        typer.Option(
            "--everything", help="And rewrap; the logs' keys, all certificates, the authority too."
        ),
    ] = False,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Make a new version of every key-encryption key, or of some; what is sealed still opens."""
    from sealward.cli.connect import Admin

    suite = Suite.at(directory)
    if everything:
        if tenant or purpose:
            raise usage("--everything is of every tenant and purpose")
        done = rotate_everything(suite, quiet=as_json)
        emit(done, as_json=as_json, text=_all_text(done))
        return
    rotated = rotate_keys(Admin(suite), tenant, purpose)
    emit(
        {"rotated": rotated},
        as_json=as_json,
        text="\n".join(f"{r['tenant']}/{r['purpose']}: version {r['version']}" for r in rotated)
        + "\nnext: sealward keys rewrap",
    )


def rewrap(
    tenant: Tenant = "",
    purpose: Purpose = "",
    retire: Annotated[
        bool,
        typer.Option("--retire", help="Then destroy the versions that nothing needs any more."),
    ] = False,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Move every wrapped key on to the newest version; exit 1 when one does not open."""
    from sealward.cli.connect import Admin

    suite = Suite.at(directory)
    # Raises where nothing runs, before anything is begun.
    Admin(suite)
    result = rewrap_keys(suite, tenant, purpose, retire=retire, quiet=as_json)
    emit(result, as_json=as_json, text=_text(result))


def rotate_everything(suite: Suite, *, quiet: bool) -> dict[str, Any]:
    """Rotate what can be rotated; return what was done. Old versions are kept. Raise CliError."""
    from sealward.cli import authority
    from sealward.cli.connect import Admin

    rotated = rotate_keys(Admin(suite))
    moved = rewrap_keys(suite, quiet=quiet)
    logs = _rotate_log_keys(suite)
    renewed = authority.renew_everything(suite)
    replaced = authority.rotate_authority(suite, now=False, wait=False, quiet=quiet)
    return {
        "rotated": rotated,
        "rewrapped": moved["holders"],
        "retirable": moved["retirable"],
        "logs": logs,
        "certificates": renewed,
        "authority": replaced,
    }


def _rotate_log_keys(suite: Suite) -> list[dict[str, Any]]:
    """Give every log that grows another key; one whose last change is not over is left alone."""
    import grpc

    from sealward.api.audit.v1 import logs_pb2
    from sealward.cli.audit.logs import LONG_SECONDS, log_admin
    from sealward.cli.certificates import spread_vkeys
    from sealward.cli.rpc import error_info

    done = []
    with log_admin(suite.root, "changing the logs' keys") as logs:
        found = logs.ListLogs(logs_pb2.ListLogsRequest(), timeout=LONG_SECONDS).logs
        for tenant in dict.fromkeys(log.tenant for log in found):
            try:
                answer = logs.RotateLogKey(
                    logs_pb2.RotateLogKeyRequest(tenant=tenant), timeout=LONG_SECONDS
                )
            except grpc.RpcError as error:
                if error_info(error)[0] != "LOG_STATE":
                    raise
                done.append({"tenant": tenant, "new_vkey": None})
                continue
            done.append({"tenant": tenant, "new_vkey": answer.new_vkey})
    spread_vkeys(suite)
    return done


def list_keys(admin: Admin) -> list[KeyEncryptionKey]:
    """Return the key-encryption keys; raise CliError."""
    from sealward.api.keys.v1.rotation_pb2 import ListKeysRequest
    from sealward.api.keys.v1.rotation_pb2_grpc import RotationServiceStub
    from sealward.cli.connect import CALL_SECONDS
    from sealward.cli.rpc import calling

    with calling("listing the keys"), admin.channel("keys") as channel:
        return list(
            RotationServiceStub(channel).ListKeys(ListKeysRequest(), timeout=CALL_SECONDS).keys
        )


def rotate_keys(admin: Admin, tenant: str = "", purpose: str = "") -> list[dict[str, Any]]:
    """Make new versions; return tenant, purpose and version of each. Raise CliError."""
    from sealward.api.keys.v1.rotation_pb2 import RotateKeyRequest
    from sealward.api.keys.v1.rotation_pb2_grpc import RotationServiceStub
    from sealward.cli.connect import CALL_SECONDS
    from sealward.cli.rpc import calling

    chosen = _chosen(list_keys(admin), tenant, purpose)
    rotated = []
    with calling("rotating"), admin.channel("keys") as channel:
        stub = RotationServiceStub(channel)
        for key in chosen:
            answer = stub.RotateKey(
                RotateKeyRequest(tenant=key.tenant, purpose=key.purpose), timeout=CALL_SECONDS
            )
            rotated.append(
                {"tenant": key.tenant, "purpose": key.purpose, "version": answer.version}
            )
    return rotated


def rewrap_keys(
    suite: Suite,
    tenant: str = "",
    purpose: str = "",
    *,
    retire: bool = False,
    quiet: bool = True,
) -> dict[str, Any]:
    """Have every holder move its keys on; return what became of them. Raise CliError."""
    from sealward.cli.connect import Admin

    holders: dict[str, list[dict[str, Any]]] = {}
    trouble: list[CliError] = []
    for service in HOLDERS:
        try:
            holders[service] = _pass(suite, service, tenant, purpose, quiet=quiet)
        except CliError as error:
            # The others go on: what one of them has done is done.
            trouble.append(error)
    broken = [place for rows in holders.values() for row in rows for place in row["failed"]]
    keys = _chosen(list_keys(Admin(suite)), tenant, purpose)
    result: dict[str, Any] = {
        "holders": holders,
        "retirable": [_retirable(key) for key in keys if 0 < key.lowest < key.confirmed],
        "needed": [
            {"tenant": k.tenant, "purpose": k.purpose, "holder": k.holder}
            for k in keys
            if k.lowest < k.newest and k.confirmed < k.newest
        ],
        "retired": [],
    }
    if trouble:
        first = trouble[0]
        raise CliError(
            first.message, advice="sealward keys rewrap", code=first.code, **first.details, **result
        )
    if broken:
        raise CliError(
            f"{sum(r['failures'] for rows in holders.values() for r in rows)} wrapped keys do not"
            f" open: {', '.join(broken[:5])}",
            advice="docs/runbooks/rotation.md; nothing was lost, and no old version is destroyed",
            **result,
        )
    if retire:
        result["retired"] = _retire(Admin(suite), result["retirable"])
        result["retirable"] = []
    return result


def _pass(
    suite: Suite, service: str, tenant: str, purpose: str, *, quiet: bool
) -> list[dict[str, Any]]:
    """Have one holder move its keys on. A stream that breaks is begun again."""
    import grpc

    from sealward.api.common.v1.holder_pb2 import RewrapRequest
    from sealward.api.common.v1.holder_pb2_grpc import HolderServiceStub
    from sealward.cli.connect import Admin
    from sealward.cli.rpc import cli_error

    for attempt in range(_ATTEMPTS):
        rows = []
        try:
            with Admin(suite).channel(service) as channel:
                stream = HolderServiceStub(channel).Rewrap(
                    RewrapRequest(tenant=tenant, purpose=purpose),
                    timeout=_LONG_SECONDS,
                    wait_for_ready=attempt > 0,
                )
                for state in stream:
                    if state.purpose:
                        _tell(service, state, quiet=quiet)
                    if state.done:
                        rows.append(_row(state))
        except grpc.RpcError as error:
            found = cli_error(error, f"rewrapping the keys of {service}")
            if found.code is not Exit.UNAVAILABLE or attempt == _ATTEMPTS - 1:
                raise found from None
            time.sleep(_PAUSE_SECONDS)
            continue
        return rows
    raise unavailable(f"{service} does not answer")


def _tell(service: str, state: RewrapResponse, *, quiet: bool) -> None:
    if quiet:
        line(json.dumps({"service": service, **_row(state)}), err=True)
        return
    line(
        f"  {service:<10} {state.tenant}/{state.purpose}: {state.seen} of {state.total},"
        f" {state.moved} moved on to version {state.version}"
        + (f", {state.failures} do not open" if state.failures else ""),
        err=True,
    )


def _row(state: RewrapResponse) -> dict[str, Any]:
    return {
        "tenant": state.tenant,
        "purpose": state.purpose,
        "version": state.version,
        "total": state.total,
        "seen": state.seen,
        "moved": state.moved,
        "failures": state.failures,
        "failed": list(state.failed),
        "confirmed": state.confirmed,
    }


def _retirable(key: KeyEncryptionKey) -> dict[str, Any]:
    return {
        "tenant": key.tenant,
        "purpose": key.purpose,
        "versions": list(range(key.lowest, key.confirmed)),
        "below": key.confirmed,
    }


def _retire(admin: Admin, retirable: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from sealward.api.keys.v1.rotation_pb2 import RetireKeyRequest
    from sealward.api.keys.v1.rotation_pb2_grpc import RotationServiceStub
    from sealward.cli.connect import CALL_SECONDS
    from sealward.cli.rpc import calling

    with calling("destroying old versions"), admin.channel("keys") as channel:
        stub = RotationServiceStub(channel)
        for row in retirable:
            stub.RetireKey(
                RetireKeyRequest(tenant=row["tenant"], purpose=row["purpose"], below=row["below"]),
                timeout=CALL_SECONDS,
            )
    return retirable


def _chosen(keys: list[KeyEncryptionKey], tenant: str, purpose: str) -> list[KeyEncryptionKey]:
    found = [k for k in keys if tenant in ("", k.tenant) and purpose in ("", k.purpose)]
    if not found:
        raise CliError("there is no such key-encryption key", advice="sealward keys status")
    return found


def _all_text(done: dict[str, Any]) -> str:
    changed = [log["tenant"] for log in done["logs"] if log["new_vkey"]]
    waits = [log["tenant"] for log in done["logs"] if not log["new_vkey"]]
    lines = [
        f"{len(done['rotated'])} keys have a new version, and everything is wrapped under it",
        f"logs with another key: {', '.join(changed) or 'none'}",
        *([f"their last change is not over: {', '.join(waits)}"] if waits else []),
        "certificates renewed: "
        + ", ".join(done["certificates"]["services"] + done["certificates"]["renewed"]),
        f"the next authority signs from {done['authority']['next_step']} on",
        "destroy old versions, once no backup needs them: sealward keys rewrap --retire",
    ]
    return "\n".join(lines)


def _text(result: dict[str, Any]) -> str:
    moved = sum(row["moved"] for rows in result["holders"].values() for row in rows)
    kept = sum(row["total"] for rows in result["holders"].values() for row in rows)
    lines = [f"{kept} wrapped keys, {moved} of them moved on"]
    for name, what in (("retired", "destroyed"), ("retirable", "not needed any more")):
        for row in result[name]:
            versions = ", ".join(map(str, row["versions"]))
            lines.append(f"{row['tenant']}/{row['purpose']}: {what}: version {versions}")
    if result["retirable"]:
        lines.append("destroy them, once no backup needs them: sealward keys rewrap --retire")
    for row in result["needed"]:
        who = row["holder"] or "nobody"
        lines.append(f"{row['tenant']}/{row['purpose']}: {who} has not let go of old versions")
    return "\n".join(lines)
