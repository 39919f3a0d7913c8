"""Tables of an older release become those of this one: under load, side by side, and after a kill half-way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.pool import StaticPool

from sagapost.core.databases import kit_of
from sagapost.core.errors import SchemaError, UpgradeBlockedError
from sagapost.core.migrations import (
    AddCheck,
    AddColumn,
    AddIndex,
    AddTable,
    ChangeRows,
    DropCheck,
    Migration,
    RebuildTable,
    ValidateCheck,
    statements_of,
)
from sagapost.core.schema import (
    SchemaPart,
    UpgradeProgress,
    check_schema,
    install_schema,
    schema_table,
    upgrade_schema,
)


class Old:
    """Letters as they were in version 1."""

    def __init__(self) -> None:
        metadata = MetaData()
        self.versions = schema_table(metadata, schema=None, prefix="")
        self.letters = Table(
            "letters",
            metadata,
            Column("id", Integer, primary_key=True),
            Column("state", String(10), nullable=False),
            CheckConstraint("state IN ('new', 'gone')", name="letters_states"),
            sqlite_autoincrement=True,
        )
        self.part = SchemaPart("post", 1, (self.letters,))


class New:
    """Letters of version 2 have a weight, another word for a state, an index, and stamps."""

    def __init__(self) -> None:
        metadata = MetaData()
        self.versions = schema_table(metadata, schema=None, prefix="")
        states = CheckConstraint("state IN ('new', 'sent')", name="letters_states")
        heavy = CheckConstraint("weight > 0", name="letters_weigh_something")
        self.letters = Table(
            "letters",
            metadata,
            Column("id", Integer, primary_key=True),
            Column("state", String(10), nullable=False),
            Column("weight", Integer, nullable=False, server_default="1"),
            states,
            heavy,
            sqlite_autoincrement=True,
        )
        by_weight = Index("letters_by_weight", self.letters.c.weight)
        self.stamps = Table("stamps", metadata, Column("id", Integer, primary_key=True))
        renamed = {"state": "CASE state WHEN 'gone' THEN 'sent' ELSE state END"}
        self.migration = Migration(
            2,
            (
                RebuildTable(self.letters, added=frozenset({"weight"}), converted=renamed),
                AddColumn(self.letters.c.weight),
                DropCheck(self.letters, "letters_states", when="gone"),
                ChangeRows(self.letters, pending="state = 'gone'", change="state = 'sent'", key=("id",), chunk=7),
                AddCheck(states),
                ValidateCheck(states),
                AddCheck(heavy),
                ValidateCheck(heavy),
                AddIndex(by_weight),
                AddTable(self.stamps),
            ),
        )
        self.part = SchemaPart("post", 2, (self.letters, self.stamps), migrations=(self.migration,))


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        made = create_engine("sqlite://", poolclass=StaticPool)
    else:
        url: str = request.getfixturevalue("postgresql_url")
        made = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    yield made
    made.dispose()


def old_house(engine: Engine, letters: int = 20) -> None:
    """Install version 1, with letters."""
    old = Old()
    with engine.begin() as connection:
        install_schema(connection, old.versions, [old.part])
        connection.execute(
            insert(old.letters), [{"id": each, "state": "gone" if each % 2 else "new"} for each in range(letters)]
        )


def upgrade(engine: Engine, new: New, report: Callable[[UpgradeProgress], None] = lambda _: None) -> list[str]:
    """Upgrade on a connection of its own."""
    with engine.connect() as connection:
        return upgrade_schema(connection, new.versions, [new.part], report=report, attempts=3)


def form_of(engine: Engine) -> object:
    """Return what a database says of its tables: columns, indexes, checks."""
    inspector = inspect(engine)
    return {
        table: (
            [(column["name"], str(column["type"]), column["nullable"]) for column in inspector.get_columns(table)],
            sorted(str(index["name"]) for index in inspector.get_indexes(table)),
            sorted((str(check["name"]), check["sqltext"]) for check in inspector.get_check_constraints(table)),
        )
        for table in inspector.get_table_names()
    }


def test_an_upgrade_ends_in_the_tables_of_a_fresh_install(engine: Engine) -> None:
    """Columns, indexes and checks alike; rows are kept, and changed where their words changed."""
    new = New()
    with engine.begin() as connection:
        install_schema(connection, new.versions, [new.part])
    fresh = form_of(engine)
    with engine.begin() as connection:
        for table in (*new.part.tables, new.versions):
            table.drop(connection)
    old_house(engine)
    assert upgrade(engine, new) == ["post"]
    assert form_of(engine) == fresh
    with engine.connect() as connection:
        rows = connection.execute(select(new.letters).order_by(new.letters.c.id)).all()
        check_schema(connection, new.versions, new.part, where="here")
    assert rows == [(each, "sent" if each % 2 else "new", 1) for each in range(20)]
    assert upgrade(engine, new) == [], "nothing is left to do"


def test_in_a_transaction_of_the_callers_an_older_version_is_refused(engine: Engine) -> None:
    """`install_schema` stamps no version on tables that it does not change, nor does it change any."""
    old_house(engine)
    new = New()
    with engine.begin() as connection, pytest.raises(SchemaError, match=r"version 1.*needs 2.*db upgrade"):
        install_schema(connection, new.versions, [new.part])
    with engine.connect() as connection, pytest.raises(SchemaError):
        check_schema(connection, new.versions, new.part, where="here")


def test_tables_that_another_tool_made_are_known_by_their_form(engine: Engine) -> None:
    """Without a version on record: of this form, they pass and are recorded; of an older one, they are migrated."""
    new = New()
    with engine.begin() as connection:
        new.letters.metadata.create_all(connection)
        check_schema(connection, new.versions, new.part, where="here")
    assert upgrade(engine, new) == ["post"]
    with engine.begin() as connection:
        for table in (*new.part.tables, new.versions):
            table.drop(connection)
        old = Old()
        old.letters.create(connection)
        with pytest.raises(SchemaError):
            check_schema(connection, new.versions, new.part, where="here")
    assert upgrade(engine, new) == ["post"]
    assert "weight" in {column["name"] for column in inspect(engine).get_columns("letters")}


class Killed(BaseException):
    """The process ends here."""


def test_an_upgrade_killed_before_any_step_is_begun_again(engine: Engine) -> None:
    """At each step in turn; the next upgrade goes on, and ends in the same tables."""
    new = New()
    with engine.begin() as connection:
        install_schema(connection, new.versions, [new.part])
    fresh = form_of(engine)
    killed = 0
    for at in range(1, len(new.migration.steps) + 1):
        with engine.begin() as connection:
            for table in (*new.part.tables, new.versions):
                table.drop(connection, checkfirst=True)
        old_house(engine)

        def kill(progress: UpgradeProgress, at: int = at) -> None:
            if progress.step == at:
                raise Killed

        try:
            upgrade(engine, new, kill)
        except Killed:
            killed += 1
            assert upgrade(engine, new) == ["post"]
        assert form_of(engine) == fresh
    assert killed == (2 if kit_of(engine).rebuilds_tables else 9)


def test_two_upgrades_at_once_take_turns(engine: Engine) -> None:
    """Both end well; the tables are changed once."""
    if kit_of(engine).one_writer:
        pytest.skip("one connection in memory: two upgrades cannot meet")
    old_house(engine, letters=200)
    results: list[list[str]] = []

    def run() -> None:
        results.append(upgrade(engine, New()))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results) == [[], [], ["post"]]


def test_a_table_that_is_locked_all_the_time_stops_the_upgrade_and_no_writer(engine: Engine) -> None:
    """A transaction open elsewhere: the step gives up in time, writers go on, and a later upgrade succeeds."""
    if kit_of(engine).one_writer:
        pytest.skip("one connection in memory: nobody else can hold a lock")
    old_house(engine)
    new = New()
    with engine.connect() as reader:
        reader.execute(text("SELECT count(*) FROM letters"))
        with pytest.raises(UpgradeBlockedError, match=r"letters\.weight"):
            upgrade(engine, new)
        with engine.begin() as writer:
            writer.execute(text("INSERT INTO letters (id, state) VALUES (1000, 'gone')"))
    assert upgrade(engine, new) == ["post"]


def test_a_row_that_breaks_a_new_check_stops_nothing(engine: Engine) -> None:
    """The check holds for what is written from then on; the row of old stays until somebody mends it."""
    if kit_of(engine).rebuilds_tables:
        pytest.skip("a rebuilt table takes no row that breaks its checks")
    old_house(engine)
    new = New()
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE letters ADD COLUMN weight integer NOT NULL DEFAULT 1"))
        connection.execute(text("UPDATE letters SET weight = -1 WHERE id = 3"))
    assert upgrade(engine, new) == ["post"]
    with engine.connect() as connection:
        check_schema(connection, new.versions, new.part, where="here")


def test_positions_do_not_begin_again(engine: Engine) -> None:
    """A rebuilt table that happens to be empty goes on counting where the old one was."""
    if not kit_of(engine).rebuilds_tables:
        pytest.skip("no table is rebuilt here")
    old_house(engine, letters=9)
    new = New()
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM letters"))
    upgrade(engine, new)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO letters (state) VALUES ('new')"))
        assert connection.execute(select(new.letters.c.id)).scalar_one() == 9


def test_the_statements_can_be_printed_and_executed_by_another_tool(engine: Engine) -> None:
    """What `db sql --from 1` prints makes the same tables, executed one after the other."""
    old_house(engine)
    new = New()
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as connection:
        for _step, statement in statements_of(new.part.migrations, engine.dialect, after=1):
            connection.exec_driver_sql(statement)
            if _step.repeated:
                connection.exec_driver_sql(statement)
                connection.exec_driver_sql(statement)
    with engine.connect() as connection:
        assert {row.state for row in connection.execute(select(new.letters))} == {"new", "sent"}
    assert list(statements_of(new.part.migrations, engine.dialect, after=2)) == []


def test_a_database_newer_than_the_code_is_left_alone(engine: Engine) -> None:
    """The older release refuses, and says which side to upgrade."""
    old_house(engine)
    upgrade(engine, New())
    old = Old()

    def attempt(work: Callable[[Connection], object]) -> None:
        with engine.connect() as connection, pytest.raises(SchemaError, match="newer"):
            work(connection)

    attempt(lambda connection: upgrade_schema(connection, old.versions, [old.part]))
    attempt(lambda connection: install_schema(connection, old.versions, [old.part]))
