"""What is in a schema, and placeholders for what it takes that is not here: functions and collations of the bot."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from backuplib.errors import NeedsTheBotError
from backuplib.formatting import quoted_identifier, shortened, some_of

WIDTH = 60  # characters of a name in a message

# A statement that fails for want of a name, or because SQLite refuses a function in a schema
_MISSING = re.compile(
    r"(?:no such|unknown) function: (?P<function>.+?)(?:\(\))?\Z|no such collation sequence: (?P<collation>.+)"
    r"|no such tokenizer: (?P<tokenizer>.+)",
    re.DOTALL,
)
_REFUSED = re.compile(
    r"(?:not authorized to use function: |non-deterministic use of |unable to use function )(?P<function>\w+)"
)
_VIRTUAL = re.compile(r"create\s+virtual\s+table\b", re.IGNORECASE)
INNOCUOUS = 0x200000  # SQLITE_INNOCUOUS: may be used in a schema that is not trusted
_MOST = 100  # placeholders


@dataclass(frozen=True)
class Entry:
    """An entry of the schema. ``escaped``: ``name`` or ``sql`` is not valid text; ``raw`` is the name as it is."""

    type: str
    name: str
    table: str
    sql: str
    raw: bytes
    escaped: bool = False

    @property
    def internal(self) -> bool:
        return self.name.startswith("sqlite_")

    @property
    def virtual(self) -> bool:
        return self.type == "table" and _VIRTUAL.match(self.sql) is not None


def read_schema(connection: Any) -> list[Entry]:
    """Return everything in the schema."""
    encoding = str(connection.execute("PRAGMA encoding").fetchone()[0])
    columns = ", ".join(f"CAST({column} AS BLOB)" for column in ("type", "name", "tbl_name", "sql"))
    found = []
    for row in connection.execute(f"SELECT {columns} FROM sqlite_master").fetchall():
        texts = [decoded(part or b"", encoding) for part in row]
        kind, name, table, sql = (text for text, _ in texts)
        found.append(Entry(kind, name, table, sql, row[1] or b"", any(escaped for _, escaped in texts)))
    return found


def decoded(text: bytes, encoding: str) -> tuple[str, bool]:
    """Return a text, and whether some of it had to be escaped."""
    try:
        return text.decode(encoding), False
    except UnicodeDecodeError:
        return text.decode(encoding, "backslashreplace"), True


def engine_errors(connection: Any) -> tuple[type[Exception], type[UnicodeDecodeError]]:
    """Return the exceptions of a connection; UnicodeDecodeError: its messages may quote names that are not text."""
    return (connection.Error, UnicodeDecodeError)


def is_newest(connection: Any) -> bool:
    """Whether a connection is of apsw, which can register more than those of sqlite3 and sqlcipher3."""
    return hasattr(connection, "register_fts5_tokenizer")


def error_text(error: BaseException) -> str:
    """Return the message of an exception; what is not valid text in it is escaped."""
    text = error.object if isinstance(error, UnicodeDecodeError) else str(error)
    return text.decode(errors="backslashreplace") if isinstance(text, bytes) else text


def given(found: re.Match[str]) -> tuple[str, str]:
    """Return the one group that matched: its name and its text."""
    return next((kind, text) for kind, text in found.groupdict().items() if text is not None)


def shown_name(name: str) -> str:
    """Return a name as it is put into a message."""
    return shortened(name, WIDTH)


# --- placeholders ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Suspects:
    """What takes a name that has only a placeholder: it is not as the bot sees it, or cannot be checked."""

    tables: frozenset[str] = frozenset()
    columns: frozenset[str] = frozenset()  # generated ones, as "table.column"
    stored: frozenset[str] = frozenset()  # tables with such columns that are stored
    indexes: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()  # tables without rowids that lie in the order of a collation


def _null(*_: object) -> None:
    """Stand in for any function."""


class Placeholders:
    """Stand on a connection for the functions, collations and tokenizers that a schema takes and SQLite lacks.

    A function gives NULL, with which a CHECK holds; a collation compares bytes; a tokenizer finds no words.

    :param spare: a function that must stay, though it could do harm in a hostile schema.
    """

    def __init__(self, connection: Any, *, spare: str = "") -> None:
        self._connection = connection
        self._spare = spare
        self._newest = is_newest(connection)
        self._names: dict[str, dict[str, str]] = {"function": {}, "collation": {}, "tokenizer": {}}
        self._refused: set[str] = set()  # functions that SQLite has, but not for such a use

    @functools.cached_property
    def version(self) -> str:
        """The version of SQLite that looks at the schema."""
        with self._empty() as empty:
            return str(empty.execute("SELECT sqlite_version()").fetchone()[0])

    def _empty(self) -> contextlib.closing[Any]:
        """Return a connection like this one that has no schema, which may be what cannot be read."""
        return contextlib.closing(type(self._connection)(":memory:"))

    def __bool__(self) -> bool:
        """Whether there are some."""
        return any(self._names.values())

    def has_function(self, name: str) -> bool:
        """Whether a function is only a placeholder."""
        return name.lower() in self._names["function"]

    def adopt(self, other: Placeholders) -> None:
        """Register what is registered on another connection."""
        self._refused |= other._refused
        for kind, names in other._names.items():
            for name in names.values():
                self._register(kind, name)

    def for_lack(self, error: BaseException) -> bool:
        """Register what a statement failed for; False where nothing new can be."""
        missing = _MISSING.search(error_text(error))
        return missing is not None and self._register(*given(missing))

    def for_refusal(self, error: BaseException) -> bool:
        """Replace a function that SQLite has, but refuses in a schema, or to a connection."""
        refused = _REFUSED.search(error_text(error))
        if not refused:
            return False
        self._refused.add(refused["function"].lower())
        return self._register("function", refused["function"])

    def _register(self, kind: str, name: str) -> bool:
        names = self._names[kind]
        full = sum(map(len, self._names.values())) >= _MOST
        if full or name.lower() in names or (kind == "tokenizer" and not self._newest):
            return False
        names[name.lower()] = name
        if kind == "collation":
            self._connection.create_collation(name, lambda one, other: (one > other) - (one < other))
        elif kind == "tokenizer":
            self._connection.register_fts5_tokenizer(name, lambda *_: lambda *_: [])
        else:
            self._register_function(name)
        return True

    def _register_function(self, name: str) -> None:
        functions = []
        with self._empty() as empty:
            known = "SELECT DISTINCT name, narg FROM pragma_function_list WHERE "
            if name.lower() in self._refused:
                functions += empty.execute(f"{known} name = ? COLLATE NOCASE", (name,)).fetchall()
            if not self._newest:  # a placeholder is not innocuous: the schema is trusted, without all that could harm
                functions += empty.execute(f"{known} NOT flags & {INNOCUOUS} AND name <> ?", (self._spare,)).fetchall()
                self._connection.execute("PRAGMA trusted_schema = ON")
        for other, arguments in [*functions, (name, -1)]:
            if self._newest:
                options = {"deterministic": True, "flags": INNOCUOUS}
                self._connection.create_scalar_function(other, _null, arguments, **options)
            else:
                self._connection.create_function(other, arguments, _null, deterministic=True)

    def lacks(self, kind: str, name: str) -> str:
        """Return in words that SQLite has no such thing."""
        return f"SQLite {self.version} has no {kind} {shown_name(name)}, which the bot must have"

    def explained(self, schema: list[Entry]) -> list[tuple[str, str]]:
        """Return for each in words what it stands for and where that is used, and a table of those."""
        found = []
        for kind, names in self._names.items():
            for lower, name in names.items():
                users = _mentioning(schema, [name])
                names_of_users = [entry.name for entry in users] or ["the schema"]
                refused = f"SQLite {self.version} refuses the function {shown_name(name)} there"
                text = refused if lower in self._refused else self.lacks(kind, name)
                text = f"{text}; not checked: its use in {some_of(names_of_users, WIDTH)}"
                found.append((text, users[0].table if users else ""))
        return found

    def suspects(self, schema: list[Entry]) -> Suspects:
        """Return what in a schema takes one of them."""
        entries = _mentioning(schema, [name for names in self._names.values() for name in names]) if self else []
        tables = {entry.name for entry in entries if entry.type == "table"}
        indexes = {entry.name for entry in entries if entry.type == "index"}
        columns, stored, keys = set(), set(), set()
        query = self._connection.execute
        for table in (entry.name for entry in entries if entry.type == "table" and not entry.virtual):
            generated = query(
                "SELECT cid, name, hidden FROM pragma_table_xinfo(?) WHERE hidden > 1", (table,)
            ).fetchall()
            columns |= {f"{table}.{name}" for _, name, _ in generated}
            stored |= {table for _, _, hidden in generated if hidden == 3}
            numbers = {number for number, _, _ in generated}
            for index, origin in query("SELECT name, origin FROM pragma_index_list(?)", (table,)).fetchall():
                parts = query("SELECT cid, coll FROM pragma_index_xinfo(?)", (index,)).fetchall()
                if any(cid in numbers or str(coll).lower() in self._names["collation"] for cid, coll in parts):
                    indexes.add(index)
                    keys |= {table} if origin == "pk" else set()
        return Suspects(*map(frozenset, (tables, columns, stored, indexes, keys)))

    def leave_out(self, schema: str = "main") -> list[str]:
        """Drop the indexes of a database built with placeholders that would mislead the bot, and name them for people.

        :raises NeedsTheBotError: where rows, or an index that a table cannot do without, would be wrong.
        """
        suspects = self.suspects(read_schema(self._connection))
        names = [f"{kind} {name}" for kind, names in self._names.items() for name in names.values()]
        automatic = {index for index in suspects.indexes if index.startswith("sqlite_autoindex_")}
        if suspects.stored or suspects.keys or automatic:
            what = some_of(sorted({*suspects.stored, *suspects.keys, *automatic}), WIDTH)
            raise NeedsTheBotError(
                f"cannot build {what}: SQLite {self.version} has no {some_of(names, WIDTH)}; only the bot has it"
            )
        for index in suspects.indexes:
            self._connection.execute(f"DROP INDEX {schema}.{quoted_identifier(index)}")
        return [
            f"index {shown_name(index)} is left out: SQLite {self.version} has no {some_of(names, WIDTH)}; create it "
            "where the bot runs"
            for index in sorted(suspects.indexes)
        ]


# --- rows that a constraint refuses ----------------------------------------------------------------------------------

_TRIVIA = r"(?:\s|--[^\n]*(?:\n|$)|/\*(?s:.*?)\*/)*"
_TOKEN = re.compile(
    rf"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|--[^\n]*|/\*(?s:.*?)\*/|[()]"""
    rf"""|\b(?P<not_null>NOT{_TRIVIA}NULL\b(?:{_TRIVIA}ON{_TRIVIA}CONFLICT{_TRIVIA}\w+)?)|\w+|(?s:.)""",
    re.IGNORECASE,
)


def without_not_null(sql: str) -> str:
    """Return a CREATE TABLE statement without the NOT NULL of its columns; expressions, in brackets, keep theirs."""
    depth, kept = 0, []
    for token in _TOKEN.finditer(sql):
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        kept.append("" if token["not_null"] and depth == 1 else token[0])
    return "".join(kept)


def set_table_sql(connection: Any, schema: str, table: str, sql: str) -> None:
    """Exchange the statement that a table was made by; the rows must fit the new one."""
    connection.execute("PRAGMA writable_schema = ON")
    update = f"UPDATE {schema}.sqlite_master SET sql = ? WHERE type = 'table' AND name = ?"
    connection.execute(update, (sql, table))
    connection.execute("PRAGMA writable_schema = RESET")


def _mentioning(schema: list[Entry], names: Iterable[str]) -> list[Entry]:
    """Return the tables and indexes whose SQL holds one of these words."""
    words = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)", re.IGNORECASE)
    return [entry for entry in schema if entry.type in {"table", "index"} and words.search(entry.sql)]
