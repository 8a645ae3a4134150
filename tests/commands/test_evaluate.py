"""`damcli evaluate` from the command line: a run, a model and tables against a dataset and a table of labels."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from damcli.cli import main
from damcli.commands.evaluate import evaluate
from damcli.data.scores import ScanTable
from damcli.data.store import Dataset
from damcli.training.checkpoint import weights_sha256

FINDINGS = ["Edema", "Fracture"]


@pytest.fixture(scope="session")
def run(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one short epoch on `toy`; read it only."""
    from damcli.recipes import Recipe, Stage
    from damcli.training.loop import train

    stage = Stage(loss="ce", optimizer="adam", epochs=1, lr=1e-3)
    recipe = Recipe(backbone="test_resnet", batch_size=32, precision="32", stage2=stage)
    folder = tmp_path_factory.mktemp("evaluated") / "ce"
    for _ in train(recipe, Dataset.open(toy), folder, device="cpu"):
        pass
    return folder


@pytest.fixture(scope="session")
def model(run: Path, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, exported; read it only."""
    from damcli.bundle import build
    from damcli.training.checkpoint import load_network

    network, info = load_network(run)
    dataset = Dataset.open(toy)
    origin = dict.fromkeys(("recipe", "loss", "weights_sha256"), "toy")
    origin |= {"run": "ce", "seed": 0, "dataset": dataset.info.fingerprint}
    path = tmp_path_factory.mktemp("packaged") / "toy.onnx"
    build.export([build.Member(network, info.findings, info.contract, origin)], path, dataset.read(np.arange(4)))
    return path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def damcli(*arguments: object, code: int = 0, draws: int | None = 200) -> None:
    """Evaluate with a bootstrap of a few draws, where none of the test is about it; None: as many as by default."""
    with pytest.raises(SystemExit) as end:
        main(["evaluate", *map(str, arguments), *(("--draws", str(draws)) if draws else ())])
    assert (end.value.code or 0) == code


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def valid(toy: Path, noise: float = 0.8) -> tuple[pl.DataFrame, np.ndarray]:
    """A table of scores for the split `valid` of `toy` in an order of its own, and the truth in that order."""
    dataset = Dataset.open(toy)
    rows = np.random.default_rng(0).permutation(dataset.rows("valid"))
    truth = dataset.truth(rows)
    scores = truth + noise * np.random.default_rng(1).normal(size=truth.shape)
    columns = {"path": dataset.ids(rows), "Fracture": scores[:, 1], "other": ["x"] * len(rows), "Edema": scores[:, 0]}
    return pl.DataFrame(columns), truth


def test_scores_table_and_figures_agree_with_scikit_learn(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, truth = valid(toy)
    table.write_csv("scores.csv")
    damcli("scores.csv", toy, "--json")
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document == json.loads(Path("evaluation/metrics.json").read_text(encoding="utf-8"))
    for column, name in enumerate(FINDINGS):
        found = document["findings"][name]
        assert found["auroc"]["value"] == pytest.approx(roc_auc_score(truth[:, column], table[name]), abs=1e-12)
        assert 0 <= found["auroc"]["low"] < found["auroc"]["value"] < found["auroc"]["high"] <= 1
        assert found["positives"] == (truth[:, column] == 1).sum()
    assert document["scans"] == len(table)
    assert document["patients"] == len(table) // 3
    assert document["selection"]["used"] is None
    assert names(Path("evaluation")) == [
        "metrics.csv",
        "metrics.json",
        "report.html",
        "roc.png",
        "scores-valid.parquet",
    ]
    assert err.splitlines()[-1].startswith("next: damcli ")


def test_table_on_stdout_has_intervals_notes_and_nothing_else(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, truth = valid(toy)
    table.write_parquet("scores.parquet")
    damcli("scores.parquet", toy, "-q", draws=None)
    out, err = capsys.readouterr()
    assert err == ""
    lines = [line.split() for line in out.splitlines()]
    assert ["finding", "n+", "n−", "AUROC", "95", "%", "interval"] in lines
    edema = next(line for line in lines if line[:1] == ["Edema"])
    assert edema[1:4] == [
        str(int((truth[:, 0] == 1).sum())),
        str(int((truth[:, 0] == 0).sum())),
        f"{roc_auc_score(truth[:, 0], table['Edema']):.3f}",
    ]
    low, high = edema[4].split("–")
    assert float(low) < float(edema[3]) < float(high)
    assert "mean of 2" in out
    assert "intervals: bootstrap, 2,000 draws of patients with replacement (seed 0)" in out


def test_failed_scans_are_left_out_and_counted(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, truth = valid(toy)
    status = ["failed", "failed", *["ok"] * (len(table) - 2)]
    table = table.with_columns(status=pl.Series(status), Edema=pl.Series([None, None, *table["Edema"][2:]]))
    table.write_csv("scores.csv")
    damcli("scores.csv", toy, "--json")
    document = json.loads(capsys.readouterr().out)
    assert (document["failed"], document["scans"]) == (2, len(table) - 2)
    expected = roc_auc_score(truth[2:, 0], table["Edema"][2:])
    assert document["findings"]["Edema"]["auroc"]["value"] == pytest.approx(expected, abs=1e-12)
    assert "2 scans could not be scored (status failed) and are left out" in document["notes"]


def test_labels_from_a_table(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, truth = valid(toy)
    labels = pl.DataFrame({"path": table["path"], "Edema": truth[:, 0].astype(int).astype(str)})[::-1]
    labels = labels.with_columns(Edema=pl.Series(["-1", "", *labels["Edema"][2:]]))
    Path("labels.csv").write_text("\ufeff" + labels.write_csv(separator=";"), encoding="utf-8")
    table.write_csv("scores.csv")
    damcli("scores.csv", "labels.csv", "--json")
    document = json.loads(capsys.readouterr().out)
    found = document["findings"]["Edema"]
    assert list(document["findings"]) == ["Edema"]
    assert (found["uncertain"], found["unlabelled"]) == (1, 1)
    expected = roc_auc_score(truth[:-2, 0], table["Edema"][:-2])
    assert found["auroc"]["value"] == pytest.approx(expected, abs=1e-12)
    assert names(Path("evaluation")) == ["metrics.csv", "metrics.json", "report.html", "roc.png", "scores.parquet"]


def test_a_run_is_scored_into_its_own_folder(run: Path, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, "ce")
    damcli("ce", toy, "--json", "--device", "cpu")
    document = json.loads(capsys.readouterr().out)
    networks = [weights_sha256(Path("ce"))]
    assert document["subject"] == {"kind": "run", "path": "ce", "networks": networks}
    assert document["selection"] == {
        "used": False,
        "note": "the run was neither trained nor selected on these scans",
    }
    folder = Path("ce/evaluation-valid")
    assert names(folder) == ["metrics.csv", "metrics.json", "report.html", "roc.png", "scores-valid.parquet"]
    dataset = Dataset.open(toy)
    rows = dataset.rows("valid")
    written = ScanTable.read(folder / "scores-valid.parquet")
    assert written.ids == dataset.ids(rows)
    expected = roc_auc_score(dataset.truth(rows)[:, 0], written.scores(written.ids, ["Edema"]).scores[:, 0])
    assert document["findings"]["Edema"]["auroc"]["value"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("split", "words"), [("tune", "best epoch was chosen"), ("train", "was trained on these")])
def test_a_split_that_was_used_is_said_in_table_and_json(
    run: Path, toy: Path, split: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damcli(run, toy, "--split", split, "-o", "out", "-q")
    assert re.search(f"^selection: the run('s)? {words}", capsys.readouterr().out, re.MULTILINE)
    selection = json.loads(Path("out/metrics.json").read_text(encoding="utf-8"))["selection"]
    assert selection["used"] is True
    assert words in selection["note"]


def test_tune_is_the_part_that_training_kept_out(run: Path, toy: Path) -> None:
    from damcli.training.checkpoint import read_run

    tune = evaluate(run, toy, "tune", "cpu")
    assert sorted(tune.truth.ids) == sorted(read_run(run).tune_ids)
    scored = ScanTable.read(run / "scores-tune.parquet").scores(tune.truth.ids, FINDINGS).scores
    np.testing.assert_allclose(tune.scores, scored, atol=1e-6)


def test_a_model_gives_the_figures_of_its_run(run: Path, model: Path, toy: Path) -> None:
    of_run, of_model = evaluate(run, toy, "valid", "cpu"), evaluate(model, toy, "valid", "cpu")
    np.testing.assert_allclose(of_model.scores, of_run.scores, atol=1e-5)
    assert of_model.selection.used is False
    assert evaluate(model, toy, "train", "cpu").selection.used is True


def test_of_an_ensemble_with_members_from_elsewhere_it_is_not_known_that_no_scan_was_used(run: Path, toy: Path) -> None:
    from damcli.bundle import build
    from damcli.training.checkpoint import load_network

    network, info = load_network(run)
    dataset = Dataset.open(toy)
    origin = dict.fromkeys(("run", "recipe", "loss", "weights_sha256"), "toy") | {"seed": 0}
    members = [
        build.Member(network, info.findings, info.contract, origin | {"dataset": fingerprint})
        for fingerprint in (dataset.info.fingerprint, "another")
    ]
    build.export(members, Path("two.onnx"), dataset.read(np.arange(4)))
    assert evaluate(Path("two.onnx"), toy, "valid", "cpu").selection.used is None
    assert evaluate(Path("two.onnx"), toy, "train", "cpu").selection.used is True


def test_another_dataset_is_said_and_has_a_folder_of_its_own(
    run: Path, make_toy: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, "ce")
    make_toy(Path("data/other"), scans=60, seed=3)
    damcli("ce", "data/other", "-q")
    assert "selection: the run was trained on another dataset" in capsys.readouterr().out
    assert (Path("ce") / "evaluation-other-valid" / "metrics.json").is_file()
    damcli("ce", "data/other", "--split", "tune", code=2)


def test_without_paths_the_newest_run_and_its_dataset_are_taken_and_named(
    run: Path, toy: Path, make_toy: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    damcli(code=2)
    assert "there is no run under runs/" in capsys.readouterr().err
    shutil.copytree(run, "runs/ce")
    make_toy(Path("data/mine"))
    damcli()
    err = capsys.readouterr().err
    assert f"took the run {Path('runs/ce')}" in err
    assert f"took the dataset {Path('data/mine')}, the newest" in err
    # Beside its dataset, as training left it, the run finds it again.
    facts = json.loads(Path("runs/ce/run.json").read_text(encoding="utf-8"))
    Path("runs/ce/run.json").write_text(json.dumps(facts | {"dataset": "../../data/mine"}), encoding="utf-8")
    make_toy(Path("data/newer"), scans=60, seed=3)
    damcli("-q")
    damcli()
    assert f"took the dataset {Path('data/mine')}, which the run was trained on" in capsys.readouterr().err


def test_another_contract_is_refused(
    run: Path, model: Path, make_toy: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    make_toy(Path("larger"), scans=60, size=40)
    for subject in (run, model):
        damcli(subject, "larger", "-o", "out", code=3)
        assert "fix: prepare the dataset again with --size 32 --channels 1 --fit pad" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["absent", "TOY"], 2, "there is no such run, model or table of scores"),
        (["scores.csv", "absent"], 2, "there is no such dataset or table of labels"),
        (["TOY"], 2, "this is a dataset, to evaluate on"),
        (["notes.txt", "TOY"], 2, "this cannot be evaluated"),
        (["scores.csv", "TOY", "--split", "test"], 2, "--split takes: train, valid"),
        (["scores.csv", "TOY", "--split", "tune"], 2, "has no split 'tune'"),
        (["scores.csv", "scores.csv", "--split", "valid"], 2, "a table of labels has no splits"),
        (["fake.onnx", "scores.csv"], 2, "a model needs images to score"),
        (["scores.csv", "."], 3, "this is no dataset"),
        (["empty", "TOY"], 3, "this is no run"),
        (["fake.onnx", "TOY"], 3, "no ONNX file"),
        (["scores.csv", "TOY", "--device", "tpu"], 2, "there is no device 'tpu'"),
        (["scores.csv", "TOY", "-o", "notes.txt"], 2, "a file where a folder should"),
        (["nothing.csv", "TOY"], 3, "no finding is in both: scores of Pneumonia; labels of Edema, Fracture"),
        (["few.csv", "TOY"], 3, "59 of 60 scans have no row"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    toy: Path, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table, _ = valid(toy)
    table.write_csv("scores.csv")
    table[:1].write_csv("few.csv")
    table.select("path", Pneumonia="Edema").write_csv("nothing.csv")
    Path("notes.txt").touch()
    Path("fake.onnx").write_bytes(b"no model")
    Path("empty").mkdir()
    before = names(Path())
    damcli(*(str(toy) if argument == "TOY" else argument for argument in arguments), code=code)
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert names(Path()) == before
    assert names(Path("empty")) == []


def test_a_missing_finding_is_said_and_a_missing_row_is_never_filled(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, _ = valid(toy)
    table.drop("Fracture").write_csv("scores.csv")
    damcli("scores.csv", toy, "-q")
    assert "there are no scores of Fracture" in capsys.readouterr().out
    table[:-1].write_csv("scores.csv")
    damcli("scores.csv", toy, code=3)
    assert f"1 of {len(table)} scans have no row, first {table['path'][-1]}" in capsys.readouterr().err


def test_a_flipped_byte_of_the_checkpoint_is_refused(run: Path, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, "ce")
    weights = Path("ce/checkpoints/best/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    damcli("ce", toy, code=3)
    assert "the checkpoint is damaged" in capsys.readouterr().err
    assert not Path("ce/evaluation-valid").exists()


def test_interrupted_while_writing_nothing_half_written_is_left(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, _ = valid(toy)
    table.write_csv("scores.csv")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("damcli.report.plots.roc", interrupted)
    damcli("scores.csv", toy, code=130)
    assert capsys.readouterr().out == ""
    assert names(Path("evaluation")) == ["scores-valid.parquet"]


def test_a_table_of_scores_is_evaluated_without_torch(toy: Path) -> None:
    table, _ = valid(toy)
    table.write_csv("scores.csv")
    program = f"""
import sys
from damcli.cli import main
try:
    main(["evaluate", "scores.csv", {str(toy)!r}, "-q"])
finally:
    assert not {{"torch", "onnxruntime", "matplotlib.pyplot"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, stdout=subprocess.DEVNULL)
