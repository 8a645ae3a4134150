"""CheXpert Plus in small (FORMATS section 3): reports over many lines, JSON Lines, images under other names."""

import csv
import json
from pathlib import Path

import pytest

from damcli.data.labels import CHEXPERT_FINDINGS
from damcli.data.sources import chexpert
from damcli.errors import DamcliError, DataError, UsageError

COLUMNS = (
    "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,"
    "section_narrative,section_clinical_history,section_history,section_comparison,section_technique,"
    "section_procedure_comments,section_findings,section_impression,section_end_of_impression,section_summary,"
    "section_accession_number,age,sex,race,ethnicity,interpreter_needed,insurance_type,recent_bmi,deceased,split"
)
HEADER = next(csv.reader([COLUMNS]))
SECRET = "Mrs Example"
# It looks like rows of the table, and like its header.
REPORT = f"""NARRATIVE: {SECRET},
"train/patient00001/study1/view1_frontal.jpg",x,Frontal,AP
{COLUMNS}
IMPRESSION: 1. "No" acute disease,
"""
NAMES = [
    "train/patient42142/study5/view1_frontal.jpg",
    "train/patient42142/study5/view2_lateral.jpg",
    "train/patient42142/study2/view1_frontal.jpg",
    "train/patient03826/study1/view1_frontal.jpg",
    "valid/patient64541/study1/view1_frontal.jpg",
]
IDS = [name for name in NAMES if "frontal" in name]


def scan(name: str, **cells: str) -> dict[str, str]:
    usual = {
        "path_to_image": name, "path_to_dcm": name.replace(".jpg", ".dcm"), "ap_pa": "AP", "age": "68", "sex": "Male",
        "frontal_lateral": "Lateral" if "lateral" in name else "Frontal", "race": "White", "report": REPORT,
        "section_impression": REPORT, "section_accession_number": SECRET, "split": name.partition("/")[0],
    }  # fmt: skip
    return dict.fromkeys(HEADER, "") | usual | cells


def table(folder: Path, *scans: dict[str, str], name: str = "df_chexpert_plus_240401.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(scans[0]))
        writer.writeheader()
        writer.writerows(scans)
    return folder / name


def line(name: str, **labels: float | None) -> str:
    named = {key.replace("_", " "): value for key, value in labels.items()}
    # "No Finding" comes last there.
    return json.dumps({"path_to_image": name} | {f: named.get(f) for f in (*CHEXPERT_FINDINGS[1:], "No Finding")})


def labels(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(one + "\n" for one in lines))
    return file


def plus(folder: Path) -> Path:
    """Five scans, one of them lateral; the labels in another order than the table."""
    first = scan(NAMES[0], age="0", sex="Unknown", race="", ap_pa="")
    table(folder, first, *(scan(name) for name in NAMES[1:]))
    labels(
        folder / "chexbert_labels" / "report_fixed.json",
        line(NAMES[4], Edema=0.0),
        line(NAMES[2], Edema=-1.0),
        line(NAMES[1]),
        line(NAMES[3], Edema=1, No_Finding=1.0),
        line(NAMES[0], Edema=1.0),
    )
    return folder


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def refused(folder: Path, kind: type[DamcliError], *said: str, **arguments: object) -> None:
    with pytest.raises(kind) as caught:
        chexpert.read(folder, **arguments)
    for text in said:
        assert text in str(caught.value)
    assert SECRET not in str(caught.value)


def test_what_a_row_says(tmp_path: Path) -> None:
    plus(tmp_path)
    source = chexpert.read(tmp_path, ["No Finding", "Edema"])
    scans = source.scans
    assert scans["id"].to_list() == IDS
    assert scans["patient"].to_list() == ["patient42142", "patient42142", "patient03826", "patient64541"]
    assert scans["study"][0] == "patient42142/study5"
    assert scans["view"].to_list() == ["frontal"] * 4
    assert scans["split"].to_list() == ["train"] * 3 + ["valid"]
    assert scans["label:Edema"].to_list() == [1, -1, 1, 0]
    assert scans["label:No Finding"].to_list() == [None, None, 1, None]
    assert scans["age"].to_list() == [None, 68, 68, 68]
    assert scans["sex"].to_list() == [None, "Male", "Male", "Male"]
    assert scans["race"].to_list() == [None, "White", "White", "White"]
    assert scans["projection"].to_list() == [None, "AP", "AP", "AP"]
    assert chexpert.read(tmp_path, views="all").scans["id"].to_list() == NAMES


def test_no_text_of_a_report_goes_anywhere(tmp_path: Path) -> None:
    source = chexpert.read(plus(tmp_path), views="all")
    for text in (source.scans.write_csv(), *source.notes, repr(source.refused)):
        assert SECRET not in text
        assert "IMPRESSION" not in text


@pytest.mark.parametrize(
    "images",
    ["PNG/PNG/{}.png", "PNG/{}.png", "DICOM/{}.dcm", "{}.png", "{}.jpg", "PNG/PNG/{}.png DICOM/{}.dcm"],
)
@pytest.mark.parametrize("below", ["", "chexpertplus"])
def test_images_under_other_names(tmp_path: Path, images: str, below: str) -> None:
    folder = plus(tmp_path / below)
    forms = images.split()
    for form in forms:
        touch(folder, *(form.format(name.removesuffix(".jpg")) for name in NAMES))
    source = chexpert.read(tmp_path)
    assert source.scans["id"].to_list() == IDS
    assert source.scans["path"].to_list() == [str(folder / forms[0].format(name.removesuffix(".jpg"))) for name in IDS]
    assert source.scans["label:Edema"].to_list() == [1, -1, 1, 0]


@pytest.mark.parametrize("name", ["chexbert_labels/impression_fixed.json", "findings_fixed.json"])
def test_other_names_of_the_labels(tmp_path: Path, name: str) -> None:
    plus(tmp_path)
    report = tmp_path / "chexbert_labels" / "report_fixed.json"
    other = labels(tmp_path / name, *(line(one, Edema=0) for one in NAMES))
    assert chexpert.read(tmp_path).scans["label:Edema"].to_list() == [1, -1, 1, 0]
    assert chexpert.read(tmp_path, labels=other).scans["label:Edema"].to_list() == [0, 0, 0, 0]
    assert chexpert.read(tmp_path, labels=Path(name)).scans["label:Edema"].to_list() == [0, 0, 0, 0]
    report.unlink()
    source = chexpert.read(tmp_path)
    assert source.scans["label:Edema"].to_list() == [0, 0, 0, 0]
    assert any(str(other) in note for note in source.notes)
    other.unlink()
    refused(tmp_path, UsageError, "labels of CheXpert Plus are missing", "--labels")


def test_labels_and_scans_are_joined_by_path_and_what_is_left_is_said(tmp_path: Path) -> None:
    plus(tmp_path)
    rows = [
        line(f"CheXpert-v1.0/{NAMES[3]}", Edema=1),
        "",
        line("train/patient1/study1/view1_frontal.jpg"),
        line(NAMES[0]),
    ]
    source = chexpert.read(tmp_path, labels=labels(tmp_path / "other.json", *rows))
    assert source.scans["id"].to_list() == [NAMES[0], NAMES[3]]
    assert source.scans["label:Edema"].to_list() == [None, 1]
    assert any(
        "3 scans that it does not list are left out; 1 of its rows name no scan" in note for note in source.notes
    )


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ('{"path_to_image": "' + SECRET, "no JSON Lines"),
        (f"[{json.dumps(SECRET)}]", "no 'path_to_image'"),
        ("7", "no 'path_to_image'"),
        ('{"Edema": 1}', "no 'path_to_image'"),
        ('{"path_to_image": 5}', "no 'path_to_image'"),
        (json.dumps({"path_to_image": "x"}), "label of Cardiomegaly"),
        (line("x", Edema=0.5), "label of Edema is not 1, 0, -1 or null"),
        (line("x").replace('"Edema": null', f'"Edema": "{SECRET}"'), "label of Edema"),
        (line("x").replace('"Edema": null', '"Edema": NaN'), "label of Edema"),
        ("[" * 100_000, "no JSON Lines"),
        ('{"path_to_image": "\xff"', "no JSON Lines"),
    ],
)
def test_lines_that_are_broken_are_named(tmp_path: Path, broken: str, said: str) -> None:
    plus(tmp_path)
    file = tmp_path / "other.json"
    file.write_bytes("\n".join([line(NAMES[0]), "", line(NAMES[1]), broken]).encode("latin-1"))
    refused(tmp_path, DataError, said, "other.json, line 4", labels=file)


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    plus(tmp_path)
    other = labels(tmp_path / "other.json", line(NAMES[0]), line(f"x/{NAMES[0]}"))
    refused(tmp_path, DataError, "name a scan twice", "other.json", labels=other)
    labels(other, line("train/patient1/study1/view1_frontal.jpg"))
    refused(tmp_path, DataError, "none of the scans", "other.json", labels=other)
    refused(tmp_path, UsageError, "cannot be read", labels=tmp_path / "nowhere.json")


def test_the_newest_table_counts(tmp_path: Path) -> None:
    plus(tmp_path)
    table(tmp_path, scan(NAMES[3]), name="df_chexpert_plus_250101.csv")
    assert chexpert.read(tmp_path).scans["id"].to_list() == [NAMES[3]]


def test_tables_that_are_none(tmp_path: Path) -> None:
    plus(tmp_path)
    without = scan(NAMES[0])
    del without["split"]
    table(tmp_path, without)
    refused(tmp_path, DataError, "'split'", "df_chexpert_plus_240401.csv")
    table(tmp_path, scan(NAMES[0]), scan(NAMES[3], split="all of it"))
    refused(tmp_path, DataError, "neither train nor valid", "row 2 below the header")
    table(tmp_path, scan(NAMES[0]), scan(NAMES[0]))
    refused(tmp_path, DataError, "more than once")
    file = table(tmp_path, scan(NAMES[0]), scan(NAMES[3]))
    whole = file.read_text()
    file.write_text(whole[: whole.rindex("IMPRESSION") + 5])
    refused(tmp_path, DataError, "this is no CSV", "line")
    file.write_text(whole.replace("Male,White", "Male,White,Female", 1))
    refused(tmp_path, DataError, "28 fields, the header 27")
    file.write_text(whole.replace("path_to_image", "path", 1))
    refused(tmp_path, DataError, "'path_to_image'")
    file.write_text("")
    refused(tmp_path, DataError, "empty")


def test_rows_that_leave_the_tree_are_refused_one_by_one(tmp_path: Path) -> None:
    folder = tmp_path / "plus"
    hostile = ["/etc/passwd", "../secret.jpg", "train/../../secret.jpg"]
    touch(tmp_path, "secret.jpg", "secret.png")
    table(folder, scan(NAMES[0]), *(scan(name, split="train") for name in hostile))
    labels(folder / "report_fixed.json", line(NAMES[0]), *map(line, hostile))
    for images in ("{}", "PNG/train/patient42142/study5/view1_frontal.png"):
        touch(folder, images.format(NAMES[0]))
        source = chexpert.read(folder)
        assert source.scans["id"].to_list() == [NAMES[0]]
        assert source.refused == [(name, "the path leaves the folder of scans") for name in hostile]


def test_long_reports_hold_nothing_up(tmp_path: Path) -> None:
    plus(tmp_path)
    names = [f"train/patient{n:05}/study1/view1_frontal.jpg" for n in range(2000)]
    table(tmp_path, *(scan(name, report=REPORT * (n % 40)) for n, name in enumerate(names)))
    labels(tmp_path / "other.json", *(line(name, Edema=n % 2) for n, name in enumerate(names[::-1])))
    scans = chexpert.read(tmp_path, labels=tmp_path / "other.json").scans
    assert scans["id"].to_list() == names
    assert scans["label:Edema"].to_list() == [1 - n % 2 for n in range(2000)]
