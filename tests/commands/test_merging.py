"""`damcli evaluate --merge`: three small hospitals' figures as one, from phantoms to the page; and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from damcli.cli import main
from damcli.data.phantoms import write_chexpert

SITES = {"north": 50, "south": 40, "west": 45}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory, train: Any) -> Path:
    """Three folders, each with an evaluation of one network on its own patients, the first's with those it learned."""
    root = tmp_path_factory.mktemp("hospitals")
    for seed, (name, patients) in enumerate(SITES.items()):
        for _ in write_chexpert(root / name, patients, seed):
            pass
        quietly("prepare", "chexpert", root / name / "CheXpert-v1.0-small", "-o", root / name / "data", "--size", "32")
    train(root / "north" / "data", root / "run", epochs=4)
    for name in SITES:
        evaluated(root, name, root / "run", root / name / "evaluation")
    return root


def evaluated(root: Path, name: str, subject: Path, where: Path) -> None:
    quietly("evaluate", subject, root / name / "data", "--split", "train", "-o", where, "--draws", "200")


def quietly(*arguments: object) -> None:
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments), "-q"])
    assert not end.value.code


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def logit(share: float) -> float:
    return math.log(share / (1 - share))


def test_three_hospitals_are_pooled_without_their_scans(hospitals: Path, run_here: Run) -> None:
    for name in SITES:
        Path("sent", name).mkdir(parents=True)
        shutil.copy(hospitals / name / "evaluation" / "metrics.json", Path("sent", name))
    files = [Path("sent", name) for name in SITES]
    code, out, err = run_here("evaluate", "--merge", *files)
    assert code == 0
    assert out.startswith(
        f"3 sites merged, by scan, {sum(json.loads((f / 'metrics.json').read_text())['scans'] for f in files)} scans"
    )
    assert sorted(file.name for file in Path("merged").iterdir()) == ["merged.html", "merged.json"]
    document = json.loads(Path("merged/merged.json").read_text())
    sites = {name: json.loads((f / "metrics.json").read_text()) for name, f in zip(SITES, files, strict=True)}
    assert list(document["sites"]) == list(SITES)
    pooled = 0
    for finding, merged in document["findings"].items():
        aurocs = [site["findings"][finding]["auroc"] for site in sites.values()]
        aurocs = [each for each in aurocs if each["value"] not in (None, 0, 1)]
        if not aurocs:
            assert merged["auroc"]["value"] is None
            continue
        pooled += len(aurocs) == 3
        x = np.array([logit(each["value"]) for each in aurocs])
        z = stats.norm.ppf(0.975)
        s = np.array([(logit(each["high"]) - logit(each["low"])) / 2 / z for each in aurocs])
        mean, deviation = np.average(x, weights=s**-2), (s**-2).sum() ** -0.5
        expected = 1 / (1 + np.exp(-(mean + z * deviation * np.array([0, -1, 1]))))
        assert [merged["auroc"][key] for key in ("value", "low", "high")] == pytest.approx(expected, rel=1e-6)
        if len(aurocs) > 1:
            assert merged["heterogeneity"]["q"] == pytest.approx(((x - mean) ** 2 / s**2).sum(), rel=1e-6)
    assert pooled >= 2
    [warning] = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert warning.startswith("warning: scans had a part in making the model at north: these figures flatter it")
    assert "is not known of south, west" in out


@pytest.mark.slow
def test_a_run_and_the_model_made_of_it_are_one(hospitals: Path, tmp_path: Path, run_here: Run) -> None:
    quietly("export", hospitals / "run", "-o", "chest.onnx")
    evaluated(hospitals, "south", tmp_path / "chest.onnx", tmp_path / "south" / "evaluation")
    code, _, err = run_here(
        "evaluate", "--merge", *(root / "evaluation" for root in (hospitals / "north", Path("south")))
    )
    assert code == 0
    assert "model at north" in err
    assert "different models" not in err
    assert "which model" not in err


def test_the_result_names_no_patient_and_no_place(hospitals: Path, run_here: Run) -> None:
    code, out, err = run_here("evaluate", "--merge", *(hospitals / name / "evaluation" for name in SITES), "-o", "told")
    assert code == 0
    ids = [
        value
        for name in SITES
        for value in pl.read_parquet(hospitals / name / "data" / "manifest.parquet")["patient"].unique()
    ]
    assert len(ids) > 100
    text = "".join(Path("told", name).read_text() for name in ("merged.json", "merged.html"))
    assert not [value for value in ids if f'"{value}"' in text + out or f">{value}<" in text]
    assert "patient0" not in text + out + err
    assert str(hospitals) not in text + out + err


def test_json_is_the_document_and_gates_end_with_six(hospitals: Path, run_here: Run) -> None:
    sites = [hospitals / name / "evaluation" / "metrics.json" for name in SITES]
    code, out, err = run_here("evaluate", "--merge", *sites, "--json", "--require", "Edema.auroc.low>=0.999")
    assert code == 6
    document = json.loads(out)
    assert document == json.loads(Path("merged/merged.json").read_text())
    assert [gate["met"] for gate in document["gates"]] == [False]
    assert "1 of 1 conditions are not met" in err
    code, out, _ = run_here("evaluate", "--merge", *sites, "--require", "Edema.auroc>=0.01", "-q")
    assert code == 0
    assert "Required" in out
    code, _, err = run_here("evaluate", "--merge", *sites, "--require", "Edema.calibration>=0.01")
    assert code == 2
    assert "there is no figure" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["north", "north"], 2, "named twice"),
        (["north"], 2, "two sites or more"),
        (["north", "absent"], 2, "cannot be read"),
        (["north", "south", "--by", "study", "--tta", "30"], 2, "--by, --tta has no effect"),
        (["north", "south", "--draws", "2000"], 2, "--draws has no effect"),
        (["north", "copy"], 3, "the same figures"),
        (["north", "broken.json"], 3, "this is no metrics.json"),
        (["merged.json", "south"], 3, "merged result"),
    ],
)
def test_bad_input_writes_nothing(
    arguments: list[str], code: int, message: str, hospitals: Path, run_here: Run
) -> None:
    for name in SITES:
        shutil.copytree(hospitals / name / "evaluation", name)
    shutil.copytree("north", "copy")
    Path("broken.json").write_text("{")
    Path("merged.json").write_text('{"schema_version": 1, "sites": {}}')
    ended, out, err = run_here("evaluate", "--merge", *arguments)
    assert (ended, out) == (code, "")
    assert message in err
    assert not Path("merged").exists()


def test_a_third_thing_is_refused_without_merge(run_here: Run) -> None:
    code, out, err = run_here("evaluate", "a", "b", "c")
    assert (code, out) == (2, "")
    assert "a third" in err
    assert "--merge" in err
