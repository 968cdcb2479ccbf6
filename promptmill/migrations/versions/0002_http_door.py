"""What the HTTP door needs: tenants and their keys, uploads, requests that may be sent again, sums for metrics."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

#: Table → its new columns. All may be NULL or have a constant default, so no table is written anew.
_NEW_COLUMNS = {
    "files": (
        sa.Column("tenant_id", _ID, server_default="1", nullable=False),
        sa.Column("status", sa.Text(), server_default="processed", nullable=False),
        sa.Column("status_details", sa.Text(), nullable=True),
        sa.Column("batch_id", _ID, nullable=True),
        sa.Column("view", sa.Text(), nullable=True),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("deleted_at", sa.Double(), nullable=True),
    ),
    "batches": (
        sa.Column("tenant_id", _ID, server_default="1", nullable=False),
        sa.Column("is_open", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("is_inbox", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("dialect", sa.Text(), nullable=True),
        sa.Column("endpoint", sa.Text(), nullable=True),
        sa.Column("completion_window", sa.Text(), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=True),
        sa.Column("output_expires_seconds", sa.Integer(), nullable=True),
        sa.Column("errors", sa.Text(), nullable=True),
        sa.Column("validator", sa.Text(), nullable=True),
        sa.Column("validator_until", sa.Double(), nullable=True),
        sa.Column("results_after", sa.BigInteger(), server_default="0", nullable=False),
    ),
    "lanes": (sa.Column("halt_status", sa.Integer(), nullable=True),),
    "results": (sa.Column("headers", sa.Text(), nullable=True),),
    "workers": (sa.Column("waiting_for", sa.Text(), nullable=True),),
}

_TABLES = (
    "api_keys", "held_requests", "idempotency_keys", "job_notes", "lane_latencies", "lane_outcomes", "tenants",
    "upload_parts", "uploads",
)  # fmt: skip


def upgrade() -> None:
    _tenants()
    for table, columns in _NEW_COLUMNS.items():
        for column in columns:
            op.add_column(f"promptmill_{table}", column)
    op.create_index("uq_promptmill_files_batch_id_view", "promptmill_files", ["batch_id", "view"], unique=True)
    op.create_index("ix_promptmill_files_tenant_id", "promptmill_files", ["tenant_id", "id"])
    op.create_index("ix_promptmill_batches_tenant_id", "promptmill_batches", ["tenant_id", "id"])
    _uploads()
    _requests()
    _sums()


def downgrade() -> None:
    for table, columns in _NEW_COLUMNS.items():
        with op.batch_alter_table(f"promptmill_{table}") as altered:
            if table == "files":
                altered.drop_index("uq_promptmill_files_batch_id_view")
            if table in ("files", "batches"):
                altered.drop_index(f"ix_promptmill_{table}_tenant_id")
            for column in columns:
                altered.drop_column(column.name)
    for name in _TABLES:
        op.drop_table(f"promptmill_{name}")


def _tenants() -> None:
    tenants = op.create_table(
        "promptmill_tenants",
        sa.Column("id", _ID, sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_promptmill_tenants"),
        sa.UniqueConstraint("name", name="uq_promptmill_tenants_name"),
    )
    # The first number is 1: the tenant of the command line, and of a server without keys.
    op.execute(sa.insert(tenants).values(name="default", created_at=0.0))
    op.create_table(
        "promptmill_api_keys",
        sa.Column("id", _ID, sa.Identity(always=False), nullable=False),
        sa.Column("public_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", _ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("is_admin", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_promptmill_api_keys"),
        sa.UniqueConstraint("public_id", name="uq_promptmill_api_keys_public_id"),
    )


def _uploads() -> None:
    op.create_table(
        "promptmill_uploads",
        sa.Column("id", _ID, sa.Identity(always=False), nullable=False),
        sa.Column("public_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", _ID, nullable=False),
        sa.Column("file_id", _ID, nullable=False),
        sa.Column("token_digest", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("mime_type", sa.Text(), nullable=True),
        sa.Column("checksum", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_promptmill_uploads"),
        sa.UniqueConstraint("public_id", name="uq_promptmill_uploads_public_id"),
    )
    op.create_table(
        "promptmill_upload_parts",
        sa.Column("id", _ID, sa.Identity(always=False), nullable=False),
        sa.Column("public_id", sa.Text(), nullable=False),
        sa.Column("upload_id", _ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("file_id", _ID, nullable=False),
        sa.Column("etag", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_promptmill_upload_parts"),
        sa.UniqueConstraint("public_id", name="uq_promptmill_upload_parts_public_id"),
    )
    op.create_index("ix_promptmill_upload_parts_upload_id", "promptmill_upload_parts", ["upload_id"])


def _requests() -> None:
    op.create_table(
        "promptmill_job_notes",
        sa.Column("batch_id", _ID, autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("batch_id", "position", name="pk_promptmill_job_notes"),
    )
    op.create_table(
        "promptmill_idempotency_keys",
        sa.Column("tenant_id", _ID, autoincrement=False, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("resource", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "key", name="pk_promptmill_idempotency_keys"),
    )
    op.create_table(
        "promptmill_held_requests",
        sa.Column("id", _ID, sa.Identity(always=False), nullable=False),
        sa.Column("tenant_id", _ID, nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("batch_id", _ID, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("left_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_promptmill_held_requests"),
    )
    op.create_index("ix_promptmill_held_requests_fingerprint", "promptmill_held_requests", ["fingerprint"])


def _sums() -> None:
    op.create_table(
        "promptmill_lane_outcomes",
        sa.Column("lane_id", _ID, autoincrement=False, nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("lane_id", "outcome", name="pk_promptmill_lane_outcomes"),
    )
    op.create_table(
        "promptmill_lane_latencies",
        sa.Column("lane_id", _ID, autoincrement=False, nullable=False),
        sa.Column("at_most_seconds", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("lane_id", "at_most_seconds", name="pk_promptmill_lane_latencies"),
    )
