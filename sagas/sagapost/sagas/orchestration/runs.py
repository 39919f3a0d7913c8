"""Reading and writing the runs of one island, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from sagapost.core.databases import Moments
from sagapost.core.ids import new_id
from sagapost.sagas.island_tables import IslandTables
from sagapost.sagas.orchestration.declaration import IslandStep

__all__ = ["Answered", "Run", "Runs", "StepRow"]


@dataclass(slots=True)
class Run:
    """One run as recorded."""

    id: str
    saga: str
    instance: str
    state: str
    data: Any
    """The state of the user's class, as JSON values."""
    reason: str | None
    by_saga: bool
    cause: str | None
    key: str | None


@dataclass(slots=True)
class StepRow:
    """One step of a run as recorded."""

    name: str
    position: int
    stage: int
    state: str
    attempt: int
    uncertain: bool
    undo: bool
    reason: str | None
    task: int | None


@dataclass(frozen=True, slots=True)
class Answered:
    """The command that an event answers."""

    run: str
    saga: str
    step: str
    undo: bool


class Runs:
    """Statements for one island on one session. The caller holds the lock on the saga's row."""

    def __init__(
        self, tables: IslandTables, session: AsyncSession, moments: Moments, *, service: str, island: str
    ) -> None:
        self._tables = tables
        self._session = session
        self._moments = moments
        self._service = service
        self._island = island

    async def begin(
        self, saga: str, instance: str, data: Any, steps: Sequence[IslandStep], *, cause: str | None, key: str | None
    ) -> Run | None:
        """Write a new run with its steps; None if there is one of this instance already."""
        runs = self._tables.runs
        run = Run(new_id(), saga, instance, "running", data, None, by_saga=False, cause=cause, key=key)
        once = self._moments.kit.insert_once(runs)
        created = (
            await self._session.execute(
                once.values(
                    id=run.id,
                    service=self._service,
                    island=self._island,
                    saga=saga,
                    instance=instance,
                    state=run.state,
                    data=data,
                    by_saga=False,
                    cause=cause,
                    partitionkey=key,
                ).returning(runs.c.id)
            )
        ).scalar_one_or_none()
        if created is None:
            return None
        await self._session.execute(
            insert(self._tables.steps),
            [
                {
                    "run": run.id,
                    "step": step.name,
                    "position": step.position,
                    "stage": step.stage,
                    "state": "pending",
                    "attempt": 0,
                    "uncertain": False,
                    "undo": False,
                }
                for step in steps
            ],
        )
        return run

    async def find(self, run: str) -> Run | None:
        """Return a run of this island."""
        runs = self._tables.runs
        row = (
            await self._session.execute(
                select(runs).where(runs.c.id == run, runs.c.service == self._service, runs.c.island == self._island)
            )
        ).one_or_none()
        if row is None:
            return None
        return Run(
            row.id,
            row.saga,
            row.instance,
            row.state,
            row.data,
            row.reason,
            by_saga=row.by_saga,
            cause=row.cause,
            key=row.partitionkey,
        )

    async def of_saga(self, saga: str) -> list[str]:
        """Return the runs of this island in a saga, in the order of their start."""
        runs = self._tables.runs
        found = await self._session.execute(
            select(runs.c.id)
            .where(runs.c.service == self._service, runs.c.saga == saga, runs.c.island == self._island)
            .order_by(runs.c.started_at, runs.c.id)
        )
        return list(found.scalars())

    async def answered(self, command: str) -> Answered | None:
        """Return the command of this island with this event id. Reads what never changes, so no lock is needed."""
        commands, runs = self._tables.commands, self._tables.runs
        row = (
            await self._session.execute(
                select(commands.c.run, runs.c.saga, commands.c.step, commands.c.undo)
                .join(runs, runs.c.id == commands.c.run)
                .where(commands.c.id == command, runs.c.service == self._service, runs.c.island == self._island)
            )
        ).one_or_none()
        return Answered(row.run, row.saga, row.step, row.undo) if row is not None else None

    async def steps(self, run: str) -> list[StepRow]:
        """Return the steps in the order of declaration."""
        steps = self._tables.steps
        rows = await self._session.execute(select(steps).where(steps.c.run == run).order_by(steps.c.position))
        return [
            StepRow(
                row.step,
                row.position,
                row.stage,
                row.state,
                row.attempt,
                uncertain=row.uncertain,
                undo=row.undo,
                reason=row.reason,
                task=row.task,
            )
            for row in rows
        ]

    async def save(self, run: Run, step: StepRow) -> None:
        """Write a step back."""
        steps = self._tables.steps
        await self._session.execute(
            update(steps)
            .where(steps.c.run == run.id, steps.c.step == step.name)
            .values(
                state=step.state,
                attempt=step.attempt,
                uncertain=step.uncertain,
                undo=step.undo,
                reason=step.reason,
                task=step.task,
                changed_at=self._moments.now(),
            )
        )

    async def save_run(self, run: Run) -> None:
        """Write a run back."""
        runs = self._tables.runs
        ended = run.state in {"completed", "rolled_back"}
        await self._session.execute(
            update(runs)
            .where(runs.c.id == run.id)
            .values(
                state=run.state,
                data=run.data,
                reason=run.reason,
                by_saga=run.by_saga,
                ended_at=self._moments.now() if ended else None,
            )
        )

    async def sent(self, command: str, run: Run, step: StepRow) -> None:
        """Remember a command, so that its answer is known for one."""
        await self._session.execute(
            insert(self._tables.commands).values(
                id=command, run=run.id, step=step.name, attempt=step.attempt, undo=step.undo
            )
        )
