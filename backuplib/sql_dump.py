"""Loads an SQL dump into an empty database: what older backups of the bot, ``sqlite3 .dump`` and ``iterdump`` hold.

A dump is code, and it may come from anywhere. It runs under an authorizer that allows building this database and
nothing else, with limits on time, size and memory. Nothing here opens a file: where the database is, the caller says.
"""

from __future__ import annotations

import re
import resource
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from backuplib.database import quoted_identifier
from backuplib.errors import ExitCode, OperatorError
from backuplib.formatting import plural, printable

_CHUNK = 1 << 20
_GROUP = 1 << 14  # bytes of rows that become one statement; larger ones compile to more than the CPU caches hold
_LONG = 1 << 16  # a connection keeps its last 128 statements: of a longer one the values are passed beside the text
_ROOM = 512 << 20  # memory beside the database: the statement at hand, as text and compiled, and Python itself
_EXCERPT = 80
_INSTRUCTIONS = 100  # of SQLite, between two looks at the clock; one may call a function that takes a second
_INT64_DIGITS = 19  # integers that long may not fit
_PARAMETERS = 30_000  # SQLite takes 32766 in one statement
_BOM = b"\xef\xbb\xbf"

# --- what a dump may do ------------------------------------------------------------------------------------------

_BUILDING = frozenset({
    sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_INDEX, sqlite3.SQLITE_CREATE_VIEW, sqlite3.SQLITE_CREATE_TRIGGER,
    sqlite3.SQLITE_INSERT, sqlite3.SQLITE_READ, sqlite3.SQLITE_REINDEX, sqlite3.SQLITE_ANALYZE,
})  # fmt: skip
_PRAGMAS = frozenset({"user_version", "application_id", "encoding", "auto_vacuum", "foreign_key_check"})
# Dumps say these as a matter of course. They are read over: nothing that is allowed here needs them.
_IGNORED_PRAGMAS = frozenset(
    {"foreign_keys", "defer_foreign_keys", "writable_schema", "journal_mode", "synchronous", "page_size"}
)
_ACTIONS = {
    getattr(sqlite3, f"SQLITE_{name}"): name.replace("_", " ")
    for name in ("ATTACH", "DETACH", "ALTER_TABLE", "SELECT", "INSERT", "UPDATE", "DELETE", "PRAGMA", "SAVEPOINT")
} | {sqlite3.SQLITE_FUNCTION: "the function", sqlite3.SQLITE_CREATE_TEMP_TRIGGER: "the temporary trigger"}
_MODULES = frozenset({"fts3", "fts4", "fts5", "rtree", "rtree_i32"})
# For defaults, checks, generated columns and indexes on expressions; replace, char and unistr stand in rows, too.
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

# Why possessive groups end with the alternative that never matches: before Python 3.11.5 such a group, when its last
# alternative failed halfway, had moved on all the same (https://github.com/python/cpython/issues/106052).
_TRIVIA = rb"(?:[ \t\r\n\f]++|--[^\n]*+(?:\n|\Z)|/\*(?s:.*?)\*/|(?!))*+"
_TO_SEMICOLON = (
    rb"""(?:[^'"`\[;/-]++|'[^']*+'|"[^"]*+"|`[^`]*+`|\[[^\]]*+\]|--[^\n]*+\n|/\*(?s:.*?)\*/|-(?!-)|/(?!\*)|(?!))*+;"""
)
_TRIGGER = rb"(?i:CREATE" + _TRIVIA + rb"(?:TEMP(?:ORARY)?" + _TRIVIA + rb")?TRIGGER\b)"
# SQLite's rule of completeness: a semicolon ends a statement, but a trigger ends with ";END;" only.
_STATEMENT = re.compile(
    rb"(?P<trivia>" + _TRIVIA + rb")(?P<sql>(?!" + _TRIGGER + rb")" + _TO_SEMICOLON
    + rb"|(?=" + _TRIGGER + rb")(?:" + _TO_SEMICOLON + rb")+?" + _TRIVIA + rb"(?i:END)" + _TRIVIA + rb";)"
)  # fmt: skip
_BLANKS = re.compile(rb"\s*+")
_ONLY_TRIVIA = re.compile(_TRIVIA + rb"\Z")
_REPORTED_ERROR = re.compile(rb"/\*{4,} (?:CORRUPTION )?ERROR")  # the sqlite3 shell's mark for what it could not read

# Rows of nothing but plain values, as dumpers write them, are put together into one statement. Anything else between
# the brackets (a name, a bracket, a comment) might mean something else beside its neighbours, so it goes in alone.
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
# Up to four decimals every engine reads exactly, by arithmetic; what is longer is read here.
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
_VIRTUAL_TABLE = re.compile(rb"(?i:CREATE\s+VIRTUAL\s+TABLE)\b")
_FIRST_WORDS = re.compile(
    _TRIVIA + rb"(?i:ALTER|ANALYZE|ATTACH|BEGIN|COMMIT|CREATE|DELETE|DROP|END|EXPLAIN|INSERT|PRAGMA|REPLACE|ROLLBACK"
    rb"|SAVEPOINT|SELECT|UPDATE|VACUUM|WITH)(?=[\s;/(-]|\Z)"
)


def looks_like_sql_dump(head: bytes) -> bool:
    """Whether the first kilobytes of a file are SQL text: a statement, or the comments before one."""
    head = head.removeprefix(_BOM)
    if head.startswith(b"-----BEGIN PGP"):
        return False
    if _FIRST_WORDS.match(head):
        return True
    long_comment = head.lstrip().startswith((b"--", b"/*")) and re.match(_TRIVIA + rb"(?:/\*.*)?\Z", head, re.DOTALL)
    return bool(long_comment) and not re.search(rb"[\x00-\x08\x0e-\x1f\x7f]", head)


@dataclass(frozen=True)
class LoadedDump:
    """What came in; ``foreign_key_problems`` names tables, never rows (the database dumped may have had them)."""

    statements: int
    tables: int
    size: int
    foreign_key_problems: tuple[str, ...]


class UnusableDumpError(OperatorError):
    """The dump is incomplete, not SQL, too large, or does what a dump has no need to do."""

    exit_code = ExitCode.UNSOUND_BACKUP

    def __init__(self, reason: str, line: int, statement: int, sql: bytes = b"") -> None:
        self.line, self.statement = line, statement
        text = sql[: 4 * _EXCERPT].strip().decode(errors="replace")[:_EXCERPT]  # no more: rows are personal data
        # SQLite quotes what it stumbled over, which may be a whole row.
        reason = re.sub(r'"(.*)"', lambda quoted: quoted[0] if quoted[1] in text else '"…"', reason, flags=re.DOTALL)
        message = f"SQL dump, line {line}, statement {statement}: {reason}" + (f": {text}" if text else "")
        super().__init__(
            printable(message),
            hint="This backup cannot be restored as it is; nothing was changed. Choose another one (--list).",
        )


def load_sql_dump(
    dump: BinaryIO,
    connection: Any,
    *,
    progress: Callable[[int], object] = lambda _size: None,
    limit_bytes: int,
    limit_seconds: float,
) -> LoadedDump:
    """Run ``dump`` in ``connection``, an open and empty database in RAM (sqlite3 or sqlcipher3, isolation_level=None).

    It is faster by half with ``cached_statements=0``, since no statement comes twice; under ``journal_mode=OFF`` an
    error would name the wrong line. ``progress`` is told how many bytes of the dump were read so far.

    :raises UnusableDumpError: the database is then of no use.
    """
    loader = _Loader(dump, connection, progress, limit_bytes, time.monotonic() + limit_seconds)
    with _memory_limit(2 * limit_bytes + _ROOM), _guarded(connection, loader, limit_bytes):
        return loader.load()


# --- guards ------------------------------------------------------------------------------------------------------


@contextmanager
def _memory_limit(extra: int) -> Iterator[None]:
    """A row may say zeroblob(1e9) a thousand times, which no limit of SQLite's would stop before memory is full."""
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
    """Authorizer, clock and size limit for as long as the dump runs; what is taken away is given back."""
    page_size = int(connection.execute("PRAGMA page_size").fetchone()[0])  # SQLCipher gives it as text
    (page_limit,) = connection.execute("PRAGMA max_page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={max(1, limit_bytes // page_size)}")
    limits = {sqlite3.SQLITE_LIMIT_ATTACHED: 0, sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 200}
    can_limit = hasattr(connection, "setlimit")  # sqlcipher3 cannot
    before = {kind: connection.setlimit(kind, limit) for kind, limit in limits.items() if can_limit}
    own_unistr = not connection.execute("SELECT 1 FROM pragma_function_list WHERE name='unistr'").fetchone()
    if own_unistr:  # SQLite before 3.50
        connection.create_function("unistr", 1, _unistr, deterministic=True)
    connection.set_authorizer(loader.authorize)
    connection.set_progress_handler(loader.out_of_time, _INSTRUCTIONS)
    try:
        yield
    finally:
        connection.set_progress_handler(None, 0)
        connection.set_authorizer(None)
        connection.rollback()
        for kind, limit in before.items():
            connection.setlimit(kind, limit)
        if own_unistr:
            connection.create_function("unistr", 1, None)
        connection.execute(f"PRAGMA max_page_count={page_limit}")


def _unistr(text: str) -> str:
    """The SQL function by which newer shells write control characters; older libraries do not know it."""
    escape = re.compile(r"\\(?:(\\)|\+([0-9a-fA-F]{6})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-9a-fA-F]{4}))")
    return escape.sub(lambda found: found[1] or chr(int(next(filter(None, found.groups())), 16)), text)


# --- the loader --------------------------------------------------------------------------------------------------


class _Loader:
    """Reads, cuts and runs one dump. Lines and statements are counted from 1, where the statement at hand begins."""

    def __init__(
        self, dump: BinaryIO, connection: Any, progress: Callable[[int], object], limit_bytes: int, deadline: float
    ) -> None:
        self._dump, self._connection, self._progress = dump, connection, progress
        self._limit_bytes, self._deadline = limit_bytes, deadline
        self._buffer, self._position, self._size = b"", 0, 0
        self._line, self._statement = 1, 1
        self._one_by_one_until = 0  # rows up to here failed together: the one that fails is to be found
        self._select_allowed = False
        self._committed = False
        self._refusal = ""
        self._virtual: dict[str, tuple[str, str, frozenset[str]]] = {}  # name, SQL, shadow tables

    def load(self) -> LoadedDump:
        """Run the whole dump and check what it built."""
        self._read_on()
        self._position = len(_BOM) if self._buffer.startswith(_BOM) else 0
        while self._run_rows() or self._run_statement() or self._read_on():
            if self.out_of_time():
                raise self._error("took too long: the time limit is over")
        if not _ONLY_TRIVIA.match(self._buffer, self._position):
            raise self._error("incomplete: it ends in the middle of a statement", self._buffer[self._position :])
        if not self._committed or self._connection.in_transaction:
            raise self._error("incomplete: it ends without its COMMIT")
        self._refuse_reported_errors(self._buffer[self._position :])
        problems = self._foreign_key_problems()
        self._connection.set_authorizer(None)  # the dump has had its say
        self._attach_virtual_tables()
        return LoadedDump(self._statement - 1, self._count_tables(), self._size, problems)

    # --- reading ---

    def _read_on(self) -> bool:
        """Add to what is still to be run; doubling it, so that a long statement is not scanned too often."""
        pending = len(self._buffer) - self._position
        if pending > 2 * self._limit_bytes + _CHUNK:
            raise self._error("has a single statement that is larger than the size limit allows")
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

    # --- running ---

    def _run_rows(self) -> bool:
        """Run the INSERTs of plain values that come next for one table as one statement; False if there are none."""
        self._advance(_BLANKS.match(self._buffer, self._position).end(), 0)  # type: ignore[union-attr]  # empty matches
        head = _INSERT.match(self._buffer, self._position)
        if head is None:
            return False
        rows, end, floats = self._collect_rows(head[0])
        if not rows:
            return False
        self._require_transaction()
        if _unquoted(head["table"]) not in self._virtual:  # such rows are in its shadow tables, too
            values: list[object] = []
            try:
                sql = _with_values_apart(b",".join(rows), values, floats=floats)
                self._execute(head[0] + sql, values, select_allowed=True)
            except self._engine_errors() as error:
                if len(rows) > 1 and self._connection.in_transaction:
                    self._one_by_one_until = end
                    return True
                self._skip_or_raise(error, self._buffer[self._position : end])
        self._advance(end, len(rows))
        return True

    def _collect_rows(self, head: bytes) -> tuple[list[bytes], int, bool]:
        """The rows, in brackets, of INSERTs that begin with ``head``; where these end; whether floats are in them."""
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
        """Run the next statement, whatever it is, alone; False if the buffer holds no whole one."""
        found = _STATEMENT.match(self._buffer, self._position)
        if found is None:
            return False
        self._advance(found.start("sql"), 0)
        self._refuse_reported_errors(found["trivia"])
        sql = found["sql"]
        try:
            self._run_alone(sql[:-1].rstrip())  # the shell's line break before ; is not the statement's
        except self._engine_errors() as error:
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
        """Several rows, and ANALYZE, are a SELECT inside; in neither can the text of the dump hold one of its own."""
        self._refusal, self._select_allowed = "", select_allowed
        self._connection.execute(_decoded(sql), values)

    # --- virtual tables ---

    def _set_aside_virtual_table(self, create: bytes) -> None:
        """Let SQLite judge the statement in a scratch database, and keep what it makes of it.

        A dump holds the tables in which a virtual table keeps its content, so it can only be put in place after them.
        """
        if b"compress" in create.lower():
            raise self._error("names functions for a virtual table to call", create)
        scratch = type(self._connection)(":memory:", isolation_level=None)
        try:
            scratch.set_authorizer(self._authorize_virtual_table)
            scratch.execute(_decoded(create))
            scratch.set_authorizer(None)
            made = scratch.execute("SELECT name, sql, rootpage FROM sqlite_master WHERE type='table'").fetchall()
        finally:
            scratch.close()
        virtual = [(name, sql) for name, sql, rootpage in made if rootpage == 0]
        if len(virtual) != 1 or virtual[0][0].lower() in self._virtual:
            raise self._error("creates a virtual table in a way that no dumper does", create)
        shadows = frozenset(name.lower() for name, _, rootpage in made if rootpage)
        self._virtual[virtual[0][0].lower()] = (*virtual[0], shadows)

    def _authorize_virtual_table(
        self, action: int, _first: str | None, second: str | None, _database: str | None, _source: str | None
    ) -> int:
        if action == sqlite3.SQLITE_ATTACH or (
            action == sqlite3.SQLITE_CREATE_VTABLE and (second or "").lower() not in _MODULES
        ):
            self._refusal = f"must not use the virtual table module {second}"
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    def _attach_virtual_tables(self) -> None:
        """Enter the virtual tables in the schema, as SQLite wrote them down; the dump itself was never let near it."""
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
        except self._engine_errors() as error:
            raise self._error(f"a virtual table is damaged: {error}") from None

    # --- checks ---

    def authorize(
        self, action: int, first: str | None, second: str | None, database: str | None, source: str | None
    ) -> int:
        """SQLite asks this for everything that a statement, or a trigger which it fires, is about to do."""
        first, second = (first or "").lower(), (second or "").lower()
        if action == sqlite3.SQLITE_PRAGMA and first in _IGNORED_PRAGMAS:
            return sqlite3.SQLITE_IGNORE
        allowed = {
            sqlite3.SQLITE_PRAGMA: first in _PRAGMAS,
            sqlite3.SQLITE_FUNCTION: second in _FUNCTIONS,
            sqlite3.SQLITE_TRANSACTION: first != "rollback",
            sqlite3.SQLITE_DELETE: first == "sqlite_sequence" or first.startswith("sqlite_stat"),
            sqlite3.SQLITE_UPDATE: first in {"sqlite_master", "sqlite_schema"},  # SQLite's own part of a CREATE
            sqlite3.SQLITE_SELECT: self._select_allowed,
        }.get(action, action in _BUILDING and database == "main")
        if allowed and not source:
            return sqlite3.SQLITE_OK
        if source:
            self._refusal = f"would set off the trigger or view {source} during the load"
        elif action == sqlite3.SQLITE_TRANSACTION:
            self._refusal = "incomplete: its dumper met errors and gave up"
        else:
            detail = second if action == sqlite3.SQLITE_FUNCTION else first
            self._refusal = f"must not use {_ACTIONS.get(action, f'action {action}')} {detail}".rstrip()
        return sqlite3.SQLITE_DENY

    def out_of_time(self) -> bool:
        """Whether to stop here; SQLite asks every few thousand instructions."""
        return time.monotonic() > self._deadline

    def _require_transaction(self) -> None:
        if not self._connection.in_transaction:
            raise self._error("stands outside BEGIN and COMMIT, so that nothing shows whether the dump is complete")

    def _refuse_reported_errors(self, trivia: bytes) -> None:
        if _REPORTED_ERROR.search(trivia):
            raise self._error("incomplete: its dumper reported a damaged database", trivia.lstrip())

    def _foreign_key_problems(self) -> tuple[str, ...]:
        try:
            rows = self._connection.execute("PRAGMA foreign_key_check")
            count = Counter((child, parent) for child, _, parent, _ in rows)
        except self._engine_errors() as error:
            if self.out_of_time():
                self._skip_or_raise(error, b"")
            return (str(error),)  # a key that fits no parent: the database dumped had it, and worked
        return tuple(f"{child} → {parent}: {plural(number, 'row')}" for (child, parent), number in count.items())

    def _count_tables(self) -> int:
        (tables,) = self._connection.execute(
            "SELECT count(*) FROM sqlite_master WHERE type='table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        ).fetchone()
        if not tables:
            raise self._error("builds no table")
        return int(tables)

    # --- errors ---

    def _engine_errors(self) -> tuple[type[Exception], ...]:
        """Both engines have classes of their own; ValueError is a NUL or broken UTF-8 outside of a string."""
        return (self._connection.Error, self._connection.Warning, MemoryError, ValueError)

    def _skip_or_raise(self, error: Exception, sql: bytes) -> None:
        reason = str(error)
        if re.fullmatch(r"no such table: sqlite_(sequence|stat[0-9])", reason):
            return  # left over from a table that was dropped, or statistics that this library does not keep: no data
        if isinstance(error, MemoryError):
            reason = "needs more memory than the size limit allows"
        elif "is full" in reason:
            reason = f"builds a database larger than the limit of {self._limit_bytes} bytes"
        elif self.out_of_time():
            reason = "took too long: the time limit is over"
        raise self._error(self._refusal or reason, sql) from None

    def _error(self, reason: str, sql: bytes = b"") -> UnusableDumpError:
        return UnusableDumpError(reason, self._line, self._statement, sql)


# --- text --------------------------------------------------------------------------------------------------------


def _unquoted(name: bytes) -> str:
    """A table's name as SQLite compares it."""
    quote = name[:1]
    if quote in {b'"', b"'", b"`", b"["}:
        name = name[1:-1].replace(quote * 2, quote)
    return name.decode(errors="replace").lower()


def _with_values_apart(rows: bytes, values: list[object], *, floats: bool) -> bytes:
    """Replace floats by parameters, in long text every literal; what they stand for is added to ``values``.

    Python reads floats exactly, and inf and nan, which it and older shells write; SQLite is off by a bit now and then.
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
        values.extend(map(float, filter(None, numbers)))  # in so short a text there are fewer than _PARAMETERS
        return b"?".join(texts[: len(values) + 1])
    return rows


def _decoded(sql: bytes) -> str:
    """As text without NUL, at which SQLite would stop reading; rows may hold NUL and, from the shell, broken UTF-8."""
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
