"""apsw under the names of sqlite3: what is used of it."""

from contextlib import closing

import pytest

from backuplib.newest import NewestSQLite


def test_a_second_statement_in_one_text_is_not_run() -> None:
    with closing(NewestSQLite(":memory:")) as connection:
        with pytest.raises(NewestSQLite.Warning):
            connection.execute("CREATE TABLE t (a); CREATE TABLE u (a)")
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("t",)]


def test_functions_count_as_harmless_and_can_be_taken_back() -> None:
    with closing(NewestSQLite(":memory:")) as connection:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.create_function("slug", 1, str.lower, deterministic=True)
        connection.execute("CREATE TABLE t (a CHECK (slug(a) = a))")
        connection.execute("INSERT INTO t VALUES ('x')")
        connection.create_function("slug", 1, None)
        with pytest.raises(NewestSQLite.Error, match="slug"):
            connection.execute("INSERT INTO t VALUES ('y')")


def test_limits_are_told_and_rollback_needs_no_transaction() -> None:
    with closing(NewestSQLite(":memory:")) as connection:
        before = connection.setlimit(7, 0)
        assert connection.setlimit(7, before) == 0
        connection.rollback()
        connection.execute("BEGIN")
        connection.rollback()
        assert not connection.in_transaction
