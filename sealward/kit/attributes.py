"""Names of the `sealward.*` span attributes, and the allow-list that exporter and audit apply.

An attribute that is not listed here never leaves a process. There is none for payloads, free text,
exception messages or patient identifiers in clear.
"""

from __future__ import annotations

EVENT_TYPE = "sealward.event.type"
EVENT_ID = "sealward.event.id"
OUTCOME = "sealward.outcome"
CODE = "sealward.code"
REASON = "sealward.reason"
ACTOR_ID = "sealward.actor.id"
ACTOR_KIND = "sealward.actor.kind"
ACTOR_ROLES = "sealward.actor.roles"
ACTOR_CERT = "sealward.actor.cert"
SESSION_ID = "sealward.session.id"
PURPOSE = "sealward.purpose"
BREAK_GLASS = "sealward.break_glass"
BREAK_GLASS_REASON = "sealward.break_glass.reason"
PATIENT = "sealward.patient"
MODEL_NAME = "sealward.model.name"
MODEL_VERSION = "sealward.model.version"
MODEL_DIGEST = "sealward.model.digest"
INPUT_DIGEST = "sealward.input.digest"
OUTPUT_DIGEST = "sealward.output.digest"
ROWS = "sealward.rows"
INPUTS_DROPPED = "sealward.inputs.dropped"
"""How many inputs of the request the model does not declare; it was not given them."""
INPUTS_DROPPED_NAMES = "sealward.inputs.dropped.names"
"""Those of their names that are of a fixed list (services/inference/undeclared.py)."""
OUTPUTS_WITHHELD = "sealward.outputs.withheld"
"""How many outputs of the model were not released to this role."""
OUTPUTS_WITHHELD_NAMES = "sealward.outputs.withheld.names"
"""Their names, which are the model's own, as far as there is room."""
BATCH_SIZE = "sealward.batch.size"
BATCH_POSITION = "sealward.batch.position"
DATA_CATEGORY = "sealward.data.category"
DATA_ORIGIN = "sealward.data.origin"
ORGANIZATION = "sealward.organization"
POLICY_ID = "sealward.policy.id"
POLICY_DIGEST = "sealward.policy.digest"
CALLER_SEQ = "sealward.caller.seq"
RUNTIME_DIGEST = "sealward.runtime.digest"
DETERMINISM = "sealward.determinism"
PRODUCER_ID = "sealward.producer.id"
PRODUCER_SEQ = "sealward.producer.seq"
PRODUCER_INSTANCE = "sealward.producer.instance"
"""Which run of the producer numbers its events: hex digits, new when the numbers begin again."""
TARGET = "sealward.target"
"""What a control call acted on: a user name, a session id, a key's purpose. Never a patient."""
COUNT = "sealward.count"
"""How many things a control call acted on, or how many events a summary stands for."""
CHANGE_BEFORE = "sealward.change.before"
"""What was in force before a change: SHA-256 of a policy set, hexadecimal, or a user's roles."""
CHANGE_AFTER = "sealward.change.after"
"""What is in force after it, in the same form."""
REVOCATION_REASON = "sealward.revocation.reason"
"""Why a certificate was revoked: `key-compromise`, `privilege-withdrawn` and the like."""
VERDICT = "sealward.review.verdict"
"""What a reviewer decided of an event: `justified`, `not-justified` or `escalated`."""
CLOCK_SOURCE = "sealward.clock.source"
CLOCK_SYNCHRONISED = "sealward.clock.synchronised"
"""Whether the kernel says that the clock is kept in step: `yes`, `no` or `unknown`."""
CLOCK_OFFSET = "sealward.clock.offset_us"
CLOCK_ERROR = "sealward.clock.error_us"
METHOD = "rpc.method"
SERVICE_NAME = "service.name"

# Only audit writes these: the reference goes inside the sealed span, the pseudonym into the index.
PATIENT_REFERENCE = "sealward.patient.reference"
# The reference under the patient's own key, and what stands there once that was destroyed.
PATIENT_SEALED = "sealward.patient.sealed"
PATIENT_DESTROYED = "sealward.patient.destroyed"
AUDIT_ONLY = frozenset(
    {
        PATIENT, PATIENT_REFERENCE, PATIENT_SEALED, PATIENT_DESTROYED, INPUT_DIGEST, OUTPUT_DIGEST,
    }
)  # fmt: skip

ALLOWED = frozenset(
    {
        EVENT_TYPE, EVENT_ID, OUTCOME, CODE, REASON, ACTOR_ID, ACTOR_KIND, ACTOR_ROLES, ACTOR_CERT,
        SESSION_ID, PURPOSE, BREAK_GLASS, BREAK_GLASS_REASON, MODEL_NAME, MODEL_VERSION,
        MODEL_DIGEST, INPUTS_DROPPED, INPUTS_DROPPED_NAMES, OUTPUTS_WITHHELD,
        OUTPUTS_WITHHELD_NAMES, ROWS, BATCH_SIZE, BATCH_POSITION, DATA_CATEGORY, DATA_ORIGIN,
        ORGANIZATION,
        POLICY_ID, POLICY_DIGEST, CALLER_SEQ, RUNTIME_DIGEST, DETERMINISM, PRODUCER_ID,
        PRODUCER_SEQ, PRODUCER_INSTANCE, TARGET, COUNT, VERDICT, CHANGE_BEFORE, CHANGE_AFTER,
        REVOCATION_REASON,
        CLOCK_SOURCE, CLOCK_SYNCHRONISED, CLOCK_OFFSET, CLOCK_ERROR, METHOD, SERVICE_NAME,
    }
)  # fmt: skip
"""What a producer may send."""

WORDS = frozenset(
    {
        DATA_CATEGORY, DATA_ORIGIN, METHOD, MODEL_VERSION, ORGANIZATION, PRODUCER_INSTANCE,
        SERVICE_NAME,
    }
)  # fmt: skip
"""What a workload may send too and is a text: one word of printable ASCII. Its spans come from
programs that nobody here wrote, and a sentence may be about a patient."""

NUMBERS = frozenset({CALLER_SEQ, PRODUCER_SEQ, ROWS})
"""What a workload may send too and is a number."""

OUTCOMES = ("ok", "denied", "failed")

EVENT_TYPES = frozenset(
    {
        "inference.predict", "inference.run", "model.load", "model.metadata", "model.ready",
        "server.metadata",
        "session.login", "session.logout", "session.list", "session.revoke",
        "session.break-glass", "session.step-up", "session.token",
        "client.register", "client.list", "client.rotate", "client.disable", "session.oidc-begin",
        "session.oidc", "identity.link", "identity.unlink", "identity.list",
        "factor.list", "factor.begin", "factor.challenge",
        "factor.confirm", "factor.recovery", "factor.remove", "factor.reset",
        "session.denied-summary", "access.request", "access.list",
        "access.approve", "access.deny", "access.revoke", "access.review",
        "policy.change", "policy.diff",
        "policy.explain", "membership.set", "membership.list",
        "quota.list", "deid.draw", "deid.reidentify", "deid.list", "deid.drop",
        "policy.propose", "policy.read", "policy.reject", "policy.shadow", "policy.test",
        "user.create", "user.disable", "user.list", "user.certificate", "user.roles",
        "user.unlock",
        "user.password", "session.watch", "session.cut",
        "log.consistency", "log.receipt", "access.denied", "audit.query", "audit.read",
        "audit.conflict", "audit.start", "audit.gap", "audit.clock", "audit.report", "audit.export",
        "audit.reconcile", "audit.reindex", "audit.review", "audit.hold", "audit.release",
        "audit.freeze", "audit.archive", "audit.suspend", "audit.purge", "audit.logs", "log.key",
        "log.successor", "log.final", "keys.keystore-create", "keys.branch-create",
        "audit.fork", "witness.create", "witness.log", "witness.key", "witness.conflict",
        "witness.forget",
        "keys.branch-open", "keys.certificate", "keys.rotate", "keys.rewrap", "keys.rewrap-confirm",
        "keys.revoke", "keys.provider", "keys.join-token", "keys.join",
        "keys.backup", "keys.restore", "keys.drill", "keys.unlock-change",
        "keys.rewrap-pass", "keys.retire", "keys.destroy-request", "keys.destroy-approve",
        "keys.destroy-cancel", "keys.destroy-list", "keys.destroy-blocked", "keys.destroy",
        "keys.destroyed", "audit.destroy-permit", "audit.patient-name", "audit.patient-destroy",
        "keys.ca-rotate", "keys.ca-announce", "keys.ca-adopt",
        "check.report",
        "keys.ca-drop", "keys.certificates-renew", "otel.span", "service.start", "service.stop",
    }
)  # fmt: skip
"""Stable codes of event types."""
