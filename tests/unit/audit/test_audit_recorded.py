"""Whoever asks the audit service something is in its log: no call is left out unnoticed."""

from __future__ import annotations

from sealward.kit.access import RPCS
from services.audit import events

# What they bring is itself what is recorded.
ENTRIES = {
    "/sealward.api.audit.v1.AuditService/Append",
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
}
# Tells how far the log is cosigned, nothing of an event. An entry for each look would make the log
# longer than what was cosigned, so that who waits for cosignatures would never see the end.
TELLS_NOTHING = {"/sealward.api.audit.v1.CosigningService/GetCosigning"}


def test_every_call_of_the_audit_service_is_recorded() -> None:
    served = {m for m in RPCS if m.startswith("/sealward.api.audit.")} | ENTRIES
    recorded = events._TYPES.keys() | events._CHANGES.keys()
    assert served - recorded == ENTRIES | TELLS_NOTHING
    assert not events._TYPES.keys() & events._CHANGES.keys()
    # Also the one that every holder of keys serves; nothing that nobody serves.
    assert recorded - served == {"/sealward.api.common.v1.HolderService/Rewrap"}


def test_what_is_left_to_the_gateway_is_read_by_nobody_else_unrecorded() -> None:
    left = {m for m, kind in events._TYPES.items() if kind in events._RECORDED_BY_GATEWAY}
    assert {m.rpartition("/")[2] for m in left} == {"GetReceipt", "GetConsistency"}
    # The gateway serves, and records, the calls by which these are asked.
    assert all(f"/sealward.api.gateway.v1.LogService/{m.rpartition('/')[2]}" in RPCS for m in left)
