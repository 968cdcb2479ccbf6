"""`promptmill status`: for people on a terminal, for pipes, for machines."""

import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli import status_view
from cli.batch_detail import Detail, detail_facts, read_detail
from cli.status import status
from promptmill.errors import StoreError
from promptmill.job import LaneState, State
from promptmill.outcome import Failure, Reason, Usage
from promptmill.settings import load
from promptmill.store import batches, lanes
from tests.cli.batch_builder import NOW, Made, chat, made_batch, make_database, rejected

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(status)

DONE = [Made("a", chat("x", Usage(2_000_000, 5, 3, 2))), Made("b", rejected()), Made("c", "not JSON")]
UNDER_WAY = [
    Made("a", chat("x")),
    Made("b", Failure(Reason.SERVER_ERROR, "try again", 500), state=State.WAITING),
    Made("c", running=True),
    Made("d", Failure(Reason.DNS_FAILED, "no such host\n[bold]\x1b[2J")),
    Made("e"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """An empty current folder, and nothing of ours in the environment."""
    for name in [name for name in os.environ if name.startswith("PROMPTMILL_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(*arguments: str) -> str:
    """What the command prints; what it raises is raised here."""
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False).stdout


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestBatches:
    def test_a_line_for_each_the_newest_first(self, folder):
        done, under_way = make_database(folder / "promptmill.sqlite3", DONE, UNDER_WAY)
        heading, first, second = ask().splitlines()
        assert heading.split() == [
            "id", "source", "state", "done", "ok", "failed", "retried", "tokens", "started", "took",
        ]  # fmt: skip
        assert first.split()[:8] == [under_way.public_id, "prompts.jsonl", "in_progress", "2/5", "1", "1", "1", "15"]
        assert second.split()[:8] == [done.public_id, "prompts.jsonl", "completed", "3/3", "1", "2", "0", "2.0M"]
        assert second.endswith("1:30")

    def test_none_yet(self, folder):
        make_database(folder / "promptmill.sqlite3")
        assert ask() == "this database has no batch yet\n"

    def test_no_database_and_none_made(self, folder):
        with pytest.raises(StoreError, match="no database at"):
            ask()
        assert list(folder.iterdir()) == []

    def test_for_machines(self, folder):
        done, _ = make_database(folder / "promptmill.sqlite3", DONE, UNDER_WAY)
        facts = json.loads(ask("--json"))["batches"][1]
        assert facts == {
            "id": done.public_id, "source": "prompts.jsonl", "state": "completed", "total": 3, "done": 3,
            "succeeded": 1, "failed": 1, "cancelled": 0, "expired": 0, "invalid": 1, "retried": 0,
            "prompt_tokens": 2_000_000, "completion_tokens": 5, "reasoning_tokens": 3, "cached_tokens": 2,
            "priority": 0, "deadline": None, "weight": 1.0, "max_in_flight": None, "requests_per_minute": None,
            "tokens_per_minute": None, "budget_tokens": None, "budget_cost": None, "canary": None,
            "canary_percent": 10.0, "canary_then": "continue", "not_before": None, "waits_for": None,
            "created_at": NOW, "started_at": NOW, "finished_at": NOW + 90,
        }  # fmt: skip

    def test_on_a_terminal_ids_are_short_and_understood(self, folder, monkeypatch):
        monkeypatch.setenv("COLUMNS", "120")
        rows = make_database(folder / "promptmill.sqlite3", DONE)
        terminal = Terminal()
        status_view.print_batches(rows, notes={}, now=NOW + 100, file=terminal)
        (short,) = [word for word in terminal.getvalue().split() if word.startswith("batch_")]
        assert rows[0].public_id.startswith(short) and len(short) == 14  # noqa: PT018 - one thing, said twice
        assert rows[0].public_id in ask(short)


class TestDetail:
    def test_everything_about_one(self, folder):
        _, batch = make_database(folder / "promptmill.sqlite3", DONE, UNDER_WAY)
        text = ask(batch.public_id[:14])
        lines = text.splitlines()
        assert lines[0] == f"{batch.public_id} in_progress prompts.jsonl"
        assert lines[2] == "2 of 5 done: 1 succeeded, 1 failed; 1 ready, 1 running, 1 waiting; 1 retried"
        assert lines[3] == "tokens: 10 in (2 cached), 5 out (3 thinking)"
        assert [line.split() for line in lines if "up.example" in line] == [
            ["m", "https://up.example/v1", "unknown", "3"]
        ]
        calls = {line.split()[0]: line.split()[1] for line in lines if line.startswith(("succeeded", "dns", "server"))}
        assert calls == {"succeeded": "1", "dns_failed": "1", "server_error": "1"}
        (failure,) = [line for line in lines if "no such host" in line]
        assert failure.split(maxsplit=2) == ["1", "dns_failed", "no such host [bold]\N{REPLACEMENT CHARACTER}[2J"]
        assert "host:1" in text
        assert "silent: its jobs are given to others" in text

    async def test_a_halted_lane_says_why_and_a_paused_one_for_how_long(self, sqlite_db):
        batch = await made_batch(sqlite_db, UNDER_WAY)
        (lane_id,) = await batches.lane_names(sqlite_db, batch.id)
        await lanes.halted(sqlite_db, lane_ids=[lane_id], reason="the key is wrong")
        halted = await read_detail(sqlite_db, load({}), None, with_examples=False, now=NOW)
        (line,) = [line for line in shown(halted).splitlines() if "up.example" in line]
        assert line.split(maxsplit=4)[2:] == ["halted", "3", "the key is wrong"]
        lane, left = halted.lanes[0]
        paused = replace(lane, state=LaneState.OPEN, reason=None, paused_until=NOW + 30)
        assert "paused for 30 s" in shown(replace(halted, lanes=((paused, left),)))

    def test_failures_in_full(self, folder):
        make_database(folder / "promptmill.sqlite3", [Made(f"n{i}", rejected("x" * 3_000)) for i in range(5)])
        text = ask("--failures")
        assert f"5 x rejected: {'x' * 3_000}\n" in text
        assert "for example n0, n1, n2\n" in text

    def test_nothing_has_failed(self, folder):
        make_database(folder / "promptmill.sqlite3", [Made("a", chat("x"))])
        assert "nothing has failed" in ask("--failures")

    def test_more_reasons_than_are_shown(self, folder):
        reasons = (Reason.REJECTED, Reason.DNS_FAILED, Reason.TLS_FAILED, Reason.BODY_HTML, Reason.BODY_INVALID,
                   Reason.SERVER_ERROR, Reason.PROTOCOL_ERROR)  # fmt: skip
        made = [Made(str(i), Failure(reason, "words")) for i, reason in enumerate(reasons)]
        (batch,) = make_database(folder / "promptmill.sqlite3", made)
        assert "and 2 more reasons: promptmill status --failures" in ask(batch.public_id)
        assert all(f"1 x {reason}: words" in ask("--failures") for reason in reasons)

    def test_for_machines(self, folder):
        (batch,) = make_database(folder / "promptmill.sqlite3", UNDER_WAY)
        facts = json.loads(ask(batch.public_id, "--json", "--failures"))
        assert list(facts) == [
            "batch",
            "standstill",
            "jobs",
            "lanes",
            "calls",
            "failures",
            "workers",
            "foresight",
            "bill",
        ]
        assert (facts["foresight"]["reason"], facts["foresight"]["seconds_left"]) == ("no_worker", None)
        assert facts["bill"]["spent"] is None  # its model has no price
        assert facts["jobs"] == {
            "ready": 1, "waiting": 1, "running": 1, "succeeded": 1, "failed": 1, "cancelled": 0, "expired": 0,
            "invalid": 0,
        }  # fmt: skip
        assert facts["lanes"] == [
            {"upstream": "https://up.example/v1", "model": "m", "state": "unknown", "reason": None,
             "paused_until": None, "unfinished": 3}
        ]  # fmt: skip
        assert facts["calls"] == {"dns_failed": 1, "server_error": 1, "succeeded": 1}
        assert facts["failures"] == [
            {"code": "dns_failed", "jobs": 1, "message": "no such host\n[bold]\x1b[2J", "examples": ["d"]}
        ]
        assert facts["workers"] == [
            {"name": "host:1", "in_flight": 0, "started_at": NOW, "heartbeat_at": NOW, "silent": True}
        ]

    async def test_on_a_terminal_a_long_message_is_folded(self, sqlite_db, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        await made_batch(sqlite_db, [Made("a", rejected("word " * 100))])
        styled = shown(await read_detail(sqlite_db, load({}), None, with_examples=False, now=NOW), Terminal())
        text = re.sub(r"\x1b\[[0-9;]*m", "", styled)
        assert text.count("word") == 100
        assert max(map(len, text.splitlines())) <= 80


def shown(detail: Detail, out: io.StringIO | None = None) -> str:
    out = out or io.StringIO()
    status_view.print_detail(detail, now=NOW, all_failures=False, file=out)
    return out.getvalue()


async def test_both_databases(db):
    """What is known on one database is known on the other."""
    batch = await made_batch(db, UNDER_WAY)
    facts = detail_facts(await read_detail(db, load({}), batch.public_id, with_examples=True, now=NOW), now=NOW)
    assert facts["jobs"]["running"] == 1
    assert facts["failures"][0]["examples"] == ["d"]
    assert facts["workers"][0]["silent"] is False
