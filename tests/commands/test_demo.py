"""The demo from end to end: the five commands on drawn phantoms, what it leaves behind, and what never leaks."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from damcli import cli, files
from damcli.commands import demo
from damcli.data.labels import COMPETITION
from damcli.data.phantoms import TREE

# Whatever is planted in the DICOM files: names, ids and accession numbers hold the word, birth dates end on 4 July.
PLANTED = re.compile(rb"PHANTOM|(?:19[2-9]\d|200\d)0704")


@dataclass(frozen=True)
class Tour:
    """A finished demo: its folder, and what it said."""

    root: Path
    code: int
    stdout: str
    stderr: str


def run_demo(folder: Path, *arguments: str) -> Tour:
    line = [sys.executable, "-m", "damcli", "demo", *arguments]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return Tour(folder / "demo", done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Tour:
    return run_demo(tmp_path_factory.mktemp("tour"), "--patients", "60", "--seed", "5", "--keep")


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return int(ended.value.code or 0)


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def test_everything_it_names_is_there(tour: Tour) -> None:
    named = dict(cells(line) for line in tour.stdout.splitlines() if re.match(r"\w+ +demo/", line))
    assert set(named) == {*demo.ARMS, "tree", "scans", "labels", "dataset", "model", "card", "scores", "evaluation",
                          "picture", "figures"}  # fmt: skip
    assert all((tour.root.parent / path).exists() for path in named.values())
    width, height = Image.open(tour.root / "roc.png").size
    assert width > 1.3 * height


def test_the_table_is_the_result_and_agrees_with_the_runs(tour: Tour) -> None:
    lines = tour.stdout.splitlines()
    assert cells(lines[2]) == ["finding", "n+", "n−", "CE AUROC", "95 % interval", "AUC-M AUROC", "95 % interval"]
    rows = {cells(line)[0]: cells(line) for line in lines[4:9]}
    assert tuple(rows) == COMPETITION
    for loss, column in (("ce", 3), ("aucm", -2)):
        measured = json.loads((tour.root / "runs" / loss / "evaluation-valid" / "metrics.json").read_text())
        for finding, row in rows.items():
            figures = measured["findings"][finding]
            assert [int(number) for number in row[1:3]] == [figures["positives"], figures["negatives"]]
            if len(row) == 7 and figures["auroc"]["value"] is not None:
                assert row[column] == f"{figures['auroc']['value']:.3f}"
    assert any(len(row) == 7 for row in rows.values())
    assert lines[9].startswith(" mean of")


def test_each_step_is_shown_as_the_command_line_that_ran(tour: Tour) -> None:
    shown = [shlex.split(line[2:]) for line in tour.stderr.splitlines() if line.startswith("$ ")]
    assert shown == [["damcli", *arguments] for arguments in demo.steps(demo.Folder(Path("demo")), seed=5)]
    assert [line[1] for line in shown] == [
        "prepare", "train", "train", "evaluate", "evaluate", "export", "predict", "evaluate",
    ]  # fmt: skip
    assert "Traceback" not in tour.stderr
    assert tour.stderr.splitlines()[-1].startswith("next: damcli ")


def test_the_patients_evaluated_and_predicted_were_not_trained_on(tour: Tour) -> None:
    manifest = pl.read_parquet(tour.root / "data" / "chexpert" / "manifest.parquet")
    by_split = {str(split): set(rows["patient"]) for (split,), rows in manifest.group_by("split")}
    assert not by_split["train"] & by_split["valid"]
    for loss in demo.ARMS:
        scored = pl.read_parquet(tour.root / "runs" / loss / "evaluation-valid" / "scores-valid.parquet")
        assert set(scored["path"]) == set(manifest.filter(pl.col("split") == "valid")["id"])


def test_every_scan_of_the_test_folder_is_scored(tour: Tour) -> None:
    scores, labels = (pl.read_csv(tour.root / name) for name in ("scores.csv", "scans.csv"))
    assert scores.columns == ["path", "status", "error", *COMPETITION]
    assert scores["status"].unique().to_list() == ["ok"]
    assert sorted(scores["path"]) == sorted(labels["path"])
    assert all(scores[finding].is_between(0, 1).all() for finding in COMPETITION)


def test_planted_identifiers_appear_in_no_output(tour: Tour) -> None:
    drawn = [tour.root / TREE, tour.root / "scans"]
    assert any(PLANTED.search(path.read_bytes()) for path in drawn[1].iterdir())
    made = [path for path in tour.root.rglob("*") if path.is_file() and not set(drawn) & set(path.parents)]
    assert len(made) > 20
    for path in made:
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content = pl.read_parquet(path).write_csv().encode()
        if path.suffix != ".npy":  # pixels may hold any bytes
            assert not PLANTED.search(content), path
    assert not PLANTED.search((tour.stdout + tour.stderr).encode())


def test_the_figures_are_written_as_json_too(tour: Tour) -> None:
    figures = json.loads((tour.root / "demo.json").read_text())
    assert (figures["finished"], figures["seed"], figures["patients"]) == (True, 5, 60)
    assert figures["made"]["picture"] == "demo/roc.png"
    assert list(figures["arms"]) == ["CE", "AUC-M"]
    assert list(figures["arms"]["CE"]["findings"]) == list(COMPETITION)


def consume(numbers: Iterator[int]) -> int:
    return sum(numbers)


def test_an_earlier_demo_is_replaced_and_what_is_not_its_own_stays(tmp_path: Path) -> None:
    folder = demo.Folder(tmp_path / "demo")
    assert consume(demo.draw(folder, 40, 0))
    mine = tmp_path / "demo" / "runs" / "mine" / "config.toml"
    stale = folder.made["ce"] / "config.toml"
    for path in (mine, stale, folder.made["picture"]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    before = sorted(path.name for path in folder.drawn["scans"].iterdir())
    assert consume(demo.draw(folder, 60, 1))
    assert mine.exists()
    assert not stale.exists()
    assert not folder.made["picture"].exists()
    assert len(list(folder.drawn["scans"].iterdir())) > len(before)
    assert json.loads(folder.marker.read_text()) == {"finished": False, "seed": 1, "patients": 60}


def test_a_folder_that_is_no_demos_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert exit_code("demo", "-o", str(tmp_path)) == 2
    assert "no demo made it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_demos_cannot_write_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with files.only_writer(tmp_path / "demo"):
        assert exit_code("demo", "-o", str(tmp_path / "demo")) == 2
    assert "another damcli is writing" in capsys.readouterr().err


def test_too_few_patients_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("demo", "--patients", "39") == 2
    assert "40" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_demo_learns_and_follows_its_seed(tmp_path: Path) -> None:
    tours = []
    for seed in ("0", "1"):
        folder = tmp_path / seed
        folder.mkdir()
        tours.append(run_demo(folder, "--seed", seed, "--json", "-q"))
    for shown in tours:
        figures = json.loads(shown.stdout)
        assert figures == json.loads((shown.root / "demo.json").read_text())
        assert all(line.startswith("warning: ") for line in shown.stderr.splitlines())
        for arm in figures["arms"].values():
            assert arm["mean"]["auroc"]["value"] > 0.75
            assert arm["mean"]["auroc"]["low"] > 0.65
        steps = [steps_of(shown.root / "runs" / loss) for loss in demo.ARMS]
        assert max(steps) < 1.1 * min(steps)
        assert not (shown.root / TREE).exists()
        assert not (shown.root / "scans").exists()
    first, second = (json.loads(shown.stdout)["arms"] for shown in tours)
    assert first["CE"]["findings"] != second["CE"]["findings"]


def steps_of(run: Path) -> int:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = {record["stage"]: record["step"] for record in records if record["event"] == "step"}
    return sum(last.values())
