"""The docs are true: what they name exists, what exists is named, and the README's commands run."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from typer.main import get_command

from api.app import create_app
from api.metrics import Traffic, _Collected
from cli.main import app
from promptmill import settings
from promptmill.job import BatchState, State
from promptmill.outcome import Reason
from promptmill.store.measures import Measures

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def console_blocks() -> list[str]:
    return re.findall(r"```console\n(.*?)```", README, re.DOTALL)


def commands(block: str) -> list[str]:
    return [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]


def test_every_make_target_of_the_readme_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for block in console_blocks() for line in commands(block) if line.startswith("make ")}
    assert named
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_every_command_and_flag_of_the_readme_exists():
    for line in (line for block in console_blocks() for line in commands(block)):
        words = shlex.split(line.rstrip("& "))
        if words[0] != "promptmill" or words[1] == "simulate":  # simulate's flags are its own parser's
            continue
        command = get_command(app).get_command(None, words[1])
        assert command is not None, line
        if subcommands := getattr(command, "commands", {}):
            command = subcommands[words[2]]
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= flags, line


def test_every_variable_is_documented_and_every_documented_one_is_read():
    read = set(re.findall(r'"(PROMPTMILL_[A-Z_]+)"', Path(settings.__file__).read_text()))
    named = set(re.findall(r"PROMPTMILL_[A-Z_]+", README))
    assert named == read


def test_the_settings_page_is_a_file_that_loads_and_names_every_setting(tmp_path):
    page = (ROOT / "docs" / "settings.md").read_text()
    (block,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "promptmill.toml"
    path.write_text(block)
    loaded = settings.load({"PROMPTMILL_CONFIG": str(path), "TOGETHER_API_KEY": "k"})
    assert loaded.upstreams[0].key == "k"
    table = tomllib.loads(block)
    (upstream,), (price,) = table.pop("upstream"), table.pop("price")
    assert set(price) == {f.name for f in fields(settings.PriceConfig)}
    assert set(upstream) - {"key_env"} == {f.name for f in fields(settings.UpstreamConfig)} - {"key", "key_source"}
    elsewhere = {"database_url", "redis_url", "upstreams", "prices"}
    assert set(table) == {f.name for f in fields(settings.Settings)} - elsewhere


@pytest.mark.parametrize("names", [State, BatchState, Reason], ids=lambda names: names.__name__)
def test_every_state_and_reason_has_its_line(names):
    page = (ROOT / "docs" / "states.md").read_text()
    assert {name.value for name in names} <= set(re.findall(r"`([a-z_]+)`", page))


def test_the_http_page_has_every_route_and_no_other():
    page = (ROOT / "docs" / "http.md").read_text()
    named = re.findall(r"^\| `([A-Z]+) (/\S*)` \|", page, re.MULTILINE)
    paths = create_app(settings.load({})).openapi()["paths"]
    there = [(method.upper(), path) for path, operations in paths.items() for method in operations]
    assert sorted(named) == sorted(there)


def test_the_http_page_has_every_metric_and_no_other():
    page = (ROOT / "docs" / "http.md").read_text()
    registry = CollectorRegistry()
    registry.register(_Collected(Measures(), 0.0))
    told = (generate_latest(registry) + generate_latest(Traffic().registry)).decode()
    there = re.findall(r"^# TYPE (\S+)", told, re.MULTILINE)
    assert sorted(re.findall(r"^\| `(promptmill_\w+)` \|", page, re.MULTILINE)) == sorted(there)


def test_the_http_page_has_every_error_code():
    page = (ROOT / "docs" / "http.md").read_text()
    sources = "".join(path.read_text() for path in sorted((ROOT / "api").rglob("*.py")))
    codes = set(re.findall(r'\bcode="(\w+)"', sources))
    assert codes
    assert codes <= set(re.findall(r"`(\w+)`", page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_into_pages_lead_to_a_heading(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        headings = re.findall(r"^#+ (.*)$", (page.parent / target if target else page).read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in anchors, f"{page.name} links to {target}#{anchor}"


def test_the_readmes_commands_run(tmp_path):
    (block,) = [block for block in console_blocks() if "simulate" in block]
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "promptmill").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m cli "$@"\n')
    (bin_folder / "promptmill").chmod(0o755)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTMILL_")}
    env = {**clean, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    simulate, *rest = commands(block)
    server = subprocess.Popen(
        shlex.split(simulate.rstrip("& ").replace("8123", "0")),
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = re.search(r":(\d+)/v1", server.stdout.readline())[1]
        for line in rest:
            done = subprocess.run(
                shlex.split(line.replace("8123", port)), cwd=tmp_path, env=env, capture_output=True, text=True,
                timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{line}\n{done.stderr}"
    finally:
        server.terminate()
        server.communicate(timeout=10)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 20
    assert (tmp_path / "answers.csv").read_text().count("\n") >= 21
