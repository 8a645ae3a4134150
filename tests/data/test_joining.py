"""Rows belong to scans by their paths: never by position, never by a guess."""

from pathlib import Path

import pytest

from damcli.data.joining import rows_of
from damcli.errors import DataError


def scans(*names, root="/data/scans"):
    return [(name, Path(root, name)) for name in names]


def test_rows_are_joined_by_path_in_any_order():
    assert rows_of(scans("a/1.png", "a/2.png", "b/1.png"), ["b/1.png", "a/1.png"], "t") == {"b/1.png": 0, "a/1.png": 1}


def test_a_bare_file_name_does_where_it_is_unique():
    assert rows_of(scans("a/1.png", "b/2.png"), ["2.png", "1.png"], "t") == {"a/1.png": 1, "b/2.png": 0}


@pytest.mark.parametrize("path", ["/data/scans/a/1.png", "scans/a/1.png", "/elsewhere/scans/a/1.png", "./a/1.png"])
def test_a_row_may_name_more_of_the_path_than_the_scan_does(path):
    assert rows_of(scans("a/1.png"), ["x.png", path], "t") == {"a/1.png": 1}


def test_paths_may_be_written_on_windows_or_on_a_mac():
    rows = ["D:\\scans\\a\\1.png", "a\\Ro\u0308ntgen.png"]
    assert rows_of(scans("a/1.png", "a/R\u00f6ntgen.png"), rows, "t") == {"a/1.png": 0, "a/R\u00f6ntgen.png": 1}
    assert rows_of([("b\\2.png", Path("/scans/b/2.png"))], ["b/2.png"], "t") == {"b\\2.png": 0}


def test_the_longest_path_counts_and_parts_of_names_do_not():
    assert rows_of(scans("a/1.png", "a/11.png"), ["1.png", "a/11.png"], "t") == {"a/1.png": 0, "a/11.png": 1}
    assert rows_of(scans("11.png"), ["1.png"], "t") == {}
    assert rows_of(scans("b/1.png"), ["a/1.png"], "t") == {}


@pytest.mark.parametrize(
    ("names", "paths", "message"),
    [
        (["a/1.png", "b/1.png"], ["1.png"], "may be of a/1.png and of b/1.png"),
        (["1.png"], ["x/1.png", "y/1.png"], "2 rows may be of the scan 1.png"),
        (["1.png"], ["1.png", "./1.png"], "more than once"),
    ],
)
def test_what_is_not_clear_is_refused(names, paths, message):
    with pytest.raises(DataError, match=message):
        rows_of(scans(*names), paths, "table.csv")
