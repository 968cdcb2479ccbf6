"""What schedules and control need: pauses, weights, caps, budgets and canaries, fires, what lanes did lately."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

#: Table → its new columns. All may be NULL or have a constant default, so no table is written anew.
_NEW_COLUMNS = {
    "tenants": (
        sa.Column("weight", sa.Double(), server_default="1", nullable=False),
        sa.Column("max_in_flight", sa.Integer(), nullable=True),
        sa.Column("requests_per_minute", sa.Double(), nullable=True),
        sa.Column("tokens_per_minute", sa.Double(), nullable=True),
    ),
    "batches": (
        sa.Column("weight", sa.Double(), server_default="1", nullable=False),
        sa.Column("max_in_flight", sa.Integer(), nullable=True),
        sa.Column("requests_per_minute", sa.Double(), nullable=True),
        sa.Column("tokens_per_minute", sa.Double(), nullable=True),
        sa.Column("budget_tokens", sa.BigInteger(), nullable=True),
        sa.Column("budget_cost", sa.Double(), nullable=True),
        sa.Column("canary", sa.Integer(), nullable=True),
        sa.Column("canary_percent", sa.Double(), server_default="10", nullable=False),
        sa.Column("canary_then", sa.Text(), server_default="continue", nullable=False),
        sa.Column("canary_until", sa.BigInteger(), nullable=True),
        sa.Column("not_before", sa.Double(), nullable=True),
        sa.Column("aborts_calls", sa.Boolean(), server_default=sa.false(), nullable=False),
    ),
}

_TABLES = ("lane_progress", "pauses", "schedule_fires", "schedules")
_NOT_REMOVED = sa.text("removed_at IS NULL")
_OPEN_FIRES = sa.text("state IN ('due', 'waiting')")


def upgrade() -> None:
    for table, columns in _NEW_COLUMNS.items():
        for column in columns:
            op.add_column(f"promptmill_{table}", column)
    op.create_table(
        "promptmill_lane_progress",
        sa.Column("lane_id", _ID, autoincrement=False, nullable=False),
        sa.Column("bucket", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("finished", sa.BigInteger(), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("lane_id", "bucket", name="pk_promptmill_lane_progress"),
    )
    op.create_table(
        "promptmill_pauses",
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("id", _ID, autoincrement=False, nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("what", "id", name="pk_promptmill_pauses"),
    )
    _schedules()
    _fires()


def downgrade() -> None:
    for name in _TABLES:
        op.drop_table(f"promptmill_{name}")
    for table, columns in _NEW_COLUMNS.items():
        with op.batch_alter_table(f"promptmill_{table}") as altered:
            for column in columns:
                altered.drop_column(column.name)


def _schedules() -> None:
    op.create_table(
        "promptmill_schedules",
        sa.Column("id", _ID, sa.Identity(always=False), nullable=False),
        sa.Column("public_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", _ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("cron", sa.Text(), nullable=True),
        sa.Column("at", sa.Double(), nullable=True),
        sa.Column("zone", sa.Text(), nullable=False),
        sa.Column("starts_at", sa.Double(), nullable=True),
        sa.Column("ends_at", sa.Double(), nullable=True),
        sa.Column("missed", sa.Text(), nullable=False),
        sa.Column("catch_up", sa.Integer(), nullable=False),
        sa.Column("grace_seconds", sa.Double(), nullable=False),
        sa.Column("overlap", sa.Text(), nullable=False),
        sa.Column("jitter_seconds", sa.Double(), nullable=False),
        sa.Column("is_enabled", sa.Boolean(), nullable=False),
        sa.Column("decided_until", sa.Double(), nullable=False),
        sa.Column("next_at", sa.Double(), nullable=True),
        sa.Column("fires", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("file_id", _ID, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("has_templates", sa.Boolean(), nullable=False),
        sa.Column("defaults", sa.Text(), nullable=False),
        sa.Column("handling", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("completion_window", sa.Text(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("dialect", sa.Text(), nullable=True),
        sa.Column("endpoint", sa.Text(), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("removed_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_promptmill_schedules"),
        sa.UniqueConstraint("public_id", name="uq_promptmill_schedules_public_id"),
    )
    op.create_index("ix_promptmill_schedules_tenant_id", "promptmill_schedules", ["tenant_id", "id"])
    op.create_index("ix_promptmill_schedules_next_at", "promptmill_schedules", ["next_at"])
    op.create_index(
        "uq_promptmill_schedules_tenant_id_name", "promptmill_schedules", ["tenant_id", "name"], unique=True,
        sqlite_where=_NOT_REMOVED, postgresql_where=_NOT_REMOVED,
    )  # fmt: skip


def _fires() -> None:
    op.create_table(
        "promptmill_schedule_fires",
        sa.Column("id", _ID, sa.Identity(always=False), nullable=False),
        sa.Column("schedule_id", _ID, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=True),
        sa.Column("previous_at", sa.Double(), nullable=True),
        sa.Column("is_manual", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("batch_id", _ID, nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("decided_at", sa.Double(), nullable=False),
        sa.Column("carried_out_at", sa.Double(), nullable=True),
        sa.Column("holder", sa.Text(), nullable=True),
        sa.Column("holder_until", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_promptmill_schedule_fires"),
    )
    op.create_index(
        "uq_promptmill_schedule_fires_schedule_id_at", "promptmill_schedule_fires", ["schedule_id", "at"], unique=True
    )
    op.create_index("ix_promptmill_schedule_fires_batch_id", "promptmill_schedule_fires", ["batch_id"])
    op.create_index(
        "ix_promptmill_schedule_fires_open", "promptmill_schedule_fires", ["schedule_id", "at"],
        sqlite_where=_OPEN_FIRES, postgresql_where=_OPEN_FIRES,
    )  # fmt: skip
