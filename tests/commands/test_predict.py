"""`damcli predict`: one row for every file, whatever it is, in a stated order, with the right exit code."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from damcli.cli import main

FINDINGS = ("Edema", "Pneumonia")


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    import torch

    from damcli.bundle import build
    from damcli.data.images import Contract
    from damcli.deepauc.network import Classifier

    torch.manual_seed(0)
    origin = dict.fromkeys(("run", "recipe", "loss", "dataset", "weights_sha256"), "toy") | {"seed": 0}
    member = build.Member(Classifier("test_resnet", 2).eval(), FINDINGS, Contract(size=64, channels=1), origin)
    path = tmp_path_factory.mktemp("model") / "toy.onnx"
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64), dtype=np.uint8)
    build.export([member], path, images)
    return path


@pytest.fixture
def scans(tmp_path):
    """Good scans, a truncated one, a table, an empty file; in folders, with odd names."""
    folder = tmp_path / "scans"
    rng = np.random.default_rng(1)
    for name in ("b/2.png", "b/10.jpg", "a/x.png", "=z.png", "b/deep/é.tif"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (80, 70), dtype=np.uint8)).save(folder / name)
    whole = (folder / "b/10.jpg").read_bytes()
    (folder / "a/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("not a scan\n")
    (folder / "empty.dcm").touch()
    return folder


def run(*arguments, code=0):
    with pytest.raises(SystemExit) as end:
        main(["predict", *map(str, arguments)])
    assert (end.value.code or 0) == code


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


ORDER = ["=z.png", "empty.dcm", "notes.txt", "a/cut.jpg", "a/x.png", "b/10.jpg", "b/2.png", "b/deep/é.tif"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_row_for_every_file_in_order_with_its_reason(scans, model_file, tmp_path, workers, capfd):
    out = tmp_path / "out" / "scores.csv"
    run(scans, "--model", model_file, "-o", out, "--workers", workers, "--batch", 2, code=4)
    rows = rows_of(out)
    assert [row["path"] for row in rows] == ["'=z.png", *ORDER[1:]]
    status = {row["path"]: row["status"] for row in rows}
    assert status["notes.txt"] == "skipped"
    assert status["a/cut.jpg"] == "failed"
    assert [name for name in ORDER[3:] if status[name] == "ok"] == ["a/x.png", "b/10.jpg", "b/2.png", "b/deep/é.tif"]
    for row in rows:
        scores = [row[finding] for finding in FINDINGS]
        assert (row["error"] == "") == (row["status"] == "ok") == ("" not in scores)
        assert all(0 <= float(score) <= 1 for score in scores if score)
    streams = capfd.readouterr()
    assert streams.out == f"{out}\n"
    assert "8 scans: 5 ok" in streams.err
    assert "provider CPUExecutionProvider" in streams.err
    assert streams.err.splitlines()[-1] == f"next: damcli evaluate {out} LABELS.csv"
    assert [entry.name for entry in out.parent.iterdir()] == ["scores.csv"]


def test_scores_are_those_of_the_decoded_scan_alone_whatever_the_batch(scans, model_file, tmp_path):
    from damcli.bundle.runtime import Model
    from damcli.data.images import read_scan

    model = Model.open(model_file, "cpu")
    for batch in (1, 3, 50):
        run(scans, "--model", model_file, "-o", tmp_path / "s.csv", "--workers", 0, "--batch", batch, "-q", code=4)
        for row in rows_of(tmp_path / "s.csv"):
            if row["status"] == "ok":
                scan = read_scan(scans / row["path"].removeprefix("'"), model.info.contract)
                expected = model.score(scan[None])[0]
                np.testing.assert_allclose([float(row[f]) for f in FINDINGS], expected, atol=1e-6)


def test_only_skipped_files_are_no_failure(scans, model_file, tmp_path):
    run(scans / "notes.txt", scans / "a" / "x.png", "--model", model_file, "-o", tmp_path / "s.csv", "--workers", 0)
    rows = rows_of(tmp_path / "s.csv")
    assert [row["status"] for row in rows] == ["skipped", "ok"]
    assert [row["path"] for row in rows] == [str(scans / "notes.txt"), str(scans / "a" / "x.png")]


@pytest.mark.parametrize("form", ["json", "jsonl", "parquet"])
def test_every_format_tells_the_same(scans, model_file, tmp_path, form):
    common = [scans, "--model", model_file, "--workers", 0, "-q"]
    run(*common, "-o", tmp_path / "s.csv", code=4)
    run(*common, "--export", form, "-o", tmp_path / "s.out", code=4)
    expected = pl.read_csv(tmp_path / "s.csv")
    if form == "parquet":
        rows = pl.read_parquet(tmp_path / "s.out").to_dicts()
    else:
        text = (tmp_path / "s.out").read_text(encoding="utf-8")
        rows = json.loads(text) if form == "json" else [json.loads(line) for line in text.splitlines()]
    assert [row["path"] for row in rows] == ORDER
    assert [row["status"] for row in rows] == expected["status"].to_list()
    for finding in FINDINGS:
        got = [row[finding] for row in rows]
        np.testing.assert_array_equal(np.array(got, np.float32), expected[finding].cast(pl.Float32).to_numpy())


def test_stdout_holds_the_table_alone(scans, model_file):
    command = [sys.executable, "-m", "damcli", "predict", os.fspath(scans), "--model", os.fspath(model_file)]
    done = subprocess.run([*command, "-o", "-"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 4, done.stderr
    assert [row["status"] for row in csv.DictReader(done.stdout.splitlines())].count("ok") == 5
    assert "Traceback" not in done.stderr


def test_the_model_and_the_table_are_found_by_themselves(scans, model_file, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    run("scans", "--workers", 0, code=2)
    assert "there is no model under models/ here" in capfd.readouterr().err
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "cxr.onnx").write_bytes(model_file.read_bytes())
    run("scans", "--workers", 0, "--json", code=4)
    streams = capfd.readouterr()
    assert "model: models/cxr.onnx" in streams.err
    document = json.loads(streams.out)
    assert {key: document[key] for key in ("output", "scans", "ok")} == {"output": "scores.csv", "scans": 8, "ok": 5}
    monkeypatch.setenv("DAMCLI_MODEL", os.fspath(model_file))
    run(".", "--workers", 0, code=4)
    assert f"model: {model_file}" in capfd.readouterr().err
    paths = [row["path"] for row in rows_of(tmp_path / "scores.csv")]
    assert paths == ["models/cxr.onnx", *(f"scans/{name}" for name in ORDER)], "its own table is no input"


def test_scans_whose_names_begin_like_the_table_are_scored(scans, model_file):
    (scans / "b" / "2").write_text("of another program")
    run(scans / "b", "--model", model_file, "--workers", 0, "-o", scans / "b" / "1")
    paths = [row["path"] for row in rows_of(scans / "b" / "1")]
    assert paths == ["10.jpg", "2", "2.png", "deep/é.tif"]


def test_dry_run_writes_nothing(scans, model_file, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    run("scans", "--model", model_file, "--dry-run")
    assert "would score 8 files" in capfd.readouterr().err
    assert not (tmp_path / "scores.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 2, "no such file or folder"),
        (["hollow"], 2, "no file to score"),
        (["scans", "scans/a"], 2, "lies in a folder that is given too"),
        (["scans", "--export", "xlsx"], 2, "choose one of: csv, json, jsonl, parquet"),
        (["scans", "--model", "none.onnx"], 2, "no such model"),
        (["scans", "--model", "scans/notes.txt"], 3, "no ONNX file"),
        (["scans", "--device", "tpu"], 2, "no device 'tpu'"),
        (["scans", "--device", "cpu", "--require-gpu"], 2, "contradict"),
        (["scans", "-o", "-", "--json"], 2, "both want stdout"),
        (["scans", "-o", "hollow"], 2, "-o hollow/scores.csv"),
        (["scans", "-o", "scans/a/x.png"], 2, "there already and is no table by its name"),
        (["scans", "--workers", "-1"], 2, "--workers"),
        ([], 2, "PATHS"),
    ],
)
def test_bad_input_ends_with_its_code_and_the_fix(
    scans, model_file, tmp_path, monkeypatch, capfd, arguments, code, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAMCLI_MODEL", os.fspath(model_file))
    (tmp_path / "hollow" / "inner").mkdir(parents=True)
    run(*arguments, code=code)
    streams = capfd.readouterr()
    assert message in streams.err
    assert streams.out == ""
    assert not (tmp_path / "scores.csv").exists()


def test_a_broken_link_a_pipe_and_a_name_that_is_no_utf8_are_rows_too(scans, model_file, tmp_path):
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "broken.dcm").symlink_to(tmp_path / "gone")
    os.mkfifo(odd / "pipe")
    Path(odd, os.fsdecode(b"\xff.png")).write_bytes((scans / "a/x.png").read_bytes())
    run(odd, "--model", model_file, "-o", tmp_path / "s.csv", "--workers", 1, code=4)
    rows = {row["path"]: row["status"] for row in rows_of(tmp_path / "s.csv")}
    assert rows["broken.dcm"] == "failed"
    assert rows["pipe"] != "ok"
    assert rows["\\udcff.png"] == "ok"


@pytest.fixture
def many(scans, tmp_path):
    """A folder of 600 scans, which are one."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(600):
        (folder / f"{number:04}.png").symlink_to(scans / "a" / "x.png")
    return folder


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_run_that_was_cut_off_leaves_the_old_table_and_goes_on_to_the_same_one(
    many, model_file, tmp_path, sent, code
):
    out, unbroken = tmp_path / "out" / "s.csv", tmp_path / "unbroken.csv"
    out.parent.mkdir()
    out.write_text("before")
    command = [sys.executable, "-m", "damcli", "predict", many, "--model", model_file, "-o", out, "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("predict: "):
                break
        process.send_signal(sent)
        said = process.stderr.read()
        assert process.wait(timeout=60) == code
    assert "Traceback" not in said
    assert ("inputs are kept: the same command goes on" in said) == (sent != signal.SIGKILL)
    assert {entry.name for entry in out.parent.iterdir()} <= {"s.csv", ".s.csv.journal", ".s.csv.lock"}
    assert out.read_text() == "before"
    went_on = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "inputs were done before" in went_on.stderr
    assert [entry.name for entry in out.parent.iterdir()] == ["s.csv"]
    run(many, "--model", model_file, "-o", unbroken, "--device", "cpu", "-q")
    assert out.read_bytes() == unbroken.read_bytes()


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_full_disk_is_said_and_what_was_scored_is_kept(many, model_file, tmp_path, form):
    """A limit on the size of files stands in for the disk."""
    program = (
        "import resource, sys; from damcli.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, -1)); main(sys.argv[1:])"
    )
    out = tmp_path / "out" / f"s.{form}"
    arguments = ["predict", many, "--model", model_file, "-o", out, "--workers", "0"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 5
    assert "no space is left on the disk" in done.stderr
    assert [entry.name for entry in out.parent.iterdir()] == [f".s.{form}.journal"]
    run(*arguments[1:])
    assert [entry.name for entry in out.parent.iterdir()] == [f"s.{form}"]


def test_the_real_radiographs(test_data, model_file, tmp_path):
    run(test_data / "dicom", "--model", model_file, "-o", tmp_path / "s.csv", code=4)
    rows = {row["path"]: row for row in rows_of(tmp_path / "s.csv")}
    assert len(rows) == 16
    assert {name for name, row in rows.items() if row["status"] == "skipped"} == {"SOURCE.txt", "manifest.csv"}
    assert rows["leg_RG3_JPLY"]["status"] == "failed"
    for row in rows.values():
        assert row["status"] == "ok" or row["error"]
    lossless = [rows[f"leg_RG3_{syntax}"]["Edema"] for syntax in ("JPLL", "JLSL", "RLE")] + [
        rows["leg_RG3_J2KR.dcm"]["Edema"]
    ]
    assert len(set(lossless)) == 1, "four lossless codings of one radiograph"
