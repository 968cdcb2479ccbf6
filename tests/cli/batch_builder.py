"""Builds batches as a worker leaves them: jobs with the outcomes that a test asks for, by the store's own steps."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promptmill.engine import Database
from promptmill.job import State
from promptmill.outcome import Answer, Failure, Outcome, Reason, Usage
from promptmill.schema import migrate
from promptmill.store import batches, claims, files, lanes, records, workers
from promptmill.store.batches import BatchRow, NewBatch
from promptmill.store.records import Ending
from promptmill.tables import file_parts, jobs, results

NOW = 1_700_000_000.0

_JOB_COLUMNS = ("batch_id", "position", "lane_id", "file_id", "part", "state", "epoch", "attempts", "bytes", "tokens")
_INVALID_COLUMNS = (
    "batch_id", "position", "job_id", "lane_id", "file_id", "part", "state", "epoch", "attempts", "finished_at",
    "error_code", "error_message", "prompt_tokens", "completion_tokens", "reasoning_tokens", "cached_tokens",
    "encoding",
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A job and what becomes of it: an outcome, invalid (a reason), still running or still ready (None)."""

    custom_id: str
    outcome: Outcome | str | None = None
    attempts: int = 1
    running: bool = False
    state: State | None = None


def chat(text: str, usage: Usage = Usage(10, 5, 3, 2)) -> Answer:  # noqa: B008 - frozen
    body = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}).encode()
    return Answer(200, "application/json", body, usage, "req-1")


def rejected(message: str = "the prompt is too long") -> Failure:
    body = json.dumps({"error": {"message": message}}).encode()
    return Failure(Reason.REJECTED, message, 400, "application/json", body, None, "req-2")


async def made_batch(
    db: Database, wanted: Sequence[Made], *, finish_order: Sequence[int] | None = None, model: str = "m"
) -> BatchRow:
    """The batch, worked on as far as its jobs say. `finish_order` has positions."""
    file_id = await files.create(db, filename="prompts.jsonl", purpose="batch", now=NOW)
    batch = await batches.create(db, NewBatch(file_id=file_id, source="prompts.jsonl", defaults="{}"), now=NOW)
    lane_id = await lanes.ensure(db, "https://up.example/v1", model)
    invalid = {at: made.outcome for at, made in enumerate(wanted) if isinstance(made.outcome, str)}
    async with db.write() as connection:
        parts = [
            (file_id, at, at + 1, None if at in invalid else made.custom_id, "bare", 0, b"{}")
            for at, made in enumerate(wanted)
        ]
        await db.insert(connection, file_parts, files.PART_COLUMNS, parts)
        ready = [(batch.id, at, lane_id, file_id, at, "ready", 0, 0, 2, 1) for at in range(len(wanted))]
        await db.insert(connection, jobs, _JOB_COLUMNS, [row for row in ready if row[1] not in invalid])
        bad = [
            (batch.id, at, 0, 0, file_id, at, State.INVALID.value, 0, 0, NOW, "invalid_json_line",
             f"line {at + 1}: {why}", 0, 0, 0, 0, 0)
            for at, why in invalid.items()
        ]  # fmt: skip
        await db.insert(connection, results, _INVALID_COLUMNS, bad)
    good = len(wanted) - len(invalid)
    await batches.open_(
        db, batch_id=batch.id, jobs_by_lane={lane_id: good} if good else {}, invalid=len(invalid), now=NOW
    )
    await _work(db, batch, lane_id, wanted, finish_order)
    return await batches.get(db, batch.id)


async def _work(
    db: Database, batch: BatchRow, lane_id: int, wanted: Sequence[Made], finish_order: Sequence[int] | None
) -> None:
    worker = await workers.register(db, name="host:1", now=NOW)
    last = max((at for at, made in enumerate(wanted) if made.outcome is not None or made.running), default=-1)
    shares = [(batch.id, last + 1)]
    claimed = await claims.claim(db, worker_id=worker, lane_id=lane_id, shares=shares, max_bytes=1 << 30)
    by_position = {job.position: job for job in claimed}
    endings = []
    for at in finish_order if finish_order is not None else sorted(by_position):
        job, made = by_position[at], wanted[at]
        if made.running or made.outcome is None or isinstance(made.outcome, str):
            continue
        state = made.state or (State.SUCCEEDED if isinstance(made.outcome, Answer) else State.FAILED)
        endings.append(Ending(job, state, made.outcome, made.attempts, NOW + 60 + len(endings), NOW + 1))
    if endings:
        await records.record(db, worker_id=worker, endings=endings, now=NOW + 90)


def make_database(path: Path, *batches_wanted: Sequence[Made], **terms: object) -> list[BatchRow]:
    """A SQLite file with these batches, for tests that are not coroutines themselves (the commands bring a loop)."""

    async def make() -> list[BatchRow]:
        db = Database(str(path))
        try:
            await migrate(db)
            return [await made_batch(db, wanted, **terms) for wanted in batches_wanted]
        finally:
            await db.aclose()

    return asyncio.run(make())
