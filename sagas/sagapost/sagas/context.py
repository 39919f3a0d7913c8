"""What a step of a saga can do beside handling its event: record its undoing, set and cancel deadlines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar, Unpack
from uuid import UUID, uuid5

from sqlalchemy.ext.asyncio import AsyncSession

from sagapost.core.context import current
from sagapost.core.envelope import Event
from sagapost.core.errors import ConfigurationError
from sagapost.inbox.declared.context import Context
from sagapost.outbox.options import PublishOptions
from sagapost.sagas.compensations import NotYet
from sagapost.sagas.deadlines import Deadline
from sagapost.sagas.rollbacks import Rollbacks
from sagapost.sagas.tasks import CHOICES_BESIDE_AN_EFFECT, Outcome, open_task

__all__ = ["CompensationContext", "StepContext"]

_KEYS = UUID("7b1c4a52-6d0e-5c39-9f5e-2f1f0c8e6a4d")
"""The namespace of idempotency keys; never to be changed."""

E = TypeVar("E")
P = ParamSpec("P")


class StepContext(Context):
    """The context of a handler that is a step of a saga. Made by `Sagas.context`."""

    sagas: ClassVar[Rollbacks]

    __slots__ = ()

    @property
    def saga(self) -> str:
        """The saga's correlation id."""
        return self.event.correlationid or self.event.id

    async def rolling_back(self) -> bool:
        """Return whether the saga is being rolled back, or was: then this step comes too late.

        For a step that does what a database cannot undo, before it does it. If False, it stays so until this step has
        ended: a rollback that is asked for meanwhile waits for it.

        :raises Reject: if this event begins a saga that has been here before and is over; let it pass.
        """
        event = self.event
        begun = event.time if event.causationid is None else None
        return await self.sagas.rolling_back(self.session, self.saga, step_event=event.id, begun=begun)

    async def on_rollback(
        self,
        compensation: Callable[Concatenate[CompensationContext, P], Awaitable[NotYet | None]],
        /,
        *positional: P.args,
        **arguments: P.kwargs,
    ) -> bool:
        """Record, in this step's transaction, how to undo it if the saga fails; return whether the saga goes on.

        Compensations of a saga run in reverse order of their recording, each in a transaction of its own. If the saga
        is already rolling back (False), this one is due as soon as the step commits: a late step undoes itself.

        :param compensation: a function registered with `Service.compensation`.
        :param arguments: what it takes after its context, by name; kept as JSON.
        :raises ConfigurationError: if it is not registered, or cannot be called with the arguments.
        :raises EncodingError: if an argument has no JSON form.
        :raises Reject: if this event begins a saga that has been here before and is over; let it pass.
        """
        if positional:
            name = getattr(compensation, "__name__", repr(compensation))
            raise ConfigurationError(
                f"ctx.on_rollback({name}, ...) was given {len(positional)} arguments without a name. They are kept by "
                f"name, so that the function may change: ctx.on_rollback({name}, order=...)."
            )
        event = self.event
        return await self.sagas.record(
            self.session,
            self.saga,
            compensation,
            arguments,
            step_event=event.id,
            key=event.partitionkey,
            begun=event.time if event.causationid is None else None,
        )

    async def deadline(
        self,
        deadline: Deadline[E],
        event: E,
        /,
        *,
        after: timedelta | None = None,
        rolling_back: bool = False,
        **options: Unpack[PublishOptions],
    ) -> Event | None:
        """Publish `event` in this saga when the deadline's time has passed, unless it is taken back first.

        None, and nothing is set, if the saga is over for this service: completed, or being rolled back, or was.

        A scheduled outbox event of this service: it survives restarts and is sent once. One deadline of a name is kept
        per saga and service; setting it again moves it. Take it back with `cancel_deadline` in a later step of the
        same service; the end or rollback of the saga in this service does so too. Reckoned by the database's clock.

        :param after: how long from now; default: what the deadline says.
        :param rolling_back: set it also while the saga is being rolled back, for what belongs to the rollback.
        :raises ConfigurationError: if the event is not of the deadline's class.
        """
        if not isinstance(event, deadline.event):
            given, wanted = type(event).__qualname__, deadline.event.__qualname__
            raise ConfigurationError(f"The deadline {deadline.name!r} publishes {wanted}, not {given}.")
        if not await self.sagas.goes_on(self.session, self.saga, rolling_back=rolling_back):
            return None
        await self.cancel_deadline(deadline)
        options["name"] = self.sagas.deadline_name(deadline.name)
        options["correlationid"] = self.saga
        options["deliver_at"] = await self.sagas.now(self.session) + (deadline.after if after is None else after)
        options.setdefault("key", self.event.partitionkey)
        return await self.publish(event, **options)

    async def cancel_deadline(self, deadline: Deadline[Any]) -> bool:
        """Take a deadline of this saga back; False if there is none, for instance because it has passed."""
        return bool(await self.cancel(correlationid=self.saga, name=self.sagas.deadline_name(deadline.name)))

    async def pivot(self, reason: str) -> bool:
        """Pass the point of no return with this step: from its commit on, the saga is recovered forward.

        Before it, a failure undoes what was done; after it, a rollback that is asked for opens a task instead, and a
        person decides. False if the saga is rolling back already: then this step comes too late, and should not do
        what cannot be undone.

        :param reason: what cannot be undone; shown to whoever asks for a rollback later.
        """
        return await self.sagas.pivot(self.session, self.saga, reason=reason)

    async def complete(self) -> bool:
        """End this service's part of the saga with this step: it ended well, and nothing of it is undone any more.

        Its deadlines are taken back. A rollback that is asked for later opens a task, and a person decides; an event
        that begins a saga under the same id once more is a dead letter. False if the saga is rolling back already.
        """
        return await self.sagas.complete(self.session, self.saga)

    async def open_task(
        self,
        name: str,
        *,
        title: str,
        outcomes: Mapping[str, Outcome] = CHOICES_BESIDE_AN_EFFECT,
        details: Mapping[str, Any] | None = None,
        due: timedelta | None = None,
    ) -> int:
        """Ask a person to decide, and keep what this step did; return the task's number.

        The task is committed with the step. Resolving it (`sagapost tasks resolve`) carries out the chosen outcome
        exactly once. `raise Escalate(...)` does the same and undoes what the step did.

        :param name: what kind of decision it is.
        :param title: what is to be decided, in a sentence.
        :param outcomes: what the person can choose. Default: roll the saga back, or close the task. A
            `RetryStep` would have a second effect, for the first is kept; `Escalate` undoes it.
        :param details: what the person should know; kept as JSON and shown.
        :param due: when the decision is late; only shown.
        """
        return await open_task(
            self.sagas,
            self.session,
            self.saga,
            name,
            title=title,
            outcomes=outcomes,
            details=details,
            due=due,
            step=self,
        )

    async def roll_back(self, reason: str) -> bool:
        """Start the rollback of this service's part of the saga with this step; False if it has started already."""
        return await self.sagas.begin_rollback(self.session, self.saga, reason=reason, cause=self.event.id)


class CompensationContext:
    """What a compensation is given: a transaction, and a way to say what was undone.

    `session` is the transaction that also marks the compensation as done in the ledger: both are committed together
    after the function returns. It must not commit, roll back or close it.
    """

    __slots__ = ("_key", "_sagas", "attempt", "cause", "idempotency_key", "reason", "saga", "session", "step_event")

    def __init__(
        self,
        *,
        session: AsyncSession,
        sagas: Rollbacks,
        saga: str,
        reason: str,
        cause: str | None,
        step_event: str | None,
        attempt: int,
        intent: int,
        key: str | None = None,
    ) -> None:
        self.session = session
        self.saga = saga
        """The saga's correlation id."""
        self.reason = reason
        """Why the saga is rolled back."""
        self.cause = cause
        """The id of the event that started the rollback."""
        self.step_event = step_event
        """The id of the event whose handling is being undone."""
        self.attempt = attempt
        """1 for the first try."""
        self.idempotency_key = str(uuid5(_KEYS, f"{sagas.service}\n{saga}\n{intent}"))
        """For another system that is called: one for each recorded step, the same at each try."""
        self._sagas = sagas
        self._key = key

    async def publish(self, payload: object, /, **options: Unpack[PublishOptions]) -> Event:
        """Publish an event in this transaction and saga; see `Outbox.publish`.

        Its ordering key is by default that of the event whose handling is undone: a refund does not overtake the
        payment.
        """
        options.setdefault("key", self._key)
        running = current()
        options.setdefault("correlationid", running.correlationid if running is not None else self.saga)
        return await self._sagas.outbox.publish(self.session, payload, **options)

    async def cancel_deadline(self, deadline: Deadline[Any]) -> bool:
        """Take a deadline of this saga back; False if there is none, for instance because it has passed."""
        name = self._sagas.deadline_name(deadline.name)
        return bool(await self._sagas.outbox.cancel(self.session, correlationid=self.saga, name=name))
