"""No password reaches anything a person or a log collector reads."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sagapost.ops.log_format import HumanFormatter, JsonFormatter
from sagapost.ops.masking import Redactor, SecretUrl, mask_url
from sagapost.ops.settings import InvalidSettingsError, load_settings

PLACES = (
    "postgresql+asyncpg://app:{}@db.example:5432/orders",
    "amqps://app:{}@broker.example/vhost",
    "postgresql://db.example/orders?user=app&password={}",
    "amqp://:{}@localhost/",
)

# Marked at both ends, so that finding either mark in a text is no accident, and means that a part has leaked.
FIRST, LAST = "Zq7", "9xK"
passwords = st.text(max_size=30).map(lambda middle: f"{FIRST}{middle}{LAST}")
quick = settings(max_examples=40, deadline=None)


def leaks(text: str) -> bool:
    """Return whether the beginning or the end of a password is in the text."""
    return FIRST in text or LAST in text


@pytest.mark.parametrize("place", PLACES)
@given(password=passwords)
@example(password=f"{FIRST}@ss/w:rd#?[]%{LAST}")
@quick
def test_an_escaped_password_is_masked_and_the_rest_is_not(place: str, password: str) -> None:
    """With every character percent-encoded as it should be: the host is readable, the password is not."""
    escaped = quote(password, safe="")
    masked = mask_url(place.format(escaped))
    assert not leaks(masked)
    assert masked == place.format("***")


@pytest.mark.parametrize("place", PLACES[:2])
@given(password=passwords)
@example(password=f"{FIRST}secret@word/with:all#of?them{LAST}")
@example(password=f"{FIRST}@5432/{LAST}")
@example(password=f"{FIRST} cd ef {LAST}")
@example(password=f"12345/{LAST}")
@quick
def test_an_unescaped_password_leaks_no_part(place: str, password: str) -> None:
    """Written raw into the URL, where parsers take part of it for the host or the path: no end of it shows."""
    assert not leaks(mask_url(place.format(password)))


@given(password=passwords)
@quick
def test_a_secret_url_shows_its_password_to_nobody_who_prints_it(password: str) -> None:
    """Neither str, repr, format nor a container's repr reveals it; `reveal` does."""
    url = PLACES[0].format(quote(password, safe=""))
    secret = SecretUrl(url)
    for text in (str(secret), repr(secret), f"{secret}", f"{[secret]}", f"{secret!r:>80}"):
        assert not leaks(text)
    assert secret.reveal() == url
    assert secret.password == password


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("postgresql://app@localhost/orders", "postgresql://app@localhost/orders"),
        ("postgresql://app:@localhost/orders", "postgresql://app:***@localhost/orders"),
        ("postgresql://app:p@h1:5432,h2:5433/orders", "postgresql://app:***@h1:5432,h2:5433/orders"),
        ("postgresql:///orders?host=/run/postgresql", "postgresql:///orders?host=/run/postgresql"),
        ("postgresql://h/o?sslmode=require&sslpassword=x", "postgresql://h/o?sslmode=require&sslpassword=***"),
        ("amqp://app:p:q@[::1]:5672/%2F", "amqp://app:***@[::1]:5672/%2F"),
        ("sqlite+aiosqlite:////var/lib/orders.db", "sqlite+aiosqlite:////var/lib/orders.db"),
        ("memory://", "memory://"),
        ("postgresql://app:secret", "postgresql://***"),
        ("no url at all", "***"),
        ("", "***"),
    ],
)
def test_masking_by_hand(url: str, masked: str) -> None:
    """Expected values written by hand, one for each form a URL may have."""
    assert mask_url(url) == masked


@given(password=passwords)
@quick
def test_settings_leak_no_password_in_repr_dump_or_errors(password: str) -> None:
    """The password of a valid URL is not in the settings' repr or dump, that of an invalid one not in the error."""
    escaped = quote(password, safe="")
    right = PLACES[0].format(escaped)
    loaded = load_settings(overrides={"database_url": right})
    held = loaded.settings
    for text in (repr(loaded), str(held), repr(asdict(held)), repr(loaded.values)):
        assert not leaks(text)
    assert loaded.database_url.reveal() == right
    for url in (f"mysql://app:{escaped}@db/x", f"postgresql://app:{escaped}@db:99999/x", f"//app:{password}@db/"):
        with pytest.raises(InvalidSettingsError) as caught:
            load_settings(overrides={"database_url": url})
        assert not leaks(str(caught.value))
        assert not leaks(repr(caught.value.problems))


@given(password=passwords)
@quick
def test_log_lines_leak_no_password_in_use(password: str) -> None:
    """What a driver writes into an error passes the log without the password: message, extra and traceback."""
    url = PLACES[0].format(quote(password, safe=""))
    redact = Redactor([SecretUrl(url)])
    error = ValueError(f"cannot log in with {password} ({password!r})")
    record = logging.makeLogRecord(
        {
            "name": "driver",
            "levelno": logging.ERROR,
            "levelname": "ERROR",
            "msg": f"tried {url} and {password}",
            "exc_info": (ValueError, error, None),
            "dsn": url,
            "deep": {"list": [password, {"password": url}], password: 1},
        }
    )
    assert not leaks(HumanFormatter(redact, colour=False).format(record))
    line = JsonFormatter(redact).format(record)
    assert not leaks(json.dumps(json.loads(line), ensure_ascii=False))


def test_a_url_of_somebody_else_is_masked_too() -> None:
    """A redactor that knows no passwords still recognises the form of a URL with credentials."""
    text = Redactor()("connecting to redis://cache:s3cr3t@cache.example:6379/0 failed")
    assert text == "connecting to redis://cache:***@cache.example:6379/0 failed"


@pytest.mark.parametrize("url", ["amqp://guest:guest@localhost/", "postgresql://app:abc@db/orders"])
def test_a_password_that_hides_nothing_does_not_ruin_the_log(url: str) -> None:
    """`guest:guest`, or a password of three letters, is masked in URLs and left alone in prose."""
    redact = Redactor([SecretUrl(url)])
    assert redact("a guest sang abc") == "a guest sang abc"
    assert redact(f"at {url} there") == f"at {mask_url(url)} there"
