"""Flags are read once, and what cannot be is said in words."""

import math

import pytest

from cli.simulate.__main__ import config_of, parser
from cli.simulate.config import SimulateConfig, parse_fault, parse_faults, parse_latency
from cli.simulate.faults import BadFlagError
from promptmill.errors import UsageError


@pytest.mark.parametrize(
    ("text", "range_"), [("0.5", (0.5, 0.5)), ("0.2-3", (0.2, 3.0)), ("2", (2, 2)), (".5-1.", (0.5, 1)), ("0", (0, 0))]
)
def test_latency(text, range_):
    assert parse_latency(text) == range_


@pytest.mark.parametrize("text", ["", "fast", "-1", "3-0.2", "1-2-3", "1e3"])
def test_latency_that_is_none(text):
    with pytest.raises(BadFlagError, match="latency"):
        parse_latency(text)


@pytest.mark.parametrize(
    ("text", "fault"), [("503=5", ("503", 5)), ("reset=0.5", ("reset", 0.5)), ("Hang=100%", ("hang", 100))]
)
def test_fault(text, fault):
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("503", "NAME=PERCENT"),
        ("503=", "NAME=PERCENT"),
        ("503=many", "NAME=PERCENT"),
        ("503=-1", "0 to 100"),
        ("503=101", "0 to 100"),
        ("200=5", "400 to 599"),
        ("boom=5", "one of reset, close"),
    ],
)
def test_fault_that_is_none(text, says):
    with pytest.raises(BadFlagError, match=says):
        parse_fault(text)


def test_faults_cannot_be_more_than_all_calls():
    assert parse_faults(["503=60", "reset=40"]) == {"503": 60, "reset": 40}
    with pytest.raises(BadFlagError, match="add up to 110"):
        parse_faults(["503=60", "reset=50"])


def test_a_bad_flag_is_a_usage_error_and_a_value_error():
    assert issubclass(BadFlagError, UsageError)
    assert issubclass(BadFlagError, ValueError)


@pytest.mark.parametrize(
    "setting",
    [
        {"latency_seconds": (2, 1)},
        {"latency_seconds": (0, math.inf)},
        {"requests_per_minute": 0},
        {"tokens_per_minute": -5},
        {"max_concurrency": 0},
        {"burst_seconds": -1},
        {"answer_tokens": (0, 4)},
        {"faults": {"boom": 1}},
        {"faults": {"503": "many"}},
    ],
)
def test_settings_that_cannot_be(setting):
    with pytest.raises(BadFlagError):
        SimulateConfig(**setting)


def test_the_process_takes_every_setting():
    flags = (
        "--port 0 --latency 0.1-0.2 --rpm 600 --tpm 9000 --burst-seconds 2 --window strict --max-concurrency 3 "
        "--fault 503=5 --fault reset=1 --hang-seconds 9 --drip-seconds 0.01 --retry-after 2 --seed 7 --api-key k "
        "--model a/* --model b --rate-limit-headers openai --answer-tokens 5-6 --host 127.0.0.2"
    )
    assert config_of(parser().parse_args(flags.split())) == SimulateConfig(
        host="127.0.0.2",
        port=0,
        latency_seconds=(0.1, 0.2),
        requests_per_minute=600,
        tokens_per_minute=9000,
        burst_seconds=2,
        window="strict",
        max_concurrency=3,
        faults={"503": 5, "reset": 1},
        hang_seconds=9,
        drip_seconds=0.01,
        retry_after_seconds=2,
        seed=7,
        api_key="k",
        models=("a/*", "b"),
        rate_limit_headers="openai",
        answer_tokens=(5, 6),
    )


def test_no_flags_are_the_defaults():
    assert config_of(parser().parse_args([])) == SimulateConfig()
