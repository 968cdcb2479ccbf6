"""What is filled into a body, what stays, and that JSON comes out wherever JSON went in."""

import json
import tracemalloc
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.errors import UsageError
from promptmill.templates import NAMES, Fire, check, render

BERLIN = ZoneInfo("Europe/Berlin")
FIRE = Fire(
    schedule='the "daily" one',
    at=datetime(2026, 3, 29, 3, 0, tzinfo=BERLIN).timestamp(),
    zone=BERLIN,
    number=42,
    previous_at=datetime(2026, 3, 28, 2, 30, tzinfo=BERLIN).timestamp(),
)

VALUES = [
    ("fire_time", "2026-03-29T03:00:00+02:00"),
    ("date", "2026-03-29"),
    ("time", "03:00:00"),
    ("year", "2026"),
    ("month", "03"),
    ("day", "29"),
    ("weekday", "Sunday"),
    ("unix", "1774746000"),
    ("schedule", 'the "daily" one'),
    ("number", "42"),
    ("previous_fire_time", "2026-03-28T02:30:00+01:00"),
]


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_values(name, value):
    body = json.dumps({"content": f"on {{{{ {name} }}}}."}).encode()
    check(body)
    assert json.loads(render(body, FIRE)) == {"content": f"on {value}."}


def test_every_name_has_its_value_here():
    assert {name for name, _ in VALUES} == set(NAMES)


def test_the_first_fire_has_none_before_it_and_utc_is_z():
    fire = Fire(schedule="s", at=0.0, zone=ZoneInfo("UTC"), number=1)
    assert render(b'["{{previous_fire_time}}", "{{fire_time}}"]', fire) == b'["", "1970-01-01T00:00:00Z"]'


STAYS_OR_NOT = [
    ('"{{date}}"', '"2026-03-29"'),
    ('"{{   date\t}}"', '"2026-03-29"'),
    ('"{{date}}{{day}}"', '"2026-03-2929"'),
    ('"{{{{ date }}}}"', '"{{ date }}"'),
    ('"{{{{{{ date }}}}}}"', '"{{2026-03-29}}"'),
    ('"{{{ date }}}"', '"{2026-03-29}"'),
    ('"{"', '"{"'),
    ('"{ { date } }"', '"{ { date } }"'),
    ('"}} {{"', '"}} {{"'),
    ('"{{ }} {{}}"', '"{{ }} {{}}"'),
    ('"{{ 1 + 1 }}"', '"{{ 1 + 1 }}"'),
    ('"{{ date.year }}"', '"{{ date.year }}"'),
    ('"{% if %} {date} $date"', '"{% if %} {date} $date"'),
    ('{"a":{"b":{"c":{}}}}', '{"a":{"b":{"c":{}}}}'),  # braces of JSON itself
    ('{"a":[{"b":{"n": 1.50e+3}}]}', '{"a":[{"b":{"n": 1.50e+3}}]}'),
    ('{"{{date}}": 1}', '{"2026-03-29": 1}'),  # a key is a string
    (r'"\"{{date}}\\"', r'"\"2026-03-29\\"'),
    (r'"\\" , "{{date}}"', r'"\\" , "2026-03-29"'),
    (r'"\u007b{date}}"', r'"\u007b{date}}"'),  # an escaped brace is a way to write one that stays
    ('"{{ schedule }}"', r'"the \"daily\" one"'),
    ('"日本 {{ date }} \ud800"', '"日本 2026-03-29 \ud800"'),
]


@pytest.mark.parametrize(("body", "expected"), STAYS_OR_NOT)
def test_what_stays_as_it_is(body, expected):
    rendered = render(body.encode("utf-8", "surrogatepass"), FIRE)
    assert rendered == expected.encode("utf-8", "surrogatepass")


def test_an_unknown_name_is_an_error_that_names_the_known_ones():
    with pytest.raises(UsageError) as caught:
        check(b'{"content": "{{ fire_tmie }}"}')
    assert "{{ fire_tmie }} names nothing" in str(caught.value)
    assert all(name in str(caught.value) for name in NAMES)
    check(b'{"content": "{{{{ fire_tmie }}}}", "also": {"b": {}}}')


@pytest.mark.parametrize("text", ["x" * 3_000_000, "\\n" * 1_500_000, '{{ date }} "' * 200_000])
def test_a_body_of_megabytes_takes_little_more_memory_than_its_pieces(text):
    """A pattern that remembers where it could have gone on otherwise took 120 bytes for each."""
    body = json.dumps(["{{ number }}", text]).encode()
    tracemalloc.start()
    try:
        check(body)
        made = render(body, FIRE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert json.loads(made)[0] == str(FIRE.number)
    assert peak < 25 * len(body)


def test_what_is_filled_in_is_not_looked_at_again():
    fire = Fire(schedule="{{ number }} }}}} \\ \n", at=0.0, zone=BERLIN, number=1)
    assert json.loads(render(b'"{{ schedule }}"', fire)) == fire.schedule


_TEXT = st.text() | st.lists(
    st.sampled_from(["{", "}", "{{", "}}", " ", "date", "schedule", '"', "\\", "\n", "ü", "x", "{{ unix }}", "{{{{"])
).map("".join)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(_JSON, st.booleans(), st.sampled_from([None, 0, 2]), _TEXT)
def test_json_in_json_out(value, ascii_only, indent, name):
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    fire = Fire(schedule=name, at=FIRE.at, zone=BERLIN, number=7)
    rendered = json.loads(render(body, fire).decode("utf-8", "surrogatepass"))
    if not isinstance(value, dict):
        assert type(rendered) is type(value)


@given(_JSON, _TEXT)
def test_doubled_braces_are_a_way_to_send_any_text(value, text):
    doubled = text.replace("{{", "{{{{").replace("}}", "}}}}")
    body = json.dumps([value, doubled]).encode()
    try:
        check(json.dumps(doubled).encode())
    except UsageError:
        pytest.fail("what is doubled names nothing")
    assert json.loads(render(body, FIRE))[1] == text


@given(st.binary())
def test_what_is_no_json_does_no_harm(body):
    render(body, FIRE)


@given(_JSON)
def test_without_marks_no_byte_changes(value):
    body = json.dumps(value).replace("{{", "{ {").replace("}}", "} }").encode()
    assert render(body, FIRE) == body
