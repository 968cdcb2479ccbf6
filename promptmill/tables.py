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
Number: "sa.Double[float]" = sa.Double()

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


#: The tenant of the command line and of a server without keys; the migration makes it.
DEFAULT_TENANT: Final = 1

#: Owner of API keys, and through them of files, batches and jobs.
tenants = sa.Table(
    PREFIX + "tenants",
    metadata,
    _identity(),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("created_at", Seconds, nullable=False),
    # Its share of a lane beside other tenants', and what all of its batches together may take of all lanes.
    sa.Column("weight", Number, nullable=False, server_default="1"),
    sa.Column("max_in_flight", sa.Integer),
    sa.Column("requests_per_minute", Number),
    sa.Column("tokens_per_minute", Number),
)

#: What opens the HTTP door. Only a digest of the secret is kept; `public_id` stands in the key and finds the row.
api_keys = sa.Table(
    PREFIX + "api_keys",
    metadata,
    _identity(),
    sa.Column("public_id", sa.Text, nullable=False, unique=True),
    sa.Column("tenant_id", Id, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("is_admin", sa.Boolean, nullable=False, server_default=sa.false()),  # may read what is of all tenants
    sa.Column("created_at", Seconds, nullable=False),
    sa.Column("revoked_at", Seconds),
)

#: A named sequence of bytes: what a producer brought, what an answer left (an audio file), or a view of a batch's
#: results. A purpose that begins with "_" is our own: nobody outside sees the file.
files = sa.Table(
    PREFIX + "files",
    metadata,
    _identity(),
    sa.Column("public_id", sa.Text, nullable=False, unique=True),
    sa.Column("tenant_id", Id, nullable=False, server_default=str(DEFAULT_TENANT)),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default="processed"),  # store.files.FileStatus
    sa.Column("status_details", sa.Text),
    sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("parts", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("batch_id", Id),  # whose results it shows
    sa.Column("view", sa.Text),  # which of them: "output" or "errors"
    sa.Column("created_at", Seconds, nullable=False),
    sa.Column("expires_at", Seconds),
    sa.Column("deleted_at", Seconds),  # gone for its owner; its parts go when no unfinished batch needs them
    sa.Index("uq_promptmill_files_batch_id_view", "batch_id", "view", unique=True),
    sa.Index("ix_promptmill_files_tenant_id", "tenant_id", "id"),
)

#: A file that arrives in more than one request: OpenAI's uploads, Together's PUT to an address of its own.
uploads = sa.Table(
    PREFIX + "uploads",
    metadata,
    _identity(),
    sa.Column("public_id", sa.Text, nullable=False, unique=True),
    sa.Column("tenant_id", Id, nullable=False),
    sa.Column("file_id", Id, nullable=False),
    sa.Column("token_digest", sa.Text),  # of the secret in the address that needs no key
    sa.Column("status", sa.Text, nullable=False),  # pending, completed, cancelled
    sa.Column("bytes", sa.BigInteger, nullable=False),  # as announced
    sa.Column("mime_type", sa.Text),
    sa.Column("checksum", sa.Text),  # SHA-256 in hex, as announced
    sa.Column("created_at", Seconds, nullable=False),
    sa.Column("expires_at", Seconds, nullable=False),
)

#: A piece of such a file; its content is a file of our own until the upload is complete.
upload_parts = sa.Table(
    PREFIX + "upload_parts",
    metadata,
    _identity(),
    sa.Column("public_id", sa.Text, nullable=False, unique=True),
    sa.Column("upload_id", Id, nullable=False, index=True),
    sa.Column("number", sa.Integer),
    sa.Column("file_id", Id, nullable=False),
    sa.Column("etag", sa.Text, nullable=False),
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
    sa.Column("tenant_id", Id, nullable=False, server_default=str(DEFAULT_TENANT)),
    sa.Column("file_id", Id, nullable=False, index=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("is_open", sa.Boolean, nullable=False, server_default=sa.false()),  # jobs may still be added
    sa.Column("is_inbox", sa.Boolean, nullable=False, server_default=sa.false()),  # holds jobs submitted singly
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
    # What its producer said of it, over HTTP.
    sa.Column("dialect", sa.Text),
    sa.Column("endpoint", sa.Text),
    sa.Column("completion_window", sa.Text),
    sa.Column("metadata", sa.Text),  # JSON
    sa.Column("output_expires_seconds", sa.Integer),
    sa.Column("errors", sa.Text),  # why it failed: JSON, a list of OpenAI's error objects
    # Who reads its lines in, and until when that is believed without another word.
    sa.Column("validator", sa.Text),
    sa.Column("validator_until", Seconds),
    sa.Column("results_after", sa.BigInteger, nullable=False, server_default="0"),  # its results' ids are above this
    # How it is handled beside others (handling.Handling).
    sa.Column("weight", Number, nullable=False, server_default="1"),
    sa.Column("max_in_flight", sa.Integer),
    sa.Column("requests_per_minute", Number),
    sa.Column("tokens_per_minute", Number),
    sa.Column("budget_tokens", sa.BigInteger),
    sa.Column("budget_cost", Number),
    sa.Column("canary", sa.Integer),
    sa.Column("canary_percent", Number, nullable=False, server_default="10"),
    sa.Column("canary_then", sa.Text, nullable=False, server_default="continue"),
    sa.Column("canary_until", sa.BigInteger),  # the last position of the canary, while it is not decided
    sa.Column("not_before", Seconds),
    sa.Column("aborts_calls", sa.Boolean, nullable=False, server_default=sa.false()),  # when it is cancelled
    sa.Index("ix_promptmill_batches_tenant_id", "tenant_id", "id"),
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
    sa.Column("halt_status", sa.Integer),  # and with which status it said so
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
    sa.Column("headers", sa.Text),  # JSON; kept for callers who wait for the answer itself
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
    sa.Column("waiting_for", sa.Text),  # JSON: lane id → what keeps more calls from starting
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

#: The ledger's sums, kept as it is written: counting a ledger of millions would take seconds.
lane_outcomes = sa.Table(
    PREFIX + "lane_outcomes",
    metadata,
    sa.Column("lane_id", Id, primary_key=True, autoincrement=False),
    sa.Column("outcome", sa.Text, primary_key=True),
    sa.Column("calls", sa.BigInteger, nullable=False),
    sa.Column("seconds", Seconds, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
)

#: How long answered calls took: how many took at most so long, and longer than the next smaller bound.
lane_latencies = sa.Table(
    PREFIX + "lane_latencies",
    metadata,
    sa.Column("lane_id", Id, primary_key=True, autoincrement=False),
    sa.Column("at_most_seconds", Seconds, primary_key=True, autoincrement=False),
    sa.Column("calls", sa.BigInteger, nullable=False),
)

#: What a lane has done lately, in buckets of sums.BUCKET_SECONDS: what foresight goes by.
lane_progress = sa.Table(
    PREFIX + "lane_progress",
    metadata,
    sa.Column("lane_id", Id, primary_key=True, autoincrement=False),
    sa.Column("bucket", sa.BigInteger, primary_key=True, autoincrement=False),  # unix seconds // BUCKET_SECONDS
    sa.Column("finished", sa.BigInteger, nullable=False),  # jobs
    sa.Column("calls", sa.BigInteger, nullable=False),  # that were answered
    sa.Column("seconds", Seconds, nullable=False),  # that these took together
)

#: What somebody stopped for a while: no call of it is started. Which thing, and its number (0 for everything).
pauses = sa.Table(
    PREFIX + "pauses",
    metadata,
    sa.Column("what", sa.Text, primary_key=True),  # store.pauses.What
    sa.Column("id", Id, primary_key=True, autoincrement=False),
    sa.Column("since", Seconds, nullable=False),
    sa.Column("reason", sa.Text),  # where promptmill itself did it: a canary, a budget
)

#: The last pause of a thing that is over: foresight does not take that time for slowness.
past_pauses = sa.Table(
    PREFIX + "past_pauses",
    metadata,
    sa.Column("what", sa.Text, primary_key=True),
    sa.Column("id", Id, primary_key=True, autoincrement=False),
    sa.Column("since", Seconds, nullable=False),
    sa.Column("until", Seconds, nullable=False),
)

#: Single jobs whose call somebody wants broken off, until they have ended.
aborts = sa.Table(
    PREFIX + "aborts",
    metadata,
    sa.Column("job_id", Id, primary_key=True, autoincrement=False),
    sa.Column("asked_at", Seconds, nullable=False),
)

#: What is submitted again and again, or once at a time (schedules.Schedule).
schedules = sa.Table(
    PREFIX + "schedules",
    metadata,
    _identity(),
    sa.Column("public_id", sa.Text, nullable=False, unique=True),
    sa.Column("tenant_id", Id, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("cron", sa.Text),
    sa.Column("at", Seconds),
    sa.Column("zone", sa.Text, nullable=False),
    sa.Column("starts_at", Seconds),
    sa.Column("ends_at", Seconds),
    sa.Column("missed", sa.Text, nullable=False),
    sa.Column("catch_up", sa.Integer, nullable=False),
    sa.Column("grace_seconds", Seconds, nullable=False),
    sa.Column("overlap", sa.Text, nullable=False),
    sa.Column("jitter_seconds", Seconds, nullable=False),
    sa.Column("is_enabled", sa.Boolean, nullable=False),
    sa.Column("decided_until", Seconds, nullable=False),  # which fires are decided: those up to this nominal time
    sa.Column("next_at", Seconds),  # when it has to be looked at again; NULL: never
    sa.Column("fires", sa.BigInteger, nullable=False, server_default="0"),  # that have a number
    # What is submitted.
    sa.Column("file_id", Id, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("has_templates", sa.Boolean, nullable=False),
    sa.Column("defaults", sa.Text, nullable=False),
    sa.Column("handling", sa.Text, nullable=False),  # handling.Handling as JSON
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("completion_window", sa.Text, nullable=False),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("dialect", sa.Text),
    sa.Column("endpoint", sa.Text),
    sa.Column("metadata", sa.Text),  # JSON
    sa.Column("created_at", Seconds, nullable=False),
    sa.Column("removed_at", Seconds),
    sa.Index("ix_promptmill_schedules_tenant_id", "tenant_id", "id"),
    sa.Index("ix_promptmill_schedules_next_at", "next_at"),
    sa.Index("uq_promptmill_schedules_tenant_id_name", "tenant_id", "name", unique=True,
             sqlite_where=sa.text("removed_at IS NULL"), postgresql_where=sa.text("removed_at IS NULL")),
)  # fmt: skip

#: What became of each fire. Schedule and nominal time name it, so it happens once.
schedule_fires = sa.Table(
    PREFIX + "schedule_fires",
    metadata,
    _identity(),
    sa.Column("schedule_id", Id, nullable=False),
    sa.Column("at", Seconds, nullable=False),  # nominal
    sa.Column("number", sa.BigInteger),  # 1 is the schedule's first that was carried out
    sa.Column("previous_at", Seconds),
    sa.Column("is_manual", sa.Boolean, nullable=False, server_default=sa.false()),  # somebody said "run now"
    sa.Column("state", sa.Text, nullable=False),  # store.schedules.FireState
    sa.Column("batch_id", Id),
    sa.Column("reason", sa.Text),  # why it was left out, or failed
    sa.Column("decided_at", Seconds, nullable=False),
    sa.Column("carried_out_at", Seconds),
    # Who makes its batch, and until when that is believed without another word.
    sa.Column("holder", sa.Text),
    sa.Column("holder_until", Seconds),
    sa.Index("uq_promptmill_schedule_fires_schedule_id_at", "schedule_id", "at", unique=True),
    sa.Index("ix_promptmill_schedule_fires_batch_id", "batch_id"),
    sa.Index("ix_promptmill_schedule_fires_open", "schedule_id", "at",
             sqlite_where=sa.text("state IN ('due', 'waiting')"),
             postgresql_where=sa.text("state IN ('due', 'waiting')")),
)  # fmt: skip

#: What is known of a job that was submitted by itself, and that its batch cannot tell.
job_notes = sa.Table(
    PREFIX + "job_notes",
    metadata,
    sa.Column("batch_id", Id, primary_key=True, autoincrement=False),
    sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("created_at", Seconds, nullable=False),
    sa.Column("metadata", sa.Text),  # JSON
)

#: A request that may be sent again: the key it came with, what it said, and what it made.
idempotency_keys = sa.Table(
    PREFIX + "idempotency_keys",
    metadata,
    sa.Column("tenant_id", Id, primary_key=True, autoincrement=False),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("resource", sa.Text),  # JSON; NULL while it is being made
    sa.Column("created_at", Seconds, nullable=False),
)

#: Callers who wait for an answer. One who goes away and sends the same again is given the answer that it left.
held_requests = sa.Table(
    PREFIX + "held_requests",
    metadata,
    _identity(),
    sa.Column("tenant_id", Id, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False, index=True),
    sa.Column("batch_id", Id, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("holder", sa.Text, nullable=False),  # the API process, and so whether anybody still waits
    sa.Column("created_at", Seconds, nullable=False),
    sa.Column("left_at", Seconds),
)
