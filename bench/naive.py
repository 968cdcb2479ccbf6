"""What one would write first: a Celery task for every prompt, which calls the endpoint and inserts the answer.

It holds a slot for every call, keeps the prompt in the message, and knows no limits; it is here to be compared with.
"""

import asyncio
import os
from typing import Any

import asyncpg
import httpx
from celery import Celery

app = Celery("naive", broker=os.environ.get("PROMPTMILL_REDIS_URL", ""), set_as_current=False)
app.conf.update(task_ignore_result=True, worker_prefetch_multiplier=4, task_default_queue="naive")

TABLE = "CREATE TABLE IF NOT EXISTS naive_results (id bigint PRIMARY KEY, status int, body bytea)"


class _Process:
    """What a worker process keeps between its tasks."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.http = httpx.Client(timeout=60)
        url = os.environ["PROMPTMILL_DATABASE_URL"]
        self.db: Any = self.loop.run_until_complete(asyncpg.connect(url))


_process: list[_Process] = []


@app.task(name="naive.call")  # type: ignore[untyped-decorator]  # celery ships no types
def call(number: int, body: str) -> None:
    """One prompt."""
    if not _process:
        _process.append(_Process())
    mine = _process[0]
    url = f"{os.environ['PROMPTMILL_UPSTREAM_URL']}/chat/completions"
    answer = mine.http.post(url, content=body, headers={"content-type": "application/json"})
    insert = "INSERT INTO naive_results VALUES ($1, $2, $3)"
    mine.loop.run_until_complete(mine.db.execute(insert, number, answer.status_code, answer.content))
