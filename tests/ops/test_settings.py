"""Settings: where they come from, and what is said about wrong ones."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagapost.core.errors import ConfigurationError
from sagapost.inbox.declared.settings import ConsumerSettings, RetryPolicy
from sagapost.ops.registry import brokers
from sagapost.ops.settings import InvalidSettingsError, all_settings, load_settings
from sagapost.ops.settings.field import Setting, render
from sagapost.ops.settings.model import PARTS, part_of
from sagapost.ops.settings.units import format_duration, format_size, parse_duration, parse_size
from sagapost.outbox.relay.settings import RelaySettings, Routing

DATABASE = "postgresql+asyncpg://app:secret@localhost:5432/orders"

WRONG = {
    "SAGAPOST_DATABASE_URL": "mysql://app:secret@localhost/orders",
    "SAGAPOST_DATABASE_DIRECT_URL": "postgresql://localhost",
    "SAGAPOST_DATABASE_SCHEMA": "no-dashes",
    "SAGAPOST_TABLE_PREFIX": "A" * 30,
    "SAGAPOST_DATABASE_CALL_TIMEOUT": "30",
    "SAGAPOST_DATABASE_CONNECT_TIMEOUT": "soon",
    "SAGAPOST_BROKER_URL": "kafka://localhost",
    "SAGAPOST_EXCHANGE": "amq.direct",
    "SAGAPOST_QUEUE_TYPE": "stream",
    "SAGAPOST_BROKER_CONNECT_TIMEOUT": "0s",
    "SAGAPOST_BROKER_CONFIRM_TIMEOUT": "1d",
    "SAGAPOST_BROKER_HEARTBEAT": "1ms",
    "SAGAPOST_BROKER_MAX_MESSAGE_BYTES": "0",
    "SAGAPOST_BROKER_MAX_BUFFERED_BYTES": "1 byte",
    "SAGAPOST_BROKER_DELIVERY_LIMIT": "none",
    "SAGAPOST_FOREIGN_WITHOUT_ID": "accept",
    "SAGAPOST_RELAY_MAX_IN_FLIGHT": "0",
    "SAGAPOST_RELAY_MAX_IN_FLIGHT_BYTES": "lots",
    "SAGAPOST_RELAY_PAGE_ROWS": "1.5",
    "SAGAPOST_RELAY_BATCH_ROWS": "-1",
    "SAGAPOST_RELAY_POLL_INTERVAL": "500",
    "SAGAPOST_RELAY_SWEEP_INTERVAL": "1 month",
    "SAGAPOST_RELAY_LEASE_TTL": "1h",
    "SAGAPOST_RELAY_RETRY_BASE": "never",
    "SAGAPOST_RELAY_RETRY_CAP": "2d",
    "SAGAPOST_RELAY_MAX_ATTEMPTS": "many",
    "SAGAPOST_RELAY_ON_DEAD": "drop",
    "SAGAPOST_RELAY_ON_UNROUTABLE": "drop",
    "SAGAPOST_RELAY_RECONNECT_BASE": "5",
    "SAGAPOST_RELAY_RECONNECT_CAP": "-5s",
    "SAGAPOST_RELAY_MAX_HELD_KEYS": "1e3",
    "SAGAPOST_RELAY_SERIAL_KEYS": "sometimes",
    "SAGAPOST_RELAY_SUSPICION": "always",
    "SAGAPOST_RELAY_DRAIN_TIMEOUT": "2h",
    "SAGAPOST_RELAY_DESTINATIONS": "orders.order-placed.v1",
    "SAGAPOST_RELAY_TOPICS": "a=b,a=c",
    "SAGAPOST_CONSUMER_CONCURRENCY": "0",
    "SAGAPOST_CONSUMER_BATCH": "1001",
    "SAGAPOST_CONSUMER_PREFETCH": "-5",
    "SAGAPOST_CONSUMER_MAX_BYTES_IN_HAND": "64 MeB",
    "SAGAPOST_CONSUMER_RETRY_QUICK": "-1",
    "SAGAPOST_CONSUMER_RETRY_QUICK_BASE": "1h",
    "SAGAPOST_CONSUMER_RETRY_QUICK_CAP": "quickly",
    "SAGAPOST_CONSUMER_RETRY_ATTEMPTS": "0",
    "SAGAPOST_CONSUMER_RETRY_BASE": "ten",
    "SAGAPOST_CONSUMER_RETRY_CAP": "1y",
    "SAGAPOST_CONSUMER_HANDLER_TIMEOUT": "0s",
    "SAGAPOST_CONSUMER_DATABASE_TIMEOUT": "15",
    "SAGAPOST_CONSUMER_MAX_CRASHES": "101",
    "SAGAPOST_CONSUMER_RETENTION": "1s",
    "SAGAPOST_CONSUMER_UNKNOWN_FOR": "2y",
    "SAGAPOST_CONSUMER_PRUNE_INTERVAL": "0ms",
    "SAGAPOST_CONSUMER_PRUNE_CHUNK": "all",
    "SAGAPOST_CONSUMER_POLL_INTERVAL": "2h",
    "SAGAPOST_CONSUMER_ON_DEAD": "park",
    "SAGAPOST_CONSUMER_RECONNECT_BASE": "x",
    "SAGAPOST_CONSUMER_RECONNECT_CAP": "1h",
    "SAGAPOST_CONSUMER_RELEASE_AFTER": "0s",
    "SAGAPOST_CONSUMER_DRAIN_TIMEOUT": "-20s",
    "SAGAPOST_LOG_FORMAT": "xml",
    "SAGAPOST_LOG_LEVEL": "chatty",
    "SAGAPOST_METRICS": "statsd",
    "SAGAPOST_FAIL_FAST": "perhaps",
    "SAGAPOST_START_RETRY_BASE": "1y",
    "SAGAPOST_START_RETRY_CAP": "0",
}
"""A wrong value for each setting."""
NEVER_WRONG = {"SAGAPOST_RELAY_OPTIONAL"}
"""Any text is a list of names."""


def refused(**overrides: Any) -> InvalidSettingsError:
    """Return the error that the settings of this environment give."""
    with pytest.raises(InvalidSettingsError) as caught:
        load_settings(**overrides)
    return caught.value


# --- wrong values ---


def test_the_table_of_wrong_values_knows_every_setting() -> None:
    """A new setting needs a wrong value here, so that its error message is looked at."""
    assert set(WRONG) | NEVER_WRONG == {entry.variable for entry in all_settings()}


@pytest.mark.parametrize(("variable", "value"), WRONG.items())
def test_a_wrong_value_names_the_variable_the_problem_and_an_example(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """One sentence for each: which variable, what it holds (never a password), what is wrong, and a right value."""
    monkeypatch.setenv(variable, value)
    (problem,) = refused().problems
    example = next(entry.example for entry in all_settings() if entry.variable == variable)
    assert problem.variable == variable
    assert str(problem).startswith(f"{variable}=")
    assert str(problem).endswith(f". Example: {variable}={example}")
    assert "secret" not in str(problem)
    assert "pydantic" not in str(problem).lower()
    assert len(problem.text) > 10


def test_all_wrong_values_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to start a process thirty times to learn of thirty mistakes; what is missing is among them."""
    for variable, value in WRONG.items():
        if variable != "SAGAPOST_DATABASE_URL":
            monkeypatch.setenv(variable, value)
    error = refused(required=("database_url",))
    assert {problem.variable for problem in error.problems} == set(WRONG)
    assert f"{len(WRONG)} settings are wrong" in str(error)
    assert "SAGAPOST_DATABASE_URL is not set. Example: SAGAPOST_DATABASE_URL=postgresql" in str(error)


@pytest.mark.parametrize(
    ("variables", "named", "words"),
    [
        (
            {"SAGAPOST_RELAY_RETRY_BASE": "5m"},
            "SAGAPOST_RELAY_RETRY_CAP",
            "is less than SAGAPOST_RELAY_RETRY_BASE (5m)",
        ),
        ({"SAGAPOST_RELAY_RECONNECT_CAP": "10ms"}, "SAGAPOST_RELAY_RECONNECT_CAP", "less than"),
        (
            {"SAGAPOST_CONSUMER_RETRY_BASE": "1d"},
            "SAGAPOST_CONSUMER_RETRY_CAP",
            "SAGAPOST_CONSUMER_RETRY_CAP=4h is less",
        ),
        (
            {"SAGAPOST_CONSUMER_BATCH": "300", "SAGAPOST_CONSUMER_PREFETCH": "200"},
            "SAGAPOST_CONSUMER_PREFETCH",
            "less",
        ),
        ({"SAGAPOST_START_RETRY_CAP": "1ms"}, "SAGAPOST_START_RETRY_CAP", "less than"),
        (
            {"SAGAPOST_DATABASE_URL": "sqlite:///orders.db", "SAGAPOST_DATABASE_SCHEMA": "messaging"},
            "SAGAPOST_DATABASE_SCHEMA",
            "SQLite has no schemas",
        ),
        (
            {"SAGAPOST_DATABASE_URL": DATABASE, "SAGAPOST_DATABASE_DIRECT_URL": "sqlite:///orders.db"},
            "SAGAPOST_DATABASE_DIRECT_URL",
            "a database of SQLite",
        ),
    ],
)
def test_values_that_do_not_go_together_name_the_one_to_change(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], named: str, words: str
) -> None:
    """Each value is right by itself; the error names a variable all the same."""
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    (problem,) = refused().problems
    assert problem.variable == named
    assert words in str(problem)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost/orders", "has no scheme"),
        ("postgresql+psycopg2://localhost/orders", "names the driver 'psycopg2'"),
        ("postgresql://app:p@ss@localhost/orders", "percent-encode"),
        ("postgresql://localhost:70000/orders", "port 70000"),
        ("postgresql://localhost/", "names no database"),
        ("postgresql://app:secret@db1/orders?sslmode=on", "sslmode of the database URL is none; use disable"),
        ("postgresql://app:secret@db1/orders?sslmod=require", "does not know: sslmod"),
        ("postgresql://app:secret@db1,db2/orders?port=1,2,3", "2 hosts and 3 ports"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "in-memory"),
    ],
)
def test_what_is_wrong_with_a_database_url(monkeypatch: pytest.MonkeyPatch, url: str, words: str) -> None:
    """The usual slips, each in words of its own."""
    monkeypatch.setenv("SAGAPOST_DATABASE_URL", url)
    assert words in str(refused())


# --- sources ---


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each value comes from the first source that has it, and the source is known."""
    (tmp_path / ".env").write_text("SAGAPOST_EXCHANGE=from-file\nSAGAPOST_LOG_LEVEL=debug\nOTHER=1\n")
    monkeypatch.setenv("SAGAPOST_EXCHANGE", "from-environment")
    loaded = load_settings(overrides={"fail_fast": True})
    settings, sources = loaded.settings, loaded.sources
    assert (loaded.values["exchange"], sources["exchange"]) == ("from-environment", "environment")
    assert (settings.process.log_level, sources["log_level"]) == ("DEBUG", ".env")
    assert (settings.process.fail_fast, sources["fail_fast"]) == (True, "command line")
    assert (loaded.values["queue_type"], sources["queue_type"]) == ("quorum", "default")
    assert loaded.unknown == {}


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_may_stand_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str) -> None:
    """As Docker and Kubernetes mount it; the line end that an editor leaves is no part of the password."""
    (tmp_path / "url").write_bytes(f"{DATABASE}{end}".encode())
    monkeypatch.setenv("SAGAPOST_DATABASE_URL_FILE", str(tmp_path / "url"))
    loaded = load_settings(required=("database_url",))
    assert loaded.database_url.reveal() == DATABASE
    assert loaded.sources["database_url"] == str(tmp_path / "url")
    assert loaded.unknown == {}
    monkeypatch.setenv("SAGAPOST_DATABASE_URL", DATABASE)
    assert "SAGAPOST_DATABASE_URL is set twice, by itself and by SAGAPOST_DATABASE_URL_FILE" in str(
        refused(required=("database_url",))
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"\n", "which is empty"),
        (b"\xff\xfe", "not UTF-8"),
        (b"x" * 100_000, "larger than any secret"),
        (b"mysql://app:secret@localhost/x", "has the scheme 'mysql'"),
    ],
)
def test_a_file_without_a_secret_is_a_problem_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, words: str
) -> None:
    """It names the variable and the file, and quotes nothing of what the file holds."""
    if content is not None:
        (tmp_path / "url").write_bytes(content)
    monkeypatch.setenv("SAGAPOST_DATABASE_URL_FILE", str(tmp_path / "url"))
    (problem,) = refused(required=("database_url",)).problems
    assert problem.variable == "SAGAPOST_DATABASE_URL"
    assert words in str(problem)
    assert "secret@" not in str(problem)


def test_only_secrets_are_read_from_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file for any other setting is a misspelt variable."""
    monkeypatch.setenv("SAGAPOST_LOG_LEVEL_FILE", "level")
    assert load_settings().unknown == {"SAGAPOST_LOG_LEVEL_FILE": "SAGAPOST_LOG_LEVEL"}


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compose files pass `SAGAPOST_X=` for what is unset outside; the file's value or the default then holds."""
    (tmp_path / ".env").write_text("SAGAPOST_EXCHANGE=from-file\n")
    monkeypatch.setenv("SAGAPOST_EXCHANGE", "")
    monkeypatch.setenv("SAGAPOST_RELAY_BATCH_ROWS", "")
    loaded = load_settings()
    assert loaded.values["exchange"] == "from-file"
    assert loaded.settings.relay.batch_rows == 250


def test_another_file_can_be_named_and_must_exist(tmp_path: Path) -> None:
    """`--env-file` replaces `.env`; a name that leads nowhere is an error and not an empty file."""
    (tmp_path / ".env").write_text("SAGAPOST_EXCHANGE=from-default-file\nSAGAPOST_LOG_LEVEL=DEBUG\n")
    (tmp_path / "staging.env").write_text("SAGAPOST_EXCHANGE=from-staging\n")
    loaded = load_settings(env_file=tmp_path / "staging.env")
    assert loaded.values["exchange"] == "from-staging"
    assert loaded.settings.process.log_level == "INFO"
    with pytest.raises(ConfigurationError, match="does not exist"):
        load_settings(env_file=tmp_path / "nowhere.env")


def test_a_file_that_is_no_text_is_a_configuration_error(tmp_path: Path) -> None:
    """A `.env` of another encoding ends with one sentence that names the file."""
    (tmp_path / ".env").write_bytes(b"SAGAPOST_EXCHANGE=\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"\.env cannot be read: it is not UTF-8"):
        load_settings()


def test_a_wrong_value_in_the_file_says_so(tmp_path: Path) -> None:
    """The error names the source where it is not the environment."""
    (tmp_path / ".env").write_text("SAGAPOST_RELAY_BATCH_ROWS=0\n")
    assert "SAGAPOST_RELAY_BATCH_ROWS=0 (from .env) is out of range; use 1 to 10000" in str(refused())


def test_a_misspelt_variable_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is ignored, so that a newer release's variable does no harm, and a warning names the likely one."""
    (tmp_path / ".env").write_text("SAGAPOST_EXCHANGES=orders\n")
    monkeypatch.setenv("SAGAPOST_RELAY_BATCHROWS", "10")
    monkeypatch.setenv("SAGAPOST_SOMETHING_ELSE_ENTIRELY", "1")
    loaded = load_settings()
    assert loaded.unknown == {
        "SAGAPOST_EXCHANGES": "SAGAPOST_EXCHANGE",
        "SAGAPOST_RELAY_BATCHROWS": "SAGAPOST_RELAY_BATCH_ROWS",
        "SAGAPOST_SOMETHING_ELSE_ENTIRELY": None,
    }
    assert loaded.hints[1:] == [
        "SAGAPOST_RELAY_BATCHROWS is no setting of this release and is ignored. "
        "Did you mean SAGAPOST_RELAY_BATCH_ROWS?",
        "SAGAPOST_SOMETHING_ELSE_ENTIRELY is no setting of this release and is ignored.",
    ]
    # What is missing is often there under a wrong name.
    monkeypatch.setenv("SAGAPOST_DATABASE_ULR", DATABASE)
    assert "Did you mean SAGAPOST_DATABASE_URL?" in str(refused(required=("database_url",)))


# --- meaning ---


def test_settings_are_frozen() -> None:
    """Nothing changes a setting after the start."""
    settings = load_settings().settings
    with pytest.raises(FrozenInstanceError):
        settings.relay.batch_rows = 1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def test_every_setting_explains_itself() -> None:
    """What, unit, example and danger are all there, and each example is itself a valid value."""
    for entry in all_settings():
        assert entry.what.endswith(".")
        assert entry.danger.endswith(".")
        assert entry.unit
        loaded = load_settings(overrides={entry.name: entry.example} | _companions(entry.name))
        assert loaded.sources[entry.name] == "command line"


def _companions(name: str) -> dict[str, str]:
    return {"database_url": DATABASE} if name == "database_schema" else {}


def test_the_defaults_are_the_librarys_own() -> None:
    """A relay from the command line with no settings works like one made in code with none."""
    settings = load_settings().settings
    assert settings.relay == RelaySettings()
    assert settings.consumer == ConsumerSettings()


def test_every_knob_can_be_turned() -> None:
    """Each field of the library's settings follows some variable."""
    turned = {
        "consumer_concurrency": "7",
        "consumer_batch": "7",
        "consumer_prefetch": "77",
        "consumer_max_bytes_in_hand": "7KiB",
        "consumer_retry_quick": "7",
        "consumer_retry_quick_base": "7ms",
        "consumer_retry_quick_cap": "7s",
        "consumer_retry_attempts": "7",
        "consumer_retry_base": "7s",
        "consumer_retry_cap": "7m",
        "consumer_handler_timeout": "7s",
        "consumer_database_timeout": "7s",
        "consumer_max_crashes": "7",
        "consumer_retention": "7h",
        "consumer_unknown_for": "7h",
        "consumer_prune_interval": "7s",
        "consumer_prune_chunk": "7",
        "consumer_poll_interval": "7s",
        "consumer_on_dead": "skip",
        "consumer_reconnect_base": "7ms",
        "consumer_reconnect_cap": "7s",
        "consumer_release_after": "7s",
        "consumer_drain_timeout": "7s",
        "relay_max_in_flight": "7",
        "relay_max_in_flight_bytes": "2KiB",
        "relay_page_rows": "7",
        "relay_batch_rows": "7",
        "relay_poll_interval": "7ms",
        "relay_sweep_interval": "7s",
        "relay_lease_ttl": "7s",
        "relay_retry_base": "7ms",
        "relay_retry_cap": "7s",
        "relay_max_attempts": "7",
        "relay_on_dead": "skip",
        "relay_on_unroutable": "bury",
        "relay_reconnect_base": "7ms",
        "relay_reconnect_cap": "7s",
        "relay_max_held_keys": "7",
        "relay_serial_keys": "true",
        "relay_suspicion": "7s",
        "relay_drain_timeout": "7s",
        "relay_destinations": "a.v1=x",
        "relay_topics": "b.v1=y",
        "relay_optional": "c.v1, d.v1",
    }
    settings = load_settings(overrides=turned).settings
    assert set(turned) == {entry.name for entry in all_settings() if entry.name.startswith(("relay_", "consumer_"))}
    assert unturned(settings.relay, RelaySettings()) == []
    assert unturned(settings.consumer, ConsumerSettings()) == []
    # A schedule is a matter of one step, and given in code.
    assert unturned(settings.consumer.retry, RetryPolicy()) == ["schedule"]
    for backoff, base in ((settings.relay.retry, 0.007), (settings.consumer.retry.backoff, 7)):
        assert backoff.base.total_seconds() == base
    assert settings.relay.routing.destinations == {"a.v1": "x"}
    assert settings.relay.routing.topics == {"b.v1": "y"}
    assert settings.relay.routing.optional == {"c.v1", "d.v1"}
    assert unturned(settings.relay.routing, Routing()) == []


def unturned(made: Any, own: Any) -> list[str]:
    """Return the fields that are as they were by default."""
    return [field.name for field in fields(own) if getattr(made, field.name) == getattr(own, field.name)]


@pytest.mark.parametrize("entry", all_settings(), ids=lambda entry: str(entry.variable))
def test_a_range_is_the_same_in_the_environment_and_in_code(entry: Setting) -> None:
    """One declaration serves both: each end is accepted, and what is beyond it is refused, in both."""
    declared = entry.leaf.declared
    if declared.low is None:
        return
    kind = next(part.kind for part in (*PARTS, *map(part_of, brokers.ours())) if part.name == entry.section)
    for end, step in ((declared.low, -1), (declared.high, 1)):
        assert entry.parse(end) == end
        beyond = end + step * (timedelta(milliseconds=1) if isinstance(end, timedelta) else 1)
        with pytest.raises(ValueError, match="is out of range; use "):
            entry.parse(beyond)
        if len(entry.leaf.path) == 1:
            with pytest.raises(ConfigurationError, match=rf"{entry.leaf.path[0]} is .*; use "):
                kind(**{entry.leaf.path[0]: beyond})


# --- units ---


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=30_000)))
def test_a_duration_survives_being_written(value: timedelta) -> None:
    """Formatting and parsing agree, to the millisecond."""
    read = parse_duration(format_duration(value))
    assert isinstance(read, timedelta)
    assert abs(read - value) <= timedelta(milliseconds=0.5)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("1.5s", 1.5), ("1h30m", 5400), ("7d", 604_800), ("2 H", 7200)]
)
def test_durations_by_hand(text: str, seconds: float) -> None:
    """The forms a person writes."""
    assert parse_duration(text) == timedelta(seconds=seconds)


@given(st.integers(min_value=0, max_value=2**50))
def test_a_size_survives_being_written(value: int) -> None:
    """Formatting and parsing agree exactly."""
    assert parse_size(format_size(value)) == value


@pytest.mark.parametrize(
    ("text", "size"),
    [("1024", 1024), ("32MiB", 2**25), ("1.5 KiB", 1536), ("1MB", 10**6), ("10b", 10), ("2gib", 2**31)],
)
def test_sizes_by_hand(text: str, size: int) -> None:
    """Decimal and binary units mean what they say."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "1 TB", "1.5", "-1"])
def test_what_is_no_size(text: str) -> None:
    """Fractions of a byte, unknown units and signs are refused."""
    with pytest.raises(ValueError, match=r"size|whole"):
        parse_size(text)


def test_values_are_shown_as_they_are_written() -> None:
    """`sagapost config` shows what one could put into the environment."""
    assert render(timedelta(minutes=90)) == "1h30m"
    assert render(32 * 2**20, unit="bytes") == "32MiB"
    assert render(value=True) == "true"
    assert render({"a.v1": "x", "b.v1": "y"}) == "a.v1=x,b.v1=y"
    assert render(None) == ""
    assert render(frozenset({"b.v1", "a.v1"})) == "a.v1,b.v1"
