"""The witness policy of this deployment: from a file, or the built-in witness alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sealward.kit.errors import StartupError
from sealward.tlog.errors import PolicyError
from sealward.tlog.policy import NONE, Policy, PolicyWitness, format_policy, printable
from services.audit.cosigning.builtin import NAME, BuiltinWitness
from services.audit.cosigning.http_witness import HttpWitness, tls_context

_NOTE = """The witness policy of this log (c2sp.org/tlog-policy), made by the audit service.
The built-in witness is the keys service. It cosigns with ML-DSA-44 too:
witness {name}-ml-dsa {vkey}"""


@dataclass(frozen=True, slots=True)
class Witnesses:
    """Who is asked, and whose word is enough.

    `text` is the policy without its log lines; `builtin` what the built-in witness is called in it,
    empty where it is not mentioned.
    """

    policy: Policy
    outside: tuple[HttpWitness, ...]
    builtin: str
    text: bytes


def read_witnesses(
    path: Path | None, builtin: BuiltinWitness, *, seconds: float, ca_file: Path | None
) -> Witnesses:
    """Return the witnesses that the settings ask for; raise StartupError.

    Log lines of the file are not looked at: a log's key changes with the year. A witness without a
    URL has to be the built-in one.
    """
    own = {v.public_key for v in builtin.verifiers}
    if path is None:
        default = _default(builtin)
        return Witnesses(Policy.parse(default), (), NAME, default)
    try:
        data = path.read_bytes()
        policy = Policy.parse(data)
    except OSError:
        raise StartupError(
            "the file of SEALWARD_AUDIT_WITNESS_POLICY_FILE cannot be read"
        ) from None
    except PolicyError as error:
        raise StartupError(f"{path}: {error}") from None
    if policy.quorum == NONE:
        raise StartupError(f"{path}: quorum none asks for no witness: leave the setting empty")
    by_url: dict[str, list[PolicyWitness]] = {}
    mentioned = ""
    for witness in policy.witnesses:
        if witness.verifier.public_key in own:
            mentioned = mentioned or printable(witness.name)
        elif not witness.url:
            raise StartupError(f"{path}: witness {printable(witness.name)} has no URL")
        else:
            by_url.setdefault(witness.url.rstrip("/"), []).append(witness)
    context = tls_context(ca_file)
    outside = tuple(
        HttpWitness(
            printable(rows[0].name),
            url,
            [row.verifier for row in rows],
            seconds=seconds,
            context=context,
        )
        for url, rows in by_url.items()
    )
    return Witnesses(policy, outside, mentioned, _without_logs(data))


def shown_policy(witnesses: Witnesses, vkeys: list[str]) -> bytes:
    """Return the policy as an outsider needs it: with the log's verifier key lines."""
    return "".join(f"log {vkey}\n" for vkey in vkeys).encode() + witnesses.text


def _default(builtin: BuiltinWitness) -> bytes:
    first, *others = builtin.verifiers
    note = _NOTE.format(name=NAME, vkey=others[0].vkey) if others else ""
    return format_policy([], {NAME: first.vkey}, NAME, note)


def _without_logs(data: bytes) -> bytes:
    return b"".join(line for line in data.splitlines(keepends=True) if line.split()[:1] != [b"log"])
