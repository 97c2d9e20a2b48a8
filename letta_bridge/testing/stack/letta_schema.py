"""Creates the tables of the pinned Letta server in an empty database; run by the Python of its environment.

Letta's Alembic migrations are not in its wheel, so the tables come from its models. The models lack one thing
that the migrations make: the sequence behind ``messages.sequence_id``, without which no agent can be created.
No Alembic version is written: such a database serves tests and demos and can never be migrated.
"""

import importlib
import sys
from typing import Any


def main(url: str) -> None:
    """``url``: ``postgresql://user:password@host:port/database`` of a user that may create extensions."""
    sqlalchemy: Any = importlib.import_module("sqlalchemy")
    metadata = importlib.import_module("letta.orm").Base.metadata
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+pg8000://", 1))
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("create extension if not exists vector"))
        metadata.create_all(connection)
        connection.execute(sqlalchemy.text("create sequence if not exists message_seq_id"))
        default = "alter table messages alter column sequence_id set default nextval('message_seq_id')"
        connection.execute(sqlalchemy.text(default))
    engine.dispose()


if __name__ == "__main__":
    main(sys.argv[1])
