"""CBIS-DDSM: its tables with all their traps, in every tree that they were given out with."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from damcli.data import splits
from damcli.data.images import Contract, read_scan
from damcli.data.sources import cbis, ddsm
from damcli.errors import DamcliError, DataError, UsageError

ROOT = "1.3.6.1.4.1.9590.100.1.2."
HEADER = (
    "patient_id,breast{}density,left or right breast,image view,abnormality id,abnormality type,{} {},{} {},assessment,"
    "pathology,subtlety,image file path,cropped image file path,ROI mask file path\n"
)
HEADERS = {
    "mass": HEADER.format("_", "mass", "shape", "mass", "margins"),
    "calc": HEADER.format(" ", "calc", "type", "calc", "distribution"),
}


class Lesion(NamedTuple):
    """A row of a table. UIDs are given without their root: of the image's study and series, then the lesion's.

    `mask_series` is another series than the crop's where the two lie apart, both as 000000.dcm.
    """

    patient: str
    side: str
    view: str
    kind: str
    split: str
    pathology: str
    uids: tuple[str, str, str, str]
    number: int = 1
    mask_series: str = ""
    density: str = "3"

    @property
    def image(self) -> str:
        case = "Mass" if self.kind == "mass" else "Calc"
        return f"{case}-{self.split}_{self.patient}_{self.side}_{self.view}"

    @property
    def paths(self) -> list[str]:
        """The image, the crop and the mask as the table has them, where calcifications exchange the latter two."""
        one, two, three, four = (ROOT + uid for uid in self.uids)
        lesion = f"{self.image}_{self.number}"
        first, second = f"{lesion}/{three}/{four}/000000.dcm", f"{lesion}/{three}/{four}/000001.dcm"
        if self.mask_series:
            second = f"{lesion}/{three}/{ROOT}{self.mask_series}/000000.dcm"
        return [f"{self.image}/{one}/{two}/000000.dcm", *([first, second] if self.kind == "mass" else [second, first])]

    @property
    def row(self) -> str:
        """The line break lies inside a quoted field, of the mask or of the crop."""
        image, crop, mask = self.paths
        crop, mask = (crop, f'"{mask}\n"') if self.kind == "mass" else (f'"{crop}\n"', mask)
        kind = "mass,IRREGULAR-ARCHITECTURAL_DISTORTION" if self.kind == "mass" else "calcification,AMORPHOUS"
        return (
            f"{self.patient},{self.density},{self.side},{self.view},{self.number},{kind},N/A,4,{self.pathology},4,"
            f"{image},{crop},{mask}\n"
        )


# The first row of each of the four tables.
FIRST = (
    Lesion("P_00038", "LEFT", "CC", "calc", "Test", "BENIGN", (
        "85935434310203356712688695661986996009", "374115997511889073021386151921807063992",
        "161465562211359959230647609981488894942", "419081637812053404913157930753972718515")),
    Lesion("P_00005", "RIGHT", "CC", "calc", "Training", "MALIGNANT", (
        "408909860712120272633130274602115723157", "47414316010368386519740343172775938548",
        "328778919012412769218080124214088709081", "393344010211719049419601138200355094682")),
    Lesion("P_00016", "LEFT", "CC", "mass", "Test", "MALIGNANT", (
        "416403281812750683720028031170500130104", "245063149211255120613007755642780114172",
        "259596319110047779433501728143778409887", "30820586311062570442302321942433426184")),
    Lesion("P_00001", "LEFT", "CC", "mass", "Training", "MALIGNANT", (
        "422112722213189649807611434612228974994", "342386194811267636608694132590482924515",
        "108268213011361124203859148071588939106", "296736403313792599626368780122205399650")),
)  # fmt: skip
CASES = ["Calc-Test_P_00038_LEFT_CC", "Calc-Training_P_00005_RIGHT_CC", "Mass-Test_P_00016_LEFT_CC",
         "Mass-Training_P_00001_LEFT_CC"]  # fmt: skip


def write_tables(folder: Path, lesions: Sequence[Lesion]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("calc", "mass"):
        for split, name in (("Training", "train"), ("Test", "test")):
            if rows := [lesion.row for lesion in lesions if (lesion.kind, lesion.split) == (kind, split)]:
                file = folder / f"{kind}_case_description_{name}_set.csv"
                file.write_text(HEADERS[kind] + "".join(rows), newline="")


def pixels(seed: str, size: tuple[int, int]) -> NDArray[np.uint16]:
    """A smooth picture of the whole range of 16 bits, another for each `seed`."""
    r, c = np.mgrid[: size[0], : size[1]]
    turn = sum(map(ord, seed)) % 7
    wave = (np.sin(r / 9 + turn) * np.cos(c / 11) + 1) / 2
    return np.rint((wave - wave.min()) / np.ptp(wave) * 65535).astype(np.uint16)


def picture(lesion: Lesion, part: str) -> NDArray:
    """What a file holds: the image, or the lesion's crop, or its mask as large as the image but for two rows."""
    if part == "mask":
        mask = np.zeros((94, 64), np.uint8)
        mask[20:40, 10:30] = 255
        return mask
    return pixels(lesion.image + part, (96, 64) if part == "image" else (32, 24))


def dicom(file: Path, image: NDArray, case: str) -> None:
    """The patient's ID in the header is the name of the folder, as in the real files."""
    file.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = ROOT + "1"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(file), {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, ROOT + "1"
    dataset.Modality, dataset.PatientID = "MG", case
    dataset.Rows, dataset.Columns = image.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * image.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelData = image.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.save_as(file, enforce_file_format=True)


def jpeg(file: Path, image: NDArray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    grey = (image >> 8).astype(np.uint8) if image.dtype == np.uint16 else image
    Image.fromarray(grey).save(file, quality=95)


Name = Callable[[str, str, str, str], str]


def as_in_table(case: str, study: str, series: str, name: str) -> str:
    return f"{case}/{study}/{series}/{name}.dcm"


def classic(case: str, study: str, series: str, name: str) -> str:
    return f"CBIS-DDSM/{case}/{study}/{series}/1-{int(name) + 1}.dcm"


def described_2018(case: str, study: str, series: str, name: str) -> str:
    what = "cropped images" if case[-1].isdigit() else "full mammogram images"
    return f"CBIS-DDSM/{case}/07-20-2016-DDSM-{study[-5:]}/1-{what}-{series[-5:]}/{name}.dcm"


def described(case: str, study: str, series: str, name: str) -> str:
    what = "ROI mask images" if case[-1].isdigit() else "full mammogram images"
    return (
        f"manifest-1234/CBIS-DDSM/{case}/07-20-2016-DDSM-NA-{study[-5:]}/1.000000-{what}-{series[-5:]}/"
        f"1-{int(name) + 1}.dcm"
    )


def only_metadata_tells(case: str, study: str, series: str, name: str) -> str:
    """Folders as an unpacking program may have cut them short."""
    return f"manifest-1234/CBIS-DDSM/{case}/DDSM/{series[-3:]}/1-{int(name) + 1}.dcm"


def google(case: str, study: str, series: str, name: str) -> str:
    return f"dicom/{study}/{series}/{ROOT}{series[-9:]}{int(name)}.dcm"


def kaggle(case: str, study: str, series: str, name: str) -> str:
    return f"jpeg/{series}/{int(name) + 1}-{int(series[-4:]) % 300:03d}.jpg"


TREES = [as_in_table, classic, described_2018, described, only_metadata_tells, google, kaggle]


def tree(folder: Path, lesions: Sequence[Lesion], name: Name = as_in_table, exchanged: Sequence[str] = ()) -> Path:
    """Write the tables and all files; of cases in `exchanged`, crop and mask have each other's names."""
    write_tables(folder / "csv" if name is kaggle else folder, lesions)
    metadata = []
    for lesion in lesions:
        image, crop, mask = lesion.paths
        # In the files it is the second that is the mask, and what the tables call so is so for masses only.
        if lesion.kind == "calc":
            crop, mask = mask, crop
        if lesion.image in exchanged:
            crop, mask = mask, crop
        for part, path in (("image", image), ("crop", crop), ("mask", mask)):
            case, study, series, file = path.split("/")
            place = name(case, study, series, file.removesuffix(".dcm"))
            if place.endswith(".jpg"):
                jpeg(folder / place, picture(lesion, part))
            else:
                dicom(folder / place, picture(lesion, part), case)
            inside = str(Path(place).parent).removeprefix("manifest-1234/").replace("/", "\\")
            metadata.append(f"{series},CBIS-DDSM,{case},{study},.\\{inside}\n")
    if name is only_metadata_tells:
        header = "Series UID,Collection,Subject ID,Study UID,File Location\n"
        (folder / "manifest-1234" / "metadata.csv").write_text(header + "".join(metadata))
    return folder


CONTRACT = Contract(size=96, channels=1)


def near(path: str, image: NDArray, tolerance: float) -> None:
    """Compare what is read with the picture that was written, which the black beside it does not belong to."""
    shown = read_scan(Path(path), Contract(size=max(image.shape), channels=1)).astype(float)
    beside = (shown.shape[1] - image.shape[1]) // 2
    assert not shown[:, :beside].any()
    difference = shown[:, beside : beside + image.shape[1]] - image / 257
    assert np.abs(difference).mean() < tolerance


@pytest.mark.parametrize("name", TREES)
def test_every_tree_gives_the_same_images(tmp_path: Path, name: Name) -> None:
    source = ddsm.read(tree(tmp_path, FIRST, name))
    scans = source.scans
    assert source.name == "ddsm:cbis"
    assert source.findings == ["malignant"]
    assert source.refused == []
    assert scans["id"].to_list() == CASES
    assert scans["label:malignant"].to_list() == [0, 1, 1, 1]
    assert scans["patient"].to_list() == ["P_00038", "P_00005", "P_00016", "P_00001"]
    assert scans["study"].to_list() == ["P_00038_LEFT", "P_00005_RIGHT", "P_00016_LEFT", "P_00001_LEFT"]
    assert scans["split"].to_list() == ["test", "train", "test", "train"]
    assert scans["view"].to_list() == ["cc"] * 4
    assert scans["lesion"].to_list() == ["calcification", "calcification", "mass", "mass"]
    for path, lesion in zip(scans["path"], FIRST, strict=True):
        near(path, picture(lesion, "image"), 2)


@pytest.mark.parametrize("exchanged", [(), CASES], ids=["", "exchanged"])
@pytest.mark.parametrize("name", TREES)
def test_every_tree_gives_the_same_crops(tmp_path: Path, name: Name, exchanged: Sequence[str]) -> None:
    """Which of the two files is the crop, neither their names nor the table's columns tell."""
    source = ddsm.read(tree(tmp_path, FIRST, name, exchanged), crops=True)
    assert source.refused == []
    assert source.scans["id"].to_list() == [case + "_1" for case in CASES]
    assert source.scans["label:malignant"].to_list() == [0, 1, 1, 1]
    assert source.scans["patient"].to_list() == ["P_00038", "P_00005", "P_00016", "P_00001"]
    for path, lesion in zip(source.scans["path"], FIRST, strict=True):
        near(path, picture(lesion, "crop"), 3)


@pytest.mark.parametrize("name", TREES)
def test_crop_and_mask_in_two_series_under_one_name(tmp_path: Path, name: Name) -> None:
    apart = FIRST[3]._replace(mask_series="123456789012345678901234567890123454321")
    assert apart.paths[1].endswith("/000000.dcm")
    assert apart.paths[2].endswith("/000000.dcm")
    for exchanged in ((), (apart.image,)):
        folder = tmp_path / str(len(exchanged))
        source = ddsm.read(tree(folder, [apart], name, exchanged), crops=True)
        near(source.scans["path"][0], picture(apart, "crop"), 3)


def test_sixteen_bit_png_files_in_the_same_folders(tmp_path: Path) -> None:
    folder = tree(tmp_path, FIRST)
    for lesion in FIRST:
        image, crop, mask = lesion.paths
        crop, mask = (crop, mask) if lesion.kind == "mass" else (mask, crop)
        for part, path in (("image", image), ("crop", crop), ("mask", mask)):
            (folder / path).unlink()
            Image.fromarray(picture(lesion, part)).save((folder / path).with_suffix(".png"))
    for path, lesion in zip(ddsm.read(folder, crops=True).scans["path"], FIRST, strict=True):
        near(path, picture(lesion, "crop"), 1)
    for path, lesion in zip(ddsm.read(folder).scans["path"], FIRST, strict=True):
        near(path, picture(lesion, "image"), 1)


def test_only_the_mask_is_there(tmp_path: Path) -> None:
    folder = tree(tmp_path, FIRST)
    image, crop, mask = FIRST[3].paths
    (folder / crop).unlink()
    source = ddsm.read(folder, crops=True)
    assert source.refused == [(crop, "only the lesion's mask is in this download")]
    assert source.scans["id"].to_list() == [case + "_1" for case in CASES[:3]]

    (folder / mask).unlink()
    (folder / image).unlink()
    assert ddsm.read(folder, crops=True).refused == [(crop, "the image of the lesion is not in this download")]
    source = ddsm.read(folder)
    assert source.refused == [(image, "the image is not in this download")]
    assert source.scans["id"].to_list() == CASES[:3]


def test_two_files_that_may_be_the_crop(tmp_path: Path) -> None:
    folder = tree(tmp_path, FIRST)
    _, crop, mask = FIRST[3].paths
    dicom(folder / mask, picture(FIRST[3], "crop"), "x")
    assert ddsm.read(folder, crops=True).refused == [(crop, "2 files may be the image of the lesion")]
    (folder / mask).write_bytes(b"no image")
    [(path, reason)] = ddsm.read(folder, crops=True).refused
    assert path == crop
    assert "cannot be told apart" in reason
    assert str(folder) not in reason


def test_two_files_where_one_image_should_be(tmp_path: Path) -> None:
    folder = tree(tmp_path, FIRST, classic)
    [image] = folder.glob("CBIS-DDSM/Mass-Training_P_00001_LEFT_CC/*/*/1-1.dcm")
    (image.parent / "1-2.dcm").write_bytes(image.read_bytes())
    [(_, reason)] = ddsm.read(folder).refused
    assert reason == "2 files lie where one image should"
    (image.parent / "1-2.dcm").rename(image.parent / "000000.dcm")
    assert ddsm.read(folder).scans["path"][3].endswith("000000.dcm")


def test_an_image_is_malignant_by_any_of_its_lesions(tmp_path: Path) -> None:
    benign = FIRST[3]._replace(number=2, pathology="BENIGN_WITHOUT_CALLBACK", uids=(*FIRST[3].uids[:2], "5.1", "5.2"))
    other = FIRST[0]._replace(number=2, pathology="BENIGN", uids=(*FIRST[0].uids[:2], "6.1", "6.2"))
    for lesions in ([*FIRST, benign, other], [benign, other, *FIRST]):
        folder = tmp_path / lesions[0].image
        source = ddsm.read(tree(folder, lesions))
        labels = dict(source.scans.select("id", "label:malignant").iter_rows())
        assert labels == dict(zip(CASES, [0, 1, 1, 1], strict=True))
        assert dict(source.scans.select("id", "lesions").iter_rows()) == dict(zip(CASES, [2, 1, 1, 2], strict=True))
        crops = ddsm.read(folder, crops=True).scans
        assert dict(crops.select("id", "label:malignant").iter_rows()) == {
            **{case + "_1": label for case, label in labels.items()}, CASES[3] + "_2": 0, CASES[0] + "_2": 0,
        }  # fmt: skip


def test_a_film_that_both_tables_list_has_one_label(tmp_path: Path) -> None:
    """The same film under Mass- and Calc-: malignant by its mass, so it is not benign as the calcification's."""
    calc = FIRST[3]._replace(kind="calc", pathology="BENIGN", uids=("7.1", "7.2", "7.3", "7.4"))
    source = ddsm.read(tree(tmp_path, [FIRST[3], calc]))
    assert dict(source.scans.select("id", "label:malignant").iter_rows()) == {
        "Mass-Training_P_00001_LEFT_CC": 1, "Calc-Training_P_00001_LEFT_CC": 1,
    }  # fmt: skip
    assert any(note.startswith("1 images are malignant by a lesion of the same film") for note in source.notes)
    crops = ddsm.read(tmp_path, crops=True)
    assert dict(crops.scans.select("id", "label:malignant").iter_rows()) == {
        "Mass-Training_P_00001_LEFT_CC_1": 1, "Calc-Training_P_00001_LEFT_CC_1": 0,
    }  # fmt: skip

    # The other breast, or another view, is another film.
    folder = tmp_path / "other"
    source = ddsm.read(tree(folder, [FIRST[3], calc._replace(view="MLO")]))
    assert sorted(source.scans["label:malignant"]) == [0, 1]


@pytest.mark.parametrize("crops", [False, True])
def test_a_patient_on_both_sides_goes_to_test(tmp_path: Path, crops: bool) -> None:
    crossing = FIRST[0]._replace(patient="P_00001", side="RIGHT", uids=("8.1", "8.2", "8.3", "8.4"))
    source = ddsm.read(tree(tmp_path, [*FIRST, crossing]), crops=crops)
    scans = source.scans
    assert scans.filter(pl.col("patient") == "P_00001")["split"].to_list() == ["test", "test"]
    assert scans.filter(pl.col("split") == "train")["patient"].to_list() == ["P_00005"]
    assert splits.crossing(scans["patient"].to_list(), scans["split"].to_list()) == []
    assert any(note.startswith("1 patients are in train with one type of lesion and in test") for note in source.notes)
    without = ddsm.read(tree(tmp_path / "without", FIRST), crops=crops)
    assert not any("patients are in train" in note for note in without.notes)


def test_what_a_row_says(tmp_path: Path) -> None:
    """Density under two spellings, and 0 for one that is not known; N/A is text; the break inside the field is none."""
    lesions = [FIRST[1], FIRST[3]._replace(density="0")]
    tree(tmp_path, lesions)
    assert (tmp_path / "mass_case_description_train_set.csv").read_text().count("\n") == 3
    cases = cbis.read_cases(cbis.tables(tmp_path))
    assert cases["density"].to_list() == [3, None]
    assert cases["assessment"].to_list() == [4, 4]
    assert cases["mask"][1] == FIRST[3].paths[2]
    assert cases["crop"][0] == FIRST[1].paths[1]
    assert ddsm.read(tmp_path).scans["density"].to_list() == [3, None]


def test_tables_that_are_not_there_are_named(tmp_path: Path) -> None:
    source = ddsm.read(tree(tmp_path, FIRST[2:]))
    assert any("no table of calcification lesions" in note for note in source.notes)
    assert any("13,900" in note for note in source.notes)


def refused(folder: Path, kind: type[DamcliError], said: str, **arguments: object) -> None:
    with pytest.raises(kind, match=said):
        ddsm.read(folder, **arguments)


def edited(folder: Path, old: str, new: str) -> None:
    file = folder / "mass_case_description_train_set.csv"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (",MALIGNANT,", ",MALIGNANT?,", "pathology is none"),
        (",MALIGNANT,", ",,", "pathology is none"),
        ("pathology", "diagnosis", "'pathology'"),
        ("P_00001,3", "P_00002,3", "image file path is none"),
        (",LEFT,", ",RIGHT,", "image file path is none"),
        ("Mass-Training_P_00001_LEFT_CC_1", "Mass-Training_P_00002_LEFT_CC_1", "cropped image file path is none"),
        ("Mass-Training_P_00001_LEFT_CC/", "../Mass-Training_P_00001_LEFT_CC/", "image file path is none"),
        ("/000001.dcm", "", "ROI mask file path is none"),
    ],
)
def test_rows_that_are_none_of_these_tables(tmp_path: Path, old: str, new: str, said: str) -> None:
    """A path of another patient's film, above all, would give a label to the wrong image."""
    tree(tmp_path, FIRST)
    edited(tmp_path, old, new)
    refused(tmp_path, DataError, said)


def test_folders_that_hold_none_of_it(tmp_path: Path) -> None:
    refused(tmp_path / "absent", UsageError, "no such folder")
    refused(tmp_path, DataError, "nothing of DDSM")
    write_tables(tmp_path, FIRST)
    refused(tmp_path, DataError, "no images below")
    refused(tmp_path, UsageError, "one finding", findings=["benign"])
    refused(tmp_path / "mass_case_description_train_set.csv", UsageError, "folder")
    (tmp_path / "x").mkdir()
    (tmp_path / "x.png").write_bytes(b"")
    assert len(ddsm.read(tmp_path).refused) == 4


def test_two_copies_of_a_table(tmp_path: Path) -> None:
    tree(tmp_path / "one", FIRST)
    write_tables(tmp_path / "two", FIRST)
    refused(tmp_path, UsageError, "twice")
    assert len(ddsm.read(tmp_path / "one").scans) == 4
