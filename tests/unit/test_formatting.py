"""Numbers, sizes, times, names and tables as people read them."""

import shlex
import time
from pathlib import Path

import pytest

from backuplib.formatting import (
    age,
    aligned,
    display_width,
    megabytes,
    padded,
    plural,
    printable,
    quoted,
    row_count,
    shortened,
    shown,
    some_of,
)


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "table", "0 tables"),
        (1, "page", "1 page"),
        (1.0, "page", "1 page"),
        (2, "page", "2 pages"),
        (1.5, "page", "1.5 pages"),
        (0.04, "page", "0.0 pages"),
        (1, "process", "1 process"),
        (2, "process", "2 processes"),
        (1234567, "row", "1,234,567 rows"),
        (1, "other table", "1 other table"),
    ],
)
def test_plural(number: float, noun: str, text: str) -> None:
    assert plural(number, noun) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0.0 kB"),
        (512, "0.5 kB"),
        (99_900, "99.9 kB"),
        (100_000, "100 kB"),
        (1_000_000, "1.0 MB"),
        (308_000_000, "308 MB"),
        (999_000_000, "999 MB"),
        (1_000_000_000, "1.0 GB"),
        (2_540_000_000_000, "2540 GB"),
    ],
)
def test_megabytes_are_powers_of_ten(size: float, text: str) -> None:
    assert megabytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5000, "in the future: clock?"),
        (-2, "just now"),
        (0, "just now"),
        (59, "just now"),
        (60, "1 minute ago"),
        (3599, "59 minutes ago"),
        (3601, "1 hour ago"),
        (86399, "23 hours ago"),
        (86401, "1 day ago"),
        (86400 * 400, "400 days ago"),
    ],
)
def test_age(seconds: float, text: str) -> None:
    assert age(time.time() - seconds) == text


@pytest.mark.parametrize("char", ["\n", "\r", "\t", "\x1b", "\x7f", "\x9b", "\u2028", "\u202e", "\ud800", "\0"])
def test_printable_leaves_nothing_that_steers_a_terminal_or_begins_a_line(char: str) -> None:
    assert printable(f"a{char}b") == "a?b"


def test_printable_keeps_what_people_write() -> None:
    assert printable("größe 注文 'x' \\n") == "größe 注文 'x' \\n"


def test_shown_is_relative_below_the_current_folder_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop").mkdir()
    monkeypatch.chdir(tmp_path / "shop")
    assert shown(tmp_path / "shop/data/shop.db") == "data/shop.db"
    assert shown(Path("data/shop.db")) == "data/shop.db"
    assert shown(tmp_path / "shop2/x") == str(tmp_path / "shop2/x")
    assert shown(tmp_path) == str(tmp_path)


def test_shown_works_where_the_current_folder_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert shown(tmp_path / "shop.db") == str(tmp_path / "shop.db")


def test_quoted_is_one_word_of_a_shell() -> None:
    name = "it's; rm -rf $HOME `x`"
    assert shlex.split(f"ls {quoted(Path(name))}") == ["ls", name]


def test_columns_are_aligned() -> None:
    rows = [("table", "now", ""), ("a", "1", "x"), ("longer name", "1,000", "")]
    assert aligned(rows, right=(1,)) == [
        "table          now",
        "a                1  x",
        "longer name  1,000",
    ]
    assert aligned([("a", "b"), ("cc", "d")], gap="|") == ["a |b", "cc|d"]


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("", 0),
        ("abc", 3),
        ("größe…│", 7),
        ("🔓 a", 4),
        ("✅", 2),
        ("⚙️  a", 4),
        ("注文", 4),
        ("e\u0301", 1),
        ("a\u200db", 2),
    ],
)
def test_columns_of_a_text_on_a_terminal(text: str, columns: int) -> None:
    assert display_width(text) == columns


def test_columns_of_wide_characters_are_aligned() -> None:
    assert aligned([("注文", "1"), ("orders", "x")], right=(0,)) == ["  注文  1", "orders  x"]
    assert padded("注文", 6) == "注文  "
    assert padded("too long", 3) == "too long"


def test_rows_of_different_lengths_are_no_table() -> None:
    with pytest.raises(ValueError, match="shorter"):
        aligned([("a", "b"), ("c",)])


def test_shortened_keeps_to_its_width_and_to_one_line() -> None:
    assert shortened("orders", 6) == "orders"
    assert shortened("orders", 5) == "orde…"
    assert shortened("or\nders", 10) == "or?ders"


def test_shortened_keeps_to_its_width_with_wide_characters() -> None:
    assert shortened("注文表", 6) == "注文表"
    assert shortened("注文表", 5) == "注文…"
    assert shortened("注文表", 4) == "注…"


def test_some_of_shows_what_fits_and_counts_the_rest() -> None:
    assert some_of(["a", "b", "c"], 80) == "a, b, c"
    assert some_of(["aa", "bb", "cc"], 6) == "aa, bb and 1 more"
    assert some_of(["aa", "bb", "cc"], 5) == "aa and 2 more"
    assert some_of([f"t{number}" for number in range(1001)], 5) == "t0 and 1,000 more"


def test_some_of_shows_at_least_the_beginning_of_one() -> None:
    assert some_of(["a long name"], 5) == "a lo…"
    assert some_of(["a long name", "b"], 5) == "a lo… and 1 more"


def test_row_count_tells_what_cannot_be_counted_from_zero() -> None:
    assert row_count(None) != row_count(0) == "0"
    assert row_count(12345) == "12,345"
