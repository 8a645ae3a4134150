"""The table of scores: every format tells the same rows, exactly, whatever the files are called."""

import csv
import io
import json
import os

import numpy as np
import polars as pl
import pytest

from damcli.bundle.table import Row, write

FINDINGS = ("Edema", "Pleural Effusion, large")
ODD = os.fsdecode(b"na\xefve.dcm")
ROWS = [
    Row("a/1.dcm", "ok", "", np.array([0.1, 1 / 3], np.float32)),
    Row("a/2.dcm", "failed", 'truncated "pixel data"', None),
    Row("line\nbreak, é.png", "ok", "", np.array([1e-8, 0.99999994], np.float32)),
    Row(ODD, "skipped", "no image", None),
]
PATHS = ["a/1.dcm", "a/2.dcm", "line\nbreak, é.png", "na\\udcefve.dcm"]


def check(columns):
    assert columns["path"] == PATHS
    assert columns["status"] == ["ok", "failed", "ok", "skipped"]
    assert [error or None for error in columns["error"]] == [None, 'truncated "pixel data"', None, "no image"]
    for number, finding in enumerate(FINDINGS):
        for row, value in zip(ROWS, columns[finding], strict=True):
            if row.scores is None:
                assert value in (None, "")
            else:
                assert np.float32(value) == row.scores[number], "a score must come back as it was"


def test_csv_is_read_back_by_polars_and_by_python(tmp_path):
    write(tmp_path / "s.csv", "csv", FINDINGS, iter(ROWS))
    check(pl.read_csv(tmp_path / "s.csv").to_dict(as_series=False))
    with (tmp_path / "s.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "status", "error", *FINDINGS]
    check({key: [row[key] for row in rows] for key in rows[0]})


def test_json_and_json_lines(tmp_path):
    write(tmp_path / "s.json", "json", FINDINGS, iter(ROWS))
    write(tmp_path / "s.jsonl", "jsonl", FINDINGS, iter(ROWS))
    rows = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    assert rows == [json.loads(line) for line in (tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[0] == {"path": "a/1.dcm", "status": "ok", "error": None, FINDINGS[0]: 0.1, FINDINGS[1]: 0.33333334}
    check({key: [row[key] for row in rows] for key in rows[0]})


def test_parquet_has_its_types_also_where_all_failed(tmp_path):
    write(tmp_path / "s.parquet", "parquet", FINDINGS, iter(ROWS))
    frame = pl.read_parquet(tmp_path / "s.parquet")
    check(frame.to_dict(as_series=False))
    write(tmp_path / "none.parquet", "parquet", FINDINGS, iter(ROWS[3:]))
    assert pl.read_parquet(tmp_path / "none.parquet").schema == frame.schema
    assert frame.schema[FINDINGS[0]] == pl.Float32


def test_no_cell_of_the_csv_is_a_formula(tmp_path):
    names = ["=1+1.png", "+a.png", "-a.png", "@a.png", "\tb.png"]
    write(tmp_path / "s.csv", "csv", ["=F"], [Row(name, "failed", "@reason", None) for name in names])
    for line in csv.reader(io.StringIO((tmp_path / "s.csv").read_text(encoding="utf-8"))):
        assert not any(cell.startswith(("=", "+", "-", "@", "\t")) for cell in line)


@pytest.mark.parametrize("form", ["csv", "json", "jsonl", "parquet"])
def test_an_interrupted_table_leaves_the_old_one(tmp_path, form):
    path = tmp_path / f"s.{form}"
    path.write_text("before")

    def interrupted():
        yield ROWS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, form, FINDINGS, interrupted())
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "before"
