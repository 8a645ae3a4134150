"""`damcli prepare`, from the command line to the dataset."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from damcli.commands import prepare
from damcli.data.images import Contract, read_scan
from damcli.data.labels import COMPETITION
from damcli.data.store import UNFINISHED, Dataset
from damcli.errors import DataError, UsageError

HEADER = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(COMPETITION)


def chexpert(folder: Path, patients: int = 6, size: tuple[int, int] = (39, 32)) -> Path:
    """A CheXpert tree of grey noise: two scans a patient, the last third of the patients in valid."""
    rng = np.random.default_rng(0)
    rows: dict[str, list[str]] = {"train": [HEADER], "valid": [HEADER]}
    for patient in range(patients):
        split = "valid" if patient >= patients * 2 // 3 else "train"
        for study in (2, 1):
            name = f"{split}/patient{patient:05}/study{study}/view1_frontal.jpg"
            (folder / name).parent.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, size[::-1], np.uint8)).save(folder / name)
            labels = ",".join(["1.0", "0.0", "-1.0", "", "1.0"][(patient + k) % 5] for k in range(5))
            rows[split].append(f"CheXpert-v1.0-small/{name},Male,60,Frontal,AP,{labels}")
    for split, lines in rows.items():
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


Damcli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def damcli(run_here: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> Damcli:
    """Returns `damcli(*arguments, folder)`: damcli in this process, as if it were started in `folder`."""

    def run(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(folder)
        return subprocess.CompletedProcess(arguments, *run_here(*arguments))

    return run


def run(source: object, output: Path, **options: object) -> Dataset:
    list(prepare.prepare(source, output, workers=0, **options))
    return Dataset.open(output)


def test_with_no_path_it_takes_the_tree_that_is_here(tmp_path: Path) -> None:
    chexpert(tmp_path / "download" / "CheXpert-v1.0-small")
    command = [sys.executable, "-m", "damcli", "prepare", "chexpert", "--size", "32", "--seed", "3"]
    done = subprocess.run(command, cwd=tmp_path / "download", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "data/chexpert"
    assert [line for line in done.stdout.splitlines() if "Edema" in line]
    lines = done.stderr.splitlines()
    assert "CheXpert-v1.0-small/train.csv: 8 scans" in lines[0]
    assert any("scans/s" in line for line in lines)
    assert lines[-1] == "next: damcli train data/chexpert"

    made = Dataset.open(tmp_path / "download" / "data" / "chexpert")
    assert made.info.splits == {"train": 8, "valid": 4}
    assert made.info.findings == COMPETITION
    assert made.info.seed == 3
    contract = Contract(size=32, channels=1)
    for row, image in enumerate(made.read(np.arange(12))):
        np.testing.assert_array_equal(image, read_scan(Path(made.manifest["path"][row]), contract))
    certain = made.truth(made.rows("train"))
    assert np.isnan(certain).sum() == (made.manifest.filter(pl.col("split") == "train").select(
        pl.sum_horizontal(pl.col("^label:.*$") == -1))).sum().item()  # fmt: skip


def test_json_is_one_document_and_a_second_run_changes_nothing(damcli: Damcli, tmp_path: Path) -> None:
    chexpert(tmp_path)
    arguments = ("prepare", "chexpert", tmp_path, "-o", "made", "--size", 16, "--workers", 0, "--json", "-q")
    first = damcli(*arguments, folder=tmp_path)
    told = json.loads(first.stdout)
    assert (told["dataset"], told["splits"], first.stderr) == ("made", {"train": 8, "valid": 4}, "")
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "made").iterdir()}
    assert damcli(*arguments, folder=tmp_path).stdout == first.stdout
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "made").iterdir()} == before
    other = damcli("prepare", "chexpert", tmp_path, "-o", "made", "--size", 24, folder=tmp_path)
    assert other.returncode == 2
    assert "another dataset" in other.stderr


def test_a_dry_run_writes_nothing(damcli: Damcli, tmp_path: Path) -> None:
    chexpert(tmp_path / "tree")
    done = damcli("prepare", "chexpert", "tree", "--dry-run", "--json", folder=tmp_path)
    assert json.loads(done.stdout)["counts"]["train"]["Edema"]["positive"] > 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tree"]


def test_a_dry_run_says_what_would_be_refused(damcli: Damcli, tmp_path: Path) -> None:
    tree = chexpert(tmp_path / "tree")
    with (tree / "train.csv").open("a") as rows:
        rows.write("train/../../patient1/study1/view1_frontal.jpg,Male,60,Frontal,AP,1,0,0,0,0\n")
    done = damcli("prepare", "chexpert", "tree", "--dry-run", "--json", folder=tmp_path)
    told = json.loads(done.stdout)
    assert (told["scans"], told["refused"], told["audit"]) == (12, 1, [])
    assert "1 of 13 scans would be refused: the path leaves the folder of scans (1)" in done.stderr


def test_where_no_scan_is_left_it_says_why(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("path,sick\n../1.png,1\n/2.png,0\n")
    with pytest.raises(DataError, match=r"no scan is left to prepare: the path leaves the folder of scans \(2\)"):
        prepare.read("table", tmp_path / "cases.csv", label_columns=["sick"])


def test_a_finding_that_no_table_of_scores_can_hold_is_refused(damcli: Damcli, tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("path,Status\n1.png,1\n2.png,0\n")
    done = damcli("prepare", "table", "cases.csv", "--label-columns", "Status", "-o", "made", folder=tmp_path)
    assert done.returncode == 3
    assert "a finding may not be called 'Status'" in done.stderr
    assert "rename it" in done.stderr


def test_leaks_that_were_allowed_once_are_not_passed_over_later(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8))
    for name in ("a", "b"):
        image.save(tmp_path / f"{name}.png")
    (tmp_path / "cases.csv").write_text("path,patient,sick,split\na.png,p,1,train\nb.png,q,0,test\n")
    source = prepare.read("table", tmp_path / "cases.csv", label_columns=["sick"], split_column="split")
    run(source, tmp_path / "made", size=16, allow_leaks=True)
    with pytest.raises(DataError, match="1 images are in two splits"):
        run(source, tmp_path / "made", size=16)
    run(source, tmp_path / "made", size=16, allow_leaks=True)


def test_some_scans_unreadable(damcli: Damcli, tmp_path: Path) -> None:
    tree = chexpert(tmp_path / "tree", patients=30)
    bad = tree / "train" / "patient00001" / "study1" / "view1_frontal.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    (tree / "train" / "patient00002" / "study1" / "view1_frontal.jpg").unlink()
    done = damcli("prepare", "chexpert", "tree", "-o", "made", "--size", 16, folder=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "2 of 60 scans were refused" in done.stderr
    rejected = pl.read_csv(tmp_path / "made" / "rejected.csv")
    assert rejected["path"].to_list() == [
        "train/patient00001/study1/view1_frontal.jpg",
        "train/patient00002/study1/view1_frontal.jpg",
    ]
    assert len(Dataset.open(tmp_path / "made").manifest) == 58


def test_all_scans_unreadable(damcli: Damcli, tmp_path: Path) -> None:
    tree = chexpert(tmp_path / "tree")
    for file in tree.rglob("*.jpg"):
        file.write_bytes(b"not an image")
    done = damcli("prepare", "chexpert", "tree", "-o", "made", folder=tmp_path)
    assert done.returncode == 3
    assert "scans cannot be used" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("chexpert", "absent"), 2, ("no such folder", "absent", "fix")),
        (("chexpert",), 3, ("neither train.csv nor valid.csv", "fix")),
        (("table",), 2, ("which table", "fix")),
        (("pacs", "."), 2, ("'pacs'", "chexpert, mimic-cxr-jpg, nih,", "benchmark or table")),
        (("chexpert", ".", "--image-column", "x"), 2, ("--image-column", "damcli prepare table")),
        (("table", ".", "--views", "all"), 2, ("--views", "damcli prepare chexpert")),
        (("chexpert", ".", "--fit", "squeeze"), 2, ("squeeze", "stretch")),
        (("chexpert", ".", "--size", "3"), 2, ("--size",)),
    ],
)
def test_bad_input_from_the_command_line(
    damcli: Damcli, tmp_path: Path, arguments: tuple[str, ...], code: int, said: tuple[str, ...]
) -> None:
    done = damcli("prepare", *arguments, folder=tmp_path)
    assert done.returncode == code, done.stderr
    assert all(text in done.stderr for text in said), done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_it_and_the_same_command_continues(tmp_path: Path) -> None:
    big = tmp_path / "one.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 1500), np.uint8)).save(big)
    rows = [f"{number}.jpg,{number % 2}" for number in range(300)]
    for number in range(300):
        os.link(big, tmp_path / f"{number}.jpg")
    (tmp_path / "scans.csv").write_text("\n".join(["path,sick", *rows]) + "\n")
    command = [sys.executable, "-m", "damcli", "prepare", "table", "scans.csv", "--label-columns", "sick", "-o", "made",
               "--size", "16", "--allow-leaks"]  # fmt: skip
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith("prepare: "):
                break
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(timeout=30) == 130
    assert "the same command again continues" in said
    assert "Traceback" not in said
    assert not (tmp_path / "made" / "dataset.json").exists()
    assert not list(tmp_path.glob("made/.*"))
    for number in range(100, 300):
        (tmp_path / f"{number}.jpg").unlink()
    rows = rows[:100]
    (tmp_path / "scans.csv").write_text("\n".join(["path,sick", *rows]) + "\n")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    assert len(Dataset.open(tmp_path / "made").manifest) == 100


def test_kill_and_continue_with_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL at the first sign of life; what it left is swept away."""
    chexpert(tmp_path / "tree", patients=60, size=(300, 300))
    command = [sys.executable, "-m", "damcli", "prepare", "chexpert", "tree", "--size", "16", "-o"]
    assert subprocess.run([*command, "whole"], cwd=tmp_path, capture_output=True).returncode == 0
    with subprocess.Popen([*command, "made"], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob("made/.images*")):
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "made" / UNFINISHED).exists()
    assert subprocess.run([*command, "made"], cwd=tmp_path, capture_output=True).returncode == 0
    files = {file.name: file.read_bytes() for file in (tmp_path / "made").iterdir()}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}


def test_splits_are_made_by_patient_where_there_are_none(tmp_path: Path) -> None:
    chexpert(tmp_path / "tree", patients=30)
    (tmp_path / "tree" / "valid.csv").unlink()
    source = prepare.read("chexpert", tmp_path / "tree", valid_fraction=0.3, seed=1)
    valid = source.scans.filter(pl.col("split") == "valid")
    assert len(valid) == 12
    assert set(valid["patient"]).isdisjoint(source.scans.filter(pl.col("split") == "train")["patient"])
    assert any("30%" in note for note in source.notes)
    with pytest.raises(UsageError, match="own split"):
        prepare.read("chexpert", chexpert(tmp_path / "both"), valid_fraction=0.3)


def test_a_patient_in_two_official_splits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scans.csv").write_text("path,patient,part,sick\n1.png,p,train,1\n2.png,p,valid,0\n3.png,q,valid,0\n")
    with pytest.raises(DataError, match="1 patients have scans in two splits") as caught:
        prepare.read("table", tmp_path, label_columns=["sick"], split_column="part")
    assert "1.png and 2.png" in str(caught.value)


def test_policies_by_finding(tmp_path: Path) -> None:
    source = prepare.read("chexpert", chexpert(tmp_path / "tree"), uncertain="Edema=ones", blank="missing")
    made = run(source, tmp_path / "made", size=8)
    edema = made.manifest.filter(pl.col("label:Edema") == -1)["target:Edema"]
    assert edema.to_list() == [1.0] * len(edema)
    smooth = made.manifest.filter(pl.col("label:Cardiomegaly") == -1)["target:Cardiomegaly"]
    assert smooth.is_between(0, 0.3).all()
    blank = made.manifest.filter(pl.col("label:Edema").is_null())["target:Edema"]
    assert blank.null_count() == len(blank) > 0


def test_patients_are_kept_and_no_other_column_of_a_table(tmp_path: Path) -> None:
    Image.new("L", (9, 9)).save(tmp_path / "1.png")
    (tmp_path / "scans.csv").write_text("path,patient,name,born,sick\n1.png,p1,DOE^JANE,1950-01-01,1\n")
    made = run(prepare.read("table", tmp_path, label_columns=["sick"]), tmp_path / "made", size=8)
    everything = b"".join(file.read_bytes() for file in made.path.iterdir())
    assert b"DOE" not in everything
    assert b"1950" not in everything
    assert made.patients(np.array([0])) == ["p1"]


def test_the_real_chest_scans(test_data: Path, tmp_path: Path) -> None:
    source = prepare.read("chexpert", test_data / "nih_cxr_512", findings=["Pneumonia", "No Finding"])
    steps = list(prepare.prepare(source, tmp_path / "cxr", size=64))
    assert len(steps) == 499
    made = Dataset.open(tmp_path / "cxr")
    assert made.info.splits == {"train": 366, "valid": 132}
    assert made.info.rejected == 0
    assert np.nansum(made.truth(made.rows("train"))) == np.nansum([
        source.scans.filter(pl.col("split") == "train")[f"label:{finding}"].sum() for finding in source.findings
    ])  # fmt: skip


def test_real_colour_crops(test_data: Path, tmp_path: Path) -> None:
    source = prepare.read("table", test_data / "bccd_96px", label_columns=["label"], patient_column="group")
    made = run(source, tmp_path / "cells", size=48, channels=3)
    valid = made.rows("valid")
    assert 0.15 < len(valid) / len(made.manifest) < 0.25
    assert made.read(valid).shape == (len(valid), 48, 48, 3)
    assert (np.ptp(made.read(valid).mean(axis=(0, 1, 2))) > 5).item()
    groups = made.manifest.group_by("patient").agg(pl.col("split").n_unique())
    assert groups["split"].max() == 1


def counted(damcli: Damcli, folder: Path, *arguments: object) -> dict:
    done = damcli(
        "prepare", "table", "scans.csv", "--label-columns", "sick", *arguments, "--json", "--dry-run", folder=folder
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_folds_are_of_patients_and_fold_0_is_valid_where_there_is_no_official_split(
    damcli: Damcli, tmp_path: Path
) -> None:
    rows = [f"{n}.png,p{n // 2},{int(n % 8 < 2)},train" for n in range(80)]
    (tmp_path / "scans.csv").write_text("\n".join(["path,patient,sick,part", *rows]) + "\n")
    source = prepare.read("table", tmp_path / "scans.csv", label_columns=["sick"], folds=4, seed=1)
    scans = source.scans
    assert scans["fold"].value_counts().sort("fold").rows() == [(fold, 20) for fold in range(4)]
    assert scans.group_by("fold").agg(pl.col("label:sick").sum())["label:sick"].sort().to_list() == [4, 4, 6, 6]
    assert scans.group_by("patient").agg(pl.col("fold").n_unique())["fold"].max() == 1
    assert ((scans["split"] == "valid") == (scans["fold"] == 0)).all()
    told = counted(damcli, tmp_path, "--folds", 4)
    assert any("fold 0 is valid" in note for note in told["notes"])

    official = prepare.read("table", tmp_path / "scans.csv", label_columns=["sick"], split_column="part", folds=4)
    assert set(official.scans["split"]) == {"train"}
    assert official.scans["fold"].null_count() == 0


def test_folds_leave_an_official_valid_part_alone(tmp_path: Path) -> None:
    chexpert(tmp_path, patients=12)
    source = prepare.read("chexpert", tmp_path, folds=4)
    held = source.scans.filter(pl.col("split") == "valid")
    assert held["fold"].null_count() == len(held) == 8
    assert source.scans.filter(pl.col("split") == "train")["fold"].null_count() == 0
    with pytest.raises(UsageError, match="fold 0 is valid"):
        prepare.read("chexpert", tmp_path, folds=4, valid_fraction=0.1)
    with pytest.raises(UsageError, match="number of patients"):
        prepare.read("chexpert", tmp_path, folds=9)


def test_a_test_part_that_is_given_is_kept_while_the_rest_is_split(tmp_path: Path) -> None:
    chexpert(tmp_path)
    (tmp_path / "valid").rename(tmp_path / "test")
    labels = (tmp_path / "valid.csv").read_text().replace("valid/", "test/")
    (tmp_path / "valid.csv").unlink()
    (tmp_path / "test_labels.csv").write_text(labels)
    source = prepare.read("chexpert", tmp_path, valid_fraction=0.5)
    assert source.scans["split"].value_counts().sort("split").rows() == [("test", 4), ("train", 4), ("valid", 4)]


def test_options_that_belong_to_other_sources_are_refused(damcli: Damcli, tmp_path: Path) -> None:
    for kind, option in (("table", {"crops": True}), ("chexpert", {"imratio": 0.1}), ("pcam", {"labels": tmp_path})):
        with pytest.raises(UsageError, match="belongs to"):
            prepare.read(kind, tmp_path, **option)
    with pytest.raises(
        UsageError, match=r"`damcli prepare chexpert`, `damcli prepare \S+` and `damcli prepare padchest`"
    ):
        prepare.read("nih", tmp_path, views="all")
    with pytest.raises(UsageError, match="--findings names nothing"):
        prepare.read("nih", tmp_path, findings=[])
    done = damcli("prepare", "table", ".", "--film", "density", folder=tmp_path)
    assert done.returncode == 2


def test_remarkable_scans_are_counted_in_the_dataset(tmp_path: Path) -> None:
    from pydicom import examples

    raw = examples.ct
    raw.PresentationIntentType = "FOR PROCESSING"
    for number in range(3):
        raw.PixelData = np.random.default_rng(number).integers(0, 2000, (128, 128), np.int16).tobytes()
        raw.save_as(tmp_path / f"{number}.dcm")
    (tmp_path / "scans.csv").write_text("path,patient,sick\n0.dcm,a,0\n1.dcm,b,1\n2.dcm,c,0\n")
    source = prepare.read("table", tmp_path / "scans.csv", label_columns=["sick"])
    for workers in (0, 1):
        output = tmp_path / f"made{workers}"
        list(prepare.prepare(source, output, size=16, workers=workers))
        made = Dataset.open(output)
        assert made.manifest["remark"].str.starts_with("FOR PROCESSING").all()
        assert [c.text for c in made.info.audit if c.kind == "remark"] == [
            "3 scans: FOR PROCESSING: raw detector values, not meant to be shown"
        ]


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test that may run as root cannot take away, the system is made to refuse."""
    (tmp_path / "training10_0").mkdir()
    file = tmp_path / "training10_0" / "training10_0.tfrecords"
    file.write_bytes(b"x")
    really = Path.open

    def refuse(self: Path, *arguments: object, **options: object) -> object:
        if self == file:
            raise PermissionError(13, "Permission denied", str(file))
        return really(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UsageError, match=r"cannot be read: Permission denied\n.*training10_0.tfrecords"):
        prepare.read("ddsm", tmp_path)


def test_frames_are_refused_where_no_image_has_any(tmp_path: Path) -> None:
    np.save(tmp_path / "cat_vs_dog_data.npy", np.zeros((5002, 50, 50, 3), np.uint8))
    np.save(tmp_path / "cat_vs_dog_label.npy", np.arange(5002) % 2)
    source = prepare.read("benchmark", tmp_path)
    with pytest.raises(UsageError, match="several frames"):
        prepare.prepare(source, tmp_path / "made", frame=1)


def test_a_table_is_never_guessed_from_the_folders_that_happen_to_be_here(damcli: Damcli, tmp_path: Path) -> None:
    for name in ("runs", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.bin").write_bytes(b"x")
    done = damcli("prepare", "table", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "which table" in done.stderr
