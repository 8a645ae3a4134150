"""Real DICOM files: those of pydicom, and radiographs in ten transfer syntaxes."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file, get_testdata_files
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import apply_color_lut, get_decoder

from damcli.dicom.pixels import _decode, grey16, read, supported
from damcli.errors import DataError

JPEG_BASELINE, JPEG_EXTENDED, JPEG_2000 = (f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 90))
IMAGECODECS = importlib.util.find_spec("imagecodecs") is not None
LIBJPEG = "pylibjpeg" in get_decoder(JPEG_EXTENDED).available_plugins


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


def test_jpeg_extended_of_12_bits_needs_an_extra(test_data):
    odd, sound = (read(test_data / "dicom" / name) for name in ("leg_RG3_JPLY", "hip_RG2_JPLY_fixed.dcm"))
    if not IMAGECODECS and not LIBJPEG:
        for dataset in (odd, sound):
            with pytest.raises(DataError, match="needs the extra codecs .or the GPL-licensed gpl-codecs") as caught:
                grey16(dataset)
            assert caught.value.fix == "pip install 'damcli[codecs]'"
        return
    if LIBJPEG:
        plugin, _ = get_decoder(JPEG_EXTENDED).as_array(sound, decoding_plugin="pylibjpeg")
        assert hashlib.sha1(plugin.tobytes()).hexdigest().startswith("2b16405857aa")
        assert np.abs(_decode(sound, 0)[0].astype(int) - plugin).max() <= 2
    if not IMAGECODECS:
        with pytest.raises(DataError, match="cut off or damaged"):
            grey16(odd)
        return
    # Its scan header is wrong (Se is 0), which libjpeg-turbo overlooks: the rest is the same radiograph.
    stored, _ = _decode(odd, 0)
    lossless, _ = _decode(read(test_data / "dicom" / "leg_RG3_RLE"), 0)
    differences = np.abs(stored.astype(int) - lossless)
    assert (stored.dtype, stored.max()) == (np.uint16, 1023)  # white does not wrap around to black
    assert differences.mean() < 2
    assert differences.max() < 64


def test_a_real_lossless_jpeg_that_is_cut_off_is_refused(test_data):
    dataset = read(test_data / "dicom" / "leg_RG3_JPLL")
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    for length in (len(frame) // 2, len(frame) - 4):
        dataset.PixelData = encapsulate([frame[: length // 2 * 2]])
        with pytest.raises(DataError, match="cut off or damaged"):
            grey16(dataset)
    if IMAGECODECS:  # gdcm takes it
        dataset.PixelData = encapsulate([frame[: len(frame) // 4 * 2] + b"\xff\xd9"])
        with pytest.raises(DataError, match="cut off or damaged"):
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
    assert len({uid for _, uid, _ in rows}) == len(rows)
    decoders = {uid: decoder for _, uid, decoder in rows}
    assert decoders["1.2.840.10008.1.2.1"] == "pydicom"
    assert decoders[JPEG_2000] == "pylibjpeg"
    assert decoders["1.2.840.10008.1.2.4.70"] == ("imagecodecs" if IMAGECODECS else "gdcm")
