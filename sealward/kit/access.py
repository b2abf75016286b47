"""Which identity may call which RPC: one table, checked by every service.

A method that is not in the table is refused, so a new RPC is closed until somebody decides.
Callers are `service/<name>`, `admin/<name>`, or the kinds `user` and `workload`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sealward.kit.identity import Identity

_CALLERS = frozenset({"user", "workload"})
_ADMIN = frozenset({"admin/local"})
_PEOPLE = _CALLERS | _ADMIN
_GATEWAY = frozenset({"service/gateway"})
_AUDIT = frozenset({"service/audit"})
_KEYS = frozenset({"service/keys"})
_SERVICES = frozenset({"service/gateway", "service/inference", "service/audit", "service/keys"})
_HOLDERS = _SERVICES - {"service/keys"}
_EVERYONE = _PEOPLE | _SERVICES

_DESTRUCTIONS = (
    "RequestDestruction", "ApproveDestruction", "CancelDestruction", "ListDestructions",
)  # fmt: skip


def _service(name: str, methods: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    return {f"/{name}/{method}": who for method, who in methods.items()}


RPCS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        **_service(
            "grpc.health.v1.Health", {"Check": _EVERYONE, "Watch": _EVERYONE, "List": _EVERYONE}
        ),
        # Registered in development mode only.
        **_service("grpc.reflection.v1alpha.ServerReflection", {"ServerReflectionInfo": _EVERYONE}),
        **_service(
            "inference.GRPCInferenceService",
            {
                "ServerLive": _PEOPLE,
                "ServerReady": _PEOPLE,
                "ModelReady": _PEOPLE,
                "ServerMetadata": _PEOPLE,
                "ModelMetadata": _PEOPLE,
                "ModelInfer": _CALLERS,
            },
        ),
        **_service(
            "sealward.api.gateway.v1.SessionService",
            {
                "Login": _CALLERS,
                "Logout": _CALLERS,
                "ListSessions": _PEOPLE,
                "RevokeSessions": _PEOPLE,
                "WatchSession": _CALLERS,
            },
        ),
        **_service(
            "sealward.api.gateway.v1.UserService",
            {
                "CreateUser": _PEOPLE,
                "DisableUser": _PEOPLE,
                "SetRoles": _PEOPLE,
                "UnlockUser": _PEOPLE,
                "ResetPassword": _PEOPLE,
                "ListUsers": _PEOPLE,
                "IssueUserCertificate": _PEOPLE,
            },
        ),
        **_service(
            "sealward.api.gateway.v1.FactorService",
            {
                "ListFactors": _CALLERS,
                "BeginTotp": _CALLERS,
                "ConfirmTotp": _CALLERS,
                "BeginWebauthn": _CALLERS,
                "ConfirmWebauthn": _CALLERS,
                "BeginAssertion": frozenset({"user"}),
                "RemoveWebauthn": _CALLERS,
                "NewRecoveryCodes": _CALLERS,
                "RemoveFactors": _CALLERS,
                "ResetFactors": _PEOPLE,
                "StepUp": _CALLERS,
            },
        ),
        **_service(
            "sealward.api.gateway.v1.WorkloadService",
            {
                "IssueToken": frozenset({"workload"}),
                "RegisterClient": _PEOPLE,
                "ListClients": _PEOPLE,
                "RotateClientKeys": _PEOPLE,
                "DisableClient": _PEOPLE,
            },
        ),
        **_service(
            "sealward.api.gateway.v1.OidcService",
            {
                "BeginOidcLogin": frozenset({"user"}),
                "FinishOidcLogin": frozenset({"user"}),
                "LinkIdentity": _PEOPLE,
                "UnlinkIdentity": _PEOPLE,
                "ListIdentities": _PEOPLE,
            },
        ),
        **_service(
            "sealward.api.gateway.v1.AccessService",
            {
                "RequestAccess": _CALLERS,
                "ListAccess": _PEOPLE,
                "ApproveAccess": _PEOPLE,
                "DenyAccess": _PEOPLE,
                "RevokeAccess": _PEOPLE,
                "BreakGlass": _CALLERS,
            },
        ),
        **_service(
            "sealward.api.gateway.v1.MembershipService",
            {"SetMembership": _PEOPLE, "ListMemberships": _PEOPLE},
        ),
        **_service("sealward.api.gateway.v1.QuotaService", {"ListQuotas": _PEOPLE}),
        **_service("sealward.api.gateway.v1.AccessReviewService", {"ReviewAccess": _PEOPLE}),
        **_service(
            "sealward.api.gateway.v1.DeidService",
            {
                "DrawCodes": _PEOPLE,
                # A person with a session: not the administrator of the machine.
                "Reidentify": _CALLERS,
                "ListProjects": _PEOPLE,
                "DropProject": _PEOPLE,
            },
        ),
        **_service(
            "sealward.api.gateway.v1.PolicyService",
            dict.fromkeys(
                (
                    "GetPolicy",
                    "ListPolicies",
                    "ProposePolicy",
                    "ApprovePolicy",
                    "RejectPolicy",
                    "ExplainPolicy",
                    "TestPolicy",
                    "DiffPolicy",
                    "SetShadowPolicy",
                    "GetShadowPolicy",
                ),
                _PEOPLE,
            ),
        ),
        **_service(
            "sealward.api.gateway.v1.DestructionService",
            dict.fromkeys(_DESTRUCTIONS, _PEOPLE),
        ),
        **_service(
            "sealward.api.gateway.v1.LogService",
            {"GetConsistency": _PEOPLE, "GetReceipt": _PEOPLE},
        ),
        **_service(
            "sealward.api.inference.v1.InferenceService",
            {"Infer": _GATEWAY, "ListModels": _GATEWAY | _ADMIN},
        ),
        **_service(
            "sealward.api.audit.v1.AuditService",
            {
                "Append": _SERVICES,
                "GetReceipt": _GATEWAY | _ADMIN,
                "GetConsistency": _GATEWAY | _ADMIN,
                "QueryEvents": _GATEWAY | _ADMIN,
                "GetEvent": _GATEWAY | _ADMIN,
            },
        ),
        **_service("sealward.api.audit.v1.AttestService", {"AttestReport": _ADMIN}),
        **_service("sealward.api.audit.v1.ExportService", {"ExportEvents": _ADMIN}),
        **_service("sealward.api.audit.v1.ReconcileService", {"ReadTrail": _ADMIN}),
        **_service(
            "sealward.api.audit.v1.LogAdminService",
            dict.fromkeys(
                (
                    "ListLogs",
                    "Freeze",
                    "RotateLogKey",
                    "Archive",
                    "Purge",
                    "PlaceHold",
                    "ReleaseHold",
                    "ListHolds",
                    "Reindex",
                ),
                _ADMIN,
            ),
        ),
        **_service(
            "sealward.api.audit.v1.ReviewService",
            {
                "ReportDisclosures": _ADMIN,
                "SuspendAccounting": _ADMIN,
                "ListBreakGlass": _ADMIN,
                "SignOff": _ADMIN,
                "ListBursts": _ADMIN,
                "ListActivity": _ADMIN,
                "ListUse": _GATEWAY | _ADMIN,
            },
        ),
        **_service("sealward.api.audit.v1.CosigningService", {"GetCosigning": _ADMIN}),
        **_service(
            "sealward.api.audit.v1.DestructionService",
            {"PermitDestruction": _KEYS, "NamePatient": _ADMIN, "DestroyPatient": _KEYS},
        ),
        **_service(
            "opentelemetry.proto.collector.trace.v1.TraceService",
            {"Export": _SERVICES | {"workload"}},
        ),
        **_service(
            "sealward.api.keys.v1.KeysService",
            {
                "CreateBranchKey": _SERVICES,
                "OpenBranchKey": _SERVICES,
                "IssueCertificate": _SERVICES,
                "GetTrustBundle": _SERVICES,
                "GetStatus": _SERVICES | _ADMIN,
            },
        ),
        **_service(
            "sealward.api.keys.v1.WitnessService",
            {
                "AddCheckpoint": _AUDIT,
                "AddLog": _AUDIT,
                "GetWitness": _AUDIT | _ADMIN,
                "ForgetLog": _ADMIN,
            },
        ),
        **_service(
            "sealward.api.keys.v1.RotationService",
            {
                "ListKeys": _HOLDERS | _ADMIN,
                "RotateKey": _ADMIN,
                "RewrapKeys": _HOLDERS,
                "ConfirmRewrap": _HOLDERS,
                "RetireKey": _ADMIN,
            },
        ),
        **_service(
            "sealward.api.keys.v1.AuthorityService",
            dict.fromkeys(("GetAuthority", "RotateAuthority", "RenewCertificates"), _ADMIN),
        ),
        **_service(
            "sealward.api.keys.v1.DestructionService",
            dict.fromkeys(_DESTRUCTIONS, _ADMIN | _GATEWAY),
        ),
        **_service("sealward.api.common.v1.HolderService", {"Rewrap": _ADMIN | _KEYS}),
        **_service(
            "sealward.api.keys.v1.TrustService",
            {
                "WatchRevocations": _SERVICES,
                # The gateway revokes those of the users that it disables, and no others.
                "Revoke": _ADMIN | _GATEWAY,
                "ListCertificates": _ADMIN,
                "CreateJoinToken": _ADMIN,
            },
        ),
        **_service(
            "sealward.api.keys.v1.BackupService",
            dict.fromkeys(
                ("CreateBackup", "ConfirmBackup", "RecordDrill", "GetBackupState"), _ADMIN
            ),
        ),
        # Who calls it has no certificate yet: it is served on a listener of its own.
        **_service("sealward.api.keys.v1.EnrollService", {"Enroll": frozenset()}),
    }
)

OPEN = frozenset(
    {
        "ServerLive", "ServerReady", "Login", "IssueToken", "BeginOidcLogin", "FinishOidcLogin",
        "BeginAssertion",
    }
)  # fmt: skip
"""RPCs of the gateway before a session, by their short names: no policy decides about them."""


def allowed(identity: Identity, method: str) -> bool:
    """True when this identity may call this method (full name with its leading slash)."""
    return identity.role in RPCS.get(method, ())
