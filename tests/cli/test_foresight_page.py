"""The commands of docs/foresight.md run, and its objects have the fields that are answered."""

import json
import re
import shlex

from api.dry_run import DRY_RUN_SCHEMA
from promptmill.outlook import Wait
from promptmill.told import DryRunTold, ForesightTold
from tests.cli.mill import REPOSITORY

PAGE = (REPOSITORY / "docs" / "foresight.md").read_text()


def test_its_commands_run(mill, monkeypatch):
    server = mill.simulator()
    (mill.folder / "examples").symlink_to(REPOSITORY / "examples")
    monkeypatch.chdir(mill.folder)
    (block,) = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines():
        words = shlex.split(line.removeprefix("$ ").replace("http://127.0.0.1:8123/v1", server.url))
        if words[0] == "export":
            monkeypatch.setenv(*words[1].split("="))
            continue
        ended = mill.run(*words[1:])
        assert ended.code == 0, f"{line}\n{ended.err}"
    assert "no worker is at work" in ended.out
    assert server.stats.requests == 0


def test_its_objects_are_those_that_are_answered():
    foresight, dry_run = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL))
    assert set(foresight) == set(ForesightTold.__struct_fields__)
    assert set(dry_run) == set(DryRunTold.__struct_fields__) == set(DRY_RUN_SCHEMA["properties"])
    (lane,) = dry_run["lanes"]
    assert set(lane) == set(next(iter(DryRunTold.__annotations__["lanes"].__args__)).__struct_fields__)


def test_it_has_every_reason():
    assert {wait.value for wait in Wait} == set(re.findall(r"^\| `(\w+)` \| ", PAGE, re.MULTILINE)) - {"reason"}
