"""Run by Alembic for every command; the connection comes from `promptmill.schema`, never from a configuration file."""

from alembic import context

from promptmill.tables import PREFIX, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=PREFIX + "schema",
    render_as_batch=True,  # SQLite alters a table by making it anew
)
with context.begin_transaction():
    context.run_migrations()
