"""`promptmill run` when all goes well: every kind, byte for byte, in order, with exit codes that machines can go by."""

import json
import os
import pty
import signal
import threading
from pathlib import Path

import pytest

from tests.cli.mill import KEY, REPOSITORY, chats, until
from tests.worker.endpoint import JSON, chat, refusal, text_of
from tests.worker.raw_server import http

EXAMPLES = REPOSITORY / "examples"


def names(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_bytes().splitlines()]


def one_of_each_kind() -> list[str]:
    """Lines of the examples: the first two whose names begin with each of these."""
    lines = (EXAMPLES / "prompts.jsonl").read_text().splitlines()
    found = []
    for kind in ("chat", "long", "tools", "vision-data", "compl", "embed", "rerank", "image", "speech", "audiogen",
                 "transcribe"):  # fmt: skip
        found += [line for line in lines if json.loads(line)["custom_id"].startswith(f"{kind}-")][:2]
    return found


def test_every_kind_goes_through_one_file(mill):
    server = mill.simulator()
    (mill.folder / "audio").symlink_to(EXAMPLES / "audio")
    lines = one_of_each_kind()
    prompts = mill.file("prompts.jsonl", lines)
    ended = mill.work(prompts, server, "--out", "out.jsonl", "--json", "--quiet")
    assert ended.code == 0, ended.err
    wanted = [json.loads(line) for line in lines]
    assert names(mill.folder / "out.jsonl") == [each["custom_id"] for each in wanted]
    assert set(server.stats.by_path) == {each["url"] for each in wanted}
    assert (ended.summary["total"], ended.summary["succeeded"]) == (len(lines), len(lines))
    types = dict(mill.rows(
        "SELECT p.custom_id, r.content_type FROM results r JOIN promptmill_file_parts p USING (file_id, part)"
    ))  # fmt: skip
    assert all(kind.startswith("audio/") for name, kind in types.items() if name.startswith(("speech", "audiogen")))
    mill.check_each_job_has_one_result(len(lines))
    mill.check_nobody_sees_the_key()


ODD = [
    r'{"model": "m", "messages":[{"role":"user","content":"\ud83d \u0000 \/ \u00e9 é"}], "temperature": 1.0E+2}',
    r'{"messages": [{"content": "order", "role": "user"}],   "z": 1, "a": -0.0, "model": "m", "seed": 12345678901234}',
    r'{"model":"m","messages":[{"role":"user","content":"twice"}],"top_p":1,"top_p":0.50}',
]


def test_bodies_arrive_as_they_were_written(mill):
    big = json.dumps({"model": "m", "messages": [{"role": "user", "content": "é" * 2_000_000}]}, ensure_ascii=False)
    endpoint = mill.endpoint(lambda _: chat())
    named = ODD[1].replace("{", '{ "custom_id" : "mine" ,', 1)
    wrapped = f'{{"custom_id": "w", "method": "POST", "url": "/v1/chat/completions", "body": {ODD[2]} }}'
    prompts = mill.file("prompts.jsonl", [ODD[0], named, wrapped, big])
    ended = mill.work(prompts, endpoint, "--max-in-flight", 1)
    assert ended.code == 0, ended.err
    assert [call.body.decode() for call in endpoint.calls] == [ODD[0], ODD[1], ODD[2], big]
    assert {call.headers["authorization"] for call in endpoint.calls} == {f"Bearer {KEY}"}


def test_answers_are_kept_and_written_as_they_came(mill):
    odd = b'{ "choices":[{"message":{"content":"\\u0000 \\ud83d \\/ \xc3\xa9"}}],\t"score": 1.0E+2, "z":1, "a":-0.0 }'
    sound = bytes(range(256)) * 100
    endpoint = mill.endpoint(
        lambda call: (
            http("200 OK", sound, "Content-Type: audio/mpeg") if b'"input"' in call.body else http("200 OK", odd, JSON)
        )
    )
    speech = {"custom_id": "s", "model": "v", "input": "Say it.", "voice": "anna"}
    prompts = mill.file("prompts.jsonl", [*chats(1), speech])
    assert mill.work(prompts, endpoint, "--out", "out.jsonl").code == 0
    first, second = (mill.folder / "out.jsonl").read_bytes().splitlines()
    assert odd in first
    assert json.loads(second)["response"]["body"]["content_type"] == "audio/mpeg"
    assert mill.run("results", "--db", mill.db, "--save-dir", "media", "--out", "-").code == 0
    (saved,) = (mill.folder / "media").glob("s.*")
    assert saved.read_bytes() == sound


def even_fail(call) -> bytes:
    return refusal("400 Bad Request", "even") if int(text_of(call)) % 2 == 0 else chat()


def test_failed_ones_go_to_their_own_file_and_the_exit_code_says_so(mill):
    endpoint = mill.endpoint(even_fail)
    prompts = mill.file("prompts.jsonl", chats(20))
    ended = mill.work(prompts, endpoint, "--out", "out.jsonl", "--errors", "errors.jsonl")
    assert ended.code == 3
    assert names(mill.folder / "out.jsonl") == [f"line-{n}" for n in range(2, 21, 2)]
    assert names(mill.folder / "errors.jsonl") == [f"line-{n}" for n in range(1, 20, 2)]
    assert "10 x rejected: even" in ended.err
    assert "10 succeeded, 10 failed, 0 waiting" in ended.err


def test_without_a_file_for_failed_ones_all_are_together_in_input_order(mill):
    endpoint = mill.endpoint(even_fail)
    prompts = mill.file("prompts.jsonl", chats(20))
    ended = mill.work(prompts, endpoint, "--out", "-", "--quiet")
    assert ended.code == 3
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert [line["custom_id"] for line in lines] == [f"line-{n}" for n in range(1, 21)]
    assert {line["response"]["status_code"] for line in lines} == {200, 400}


def test_machines_get_one_json_object_a_line(mill):
    endpoint = mill.endpoint(even_fail)
    ended = mill.work(mill.file("prompts.jsonl", chats(4)), endpoint, "--json")
    assert [event["event"] for event in ended.events] == ["summary"]
    took, batch = ended.summary.pop("seconds"), ended.summary.pop("batch")
    assert took > 0
    assert batch.startswith("batch_")
    assert {key: value for key, value in ended.summary.items() if key not in ("seconds", "batch")} == {
        "event": "summary", "state": "completed", "total": 4, "succeeded": 2, "failed": 2, "expired": 0,
        "cancelled": 0, "invalid": 0, "retried": 0, "prompt_tokens": 6, "completion_tokens": 10,
        "reasoning_tokens": 0, "exit_code": 3,
    }  # fmt: skip


def test_the_same_line_again_sends_nothing_and_writes_the_results_again(mill):
    server = mill.simulator()
    prompts = mill.file("prompts.jsonl", chats(10))
    assert mill.work(prompts, server).code == 0
    again = mill.work(prompts, server, "--out", "out.jsonl")
    assert again.code == 0
    assert "already finished: 10 results" in again.err
    assert len(names(mill.folder / "out.jsonl")) == 10
    assert server.stats.requests == 10


def test_fresh_begins_anew_and_is_what_is_resumed_from_then_on(mill):
    server = mill.simulator()
    prompts = mill.file("prompts.jsonl", chats(10))
    assert mill.work(prompts, server).code == 0
    assert mill.work(prompts, server, "--fresh").code == 0
    assert server.stats.requests == 20
    assert "already finished" in mill.work(prompts, server).err
    assert server.stats.requests == 20


def test_a_changed_file_or_another_endpoint_is_another_batch(mill):
    first, second = mill.simulator(), mill.simulator()
    prompts = mill.file("prompts.jsonl", chats(5))
    assert mill.work(prompts, first).code == 0
    assert mill.work(prompts, second).code == 0
    mill.file("prompts.jsonl", chats(6))
    assert mill.work(prompts, first).code == 0
    assert (first.stats.requests, second.stats.requests) == (5 + 6, 5)


def test_standard_input_is_recognised_when_it_comes_again(mill):
    server = mill.simulator()
    data = mill.file("prompts.jsonl", chats(5)).read_bytes()
    assert mill.work("-", server, stdin=data).code == 0
    again = mill.work("-", server, stdin=data)
    assert (again.code, server.stats.requests) == (0, 5)
    assert "already finished" in again.err
    assert mill.count("batches") == 1
    assert mill.count("file_parts") == 5


def test_a_pipe_is_read_once(mill):
    server = mill.simulator()
    data = mill.file("prompts.jsonl", chats(3)).read_bytes()
    os.mkfifo(mill.folder / "pipe")
    writer = threading.Thread(target=(mill.folder / "pipe").write_bytes, args=(data,))
    writer.start()
    assert mill.work("pipe", server).code == 0
    writer.join()
    assert server.stats.requests == 3


def test_two_at_once_on_one_file_are_one_too_many(mill):
    server = mill.simulator(latency_seconds=(60, 60))
    prompts = mill.file("prompts.jsonl", chats(3))
    first = mill.start_work(prompts, server)
    until(lambda: server.stats.in_flight == 3)
    second = mill.work(prompts, server)
    assert second.code == 2
    assert f"process {first.process.pid}) is working on {mill.db}" in second.err
    assert server.stats.requests == 3


def test_plain_lines_go_where_the_flags_say(mill):
    endpoint = mill.endpoint(lambda _: http("200 OK", b'{"data": [{"embedding": [0.5]}]}', JSON))
    ended = mill.work(
        mill.file("words.txt", ["mill", "stone"]), endpoint, "--model", "e5", "--endpoint", "/v1/embeddings",
        "--max-in-flight", 1,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert [json.loads(call.body) for call in endpoint.calls] == [
        {"model": "e5", "input": "mill"},
        {"model": "e5", "input": "stone"},
    ]
    assert {call.line for call in endpoint.calls} == {"POST /v1/embeddings HTTP/1.1"}


def on_a_terminal(mill, server, count, when_begun=None):
    """`promptmill run`, and what it wrote to its terminal."""
    ours, theirs = pty.openpty()
    run = mill.start_work(mill.file("prompts.jsonl", chats(count)), server, "--max-in-flight", 10, stderr=theirs)
    os.close(theirs)
    if when_begun is not None:
        when_begun(run)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # nobody writes any more
            break
        seen += chunk
    os.close(ours)
    return run.ended().code, seen


def test_a_terminal_is_shown_a_live_view(mill):
    code, seen = on_a_terminal(mill, mill.simulator(latency_seconds=(0.3, 0.3)), 10)
    assert code == 0
    assert b"in flight" in seen
    assert b"10 of 10" in seen
    assert b"10 succeeded, 0 failed" in seen


def test_what_is_said_meanwhile_stands_above_the_live_view(mill):
    """Else the next frame erases it."""
    server = mill.simulator(latency_seconds=(0.5, 0.5))

    def interrupted(run) -> None:
        until(lambda: mill.count_done() >= 10 and server.stats.in_flight == 10)
        run.signal(signal.SIGINT)

    code, seen = on_a_terminal(mill, server, 100, interrupted)
    assert code == 130
    before, _, after = seen.partition(b"stopping: waiting up to 10 s")
    assert before.endswith((b"\x1b[1A\x1b[2K", b"\r\x1b[2K"))  # the last frame is gone
    assert after.startswith(b" for 10 calls under way; Ctrl-C again gives them back at once\r\n")


@pytest.mark.parametrize("words", [("--help",), ("run", "--help")])
def test_help_is_there(mill, words):
    assert mill.run(*words).code == 0
