"""How a run goes on: one method for each thing that can happen, each within the transaction it happened in.

Every method is called with the saga's row in `saga_states` locked, which is what start, answer, timeout, decision and
rollback of one saga take turns by: of an answer and a timeout that come at the same time, one finds the step waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Unpack

from sqlalchemy.ext.asyncio import AsyncSession

from sagapost.core.envelope import Event
from sagapost.outbox.options import PublishOptions
from sagapost.sagas.events import IslandEnded, IslandStarted, IslandStepChanged
from sagapost.sagas.orchestration.declaration import IslandStep
from sagapost.sagas.orchestration.messages import Decision, StepDecided, StepTimedOut
from sagapost.sagas.orchestration.plan import IslandPlan
from sagapost.sagas.orchestration.runs import Run, Runs, StepRow
from sagapost.sagas.tasks import Emit, end_task, open_task

__all__ = ["Coordinator"]

_NOT_DONE = frozenset({"pending", "waiting", "stuck", "failed"})


@dataclass(frozen=True, slots=True)
class _Moment:
    """A run with its steps, as read under the lock."""

    run: Run
    steps: Sequence[StepRow]

    def step(self, name: str) -> StepRow | None:
        return next((step for step in self.steps if step.name == name), None)


class Coordinator:
    """The transitions of one island's runs, in one transaction."""

    def __init__(self, island: IslandPlan, session: AsyncSession, runs: Runs) -> None:
        self._island = island
        self._sagas = island.sagas
        self._session = session
        self._runs = runs

    # --- what happens ---

    async def started(self, run: Run) -> None:
        """A run was written: send the commands of its first stage."""
        names = tuple(step.name for step in self._island.steps)
        await self._tell(run, IslandStarted(self._sagas.service, self._island.name, run.id, names))
        await self._advance(_Moment(run, await self._runs.steps(run.id)))

    async def replied(self, run_id: str, step_name: str, payload: object, *, undo: bool) -> None:
        """The step was done, or undone. A second answer, or one to an earlier try, changes nothing more."""
        found = await self._find(run_id, step_name)
        if found is None:
            return
        moment, row, step = found
        run = moment.run
        if undo:
            if row.undo and row.state in {"rolling_back", "stuck"}:
                await self._answered(run, row)
                await self._change(run, row, "rolled_back")
                await self._go_on(moment)
            return
        if row.undo or row.state not in {"waiting", "stuck", "failed"}:
            return
        # `failed` after its last try had no answer: it was done after all.
        await self._answered(run, row)
        if step.note is not None:
            state = self._island.load(run.data)
            changed = step.note(state, payload)
            run.data = self._island.dump(state if changed is None else changed)
            await self._runs.save_run(run)
        row.uncertain = False
        await self._change(run, row, "done")
        if step.pivot and run.state == "running":
            await self._sagas.pivot(self._session, run.saga, reason=f"{step.name} of {self._island.name} is done")
        await self._go_on(moment)

    async def refused(self, run_id: str, step_name: str, event_type: str) -> None:
        """The step could not be done: try again where it says so, else undo the run."""
        found = await self._find(run_id, step_name)
        if found is None:
            return
        moment, row, step = found
        if row.undo or row.state != "waiting":
            return
        await self._answered(moment.run, row)
        if event_type in step.retry_on:
            await self._another_try(moment, row, step, f"answered {event_type}")
        else:
            await self._failed(moment, row, step, f"answered {event_type}")

    async def timed_out(self, timeout: StepTimedOut) -> None:
        """No answer came in time. Where one came first, or another try has begun, there is nothing to do."""
        found = await self._find(timeout.run, timeout.step)
        if found is None:
            return
        moment, row, step = found
        waiting = row.state == ("rolling_back" if timeout.undo else "waiting")
        if not waiting or row.undo != timeout.undo or row.attempt != timeout.attempt:
            return
        if not row.undo:
            row.uncertain = True
        await self._another_try(moment, row, step, f"no answer to try {row.attempt} in time")

    async def decided(self, run_id: str, step_name: str, decision: Decision) -> None:
        """A person has decided. Where the step has gone on meanwhile, the decision comes too late."""
        found = await self._find(run_id, step_name)
        if found is None:
            return
        moment, row, step = found
        if row.state != "stuck":
            return
        # The task is resolved; it is no longer ours to end.
        row.task, row.attempt = None, 0
        match decision:
            case "retry":
                await self._send(moment.run, row, step, None)
            case "done":
                row.uncertain = False
                await self._change(moment.run, row, "rolled_back" if row.undo else "done", "settled by a person")
                await self._go_on(moment)
            case "give-up":
                await self._change(moment.run, row, "failed", "given up by a person")
                await self.undo(moment.run, f"{row.name}: given up by a person", by_saga=False)

    async def undo(self, run: Run, reason: str, *, by_saga: bool) -> None:
        """Undo what was done, newest step first."""
        if run.state in {"rolling_back", "rolled_back"}:
            return
        run.state, run.reason, run.by_saga = "rolling_back", reason, by_saga
        await self._runs.save_run(run)
        await self._undo_next(_Moment(run, await self._runs.steps(run.id)))

    # --- forward ---

    async def _go_on(self, moment: _Moment) -> None:
        match moment.run.state:
            case "running":
                await self._advance(moment)
            case "rolling_back":
                await self._undo_next(moment)
            case "rolled_back":
                # It was done after the rest had been undone: undo this too. The failure has been announced.
                moment.run.state, moment.run.by_saga = "rolling_back", True
                await self._runs.save_run(moment.run)
                await self._undo_next(moment)
            case _:
                return

    async def _advance(self, moment: _Moment) -> None:
        """Send what comes next, unless the saga is being rolled back: then the rollback will come for this run."""
        run = moment.run
        if not await self._island.goes_on(self._session, run.saga):
            return
        while True:
            stages = [row.stage for row in moment.steps if row.state in _NOT_DONE]
            if not stages:
                await self._complete(run)
                return
            stage = min(stages)
            for row in moment.steps:
                if row.stage != stage or row.state != "pending":
                    continue
                step = self._island.step_named(row.name)
                if step.when is not None and not step.when(self._island.load(run.data)):
                    await self._change(run, row, "skipped")
                else:
                    row.attempt = 0
                    await self._send(run, row, step, None)
            if any(row.stage == stage and row.state in _NOT_DONE for row in moment.steps):
                return

    async def _complete(self, run: Run) -> None:
        run.state = "completed"
        await self._runs.save_run(run)
        if self._island.completed is not None:
            await self._publish(run, self._island.completed(self._island.load(run.data)))
        await self._tell(run, IslandEnded(self._sagas.service, self._island.name, run.id, "completed"))

    async def _send(self, run: Run, row: StepRow, step: IslandStep, delay: timedelta | None) -> None:
        """Send the step's command, or that of its undoing, as the next try; after `delay` if there is one."""
        build = step.undo if row.undo else step.build
        if build is None:
            raise ValueError(f"step {step.name!r} has no compensation")
        row.attempt += 1
        payload = build(self._island.load(run.data))
        now = await self._sagas.now(self._session)
        due = now + delay if delay else None
        if due is None:
            command = await self._publish(run, payload)
        else:
            command = await self._publish(run, payload, deliver_at=due, name=self._alarm(run, row, "command"))
        await self._runs.sent(command.id, run, row)
        waits = step.undone if row.undo else step.replies
        if step.deadline is not None and waits:
            await self._publish(
                run,
                StepTimedOut(run.id, row.name, row.attempt, row.undo),
                type=self._island.timeout_type,
                deliver_at=(due or now) + step.deadline,
                name=self._alarm(run, row, "deadline"),
                key=None,
            )
        await self._change(
            run, row, "rolling_back" if row.undo else "waiting", row.reason if row.attempt > 1 else None
        )

    async def _another_try(self, moment: _Moment, row: StepRow, step: IslandStep, reason: str) -> None:
        run = moment.run
        row.reason = reason
        wanted = row.undo or (run.state == "running" and await self._island.goes_on(self._session, run.saga))
        if wanted and row.attempt < step.retry.rounds:
            await self._send(run, row, step, step.retry.delay(row.attempt, await self._sagas.now(self._session)))
        elif row.undo or (wanted and step.escalate):
            await self._ask(moment, row, reason)
        else:
            await self._failed(moment, row, step, reason)

    async def _failed(self, moment: _Moment, row: StepRow, step: IslandStep, reason: str) -> None:
        run = moment.run
        if run.state == "running" and self._past_pivot(moment):
            # Past the point of no return there is only forward.
            await self._ask(moment, row, reason)
            return
        await self._change(run, row, "failed", reason)
        if run.state == "running":
            await self.undo(run, f"{step.name}: {reason}", by_saga=False)
        else:
            await self._undo_next(moment)

    def _past_pivot(self, moment: _Moment) -> bool:
        return any(row.state == "done" and self._island.step_named(row.name).pivot for row in moment.steps)

    # --- back ---

    async def _undo_next(self, moment: _Moment) -> None:
        """Undo the newest step that had an effect, or may have had; older ones wait for it."""
        run = moment.run
        for row in moment.steps:
            await self._call_off(run, row)
        if any(
            row.state in {"waiting", "rolling_back"} or (row.state == "stuck" and row.undo) for row in moment.steps
        ):
            # A sibling of the failed step is still at it; its answer or its deadline comes.
            return
        for row in reversed(moment.steps):
            step = self._island.step_named(row.name)
            if step.undo is None or not (row.state == "done" or (row.state == "failed" and row.uncertain)):
                continue
            row.undo, row.attempt = True, 0
            await self._send(run, row, step, None)
            if step.undone:
                return
            await self._change(run, row, "rolled_back")
        await self._undone(run)

    async def _call_off(self, run: Run, row: StepRow) -> None:
        """Take back what is not on its way yet: a try that waits for its time, or for a person."""
        if row.undo:
            return
        if row.state == "stuck":
            await self._answered(run, row)
            await self._change(run, row, "failed", row.reason)
        elif row.state == "waiting" and await self._cancel(run, row, "command"):
            await self._cancel(run, row, "deadline")
            await self._change(run, row, "failed", row.reason)

    async def _undone(self, run: Run) -> None:
        run.state = "rolled_back"
        await self._runs.save_run(run)
        if self._island.failed is not None and not run.by_saga:
            await self._publish(run, self._island.failed(self._island.load(run.data), run.reason or ""))
        await self._tell(run, IslandEnded(self._sagas.service, self._island.name, run.id, "rolled_back", run.reason))
        await self._session.execute(self._sagas.ledger(self._session).poke(run.saga))

    # --- small parts ---

    async def _find(self, run_id: str, step_name: str) -> tuple[_Moment, StepRow, IslandStep] | None:
        run = await self._runs.find(run_id)
        if run is None:
            return None
        moment = _Moment(run, await self._runs.steps(run_id))
        row = moment.step(step_name)
        return (moment, row, self._island.step_named(step_name)) if row is not None else None

    async def _ask(self, moment: _Moment, row: StepRow, reason: str) -> None:
        """Let a person decide how the step goes on."""
        run = moment.run
        decisions: tuple[Decision, ...] = ("retry", "done")
        if not row.undo and not self._past_pivot(moment):
            decisions = ("retry", "done", "give-up")
        what = "rolling back " if row.undo else ""
        row.task = await open_task(
            self._sagas,
            self._session,
            run.saga,
            f"{self._island.name}.{row.name}",
            title=f"{what}{row.name} of {self._island.name} does not get done: {reason}",
            outcomes={
                decision: Emit(StepDecided(run.id, row.name, decision), type=self._island.decision_type)
                for decision in decisions
            },
            details={"run": run.id, "instance": run.instance, "attempts": row.attempt, "state": run.data},
            of_rollback=row.undo,
        )
        await self._change(run, row, "stuck", reason)

    async def _answered(self, run: Run, row: StepRow) -> None:
        """Nothing more is waited for: take back deadline, further try and task."""
        await self._cancel(run, row, "deadline")
        await self._cancel(run, row, "command")
        if row.task is not None:
            await end_task(self._sagas, self._session, run.saga, row.task, why="The step has gone on.")
            row.task = None

    async def _change(self, run: Run, row: StepRow, state: str, reason: str | None = None) -> None:
        row.state, row.reason = state, reason
        await self._runs.save(run, row)
        told = IslandStepChanged(self._sagas.service, self._island.name, run.id, row.name, state, row.attempt, reason)
        await self._tell(run, told)

    async def _publish(self, run: Run, payload: object, **options: Unpack[PublishOptions]) -> Event:
        options["correlationid"] = run.saga
        options.setdefault("key", run.key)
        published: Event = await self._sagas.outbox.publish(self._session, payload, **options)
        return published

    async def _cancel(self, run: Run, row: StepRow, what: str) -> bool:
        name = self._alarm(run, row, what)
        return bool(await self._sagas.outbox.cancel(self._session, correlationid=run.saga, name=name))

    def _alarm(self, run: Run, row: StepRow, what: str) -> str:
        return f"{run.id}:{row.position}:{'undo' if row.undo else 'do'}:{what}"

    async def _tell(self, run: Run, payload: object) -> None:
        await self._sagas.tell(self._session, payload, run.saga)
