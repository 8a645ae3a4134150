"""ISIC 2020 as its downloads have it, and other years beside it (FORMATS section 8): who may be held out with whom."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from damcli.commands import prepare
from damcli.data.sources import Source, melanoma
from damcli.errors import DamcliError, DataError, UsageError

V1 = "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target"
V2 = V1.replace("patient_id,", "patient_id,lesion_id,")
RESIZED = V1 + ",tfrecord,width,height"
ONE_HOT = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"


def table(file: Path, header: str, *rows: str, end: str = "\n", last: str = "\n") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes((end.join([header, *rows]) + last).encode())


def image(*files: Path) -> None:
    """What lies there is not looked at by the reader."""
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def jpegs(folder: Path, *names: str) -> None:
    image(*(folder / f"{name}.jpg" for name in names))


def row(name: str, patient: str = "IP_1", target: int = 0, lesion: str | None = None, about: str = "male,45.0,torso"):
    ids = patient if lesion is None else f"{patient},{lesion}"
    return f"{name},{ids},{about},nevus,{'malignant' if target else 'benign'},{target}"


def resized(name: str, patient: str, number: object, target: int = 0) -> str:
    return f"{row(name, patient, target)},{number},1022,767"


def isic(number: int) -> str:
    return f"ISIC_{number:07}"


def refused(folder: Path, kind: type[DamcliError], *said: str) -> None:
    with pytest.raises(kind) as caught:
        melanoma.read(folder)
    for text in said:
        assert text in str(caught.value)


def scan(source: Source, name: str) -> dict[str, object]:
    (found,) = source.scans.filter(id=name).rows(named=True)
    return found


def archive(folder: Path, header: str = V2) -> Path:
    """Five images of three patients with a pair of duplicates, as the archive has them; JPEG in a folder of theirs."""
    lesion = "lesion_id" in header
    table(
        folder / f"ISIC_2020_Training_GroundTruth{'_v2' if lesion else ''}.csv",
        header,
        row("ISIC_2637011", "IP_7279968", 0, "IL_7972535" if lesion else None, "male,45,head/neck"),
        row("ISIC_0015719", "IP_3075186", 1, "IL_4649854" if lesion else None, "female,45.0,oral/genital"),
        row("ISIC_0052212", "IP_2842074", 0, "IL_9087444" if lesion else None, ",,"),
        row("ISIC_0079038", "IP_2842074", 0, "IL_7194695" if lesion else None),
        row("ISIC_8521950", "IP_2842074", 0, "IL_7194695" if lesion else None),
    )
    names = ["ISIC_2637011", "ISIC_0015719", "ISIC_0052212", "ISIC_0079038", "ISIC_8521950"]
    jpegs(folder / "train", *names)
    return folder


@pytest.mark.parametrize("header", [V1, V2])
def test_tables_of_the_archive(tmp_path: Path, header: str) -> None:
    archive(tmp_path, header)
    source = melanoma.read(tmp_path)
    scans = source.scans
    assert scans["id"].to_list() == ["ISIC_2637011", "ISIC_0015719", "ISIC_0052212", "ISIC_0079038", "ISIC_8521950"]
    assert scans["path"][0] == str(tmp_path / "train" / "ISIC_2637011.jpg")
    assert scans["label:melanoma"].to_list() == [0, 1, 0, 0, 0]
    assert scans["patient"].to_list() == ["IP_7279968", "IP_3075186", "IP_2842074", "IP_2842074", "IP_2842074"]
    assert scans["study"].to_list() == ([None] * 5 if header == V1 else
        ["IL_7972535", "IL_4649854", "IL_9087444", "IL_7194695", "IL_7194695"])  # fmt: skip
    assert scans["age"].to_list() == [45, 45, None, 45, 45]
    assert scans["sex"].to_list() == ["male", "female", None, "male", "male"]
    assert scans["site"].to_list() == ["head/neck", "oral/genital", None, "torso", "torso"]
    assert scans["split"].null_count() == scans["fold"].null_count() == 5
    assert (source.folds, source.size, source.channels, source.findings) == (5, 384, 3, ["melanoma"])


@pytest.mark.parametrize("columns", ["image_name_1,image_name_2", "ISIC_id,ISIC_id_paired"])
@pytest.mark.parametrize(("end", "last"), [("\n", "\n"), ("\n", ""), ("\r\n", "\r\n"), ("\r\n", "")])
def test_the_second_of_two_duplicates_is_dropped(tmp_path: Path, columns: str, end: str, last: str) -> None:
    archive(tmp_path)
    pair = "ISIC_0079038,ISIC_8521950"
    table(tmp_path / "ISIC_2020_Training_Duplicates.csv", columns, "ISIC_5,ISIC_6", pair, end=end, last=last)
    source = melanoma.read(tmp_path)
    assert "ISIC_0079038" in source.scans["id"]
    assert "ISIC_8521950" not in source.scans["id"]
    assert any("4 images of ISIC 2020, 1 duplicates dropped" in note for note in source.notes)
    assert source.refused == []


def test_of_several_tables_of_2020_the_one_that_says_most(tmp_path: Path) -> None:
    archive(tmp_path, V1)
    archive(tmp_path, V2)
    assert melanoma.read(tmp_path).scans["study"].null_count() == 0
    names = ["ISIC_2637011", "ISIC_0015719", "ISIC_0052212", "ISIC_0079038", "ISIC_8521950"]
    rows = [resized(name, f"IP_{n}", n if n < 4 else -1) for n, name in enumerate(names)]
    table(tmp_path / "jpeg-melanoma-384x384" / "train.csv", RESIZED, *rows)
    source = melanoma.read(tmp_path)
    assert source.scans["fold"].to_list() == [2, 1, 0, 3]
    assert sum("another table of ISIC 2020" in note for note in source.notes) == 2


def kaggle(folder: Path) -> None:
    table(folder / "train.csv", V1, *(row(isic(n), f"IP_{n // 2}", int(n == 3)) for n in range(6)))
    table(folder / "test.csv", ",".join(V1.split(",")[:5]), f"{isic(50)},IP_9,male,30.0,torso")
    table(folder / "sample_submission.csv", "image_name,target", f"{isic(50)},0.31")
    for n in range(6):
        image(folder / "train" / f"{isic(n)}.dcm", folder / "jpeg" / "train" / f"{isic(n)}.jpg")
    image(folder / "test" / f"{isic(50)}.dcm", folder / "jpeg" / "test" / f"{isic(50)}.jpg")


def test_kaggles_tree(tmp_path: Path) -> None:
    kaggle(tmp_path / "siim-isic-melanoma-classification")
    source = melanoma.read(tmp_path)
    assert source.scans["id"].to_list() == [isic(n) for n in range(6)]
    assert {Path(path).suffix for path in source.scans["path"]} == {".jpg"}
    assert any("6 images are there more than once: JPEG comes before DICOM" in note for note in source.notes)
    assert any("1 images without a label" in note for note in source.notes)


def test_dicom_where_there_is_no_jpeg(tmp_path: Path) -> None:
    kaggle(tmp_path)
    (tmp_path / "jpeg" / "train" / f"{isic(2)}.jpg").unlink()
    paths = melanoma.read(tmp_path).scans["path"]
    assert paths[2] == str(tmp_path / "train" / f"{isic(2)}.dcm")
    assert paths[3] == str(tmp_path / "jpeg" / "train" / f"{isic(3)}.jpg")


def test_jpeg_and_dicom_side_by_side_is_said_too(tmp_path: Path) -> None:
    archive(tmp_path)
    image(tmp_path / "train" / "ISIC_0015719.DCM", tmp_path / "masks" / "ISIC_0015719_segmentation.png")
    source = melanoma.read(tmp_path)
    assert scan(source, "ISIC_0015719")["path"].endswith(".jpg")
    assert any("1 images are there more than once" in note for note in source.notes)


def test_images_that_are_missing_are_refused_by_name(tmp_path: Path) -> None:
    archive(tmp_path)
    (tmp_path / "train" / "ISIC_0015719.jpg").unlink()
    source = melanoma.read(tmp_path)
    assert len(source.scans) == 4
    assert source.refused == [("ISIC_0015719", "the image is not in this download")]


FOLDS = [2, 1, 0, 3, 0, 0, 4, 4, 3, 2, 1, 3, 2, 1, 4]


@pytest.mark.parametrize("form", ["{}", "{}.0"])
def test_the_folds_of_the_resized_sets(tmp_path: Path, form: str) -> None:
    rows = [resized(isic(n), f"IP_{n}", form.format(n), int(n == 4)) for n in range(15)]
    table(tmp_path / "train.csv", RESIZED, *rows, resized(isic(15), "IP_3", form.format(-1)))
    # Of a pair, the list drops another image than the set: both would be gone.
    table(tmp_path / "ISIC_2020_Training_Duplicates.csv", "image_name_1,image_name_2", f"{isic(15)},{isic(3)}")
    jpegs(tmp_path / "train", *map(isic, range(16)))
    source = melanoma.read(tmp_path)
    assert source.scans["id"].to_list() == [isic(n) for n in range(15)]
    assert source.scans["fold"].to_list() == FOLDS
    assert source.scans["split"].to_list() == ["valid" if fold == 0 else "train" for fold in FOLDS]
    assert any("1 duplicates dropped" in note for note in source.notes)
    assert any("fold 0 is valid" in note for note in source.notes)


@pytest.mark.parametrize("number", ["15", "", "x", "nan"])
def test_file_numbers_that_are_none(tmp_path: Path, number: str) -> None:
    table(tmp_path / "train.csv", RESIZED, resized(isic(0), "IP_0", 0), resized(isic(1), "IP_1", number))
    jpegs(tmp_path, isic(0), isic(1))
    refused(tmp_path, DataError, "none of -1 to 14", "train.csv, row 2 below the header")


def test_the_resized_set_of_2019_is_no_patient_and_in_train_only(tmp_path: Path) -> None:
    archive(tmp_path)
    folder = tmp_path / "jpeg-isic2019-384x384"
    rows = [
        "ISIC_0000000,-1,female,55.0,anterior torso,NV,benign,0,4,1022,767",
        "ISIC_0000002,-1,female,60.0,upper extremity,MEL,malignant,1,29,1022,767",
        "ISIC_0000004_downsampled,-1,,,,NV,benign,0,1,1022,767",
        "ISIC_0000006,-1,female,60.0,,NV,benign,0,-1,1022,767",
    ]
    table(folder / "train.csv", RESIZED, *rows)
    jpegs(folder / "train", "ISIC_0000000", "ISIC_0000002", "ISIC_0000004_downsampled", "ISIC_0000006")
    source = melanoma.read(tmp_path)
    others = source.scans.filter(year="other")
    assert others["id"].to_list() == ["ISIC_0000000", "ISIC_0000002", "ISIC_0000004_downsampled"]
    assert others["label:melanoma"].to_list() == [0, 1, 0]
    assert others["patient"].to_list() == [None] * 3
    assert others["split"].to_list() == ["train"] * 3
    assert others["fold"].to_list() == [None] * 3
    assert others["site"].to_list() == ["anterior torso", "upper extremity", None]
    assert others["path"][2].endswith("ISIC_0000004_downsampled.jpg")
    assert source.scans.filter(year="2020")["split"].null_count() == 5


def of_2019(folder: Path) -> None:
    zeros = ",0.0" * 7
    table(folder / "ISIC_2019_Test_Metadata.csv", "image,age_approx,anatom_site_general,lesion_id,sex",
          "ISIC_0000090,1,torso,X_1,male")  # fmt: skip
    table(
        folder / "ISIC_2019_Training_GroundTruth.csv",
        ONE_HOT,
        f"ISIC_0000010,1.0,0.0{zeros}",
        f"ISIC_0000011_downsampled,0.0,1.0{zeros}",
        f"ISIC_0000012,0.0,1.0{zeros}",
        f"ISIC_0000013,0.0,1.0{zeros}",
    )
    table(
        folder / "ISIC_2019_Training_Metadata.csv",
        "image,age_approx,anatom_site_general,lesion_id,sex",
        "ISIC_0000012,,,,",
        "ISIC_0000010,55.0,anterior torso,HAM_0000118,female",
        "ISIC_0000011_downsampled,30,posterior torso,HAM_0000118,male",
    )
    jpegs(folder / "ISIC_2019_Training_Input", isic(10), isic(11) + "_downsampled", isic(12), isic(13))


def test_2019_with_its_metadata(tmp_path: Path) -> None:
    archive(tmp_path)
    of_2019(tmp_path)
    others = melanoma.read(tmp_path).scans.filter(year="other")
    assert others["id"].to_list() == [isic(10), isic(11) + "_downsampled", isic(12), isic(13)]
    assert others["label:melanoma"].to_list() == [1, 0, 0, 0]
    assert others["study"].to_list() == ["HAM_0000118", "HAM_0000118", None, None]
    assert others["patient"].to_list() == ["HAM_0000118", "HAM_0000118", None, None]
    assert others["age"].to_list() == [55, 30, None, None]
    assert others["sex"].to_list() == ["female", "male", None, None]
    assert others["site"].to_list() == ["anterior torso", "posterior torso", None, None]


def of_2017(folder: Path, *names: str) -> None:
    targets = "melanoma,seborrheic_keratosis"
    table(folder / "ISIC-2017_Training_Part3_GroundTruth.csv", f"image_id,{targets}",
          *(f"{name},{n % 2}.0,0.0" for n, name in enumerate(names)))  # fmt: skip
    table(folder / "ISIC-2017_Training_Data_metadata.csv", "image_id,age_approximate,sex",
          *(f"{name},unknown,unknown" if n else f"{name},35,Female" for n, name in enumerate(names)))  # fmt: skip
    jpegs(folder / "ISIC-2017_Training_Data", *names)


def test_2017_writes_unknown(tmp_path: Path) -> None:
    archive(tmp_path)
    of_2017(tmp_path, isic(20), isic(21))
    image(tmp_path / "ISIC-2017_Training_Data" / f"{isic(20)}_superpixels.png")
    others = melanoma.read(tmp_path).scans.filter(year="other")
    assert others["id"].to_list() == [isic(20), isic(21)]
    assert others["label:melanoma"].to_list() == [0, 1]
    assert others["age"].to_list() == [35, None]
    assert others["sex"].to_list() == ["female", None]
    assert others["patient"].to_list() == [None, None]


def test_names_that_repeat_across_years_count_once_also_when_downsampled(tmp_path: Path) -> None:
    archive(tmp_path)
    of_2017(tmp_path, isic(10), isic(11), "ISIC_0015719")
    of_2019(tmp_path)
    source = melanoma.read(tmp_path)
    others = source.scans.filter(year="other")
    assert others["id"].to_list() == [isic(10), isic(11), isic(12), isic(13)]
    assert scan(source, isic(11))["path"].endswith(f"ISIC-2017_Training_Data/{isic(11)}.jpg")
    assert scan(source, "ISIC_0015719")["year"] == "2020"
    assert any("2017" in note and "2 images of another year" in note and "1 left out" in note for note in source.notes)


def test_of_two_files_of_an_image_the_one_under_its_own_name_counts(tmp_path: Path) -> None:
    archive(tmp_path)
    of_2019(tmp_path)
    jpegs(tmp_path / "HAM10000", isic(11))
    source = melanoma.read(tmp_path)
    assert scan(source, isic(11) + "_downsampled")["path"].endswith("_downsampled.jpg")
    (tmp_path / "ISIC_2019_Training_Input" / f"{isic(11)}_downsampled.jpg").unlink()
    source = melanoma.read(tmp_path)
    assert scan(source, isic(11) + "_downsampled")["path"] == str(tmp_path / "HAM10000" / f"{isic(11)}.jpg")
    assert source.refused == []


def test_a_duplicate_that_2020_dropped_does_not_come_back_with_another_year(tmp_path: Path) -> None:
    archive(tmp_path)
    table(tmp_path / "Duplicates.csv", "image_name_1,image_name_2", "ISIC_0079038,ISIC_8521950")
    of_2017(tmp_path, "ISIC_8521950", isic(20))
    assert "ISIC_8521950" not in melanoma.read(tmp_path).scans["id"]

    rows = [resized(isic(n), f"IP_{n}", n) for n in range(5)]
    table(tmp_path / "resized" / "train.csv", RESIZED, *rows, resized("ISIC_8521950", "IP_2842074", -1))
    jpegs(tmp_path / "resized", *map(isic, range(5)))
    assert "ISIC_8521950" not in melanoma.read(tmp_path).scans["id"]


def test_a_lesion_of_2020_is_not_trained_on_from_another_year(tmp_path: Path) -> None:
    archive(tmp_path)
    of_2019(tmp_path)
    file = tmp_path / "ISIC_2019_Training_Metadata.csv"
    file.write_text(file.read_text().replace("HAM_0000118,female", "IL_4649854,female"))
    source = melanoma.read(tmp_path)
    assert source.scans.filter(year="other")["id"].to_list() == [isic(11) + "_downsampled", isic(12), isic(13)]
    assert any("1 left out" in note and "lesion is in ISIC 2020" in note for note in source.notes)


@pytest.mark.parametrize("folds", [None, 3])
def test_no_patient_and_no_lesion_is_both_held_out_and_trained_on(tmp_path: Path, folds: int | None) -> None:
    rng = np.random.default_rng(0)
    lesions = [f"IL_{n % 40}" for n in range(60)]
    rows = [row(isic(n), f"IP_{n % 20}", int(n % 7 == 0), lesions[n]) for n in range(60)]
    table(tmp_path / "ISIC_2020_Training_GroundTruth_v2.csv", V2, *rows)
    years = [f"{isic(n)},{rng.integers(2)}.0,0.0" + ",0.0" * 7 for n in range(40, 100)]
    table(tmp_path / "ISIC_2019_Training_GroundTruth.csv", ONE_HOT, *years)
    about = [f"{isic(n)},,,{f'IL_{n % 50}' if n % 3 else ''}," for n in range(40, 100)]
    table(tmp_path / "ISIC_2019_Training_Metadata.csv", "image,age_approx,anatom_site_general,lesion_id,sex", *about)
    jpegs(tmp_path / "jpeg", *map(isic, range(100)))
    scans = prepare.read("melanoma", tmp_path, folds=folds, seed=1).scans
    others = scans.filter(year="other")
    assert len(others) > 10
    assert set(others["split"]) == {"train"}
    assert others["fold"].null_count() == len(others)
    held = scans.filter(pl.col("fold").is_not_null())
    assert held["fold"].n_unique() == (folds or 5)
    for column in ("patient", "study"):
        assert held.group_by(column).agg(pl.col("fold").n_unique())["fold"].max() == 1
        assert not set(held[column].drop_nulls()) & set(others[column].drop_nulls())


def test_an_image_without_patient_is_of_the_patient_of_its_lesion(tmp_path: Path) -> None:
    rows = [
        row(isic(0), "", 0, "IL_1"), row(isic(1), "IP_1", 0, "IL_1"), row(isic(2), "-1", 0, "IL_2"),
        row(isic(3), "", 0, ""), row(isic(4), "-1", 0, "-1"), row(isic(5), "IP_2", 0, ""), row(isic(6), "IP_3", 0, ""),
    ]  # fmt: skip
    table(tmp_path / "truth.csv", V2, *rows)
    jpegs(tmp_path, *map(isic, range(7)))
    patients = melanoma.read(tmp_path).scans["patient"].to_list()
    assert patients == ["IP_1", "IP_1", "IL_2", None, None, "IP_2", "IP_3"]


def test_a_lesion_of_two_patients_is_refused(tmp_path: Path) -> None:
    table(tmp_path / "truth.csv", V2, row(isic(0), "IP_1", 0, "IL_1"), row(isic(1), "IP_2", 0, "IL_1"))
    jpegs(tmp_path, isic(0), isic(1))
    refused(tmp_path, DataError, "a lesion belongs to two patients", "truth.csv")


def test_a_table_of_another_year_without_its_images_is_left_out(tmp_path: Path) -> None:
    archive(tmp_path)
    table(tmp_path / "ISIC_2019_Test_GroundTruth.csv", ONE_HOT, f"{isic(90)},1.0,0.0" + ",0.0" * 7)
    source = melanoma.read(tmp_path)
    assert len(source.scans) == 5
    assert source.refused == []
    assert any("none of its images" in note for note in source.notes)


def test_other_years_alone_are_nothing_to_judge_on(tmp_path: Path) -> None:
    of_2019(tmp_path)
    refused(tmp_path, DataError, "no table of ISIC 2020", "patient_id")
    rows = ["ISIC_0000000,-1,female,55.0,anterior torso,NV,benign,0,4,1022,767"]
    table(tmp_path / "train.csv", RESIZED, *rows)
    refused(tmp_path, DataError, "no table of ISIC 2020")


def test_folders_that_hold_none(tmp_path: Path) -> None:
    refused(tmp_path / "absent", UsageError, "no such folder")
    (tmp_path / "train.csv").touch()
    refused(tmp_path / "train.csv", UsageError, "is a folder")
    refused(tmp_path, DataError, "no table of ISIC 2020")
    table(tmp_path / "train.csv", V1, row(isic(1)))
    refused(tmp_path, DataError, "none of their images")


@pytest.mark.parametrize("target", ["", "2", "0.5", "x", "nan"])
def test_targets_that_are_none(tmp_path: Path, target: str) -> None:
    table(tmp_path / "train.csv", V1, row(isic(1)), row(isic(2))[:-1] + target)
    jpegs(tmp_path, isic(1), isic(2))
    refused(tmp_path, DataError, "neither 0 nor 1", "row 2 below the header, column 'target'")


def test_an_image_listed_twice(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", V1, row(isic(1)), row(isic(1)))
    jpegs(tmp_path, isic(1))
    refused(tmp_path, DataError, "more than once", isic(1))


def test_names_that_leave_the_folder_name_no_image(tmp_path: Path) -> None:
    table(tmp_path / "in" / "train.csv", V1, row(isic(1)), row("../ISIC_0000002"), row("/etc/passwd"))
    jpegs(tmp_path, isic(2))
    jpegs(tmp_path / "in", isic(1))
    source = melanoma.read(tmp_path / "in")
    assert source.scans["id"].to_list() == [isic(1)]
    assert [name for name, _ in source.refused] == ["../ISIC_0000002", "/etc/passwd"]


def test_it_is_prepared(tmp_path: Path) -> None:
    rows = [row(isic(n), f"IP_{n}", n % 2) for n in range(10)]
    table(tmp_path / "in" / "train.csv", V1, *rows)
    for n in range(10):
        colours = np.random.default_rng(n).integers(0, 256, (32, 48, 3), np.uint8)
        Image.fromarray(colours).save(tmp_path / "in" / f"{isic(n)}.jpg")
    source = prepare.read("melanoma", tmp_path / "in")
    list(prepare.prepare(source, tmp_path / "out", size=16, workers=0))
    manifest = pl.read_parquet(tmp_path / "out" / "manifest.parquet")
    assert sorted(manifest["fold"]) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert {"age", "sex", "site", "year"} <= set(manifest.columns)
