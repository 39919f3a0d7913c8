"""The one reader of PostgreSQL URLs, as providers, libpq's manual and SQLAlchemy write them.

Relay, consumer, listening connection and command line connect by its parts and never by the text, so none of them
reads a URL in another way than the others. What it does not know it names, and it never quotes a value.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args
from urllib.parse import parse_qsl, unquote

from sqlalchemy.engine import URL

from sagapost.core.errors import ConfigurationError

__all__ = ["Host", "ServerUrl", "TlsMode", "read_server_url"]

TlsMode: TypeAlias = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
"""libpq's `sslmode`: whether the connection is encrypted, and how far the server's certificate is believed."""

_SESSIONS: Final = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")
_EXAMPLE: Final = "Example: postgresql://user:password@localhost:5432/orders"
_PORT: Final = 5432


@dataclass(frozen=True, slots=True)
class Host:
    """One place to connect to."""

    name: str
    """A name, an address, or the folder of a Unix socket."""
    port: int = _PORT

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """Everything that a URL says of a PostgreSQL server. Its text never holds the password."""

    hosts: tuple[Host, ...]
    """Tried in this order; empty: the driver's default (PGHOST, a local socket)."""
    database: str | None
    user: str | None
    password: str | None = field(repr=False)
    tls: TlsMode | None = None
    """None: as the driver does by itself, which is to prefer TLS."""
    root_certificate: str | None = None
    """Path of the authorities that are believed, or ``system``."""
    certificate: str | None = None
    key: str | None = None
    key_password: str | None = field(default=None, repr=False)
    direct_tls: bool = False
    oldest_tls: str | None = None
    newest_tls: str | None = None
    password_file: str | None = None
    server_settings: Mapping[str, str] = field(default_factory=dict[str, str])
    """Sent with the connection: `application_name`, `options`."""
    connect_timeout: int | None = None
    """Seconds."""
    session: str | None = None
    """`target_session_attrs`: which of the hosts will do."""
    statement_cache: int | None = None
    """Named prepared statements that are kept; 0: no statement has a name, as behind a pooler in transaction mode."""

    @property
    def address(self) -> str:
        """Hosts and database, for logs and errors; never credentials."""
        return f"{','.join(map(str, self.hosts)) or f'local socket:{_PORT}'}/{self.database or ''}"

    def to_sqlalchemy(self, driver: str) -> URL:
        """Return the URL for SQLAlchemy to show; whatever else there is to say is passed to the driver."""
        first = self.hosts[0] if len(self.hosts) == 1 else None
        return URL.create(
            f"postgresql+{driver}",
            username=self.user,
            password=self.password,
            host=None if first is None else first.name,
            port=None if first is None else first.port,
            database=self.database,
            query={"host": tuple(map(str, self.hosts))} if len(self.hosts) > 1 else {},
        )

    def tls_argument(self) -> ssl.SSLContext | str | bool | None:
        """Return what asyncpg takes as `ssl`.

        :raises ConfigurationError: if a file that the URL names cannot be used.
        """
        match self.tls:
            case None:
                return None
            case "disable":
                return False
            case "allow" | "prefer":
                return self.tls
            case "require" | "verify-ca" | "verify-full":
                return self._context(self.tls)

    def _context(self, mode: str) -> ssl.SSLContext:
        authorities = self.root_certificate
        if authorities is None and mode != "require":
            usual = Path.home() / ".postgresql" / "root.crt"
            authorities = str(usual) if usual.exists() else None
        named = None if authorities == "system" else authorities
        try:
            context = ssl.create_default_context(cafile=named)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key, self.key_password)
        except OSError as error:  # SSLError is one
            raise ConfigurationError(
                f"sslrootcert, sslcert or sslkey of the database URL cannot be used ({type(error).__name__}): give "
                "paths of PEM files that this user may read, and the key that belongs to the certificate."
            ) from error
        context.check_hostname = mode == "verify-full"
        if mode == "require" and self.root_certificate is None:
            # Encrypted, to whoever answers: what libpq makes of it, and what providers hand out.
            context.verify_mode = ssl.CERT_NONE
        for attribute, version in (("minimum_version", self.oldest_tls), ("maximum_version", self.newest_tls)):
            if version is not None:
                setattr(context, attribute, ssl.TLSVersion[version.replace(".", "_")])
        return context


def read_server_url(text: str) -> ServerUrl:
    """Take a PostgreSQL URL apart.

    :raises ConfigurationError: names the part or parameter that is wrong or unknown, and quotes no value.
    """
    scheme, mark, rest = text.strip().partition("://")
    if not mark or scheme.partition("+")[0] not in {"postgresql", "postgres"}:
        raise ConfigurationError(f"The database URL is no URL of PostgreSQL. {_EXAMPLE}")
    location, _, query = rest.partition("?")
    authority, _, database = location.partition("/")
    credentials, _, places = authority.rpartition("@")
    user, _, password = credentials.partition(":")
    parameters = _parameters(query)
    named = parameters.pop("host", []), parameters.pop("port", [])
    hosts = _hosts([part for part in unquote(places).split(",") if part], [])
    if named[0] or named[1]:
        hosts = _hosts(_listed(named[0]) or [host.name for host in hosts], _listed(named[1]))
    values = {name: given[-1] for name, given in parameters.items()}
    read = ServerUrl(
        hosts=tuple(hosts),
        database=values.pop("dbname", None) or values.pop("database", None) or unquote(database) or None,
        user=values.pop("user", None) or unquote(user) or None,
        password=values.pop("password", None) or unquote(password) or None,
        tls=_tls(values),
        root_certificate=values.pop("sslrootcert", None),
        certificate=values.pop("sslcert", None),
        key=values.pop("sslkey", None),
        key_password=values.pop("sslpassword", None),
        direct_tls=_choice(values, "sslnegotiation", ("postgres", "direct")) == "direct",
        oldest_tls=_choice(values, "ssl_min_protocol_version", ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")),
        newest_tls=_choice(values, "ssl_max_protocol_version", ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")),
        password_file=values.pop("passfile", None),
        server_settings={name: values.pop(name) for name in ("application_name", "options") if name in values},
        connect_timeout=_number(values, "connect_timeout") or None,
        session=_choice(values, "target_session_attrs", _SESSIONS),
        statement_cache=_statement_cache(values),
    )
    return _checked(read, values)


def _checked(read: ServerUrl, unread: dict[str, str]) -> ServerUrl:
    """Return what was read, unless some of it cannot be meant.

    :raises ConfigurationError: if there is a parameter left, or one that has no effect.
    """
    if unread.pop("client_encoding", "utf8").lower().replace("-", "") not in {"utf8", "auto"}:
        raise ConfigurationError("client_encoding of the database URL must be utf8: sagapost writes nothing else.")
    if unread.pop("channel_binding", "prefer") == "require":
        raise ConfigurationError(
            "channel_binding=require cannot be had with asyncpg. Leave it out, and take sslmode=verify-full for a "
            "server that nobody can stand in for."
        )
    if unread:
        raise ConfigurationError(
            f"The database URL has parameters that sagapost does not know: {', '.join(sorted(unread))}. Leave them "
            "out; what the server is to be told goes into options=-c name=value."
        )
    if read.tls in {None, "disable", "allow", "prefer"} and (read.certificate or read.root_certificate):
        raise ConfigurationError(
            "sslrootcert and sslcert of the database URL need sslmode=require, verify-ca or verify-full."
        )
    return read


def _parameters(query: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        found.setdefault(name, []).append(value)
    return found


def _listed(values: Sequence[str]) -> list[str]:
    """libpq separates several by commas in one parameter, SQLAlchemy repeats the parameter."""
    return [part for value in values for part in value.split(",") if part]


def _hosts(names: Sequence[str], ports: Sequence[str]) -> list[Host]:
    if len(ports) > 1 and len(ports) != len(names):
        raise ConfigurationError(
            f"The database URL names {len(names)} hosts and {len(ports)} ports; give one port, or one for each host."
        )
    found: list[Host] = []
    for index, place in enumerate(names or [""]):
        name, port = _place(place)
        if ports:
            port = port or ports[index if len(ports) > 1 else 0]
        if port and not (port.isdecimal() and 0 < int(port) < 65_536):
            raise ConfigurationError("A port in the database URL is none; ports are 1 to 65535.")
        if name or ports:
            found.append(Host(name or "localhost", int(port) if port else _PORT))
    return found


def _place(place: str) -> tuple[str, str]:
    """Split host and port."""
    if place.startswith("/"):  # the folder of a socket
        return place, ""
    if place.startswith("["):
        name, _, port = place[1:].partition("]")
        return name, port.removeprefix(":")
    if place.count(":") > 1:  # an IPv6 address without brackets, as in a parameter
        return place, ""
    name, _, port = place.partition(":")
    return name, port


def _tls(values: dict[str, str]) -> TlsMode | None:
    """Read `sslmode` of libpq, or `ssl` of SQLAlchemy and asyncpg."""
    said = values.pop("sslmode", None)
    other = values.pop("ssl", None)
    mode = said if said is not None else {"true": "require", "false": "disable"}.get(str(other).lower(), other)
    if mode is None:
        return None
    known: TlsMode
    for known in get_args(TlsMode):
        if mode == known:
            return known
    raise ConfigurationError(f"sslmode of the database URL is none; use {', '.join(get_args(TlsMode))}.")


def _choice(values: dict[str, str], name: str, known: Sequence[str]) -> str | None:
    value = values.pop(name, None)
    if value is not None and value not in known:
        raise ConfigurationError(f"{name} of the database URL is none of {', '.join(known)}.")
    return value


def _number(values: dict[str, str], name: str) -> int | None:
    value = values.pop(name, None)
    if value is not None and not value.isdecimal():
        raise ConfigurationError(f"{name} of the database URL is no whole number.")
    return None if value is None else int(value)


def _statement_cache(values: dict[str, str]) -> int | None:
    """Read how many named statements are kept, by the words of asyncpg, SQLAlchemy and Prisma."""
    sizes = [_number(values, name) for name in ("statement_cache_size", "prepared_statement_cache_size")]
    given = [size for size in sizes if size is not None]
    if values.pop("pgbouncer", "").lower() in {"true", "1"}:
        given.append(0)
    return min(given) if given else None
