"""Runs migrations on the connection, and in the transaction, of whoever asks for them."""

from alembic import context

from tallrec.serve.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,  # SQLite changes a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
