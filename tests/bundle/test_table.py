"""The table of scores: every format tells the same rows, exactly, whatever the files are called."""

import csv
import io
import json
import os
import select
import subprocess
import sys
import tracemalloc

import numpy as np
import pandas as pd
import polars as pl
import pytest

from damcli.bundle import table
from damcli.bundle.table import Columns, Row
from damcli.data.scores import ScanTable

FINDINGS = ("Edema", "Pleural Effusion, large")
FORMS = ("csv", "json", "jsonl", "parquet")
ODD = os.fsdecode(b"na\xefve.dcm")
ROWS = [
    Row("a/1.dcm", "ok", "", np.array([0.1, 1 / 3], np.float32), "no VOI window", "-12", "s1", 3, 1),
    Row("a/2.dcm", "failed", 'truncated "pixel data"', None, "", "007", "", 2, 2),
    Row("line\nbreak, é.png", "ok", "", np.array([1e-8, 0.99999994], np.float32), "", "=1+1", "s\r2"),
    Row("return\rafter.png", "ok", "", np.array([0, 1], np.float32)),
    Row(ODD, "skipped", "no image", None),
]
PATHS = ["a/1.dcm", "a/2.dcm", "line\nbreak, é.png", "return\rafter.png", "na\\udcefve.dcm"]
PLAIN = Columns(FINDINGS)
# At the score of the first row; and above that of the third, by as little as a float64 can be.
THRESHOLDS = {FINDINGS[1]: float(np.nextafter(float(np.float32(0.99999994)), 2)), FINDINGS[0]: float(np.float32(0.1))}
ALL = Columns(FINDINGS, thresholds=THRESHOLDS, ids=("patient", "study"), counts=True)


def write(path, columns=PLAIN, rows=ROWS):
    table.write(path, path.suffix[1:], columns, iter(rows))
    return path


def texts(path):
    """The cells of a CSV as text, read by Python's own reader."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def check(columns):
    assert columns["path"] == PATHS
    assert columns["status"] == ["ok", "failed", "ok", "ok", "skipped"]
    assert [error or None for error in columns["error"]] == [None, 'truncated "pixel data"', None, None, "no image"]
    for number, finding in enumerate(FINDINGS):
        for row, value in zip(ROWS, columns[finding], strict=True):
            if row.scores is None:
                assert value in (None, "")
            else:
                assert np.float32(value) == row.scores[number], "a score must come back as it was"


def test_csv_is_read_back_by_polars_by_pandas_and_by_python(tmp_path):
    path = write(tmp_path / "s.csv")
    check(pl.read_csv(path).to_dict(as_series=False))
    frame = pd.read_csv(path)
    check(frame.astype(object).where(frame.notna(), None).to_dict("list"))
    header, *rows = texts(path)
    assert header == ["path", "status", "error", *FINDINGS]
    check(dict(zip(header, map(list, zip(*rows, strict=True)), strict=True)))


def test_what_damcli_writes_it_reads(tmp_path):
    for form in ("csv", "parquet"):
        read = ScanTable.read(write(tmp_path / f"s.{form}", ALL))
        found = read.scores(PATHS[:4], FINDINGS)
        assert found.failed.tolist() == [False, True, False, False]
        expected = [row.scores for row in ROWS[:4] if row.scores is not None]
        assert (found.scores[~found.failed].astype(np.float32) == expected).all()


def test_json_and_json_lines(tmp_path):
    rows = json.loads(write(tmp_path / "s.json").read_text(encoding="utf-8"))
    lines = write(tmp_path / "s.jsonl").read_text(encoding="utf-8")
    assert rows == [json.loads(line) for line in lines.splitlines()]
    assert rows[0] == {"path": "a/1.dcm", "status": "ok", "error": None, FINDINGS[0]: 0.1, FINDINGS[1]: 0.33333334}
    check({key: [row[key] for row in rows] for key in rows[0]})
    assert json.loads(write(tmp_path / "none.json", rows=[]).read_text()) == []
    check(pd.read_json(tmp_path / "s.jsonl", lines=True).astype(object).replace({np.nan: None}).to_dict("list"))


def test_parquet_has_its_types_also_where_all_failed(tmp_path):
    frame = pl.read_parquet(write(tmp_path / "s.parquet", ALL))
    check(frame.to_dict(as_series=False))
    for name, rows in (("failed", ROWS[-1:]), ("none", [])):
        assert pl.read_parquet(write(tmp_path / f"{name}.parquet", ALL, rows)).schema == frame.schema
    text = dict.fromkeys(["path", "status", "error", "patient", "study"], pl.String)
    positive = {f"{finding}:positive": pl.Boolean for finding in FINDINGS}
    counts = dict.fromkeys(["scans", "scans_failed"], pl.UInt32)
    assert dict(frame.schema) == text | dict.fromkeys(FINDINGS, pl.Float32) | positive | counts


def test_the_order_of_the_columns_is_stated():
    positives = [f"{finding}:positive" for finding in FINDINGS]
    expected = ["path", "status", "error", *FINDINGS, *positives, "patient", "study", "scans", "scans_failed"]
    assert list(ALL.names) == expected
    one = Columns(FINDINGS, key="study", thresholds={FINDINGS[1]: 0.5, "another model's": 0.5})
    assert list(one.names) == ["study", "status", "error", *FINDINGS, positives[1]]


def test_a_scan_is_positive_from_the_threshold_on_of_the_exact_score(tmp_path):
    expected = {FINDINGS[0]: [True, None, False, False, None], FINDINGS[1]: [False, None, False, True, None]}
    rows = json.loads(write(tmp_path / "s.json", ALL).read_text())
    frame = pl.read_parquet(write(tmp_path / "s.parquet", ALL))
    cells = texts(write(tmp_path / "s.csv", ALL))
    for finding, wanted in expected.items():
        name = f"{finding}:positive"
        assert [row[name] for row in rows] == frame[name].to_list() == wanted
        written = [line[cells[0].index(name)] for line in cells[1:]]
        assert written == ["" if value is None else str(int(value)) for value in wanted]


def test_ids_and_counts_are_those_of_the_row(tmp_path):
    rows = json.loads(write(tmp_path / "s.json", ALL).read_text())
    assert [row["patient"] for row in rows] == ["-12", "007", "=1+1", None, None]
    assert [row["study"] for row in rows] == ["s1", None, "s\r2", None, None]
    assert [(row["scans"], row["scans_failed"]) for row in rows] == [(3, 1), (2, 2), (1, 0), (1, 0), (1, 0)]
    header, *cells = texts(write(tmp_path / "s.csv", ALL))
    assert [line[header.index("patient")] for line in cells] == ["'-12", "007", "'=1+1", "", ""]


def test_no_cell_of_the_csv_is_a_formula(tmp_path):
    names = ["=1+1.png", "+a.png", "-a.png", "@a.png", "\tb.png", "\rc.png"]
    columns = Columns(("=F", "-G"), thresholds={"=F": 0.5}, ids=("patient", "study"))
    scores = np.array([0.5, 1e-5], np.float32)
    rows = [Row(name, "failed", "@reason", None, patient=name, study=name) for name in names]
    path = write(tmp_path / "s.csv", columns, [*rows, Row("=", "ok", "", scores)])
    cells = texts(path)
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for line in cells for cell in line)
    assert [line[0] for line in cells[1:]] == [f"'{name}" for name in [*names, "="]]
    assert ScanTable.read(path).ids == [*names, "="]


def test_a_score_that_is_no_number_is_never_written_as_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path / "s.json", rows=[Row("a", "ok", "", np.array([np.nan, 1], np.float32))])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FORMS)
def test_an_interrupted_table_leaves_the_old_one(tmp_path, form):
    path = tmp_path / f"s.{form}"
    path.write_text("before")

    def interrupted():
        yield ROWS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        table.write(path, form, PLAIN, interrupted())
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "before"


@pytest.mark.parametrize("form", FORMS)
def test_stdout_gets_the_bytes_of_the_file(tmp_path, form, monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", stdout)
    table.write(None, form, ALL, iter(ROWS))
    assert stdout.buffer.getvalue() == write(tmp_path / f"s.{form}", ALL).read_bytes()


STREAM = """
import sys, numpy as np
from damcli.bundle import table
def rows():
    for number in range(3):
        yield table.Row(str(number), "ok", "", np.ones(1, np.float32))
        sys.stdin.readline()
table.write(None, sys.argv[1], table.Columns(("F",)), rows())
"""


@pytest.mark.distributed
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_row_is_on_stdout_before_the_next_one_is_asked_for(form):
    command = [sys.executable, "-c", STREAM, form]
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment
    ) as process:
        for expected in ([b"path"] if form == "csv" else []) + [b"0", b"1", b"2"]:
            # A row that is held back would leave both waiting.
            assert select.select([process.stdout], [], [], 60)[0]
            assert expected in process.stdout.readline()
            if expected != b"path":
                process.stdin.write(b"\n")
    assert process.returncode == 0


@pytest.mark.parametrize("form", FORMS)
def test_memory_is_flat_however_many_rows(tmp_path, form):
    """Of Python's own memory: what polars maps for Parquet is the operating system's to take back."""
    write(tmp_path / f"first.{form}")
    rows = (Row(f"a/{number}.dcm", "failed", f"{number:1000}", None) for number in range(4_000))
    tracemalloc.start()
    try:
        table.write(tmp_path / f"s.{form}", form, PLAIN, rows)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
