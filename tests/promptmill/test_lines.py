"""From bytes to lines: nothing is lost in cutting them, however the bytes come."""

import itertools
import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.jsonl import DuplicateFinder, Line, LineCutter, read_lines
from tests.promptmill.request_lines import PIECES, ROOMY


def lines_of(*chunks: bytes, most: int = ROOMY) -> list[Line]:
    return list(read_lines(chunks, most))


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    edges = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return (data[a:b] for a, b in pairwise(edges))


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n", []),
        (b" \r\n\t\n", []),
        (b"\xef\xbb\xbf\n\n", []),
        (b"a", [(1, b"a")]),
        (b"a\n", [(1, b"a\n")]),
        (b"a\nb", [(1, b"a\n"), (2, b"b")]),
        (b"a\r\nb\r\n", [(1, b"a\r\n"), (2, b"b\r\n")]),
        (b"a\n\n \r\nb\n", [(1, b"a\n\n \r\n"), (4, b"b\n")]),
        (b"\n\n a\n", [(3, b"\n\n a\n")]),
        (b"\xef\xbb\xbfa\nb\n", [(1, b"\xef\xbb\xbfa\n"), (2, b"b\n")]),
        (b"\xef\xbb\xbf\na\n", [(2, b"\xef\xbb\xbf\na\n")]),
        (b"a\n\n\n", [(1, b"a\n\n\n")]),
        (b"a\n   ", [(1, b"a\n   ")]),
        (b"a\rb\n", [(1, b"a\rb\n")]),
        (b"a\x0b\x0c\x1c\x85b\n", [(1, b"a\x0b\x0c\x1c\x85b\n")]),
        (b"\x0b\n", [(1, b"\x0b\n")]),
        ("a\u2028b\n".encode(), [(1, "a\u2028b\n".encode())]),
    ],
)
def test_lines_are_cut_at_newlines_only_and_keep_what_is_blank(content, lines):
    assert [(line.number, line.data) for line in lines_of(content)] == lines
    one_by_one = lines_of(*(bytes([byte]) for byte in content))
    assert [(line.number, line.data) for line in one_by_one] == lines


@given(PIECES | st.binary(max_size=200), st.lists(st.integers(0, 300)))
def test_the_lines_together_are_the_content_however_it_is_cut(content, places):
    lines = lines_of(*cut(content, places))
    assert lines == lines_of(content)
    if content.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\n"):
        assert b"".join(line.data for line in lines) == content
    else:
        assert lines == []
    numbers = [line.number for line in lines]
    assert numbers == sorted(set(numbers))
    assert not any(line.too_long for line in lines)


@given(PIECES, st.lists(st.integers(0, 300)), st.integers(1, 30))
def test_no_line_is_longer_than_the_limit_says(content, places, most):
    expected: list[tuple[int, bytes]] = []
    before = b""
    for number, data in enumerate(re.findall(rb"[^\n]*\n|[^\n]+", content), 1):
        if len(data) > most or data.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").strip(b" \t\r\n"):
            expected.append((number, before + data))
            before = b""
        elif expected:
            expected[-1] = (expected[-1][0], expected[-1][1] + data)
        else:
            before += data
    assert lines_of(*cut(content, places), most=most) == [
        Line(number, data[:most], too_long=len(data) > most) for number, data in expected
    ]


def test_a_line_that_is_too_long_is_not_held():
    def endless() -> Iterator[bytes]:
        yield b"a\n"
        for _ in range(1_000):
            yield b"x" * 100_000
        yield b"x\nb\n"
        for _ in range(1_000):
            yield b"\n" * 1_000

    first, second, third = read_lines(endless(), 1_000)
    assert (first, second.number, second.too_long, len(second.data)) == (Line(1, b"a\n"), 2, True, 1_000)
    assert (third.number, third.too_long, len(third.data)) == (3, True, 1_000)


@given(st.binary(max_size=60), st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 20))
def test_a_cutter_gives_what_a_reader_gives(content: bytes, cuts: list[int], most: int):
    chunks, at = [], 0
    for cut in itertools.cycle(cuts):
        if at >= len(content):
            break
        chunks.append(content[at : at + cut])
        at += cut
    cutter = LineCutter(most)
    pushed = [line for chunk in chunks for line in cutter.feed(chunk)]
    assert cutter.open_bytes == len(content.rpartition(b"\n")[2])
    assert cutter.ended_lines == content.count(b"\n")
    assert [*pushed, *cutter.end()] == list(read_lines([content], most))
    assert list(cutter.end()) == []


# Duplicates


def test_duplicates_are_found():
    finder = DuplicateFinder()
    for line, custom_id in enumerate(["a", "b", "a", "c", "b", "a", ""], 1):
        finder.add(custom_id, line)
    assert sorted(finder.candidates()) == [(1, 3), (1, 6), (2, 5)]
    assert sorted(finder.candidates()) == [(1, 3), (1, 6), (2, 5)]


def test_no_duplicates_is_no_candidates():
    finder = DuplicateFinder()
    assert list(finder.candidates()) == []
    for line in range(10_000):
        finder.add(f"request-{line}", line)
    assert list(finder.candidates()) == []


@given(st.lists(st.text(max_size=2), max_size=200))
def test_every_duplicate_is_a_candidate(custom_ids):
    finder = DuplicateFinder()
    for line, custom_id in enumerate(custom_ids, 1):
        finder.add(custom_id, line)
    expected = {
        (custom_ids.index(custom_id) + 1, line)
        for line, custom_id in enumerate(custom_ids, 1)
        if custom_ids.index(custom_id) + 1 != line
    }
    assert set(finder.candidates()) == expected
