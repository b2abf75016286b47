"""The part of a query for the index that every SQL backend has in common."""

from __future__ import annotations

from services.audit.index import Query

Value = str | int | bytes


def where(query: Query, mark: str = "?") -> tuple[str, list[Value]]:
    """Return the WHERE clause (or "") and its values; `mark` is how the driver marks a value."""
    terms: list[str] = []
    values: list[Value] = []
    # `!= ''` lets the planner use the partial indexes.
    for column, wanted in (
        ("patient", query.patient),
        ("actor", query.user),
        ("model", query.model),
        ("session", query.session),
        ("producer", query.producer),
        ("instance", query.instance),
        ("purpose", query.purpose),
        ("reason", query.reason),
    ):
        if wanted is not None:
            terms.append(f"{column} = ? AND {column} != ''")
            values.append(wanted)
    if query.outcome is not None:
        terms.append("outcome = ?" if query.outcome == "ok" else "outcome = ? AND outcome != 'ok'")
        values.append(query.outcome)
    if query.trace_id is not None:
        terms.append("trace_id = ?")
        values.append(query.trace_id)
    if query.type is not None:
        if query.type.endswith("."):
            terms.append("substr(type, 1, ?) = ?")
            values += [len(query.type), query.type]
        else:
            terms.append("type = ?")
            values.append(query.type)
    if query.break_glass:
        terms.append("break_glass")
    for term, number, wanted_if in (
        ("time >= ?", query.since, query.since > 0),
        ("time < ?", query.until, query.until > 0),
        ("idx < ?", query.before_index, query.before_index > 0),
        ("idx > ?", query.after_index, query.after_index >= 0),
    ):
        if wanted_if:
            terms.append(term)
            values.append(number)
    clause = f"WHERE {' AND '.join(terms)}" if terms else ""
    return clause.replace("?", mark), values
