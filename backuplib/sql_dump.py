"""Loads an SQL dump into an empty database: from older backups of the bot, ``sqlite3 .dump`` or ``iterdump``.

A dump is code from an untrusted source. It runs under an authorizer that only allows building this database, with
limits on time, size and memory.
"""

from __future__ import annotations

import re
import resource
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from backuplib.errors import UnsoundBackupError
from backuplib.formatting import quoted_identifier
from backuplib.newest import NewestSQLite
from backuplib.schema import Placeholders, read_schema, set_table_sql, without_not_null

_CHUNK = 1 << 20
_GROUP = 1 << 14  # bytes of rows grouped into one statement; larger ones, compiled, exceed the CPU caches
_LONG = 1 << 16  # bytes; values of longer statements are bound: a connection caches its last 128 statements
_ROOM = 512 << 20  # memory beside the database: Python, and the current statement as text and compiled
_EXCERPT = 80
_INSTRUCTIONS = 100  # of SQLite between two time checks; one may call a function that takes a second
_INT64_DIGITS = 19  # integers of this length may not fit
_PARAMETERS = 30_000  # SQLite takes 32766 in one statement
_BOM = b"\xef\xbb\xbf"

# --- what a dump may do ------------------------------------------------------------------------------------------

_BUILDING = frozenset({
    sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_INDEX, sqlite3.SQLITE_CREATE_VIEW, sqlite3.SQLITE_CREATE_TRIGGER,
    sqlite3.SQLITE_INSERT, sqlite3.SQLITE_READ, sqlite3.SQLITE_REINDEX, sqlite3.SQLITE_ANALYZE,
})  # fmt: skip
_PRAGMAS = frozenset({"user_version", "application_id", "encoding", "auto_vacuum"})
# Common in dumps; ignored, since nothing that is allowed here needs them
_IGNORED_PRAGMAS = {"foreign_keys", "defer_foreign_keys", "writable_schema", "journal_mode", "synchronous", "page_size"}
_ACTIONS = {
    getattr(sqlite3, f"SQLITE_{name}"): name.replace("_", " ")
    for name in ("ATTACH", "DETACH", "ALTER_TABLE", "SELECT", "INSERT", "UPDATE", "DELETE", "PRAGMA", "SAVEPOINT")
} | {sqlite3.SQLITE_FUNCTION: "the function", sqlite3.SQLITE_CREATE_TEMP_TRIGGER: "the temporary trigger"}
_MODULES = frozenset({"fts3", "fts4", "fts5", "rtree", "rtree_i32"})
# For defaults, checks, generated columns and indexes on expressions; replace, char and unistr also occur in rows
_FUNCTIONS = frozenset(
    re.findall(
        r"\S+",
        """-> ->> abs ceil ceiling char coalesce concat concat_ws count current_date current_time current_timestamp date
        datetime floor format glob hex if ifnull iif instr json json_array json_array_length json_error_position
        json_extract json_insert json_object json_patch json_quote json_remove json_replace json_set json_type
        json_valid julianday length like likelihood likely ln lower ltrim max min mod nullif octet_length pow power
        printf quote random randomblob replace round rtrim sign sqrt strftime substr substring time timediff trim trunc
        typeof unhex unicode unistr unixepoch unlikely upper zeroblob""",
    )
)

# --- how a dump is cut into statements ---------------------------------------------------------------------------

# Possessive groups end with (?!), which never matches: before Python 3.11.5 a group did not step back when its last
# alternative failed halfway (https://github.com/python/cpython/issues/106052).
_TRIVIA = rb"(?:[ \t\r\n\f]++|--[^\n]*+(?:\n|\Z)|/\*(?s:.*?)\*/|(?!))*+"
_TO_SEMICOLON = (
    rb"""(?:[^'"`\[;/-]++|'[^']*+'|"[^"]*+"|`[^`]*+`|\[[^\]]*+\]|--[^\n]*+\n|/\*(?s:.*?)\*/|-(?!-)|/(?!\*)|(?!))*+;"""
)
_TRIGGER = rb"(?i:CREATE" + _TRIVIA + rb"(?:TEMP(?:ORARY)?" + _TRIVIA + rb")?TRIGGER\b)"
# SQLite's rule: a semicolon ends a statement, but a trigger only ends with ";END;".
_STATEMENT = re.compile(
    rb"(?P<trivia>" + _TRIVIA + rb")(?P<sql>(?!" + _TRIGGER + rb")" + _TO_SEMICOLON
    + rb"|(?=" + _TRIGGER + rb")(?:" + _TO_SEMICOLON + rb")+?" + _TRIVIA + rb"(?i:END)" + _TRIVIA + rb";)"
)  # fmt: skip
_BLANKS = re.compile(rb"\s*+")
_ONLY_TRIVIA = re.compile(_TRIVIA + rb"\Z")
_REPORTED_ERROR = re.compile(rb"/\*{4,} (?:CORRUPTION )?ERROR")  # how the sqlite3 shell marks what it could not read

# Rows of plain values only, as dump tools write them, are grouped into one statement. A row with anything else (a name,
# a bracket, a comment) is run alone, since it could change the meaning of its neighbours.
_NAME = rb"""(?:"(?:[^"]|""|(?!))*+"|'(?:[^']|''|(?!))*+'|`[^`]*+`|\[[^\]]*+\]|[A-Za-z_\x80-\xff][\w$\x80-\xff]*+)"""
_STRING = rb"(?:'[^']*+'|(?!))++"
_BROKEN_LINES = rb"replace\((?:%(s)b|replace\(%(s)b,%(s)b,char\(13\)\)),%(s)b,char\(1[03]\)\)|unistr\(%(s)b\)" % {
    b"s": _STRING
}
_PLAIN = rb"[xX]?'[^']*+'|NULL\b|-(?=[0-9.]|(?i:inf|nan)\b)|\)\s*+,\s*+\(|" + _BROKEN_LINES
_FLOAT = rb"(?<=[(,\s-])(?:(?:[0-9]++\.?+[0-9]*+|\.[0-9]++)(?:[eE][-+]?+[0-9]++|(?!))?+|(?i:inf|nan))(?=[,)\s])"
_INSERT = re.compile(
    rb"INSERT INTO (?!\"?sqlite_(?:schema|master)\b)(?P<table>%(n)b)"
    rb"(?:\s*+\(\s*+%(n)b(?:\s*+,\s*+%(n)b|(?!))*+\s*+\)|(?!))?+\s*+VALUES\s*+" % {b"n": _NAME}
)
# Every engine reads up to four decimals exactly; longer floats are parsed here.
_ROWS = re.compile(rb"(\((?:[0-9, \t\r\n]++(?:\.[0-9]{1,4}+(?=[,)])|(?!))?+|" + _PLAIN + rb"|(?!))*+\))\s*+;\s*+")
_ROWS_WITH_FLOATS = re.compile(rb"(\((?:[, \t\r\n]++|" + _FLOAT + rb"|" + _PLAIN + rb"|(?!))*+\))\s*+;\s*+")
_NUMBER = rb"-?+(?:[0-9.][0-9.eE+-]*+|(?i:inf|nan)\b)"
_NO_FLOAT = rb"(?:'[^']*+'|[(),\s]++|-?+[0-9]++(?![0-9.eE])|(?!(?i:inf|nan)\b)[A-Za-z]++|(?!))*+"
_UP_TO_FLOAT = re.compile(rb"(" + _NO_FLOAT + rb")(?:(" + _NUMBER + rb")|\Z)")
_LITERAL = re.compile(rb"([xX]?+)(" + _STRING + rb")|(" + _NUMBER + rb")")
_STRING_OR_COMMENT = re.compile(rb"""(?P<string>%b)|"[^"]*+"|`[^`]*+`|\[[^\]]*+\]|--[^\n]*+|/\*(?s:.*?)\*/""" % _STRING)
_SCHEMA_ROW = re.compile(
    rb"INSERT INTO \"?sqlite_(?:schema|master)\"?\(type,name,tbl_name,rootpage,sql\)\s*+"
    rb"VALUES\('table',(?:%(s)b,){2}0,'(?P<sql>CREATE VIRTUAL TABLE(?:[^']|''|(?!))*+)'\)\Z" % {b"s": _STRING}
)
# What is shown of a statement: no more, since rows are personal data.
_HEAD = re.compile(
    rb"(?i:(?:INSERT|REPLACE)(?:\s+OR\s+\w+)?\s+INTO|CREATE(?:\s+(?:UNIQUE|TEMP|TEMPORARY|VIRTUAL))?\s+"
    rb"(?:TABLE|INDEX|VIEW|TRIGGER)(?:\s+IF\s+NOT\s+EXISTS)?|DELETE\s+FROM|UPDATE|DROP\s+\w+|ALTER\s+TABLE|PRAGMA)\s+"
    + _NAME
)
# What SQLite says without quoting the statement, in which a row may stand: names of tables, columns and functions.
_TELLS_NAMES = re.compile(
    r"(UNIQUE|NOT NULL|CHECK|FOREIGN KEY) constraint failed|no such (table|function|collation sequence|module):"
    r"|table \S+ (has|already)|there is already|index \S+ already|cannot store|.* may not be (modified|indexed)"
)
_VIRTUAL_TABLE = re.compile(rb"(?i:CREATE\s+VIRTUAL\s+TABLE)\b")
_FIRST_WORDS = re.compile(
    _TRIVIA + rb"(?i:ALTER|ANALYZE|ATTACH|BEGIN|COMMIT|CREATE|DELETE|DROP|END|EXPLAIN|INSERT|PRAGMA|REPLACE|ROLLBACK"
    rb"|SAVEPOINT|SELECT|UPDATE|VACUUM|WITH)(?=[\s;/(-]|\Z)"
)


def looks_like_sql_dump(head: bytes) -> bool:
    """Whether the first kilobytes of a file are SQL: a statement, or comments before one."""
    head = head.removeprefix(_BOM)
    if head.lstrip().startswith(b"-----BEGIN PGP"):
        return False
    if _FIRST_WORDS.match(head):
        return True
    long_comment = head.lstrip().startswith((b"--", b"/*")) and re.match(_TRIVIA + rb"(?:/\*.*)?\Z", head, re.DOTALL)
    return bool(long_comment) and not re.search(rb"[\x00-\x08\x0e-\x1f\x7f]", head)


@dataclass(frozen=True)
class LoadedDump:
    """What was loaded; ``left_out`` says which indexes were not, and why."""

    statements: int
    tables: int
    size: int
    left_out: tuple[str, ...]


class UnusableDumpError(UnsoundBackupError):
    """The dump is incomplete, not SQL, too large, or does what no dump needs to do."""

    def __init__(self, reason: str, line: int, statement: int, sql: bytes = b"") -> None:
        self.line, self.statement = line, statement
        what = _HEAD.match(sql.lstrip())
        text = f" ({what[0].decode(errors='replace')[:_EXCERPT]}…)" if what else ""
        super().__init__(f"SQL dump, line {line}, statement {statement}{text}: {reason}")


def load_sql_dump(
    dump: BinaryIO,
    connection: Any,
    *,
    progress: Callable[[int], object] = lambda _size: None,
    limit_bytes: int,
    limit_seconds: float,
) -> LoadedDump:
    """Run a dump in an empty database in RAM (NewestSQLite, or sqlite3 or sqlcipher3 with isolation_level=None).

    Rows that a CHECK or NOT NULL would refuse are loaded, as the original database had them.

    ``cached_statements=0`` makes it faster by half, since no statement occurs twice; ``journal_mode=OFF`` makes errors
    name the wrong line.

    :param progress: receives the number of bytes read so far.
    :raises UnusableDumpError: discard the database then.
    :raises NeedsTheBotError: when it cannot be built without a function or collation that is not here.
    """
    loader = _Loader(dump, connection, progress, limit_bytes, time.monotonic() + limit_seconds)
    with _memory_limit(2 * limit_bytes + _ROOM), _guarded(connection, loader, limit_bytes):
        return loader.load()


# --- guards ------------------------------------------------------------------------------------------------------


@contextmanager
def _memory_limit(extra: int) -> Iterator[None]:
    """Limit memory: a row may contain zeroblob(1e9) a thousand times, which no limit of SQLite's stops in time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    ceilings = [limit for limit in (used + extra, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(ceilings), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _guarded(connection: Any, loader: _Loader, limit_bytes: int) -> Iterator[None]:
    """Authorizer, time and size limits while the dump runs; restored afterwards."""
    page_size = int(connection.execute("PRAGMA page_size").fetchone()[0])  # SQLCipher returns it as text
    (page_limit,) = connection.execute("PRAGMA max_page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={max(1, limit_bytes // page_size)}")
    limits = {sqlite3.SQLITE_LIMIT_ATTACHED: 0, sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 200}
    can_limit = hasattr(connection, "setlimit")  # sqlcipher3 cannot
    before = {kind: connection.setlimit(kind, limit) for kind, limit in limits.items() if can_limit}
    own_unistr = not connection.execute("SELECT 1 FROM pragma_function_list WHERE name='unistr'").fetchone()
    if own_unistr:  # SQLite before 3.50
        connection.create_function("unistr", 1, _unistr, deterministic=True)
    connection.execute("PRAGMA ignore_check_constraints=ON")
    connection.set_authorizer(loader.authorize)
    connection.set_progress_handler(loader.out_of_time, _INSTRUCTIONS)
    try:
        yield
    finally:
        connection.set_progress_handler(None, 0)
        connection.set_authorizer(None)
        connection.rollback()
        connection.execute("PRAGMA ignore_check_constraints=OFF")
        for kind, limit in before.items():
            connection.setlimit(kind, limit)
        if own_unistr:
            connection.create_function("unistr", 1, None)
        connection.execute(f"PRAGMA max_page_count={page_limit}")


def _unistr(text: str) -> str:
    """SQL function with which newer shells write control characters; older libraries lack it."""
    escape = re.compile(r"\\(?:(\\)|\+([0-9a-fA-F]{6})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-9a-fA-F]{4}))")
    return escape.sub(lambda found: found[1] or chr(int(next(filter(None, found.groups())), 16)), text)


# --- the loader --------------------------------------------------------------------------------------------------


class _Loader:
    """Reads, cuts and runs one dump. Line and number, both from 1, are those of the current statement."""

    def __init__(
        self, dump: BinaryIO, connection: Any, progress: Callable[[int], object], limit_bytes: int, deadline: float
    ) -> None:
        self._dump, self._connection, self._progress = dump, connection, progress
        self._limit_bytes, self._deadline = limit_bytes, deadline
        # ValueError: NUL or invalid UTF-8 outside of a string
        self._engine_errors = (connection.Error, connection.Warning, NewestSQLite.Error, MemoryError, ValueError)
        self._buffer, self._position, self._size = b"", 0, 0
        self._line, self._statement = 1, 1
        self._one_by_one_until = 0  # a group of rows up to here failed: find the row
        self._select_allowed = self._committed = False
        self._refusal = ""
        self._virtual: dict[str, tuple[str, str, frozenset[str]]] = {}  # name, SQL, shadow tables
        self._placeholders = Placeholders(connection)
        self._creating = False  # the statement, in which functions of the bot may occur
        self._not_null: dict[str, str] = {}  # the statements of tables that are made without it while they are loaded

    def load(self) -> LoadedDump:
        """Run the whole dump and check what it built."""
        self._read_on()
        self._position = len(_BOM) if self._buffer.startswith(_BOM) else 0
        while self._run_rows() or self._run_statement() or self._read_on():
            if self.out_of_time():
                raise self._error("exceeded the time limit")
        if not _ONLY_TRIVIA.match(self._buffer, self._position):
            raise self._error("incomplete: it ends in the middle of a statement", self._buffer[self._position :])
        if not self._committed or self._connection.in_transaction:
            raise self._error("incomplete: it ends without COMMIT")
        self._refuse_reported_errors(self._buffer[self._position :])
        self._connection.set_authorizer(None)  # from here on, no SQL of the dump runs
        for table, sql in self._not_null.items():
            set_table_sql(self._connection, "main", table, sql)
        left_out = self._placeholders.leave_out()
        self._attach_virtual_tables()
        (tables,) = self._connection.execute(
            "SELECT count(*) FROM sqlite_master WHERE type='table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        ).fetchone()
        if not tables:
            raise self._error("creates no table")
        return LoadedDump(self._statement - 1, int(tables), self._size, tuple(left_out))

    def _read_on(self) -> bool:
        """Extend the buffer; False at the end. Doubling it keeps a long statement from being scanned too often."""
        pending = len(self._buffer) - self._position
        if pending > 2 * self._limit_bytes + _CHUNK:
            raise self._error("this statement is larger than the size limit")
        parts = [self._buffer[self._position :]]
        wanted = max(_CHUNK, pending)
        while wanted > 0 and (part := self._dump.read(wanted)):
            parts.append(part)
            wanted -= len(part)
        self._buffer = b"".join(parts)
        self._position = self._one_by_one_until = 0
        self._size += len(self._buffer) - pending
        self._progress(self._size)
        return len(self._buffer) > pending

    def _advance(self, end: int, statements: int) -> None:
        self._line += self._buffer.count(b"\n", self._position, end)
        self._position = end
        self._statement += statements

    def _run_rows(self) -> bool:
        """Run the next INSERTs of plain values into one table as one statement; False when there are none."""
        self._advance(_BLANKS.match(self._buffer, self._position).end(), 0)  # type: ignore[union-attr]  # empty matches
        head = _INSERT.match(self._buffer, self._position)
        if head is None:
            return False
        rows, end, floats = self._collect_rows(head[0])
        if not rows:
            return False
        self._require_transaction()
        if _unquoted(head["table"]) not in self._virtual:  # its shadow tables hold such rows
            values: list[object] = []
            try:
                sql = _with_values_apart(b",".join(rows), values, floats=floats)
                self._execute(head[0] + sql, values, select_allowed=True)
            except self._engine_errors as error:
                if len(rows) > 1 and self._connection.in_transaction:
                    self._one_by_one_until = end
                    return True
                self._skip_or_raise(error, self._buffer[self._position : end])
        self._advance(end, len(rows))
        return True

    def _collect_rows(self, head: bytes) -> tuple[list[bytes], int, bool]:
        """Return the rows, in brackets, of INSERTs that begin with ``head``; their end; whether they have floats."""
        rows: list[bytes] = []
        floats = False
        buffer, length, end = self._buffer, len(head), self._position
        limit = end + (_GROUP if end >= self._one_by_one_until else 1)
        match = _ROWS.match
        while end < limit and buffer.startswith(head, end):
            row = match(buffer, end + length)
            if row is None:
                if floats:
                    break
                match, floats = _ROWS_WITH_FLOATS.match, True
                continue
            rows.append(row[1])
            end = row.end()
        return rows, end, floats

    def _run_statement(self) -> bool:
        """Run the next statement alone; False when the buffer has no complete one."""
        found = _STATEMENT.match(self._buffer, self._position)
        if found is None:
            return False
        self._advance(found.start("sql"), 0)
        self._refuse_reported_errors(found["trivia"])
        sql = found["sql"]
        try:
            self._run_alone(sql[:-1].rstrip())  # the shell's line break before ; is not the statement's
        except self._engine_errors as error:
            self._skip_or_raise(error, sql)
        self._advance(found.end(), 1)
        return True

    def _run_alone(self, sql: bytes) -> None:
        keyword = re.match(rb"\w*", sql)[0].upper()  # type: ignore[index]  # it matches the empty word, too
        row = _SCHEMA_ROW.match(sql)
        insert = _INSERT.match(sql)
        if row:
            self._set_aside_virtual_table(row["sql"].replace(b"''", b"'"))
        elif _VIRTUAL_TABLE.match(sql):
            self._set_aside_virtual_table(sql)
        elif insert is None or _unquoted(insert["table"]) not in self._virtual:
            self._execute(sql, [], select_allowed=keyword == b"ANALYZE")
        if keyword in {b"COMMIT", b"END"}:
            self._committed = not self._connection.in_transaction
        elif keyword not in {b"PRAGMA", b""}:
            self._require_transaction()

    def _execute(self, sql: bytes, values: list[object], *, select_allowed: bool) -> None:
        """Run a statement; SELECT is allowed inside grouped rows and ANALYZE, where the dump cannot place its own."""
        text = _decoded(sql)
        self._creating = sql[:6].upper() == b"CREATE"
        while True:
            self._refusal, self._select_allowed = "", select_allowed
            try:
                self._connection.execute(text, values)
            except self._engine_errors as error:
                with self._unguarded():
                    mended = self._lift_not_null(error) or (self._creating and self._placeholders.for_lack(error))
                if not mended:
                    raise
            else:
                return

    def _lift_not_null(self, error: Exception) -> bool:
        """Where a row has NULL in such a column, make the table accept it until all rows are there."""
        found = re.fullmatch(r"NOT NULL constraint failed: (.+)", str(error), re.DOTALL)
        if not found:
            return False
        tables = {entry.name: entry.sql for entry in read_schema(self._connection) if entry.type == "table"}
        table = max((name for name in tables if found[1].startswith(f"{name}.")), key=len, default="")
        if table in self._not_null or without_not_null(tables.get(table, "")) == tables.get(table, ""):
            return False
        self._not_null[table] = tables[table]
        set_table_sql(self._connection, "main", table, without_not_null(tables[table]))
        return True

    @contextmanager
    def _unguarded(self) -> Iterator[None]:
        """For statements of ours in the middle of the dump."""
        self._connection.set_authorizer(None)
        try:
            yield
        finally:
            self._connection.set_authorizer(self.authorize)

    def _set_aside_virtual_table(self, create: bytes) -> None:
        """Run the statement in a scratch database and keep the result.

        The dump also holds the virtual table's shadow tables, so that it can only be added after them.
        """
        if b"compress" in create.lower():
            raise self._error("must not name functions for a virtual table to call", create)
        scratch = NewestSQLite(":memory:")
        placeholders = Placeholders(scratch)
        try:
            scratch.set_authorizer(self._authorize_virtual_table)
            try:
                scratch.execute(_decoded(create))
            except NewestSQLite.Error as error:
                if not placeholders.for_lack(error):  # a tokenizer of the bot
                    raise
                scratch.execute(_decoded(create))
            scratch.set_authorizer(None)
            made: list[Any] = scratch.execute(
                "SELECT name, sql, rootpage FROM sqlite_master WHERE type='table'"
            ).fetchall()
        finally:
            scratch.close()
        virtual = [(name, sql) for name, sql, rootpage in made if rootpage == 0]
        if len(virtual) != 1 or virtual[0][0].lower() in self._virtual:
            raise self._error("creates a virtual table in a way that no dump tool does", create)
        shadows = frozenset(name.lower() for name, _, rootpage in made if rootpage)
        self._virtual[virtual[0][0].lower()] = (*virtual[0], shadows)

    def _authorize_virtual_table(self, action: int, _first: str | None, module: str | None, *_: str | None) -> int:
        foreign = action == sqlite3.SQLITE_CREATE_VTABLE and (module or "").lower() not in _MODULES
        if foreign or action == sqlite3.SQLITE_ATTACH:
            self._refusal = f"must not use the virtual table module {module}"
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    def _attach_virtual_tables(self) -> None:
        """Add the virtual tables to the schema, in SQLite's own words; the dump itself has no access to it."""
        if not self._virtual:
            return
        tables = {name.lower() for (name,) in self._connection.execute("SELECT name FROM sqlite_master")}
        self._connection.execute("PRAGMA writable_schema=ON")
        for name, sql, shadows in self._virtual.values():
            if name.lower() in tables or not shadows <= tables:
                raise self._error(f"incomplete: the content of the virtual table {name} is missing")
            self._connection.execute("INSERT INTO sqlite_master VALUES('table',?1,?1,0,?2)", (name, sql))
        self._connection.execute("PRAGMA writable_schema=RESET")
        try:
            for name, _, _ in self._virtual.values():
                self._connection.execute(f"SELECT * FROM {quoted_identifier(name)} LIMIT 0")
        except self._engine_errors as error:
            raise self._error(f"a virtual table is corrupted: {error}") from None

    def authorize(
        self, action: int, first: str | None, second: str | None, database: str | None, source: str | None
    ) -> int:
        """SQLite's authorizer callback, for each action of a statement or a trigger that it fires."""
        first, second = (first or "").lower(), (second or "").lower()
        if action == sqlite3.SQLITE_PRAGMA and first in _IGNORED_PRAGMAS:
            return sqlite3.SQLITE_IGNORE
        allowed = {
            sqlite3.SQLITE_PRAGMA: first in _PRAGMAS,
            sqlite3.SQLITE_FUNCTION: second in _FUNCTIONS
            or (self._creating and self._placeholders.has_function(second)),
            sqlite3.SQLITE_TRANSACTION: first != "rollback",
            sqlite3.SQLITE_DELETE: first == "sqlite_sequence" or first.startswith("sqlite_stat"),
            sqlite3.SQLITE_UPDATE: first in {"sqlite_master", "sqlite_schema"},  # SQLite's own part of a CREATE
            sqlite3.SQLITE_SELECT: self._select_allowed,
        }.get(action, action in _BUILDING and database == "main")
        if allowed and not source:
            return sqlite3.SQLITE_OK
        if source:
            self._refusal = f"would use the trigger or view {source} during the load"
        elif action == sqlite3.SQLITE_TRANSACTION:
            self._refusal = "incomplete: the dump tool gave up after errors"
        else:
            detail = second if action == sqlite3.SQLITE_FUNCTION else first
            self._refusal = f"must not use {_ACTIONS.get(action, f'action {action}')} {detail}".rstrip()
        return sqlite3.SQLITE_DENY

    def out_of_time(self) -> bool:
        """Whether the time limit is exceeded; also SQLite's progress handler."""
        return time.monotonic() > self._deadline

    def _require_transaction(self) -> None:
        if not self._connection.in_transaction:
            raise self._error("is outside BEGIN and COMMIT, so that the dump may be incomplete")

    def _refuse_reported_errors(self, trivia: bytes) -> None:
        if _REPORTED_ERROR.search(trivia):
            raise self._error("incomplete: the dump tool reported a corrupted database", trivia.lstrip())

    def _skip_or_raise(self, error: Exception, sql: bytes) -> None:
        reason = str(error)
        if not _TELLS_NAMES.match(reason):
            reason = re.sub(r'^near ".*": ', "", reason, flags=re.DOTALL)
            reason = re.split(r"[\"':]", reason)[0].strip()
        if re.fullmatch(r"no such table: sqlite_(sequence|stat[0-9])", reason):
            return  # no data: from a dropped table, or statistics that this library does not keep
        if isinstance(error, MemoryError):
            reason = "needs more memory than the size limit allows"
        elif "is full" in reason:
            reason = f"the database exceeds the limit of {self._limit_bytes} bytes"
        elif self.out_of_time():
            reason = "exceeded the time limit"
        raise self._error(self._refusal or reason, sql) from None

    def _error(self, reason: str, sql: bytes = b"") -> UnusableDumpError:
        return UnusableDumpError(reason, self._line, self._statement, sql)


def _unquoted(name: bytes) -> str:
    """A table's name as SQLite compares it."""
    quote = name[:1]
    if quote in {b'"', b"'", b"`", b"["}:
        name = name[1:-1].replace(quote * 2, quote)
    return name.decode(errors="replace").lower()


def _with_values_apart(rows: bytes, values: list[object], *, floats: bool) -> bytes:
    """Replace floats, in long text all literals, by parameters, and add their values to ``values``.

    SQLite may read a float with a wrong last bit. Python does not, and reads inf and nan, from iterdump and old shells.
    """

    def set_apart(token: re.Match[bytes]) -> bytes:
        mark, string, number = token.groups()
        if len(values) == _PARAMETERS or (number and number[-18:].isdigit() and len(number) >= _INT64_DIGITS):
            return token[0]
        if mark:
            values.append(bytes.fromhex(string[1:-1].decode()))
        elif string:
            text = string[1:-1].replace(b"''", b"'")
            if not _is_utf8(text):
                return token[0]
            values.append(text.decode())
        else:
            values.append(int(number) if number.lstrip(b"-").isdigit() else float(number))
        return b"?"

    if len(rows) > _LONG:
        return _LITERAL.sub(set_apart, rows)
    if floats:
        texts, numbers = zip(*_UP_TO_FLOAT.findall(rows), strict=True)
        values.extend(map(float, filter(None, numbers)))  # fewer than _PARAMETERS in so short a text
        return b"?".join(texts[: len(values) + 1])
    return rows


def _decoded(sql: bytes) -> str:
    """Return SQL as text without NUL, where SQLite stops; rows may contain NUL and, from the shell, invalid UTF-8."""
    if b"\0" not in sql:
        with suppress(UnicodeDecodeError):
            return sql.decode()
    return (_STRING_OR_COMMENT.sub(_spelled_out, sql) if sql.startswith(b"INSERT") else sql).decode()


def _spelled_out(token: re.Match[bytes]) -> bytes:
    text = token["string"] or b""
    if not _is_utf8(text):
        return b"CAST(X'%b' AS TEXT)" % text[1:-1].replace(b"''", b"'").hex().encode()
    return b"(%b)" % text.replace(b"\0", b"'||char(0)||'") if b"\0" in text else token[0]


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
