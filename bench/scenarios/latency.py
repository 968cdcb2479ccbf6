"""How near the ideal: jobs that take 2 s each, many at once, on a lane that is not known yet and on one that is."""

from bench import mill, servers
from bench.context import Bench
from bench.prompts import write_lines
from bench.report import Figure, Section, Target

TITLE = "Latency 2 s: wall time over ideal"
LATENCY_SECONDS = 2.0
IN_FLIGHT = 2_000
PEAK = Target("≤", 250)


def scenario(bench: Bench) -> Section:
    """Run it."""
    jobs = bench.pick(4_000, 10_000)
    ideal = jobs / IN_FLIGHT * LATENCY_SECONDS
    # What is allowed beyond the ideal does not depend on how many jobs there are: opening the lane, starting, ending.
    targets = {"not known yet": Target("≤", ideal + 3.5), "known": Target("≤", ideal + 1.5)}
    lines, db = bench.folder / "latency.jsonl", bench.folder / "latency.sqlite3"
    write_lines(lines, jobs)
    section = Section(
        TITLE, [f"{jobs:,} jobs, {IN_FLIGHT:,} in flight; ideal {ideal:g} s; endpoint: bench/endpoint.py"]
    )
    with servers.waiting(latency=LATENCY_SECONDS) as url:
        for lane, target in targets.items():
            bench.tell(f"{jobs:,} jobs at {LATENCY_SECONDS:g} s, the lane is {lane}")
            done = mill.work(lines, db, url, in_flight=IN_FLIGHT, more=() if lane != "known" else ("--fresh",))
            section.figures += [
                Figure(f"lane {lane}: engine", done.engine_seconds, "s", target),
                Figure(f"lane {lane}: whole process, with start and intake", done.ran.wall_seconds, "s", target),
                Figure(f"lane {lane}: peak memory", done.ran.peak_mb, "MB", PEAK),
                Figure(f"lane {lane}: over ideal (engine)", done.engine_seconds / ideal, "times"),
            ]
    lines.unlink()
    return section
