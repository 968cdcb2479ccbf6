"""The one way in: what is stored of an input, what is refused, and what is left when it is."""

import json
from pathlib import Path

import pytest
import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.errors import InputError, UsageError
from promptmill.intake import Source, Taken, Terms, take_in
from promptmill.intake import stream as module
from promptmill.job import BatchState, State
from promptmill.request import Defaults
from promptmill.settings import Settings, UpstreamConfig
from promptmill.store import batches, files
from promptmill.store.active import active
from promptmill.tables import attachments, file_parts, jobs, results
from promptmill.tables import batches as batch_rows
from promptmill.tables import files as file_rows

SETTINGS = Settings(
    upstreams=(
        UpstreamConfig(name="big", url="http://big.invalid/v1", models=("big/*",)),
        UpstreamConfig(name="small", url="http://small.invalid/v1", models=("small/*",)),
    )
)


def chat(text: str, *, model: str = "big/one", **others: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **others}


def data(*lines: dict[str, object] | bytes) -> bytes:
    return b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)


async def taken(db: Database, content: bytes | list[bytes], *, folder: Path | None = None, **terms) -> Taken:
    chunks = content if isinstance(content, list) else [content]
    source = Source(name="prompts.jsonl", chunks=chunks, folder=folder)
    return await take_in(db, SETTINGS, source, Terms(**terms), clock=lambda: 1_000.0)


async def count(db: Database, table: sa.Table) -> int:
    async with db.read() as connection:
        return (await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()


async def rows(db: Database, *columns: sa.ColumnElement, order: sa.ColumnElement) -> list[tuple[object, ...]]:
    async with db.read() as connection:
        return [tuple(row) for row in await connection.execute(sa.select(*columns).order_by(order))]


async def refused(db: Database, content: bytes, **terms) -> InputError:
    with pytest.raises(InputError) as caught:
        await taken(db, content, **terms)
    for table in (batch_rows, jobs, results, file_rows, file_parts):
        assert await count(db, table) == 0, table.name
    return caught.value


async def test_a_good_input_becomes_an_open_batch(db):
    content = data(chat("one", custom_id="a"), chat("two", model="small/one"), chat("three", max_tokens=7))
    made = await taken(db, content, run_key="key", priority=3)
    batch = made.batch
    assert (batch.state, batch.total, batch.done, batch.priority) == (BatchState.IN_PROGRESS, 3, 0, 3)
    assert (made.jobs, made.errors, made.skipped) == (3, (), 0)
    names = await batches.lane_names(db, batch.id)
    assert sorted(names.values()) == [("big", "big/one"), ("small", "small/one")]
    assert [(state, limit) for state, limit in await rows(db, jobs.c.state, jobs.c.max_tokens, order=jobs.c.position)
            ] == [(State.READY, None), (State.READY, None), (State.READY, 7)]  # fmt: skip
    custom_ids = await rows(db, file_parts.c.custom_id, order=file_parts.c.part)
    assert custom_ids == [("a",), ("line-2",), ("line-3",)]


async def test_the_file_is_the_input_byte_for_byte(db):
    content = b"\xef\xbb\xbf\n" + data(chat("one")) + b"\r\n\n" + data(chat("two")).strip() + b"  "
    made = await taken(db, [content[i : i + 7] for i in range(0, len(content), 7)])
    assert b"".join([part async for part in files.content(db, made.batch.file_id)]) == content
    assert await rows(db, file_rows.c.bytes, file_rows.c.parts, order=file_rows.c.id) == [(len(content), 2)]
    assert await rows(db, file_parts.c.line, order=file_parts.c.part) == [(2,), (5,)]


async def test_a_bad_line_refuses_all_and_all_bad_lines_are_told(db):
    error = await refused(db, data(chat("one"), b"{", chat("two"), chat("three", stream=True), b"[]"))
    assert [(each.line, each.code) for each in error.errors] == [
        (2, "invalid_json_line"), (4, "stream_not_supported"), (5, "invalid_json_line"),
    ]  # fmt: skip
    assert error.total == 3
    assert str(error) == "prompts.jsonl: 3 problems; nothing was sent"


async def test_a_model_that_goes_nowhere_is_named_with_what_is_configured(db):
    error = await refused(db, data(chat("one", model="tiny/one")))
    assert str(error.errors[0]) == (
        "line 1: no upstream serves the model 'tiny/one'; configured are: big/*, small/* [model_not_found]"
    )


async def test_names_given_twice_are_found_however_far_apart(db, monkeypatch):
    monkeypatch.setattr(module, "LINES_AT_ONCE", 3)
    lines = [chat(str(n), custom_id=f"c{n % 17}" if n in (3, 20, 37) else f"x{n}") for n in range(40)]
    error = await refused(db, data(*lines))
    assert [(each.line, each.message) for each in error.errors] == [
        (21, "custom_id 'c3' was seen before, on line 4"),
        (38, "custom_id 'c3' was seen before, on line 4"),
    ]


async def test_a_given_name_may_not_be_that_of_a_nameless_line(db):
    error = await refused(db, data(chat("one"), chat("two", custom_id="line-1")))
    assert [(each.line, each.code) for each in error.errors] == [(2, "duplicate_custom_id")]


async def test_skipped_lines_have_results_and_the_others_run(db):
    content = data(
        chat("one", custom_id="a"), b"{", chat("two", custom_id="a"), chat("three", model="tiny/one"), chat("four")
    )
    made = await taken(db, content, skip_bad_lines=True)
    assert (made.jobs, made.skipped, made.batch.total, made.batch.invalid) == (2, 3, 5, 3)
    assert await rows(db, jobs.c.position, order=jobs.c.position) == [(0,), (4,)]
    found = await rows(db, results.c.position, results.c.state, results.c.error_code, order=results.c.position)
    assert found == [
        (1, State.INVALID, "invalid_json_line"),
        (2, State.INVALID, "duplicate_custom_id"),
        (3, State.INVALID, "model_not_found"),
    ]


async def test_nothing_but_bad_lines_is_a_batch_that_is_done(db):
    made = await taken(db, data(b"{", b"["), skip_bad_lines=True)
    assert (made.batch.state, made.batch.total, made.batch.invalid) == (BatchState.COMPLETED, 2, 2)


@pytest.mark.parametrize("content", [b"", b"\n\n  \r\n"])
@pytest.mark.parametrize("skip", [False, True])
async def test_nothing_at_all(sqlite_db, content, skip):
    error = await refused(sqlite_db, content, skip_bad_lines=skip)
    assert [each.code for each in error.errors] == ["empty_file"]


async def test_an_input_that_breaks_off_leaves_nothing(db, monkeypatch):
    monkeypatch.setattr(module, "LINES_AT_ONCE", 2)

    def chunks():
        yield data(chat("one"), chat("two"), chat("three"))
        raise UsageError("the gzip data are damaged")

    with pytest.raises(UsageError, match="damaged"):
        await take_in(db, SETTINGS, Source(name="x.gz", chunks=chunks()), Terms(), clock=lambda: 1.0)
    for table in (batch_rows, jobs, file_rows, file_parts):
        assert await count(db, table) == 0, table.name


async def test_nobody_claims_while_lines_come_in(sqlite_db, monkeypatch):
    monkeypatch.setattr(module, "LINES_AT_ONCE", 1)
    claimable, open_ = [], batches.open_

    async def look_and_open(*args, **kwargs) -> None:
        claimable.append((await active(sqlite_db, now=1.0), await count(sqlite_db, jobs)))
        await open_(*args, **kwargs)

    monkeypatch.setattr(batches, "open_", look_and_open)
    await taken(sqlite_db, data(chat("one"), chat("two")))
    assert claimable == [([], 2)]
    assert len(await active(sqlite_db, now=1.0)) == 1


async def test_jobs_may_be_for_later(db):
    made = await taken(db, data(chat("one")), not_before=2_000.0, deadline=3_000.0)
    assert await rows(db, jobs.c.state, jobs.c.not_before, jobs.c.deadline, order=jobs.c.id) == [
        (State.WAITING, 2_000.0, 3_000.0)
    ]
    assert made.batch.deadline == 3_000.0


async def test_what_is_said_once_for_all_lines_is_kept_with_the_batch(db):
    made = await taken(db, data({"prompt": "hello"}), defaults=Defaults("big/one", "/v1/completions"))
    assert Defaults.from_json(made.batch.defaults) == Defaults("big/one", "/v1/completions")


async def test_memory_for_errors_is_bounded(sqlite_db, monkeypatch):
    monkeypatch.setattr(module, "ERRORS_KEPT", 5)
    error = await refused(sqlite_db, data(*[b"{"] * 12))
    assert (len(error.errors), error.total) == (5, 12)


async def test_progress_is_told_in_lines(sqlite_db, monkeypatch):
    monkeypatch.setattr(module, "LINES_AT_ONCE", 2)
    told: list[int] = []
    source = Source(name="prompts.jsonl", chunks=[data(*[chat(str(n)) for n in range(5)])])
    await take_in(sqlite_db, SETTINGS, source, Terms(), clock=lambda: 1.0, progress=told.append)
    assert told == [2, 4, 5]


# ---------------------------------------------------------------- files that lines name


def heard(file: str) -> dict[str, object]:
    return {"model": "big/ears", "file": file}


async def test_a_file_is_kept_once_however_many_lines_name_it(db, tmp_path):
    content = bytes(range(256)) * 9_000
    (tmp_path / "a.wav").write_bytes(content)
    made = await taken(db, data(heard("a.wav"), {**heard("a.wav"), "language": "de"}), folder=tmp_path)
    ((name, attached_id),) = await rows(
        db, attachments.c.name, attachments.c.attached_id, order=attachments.c.attached_id
    )
    assert name == "a.wav"
    assert b"".join([part async for part in files.content(db, attached_id)]) == content
    assert made.jobs == 2


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("nowhere.wav", "file_not_found"),
        ("", "invalid_request"),
        (".", "file_not_found"),
        ("a" * 5_000, "file_not_found"),
        ("nul\0.wav", "file_not_found"),
        ("data:audio/wav;base64,????", "invalid_request"),
        ("data:audio/wav,plain", "invalid_request"),
    ],
)
async def test_a_file_that_cannot_be_had(sqlite_db, tmp_path, file, code):
    error = await refused(sqlite_db, data(heard(file)), folder=tmp_path)
    assert [(each.line, each.code) for each in error.errors] == [(1, code)]
    assert "Traceback" not in str(error.errors[0])


async def test_who_has_no_folder_may_name_no_local_file(sqlite_db, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"sound")
    error = await refused(sqlite_db, data(heard(str(tmp_path / "a.wav"))))
    assert error.errors[0].code == "file_not_found"


@pytest.mark.parametrize("file", ["https://example.com/a.mp3", "data:audio/wav;base64,UklGRg=="])
async def test_what_is_not_a_local_file_is_not_looked_for(sqlite_db, file):
    assert (await taken(sqlite_db, data(heard(file)))).jobs == 1
    assert await count(sqlite_db, attachments) == 0
