"""How Alembic runs our migrations: in the connection, and so in the transaction, of `atoll.store.database`."""

from alembic import context

from atoll.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
