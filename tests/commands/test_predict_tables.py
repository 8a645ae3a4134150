"""The tables of `damcli predict` beyond scores: who is positive, whose scan it is, a row for each study or patient."""

import numpy as np
import polars as pl
import pytest
from PIL import Image

from damcli.cli import main

FINDINGS = ("Edema", "Mass", "Pneumonia")
NAMES = [f"patient{patient}/study{study}/{view}.png" for patient, study, view in ((7, 1, 1), (7, 1, 2), (7, 2, 1))]
NAMES += ["patient8/study1/1.png"]
SECRET = "a secret of the test"


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A model with operating points for two of its findings: nothing is known of Mass."""
    import torch

    from damcli.bundle import build
    from damcli.data.images import Contract
    from damcli.deepauc.network import Classifier
    from damcli.metrics.decisions import decide
    from damcli.metrics.operating import Rule

    torch.manual_seed(0)
    origin = dict.fromkeys(("run", "recipe", "loss", "dataset", "weights_sha256"), "toy") | {"seed": 0}
    network = Classifier("test_resnet", 3).eval()
    member = build.Member(network, FINDINGS, Contract(size=64, channels=1), origin)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 64, 64), dtype=np.uint8)
    with torch.no_grad():
        scores = network(network.as_input(torch.from_numpy(images))).sigmoid().numpy()
    truth = (scores > np.median(scores, axis=0)).astype(float)
    truth[:, 1] = np.nan
    path = tmp_path_factory.mktemp("model") / "toy.onnx"
    build.export([member], path, images, decisions=decide(FINDINGS, truth, scores, [Rule.parse("youden")]))
    return path


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Four scans of three studies of two patients, one of them broken, and a file that is none."""
    folder = tmp_path_factory.mktemp("data") / "scans"
    rng = np.random.default_rng(1)
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (80, 70), dtype=np.uint8)).save(folder / name)
    broken = folder / NAMES[1]
    broken.write_bytes(broken.read_bytes()[:200])
    (folder / "notes.txt").write_text("none\n")
    return folder


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("DAMCLI_SECRET", SECRET)


def table(scans, model_file, out, *options):
    """Predict, one scan being broken; return the table as read by polars."""
    with pytest.raises(SystemExit) as end:
        main(["predict", str(scans), "--model", str(model_file), "-o", str(out), "--workers", "0", "-q", *options])
    assert end.value.code == 4
    return read(out)


def read(path):
    readers = {".csv": pl.read_csv, ".json": pl.read_json, ".jsonl": pl.read_ndjson, ".parquet": pl.read_parquet}
    return readers[path.suffix](path)


@pytest.mark.parametrize("form", ["csv", "json", "jsonl", "parquet"])
def test_a_threshold_adds_who_is_positive_where_it_is_known(scans, model_file, tmp_path, form):
    from damcli.bundle.runtime import read_info

    frame = table(scans, model_file, tmp_path / f"s.{form}", "--threshold", "youden")
    positives = [f"{finding}:positive" for finding in ("Edema", "Pneumonia")]
    assert frame.columns == ["path", "status", "error", *FINDINGS, *positives]
    assert frame["status"].to_list() == ["skipped", "ok", "failed", "ok", "ok"]
    points = read_info(model_file).decisions.points["youden"]
    for name in positives:
        finding = name.partition(":")[0]
        scores = frame[finding].cast(pl.Float32).cast(pl.Float64)
        expected = (scores >= points[finding].threshold).to_list()
        assert frame[name].cast(pl.Boolean).to_list() == expected
        assert expected.count(None) == 2


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_by_study_there_is_a_row_for_each_and_the_scans_beside(scans, model_file, tmp_path, form):
    frame = table(scans, model_file, tmp_path / f"s.{form}", "--by", "study", "--keep-ids")
    assert frame.columns == ["study", "status", "error", *FINDINGS, "patient", "scans", "scans_failed"]
    beside = read(tmp_path / f"s-scans.{form}")
    assert beside.columns == ["path", "status", "error", *FINDINGS, "patient", "study"]
    assert beside["path"].to_list() == ["notes.txt", *NAMES]
    assert frame["study"].to_list() == beside["study"][1:].unique(maintain_order=True).to_list()
    assert [row[-2:] for row in frame.rows()] == [(2, 1), (1, 0), (1, 0)]
    # Two scans, of which one has a score: that is the study's.
    assert frame.select(FINDINGS).rows() == beside[[1, 3, 4]].select(FINDINGS).rows()


def test_what_a_run_killed_while_writing_left_beside_its_tables_is_gone(scans, model_file, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in (".s.4321.tmp.csv", ".s-scans.4321.tmp.csv", ".s.mine.tmp.csv", ".t.4321.tmp.csv"):
        (out / name).write_text("half a table")
    table(scans, model_file, out / "s.csv", "--by", "study")
    kept = {".s.mine.tmp.csv", ".t.4321.tmp.csv"}
    assert {file.name for file in out.iterdir()} - kept == {"s.csv", "s-scans.csv"}
    assert {file.name for file in out.iterdir()} > kept, "what another wrote is none of ours"


def test_ids_are_pseudonyms_of_the_secret_unless_they_are_kept(scans, model_file, tmp_path):
    from damcli.dicom.privacy import pseudonym

    kept = table(scans, model_file, tmp_path / "kept.csv", "--by", "patient", "--keep-ids")
    hidden = table(scans, model_file, tmp_path / "hidden.csv", "--by", "patient")
    assert len(kept) == 2
    assert hidden["patient"].to_list() == [pseudonym(SECRET.encode(), "patient", one) for one in kept["patient"]]
    assert hidden.drop("patient").equals(kept.drop("patient"))


def test_a_table_of_metadata_that_knows_none_of_the_scans_is_refused_and_one_that_lacks_some_is_said(
    scans, model_file, tmp_path, capfd
):
    about, out = tmp_path / "about.csv", tmp_path / "s.csv"
    about.write_text("path,patient,study\nother/1.png,P1,S1\n")
    with pytest.raises(SystemExit) as end:
        main(
            [
                "predict",
                str(scans),
                "--model",
                str(model_file),
                "-o",
                str(out),
                "--by",
                "study",
                "--metadata",
                str(about),
            ]
        )
    assert end.value.code == 3
    assert "no row belongs to any of the files (the first row is other/1.png)" in capfd.readouterr().err
    # As Excel on Windows writes it.
    lines = ["path;patient;study", *(f"D:\\scans\\{name.replace('/', chr(92))};P1;S1" for name in NAMES[2:])]
    about.write_text("\r\n".join(lines), encoding="utf-8-sig")
    frame = table(scans, model_file, out, "--by", "study", "--keep-ids", "--metadata", str(about))
    assert frame["study"].to_list() == ["patient7/study1", "P1/S1"]
    assert f"3 files have no row in {about}" in capfd.readouterr().err


def test_another_secret_starts_over_so_that_no_patient_has_two_pseudonyms(
    scans, model_file, tmp_path, monkeypatch, capfd
):
    from damcli.bundle import table as tables

    out = tmp_path / "s.csv"
    arguments = ["predict", str(scans), "--model", str(model_file), "-o", str(out), "--workers", "0", "--by", "patient"]

    def cut_off(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tables, "write", cut_off)
        with pytest.raises(SystemExit) as end:
            main(arguments)
    assert end.value.code == 130
    monkeypatch.setenv("DAMCLI_SECRET", "another secret of the test")
    with pytest.raises(SystemExit):
        main(arguments)
    assert "made with another secret: starting over" in capfd.readouterr().err
    assert read(out).equals(table(scans, model_file, tmp_path / "fresh.csv", "--by", "patient"))


def test_what_is_called_like_an_image_and_is_none_is_said(model_file, tmp_path, capfd):
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("error.DCM", "._error.DCM", "notes.txt"):
        (folder / name).write_text("503 Service Unavailable")
    with pytest.raises(SystemExit) as end:
        main(["predict", str(folder), "--model", str(model_file), "-o", str(tmp_path / "s.csv"), "-q"])
    assert not end.value.code
    assert capfd.readouterr().err == "warning: 1 scans: no image by its content, though named like one: damaged?\n"


def test_the_table_of_scans_is_no_folder_before_anything_is_scored(scans, model_file, tmp_path, capfd):
    (tmp_path / "s-scans.csv").mkdir()
    with pytest.raises(SystemExit) as end:
        main(["predict", str(scans), "--model", str(model_file), "-o", str(tmp_path / "s.csv"), "--by", "study"])
    assert end.value.code == 2
    assert "the table of scans would go there, and it is a folder" in capfd.readouterr().err


def test_evaluate_by_study_takes_the_studies_of_the_table_of_scans(scans, model_file, tmp_path, capfd):
    import json

    table(scans, model_file, tmp_path / "s.csv", "--by", "study")
    beside = read(tmp_path / "s-scans.csv").filter(pl.col("status") != "skipped")
    beside.select("path", Edema=pl.Series([1, 0, 0, 1])).write_csv(tmp_path / "labels.csv")
    capfd.readouterr()
    names = [tmp_path / name for name in ("s-scans.csv", "labels.csv", "told")]
    with pytest.raises(SystemExit):
        main(["evaluate", *map(str, names[:2]), "--by", "study", "--draws", "200", "--json", "-o", str(names[2])])
    told = json.loads(capfd.readouterr().out)
    assert (told["unit"]["by"], told["units"], told["patients"], told["failed"]) == ("study", 3, 2, 1)
