"""The machine dies; the same line again finishes the job."""

import asyncio
import signal
import subprocess
import time

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.tables import workers
from tests.cli.mill import chats, until


def test_killed_half_way(mill):
    """Every job has one result, and nothing that was answered is sent again but for what was in flight."""
    total, at_once = 600, 20
    server = mill.simulator(latency_seconds=(0.05, 0.3))
    prompts = mill.file("prompts.jsonl", chats(total))
    run = mill.start_work(prompts, server, "--max-in-flight", at_once)
    until(lambda: mill.count_done() >= total // 2 and server.stats.in_flight >= at_once // 2)
    run.kill()
    done = mill.count_done()
    assert done < total
    again = mill.work(prompts, server, "--max-in-flight", 100, "--json")
    assert again.code == 0
    assert f"resuming {again.summary['batch']}: {done:,} of {total:,} are done and not sent again" in again.err
    mill.check_each_job_has_one_result(total)
    assert server.stats.requests - total <= at_once
    assert server.stats.distinct_bodies_answered == total
    assert (again.summary["succeeded"], again.summary["total"]) == (total, total)
    # The ledger knows of the calls whose worker died, and of every other one.
    ledger = dict(mill.rows("SELECT outcome, count(*) FROM attempts GROUP BY 1"))
    assert ledger["succeeded"] == total
    assert 1 <= ledger["worker_lost"] <= at_once


def test_killed_while_the_input_is_read(mill):
    """What it had stored is taken out again. The bad line at the end shows that all is read anew."""
    server = mill.simulator()
    prompts = mill.file("prompts.jsonl", [*chats(40_000), "not JSON"])
    run = mill.start_work(prompts, server)
    until(lambda: mill.db.exists() and mill.rows("SELECT 1 FROM sqlite_master WHERE name LIKE '%_attempts'"))
    until(lambda: mill.count("jobs"))
    run.kill()
    assert mill.rows("SELECT state FROM batches") == [("validating",)]
    again = mill.work(prompts, server)
    assert again.code == 2
    assert "line 40001: " in again.err
    for table in ("batches", "jobs", "files", "file_parts", "results"):
        assert mill.count(table) == 0, table
    assert server.stats.requests == 0


def test_killed_while_results_are_written_leaves_no_half_file(mill):
    """A file appears when it is complete."""
    server = mill.simulator()
    prompts = mill.file("prompts.jsonl", chats(20))
    (mill.folder / "out.jsonl").write_text("from yesterday")
    run = mill.start_work(prompts, server, "--out", "out.jsonl")
    until(lambda: mill.count_done() >= 10)
    run.kill()
    text = (mill.folder / "out.jsonl").read_text()
    assert text == "from yesterday" or len(text.splitlines()) == 20
    assert mill.work(prompts, server, "--out", "out.jsonl").code == 0
    assert len((mill.folder / "out.jsonl").read_text().splitlines()) == 20


def test_killed_on_a_server(mill, postgres_db_url):
    """There the dead worker's jobs are its own until its lease has run out; the next run waits for that."""
    server = mill.simulator(latency_seconds=(0.05, 0.1))
    prompts = mill.file("prompts.jsonl", chats(200))
    line = ["run", prompts, "--db", postgres_db_url, "--base-url", server.url, "--max-in-flight", 10]
    run = mill.start(*line)
    until(lambda: server.stats.answered[200] >= 100)
    run.kill()
    again = mill.start(*line, "--json")
    until(lambda: server.stats.distinct_bodies_answered >= 185)
    assert again.process.poll() is None
    _forget_heartbeats(postgres_db_url)
    ended = again.ended()
    assert ended.code == 0, ended.err
    assert ended.summary["succeeded"] == 200
    assert server.stats.distinct_bodies_answered == 200
    assert server.stats.duplicates <= 10


def _forget_heartbeats(url: str) -> None:
    """As if the lease had run out."""

    async def forget() -> None:
        db = Database(url)
        async with db.write() as connection:
            dead = sa.select(sa.func.min(workers.c.id)).scalar_subquery()
            await connection.execute(
                sa.update(workers).where(workers.c.id == dead).values(heartbeat_at=time.time() - 3600)
            )
        await db.aclose()

    asyncio.run(forget())


def test_what_was_printed_as_the_line_to_resume_with_does_not_begin_anew(mill):
    server = mill.simulator(latency_seconds=(0.2, 0.2))
    prompts = mill.file("prompts.jsonl", chats(40))
    run = mill.start_work(prompts, server, "--fresh", "--max-in-flight", 4)
    until(lambda: mill.count_done() >= 4)
    run.signal(signal.SIGINT)
    ended = run.ended()
    (line,) = (line for line in ended.err.splitlines() if line.startswith("resume with: promptmill "))
    words = line.removeprefix("resume with: promptmill ").split()
    assert mill.run(*words, "--max-in-flight", 40).code == 0
    assert server.stats.duplicates == 0
    assert mill.count("batches") == 1


def test_standard_input_is_resumed_too(mill):
    server = mill.simulator(latency_seconds=(0.05, 0.1))
    data = mill.file("prompts.jsonl", chats(100)).read_bytes()
    run = mill.start_work("-", server, "--max-in-flight", 5, stdin=subprocess.PIPE)
    run.process.stdin.write(data)
    run.process.stdin.close()
    run.process.stdin = None
    until(lambda: mill.count_done() >= 30)
    run.kill()
    assert mill.work("-", server, stdin=data).code == 0
    mill.check_each_job_has_one_result(100)
    assert server.stats.duplicates <= 5
    assert mill.count("batches") == 1
