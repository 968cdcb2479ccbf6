"""The calls under way: from a claimed job, through its attempt and the verdict on it, to the recorder."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from promptmill.job import State
from promptmill.outcome import LANE_FAULTS, Answer, Failure, Outcome, Reason
from promptmill.store.aborts import MESSAGE as CANCELLED_MESSAGE
from promptmill.store.aborts import Aborting
from promptmill.store.claims import Claimed
from promptmill.store.records import Ending
from worker.attempt import BatchContexts, Desk
from worker.caps import Caps
from worker.lane import Lane, Lanes
from worker.limits import Limiter
from worker.probe import KEY_FAULTS, Verdict
from worker.recorder import is_database_away
from worker.retry import Finish, RetryPolicy, decide

log = logging.getLogger("promptmill.worker")


@dataclass(eq=False, slots=True)
class Call:
    """A claimed job with its call under way."""

    job: Claimed
    lane: Lane
    reserved_tokens: float
    started_at: float | None = None  # when the request went out; None: it did not
    task: "asyncio.Task[None] | None" = None
    released: bool = False  # its place in its lane is free
    settled: bool = False  # it has its ending; the probes may go on learning from it
    aborted: Failure | None = None  # why: somebody cancelled it, or its batch, and wanted no more of it


@dataclass(slots=True)
class Counts:
    """What this worker has done so far; the progress view reads it. Jobs are counted when they are written."""

    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    waits: int = 0
    tokens: int = 0
    in_flight: int = 0
    bytes_in_flight: int = 0

    def written(self, endings: Iterable[Ending]) -> None:
        """These are in the database."""
        for ending in endings:
            if ending.state is State.SUCCEEDED:
                self.succeeded += 1
                if isinstance(ending.outcome, Answer):
                    self.tokens += ending.outcome.usage.total_tokens
            elif ending.state is State.FAILED:
                self.failed += 1
            elif ending.attempts > ending.job.attempts:
                self.retried += 1
            else:
                self.waits += 1


def _cancelled(job: Claimed, wanted: Aborting) -> Failure | None:
    """Why the job's call is to be broken off; None: it is not."""
    if job.batch_id in wanted.batch_ids:
        return Failure(Reason.BATCH_CANCELLED, "The batch was cancelled.")
    if job.job_id in wanted.job_ids:
        return Failure(Reason.JOB_CANCELLED, CANCELLED_MESSAGE)
    return None


class Calls:
    """Starts calls and says what becomes of them."""

    def __init__(
        self, desk: Desk, contexts: BatchContexts, lanes: Lanes, limiter: Limiter, *,
        record: Callable[[Ending], None], changed: Callable[[], None], clock: Callable[[], float],
        rng: Callable[[], float],
    ) -> None:  # fmt: skip
        self.counts = Counts()
        self.of_batch: Counter[tuple[int, int]] = Counter()  # (lane id, batch id) → in flight
        self.caps = Caps(limiter, clock=clock, places=self.places)
        self._desk = desk
        self._contexts = contexts
        self._lanes = lanes
        self._record_ending = record
        self._changed = changed
        self._clock = clock
        self._rng = rng
        self._under_way: set[Call] = set()
        self._unwritten: dict[tuple[int, int], Call] = {}  # (job, epoch) → whose place is kept until it is written

    def __len__(self) -> int:
        return len(self._under_way)

    def places(self, batch_id: int) -> int:
        """Calls of the batch that are in flight here, or not written yet."""
        both = (self._under_way, self._unwritten.values())
        return sum(call.job.batch_id == batch_id for calls in both for call in calls)

    def of_tenants(self, lane_id: int) -> Counter[int]:
        """Tenant id → its calls in flight on the lane."""
        found: Counter[int] = Counter()
        for (lane, batch_id), count in self.of_batch.items():
            if lane == lane_id:
                found[self._contexts[batch_id].tenant_id] += count
        return found

    def start(self, lane: Lane, job: Claimed, *, granted_tokens: float) -> None:
        """Send a claimed job, with the permit that was taken for it."""
        reserved = lane.learned.reserve(job.tokens, job.max_tokens)
        lane.started(reserved, granted_tokens, self._clock())
        call = Call(job, lane, reserved)
        self._under_way.add(call)
        self.of_batch[lane.id, job.batch_id] += 1
        if self.caps.in_use:
            self.caps.used(job.batch_id, reserved - granted_tokens)
        self.counts.in_flight += 1
        self.counts.bytes_in_flight += job.body_bytes
        call.task = asyncio.create_task(self._run(call))
        call.task.add_done_callback(lambda _: self._over(call))

    async def wait(self, seconds: float | None) -> None:
        """Until all calls have ended, or for so long."""
        tasks = [call.task for call in self._under_way if call.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    def cancel(self) -> None:
        """Abort every call; the jobs are given back."""
        for call in self._under_way:
            if call.task is not None:
                call.task.cancel()

    def abort(self, wanted: Aborting) -> None:
        """End these calls: their connections are closed, their jobs are cancelled."""
        held = [call for lane in self._lanes for probe in (lane.key, lane.model) for call, _ in probe.held]
        for call in held:
            if why := _cancelled(call.job, wanted):
                self._end(call, State.CANCELLED, why, call.job.attempts)
        for call in self._under_way:
            if call.task is not None and not call.aborted and (why := _cancelled(call.job, wanted)):
                call.aborted = why
                call.task.cancel()

    async def _run(self, call: Call) -> None:
        outcome: Outcome
        try:
            outcome = await self._desk.attempt(call, call.lane.row.upstream, self._contexts)
        except asyncio.CancelledError:
            outcome = Failure(Reason.STOPPED, "stopped before it was answered")
        except Exception as error:
            if is_database_away(error):
                outcome = Failure(Reason.STOPPED, "the database was away before it was sent")
            else:
                # A fault of ours must not lose the job: it fails with a reason, and the log has the stack.
                log.exception("job %d: the attempt broke", call.job.job_id)
                outcome = Failure(Reason.BAD_REQUEST, f"promptmill could not run this job: {type(error).__name__}")
        self._ended(call, outcome)

    def _over(self, call: Call) -> None:
        """Its task is: one that was cancelled before its first step has not said so itself."""
        if call in self._under_way:
            self._ended(call, Failure(Reason.STOPPED, "stopped before it was sent"))

    def _ended(self, call: Call, outcome: Outcome) -> None:
        lane, job = call.lane, call.job
        self._under_way.discard(call)
        self.of_batch[lane.id, job.batch_id] -= 1
        if not self.of_batch[lane.id, job.batch_id]:
            del self.of_batch[lane.id, job.batch_id]  # batches come and go
        self.counts.in_flight -= 1
        self.counts.bytes_in_flight -= job.body_bytes
        known = lane.model.proven
        error = lane.ended(
            outcome, started_at=call.started_at, reserved_tokens=call.reserved_tokens, now=self._clock(), rng=self._rng
        )
        if self.caps.in_use:
            self.caps.used(job.batch_id, error)
        if call.aborted and not isinstance(outcome, Answer):
            self._end(call, State.CANCELLED, call.aborted, job.attempts)
        if self._is_waited_for(call) and isinstance(outcome, Failure) and outcome.reason in LANE_FAULTS:
            self._end(call, State.FAILED, outcome, job.attempts + 1)  # who holds the line is told now
        self._ask_key(lane, lane.key.verdict(call, outcome))
        if lane.model.proven and not known:
            self._lanes.opened(lane)
        if (job.job_id, job.epoch) not in self._unwritten:  # it is held: that may take as long as the others do
            call.released = True
            self._release(call)
        self._changed()

    def _release(self, call: Call) -> None:
        call.lane.released()
        if self.caps.in_use:
            self.caps.released(call.job.batch_id)

    def written(self, endings: Iterable[Ending]) -> None:
        """These are in the database."""
        self.counts.written(endings)
        for ending in endings:
            call = self._unwritten.pop((ending.job.job_id, ending.job.epoch), None)
            if call is not None:
                self._release(call)

    def _ask_key(self, lane: Lane, verdict: "Verdict[Call]") -> None:
        """What the upstream's key probe says; what is not about the key goes on to the lane's model probe."""
        if verdict.halt is not None:
            self._lanes.halt(lane, verdict.halt, whole_upstream=True)
        for call, outcome in verdict.give_back:
            self._give_back(call, outcome)
        for call, outcome in verdict.decide:
            if isinstance(outcome, Failure) and outcome.reason in KEY_FAULTS:
                self._decide(call, outcome)
            else:
                self._ask_model(call.lane, call.lane.model.verdict(call, outcome))

    def _ask_model(self, lane: Lane, verdict: "Verdict[Call]") -> None:
        if verdict.halt is not None:
            self._lanes.halt(lane, verdict.halt, whole_upstream=False)
        for call, outcome in verdict.give_back:
            self._give_back(call, outcome)
        for call, outcome in verdict.decide:
            self._decide(call, outcome)

    def _is_waited_for(self, call: Call) -> bool:
        return self._contexts[call.job.batch_id].is_held

    def job_ids(self) -> set[int]:
        """The jobs whose calls are under way, or wait for a verdict."""
        held = [call for lane in self._lanes for probe in (lane.key, lane.model) for call, _ in probe.held]
        return {call.job.job_id for call in (*self._under_way, *held)}

    def holds_any(self) -> bool:
        """Are there calls whose verdict waits for others?"""
        return any(lane.key.held or lane.model.held for lane in self._lanes)

    def unheard(self) -> set[int]:
        """Lanes of which something must be heard before calls that are held can be judged, and of which no call is out
        or waits to be written."""
        writing = {call.lane.id for call in self._unwritten.values()}
        asked = {lane.id for lane in self._lanes if lane.model.held and not lane.model.in_flight}
        keys = {lane.row.upstream for lane in self._lanes if lane.key.held and not lane.key.in_flight}
        return (asked | {lane.id for lane in self._lanes if lane.row.upstream in keys}) - writing

    def resolve_held(self, *, lanes: Collection[int] | None = None) -> None:
        """No call is out and none can start, on these lanes or on any: nothing more will be learned about the calls
        that are held."""
        loud = {lane.row.upstream for lane in self._lanes if lanes is not None and lane.id not in lanes}
        for lane in self._lanes:
            if lane.row.upstream not in loud and not lane.key.in_flight:
                self._ask_key(lane, lane.key.nothing_left())
            if (lanes is None or lane.id in lanes) and not lane.model.in_flight:
                self._ask_model(lane, lane.model.nothing_left())

    def give_back_held(self) -> None:
        """The worker ends: what is held is for another one."""
        for lane in self._lanes:
            for probe in (lane.key, lane.model):
                held, probe.held = probe.held, []
                for call, outcome in held:
                    self._give_back(call, outcome)

    def _decide(self, call: Call, outcome: Outcome) -> None:
        job, now = call.job, self._clock()
        tried = job.attempts + 1
        if isinstance(outcome, Answer):
            self._end(call, State.SUCCEEDED, outcome, tried)
            return
        policy = RetryPolicy(max_attempts=self._contexts[job.batch_id].max_attempts)
        decision = decide(outcome, tried, now, policy, self._rng)
        if isinstance(decision, Finish):
            self._end(call, decision.state, outcome, tried)
            return
        paused_until = call.lane.pause.until if call.lane.pause else now
        due = max(decision.not_before, paused_until)
        counted = tried if decision.counts else job.attempts
        if due > now:
            self._end(call, State.WAITING, outcome, counted, not_before=due)
        else:
            self._end(call, State.READY, outcome, counted)

    def _give_back(self, call: Call, outcome: Outcome) -> None:
        self._end(call, State.READY, outcome, call.job.attempts)

    def _end(
        self, call: Call, state: State, outcome: Outcome, attempts: int, *, not_before: float | None = None
    ) -> None:
        if call.settled:
            return
        call.settled = True
        if not call.released:
            self._unwritten[call.job.job_id, call.job.epoch] = call
        self._record_ending(Ending(call.job, state, outcome, attempts, self._clock(), call.started_at, not_before))
