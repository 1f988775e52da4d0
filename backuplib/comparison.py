"""What two databases hold, and what will be lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from backuplib.database import (
    Engine,
    database_files,
    find_all,
    mode_for_reading,
    sidecars,
    size_of_files,
)
from backuplib.errors import DatabaseInUseError, EmptyBackupError, UnreadableDatabaseError, UnsoundBackupError, explain
from backuplib.files import copy_content, drop
from backuplib.findings import Finding, is_damaged, refuse_damaged
from backuplib.formatting import aligned, plural, quoted_identifier, row_count, shortened, some_of
from backuplib.inspection import PATIENCE_SECONDS, ROOM, Inspection
from backuplib.processes import CAP_SYS_PTRACE, find_holders, has_capability
from backuplib.ram_folder import RamFolder
from backuplib.schema import read_schema
from backuplib.style import Kind


@dataclass(frozen=True)
class Contents:
    """What a database holds, as plain data: rows by table (None: cannot be counted), its schema by name, its version.

    ``tables`` counts SQLite's own, too; ``findings`` is empty where only the rows were counted.
    """

    rows: dict[str, int | None]
    schema: dict[str, str]
    user_version: int
    tables: int = 0
    findings: tuple[Finding, ...] = ()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Contents:
        """Make it of what :func:`dataclasses.asdict` made of one in another process."""
        return cls(**data | {"findings": tuple(Finding(**finding) for finding in data["findings"])})

    def with_findings(self, more: Iterable[dict[str, Any]]) -> Contents:
        """Return the same with more findings, as JSON holds them."""
        return replace(self, findings=(*self.findings, *(Finding(**finding) for finding in more)))

    def refuse_unsound(self) -> None:
        """Refuse, with UnsoundBackupError, what was found to be damaged, or has no table."""
        refuse_damaged(self.findings)
        if not self.tables:
            raise EmptyBackupError("the database has no tables")


COUNTING = ("count", "like", "max")
SQLITE_OK, SQLITE_DENY, SQLITE_FUNCTION = 0, 1, 31  # what an authorizer is asked and answers; the same in both engines


def only_counting(action: int, _first: str | None, name: str | None, _database: str | None, view: str | None) -> int:
    """Authorizer: only what COUNT needs; a hostile view, behind a full-text index, never ends."""
    return SQLITE_DENY if view or (action == SQLITE_FUNCTION and name not in COUNTING) else SQLITE_OK


def examine(
    engine: Engine,
    connection: Any,
    size: int | None,
    *,
    newer: bool = False,
    foreign_keys: bool = True,
    in_slices: bool = False,
) -> Contents:
    """Check a database that is open, and return what it holds with what was found; no rows where it is damaged.

    :param connection: from ``engine.look``.
    :param size: bytes of its file; None while somebody may write to it.
    :param newer: its schema may take a newer SQLite than ours.
    :raises: the errors of the engine, when it is so damaged that it cannot be opened, or is locked.
    """
    encrypted = engine.db_pass is not None
    tables, findings = find_all(connection, size, encrypted=encrypted, newer=newer, foreign_keys=foreign_keys)
    if is_damaged(findings):
        return Contents({}, {}, 0, tables, tuple(findings))
    contents = read_contents(connection, engine.errors, in_slices=in_slices)
    return replace(contents, tables=tables, findings=tuple(findings))


def read_contents(connection: Any, errors: tuple[type[Exception], ...], *, in_slices: bool = False) -> Contents:
    """Count the rows of each table and note the schema.

    :param in_slices: never hold a read lock for long: a bot with a rollback journal could not write meanwhile.
    """
    connection.set_authorizer(only_counting)
    schema = {f"{entry.type} {entry.name}": entry.sql for entry in read_schema(connection) if not entry.internal}
    rows: dict[str, int | None] = {}
    uncounted: tuple[type[Exception], ...] = (
        *errors,
        MemoryError,
    )  # of which SQLCipher's FTS5 speaks when it lacks a tokenizer
    for name in sorted(key.removeprefix("table ") for key in schema if key.startswith("table ")):
        try:
            rows[name] = count_in_slices(connection, name) if in_slices else count(connection, name)
        except uncounted as error:  # a virtual table whose module is not here, or whose rows come from a view
            if in_slices and others_write(error):
                raise
            rows[name] = None
    return Contents(rows, schema, connection.execute("PRAGMA user_version").fetchone()[0])


def count(connection: Any, table: str) -> int:
    """Count the rows of a table."""
    return int(connection.execute(f"SELECT count(*) FROM {quoted_identifier(table)}").fetchone()[0])


SLICE_ROWS = 20_000  # a few milliseconds


def count_in_slices(connection: Any, table: str) -> int:
    """Count the rows of a table in many short transactions; what is written meanwhile is counted or not."""
    columns = {row[1].lower() for row in connection.execute(f"PRAGMA table_xinfo({quoted_identifier(table)})")}
    rowid = next((name for name in ("rowid", "_rowid_", "oid") if name not in columns), "")
    without = connection.execute("SELECT wr FROM pragma_table_list WHERE name = ? AND schema = 'main'", (table,))
    if not rowid or without.fetchall() == [(1,)]:
        return count(connection, table)
    total, begin = 0, -(2**63)
    query = f"SELECT {rowid} FROM {quoted_identifier(table)} WHERE {rowid} >= ? ORDER BY {rowid} LIMIT {SLICE_ROWS}"
    while True:
        ((number, last),) = connection.execute(f"SELECT count(*), max({rowid}) FROM ({query})", (begin,)).fetchall()
        total += int(number)
        if number < SLICE_ROWS or last == 2**63 - 1:
            return total
        begin = last + 1


MOST_TABLES = 9  # tables in the comparison: with the facts and the question below it, it fits on a screen of 24 lines

LINE_COLUMNS = 77  # of the comparison, which is indented by three

NAME_COLUMNS = 40  # longest name of a table in a sentence


def read_live(
    engine: Engine, database: Path, ram: RamFolder, listen: Callable[[], object] = lambda: None
) -> Contents | None:
    """Count the rows of a live database in a child, leaving it as it is; None when there is nothing in it.

    :param listen: raises what a signal asks for.
    :raises OperatorError: when it cannot be read, or not in time.
    """
    if not database.exists() or not (size := size_of_files(database)):
        return None
    with contextlib.suppress(OSError):
        engine.prepare(database)

    def work(_: object) -> dict[str, Any]:
        try:
            return asdict(_read_live(engine, database, ram))
        except (*engine.errors, OSError) as error:
            raise UnreadableDatabaseError(explain(error)) from None

    look = Inspection(work, seconds=PATIENCE_SECONDS + size / 1e6, memory=size + ROOM, largest_file=size + ROOM)
    return Contents.from_json(look.result(listen))


def _read_live(engine: Engine, database: Path, ram: RamFolder) -> Contents:
    beside = sidecars(database)
    path, immutable = database, not beside
    holders, hidden = find_holders(database_files(database))
    if beside and not holders and (not hidden or has_capability(CAP_SYS_PTRACE)):
        # Its user was killed: opening it would roll it back or fold it, so a copy is opened.
        ram.require(size_of_files(database), "look at a copy of the live database")
        path = ram.path / "live.db"
        for file in [database, *beside]:
            copy_content(file, path.with_name(path.name + file.name[len(database.name) :]))
    mode = "rw" if path != database else "ro"
    with contextlib.closing(engine.look(path, mode=mode, immutable=immutable, timeout=5)) as connection:
        contents = read_contents(connection, engine.errors)
    if path != database:
        drop(path, *sidecars(path))
    return contents


def tables_of(live: Contents | None, backup: Contents) -> dict[str, dict[str, int | None]]:
    """Return the number of rows of each table, now and in the backup; None where there is no such table."""
    names = sorted({*backup.rows, *(live.rows if live else ())})
    return {name: {"live": live.rows.get(name) if live else None, "backup": backup.rows.get(name)} for name in names}


@dataclass(frozen=True)
class Change:
    """A table with other rows in the backup than ``now``; None: they cannot be counted, or there is no such table."""

    table: str
    now: int | None
    then: int | None
    gone: bool  # not in the backup
    new: bool  # not in the live database

    @property
    def lost(self) -> int:
        """Rows that will be lost, at the least: one that was replaced by another is not seen."""
        if self.gone:
            return self.now or 0
        return 0 if self.now is None or self.then is None else max(0, self.now - self.then)

    @property
    def is_loss(self) -> bool:
        """Whether rows, or the table, will be lost."""
        return self.gone or self.lost > 0

    @property
    def uncounted(self) -> bool:
        """Whether it is in both, and its rows cannot be counted in one of them."""
        return not (self.gone or self.new) and None in {self.now, self.then}

    @property
    def change(self) -> str:
        """How many rows it gains or loses, where it is in both and they can be counted."""
        return (
            "" if self.gone or self.new or None in {self.now, self.then} else f"{(self.then or 0) - (self.now or 0):+,}"
        )

    def cells(self, width: int) -> tuple[str, str, str]:
        """Return its rows now and in the backup, and what will happen to it; ``width``: of the changes."""
        now = "none" if self.new else row_count(self.now)
        then = "none" if self.gone else row_count(self.then)
        if self.change:
            return now, then, f"{self.change:>{width}} row{'' if self.change in {'-1', '+1'} else 's'}"
        if self.uncounted:
            return now, then, "cannot be counted"
        rows = self.now if self.gone else self.then
        words = "table will be gone" if self.gone else "new table"
        return now, then, words + (f": {plural(rows, 'row')}" if rows is not None else "")


def changes(live: Contents, backup: Contents) -> list[Change]:
    """Return the tables with other rows: first what will be lost, in each half the most first."""
    names = sorted(live.rows.keys() | backup.rows.keys())
    found = [
        Change(name, live.rows.get(name), backup.rows.get(name), name not in backup.rows, name not in live.rows)
        for name in names
    ]
    differ = [item for item in found if item.now != item.then or item.gone or item.new]
    return sorted(differ, key=lambda item: (not item.is_loss, -abs((item.then or 0) - (item.now or 0))))


def row_comparison(live: Contents, backup: Contents) -> list[tuple[str, Kind]]:
    """Return the lines that compare the rows of two databases, losses first."""
    if not (differ := changes(live, backup)):
        return [("unchanged row count in every table", Kind.PLAIN)]
    shown = differ[:MOST_TABLES]
    width = max(len(item.change) for item in shown)
    columns = aligned([("now", "backup", ""), *(item.cells(width) for item in shown)], right=(0, 1))
    room = LINE_COLUMNS - max(map(len, columns)) - 2
    names = ["table", *(shortened(item.table, room) for item in shown)]
    kinds = [Kind.ASIDE, *(Kind.LOSS if item.is_loss else Kind.PLAIN for item in shown)]
    lines = list(zip(aligned(list(zip(names, columns, strict=True))), kinds, strict=True))
    if more := differ[MOST_TABLES:]:
        kind = Kind.LOSS if any(item.is_loss for item in more) else Kind.PLAIN
        lines.append((f"{plural(len(more), 'more table')} with fewer or more rows", kind))
    if same := len(live.rows.keys() | backup.rows.keys()) - len(differ):
        lines.append((f"{plural(same, 'other table')} with unchanged row count", Kind.ASIDE))
    return lines


def total_loss(live: Contents, backup: Contents) -> tuple[str, Kind]:
    """Return what will be lost in all, as far as rows can be counted."""
    differ = changes(live, backup)
    losing, gone = [item for item in differ if item.lost], [item for item in differ if item.gone]
    words = []
    if losing:
        rows = sum(item.lost for item in losing)
        words.append(f"at least {plural(rows, 'row')} in {plural(len(losing), 'table')}")
    if gone:
        words.append(f"{plural(len(gone), 'table')} will be gone")
    if words:
        return "; ".join(words), Kind.TOTAL_LOSS
    counted = " that can be counted" if any(item.uncounted for item in differ) else ""
    return f"no table{counted} will have fewer rows than now", Kind.FACT


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Return the names under which two schemas are not the same."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


# --- after the start -------------------------------------------------------------------------------------------------

CHECKED_AT_ONCE = 64_000_000  # bytes; up to this, a whole check holds up a rollback-journal bot for less than 1 s

FEWEST_ROWS = 3  # a table with fewer says nothing when it loses them


@dataclass(frozen=True)
class Look:
    """What was found in a live database: how far it was checked, for people, and its rows by table.

    Those of an index's own tables are left open: a bot that has it rebuilt does not lose any row.
    """

    checked: str
    rows: dict[str, int | None]


# What SQLite says (sqlite3ErrStr), the last where a reader without rights to write meets a journal to be rolled back.
LOCKED = ("database is locked", "database table is locked", "database schema is locked", "attempt to write a readonly")


def others_write(error: Exception) -> bool:
    """Whether a database could not be read because others write to it, which says nothing about its state."""
    return str(error).startswith(LOCKED)  # further on, SQLite may quote names of the database


def look_at_live(engine: Engine, database: Path) -> Look:
    """Check a database that others use, and count its rows, without holding up their writes for longer than a second.

    :raises DatabaseInUseError: when others keep it locked for 5 s.
    :raises UnsoundBackupError: when it is not sound.
    :raises CheckTimeoutError, CheckFailedError: when it could not be looked at.
    """
    size = size_of_files(database)
    engine.prepare(database)

    def work(_: object) -> dict[str, Any]:
        try:
            return asdict(_look_at_live(engine, database))
        except engine.out_of_memory:
            raise MemoryError from None
        except engine.errors as error:
            raise (DatabaseInUseError if others_write(error) else UnsoundBackupError)(explain(error)) from None

    seconds = PATIENCE_SECONDS + size / 1e6  # it writes no file but a -shm
    return Look(**Inspection(work, seconds=seconds, memory=size + ROOM, largest_file=ROOM).result())


def _look_at_live(engine: Engine, database: Path) -> Look:
    with contextlib.closing(engine.look(database, mode=mode_for_reading(database), timeout=5)) as connection:
        connection.execute("PRAGMA schema_version").fetchall()
        wal = connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"  # its readers hold nobody up
        if wal or database.stat().st_size <= CHECKED_AT_ONCE:
            contents = examine(engine, connection, None, newer=True, foreign_keys=False, in_slices=not wal)
            contents.refuse_unsound()
            checked = "ok"
        else:
            contents = read_contents(connection, engine.errors, in_slices=True)
            checked = "opens; too large to be read whole while the bot writes"
        shadow = connection.execute("SELECT name FROM pragma_table_list WHERE type = 'shadow'").fetchall()
        return Look(checked, contents.rows | {name: None for (name,) in shadow if name in contents.rows})


def lost_tables(before: Mapping[str, int | None], now: Mapping[str, int | None]) -> str:
    """Return which tables have lost most of their rows, for people; empty when none has.

    One that is gone while another one has come that may hold its rows was renamed, as migrations do.
    """
    new = max((rows or 0 for name, rows in now.items() if name not in before), default=0)
    lost = []
    for name, rows in before.items():
        if rows is None or rows < FEWEST_ROWS or (name in now and now[name] is None):
            continue
        left = now.get(name) or 0
        if left * 2 < rows and (name in now or new * 2 < rows):
            lost.append(f"{shortened(name, NAME_COLUMNS)} had {plural(rows, 'row')}, and has {left:,}")
    return some_of(lost, 100) if lost else ""
