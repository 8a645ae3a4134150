"""DDSM's films: case descriptions, annotations, optical density, and what is refused as not decoded rightly."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from damcli.data import film, ljpeg
from damcli.data.film import Case, View
from damcli.data.images import Contract, read_scan
from damcli.errors import DataError

Write = Callable[..., Path]

ICS = """\
ics_version 1.0
filename B-3024-1
DATE_OF_STUDY 2 7 1995
PATIENT_AGE 42
FILM
FILM_TYPE REGULAR
DENSITY 4
DATE_DIGITIZED 7 22 1997
DIGITIZER LUMISYS LASER
SEQUENCE
LEFT_CC LINES 4696 PIXELS_PER_LINE 3024 BITS_PER_PIXEL 12 RESOLUTION 50 OVERLAY
LEFT_MLO LINES 4688 PIXELS_PER_LINE 3048 BITS_PER_PIXEL 12 RESOLUTION 50 NON_OVERLAY
"""


def description(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode())
    return file


@pytest.fixture
def written(tmp_path: Path, pvrg: Callable[..., bytes]) -> Write:
    """Returns `written(values, bits, scanner=…, name=…)`: a film with its case description, its header exchanged."""

    def write(values: NDArray, bits: int, scanner: str = "LUMISYS LASER", name: str = "B_3024_1") -> Path:
        lines, columns = values.shape
        description(
            tmp_path / (name.replace("_", "-") + ".ics"),
            f"DIGITIZER {scanner}\nSEQUENCE\nLEFT_CC LINES {lines} PIXELS_PER_LINE {columns} BITS_PER_PIXEL {bits} "
            "RESOLUTION 50 NON_OVERLAY\n",
        )
        file = tmp_path / f"{name}.LEFT_CC.LJPEG"
        file.write_bytes(pvrg(values, 7, 16, exchanged=True))
        return file

    return write


def noise(lines: int, columns: int) -> NDArray[np.uint16]:
    return np.random.default_rng(0).integers(0, 4096, (lines, columns)).astype(np.uint16)


def test_a_case_description(tmp_path: Path) -> None:
    views = {"LEFT_CC": View(4696, 3024, 12, True), "LEFT_MLO": View(4688, 3048, 12, False)}
    assert film.read_case(description(tmp_path / "x.ics", ICS)) == Case(views, "LUMISYS LASER", 42, 4)


def test_spellings_of_a_case_description(tmp_path: Path) -> None:
    expected = film.read_case(description(tmp_path / "x.ics", ICS))
    blanks = "\n \n" + ICS.replace("\n", "  \n\n")
    for text in (ICS.replace("\n", "\r\n"), ICS.replace("SEQUENCE", "SELECTED"), blanks):
        assert film.read_case(description(tmp_path / "x.ics", text)) == expected
    blank_age = film.read_case(description(tmp_path / "x.ics", ICS.replace("AGE 42", "AGE ")))
    assert blank_age == expected._replace(age=None)
    one_word = film.read_case(description(tmp_path / "x.ics", ICS.replace("LUMISYS LASER", "DBA")))
    assert one_word.scanner == "DBA"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no film"),
        (ICS.replace(" LINES ", " ROWS "), "no film"),
        (ICS.replace("4696", "many"), "LEFT_CC"),
        (ICS.replace("PIXELS_PER_LINE 3024", ""), "LEFT_CC"),
        (ICS.replace("4696", "0"), "0 pixels"),
        (ICS.replace("4696", "-5"), "-5 pixels"),
        (ICS.replace("PIXEL 12", "PIXEL 17"), "17 bits"),
    ],
)
def test_case_descriptions_that_cannot_be_right(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        film.read_case(description(tmp_path / "x.ics", text))


OVERLAY = """\
TOTAL_ABNORMALITIES 2
ABNORMALITY 1
LESION_TYPE MASS SHAPE IRREGULAR-ARCHITECTURAL_DISTORTION MARGINS SPICULATED
LESION_TYPE CALCIFICATION TYPE PLEOMORPHIC DISTRIBUTION CLUSTERED
ASSESSMENT 5
SUBTLETY 4
PATHOLOGY MALIGNANT
TOTAL_OUTLINES 2
BOUNDARY
30 40 2 2 3 4 4 5 6 6 7 0 0 1 #
\tCORE
900 900 2 2 4 4 6 6 0 0 #
ABNORMALITY 2
LESION_TYPE MASS SHAPE OVAL MARGINS CIRCUMSCRIBED
ASSESSMENT 3
SUBTLETY 3
PATHOLOGY BENIGN
TOTAL_OUTLINES 1
BOUNDARY
7 9 2 4 6 0 #
"""


def test_an_annotation_of_two_lesions(tmp_path: Path) -> None:
    """Of the first, the boundary goes right by 2, on by 1, back by 1 + 2 + 1 and on by 1; its core is not counted."""
    first, second = film.read_overlay(description(tmp_path / "x.OVERLAY", OVERLAY))
    assert first == ("MALIGNANT", ("MASS", "CALCIFICATION"), (29, 40, 5, 5))
    assert second == ("BENIGN", ("MASS",), (7, 9, 2, 2))
    crlf = description(tmp_path / "y.OVERLAY", OVERLAY.replace("\n", "\r\n"))
    assert film.read_overlay(crlf) == [first, second]


@pytest.mark.parametrize(
    ("step", "box"),
    [
        (0, (50, 57, 1, 4)), (1, (50, 57, 4, 4)), (2, (50, 60, 4, 1)), (3, (50, 60, 4, 4)),
        (4, (50, 60, 1, 4)), (5, (47, 60, 4, 4)), (6, (47, 60, 4, 1)), (7, (47, 57, 4, 4)),
    ],
)  # fmt: skip
def test_steps_of_a_chain(tmp_path: Path, step: int, box: tuple[int, int, int, int]) -> None:
    text = OVERLAY.replace("7 9 2 4 6 0 #", f"50 60 {step} {step} {step} #")
    assert film.read_overlay(description(tmp_path / "x.OVERLAY", text))[1].box == box


def test_a_chain_that_leaves_the_image_is_cut_there(tmp_path: Path) -> None:
    text = OVERLAY.replace("7 9 2 4 6 0 #", "1 2 7 7 7 7 3 3 3 3 3 3 #")
    assert film.read_overlay(description(tmp_path / "x.OVERLAY", text))[1].box == (0, 0, 4, 5)
    text = OVERLAY.replace("7 9 2 4 6 0 #", "1 2 #")
    assert film.read_overlay(description(tmp_path / "x.OVERLAY", text))[1].box == (1, 2, 1, 1)


def test_an_unproven_lesion_is_read(tmp_path: Path) -> None:
    text = OVERLAY.replace("PATHOLOGY BENIGN", "PATHOLOGY UNPROVEN")
    found = film.read_overlay(description(tmp_path / "x.OVERLAY", text))
    assert [lesion.pathology for lesion in found] == ["MALIGNANT", "UNPROVEN"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "TOTAL_ABNORMALITIES 0\n",
        OVERLAY.replace("PATHOLOGY BENIGN\n", ""),
        OVERLAY.replace("PATHOLOGY BENIGN\n", "PATHOLOGY\n"),
        OVERLAY.replace("9 2 4 6 0 #", "9 2 4 6 8 #"),
        OVERLAY.replace("BOUNDARY", "OUTLINE"),
    ],
)
def test_annotations_that_are_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError):
        film.read_overlay(description(tmp_path / "x.OVERLAY", text))


def test_an_annotation_cut_off_anywhere_is_no_shorter_one(tmp_path: Path) -> None:
    """Half an annotation would turn the film of two lesions into one of a single, other label."""
    for length in range(len(OVERLAY.rstrip())):
        with pytest.raises(DataError):
            film.read_overlay(description(tmp_path / "x.OVERLAY", OVERLAY[:length]))


@pytest.mark.parametrize(
    ("scanner", "site", "grey", "density"),
    [
        ("DBA", "A", 0, 4.469071),  # (log10(1) - 4.80662) / -1.07553
        ("DBA", "A", 9, 3.539297),  # (1 - 4.80662) / -1.07553
        ("DBA", "A", 9999, 0.749974),  # (4 - 4.80662) / -1.07553
        ("HOWTEK", "A", 1000, 2.843320),  # 3.789 - 0.94568
        ("HOWTEK", "D", 1000, 2.975483),  # 3.96604095 - 0.99055808
        ("LUMISYS LASER", "B", 1000, 3.069335),  # -3096.99 / -1009.01
        ("LUMISYS", "C", 4095, 0.001972),  # -1.99 / -1009.01
    ],
)
def test_curves_of_the_scanners(scanner: str, site: str, grey: int, density: float) -> None:
    assert film.optical_density(np.array([grey]), scanner, site)[0] == pytest.approx(density, abs=1e-6)


def test_a_scanner_without_a_curve() -> None:
    with pytest.raises(DataError, match="no scanner"):
        film.optical_density(np.array([1]), "", "A")


def phantom(lines: int = 60, columns: int = 40) -> NDArray[np.float64]:
    """Optical densities of a film, all in the range that is shown: dark above, a bright breast below."""
    r, c = np.mgrid[:lines, :columns]
    return 0.2 + 2.7 * (np.cos(c / 25) * np.sin(1.5 - r / 20) + 1) / 2


# What each scanner stores of an optical density, by its curve solved for the grey value.
STORED = {
    ("DBA", "A_1000_1", 16): lambda od: 10 ** (4.80662 - 1.07553 * od) - 1,
    ("HOWTEK", "A_1000_2", 12): lambda od: (3.789 - od) / 0.00094568,
    ("LUMISYS LASER", "B_1000_1", 12): lambda od: 4096.99 - 1009.01 * od,
    ("HOWTEK", "D_1000_1", 12): lambda od: (3.96604095240593 - od) / 0.00099055807612,
}
DENSITY = Contract(size=60, channels=1, film="density")


def test_density_makes_the_scanners_agree_and_grey_does_not(written: Write) -> None:
    density = phantom()
    pictures, greys = [], []
    for (scanner, name, bits), stored in STORED.items():
        file = written(np.rint(stored(density)).astype(np.uint16), bits, scanner, name)
        pictures.append(read_scan(file, DENSITY)[:, 10:50].astype(float))
        greys.append(read_scan(file, Contract(size=60, channels=1))[:, 10:50].astype(float))
    for picture in pictures:
        assert np.abs(picture - (3.0 - density) / 2.95 * 255).max() <= 1
    assert pictures[0][density.argmax() // 40, density.argmax() % 40] < 10  # dark film is black
    assert pictures[0].flat[density.argmin()] > 235
    assert max(np.abs(grey - greys[0]).max() for grey in greys) > 50


def test_density_outside_its_range_is_cut(written: Write) -> None:
    values = np.zeros((20, 20), np.uint16)
    values[:, 10:] = 4095
    shown = read_scan(written(values, 12), Contract(size=20, channels=1, film="density"))
    assert (shown[:, :10] == 0).all()
    assert (shown[:, 10:] == 255).all()


def test_grey_is_spread_as_deep_pictures_are(written: Write) -> None:
    values = np.tile(np.arange(100, 300, dtype=np.uint16), (100, 1))
    shown = read_scan(written(values, 12), Contract(size=200, channels=1))[50:150]
    assert np.array_equal(shown[0], np.rint(np.arange(200) / 199 * 255))


def refused(file: Path, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_scan(file, Contract(size=32, channels=1))


def test_films_that_do_not_fit_their_description(tmp_path: Path, written: Write) -> None:
    values = np.tile(np.arange(2040, 2070, dtype=np.uint16), (40, 1))
    file = written(values, 12)
    ics = tmp_path / "B-3024-1.ics"
    good = ics.read_text()
    read_scan(file, Contract(size=32, channels=1))

    ics.write_text(good.replace("LINES 40", "LINES 41"))
    refused(file, "40 x 30 pixels, its case description 30 x 41")
    ics.write_text(good.replace("PIXEL 12", "PIXEL 11"))
    refused(file, "above its 11 bits")
    ics.write_text(good.replace("LEFT_CC", "RIGHT_CC"))
    refused(file, "does not list this film")
    ics.unlink()
    refused(file, r"\(.ics\) of this film is missing")
    elsewhere = tmp_path / "scan.jpg"
    elsewhere.write_bytes(file.read_bytes())
    refused(elsewhere, "lossless JPEG by itself")


def test_noise_is_no_film(written: Write) -> None:
    refused(written(noise(40, 30), 12), "do not resemble")
    stripes = np.repeat(noise(40, 1), 30, axis=1)
    refused(written(stripes, 12), "do not resemble")
    refused(written(stripes.T, 12), "do not resemble")


def test_a_film_of_one_row_or_column_is_read(tmp_path: Path, written: Write) -> None:
    for shape in ((1, 60), (60, 1), (1, 1)):
        values = np.arange(1000, 1000 + max(shape), dtype=np.uint16).reshape(shape)
        found, _ = film.stored_values(written(values, 12).read_bytes(), tmp_path / "B_3024_1.LEFT_CC.LJPEG")
        assert np.array_equal(found, values)


@pytest.mark.parametrize("wrong", [1, 2, 3, 4, 5, 6])
def test_a_film_smeared_by_another_predictor_is_refused(test_data: Path, tmp_path: Path, wrong: int) -> None:
    """The 12-bit films leave their range, the 16-bit ones of case 9002 are rough, along rows or down columns."""
    said = set()
    for file in sorted((test_data / "ddsm_ljpeg_synthetic").glob("case*/*.LJPEG")):
        stream = file.read_bytes()
        scan = stream.index(b"\xff\xda")
        patched = bytearray(stream)
        assert patched[scan + 7] == 7
        patched[scan + 7] = wrong
        assert ljpeg.parse(bytes(patched)).predictor == wrong
        with pytest.raises(DataError, match="not decoded rightly") as caught:
            film.stored_values(bytes(patched), file)
        said.add("bits" if "bits" in caught.value.what else "rough")
    assert said == {"bits", "rough"}


def test_a_shared_film_as_predict_sees_it(test_data: Path) -> None:
    """No crash and no path in what is said, for streams cut anywhere."""
    file = test_data / "ddsm_ljpeg_synthetic" / "case9002" / "A_9002_1.LEFT_CC.LJPEG"
    stream = file.read_bytes()
    for length in [*range(60), *range(60, len(stream) - 2, 997)]:
        with pytest.raises(DataError) as caught:
            film.read(stream[:length], file, "grey")
        assert str(file.parent) not in str(caught.value)
