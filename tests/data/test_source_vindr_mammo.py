"""VinDr-Mammo: assessments of breasts, boxes of images with lists as text, and DICOM black on white."""

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation, ExplicitVRLittleEndian

from damcli.commands.prepare.reading import read as prepared
from damcli.data.images import Contract, read_scan
from damcli.data.sources.vindr_mammo import BOXES, BREASTS, read
from damcli.data.store import Dataset
from damcli.errors import DataError, UsageError

COLUMNS = "study_id,series_id,image_id,laterality,view_position,height,width"
# An exam has four images; by exam and side: BI-RADS, density, split.
EXAMS = {
    "a" * 32: {"L": ("BI-RADS 1", "DENSITY C", "training"), "R": ("BI-RADS 4", "DENSITY C", "training")},
    "b" * 32: {"L": ("BI-RADS 3", "DENSITY B", "training"), "R": ("BI-RADS 2", "DENSITY B", "training")},
    "c" * 32: {"L": ("BI-RADS 5", "DENSITY D", "test"), "R": ("BI-RADS 1", "DENSITY D", "test")},
}
CELLS = [
    (exam, side, view, f"{exam[0]}{side}{view}".lower().ljust(32, "0"), *facts)
    for exam, sides in EXAMS.items()
    for side, facts in sides.items()
    for view in ("CC", "MLO")
]
IMAGES = {image: (exam, side, view) for exam, side, view, image, *_ in CELLS}
RCC, RMLO, BLMLO = (name.ljust(32, "0") for name in ("arcc", "armlo", "blmlo"))
# What is written of an image's boxes, in rows of their own; each image has one row at least.
LISTS = {RCC: ["['Mass', 'Nipple Retraction']", "['Suspicious Calcification']"], BLMLO: ["['Mass']"]}


def breasts() -> str:
    rows = [
        f"{exam},s{image},{image},{side},{view},3518,2800,{birads},{density},{split}"
        for exam, side, view, image, birads, density, split in CELLS
    ]
    return "\n".join([f"{COLUMNS},breast_birads,breast_density,split", *rows]) + "\n"


def findings() -> str:
    header = f"{COLUMNS},breast_birads,breast_density,finding_categories,finding_birads,xmin,ymin,xmax,ymax,split"
    rows = [
        f'{exam},s{image},{image},{side},{view},3518,2800,{birads},{density},"{listed}",,,,,,{split}'
        for exam, side, view, image, birads, density, split in CELLS
        for listed in LISTS.get(image, ["['No Finding']"])
    ]
    return "\n".join([header, *rows]) + "\n"


PADDING = 4095


def shown(values: np.ndarray) -> np.ndarray:
    """12 bits through the first window, the whole range, as 8 bits: y = (x - (c - 0.5)) / (w - 1) + 0.5.

    PS3.3 C.11.2.1.2.1, rounded to 16 bits and then to 8.
    """
    deep = np.rint(((values - (2048 - 0.5)) / (4096 - 1) + 0.5) * 65535)
    return np.floor(deep / 257 + 0.5)


def picture(image: str) -> np.ndarray:
    """A breast of 12 bits on black, a blob of its own in each image."""
    r, c = np.mgrid[:60, :40]
    breast = np.where((r - 30) ** 2 / 800 + c**2 / 900 < 1, 1500, 0)
    blob = 2500 * np.exp(-((r - 15 - list(IMAGES).index(image) * 2.5) ** 2 + (c - 10) ** 2) / 40)
    return np.rint(breast + blob).astype(np.uint16)


def dicom(root: Path, image: str, inverted: bool, padding: int | None = None, intent: str = "PRESENTATION") -> None:
    """Two windows are given, of which the first counts; `padding` is a column of pixels that show nothing."""
    file = root / "images" / IMAGES[image][0] / f"{image}.dicom"
    file.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = "1.2.3", ExplicitVRLittleEndian
    dataset = FileDataset(str(file), {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = meta.MediaStorageSOPClassUID, "1.2.3", "MG"
    dataset.PresentationIntentType = f"FOR {intent}"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PixelRepresentation = 60, 40, 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.WindowCenter, dataset.WindowWidth = [2048, 300], [4096, 100]
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    stored = 4095 - picture(image) if inverted else picture(image)
    if padding is not None:
        dataset.PixelPaddingValue = PADDING
        stored[:, padding] = PADDING
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.save_as(file, enforce_file_format=True)


@pytest.fixture
def mammo(tmp_path: Path) -> Path:
    root = tmp_path / "vindr-mammo" / "1.0.0"
    for number, image in enumerate(IMAGES):
        dicom(root, image, inverted=number % 3 == 0)
    (root / BREASTS).write_text(breasts())
    (root / BOXES).write_text(findings())
    return root


def labels(source, finding: str) -> dict[str, float | None]:
    return {Path(path).stem: label for path, label in source.scans.select("path", f"label:{finding}").iter_rows()}


def test_assessments_of_breasts_are_joined_to_their_images(mammo: Path) -> None:
    source = read(mammo)
    assert source.findings == ["suspicious"]
    assert labels(source, "suspicious") == {image: float(image[:2] in ("ar", "cl")) for image in IMAGES}
    scans = source.scans
    assert scans["patient"].to_list() == [exam for exam, *_ in IMAGES.values()]
    assert scans["study"].to_list() == [f"{exam}_{side}" for exam, side, _ in IMAGES.values()]
    assert scans["view"].to_list() == ["cc", "mlo"] * 6
    assert scans["split"].to_list() == [None] * 8 + ["test"] * 4
    assert scans["density"].to_list() == [*"CCCC", *"BBBB", *"DDDD"]
    assert scans["laterality"].to_list() == [side for _, side, _ in IMAGES.values()]
    assert scans["id"][0] == f"images/{'a' * 32}/{scans['path'][0].rpartition('/')[2]}"
    said = "\n".join(source.notes)
    assert "12 images of 6 breasts" in said
    assert "BI-RADS 4 or 5" in said
    assert "leakage cannot be excluded" in said


def test_categories_of_boxes_are_findings_of_images(mammo: Path) -> None:
    source = read(mammo, findings=["mass", "Nipple Retraction", "Suspicious calcification", "no finding", "Suspicious"])
    assert source.findings == ["Mass", "Nipple Retraction", "Suspicious Calcification", "No Finding", "suspicious"]
    # The other view of the breast has none.
    assert labels(source, "Mass") == {image: float(image in (RCC, BLMLO)) for image in IMAGES}
    assert labels(source, "Nipple Retraction") == {image: float(image == RCC) for image in IMAGES}
    assert labels(source, "Suspicious Calcification") == {image: float(image == RCC) for image in IMAGES}
    assert labels(source, "No Finding") == {image: float(image not in (RCC, BLMLO)) for image in IMAGES}
    assert labels(source, "suspicious")[RMLO] == 1
    with pytest.raises(UsageError, match="Mass"):
        read(mammo, findings=["Masss"])


def test_an_image_without_a_row_of_boxes_is_not_labelled(mammo: Path) -> None:
    kept = [line for line in findings().splitlines() if RCC not in line]
    (mammo / BOXES).write_text("\n".join(kept))
    found = labels(read(mammo, findings=["Mass"]), "Mass")
    assert found[RCC] is None
    assert [image for image, label in found.items() if label] == [BLMLO]


def test_the_table_of_boxes_is_needed_for_categories_only(mammo: Path) -> None:
    (mammo / BOXES).unlink()
    assert read(mammo).findings == ["suspicious"]
    with pytest.raises(DataError, match=f"there is no {BOXES}"):
        read(mammo, findings=["suspicious", "Mass"])


def test_a_breast_without_an_assessment_is_not_labelled(mammo: Path) -> None:
    (mammo / BREASTS).write_text(breasts().replace("BI-RADS 3", "").replace("BI-RADS 2", "bi-rads 2"))
    found = labels(read(mammo), "suspicious")
    assert [image[:2] for image, label in found.items() if label is None] == ["bl", "bl"]
    assert [found[image] for image in IMAGES if image.startswith("br")] == [0, 0]


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (
            "BI-RADS 3",
            "BI-RADS 7",
            "none of BI-RADS 1 to BI-RADS 5.*\n.*row 5 below the header, column 'breast_birads'",
        ),
        ("BI-RADS 3", "3", "none of BI-RADS 1"),
        ("CC,3518,2800,BI-RADS 3", "CC,3518,2800,BI-RADS 4", "another image of this breast.*\n.*row 6"),
        ("CC,3518,2800,BI-RADS 3", "CC,3518,2800,", "another image of this breast.*\n.*row 6"),
        ("DENSITY B,training", "DENSITY B,valid", "neither training nor test"),
        (f"{BLMLO},L", f"{BLMLO},", "a name is missing"),
        (BLMLO, RCC, "more than once"),
        ("breast_birads", "birads", "no column 'breast_birads'"),
    ],
)
def test_rows_that_do_not_fit(mammo: Path, old: str, new: str, what: str) -> None:
    (mammo / BREASTS).write_text(breasts().replace(old, new))
    with pytest.raises(DataError, match=what):
        read(mammo)


@pytest.mark.parametrize("cell", ["", "nan", "[]", "['']", "['Mass', '']", "Mass", "['Mass'", "[1]", "(" * 5000])
def test_lists_that_are_none(mammo: Path, cell: str) -> None:
    (mammo / BOXES).write_text(findings().replace("['Mass']", cell))
    with pytest.raises(DataError, match="(is no list of texts|the list names no finding).*\n.*row 7 below the header"):
        read(mammo, findings=["Mass"])


def test_lists_are_read_and_never_run(mammo: Path, tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    (mammo / BOXES).write_text(findings().replace("['Mass']", f"[open('{harm}', 'w').name]"))
    with pytest.raises(DataError):
        read(mammo, findings=["Mass"])
    assert not harm.exists()


def test_black_on_white_is_turned_and_the_first_window_taken(mammo: Path) -> None:
    contract = Contract(size=60, channels=1)
    for path in read(mammo).scans["path"]:
        made = read_scan(Path(path), contract)
        np.testing.assert_array_equal(made[:, 10:50], shown(picture(Path(path).stem)))
        assert not made[:, :10].any()
        assert not made[:, 50:].any()


@pytest.mark.parametrize("inverted", [False, True])
def test_padding_is_black_whichever_way_the_image_is_stored(tmp_path: Path, inverted: bool) -> None:
    dicom(tmp_path, RCC, inverted, padding=7)
    expected = shown(picture(RCC))
    assert expected[:, 7].any()
    expected[:, 7] = 0
    made = read_scan(next(tmp_path.rglob("*.dicom")), Contract(size=60, channels=1))
    np.testing.assert_array_equal(made[:, 10:50], expected)


def test_raw_images_are_kept_with_a_remark(mammo: Path, tmp_path: Path, run_here) -> None:
    """The owner's viewer skips them; here a user decides, who is told."""
    dicom(mammo, RCC, inverted=False, intent="PROCESSING")
    output = tmp_path / "made"
    code, _, err = run_here("prepare", "vindr-mammo", mammo, "-o", output, "--size", "64", "--workers", "0")
    assert code == 0, err
    assert "1 scans: FOR PROCESSING: raw detector values, not meant to be shown" in err
    remarks = dict(Dataset.open(output).manifest.select("id", "remark").iter_rows())
    raw = [Path(scan).stem for scan, remark in remarks.items() if "FOR PROCESSING" in (remark or "")]
    assert (len(remarks), raw) == (12, [RCC])


def test_prepared_with_exams_in_one_split_each(mammo: Path, tmp_path: Path, run_here) -> None:
    output = tmp_path / "made"
    code, _, err = run_here("prepare", "vindr-mammo", mammo, "-o", output, "--size", "64", "--workers", "0",
                            "--valid-fraction", "0.5", "--findings", "suspicious,Mass")  # fmt: skip
    assert code == 0, err
    made = Dataset.open(output)
    assert made.info.splits == {"train": 4, "valid": 4, "test": 4}
    assert made.info.counts["test"]["suspicious"].positive == 2
    assert len(set(made.patients(made.rows("train")))) == 1


def test_an_exam_in_two_splits_stops_it(mammo: Path) -> None:
    (mammo / BREASTS).write_text(breasts().replace("BI-RADS 2,DENSITY B,training", "BI-RADS 2,DENSITY B,test"))
    with pytest.raises(DataError, match="1 patients have scans in two splits"):
        prepared("vindr-mammo", mammo)


def test_by_the_command(mammo: Path) -> None:
    assert prepared("vindr-mammo", mammo).findings == ["suspicious"]
    with pytest.raises(UsageError, match="readers-rule belongs to"):
        prepared("vindr-mammo", mammo, readers_rule="any")
