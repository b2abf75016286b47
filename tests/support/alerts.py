"""The alert rules as they are committed, and which metrics there are."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
RULES = ROOT / "docs/runbooks/alerts.yaml"
_HISTOGRAM = ("_bucket", "_sum", "_count")


def rules() -> dict[str, dict[str, Any]]:
    """Return the rules by alert name."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    found = [rule for group in groups for rule in group["rules"]]
    by_name = {rule["alert"]: rule for rule in found}
    assert len(by_name) == len(found)
    return by_name


def reference_tool() -> ModuleType:
    """Return tools/gen_reference.py as a module."""
    spec = importlib.util.spec_from_file_location("gen_reference", ROOT / "tools/gen_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def series(heading: str = "") -> set[str]:
    """Return the names of all series, or of those under headings that begin so."""
    tool = reference_tool()
    names = set()
    for title, register in tool.METRICS:
        if title.startswith(heading):
            for name, kind, _, _ in tool.metric_rows(register):
                names |= {name + end for end in _HISTOGRAM} if kind == "histogram" else {name}
    return names


def named_in(expression: str) -> set[str]:
    """Return the metrics that an expression names, ours and Prometheus' own `up`."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}', "", expression)
    return set(re.findall(r"\b(?:sealward_\w+|up)\b", bare))
