"""Hostile tables of scores and labels: each is refused at its row and column, or gives the figures of the plain one.

Nothing is joined by its position, and nothing ends in a traceback.
"""

from __future__ import annotations

import gzip
import json
import unicodedata
from collections.abc import Callable, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from damcli.commands.evaluate import evaluate
from damcli.data.scores import spelled

RunHere = Callable[..., tuple[int, str, str]]
Joined = dict[str, dict[str, tuple[float, float]]]

SCANS = 24
PATHS = [f"p{n // 2}/s{n}/1.png" for n in range(SCANS)]
RNG = np.random.default_rng(6)
LABELS = pl.DataFrame({"path": PATHS, "Edema": [1, 0] * 12, "Fracture": [0, 0, 1, 0] * 6})
SCORES = pl.DataFrame(
    {
        "path": PATHS,
        "status": "ok",
        "error": pl.Series([None] * SCANS, dtype=pl.String),
        **{name: np.round(LABELS[name].to_numpy() + RNG.normal(size=SCANS), 3) for name in ("Edema", "Fracture")},
    }
)
PLAIN = SCORES.write_csv()
ORDER = [1, 0, *range(2, SCANS)]  # of rows, to make sure that no position is believed


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def figures(run_here: RunHere, scores: str = "scores.csv", labels: str = "labels.csv") -> dict[str, Any]:
    """What the command finds, but for where it was found."""
    code, out, err = run_here("evaluate", scores, labels, "--json", "-o", "out", "--draws", 200)
    assert code == 0, err
    document = json.loads(out)
    return {name: document[name] for name in ("findings", "mean", "scans", "failed")}


def points(document: dict[str, Any]) -> dict[str, Any]:
    """The figures without their intervals, which depend on the order of the labels."""
    return {
        name: (found["positives"], found["negatives"], round(found["auroc"]["value"], 12))
        for name, found in document["findings"].items()
    }


def joined(scores: str = "scores.csv", labels: str = "labels.csv") -> Joined:
    """What the figures are made of: by finding and scan its score and label, in no order."""
    found = evaluate(Path(scores), Path(labels))
    ids = map(spelled, found.truth.ids)
    rows = dict(zip(ids, zip(found.scores.tolist(), found.truth.values.tolist(), strict=True), strict=True))
    return {
        name: {scan: (scored[column], label[column]) for scan, (scored, label) in rows.items()}
        for column, name in enumerate(found.truth.findings)
    }


def refused(run_here: RunHere, scores: str = "scores.csv", labels: str = "labels.csv", code: int = 3) -> str:
    """The message that a table is refused with; nothing is written."""
    found, out, err = run_here("evaluate", scores, labels, "-o", "out")
    assert (found, out) == (code, ""), err
    assert "Traceback" not in err
    assert not Path("out").exists()
    return " ".join(err.split())


@pytest.fixture
def plain() -> Joined:
    """What the plain tables join to."""
    LABELS.write_csv("labels.csv")
    SCORES.write_csv("scores.csv")
    return joined()


def excel(text: str) -> bytes:
    return text.replace(",", "\t").replace("\n", "\r\n").encode("utf-16")


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + PLAIN.encode(),
        PLAIN.replace(",", ";").encode(),
        PLAIN.replace(",", "\t").encode(),
        PLAIN.replace("\n", "\r\n").encode(),
        excel(PLAIN),
        PLAIN.encode("utf-16-be").join([b"\xfe\xff", b""]),
        (PLAIN + "\n\n\r\n").encode(),
        PLAIN.replace("Edema", " Edema ").encode(),
        PLAIN.replace("path,status", "Path,STATUS").encode(),
        PLAIN.replace(",ok,,", ',ok,"a note, of\ntwo lines",').encode(),
        SCORES[::-1].select("Fracture", "Edema", "path", age=pl.lit("x")).write_csv().encode(),
        SCORES[::-1].with_columns(path="./" + SCORES["path"][::-1].str.replace_all("/", "//")).write_csv().encode(),
        SCORES[ORDER].with_columns(pl.col("path").str.replace_all("/", "\\", literal=True)).write_csv().encode(),
        (PLAIN + "Thumbs.db,skipped,no image,,\nother.png,ok,,.5,.5\n").encode(),
        SCORES.with_columns(pl.format(" +{}", "Fracture").alias("Fracture").str.replace("+-", "-", literal=True))
        .with_columns(Edema=pl.format("{}e0", "Edema"))
        .write_csv()
        .encode(),
    ],
    ids=["BOM", "semicolons", "tabs", "CRLF", "UTF-16 of Excel", "UTF-16 the other way", "blank lines", "blanks around",
        "case of our own columns",
         "quoted newlines", "order and columns", "dots and slashes", "backslashes", "rows of other files", "numbers"],
)  # fmt: skip
def test_what_means_the_same_gives_the_same_figures(content: bytes, plain: Joined) -> None:
    Path("scores.csv").write_bytes(content)
    assert joined() == plain


def test_labels_may_be_as_odd_as_scores(plain: Joined) -> None:
    Path("labels.csv").write_bytes(excel(LABELS[::-1].select("Fracture", "path", "Edema").write_csv()))
    assert joined() == plain
    Path("labels.csv.gz").write_bytes(gzip.compress(LABELS[ORDER].write_csv(separator=";").encode()))
    assert joined(labels="labels.csv.gz") == plain


@pytest.mark.parametrize("seed", range(2))
def test_order_and_other_columns_change_no_figure(seed: int, run_here: RunHere) -> None:
    LABELS.write_csv("labels.csv")
    SCORES.write_csv("scores.csv")
    plain = figures(run_here)
    rng = np.random.default_rng(seed)
    more = SCORES.with_columns(pl.Series(f"extra{n}", rng.normal(size=SCANS)) for n in range(3))
    columns = rng.permutation(more.columns).tolist()
    more.select(columns)[rng.permutation(SCANS)].write_csv("scores.csv")
    assert figures(run_here) == plain
    LABELS[rng.permutation(SCANS)].write_csv("labels.csv")
    assert points(figures(run_here)) == points(plain)


def test_case_of_columns_does_not_matter_where_it_is_clear(plain: Joined, run_here: RunHere) -> None:
    SCORES.rename({"Edema": "EDEMA"}).write_csv("scores.csv")
    assert joined() == plain
    SCORES.rename({"Edema": "EDEMA", "error": "edema"}).write_csv("scores.csv")
    assert "which is the column of 'Edema' is not clear: 'edema', 'EDEMA'" in refused(run_here)


def test_an_umlaut_is_the_same_however_it_is_composed() -> None:
    name = unicodedata.normalize("NFC", "Röntgen/")
    apart = unicodedata.normalize("NFD", name)
    assert name != apart
    LABELS.with_columns(path=name + LABELS["path"]).write_csv("labels.csv")
    SCORES.with_columns(path=name + SCORES["path"]).write_csv("scores.csv")
    plain = joined()
    SCORES.with_columns(path=apart + SCORES["path"])[ORDER].write_csv("scores.csv")
    assert joined() == plain


@pytest.mark.parametrize("kind", [pl.Float32, pl.Decimal(10, 3), pl.Categorical, pl.String])
def test_parquet_of_any_kind_of_number(kind: Any, plain: Joined) -> None:
    cells = pl.col("Edema", "Fracture")
    SCORES.with_columns(cells.cast(pl.String).cast(kind))[::-1].write_parquet("scores.parquet")
    LABELS.with_columns(cells.cast(pl.String).cast(kind)).write_parquet("labels.parquet")
    found = joined("scores.parquet", "labels.parquet")
    for name, scans in plain.items():
        for scan, cell in scans.items():
            assert found[name][scan] == pytest.approx(cell, abs=1e-6 if kind == pl.Float32 else 0)
    whole = SCORES.with_columns((cells * 1000).round().cast(pl.Int64), path=pl.col("path").cast(pl.Categorical))
    whole.write_parquet("scores.parquet")
    assert joined("scores.parquet")["Edema"][PATHS[5]] == (round(plain["Edema"][PATHS[5]][0] * 1000), 0)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([True] * SCANS, "this column holds no numbers but Boolean"),
        ([date(2020, 1, 1)] * SCANS, "this column holds no numbers but Date"),
        ([[0.5]] * SCANS, "this column holds no numbers but List(Float64)"),
        ([{"score": 0.5}] * SCANS, "this column holds no numbers but Struct"),
        ([b"0.5"] * SCANS, "this column holds no numbers but Binary"),
        ([None] * SCANS, f"{SCANS} scores are no finite numbers, first None"),
        ([0.5] * (SCANS - 1) + [float("nan")], f"row {SCANS} below the header, column 'Edema'"),
        ([Decimal("0.5")] * (SCANS - 1) + [None], f"row {SCANS} below the header, column 'Edema'"),
    ],
)
def test_parquet_that_holds_no_numbers_is_refused(cells: Sequence[Any], message: str, run_here: RunHere) -> None:
    LABELS.write_csv("labels.csv")
    SCORES.with_columns(Edema=pl.Series(cells)).write_parquet("scores.parquet")
    assert message in refused(run_here, "scores.parquet")
    assert "'Edema'" in refused(run_here, "scores.parquet")


def test_parquet_with_paths_that_are_no_text_is_refused(run_here: RunHere) -> None:
    LABELS.write_csv("labels.csv")
    SCORES.with_columns(path=pl.concat_list("path")).write_parquet("scores.parquet")
    assert "this column holds no text but List(String)" in refused(run_here, "scores.parquet")
    SCORES.with_columns(path=pl.int_range(SCANS)).write_parquet("scores.parquet")
    assert f"{SCANS} of {SCANS} scans have no row" in refused(run_here, "scores.parquet")
    SCORES.with_columns(status=pl.int_range(SCANS), path=None).write_parquet("scores.parquet")
    assert "a row has no path" in refused(run_here, "scores.parquet")


FIRST = PLAIN.splitlines()[1]
SECOND = PLAIN.splitlines()[2]
E2 = SECOND.split(",")[3]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (f",{E2},", ",nan,", "row 2 below the header, column 'Edema'"),
        (f",{E2},", ",inf,", "row 2 below the header, column 'Edema'"),
        (f",{E2},", ",1e400,", "row 2 below the header, column 'Edema'"),
        (f",{E2},", ",high,", "first 'high'"),
        (f",{E2},", ",0x10,", "first '0x10'"),
        (f",{E2},", ",True,", "first 'True'"),
        (f",{E2},", ",,", "row 2 below the header, column 'Edema' fix: give every scan a score"),
        (f",{E2},", ',"0,73",', "column 'Edema' fix: write decimals with a point"),
        (SECOND + "\n", "", f"1 of {SCANS} scans have no row, first {PATHS[1]}"),
        (PATHS[1], PATHS[0], f"1 scans are there more than once, first {PATHS[0]}"),
        (PATHS[1], PATHS[0], "column 'path', rows 1 and 2 below the header"),
        (PATHS[1], "./" + PATHS[0].replace("/", "\\"), "column 'path', rows 1 and 2 below the header"),
        (PATHS[1], PATHS[1].upper(), f"1 of {SCANS} scans have no row, first {PATHS[1]}"),
        (PATHS[1], "../" + PATHS[1], f"1 of {SCANS} scans have no row, first {PATHS[1]}"),
        (PATHS[1] + ",", ",", "a row has no path where: scores.csv, row 2 below the header"),
        (SECOND, PLAIN.splitlines()[0], "the header is there again where: scores.csv, row 2 below the header"),
        (SECOND, SECOND + ",0.5", "line 3 has 6 fields, the header 5"),
        (SECOND, ",,,,", "1 of 24 scans have no row, first p0/s1/1.png where: scores.csv"),
        (SECOND, "   ", "line 3 has 1 fields, the header 5"),
        (SECOND, '"' + SECOND, "this is no CSV"),
        ("status,error", "Edema,error", "the header names a column twice: Edema"),
        ("status,error", " Edema ,error", "the header names a column twice: Edema"),
        ("path,", "file,", "the table has no column 'path'; it has: file, status"),
        (PLAIN[PLAIN.index("\n") :], "", "this table is empty"),
        (PLAIN[PLAIN.index("\n") :], "\n\n\n", "this table is empty"),
        (PLAIN, "", "this table is empty"),
        (PLAIN, "\x00\x00", "this table is empty"),
        (PLAIN, PLAIN.encode("utf-16-le").decode("latin-1"), "where: scores.csv"),
        (f",ok,,{E2},", ",pending,,,", "row 2 below the header, column 'Edema'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_scores_is_said_by_its_place(old: str, new: str, message: str, run_here: RunHere) -> None:
    LABELS.write_csv("labels.csv")
    assert old in PLAIN
    Path("scores.csv").write_text(PLAIN.replace(old, new, 1), encoding="utf-8")
    assert message in refused(run_here)


def test_a_row_is_named_by_its_place_in_the_file_whatever_was_skipped(run_here: RunHere) -> None:
    LABELS.write_csv("labels.csv")
    lines = PLAIN.splitlines()
    lines.insert(1, "Thumbs.db, Skipped ,no image,,")
    Path("scores.csv").write_text("\n".join(lines).replace(E2, "high", 1), encoding="utf-8")
    assert "row 3 below the header, column 'Edema'" in refused(run_here)
    table = LABELS.cast(pl.String).with_columns(status=pl.Series(["skipped"] + ["ok"] * (SCANS - 1)))
    table.with_columns(Edema=pl.Series(["1", "2", *["0"] * (SCANS - 2)])).write_csv("labels.csv")
    SCORES.write_csv("scores.csv")
    assert "row 2 below the header, column 'Edema'" in refused(run_here)


def test_failed_rows_have_no_score_whatever_they_hold(run_here: RunHere) -> None:
    LABELS.write_csv("labels.csv")
    failed = [*["Failed"] * 2, *["ok"] * (SCANS - 2)]
    SCORES.with_columns(status=pl.Series(failed)).write_csv("scores.csv")
    held = figures(run_here)
    assert (held["failed"], held["scans"]) == (2, SCANS - 2)
    SCORES.with_columns(status=pl.Series(failed), Edema=pl.Series([None, None, *SCORES["Edema"][2:]])).write_csv(
        "scores.csv"
    )
    assert figures(run_here) == held


@pytest.mark.parametrize("label", ["True", "2", "0.5", "yes", "-2", "inf", "1,0"])
def test_what_is_no_label_is_refused_by_its_place(label: str, run_here: RunHere) -> None:
    SCORES.write_csv("scores.csv")
    LABELS.with_columns(Edema=pl.Series(["1", label, *["0"] * (SCANS - 2)])).write_csv("labels.csv")
    message = refused(run_here)
    assert "a label is neither 1, 0, -1 (uncertain) nor blank" in message
    assert "labels.csv, row 2 below the header, column 'Edema'" in message


def test_ids_that_look_like_numbers_are_text(run_here: RunHere) -> None:
    numbers = [f"{n:03}" for n in range(SCANS)]
    LABELS.with_columns(path=pl.Series(numbers)).write_csv("labels.csv")
    SCORES.with_columns(path=pl.Series(numbers))[::-1].write_csv("scores.csv")
    assert joined()["Edema"]["007"] == (SCORES["Edema"][7], LABELS["Edema"][7])
    SCORES.with_columns(path=pl.Series([str(int(n)) for n in numbers])).write_csv("scores.csv")
    assert f"{SCANS} of {SCANS} scans have no row, first 000 (the table's first is 0)" in refused(run_here)


def test_huge_whole_numbers_are_scores(plain: Joined) -> None:
    huge = SCORES["Edema"].rank("dense").cast(pl.Int64).cast(pl.String) + "0" * 40
    SCORES.with_columns(Edema=huge).write_csv("scores.csv")
    assert joined()["Edema"][PATHS[3]] == (float(huge[3]), plain["Edema"][PATHS[3]][1])


def test_what_is_no_file_of_scores_is_refused(run_here: RunHere) -> None:
    LABELS.write_csv("labels.csv")
    SCORES.write_csv("scores.csv")
    Path("folder.csv").mkdir()
    assert "a run needs images to score" in refused(run_here, "folder.csv", code=2)
    assert "this is no dataset" in refused(run_here, labels="folder.csv")
    packed = gzip.compress(PLAIN.encode())
    Path("scores.csv.gz").write_bytes(packed)
    assert "this cannot be evaluated" in refused(run_here, "scores.csv.gz", code=2)
    Path("renamed.csv").write_bytes(packed)
    assert "where: renamed.csv" in refused(run_here, "renamed.csv")
    Path("labels.csv.gz").write_bytes(gzip.compress(LABELS.write_csv().encode())[:-20])
    assert "this .gz file is cut off or damaged" in refused(run_here, labels="labels.csv.gz")
    Path("cut.csv").write_bytes(excel(PLAIN)[:-1])
    assert "this text is cut off or damaged" in refused(run_here, "cut.csv")
    Path("short.parquet").write_bytes(b"PAR1")
    assert "this is no Parquet file, or it is damaged" in refused(run_here, "short.parquet")


def test_labels_by_study_are_those_of_its_scans(plain: Joined, run_here: RunHere) -> None:
    studies = LABELS.select(pl.col("path").str.strip_suffix("/1.png").alias("Study"), "Edema", "Fracture")
    studies[::-1].with_columns(Study="data/test/" + pl.col("Study")).write_csv("labels.csv")
    Path("scores.csv").write_text(PLAIN + "p99/s99/1.png,ok,,.5,.5\n", encoding="utf-8")
    assert joined() == plain
    _, out, _ = run_here("evaluate", "scores.csv", "labels.csv", "-q", "-o", "out", "--draws", 200)
    assert "1 rows of scores.csv belong to none of these scans and are left out" in " ".join(out.split())
    SCORES[1:].write_csv("scores.csv")
    Path("out").rename("before")
    assert f"1 of {SCANS} studies have no scan among the scores, first data/test/p0/s0" in refused(run_here)
