"""What the PostgreSQL store refuses before it connects, and what it makes of errors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from sealward.kit.errors import StartupError
from services.audit.postgres_database import ConnectionLostError, _checked, failure, read_url
from services.audit.postgres_index import _escaped, _unescaped
from services.audit.postgres_schema import statements
from services.audit.store import StoreBrokenError, StoreFullError

SECRET = "s3cret-in-the-url"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("host=db user=sealward", "verify-full"),
        ("host=db sslmode=require", "verify-full"),
        ("host=db,/run/postgresql sslmode=verify-ca", "verify-full"),
        (f"postgresql://sealward:{SECRET}@db/audit?sslmode=prefer", "verify-full"),
        ("user=sealward", "name its host"),
        ("host=db,,c sslmode=verify-full", "name its host"),
        ("host=/run/postgresql hostaddr=10.0.0.1", "socket and an address"),
        ("host=db sslmode=verify-full options='-c synchronous_commit=off'", "may not set options"),
        ("service=audit host=/run", "may not set options"),
        (f"postgresql://sealward:{SECRET}", "libpq|name its host|verify-full"),
        (f"password={SECRET} nonsense", "libpq"),
    ],
)
def test_a_url_that_weakens_the_log_is_refused(url: str, said: str) -> None:
    with pytest.raises(StartupError, match=said) as refused:
        _checked(url, "audit")
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "host=a.example,b.example sslmode=verify-full sslrootcert=system",
        "postgresql://u:p@a.example:5433,b.example/audit?sslmode=verify-full",
        "host=/run/postgresql",
        "host=/a,/b",
    ],
)
def test_what_must_hold_is_added_to_the_url(url: str) -> None:
    made = conninfo_to_dict(_checked(url, "audit"))
    assert made["target_session_attrs"] == "read-write"
    assert "-c synchronous_commit=on " in str(made["options"])
    assert "-c search_path=audit " in str(made["options"])
    assert ("ssl_min_protocol_version" in made) == ("example" in url)


def test_the_file_of_the_url_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="is not set"):
        read_url(None)
    with pytest.raises(StartupError, match="cannot be read"):
        read_url(tmp_path / "none")
    (tmp_path / "url").write_text("host=/run/postgresql\n")
    assert read_url(tmp_path / "url") == "host=/run/postgresql"


def error_of(kind: type[psycopg.Error], state: str | None, severity: str) -> psycopg.Error:
    class Made(kind):  # type: ignore[misc, valid-type]
        sqlstate = state
        diag: Any = SimpleNamespace(severity_nonlocalized=severity)

    return Made()


@pytest.mark.parametrize(
    ("kind", "state", "severity", "meant"),
    [
        (psycopg.OperationalError, "53100", "ERROR", StoreFullError),
        # The server's own log was full: it died, and what became of the commit is unknown.
        (psycopg.OperationalError, "53100", "PANIC", ConnectionLostError),
        (psycopg.OperationalError, "58030", "ERROR", StoreBrokenError),
        (psycopg.OperationalError, "58030", "PANIC", ConnectionLostError),
        (psycopg.OperationalError, None, None, ConnectionLostError),
        (psycopg.InterfaceError, None, None, ConnectionLostError),
        (psycopg.OperationalError, "57P01", "FATAL", ConnectionLostError),
        (psycopg.OperationalError, "57014", "ERROR", ConnectionLostError),
        (psycopg.InternalError, "25006", "ERROR", ConnectionLostError),
        (psycopg.IntegrityError, "23505", "ERROR", StoreBrokenError),
        (psycopg.DataError, "22P02", "ERROR", StoreBrokenError),
        (psycopg.ProgrammingError, None, None, StoreBrokenError),
        (psycopg.InternalError, "XX001", "ERROR", StoreBrokenError),
    ],
)
def test_errors_are_full_lost_or_broken(
    kind: type[psycopg.Error], state: str, severity: str, meant: type[Exception]
) -> None:
    assert type(failure(error_of(kind, state, severity))) is meant


@pytest.mark.parametrize(
    "text", ["", "plain", "\0", "\\", "\\0", "\\\\0\0", "a\\\0b\\\\", "\\\\\\0"]
)
def test_text_with_nul_is_stored_and_read_back(text: str) -> None:
    assert "\0" not in _escaped(text)
    assert _unescaped(_escaped(text)) == text


def test_the_grants_name_the_role_and_quote_it() -> None:
    script = statements("audit", 'a"b')
    assert 'TO "a""b"' in script
    assert script.startswith("BEGIN;\n")
    assert script.endswith("COMMIT;")
