"""`promptmill schedule` as people use it; and `serve`, which fires what is due."""

import asyncio
import json
import re
import shlex
import time

import pytest

from cli import schedule as schedule_module
from promptmill.store import deciding, fires
from tests.cli.mill import REPOSITORY, Mill, until
from tests.cli.test_serve import serve
from tests.worker.timetable import Timetable

BODY = json.dumps({"model": "test/plain", "messages": [{"role": "user", "content": "It is {{ fire_time }}."}]})


def schedule(mill: Mill, *words: object, stdin: bytes = b""):
    return mill.run("schedule", *words, "--db", mill.db, stdin=stdin)


def test_from_add_to_remove(mill: Mill):
    prompts = mill.file("prompts.txt", ["What happened on {{ date }}?", "", 'And {{ weekday }}, "quoted"?'])
    made = schedule(
        mill, "add", "report", prompts, "--cron", "30 2 * * *", "--timezone", "Europe/Berlin", "--model", "test/plain",
        "--starts", "2027-03-28T00:00", "--overlap", "queue", "--canary", 1, "--priority", "high", "--window", "6h",
    )  # fmt: skip
    assert made.code == 0, made.err
    id_ = made.out.strip()
    assert re.fullmatch(r"sched_[0-9a-f]{32}", id_)
    # The night in which the clocks go forward.
    assert "report fires next on Sun 2027-03-28 03:00:00+02:00 Europe/Berlin (2027-03-28 01:00:00 UTC)" in made.err

    shown = schedule(mill, "show", "report").out
    assert "prompts.txt, with templates" in shown
    assert "Mon 2027-03-29 02:30:00+02:00   (2027-03-29 00:30:00 UTC)" in shown
    facts = json.loads(schedule(mill, "show", id_[:12], "--json").out)
    told = {name: facts[name] for name in ("name", "overlap", "canary", "priority", "completion_window", "enabled")}
    assert told == {
        "name": "report", "overlap": "queue", "canary": 1, "priority": 1_000, "completion_window": "6h",
        "enabled": True,
    }  # fmt: skip
    assert (len(facts["next_fires"]), facts["history"]) == (5, [])

    batch = schedule(mill, "run", "report").out.strip()
    (fire,) = json.loads(schedule(mill, "show", "report", "--json").out)["history"]
    assert (fire["batch_id"], fire["manual"], fire["batch_status"]) == (batch, True, "in_progress")
    assert "in_progress by hand" in schedule(mill, "show", "report").out
    today = time.strftime("%Y-%m-%d", time.localtime())
    lines = mill.rows("SELECT data FROM file_parts JOIN promptmill_jobs USING (file_id, part) ORDER BY position")
    assert json.loads(lines[0][0])["prompt"][:21] == f"What happened on {today[:4]}"
    assert json.loads(lines[1][0])["prompt"].endswith('day, "quoted"?')

    assert "report is disabled" in schedule(mill, "disable", "report").out
    assert "disabled" in schedule(mill, "list").out
    assert "report fires next on" in schedule(mill, "enable", "report").out
    listed = json.loads(schedule(mill, "list", "--json").out)["schedules"]
    assert [each["name"] for each in listed] == ["report"]
    assert "removed report" in schedule(mill, "remove", "report").out
    assert "no schedules yet" in schedule(mill, "list").out
    assert schedule(mill, "show", "report").code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cron", "30 2 * *", "--body", BODY], "has 4 fields"),
        (["--body", BODY], 'either "cron" (an expression) or "at"'),
        (["--at", "soon", "--body", BODY], "'soon' is no time"),
        (["--at", "+1h", "--timezone", "Mars", "--body", BODY], "'Mars' is no time zone"),
        (["--at", "+1h"], "say what to submit"),
        (["--at", "+1h", "x.jsonl", "--body", BODY], "say what to submit"),
        (["--at", "+1h", "no.jsonl"], "no.jsonl: there is no such file"),
        (["--at", "+1h", "--body", BODY.replace("fire_time", "moon")], "{{ moon }} names nothing"),
        (["--at", "+1h", "--body", BODY, "--body", "{"], "1 wrong; no schedule was made"),
        (["--at", "+1h", "--body", '{"model": "m", "file": "a.mp3"}'], "there is no file 'a.mp3'; upload it first"),
        (["--at", "+1h", "--body", BODY, "--window", "soon"], "--window must be like 90m"),
        (["--at", "+1h", "--body", BODY, "--weight", "0"], "--weight must be 0.001 at least"),
        (["--at", "+1h", "--body", BODY, "--jitter", "-1"], "jitter_seconds is -1"),
        (["--at", "2001-01-01T00:00", "--body", BODY], "would never fire"),
    ],
)
def test_what_is_wrong_is_said(mill: Mill, words: list[str], said: str):
    ended = schedule(mill, "add", "s", *words)
    assert ended.code == 2
    assert said in ended.err
    assert "skip-bad-lines" not in ended.err
    if mill.db.exists():
        assert mill.count("schedules") == mill.count("files") == 0


def test_a_name_is_given_once(mill: Mill):
    assert schedule(mill, "add", "s", "--at", "+1h", "--body", BODY).code == 0
    ended = schedule(mill, "add", "s", "-", "--at", "+1h", stdin=BODY.encode())
    assert (ended.code, "there is a schedule called 's'" in ended.err) == (2, True)
    assert schedule(mill, "add", "s", "--at", "+1h", "--body", BODY, "--tenant", "other").code == 0
    ended = schedule(mill, "show", "s")
    assert (ended.code, "more than one schedule is called 's'" in ended.err) == (2, True)


def test_serve_fires_at_the_time_and_not_again_after_a_restart(mill: Mill):
    simulator = mill.simulator()
    at = time.time() + 3.0
    schedule(mill, "add", "once", "--at", at, "--body", BODY)
    schedule(mill, "add", "each minute", "--cron", "* * * * *", "--body", BODY, "--disabled")
    schedule(mill, "add", "later", "--at", "+1d", "--body", BODY)
    served = serve(mill, simulator.url)
    until(lambda: mill.count_done() == 1)
    assert mill.one("SELECT carried_out_at FROM promptmill_schedule_fires") >= at
    assert served.stop() == 0
    served = serve(mill, simulator.url)
    schedule(mill, "add", "again", "--at", "+0s", "--body", BODY)
    until(lambda: mill.count_done() == 2)
    assert served.stop() == 0
    assert mill.one("SELECT count(DISTINCT schedule_id) || count(*) FROM promptmill_schedule_fires") == "22"
    assert "Traceback" not in "".join(served.said)


def test_run_now_goes_where_the_fires_go(mill: Mill):
    """To the upstream of the server, which the command does not know."""
    simulator = mill.simulator()
    schedule(mill, "add", "later", "--at", "+1d", "--body", BODY)
    served = serve(mill, simulator.url)
    ended = schedule(mill, "run", "later")
    assert (ended.code, ended.out.startswith("batch_")) == (0, True), ended.err
    until(lambda: mill.count_done() == 1)
    assert served.stop() == 0
    assert simulator.stats.requests == 1


async def test_run_now_waits_for_the_worker_that_has_its_fire_and_takes_it_when_none_has(sqlite_db, monkeypatch):
    monkeypatch.setattr(schedule_module, "_WORKERS_SECONDS", 0.0)
    row = await Timetable(sqlite_db, time.time).add(cron="@yearly")
    fire_id = await deciding.run_now(sqlite_db, row.id, holder="worker", now=time.time())
    waiting = asyncio.create_task(schedule_module._carried_out(sqlite_db, fire_id, holder="cli"))
    done, _ = await asyncio.wait({waiting}, timeout=0.3)
    assert not done
    await fires.release(sqlite_db, holder="worker")
    assert await waiting is None
    assert not await fires.take(sqlite_db, fire_id=fire_id, holder="worker", now=time.time())


def test_serve_that_is_killed_has_fired_once_when_it_is_back(mill: Mill):
    simulator = mill.simulator(latency_seconds=(0.5, 0.5))
    for n in range(3):
        schedule(mill, "add", f"s{n}", "--at", time.time() + 2.0, "--body", BODY)
    served = serve(mill, simulator.url)
    until(lambda: mill.count("schedule_fires") > 0)
    served.process.kill()
    served.process.wait()
    served = serve(mill, simulator.url)
    until(lambda: mill.count_done() == 3, seconds=40)  # what the dead one had in its hands is held for 20 s
    assert served.stop() == 0
    assert mill.rows("SELECT count(*), count(DISTINCT batch_id) FROM results") == [(3, 3)]
    assert mill.one("SELECT count(*) FROM batches") == 3


def test_a_run_fires_no_schedules(mill: Mill):
    simulator = mill.simulator()
    schedule(mill, "add", "now", "--at", "+0s", "--body", BODY)
    prompts = mill.file("p.jsonl", [json.loads(BODY)])
    assert mill.work(prompts, simulator).code == 0
    assert mill.count("schedule_fires") == 0


def test_the_commands_of_the_page_run(mill: Mill):
    """Each `promptmill schedule …` of docs/schedules.md, one after the other."""
    page = (REPOSITORY / "docs" / "schedules.md").read_text()
    block = re.search(r"```sh\n(promptmill schedule add .*?)```", page, re.DOTALL)
    assert block is not None
    mill.file("questions.jsonl", [{"prompt": "What happened on {{ date }}?", "model": "test/plain"}])
    for line in block[1].replace("\\\n", " ").splitlines():
        command = line.partition("  #")[0].strip()
        if command:
            words = shlex.split(command)
            assert words[:2] == ["promptmill", "schedule"]
            ended = schedule(mill, *words[2:])
            assert ended.code == 0, (line, ended.err)
