"""What the Python clients' own retries cost: the upstream counts how often it is asked. (Node's: see test_node.py.)"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import together

from tests.sdk.places import PATIENCE_SECONDS, Place, Served, Upstreams
from tests.sdk.prompts import QUESTION


def at_once(*calls: Callable[[], None]) -> None:
    """Most of it is waiting."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for call in [pool.submit(call) for call in calls]:
            call.result()


def test_a_client_that_gives_up_and_asks_again_costs_one_call(base: Place):
    def with_openai() -> None:
        model = base.model("slow", "openai-python")
        with openai.OpenAI(base_url=base.url, api_key=base.key, timeout=PATIENCE_SECONDS, max_retries=9) as impatient:
            answer = impatient.chat.completions.with_raw_response.create(model=model, messages=QUESTION)
        assert answer.retries_taken > 0
        assert answer.parse().choices[0].message.content
        assert base.calls(model) == 1

    def with_together() -> None:
        model = base.model("slow", "together-python")
        with together.Together(
            base_url=base.origin, api_key=base.key, timeout=PATIENCE_SECONDS, max_retries=9
        ) as impatient:
            answer = impatient.chat.completions.with_raw_response.create(model=model, messages=QUESTION)
        assert answer.retries_taken > 0
        assert answer.parse().choices[0].message.content
        assert base.calls(model) == 1

    def with_a_stream() -> None:
        model = base.model("slow", "openai-python-stream")
        with (
            openai.OpenAI(base_url=base.url, api_key=base.key, timeout=1.0, max_retries=9) as impatient,
            impatient.chat.completions.create(model=model, messages=QUESTION, stream=True) as stream,
        ):
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream).startswith("Rehearsal answer")
        assert base.calls(model) == 1

    def at_another_process() -> None:
        """As a load balancer sends it on."""
        model = base.model("slow", "openai-python-elsewhere")
        again = {"X-Stainless-Retry-Count": "1"}
        with openai.OpenAI(base_url=base.url, api_key=base.key, max_retries=0) as sdk:
            with pytest.raises(openai.APITimeoutError):
                sdk.chat.completions.create(model=model, messages=QUESTION, timeout=PATIENCE_SECONDS)
            twin = sdk.with_options(base_url=f"{base.twin_origin}/v1")
            assert twin.chat.completions.create(model=model, messages=QUESTION, extra_headers=again).choices
        assert base.calls(model) == 1

    at_once(with_openai, with_together, with_a_stream, at_another_process)


def test_two_equal_requests_at_once_are_two_calls(base: Place):
    openai_model, together_model = base.model("steady", "openai-twice"), base.model("steady", "together-twice")
    with (
        openai.OpenAI(base_url=base.url, api_key=base.key) as one,
        together.Together(base_url=base.origin, api_key=base.key) as other,
    ):

        def with_openai() -> None:
            one.chat.completions.create(model=openai_model, messages=QUESTION)

        def with_together() -> None:
            other.chat.completions.create(model=together_model, messages=QUESTION)

        at_once(with_openai, with_openai, with_together, with_together)
    assert (base.calls(openai_model), base.calls(together_model)) == (2, 2)


def test_a_server_that_begins_early_keeps_them_waiting(upstreams: Upstreams, tmp_path: Path):
    """Blanks before the answer: nobody gives up, so nobody asks again."""
    process = Served(tmp_path, upstreams.environment(tmp_path, "hold_open_after_seconds = 0.5\n"))
    origin, key = process.start()
    try:
        with (
            openai.OpenAI(base_url=f"{origin}/v1", api_key=key, timeout=PATIENCE_SECONDS, max_retries=0) as one,
            together.Together(base_url=origin, api_key=key, timeout=PATIENCE_SECONDS, max_retries=0) as other,
        ):

            def ask(sdk: openai.OpenAI | together.Together, model: str) -> None:
                answer = sdk.chat.completions.create(model=model, messages=QUESTION)
                assert answer.choices[0].message.content.startswith("Rehearsal answer")

            at_once(lambda: ask(one, "slow/openai-early"), lambda: ask(other, "slow/together-early"))
    finally:
        process.stop()
    assert (upstreams.calls("slow/openai-early"), upstreams.calls("slow/together-early")) == (1, 1)
