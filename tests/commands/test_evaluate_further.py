"""`damcli evaluate`: units, clusters, comparison, readers, operating points, calibration, subgroups, gates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from damcli import files
from damcli.data.scores import ScanTable
from damcli.data.store import Dataset
from damcli.errors import MachineError
from damcli.metrics import auroc, bootstrap_interval, delong_interval

FINDINGS = ["Edema", "Fracture"]
# Draws of the bootstrap, where no figure depends on how many they are.
FEW = ("--draws", 200)
Damcli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def trained(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one short epoch on `toy`; copy it to change it."""
    from damcli.recipes import Recipe, Stage
    from damcli.training.loop import train

    stage = Stage(loss="ce", optimizer="adam", epochs=2, lr=1e-3)
    recipe = Recipe(backbone="test_resnet", batch_size=32, precision="32", tune_fraction=0.3, stage2=stage)
    folder = tmp_path_factory.mktemp("judged") / "ce"
    for _ in train(recipe, Dataset.open(toy), folder, device="cpu"):
        pass
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "ce")
    return Path("ce")


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pl.DataFrame:
    """`scores.csv`, `other.csv` and `labels.csv` of 120 scans in 60 studies of 30 patients; the labels are returned."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    study = np.arange(120) // 2
    truth = (rng.random((60, 2)) < 0.4)[study].astype(int)
    labels = pl.DataFrame(
        {
            "path": [f"p{s // 2:02}/study{s % 2}/view{n % 2}.png" for n, s in enumerate(study)],
            "patient": [f"p{s // 2:02}" for s in study],
            "study": [f"study{s % 2}" for s in study],
            "sex": ["F" if s % 4 < 2 else "M" for s in study],
            "age": (study * 1.5).astype(int),
        }
    ).with_columns(pl.Series(name, truth[:, k]) for k, name in enumerate(FINDINGS))
    labels.write_csv("labels.csv")
    for name, noise in (("scores", 0.8), ("other", 1.6)):
        values = 1 / (1 + np.exp(-(2 * truth - 1 + noise * rng.normal(size=(120, 2)))))
        scores = labels.select("path").with_columns(pl.Series(f, values[:, k]) for k, f in enumerate(FINDINGS))
        scores.sample(fraction=1, shuffle=True, seed=1).write_csv(f"{name}.csv")
    return labels


def document(folder: str = "evaluation") -> dict[str, Any]:
    return json.loads(Path(folder, "metrics.json").read_text(encoding="utf-8"))


def scores_of(labels: pl.DataFrame, name: str = "scores.csv") -> np.ndarray:
    return ScanTable.read(Path(name)).scores(labels["path"].to_list(), FINDINGS).scores


def test_patients_with_several_scans_are_drawn_together(tables: pl.DataFrame, run_here: Damcli) -> None:
    assert run_here("evaluate", "scores.csv", "labels.csv", "--draws", 300, "--seed", 4)[0] == 0
    scores = scores_of(tables)
    for k, name in enumerate(FINDINGS):
        groups = tables["patient"].to_list()
        expected = bootstrap_interval(tables[name].to_numpy(), scores[:, k], groups, draws=300, seed=4)
        found = document()["findings"][name]["auroc"]
        assert (found["value"], found["low"], found["high"]) == expected[:3]
    alone = run_here("evaluate", "scores.csv", "labels.csv", "--cluster", "none", "-o", "alone", "--draws", 200)
    assert "too narrow: 120 scans of 30 patients" in alone[1]
    assert document("alone")["interval"]["auroc"].startswith("DeLong")
    run_here("evaluate", "scores.csv", "labels.csv", "--cluster", "study", "-o", "study", "--draws", 200)
    assert document("study")["interval"]["cluster"] == "study"


@pytest.mark.parametrize(("rule", "reduce"), [("mean", np.mean), ("max", np.max), ("first", lambda x, axis: x[:, 0])])
def test_studies_are_judged_by_the_reduced_scores_of_their_scans(
    rule: str, reduce: Any, tables: pl.DataFrame, run_here: Damcli
) -> None:
    code, out, _ = run_here("evaluate", "scores.csv", "labels.csv", "--by", "study", "--reduce", rule, "--draws", 200)
    assert code == 0
    found = document()
    assert (found["scans"], found["units"], found["patients"]) == (120, 60, 30)
    assert found["unit"]["reduce"] == dict.fromkeys(FINDINGS, rule)
    assert f"by study: the {rule} of its scans' scores" in out
    reduced = reduce(scores_of(tables).reshape(60, 2, 2), axis=1)
    for k, name in enumerate(FINDINGS):
        expected = auroc(tables[name].to_numpy()[::2], reduced[:, k])
        assert found["findings"][name]["auroc"]["value"] == pytest.approx(expected, abs=1e-12)
    # The scores that are written stay those of the scans.
    assert len(pl.read_parquet("evaluation/scores.parquet")) == 120


def test_by_patient_labels_that_differ_are_said_and_a_finding_may_have_a_rule_of_its_own(
    tables: pl.DataFrame, run_here: Damcli
) -> None:
    options = ("--by", "patient", "--reduce", "max,Edema=mean", "--draws", 200)
    code, out, _ = run_here("evaluate", "scores.csv", "labels.csv", *options)
    assert code == 0
    assert document()["unit"]["reduce"] == {"Edema": "mean", "Fracture": "max"}
    by_patient = tables.group_by("patient").agg(pl.col(FINDINGS).n_unique() > 1)
    counted = ", ".join(f"{name} {by_patient[name].sum()}" for name in FINDINGS)
    assert f"patients whose scans are labelled differently: {counted}" in out
    assert document()["findings"]["Edema"]["positives"] == tables.group_by("patient").max()["Edema"].sum()


def test_two_tables_of_scores_are_compared_by_name(tables: pl.DataFrame, run_here: Damcli) -> None:
    other = pl.read_csv("other.csv").select("Fracture", "path", "Edema").with_columns(pl.col("Edema") * 100 - 50)
    other.write_csv("other.csv")
    arguments = ("evaluate", "scores.csv", "labels.csv", "--against", "other.csv", "--draws", 400)
    code, out, _ = run_here(*arguments)
    assert code == 0
    found = document()["comparison"]
    one, two = scores_of(tables), scores_of(tables, "other.csv")
    for k, name in enumerate(FINDINGS):
        truth = tables[name].to_numpy()
        difference = found["findings"][name]["difference"]
        assert difference["value"] == pytest.approx(auroc(truth, one[:, k]) - auroc(truth, two[:, k]), abs=1e-12)
        assert difference["low"] < difference["value"] < difference["high"]
        assert found["findings"][name]["p"] <= found["findings"][name]["p_holm"]
    assert "Difference to other.csv (paired, bootstrap, 400 draws of patients" in out
    assert run_here(*arguments[:-3], "absent.csv")[0] == 2


def test_readers_stand_beside_the_curve(tables: pl.DataFrame, run_here: Damcli) -> None:
    studies = tables[::2]
    rng = np.random.default_rng(2)
    for name in ("bc4", "bc6"):
        wrong = rng.random((60, 2)) < 0.25
        calls = {f: np.where(wrong[:, k], 1 - studies[f], studies[f]) for k, f in enumerate(reversed(FINDINGS))}
        keys = [f"CheXpert-v1.0/test/{p}/{s}" for p, s in zip(studies["patient"], studies["study"], strict=True)]
        Path("readers").mkdir(exist_ok=True)
        frame = pl.DataFrame({"Study": keys, **calls}).sample(fraction=1, shuffle=True, seed=3)
        frame.write_csv(f"readers/{name}.csv")
    code, out, _ = run_here(
        "evaluate", "scores.csv", "labels.csv", "--readers", "readers", "--draws", 200, "--require", "nrbc>=0"
    )
    assert code == 0
    found = document()["readers"]
    assert document()["unit"]["by"] == "study"
    assert found["names"] == ["bc4", "bc6"]
    points = found["findings"]
    counted = [sum(points[f][r]["beaten"] for r in ("bc4", "bc6")) for f in FINDINGS]
    assert found["nrbc"]["value"] == sum(counted) / 2
    frame = pl.read_csv("readers/bc4.csv")
    keyed = dict(zip(frame["Study"].str.strip_prefix("CheXpert-v1.0/test/"), frame["Edema"], strict=True))
    calls = np.array([keyed[f"{p}/{s}"] for p, s in zip(studies["patient"], studies["study"], strict=True)])
    truth = studies["Edema"].to_numpy()
    assert points["Edema"]["bc4"]["sensitivity"]["value"] == pytest.approx(calls[truth == 1].mean())
    assert points["Edema"]["bc4"]["false_positive_rate"]["value"] == pytest.approx(calls[truth == 0].mean())
    assert "mean number of readers beaten (NRBC)" in out


def test_operating_points_are_chosen_on_tune_kept_in_the_run_and_measured_here(
    run: Path, toy: Path, run_here: Damcli
) -> None:
    code, out, _ = run_here(
        "evaluate", *FEW, run, toy, "--operating", "sensitivity=0.8", "--operating", "cost=3", "--prevalence", "0.05"
    )
    assert code == 0
    assert "Operating points, chosen on the tune part of ce, kept in the run now" in out
    tune = ScanTable.read(run / "scores-tune.parquet")
    dataset = Dataset.open(toy)
    ids = dataset.manifest["id"].to_list()
    truth = dataset.truth(np.array([ids.index(name) for name in tune.ids]))[:, 0]
    scores = tune.scores(tune.ids, FINDINGS).scores[:, 0]
    found = document("ce/evaluation-valid")["findings"]["Edema"]["operating"]
    assert list(found) == ["sensitivity-0.8", "cost-3"]
    point = found["sensitivity-0.8"]
    reached = [t for t in sorted(set(scores.tolist())) if (scores[truth == 1] >= t).mean() >= 0.8]
    assert point["threshold"] == max(reached)
    valid = pl.read_parquet("ce/evaluation-valid/scores-valid.parquet")
    labels = dataset.truth(dataset.rows("valid"))[:, 0]
    called = valid["Edema"].cast(pl.Float64).to_numpy() >= point["threshold"]
    assert point["true_positives"] == (called & (labels == 1)).sum()
    assert point["specificity"]["value"] == pytest.approx((~called[labels == 0]).mean())
    assert point["prevalence"] == 0.05
    # Without options those that the run keeps are used, and say so.
    run_here("evaluate", *FEW, run, toy, "-o", "again")
    assert document("again")["decisions"]["stored"] == "kept in the run before"
    again = document("again")["findings"]["Edema"]["operating"]["sensitivity-0.8"]
    assert again["threshold"] == point["threshold"]


def test_a_run_that_cannot_be_written_is_judged_all_the_same(
    run: Path, toy: Path, run_here: Damcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere, so the system's refusal is made here."""
    write = files.write_json

    def refusing(path: Path, value: Any) -> None:
        if path.parent.name == run.name:
            raise MachineError("this place cannot be written", where=path, fix="choose another one with -o")
        write(path, value)

    monkeypatch.setattr(files, "write_json", refusing)
    code, out, err = run_here("evaluate", *FEW, run, toy, "-o", "elsewhere")
    assert code == 0, err
    assert document("elsewhere")["findings"]["Edema"]["operating"]["youden"]["sensitivity"]["value"] is not None
    assert "not kept: this place cannot be written" in out
    code, _, err = run_here("evaluate", *FEW, run, toy, "-o", "asked", "--operating", "cost=3")
    assert (code, Path("asked").exists()) == (5, False)
    assert "copy the run" in err


def test_calibration_keeps_the_ranking_and_brings_scores_nearer_to_probabilities(
    run: Path, toy: Path, run_here: Damcli
) -> None:
    run_here("evaluate", *FEW, run, toy, "-o", "raw")
    code, out, _ = run_here("evaluate", *FEW, run, toy, "-o", "platt", "--calibrate", "platt")
    assert code == 0
    assert "Calibration, fitted on the tune part" in out
    for name in FINDINGS:
        raw, calibrated = (document(folder)["findings"][name] for folder in ("raw", "platt"))
        assert calibrated["auroc"]["value"] == pytest.approx(raw["auroc"]["value"], abs=1e-9)
        errors = calibrated["calibration"]
        assert errors["chosen"] == "platt"
        assert errors["before"]["brier"]["value"] == raw["calibration"]["before"]["brier"]["value"]
        assert set(errors["after"]) == {"temperature", "platt", "isotonic"}
        assert errors["after"]["platt"]["brier"]["value"] < errors["before"]["brier"]["value"]
    run_here("evaluate", *FEW, run, toy, "-o", "isotonic", "--calibrate", "isotonic")
    assert any("ties" in note for note in document("isotonic")["notes"])
    run_here("evaluate", *FEW, run, toy, "-o", "kept")
    for name in FINDINGS:
        # What a run keeps has no say in how well it ranks.
        raw, kept = (document(folder)["findings"][name] for folder in ("raw", "kept"))
        assert kept["auroc"] == raw["auroc"]
        assert kept["calibration"]["chosen"] == "isotonic"
    run_here("evaluate", *FEW, run, toy, "-o", "none", "--calibrate", "none")
    assert document("none")["findings"]["Edema"]["calibration"]["chosen"] == "none"


def test_points_of_findings_without_labels_here_are_undefined(
    run: Path, toy: Path, make_toy: Callable[..., Path], run_here: Damcli
) -> None:
    blank = make_toy(Path("blank"), scans=60, blank=1.0)
    run_here("evaluate", *FEW, run, toy)
    code, out, err = run_here("evaluate", *FEW, run, blank, "-o", "evaluation")
    assert code == 0, err
    point = document()["findings"]["Edema"]["operating"]["youden"]
    assert (point["prevalence"], point["sensitivity"]["why"]) == (None, "no positives")
    assert "n/a (no positives)" in out


def test_what_was_decided_for_other_scores_is_left_out_and_said(
    run: Path, toy: Path, make_toy: Callable[..., Path], run_here: Damcli
) -> None:
    """On another dataset, where the run's own is not at hand to decide anew on."""
    other = make_toy(Path("other"), scans=60, seed=3)
    run_here("evaluate", *FEW, run, toy, "--by", "patient", "--reduce", "max")
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps(facts | {"dataset": "gone"}), encoding="utf-8")
    by = ("--by", "patient", "--reduce")
    assert run_here("evaluate", *FEW, run, other, *by, "max", "-o", "same")[0] == 0
    assert document("same")["decisions"]["stored"] == "kept in the run before"
    for folder, options in (("mean", (*by, "mean")), ("scans", ()), ("views", (*by, "max", "--tta", 2))):
        code, _, err = run_here("evaluate", run, other, *options, "-o", folder)
        assert code == 0, err
        assert document(folder)["decisions"] is None
        assert "left out: it is of patients (max of scans) over 1 view(s)" in err


def test_a_run_does_not_differ_from_itself_however_it_is_calibrated(run: Path, toy: Path, run_here: Damcli) -> None:
    code, _, err = run_here(
        "evaluate", *FEW, run, toy, "--calibrate", "isotonic", "--by", "patient", "--against", run, "-o", "both"
    )  # fmt: skip
    assert code == 0, err
    found = document("both")
    assert [each["difference"]["value"] for each in found["comparison"]["findings"].values()] == [0, 0]
    assert found["comparison"]["findings"]["Edema"]["auroc"] == found["findings"]["Edema"]["auroc"]["value"]
    assert "thresholds are of the scores after isotonic calibration, all curves of those before" in found["notes"]


def test_what_cannot_be_evaluated_decides_nothing(run: Path, toy: Path, run_here: Damcli) -> None:
    code, _, _ = run_here("evaluate", *FEW, run, toy, "--operating", "cost=3", "--subgroups", "scanner")
    assert code == 2
    assert not (run / "decisions.json").exists()


@pytest.mark.parametrize("option", [("--operating", "youden"), ("--calibrate", "platt")])
def test_scores_without_a_tune_part_decide_nothing(
    option: tuple[str, str], tables: pl.DataFrame, run_here: Damcli
) -> None:
    code, _, err = run_here("evaluate", *FEW, "scores.csv", "labels.csv", *option)
    assert code == 2
    assert "flatter" in err
    assert not Path("evaluation").exists()


def test_subgroups_have_intervals_and_a_corrected_gap(tables: pl.DataFrame, run_here: Damcli) -> None:
    code, out, _ = run_here("evaluate", "scores.csv", "labels.csv", "--subgroups", "Sex, age", "--draws", 200)
    assert code == 0
    sex, age = document()["subgroups"]
    assert [group["group"] for group in sex["groups"]] == ["F", "M"]
    assert [group["group"] for group in age["groups"]] == ["0–17", "18–39", "40–64", "65–79", "80+"]
    assert sum(group["units"] for group in age["groups"]) == 120
    women = (tables["sex"] == "F").to_numpy()
    expected = auroc(tables["Edema"].to_numpy()[women], scores_of(tables)[women, 0])
    assert sex["groups"][0]["findings"]["Edema"]["auroc"]["value"] == pytest.approx(expected)
    gap = sex["largest_gap"]["Edema"]["difference"]
    assert gap["low"] < gap["value"] < gap["high"]
    assert "By sex" in out
    run_here("evaluate", "scores.csv", "labels.csv", "--subgroups", "sex", "--draws", 200, "--cluster", "none")
    alone = document()["subgroups"][0]["groups"][0]["findings"]["Edema"]["auroc"]
    expected = delong_interval(tables["Edema"].to_numpy()[women], scores_of(tables)[women, 0])
    assert (alone["low"], alone["high"]) == pytest.approx(expected)
    assert alone["low"] != sex["groups"][0]["findings"]["Edema"]["auroc"]["low"]
    code, _, err = run_here("evaluate", *FEW, "scores.csv", "labels.csv", "--subgroups", "scanner")
    assert code == 2
    assert "choose from: sex, age" in err


def test_a_gate_that_is_not_met_ends_with_6_after_everything_is_written(tables: pl.DataFrame, run_here: Damcli) -> None:
    gates = ("--require", "auroc>=0.6", "--require", "Edema.auroc.low >= 0.99")
    code, out, err = run_here("evaluate", "scores.csv", "labels.csv", *gates, "--json", "--draws", 200)
    assert code == 6
    assert "1 of 2 conditions are not met: Edema.auroc.low >= 0.99 (it is 0." in err
    assert json.loads(out) == document()
    assert [gate["met"] for gate in document()["gates"]] == [True, False]
    assert sorted(file.name for file in Path("evaluation").iterdir() if file.name[0] != ".") == [
        "metrics.csv", "metrics.json", "report.html", "roc.png", "scores.parquet",
    ]  # fmt: skip
    code, _, err = run_here("evaluate", *FEW, "scores.csv", "labels.csv", "--require", "Edma.auroc>=0.5", "-o", "new")
    assert code == 2
    assert "there is no figure 'Edma.auroc'" in err
    assert document("new")["gates"][0]["met"] is False, "what was scored is not lost"


def test_the_flat_table_holds_the_figures_of_the_document(tables: pl.DataFrame, run_here: Damcli) -> None:
    run_here("evaluate", "scores.csv", "labels.csv", "--against", "other.csv", "--draws", 200)
    flat = pl.read_csv("evaluation/metrics.csv")
    found = document()
    for row in flat.filter(pl.col("figure") == "auroc").iter_rows(named=True):
        here = found["mean"] if row["finding"] == "mean" else found["findings"][row["finding"]]
        assert [row[key] for key in ("value", "low", "high")] == [
            here["auroc"][key] for key in ("value", "low", "high")
        ]
    figures = set(flat["figure"])
    assert {"auroc", "average_precision", "partial_auroc", "sensitivity_at_specificity", "difference"} <= figures


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--by", "image"), "choose from: scan, study, patient"),
        (("--reduce", "max"), "--by study"),
        (("--by", "study", "--reduce", "median"), "mean, max, first"),
        (("--cluster", "site"), "choose from: patient, study, none"),
        (("--prevalence", "2"), "between 0 and 1"),
        (("--operating", "accuracy"), "youden"),
        (("--calibrate", "beta"), "temperature"),
        (("--require", "auroc"), "no condition"),
        (("--readers", "absent"), "no such file or folder of readers"),
        (("--gallery",), "no images"),
    ],
)
def test_options_that_mean_nothing_are_refused_before_any_work(
    options: tuple[str, ...], message: str, tables: pl.DataFrame, run_here: Damcli
) -> None:
    code, _, err = run_here("evaluate", "scores.csv", "labels.csv", *options)
    assert code == 2
    assert message in err
    assert not Path("evaluation").exists()


def test_a_prevalence_is_of_a_finding_that_is_there(run: Path, toy: Path, run_here: Damcli) -> None:
    assert run_here("evaluate", *FEW, run, toy, "--prevalence", "edema=0.05", "-o", "found")[0] == 0
    points = {name: each["operating"]["youden"] for name, each in document("found")["findings"].items()}
    assert points["Edema"]["prevalence"] == 0.05 != points["Fracture"]["prevalence"]
    code, _, err = run_here("evaluate", *FEW, run, toy, "--prevalence", "Oedema=0.05", "-o", "none")
    assert code == 2
    assert "did you mean Edema?" in err


def test_the_page_has_every_part_that_was_asked_for_and_no_identifier(run: Path, toy: Path, run_here: Damcli) -> None:
    code, _, err = run_here(
        "evaluate", *FEW, run, toy, "--gallery", "--calibrate", "temperature", "--operating", "youden",
        "--subgroups", "view",
    )  # fmt: skip
    assert code == 0, err
    page = (run / "evaluation-valid" / "report.html").read_text(encoding="utf-8")
    manifest = Dataset.open(toy).manifest
    for column in ("id", "patient", "study"):
        assert not [name for name in manifest[column].unique() if name in page]
    for words in ("heat map", "must not be concluded", "fingerprint", "Training", "Operating points", "Reliability"):
        assert words.lower() in page.lower(), words
    assert page.count("data:image/png;base64,") >= 8
