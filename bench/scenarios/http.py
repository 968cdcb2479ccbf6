"""The HTTP door: what the gateway adds to a call, how many it holds, how fast single jobs are taken, a large upload and
a large download."""

import asyncio
import contextlib
import json
import re
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import servers
from bench.context import Bench
from bench.http_client import Connection, crowd
from bench.measure import BenchError, environment
from bench.mill import PROMPTMILL
from bench.prompts import MODEL, body, write_lines
from bench.report import Figure, Section, Target
from bench.scenarios.cluster import Cluster, simulated, up

TITLE = "HTTP: gateway, single jobs, upload, download"
_MIB = 1024 * 1024


def scenario(bench: Bench) -> Section:
    """Run it."""
    figures: list[Figure] = []
    with servers.waiting(latency=0.05) as url, _serve(bench, url) as server:
        figures.append(_added(bench, url, server, "SQLite"))
    figures += _held(bench)
    with servers.fixed(bench.open_files, with_nginx=bench.with_nginx) as (url, what):
        with _serve(bench, url) as server:
            figures += [*_upload(bench, server), *_download(bench, server)]
        with up(bench, url, "--workers", "2", "--max-in-flight", "1000") as cluster:
            figures += _singles(bench, cluster)
            figures.append(_added(bench, url, _Server(cluster.api_url, 0), "PostgreSQL, Redis, Celery"))
    return Section(
        TITLE,
        [
            "gateway: the same request sent to the endpoint itself and through it, in turns, one at a time; 50 ms each",
            f"single jobs: 500 connections, each one POST /v1/jobs after the other; endpoint: {what}",
        ],
        figures=figures,
    )


@dataclass(frozen=True, slots=True)
class _Server:
    url: str
    process: int

    def memory_mib(self) -> float:
        """Most memory that the process ever held."""
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.process}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0


@contextlib.contextmanager
def _serve(bench: Bench, upstream: str, *flags: str) -> Iterator[_Server]:
    """`promptmill serve` on a SQLite file while it is entered."""
    db = bench.folder / f"serve-{time.monotonic_ns()}.sqlite3"
    process = subprocess.Popen(
        [*PROMPTMILL, "serve", "--port", "0", "--db", db, "--base-url", upstream, "--max-in-flight", "1000", *flags],
        env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        found = None
        while found is None and (line := process.stderr.readline() if process.stderr else ""):
            found = re.search(r"serves (http://\S+?)/v1", line)
        if found is None:
            raise BenchError("promptmill serve did not start")
        yield _Server(found[1], process.pid)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()


def _added(bench: Bench, upstream: str, server: _Server, where: str) -> Figure:
    calls = bench.pick(100, 400)
    bench.tell(f"{calls} calls through the gateway and beside it ({where})")

    async def measure() -> tuple[list[float], list[float]]:
        direct = await Connection.open(upstream)
        through = await Connection.open(server.url)
        seconds: tuple[list[float], list[float]] = [], []
        for _ in range(calls):
            for place, connection in enumerate((direct, through)):
                answer = await connection.request("POST", "/v1/chat/completions", body())
                if answer.status != 200:
                    raise BenchError(f"answered {answer.status}: {answer.body[:200]!r}")
                seconds[place].append(answer.seconds)
        direct.close()
        through.close()
        return seconds

    direct, through = asyncio.run(measure())
    added = (statistics.median(through) - statistics.median(direct)) * 1000
    return Figure(f"the gateway adds, median ({where})", added, "ms", Target("≤", 15))


def _held(bench: Bench) -> list[Figure]:
    """1,000 callers at once, and whether each is given what the endpoint says to its own request."""
    callers = 1_000
    bench.tell(f"{callers:,} held requests")

    def request(number: int) -> bytes:
        return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": f"caller {number}"}]}).encode()

    def content(answer: bytes) -> str:
        return str(json.loads(answer)["choices"][0]["message"]["content"])

    with simulated("--latency", "2", "--seed", "1") as upstream, _serve(bench, upstream) as server:
        asyncio.run(crowd(server.url, "/v1/chat/completions", 1, 1, request))  # the lane is known
        started = time.perf_counter()
        answers = asyncio.run(crowd(server.url, "/v1/chat/completions", callers, 1, request))
        seconds = time.perf_counter() - started
        sample = range(0, callers, 50)
        direct = asyncio.run(crowd(upstream, "/v1/chat/completions", len(sample), 1, lambda n: request(sample[n])))
    if any(answer.status != 200 for answer in answers):
        raise BenchError("not every caller was answered")
    own = {content(answer.body) for answer in answers}
    right = sum(content(answers[n].body) == content(direct[i].body) for i, n in enumerate(sample))
    return [
        Figure("held at once, answers of their own", float(len(own)), "", Target("≥", callers)),
        Figure("of 20 compared with the endpoint's, equal", float(right), "", Target("≥", 20)),
        Figure("all of them answered within (endpoint: 2 s)", seconds, "s"),
    ]


def _singles(bench: Bench, cluster: Cluster) -> list[Figure]:
    clients, each = 500, bench.pick(6, 20)
    bench.tell(f"{clients} clients, {clients * each:,} single jobs")
    base = cluster.api_url

    def request(number: int) -> bytes:
        asked = {"model": MODEL, "messages": [{"role": "user", "content": f"single {number}"}]}
        return json.dumps({"custom_id": f"s-{number}", "body": asked}).encode()

    asyncio.run(crowd(base, "/v1/jobs", 10, 2, lambda n: request(10**9 + n)))  # warm
    started = time.perf_counter()
    answers = asyncio.run(crowd(base, "/v1/jobs", clients, each, request))
    seconds = time.perf_counter() - started
    if any(answer.status != 202 for answer in answers):
        raise BenchError(f"refused: {next(a.body for a in answers if a.status != 202)[:200]!r}")
    ids = {json.loads(answer.body)["id"] for answer in answers}
    deadline = time.monotonic() + 120
    while (done := _done(cluster)) < len(ids) + 20 and time.monotonic() < deadline:
        time.sleep(0.2)
    p99 = statistics.quantiles([answer.seconds for answer in answers], n=100)[98]
    return [
        Figure("single jobs taken, PostgreSQL", len(answers) / seconds, "jobs/s", Target("≥", 500)),
        Figure("single jobs, 99th percentile", p99 * 1000, "ms", Target("≤", 500)),
        Figure("single jobs with their result, of all", (done - 20) / len(answers) * 100, "%", Target("≥", 100)),
    ]


def _done(cluster: Cluster) -> int:
    return int(cluster.query("SELECT count(*) AS n FROM promptmill_results WHERE state = 'succeeded'")["n"])


def _upload(bench: Bench, server: _Server) -> list[Figure]:
    size = bench.pick(200, 1024) * _MIB
    bench.tell(f"uploading {size // _MIB} MiB")
    line = json.dumps(
        {"custom_id": "00000000", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": MODEL, "messages": [{"role": "user", "content": "x" * 900}]}}
    ).encode() + b"\n"  # fmt: skip
    count = size // len(line)

    def content() -> Iterator[bytes]:
        for start in range(0, count, 200):
            numbers = range(start, min(start + 200, count))
            yield b"".join(line.replace(b"00000000", b"%08d" % number, 1) for number in numbers)

    head = (
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\n'
        b'Content-Disposition: form-data; name="file"; filename="large.jsonl"\r\n\r\n'
    )
    tail = b"\r\n--x--\r\n"

    async def upload() -> None:
        connection = await Connection.open(server.url)
        length = len(head) + count * len(line) + len(tail)
        connection.begin(
            "POST", "/v1/files", f"Content-Length: {length}\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        )
        await connection.send([head])
        await connection.send(content())
        await connection.send([tail])
        status, fields = await connection.head()
        told = b"".join([chunk async for chunk in connection.chunks(fields)])
        connection.close()
        if status != 200 or json.loads(told)["bytes"] != count * len(line):
            raise BenchError(f"the upload was answered {status}: {told[:300]!r}")

    started = time.perf_counter()
    asyncio.run(upload())
    seconds = time.perf_counter() - started
    return [
        Figure(f"upload of {size // _MIB} MiB", size / _MIB / seconds, "MiB/s"),
        Figure("most memory of the server meanwhile", server.memory_mib(), "MiB", Target("≤", 150)),
    ]


def _download(bench: Bench, server: _Server) -> list[Figure]:
    jobs = bench.pick(20_000, 100_000)
    lines = bench.folder / "download.jsonl"
    write_lines(lines, jobs)
    bench.tell(f"{jobs:,} jobs to be downloaded")

    async def measure() -> tuple[float, float, float]:
        connection = await Connection.open(server.url)
        content = lines.read_bytes()
        form = (
            b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\n'
            b'Content-Disposition: form-data; name="file"; filename="d.jsonl"\r\n\r\n' + content + b"\r\n--x--\r\n"
        )
        connection.begin(
            "POST", "/v1/files", f"Content-Length: {len(form)}\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        )
        await connection.send([form])
        _, fields = await connection.head()
        file_id = json.loads(b"".join([chunk async for chunk in connection.chunks(fields)]))["id"]
        wanted = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        made = json.loads((await connection.request("POST", "/v1/batches", json.dumps(wanted).encode())).body)
        while made["status"] in ("validating", "in_progress"):
            made = json.loads((await connection.request("GET", f"/v1/batches/{made['id']}?wait=30")).body)
        if made["request_counts"]["completed"] != jobs:
            raise BenchError(f"of {jobs} jobs {made['request_counts']} succeeded")
        path = f"/v1/files/{made['output_file_id']}/content"
        rates = [await _rate(connection, path, jobs, headers) for headers in ("", "", "Accept-Encoding: gzip\r\n")]
        connection.close()
        return rates[0], rates[1], rates[2]

    first, again, gzip = asyncio.run(measure())
    lines.unlink()
    return [
        Figure("download, first time", first, "lines/s", Target("≥", 20_000)),
        Figure("download, again", again, "lines/s", Target("≥", 20_000)),
        Figure("download with gzip", gzip, "lines/s", Target("≥", 20_000)),
    ]


async def _rate(connection: Connection, path: str, jobs: int, headers: str) -> float:
    started = time.perf_counter()
    connection.begin("GET", path, headers)
    status, fields = await connection.head()
    seen = 0
    async for chunk in connection.chunks(fields):
        seen += chunk.count(b"\n")
    if status != 200 or (not headers and seen != jobs):
        raise BenchError(f"{status}: {seen} lines of {jobs}")
    return jobs / (time.perf_counter() - started)
