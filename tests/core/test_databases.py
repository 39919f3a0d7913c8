"""What the kits say of errors that no server has to be asked for; those of real servers are in tests/conformance."""

from __future__ import annotations

import sqlite3
import ssl

import asyncpg
import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from sagapost.core.databases import (
    Conflict,
    DatabaseKit,
    Failure,
    MissingTable,
    Other,
    Outage,
    PostgreSQL,
    ReadOnly,
    Refused,
    SQLite,
    Unavailable,
    kit_of,
)
from sagapost.core.errors import ConfigurationError, SagapostError, StoreRefusedError, StoreUnavailableError


class _GermanError(Exception):
    """A driver's error whose text says nothing in English."""

    def __init__(self, code: str) -> None:
        self.sqlstate = code
        super().__init__("Verklemmung entdeckt")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("08006", Unavailable), ("08P01", Unavailable), ("25P03", Unavailable), ("25P04", Unavailable),
        ("26000", Unavailable), ("42P05", Unavailable), ("34000", Unavailable), ("53100", Unavailable),
        ("53200", Unavailable), ("53300", Unavailable), ("55000", Unavailable), ("57014", Unavailable),
        ("57P01", Unavailable), ("57P02", Unavailable), ("57P03", Unavailable), ("57P05", Unavailable),
        ("58030", Unavailable), ("40003", Unavailable),
        ("25006", ReadOnly),
        ("40000", Conflict), ("40001", Conflict), ("40P01", Conflict), ("55P03", Conflict),
        ("42P01", MissingTable), ("42703", MissingTable), ("3F000", MissingTable),
        ("28000", Refused), ("28P01", Refused), ("3D000", Refused), ("42501", Refused),
        ("23505", Other), ("42601", Other), ("22P02", Other), ("25P02", Other), ("XX000", Other), ("P0001", Other),
    ],
)  # fmt: skip
@pytest.mark.parametrize("wrap", ["raw", "sqlalchemy", "handler"])
def test_a_sqlstate_means_one_thing_whoever_has_wrapped_it(code: str, kind: type[Failure], wrap: str) -> None:
    """Raw, inside SQLAlchemy's error, or behind a handler's `raise ... from`: the code decides."""
    error: BaseException = _GermanError(code)
    if wrap != "raw":
        error = DBAPIError("UPDATE", None, error)
    if wrap == "handler":
        handlers = RuntimeError("could not reserve")
        handlers.__cause__ = error
        error = handlers
    assert type(PostgreSQL().classify(error)) is kind


def _certificate_error() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (asyncpg.InterfaceError("connection is closed"), Unavailable),
        (asyncpg.InternalClientError("got result for unknown protocol state"), Unavailable),
        (asyncpg.DataError("invalid input for query argument $1"), Other),
        (asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"), Unavailable),
        (asyncpg.exceptions.TargetServerAttributeNotMatched("read-write"), ReadOnly),
        (psycopg.OperationalError("the connection is lost"), Unavailable),
        (psycopg.InterfaceError("the connection is closed"), Unavailable),
        (psycopg.errors.UniqueViolation("duplicate key"), Other),
        (psycopg.ProgrammingError("the query has 2 placeholders"), Other),
        (ConnectionRefusedError(111, "refused"), Unavailable),
        (TimeoutError(), Unavailable),
        (EOFError(), Unavailable),
        (PoolTimeoutError("QueuePool limit"), Unavailable),
        (_certificate_error(), Refused),
        (ValueError("a bug"), Other),
        (KeyError("a bug"), Other),
        (DBAPIError("SELECT", None, Exception("who knows"), connection_invalidated=True), Unavailable),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_without_a_code_is_told_by_its_class(error: Exception, kind: type[Failure]) -> None:
    """What drivers, the pool and sockets raise without any server: by class, and nothing else passes for an outage."""
    assert type(PostgreSQL().classify(error)) is kind


def test_the_cause_of_a_timeout_is_no_other_error() -> None:
    """`TimeoutError from CancelledError`, as asyncio raises it, is a timeout."""
    error = TimeoutError()
    error.__cause__ = KeyboardInterrupt()
    assert PostgreSQL().classify(error) == Unavailable("TimeoutError", "it did not answer in time")


def test_causes_in_a_circle_end() -> None:
    """A chain of causes that bites its tail is walked once."""
    first, second = RuntimeError("one"), RuntimeError("two")
    first.__cause__, second.__cause__ = second, first
    assert isinstance(PostgreSQL().classify(first), Other)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_BUSY, Conflict),
        (sqlite3.SQLITE_BUSY | 2 << 8, Conflict),  # SQLITE_BUSY_SNAPSHOT: extended codes count as their primary one
        (sqlite3.SQLITE_LOCKED, Conflict),
        (sqlite3.SQLITE_IOERR, Unavailable),
        (sqlite3.SQLITE_FULL, Unavailable),
        (sqlite3.SQLITE_CANTOPEN, Unavailable),
        (sqlite3.SQLITE_READONLY, Refused),
        (sqlite3.SQLITE_NOTADB, Refused),
        (sqlite3.SQLITE_CONSTRAINT, Other),
        (sqlite3.SQLITE_ERROR, Other),
    ],
)
def test_a_result_code_of_sqlite_means_one_thing(code: int, kind: type[Failure]) -> None:
    """By the code, also behind SQLAlchemy's error."""
    error = sqlite3.OperationalError("whatever it says")
    error.sqlite_errorcode, error.sqlite_errorname = code, "CODE"
    assert type(SQLite().classify(error)) is kind
    assert type(SQLite().classify(DBAPIError("INSERT", None, error))) is kind


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (_GermanError("53300"), StoreUnavailableError, "max_connections"),
        (_GermanError("25006"), StoreUnavailableError, "takes no writes"),
        (_GermanError("25P03"), StoreUnavailableError, "idle_in_transaction_session_timeout"),
        (_GermanError("26000"), StoreUnavailableError, "pooler"),
        (_GermanError("28P01"), StoreRefusedError, "user or password is wrong"),
        (_GermanError("42P01"), StoreRefusedError, "sagapost db upgrade"),
        (_GermanError("42501"), StoreRefusedError, "privilege"),
        (_GermanError("3D000"), StoreRefusedError, "no such database"),
    ],
)
def test_the_sentence_fits_the_code(error: Exception, raised: type[SagapostError], words: str) -> None:
    """An operator is told what to look at, and never to check the password where that is not it."""
    found = PostgreSQL().translate(error, where="db:5432/orders")
    assert type(found) is raised
    assert words in str(found)
    assert "db:5432/orders" in str(found)
    assert ("password" in str(found)) == (words == "user or password is wrong")


def test_what_may_quote_data_is_not_in_the_sentence() -> None:
    """The text of an error about data stays out of what a part reports."""
    error = asyncpg.UniqueViolationError("Key (email)=(ada@example.org) already exists")
    assert "ada" not in PostgreSQL().sentence(error, where="db")


@pytest.mark.parametrize("kit", [PostgreSQL(), SQLite()], ids=repr)
def test_an_outage_is_what_is_waited_for(kit: DatabaseKit) -> None:
    """The members of `Outage`, and only those."""
    assert kit.is_outage(ConnectionResetError())
    assert not kit.is_outage(RuntimeError())
    assert isinstance(kit.classify(ConnectionResetError()), Outage)


def test_an_address_holds_no_credentials() -> None:
    """Neither user nor password nor parameters."""
    url = make_url("postgresql://ada:secret@db1:6432/orders?sslmode=require")
    assert kit_of("postgresql").address(url) == "db1:6432/orders"
    assert kit_of("sqlite").address(make_url("sqlite:///var/orders.db")) == "the file var/orders.db"


def test_a_database_without_a_kit_is_refused_by_name() -> None:
    """The sentence says what there is; a kit is chosen by name or from an engine."""
    with pytest.raises(ConfigurationError, match=r"'oracle'.*PostgreSQL or SQLite"):
        kit_of("oracle")
    assert isinstance(kit_of(create_engine("sqlite://")), SQLite)


@pytest.mark.parametrize(
    ("said", "kind", "code"),
    [
        ('FATAL:  password authentication failed for user "orders"', Refused, "28P01"),
        ("fe_sendauth: no password supplied", Refused, "28P01"),
        ('FATAL:  role "orders" does not exist', Refused, "28000"),
        ('FATAL:  role "orders" is not permitted to log in', Refused, "28000"),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.7", user "orders", database "shop"', Refused, "28000"),
        ('FATAL:  Peer authentication failed for user "orders"', Refused, "28000"),
        ('FATAL:  database "shop" does not exist', Refused, "3D000"),
        ('FATAL:  permission denied for database "shop"', Refused, "42501"),
        ("server does not support SSL, but SSL was required", Refused, "OperationalError"),
        ("SSL error: certificate verify failed", Refused, "OperationalError"),
        ("FATAL:  sorry, too many clients already", Unavailable, "53300"),
        ('FATAL:  too many connections for role "orders"', Unavailable, "53300"),
        ("FATAL:  the database system is starting up", Unavailable, "57P03"),
        ("Connection refused\n\tIs the server running on that host", Unavailable, "OperationalError"),
        ('FATAL:  Passwort-Authentifizierung für Benutzer »orders« fehlgeschlagen', Unavailable, "OperationalError"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("wrap", ["raw", "sqlalchemy"])
def test_what_libpq_says_of_a_connection_that_failed(said: str, kind: type[Failure], code: str, wrap: str) -> None:
    """It keeps the SQLSTATE to itself: its text is told, and where it tells nothing the server is waited for."""
    text = f'connection failed: connection to server at "10.0.0.5", port 5432 failed: {said}'
    error: Exception = psycopg.OperationalError(text)
    if wrap == "sqlalchemy":
        error = DBAPIError("connect", None, error)
    found = PostgreSQL().classify(error)
    assert (type(found), found.code) == (kind, code)


def test_of_several_hosts_one_that_is_away_is_waited_for() -> None:
    """A standby with another user list refuses while the server that matters is restarted: no reason to give up."""
    refused = 'connection to server at "a" failed: FATAL:  role "orders" does not exist'
    away = 'connection to server at "b" failed: Connection refused'
    assert isinstance(PostgreSQL().classify(psycopg.OperationalError(f"{refused}\n{away}")), Unavailable)
    assert isinstance(PostgreSQL().classify(psycopg.OperationalError(f"{away}\n{refused}")), Unavailable)
    assert isinstance(PostgreSQL().classify(psycopg.OperationalError(f"{refused}\n{refused}")), Refused)
