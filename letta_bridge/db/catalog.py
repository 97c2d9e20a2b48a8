"""What tables a database really has, read from its own catalog: what backup and restore go by."""

import sqlite3
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from mautrix.util.async_db import Scheme

from .database import Connection, Reader
from .sqlite import ThreadConnection, drive
from .upgrades import UPGRADES, make_v1, make_v2

VERSION_TABLE = UPGRADES.version_table_name
NEWEST = len(UPGRADES.upgrades)
"""The schema that this program works on."""

MAKE = {1: make_v1, 2: cast(Callable[[Any, Scheme], Awaitable[Any]], make_v2)}
"""How an empty database gets the schema of a version. Every version that a backup can be of has its own."""

OF_THE_PROCESS = frozenset(("lane", "replica"))
"""Tables that say which running process does what: meaningless anywhere else and at any other time."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a live database.

    ``counter`` is the column that the database numbers by itself (``""``: none), ``last`` the number given last.
    """

    name: str
    columns: tuple[str, ...]
    types: tuple[str, ...]
    counter: str = ""
    last: int = 0


@cache
def known_tables() -> frozenset[str]:
    """The names of all tables that any version of the schema has: no other table is ever touched."""
    names = {VERSION_TABLE}
    for make in MAKE.values():
        conn = sqlite3.connect(":memory:")
        try:
            drive(make(ThreadConnection(conn), Scheme.SQLITE))
            rows = conn.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
            names.update(str(row[0]) for row in rows)
        finally:
            conn.close()
    return frozenset(names)


async def present(conn: Reader, postgres: bool) -> set[str]:
    """Which of the known tables the database has."""
    query = (
        "SELECT relname AS name FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
        if postgres
        else "SELECT name FROM sqlite_master WHERE type = 'table'"
    )
    return {str(row["name"]) for row in await conn.fetch(query)} & known_tables()


async def schema_version(conn: Reader) -> int:
    """The version that is written down; 0 when none is. The table must be there."""
    return int(await conn.fetchval(f"SELECT COALESCE(MAX(version), 0) FROM {VERSION_TABLE}"))


async def tables(conn: Reader, postgres: bool) -> list[Table]:
    """The tables whose rows a backup carries, each after those that it refers to."""
    names = sorted(await present(conn, postgres) - OF_THE_PROCESS - {VERSION_TABLE})
    look = _postgres_table if postgres else _sqlite_table
    found: dict[str, tuple[Table, set[str]]] = {name: await look(conn, name) for name in names}
    ordered: list[Table] = []
    while found:
        ready = [name for name, (_, refers) in found.items() if not refers & (found.keys() - {name})]
        assert ready, "tables that refer to each other in a circle cannot be filled one after the other"
        ordered += [found.pop(name)[0] for name in ready]
    return ordered


async def _sqlite_table(conn: Reader, name: str) -> tuple[Table, set[str]]:
    rows = await conn.fetch(f"PRAGMA table_info({name})")
    sql = str(await conn.fetchval("SELECT sql FROM sqlite_master WHERE name = $1", name))
    counter, last = "", 0
    if "AUTOINCREMENT" in sql.upper():
        counter = next(str(row["name"]) for row in rows if row["pk"])
        last = int(await conn.fetchval("SELECT COALESCE(MAX(seq), 0) FROM sqlite_sequence WHERE name = $1", name))
    refers = {str(row["table"]) for row in await conn.fetch(f"PRAGMA foreign_key_list({name})")}
    columns = tuple(str(row["name"]) for row in rows)
    return Table(name, columns, tuple(str(row["type"]).lower() for row in rows), counter, last), refers


async def _postgres_table(conn: Reader, name: str) -> tuple[Table, set[str]]:
    rows = await conn.fetch(
        "SELECT attname AS name, format_type(atttypid, NULL) AS type, "
        "pg_get_serial_sequence(quote_ident($1), attname) AS sequence FROM pg_attribute "
        "WHERE attrelid = quote_ident($1)::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        name,
    )
    counter, last = "", 0
    for row in rows:
        if row["sequence"] is not None:
            counter = str(row["name"])
            # a sequence that was never used says 1 and that 1 was not given yet
            last = int(
                await conn.fetchval(f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {row['sequence']}")
            )
    referred = await conn.fetch(
        "SELECT confrelid::regclass::text AS name FROM pg_constraint "
        "WHERE contype = 'f' AND conrelid = quote_ident($1)::regclass",
        name,
    )
    columns = tuple(str(row["name"]) for row in rows)
    table = Table(name, columns, tuple(str(row["type"]) for row in rows), counter, last)
    return table, {str(row["name"]).rpartition(".")[2].strip('"') for row in referred}


async def set_counter(conn: Connection, postgres: bool, table: Table, last: int) -> None:
    """Let the next number that the database gives in ``table`` be above ``last`` and above every row's."""
    highest = int(await conn.fetchval(f"SELECT COALESCE(MAX({table.counter}), 0) FROM {table.name}"))
    last = max(last, highest)
    if not last:
        return
    if postgres:
        await conn.fetchval(
            "SELECT setval(pg_get_serial_sequence(quote_ident($1), $2), $3)", table.name, table.counter, last
        )
        return
    await conn.execute("DELETE FROM sqlite_sequence WHERE name = $1", table.name)
    await conn.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ($1, $2)", table.name, last)


def in_order(names: Iterable[str], order: Iterable[Table]) -> list[str]:
    """``names`` so that each comes before what it refers to: the order in which tables can be dropped."""
    place = {table.name: number for number, table in enumerate(order)}
    return sorted(names, key=lambda name: -place.get(name, -1))
