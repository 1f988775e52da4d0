"""What two databases hold, and what will be lost."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backuplib.database import Engine, database_files, quoted_identifier, sidecars
from backuplib.files import drop
from backuplib.formatting import aligned, plural, row_count, shortened
from backuplib.processes import CAP_SYS_PTRACE, find_holders, has_capability
from backuplib.ram_folder import RamFolder

if TYPE_CHECKING:
    import sqlite3


@dataclass(frozen=True)
class Contents:
    """What a database holds: rows by table (None: cannot be counted), its schema by name, its user_version."""

    rows: dict[str, int | None]
    schema: dict[str, str]
    user_version: int


SQLITE_OK, SQLITE_DENY, SQLITE_FUNCTION = 0, 1, 31  # what an authorizer is asked and answers; the same in both engines


def only_counting(action: int, _first: str | None, name: str | None, _database: str | None, view: str | None) -> int:
    """Authorizer: only what COUNT needs; a hostile view, behind a full-text index, never ends."""
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


MOST_TABLES = 12  # tables in the comparison: with the facts and the question below it, it fits on a screen of 24 lines

NAME_COLUMNS = 40  # longest name of a table in the comparison


def read_live(engine: Engine, database: Path, ram: RamFolder) -> Contents | None:
    """Count the rows of a live database, leaving it and its sidecars as they are; None when there is nothing in it.

    :raises OSError: when it cannot be read, and the errors of the engine.
    """
    if not database.exists() or not database.stat().st_size:
        return None
    beside = sidecars(database)
    path, immutable = database, not beside
    holders, hidden = find_holders(database_files(database))
    if beside and not holders and (not hidden or has_capability(CAP_SYS_PTRACE)):
        # Its user was killed: opening it would roll it back or fold it, so a copy is opened.
        path = ram.path / "live.db"
        for file in [database, *beside]:
            shutil.copyfile(file, path.with_name(path.name + file.name[len(database.name) :]))
    mode = "rw" if path != database else "ro"
    with contextlib.closing(engine.connect(path, mode=mode, immutable=immutable, timeout=5)) as connection:
        contents = read_contents(connection, engine.errors)
    if path != database:
        drop(path, *sidecars(path))
    return contents


def tables_of(live: Contents | None, backup: Contents) -> dict[str, dict[str, int | None]]:
    """Return the number of rows of each table, now and in the backup; None where there is no such table."""
    names = sorted({*backup.rows, *(live.rows if live else ())})
    return {name: {"live": live.rows.get(name) if live else None, "backup": backup.rows.get(name)} for name in names}


def row_comparison(tables: dict[str, dict[str, int | None]]) -> list[str]:
    """Return the lines that say what will be lost: the tables whose number of rows differs."""
    differ = [(name, rows["live"], rows["backup"]) for name, rows in tables.items() if rows["live"] != rows["backup"]]
    if not differ:
        return ["unchanged row count in every table"]
    differ.sort(key=lambda row: loss_order(*row[1:]))
    rows = [("table", "now", "backup", "difference")]
    for name, now, then in differ[:MOST_TABLES]:
        change = f"{then - now:+,}" if now is not None and then is not None else ""
        rows.append((shortened(name, NAME_COLUMNS), row_count(now), row_count(then), change))
    lines = aligned(rows, right=(1, 2, 3))
    if (more := len(differ) - MOST_TABLES) > 0:
        lines.append(f"{plural(more, 'more table')} with fewer or more rows")
    if same := len(tables) - len(differ):
        lines.append(f"{plural(same, 'other table')} with unchanged row count")
    return lines


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Return the names under which two schemas are not the same."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def loss_order(now: int | None, then: int | None) -> tuple[bool, int]:
    """Return by what tables are sorted, given their rows: first what loses rows, in each half the most first."""
    change = (then or 0) - (now or 0)
    return change >= 0, -abs(change)
