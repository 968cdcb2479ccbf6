"""How much of an allowed rate is used, against an endpoint that is strict about it."""

from bench import mill, servers
from bench.context import Bench
from bench.prompts import write_lines
from bench.report import Figure, Section, Target

TITLE = "Rate limit: 6,000 requests per minute"
RPM = 6_000
LATENCY_SECONDS = 0.2


def scenario(bench: Bench) -> Section:
    """Run it."""
    # More than a minute's worth, so that the window of 60 s binds too.
    jobs = bench.pick(1_500, 6_600)
    lines, db = bench.folder / "limits.jsonl", bench.folder / "limits.sqlite3"
    write_lines(lines, jobs)
    bench.tell(f"{jobs:,} jobs at {RPM:,} per minute, about {jobs / RPM * 60:.0f} s")
    with servers.waiting(latency=LATENCY_SECONDS, rpm=RPM) as url:
        done = mill.work(lines, db, url, in_flight=256, more=("--rpm", str(RPM)))
        saw = servers.stats(url)
    lines.unlink()
    accepted, refused = saw["accepted"], saw["refused"]
    used = (accepted - 1) / (RPM / 60 * saw["span_seconds"])
    return Section(
        TITLE,
        [
            f"{jobs:,} jobs of {LATENCY_SECONDS:g} s; it lets in {RPM:,} in any 60 s and {RPM // 60} at once;",
            "used: the calls that it let in, from the first to the last, of those that the rate allows in that time",
        ],
        figures=[
            Figure("used of the rate", used * 100, "%", Target("≥", 97)),
            Figure("calls answered 429", refused / (accepted + refused) * 100, "%", Target("≤", 0.5)),
            Figure("jobs done", done.jobs, "", Target("≥", jobs)),
            Figure("from the first to the last call", saw["span_seconds"], "s"),
        ],
    )
