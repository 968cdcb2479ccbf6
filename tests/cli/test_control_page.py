"""The commands of docs/control.md run, from the first to the last, against one database; and its requests with curl."""

import json
import os
import re
import shlex
import shutil
import subprocess

import pytest

from tests.cli.mill import REPOSITORY, Mill, chats, until
from tests.worker.endpoint import chat

PAGE = (REPOSITORY / "docs" / "control.md").read_text()
COMMANDS = re.findall(r"^\$ promptmill (.*)$", PAGE, re.MULTILINE)
(REQUESTS,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
MODEL = "MiniMaxAI/MiniMax-M1-40k"


@pytest.fixture
def page(mill: Mill, monkeypatch) -> Mill:
    """A folder as the page has it: two files, a database, an endpoint."""
    mill.file("prompts.jsonl", chats(5, model=MODEL))
    mill.file("more.jsonl", chats(2, model=MODEL, first=5))
    monkeypatch.chdir(mill.folder)
    monkeypatch.setenv("PROMPTMILL_DATABASE_URL", str(mill.db))
    monkeypatch.setenv("PROMPTMILL_UPSTREAM_URL", mill.endpoint(lambda _: chat()).url)
    return mill


def newest(mill: Mill) -> str:
    return json.loads(mill.run("status", "--json").out)["batches"][0]["id"]


def test_every_command_runs(page: Mill):
    assert len(COMMANDS) > 20
    codes = {}
    for line in COMMANDS:
        words = shlex.split(line.replace("batch_…", newest(page) if codes else ""))
        codes[line] = page.run(*words).code
    asks = next(line for line in COMMANDS if "--canary-ask" in line)
    assert {line: code for line, code in codes.items() if code} == {asks: 3}
    states = [batch["state"] for batch in json.loads(page.run("status", "--json").out)["batches"]]
    assert sorted(states) == ["completed", *["in_progress"] * 4]  # what was only submitted waits for workers


@pytest.mark.skipif(shutil.which("curl") is None, reason="the requests are curl's")
def test_every_request_is_answered(page: Mill):
    page.run("submit", "prompts.jsonl")
    batch_id = newest(page)
    server = page.start("serve", "--port", "0")
    url = until(lambda: re.search(r"http://\S+:\d+", server.process.stderr.readline().decode()))[0]
    env = {**os.environ, "MILL": f"{url}/v1", "JSON": "Content-Type: application/json"}
    told = []
    for line in REQUESTS.strip().splitlines():
        wanted = line.replace("batch_…", batch_id).replace("curl ", "curl -sS ", 1)
        done = subprocess.run(["sh", "-c", wanted], env=env, capture_output=True, check=True, timeout=20)
        told.append(json.loads(done.stdout))
    for line, answer in zip(REQUESTS.strip().splitlines(), told, strict=True):
        code = answer.get("error", {}).get("code") if isinstance(answer.get("error"), dict) else None
        assert code in (None, "wrong_state", "batch_not_cancellable"), (line, answer)  # it may be done by now
