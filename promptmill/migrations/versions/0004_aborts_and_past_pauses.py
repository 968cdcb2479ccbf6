"""Calls of single jobs that somebody wants broken off; and when what is paused no more was paused last."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TABLES = ("aborts", "past_pauses")


def upgrade() -> None:
    op.create_table(
        "promptmill_past_pauses",
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("id", _ID, autoincrement=False, nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("what", "id", name="pk_promptmill_past_pauses"),
    )
    op.create_table(
        "promptmill_aborts",
        sa.Column("job_id", _ID, autoincrement=False, nullable=False),
        sa.Column("asked_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_promptmill_aborts"),
    )


def downgrade() -> None:
    for table in _TABLES:
        op.drop_table(f"promptmill_{table}")
