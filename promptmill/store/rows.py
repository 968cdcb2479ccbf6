"""Small pieces that every store module uses: states as SQL, public ids."""

import secrets

import sqlalchemy as sa

from promptmill.job import BatchState, State
from promptmill.tables import batches, jobs


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
