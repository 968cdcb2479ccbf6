"""What runs next, and how fast orders act: fair shares, a small batch beside a large one, a pause, a cancelled batch;
on the cluster that `promptmill up` starts, with several workers."""

import json
import sys

from bench import servers
from bench.context import Bench
from bench.measure import run
from bench.report import Figure, Section, Target
from bench.scenarios.cluster import up

TITLE = "Control: shares of a full lane, and orders"
LATENCY_SECONDS = 0.1
IN_FLIGHT = 64
WORKERS = 3
#: What a background batch gets at least (promptmill/contenders.py).
LEAST_PERCENT = 2.0


def scenario(bench: Bench) -> Section:
    """Run it."""
    large, each = bench.pick((20_000, 2_000), (100_000, 4_000))
    with (
        servers.waiting(latency=LATENCY_SECONDS) as url,
        up(bench, url, "--workers", str(WORKERS), "--max-in-flight", str(IN_FLIGHT)) as cluster,
    ):
        bench.tell(f"ten jobs alone and beside {large:,}, a pause, a cancel; three tenants; background")
        line = [sys.executable, "-m", "bench.orders", str(large), str(each), cluster.api_url]
        found = json.loads(run(line, timeout_seconds=600, more=cluster.environ).checked("bench.orders").stdout)
    beside = found["beside_seconds"] / found["alone_seconds"]
    return Section(
        TITLE,
        [
            f"promptmill up --workers {WORKERS}, {IN_FLIGHT} calls in flight at most, {LATENCY_SECONDS:g} s each;",
            "when a call started is as its worker noted it down; an order's time begins with its commit",
        ],
        figures=[
            Figure(f"ten jobs beside {large:,} of another tenant", beside, "times alone", Target("≤", 2.0)),
            Figure("the same alone", found["alone_seconds"], "s"),
            Figure("last call after a pause", found["pause_seconds"], "s", Target("≤", 1.0)),
            Figure(f"the answer to cancelling {large:,} jobs", found["cancel_answered_seconds"], "s", Target("≤", 1.0)),
            Figure(f"the end of {large:,} jobs that are cancelled", found["cancel_seconds"], "s", Target("≤", 10.0)),
            Figure("tenants of weights 1:2:3: largest difference", found["weights_percent"], "%", Target("≤", 5.0)),
            Figure("background beside normal work that fills the lane", found["background_percent"], "%",
                   Target("≥", LEAST_PERCENT)),
        ],
    )  # fmt: skip
