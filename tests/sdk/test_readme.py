"""The README's blocks for each client, run as they stand there; only the address is another."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.mill import REPOSITORY
from tests.sdk.places import Place, clean_environment
from tests.sdk.toolbox import Node

ADDRESS = "127.0.0.1:8000"
_SECTION = re.compile(r"^## Submit work over HTTP\n(.*?)^## ", re.DOTALL | re.MULTILINE)
_BLOCK = re.compile(r"^\*\*([^*]+)\*\*[^\n]*\n\n```(bash|python|js)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_SECONDS = 30


def blocks() -> dict[str, tuple[str, str]]:
    """Client → (language, text)."""
    section = _SECTION.search((REPOSITORY / "README.md").read_text())
    return {client: (language, text) for client, language, text in _BLOCK.findall(section[1])}


BLOCKS = blocks()


def ran(words: list[str], folder: Path, key: str) -> str:
    done = subprocess.run(
        words, cwd=folder, env={**clean_environment(), "MILL_KEY": key}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with the file that all blocks but the first begin with."""
    (prompts,) = re.findall(r"cat > prompts\.jsonl <<'END'\n(.*?)^END", BLOCKS["curl"][1], re.DOTALL | re.MULTILINE)
    (tmp_path / "prompts.jsonl").write_text(prompts)
    return tmp_path


def pointed(served: Place, client: str) -> str:
    text = BLOCKS[client][1]
    assert text.count(ADDRESS) == 1
    return text.replace(ADDRESS, served.origin.removeprefix("http://"))


def check_lines(text: str) -> None:
    answers = [json.loads(line) for line in text.splitlines()]
    assert [answer["custom_id"] for answer in answers] == ["sky", "sea"]
    assert all(answer["response"]["body"]["choices"][0]["message"]["content"] for answer in answers)


def test_there_is_one_for_each_client():
    assert {client: language for client, (language, _) in BLOCKS.items()} == {
        "curl": "bash",
        "openai-python": "python",
        "together-python": "python",
        "openai-node": "js",
        "together-ai (Node)": "js",
    }


def test_curl(served: Place, tmp_path: Path):
    printed = ran(["bash", "-euo", "pipefail", "-c", pointed(served, "curl")], tmp_path, served.key)
    assert json.loads(printed)["choices"][0]["message"]["content"].startswith("Rehearsal answer")
    check_lines((tmp_path / "results.jsonl").read_text())


@pytest.mark.parametrize("client", ["openai-python", "together-python"])
def test_python(served: Place, here: Path, client: str):
    answer, lines = ran([sys.executable, "-W", "error", "-c", pointed(served, client)], here, served.key).split("\n", 1)
    assert answer.startswith("Rehearsal answer")
    check_lines(lines.strip())


@pytest.mark.parametrize("client", ["openai-node", "together-ai (Node)"])
def test_node(served: Place, here: Path, node: Node, client: str):
    (here / "node_modules").symlink_to(node.folder / "node_modules")
    (here / "block.mjs").write_text(pointed(served, client))
    answer, lines = ran(["node", "block.mjs"], here, served.key).split("\n", 1)
    assert answer.startswith("Rehearsal answer")
    check_lines(lines.strip())
