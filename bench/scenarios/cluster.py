"""The cluster that `promptmill up` starts: jobs a second over PostgreSQL, Redis and two workers, how fast jobs are
enqueued, one limit for four workers, and the naive design beside it."""

import asyncio
import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from bench import servers
from bench.context import Bench
from bench.measure import BenchError, environment
from bench.mill import PROMPTMILL
from bench.naive import TABLE
from bench.prompts import body, write_lines
from bench.report import Figure, Section, Target

TITLE = "Cluster: PostgreSQL, Redis, Celery workers"
RPM = 6_000
#: An upstream that no worker has: what is submitted for it is enqueued and stays.
_NOBODYS = "http://127.0.0.1:9/v1"


def scenario(bench: Bench) -> Section:
    """Run it."""
    figures: list[Figure] = []
    with (
        servers.fixed(bench.open_files, with_nginx=bench.with_nginx) as (url, what),
        up(bench, url, "--workers", "2", "--max-in-flight", "1000") as cluster,
    ):
        figures += [_enqueue(bench, cluster), *_throughput(bench, cluster), _naive(bench, cluster)]
    figures += _shared_limit(bench)
    return Section(
        TITLE,
        [
            f"promptmill up --workers 2, endpoint: {what}; enqueued and committed are times of the database:",
            "from the batch being made to its being open, and from there to the commit of its last result",
            "naive: one Celery task per prompt (httpx, then INSERT), 8 processes, the same servers and endpoint",
        ],
        figures=figures,
    )


@dataclass(frozen=True, slots=True)
class Cluster:
    """What `promptmill up` started."""

    environ: dict[str, str]
    api_url: str = ""

    def command(self, *words: str | Path) -> str:
        """Run one of promptmill's commands; what it printed."""
        done = subprocess.run(
            [*PROMPTMILL, *words], env=self.environ, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode not in (0, 3):
            raise BenchError(f"promptmill {words[0]}: {done.stderr[-300:]}")
        return done.stdout

    def query(self, statement: str) -> Any:
        """One row of the database."""

        async def ask() -> Any:
            connection = await asyncpg.connect(self.environ["PROMPTMILL_DATABASE_URL"])
            try:
                return await connection.fetchrow(statement)
            finally:
                await connection.close()

        return asyncio.run(ask())

    def submit(self, lines: Path, **changed: str) -> str:
        """Enqueue a file; the batch's id."""
        return Cluster({**self.environ, **changed}).command("submit", lines).strip()

    def finished(self, batch: str) -> Any:
        """Wait for it; its row."""
        self.command("watch", batch, "--json")
        row = self.query(f"SELECT * FROM promptmill_batches WHERE public_id = '{batch}'")  # noqa: S608 - our own id
        if row["succeeded"] != row["total"]:
            raise BenchError(f"of {row['total']} jobs {row['succeeded']} succeeded")
        return row


@contextlib.contextmanager
def up(bench: Bench, url: str, *flags: str) -> Iterator[Cluster]:
    """`promptmill up` while it is entered."""
    data = bench.folder / f"up-{time.monotonic_ns()}"
    bench.folder.chmod(0o755)  # as root, PostgreSQL runs under another user
    log = (bench.folder / "up.log").open("wb")
    process = subprocess.Popen(
        [*PROMPTMILL, "up", "--port", "0", "--data", data, "--base-url", url, *flags],
        env=environment(), stdout=log, stderr=log,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while b"promptmill is up" not in (bench.folder / "up.log").read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"promptmill up: {(bench.folder / 'up.log').read_text()[-500:]}")
            time.sleep(0.1)
        exports = (shlex.split(line)[1] for line in (data / "env").read_text().splitlines() if "export " in line)
        api_url = re.search(r"API +(http://\S+)", (bench.folder / "up.log").read_text())
        yield Cluster(
            {**environment(), **dict(export.split("=", 1) for export in exports)}, api_url[1] if api_url else ""
        )
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        log.close()


def _enqueue(bench: Bench, cluster: Cluster) -> Figure:
    jobs = bench.pick(50_000, 200_000)
    lines = bench.folder / "enqueue.jsonl"
    write_lines(lines, jobs)
    bench.tell(f"enqueueing {jobs:,} jobs")
    batch = cluster.submit(lines, PROMPTMILL_UPSTREAM_URL=_NOBODYS)
    lines.unlink()
    row = cluster.query(f"SELECT * FROM promptmill_batches WHERE public_id = '{batch}'")  # noqa: S608 - our own id
    cluster.command("cancel", batch)
    seconds = row["in_progress_at"] - row["created_at"]
    return Figure("enqueued", jobs / seconds, "jobs/s", Target("≥", 50_000))


def _throughput(bench: Bench, cluster: Cluster) -> list[Figure]:
    jobs = bench.pick(8_000, 30_000)
    lines = bench.folder / "cluster.jsonl"
    write_lines(lines, 200)
    cluster.finished(cluster.submit(lines))  # the lane is known, the workers are warm
    write_lines(lines, jobs)
    bench.tell(f"{jobs:,} jobs at zero latency, two workers")
    row = cluster.finished(cluster.submit(lines))
    lines.unlink()
    rate = jobs / (row["finished_at"] - row["in_progress_at"])
    calls = cluster.query(
        f"SELECT count(*) AS calls FROM promptmill_attempts WHERE batch_id = {row['id']}"  # noqa: S608 - a number
    )
    return [
        Figure("committed at zero latency", rate, "jobs/s", Target("≥", 2_000)),
        Figure("upstream calls per job", calls["calls"] / jobs, ""),
    ]


def _naive(bench: Bench, cluster: Cluster) -> Figure:
    jobs = bench.pick(1_000, 3_000)
    bench.tell(f"{jobs:,} jobs the naive way")
    cluster.query(TABLE)
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "bench.naive", "worker", "-Q", "naive", "-c", "8", "--without-mingle",
         "--without-gossip", "-l", "ERROR"],
        env=cluster.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        send = "import sys; from bench.naive import call\nfor i in range(int(sys.argv[1])): call.delay(i, sys.argv[2])"

        def done() -> int:
            return int(cluster.query("SELECT count(*) AS n FROM naive_results")["n"])

        run_with = {**cluster.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", send, str(jobs), body().decode()], env=run_with, check=True, timeout=120)
        deadline = time.monotonic() + 120
        while done() < jobs // 10:  # warm
            if time.monotonic() > deadline:
                raise BenchError("the naive worker did not begin")
            time.sleep(0.05)
        started, first = time.monotonic(), done()
        while (now_done := done()) < jobs and time.monotonic() < deadline:
            time.sleep(0.05)
        return Figure("naive design", (now_done - first) / (time.monotonic() - started), "jobs/s")
    finally:
        worker.terminate()
        worker.wait(30)


def _shared_limit(bench: Bench) -> list[Figure]:
    jobs = bench.pick(2_000, 6_600)
    lines = bench.folder / "shared.jsonl"
    write_lines(lines, jobs)
    with (
        simulated("--latency", "0.2", "--rpm", str(RPM), "--window", "strict") as url,
        up(bench, url, "--workers", "4", "--rpm", str(RPM), "--max-in-flight", "40") as cluster,
    ):
        bench.tell(f"{jobs:,} jobs, four workers, one limit of {RPM:,} per minute")
        cluster.finished(cluster.submit(lines))
        with urllib.request.urlopen(url.replace("/v1", "/simulate/stats")) as answer:  # noqa: S310 - our own server
            saw = json.load(answer)
    whole_seconds = [count for _, count in saw["per_second"]][1:-1]
    used = sum(whole_seconds) / len(whole_seconds) / (RPM / 60)
    refused = saw["answered"].get("429", 0)
    return [
        Figure("4 workers, 6,000 rpm: used of the rate", used * 100, "%", Target("≥", 97)),
        Figure("4 workers, 6,000 rpm: calls answered 429", refused / saw["requests"] * 100, "%", Target("≤", 0.5)),
        Figure("4 workers, 6,000 rpm: most calls in flight", float(saw["peak_in_flight"]), "", Target("≤", 40)),
    ]


@contextlib.contextmanager
def simulated(*flags: str) -> Iterator[str]:
    """`promptmill simulate` while it is entered; its base URL."""
    process = subprocess.Popen(
        [*PROMPTMILL, "simulate", "--port", "0", *flags], env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        found = re.search(r"http://\S+", process.stdout.readline() if process.stdout else "")
        if not found:
            raise BenchError("promptmill simulate did not start")
        yield found[0]
    finally:
        process.terminate()
        process.wait(30)
