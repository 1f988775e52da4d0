"""What dumps a database, as operators may have done it, and databases to be dumped."""

import sqlite3
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.support.needs import require

# --- the dumpers -----------------------------------------------------------------------------------------------------


def dump_like_the_bot(source: sqlite3.Connection) -> bytes:
    """The bot's own dumper, as its backups show it."""

    def literal(value: object) -> str:
        if value is None:
            return "NULL"
        if isinstance(value, bytes):
            return f"X'{value.hex()}'"
        if isinstance(value, str):
            return "'" + value.replace("'", "''") + "'"
        return str(value)

    lines = ["BEGIN TRANSACTION;"]
    for name, sql in source.execute(
        "SELECT name, sql FROM sqlite_master WHERE type='table' AND name NOT LIKE 'sqlite_%'"
    ):
        lines.append(f"{sql};")
        rows = source.execute(f"SELECT * FROM {quoted(name)}")
        columns = ", ".join(quoted(column[0]) for column in rows.description)
        lines += [
            f"INSERT INTO {quoted(name)} ({columns}) VALUES ({', '.join(map(literal, row))});"
            for row in rows.fetchall()
        ]
    for kind in ("index", "view", "trigger"):
        rest = source.execute("SELECT sql FROM sqlite_master WHERE type=? AND sql NOT NULL", (kind,))
        lines += [f"{sql};" for (sql,) in rest]
    return "\n".join([*lines, "COMMIT;"]).encode()


def dump_by_python(source: sqlite3.Connection) -> bytes:
    return "\n".join(source.iterdump()).encode()


def dump_by_shell(source: sqlite3.Connection) -> bytes:
    require("sqlite3")
    with tempfile.NamedTemporaryFile(suffix=".db") as file:
        file.write(source.serialize())
        file.flush()
        return subprocess.run(["sqlite3", file.name, ".dump"], check=True, capture_output=True, timeout=60).stdout


Dumper = Callable[[sqlite3.Connection], bytes]
DUMPERS: dict[str, Dumper] = {"bot": dump_like_the_bot, "iterdump": dump_by_python, "shell": dump_by_shell}


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# --- databases, drawn at random ---------------------------------------------------------------------------------------

NASTY_NAMES = [
    "order",
    "a b",
    "semi;colon",
    'quo"te',
    "[x]",
    "--",
    "/*",
    "ü;",
    "nan",
    "inf",
    "1",
    "VALUES (",
    "new\nline",
]
letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
names = st.sampled_from(NASTY_NAMES) | st.text(letters, min_size=1, max_size=8)
texts = st.text(letters) | st.sampled_from([
    "it's; --", ");\nINSERT INTO t VALUES(", "\r\n", "\n", "\\n", "\\r\\u0041", "COMMIT;", "inf", ", nan)", "/*", "''",
    "📦",
])  # fmt: skip
numbers = (
    st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False).map(abs)
    | st.floats(max_value=-1e-300)
    | st.sampled_from([1e300, 91.89, 0.1, 1e-7])
)
values = st.none() | numbers | texts | st.binary()
types = st.sampled_from(["", "INTEGER", "TEXT", "REAL", "BLOB", "NUMERIC", "DATETIME DEFAULT CURRENT_TIMESTAMP"])


Table = tuple[str, str, list[tuple[object, ...]]]  # name, columns, rows


@st.composite
def databases(draw: st.DrawFn) -> list[Table]:
    made = []
    # iterdump of Python 3.11 trips over a ' in the name of a table, and SQLite keeps names like sqlite_ for itself.
    usable = names.filter(lambda name: "'" not in name and not name.lower().startswith("sqlite_"))
    for name in draw(st.lists(usable, min_size=1, max_size=3, unique_by=str.casefold)):
        columns = draw(st.lists(names, min_size=1, max_size=4, unique_by=str.casefold))
        declared = [f"{quoted(column)} {draw(types)}" for column in columns]
        row: Any = st.tuples(*[values] * len(columns))
        if draw(st.booleans()):
            declared.insert(0, '"the id" INTEGER PRIMARY KEY AUTOINCREMENT')
            row = st.tuples(st.none(), *[values] * len(columns))
        made.append((name, ", ".join(declared), draw(st.lists(row, max_size=6))))
    return made


def build(made: list[Table]) -> sqlite3.Connection:
    source = sqlite3.connect(":memory:", isolation_level=None)
    for number, (name, columns, rows) in enumerate(made):
        table = quoted(name)
        source.execute(f"CREATE TABLE {table} ({columns})")
        for row in rows:
            source.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
        source.execute(f"CREATE VIEW v{number} AS SELECT ';' AS x, count(*) FROM {table}")
        source.execute(
            f"CREATE TRIGGER r{number} AFTER INSERT ON {table} BEGIN SELECT 'END;'; DELETE FROM {table}; END"
        )
        source.execute(f"CREATE INDEX i{number} ON {table} (lower('a;')) WHERE ';--' NOT NULL")
    return source
