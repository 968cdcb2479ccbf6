"""Inputs and flags that cannot be: all of it said, nothing sent, nothing kept."""

import gzip

import pytest

from tests.cli.mill import chats

TABLES = ("batches", "jobs", "files", "file_parts", "results", "attachments")

GOOD = '{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
BAD_LINES = [
    ("{not json", "invalid_json_line"),
    ("[1, 2]", "invalid_json_line"),
    (b'{"prompt": "\xff", "model": "m"}', "invalid_encoding"),
    ('{"messages": [{"role": "user", "content": "hi"}]}', "missing_required_parameter"),
    ('{"model": "m"}', "missing_required_parameter"),
    ('{"model": "m", "messages": []}', "invalid_request"),
    ('{"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": true}', "stream_not_supported"),
    ('{"custom_id": "a", "url": "/v1/nothing", "body": {"model": "m"}}', "invalid_url"),
    ('{"custom_id": "b", "method": "GET", "url": "/v1/chat/completions", "body": ' + GOOD + "}", "invalid_method"),
    ('{"custom_id": 7, "url": "/v1/chat/completions", "body": ' + GOOD + "}", "invalid_custom_id"),
    ('{"model": "w", "file": "nowhere.mp3"}', "file_not_found"),
    (r'{"model": "w", "file": "nul\u0000.mp3"}', "file_not_found"),
    (r'{"model": "w", "file": "\ud800.mp3"}', "file_not_found"),
    ('{"model": "w", "file": "data:audio/wav;base64,%%%"}', "invalid_request"),
    ('{"custom_id": "twice", "model": "m", "prompt": "x"}', "duplicate_custom_id"),
]


def kept(mill) -> dict[str, int]:
    """Rows of each table that an input fills."""
    return {table: mill.count(table) for table in TABLES}


def mixed_file(mill):
    """Each bad line after a good one, so that line numbers tell."""
    lines = ['{"custom_id": "twice", "model": "m", "prompt": "first"}']
    for bad, _ in BAD_LINES:
        lines += [bad, GOOD]
    return mill.file("mixed.jsonl", lines)


def test_every_bad_line_is_named_with_its_number_and_reason_and_nothing_is_kept(mill):
    server = mill.simulator()
    ended = mill.work(mixed_file(mill), server)
    assert ended.code == 2
    for index, (_, code) in enumerate(BAD_LINES):
        (line,) = (line for line in ended.err.splitlines() if line.startswith(f"  line {2 * index + 2}: "))
        assert line.endswith(f"[{code}]"), line
    assert f"{len(BAD_LINES)} problems; nothing was sent" in ended.err
    assert "--skip-bad-lines" in ended.err
    assert set(kept(mill).values()) == {0}
    assert server.stats.requests == 0


def test_good_lines_run_when_bad_ones_are_skipped(mill):
    server = mill.simulator()
    ended = mill.work(mixed_file(mill), server, "--skip-bad-lines", "--json", "--out", "out.jsonl")
    bad, good = len(BAD_LINES), len(BAD_LINES) + 1
    assert ended.code == 3
    assert (ended.summary["succeeded"], ended.summary["invalid"], ended.summary["total"]) == (good, bad, good + bad)
    codes = [code for (code,) in mill.rows("SELECT error_code FROM results WHERE state = 'invalid' ORDER BY position")]
    assert codes == [code for _, code in BAD_LINES]
    assert server.stats.requests == good
    assert len((mill.folder / "out.jsonl").read_bytes().splitlines()) == good + bad
    again = mill.work(mixed_file(mill), server, "--skip-bad-lines")
    assert (again.code, server.stats.requests) == (3, good)


def test_more_bad_lines_than_anybody_reads(mill):
    ended = mill.work(mill.file("bad.jsonl", ["nonsense"] * 30), mill.simulator())
    assert ended.err.count("invalid_json_line") == 20
    assert "… and 10 more" in ended.err


def test_only_bad_lines_to_skip(mill):
    ended = mill.work(mill.file("bad.jsonl", ["nonsense"] * 2), mill.simulator(), "--skip-bad-lines")
    assert ended.code == 3
    assert "2 bad lines skipped" in ended.err
    assert "already finished" not in ended.err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jsonl", b"", "there is no request in it"),
        ("blank.jsonl", b"\n \n\r\n", "there is no request in it"),
        ("utf16.jsonl", GOOD.encode("utf-16"), "is UTF-16 or UTF-32 text"),
        ("cut.jsonl.gz", gzip.compress(GOOD.encode() * 1000)[:-20], "cut.jsonl.gz is cut off"),
        ("broken.jsonl.gz", b"\x1f\x8b" + b"nonsense" * 100, "gzip data are damaged near byte"),
        ("table.jsonl", b"PAR1" + bytes(100), "is a Parquet file"),
        ("noise.jsonl", bytes(range(128, 256)) * 10, "not UTF-8"),
    ],
)
def test_files_that_are_no_input(mill, name, content, words):
    server = mill.simulator()
    (mill.folder / name).write_bytes(content)
    ended = mill.work(name, server)
    assert ended.code == 2
    assert words in ended.err
    assert "Traceback" not in ended.err
    assert set(kept(mill).values()) == {0}


def test_a_compressed_file_is_the_same_input_as_the_plain_one(mill):
    server = mill.simulator()
    plain = mill.file("prompts.jsonl", chats(5))
    (mill.folder / "prompts.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert mill.work(plain, server).code == 0
    assert "already finished" in mill.work("prompts.jsonl.gz", server).err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere.jsonl",), "nowhere.jsonl: there is no such file"),
        ((".",), ". is a directory"),
        (("good.jsonl", "--rpm", "0"), "requests_per_minute must be above 0"),
        (("good.jsonl", "--rpm", "-1"), "requests_per_minute must be above 0"),
        (("good.jsonl", "--tpm", "nan"), "tokens_per_minute must be above 0"),
        (("good.jsonl", "--max-in-flight", "0"), "max_in_flight must be above 0"),
        (("good.jsonl", "--max-attempts", "0"), "max_attempts must be at least 1"),
        (("good.jsonl", "--grace", "-1"), "grace_seconds must be 0 or more"),
        (("good.jsonl", "--grace", "nan"), "grace_seconds must be 0 or more"),
        (("good.jsonl", "--endpoint", "/v1/nope"), "the endpoint '/v1/nope' is not known"),
        (("good.jsonl", "--base-url", "ftp://x"), "is not an http:// or https:// URL"),
        (("good.jsonl", "--base-url", "http://me:hunter2@127.0.0.1/v1"), "must not have a user or password in it"),
        (("good.jsonl", "--api-key-env", "NO_SUCH_KEY"), "--api-key-env names NO_SUCH_KEY, which is not set"),
        (("good.jsonl", "--out", "nowhere/out.jsonl"), "the folder nowhere does not exist"),
        (("good.jsonl", "--out", "."), "cannot write .: it is a folder"),
        (("good.jsonl", "--out", "good.jsonl"), "--out good.jsonl is in use for something else"),
        (("good.jsonl", "--out", "mill.sqlite3"), "--out mill.sqlite3 is in use for something else"),
        (("good.jsonl", "--out", "o", "--errors", "./o"), "--errors o is in use for something else"),
        (("good.jsonl", "--json", "--out", "-"), "both write to stdout"),
        (("good.jsonl", "--db", "nowhere/mill.sqlite3"), "nowhere does not exist"),
        (("good.jsonl", "--db", "/"), "cannot open /: Is a directory"),
        (("good.jsonl", "--db", "good.jsonl"), "good.jsonl is not a SQLite database"),
        (("good.jsonl", "--db", "mysql://x"), "the database 'mysql' is not supported"),
        (("good.jsonl", "--db", "postgresql://u:hunter2@127.0.0.1:1/x"), "cannot open postgresql"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_sent(mill, words, said):
    server = mill.simulator()
    before = mill.file("good.jsonl", chats(2)).read_bytes()
    given = dict(zip(words[1::2], words[2::2], strict=False))
    more = [] if "--base-url" in given else ["--base-url", server.url]
    ended = mill.run("run", *words, *more, *([] if "--db" in given else ["--db", mill.db]))
    assert ended.code == 2
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert "hunter2" not in ended.err
    assert server.stats.requests == 0
    assert (mill.folder / "good.jsonl").read_bytes() == before


def test_an_unknown_flag(mill):
    ended = mill.run("run", "x.jsonl", "--speed", "9")
    assert ended.code == 2
    assert "No such option: --speed" in ended.err
