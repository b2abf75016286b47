"""`sealward status`: what runs, and whether it is ready."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from sealward.cli import interrupt
from sealward.cli.errors import Exit
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, line, table
from sealward.cli.store import store_environ
from sealward.cli.suite import SERVICES, Suite

_WATCH_SECONDS = 1.0


def status(
    directory: Dir = DEFAULT,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every second.")] = False,
    as_json: Json = False,
) -> None:
    """Show processes, health, keys and log. Exit 0 when ready, 1 when not, 3 when not running."""
    suite = Suite.at(directory)
    while True:
        found = collect(suite)
        if watch and sys.stdout.isatty():
            line("\x1b[2J\x1b[H", err=False)
        _print(found, as_json=as_json)
        if not watch:
            raise typer.Exit(_exit_code(found))
        interrupt.pause(_WATCH_SECONDS)


def collect(suite: Suite) -> dict[str, Any]:
    """Return the state of a suite. Raise CliError when there is none in the folder."""
    endpoints = suite.endpoints()
    pid = suite.supervisor_pid()
    found: dict[str, Any] = {"dir": str(suite.root), "running": pid is not None, "ready": False}
    if pid is None:
        return found
    state = suite.state()
    processes = state.get("processes", {})
    health = _health(suite)
    found["supervisor"] = {"pid": pid, "memory_bytes": memory(pid)}
    found["services"] = {
        name: {
            "address": endpoints[name]["address"],
            "health": health.get(name, "unreachable"),
            **_process(processes.get(name, {})),
        }
        for name in reversed(SERVICES)
    }
    if "valkey" in processes:
        found["session_store"] = _process(processes["valkey"])
    elif suite.store_file.exists():
        # The gateway is ready while it can be asked.
        found["remote_session_store"] = {"url": store_environ(suite)["REDIS_URL"]}
    found["keys"] = _keys(suite)
    found["log"] = _log(suite)
    found["witness"] = _witness(suite)
    found["ready"] = all(found["services"][name]["health"] == "ready" for name in SERVICES)
    return found


def memory(pid: int) -> int | None:
    """Return the resident memory of a process in bytes; None when it has ended."""
    try:
        for row in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if row.startswith("VmRSS:"):
                return int(row.split()[1]) * 1024
    except (OSError, ValueError):
        return None
    return None


def _process(child: dict[str, Any]) -> dict[str, Any]:
    pid = child.get("pid")
    return {
        "pid": pid,
        "state": child.get("state", "unknown"),
        "restarts": child.get("restarts", 0),
        "memory_bytes": memory(pid) if pid else None,
    }


def _health(suite: Suite) -> dict[str, str]:
    import grpc

    from sealward.cli.connect import Admin, is_serving
    from sealward.cli.errors import CliError

    found: dict[str, str] = {}
    try:
        admin = Admin(suite)
    except CliError:
        return found
    for name in SERVICES:
        with admin.channel(name) as channel:
            try:
                found[name] = "ready" if is_serving(channel, seconds=3.0) else "not ready"
            except grpc.RpcError:
                found[name] = "unreachable"
    return found


def _keys(suite: Suite) -> dict[str, Any]:
    import grpc

    from sealward.cli.connect import Admin
    from sealward.cli.errors import CliError
    from sealward.cli.keys import provider_status

    with suppress(grpc.RpcError, CliError), Admin(suite).channel("keys") as channel:
        return provider_status(channel, 3.0)
    return {"state": "unreachable"}


def _witness(suite: Suite) -> dict[str, Any]:
    import grpc

    from sealward.cli.audit.witness import ask_state
    from sealward.cli.connect import Admin
    from sealward.cli.errors import CliError

    with suppress(grpc.RpcError, CliError), Admin(suite).channel("audit") as channel:
        return ask_state(channel, 3.0)
    return {"logs": [], "witnesses": []}


def _log(suite: Suite) -> dict[str, Any]:
    try:
        origin, size = (suite.log_dir / "checkpoint").read_text(encoding="utf-8").split("\n")[:2]
        return {"origin": origin, "size": int(size), "dir": str(suite.log_dir)}
    except (OSError, ValueError):
        return {"size": None, "dir": str(suite.log_dir)}


def _print(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit(found, as_json=True)
        return
    if not found["running"]:
        line(f"the suite in {found['dir']} is not running")
        return
    rows: list[list[object]] = [
        [name, s["health"], s["address"], s["pid"], s["restarts"], _mib(s["memory_bytes"])]
        for name, s in found["services"].items()
    ]
    if "session_store" in found:
        store = found["session_store"]
        rows.append(
            ["valkey", store["state"], "unix socket", store["pid"], store["restarts"],
             _mib(store["memory_bytes"])]
        )  # fmt: skip
    if "remote_session_store" in found:
        rows.append(["sessions", "", found["remote_session_store"]["url"], "", "", ""])
    supervisor = found["supervisor"]
    rows.append(
        ["supervisor", "running", "", supervisor["pid"], "", _mib(supervisor["memory_bytes"])]
    )
    table(["process", "state", "address", "pid", "restarts", "memory"], rows)
    keys, log = found["keys"], found["log"]
    host = ", single-host" if keys.get("single_host") else ""
    trouble = f": {keys['trouble']} since {keys['since']}" if keys.get("trouble") else ""
    line(f"keys: {keys.get('provider', '')} {keys['state']}{trouble}{host}")
    line(f"log:  {log['size']} entries in {log['dir']}")
    if found["witness"]["witnesses"]:
        from sealward.cli.audit.witness import one_line

        line(f"witness: {one_line(found['witness'])}")


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / (1 << 20):.0f} MiB"


def _exit_code(found: dict[str, Any]) -> Exit:
    if not found["running"]:
        return Exit.UNAVAILABLE
    return Exit.OK if found["ready"] else Exit.FAILED
