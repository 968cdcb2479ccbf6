"""openai and together-ai from npm, on Node: the scripts in node/ make the calls and say what came of them."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.sdk.places import Place, clean_environment
from tests.sdk.toolbox import Node

SDKS = ("openai", "together")


@pytest.fixture
def environment(base: Place) -> dict[str, str]:
    told = {"MILL_ORIGIN": base.origin, "MILL_KEY": base.key, "MILL_PLACE": base.name}
    return {**clean_environment(), **told}


def test_every_call(base: Place, node: Node, environment: dict[str, str]):
    with ThreadPoolExecutor(len(SDKS)) as side_by_side:  # most of it is waiting
        printed = list(side_by_side.map(lambda sdk: node.run(f"{sdk}.mjs", environment), SDKS))
    for sdk, lines in zip(SDKS, printed, strict=True):
        told = [json.loads(line) for line in lines.splitlines()]
        assert [line for line in told if not line["ok"]] == []
        assert {line["check"] for line in told} == node.checks_of(f"{sdk}.mjs")
        assert base.calls(base.model("slow", f"{sdk}-node")) == 1, "it gave up, asked again, and paid twice"
        assert base.calls(base.model("steady", f"{sdk}-node-twice")) == 2
        assert base.calls(base.model("plain", f"{sdk}-node-once")) == 1
        assert base.calls(base.model("steady", f"{sdk}-node-streams")) == 1


def test_togethers_own_upload(node: Node, environment: dict[str, str]):
    made = json.loads(node.run("together-upload.cjs", environment))
    assert (made["object"], made["filename"], made["purpose"]) == ("file", "uploaded.jsonl", "batch-api")
    assert (made["FileType"], made["Processed"], made["bytes"]) == ("jsonl", True, len(made["content"]))
