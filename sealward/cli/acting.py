"""Who a command acts as: the local administrator, or with `--as NAME` a logged-in user."""

from __future__ import annotations

from typing import Annotated, Self

import typer

from sealward.cli.errors import CliError
from sealward.cli.suite import Suite

As = Annotated[
    str,
    typer.Option(
        "--as", metavar="NAME", help="Act as this logged-in user, not as the administrator."
    ),
]


class Acting:
    """A channel to the gateway as somebody. Use it as a context manager.

    `metadata` goes with every call; `material` is the certificate and key that sign for them.
    """

    def __init__(self, suite: Suite, name: str = "") -> None:
        """Open it; raise CliError when that person has no certificate or no session."""
        from sealward.cli.certificates import ensure_admin
        from sealward.cli.connect import open_channel, trust_domain, user_folder, user_material

        suite.require_running()
        self.metadata: tuple[tuple[str, str], ...] = ()
        if name:
            self.material = user_material(suite, name)
            session = user_folder(suite, name) / "session"
            try:
                token = session.read_text(encoding="ascii").strip()
            except FileNotFoundError:
                raise CliError(
                    f"{name} is not logged in", advice=f"sealward login --user {name}"
                ) from None
            self.metadata = (("authorization", f"Bearer {token}"),)
        else:
            self.material = ensure_admin(suite)
        self.channel = open_channel(
            self.material, suite.address("gateway"), f"gateway.{trust_domain(self.material)}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
