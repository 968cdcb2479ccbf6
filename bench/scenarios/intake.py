"""How long it takes to check and store a million lines, and in how much memory."""

import json
import shutil
import sys

from bench.context import Bench
from bench.measure import BenchError, run
from bench.prompts import write_lines
from bench.report import Figure, Section, Target

TITLE = "Intake: lines checked and stored"
_LINES = (100_000, 1_000_000)
#: The file, the database and its log.
_BYTES_PER_LINE = 2_500


def scenario(bench: Bench) -> Section:
    """Run it."""
    count = bench.pick(*_LINES)
    if shutil.disk_usage(bench.folder).free < count * _BYTES_PER_LINE:
        raise BenchError(f"needs {count * _BYTES_PER_LINE / 1e9:.1f} GB of disk for a moment")
    lines, db = bench.folder / "intake.jsonl", bench.folder / "intake.sqlite3"
    bench.tell(f"writing {count:,} lines")
    size = write_lines(lines, count)
    bench.tell(f"taking {count:,} lines in")
    ran = run([sys.executable, "-m", "bench.take_in", lines, db], timeout_seconds=600).checked("the intake")
    did = json.loads(ran.stdout)
    if did["jobs"] != count:
        raise BenchError(f"of {count} lines {did['jobs']} became jobs")
    stored = db.stat().st_size
    lines.unlink()
    db.unlink()
    target = Target("≤", 60 * count / _LINES[1])
    return Section(
        TITLE,
        [f"{count:,} lines of {size / count:.0f} bytes, {size / 1e6:,.0f} MB; the database has {stored / 1e6:,.0f} MB"],
        figures=[
            Figure("intake", did["seconds"], "s", target),
            Figure("whole process, with start", ran.wall_seconds, "s", target),
            Figure("lines per second", count / did["seconds"], ""),
            Figure("CPU per line", ran.cpu_seconds / count * 1e6, "µs"),
            Figure("peak memory", ran.peak_mb, "MB", Target("≤", 150)),
        ],
    )
