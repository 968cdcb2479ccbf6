"""promptmill itself, through its own command line, as a user starts it."""

import json
import sqlite3
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from bench import servers
from bench.measure import BenchError, Ran, run
from bench.prompts import write_lines

#: The console script beside this Python; without an installation the same program by its module.
_SCRIPT = Path(sys.executable).with_name("promptmill")
PROMPTMILL: list[str | Path] = [_SCRIPT] if _SCRIPT.exists() else [sys.executable, "-m", "cli"]


@dataclass(frozen=True, slots=True)
class Work:
    """One `promptmill run`."""

    jobs: int
    engine_seconds: float  # from the batch being open to its last commit
    retried: int
    ran: Ran

    @property
    def engine_rate(self) -> float:
        """Jobs per second of the engine: calls, and every result committed."""
        return self.jobs / self.engine_seconds

    @property
    def whole_rate(self) -> float:
        """Jobs per second of the whole process: start, intake, the engine, the end."""
        return self.jobs / self.ran.wall_seconds


def work(
    lines: Path, db: Path, base_url: str, *, in_flight: int, more: tuple[str, ...] = (), timeout_seconds: float = 300.0
) -> Work:
    """Work a file of lines through. Raises BenchError unless every job has its one result in the database."""
    before = _results(db)
    ran = run(
        [*PROMPTMILL, "run", lines, "--db", db, "--base-url", base_url, "--max-in-flight", str(in_flight), "--json",
         *more],
        timeout_seconds=timeout_seconds,
    ).checked("promptmill run")  # fmt: skip
    events = [json.loads(text) for text in ran.stdout.splitlines() if text.startswith("{")]
    summary = next((event for event in events if event["event"] == "summary"), None)
    if summary is None:
        raise BenchError("promptmill run printed no summary")
    stored = _results(db) - before
    if not summary["succeeded"] == summary["total"] == stored:
        raise BenchError(f"of {summary['total']} jobs {summary['succeeded']} succeeded and {stored} have a result")
    return Work(summary["total"], max(summary["seconds"], 1e-3), summary["retried"], ran)


def warm_up(folder: Path) -> None:
    """A few jobs that are not measured, so that Python has compiled what it imports, as an installation has."""
    lines, db = folder / "warm-up.jsonl", folder / "warm-up.sqlite3"
    write_lines(lines, 10)
    with servers.waiting(latency=0.0) as url:
        work(lines, db, url, in_flight=10)


def _results(db: Path) -> int:
    if not db.exists():
        return 0
    with closing(sqlite3.connect(db)) as connection:
        count: int = connection.execute("SELECT count(*) FROM promptmill_results").fetchone()[0]
    return count
