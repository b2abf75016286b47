"""Prometheus' own tool takes the alert rules, and each fires when it should and not before."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.alerts import RULES, rules

# Values a minute apart, as promtool writes them: what is quiet, and what fires after some time.
QUIET = "0x40"
FIRING: dict[str, dict[str, str]] = {
    "AuditAppendSlow": {
        'sealward_audit_append_seconds_bucket{instance="a",le="0.5"}': "0+90x40",
        'sealward_audit_append_seconds_bucket{instance="a",le="1.0"}': "0+100x40",
        'sealward_audit_append_seconds_bucket{instance="a",le="+Inf"}': "0+100x40",
    },
    "AuditQueueFull": {
        "sealward_audit_waiting_entries": "4000x40",
        "sealward_audit_waiting_limit_entries": "4096x40",
    },
    "AuditStreamHeld": {"sealward_audit_held_streams": "1x40"},
    "AuditUnpublished": {"sealward_audit_unpublished_seconds": "0+60x40"},
    "AuditGap": {"sealward_audit_gaps_total": "0x20 1x20"},
    "AuditDiskFull": {"sealward_audit_disk_full": "1x40"},
    "AuditDown": {'up{job="sealward-audit"}': "0x40"},
    "AuditRestarting": {
        'sealward_start_time_seconds{job="sealward-audit"}': "100x28 101 102 103 103 103 103x10"
    },
    "AuditConflict": {"sealward_audit_conflicts_total": "0x20 1x20"},
    "AuditIndexStalled": {"sealward_audit_index_stalled_seconds": "0+60x40"},
    "AuditRefuses": {'sealward_audit_refused_total{reason="SPAN_INVALID"}': "0x30 2x10"},
    "AuditAttributesDropped": {"sealward_audit_attributes_dropped_total": "0x30 7x10"},
    "AuditLogNotTurned": {'sealward_audit_log_age_seconds{tenant="default"}': "31700000x120"},
    "AuditRetentionOver": {"sealward_audit_next_purge_seconds": "-5x40"},
    "SpoolOld": {"sealward_spool_oldest_seconds": "0+60x40"},
    "SpoolFilling": {
        "sealward_spool_records": "120000x40",
        "sealward_spool_capacity_records": "200000x40",
    },
    "SpoolLost": {"sealward_spool_lost_records_total": "0x30 1x10"},
    "SpoolRefused": {"sealward_spool_refused_records": "1x40"},
    "AuditUncosigned": {"sealward_audit_uncosigned_seconds": "0+60x40"},
    "AuditClock": {"sealward_audit_clock_synchronised": "0x120"},
    "AuthorityEnds": {"sealward_keys_authority_seconds": "7000000x40"},
    "AuthorityStuck": {'sealward_keys_authorities{state="next"}': "1x40"},
    "KeysBackupOld": {"sealward_keys_backup_age_seconds": "Inf " * 110},
    "KeysBackupBehind": {"sealward_keys_backup_behind": "2x120"},
    "KeysDrillOld": {"sealward_keys_drill_age_seconds": "3100000x120"},
    "DestructionBlocked": {"sealward_keys_destructions_blocked": "1x120"},
    "RevocationsOld": {"sealward_revocations_age_seconds": "0+60x40"},
    "KeysProviderAway": {
        'sealward_keys_provider_state{provider="vault",state="ready"}': "0x40",
        'sealward_keys_provider_state{provider="vault",state="degraded"}': "1x40",
    },
    "LoginsLocked": {'sealward_gateway_lockouts_total{kind="user"}': "0x30 1x10"},
    "KeysVaultRenewalsFail": {"sealward_keys_vault_failed_renewals": "0x30 2x10"},
}
CALM: dict[str, str] = {
    'sealward_audit_append_seconds_bucket{instance="a",le="0.5"}': "0+100x120",
    'sealward_audit_append_seconds_bucket{instance="a",le="1.0"}': "0+100x120",
    'sealward_audit_append_seconds_bucket{instance="a",le="+Inf"}': "0+100x120",
    "sealward_audit_waiting_entries": "100x120",
    "sealward_audit_waiting_limit_entries": "4096x120",
    "sealward_audit_held_streams": "0 1 0 1 0x116",
    "sealward_audit_unpublished_seconds": "0.1x120",
    "sealward_audit_gaps_total": "3x120",
    "sealward_audit_disk_full": "0x120",
    'up{job="sealward-audit"}': "1x120",
    'sealward_ready{job="sealward-audit"}': "1x120",
    'sealward_start_time_seconds{job="sealward-audit"}': "100x60 200x59",
    "sealward_audit_conflicts_total": "2x120",
    "sealward_audit_index_stalled_seconds": "0 3 0x118",
    'sealward_audit_refused_total{reason="AUDIT_UNAVAILABLE"}': "0+3x120",
    'sealward_audit_refused_total{reason="FIELD_INVALID"}': "0x120",
    "sealward_audit_attributes_dropped_total": "9x120",
    'sealward_audit_log_age_seconds{tenant="default"}': "30000000x120",
    "sealward_audit_next_purge_seconds": "100000x120",
    "sealward_spool_oldest_seconds": "0 200 0 200 0x116",
    "sealward_spool_records": "10x120",
    "sealward_spool_capacity_records": "200000x120",
    "sealward_spool_lost_records_total": "0x120",
    "sealward_spool_refused_records": "0x120",
    "sealward_audit_uncosigned_seconds": "3 130 3x118",
    "sealward_audit_clock_synchronised": "1 0x10 1x109",
    "sealward_keys_authority_seconds": "9000000x120",
    'sealward_keys_authorities{state="next"}': "0x120",
    "sealward_keys_backup_age_seconds": "90000x120",
    "sealward_keys_backup_behind": "0x20 1x40 0x60",
    "sealward_keys_drill_age_seconds": "2000000x120",
    "sealward_keys_destructions_blocked": "0x20 1x40 0x60",
    "sealward_revocations_age_seconds": "5 70 5x118",
    'sealward_keys_provider_state{provider="vault",state="ready"}': "1 0 1x118",
    'sealward_keys_provider_state{provider="vault",state="degraded"}': "0 1 0x118",
    "sealward_keys_vault_failed_renewals": "3x120",
}


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed: the alert rules were not tried (.ci/run gets it)")
    return found


def tried(promtool: str, folder: Path, tests: list[dict[str, object]]) -> str:
    """Return what promtool found wrong, empty for nothing."""
    file = folder / "tests.yaml"
    # JSON is YAML.
    file.write_text(json.dumps({"rule_files": [str(RULES)], "tests": tests}))
    done = subprocess.run(
        [promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False,
        timeout=60, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    return "" if done.returncode == 0 else done.stdout + done.stderr


def case(values: dict[str, str], alarm: str, minutes: int, fires: int) -> dict[str, object]:
    expression = f'count(ALERTS{{alertname="{alarm}",alertstate="firing"}}) or vector(0)'
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": text} for name, text in values.items()],
        "promql_expr_test": [
            {
                "expr": expression,
                "eval_time": f"{minutes}m",
                "exp_samples": [{"labels": "{}", "value": fires}],
            }
        ],
    }


def test_promtool_takes_the_rules(promtool: str) -> None:
    done = subprocess.run(
        [promtool, "check", "rules", str(RULES)], capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alarm_fires(promtool: str, tmp_path: Path) -> None:
    assert set(FIRING) == set(rules())
    late = dict.fromkeys(
        (
            "AuditClock", "AuditLogNotTurned", "KeysBackupOld", "KeysBackupBehind", "KeysDrillOld",
            "DestructionBlocked",
        ),
        100,
    )  # fmt: skip
    cases = [case(v, alarm, late.get(alarm, 35), 1) for alarm, v in FIRING.items()]
    assert tried(promtool, tmp_path, cases) == ""


def test_none_fires_while_all_is_well(promtool: str, tmp_path: Path) -> None:
    cases = [case(CALM, alarm, minutes, 0) for alarm in FIRING for minutes in (5, 40, 110)]
    assert tried(promtool, tmp_path, cases) == ""


def test_the_judge_can_say_no(promtool: str, tmp_path: Path) -> None:
    assert "FAILED" in tried(promtool, tmp_path, [case(CALM, "AuditDiskFull", 35, 1)])
