"""The OpenAPI document is kept: whatever it allows, and much that it does not, is answered as it says. On both kinds of
database; the requests are the same in every run."""

import asyncio
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from promptmill.engine import Database
from tests.api.forms import lines
from tests.api.mill import Mill, chat_body, mill
from tests.api.uploaded import OPENAI, TOGETHER
from tests.conftest import eventually
from tests.worker.endpoint import JSON, Answer, chat
from tests.worker.raw_server import Received, http

CHECKS = [
    schemathesis.checks.not_a_server_error, status_code_conformance, content_type_conformance,
    response_schema_conformance, response_headers_conformance,
]  # fmt: skip
#: Of each operation, and of each kind: what the document allows, and what it does not.
EXAMPLES = 4
#: Nobody waits longer than this for a batch or a job to end.
LONGEST_WAIT = 0.05


def answered(call: Received) -> Answer:
    """What an upstream with all endpoints says."""
    path = call.line.split()[1]
    if path.endswith("/models"):
        return http("200 OK", b'{"object": "list", "data": [{"id": "test/plain", "object": "model"}]}', JSON)
    if path.endswith("/chat/completions"):
        return chat()
    if "/audio/speech" in path or "/audio/generations" in path:
        return http("200 OK", b"RIFF\x00\x01\xff", "Content-Type: audio/wav")
    told = {
        "choices": [{"index": 0, "text": "Good."}], "results": [], "text": "Good.",
        "data": [{"index": 0, "embedding": [0.5], "url": "https://x/y.png"}],
    }  # fmt: skip
    return http("200 OK", json.dumps(told).encode(), JSON)


@dataclass
class Asker:
    """Sends cases and keeps what was wrong with their answers."""

    url: str
    #: Values that exist, by the parameter that takes them.
    real: dict[str, Iterator[str]]
    asked: int = 0
    statuses: dict[str, set[int]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def ask(self, case: Case) -> None:
        case.headers.update(({}, OPENAI, TOGETHER)[self.asked % 3])
        self.asked += 1
        with requests.Session() as session:
            response = case.call(self.url, session, timeout=20, allow_redirects=False)
        self.statuses.setdefault(case.operation.label, set()).add(response.status_code)
        try:
            case.validate_response(response, CHECKS)
        except (Failure, FailureGroup) as failure:
            found = failure.exceptions if isinstance(failure, FailureGroup) else [failure]
            for each in found:
                self.faults.setdefault(f"{case.operation.label} {type(each).__name__} {response.status_code}", f"{each}\n{case!r}\n{response.text[:500]}")

    def ask_all(self, document: dict) -> None:
        schema = schemathesis.openapi.from_dict(document)
        for found in schema.get_all_operations():
            operation = found.ok()
            for mode in GenerationMode:
                try:
                    strategy = operation.as_strategy(generation_mode=mode)
                    self._ask_some(strategy, operation)
                except Exception as error:
                    for e in getattr(error,"exceptions",()): import traceback; print("".join(traceback.format_exception(e))[-1500:])
                    print("GEN", operation.label, mode, type(error), str(error)[:300])

    def _ask_some(self, strategy, operation) -> None:
        count = itertools.count()

        @settings(
            max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def every(case: Case) -> None:
            if next(count) % 2:
                self._make_real(case)
            if "wait" in (case.query or {}):
                wait = case.query["wait"]
                if isinstance(wait, int | float) and wait > LONGEST_WAIT:
                    case.query["wait"] = LONGEST_WAIT
            self.ask(case)

        every()

    def _make_real(self, case: Case) -> None:
        for where in (case.path_parameters, case.query):
            for name in where or {}:
                if values := self.real.get(f"{case.method} {case.path} {name}", self.real.get(name)):
                    where[name] = next(values)


async def made_things(made: Mill) -> dict[str, Iterator[str]]:
    client = made.client
    upload = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", lines(3))})
    file_id = upload.json()["id"]
    asked = {"input_file_id": file_id, "endpoint": "/v1/chat/completions"}
    batch = (await client.post("/v1/batches", json=asked, headers=OPENAI)).json()["id"]
    speech = {"body": {"model": "test/plain", "input": "Hi", "voice": "v"}, "url": "/v1/audio/speech"}
    job = (await client.post("/v1/jobs", json=speech)).json()["id"]
    await client.get(f"/v1/jobs/{job}?wait=20")
    done = (await client.get(f"/v1/batches/{batch}?wait=20", headers=OPENAI)).json()
    opened = (await client.post("/v1/batches", json={**asked, "open": True}, headers=OPENAI)).json()["id"]
    bare = (await client.post("/v1/batches", json={"open": True, "endpoint": asked["endpoint"]}, headers=OPENAI)).json()["id"]
    answer_id = f"file-{job.removeprefix('job_')}"
    return {
        "file_id": itertools.cycle([file_id, answer_id, done["output_file_id"]]),
        "batch_id": itertools.cycle([opened, batch, bare]),
        "GET /v1/batches/{batch_id}/events batch_id": itertools.repeat(batch),
        "job_id": itertools.cycle([job]),
        "model": itertools.repeat("test/plain"),
    }


async def test_every_operation_answers_as_it_says(db: Database, caplog):
    async with mill(db, answered) as made:
        real = await made_things(made)
        asker = Asker(made.serving.url, real)
        await asyncio.to_thread(asker.ask_all, made.serving.app.openapi())
    print(asker.asked)
    for k, v in asker.statuses.items(): print(k, sorted(v))
    for k, v in asker.faults.items(): print("==", k, "\n", v)
    assert asker.faults == {}
