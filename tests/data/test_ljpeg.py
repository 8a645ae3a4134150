"""DDSM's lossless JPEG against streams of the real encoder, and of one written here by its rule."""

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from damcli.data import film, ljpeg
from damcli.dicom import pixels
from damcli.errors import DataError

SELECTIONS = range(1, 8)
Encoder = Callable[..., bytes]


def noise(rows: int, columns: int, bits: int, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, 2**bits, (rows, columns)).astype(np.uint16)


def smooth(rows: int, columns: int, bits: int) -> NDArray[np.uint16]:
    r, c = np.mgrid[:rows, :columns]
    return ((np.sin(r / 9) * np.cos(c / 7) + 1) / 2 * (2**bits - 1)).astype(np.uint16)


def test_streams_of_the_pvrg_program(test_data: Path) -> None:
    folder = test_data / "ddsm_ljpeg_synthetic"
    with (folder / "expected.csv").open() as table:
        known = list(csv.DictReader(table))
    assert len(known) == 6
    for row in known:
        file = folder / row["case"] / row["file"]
        values, _ = film.stored_values(file.read_bytes(), file)
        assert values.shape == (int(row["lines"]), int(row["pixels_per_line"]))
        found = values.astype(">u2").tobytes()
        assert found == Path(f"{file}.expected_u16be").read_bytes()
        assert hashlib.sha256(found).hexdigest() == row["sha256_u16be"]
        frame = ljpeg.parse(file.read_bytes())
        assert [frame.columns, frame.rows, frame.precision, frame.predictor] == [
            int(row[key]) for key in ("header_X", "header_Y", "header_P", "header_Ss")
        ]


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize(("precision", "bits"), [(12, 12), (16, 12), (16, 16)])
def test_every_selection_value_is_exact(pvrg: Encoder, selection: int, precision: int, bits: int) -> None:
    for image in (noise(37, 23, bits), smooth(41, 60, bits), smooth(60, 41, bits)):
        for exchanged in (False, True):
            found = ljpeg.decode(pvrg(image, selection, precision, exchanged))
            assert found.dtype == np.uint16
            assert found.shape == (image.shape[::-1] if exchanged else image.shape)
            assert np.array_equal(found.reshape(image.shape), image)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_the_largest_difference_has_no_bits_of_its_own(pvrg: Encoder, selection: int) -> None:
    image = np.array([[0, 32768, 0], [65535, 32767, 65535], [0, 0, 32768]], np.uint16)
    assert np.array_equal(ljpeg.decode(pvrg(image, selection, 16)), image)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 12), columns=st.integers(1, 12), selection=st.sampled_from(SELECTIONS),
    precision=st.sampled_from([12, 16]), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_any_shape(pvrg: Encoder, rows: int, columns: int, selection: int, precision: int, seed: int) -> None:
    image = noise(rows, columns, precision, seed)
    assert np.array_equal(ljpeg.decode(pvrg(image, selection, precision)), image)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 9), (9, 2)])
def test_single_rows_and_columns(pvrg: Encoder, shape: tuple[int, int], selection: int) -> None:
    image = noise(*shape, 16)
    assert np.array_equal(ljpeg.decode(pvrg(image, selection, 16)), image)


def test_an_ordinary_decoder_gets_four_selection_values_wrong(pvrg: Encoder) -> None:
    image = smooth(40, 30, 12)
    wrong = [s for s in SELECTIONS if not np.array_equal(pixels.lossless_jpeg(pvrg(image, s, 16), 40, 30), image)]
    assert wrong == [2, 3, 6, 7]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"selection": 0}, "predictor 0"),
        ({"selection": 8}, "predictor 8"),
        ({"transform": 1}, "point transform 1"),
        ({"components": 3}, "3 x 16 bits"),
        ({"precision": 17}, "1 x 17 bits"),
        ({"precision": 1}, "1 x 1 bits"),
        ({"rows": 0}, "4 x 0 pixels"),
        ({"rows": 65535, "columns": 65535}, "65535 x 65535 pixels"),
        ({"extra": b"\xff\xdd\0\x04\0\x01"}, "restart"),
    ],
)
def test_headers_that_claim_something_else(segments: Encoder, header: dict[str, int], said: str) -> None:
    known = {"rows": 4, "columns": 4, "precision": 16, "selection": 7}
    with pytest.raises(DataError, match=said):
        ljpeg.decode(segments(**(known | header)) + bytes(8) + b"\xff\xd9")


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        (b"\xff\xc3", b"\xff\xc0", "not lossless"),
        (b"\xff\xc4", b"\0\xc4", "marker"),
        (b"\xff\xc4", b"\xff\xe0", "no Huffman table"),
        (b"\xff\xd9", b"\xff\xc4\xff\xd9", "damaged among its pixels"),
        (b"\xff\xd9", b"", "cut off"),
    ],
)
def test_segments_that_are_not_there(pvrg: Encoder, good: bytes, bad: bytes, said: str) -> None:
    stream = pvrg(smooth(8, 8, 12), 7, 16)
    assert stream.count(good) == 1
    with pytest.raises(DataError, match=said):
        ljpeg.decode(stream.replace(good, bad))


@pytest.mark.parametrize("stream", [b"", b"\xff\xd8\xff\xc3", b"\xff" * 50])
def test_streams_of_nothing(stream: bytes) -> None:
    with pytest.raises(DataError, match="cut off"):
        ljpeg.decode(stream)


def test_a_restart_interval_of_none_is_none(pvrg: Encoder, segments: Encoder) -> None:
    image = smooth(8, 8, 12)
    stream = pvrg(image, 7, 16)
    head = segments(8, 8, 16, 7)
    assert stream.startswith(head)
    assert np.array_equal(ljpeg.decode(segments(8, 8, 16, 7, extra=b"\xff\xdd\0\x04\0\0") + stream[len(head) :]), image)


@pytest.mark.parametrize("selection", [1, 7])
def test_cut_off_anywhere(pvrg: Encoder, selection: int) -> None:
    image = noise(9, 7, 12)
    stream = pvrg(image, selection, 16)
    for length in range(len(stream)):
        with pytest.raises(DataError):
            ljpeg.decode(stream[:length])
    assert np.array_equal(ljpeg.decode(stream + b"behind the end"), image)


@pytest.mark.parametrize("value", [0x00, 0xFF, 0x01, 0x80])
@pytest.mark.parametrize("selection", [1, 7])
def test_damaged_anywhere(pvrg: Encoder, selection: int, value: int) -> None:
    stream = pvrg(smooth(9, 7, 12), selection, 16)
    outcomes = set()
    for position in range(2, len(stream)):
        damaged = bytearray(stream)
        damaged[position] ^= value or damaged[position]
        try:
            found = ljpeg.decode(bytes(damaged))
            assert found.dtype == np.uint16
            outcomes.add("decoded")
        except DataError:
            outcomes.add("refused")
    assert outcomes == {"decoded", "refused"}
