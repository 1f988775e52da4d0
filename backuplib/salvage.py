"""Copies what can be read of a damaged database into a new one, alike with SQLite and SQLCipher.

Each table is read from both ends up to the pages that cannot be read, and between them in pieces. What hangs below a
damaged inner page of a table's tree is out of reach.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backuplib.database import Engine, quoted_identifier
from backuplib.files import create_file
from backuplib.formatting import plural, printable, some_of

FIRST, LAST = -(2**63), 2**63 - 1  # rowids
ATTEMPTS = 300  # to read on between pages of a table that cannot be read
OBJECTS = ("index", "trigger", "view")

Row = tuple[Any, ...]
Gap = tuple[int, int]  # the first and the last rowid of what could not be read

# What the schema of a damaged database may do while it is made anew; one that does more was not written by SQLite.
MAKING = frozenset({
    sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_INDEX, sqlite3.SQLITE_CREATE_TRIGGER, sqlite3.SQLITE_CREATE_VIEW,
    sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE, sqlite3.SQLITE_READ, sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_REINDEX, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT,
})  # fmt: skip


class NotText(bytes):
    """A text that is no UTF-8."""


def decoded(data: bytes) -> str | NotText:
    """Return a text, whatever its bytes are."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return NotText(data)


@dataclass
class Table:
    """A table, and what was saved of it.

    :param rowid: what its rowid is called; empty when it has none.
    :param order: by what it can be read from both ends, as SQL: its rowid, or the columns of its primary key.
    """

    name: str
    columns: list[str]
    rowid: str
    order: list[str]
    rows: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> str:
        """The columns as SQL, the rowid first."""
        return ", ".join([self.rowid] * bool(self.rowid) + [quoted_identifier(name) for name in self.columns])


SCHEMA = Table("sqlite_master", ["type", "name", "sql"], "rowid", ["rowid"])
SEQUENCES = Table("sqlite_sequence", ["name", "seq"], "rowid", ["rowid"])


class Salvage:
    """What is copied of a damaged database: its ``tables``, and ``notes`` about all that is missing beside rows."""

    def __init__(self, engine: Engine, damaged: Path, new: Path) -> None:
        self.engine, self.damaged, self.new = engine, damaged, new
        self.tables: dict[str, Table] = {}
        self.notes: list[str] = []

    def run(self) -> None:
        """Make the new database."""
        create_file(self.new).close()
        with contextlib.closing(self.engine.connect(self.new, key_of=self.damaged)) as target:
            target.execute("PRAGMA journal_mode=OFF")
            target.execute("PRAGMA ignore_check_constraints=ON")
            self._copy_settings(target)
            target.execute("PRAGMA writable_schema=ON")  # for virtual tables
            target.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in MAKING else sqlite3.SQLITE_DENY)
            target.execute("BEGIN")
            self._copy_objects(target)
            target.execute("COMMIT")

    def _copy_settings(self, target: sqlite3.Connection) -> None:
        names = ("encoding", "auto_vacuum", "user_version", "application_id")
        for name in names if self.engine.db_pass else ("page_size", *names):
            with contextlib.suppress(*self.engine.errors):
                ((value,),) = self._read(f"PRAGMA {name}")
                target.execute(f"PRAGMA {name} = '{value}'")

    def _copy_objects(self, target: sqlite3.Connection) -> None:
        gaps: list[Gap] = []
        objects = [row[1:] for row in self._rows(SCHEMA, gaps) if all(isinstance(value, str) for value in row[1:])]
        if gaps:
            self.notes.append("the list of tables cannot be read as a whole: some may be missing")
        for kind, name, sql in objects:
            if kind == "table" and not name.startswith("sqlite_"):
                copy = self._copy_virtual if re.match(r"\s*CREATE\s+VIRTUAL", sql, re.IGNORECASE) else self._copy_table
                copy(target, name, sql)
        with contextlib.suppress(*self.engine.errors):  # there is none without AUTOINCREMENT
            target.execute("DELETE FROM sqlite_sequence")
            for row in self._rows(SEQUENCES, []):
                target.execute("INSERT INTO sqlite_sequence (rowid, name, seq) VALUES (?, ?, ?)", row)
        for kind, name, sql in objects:
            if kind in OBJECTS:
                try:
                    target.execute(sql)
                except self.engine.errors as error:
                    self.notes.append(f"the {kind} {printable(name)} is missing: {error}")

    def _copy_virtual(self, target: sqlite3.Connection, name: str, sql: str) -> None:
        """Enter a virtual table as SQLite's own .dump does; what it holds is in tables of their own."""
        target.execute("INSERT INTO sqlite_master VALUES ('table', ?, ?, 0, ?)", (name, name, sql))

    def _copy_table(self, target: sqlite3.Connection, name: str, sql: str) -> None:
        """Copy a table; with its columns alone when the rest takes what only the bot has, such as a function."""
        try:
            table = self._table(name)
        except (*self.engine.errors, ValueError) as error:
            self.notes.append(f"the table {printable(name)} is missing: {error}")
            return
        target.execute("SAVEPOINT before")
        try:
            target.execute(sql)
            self._copy_rows(target, table)
        except self.engine.errors as error:
            target.execute("ROLLBACK TO before")
            table.rows, table.notes = 0, [f"types and constraints: {error}"]
            columns = ", ".join(map(quoted_identifier, table.columns))
            target.execute(f"CREATE TABLE {quoted_identifier(name)} ({columns})")
            self._copy_rows(target, table)
        target.execute("RELEASE before")
        self.tables[name] = table

    def _table(self, name: str) -> Table:
        """Ask for a table's columns; the engine's errors and ValueError when that is not known."""
        found = list(self._read("SELECT name, pk, hidden FROM pragma_table_xinfo(?)", name))
        ((without_rowid,),) = self._read("SELECT wr FROM pragma_table_list WHERE name = ? AND schema = 'main'", name)
        taken = {column.lower() for column, _, _ in found}
        rowid = "" if without_rowid else next((one for one in ("rowid", "_rowid_", "oid") if one not in taken), "")
        key = [quoted_identifier(column) for column, pk, _ in sorted(found, key=lambda row: row[1]) if pk]
        columns = [column for column, _, hidden in found if not hidden]  # the others are computed
        return Table(name, columns, rowid, [rowid] if rowid else key if without_rowid else [])

    def _copy_rows(self, target: sqlite3.Connection, table: Table) -> None:
        """Copy the rows that can be read; the engine's errors when the new table takes none."""
        gaps: list[Gap] = []
        refused: list[str] = []
        for row in self._rows(table, gaps):
            values = ", ".join("CAST(? AS TEXT)" if isinstance(value, NotText) else "?" for value in row)
            try:
                target.execute(f"INSERT INTO {quoted_identifier(table.name)} ({table.names}) VALUES ({values})", row)
                table.rows += 1
            except self.engine.errors as error:
                if type(error).__name__ != "IntegrityError":
                    raise
                refused.append(str(error))
        if gaps:
            what = (
                f"rowids {some_of([in_words(gap) for gap in merged(gaps)], 60)}" if table.rowid else "rows in between"
            )
            table.notes.append("all" if not table.rows else what)
        if refused:
            table.notes.append(f"{plural(len(refused), 'row')}: {refused[0]}")

    # --- reading -------------------------------------------------------------------------------------------------

    def _rows(self, table: Table, gaps: list[Gap]) -> Iterator[Row]:
        """Read a table, and note what cannot be read."""
        left = deque([(FIRST, LAST)])
        for _ in range(ATTEMPTS):
            if not left:
                return
            if not (gap := (yield from self._both_ends(table, *left.popleft()))):
                continue
            if table.rowid and gap[0] < gap[1]:
                left.extend(pieces(*gap))
            else:
                gaps.append(gap)
        gaps.extend(left)

    def _both_ends(self, table: Table, low: int, high: int) -> Generator[Row, None, Gap | None]:
        """Read a range of a table from its beginning, and from its end; return what is between, if it is unreadable."""
        select = f"SELECT {table.names} FROM {quoted_identifier(table.name)}"
        select += f" WHERE {table.rowid} BETWEEN {low} AND {high}" if table.rowid else ""
        for direction in ("ASC", "DESC") if table.order else ("",):
            order = ", ".join(f"{column} {direction}" for column in table.order)
            try:
                for row in self._read(f"{select} ORDER BY {order}" if order else select):
                    if table.rowid and direction == "ASC":
                        low = row[0] + 1
                    elif table.rowid:
                        high = row[0] - 1
                    yield row
            except self.engine.errors:
                continue
            return None
        return (low, high) if low <= high else None

    def _read(self, sql: str, *values: object) -> Iterator[Row]:
        """Ask the damaged database, through a connection of its own: after an error SQLCipher gives no answer more."""
        with contextlib.closing(self.engine.connect(self.damaged, mode="ro", immutable=True)) as connection:
            connection.execute("PRAGMA writable_schema=ON")  # reads on when pages or parts of the schema are missing
            connection.text_factory = decoded
            yield from connection.execute(sql, values)


def pieces(low: int, high: int) -> Iterator[Gap]:
    """Cut a range of rowids into pieces, each twice as long as the one before."""
    length = 1
    while low <= high:
        yield low, min(high, low + length - 1)
        low, length = low + length, 2 * length


def in_words(gap: Gap) -> str:
    """Return a gap for people."""
    low, high = gap
    if high == LAST:
        return f"{low:,} and higher"
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def merged(gaps: list[Gap]) -> list[Gap]:
    """Return gaps in order, those that touch as one."""
    joined: list[Gap] = []
    for low, high in sorted(gaps):
        if joined and joined[-1][1] + 1 == low:
            joined[-1] = (joined[-1][0], high)
        else:
            joined.append((low, high))
    return joined
