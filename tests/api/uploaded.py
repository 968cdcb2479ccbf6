"""Files as an upload leaves them, and jobs as a worker leaves them: by the store's own steps, without either."""

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from promptmill.content import pack
from promptmill.engine import Database
from promptmill.job import State
from promptmill.outcome import Answer, Failure, Outcome, Reason, Usage
from promptmill.store import batches, claims, files, records, workers
from promptmill.store.batches import BatchRow
from promptmill.store.records import Ending
from promptmill.tables import DEFAULT_TENANT, file_parts
from promptmill.tables import files as file_rows

OPENAI = {"User-Agent": "OpenAI/Python 3.54.0"}
TOGETHER = {"User-Agent": "Together/Python 3.1.1"}


def line(custom_id: str | None = "a", *, url: str | None = "/v1/chat/completions", text: str = "hi", **body) -> bytes:
    """A line of a batch file."""
    made: dict[str, Any] = {"body": {"model": "m", "messages": [{"role": "user", "content": text}], **body}}
    if custom_id is not None:
        made["custom_id"] = custom_id
    if url is not None:
        made |= {"method": "POST", "url": url}
    return json.dumps(made).encode() + b"\n"


async def uploaded(
    db: Database,
    lines: Iterable[bytes],
    *,
    purpose: str = "batch",
    status: str = "processed",
    tenant_id: int = DEFAULT_TENANT,
) -> str:
    """The public id of a file with these lines."""
    file_id = await files.create(db, filename="prompts.jsonl", purpose=purpose, now=time.time(), tenant_id=tenant_id)
    rows, size = [], 0
    for part, data in enumerate(lines):
        size += len(data)
        rows.append((file_id, part, part + 1, _custom_id(data), None, *pack(data)))
    for start in range(0, len(rows), 5_000):
        async with db.write() as connection:
            await db.insert(connection, file_parts, files.PART_COLUMNS, rows[start : start + 5_000])
    await files.sealed(db, file_id=file_id, size_bytes=size, parts=len(rows))
    async with db.write() as connection:
        named = sa.update(file_rows).where(file_rows.c.id == file_id).values(status=status)
        return (await connection.execute(named.returning(file_rows.c.public_id))).scalar_one()


def _custom_id(data: bytes) -> str | None:
    try:
        found = json.loads(data).get("custom_id")
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def chat(text: str = "an answer", usage: Usage = Usage(10, 5, 3, 2)) -> Answer:  # noqa: B008 - frozen
    body = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}).encode()
    return Answer(200, "application/json", body, usage, "req-1")


def rejected(message: str = "the prompt is too long") -> Failure:
    body = json.dumps({"error": {"message": message}}).encode()
    return Failure(Reason.REJECTED, message, 400, "application/json", body, None, "req-2")


async def row_of(db: Database, public_id: str) -> BatchRow:
    found = await batches.by_public_id(db, public_id, tenant_id=DEFAULT_TENANT)
    assert found is not None
    return found


async def work(
    db: Database, public_id: str, outcomes: Sequence[Outcome], *, order: Sequence[int] | None = None
) -> None:
    """The next jobs of the batch end so, in the order of these places among them."""
    batch = await row_of(db, public_id)
    worker = await workers.register(db, name="host:1", now=time.time())
    claimed = []
    for lane_id in sorted(await batches.unfinished_lanes(db, batch.id)):
        wanted = len(outcomes) - len(claimed)
        if wanted:
            claimed += await claims.claim(
                db, worker_id=worker, lane_id=lane_id, shares=[(batch.id, wanted)], max_bytes=1 << 40
            )
    assert len(claimed) == len(outcomes)
    now = time.time()
    for at in order if order is not None else range(len(claimed)):
        outcome = outcomes[at]
        state = State.SUCCEEDED if isinstance(outcome, Answer) else State.FAILED
        await records.record(
            db, worker_id=worker, endings=[Ending(claimed[at], state, outcome, 1, now, now - 1)], now=now
        )
