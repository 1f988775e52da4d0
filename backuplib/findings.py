"""What is wrong with a database, told from what SQLite says when it checks one. Findings are of three kinds:

structure  pages or indexes are damaged: such a backup is refused
content    a constraint would refuse some of the rows today; SQLite lets them in in many ways
unchecked  takes what only the bot has, or a newer SQLite; everything else is checked
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backuplib import typed
from backuplib.errors import DamagedDatabaseError, UnknownSchemaError, choose_another_backup_hint
from backuplib.formatting import plural, printable, quoted_identifier, shortened, shown
from backuplib.schema import (
    WIDTH,
    Entry,
    Placeholders,
    Suspects,
    decoded,
    engine_errors,
    error_text,
    given,
    is_newest,
    read_schema,
    shown_name,
)

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

_MALFORMED = re.compile(r"malformed database schema \((?P<name>.*?)\) - (?P<reason>.*)", re.DOTALL)
_SYNTAX = re.compile(
    r"syntax error|unrecognized token|unknown (?:table option|datatype|join type)|incomplete input"
    r"|wrong number of arguments|unsafe use of|prohibited in"
)
_NOT_HERE = re.compile(r"no such module: (?P<module>.+)|(?:no such|unknown) tokenizer: (?P<tokenizer>.+)", re.DOTALL)
_FTS5 = re.compile(r"\busing\s+\W?fts5\b", re.IGNORECASE)
_EVERYTHING = 10**9  # messages: an end would hide damage behind content
_CAP = 100  # messages about one table: SQLite takes no other number together with its name
_CAPPED = "SELECT CAST(integrity_check AS BLOB) FROM pragma_integrity_check"  # for names that are not valid text
_ROWIDS = re.compile(r"(?<=owid )-?\d+|(?<=Mapping \()-?\d+ -> -?\d+")

_CORRUPT = 11  # SQLITE_CORRUPT
_NO_REASON = "SQL logic error"  # what SQLCipher says when a page cannot be decrypted
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


def find(
    connection: Any, *, newer: bool = False, content: bool = True, placeholders: Placeholders | None = None
) -> list[Finding]:
    """Check the structure of a database, and its rows against its schema.

    :param connection: of apsw, sqlcipher3 or sqlite3. Placeholders for what it lacks are registered on it.
    :param newer: the schema may take a newer SQLite than this one: what is not understood is left out.
    :param content: whether foreign keys are looked at, too.
    :param placeholders: those of the connection, where the caller wants to know them.
    :raises UnknownSchemaError: when this SQLite does not understand the schema, and it is not ``newer``.
    :raises: the connection's errors, when the file is so damaged that it cannot be opened, or is locked.
    """
    try:
        check = _Check(connection, placeholders or Placeholders(connection), newer=newer)
        found = check.structure_and_content()
        if damage := [finding for finding in found if finding.kind == STRUCTURE]:
            return damage
        return [*found, *(check.foreign_keys() if content else ()), *check.unchecked()]
    except MemoryError:
        if is_newest(connection):
            raise
        # SQLCipher says the same of both.
        return [Finding(STRUCTURE, "a page cannot be decrypted, or there is too little memory")]


def find_foreign_keys(connection: Any, *, newer: bool = False) -> list[Finding]:
    """Return which tables of a sound database refer to rows that are not there; see :func:`find`."""
    return _Check(connection, Placeholders(connection), newer=newer).foreign_keys()


# --- the check -------------------------------------------------------------------------------------------------------


class _Check:
    """One check of one database."""

    def __init__(self, connection: Any, placeholders: Placeholders, *, newer: bool) -> None:
        self._connection = connection
        self._newest = is_newest(connection)
        self._errors = engine_errors(connection)
        self._placeholders = placeholders
        self._suspects = Suspects()
        self._unchecked: list[Finding] = []
        self._left_out = False  # something is not in the schema as it was read: its pages seem unused
        self._said: Counter[str] = Counter()  # messages of the last statement
        if not self._newest:
            connection.text_factory = lambda text: text.decode(errors="backslashreplace")
        self._schema: list[Entry] = []
        self._schema = self._open_schema(newer=newer)
        self._encoding = str(connection.execute("PRAGMA encoding").fetchone()[0])
        self._suspects = self._placeholders.suspects(self._schema)
        self._broken = self._open_virtual_tables()

    def _open_schema(self, *, newer: bool) -> list[Entry]:
        def read() -> list[Entry]:
            return read_schema(self._connection)

        try:
            return list(self._retried(read))
        except self._errors as error:
            malformed = _MALFORMED.search(error_text(error))
            if not malformed or not _SYNTAX.search(malformed["reason"]):
                raise
        name, reason = malformed["name"], shortened(malformed["reason"], WIDTH)
        text = f"SQLite {self._placeholders.version} does not understand the schema of {shown_name(name)}: {reason}"
        if not newer:
            raise UnknownSchemaError(
                f"{text}; it is damaged, or made for a newer SQLite",
                hint=f"{choose_another_backup_hint()}. If the bot's SQLite is newer, get it here, too: "
                f"{typed.joined([shown(Path(sys.executable)), '-m', 'pip', 'install', '--upgrade', 'apsw'])}",
            )
        self._note(name, f"{text}; it was not checked")
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
                    self._run(query.format(quoted_identifier(entry.name)))
            except self._errors as error:
                if missing := _NOT_HERE.search(error_text(error)):  # else the check will say what is wrong
                    kind, name = given(missing)
                    lacks = self._placeholders.lacks(kind, name)
                    self._note(entry.name, f"{lacks}: table {shown_name(entry.name)} was not checked")
                    broken += [entry] if kind == "tokenizer" else []
        return broken

    def _note(self, table: str, text: str) -> None:
        self._unchecked.append(Finding(UNCHECKED, text, table))

    def _run(self, sql: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        return list(self._retried(lambda: self._connection.execute(sql, values).fetchall()))

    def _retried(self, step: Callable[[], Any]) -> Any:
        """Run a step anew with a placeholder for each name that it lacks."""
        while True:
            try:
                return step()
            except self._errors as error:
                if not (self._placeholders.for_lack(error) or self._placeholders.for_refusal(error)):
                    raise
                self._suspects = self._placeholders.suspects(self._schema)

    # --- structure and content -----------------------------------------------------------------------------------

    def structure_and_content(self) -> list[Finding]:
        """Check the database as a whole; where a statement fails for other reasons than damage, table by table."""
        try:
            if not self._broken and self._check_whole():
                return self._findings(self._said)
        except self._errors as error:
            if error_code(error) == _CORRUPT:
                return [*self._findings(self._said), Finding(STRUCTURE, error_text(error))]
            if not _statement_fails(error):
                raise
        found = self._findings(self._said)  # pages are checked before rows, of which one cannot be looked at
        if is_damaged(found):
            return found
        said: Counter[str] = Counter()
        own = Entry("table", "sqlite_schema", "", "", b"")
        for entry in [own, *self._schema]:
            if entry.type == "table" and entry not in self._broken:
                self._check_table(entry)
                said += self._said
        if self._broken and self._newest:
            self._check_without_full_text()
            said += Counter({text: count for text, count in self._said.items() if classify(text)[0] == STRUCTURE})
        return self._findings(said)

    def _check_whole(self) -> bool:
        """Listen to the check of the database; False when it was cut short."""
        if self._newest and any(entry.escaped for entry in self._schema):  # apsw cannot read such messages as text
            self._retried(lambda: self._listen(_CAPPED))
            return self._said.total() < _CAP
        self._retried(lambda: self._listen(f"PRAGMA integrity_check({_EVERYTHING})"))
        return True

    def _check_table(self, entry: Entry) -> None:
        def check() -> None:
            if entry.escaped:
                self._retried(lambda: self._listen(f"{_CAPPED}(CAST(? AS TEXT))", (entry.raw,)))
            else:
                self._retried(lambda: self._listen(f"PRAGMA integrity_check({quoted_identifier(entry.name)})"))

        try:
            check()
        except self._errors as error:
            if not _statement_fails(error):
                raise
            self._note(entry.name, f"table {shown_name(entry.name)} could not be checked as a whole: {_reason(error)}")
            self._connection.execute("PRAGMA ignore_check_constraints = ON")
            try:
                check()
            except self._errors as again:
                if not _statement_fails(again):
                    raise
            finally:
                self._connection.execute("PRAGMA ignore_check_constraints = OFF")
        if self._said.total() >= _CAP:
            self._note(entry.name, f"table {shown_name(entry.name)} was not checked further after {_CAP} findings")

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
            for message in _messages(decoded(text, self._encoding)[0] if isinstance(text, bytes) else text):
                kind, _, names = classify(message)
                if self._is_suspect(names) or ("unused" in names and names["unused"] and self._left_out):
                    continue
                self._said[message] += 1
                if kind == STRUCTURE:
                    return

    def _is_suspect(self, names: dict[str, str]) -> bool:
        """Whether a message with these names may be about a placeholder only."""
        suspects = self._suspects
        return (
            names.get("table", names.get("words_of")) in suspects.tables
            or names.get("column") in suspects.columns
            or names.get("index") in suspects.indexes
            or names.get("key_of") in suspects.keys
        )

    def _findings(self, said: Counter[str]) -> list[Finding]:
        found = []
        for message, count in said.items():
            kind, words, names = classify(message)
            if kind == STRUCTURE:
                found.append(Finding(kind, shortened(_ROWIDS.sub("…", message), 2 * WIDTH)))
                continue
            table, column = self._split(names)
            given_names = {"column": column, "index": names.get("index", ""), "type": names.get("type", "")}
            words = words.format(**{key: shown_name(name) for key, name in given_names.items()})
            found.append(Finding(kind, f"table {shown_name(table)}: {plural(count, 'row')} {words}", table, count))
        return found

    def _split(self, names: dict[str, str]) -> tuple[str, str]:
        """Return table and column that a message names."""
        if index := names.get("index"):
            return next((entry.table for entry in self._schema if entry.name == index), ""), ""
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
                        rows, name = plural(count, "row"), shown_name(entry.name)
                        text = f"table {name}: {rows} with a foreign key to no row of {shown_name(parent)}"
                        found.append(Finding(CONTENT, text, entry.name, count))
            except self._errors as error:
                if not _statement_fails(error):
                    raise
                text = f"table {shown_name(entry.name)}: its foreign keys cannot be checked: {_reason(error)}"
                found.append(Finding(CONTENT, text, entry.name))
        return found

    def unchecked(self) -> list[Finding]:
        """Return what could not be checked, and why."""
        explained = self._placeholders.explained(self._schema)
        return self._unchecked + [Finding(UNCHECKED, text, table) for text, table in explained]


def _messages(text: str) -> list[str]:
    """Return the messages in a row of the check: all about pages are in one."""
    if text == "ok":
        return []
    return text.split("\n")[1:] if text.startswith("*** in database ") else [text]


def _statement_fails(error: BaseException) -> bool:
    """Whether a statement fails, not the file."""
    if isinstance(error, UnicodeDecodeError):
        return not _MALFORMED.search(error_text(error))
    return error_code(error) in _STATEMENT_FAILS and str(error) != _NO_REASON


def _reason(error: BaseException) -> str:
    """Return why a statement fails, without what the message quotes: that may be a value."""
    return printable(re.split(r"""['":]| - """, error_text(error))[0])
