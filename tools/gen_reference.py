"""Write docs/reference/ from the code, or with --check compare it with what is committed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sealward.kit import attributes
from sealward.kit.access import RPCS
from sealward.kit.reasons import CODES, Reason

ROOT = Path(__file__).resolve().parent.parent
HEAD = "<!-- Made by tools/gen_reference.py; do not edit. -->\n"


def attributes_page() -> str:
    """The span attributes and event types."""
    rows = "".join(
        f"| `{name}` | {'audit only' if name in attributes.AUDIT_ONLY else 'producer'} |\n"
        for name in sorted(attributes.ALLOWED | attributes.AUDIT_ONLY)
    )
    types = "".join(f"- `{name}`\n" for name in sorted(attributes.EVENT_TYPES))
    return (
        f"{HEAD}# Span attributes of an audit event\n\nAn attribute that is not listed never "
        "leaves a process: producers filter by this list, and audit filters again. What audit "
        "alone writes is refused from producers.\n\n| attribute | who writes it |\n|---|---|\n"
        f"{rows}\n## Event types\n\n{types}"
    )


def reasons_page() -> str:
    """The reasons with their status codes and the comments of the proto."""
    proto = (ROOT / "protos/sealward/api/common/v1/errors.proto").read_text()
    said = {
        name: " ".join(line.strip().removeprefix("//").strip() for line in text.splitlines())
        for text, name in re.findall(r"((?:  // [^\n-][^\n]*\n)+)  REASON_(\w+) = ", proto)
    }
    rows = "".join(
        f"| `{reason.name}` | {CODES[reason].name} | {said[reason.name].strip()} |\n"
        for reason in Reason
    )
    return (
        f"{HEAD}# Reasons of errors\n\nEvery error carries `google.rpc.ErrorInfo` with one of "
        "these reasons and the domain `sealward`.\n\n| reason | status | meaning |\n|---|---|---|\n"
        f"{rows}"
    )


def access_page() -> str:
    """The identity × RPC table."""
    rows = "".join(f"| `{method}` | {', '.join(sorted(who))} |\n" for method, who in RPCS.items())
    return (
        f"{HEAD}# Which identity may call which RPC\n\nWhat is not listed is refused. Roles and "
        "purposes narrow this further at the gateway.\n\n| method | callers |\n|---|---|\n"
        f"{rows}"
    )


def main() -> int:
    """Write the pages, or with --check say which are stale; 1 when some are."""
    stale = []
    for name, page in (
        ("attributes", attributes_page()),
        ("reasons", reasons_page()),
        ("access", access_page()),
    ):
        path = ROOT / "docs" / "reference" / f"{name}.md"
        if "--check" not in sys.argv[1:]:
            path.write_text(page)
        elif not path.exists() or path.read_text() != page:
            stale.append(path.name)
    for name in stale:
        print(f"docs/reference/{name} is stale: run python tools/gen_reference.py")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
