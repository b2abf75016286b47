"""`sealward policy`: reading, trying and changing who may do what."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealward.cli.acting import Acting, As
from sealward.cli.errors import CliError, Exit, usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, line, table
from sealward.cli.suite import Suite

if TYPE_CHECKING:
    from sealward.api.gateway.v1 import policy_pb2 as pb
    from sealward.api.gateway.v1.policy_pb2_grpc import PolicyServiceStub

app = typer.Typer(help="Who may do what: read, try and change it.", no_args_is_help=True)

_CALL_SECONDS = 60.0

PolicyFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="Policies in Cedar.", exists=True, dir_okay=False)
]
OtherFile = Annotated[
    Path | None,
    typer.Option(
        "--policy", metavar="FILE", help="Ask these policies, not those in force.", exists=True
    ),
]
Profile = Annotated[
    str,
    typer.Option("--profile", help="The set in force with these added: `second-factor`."),
]
Digest = Annotated[str, typer.Argument(metavar="DIGEST", help="Digest, or how it begins.")]


@app.command()
def show(
    profile: Profile = "", acting: As = "", directory: Dir = DEFAULT, as_json: Json = False
) -> None:
    """Print the policies in force, and what is proposed; with a profile, what they would be."""
    from sealward.api.gateway.v1 import policy_pb2 as pb

    with _policies(directory, acting, "reading the policy") as (stub, who):
        answer = stub.GetPolicy(
            pb.GetPolicyRequest(profile=profile), timeout=_CALL_SECONDS, metadata=who.metadata
        )
    if profile:
        emit({"text": answer.with_profile}, as_json=as_json, text=answer.with_profile.rstrip("\n"))
        return
    value = {
        "active": _bundle(answer.active),
        "proposals": [_bundle(found) for found in answer.proposals],
        "fixed": answer.fixed,
    }
    if not as_json:
        # Not into the set: a file made of it would go on to say what was so once.
        origin = "the operator's file" if answer.fixed else f"version {answer.active.version}"
        line(f"{origin}, {answer.active.digest}", err=True)
        for found in answer.proposals:
            said = f"proposed by {found.proposed_by}: version {found.version}, {found.digest}"
            line(said, err=True)
    emit(value, as_json=as_json, text=answer.active.text.removesuffix("\n"))


@app.command("list")
def list_(acting: As = "", directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """List the policy sets that were in force, newest first."""
    from sealward.api.gateway.v1 import policy_pb2 as pb

    with _policies(directory, acting, "listing policy sets") as (stub, who):
        found = stub.ListPolicies(
            pb.ListPoliciesRequest(), timeout=_CALL_SECONDS, metadata=who.metadata
        ).bundles
    if as_json:
        emit({"policies": [_bundle(bundle) for bundle in found]}, as_json=True)
        return
    table(
        ["version", "digest", "proposed by", "approved by", "since"],
        [
            [b.version, b.digest[:16], b.proposed_by or "shipped", b.approved_by, _time(b.time)]
            for b in found
        ],
    )


@app.command()
def propose(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Policies in Cedar.", exists=True, dir_okay=False),
    ] = None,
    profile: Profile = "",
    acting: As = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Propose a policy set; it changes nothing until another person approves it."""
    from sealward.api.gateway.v1 import policy_pb2 as pb

    if (file is None) is not bool(profile):
        raise usage("name either a FILE or a --profile", "sealward policy propose site.cedar")
    text = _read(file) if file else ""
    with _policies(directory, acting, "proposing the policy") as (stub, who):
        found = stub.GetPolicy(
            pb.GetPolicyRequest(profile=profile), timeout=_CALL_SECONDS, metadata=who.metadata
        )
        active = found.active
        text = text or found.with_profile
        payload = {"version": active.version + 1, "previous": active.digest, "text": text}
        jws = _signed(payload, who)
        made = stub.ProposePolicy(
            pb.ProposePolicyRequest(jws=jws), timeout=_CALL_SECONDS, metadata=who.metadata
        ).proposal
    emit(
        _bundle(made),
        as_json=as_json,
        text=f"proposed version {made.version}, {made.digest}\n"
        f"  another person: sealward policy approve {made.digest[:16]} --as NAME",
    )


@app.command()
def approve(
    digest: Digest, acting: As = "", directory: Dir = DEFAULT, as_json: Json = False
) -> None:
    """Put somebody else's proposal in force."""
    from sealward.api.gateway.v1 import policy_pb2 as pb

    with _policies(directory, acting, "approving the policy") as (stub, who):
        proposal, active = _proposal(stub, who, digest)
        payload = {
            "version": proposal.version, "previous": active.digest, "text": proposal.text,
        }  # fmt: skip
        made = stub.ApprovePolicy(
            pb.ApprovePolicyRequest(digest=proposal.digest, jws=_signed(payload, who)),
            timeout=_CALL_SECONDS,
            metadata=who.metadata,
        ).active
    emit(_bundle(made), as_json=as_json, text=f"in force: version {made.version}, {made.digest}")


@app.command()
def reject(
    digest: Digest, acting: As = "", directory: Dir = DEFAULT, as_json: Json = False
) -> None:
    """Reject a proposal, or withdraw one's own."""
    from sealward.api.gateway.v1 import policy_pb2 as pb

    with _policies(directory, acting, "rejecting the policy") as (stub, who):
        proposal, _ = _proposal(stub, who, digest)
        stub.RejectPolicy(
            pb.RejectPolicyRequest(digest=proposal.digest),
            timeout=_CALL_SECONDS,
            metadata=who.metadata,
        )
    emit({"rejected": proposal.digest}, as_json=as_json, text=f"rejected {proposal.digest}")


@app.command()
def explain(
    rpc: Annotated[str, typer.Option("--rpc", help="RPC.")] = "ModelInfer",
    model: Annotated[str, typer.Option("--model", help="Model.")] = "",
    purpose: Annotated[str, typer.Option("--purpose", help="HL7 v3 PurposeOfUse.")] = "",
    user: Annotated[str, typer.Option("--user", help="Take this user's roles.")] = "",
    role: Annotated[
        list[str] | None, typer.Option("--role", help="Role; may be given again.")
    ] = None,
    granted: Annotated[bool, typer.Option("--granted", help="A grant covers it.")] = False,
    break_glass: Annotated[bool, typer.Option("--break-glass", help="Under break-glass.")] = False,
    patient: Annotated[bool, typer.Option("--patient", help="The call names a patient.")] = False,
    second_factor: Annotated[
        bool, typer.Option("--second-factor", help="One was proven lately.")
    ] = False,
    multi_factor: Annotated[
        bool, typer.Option("--multi-factor", help="One was proven in the session, at any time.")
    ] = False,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", metavar="ROLE.NAME=VALUE", help="Of the caller's membership."),
    ] = None,
    policy: OtherFile = None,
    acting: As = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Say how a call is decided, by which policies, and what would turn the answer round."""
    from sealward.api.gateway.v1 import policy_pb2 as pb

    if bool(user) == bool(role):
        raise usage("name either a --user or one --role or more")
    question = pb.PolicyQuestion(
        roles=role or (), rpc=rpc, model=model, purpose=purpose, granted=granted,
        break_glass=break_glass, patient=patient, second_factor=second_factor,
        multi_factor=multi_factor,
        parameters=_parameters(parameter or ()),
    )  # fmt: skip
    with _policies(directory, acting, "explaining") as (stub, who):
        answer = stub.ExplainPolicy(
            pb.ExplainPolicyRequest(
                question=question, user=user, text=_read(policy) if policy else ""
            ),
            timeout=_CALL_SECONDS,
            metadata=who.metadata,
        )
    value = {
        "permitted": answer.permitted,
        "rule": answer.rule,
        "roles": list(answer.roles),
        "outputs": list(answer.outputs),
        "quotas": list(answer.quotas),
        "deciding": [{"id": r.id, "effect": r.effect, "text": r.text} for r in answer.deciding],
        "changes": [{"what": c.what, "value": c.value, "rule": c.rule} for c in answer.changes],
        "digest": answer.digest,
    }
    emit(value, as_json=as_json, text=_explained(answer))


@app.command("test")
def check_cases(
    cases: Annotated[
        Path,
        typer.Argument(
            metavar="CASES", help="JSON list of cases; see docs/policies.md.", exists=True
        ),
    ],
    policy: OtherFile = None,
    acting: As = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Check that a policy set decides given questions as expected; exit 1 when it does not."""
    from sealward.api.gateway.v1 import policy_pb2 as pb

    request = pb.TestPolicyRequest(text=_read(policy) if policy else "", cases=_cases(_read(cases)))
    with _policies(directory, acting, "testing the policy") as (stub, who):
        answer = stub.TestPolicy(request, timeout=_CALL_SECONDS, metadata=who.metadata)
    failed = [result for result in answer.results if not result.passed]
    rows = [
        {
            "name": r.name,
            "passed": r.passed,
            "permitted": r.permitted,
            "rule": r.rule,
            "outputs": list(r.outputs),
        }
        for r in answer.results
    ]
    lines = [
        f"failed: {r.name}: {'permitted' if r.permitted else 'refused'} by {r.rule}"
        + (f", outputs {', '.join(r.outputs)}" if r.outputs else "")
        for r in failed
    ]
    lines.append(f"{len(rows) - len(failed)} of {len(rows)} as expected")
    emit(
        {"results": rows, "failed": len(failed), "digest": answer.digest},
        as_json=as_json,
        text="\n".join(lines),
    )
    if failed:
        raise typer.Exit(int(Exit.FAILED))


@app.command()
def diff(
    file: PolicyFile, acting: As = "", directory: Dir = DEFAULT, as_json: Json = False
) -> None:
    """Show what a policy set would decide otherwise than the one in force."""
    from sealward.api.gateway.v1 import policy_pb2 as pb

    with _policies(directory, acting, "comparing") as (stub, who):
        answer = stub.DiffPolicy(
            pb.DiffPolicyRequest(text=_read(file)), timeout=_CALL_SECONDS, metadata=who.metadata
        )
    if as_json:
        rows = [
            {
                "role": d.role, "rpc": d.rpc, "model": d.model, "purposes": list(d.purposes),
                "opened": d.opened, "before": d.before_rule, "after": d.after_rule,
                "before_outputs": list(d.before_outputs), "after_outputs": list(d.after_outputs),
                "before_quotas": list(d.before_quotas), "after_quotas": list(d.after_quotas),
            }
            for d in answer.differences
        ]  # fmt: skip
        emit(
            {
                "differences": rows, "before": answer.before, "after": answer.after,
                "added": list(answer.added), "removed": list(answer.removed),
                "compared": answer.compared,
            },
            as_json=True,
        )  # fmt: skip
        return
    table(
        ["", "role", "rpc", "model", "purposes", "by", "outputs", "quotas"],
        [
            ["opens" if d.opened else "closes", d.role, d.rpc, d.model or "-",
             ", ".join(p or "(none)" for p in d.purposes),
             d.after_rule if d.opened or d.after_rule != "default-deny" else d.before_rule,
             _both(d.before_outputs, d.after_outputs), _both(d.before_quotas, d.after_quotas)]
            for d in answer.differences
        ],
        empty=f"no difference in {answer.compared} questions",
    )  # fmt: skip
    for said in _beside_the_table(answer):
        line(said)


@app.command()
def shadow(
    file: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="Policies to try.", exists=True)
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="End the shadow.")] = False,
    acting: As = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Let policies decide beside those in force, without effect; without options, report."""
    from sealward.api.gateway.v1 import policy_pb2 as pb

    if file and off:
        raise usage("--policy begins a shadow, --off ends it")
    with _policies(directory, acting, "the shadow policy") as (stub, who):
        if file or off:
            text = _read(file) if file else ""
            done = stub.SetShadowPolicy(
                pb.SetShadowPolicyRequest(text=text), timeout=_CALL_SECONDS, metadata=who.metadata
            )
            said = f"in the shadow: {done.digest}" if done.digest else "no shadow"
            emit({"digest": done.digest}, as_json=as_json, text=said)
            return
        answer = stub.GetShadowPolicy(
            pb.GetShadowPolicyRequest(), timeout=_CALL_SECONDS, metadata=who.metadata
        )
    rows = [
        {
            "roles": list(d.roles), "rpc": d.rpc, "model": d.model, "purpose": d.purpose,
            "opened": d.opened, "rule": d.rule, "calls": d.calls,
        }
        for d in answer.differences
    ]  # fmt: skip
    if as_json:
        emit(
            {
                "digest": answer.digest, "decided": answer.decided, "since": answer.since,
                "differences": rows,
            },
            as_json=True,
        )  # fmt: skip
        return
    if not answer.digest:
        line("no shadow")
        return
    table(
        ["", "roles", "rpc", "model", "purpose", "by", "calls"],
        [
            ["opens" if d.opened else "closes", ", ".join(d.roles), d.rpc, d.model or "-",
             d.purpose or "-", d.rule, d.calls]
            for d in answer.differences
        ],
        empty=f"no difference in {answer.decided} calls since {_time(answer.since)}",
    )  # fmt: skip


@contextmanager
def _policies(
    directory: Path, acting: str, what: str
) -> Iterator[tuple[PolicyServiceStub, Acting]]:
    from sealward.api.gateway.v1.policy_pb2_grpc import PolicyServiceStub
    from sealward.cli.rpc import calling

    with calling(what), Acting(Suite.at(directory), acting) as who:
        yield PolicyServiceStub(who.channel), who


def _signed(payload: dict[str, Any], who: Acting) -> bytes:
    from sealward.kit.statement import sign

    data = json.dumps(payload, separators=(",", ":"), sort_keys=True).encode()
    return sign(data, who.material.key_pem, who.material.chain_pem)


def _proposal(
    stub: PolicyServiceStub, who: Acting, digest: str
) -> tuple[pb.PolicyBundle, pb.PolicyBundle]:
    from sealward.api.gateway.v1 import policy_pb2 as pb

    answer = stub.GetPolicy(pb.GetPolicyRequest(), timeout=_CALL_SECONDS, metadata=who.metadata)
    found = [p for p in answer.proposals if digest and p.digest.startswith(digest)]
    if len(found) != 1:
        raise CliError(
            "there is no such proposal" if not found else "more than one proposal begins so",
            advice="sealward policy show",
        )
    return found[0], answer.active


def _cases(text: str) -> list[pb.PolicyCase]:
    from sealward.api.gateway.v1 import policy_pb2 as pb

    known = set(pb.PolicyQuestion.DESCRIPTOR.fields_by_name)
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        raise usage("the cases are not JSON") from None
    if not isinstance(items, list):
        raise usage("the cases are a JSON list")
    found = []
    for number, item in enumerate(items):
        if not isinstance(item, dict) or not isinstance(item.get("permitted"), bool):
            raise usage(f"case {number}: an object with `permitted`: true or false")
        unknown = set(item) - known - {"permitted", "rule", "name", "outputs"}
        if unknown:
            raise usage(f"case {number}: {min(unknown)} is not known")
        asked = {key: value for key, value in item.items() if key in known}
        try:
            question = pb.PolicyQuestion(**{"rpc": "ModelInfer", **asked})
            found.append(
                pb.PolicyCase(
                    name=item.get("name", f"case {number}"), question=question,
                    permitted=item["permitted"], rule=item.get("rule", ""),
                    outputs=item.get("outputs", ()),
                )
            )  # fmt: skip
        except (TypeError, ValueError):
            raise usage(f"case {number}: a field has a value of another type") from None
    return found


def _explained(answer: pb.ExplainPolicyResponse) -> str:
    verdict = "permitted" if answer.permitted else "refused"
    lines = [f"{verdict} by {answer.rule}, for {', '.join(answer.roles)}"]
    if answer.outputs:
        among = ["all"] if list(answer.outputs) == ["*"] else answer.outputs
        lines.append(f"outputs: {', '.join(among)}")
    lines += [f"quota: {quota}" for quota in answer.quotas]
    lines += [found.text.rstrip("\n") for found in answer.deciding if found.text]
    if answer.changes:
        other = "refused" if answer.permitted else "permitted"
        lines.append(f"it would be {other} with one of:")
        alike: dict[tuple[str, str], list[str]] = {}
        for change in answer.changes:
            alike.setdefault((change.what, change.rule), []).append(change.value)
        lines += [
            f"  {what} {', '.join(values)}  ({rule})" for (what, rule), values in alike.items()
        ]
    return "\n".join(lines)


def _beside_the_table(answer: pb.DiffPolicyResponse) -> list[str]:
    """Say what a set has that no question asks about: no difference may be taken for none."""
    lines = [
        f"{what}: {', '.join(ids)}"
        for what, ids in (("added", answer.added), ("removed", answer.removed))
        if ids
    ]
    if answer.before != answer.after:
        lines += [
            "not asked: parameters of memberships, grants, second factors, breaking the glass;",
            "  for these: sealward policy explain --policy FILE --parameter ROLE.NAME=VALUE …",
        ]
    return lines


def _parameters(items: Iterable[str]) -> dict[str, str]:
    found = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise usage("--parameter is ROLE.NAME=VALUE")
        found[name] = value
    return found


def _both(before: Sequence[str], after: Sequence[str]) -> str:
    if not before and not after:
        return ""
    return " -> ".join(", ".join(names) or "none" for names in (before, after))


def _bundle(found: pb.PolicyBundle) -> dict[str, Any]:
    return {
        "version": found.version, "digest": found.digest, "text": found.text,
        "jws": json.loads(found.jws) if found.jws else None, "proposed_by": found.proposed_by,
        "approved_by": found.approved_by, "time": found.time,
    }  # fmt: skip


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise usage(f"{file} cannot be read as text") from None


def _time(seconds: int) -> str:
    return (
        dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds") if seconds else ""
    )
