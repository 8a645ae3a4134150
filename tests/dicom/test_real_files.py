"""Real DICOM files: those of pydicom, and radiographs in ten transfer syntaxes."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file, get_testdata_files
from pydicom.pixels import apply_color_lut, get_decoder

from damcli.dicom.pixels import _decode, grey16, read, supported
from damcli.errors import DataError

JPEG_BASELINE, JPEG_EXTENDED, JPEG_2000 = (f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 90))


def test_the_test_files_of_pydicom_give_pixels_or_a_clear_error():
    outcomes = {}
    for path in map(Path, get_testdata_files()):
        if not path.is_file():
            continue
        try:
            image = grey16(read(path))
            assert (image.dtype, image.ndim) in ((np.uint16, 2), (np.uint8, 3))
            outcomes[path.name] = "ok"
        except DataError as error:
            outcomes[path.name] = error.what
    assert sum(outcome == "ok" for outcome in outcomes.values()) > 70
    for name in ("MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "SC_rgb_jpeg_dcmtk.dcm", "image_dfl.dcm"):
        assert outcomes[name] == "ok"


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_rgb_dcmtk_+eb+cy+s4.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "SC_rgb_jpeg_lossy_gdcm.dcm",
        "SC_rgb_small_odd_jpeg.dcm",
        "SC_rgb_rle_16bit.dcm",
        "SC_rgb_jls_lossy_line.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "examples_jpeg2k.dcm",
        "examples_palette.dcm",
    ],
)
def test_colours_are_those_of_pydicom(name):
    dataset = pydicom.dcmread(get_testdata_file(name))
    expected = dataset.pixel_array
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        expected = apply_color_lut(expected, dataset)
    scale = 255 / (2.0 ** (8 * expected.dtype.itemsize) - 1)
    assert np.abs(grey16(read(Path(dataset.filename))) - expected * scale).max() <= 2


def test_real_scans_decode_to_the_expected_stored_values(test_data):
    for row in csv.DictReader((test_data / "dicom" / "manifest.csv").open()):
        dataset = read(test_data / "dicom" / row["file"])
        if row["ts_uid"] == JPEG_EXTENDED:
            continue
        stored, _ = _decode(dataset, 0)
        if row["ts_uid"] == JPEG_BASELINE:  # decoders may differ by rounding
            assert np.abs(stored.astype(int) - dataset.pixel_array).max() <= 2
        else:
            assert hashlib.sha1(stored.tobytes()).hexdigest() == row["pixel_array_sha1"], row["file"]
        image = grey16(dataset)
        assert image.dtype == np.uint16
        assert image.shape == (int(row["rows"]), int(row["cols"]))


def test_jpeg_extended_of_12_bits_needs_the_extra(test_data):
    broken, sound = (read(test_data / "dicom" / name) for name in ("leg_RG3_JPLY", "hip_RG2_JPLY_fixed.dcm"))
    if "pylibjpeg" in get_decoder(JPEG_EXTENDED).available_plugins:
        with pytest.raises(DataError, match="cut off or damaged"):
            grey16(broken)
        assert hashlib.sha1(_decode(sound, 0)[0].tobytes()).hexdigest().startswith("2b16405857aa")
        return
    for dataset in (broken, sound):
        with pytest.raises(DataError, match="12-bit JPEG Extended needs the extra gpl-codecs"):
            grey16(dataset)


def test_a_scan_and_its_monochrome1_twin_are_exact_inverses(test_data):
    scan, twin = (
        grey16(read(test_data / "dicom" / f"chest_RSNA_{name}.dcm")) for name in ("jpegbaseline", "fake_MONOCHROME1")
    )
    np.testing.assert_array_equal(scan, 65535 - twin)


def test_the_same_radiograph_in_four_lossless_syntaxes(test_data):
    first, *others = (
        grey16(read(test_data / "dicom" / f"leg_RG3_{name}")) for name in ("RLE", "JPLL", "J2KR.dcm", "JLSL")
    )
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_a_mammogram_without_a_window_uses_the_whole_range(test_data):
    image = grey16(read(next((test_data / "cbis_ddsm").rglob("*.dcm"))))
    dark, light = np.percentile(image, [20, 99])
    assert dark == 0
    assert light > 0.9 * 65535


def test_supported_names_every_syntax_once():
    rows = supported()
    assert len({uid for _, uid, _, _ in rows}) == len(rows)
    decoders = {uid: decoder for _, uid, decoder, _ in rows}
    assert decoders["1.2.840.10008.1.2.1"] == "pydicom"
    assert decoders[JPEG_2000] == "pylibjpeg"
    missing = {uid: text for _, uid, _, text in rows}[JPEG_EXTENDED]
    assert missing in ("", "12 bit: the extra gpl-codecs")
