"""What nobody should send, in one table: each is refused in the caller's own words, with a sentence that says what to
do, and nothing of it stays. On both kinds of database."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from promptmill import tables
from promptmill.engine import Database
from promptmill.store import tenants
from tests.api.forms import FORM, file_field, form, lines, part
from tests.api.forms import field as form_field
from tests.api.mill import chat_body
from tests.api.server import Serving, serving
from tests.api.uploaded import OPENAI, TOGETHER
from tests.conftest import eventually

JSON = {"Content-Type": "application/json"}
CHAT = "/v1/chat/completions"
DEEP = b"[" * 100_000
TEN_MB = 10 * 1024 * 1024
JOB = {"body": chat_body()}
UPLOAD = {"bytes": 5, "filename": "a.txt", "mime_type": "text/plain", "purpose": "user_data"}
PARTS = {"file_name": "a.txt", "file_size": 5, "num_parts": 1, "purpose": "user_data"}
PURPOSE = form_field("purpose", "batch")


@dataclass(frozen=True, slots=True)
class Bad:
    """A request, and how it is to be answered. What stands in angle brackets is another tenant's."""

    method: str
    path: str
    status: int
    says: str
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


def post(path: str, status: int, says: str, body: Any = None, **headers: str) -> Bad:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Bad("POST", path, status, says, body, {**JSON, **named})


def posted_form(path: str, status: int, says: str, *parts: bytes) -> Bad:
    return Bad("POST", path, status, says, form(*parts), FORM)


def get(path: str, status: int, says: str, **headers: str) -> Bad:
    return Bad("GET", path, status, says, None, headers)


def escaped(body: Mapping[str, Any], **bad: str) -> bytes:
    """JSON with these members, whose values are JSON already."""
    return (
        json.dumps(body).encode()[:-1] + b"".join(b',"%b":%b' % (k.encode(), v.encode()) for k, v in bad.items()) + b"}"
    )


TRANSCRIBE, INITIATE = "/v1/audio/transcriptions", "/v1/files/multipart/initiate"
OPEN = {"open": True, "endpoint": CHAT}
MODEL, X, LUNCH = form_field("model", "m"), file_field(b"x"), form_field("purpose", "lunch")
LONG = file_field(lines(2) + b"x" * TEN_MB)
TOO_LONG = "max_upload_line_bytes"
WHOLE = "whole characters"
READERS = (
    "/v1/jobs",
    "/v1/batches",
    CHAT,
    "/v1/uploads",
    "/v1/files/multipart/initiate",
    "/v1/files/multipart/complete",
)
LISTS = ("/v1/jobs", "/v1/batches", "/v1/files")
HALF_A_CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
THEIRS = {"upload_id": "<upload>", "file_id": "<file>"}
NO_LUNCH = "'lunch' is not known"
SURROGATE, NUL = '"a\\ud800"', '"a\\u0000"'

CASES: dict[str, Bad] = {
    # Bodies that are no JSON, or would break who reads them.
    **{f"nothing, {path}": post(path, 400, "empty", b"") for path in READERS},
    **{f"half, {path}": post(path, 400, "not JSON", b'{"model": "m", ') for path in READERS if path != CHAT},
    **{f"deep, {path}": post(path, 400, "deep", b'{"model":' + DEEP) for path in READERS},
    **{f"not UTF-8, {path}": post(path, 400, "UTF-8", b'{"model": "\xff"}') for path in READERS},
    **{f"a list, {path}": post(path, 400, "object", b"[1]") for path in READERS},
    "half a chat": post(CHAT, 400, "not", b'{"model": "m", '),
    "a deep prompt of a job": post("/v1/jobs", 400, "deep", b'{"body":' + b"[" * 300 + b"]" * 300 + b"}"),
    "a number that is none": post("/v1/jobs", 400, "not JSON", b'{"body": {"model": "m", "messages": [], "n": NaN}}'),
    # Strings that no database takes.
    "a surrogate for a model": post(CHAT, 400, "model", escaped(HALF_A_CHAT, model=SURROGATE)),
    "a NUL for a model": post(CHAT, 400, "model", escaped(HALF_A_CHAT, model=NUL)),
    "a surrogate for a name": post("/v1/jobs", 400, WHOLE, escaped(JOB, custom_id=SURROGATE)),
    "a NUL for a name": post("/v1/jobs", 400, "NUL", escaped(JOB, custom_id=NUL)),
    "a NUL in metadata": post("/v1/batches", 400, "NUL", escaped(OPEN, metadata=f'{{"a":{NUL}}}')),
    "a surrogate in metadata": post("/v1/batches", 400, WHOLE, escaped(OPEN, metadata=f'{{"a":{SURROGATE}}}')),
    "a NUL for a model of a batch": post("/v1/batches", 400, "NUL", escaped(OPEN, model_id=NUL)),
    "a surrogate for a file's name": post(INITIATE, 400, WHOLE, escaped(PARTS, file_name=SURROGATE)),
    "a NUL for a type": post("/v1/uploads", 400, "NUL", escaped(UPLOAD, mime_type=NUL)),
    # A safety net that is not there.
    "a budget that is misspelt": post("/v1/batches", 400, "'budget_tokens' meant", {**OPEN, "budget_tokenz": 5}),
    "a priority that is misspelt": post("/v1/jobs", 400, "'priority' meant", {**JOB, "priorty": 5}),
    "one among many": post("/v1/jobs", 400, "'deadline' meant", {"requests": [JOB, {**JOB, "dead_line": 5}]}),
    "a key that cannot be printed": post("/v1/jobs", 400, "printable", JOB, Idempotency_Key="é"),
    **{f"{path}, {name}": get(f"{path}/{bad}", 404, "No ") for path in ("/v1/jobs", "/v1/batches", "/v1/files")
       for name, bad in {"NUL": "%00", "surrogate": "%ED%A0%80", "long": "x" * 5_000, "not UTF-8": "%FF"}.items()},
    **{f"{path}, after {name}": get(f"{path}?after={bad}", 400, "after") for path in ("/v1/jobs", "/v1/batches")
       for name, bad in {"NUL": "%00", "surrogate": "%ED%A0%80", "nothing": "", "nobody": "job_x-1"}.items()},
    # Limits.
    **{f"{path}, limit {bad}": get(f"{path}?limit={bad}", 400, "limit") for path in LISTS
       for bad in ("0", "-1", "1e3", "99999999999999999999", "9" * 5_000, "%00", "")},
    **{f"{path}, wait {bad}": get(f"{path}?wait={bad}", 400, "wait") for path in ("/v1/jobs/x", "/v1/batches/x")
       for bad in ("-1", "601", "nan", "inf", "1e999", "", "soon")},
    "events after nothing": get("/v1/batches/<batch>/events?after=9999999999999999999999", 404, "No batch"),
    "a state that is none": get("/v1/jobs?status=lost", 400, "status"),
    "no bytes": post("/v1/uploads", 400, "bytes", {**UPLOAD, "bytes": -1}),
    "too many bytes": post("/v1/uploads", 413, "at most", {**UPLOAD, "bytes": 2**60}),
    "more than bytes": post("/v1/uploads", 400, "bytes", {**UPLOAD, "bytes": 10**30}),
    "no parts": post(INITIATE, 400, "num_parts", {**PARTS, "num_parts": 0}),
    "a million parts": post(INITIATE, 400, "num_parts", {**PARTS, "num_parts": 10**6}),
    "parts of nothing": post(INITIATE, 400, "file_size", {**PARTS, "file_size": -5}),
    "a huge priority": post("/v1/batches", 400, "priority", {**OPEN, "priority": 10**9}),
    "a fraction of a priority": post("/v1/jobs", 400, "priority", {**JOB, "priority": 1.5}),
    "a huge deadline": post("/v1/jobs", 400, "deadline", {**JOB, "deadline": 1e300}),
    "milliseconds": post("/v1/jobs", 400, "milliseconds", {**JOB, "not_before": 1.8e12}),
    "a time without a zone": post("/v1/jobs", 400, "time zone", {**JOB, "not_before": "2026-01-31T08:00:00"}),
    # Purposes and files.
    "a wrong purpose of an upload": post("/v1/uploads", 400, NO_LUNCH, {**UPLOAD, "purpose": "lunch"}),
    "a wrong purpose of parts": post(INITIATE, 400, NO_LUNCH, {**PARTS, "purpose": "lunch"}),
    "a wrong purpose, by another path": posted_form("/v1/files/upload", 400, "'lunch'", LUNCH, X),
    "an empty file": posted_form("/v1/files", 400, "empty", PURPOSE, file_field(b"")),
    "an empty file, by another path": posted_form("/v1/files/upload", 400, "empty", PURPOSE, file_field(b"")),
    "an empty file to transcribe": posted_form(TRANSCRIBE, 400, "empty", MODEL, file_field(b"", "a.mp3")),
    "no file to transcribe": posted_form(TRANSCRIBE, 400, "field `file`", MODEL),
    "a file of this machine": posted_form(TRANSCRIBE, 400, "upload", MODEL, form_field("file", "file:///etc/passwd")),
    "a line of 10 MB": posted_form("/v1/files", 400, TOO_LONG, PURPOSE, LONG),
    "a line of 10 MB, cut off": Bad("POST", "/v1/files", 400, TOO_LONG, form(PURPOSE, LONG)[:-50], FORM),
    # Forms that are broken.
    **{f"{name}, {path}": Bad("POST", path, 400, says, body, FORM)
       for path in ("/v1/files", "/v1/files/upload")
       for name, says, body in (
           ("a form without an end", "ends in the middle", form(PURPOSE, file_field(lines(2)))[:-9]),
           ("a form without a begin", "cannot be read", b"purpose=batch"),
           ("a part without a name", "no name", form(part("attachment", "x"))),
           ("a surrogate in a form", "UTF-8", form(form_field("purpose", b"\xed\xa0\x80"), X)),
           ("a header without an end", "ends in the middle", form()[:-4] + b"\r\nContent-Disposition: form-data"),
       )},
    **{f"{name}, to transcribe": Bad("POST", TRANSCRIBE, 400, says, body, FORM)
       for name, says, body in (
           ("a form without an end", "form", form(MODEL, X)[:-9]),
           ("a form without a begin", "form", b"model=m"),
           ("a NUL in a form", "NUL", form(form_field("model", "m\0"), X)),
           ("a surrogate in a form", "UTF-8", form(form_field("model", b"\xed\xa0\x80"), X)),
           ("a field of two kinds", "send it in one", form(form_field("a", "x"), form_field("a[b]", "y"), MODEL, X)),
           ("a list of two kinds", "send it in one", form(form_field("a[b]", "x"), form_field("a[]", "y"), MODEL, X)),
           ("two files", "more than one file", form(MODEL, X, X)),
           ("a file and a link", "twice", form(MODEL, form_field("file", "https://x"), X)),
       )},
    "a form of another type": Bad("POST", "/v1/files", 415, "multipart/form-data", b"{}", JSON),
    "a form of no type": Bad("POST", "/v1/files", 415, "multipart/form-data", b"{}"),
    "a chat as a form": posted_form(CHAT, 415, "application/json", MODEL),
    # What is another tenant's is not there.
    **{f"{method} {path} of another": Bad(method, path, 404, "found with id", body, JSON) for method, path, body in (
        ("GET", "/v1/batches/<batch>", None),
        ("POST", "/v1/batches/<batch>/cancel", None),
        ("POST", "/v1/batches/<batch>/seal", None),
        ("POST", "/v1/batches/<batch>/jobs", {"requests": [JOB]}),
        ("GET", "/v1/batches/<batch>/events", None),
        ("GET", "/v1/jobs/<job>", None),
        ("POST", "/v1/jobs/<job>/cancel", None),
        ("POST", "/v1/jobs/<job>/retry", None),
        ("GET", "/v1/jobs?batch_id=<batch>", None),
        ("GET", "/v1/files/<file>", None),
        ("GET", "/v1/files/<file>/content", None),
        ("DELETE", "/v1/files/<file>", None),
        ("POST", "/v1/files/<file>/preprocess", None),
        ("POST", "/v1/uploads/<upload>/cancel", None),
        ("POST", "/v1/uploads/<upload>/complete", {"part_ids": ["x"]}),
        ("POST", "/v1/files/multipart/abort", THEIRS),
        ("POST", "/v1/files/multipart/complete", {**THEIRS, "parts": [{"part_number": 1, "etag": "x"}]}),
    )},
    "a part for another's upload": posted_form("/v1/uploads/<upload>/parts", 404, "found with id", X),
    "a batch of another's file": post("/v1/batches", 400, "upload it", {"input_file_id": "<file>", "endpoint": CHAT}),
    "jobs after another's": get("/v1/jobs?after=<job>", 400, "last id"),
    "batches after another's": get("/v1/batches?after=<batch>", 400, "last id"),
}  # fmt: skip


async def another_tenants(server: Serving, headers: Mapping[str, str]) -> dict[str, str]:
    """One of each, by the name that it has in CASES."""

    async def made(path: str, **what: Any) -> str:
        answer = await server.client.post(path, headers={**OPENAI, **headers}, **what)
        assert answer.is_success, answer.text
        return answer.json()["id"]

    file_id = await made("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", lines(1))})
    batch_id = await made("/v1/batches", json={"input_file_id": file_id, "endpoint": CHAT})

    async def read_in() -> bool:
        found = await server.client.get(f"/v1/batches/{batch_id}", headers={**OPENAI, **headers})
        return found.json()["status"] == "in_progress"

    await eventually(read_in)
    return {
        "<file>": file_id,
        "<batch>": batch_id,
        "<job>": await made("/v1/jobs", json=JOB),
        "<upload>": await made("/v1/uploads", json=UPLOAD),
    }


async def refused(server: Serving, bad: Bad, theirs: Mapping[str, str], headers: Mapping[str, str]) -> str | None:
    """What is wrong with the answer."""
    body = bad.body if bad.body is None or isinstance(bad.body, bytes) else json.dumps(bad.body).encode()
    path = bad.path
    for name, public_id in theirs.items():
        path = path.replace(name, public_id)
        body = body if body is None else body.replace(name.encode(), public_id.encode())
    url = httpx.URL(server.url).copy_with(raw_path=path.encode())
    raw = {name: value.encode() for name, value in {**headers, **bad.headers}.items()}
    answer = await server.client.request(bad.method, url, content=body, headers=raw, timeout=20)
    if answer.status_code != bad.status or "x-request-id" not in answer.headers or "Traceback" in answer.text:
        return f"{answer.status_code} {answer.text[:300]}"
    sentence = answer.json()["error"]
    together = "Together" in headers["User-Agent"] and bad.path.startswith(("/v1/files", "/v1/batches"))
    if isinstance(sentence, str) != together:
        return f"in the wrong words: {answer.text[:300]}"
    words = sentence if together else sentence["message"]
    return None if bad.says in words else f"does not say {bad.says!r}: {words[:300]}"


@pytest.mark.parametrize("agent", [OPENAI, TOGETHER], ids=["openai", "together"])
async def test_each_is_refused_with_a_sentence(db: Database, agent: Mapping[str, str]):
    one, two = [
        {"Authorization": f"Bearer {await tenants.create_key(db, tenant=name, name='k', is_admin=False, now=0)}"}
        for name in ("one", "two")
    ]
    async with serving(db) as server:
        theirs = await another_tenants(server, one)
        before = await kept(db)
        told = {name: await refused(server, bad, theirs, {**agent, **two}) for name, bad in CASES.items()}
        assert {name: wrong for name, wrong in told.items() if wrong is not None} == {}
        assert await kept(db) == before


async def kept(db: Database) -> dict[str, int]:
    """How much there is of everything that a request may make."""
    async with db.read() as connection:
        return {
            table.name: (await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()
            for table in (tables.files, tables.file_parts, tables.batches, tables.jobs, tables.uploads)
        }
