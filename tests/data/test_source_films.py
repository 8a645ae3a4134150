"""The original DDSM: case folders with films, case descriptions and annotations."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from damcli.commands import prepare
from damcli.data.film import stored_values
from damcli.data.images import Contract, read_scan
from damcli.data.sources import Source, ddsm
from damcli.dicom.greyscale import spread
from damcli.errors import DamcliError, DataError, UsageError

LINES, PIXELS = 60, 40
VIEWS = ("LEFT_CC", "LEFT_MLO", "RIGHT_CC", "RIGHT_MLO")
# A lesion's chain from (column, row): 5 to the right, 7 down, and back.
CHAIN = " ".join(["2"] * 5 + ["4"] * 7 + ["6"] * 5 + ["0"] * 7)
Case = Callable[..., Path]


def overlay(*lesions: tuple[str, str]) -> str:
    """An annotation of lesions, each a pathology and where its chain starts."""
    blocks = [
        f"ABNORMALITY {number}\nLESION_TYPE MASS SHAPE OVAL MARGINS SPICULATED\nASSESSMENT 5\nSUBTLETY 4\n"
        f"PATHOLOGY {pathology}\nTOTAL_OUTLINES 1\nBOUNDARY\n{start} {CHAIN} #\n"
        for number, (pathology, start) in enumerate(lesions, 1)
    ]
    return f"TOTAL_ABNORMALITIES {len(lesions)}\n" + "".join(blocks)


def values(name: str) -> NDArray[np.uint16]:
    r, c = np.mgrid[:LINES, :PIXELS]
    return (500 + 20 * r + 15 * c + sum(map(ord, name)) % 50).astype(np.uint16)


@pytest.fixture
def case(tmp_path: Path, pvrg: Callable[..., bytes]) -> Case:
    """Returns `case(folder, name, overlays, scanner=…, age=…)`: a case of four films below tmp_path."""

    def write(folder: str, name: str, overlays: Mapping[str, str], scanner: str = "HOWTEK", age: str = "57") -> Path:
        place = tmp_path / folder
        place.mkdir(parents=True)
        lines = [f"filename {name.replace('_', '-')}", f"PATIENT_AGE {age}", "DENSITY 3", f"DIGITIZER {scanner}"]
        lines += ["", "SEQUENCE"]
        for number, view in enumerate(VIEWS):
            kind = "OVERLAY" if view in overlays else "NON_OVERLAY"
            lines.append(f"{view} LINES {LINES} PIXELS_PER_LINE {PIXELS} BITS_PER_PIXEL 12 RESOLUTION 43.5 {kind} ")
            stream = pvrg(values(name + view), 7, 16, exchanged=number % 2 == 0)
            (place / f"{name}.{view}.LJPEG").write_bytes(stream)
            if overlays.get(view):
                (place / f"{name}.{view}.OVERLAY").write_text(overlays[view])
        (place / f"{name.replace('_', '-')}.ics").write_text("\n".join(lines))
        (place / f"TAPE_{name}.COMB.16_PGM").write_bytes(b"P5 1 1 255\n0")
        return place

    return write


def labels(source: Source) -> dict[str, float | None]:
    return {
        id.rpartition("/")[2].removesuffix(".LJPEG"): label
        for id, label in source.scans.select("id", "label:malignant").iter_rows()
    }


def test_a_tree_of_cases(tmp_path: Path, case: Case) -> None:
    malignant = overlay(("BENIGN", "5 9"), ("MALIGNANT", "20 30"))
    case("cases/cancers/cancer_08/case3001", "A_3001_1", {"LEFT_CC": malignant, "LEFT_MLO": malignant})
    case("cases/benigns/benign_02/case3002", "B_3002_1", {"RIGHT_CC": overlay(("BENIGN", "5 9"))}, "LUMISYS LASER")
    case("cases/benigns/benign_without_callback_01/case3003", "C_3003_2", {
        "RIGHT_CC": overlay(("BENIGN_WITHOUT_CALLBACK", "5 9")), "RIGHT_MLO": overlay(("UNPROVEN", "5 9")),
        "LEFT_CC": overlay(("UNPROVEN", "5 9"), ("BENIGN", "5 9")),
        "LEFT_MLO": overlay(("UNPROVEN", "5 9"), ("MALIGNANT", "5 9")),
    })  # fmt: skip
    case("cases/normals/normal_01/case3004", "A_3004_1", {}, "DBA", age="")
    source = ddsm.read(tmp_path)
    assert source.name == "ddsm:films"
    assert source.findings == ["malignant"]
    assert source.refused == []
    # The other breast of a case of cancer is not malignant; what is not proven is not known.
    assert labels(source) == {
        "A_3001_1.LEFT_CC": 1, "A_3001_1.LEFT_MLO": 1, "A_3001_1.RIGHT_CC": 0, "A_3001_1.RIGHT_MLO": 0,
        "B_3002_1.LEFT_CC": 0, "B_3002_1.LEFT_MLO": 0, "B_3002_1.RIGHT_CC": 0, "B_3002_1.RIGHT_MLO": 0,
        "C_3003_2.RIGHT_CC": 0, "C_3003_2.RIGHT_MLO": None, "C_3003_2.LEFT_CC": None, "C_3003_2.LEFT_MLO": 1,
        "A_3004_1.LEFT_CC": 0, "A_3004_1.LEFT_MLO": 0, "A_3004_1.RIGHT_CC": 0, "A_3004_1.RIGHT_MLO": 0,
    }  # fmt: skip
    scans = source.scans
    assert set(scans["split"]) == {None}
    first = scans.filter(id="cases/cancers/cancer_08/case3001/A_3001_1.LEFT_MLO.LJPEG").row(0, named=True)
    assert first == first | {
        "patient": "A-3001", "study": "A_3001_1_LEFT", "view": "mlo", "volume": "cancer_08", "scanner": "HOWTEK",
        "age": 57, "density": 3, "lesions": 2,
    }  # fmt: skip
    patients = scans.group_by("patient").agg(pl.col("volume", "scanner", "age").first(), pl.len()).sort("patient")
    assert patients.rows() == [
        ("A-3001", "cancer_08", "HOWTEK", 57, 4),
        ("A-3004", "normal_01", "DBA", None, 4),
        ("B-3002", "benign_02", "LUMISYS LASER", 57, 4),
        ("C-3003", "benign_without_callback_01", "HOWTEK", 57, 4),
    ]
    assert any("HOWTEK 8, " in note and "--film density" in note for note in source.notes)
    for path in scans["path"]:
        found, _ = stored_values(Path(path).read_bytes(), Path(path))
        assert np.array_equal(found, values(Path(path).name.removesuffix(".LJPEG").replace(".", "")))


def test_an_annotation_in_the_folder_of_another_case(tmp_path: Path, case: Case) -> None:
    one = case("cancer_11/case1585", "A_1585_1", {"RIGHT_MLO": overlay(("MALIGNANT", "5 9"))})
    other = case("cancer_11/case1826", "A_1826_1", {})
    (one / "A_1585_1.RIGHT_MLO.OVERLAY").rename(other / "A_1585_1.RIGHT_MLO.OVERLAY")
    source = ddsm.read(tmp_path)
    assert source.refused == []
    assert [name for name, label in labels(source).items() if label] == ["A_1585_1.RIGHT_MLO"]


def test_an_annotation_that_the_case_description_does_not_know_of(tmp_path: Path, case: Case) -> None:
    folder = case("cancer_11/case1585", "A_1585_1", {})
    (folder / "A_1585_1.LEFT_CC.OVERLAY").write_text(overlay(("MALIGNANT", "5 9")))
    assert [name for name, label in labels(ddsm.read(tmp_path)).items() if label] == ["A_1585_1.LEFT_CC"]


def test_what_is_missing_or_cut_off_is_refused_one_by_one(tmp_path: Path, case: Case) -> None:
    sick = overlay(("BENIGN", "5 9"), ("MALIGNANT", "5 9"))
    folder = case("cancer_01/case1", "A_0001_1", dict.fromkeys(VIEWS[:3], sick))
    (folder / "A_0001_1.LEFT_CC.OVERLAY").unlink()
    (folder / "A_0001_1.LEFT_MLO.OVERLAY").write_text(sick[: sick.index("ABNORMALITY 2")])
    (folder / "A_0001_1.RIGHT_MLO.LJPEG").unlink()
    alone = case("cancer_01/case2", "A_0002_1", {})
    (alone / "A-0002-1.ics").unlink()
    strange = case("cancer_01/case3", "A_0003_1", {})
    (strange / "A-0003-1.ics").write_text("BEGIN:VCALENDAR\n")
    (strange / "dentist.ics").write_text("BEGIN:VCALENDAR\n")
    source = ddsm.read(tmp_path)
    assert labels(source) == {"A_0001_1.RIGHT_CC": 1}
    reasons = dict(source.refused)
    assert len(source.refused) == len(reasons) == 13
    assert "(.OVERLAY) is missing" in reasons["cancer_01/case1/A_0001_1.LEFT_CC.LJPEG"]
    assert "fewer than it announces" in reasons["cancer_01/case1/A_0001_1.LEFT_MLO.LJPEG"]
    assert "not in this download" in reasons["A_0001_1.RIGHT_MLO.LJPEG"]
    assert "lists no film" in reasons["cancer_01/case3/A-0003-1.ics"]
    assert "named like" in reasons["cancer_01/case3/dentist.ics"]
    left = [f"cancer_01/case{n}/A_000{n}_1.{view}.LJPEG" for n in (2, 3) for view in VIEWS]
    assert {reasons[name] for name in left} == {"no case description lists this film"}


def test_a_case_that_is_there_twice_counts_once(tmp_path: Path, case: Case) -> None:
    """Else one patient's films would be on both sides under one name."""
    case("one/normal_01/case1", "A_0001_1", {})
    case("two/normal_01/case1", "A_0001_1", {})
    source = ddsm.read(tmp_path)
    assert len(source.scans) == source.scans["id"].n_unique() == 4
    assert [reason for _, reason in source.refused] == ["the film is not in this download, or is listed twice"] * 4


def test_crops_are_the_boxes_of_the_lesions(tmp_path: Path, case: Case) -> None:
    sick = overlay(("BENIGN", "5 9"), ("MALIGNANT", "36 50"), ("UNPROVEN", "0 0"))
    case("cancer_02/case1", "A_0001_1", {"LEFT_CC": sick})
    case("normal_02/case2", "A_0002_1", {})
    source = ddsm.read(tmp_path, crops=True)
    scans = source.scans
    assert labels(source) == {"1": 0, "2": 1, "3": None}
    assert scans["id"].to_list() == [f"cancer_02/case1/A_0001_1.LEFT_CC.LJPEG/{n}" for n in (1, 2, 3)]
    assert set(scans["patient"]) == {"A-0001"}
    assert scans["lesions"].to_list() == [1, 1, 1]
    assert [path.partition("#xywh=")[2] for path in scans["path"]] == ["5,9,6,8", "36,50,6,8", "0,0,6,8"]
    whole = spread(values("A_0001_1LEFT_CC"))
    for path, (x, y, width) in zip(scans["path"], [(5, 9, 6), (36, 50, 4), (0, 0, 6)], strict=True):
        shown = read_scan(Path(path), Contract(size=8, channels=1))
        beside = (8 - width) // 2
        expected = (whole[y : y + 8, x : x + width].astype(int) + 128) // 257
        assert np.array_equal(shown[:, beside : beside + width], expected)  # the second lesion leaves the film


def test_density_is_a_matter_of_the_scanner(tmp_path: Path, case: Case) -> None:
    """The same stored values are another density in each scanner, and D's HOWTEK is another than A's."""
    for number, (site, scanner) in enumerate([("A", "HOWTEK"), ("D", "HOWTEK"), ("B", "LUMISYS LASER"), ("A", "DBA")]):
        case(f"normal_01/case{number}", f"{site}_000{number}_1", {}, scanner)
    source = ddsm.read(tmp_path)
    contract = Contract(size=60, channels=1, film="density")
    shown = [
        read_scan(Path(path), contract)[30, 30]
        for path in source.scans.filter(pl.col("id").str.contains("LEFT_CC"))["path"]
    ]
    for picture, (name, density) in zip(shown, [
        ("A_0000_1LEFT_CC", lambda x: 3.789 - 0.00094568 * x),
        ("D_0001_1LEFT_CC", lambda x: 3.96604095240593 - 0.00099055807612 * x),
        ("B_0002_1LEFT_CC", lambda x: (x - 4096.99) / -1009.01),
        ("A_0003_1LEFT_CC", lambda x: (np.log10(x + 1) - 4.80662) / -1.07553),
    ], strict=True):  # fmt: skip
        expected = (3.0 - np.clip(density(float(values(name)[30, 20])), 0.05, 3.0)) / 2.95 * 255
        assert picture == pytest.approx(expected, abs=1)
    assert len(set(shown)) == 4


def refused(folder: Path, kind: type[DamcliError], said: str, **arguments: object) -> None:
    with pytest.raises(kind, match=said):
        ddsm.read(folder, **arguments)


def test_folders_with_nothing_left(tmp_path: Path, case: Case) -> None:
    folder = case("normal_01/case1", "A_0001_1", {})
    refused(tmp_path, DataError, "no lesion is annotated", crops=True)
    refused(tmp_path, UsageError, "one finding", findings=["abnormal"])
    for film in folder.glob("*.LJPEG"):
        film.unlink()
    refused(tmp_path, DataError, "not in this download")


def test_the_shared_cases_end_to_end(test_data: Path, tmp_path: Path) -> None:
    source = ddsm.read(test_data / "ddsm_ljpeg_synthetic")
    assert source.refused == []
    assert {name for name, label in labels(source).items() if label} == {"B_9001_1.LEFT_CC"}
    assert source.scans["patient"].unique().sort().to_list() == ["A-9002", "B-9001"]
    assert source.scans.filter(patient="A-9002")["age"].to_list() == [None, None]
    [crop] = ddsm.read(test_data / "ddsm_ljpeg_synthetic", crops=True).scans["path"]
    assert crop.endswith("B_9001_1.LEFT_CC.LJPEG#xywh=30,40,13,11")

    # Each case by itself would have one class only: both together are one training set and nothing else.
    made = prepare.read("ddsm", test_data / "ddsm_ljpeg_synthetic", valid_fraction=0.5)
    assert made.scans.group_by("patient").agg(pl.col("split").n_unique())["split"].to_list() == [1, 1]
    for film in ("grey", "density"):
        out = tmp_path / film
        for _ in prepare.prepare(made, out, film=film, size=64, workers=0, allow_leaks=True):
            pass
        images = np.load(out / "images-00000.npy")
        manifest = pl.read_parquet(out / "manifest.parquet")
        assert images.shape == (6, 64, 64)
        contract = Contract(size=64, channels=1, film=film)
        for image, path in zip(images, manifest["path"], strict=True):
            assert np.array_equal(image, read_scan(Path(path), contract))


def test_a_view_without_annotation_of_a_breast_with_cancer_is_not_negative(tmp_path: Path, case: Case) -> None:
    case(
        "cancer_01/case3005",
        "A_3005_1",
        {"LEFT_CC": overlay(("MALIGNANT", "5 9")), "RIGHT_CC": overlay(("BENIGN", "5 9"))},
    )
    source = ddsm.read(tmp_path)
    assert labels(source) == {
        "A_3005_1.LEFT_CC": 1, "A_3005_1.LEFT_MLO": None, "A_3005_1.RIGHT_CC": 0, "A_3005_1.RIGHT_MLO": 0,
    }  # fmt: skip
    assert any(note.startswith("1 films have no annotation") for note in source.notes)


def test_a_view_without_annotation_is_not_negative_where_what_the_other_shows_is_not_known(
    tmp_path: Path, case: Case
) -> None:
    cancer = overlay(("MALIGNANT", "5 9"))
    place = case("gone/case3001", "A_3001_1", {"LEFT_CC": cancer, "RIGHT_CC": cancer})
    (place / "A_3001_1.LEFT_CC.LJPEG").unlink()
    (place / "A_3001_1.RIGHT_CC.OVERLAY").unlink()
    case("unproven/case3002", "A_3002_1", {"LEFT_CC": overlay(("UNPROVEN", "5 9"))})
    source = ddsm.read(tmp_path)
    assert labels(source) == {
        "A_3001_1.LEFT_MLO": None, "A_3001_1.RIGHT_MLO": None,
        "A_3002_1.LEFT_CC": None, "A_3002_1.LEFT_MLO": None, "A_3002_1.RIGHT_CC": 0, "A_3002_1.RIGHT_MLO": 0,
    }  # fmt: skip
    assert len(source.refused) == 2
    assert any(note.startswith("3 films have no annotation") for note in source.notes)
