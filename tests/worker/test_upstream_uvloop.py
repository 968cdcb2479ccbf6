"""The same on uvloop, which every drain runs on: its transports are not asyncio's."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine

import pytest
import uvloop

from tests.worker import test_upstream, test_upstream_failures

Scenario = Callable[[], Coroutine[None, None, None]]
SCENARIOS: list[Scenario] = [
    function
    for module in (test_upstream, test_upstream_failures)
    for name, function in vars(module).items()
    if name.startswith("test_") and inspect.iscoroutinefunction(function) and not inspect.signature(function).parameters
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_on_uvloop(scenario):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
