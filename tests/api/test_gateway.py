"""The synchronous door: the upstream's own answer through the queue, and nothing paid for twice."""

import asyncio
import contextlib
import json

import httpx
import pytest

from promptmill.job import State
from promptmill.store import jobs, results
from tests.api.mill import chat_body, mill
from tests.api.server import new_client
from tests.conftest import eventually
from tests.worker.endpoint import JSON, chat, never, refusal, text_of
from tests.worker.raw_server import http

ANSWER = b'{"choices": [{"index": 0,\n "message": {"role": "assistant", "content": "One\\ud83d."}}], "odd": 1.50}'


async def test_the_answer_is_the_upstreams_byte_for_byte(db):
    def answers(_):
        return http("200 OK", ANSWER, JSON, "x-ratelimit-remaining: 7", "x-request-id: up-1", "x-secret: no")

    async with mill(db, answers) as made:
        answer = await made.chat()
    assert answer.status_code == 200
    assert answer.content == ANSWER
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-ratelimit-remaining"] == "7"
    assert answer.headers["x-request-id"] == "up-1"
    assert "x-secret" not in answer.headers
    assert answer.headers["x-promptmill-job"].startswith("job_")
    assert answer.headers["x-promptmill-request-id"]


async def test_the_body_is_sent_as_it_came(sqlite_db):
    body = b'{ "messages" : [{"role":"user","content":"1.50"}],\n\t"model":"test/plain", "temperature":1.0e0 }'
    async with mill(sqlite_db, lambda _: chat()) as made:
        answer = await made.client.post(
            "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 200
        assert made.upstream.calls[0].body == body


async def test_a_refusal_of_the_upstream_is_passed_on(sqlite_db):
    async with mill(sqlite_db, lambda _: refusal("400 Bad Request", "max_tokens is too large")) as made:
        answer = await made.chat()
    assert answer.status_code == 400
    assert answer.json() == {"error": {"message": "max_tokens is too large"}}
    assert len(made.upstream.calls) == 1


@pytest.mark.parametrize(("status", "code"), [("404 Not Found", 404), ("401 Unauthorized", 401)])
async def test_a_lane_that_is_refused_answers_everybody_at_once(sqlite_db, status, code):
    """The first one gets the upstream's own words; the next ones are not sent at all."""
    async with mill(sqlite_db, lambda _: refusal(status, "no such thing")) as made:
        first = await made.chat("1")
        assert (first.status_code, first.json()) == (code, {"error": {"message": "no such thing"}})

        async def halted():
            answer = await made.chat("2")
            return answer if answer.json()["error"].get("code") == "lane_halted" else None

        later = await eventually(halted)
    assert later.status_code == code
    assert "no such thing" in later.json()["error"]["message"]
    assert later.headers["x-should-retry"] == "false"


async def test_an_upstream_that_cannot_be_reached_is_502(sqlite_db):
    async with mill(sqlite_db, lambda _: None, max_attempts=1) as made:
        answer = await made.chat()
    assert answer.status_code == 502
    assert answer.json()["error"]["type"] == "server_error"
    assert answer.headers["x-should-retry"] == "false"


async def test_what_the_mill_tried_again_is_not_tried_again_by_the_client(sqlite_db):
    async with mill(sqlite_db, lambda _: refusal("500 Internal Server Error", "oops"), max_attempts=1) as made:
        answer = await made.chat()
    assert answer.status_code == 500
    assert answer.headers["x-should-retry"] == "false"


async def test_sound_comes_as_bytes(sqlite_db):
    sound = bytes(range(256)) * 100
    async with mill(sqlite_db, lambda _: http("200 OK", sound, "Content-Type: audio/mpeg")) as made:
        body = {"model": "test/speech", "input": "Hello", "voice": "alloy"}
        for path in ("/v1/audio/speech", "/v1/audio/generations", "/v1/v1/audio/speech"):
            answer = await made.client.post(path, json=body)
            assert answer.status_code == 200
            assert answer.content == sound
            assert answer.headers["content-type"] == "audio/mpeg"
        asked = [call.line.split()[1] for call in made.upstream.calls]
    assert asked == ["/v1/audio/speech", "/v1/audio/generations", "/v1/audio/speech"]


async def test_a_form_is_sent_as_a_form(db):
    async with mill(db, lambda _: http("200 OK", b'{"text": "Hello."}', JSON)) as made:
        answer = await made.client.post(
            "/v1/audio/transcriptions",
            data={"model": "test/whisper", "timestamp_granularities[]": ["word", "segment"]},
            files={"file": ("talk.mp3", b"ID3sound", "audio/mpeg")},
        )
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"text": "Hello."}
        sent = made.upstream.calls[0].body
    assert b'filename="talk.mp3"' in sent
    assert b"ID3sound" in sent
    assert sent.count(b'name="timestamp_granularities[]"') == 2


@pytest.mark.parametrize("text", [b"Hello there.\n", b"5e840221 amber.", b"1\n00:00:00,000 --> 00:00:01,000\nHi\n"])
async def test_a_transcription_may_be_plain_text(sqlite_db, text):
    async with mill(sqlite_db, lambda _: http("200 OK", text, "Content-Type: text/plain")) as made:
        answer = await made.client.post(
            "/v1/audio/transcriptions",
            data={"model": "test/whisper", "response_format": "text"},
            files={"file": ("talk.mp3", b"ID3sound", "audio/mpeg")},
        )
        assert (answer.status_code, answer.content) == (200, text)
        assert len(made.upstream.calls) == 1


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"", {}, 400),
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b'{"model": "m"}', {}, 400),
        (b'{"model": "m", "messages": []},"url":"/v1/embeddings"', {}, 400),
        (b'{"model": "m", "messages": []} {}', {}, 400),
        (b'{"model": "m", "messages": []}', {"Content-Type": "text/plain"}, 415),
        (b'{"model": "m", "messages": ' + b"[" * 300 + b"]" * 300 + b"}", {}, 400),
        (b'\xff{"model": "m"}', {}, 400),
    ],
)
async def test_what_is_no_request_is_refused_without_a_call(sqlite_db, content, headers, status):
    async with mill(sqlite_db, lambda _: chat()) as made:
        answer = await made.client.post(
            "/v1/chat/completions", content=content, headers={"Content-Type": "application/json", **headers}
        )
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["message"]
        assert made.upstream.calls == []


async def test_a_form_without_a_file_is_refused(sqlite_db):
    async with mill(sqlite_db, lambda _: chat()) as made:
        answer = await made.client.post("/v1/audio/transcriptions", data={"model": "m"})
        assert answer.status_code == 415
        form = {"model": (None, "m")}
        answer = await made.client.post("/v1/audio/transcriptions", files=form)
        assert answer.status_code == 400
        assert "file" in answer.json()["error"]["message"]
        broken = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = await made.client.post("/v1/audio/transcriptions", content=b"--y\r\n", headers=broken)
        assert answer.status_code == 400


# ---------------------------------------------------------------------- asking again


class Slowly:
    """Answers when told; counts."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.count = 0

    async def __call__(self, _):
        self.count += 1
        number = self.count
        await self.may_answer.wait()
        return chat(f"answer {number}")


def content(answer: httpx.Response) -> str:
    return answer.json()["choices"][0]["message"]["content"]


async def leave(made, text="Hello?", **headers) -> None:
    """Ask, and go away when the call is under way."""
    before = len(made.upstream.calls)
    async with new_client(base_url=made.serving.url) as client:
        asking = asyncio.create_task(made.chat(text, headers=headers, client=client))
        await eventually(lambda: len(made.upstream.calls) > before)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking


async def test_a_resend_after_leaving_costs_no_second_call(db):
    slowly = Slowly()
    async with mill(db, slowly) as made:
        await leave(made)
        again = asyncio.create_task(made.chat(headers={"X-Stainless-Retry-Count": "1"}))
        await asyncio.sleep(0)
        slowly.may_answer.set()
        answer = await again
        assert content(answer) == "answer 1"
        # Even when it had been answered before anybody asked again.
        assert slowly.count == 1


async def test_a_resend_is_given_an_answer_that_is_there_already(sqlite_db):
    slowly = Slowly()
    async with mill(sqlite_db, slowly) as made:
        await leave(made)
        slowly.may_answer.set()
        await eventually(lambda: made.drain.counts.succeeded == 1)
        assert content(await made.chat(headers={"X-Stainless-Retry-Count": "2"})) == "answer 1"
        assert slowly.count == 1


async def test_what_was_taken_up_once_is_not_taken_up_again(sqlite_db):
    """Two who left are two calls, and so are their answers."""
    slowly = Slowly()
    async with mill(sqlite_db, slowly) as made:
        await leave(made)
        await leave(made)
        slowly.may_answer.set()
        await eventually(lambda: made.drain.counts.succeeded == 2)
        retry = {"X-Stainless-Retry-Count": "1"}
        answers = {content(await made.chat(headers=retry)) for _ in range(3)}
        assert answers == {"answer 1", "answer 2", "answer 3"}


async def test_equal_requests_that_are_no_resends_are_calls_of_their_own(db):
    slowly = Slowly()
    async with mill(db, slowly) as made:
        both = [asyncio.create_task(made.chat()) for _ in range(2)]
        await eventually(lambda: slowly.count == 2)
        slowly.may_answer.set()
        assert {content(answer) for answer in await asyncio.gather(*both)} == {"answer 1", "answer 2"}


async def test_another_request_is_no_resend(sqlite_db):
    slowly = Slowly()
    async with mill(sqlite_db, slowly) as made:
        await leave(made, "one")
        slowly.may_answer.set()
        assert content(await made.chat("two", headers={"X-Stainless-Retry-Count": "1"})) == "answer 2"


async def test_an_idempotency_key_makes_one_call(db):
    slowly = Slowly()
    async with mill(db, slowly) as made:
        key = {"Idempotency-Key": "k-1"}
        both = [asyncio.create_task(made.chat(headers=key)) for _ in range(2)]
        await eventually(lambda: slowly.count == 1)
        slowly.may_answer.set()
        first, second = await asyncio.gather(*both)
        assert content(first) == content(second) == "answer 1"
        assert content(await made.chat(headers=key)) == "answer 1"
        other = await made.chat("something else", headers=key)
        assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reuse")
        assert slowly.count == 1


# ---------------------------------------------------------------------- not waiting, waiting long


async def test_respond_async_promises_the_answer(db):
    async with mill(db, lambda _: chat("later")) as made:
        answer = await made.chat(headers={"Prefer": "respond-async"})
        assert answer.status_code == 202
        assert answer.headers["preference-applied"] == "respond-async"
        job = (await made.client.get(answer.headers["location"], params={"wait": 20})).json()
        assert (job["id"], job["status"]) == (answer.json()["id"], "succeeded")
        assert job["result"]["response"]["body"]["choices"][0]["message"]["content"] == "later"
        assert [attempt["outcome"] for attempt in job["attempts"]] == ["succeeded"]


async def test_an_answer_begun_early_keeps_impatient_clients_waiting(sqlite_db):
    slowly = Slowly()
    async with mill(sqlite_db, slowly, hold_open_after_seconds=0.05) as made:
        async with made.client.stream("POST", "/v1/chat/completions", json=chat_body()) as answer:
            assert answer.status_code == 200
            parts = answer.aiter_raw()
            assert await anext(parts) == b" "
            slowly.may_answer.set()
            rest = b"".join([part async for part in parts])
        assert json.loads(rest)["choices"][0]["message"]["content"] == "answer 1"


async def test_everybody_gets_their_own_answer(db):
    async with mill(db, lambda call: chat(text_of(call)), max_in_flight=64) as made:
        limits = httpx.Limits(max_connections=None)
        async with new_client(base_url=made.serving.url, timeout=60, limits=limits) as client:
            answers = await asyncio.gather(*(made.chat(f"number {n}", client=client) for n in range(200)))
    assert [content(answer) for answer in answers] == [f"number {n}" for n in range(200)]


async def test_a_crowds_calls_are_out_together(db):
    """Each is a job of its own, but not a claim of its own."""
    everybody = asyncio.Event()

    async def together(call) -> bytes:
        if made.upstream.in_flight == 100:
            everybody.set()
        if text_of(call) != "first":
            await everybody.wait()
        return chat(text_of(call))

    async with mill(db, together, max_in_flight=128) as made:
        assert (await made.chat("first")).is_success  # the lane is known
        limits = httpx.Limits(max_connections=None)
        async with new_client(base_url=made.serving.url, timeout=60, limits=limits) as client, asyncio.timeout(10):
            answers = await asyncio.gather(*(made.chat(f"number {n}", client=client) for n in range(100)))
    assert [content(answer) for answer in answers] == [f"number {n}" for n in range(100)]


async def test_one_who_left_loses_nothing_and_its_job_is_kept(sqlite_db):
    slowly = Slowly()
    async with mill(sqlite_db, slowly) as made:
        await leave(made)
        slowly.may_answer.set()
        await eventually(lambda: made.drain.counts.succeeded == 1)
        (row,) = await jobs.listed(sqlite_db, tenant_id=1, batch_id=None, after=None, states=None, limit=10)
        (result,) = await results.of_jobs(sqlite_db, row.key[0], [row.key[1]])
    assert row.state is State.SUCCEEDED
    assert b"answer 1" in result.body


async def test_models_are_the_upstreams(sqlite_db):
    listed = b'{"object": "list", "data": [{"id": "test/plain"}]}'
    async with mill(sqlite_db, lambda _: http("200 OK", listed, JSON)) as made:
        assert (await made.client.get("/v1/models")).json() == json.loads(listed)
        assert (await made.client.get("/v1/models/test/plain")).json() == {"id": "test/plain"}
        assert (await made.client.get("/v1/models/nobody")).status_code == 404


async def test_a_job_that_is_never_answered_does_not_keep_the_server_from_stopping(sqlite_db):
    async with mill(sqlite_db, never) as made, new_client(base_url=made.serving.url, timeout=60) as client:
        asking = asyncio.create_task(made.chat(client=client))
        await eventually(lambda: len(made.upstream.calls) == 1)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
