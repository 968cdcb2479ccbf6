"""`make demo`: a real file of prompts, worked through with a progress bar and a summary.

Against the endpoint of PROMPTMILL_UPSTREAM_URL (Together's where only a key is set), or, where no key is set, against
`promptmill simulate`, a rehearsal endpoint that this script starts. It says clearly which.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PROMPTMILL = Path(sys.executable).with_name("promptmill")
OUT = HERE.parent / "demo-out"


def main() -> int:
    """Run the demo; the exit code is promptmill's."""
    OUT.mkdir(exist_ok=True)
    url = os.environ.get("PROMPTMILL_UPSTREAM_URL")
    names = ("PROMPTMILL_UPSTREAM_KEY", "TOGETHER_API_KEY", "OPENAI_API_KEY")
    key = next((name for name in names if os.environ.get(name)), None)
    if url or key:
        where = url or "https://api.together.xyz/v1"
        print(f"The real thing: {where}, with {f'the key in {key}' if key else 'no key'}.", flush=True)
        return work([])
    print("A REHEARSAL: no endpoint and no key are set, so promptmill simulate answers, no model does.", flush=True)
    simulator = subprocess.Popen(
        [PROMPTMILL, "simulate", "--port", "0", "--latency", "0.3-2", "--fault", "503=3", "--fault", "reset=2"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert simulator.stdout is not None
        found = re.search(r"http://\S+", simulator.stdout.readline())
        if not found:
            print("promptmill simulate did not start", file=sys.stderr)
            return 1
        # Every rehearsal is a new endpoint, so it starts anew.
        return work(["--base-url", found[0], "--rpm", "3000", "--max-in-flight", "64", "--fresh"])
    finally:
        simulator.terminate()
        simulator.wait()


def work(extra: list[str]) -> int:
    """`promptmill run` on the examples."""
    line = [
        PROMPTMILL, "run", HERE / "prompts.jsonl", "--db", OUT / "demo.sqlite3", "--out", OUT / "results.jsonl",
        "--errors", OUT / "errors.jsonl", *extra,
    ]  # fmt: skip
    code = subprocess.call(line)
    print(f"results: {OUT / 'results.jsonl'}   errors: {OUT / 'errors.jsonl'}", flush=True)
    return code


sys.exit(main())
