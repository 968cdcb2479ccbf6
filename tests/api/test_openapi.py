"""The OpenAPI document is kept: what it allows, and much that it does not, is answered as it says. On both kinds of
database. The requests are the same in every run; more of them are asked for with PROMPTMILL_OPENAPI_EXAMPLES."""

import asyncio
import copy
import itertools
import json
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.transport import Response
from schemathesis.generation.feedback import NO_FEEDBACK
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.specs.openapi.schemas import OpenApiSchema

from promptmill.engine import Database
from tests.api.forms import lines
from tests.api.mill import Mill, chat_body, mill
from tests.api.uploaded import OPENAI, TOGETHER
from tests.worker.endpoint import JSON, Answer, chat
from tests.worker.raw_server import Received, http

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    response_headers_conformance,
]  # fmt: skip
#: Of each operation, and of each kind: what the document allows, and what it does not.
EXAMPLES = int(os.environ.get("PROMPTMILL_OPENAPI_EXAMPLES", "3"))
#: Nobody waits longer than this for a batch or a job to end.
LONGEST_WAIT = 0.05
CLIENTS: tuple[dict[str, str], ...] = ({}, OPENAI, TOGETHER)
SOUND = b"RIFF\x00\x01\xff"


def answered(call: Received) -> Answer:
    """What an upstream with all endpoints says."""
    path = call.line.split()[1]
    if path.endswith("/models"):
        return http("200 OK", b'{"object": "list", "data": [{"id": "test/plain", "object": "model"}]}', JSON)
    if path.endswith("/chat/completions"):
        return chat()
    if path.endswith(("/speech", "/generations")) and "audio" in path:
        return http("200 OK", SOUND, "Content-Type: audio/wav")
    told = {
        "choices": [{"index": 0, "text": "Good."}], "results": [{"index": 0, "relevance_score": 0.5}], "text": "Good.",
        "data": [{"index": 0, "embedding": [0.5], "url": "https://x/y.png"}],
    }  # fmt: skip
    return http("200 OK", json.dumps(told).encode(), JSON)


@dataclass
class House:
    """One of the servers that are asked, with values that exist there, by the name of the parameter or field that takes
    them, or by operation and name."""

    url: str
    real: Mapping[str, Iterator[str]]

    def make_real(self, case: Case) -> None:
        for values in (case.path_parameters, case.query, case.body):
            for name in values if isinstance(values, dict) else ():
                known = self.real.get(f"{case.operation.label} {name}", self.real.get(name))
                if known is not None:
                    values[name] = next(known)


@dataclass
class Asker:
    """Sends cases to all houses, and keeps what was wrong with their answers."""

    schema: OpenApiSchema
    houses: Sequence[House]
    session: requests.Session = field(default_factory=requests.Session)
    asked: int = 0
    statuses: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    faults: dict[str, str] = field(default_factory=dict)

    def ask_everything(self) -> None:
        """Every operation of the document, so many times."""
        for found in self.schema.get_all_operations():
            for mode in GenerationMode:
                with suppress(Unsatisfiable):  # nothing is wrong for one that takes no parameters, or any text
                    self._ask_some(found.ok().as_strategy(mode, feedback=NO_FEEDBACK))

    def _ask_some(self, strategy) -> None:
        count = itertools.count()

        @settings(
            max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(strategy)
        def some(case: Case) -> None:
            wait = (case.query or {}).get("wait")
            if isinstance(wait, int | float) and wait > LONGEST_WAIT:
                case.query["wait"] = LONGEST_WAIT
            self.ask(case, real=next(count) % 2 == 0)

        some()

    def ask(self, case: Case, *, real: bool) -> list[Response]:
        """The same of all houses."""
        for name, value in CLIENTS[self.asked % len(CLIENTS)].items():
            case.headers.setdefault(name, value)
        self.asked += 1
        answers = []
        for house in self.houses:
            if real:
                house.make_real(case)
            answers.append(self._ask(house, case))
        return answers

    def _ask(self, house: House, case: Case) -> Response:
        answer = case.call(house.url, self.session, timeout=30, allow_redirects=False)
        self.statuses[case.operation.label].add(answer.status_code)
        faults: list[str] = [] if "x-request-id" in answer.headers else ["there is no X-Request-Id"]
        try:
            case.validate_response(answer, CHECKS)
        except FailureGroup as failures:
            faults += map(str, failures.exceptions)
        except Failure as failure:
            faults.append(str(failure))
        for fault in faults:
            sentence = f"{fault}\n{case!r}\n{answer.content[:500]!r}"
            self.faults.setdefault(f"{case.operation.label}: {answer.status_code} {fault[:60]}", sentence)
        return answer


async def made_things(made: Mill) -> dict[str, Iterator[str]]:
    """A file, batches, jobs and uploads, some of them done."""

    async def post(path: str, **what: Any) -> dict[str, Any]:
        answer = await made.client.post(path, headers=OPENAI, **what)
        assert answer.is_success, answer.text
        return answer.json()

    async def brought() -> str:
        form = {"data": {"purpose": "batch"}, "files": {"file": ("a.jsonl", lines(3))}}
        return (await post("/v1/files", **form))["id"]

    file_id = await brought()
    path = "/v1/chat/completions"
    batch_id = (await post("/v1/batches", json={"input_file_id": file_id, "endpoint": path}))["id"]
    open_id = (await post("/v1/batches", json={"open": True, "endpoint": path}))["id"]
    speech = {"url": "/v1/audio/speech", "body": {"model": "test/plain", "input": "Hi", "voice": "v"}}
    job_id = (await post("/v1/jobs", json=speech))["id"]
    later_id = (await post("/v1/jobs", json={"body": chat_body(), "not_before": 4e9}))["id"]
    for where in (f"/v1/jobs/{job_id}", f"/v1/batches/{batch_id}"):
        ended = (await made.client.get(where, params={"wait": 30}, headers=OPENAI)).json()
        assert ended["status"] in ("succeeded", "completed"), ended
    answer_id = f"file-{job_id.removeprefix('job_')}"
    announced = {"bytes": 5, "filename": "a.txt", "mime_type": "text/plain", "purpose": "user_data"}
    daily = {"cron": "30 2 * * *", "requests": [{"body": chat_body("{{ date }}")}]}
    schedule_ids = [(await post("/v1/schedules", json={"name": name, **daily}))["id"] for name in "abc"]
    await post(f"/v1/schedules/{schedule_ids[0]}/run")
    upload_ids = [(await post("/v1/uploads", json=announced))["id"] for _ in "123"]
    return {
        "file_id": itertools.cycle([file_id, answer_id, ended["output_file_id"]]),
        "input_file_id": itertools.repeat(file_id),
        "DELETE /v1/files/{file_id} file_id": itertools.cycle([await brought(), answer_id]),
        "batch_id": itertools.cycle([batch_id, open_id]),
        "POST /v1/batches/{batch_id}/jobs batch_id": itertools.repeat(open_id),
        "GET /v1/batches/{batch_id}/events batch_id": itertools.repeat(batch_id),  # of one that ends
        "job_id": itertools.cycle([job_id, later_id]),
        "schedule_id": itertools.cycle(schedule_ids[:2]),
        "DELETE /v1/schedules/{schedule_id} schedule_id": itertools.repeat(schedule_ids[2]),
        "upload_id": itertools.cycle(upload_ids),
        "PATCH /v1/batches/{batch_id} batch_id": itertools.repeat(batch_id),  # one that has ended
        "POST /v1/batches/{batch_id}/pause batch_id": itertools.repeat(batch_id),
        "lane_id": itertools.repeat("1"),
        **{
            f"{method} /v1/tenants/{{name}}{action} name": itertools.repeat("default")
            for method, action in (("GET", ""), ("POST", ""), ("PATCH", ""), ("POST", "/pause"), ("POST", "/resume"))
        },
        "model": itertools.repeat("test/plain"),
    }


@pytest.fixture
async def both(sqlite_db: Database, postgres_db_url: str) -> AsyncIterator[Asker]:
    """Two servers with all that belongs to them, one on each kind of database."""
    postgres = Database(postgres_db_url)
    try:
        async with mill(sqlite_db, answered) as one, mill(postgres, answered) as other:
            houses = [House(made.serving.url, await made_things(made)) for made in (one, other)]
            asker = Asker(schemathesis.openapi.from_dict(one.serving.app.openapi()), houses)
            asker.session.headers.clear()  # they would go before those of the cases
            with asker.session:
                yield asker
    finally:
        await postgres.aclose()


@pytest.mark.timeout(300)  # of one, making up the requests is the most: so it asks both databases
async def test_every_operation_answers_as_the_document_says(both: Asker):
    await asyncio.to_thread(both.ask_everything)
    assert both.faults == {}
    assert len(both.statuses) == both.schema.statistic.operations.total > 40


WORDS = {"model": "test/plain"}
DAILY = {"name": "daily", "cron": "@daily", "timezone": "Asia/Kolkata"}
FORM = "multipart/form-data"
FILE = {"file": b"x"}
#: (operation, status, body, type of the body, query, headers). Real ids stand in for "_".
RIGHT: list[tuple[str, int, Any, str | None, dict[str, Any], dict[str, str]]] = [
    ("POST /v1/chat/completions", 200, chat_body(), None, {}, {}),
    ("POST /v1/chat/completions", 202, chat_body("later"), None, {}, {"Prefer": "respond-async"}),
    ("POST /v1/completions", 200, {**WORDS, "prompt": "x"}, None, {}, {}),
    ("POST /v1/embeddings", 200, {**WORDS, "input": ["x"]}, None, {}, {}),
    ("POST /v1/rerank", 200, {**WORDS, "query": "x", "documents": ["x"]}, None, {}, {}),
    ("POST /v1/images/generations", 200, {**WORDS, "prompt": "x"}, None, {}, {}),
    ("POST /v1/audio/speech", 200, {**WORDS, "input": "x", "voice": "v"}, None, {}, {}),
    ("POST /v1/audio/transcriptions", 200, {**WORDS, **FILE}, FORM, {}, {}),
    ("POST /v1/jobs", 202, {"body": chat_body("held"), "not_before": 4e9}, None, {}, {"Idempotency-Key": "a"}),
    ("POST /v1/jobs", 409, {"body": chat_body("other")}, None, {}, {"Idempotency-Key": "a"}),
    ("POST /v1/jobs", 202, {"requests": [{"body": chat_body()}] * 2, "priority": "high"}, None, {}, {}),
    ("POST /v1/jobs", 202, chat_body(), None, {}, {}),
    ("GET /v1/jobs", 200, None, None, {"status": "succeeded", "limit": 1}, {}),
    ("GET /v1/jobs/{job_id}", 200, None, None, {"wait": 0.05}, {}),
    ("POST /v1/batches", 200, {"input_file_id": "_", "endpoint": "/v1/chat/completions"}, None, {}, OPENAI),
    ("POST /v1/batches", 201, {"input_file_id": "_", "endpoint": "/v1/chat/completions"}, None, {}, TOGETHER),
    ("GET /v1/batches", 200, None, None, {"limit": 1}, OPENAI),
    ("GET /v1/batches", 200, None, None, {}, TOGETHER),
    ("POST /v1/batches/{batch_id}/jobs", 200, {"requests": [{"body": chat_body()}]}, None, {}, {}),
    ("POST /v1/batches/{batch_id}/seal", 200, None, None, {}, TOGETHER),
    ("GET /v1/batches/{batch_id}/events", 200, None, None, {}, {}),
    ("POST /v1/batches", 200, {"open": True, "weight": 2, "budget_cost": 1.5, "not_before": 4e9}, None, {}, OPENAI),
    ("PATCH /v1/batches/{batch_id}", 409, {"priority": "high"}, None, {}, {}),
    ("POST /v1/batches/{batch_id}/pause", 409, None, None, {}, {}),
    ("POST /v1/batches/{batch_id}/resume", 200, None, None, {}, TOGETHER),
    ("POST /v1/batches/{batch_id}/retry", 200, {"states": ["failed", "expired"]}, None, {}, {}),
    ("POST /v1/batches/{batch_id}/retry", 400, {"custom_ids": ["nobody"]}, None, {}, {}),
    ("GET /v1/lanes", 200, None, None, {}, {}),
    ("POST /v1/lanes/{lane_id}/pause", 200, None, None, {}, {}),
    ("POST /v1/lanes/{lane_id}/resume", 200, None, None, {}, {}),
    ("GET /v1/tenants", 200, None, None, {}, {}),
    ("PATCH /v1/tenants/{name}", 200, {"weight": 2, "max_in_flight": None}, None, {}, {}),
    ("POST /v1/tenants/{name}/pause", 200, None, None, {}, {}),
    ("GET /v1/pauses", 200, None, None, {}, {}),
    ("POST /v1/tenants/{name}/resume", 200, None, None, {}, {}),
    ("POST /v1/pause", 200, None, None, {}, {}),
    ("POST /v1/resume", 200, None, None, {}, {}),
    ("POST /v1/files", 200, {"purpose": "user_data", **FILE}, FORM, {}, TOGETHER),
    ("POST /v1/files", 302, {"purpose": "batch-api", "file_name": "a.jsonl"}, FORM, {}, TOGETHER),
    ("POST /v1/files", 302, None, None, {"purpose": "batch-api", "file_name": "a.jsonl"}, TOGETHER),
    ("POST /v1/files/upload", 200, {"purpose": "user_data", **FILE}, FORM, {}, {}),
    ("GET /v1/files/{file_id}", 200, None, None, {}, OPENAI),
    ("GET /v1/files/{file_id}", 200, None, None, {}, TOGETHER),
    ("GET /v1/files/{file_id}/content", 200, None, None, {}, {}),
    ("GET /v1/files/{file_id}/content", 206, None, None, {}, {"Range": "bytes=1-2"}),
    ("GET /v1/files/{file_id}/content", 416, None, None, {}, {"Range": "bytes=99999-"}),
    ("POST /v1/uploads/{upload_id}/parts", 200, {"data": b"12345"}, FORM, {}, {}),
    ("POST /v1/schedules", 201, {**DAILY, "requests": [{"body": chat_body()}]}, None, {}, {"Idempotency-Key": "a"}),
    ("POST /v1/schedules", 409, {**DAILY, "input_file_id": "_"}, None, {}, {}),
    ("POST /v1/schedules", 201, {**DAILY, "name": "other", "input_file_id": "_"}, None, {}, TOGETHER),
    ("GET /v1/schedules", 200, None, None, {"limit": 1}, {}),
    ("GET /v1/schedules/{schedule_id}", 200, None, None, {}, TOGETHER),
    ("PATCH /v1/schedules/{schedule_id}", 200, {"overlap": "queue", "canary": 5, "at": 4e9}, None, {}, {}),
    ("POST /v1/schedules/{schedule_id}/disable", 200, None, None, {}, {}),
    ("POST /v1/schedules/{schedule_id}/enable", 200, None, None, {}, {}),
    ("POST /v1/schedules/{schedule_id}/run", 200, None, None, {}, {"Idempotency-Key": "a"}),
    ("GET /v1/schedules/{schedule_id}/fires", 200, None, None, {"limit": 1}, {}),
    ("GET /v1/models", 200, None, None, {}, TOGETHER),
    ("GET /v1/models/{model}", 200, None, None, {}, {}),
]


async def test_what_is_right_is_answered_as_the_document_says(both: Asker):
    for label, status, body, media_type, query, headers in RIGHT:
        operation = both.schema.find_operation_by_label(label)
        path = {name.strip("{}"): "_" for name in label.split("/") if name.startswith("{")}
        case = operation.Case(path_parameters=path, query=query, headers=headers)
        if body is not None:
            case.body, case.media_type = copy.deepcopy(body), media_type or "application/json"
        answers = await asyncio.to_thread(both.ask, case, real=True)
        assert [answer.status_code for answer in answers] == [status] * 2, (label, answers[0].text, answers[1].text)
    assert both.faults == {}
