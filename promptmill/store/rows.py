"""Small pieces that every store module uses: states as SQL, public ids, how much is read at once."""

import re
import secrets
from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from promptmill.job import BatchState, State
from promptmill.tables import batches, jobs

_PUBLIC_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def in_state(*states: State) -> "sa.ColumnElement[bool]":
    """`jobs.state` is one of these, written as literals: only then does a partial index apply."""
    literals = [sa.literal_column(f"'{state}'", sa.Text) for state in states]
    # Not `IN (one)`: PostgreSQL takes that for the index too, SQLite does not.
    return sa.or_(*(jobs.c.state == literal for literal in literals))


def batch_in(*states: BatchState) -> "sa.ColumnElement[bool]":
    """`batches.state` is one of these."""
    return batches.c.state.in_(list(states))


def new_public_id(prefix: str) -> str:
    """`prefix` and 128 random bits: nobody guesses another tenant's."""
    return f"{prefix}{secrets.token_hex(16)}"


def is_public_id(text: str) -> bool:
    """May this be an id of ours? What may not (a NUL, a megabyte) need not bother the database."""
    return _PUBLIC_ID.fullmatch(text) is not None


def last_within(sizes: Sequence[tuple[int, int]], limit_bytes: int) -> int:
    """Up to which number things can be read together; the first one goes whatever its size."""
    last, room = sizes[0][0], limit_bytes - sizes[0][1]
    for number, size in sizes[1:]:
        room -= size
        if room < 0:
            break
        last = number
    return last
