"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "promptmill_attachments",
        sa.Column("file_id", _ID, autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("attached_id", _ID, nullable=False),
        sa.PrimaryKeyConstraint("file_id", "name", name="pk_promptmill_attachments"),
    )
    op.create_table(
        "promptmill_attempts",
        sa.Column("job_id", _ID, autoincrement=False, nullable=False),
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("batch_id", _ID, nullable=False),
        sa.Column("worker_id", _ID, nullable=False),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("duration_seconds", sa.Double(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("counted", sa.Boolean(), nullable=False),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("job_id", "epoch", name="pk_promptmill_attempts"),
    )
    op.create_table(
        "promptmill_batch_lanes",
        sa.Column("batch_id", _ID, autoincrement=False, nullable=False),
        sa.Column("lane_id", _ID, autoincrement=False, nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "lane_id", name="pk_promptmill_batch_lanes"),
    )
    op.create_index("ix_promptmill_batch_lanes_lane_id", "promptmill_batch_lanes", ["lane_id"], unique=False)
    op.create_table(
        "promptmill_batches",
        sa.Column("id", _ID, sa.Identity(always=False), nullable=False),
        sa.Column("public_id", sa.Text(), nullable=False),
        sa.Column("file_id", _ID, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("run_key", sa.Text(), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("defaults", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("deadline", sa.Double(), nullable=True),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("in_progress_at", sa.Double(), nullable=True),
        sa.Column("cancelling_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("total", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("succeeded", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("failed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cancelled", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("expired", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("invalid", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("retried", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_promptmill_batches"),
        sa.UniqueConstraint("public_id", name="uq_promptmill_batches_public_id"),
        sa.UniqueConstraint("run_key", name="uq_promptmill_batches_run_key"),
    )
    op.create_index(
        "ix_promptmill_batches_active",
        "promptmill_batches",
        ["state"],
        unique=False,
        sqlite_where=sa.text("finished_at IS NULL"),
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.create_index("ix_promptmill_batches_file_id", "promptmill_batches", ["file_id"], unique=False)
    op.create_table(
        "promptmill_file_parts",
        sa.Column("file_id", _ID, autoincrement=False, nullable=False),
        sa.Column("part", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("line", sa.Integer(), nullable=True),
        sa.Column("custom_id", sa.Text(), nullable=True),
        sa.Column("form", sa.Text(), nullable=True),
        sa.Column("encoding", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("file_id", "part", name="pk_promptmill_file_parts"),
    )
    op.create_table(
        "promptmill_files",
        sa.Column("id", _ID, sa.Identity(always=False), nullable=False),
        sa.Column("public_id", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("parts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_promptmill_files"),
        sa.UniqueConstraint("public_id", name="uq_promptmill_files_public_id"),
    )
    op.create_table(
        "promptmill_jobs",
        sa.Column("id", _ID, sa.Identity(always=False), nullable=False),
        sa.Column("batch_id", _ID, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("lane_id", _ID, nullable=False),
        sa.Column("file_id", _ID, nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), server_default="0", nullable=False),
        sa.Column("worker_id", _ID, nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("not_before", sa.Double(), nullable=True),
        sa.Column("deadline", sa.Double(), nullable=True),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("max_tokens", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_promptmill_jobs"),
        postgresql_with={"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.02, "autovacuum_vacuum_cost_delay": 0},
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_promptmill_jobs_deadline",
        "promptmill_jobs",
        ["deadline"],
        unique=False,
        sqlite_where=sa.text("deadline IS NOT NULL"),
        postgresql_where=sa.text("deadline IS NOT NULL"),
    )
    op.create_index(
        "ix_promptmill_jobs_ready",
        "promptmill_jobs",
        ["lane_id", "batch_id", "position"],
        unique=False,
        sqlite_where=sa.text("state = 'ready'"),
        postgresql_where=sa.text("state = 'ready'"),
    )
    op.create_index(
        "ix_promptmill_jobs_running",
        "promptmill_jobs",
        ["worker_id"],
        unique=False,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index(
        "ix_promptmill_jobs_waiting",
        "promptmill_jobs",
        ["not_before"],
        unique=False,
        sqlite_where=sa.text("state = 'waiting'"),
        postgresql_where=sa.text("state = 'waiting'"),
    )
    op.create_index("uq_promptmill_jobs_batch_id_position", "promptmill_jobs", ["batch_id", "position"], unique=True)
    op.create_table(
        "promptmill_lanes",
        sa.Column("id", _ID, sa.Identity(always=False), nullable=False),
        sa.Column("upstream", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("paused_until", sa.Double(), nullable=True),
        sa.Column("proven_at", sa.Double(), nullable=True),
        sa.Column("completion_tokens", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_promptmill_lanes"),
        sa.UniqueConstraint("upstream", "model", name="uq_promptmill_lanes_upstream_model"),
    )
    op.create_table(
        "promptmill_leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_promptmill_leases"),
    )
    op.create_table(
        "promptmill_results",
        sa.Column("id", _ID, sa.Identity(always=False), nullable=False),
        sa.Column("batch_id", _ID, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("job_id", _ID, nullable=False),
        sa.Column("lane_id", _ID, nullable=False),
        sa.Column("file_id", _ID, nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=False),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("content_type", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("reasoning_tokens", sa.Integer(), nullable=False),
        sa.Column("cached_tokens", sa.Integer(), nullable=False),
        sa.Column("encoding", sa.SmallInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_promptmill_results"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "uq_promptmill_results_batch_id_position", "promptmill_results", ["batch_id", "position"], unique=True
    )
    op.create_table(
        "promptmill_workers",
        sa.Column("id", _ID, sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("heartbeat_at", sa.Double(), nullable=False),
        sa.Column("stopped_at", sa.Double(), nullable=True),
        sa.Column("in_flight", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_promptmill_workers"),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    for name in (
        "attachments", "attempts", "batch_lanes", "batches", "file_parts", "files", "jobs", "lanes", "leases",
        "results", "workers",
    ):  # fmt: skip
        op.drop_table(f"promptmill_{name}")
