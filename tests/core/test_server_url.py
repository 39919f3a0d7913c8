"""One reader of PostgreSQL URLs: every form that providers, libpq and SQLAlchemy write."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from sagapost.core.databases.server_url import Host, ServerUrl, read_server_url
from sagapost.core.errors import ConfigurationError

_BASE = "postgresql://ada:secret@db1/orders"


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        (_BASE, [Host("db1")]),
        ("postgres://db1:6432/orders", [Host("db1", 6432)]),
        ("postgresql+asyncpg://db1/orders", [Host("db1")]),
        ("postgresql://db1:5433,db2:5434/orders", [Host("db1", 5433), Host("db2", 5434)]),
        ("postgresql://u@/orders?host=db1:5433&host=db2", [Host("db1", 5433), Host("db2")]),
        ("postgresql://u@/orders?host=db1,db2&port=5433,5434", [Host("db1", 5433), Host("db2", 5434)]),
        ("postgresql://u@/orders?host=db1,db2&port=5433", [Host("db1", 5433), Host("db2", 5433)]),
        ("postgresql://[2001:db8::1]:5433/orders", [Host("2001:db8::1", 5433)]),
        ("postgresql://u@/orders?host=2001:db8::1", [Host("2001:db8::1")]),
        ("postgresql://u@/orders?host=/var/run/postgresql&port=5433", [Host("/var/run/postgresql", 5433)]),
        ("postgresql://u@%2Fvar%2Frun%2Fpostgresql/orders", [Host("/var/run/postgresql")]),
        ("postgresql:///orders", []),
    ],
)
def test_where_it_leads(url: str, hosts: list[Host]) -> None:
    """One host, several in three notations, IPv6, a socket in two notations, and the driver's default."""
    assert list(read_server_url(url).hosts) == hosts


def test_percent_escapes() -> None:
    """In user, password and database."""
    read = read_server_url("postgresql://a%40b:p%40s%2Fs%3Aw%23%3F@db1/my%20orders")
    assert (read.user, read.password, read.database) == ("a@b", "p@s/s:w#?", "my orders")


def test_by_parameters() -> None:
    """Everything that has a place of its own may be a parameter as well."""
    read = read_server_url("postgresql:///?host=db1&port=5433&user=ada&password=s%26t&dbname=orders")
    assert (read.address, read.user, read.password) == ("db1:5433/orders", "ada", "s&t")


def test_what_the_driver_and_the_server_are_told() -> None:
    """libpq's own parameters."""
    read = read_server_url(
        f"{_BASE}?application_name=shop&options=-csearch_path%3Dsales&connect_timeout=5"
        "&target_session_attrs=read-write&sslnegotiation=direct&passfile=/run/pass"
    )
    assert read.server_settings == {"application_name": "shop", "options": "-csearch_path=sales"}
    assert (read.connect_timeout, read.session, read.direct_tls) == (5, "read-write", True)
    assert read.password_file == "/run/pass"


@pytest.mark.parametrize(
    ("query", "size"),
    [
        ("", None),
        ("statement_cache_size=0", 0),
        ("prepared_statement_cache_size=0", 0),
        ("pgbouncer=true", 0),
        ("statement_cache_size=50", 50),
    ],
)
def test_named_statements_can_be_switched_off(query: str, size: int | None) -> None:
    """By the word of asyncpg, of SQLAlchemy, or of Prisma, which some providers hand out."""
    assert read_server_url(f"{_BASE}?{query}").statement_cache == size


def _context(query: str) -> ssl.SSLContext:
    context = read_server_url(f"{_BASE}?{query}").tls_argument()
    assert isinstance(context, ssl.SSLContext)
    return context


@pytest.mark.parametrize(
    ("query", "argument"),
    [
        ("", None),
        ("sslmode=disable", False),
        ("ssl=disable", False),
        ("ssl=false", False),
        ("sslmode=prefer", "prefer"),
    ],
)
def test_no_tls_and_perhaps_tls(query: str, argument: object) -> None:
    """What says nothing leaves it to the driver."""
    assert read_server_url(f"{_BASE}?{query}").tls_argument() == argument


@pytest.mark.parametrize("query", ["sslmode=require", "ssl=require", "ssl=true"])
def test_tls_to_whoever_answers(query: str) -> None:
    """Encrypted; nothing is checked, as in libpq."""
    context = _context(query)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)


def test_tls_that_checks() -> None:
    """`verify-ca` believes the authorities, `verify-full` asks for the name as well; versions can be bounded."""
    authorities = _context("sslmode=verify-ca&sslrootcert=system")
    assert (authorities.verify_mode, authorities.check_hostname) == (ssl.CERT_REQUIRED, False)
    full = _context("sslmode=verify-full&sslrootcert=system&ssl_min_protocol_version=TLSv1.3")
    assert (full.verify_mode, full.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert full.minimum_version == ssl.TLSVersion.TLSv1_3


def test_a_file_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    """By the parameter's name; whatever the file holds stays out."""
    broken = tmp_path / "root.crt"
    broken.write_text("no certificate")
    for path in (broken, tmp_path / "absent"):
        with pytest.raises(ConfigurationError, match="sslrootcert"):
            _context(f"sslmode=verify-full&sslrootcert={path}")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("sslmod=require", "does not know: sslmod"),
        ("a=1&b=2", "does not know: a, b"),
        ("sslmode=on", "sslmode .* is none; use disable, allow, prefer, require"),
        ("target_session_attrs=leader", "target_session_attrs .* none of any, read-write"),
        ("connect_timeout=soon", "connect_timeout .* no whole number"),
        ("channel_binding=require", "channel_binding=require cannot be had"),
        ("client_encoding=latin1", "client_encoding"),
        ("sslrootcert=/ca.pem", "need sslmode"),
        ("host=a,b&port=1,2,3", "2 hosts and 3 ports"),
        ("port=99999", "ports are 1 to 65535"),
    ],
)
def test_what_cannot_be_meant_is_named(query: str, words: str) -> None:
    """The parameter is in the sentence, no value is, and no password."""
    with pytest.raises(ConfigurationError, match=words) as refused:
        read_server_url(f"{_BASE}?{query}")
    assert "secret" not in str(refused.value)


def test_the_text_of_a_url_that_was_read_holds_no_secrets() -> None:
    """Neither its repr nor its address, nor the URL for SQLAlchemy as it is shown."""
    read = read_server_url("postgresql://ada:tops3cret@db1,db2/orders?sslpassword=al5o")
    for shown in (repr(read), read.address, str(read.to_sqlalchemy("asyncpg"))):
        assert "tops3cret" not in shown
        assert "al5o" not in shown
    assert read.address == "db1:5432,db2:5432/orders"


def test_the_same_whoever_wrote_it() -> None:
    """libpq's notation and SQLAlchemy's come to the same."""
    one = read_server_url("postgresql://u@db1:1,db2:2/orders?sslmode=require")
    two = read_server_url("postgresql+asyncpg://u@/orders?host=db1:1&host=db2:2&ssl=require")
    assert one == two
    assert isinstance(one, ServerUrl)
