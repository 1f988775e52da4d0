"""What is wrong with a database, told from what SQLite says when it checks one. Findings are of three kinds:

structure  pages or indexes are damaged: such a backup is refused
content    a constraint would refuse some of the rows today; SQLite lets them in in many ways
unchecked  takes what only the bot has, or a newer SQLite; everything else is checked
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import apsw

from backuplib.errors import DamagedDatabaseError
from backuplib.formatting import plural, printable, shortened, some_of

STRUCTURE, CONTENT, UNCHECKED = "structure", "content", "unchecked"

# --- what SQLite says ------------------------------------------------------------------------------------------------

# All messages of PRAGMA integrity_check, SQLite 3.31 to 3.54: btree.c, pragma.c, rtree.c, fts3.c, fts5.c.
# What is not here counts as structure.
MESSAGES = tuple(
    (re.compile(pattern, re.DOTALL), kind, words)
    for pattern, kind, words in (
        (r"CHECK constraint failed in (?P<table>.+)", CONTENT, "a CHECK would refuse"),
        (r"NULL value in (?P<column>.+)", CONTENT, "with NULL in {column}, which is NOT NULL"),
        (r"non-(?P<type>[A-Z]+) value in (?P<column>.+)", CONTENT, "with another type than {type} in {column}"),
        (r"NUMERIC value in (?P<column>.+)", CONTENT, "with a number in {column}, which is TEXT"),
        (r"TEXT value in (?P<column>.+)", CONTENT, "with text in {column}, which is numeric"),
        (r"non-unique entry in index (?P<index>.+)", CONTENT, "that the UNIQUE index {index} would refuse"),
        # an index does not fit its table
        (r"row \d+ missing from index (?P<index>.+)", STRUCTURE, ""),
        (r"row \d+ values differ from index (?P<index>.+)", STRUCTURE, ""),
        (r"rowid not at end-of-record for row \d+ of index (?P<index>.+)", STRUCTURE, ""),
        (r"wrong # of entries in index .+", STRUCTURE, ""),
        (r"row not in PRIMARY KEY order for (?P<key_of>.+)", STRUCTURE, ""),
        # virtual tables
        (r"malformed inverted index for FTS\d table \w+\.(?P<words_of>.+)", STRUCTURE, ""),
        (r"unable to validate the inverted index for FTS\d table \w+\.(?P<words_of>.+): .+", STRUCTURE, ""),
        (r"In RTree .+", STRUCTURE, ""),
        # pages, b-trees, cells; a prefix says where: "Tree 5 page 7 cell 3: ", before 3.42 "On tree page 7 cell 3: "
        (r"(?:.*: )?(?:2nd reference to|invalid) page (?:number )?\d+", STRUCTURE, ""),
        (r"(?:.*: )?(?:failed to get page \d+|unable to get the page\. error code=\d+)", STRUCTURE, ""),
        (r"(?:.*: )?btreeInitPage\(\) returns error code \d+", STRUCTURE, ""),
        (r"(?:.*: )?free space corruption", STRUCTURE, ""),
        (r"(?:.*: )?Offset \d+ out of range \d+\.\.\d+", STRUCTURE, ""),
        (r"(?:.*: )?Extends off end of page", STRUCTURE, ""),
        (r"(?:.*: )?Rowid -?\d+ out of order.*", STRUCTURE, ""),
        (r"(?:.*: )?Child page depth differs", STRUCTURE, ""),
        (r"(?:.*: )?Multiple uses for byte \d+ of page \d+", STRUCTURE, ""),
        (r"(?:.*: )?Fragmentation of \d+ bytes reported as \d+ on page \d+", STRUCTURE, ""),
        (r"(?:.*: )?(?:overflow list length|size) is \d+ but should be \d+", STRUCTURE, ""),
        (r"(?:.*: )?\d+ of \d+ pages missing from overflow list.*", STRUCTURE, ""),
        (r"(?:.*: )?freelist leaf count too big on page \d+", STRUCTURE, ""),
        (r"(?:.*: )?Failed to read ptrmap key=\d+", STRUCTURE, ""),
        (r"(?:.*: )?Bad ptr map entry key=\d+ expected=\(.*\) got=\(.*\)", STRUCTURE, ""),
        (r"Pointer map page \d+ is referenced|Page \d+: pointer map referenced", STRUCTURE, ""),
        (r"(?P<unused>Page \d+(?: is|:) never used)", STRUCTURE, ""),
        (r"max rootpage \(\d+\) disagrees with header \(\d+\)", STRUCTURE, ""),
        (r"incremental_vacuum enabled with a max rootpage of zero", STRUCTURE, ""),
        (r"Outstanding page count goes from \d+ to \d+ during this analysis", STRUCTURE, ""),
        (r"database disk image is malformed", STRUCTURE, ""),
    )
)

# A statement that fails for want of a name, of what the bot registers on its connection or a newer SQLite has
_MISSING = re.compile(
    r"(?:no such function: |unknown function: |not authorized to use function: |wrong number of arguments to function "
    r"|unsafe use of |non-deterministic use of |unable to use function )(?P<function>\w+)"
    r"|no such collation sequence: (?P<collation>.+)|no such tokenizer: (?P<tokenizer>.+)",
    re.DOTALL,
)
_MALFORMED = re.compile(r"malformed database schema \((?P<name>.*?)\) - (?P<reason>.*)", re.DOTALL)
_SYNTAX = re.compile(r"syntax error|unrecognized token|unknown (?:table option|datatype|join type)|incomplete input")
_NOT_HERE = re.compile(r"no such module: (?P<module>.+)|(?:no such|unknown) tokenizer: (?P<tokenizer>.+)", re.DOTALL)
_VIRTUAL = re.compile(r"create\s+virtual\s+table\b", re.IGNORECASE)
_FTS5 = re.compile(r"\busing\s+\W?fts5\b", re.IGNORECASE)
_MOST_STUBS = 100
_EVERYTHING = 10**9  # messages: an end would hide damage behind content
_CAP = 100  # messages about one table: SQLite takes no other number together with its name
_CAPPED = "SELECT CAST(integrity_check AS BLOB) FROM pragma_integrity_check"  # for names that are not valid text
_WIDTH = 60  # characters of a name
_ROWIDS = re.compile(r"(?<=owid )-?\d+|(?<=Mapping \()-?\d+ -> -?\d+")
_INNOCUOUS = 0x200000  # SQLITE_INNOCUOUS: may be used in a schema that is not trusted

# SQLITE_ERROR, _TOOBIG, _MISMATCH, _AUTH, _RANGE: a statement that fails, not a file that is damaged or in use
_STATEMENT_FAILS = {1, 18, 20, 23, 25}


@dataclass(frozen=True)
class Finding:
    """One of them, in words for people without values of rows; ``count`` is the number of rows or problems."""

    kind: str
    text: str
    table: str = ""
    count: int = 1


def is_damaged(findings: Iterable[Finding]) -> bool:
    """Whether one of them is structural."""
    return any(finding.kind == STRUCTURE for finding in findings)


def refuse_damaged(findings: Iterable[Finding]) -> None:
    """Raise DamagedDatabaseError when one of them is structural."""
    for finding in findings:
        if finding.kind == STRUCTURE:
            raise DamagedDatabaseError(f"the database is corrupted: {finding.text}")


def classify(message: str) -> tuple[str, str, dict[str, str]]:
    """Return the kind of a message of integrity_check, the words for it, and the names in it."""
    for pattern, kind, words in MESSAGES:
        if found := pattern.fullmatch(message):
            return kind, words, found.groupdict()
    return STRUCTURE, "", {}


def error_code(error: BaseException) -> int:
    """Return SQLite's primary result code of an exception; 0 for another one."""
    code = getattr(error, "result", None) or getattr(error, "sqlite_errorcode", None) or 0
    return int(code) & 0xFF


def find(connection: Any, *, newer: bool = False, content: bool = True) -> list[Finding]:
    """Check the structure of a database, and its rows against its schema.

    :param connection: of apsw, sqlcipher3 or sqlite3. Placeholders for what it lacks are registered on it.
    :param newer: the schema may take a newer SQLite than this one: what is not understood is left out.
    :param content: whether foreign keys are looked at, too.
    :raises: the connection's errors, when the file is so damaged that it cannot be opened, or is locked.
    """
    check = _Check(connection, newer=newer)
    found = check.structure_and_content()
    if is_damaged(found):
        return found
    return [*found, *(check.foreign_keys() if content else ()), *check.unchecked()]


@dataclass(frozen=True)
class Entry:
    """An entry of the schema. ``escaped``: ``name`` or ``sql`` is not valid text; ``raw`` is the name as it is."""

    type: str
    name: str
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
    columns = "CAST(type AS BLOB), CAST(name AS BLOB), CAST(sql AS BLOB)"
    found = []
    for row in connection.execute(f"SELECT {columns} FROM sqlite_master").fetchall():
        kind, name, sql = (_decoded(part or b"", encoding) for part in row)
        found.append(Entry(kind[0], name[0], sql[0], row[1] or b"", name[1] or sql[1]))
    return found


def error_text(error: BaseException) -> str:
    """Return the message of an exception; one that quotes a name which is not valid text is escaped."""
    text = error.object if isinstance(error, UnicodeDecodeError) else str(error)
    return text.decode(errors="backslashreplace") if isinstance(text, bytes) else text


# --- the check -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Suspects:
    """What takes a name that has only a placeholder: what SQLite says about it may be wrong."""

    tables: frozenset[str] = frozenset()
    columns: frozenset[str] = frozenset()  # generated ones, as "table.column"
    indexes: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()  # tables without rowids that lie in the order of a collation

    def concern(self, names: dict[str, str]) -> bool:
        """Whether a message that names these is about one of them."""
        return (
            names.get("table", names.get("words_of")) in self.tables
            or names.get("column") in self.columns
            or names.get("index") in self.indexes
            or names.get("key_of") in self.keys
        )


class _Check:
    """One check of one database."""

    def __init__(self, connection: Any, *, newer: bool) -> None:
        self._connection = connection
        self._newest = isinstance(connection, apsw.Connection)
        self._errors = (apsw.Error if self._newest else connection.Error, UnicodeDecodeError)
        self._encoding = str(connection.execute("PRAGMA encoding").fetchone()[0])
        self._stubs: dict[str, dict[str, str]] = {"function": {}, "collation": {}, "tokenizer": {}}
        self._refused: set[str] = set()  # functions that SQLite has, but not for such a use
        self._suspects = _Suspects()
        self._unchecked: list[Finding] = []
        self._left_out = False  # something is not in the schema as it was read: its pages seem unused
        self._said: Counter[str] = Counter()  # messages of the last statement
        if not self._newest:
            connection.text_factory = lambda text: text.decode(errors="backslashreplace")
        self._version = connection.execute("SELECT sqlite_version()").fetchone()[0]
        self._schema: list[Entry] = []
        self._schema = self._open_schema(newer=newer)
        self._suspects = self._find_suspects()
        self._broken = self._open_virtual_tables()

    def _open_schema(self, *, newer: bool) -> list[Entry]:
        def read() -> list[Entry]:
            return read_schema(self._connection)

        try:
            return list(self._retried(read))
        except self._errors as error:
            malformed = _MALFORMED.search(error_text(error))
            if not malformed or not newer or not _SYNTAX.search(malformed["reason"]):
                raise
        name, reason = malformed["name"], shortened(malformed["reason"], _WIDTH)
        self._note(name, f"SQLite {self._version} does not understand the schema of {_name(name)}: {reason}")
        self._connection.execute("PRAGMA writable_schema = ON")  # what cannot be read is passed over then
        self._left_out = True
        return list(self._retried(read))

    def _open_virtual_tables(self) -> list[Entry]:
        """Note which cannot be opened here; return those with which a check of the whole database fails."""
        broken = []
        for entry in (entry for entry in self._schema if entry.virtual):
            queries = ["SELECT 1 FROM {0} LIMIT 0"]
            queries += ["SELECT 1 FROM {0} WHERE {0} MATCH 'a' LIMIT 1"] if _FTS5.search(entry.sql) else []
            try:
                for query in queries:
                    self._run(query.format('"' + entry.name.replace('"', '""') + '"'))
            except self._errors as error:
                if lacks := _NOT_HERE.search(error_text(error)):  # else the check will say what is wrong
                    kind, name = _given(lacks)
                    self._note(entry.name, f"{self._lacks(kind, name)}: table {_name(entry.name)} was not checked")
                    broken += [entry] if kind == "tokenizer" else []
        return broken

    def _note(self, table: str, text: str) -> None:
        self._unchecked.append(Finding(UNCHECKED, text, table))

    def _lacks(self, kind: str, name: str) -> str:
        return f"SQLite {self._version} has no {kind} {_name(name)}, which the bot must have"

    # --- what the connection lacks -------------------------------------------------------------------------------

    def _run(self, sql: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        return list(self._retried(lambda: self._connection.execute(sql, values).fetchall()))

    def _retried(self, step: Callable[[], Any]) -> Any:
        """Run a step anew with a placeholder for each name that it lacks."""
        for _ in range(_MOST_STUBS):
            try:
                return step()
            except self._errors as error:
                missing = _MISSING.search(error_text(error))
                if not missing or not self._stub(*_given(missing)):
                    raise
        return step()

    def _stub(self, kind: str, name: str) -> bool:
        """Register a placeholder; False where there is one already, or none is possible."""
        if name.lower() in self._stubs[kind] or (kind == "tokenizer" and not self._newest):
            return False
        self._stubs[kind][name.lower()] = name
        if kind == "collation":
            self._connection.create_collation(name, lambda one, other: (one > other) - (one < other))
        elif kind == "tokenizer":
            self._connection.register_fts5_tokenizer(name, lambda *_: lambda *_: [])
        else:
            self._stub_function(name)
        self._suspects = self._find_suspects()
        return True

    def _stub_function(self, name: str) -> None:
        def functions(condition: str, *values: object) -> list[tuple[str, int]]:
            query = f"SELECT DISTINCT name, narg FROM pragma_function_list WHERE {condition}"
            return list(self._connection.execute(query, values).fetchall())

        stubs = functions("lower(name) = ?", name.lower())
        self._refused |= {name.lower()} if stubs else set()
        stubs.append((name, -1))
        if self._newest:
            for _, number in stubs:
                self._connection.create_scalar_function(name, _null, number, deterministic=True, flags=_INNOCUOUS)
            return
        # Here a placeholder does not count as innocuous: the schema is trusted, and all that could do harm is replaced.
        for other, number in [*functions(f"NOT flags & {_INNOCUOUS}"), *stubs]:
            self._connection.create_function(other, number, _null, deterministic=True)
        self._connection.execute("PRAGMA trusted_schema = ON")

    def _mentioning(self, names: Iterable[str]) -> list[Entry]:
        """Return the tables and indexes whose SQL holds one of these words."""
        words = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)", re.IGNORECASE)
        return [entry for entry in self._schema if entry.type in {"table", "index"} and words.search(entry.sql)]

    def _find_suspects(self) -> _Suspects:
        stubs = [name for names in self._stubs.values() for name in names]
        entries = self._mentioning(stubs) if stubs else []
        tables = {entry.name for entry in entries if entry.type == "table"}
        indexes = {entry.name for entry in entries if entry.type == "index"}
        columns, keys = set(), set()
        execute = self._connection.execute
        for table in (entry.name for entry in entries if entry.type == "table" and not entry.virtual):
            hidden = "SELECT cid, name FROM pragma_table_xinfo(?) WHERE hidden IN (2, 3)"
            generated = dict(execute(hidden, (table,)).fetchall())
            columns |= {f"{table}.{name}" for name in generated.values()}
            for index, origin in execute("SELECT name, origin FROM pragma_index_list(?)", (table,)).fetchall():
                parts = execute("SELECT cid, coll FROM pragma_index_xinfo(?)", (index,)).fetchall()
                if any(cid in generated or str(coll).lower() in self._stubs["collation"] for cid, coll in parts):
                    indexes.add(index)
                    keys |= {table} if origin == "pk" else set()
        return _Suspects(*map(frozenset, (tables, columns, indexes, keys)))

    # --- structure and content -----------------------------------------------------------------------------------

    def structure_and_content(self) -> list[Finding]:
        """Check the database as a whole; where a statement fails for other reasons than damage, table by table."""
        try:
            if not self._broken:
                self._check_whole()
                return self._findings(self._said)
        except self._errors as error:
            if not _statement_fails(error):
                raise
        found = self._findings(self._said)  # pages are checked before rows, of which one cannot be looked at
        if is_damaged(found):
            return found
        said: Counter[str] = Counter()
        own = Entry("table", "sqlite_schema", "", "sqlite_schema".encode(self._encoding))
        for entry in [own, *self._schema]:
            if entry.type == "table" and entry not in self._broken:
                self._check_table(entry)
                said += self._said
        if self._broken and self._newest:
            self._check_without_full_text()
            said += Counter({text: count for text, count in self._said.items() if classify(text)[0] == STRUCTURE})
        return self._findings(said)

    def _check_whole(self) -> None:
        if self._newest and any(entry.escaped for entry in self._schema):
            self._retried(lambda: self._listen(_CAPPED))
            if self._said.total() >= _CAP:
                raise apsw.TooBigError  # each table alone, then
        else:
            self._retried(lambda: self._listen(f"PRAGMA integrity_check({_EVERYTHING})"))

    def _check_table(self, entry: Entry) -> None:
        def check() -> None:
            self._retried(lambda: self._listen(f"{_CAPPED}(CAST(? AS TEXT))", (entry.raw,)))

        try:
            check()
        except self._errors as error:
            if not _statement_fails(error):
                raise
            self._note(entry.name, f"table {_name(entry.name)} could not be checked as a whole: {_reason(error)}")
            self._connection.execute("PRAGMA ignore_check_constraints = ON")
            try:
                check()
            except self._errors as again:
                if not _statement_fails(again):
                    raise
            finally:
                self._connection.execute("PRAGMA ignore_check_constraints = OFF")
        if self._said.total() >= _CAP:
            self._note(entry.name, f"table {_name(entry.name)} was not checked further after {_CAP} findings")

    def _check_without_full_text(self) -> None:
        """Check all but the full-text tables, one of which cannot be opened."""
        for module in ("fts3", "fts4"):
            self._connection.create_module(module, None)
        self._connection.execute("PRAGMA writable_schema = RESET")  # forgets those that are open
        try:
            self._check_whole()
        except self._errors as error:
            if not _statement_fails(error):
                raise

    def _listen(self, sql: str, values: tuple[object, ...] = ()) -> None:
        """Collect what a check says, up to the first sign of damage."""
        self._said = Counter()
        for (text,) in self._connection.execute(sql, values):
            for message in _messages(_decoded(text, self._encoding)[0] if isinstance(text, bytes) else text):
                kind, _, names = classify(message)
                if self._suspects.concern(names) or ("unused" in names and names["unused"] and self._left_out):
                    continue
                self._said[message] += 1
                if kind == STRUCTURE:
                    return

    def _findings(self, said: Counter[str]) -> list[Finding]:
        found = []
        for message, count in said.items():
            kind, words, names = classify(message)
            if kind == STRUCTURE:
                found.append(Finding(kind, shortened(_ROWIDS.sub("…", message), 2 * _WIDTH)))
                continue
            table, column = self._split(names)
            words = words.format(column=_name(column), index=_name(names.get("index", "")), type=names.get("type", ""))
            found.append(Finding(kind, f"table {_name(table)}: {plural(count, 'row')} {words}", table, count))
        return found

    def _split(self, names: dict[str, str]) -> tuple[str, str]:
        """Return table and column that a message names."""
        if index := names.get("index"):
            rows = self._connection.execute("SELECT tbl_name FROM sqlite_master WHERE name = ?", (index,)).fetchall()
            return (str(rows[0][0]) if rows else "", "")
        if "column" not in names:
            return names["table"], ""
        tables = [entry.name for entry in self._schema if names["column"].startswith(f"{entry.name}.")]
        table = max(tables, key=len, default="")
        return table, names["column"][len(table) + 1 :]

    # --- the rest ------------------------------------------------------------------------------------------------

    def foreign_keys(self) -> list[Finding]:
        """Return which tables refer to rows that are not there."""
        found = []
        query = "SELECT parent, count(*) FROM pragma_foreign_key_check(CAST(? AS TEXT)) GROUP BY parent"
        for entry in self._schema:
            if entry.type != "table" or "references" not in entry.sql.lower() or entry.name in self._suspects.tables:
                continue
            try:
                for parent, count in self._run(query, (entry.raw,)):
                    if parent not in self._suspects.tables:
                        words = f"{plural(count, 'row')} without the row of {_name(parent)} that a foreign key names"
                        found.append(Finding(CONTENT, f"table {_name(entry.name)}: {words}", entry.name, count))
            except self._errors as error:
                if not _statement_fails(error):
                    raise
                text = f"table {_name(entry.name)}: its foreign keys cannot be checked: {_reason(error)}"
                found.append(Finding(CONTENT, text, entry.name))
        return found

    def unchecked(self) -> list[Finding]:
        """Return what could not be checked, and why."""
        found = list(self._unchecked)
        for kind, names in self._stubs.items():
            for lower, name in names.items():
                users = [entry.name for entry in self._mentioning([name])]
                what = f"SQLite {self._version} refuses the function {_name(name)} there"
                what = what if lower in self._refused else self._lacks(kind, name)
                text = f"{what}; not checked: its use in {some_of(users, _WIDTH) if users else 'the schema'}"
                found.append(Finding(UNCHECKED, text, users[0] if users else ""))
        return found


def _messages(text: str) -> list[str]:
    """Return the messages in a row of the check: all about pages are in one."""
    if text == "ok":
        return []
    return text.split("\n")[1:] if text.startswith("*** in database ") else [text]


def _null(*_: object) -> None:
    """Stand in for any function: a CHECK that gives NULL holds."""


def _given(found: re.Match[str]) -> tuple[str, str]:
    """Return the one group that matched: its name and its text."""
    return next((kind, text) for kind, text in found.groupdict().items() if text is not None)


def _statement_fails(error: BaseException) -> bool:
    """Whether a statement fails, not the file."""
    if isinstance(error, UnicodeDecodeError):
        return not _MALFORMED.search(error_text(error))
    return error_code(error) in _STATEMENT_FAILS


def _reason(error: BaseException) -> str:
    """Return why a statement fails, without what the message quotes: that may be a value."""
    return printable(re.split(r"""['":]| - """, error_text(error))[0])


def _name(name: str) -> str:
    return shortened(name, _WIDTH)


def _decoded(text: bytes, encoding: str) -> tuple[str, bool]:
    """Return a text, and whether some of it had to be escaped."""
    try:
        return text.decode(encoding), False
    except UnicodeDecodeError:
        return text.decode(encoding, "backslashreplace"), True
