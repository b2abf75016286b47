"""Metrics of the audit service. Every name stands here."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sealward.kit.reasons import Reason

SPAN_INVALID = "SPAN_INVALID"
"""Stands among the reasons for an exported span that can never be recorded."""

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class AuditMetrics:
    """Counters of one process. No label carries an id."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.append_seconds = Histogram(
            "sealward_audit_append_seconds", "Time to make a batch durable, the fsync included",
            registry=registry, buckets=_SECONDS,
        )  # fmt: skip
        self.batch_entries = Histogram(
            "sealward_audit_batch_entries", "Entries in a batch", registry=registry, buckets=_SIZES
        )
        self.entries = Counter(
            "sealward_audit_entries", "Entries added to the log", registry=registry
        )
        self.repeated = Counter(
            "sealward_audit_repeated", "Entries that were in the log already", registry=registry
        )
        self.conflicts = Counter(
            "sealward_audit_conflicts", "Event ids that came again with other content",
            registry=registry,
        )  # fmt: skip
        self.refused = Counter(
            "sealward_audit_refused", "Entries refused, by reason", ["reason"], registry=registry
        )
        # A series that begins with its first event shows no increase to who watches it.
        for reason in (SPAN_INVALID, *(reason.name for reason in Reason)):
            self.refused.labels(reason)
        self.attributes_dropped = Counter(
            "sealward_audit_attributes_dropped", "Span attributes outside the allow-list",
            registry=registry,
        )  # fmt: skip
        self.denied_unrecorded = Counter(
            "sealward_audit_denied_summarised", "Refused calls that went into a summary",
            registry=registry,
        )  # fmt: skip
        self.waiting = Gauge(
            "sealward_audit_waiting_entries",
            "Exported spans and own events waiting for the log", registry=registry,
        )  # fmt: skip
        self.waiting_limit = Gauge(
            "sealward_audit_waiting_limit_entries",
            "How many may wait; above it callers are refused", registry=registry,
        )  # fmt: skip
        self.append_waiting = Gauge(
            "sealward_audit_append_waiting_entries",
            "Entries of calls in flight waiting for the log", registry=registry,
        )  # fmt: skip
        self.held_streams = Gauge(
            "sealward_audit_held_streams",
            "Append streams that are read no further until their answers are taken",
            registry=registry,
        )
        self.size = Gauge("sealward_audit_log_size", "Entries in the log", registry=registry)
        self.published_size = Gauge(
            "sealward_audit_published_size", "Entries under the published checkpoint",
            registry=registry,
        )  # fmt: skip
        self.published_time = Gauge(
            "sealward_audit_published_time_seconds", "When the checkpoint was last published",
            registry=registry,
        )  # fmt: skip
        self.unpublished = Gauge(
            "sealward_audit_unpublished_seconds",
            "How long entries have waited to be published; 0 when all are",
            registry=registry,
        )
        self.index_behind = Gauge(
            "sealward_audit_index_behind_entries", "Entries that the index lacks", registry=registry
        )
        self.index_stalled = Gauge(
            "sealward_audit_index_stalled_seconds",
            "How long the index has lacked entries without a step forward; 0 when it lacks none",
            registry=registry,
        )
        self.log_age = Gauge(
            "sealward_audit_log_age_seconds", "Age of the log that grows", ["tenant"],
            registry=registry,
        )  # fmt: skip
        self.logs = Gauge("sealward_audit_logs", "Logs, by state", ["state"], registry=registry)
        self.next_purge = Gauge(
            "sealward_audit_next_purge_seconds",
            "Time until a log's retention is over; negative when it is, infinite for none",
            registry=registry,
        )
        self.gaps = Counter(
            "sealward_audit_gaps", "Holes in the numbers of producers that stayed open",
            registry=registry,
        )  # fmt: skip
        self.missing = Gauge(
            "sealward_audit_missing_events", "Numbers of producers that never came",
            registry=registry,
        )  # fmt: skip
        self.cosigned_size = Gauge(
            "sealward_audit_cosigned_size",
            "Entries under the newest checkpoint that satisfies the witness policy",
            registry=registry,
        )
        self.cosigned_time = Gauge(
            "sealward_audit_cosigned_time_seconds", "When that checkpoint was cosigned",
            registry=registry,
        )  # fmt: skip
        self.uncosigned = Gauge(
            "sealward_audit_uncosigned_seconds",
            "How long entries have waited to be cosigned; 0 when all are",
            registry=registry,
        )
        self.witness_failures = Counter(
            "sealward_audit_witness_failures", "Requests that a witness did not cosign",
            ["witness"], registry=registry,
        )  # fmt: skip
        self.clock_synchronised = Gauge(
            "sealward_audit_clock_synchronised",
            "1 when the kernel says that the clock is kept in step, 0 when not or unknown",
            registry=registry,
        )
        self.clock_offset = Gauge(
            "sealward_audit_clock_offset_seconds", "Offset of the clock, by the kernel's estimate",
            registry=registry,
        )  # fmt: skip
        self.clock_error = Gauge(
            "sealward_audit_clock_error_seconds", "Largest error of the clock, by the kernel",
            registry=registry,
        )  # fmt: skip
        self.full = Gauge(
            "sealward_audit_disk_full", "1 while the disk takes nothing", registry=registry
        )
