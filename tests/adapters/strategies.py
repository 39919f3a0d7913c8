"""Random events, as nasty as the rules allow."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import strategies as st

from sagapost.core.envelope import Event

__all__ = ["events", "texts"]

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
"""Any text UTF-8 can carry, astral planes and control characters included."""

names = texts.filter(lambda text: len(text.encode()) <= 255)
long_texts = texts | st.integers(120, 700).map("x".__mul__) | st.integers(100, 300).map("é".__mul__)
extension_names = st.from_regex(r"[a-z][a-z0-9]{0,19}", fullmatch=True).filter(
    lambda name: name not in Event.__struct_fields__ and name not in ("specversion", "id", "data")
)
moments = st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2100, 1, 1)).flatmap(
    lambda naive: st.sampled_from([UTC, timezone(timedelta(hours=-11)), timezone(timedelta(hours=5, minutes=45))]).map(
        lambda zone: naive.replace(tzinfo=zone)
    )
)

events = st.builds(
    Event,
    id=names,
    source=names,
    type=names,
    time=moments,
    data=st.binary(max_size=400),
    subject=st.none() | long_texts,
    datacontenttype=st.none() | st.sampled_from(["application/json", "text/plain; charset=utf-8", "application/x-é"]),
    dataschema=st.none() | long_texts,
    correlationid=st.none() | long_texts,
    causationid=st.none() | long_texts,
    partitionkey=st.none() | long_texts,
    traceparent=st.none() | texts,
    tracestate=st.none() | long_texts,
    extensions=st.dictionaries(extension_names, long_texts, max_size=3),
)
