"""`promptmill serve` and `promptmill keys` as people run them: started, stopped, killed, and with the wrong words."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import httpx
import pytest

from tests.cli.mill import REPOSITORY, Mill, until

CHAT = {"model": "test/plain", "messages": [{"role": "user", "content": "Hello?"}]}
AGAIN = {"X-Stainless-Retry-Count": "1"}


@dataclass
class Served:
    """A server in a process of its own; what it says is read as it comes."""

    process: "subprocess.Popen[str]"
    said: list[str] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        until(lambda: self.address() or self.process.poll() is not None, seconds=30)
        self.url = self.address()
        assert self.url, "".join(self.said)

    def _read(self) -> None:
        for line in self.process.stderr:
            self.said.append(line)

    def address(self) -> str:
        found = re.search(r"serves (http://\S+)/v1", "".join(self.said))
        return found[1] if found else ""

    def stop(self, number: int = signal.SIGTERM, seconds: float = 20.0) -> int:
        self.process.send_signal(number)
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code


def serve(mill: Mill, upstream_url: str, *words: object) -> Served:
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "serve", "--port", "0", "--db", str(mill.db), "--base-url", upstream_url,
         *map(str, words)],
        cwd=mill.folder, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    mill.started.append(process)
    return Served(process)


class Asking(threading.Thread):
    """A caller that waits."""

    def __init__(self, url: str, **headers: str) -> None:
        super().__init__(daemon=True)
        self._url, self._headers = url, headers
        self.answer: httpx.Response | None = None
        self.broke: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = httpx.post(f"{self._url}/v1/chat/completions", json=CHAT, headers=self._headers, timeout=60)
        except httpx.HTTPError as error:
            self.broke = error


def calls(simulator) -> int:
    """Upstream calls so far."""
    stats = httpx.get(f"{simulator.url.removesuffix('/v1')}/simulate/stats").json()
    return int(stats["requests"])


def test_a_stop_answers_who_waits_and_leaves_nothing_behind(mill: Mill):
    simulator = mill.simulator(latency_seconds=(1.0, 1.0))
    served = serve(mill, simulator.url)
    asking = Asking(served.url)
    until(lambda: calls(simulator) == 1)
    assert served.stop() == 0
    asking.join(10)
    assert asking.answer is not None
    assert asking.answer.status_code == 200
    mill.check_each_job_has_one_result(1)
    assert "Traceback" not in "".join(served.said)


def test_who_cannot_be_answered_in_time_is_told_to_come_again_and_is_given_its_answer(mill: Mill):
    simulator = mill.simulator(latency_seconds=(8.0, 8.0))
    served = serve(mill, simulator.url)
    asking = Asking(served.url)
    until(lambda: calls(simulator) == 1)
    assert served.stop() == 0
    asking.join(10)
    assert asking.answer is not None
    assert (asking.answer.status_code, asking.answer.headers["retry-after"]) == (503, "1")
    assert asking.answer.headers["x-should-retry"] == "true"
    mill.check_each_job_has_one_result(1)  # it was waited for, after its caller had gone

    served = serve(mill, simulator.url)
    started = time.monotonic()
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=CHAT, headers=AGAIN, timeout=30)
    assert answer.status_code == 200
    assert time.monotonic() - started < 20
    assert calls(simulator) == 1
    assert served.stop() == 0


def test_after_a_kill_the_job_goes_on_and_its_caller_finds_it(mill: Mill):
    simulator = mill.simulator(latency_seconds=(1.5, 1.5))
    served = serve(mill, simulator.url)
    asking = Asking(served.url)
    until(lambda: calls(simulator) == 1)
    served.process.kill()
    served.process.wait()
    asking.join(10)
    assert asking.broke is not None
    served = serve(mill, simulator.url)
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=CHAT, headers=AGAIN, timeout=30)
    assert answer.status_code == 200
    mill.check_each_job_has_one_result(1)
    assert calls(simulator) == 2  # the call that died with the process, and the one that was answered
    assert served.stop(signal.SIGINT) == 0


def test_without_a_key_only_this_machine_is_served(mill: Mill):
    refused = mill.run("serve", "--host", "0.0.0.0", "--port", "0", "--db", mill.db)  # noqa: S104 - that is the case
    assert refused.code == 2
    assert "promptmill keys create" in refused.err

    key = mill.run("keys", "create", "laptop", "--tenant", "me", "--db", mill.db).out.strip()
    assert re.fullmatch(r"pm_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", key)
    listed = mill.run("keys", "list", "--db", mill.db).out
    assert "laptop" in listed
    assert "me" in listed
    assert key.rpartition("_")[2] not in listed

    simulator = mill.simulator()
    served = serve(mill, simulator.url, "--host", "0.0.0.0")  # noqa: S104 - that is the case
    url = served.url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
    assert httpx.get(f"{url}/v1/jobs").status_code == 401
    bearer = {"Authorization": f"Bearer {key}"}
    assert httpx.get(f"{url}/v1/jobs", headers=bearer).status_code == 200
    revoked = mill.run("keys", "revoke", key, "--db", mill.db)
    assert revoked.out.startswith("revoked ")
    assert until(lambda: httpx.get(f"{url}/v1/jobs", headers=bearer).status_code == 401)
    assert served.stop() == 0
    assert key not in "".join(served.said)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("serve", "--port", "99999"), "--port"),
        (("serve", "--base-url", "nonsense"), "http"),
        (("serve", "--db", "/nowhere/at/all.sqlite3"), "folder"),
        (("keys", "create", " "), "name"),
        (("keys", "revoke", "0123456789ab"), "no key"),
    ],
)
def test_wrong_words_are_answered_with_a_sentence(mill: Mill, words, told):
    if words[0] == "keys":
        mill.run("keys", "create", "first", "--db", mill.db)
        words = (*words, "--db", mill.db)
    ended = mill.run(*words)
    assert ended.code == 2
    assert told in ended.err
    assert "Traceback" not in ended.err


def test_a_port_in_use_is_said(mill: Mill):
    simulator = mill.simulator()
    port = httpx.URL(simulator.url).port
    ended = mill.run("serve", "--port", port, "--db", mill.db)
    assert ended.code == 2
    assert "another --port" in ended.err


def test_two_servers_on_one_file_are_one_too_many(mill: Mill):
    simulator = mill.simulator()
    served = serve(mill, simulator.url)
    ended = mill.run("serve", "--port", "0", "--db", mill.db, "--base-url", simulator.url)
    assert ended.code == 2
    assert "is working on" in ended.err
    assert served.stop() == 0
