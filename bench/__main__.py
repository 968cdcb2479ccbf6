"""`python -m bench`: what promptmill does on this machine, beside what else one could use, in one run.

It informs: the exit code is 0 whether the targets are met or not.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import mill
from bench.context import Bench
from bench.measure import BenchError, Neighbours, end_cleanly, machine, raise_file_limit
from bench.report import Section, show
from bench.scenarios import cluster, control, http, intake, latency, limits, throughput

SCENARIOS: dict[str, tuple[str, Callable[[Bench], Section]]] = {
    "throughput": (throughput.TITLE, throughput.scenario),
    "latency": (latency.TITLE, latency.scenario),
    "limits": (limits.TITLE, limits.scenario),
    "intake": (intake.TITLE, intake.scenario),
    "cluster": (cluster.TITLE, cluster.scenario),
    "http": (http.TITLE, http.scenario),
    "control": (control.TITLE, control.scenario),
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scenario", nargs="*", help=f"which (default: all): {', '.join(SCENARIOS)}")
    parser.add_argument("--quick", action="store_true", help="fewer jobs: two or three minutes instead of six")
    parser.add_argument("--no-nginx", action="store_true", help="do without nginx where it is installed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures for machines, too")
    given = parser.parse_args()
    if unknown := [name for name in given.scenario if name not in SCENARIOS]:
        parser.error(f"there is no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    end_cleanly()
    open_files = raise_file_limit()
    facts = machine()
    load = " ".join(str(part) for part in facts["load_average"])
    print(
        f"{facts['system']}, {facts['cores']} cores, Python {facts['python']}, load average {load}, "
        f"up to {facts['open_files']:,} open files",
        flush=True,
    )
    found: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory(prefix="promptmill-bench-") as folder:
        # Compiled modules are kept, as in any installation, whatever this environment says; but not among the sources.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(Path(folder) / "pycache")
        bench = Bench(Path(folder), given.quick, open_files, with_nginx=not given.no_nginx)
        bench.tell("warming up")
        mill.warm_up(bench.folder)
        for name in given.scenario or SCENARIOS:
            title, scenario = SCENARIOS[name]
            neighbours = Neighbours()
            try:
                section = scenario(bench)
            except BenchError as error:
                section = Section(title, [f"could not be measured: {error}"])
            if (share := neighbours.share()) is not None:
                section.neighbours = share
            print(show(section), flush=True)
            found[name] = section.to_json()
    if given.json is not None:
        text = json.dumps({"machine": facts, "quick": given.quick, "scenarios": found}, indent=2, ensure_ascii=False)
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
