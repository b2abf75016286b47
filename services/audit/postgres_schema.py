"""The tables of the PostgreSQL store, their versions, and the rights of the role that uses them.

`python -m services.audit.postgres_schema SCHEMA ROLE` prints what a database administrator runs so
that the service itself needs no right to create anything (docs/storage.md).
"""

from __future__ import annotations

import sys

import psycopg
from psycopg import sql

from sealward.kit.errors import StartupError
from services.audit.index import Row

VERSION = 2
_INTEGERS = ("time", "caller_seq", "producer_seq", "counted")
_TYPES = {
    **dict.fromkeys(_INTEGERS, "bigint"),
    **dict.fromkeys(("event_id", "trace_id", "span_id", "parent_id"), "bytea"),
    "break_glass": "boolean",
}  # fmt: skip
_COLUMNS = ",\n  ".join(f"{name} {_TYPES.get(name, 'text')} NOT NULL" for name in Row._fields)
# A row is a batch, as in sqlite_store.py. Sealed entries do not compress: EXTERNAL saves the try.
# `writer` is drawn by the process that writes; it and `epoch` are what fences an earlier one.
_STEPS = (
    f"""
CREATE TABLE logs (
  id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE,
  epoch bigint NOT NULL, writer bytea NOT NULL, size bigint NOT NULL, root bytea NOT NULL
);
CREATE TABLE batches (
  log integer NOT NULL REFERENCES logs, first bigint NOT NULL, count integer NOT NULL,
  hashes bytea NOT NULL, leaves bytea NOT NULL, PRIMARY KEY (log, first)
);
ALTER TABLE batches ALTER hashes SET STORAGE EXTERNAL, ALTER leaves SET STORAGE EXTERNAL;
CREATE TABLE ids (
  log integer NOT NULL, event_id bytea NOT NULL, idx bigint NOT NULL, fingerprint bytea NOT NULL,
  PRIMARY KEY (log, event_id)
);
CREATE TABLE meta (
  log integer NOT NULL REFERENCES logs, name text NOT NULL, value bytea NOT NULL,
  PRIMARY KEY (log, name)
);
CREATE TABLE index_state (
  log integer PRIMARY KEY REFERENCES logs, version integer NOT NULL, origin text NOT NULL,
  size bigint NOT NULL
);
CREATE TABLE events (
  log integer NOT NULL, idx bigint NOT NULL,
  {_COLUMNS},
  PRIMARY KEY (log, idx)
);
CREATE INDEX events_by_patient ON events (log, patient, idx) WHERE patient != '';
CREATE INDEX events_by_actor ON events (log, actor, idx) WHERE actor != '';
CREATE INDEX events_by_model ON events (log, model, idx) WHERE model != '';
CREATE INDEX events_by_refusal ON events (log, outcome, idx) WHERE outcome != 'ok';
CREATE INDEX events_by_break_glass ON events (log, idx) WHERE break_glass;
""",
    # A new schema has them from its first step; index_state tells who fills them.
    """
ALTER TABLE events
  ADD COLUMN IF NOT EXISTS span_id bytea NOT NULL DEFAULT '',
  ADD COLUMN IF NOT EXISTS parent_id bytea NOT NULL DEFAULT '';
""",
)
# What is in the log is never changed or removed: the role of the service could not if it wanted.
_GRANTS = """
GRANT USAGE ON SCHEMA {schema} TO {role};
GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role};
GRANT INSERT ON {schema}.logs, {schema}.batches, {schema}.ids TO {role};
GRANT UPDATE (name, epoch, writer, size, root) ON {schema}.logs TO {role};
GRANT INSERT, UPDATE, DELETE ON {schema}.meta TO {role};
GRANT INSERT, UPDATE ON {schema}.index_state TO {role};
GRANT INSERT, DELETE ON {schema}.events TO {role};
"""
_SERVER = """
SELECT current_setting('server_encoding'), current_setting('fsync'),
  current_setting('full_page_writes'), current_setting('data_sync_retry'),
  current_setting('server_version_num')::int >= 130000
"""
_SERVER_WANTED = ("UTF8", "on", "on", "off", True)


def check_server(db: psycopg.Connection) -> None:
    """Refuse a server that may lose what it said is stored; raise StartupError."""
    if db.execute(_SERVER).fetchone() != _SERVER_WANTED:
        raise StartupError(
            "the audit database must be PostgreSQL 13 or newer in UTF8, with fsync=on,"
            " full_page_writes=on and data_sync_retry=off"
        )


def prepare(db: psycopg.Connection, schema: str) -> None:
    """Make or migrate the tables where that is needed and allowed; raise StartupError.

    A schema that is up to date needs no right beyond those that `statements` grants.
    """
    version = _version(db, schema)
    if version == VERSION:
        return
    if version > VERSION:
        raise StartupError(f"the audit database is of a newer version ({version})")
    try:
        with db.transaction():
            # Two services that start at once do not make it twice.
            db.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 1))", (schema,))
            version = _version(db, schema)
            for statement in _upgrade(schema, version):
                db.execute(statement)
    except psycopg.errors.InsufficientPrivilege:
        raise StartupError(
            f"the audit database has no schema {schema} of version {VERSION} and this role may not"
            " make it: see docs/storage.md"
        ) from None


def statements(schema: str, role: str) -> str:
    """Return the SQL that makes a new schema and grants a role what the service needs of it."""
    names = {"schema": sql.Identifier(schema), "role": sql.Identifier(role)}
    grants = sql.SQL(_GRANTS).format(**names)
    parts = [part.as_string() for part in _upgrade(schema, 0)]
    return "\n".join(
        ["BEGIN;", *(f"{part.strip()};" for part in parts), grants.as_string(), "COMMIT;"]
    )


def _version(db: psycopg.Connection, schema: str) -> int:
    named = sql.SQL("{}.version").format(sql.Identifier(schema))
    found = db.execute("SELECT to_regclass(%s) IS NOT NULL", (named.as_string(),)).fetchone()
    if found is None or not found[0]:
        return 0
    row = db.execute(sql.SQL("SELECT max(version) FROM {}").format(named)).fetchone()
    return int(row[0] or 0) if row else 0


def _upgrade(schema: str, version: int) -> list[sql.Composed]:
    name = sql.Identifier(schema)
    parts = []
    if version == 0:
        parts += [
            sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(name),
            sql.SQL("CREATE TABLE {}.version (version integer PRIMARY KEY)").format(name),
        ]
    parts.append(sql.SQL("SET LOCAL search_path = {}").format(name))
    for number, step in enumerate(_STEPS[version:], version + 1):
        parts += [sql.SQL("{}").format(sql.SQL(part)) for part in step.split(";") if part.strip()]
        insert = "INSERT INTO {}.version VALUES ({})"
        parts.append(sql.SQL(insert).format(name, sql.Literal(number)))
    return parts


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m services.audit.postgres_schema SCHEMA ROLE")
    sys.stdout.write(statements(sys.argv[1], sys.argv[2]))
