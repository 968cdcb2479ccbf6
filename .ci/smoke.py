"""Runs the installed wheel as a user would: a rehearsal endpoint, a file of prompts, results, the same line again."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

BIN = Path(sys.argv[1])


def main() -> None:
    """Exit non-zero, with the reason, when anything is not as it should be."""
    with tempfile.TemporaryDirectory() as folder, Rehearsal() as url:
        prompts = Path(folder, "prompts.jsonl")
        prompts.write_text("".join(json.dumps({"prompt": f"Question {i}?"}) + "\n" for i in range(50)))
        line = ["run", "prompts.jsonl", "--model", "demo", "--base-url", url, "--out", "out.jsonl"]
        first = promptmill(folder, *line)
        assert first.returncode == 0, first.stderr
        assert len(Path(folder, "out.jsonl").read_text().splitlines()) == 50
        again = promptmill(folder, *line)
        assert again.returncode == 0, again.stderr
        assert "already finished" in again.stderr, again.stderr
        results = promptmill(folder, "results", "--format", "jsonl")
        assert len(results.stdout.splitlines()) == 50, results.stderr
        status = promptmill(folder, "status", "--json")
        assert status.returncode == 0, status.stderr
        # What the cluster's processes import, with what the wheel asks for and nothing else.
        cluster = "import kombu.transport.redis, worker.app, api.app, promptmill.dispatch"
        imported = subprocess.run([BIN / "python", "-c", cluster], capture_output=True, text=True, check=False)
        assert imported.returncode == 0, imported.stderr
    print("the wheel works: 50 prompts, 50 results, nothing sent twice")


class Rehearsal:
    """`promptmill simulate` while it is entered; its base URL."""

    def __enter__(self) -> str:
        self.process = subprocess.Popen(
            [BIN / "promptmill", "simulate", "--port", "0"], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        found = re.search(r"http://\S+", said)
        assert found, f"simulate said {said!r}"
        return found[0]

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=10)


def promptmill(folder: str, *args: str) -> "subprocess.CompletedProcess[str]":
    """One command, in the folder, with no key and no settings around."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTMILL_")}
    return subprocess.run(
        [BIN / "promptmill", *args], cwd=folder, env=clean, capture_output=True, text=True, timeout=60, check=False
    )


main()
