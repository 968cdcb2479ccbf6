"""Jobs per second where answers come at once: promptmill, which keeps everything, beside what keeps nothing."""

import json
import sys
from dataclasses import asdict, dataclass

from bench import mill, servers
from bench.context import Bench
from bench.measure import BenchError, run
from bench.prompts import body, write_lines
from bench.report import Figure, Section, Target, number

TITLE = "Zero latency: jobs per second"
HEAD = ["", "calls", "jobs/s", "CPU µs/job", "peak MB", "x httpx"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    calls: int
    rate: float
    cpu_us: float
    peak_mb: float

    def cells(self, bare: float) -> list[str]:
        """As text, with the ratio to the bare loop on httpx."""
        return [
            f"  {self.what}", f"{self.calls:,}", number(self.rate), number(self.cpu_us), number(self.peak_mb),
            number(self.rate / bare),
        ]  # fmt: skip


#: How many calls: (quick, full), so that each takes a few seconds. Rates are compared, so they need not be the same.
_MILL_JOBS = (6_000, 20_000)
_CALLS = {
    ("transport", 100): (10_000, 40_000),
    ("transport", 1_000): (10_000, 40_000),
    ("httpx", 100): (500, 2_000),
    ("httpx", 1_000): (1_500, 2_500),
    ("openai", 100): (500, 2_000),
    ("openai", 1_000): (1_500, 2_500),
    ("raw", 100): (20_000, 80_000),
}
#: Calls that go before: (quick, full). At first, and for some hundred calls, httpx is several times slower.
_WARM_UP = {100: (600, 600), 1_000: (1_000, 1_500)}
_NAMES = {
    "transport": "promptmill's transport, nothing kept",
    "httpx": "httpx.AsyncClient, nothing kept",
    "openai": "openai SDK, nothing kept",
    "raw": "raw connections (the endpoint's capacity)",
}


def scenario(bench: Bench) -> Section:
    """Run it."""
    section = Section(TITLE)
    jobs = bench.pick(*_MILL_JOBS)
    lines = bench.folder / "throughput.jsonl"
    write_lines(lines, jobs)
    with servers.fixed(bench.open_files, with_nginx=bench.with_nginx) as (url, what):
        bench.tell("the endpoint's capacity")
        capacity = _other(bench, url, "raw", 100)
        section.notes += [
            f"endpoint: {what}; it does at least {number(capacity.rate)} calls/s (raw connections, 100 at once)",
            f"bodies of {len(body())} bytes; uvloop for all; promptmill commits every result, the others keep none",
            "the others are measured when warm, without their start; promptmill from when its batch is open (engine)",
            "or from its start (whole process); its CPU and memory are of the whole process",
        ]
        section.table.append(HEAD)
        for in_flight in (100, 1_000):
            _at(bench, section, url, in_flight, jobs)
    lines.unlink()
    return section


def _at(bench: Bench, section: Section, url: str, in_flight: int, jobs: int) -> None:
    bench.tell(f"promptmill, {in_flight:,} in flight")
    db = bench.folder / f"throughput-{in_flight}.sqlite3"
    done = mill.work(bench.folder / "throughput.jsonl", db, url, in_flight=in_flight)
    cpu_us = done.ran.cpu_seconds / jobs * 1e6
    rows = [
        Row("promptmill: engine, all committed", jobs, done.engine_rate, cpu_us, done.ran.peak_mb),
        Row("promptmill: whole process", jobs, done.whole_rate, cpu_us, done.ran.peak_mb),
    ]
    for name in ("transport", "httpx", "openai"):
        bench.tell(f"{_NAMES[name]}, {in_flight:,} in flight")
        rows.append(_other(bench, url, name, in_flight))
    bare = next(row.rate for row in rows if row.what == _NAMES["httpx"])
    section.table.append([f"{in_flight:,} in flight", *[""] * (len(HEAD) - 1)])
    section.rows += [{"in_flight": in_flight, **asdict(row), "times_httpx": row.rate / bare} for row in rows]
    section.table += [row.cells(bare) for row in rows]
    if in_flight == 1_000:
        section.figures += [
            Figure("engine at 1,000 in flight, all committed", done.engine_rate, "jobs/s", Target("≥", 3_000)),
            Figure("beside the bare httpx loop", done.engine_rate / bare, "times", Target("≥", 15)),
            Figure(f"start, intake and end of {jobs:,} jobs", done.ran.wall_seconds - done.engine_seconds, "s"),
        ]


def _other(bench: Bench, url: str, name: str, in_flight: int) -> Row:
    calls = bench.pick(*_CALLS[name, in_flight])
    ran = run(
        [sys.executable, "-m", "bench.clients", name, "--base-url", url, "--in-flight", str(in_flight),
         "--warm-up", str(bench.pick(*_WARM_UP[in_flight])), "--jobs", str(calls)],
        timeout_seconds=300,
    ).checked(_NAMES[name])  # fmt: skip
    did = json.loads(ran.stdout)
    if did["failed"]:
        raise BenchError(f"{_NAMES[name]}: {did['failed']} of {calls} calls failed")
    return Row(_NAMES[name], calls, calls / did["seconds"], did["cpu_seconds"] / calls * 1e6, ran.peak_mb)
