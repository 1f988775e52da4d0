"""The newest SQLite, which the package apsw brings, whatever the system has. Imported where it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import apsw

from backuplib.schema import INNOCUOUS


class NewestSQLite(apsw.Connection):
    """A connection under the names that sqlite3 and sqlcipher3 have for what is used of it here."""

    Error: ClassVar = apsw.Error
    NoMemoryError: ClassVar = apsw.NoMemError
    Warning: ClassVar = apsw.ExecTraceAbort  # a second statement in one text, as sqlite3 tells it, too

    def __init__(self, name: str, *, isolation_level: None = None, cached_statements: int = 100) -> None:
        """Open a database, a URI says in which mode; there is no isolation level, which sqlite3 has to be told."""
        del isolation_level
        super().__init__(name, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI, statementcachesize=cached_statements)
        self.begun = False
        self.exec_trace = self._is_first

    def _is_first(self, *_: object) -> bool:
        first, self.begun = not self.begun, True
        return first

    def execute(self, sql: str, values: Iterable[Any] = ()) -> apsw.Cursor:  # type: ignore[override]  # one statement
        """Run one statement."""
        self.begun = False
        return super().execute(sql, tuple(values))

    def create_function(
        self, name: str, arguments: int, function: Callable[..., Any] | None, *, deterministic: bool = False
    ) -> None:
        """Register a function that is harmless."""
        self.create_scalar_function(name, function, arguments, deterministic=deterministic, flags=INNOCUOUS)

    def setlimit(self, kind: int, limit: int) -> int:
        """Set a limit, and return what it was."""
        return self.limit(kind, limit) if limit < 0 else (self.limit(kind), self.limit(kind, limit))[0]

    def rollback(self) -> None:
        """End a transaction, if there is one."""
        if self.in_transaction:
            self.execute("ROLLBACK")
