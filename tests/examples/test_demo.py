"""`make demo`: what it reports is true, it notices when something is wrong, and it leaves nothing behind."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from sqlalchemy import delete, update
from sqlalchemy.ext.asyncio import AsyncSession

from examples.streamtech import demo, many_orders, orders, processes, warehouse
from examples.streamtech.audit import Audit
from examples.streamtech.embedded import Embedded, embedded
from tests.servers.binaries import find_rabbitmq
from tests.servers.waiting import poll

ROOT = Path(__file__).resolve().parents[2]
SEED = 20240229
GOOD = Audit(
    orders=20, confirmed=12, cancelled=8, undone=2, published=40, handled=60, suppressed=20, waiting=0,
    lost=frozenset(), doubled=0, ghosts=0,
)  # fmt: skip


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """A run in the background ignores SIGINT, and so would the processes that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Silent:
    """A report that nobody reads."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def advance(self, what: str, steps: int) -> None:
        """Do nothing."""


def environment(**settings: str) -> dict[str, str]:
    """Return the environment of a demo: none of the variables that it listens to but these."""
    kept = {name: value for name, value in os.environ.items() if name not in {"SERVERS", "ORDERS", "SCENARIO"}}
    return kept | {"PYTHONUTF8": "1", "PYTHONWARNINGS": "error"} | settings


def command(folder: Path, *arguments: str) -> list[str]:
    """Return the command line of a demo."""
    module = [sys.executable, "-m", "examples.streamtech.demo"]
    return [*module, "--seed", str(SEED), "--folder", str(folder), *arguments]


def figures(output: str) -> dict[str, int]:
    """Read the table."""
    return {name.strip(): int(count) for name, count in re.findall(r"^│ (.+?) │ +(\d+) │$", output, re.MULTILINE)}


# --- embedded ---


def test_the_demo_balances(tmp_path: Path) -> None:
    """100 orders through both services, 20 events sent twice: each figure is what must come out, and the code is 0."""
    ran = subprocess.run(
        command(tmp_path, "--orders", "100"), cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"Seed {SEED}." in ran.stdout
    assert "orders answered: 100 of 100" in ran.stdout
    found = figures(ran.stdout)
    undone = found.pop("rolled back on purpose")
    # Twenty events were sent twice, some to one service and some to both.
    assert 20 <= found.pop("duplicates suppressed") <= 40
    confirmed, cancelled = found.pop("confirmed"), found.pop("cancelled, out of stock")
    assert found == {
        "orders placed": 100,
        "events published": 200,
        "events handled": 300,
        "of rolled-back orders, events or rows (must be 0)": 0,
        "effects doubled (must be 0)": 0,
        "lost (must be 0)": 0,
    }
    assert confirmed + cancelled == 100
    # The seed decides what is ordered, and the stock is 120 units.
    assert min(undone, confirmed, cancelled) > 5
    for name in ("orders", "warehouse"):
        assert (tmp_path / f"{name}.db").exists(), "what the demo says one can look at is there"


def test_the_variables_of_make_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make demo ORDERS=20` comes in as an environment variable."""
    monkeypatch.setenv("ORDERS", "20")
    monkeypatch.setenv("SERVERS", "")
    monkeypatch.setattr(sys, "argv", ["demo", "--folder", str(tmp_path), "--seed", "1"])
    asked: list[int] = []

    async def play(_: object, count: int, *__: object) -> Audit:
        asked.append(count)
        return GOOD

    monkeypatch.setattr(demo, "play", play)
    assert demo.main() == 0
    assert asked == [20]


@pytest.mark.parametrize("orders_wanted", ["19", "many"])
def test_a_wrong_number_of_orders_is_refused(tmp_path: Path, orders_wanted: str) -> None:
    """With the usage, and with exit code 2; before anything is started."""
    ran = subprocess.run(
        command(tmp_path / "new"),
        cwd=ROOT, env=environment(ORDERS=orders_wanted), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "--orders" in ran.stderr
    assert not (tmp_path / "new").exists()


def test_only_files_of_the_demo_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that holds something else keeps it."""
    (tmp_path / "orders.db").write_text("of an earlier run")
    (tmp_path / "thesis.txt").write_text("of a person")
    monkeypatch.setattr(sys, "argv", ["demo", "--folder", str(tmp_path)])

    async def play(*_: object) -> Audit:
        return GOOD

    monkeypatch.setattr(demo, "play", play)
    assert demo.main() == 0
    assert (tmp_path / "thesis.txt").read_text() == "of a person"
    assert (tmp_path / "orders.db").read_bytes().startswith(b"SQLite")


# --- it notices ---


class Sabotaged(Embedded):
    """A deployment in which one effect is lost and another one doubled, after all services have ended."""

    async def stop(self) -> None:
        """Tamper with the databases when nobody is looking."""
        await super().stop()
        async with AsyncSession(self.engine("warehouse")) as session, session.begin():
            reservation = await session.scalar(warehouse.Reservation.__table__.select().limit(1))
            await session.execute(delete(warehouse.Reservation).where(warehouse.Reservation.order_id == reservation))
            session.add(warehouse.Reservation(order_id=uuid4(), item="giant-steps", quantity=1))


async def test_a_lost_and_a_doubled_effect_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order whose reservation is gone is named; a reservation that nobody ordered counts as doubled."""
    monkeypatch.setattr("examples.streamtech.embedded.Embedded", Sabotaged)
    async with embedded(tmp_path) as deployment:
        found = await many_orders.play(deployment, 30, random.Random(SEED), Silent())
    assert len(found.lost) == 1
    assert found.doubled > 0
    assert str(next(iter(found.lost))) in found.complaints[0]


async def test_an_order_that_is_never_answered_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo does not wait for ever: what does not move is given up, and counted."""
    monkeypatch.setattr(many_orders, "_PATIENCE", 1.0)

    class Forgetful(Embedded):
        async def stop(self) -> None:
            await super().stop()
            async with AsyncSession(self.engine("orders")) as session, session.begin():
                await session.execute(update(orders.Order).values(status=orders.Status.PLACED))

        async def disturb(self) -> str | None:
            await super().stop()
            return "everything"

    monkeypatch.setattr("examples.streamtech.embedded.Embedded", Forgetful)
    async with embedded(tmp_path) as deployment:
        found = await many_orders.play(deployment, 40, random.Random(SEED), Silent())
    assert len(found.lost) == 40
    # The later half never left the outbox, and the balance says where it is.
    assert found.waiting >= 20
    assert any("events were due" in complaint for complaint in found.complaints)


async def test_an_event_outside_the_transaction_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake that an outbox is there to prevent, made on purpose: the balance shows ghosts."""

    async def dual_write(session: AsyncSession, item: str, quantity: int) -> orders.Order:
        order = orders.Order(id=uuid4(), customer="ada", item=item, quantity=quantity, cents=2000)
        async with AsyncSession(session.bind) as other, other.begin():
            await orders.service.publish(
                other, orders.OrderPlaced(order.id, "ada", item, quantity, 2000), key=str(order.id)
            )
        session.add(order)
        return order

    monkeypatch.setattr(orders, "place_order", dual_write)
    async with embedded(tmp_path) as deployment:
        found = await many_orders.play(deployment, 30, random.Random(SEED), Silent())
    assert found.undone > 0
    assert found.ghosts == found.undone
    assert any("left something" in complaint for complaint in found.complaints)


@pytest.mark.parametrize(
    "broken",
    [
        replace(GOOD, lost=frozenset({uuid4()})),
        replace(GOOD, doubled=1),
        replace(GOOD, ghosts=1),
        replace(GOOD, handled=59),
    ],
    ids=["lost", "doubled", "ghosts", "not handled"],
)
def test_what_must_be_zero_decides_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: Audit
) -> None:
    """Any complaint ends the demo with code 1, in a sentence."""

    async def play(*_: object) -> Audit:
        return broken

    monkeypatch.setattr(demo, "play", play)
    monkeypatch.setattr(sys, "argv", ["demo", "--folder", str(tmp_path)])
    assert demo.main() == 1
    (complaint,) = broken.complaints
    assert complaint in capsys.readouterr().out


# --- on servers ---


def test_missing_servers_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the programs of a broker: which, what to install, what works without; exit code 2."""

    def missing(_: object) -> None:
        return None

    monkeypatch.setattr(processes, "find_rabbitmq", missing)
    monkeypatch.setattr(sys, "argv", ["demo", "--servers", "--folder", str(tmp_path)])
    assert demo.main() == 2
    said = capsys.readouterr().out
    assert "Not on this machine: RabbitMQ (install rabbitmq-server, and Erlang with it)." in said
    assert "Without SERVERS=1 it needs neither." in said


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that holds everything a demo starts: servers of other users get through to it, unlike `tmp_path`."""
    if find_rabbitmq(os.environ) is None:
        pytest.skip("no RabbitMQ here for the demo to start")
    folder = Path(tempfile.mkdtemp(prefix="demo-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


def inhabitants(place: Path) -> list[psutil.Process]:
    """Return the processes that work in a folder."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.cwd().startswith(f"{place}/"):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.servers
@pytest.mark.timeout(300)
def test_the_demo_balances_on_servers(place: Path) -> None:
    """PostgreSQL, RabbitMQ, six processes, a relay killed half-way: the same figures, and duplicates of the kill."""
    ran = subprocess.run(
        command(place / "data", "--servers", "--orders", "60"),
        cwd=ROOT, env=environment(TMPDIR=str(place)), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "killed the relay of orders (SIGKILL)" in ran.stdout
    found = figures(ran.stdout)
    assert found["confirmed"] + found["cancelled, out of stock"] == found["orders placed"] == 60
    assert (found["events published"], found["events handled"]) == (120, 180)
    # The killed relay may have left some that were published and not deleted: its successor published them again.
    assert 20 <= found["duplicates suppressed"] <= 2 * (20 + 60)
    assert [count for name, count in found.items() if "must be 0" in name] == [0, 0, 0]
    assert inhabitants(place) == []
    assert [each.name for each in place.iterdir()] == ["data"]


@pytest.mark.servers
@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "SIGKILL"])
def test_nothing_is_left_of_a_demo_that_was_ended(place: Path, end: signal.Signals) -> None:
    """Servers and services go, and the run's folder with them: by the demo itself, or by its guard when it cannot."""
    with subprocess.Popen(
        command(place / "data", "--servers", "--orders", "400"),
        cwd=ROOT, env=environment(TMPDIR=str(place), PYTHONUNBUFFERED="1"), stdout=subprocess.PIPE, text=True,
    ) as ran:  # fmt: skip
        assert ran.stdout is not None
        try:
            for line in ran.stdout:
                if "orders placed: 100 of 400" in line:
                    break
            working_in = [process.cwd() for process in inhabitants(place)]
            assert sum("/service-" in folder for folder in working_in) == 5, working_in
            ran.send_signal(end)
            rest = ran.stdout.read()
            status = ran.wait(60)
        finally:
            ran.kill()
    if end == signal.SIGINT:
        assert (status, "Everything that was started has been ended." in rest) == (130, True)
    # The guard ends servers and services, and removes their folder last.
    assert poll(lambda: [each.name for each in place.iterdir()] == ["data"] or None, seconds=30)
    assert inhabitants(place) == []
