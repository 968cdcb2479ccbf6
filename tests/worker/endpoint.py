"""An endpoint that answers each call as a test says, and remembers what came."""

import asyncio
import contextlib
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from tests.worker.raw_server import Peer, RawServer, Received, http, serve

#: The whole response; None closes the connection without one.
Answer = bytes | None
Answers = Callable[[Received], Answer | Awaitable[Answer]]

JSON = "Content-Type: application/json"


def chat(content: str = "Good.", *, prompt_tokens: int = 3, completion_tokens: int = 5) -> bytes:
    """A good answer to a chat."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}], "usage": usage}
    return http("200 OK", json.dumps(body).encode(), JSON)


def refusal(status: str, message: str = "No.", *headers: str) -> bytes:
    """A refusal in OpenAI's shape; `status` is as in the status line."""
    return http(status, json.dumps({"error": {"message": message}}).encode(), JSON, *headers)


def text_of(received: Received) -> str:
    """The user's words in a chat."""
    return json.loads(received.body)["messages"][-1]["content"]


@dataclass
class Endpoint:
    """What came, and how much of it at once."""

    answers: Answers
    server: RawServer | None = None
    calls: list[Received] = field(default_factory=list)
    in_flight: int = 0
    peak: int = 0

    @property
    def url(self) -> str:
        assert self.server is not None
        return self.server.url

    @property
    def texts(self) -> list[str]:
        """The user's words in every call, as they came."""
        return [text_of(call) for call in self.calls]

    async def converse(self, peer: Peer) -> None:
        """One connection, call after call."""
        while True:
            received = await peer.read_request()
            self.calls.append(received)
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            try:
                answer = self.answers(received)
                if inspect.isawaitable(answer):
                    answer = await answer
            finally:
                self.in_flight -= 1
            if answer is None:
                return
            await peer.write(answer)


@contextlib.asynccontextmanager
async def endpoint(answers: Answers) -> AsyncIterator[Endpoint]:
    """An endpoint in the running loop."""
    made = Endpoint(answers)
    async with serve(made.converse) as made.server:
        yield made


async def never(_: Received) -> Answer:
    """For a call that is only ended by whoever made it."""
    await asyncio.Event().wait()
    return None
