"""MIMIC-CXR-JPG as PhysioNet gives it out (FORMATS section 10.2): labels by study, whole or in part."""

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from PIL import Image

from damcli.commands.prepare.reading import read as prepared
from damcli.data.labels import CHEXPERT_FINDINGS, COMPETITION, chexpert_policy
from damcli.data.sources import Source, mimic
from damcli.errors import DamcliError, DataError, UsageError

METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
ALPHABETICAL = sorted(CHEXPERT_FINDINGS)  # which is not the order of CheXpert's own tables


class Row(NamedTuple):
    """A scan: `image` is a dicom_id, `projection` the ViewPosition."""

    image: str
    subject: str
    study: str
    projection: str = "PA"
    split: str = "train"

    @property
    def id(self) -> str:
        return f"files/p{self.subject[:2]}/p{self.subject}/s{self.study}/{self.image}.jpg"


# Two studies of a patient, the later number first in time; one of each other split.
ROWS = (
    Row("02aa804e-bde0afdd-112c0b34-7bc16630-4e384014", "10000032", "50414267"),
    Row("174413ec-4ec4c1f7-34ea26b7-c5f994f8-79ef1962", "10000032", "50414267", "LATERAL"),
    Row("2a2277a9-b0ded155-c0de8eb9-c124d10e-82c5caab", "10000032", "53189527", "AP"),
    Row("e084de3b-be89b11e-20fe3f9f-9c8d8dfe-4cfd202c", "10000764", "57375967", "AP", "validate"),
    Row("68b5c4b1-227d0485-9cc38c3f-7b84ab51-4b472714", "11000011", "51000001", "PA", "test"),
)


def table(file: Path, header: str, lines: Sequence[str]) -> None:
    content = "\n".join([header, *lines, ""]).encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def labelled(study: str, subject: str | None, **values: object) -> str:
    """A row of labels, by finding with _ for a blank; the others are blank."""
    named = {name.replace("_", " "): str(value) for name, value in values.items()}
    assert named.keys() <= set(ALPHABETICAL)
    ids = [study] if subject is None else [subject, study]
    return ",".join([*ids, *(named.get(name, "") for name in ALPHABETICAL)])


def labels(file: Path, lines: Sequence[str]) -> Path:
    ids = "subject_id,study_id" if lines[0].count(",") == len(ALPHABETICAL) + 1 else "study_id"
    table(file, ",".join([ids, *ALPHABETICAL]), lines)
    return file


LABELS = (
    labelled("50414267", "10000032", Edema="1.0", Atelectasis="-1.0"),
    labelled("53189527", "10000032", Edema="0.0", Pleural_Effusion="1.0", Cardiomegaly=""),
    labelled("57375967", "10000764", No_Finding="1.0"),
    labelled("51000001", "11000011", Cardiomegaly="1.0", Consolidation="0.0"),
)


def download(
    root: Path, rows: Sequence[Row] = ROWS, lines: Sequence[str] = LABELS, images: Sequence[Row] | None = None
) -> Path:
    """The tables, and images (empty files: the reader looks at none) of `images`, by default of all."""
    root.mkdir(exist_ok=True)
    table(
        root / "mimic-cxr-2.0.0-metadata.csv.gz",
        METADATA,
        [
            f"{r.image},{r.subject},{r.study},CHEST (PA AND LAT),{r.projection},3056,2544,21800506,213014.531,x,x,Erect"
            for r in rows
        ],
    )
    # In another order: rows belong together by their ids.
    split = [f"{r.image},{r.study},{r.subject},{r.split}" for r in reversed(rows)]
    table(root / "mimic-cxr-2.0.0-split.csv.gz", "dicom_id,study_id,subject_id,split", split)
    labels(root / "mimic-cxr-2.0.0-chexpert.csv.gz", lines)
    for row in rows if images is None else images:
        file = root / row.id
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return root


def refused(kind: type[DamcliError], said: str, *arguments: object, **options: object) -> str:
    with pytest.raises(kind) as caught:
        mimic.read(*arguments, **options)  # type: ignore[arg-type]
    assert said in str(caught.value)
    return str(caught.value)


def noted(source: Source, said: str) -> bool:
    return any(said in note for note in source.notes)


def test_frontal_scans_with_the_labels_of_their_study(tmp_path: Path) -> None:
    source = mimic.read(download(tmp_path))
    scans = source.scans
    kept = [row for row in ROWS if row.projection != "LATERAL"]
    assert scans["id"].to_list() == [row.id for row in kept]
    assert scans["path"].to_list() == [str(tmp_path / row.id) for row in kept]
    assert scans["patient"].to_list() == ["10000032", "10000032", "10000764", "11000011"]
    assert scans["study"].to_list() == ["50414267", "53189527", "57375967", "51000001"]
    assert scans["split"].to_list() == ["train", "train", "valid", "test"]
    assert scans["view"].to_list() == ["frontal"] * 4
    assert scans["projection"].to_list() == ["PA", "AP", "AP", "PA"]
    assert source.findings == list(COMPETITION)
    assert scans["label:Edema"].to_list() == [1, 0, None, None]
    assert scans["label:Atelectasis"].to_list() == [-1, None, None, None]
    assert scans["label:Cardiomegaly"].to_list() == [None, None, None, 1]
    assert scans["label:Consolidation"].to_list() == [None, None, None, 0]
    assert scans["label:Pleural Effusion"].to_list() == [None, 1, None, None]
    assert source.policies == {finding: chexpert_policy(finding) for finding in COMPETITION}
    assert source.refused == []
    assert noted(source, "histogram-equalised")
    assert noted(source, "left out by their view: 1 lateral")


def test_labels_are_taken_by_name_since_their_order_is_not_chexperts(tmp_path: Path) -> None:
    """Each finding is positive in a study of its own, so that two exchanged columns are seen."""
    rows = [Row(f"image{n}", f"1000{n:04}", f"5000{n:04}") for n in range(14)]
    lines = [
        labelled(row.study, row.subject, **{finding.replace(" ", "_"): 1.0})
        for row, finding in zip(rows, CHEXPERT_FINDINGS, strict=True)
    ]
    scans = mimic.read(download(tmp_path, rows, lines), findings=CHEXPERT_FINDINGS).scans
    positive = scans.select(f"label:{finding}" for finding in CHEXPERT_FINDINGS).to_numpy()
    np.testing.assert_array_equal(positive == 1, np.eye(14, dtype=bool))


def test_labels_belong_to_a_study_of_a_patient(tmp_path: Path) -> None:
    """Two patients with a study of the same number do not share its labels."""
    rows = [Row("one", "10000001", "50000001"), Row("two", "10000002", "50000001")]
    lines = [labelled("50000001", "10000002", Edema=1.0), labelled("50000001", "10000001", Edema=0.0)]
    assert mimic.read(download(tmp_path, rows, lines)).scans["label:Edema"].to_list() == [0, 1]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([*LABELS, LABELS[1]], "a study is labelled twice"),
        ([LABELS[0], labelled("53189527", "10000764", Edema=1.0)], "a study is another patient's"),
        ([labelled("50414267", "10000032", Edema="2.0")], "a label is neither 1, 0, -1"),
        ([labelled("59999999", "10000032", Edema="1.0")], "these labels name none of the studies"),
    ],
)
def test_labels_that_do_not_fit(tmp_path: Path, lines: Sequence[str], said: str) -> None:
    message = refused(DataError, said, download(tmp_path, lines=lines))
    assert "mimic-cxr-2.0.0-chexpert.csv.gz" in message
    assert "10000032" not in message
    assert "fix: " in message


def test_studies_without_labels_are_left_out(tmp_path: Path) -> None:
    source = mimic.read(download(tmp_path, lines=[LABELS[0], LABELS[3]]))
    assert source.scans["study"].to_list() == ["50414267", "51000001"]
    assert noted(source, "left out 2 scans of studies that it does not list")
    assert source.refused == []


def test_views(tmp_path: Path) -> None:
    """What the table does not call PA or AP is not taken for frontal."""
    projections = ["PA", "AP", "LATERAL", "LL", "", "LAO", "AP LLD", "ap"]
    rows = [Row(f"image{n}", "10000001", "50000001", p) for n, p in enumerate(projections)]
    root = download(tmp_path, rows, [labelled("50000001", "10000001", Edema=1.0)])
    source = mimic.read(root)
    assert source.scans["projection"].to_list() == ["PA", "AP", "AP"]
    (said,) = [note for note in source.notes if "left out by their view" in note]
    assert all(part in said for part in ("2 lateral", "2 other", "1 unknown", "--views all"))
    source = mimic.read(root, views="all")
    assert source.scans["view"].to_list() == [
        "frontal", "frontal", "lateral", "lateral", None, "other", "other", "frontal"
    ]  # fmt: skip
    assert source.scans["projection"].to_list() == ["PA", "AP", "LATERAL", "LL", None, "LAO", "AP LLD", "AP"]
    assert not noted(source, "left out by their view")


@pytest.mark.parametrize("given", ["by path", "by name", "by name without .gz"])
def test_labels_of_negbio(tmp_path: Path, given: str) -> None:
    root = download(tmp_path / "set")
    file = labels(root / "mimic-cxr-2.0.0-negbio.csv.gz", [labelled("50414267", "10000032", Edema=0.0)])
    assert mimic.read(root).scans["label:Edema"][0] == 1
    assert noted(mimic.read(root), "other labels are there too: --labels mimic-cxr-2.0.0-negbio.csv.gz takes them")
    named = {"by path": file, "by name": Path(file.name), "by name without .gz": Path(file.stem)}[given]
    source = mimic.read(root, labels=named)
    assert source.scans["id"].to_list() == [ROWS[0].id]
    assert source.scans["label:Edema"].to_list() == [0]
    assert noted(source, f"took the labels from {file}")


def test_labels_that_radiologists_gave_to_the_test_set(tmp_path: Path) -> None:
    """They name no patients, and one finding otherwise."""
    root = download(tmp_path)
    file = root / "mimic-cxr-2.1.0-test-set-labeled.csv"
    names = ["Airspace Opacity" if name == "Lung Opacity" else name for name in CHEXPERT_FINDINGS]
    values = ["1.0" if name in ("Airspace Opacity", "Edema") else "" for name in names]
    table(file, ",".join(["study_id", *names]), [",".join(["51000001", *values])])
    source = mimic.read(root, ["Lung Opacity", "Edema", "Fracture"], labels=file)
    assert source.scans["split"].to_list() == ["test"]
    assert source.scans.select(pl.col("^label:.*$")).row(0) == (1, 1, None)
    assert noted(source, "left out 4 scans of studies that it does not list")


def test_other_labels_that_are_not_there(tmp_path: Path) -> None:
    refused(UsageError, "this table cannot be read", download(tmp_path), labels=Path("nowhere.csv"))


def test_a_part_of_the_set(tmp_path: Path) -> None:
    """With p10 only, what is not there of it is refused, and p11 is left out: it would fail by its number alone."""
    source = mimic.read(download(tmp_path, images=ROWS[:3]))
    assert source.scans["id"].to_list() == [ROWS[0].id, ROWS[2].id]
    assert source.refused == [(ROWS[3].image, "the image is not in this download")]
    assert noted(source, "left out 1 scans of parts that are not in this download: p11")


def test_tables_that_were_unpacked_and_images_as_png(tmp_path: Path) -> None:
    root = download(tmp_path)
    for file in root.glob("*.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    for file in root.rglob("*.jpg"):
        file.rename(file.with_suffix(".png"))
    assert len(mimic.read(root).scans) == 4


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (ROWS[0]._replace(split="tune"), "a split is neither train, validate nor test"),
        (ROWS[0]._replace(split=""), "a split is neither train, validate nor test"),
        (ROWS[0]._replace(subject=""), "the id is blank"),
    ],
)
def test_rows_that_do_not_fit(tmp_path: Path, changed: Row, said: str) -> None:
    refused(DataError, said, download(tmp_path, [ROWS[1], changed], images=ROWS[:1]))


@pytest.mark.parametrize("line", ["", f"{ROWS[0].image},50414267,10000764,train"])
def test_a_scan_that_the_split_does_not_list_or_lists_of_another_patient(tmp_path: Path, line: str) -> None:
    root = download(tmp_path)
    rest = [f"{r.image},{r.study},{r.subject},{r.split}" for r in ROWS[1:]]
    table(root / "mimic-cxr-2.0.0-split.csv.gz", "dicom_id,study_id,subject_id,split", [line, *rest])
    assert "row 1 below" in refused(DataError, "has not this scan, or has it of another study", root)


@pytest.mark.parametrize("name", ["metadata", "split", "chexpert"])
def test_a_table_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    root = download(tmp_path)
    (root / f"mimic-cxr-2.0.0-{name}.csv.gz").unlink()
    refused(DataError, f"there is no mimic-cxr-2.0.0-{name}.csv", root)


def test_a_patient_in_two_splits_stops_it(tmp_path: Path) -> None:
    rows = [*ROWS[:2], ROWS[2]._replace(split="test"), *ROWS[3:]]
    with pytest.raises(DataError, match="1 patients have scans in two splits"):
        prepared("mimic-cxr-jpg", download(tmp_path, rows))
    assert prepared("mimic-cxr-jpg", tmp_path, allow_leaks=True).scans["split"].to_list()[:2] == ["train", "test"]


def test_a_table_that_is_cut_off(tmp_path: Path) -> None:
    file = download(tmp_path) / "mimic-cxr-2.0.0-metadata.csv.gz"
    file.write_bytes(file.read_bytes()[:-20])
    refused(DataError, "this .gz file is cut off or damaged", tmp_path)


def test_a_scan_that_is_named_twice(tmp_path: Path) -> None:
    refused(DataError, "in the table more than once", download(tmp_path, [*ROWS, ROWS[0]]))


def test_the_command(tmp_path: Path, run_here: Callable[..., tuple[int, str, str]]) -> None:
    root, draw = download(tmp_path / "set"), np.random.default_rng(0)
    for row in ROWS:
        Image.fromarray(draw.integers(0, 256, (40, 32), np.uint8)).save(root / row.id, quality=95)
    code, _, err = run_here("prepare", "mimic-cxr-jpg", root, "-o", tmp_path / "cxr", "--size", "16", "--workers", "0")
    assert code == 0, err
    manifest = pl.read_parquet(tmp_path / "cxr" / "manifest.parquet")
    assert sorted(manifest["split"].to_list()) == ["test", "train", "train", "valid"]
    assert "histogram-equalised" in err
