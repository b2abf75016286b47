"""`sealward infer`: one prediction, printed after its receipt was verified."""

from __future__ import annotations

import base64
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from sealward.cli.errors import CliError, Exit, unreadable, usage
from sealward.cli.options import DEFAULT, Dir, Json, User
from sealward.cli.output import check_writable, emit
from sealward.cli.suite import Suite

if TYPE_CHECKING:
    from sealward.client.errors import ClientError
    from sealward.client.verify import Proof

_LARGEST_INPUT = 256 << 20
# The same advice for emergency access that is over as for none: a login opens no other.
_AGAIN = "sealward access break-glass --user {} --patient REFERENCE --reason CODE"
_OVER = frozenset({"SESSION_INVALID", "SESSION_EXPIRED"})


def infer(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model name.")],
    user: User,
    input_file: Annotated[
        Path,
        typer.Option("--input", metavar="FILE", help="Open Inference Protocol JSON; - is stdin."),
    ],
    version: Annotated[str, typer.Option("--version", help="Model version.")] = "",
    purpose: Annotated[
        str, typer.Option("--purpose", help="HL7 v3 PurposeOfUse code; else the role's.")
    ] = "",
    patient: Annotated[
        str, typer.Option("--patient", help="Patient reference; stored sealed.")
    ] = "",
    timeout: Annotated[
        float, typer.Option("--timeout", min=0, help="Seconds; 0 is the model's own.")
    ] = 0.0,
    receipt_file: Annotated[
        Path | None, typer.Option("--receipt", metavar="FILE", help="Write the receipt here.")
    ] = None,
    break_glass: Annotated[
        bool, typer.Option("--break-glass", help="Under emergency access; see sealward access.")
    ] = False,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Ask a model as a logged-in user; print the answer, its event and its receipt."""
    suite = Suite.at(directory)
    if receipt_file is not None:
        # Before the call: its receipt cannot be had a second time.
        check_writable(receipt_file)
    result = predict(
        suite,
        user,
        model,
        _read(input_file),
        version=version,
        purpose=purpose or None,
        patient=patient or None,
        timeout=timeout or None,
        break_glass=break_glass,
    )
    if receipt_file is not None:
        receipt_file.write_bytes(base64.b64decode(result["receipt"]))
    emit(result, as_json=as_json, text=_text(result))


def predict(
    suite: Suite,
    user: str,
    model: str,
    text: str,
    *,
    version: str = "",
    purpose: str | None = None,
    patient: str | None = None,
    timeout: float | None = None,
    break_glass: bool = False,
) -> dict[str, Any]:
    """Ask a model; return protocol JSON with `event_id`, `log_index` and `receipt` (base64).

    Raise CliError; a refusal's own event and receipt are in its details.
    """
    from sealward.api.oip.v2.open_inference_pb2 import ModelInferResponse
    from sealward.cli.oip_json import request_from_json, response_to_json

    suite.require_running()
    request = request_from_json(model, text, version).SerializeToString()
    with Caller(suite, user, token=_emergency(suite, user) if break_glass else "") as caller:
        try:
            answer = caller.ask(request, purpose=purpose, patient=patient, timeout=timeout)
        except CliError as error:
            if break_glass and error.details.get("reason") in _OVER:
                error.advice = _AGAIN.format(user)
            raise
    return {
        **response_to_json(ModelInferResponse.FromString(answer.response)),
        "event_id": answer.proof.event_id,
        "log_index": answer.proof.log_index,
        "receipt": base64.b64encode(answer.proof.receipt).decode("ascii"),
    }


@dataclass(frozen=True, slots=True)
class Answer:
    """A prediction as it went over the wire, with its verified receipt."""

    request: bytes
    response: bytes
    proof: Proof


class Caller:
    """Carries serialised requests of a logged-in user. Use it as a context manager.

    It takes requests as they are, so that wrong ones reach the service, which records them; the
    client library would refuse to build them. `consistency_seconds` is how long checkpoints may
    wait before it is proven that the log only grew; leaving the block proves it. Errors are
    CliErrors.
    """

    def __init__(
        self, suite: Suite, user: str, *, consistency_seconds: float = 0.0, token: str = ""
    ) -> None:
        """Open the profile of a user; `token` is for another session than the profile keeps."""
        from sealward.cli.connect import user_folder
        from sealward.client.connection import Connection, open_channel
        from sealward.client.core import Core
        from sealward.client.errors import ClientError
        from sealward.client.guard import Guard
        from sealward.client.profile import Profile

        self._user = user
        try:
            profile = Profile.load(user_folder(suite, user))
            self._core = Core(profile, consistency_seconds)
            if token:
                self._core.use_token(token)
            self._connection = Connection(open_channel(profile, profile.material()))
        except ClientError as error:
            raise client_error(error, user) from None
        self._guard = Guard(self._core, self._connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        from sealward.client.errors import ClientError

        try:
            if kind is None:
                self._guard.settle()
        except ClientError as error:
            raise client_error(error, self._user) from None
        finally:
            self._connection.close()
            self._core.calls.close()

    def ask(
        self,
        request: bytes,
        *,
        purpose: str | None = None,
        patient: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Make one call and verify its receipt; raise CliError."""
        from sealward.client.core import INFER
        from sealward.client.errors import ClientError

        try:
            with self._core.call(purpose, patient) as call:
                reply = self._connection.unary(INFER, request, call.metadata, timeout)
                proof = self._guard.answered(request, reply)
                call.listed.answered(proof)
            return Answer(request, reply.body, proof)
        except ClientError as error:
            raise client_error(error, self._user) from None
        except ValueError as error:
            # Raised for metadata that cannot travel; names the key alone.
            raise usage(str(error)) from None


def _emergency(suite: Suite, user: str) -> str:
    from sealward.cli.access import EMERGENCY_SESSION
    from sealward.cli.connect import user_folder

    try:
        return (user_folder(suite, user) / EMERGENCY_SESSION).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise CliError(
            f"{user} has no emergency access",
            advice=_AGAIN.format(user),
            reason="SESSION_MISSING",
        ) from None


def client_error(error: ClientError, user: str) -> CliError:
    """Turn an error of the client library into what the command prints."""
    from sealward.cli.rpc import ADVICE
    from sealward.client.errors import (
        CallError,
        NotLoggedInError,
        ProfileError,
        TrustError,
        UnavailableError,
    )

    match error:
        case CallError():
            message, advice = error.message, ADVICE.get(error.reason, "")
            if not error.reason and isinstance(error, UnavailableError):
                # The text is the transport's own: it names addresses.
                late = error.code.name == "DEADLINE_EXCEEDED"
                message = "no answer came in time" if late else "the gateway does not answer"
                advice = "sealward status"
            return CliError(
                message,
                advice=advice,
                code=Exit.UNAVAILABLE if isinstance(error, UnavailableError) else Exit.FAILED,
                status=error.code.name,
                reason=error.reason,
                field=error.field,
                incident=error.incident,
                event_id=error.event_id,
                log_index=error.log_index,
                receipt=base64.b64encode(error.receipt).decode("ascii") if error.receipt else None,
            )
        case NotLoggedInError():
            return CliError(
                str(error), advice=f"sealward login --user {user}", reason="SESSION_MISSING"
            )
        case ProfileError():
            return CliError(str(error), advice="see clients/ in the suite's folder")
        case TrustError():
            return CliError(
                str(error),
                advice="do not use the answer; keep the log and the client folder as they are",
                reason=type(error).__name__,
            )
    return CliError(str(error))


def _read(path: Path) -> str:
    try:
        if str(path) == "-":
            return sys.stdin.read(_LARGEST_INPUT)
        if path.stat().st_size > _LARGEST_INPUT:
            raise usage(f"{path} is too large")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from None


def _text(result: dict[str, Any]) -> str:
    lines = [
        f"{output['name']}  {output['datatype']} {output['shape']}  {_short(output['data'])}"
        for output in result["outputs"]
    ]
    said = result.get("parameters", {})
    if "sealward_outputs_withheld" in said:
        lines.append(f"withheld {said['sealward_outputs_withheld']}: this role may not see it")
    if "sealward_inputs_dropped" in said:
        lines.append(f"dropped  {said['sealward_inputs_dropped']} inputs that are not declared")
    lines.append(f"event    {result['event_id']}, entry {result['log_index']} of the log")
    lines.append("receipt  verified")
    return "\n".join(lines)


def _short(data: list[Any]) -> str:
    shown = ", ".join(f"{x:.6g}" if isinstance(x, float) else str(x) for x in data[:16])
    return f"{shown}, … ({len(data)} values)" if len(data) > 16 else shown
