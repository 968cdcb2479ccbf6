"""The tables, and why each looks as it does. `migrations/` makes them; nothing else issues DDL.

Hot and cold apart: `jobs` is narrow and holds only what is not finished; bodies (`file_parts`) and answers (`results`)
are written once and never updated, so a claim never drags a body along and does not slow down as results pile up.

Times are unix seconds (float) of the clock that the caller hands in. Identity ids stay inside; `public_id` is
what the outside sees.
"""

from typing import Any, Final

import sqlalchemy as sa

PREFIX: Final = "promptmill_"

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

#: 64 bits everywhere; SQLite only numbers rows by itself when the type is spelled INTEGER.
Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Seconds: "sa.Double[float]" = sa.Double()

#: A job leaves `jobs` when it finishes, so its number must never be handed out again.
_NEVER_REUSE_IDS: dict[str, Any] = {"sqlite_autoincrement": True}


#: Every row is updated by its claim and deleted soon after.
_HOT: dict[str, Any] = {
    "postgresql_with": {
        "fillfactor": 70,  # room for the claim's new row version on the same page
        "autovacuum_vacuum_scale_factor": 0.02,
        "autovacuum_vacuum_cost_delay": 0,
    }
}


def _identity() -> "sa.Column[int]":
    return sa.Column("id", Id, sa.Identity(), primary_key=True)


#: A named sequence of bytes: what a producer brought, or what an answer left (an audio file).
files = sa.Table(
    PREFIX + "files",
    metadata,
    _identity(),
    sa.Column("public_id", sa.Text, nullable=False, unique=True),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("parts", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("created_at", Seconds, nullable=False),
)

#: A file's content is the concatenation of its parts: one per line for batch input, 1 MiB slices for other content.
#: For a line, `form` says how a request body is made of it (jsonl.Form), and `custom_id` is the producer's name.
file_parts = sa.Table(
    PREFIX + "file_parts",
    metadata,
    sa.Column("file_id", Id, primary_key=True, autoincrement=False),
    sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("line", sa.Integer),
    sa.Column("custom_id", sa.Text),
    sa.Column("form", sa.Text),
    sa.Column("encoding", sa.SmallInteger, nullable=False, server_default="0"),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

#: A file that a line names (audio to transcribe): read and kept at intake, so that any worker can send it.
attachments = sa.Table(
    PREFIX + "attachments",
    metadata,
    sa.Column("file_id", Id, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("attached_id", Id, nullable=False),
)

#: Jobs submitted together. The counts move in the transaction that moves the jobs.
batches = sa.Table(
    PREFIX + "batches",
    metadata,
    _identity(),
    sa.Column("public_id", sa.Text, nullable=False, unique=True),
    sa.Column("file_id", Id, nullable=False, index=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("run_key", sa.Text, unique=True),  # what `run` finds its own batch by, when it is run again
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("defaults", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
    sa.Column("deadline", Seconds),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("created_at", Seconds, nullable=False),
    sa.Column("in_progress_at", Seconds),
    sa.Column("cancelling_at", Seconds),
    sa.Column("finished_at", Seconds),
    sa.Column("total", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("succeeded", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("failed", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("cancelled", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("expired", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("invalid", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("retried", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("reasoning_tokens", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False, server_default="0"),
    sa.Index("ix_promptmill_batches_active", "state", sqlite_where=sa.text("finished_at IS NULL"),
             postgresql_where=sa.text("finished_at IS NULL")),
)  # fmt: skip

#: Upstream x model: what is limited, paused and learned about.
lanes = sa.Table(
    PREFIX + "lanes",
    metadata,
    _identity(),
    sa.Column("upstream", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),  # why it is halted, in the upstream's words
    sa.Column("paused_until", Seconds),
    sa.Column("proven_at", Seconds),  # the first success
    sa.Column("completion_tokens", Seconds),  # learned: the mean length of an answer
    sa.UniqueConstraint("upstream", "model"),
)

#: Which lanes a batch has jobs on: what a claiming drain goes by, so that it never has to count.
batch_lanes = sa.Table(
    PREFIX + "batch_lanes",
    metadata,
    sa.Column("batch_id", Id, primary_key=True, autoincrement=False),
    sa.Column("lane_id", Id, primary_key=True, autoincrement=False),
    sa.Column("total", sa.BigInteger, nullable=False),
    sa.Index(None, "lane_id"),
)

#: The hot table: jobs that are not finished. Keep it narrow.
jobs = sa.Table(
    PREFIX + "jobs",
    metadata,
    _identity(),
    sa.Column("batch_id", Id, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("lane_id", Id, nullable=False),
    sa.Column("file_id", Id, nullable=False),
    sa.Column("part", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False, server_default="0"),  # raised by each claim: the fence
    sa.Column("worker_id", Id),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),  # those that count against max_attempts
    sa.Column("not_before", Seconds),
    sa.Column("deadline", Seconds),
    sa.Column("bytes", sa.Integer, nullable=False),  # of the request body
    sa.Column("tokens", sa.Integer, nullable=False),  # estimate for the prompt
    sa.Column("max_tokens", sa.Integer),
    sa.Index("uq_promptmill_jobs_batch_id_position", "batch_id", "position", unique=True),
    sa.Index("ix_promptmill_jobs_ready", "lane_id", "batch_id", "position",
             sqlite_where=sa.text("state = 'ready'"), postgresql_where=sa.text("state = 'ready'")),
    sa.Index("ix_promptmill_jobs_waiting", "not_before",
             sqlite_where=sa.text("state = 'waiting'"), postgresql_where=sa.text("state = 'waiting'")),
    sa.Index("ix_promptmill_jobs_running", "worker_id",
             sqlite_where=sa.text("state = 'running'"), postgresql_where=sa.text("state = 'running'")),
    sa.Index("ix_promptmill_jobs_deadline", "deadline",
             sqlite_where=sa.text("deadline IS NOT NULL"), postgresql_where=sa.text("deadline IS NOT NULL")),
    **_HOT,
    **_NEVER_REUSE_IDS,
)  # fmt: skip

#: The one committed outcome of a job. `id` is the order in which jobs finished.
results = sa.Table(
    PREFIX + "results",
    metadata,
    _identity(),
    sa.Column("batch_id", Id, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("job_id", Id, nullable=False),
    sa.Column("lane_id", Id, nullable=False),
    sa.Column("file_id", Id, nullable=False),
    sa.Column("part", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("finished_at", Seconds, nullable=False),
    sa.Column("status_code", sa.Integer),
    sa.Column("content_type", sa.Text),
    sa.Column("request_id", sa.Text),
    sa.Column("error_code", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("reasoning_tokens", sa.Integer, nullable=False),
    sa.Column("cached_tokens", sa.Integer, nullable=False),
    sa.Column("encoding", sa.SmallInteger, nullable=False),
    sa.Column("body", sa.LargeBinary),
    sa.Index("uq_promptmill_results_batch_id_position", "batch_id", "position", unique=True),
    **_NEVER_REUSE_IDS,
)

#: The ledger: one row for every upstream call. A claim leads to one call at most, so (job, epoch) names it.
attempts = sa.Table(
    PREFIX + "attempts",
    metadata,
    sa.Column("job_id", Id, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("batch_id", Id, nullable=False),
    sa.Column("worker_id", Id, nullable=False),
    sa.Column("started_at", Seconds),
    sa.Column("duration_seconds", Seconds),
    sa.Column("outcome", sa.Text, nullable=False),  # "succeeded" or an outcome.Reason
    sa.Column("counted", sa.Boolean, nullable=False),  # against max_attempts
    sa.Column("status_code", sa.Integer),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("request_id", sa.Text),
    sa.Column("message", sa.Text),
)

#: A process that claims. Its heartbeat is the lease of all its jobs.
workers = sa.Table(
    PREFIX + "workers",
    metadata,
    _identity(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("started_at", Seconds, nullable=False),
    sa.Column("heartbeat_at", Seconds, nullable=False),
    sa.Column("stopped_at", Seconds),
    sa.Column("in_flight", sa.Integer, nullable=False, server_default="0"),
    **_NEVER_REUSE_IDS,
)

#: Who may do a chore that one process at a time should do (upkeep).
leases = sa.Table(
    PREFIX + "leases",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("until", Seconds, nullable=False),
)
