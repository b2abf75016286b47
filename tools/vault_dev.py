"""`make vault`: a real Vault server on this machine, for development alone.

    make vault                          until Ctrl-C; what is in it stays in ./vault-data
    python -m tools.vault_dev --build   build the server and stop

The unseal key and the root token stand in ./vault-data beside what they protect: nothing of this is
for other people's data.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from sealward.cli.suite import write_private
from tests.support.vault import MISSING, VaultServer, binary

_ADDRESS = "http://127.0.0.1:8200"


def main() -> int:
    """Run the server; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", action="store_true", help="build the server and stop")
    parser.add_argument("--dir", type=Path, default=Path("vault-data"))
    parser.add_argument("--address", default=_ADDRESS)
    arguments = parser.parse_args()
    program = binary()
    if program is None:
        print(MISSING, file=sys.stderr)
        return 1
    if arguments.build:
        return 0
    os.umask(0o077)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = arguments.dir.absolute()
    server = VaultServer(folder, arguments.address, storage="file", program=program)
    known = folder / "unseal.json"
    if known.exists():
        found = json.loads(known.read_bytes())
        server.token, server.unseal_key = found["token"], found["unseal_key"]
    try:
        server.start()
        kept = {"token": server.token, "unseal_key": server.unseal_key}
        write_private(known, json.dumps(kept).encode())
        made = server.sealward("setup", folder / "credentials")["made"]
        print(f"Vault is at {server.address}; its root token is in {folder / 'token'}")
        print(f"set up in it: {', '.join(made) or 'nothing new'}")
        print(
            f"  .venv/bin/sealward up --vault {server.address}"
            f" --vault-credentials {folder / 'credentials'}"
        )
        print("Ctrl-C stops it", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
