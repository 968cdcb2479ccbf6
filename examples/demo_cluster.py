"""`make demo-cluster`: the same prompts through a whole cluster: PostgreSQL, Redis, API, two workers and the clock.

`promptmill up` starts it in a folder of its own, `submit` gives it the file, `watch` shows the progress, and at the end
everything stops and the folder goes. Always against `promptmill simulate`, a rehearsal endpoint: no model answers.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
PROMPTMILL = Path(sys.executable).with_name("promptmill")
OUT = HERE.parent / "demo-out"


def main() -> int:
    """Run the demo; the exit code is that of `promptmill watch`."""
    OUT.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="promptmill-demo-"))
    folder.chmod(0o755)  # started by root, PostgreSQL runs as another user, who has to get in
    print("A REHEARSAL: promptmill simulate answers, no model does.", flush=True)
    faults = ["--fault", "503=3", "--fault", "reset=2"]
    simulator = subprocess.Popen(
        [PROMPTMILL, "simulate", "--port", "0", "--latency", "0.3-2", *faults], stdout=subprocess.PIPE, text=True
    )
    try:
        assert simulator.stdout is not None
        found = re.search(r"http://\S+", simulator.stdout.readline())
        if not found:
            print("promptmill simulate did not start", file=sys.stderr)
            return 1
        return with_cluster(folder, found[0])
    finally:
        simulator.terminate()
        simulator.wait()
        shutil.rmtree(folder, ignore_errors=True)


def with_cluster(folder: Path, endpoint: str) -> int:
    """Start the cluster, work the file through, stop the cluster."""
    log = OUT / "cluster.log"
    line = [PROMPTMILL, "up", "--port", "0", "--data", folder / "data", "--base-url", endpoint]
    print(f"$ promptmill up --base-url {endpoint} > {log}", flush=True)
    with log.open("wb") as out:
        cluster = subprocess.Popen(
            [*line, "--rpm", "3000", "--max-in-flight", "64"], stdout=out, stderr=out, start_new_session=True
        )
    try:
        said = until_up(cluster, log)
        if said is None:
            print(f"the cluster did not start:\n{log.read_text(errors='replace')}", file=sys.stderr)
            return 1
        print(said, flush=True)
        return work(folder / "data" / "env")
    finally:
        cluster.send_signal(signal.SIGINT)
        code = cluster.wait()
        print(f"the cluster has stopped (exit code {code}); its log: {log}", flush=True)


def until_up(cluster: "subprocess.Popen[bytes]", log: Path) -> str | None:
    """What it says when it is up; None when it ended instead."""
    while cluster.poll() is None:
        found = re.search(r"^promptmill is up.*?\n\n.*?\n\n", log.read_text(errors="replace"), re.DOTALL | re.MULTILINE)
        if found:
            return found[0].rstrip()
        time.sleep(0.1)
    return None


def work(settings: Path) -> int:
    """Submit, watch and fetch, as one would in another terminal: the cluster's addresses come from its env file."""
    exports = dict(re.findall(r"^export (\w+)=(.*)$", settings.read_text(), re.MULTILINE))
    environ = {**os.environ, **exports}
    print("\n$ promptmill submit examples/prompts.jsonl", flush=True)
    submitted = subprocess.run(
        [PROMPTMILL, "submit", HERE / "prompts.jsonl"], env=environ, stdout=subprocess.PIPE, text=True, check=False
    )
    if submitted.returncode != 0:
        return submitted.returncode
    batch = submitted.stdout.strip()
    print(f"{batch}\n\n$ promptmill watch {batch}", flush=True)
    code = subprocess.call([PROMPTMILL, "watch", batch], env=environ)
    results = OUT / "cluster-results.jsonl"
    subprocess.run([PROMPTMILL, "results", batch, "--format", "jsonl", "--out", results], env=environ, check=False)
    print(f"results: {results}", flush=True)
    return code


sys.exit(main())
