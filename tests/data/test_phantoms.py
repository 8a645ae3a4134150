"""The phantoms: their layout is CheXpert's, their files hold what was drawn, and everything hangs on the seed."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pydicom
import pytest

from damcli.data import images
from damcli.data.labels import CHEXPERT_FINDINGS, COMPETITION
from damcli.data.phantoms import TREE, write_chexpert
from damcli.data.phantoms.drawing import HEIGHT, WIDTH, Anatomy, frontal, lateral
from damcli.data.phantoms.population import CORRELATION, PREVALENCE, patients
from damcli.data.sources import chexpert

COUNT = 48


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    assert sum(write_chexpert(folder, COUNT, seed=3)) == sum(1 for path in scans_of(folder))
    return folder


def scans_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".dcm"))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def digest(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_tables_have_chexperts_columns_and_name_every_scan(drawn: Path) -> None:
    named = []
    for split in ("train", "valid"):
        header = (drawn / TREE / f"{split}.csv").read_text().splitlines()[0].split(",")
        assert header == ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS]
        for row in table(drawn / TREE / f"{split}.csv"):
            named.append(drawn / row["Path"])
            assert row["Path"].startswith(f"{TREE}/{split}/patient")
            assert row["Frontal/Lateral"].lower() in Path(row["Path"]).stem
            assert (row["AP/PA"] == "") == (row["Frontal/Lateral"] == "Lateral")
            assert 18 <= int(row["Age"]) <= 90
            assert row["Sex"] in ("Female", "Male")
    assert sorted(named) == scans_of(drawn / TREE)
    assert sorted(drawn / "scans" / row["path"] for row in table(drawn / "scans.csv")) == scans_of(drawn / "scans")
    assert {path.suffix for path in named} == {path.suffix for path in scans_of(drawn / "scans")} == {".jpg", ".dcm"}


def test_train_has_uncertain_and_blank_labels_and_valid_has_none(drawn: Path) -> None:
    train, valid = (table(drawn / TREE / f"{split}.csv") for split in ("train", "valid"))
    assert {row[name] for row in train for name in COMPETITION} == {"1.0", "0.0", "-1.0", ""}
    assert {row[name] for row in valid for name in CHEXPERT_FINDINGS} == {"1.0", "0.0"}
    assert {row["No Finding"] for row in train} == {"1.0", ""}
    assert {row[name] for row in table(drawn / "scans.csv") for name in COMPETITION} == {"1", "0"}


def test_the_five_findings_are_rare_and_go_together_as_they_were_meant_to() -> None:
    truth = [study.truth() for patient in patients(1, 3000, seed=0, most_studies=1) for study in patient.studies]
    values = np.array([[labels[name] for name in COMPETITION] for labels in truth])
    np.testing.assert_allclose(values.mean(axis=0), [PREVALENCE[name] for name in COMPETITION], atol=0.025)
    assert (values.mean(axis=0) >= 0.05).all()
    assert (values.mean(axis=0) <= 0.25).all()
    found = np.corrcoef(values.T)
    assert found[0, 1] > 0.2
    assert found[3, 4] > 0.2
    assert abs(found[0, 2]) < 0.1
    np.testing.assert_array_equal(CORRELATION, CORRELATION.T)
    assert np.linalg.eigvalsh(CORRELATION).min() > 0


def test_a_patient_keeps_most_of_what_it_has_from_study_to_study() -> None:
    several = [p.studies for p in patients(1, 1500, seed=0, most_studies=3) if len(p.studies) > 1]
    first, second = (np.array([s[n].margin["Edema"] for s in several]) for n in (0, 1))
    assert 0.6 < np.corrcoef(first, second)[0, 1] < 0.8


def test_the_seed_decides_every_byte(drawn: Path, tmp_path: Path) -> None:
    for name, seed in (("same", 3), ("other", 4)):
        assert sum(write_chexpert(tmp_path / name, COUNT, seed=seed)) > COUNT
    assert digest(tmp_path / "same") == digest(drawn)
    other = set(digest(tmp_path / "other").values())
    assert not other & set(digest(drawn).values())


def test_the_source_reader_takes_the_tree(drawn: Path) -> None:
    source = chexpert.read(drawn)
    assert source.root == drawn / TREE
    assert source.scans["split"].value_counts().sort("split")["split"].to_list() == ["train", "valid"]
    by_split = {split: set(rows["patient"]) for (split,), rows in source.scans.group_by("split")}
    assert not by_split["train"] & by_split["valid"]
    assert all(Path(path).is_file() for path in source.scans["path"])
    assert source.scans["view"].unique().to_list() == ["frontal"]


def test_every_file_decodes_to_an_upright_chest(drawn: Path) -> None:
    contract = images.Contract(size=96, channels=1)
    for path in scans_of(drawn):
        pixels = images.read_scan(path, contract)
        assert pixels.shape == (96, 96)
        if path.stem.endswith("lateral"):
            continue
        # The spine is brighter than the lungs beside it, the diaphragm brighter than the lungs above it.
        assert pixels[40:60, 46:51].mean() > pixels[40:60, 26:36].mean(), path.name
        assert pixels[76:80, 25:70].mean() > pixels[45:55, 26:36].mean(), path.name


def test_dicom_files_are_whole_and_hold_both_photometric_interpretations(drawn: Path) -> None:
    kinds = set()
    for path in scans_of(drawn):
        if path.suffix != ".dcm":
            continue
        scan = pydicom.dcmread(path)
        assert scan.pixel_array.shape == (HEIGHT, WIDTH)
        assert scan.pixel_array.max() < 4096
        assert (scan.BitsAllocated, scan.BitsStored, scan.HighBit) == (16, 12, 11)
        assert scan.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        for keyword in ("PatientName", "PatientID", "AccessionNumber", "InstitutionName", "ReferringPhysicianName"):
            assert "PHANTOM" in str(scan[keyword].value)
        kinds.add((scan.Modality, scan.PhotometricInterpretation, scan.PresentationLUTShape))
    assert kinds == {("CR", "MONOCHROME1", "INVERSE"), ("DX", "MONOCHROME2", "IDENTITY")}


def test_uids_are_unique_per_scan_and_shared_within_a_study(tmp_path: Path) -> None:
    assert sum(write_chexpert(tmp_path, 80, seed=0))
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in scans_of(tmp_path) if path.suffix == ".dcm"]
    assert len({scan.SOPInstanceUID for scan in headers}) == len(headers)
    studies = {path.parent for path in scans_of(tmp_path / TREE) if path.suffix == ".dcm"}
    test_scans = sum(path.suffix == ".dcm" for path in scans_of(tmp_path / "scans"))
    assert len({scan.StudyInstanceUID for scan in headers}) == len(studies) + test_scans


@pytest.mark.parametrize("finding", COMPETITION)
def test_each_finding_adds_density_where_it_belongs(finding: str) -> None:
    change = np.zeros((HEIGHT, WIDTH))
    for seed in range(12):
        anatomy = Anatomy.drawn(np.random.default_rng([seed, 0]), female=bool(seed % 2))
        healthy, ill = (frontal(anatomy, s, False, np.random.default_rng(seed)) for s in ({}, {finding: 1.0}))
        for picture in (healthy, ill):
            assert picture.dtype == np.float32
            assert 0 <= picture.min() < picture.max() <= 1
        change += (ill - healthy) / 12
    heart, lungs = change[130:250, 170:280], change[90:280, 60:330]
    assert (heart if finding == "Cardiomegaly" else lungs).mean() > 0.01
    assert abs(change[:30]).mean() < 0.002


def test_lateral_views_differ_from_frontal_ones() -> None:
    anatomy = Anatomy.drawn(np.random.default_rng(0), female=False)
    side = lateral(anatomy, {"Pleural Effusion": 0.5}, np.random.default_rng(1))
    front = frontal(anatomy, {"Pleural Effusion": 0.5}, False, np.random.default_rng(1))
    assert side.shape == front.shape == (HEIGHT, WIDTH)
    assert np.abs(side - front).mean() > 0.1


def test_too_few_patients_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="count must be at least 10 patients, got 9"):
        next(write_chexpert(tmp_path, 9, seed=0))
