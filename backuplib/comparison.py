"""What two databases hold, and what will be lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backuplib.database import quoted_identifier

if TYPE_CHECKING:
    import sqlite3


@dataclass(frozen=True)
class Contents:
    """What a database holds: rows by table (None: cannot be counted), its schema by name, its user_version."""

    rows: dict[str, int | None]
    schema: dict[str, str]
    user_version: int


SQLITE_OK, SQLITE_DENY, SQLITE_FUNCTION = 0, 1, 31
"""What an authorizer is asked and answers; the same in both engines."""


def only_counting(action: int, _first: str | None, name: str | None, _database: str | None, view: str | None) -> int:
    """Deny what counting rows does not take: a hostile view, behind a full-text index, never comes to an end."""
    return SQLITE_DENY if view or (action == SQLITE_FUNCTION and name not in ("count", "like")) else SQLITE_OK


def read_contents(connection: sqlite3.Connection, errors: tuple[type[Exception], ...]) -> Contents:
    """Count the rows of each table and note the schema."""
    connection.set_authorizer(only_counting)
    objects = connection.execute(
        "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    )
    schema = {f"{kind} {name}": str(sql) for kind, name, sql in objects}
    rows: dict[str, int | None] = {}
    for name in sorted(key.removeprefix("table ") for key in schema if key.startswith("table ")):
        try:
            rows[name] = connection.execute(f"SELECT count(*) FROM {quoted_identifier(name)}").fetchone()[0]
        except errors:  # a virtual table whose module is not here, or whose rows come from a view
            rows[name] = None
    return Contents(rows, schema, connection.execute("PRAGMA user_version").fetchone()[0])


MOST_TABLES = 12
"""Tables in the comparison: with the facts and the question below it, it fits on a screen of 24 lines."""


NAME_COLUMNS = 40
"""Longest name of a table in the comparison."""


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Return the names under which two schemas are not the same."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def most_lost_first(now: int | None, then: int | None) -> tuple[bool, int]:
    """Return by what tables are sorted, given their rows: first what loses rows, in each half the most first."""
    change = (then or 0) - (now or 0)
    return change >= 0, -abs(change)
