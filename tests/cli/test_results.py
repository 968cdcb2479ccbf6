"""`promptmill results`: every format, to stdout and to files, complete or not at all."""

import base64
import csv
import errno
import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from cli import target as target_module
from cli.csv_export import COLUMNS, guarded
from cli.export import Format, check_places, export, write_outputs
from cli.file_names import extension, safe_name
from cli.results import results
from cli.target import target
from promptmill.errors import NotFound, StoreError, UsageError
from promptmill.job import FINISHED, State
from promptmill.outcome import Answer, Failure, Reason, Usage
from promptmill.store.results import stream
from tests.cli.batch_builder import NOW, Made, chat, made_batch, make_database, rejected

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(results)

MIXED = (
    Made("first", chat("Hello, world")),
    Made("second", rejected(), attempts=2),
    Made("third", "not JSON"),
    Made("fourth", chat("<think>\nhm\n</think>\n\n=1+1")),
    Made("fifth", Failure(Reason.DNS_FAILED, "no such host")),
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """An empty current folder, and nothing of ours in the environment."""
    for name in [name for name in os.environ if name.startswith("PROMPTMILL_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(*arguments: str):
    """Run the command; what it raises is raised here."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def names(text: str | bytes) -> list[str]:
    return [json.loads(line)["custom_id"] for line in text.splitlines()]


class TestLines:
    def test_all_results_in_input_order_on_stdout(self, folder):
        (batch,) = make_database(folder / "promptmill.sqlite3", MIXED, finish_order=[4, 3, 1, 0])
        answer = ask()
        assert names(answer.stdout) == ["first", "second", "line-3", "fourth", "fifth"]
        assert answer.stderr == ""
        assert json.loads(answer.stdout.splitlines()[0]) == {
            "id": f"{batch.public_id.replace('batch_', 'batch_req_')}-0",
            "custom_id": "first",
            "response": {"status_code": 200, "request_id": "req-1", "body": json.loads(chat("Hello, world").body)},
            "error": None,
        }

    def test_as_they_finished(self, folder):
        make_database(folder / "promptmill.sqlite3", MIXED, finish_order=[4, 3, 1, 0])
        assert names(ask("--order", "finished").stdout) == ["line-3", "fifth", "fourth", "second", "first"]

    def test_only_some_states(self, folder):
        make_database(folder / "promptmill.sqlite3", MIXED)
        assert names(ask("--state", "failed", "--state", "invalid").stdout) == ["second", "line-3", "fifth"]
        with pytest.raises(UsageError, match="a job that is ready has no result yet"):
            ask("--state", "ready")

    def test_the_newest_batch_unless_another_is_named(self, folder):
        old, new = make_database(folder / "promptmill.sqlite3", [Made("old", chat("a"))], [Made("new", chat("b"))])
        assert names(ask().stdout) == ["new"]
        assert names(ask(old.public_id).stdout) == ["old"]
        assert names(ask(new.public_id[:14]).stdout) == ["new"]
        with pytest.raises(NotFound):
            ask("batch_unknown")

    def test_while_it_runs_there_is_what_there_is(self, folder):
        make_database(folder / "promptmill.sqlite3", [Made("a", chat("x")), Made("b", running=True), Made("c")])
        answer = ask()
        assert names(answer.stdout) == ["a"]
        assert "2 of 3 jobs of batch_" in answer.stderr

    def test_failures_in_a_file_of_their_own(self, folder):
        make_database(folder / "promptmill.sqlite3", MIXED)
        answer = ask("--out", "ok.jsonl", "--errors", "bad.jsonl")
        assert names((folder / "ok.jsonl").read_bytes()) == ["first", "fourth"]
        assert names((folder / "bad.jsonl").read_bytes()) == ["second", "line-3", "fifth"]
        assert answer.stdout == ""
        assert "2 results in ok.jsonl" in answer.stderr
        assert "3 results in bad.jsonl" in answer.stderr

    @pytest.mark.parametrize("how", ["--db", "environment"])
    def test_another_database(self, folder, monkeypatch, how):
        make_database(folder / "other.db", [Made("there", chat("x"))])
        if how == "environment":
            monkeypatch.setenv("PROMPTMILL_DATABASE_URL", f"sqlite:///{folder}/other.db")
        assert names(ask(*([] if how == "environment" else ["--db", "other.db"])).stdout) == ["there"]

    def test_a_thousand_and_more(self, folder):
        make_database(folder / "promptmill.sqlite3", [Made(f"n{i}", chat(str(i))) for i in range(1203)])
        assert names(ask().stdout) == [f"n{i}" for i in range(1203)]


class TestNoDatabase:
    def test_none_is_made(self, folder):
        with pytest.raises(StoreError, match=r"no database at promptmill\.sqlite3; run `promptmill run` first"):
            ask()
        assert list(folder.iterdir()) == []

    def test_a_file_that_is_none(self, folder):
        (folder / "notes.txt").write_text("these are no tables " * 100)
        with pytest.raises(StoreError, match="not a SQLite database"):
            ask("--db", "notes.txt")

    def test_a_database_of_somebody_else(self, folder):
        (folder / "empty.db").touch()
        with pytest.raises(StoreError, match="no promptmill tables"):
            ask("--db", "empty.db")

    def test_a_server_that_is_away(self):
        with pytest.raises(StoreError, match="cannot open postgresql") as raised:
            ask("--db", "postgresql://u:secret@127.0.0.1:1/d")
        assert "secret" not in str(raised.value)

    def test_no_batch_yet(self, folder):
        make_database(folder / "promptmill.sqlite3")
        with pytest.raises(NotFound, match="no batch yet"):
            ask()


class TestCsv:
    def test_texts_are_exact(self, folder):
        odd = 'a "quoted"\r\n\r=text, ünd\t\N{GRINNING FACE} more'
        make_database(folder / "promptmill.sqlite3", [*MIXED, Made("odd", chat(odd))])
        ask("--format", "csv", "--out", "t.csv")
        with (folder / "t.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert tuple(rows[0]) == COLUMNS
        assert [row["text"] for row in rows] == ["Hello, world", "", "", "=1+1", "", odd]
        assert rows[3]["reasoning"] == "hm"
        assert rows[1] == {
            "custom_id": "second", "state": "failed", "status_code": "400", "text": "", "reasoning": "",
            "error_code": "rejected", "error_message": "the prompt is too long", "model": "m", "prompt_tokens": "0",
            "completion_tokens": "0", "attempts": "2", "finished_at": "2023-11-14T22:14:21.000+00:00",
        }  # fmt: skip
        assert (rows[0]["prompt_tokens"], rows[0]["completion_tokens"]) == ("10", "5")
        assert rows[4]["status_code"] == ""

    def test_for_a_spreadsheet_no_cell_is_a_formula(self, folder):
        make_database(folder / "promptmill.sqlite3", [Made("@id", chat("=cmd|' /C calc'!A0")), Made("b", chat("-5"))])
        text = ask("--format", "csv-excel").stdout_bytes.decode("utf-8-sig")
        first, second = csv.DictReader(io.StringIO(text, newline=""))
        assert (first["custom_id"], first["text"]) == ("'@id", "'=cmd|' /C calc'!A0")
        assert second["text"] == "-5"
        assert ask("--format", "csv-excel").stdout_bytes.startswith(b"\xef\xbb\xbfcustom_id")

    @pytest.mark.parametrize(
        ("cell", "safe"),
        [
            ("plain", "plain"), ("a=b", "a=b"), ("", ""), (None, None), (-5, -5), ("+3,5", "+3,5"), ("-1.25", "-1.25"),
            ("=1", "'=1"), ("+1-1", "'+1-1"), ("-1+1", "'-1+1"), ("- a list", "'- a list"), ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "'\t=1"), ("\r=1", "'\r=1"), ("\uff1d1", "'\uff1d1"), ("-5\n=1", "'-5\n=1"),
        ],
    )  # fmt: skip
    def test_what_is_guarded(self, cell, safe):
        assert guarded(cell) == safe


class TestParquet:
    def test_typed_columns_and_exact_bodies(self, folder):
        audio = Answer(200, "audio/wav", b"RIFF\x00\x00\x00\x00WAVE\xff", Usage(), None)
        make_database(folder / "promptmill.sqlite3", [*MIXED, Made("spoken", audio)])
        ask("--format", "parquet", "--out", "t.parquet")
        table = pq.read_table(folder / "t.parquet")
        rows = table.to_pylist()
        assert [row["custom_id"] for row in rows] == ["first", "second", "line-3", "fourth", "fifth", "spoken"]
        assert rows[0]["body"].encode() == chat("Hello, world").body
        assert rows[0]["finished_at"] == datetime.fromtimestamp(NOW + 60, UTC)
        assert (rows[0]["text"], rows[0]["prompt_tokens"], rows[0]["reasoning_tokens"]) == ("Hello, world", 10, 3)
        assert (rows[3]["text"], rows[3]["reasoning"]) == ("=1+1", "hm")
        assert (rows[4]["status_code"], rows[4]["error_code"], rows[4]["body"]) == (None, "dns_failed", None)
        assert (rows[5]["body"], rows[5]["body_bytes"]) == (None, audio.body)
        assert str(table.schema.field("finished_at").type) == "timestamp[us, tz=UTC]"
        assert str(table.schema.field("status_code").type) == "int32"

    def test_to_stdout(self, folder):
        make_database(folder / "promptmill.sqlite3", MIXED)
        table = pq.read_table(io.BytesIO(ask("--format", "parquet").stdout_bytes))
        assert table.num_rows == 5

    def test_in_groups(self, folder, monkeypatch):
        monkeypatch.setattr("cli.parquet_export.ROWS_IN_GROUP", 10)
        make_database(folder / "promptmill.sqlite3", [Made(f"n{i}", chat(str(i))) for i in range(25)])
        ask("--format", "parquet", "--out", "t.parquet")
        file = pq.ParquetFile(folder / "t.parquet")
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [10, 10, 5]
        assert file.read().column("custom_id").to_pylist() == [f"n{i}" for i in range(25)]

    def test_an_empty_one_has_its_columns(self, folder):
        make_database(folder / "promptmill.sqlite3", [Made("a")])
        ask("--format", "parquet", "--out", "t.parquet")
        table = pq.read_table(folder / "t.parquet")
        assert (table.num_rows, "body_bytes" in table.column_names) == (0, True)

    def test_without_pyarrow_it_says_how_to_get_it(self, folder, monkeypatch):
        make_database(folder / "promptmill.sqlite3", MIXED)
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(UsageError, match=r"pip install 'promptmill\[parquet\]'"):
            ask("--format", "parquet", "--out", "t.parquet")
        assert [path.name for path in folder.iterdir() if "parquet" in path.name] == []


async def none_then_interrupt(db, batch):
    async for result in stream(db, batch.id):
        yield result
        raise KeyboardInterrupt


class TestPlaces:
    @pytest.mark.parametrize("format_", ["jsonl", "csv", "parquet"])
    async def test_an_interrupted_export_leaves_what_was_there(self, sqlite_db, folder, format_):
        batch = await made_batch(sqlite_db, MIXED)
        (folder / "out").write_text("before")
        with pytest.raises(KeyboardInterrupt):
            await export(none_then_interrupt(sqlite_db, batch), batch.public_id, Path("out"), format_=format_)
        assert (folder / "out").read_text() == "before"
        assert [path.name for path in folder.iterdir() if path.name.endswith(".part")] == []

    async def test_a_full_disk_leaves_what_was_there(self, sqlite_db, folder, monkeypatch):
        batch = await made_batch(sqlite_db, MIXED)
        (folder / "out").write_text("before")

        def full(_fd):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(target_module.os, "fsync", full)
        with pytest.raises(UsageError, match="cannot write out: No space left on device"):
            await write_outputs(sqlite_db, batch, Path("out"), None)
        assert (folder / "out").read_text() == "before"
        assert [path.name for path in folder.iterdir() if path.name.endswith(".part")] == []

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
    @pytest.mark.parametrize("format_", ["jsonl", "csv", "parquet"])
    async def test_a_device_that_is_full(self, sqlite_db, format_):
        batch = await made_batch(sqlite_db, MIXED)
        with pytest.raises(UsageError, match="cannot write /dev/full: No space left on device"):
            await export(stream(sqlite_db, batch.id), batch.public_id, Path("/dev/full"), format_=format_)

    async def test_the_old_file_is_replaced_and_keeps_its_mode(self, sqlite_db, folder):
        batch = await made_batch(sqlite_db, MIXED)
        old = folder / "out"
        old.write_text("before")
        old.chmod(0o600)
        (folder / "link").symlink_to("out")
        assert await write_outputs(sqlite_db, batch, Path("link"), None) == (5, 0)
        assert (folder / "link").is_symlink()
        assert len(names(old.read_bytes())) == 5
        assert old.stat().st_mode & 0o777 == 0o600

    async def test_errors_alone_and_nothing_at_all(self, sqlite_db, folder):
        batch = await made_batch(sqlite_db, MIXED)
        assert await write_outputs(sqlite_db, batch, None, Path("bad")) == (0, 3)
        assert names((folder / "bad").read_bytes()) == ["second", "line-3", "fifth"]
        assert await write_outputs(sqlite_db, batch, None, None) == (0, 0)

    def test_places_that_will_not_do(self, folder):
        (folder / "data.db").touch()
        for out, errors, words in [
            ("nowhere/out", None, "the folder nowhere does not exist"),
            (".", None, "it is a folder"),
            ("same", "same", "in use for something else"),
            ("same", "./same", "in use for something else"),
            ("-", "-", "in use for something else"),
            ("data.db", None, "in use for something else"),
        ]:
            with pytest.raises(UsageError, match=words):
                check_places(Path(out), Path(errors) if errors else None, spare=[Path("data.db")])
        check_places(Path("/dev/null"), Path("/dev/null"))
        check_places(Path("a"), Path("b"))
        assert [path.name for path in folder.iterdir()] == ["data.db"]

    @pytest.mark.parametrize("protected", ["kept", "."])
    def test_what_is_write_protected(self, folder, monkeypatch, protected):
        (folder / "kept").touch()
        monkeypatch.setattr(
            target_module.os, "access", lambda path, _mode: Path(path).resolve() != (folder / protected)
        )
        with pytest.raises(UsageError, match="write-protected"):
            check_places(Path("kept"), None)

    def test_the_database_is_never_replaced(self, folder):
        make_database(folder / "promptmill.sqlite3", MIXED)
        with pytest.raises(UsageError, match="in use for something else"):
            ask("--out", "promptmill.sqlite3")

    def test_long_names_have_room_for_the_temporary_one(self, folder):
        name = "ü" * 127
        with target(Path(name)) as place:
            place.write(b"x")
        assert (folder / name).read_bytes() == b"x"

    def test_a_reader_that_has_seen_enough(self, folder):
        make_database(folder / "promptmill.sqlite3", [Made(f"n{i}", chat("x" * 1_000)) for i in range(500)])
        script = "import typer; from cli.results import results; typer.run(results)"
        environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, cwd=folder
        )
        assert process.stdout.readline().startswith(b'{"id":"batch_req_')
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait(30) == 0


PNG = b"\x89PNG\r\n\x1a\n" + b"\x00" * 20
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt "


def images(*data: dict) -> Answer:
    body = json.dumps({"id": "x", "model": "flux", "data": list(data)}).encode()
    return Answer(200, "application/json", body, Usage(), None)


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def index(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


class TestSaveDir:
    def test_audio_and_images_become_files(self, folder):
        jpeg = b"\xff\xd8\xff\xe0rest"
        make_database(
            folder / "promptmill.sqlite3",
            [
                Made("words", chat("no file")),
                Made("spoken", Answer(200, "audio/wav", WAV, Usage(), None)),
                Made("drawn", images({"index": 0, "b64_json": b64(PNG)}, {"index": 1, "b64_json": b64(jpeg)})),
                Made("linked", images({"index": 0, "url": "https://up.example/1.png"})),
                Made("inline", images({"url": f"data:image/webp;base64,{b64(b'RIFF1234WEBP')}"})),
                Made("failed", rejected()),
            ],
        )
        answer = ask("--save-dir", "media/new", "--out", "out.jsonl")
        saved = folder / "media" / "new"
        assert sorted(path.name for path in saved.iterdir()) == [
            "drawn-0.png", "drawn-1.jpg", "index.jsonl", "inline-0.webp", "spoken.wav",
        ]  # fmt: skip
        assert (saved / "spoken.wav").read_bytes() == WAV
        assert (saved / "drawn-0.png").read_bytes() == PNG
        assert index(saved) == [
            {"custom_id": "spoken", "files": ["spoken.wav"], "urls": []},
            {"custom_id": "drawn", "files": ["drawn-0.png", "drawn-1.jpg"], "urls": []},
            {"custom_id": "linked", "files": [], "urls": ["https://up.example/1.png"]},
            {"custom_id": "inline", "files": ["inline-0.webp"], "urls": []},
        ]
        assert "4 files in media/new, 1 URL in its index" in answer.stderr
        lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
        bodies = {line["custom_id"]: line["response"]["body"] for line in lines}
        assert bodies["spoken"] == {"content_type": "audio/wav", "file": "spoken.wav"}
        assert bodies["drawn"] == {
            "id": "x", "model": "flux",
            "data": [{"index": 0, "file": "drawn-0.png"}, {"index": 1, "file": "drawn-1.jpg"}],
        }  # fmt: skip
        assert bodies["linked"]["data"] == [{"index": 0, "url": "https://up.example/1.png"}]
        assert bodies["inline"]["data"] == [{"file": "inline-0.webp"}]

    def test_again_into_the_same_folder(self, folder):
        make_database(folder / "promptmill.sqlite3", [Made("a/b", Answer(200, "audio/wav", WAV, Usage(), None))])
        for _ in range(2):
            ask("--save-dir", "media")
        assert len(list((folder / "media").iterdir())) == 2

    def test_no_name_leads_out_of_the_folder_and_none_is_used_twice(self, folder):
        ids = [
            "../../evil", "/etc/passwd", "a/b", "a:b", "A", "a", "CON", "con.txt", "...", "-rf", "index", "x" * 400,
            "ü" * 400, "line\nbreak", "right\u202eleft", "a\\b", "trailing. ", "caf\u00e9", "cafe\u0301", "~", "$HOME",
        ]  # fmt: skip
        made = [Made(name, Answer(200, "audio/wav", WAV + name.encode(), Usage(), None)) for name in ids]
        make_database(folder / "promptmill.sqlite3", made)
        ask("--save-dir", "deep/media", "--out", "/dev/null")
        saved = folder / "deep" / "media"
        by_id = {entry["custom_id"]: entry["files"] for entry in index(saved)}
        assert set(by_id) == set(ids)
        for name in ids:
            assert (saved / by_id[name][0]).read_bytes() == WAV + name.encode()
        files = [path.name for path in saved.iterdir()]
        assert len({name.casefold() for name in files}) == len(ids) + 1
        assert [path.name for path in folder.iterdir() if not path.name.startswith("promptmill.sqlite3")] == ["deep"]
        assert sorted(path.name for path in (folder / "deep").iterdir()) == ["media"]

    def test_what_cannot_be_read_as_a_picture_stays_in_the_line(self, folder):
        odd = images({"b64_json": "not base64!"}, {"b64_json": None, "url": None}, {"b64_json": 3, "url": ""})
        bodies = [odd, Answer(200, "application/json", b'{"data":"url","url":1}', Usage(), None)]
        make_database(folder / "promptmill.sqlite3", [Made(str(i), body) for i, body in enumerate(bodies)])
        lines = [json.loads(line) for line in ask("--save-dir", "media").stdout.splitlines()]
        assert [line["response"]["body"] for line in lines] == [json.loads(body.body) for body in bodies]
        assert index(folder / "media") == []

    def test_the_rest_of_an_image_answer_is_not_touched(self, folder):
        body = (
            b'{"z": 1.0e0, "data": [{"seed": 12345678901234567890, "b64_json": "%b"}], "a": 0.10}' % b64(PNG).encode()
        )
        make_database(folder / "promptmill.sqlite3", [Made("a", Answer(200, "application/json", body, Usage(), None))])
        out = ask("--save-dir", "media").stdout
        assert '{"z":1.0e0,"data":[{"seed":12345678901234567890,"file":"a-0.png"}],"a":0.10}' in out

    def test_a_folder_that_cannot_be(self, folder):
        make_database(folder / "promptmill.sqlite3", MIXED)
        (folder / "file").touch()
        with pytest.raises(UsageError, match="cannot make the folder file"):
            ask("--save-dir", "file")

    @pytest.mark.parametrize(
        ("content", "content_type", "ending"),
        [
            (WAV, "audio/mpeg", ".wav"),
            (b"ID3\x04", "", ".mp3"),
            (b"\xff\xfb\x90\x00", "", ".mp3"),
            (b"\xff\xff\xff\xff", "application/octet-stream", ".bin"),
            (b"\x00\x01", "audio/pcm;rate=24000", ".pcm"),
            (b"\x00\x01", "audio/x-unknown", ".bin"),
            (b"\x00\x01", "Audio/MPEG; x=y", ".mp3"),
            (b"OggS" + b"\x00" * 24 + b"OpusHead", "audio/ogg", ".opus"),
            (b"OggS" + b"\x00" * 24 + b"\x01vorbis", "", ".ogg"),
            (b"\x00\x00\x00\x20ftypavif", "", ".avif"),
            (b"GIF89a", "", ".gif"),
            (b"", "image/png", ".png"),
        ],
    )
    def test_extensions(self, content, content_type, ending):
        assert extension(content, content_type) == ending

    @pytest.mark.parametrize("custom_id", ["plain", "photo 12", "Zürich.v2", "日本語", "a-b_c,d=e+f@g"])
    def test_names_that_are_kept(self, custom_id):
        assert safe_name(custom_id) == custom_id


async def test_both_databases(db, folder):
    """What a batch leaves on one database it leaves on the other."""
    batch = await made_batch(db, MIXED, finish_order=[4, 3, 1, 0])
    assert await write_outputs(db, batch, Path("ok"), Path("bad")) == (2, 3)
    finished = stream(db, batch.id, order="finished", states=[State.FAILED])
    assert await export(finished, batch.public_id, Path("failed")) == (2, 0)
    assert names((folder / "failed").read_bytes()) == ["fifth", "second"]


def test_the_docs_name_every_column_format_and_state(folder):
    docs = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    make_database(folder / "promptmill.sqlite3", [Made("a")])
    ask("--format", "parquet", "--out", "t.parquet")
    columns = [*COLUMNS, *pq.read_schema(folder / "t.parquet").names]
    missing = [word for word in (*columns, *Format, *FINISHED) if f"`{word}`" not in docs]
    assert missing == []
