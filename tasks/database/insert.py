"""Insert a row unless its natural key is there."""

from typing import Any

from sqlalchemy import literal
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from tasks.database.tables import Base


def insert_once(session: Session, table: type[Base], **values: Any) -> bool:
    """Insert a row, ignoring a conflict on any unique key; whether it was inserted. Read the row that is there next."""
    dialect = session.get_bind().dialect.name
    insert = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
    statement = insert.values(**values).on_conflict_do_nothing().returning(literal(1))
    return session.execute(statement).first() is not None
