"""DICOM images made for each rule of the grey scale pipeline, real ones, and hostile ones."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from damcli.dicom import PIXEL_LIMIT, NotAnImage
from damcli.dicom.pixels import grey16, is_dicom, read, remark
from damcli.errors import DataError

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
BYTES = np.arange(256, dtype=np.uint8).reshape(16, 16)
JPEG_BASELINE, JPEG_EXTENDED, JPEG_2000 = (f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 90))


def shown(fractions) -> np.ndarray:
    return np.rint(np.clip(fractions, 0, 1) * 65535).astype(np.uint16)


def table(first: int, entries: list[int], bits: int) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries)
    return Sequence([item])


def test_eight_bits_without_a_window_are_shown_as_they_are(dicom):
    np.testing.assert_array_equal(grey16(dicom(BYTES // 2 + 20)), (BYTES // 2 + 20).astype(np.uint16) * 257)


def test_fewer_bits_fill_the_whole_range(dicom):
    np.testing.assert_array_equal(grey16(dicom(BYTES % 64, BitsStored=6)), shown((BYTES % 64) / 63))


def test_deeper_images_without_a_window_are_spread_between_percentiles(dicom):
    expected = shown((RAMP - 4.0) / (4091 - 4))  # the 5th and the 4,092nd of 4,096 ascending values
    np.testing.assert_array_equal(grey16(dicom(RAMP, BitsStored=12)), expected)


@pytest.mark.parametrize(
    ("function", "low", "high"), [(None, 1500, 2499), ("LINEAR", 1500, 2499), ("LINEAR_EXACT", 1500, 2500)]
)
def test_linear_windows(dicom, function, low, high):
    header = {"WindowCenter": 2000, "WindowWidth": 1000} | ({"VOILUTFunction": function} if function else {})
    np.testing.assert_array_equal(grey16(dicom(RAMP, **header)), shown((RAMP.astype(float) - low) / (high - low)))


def test_the_sigmoid_window(dicom):
    image = dicom(RAMP, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID")
    np.testing.assert_array_equal(grey16(image), shown(1 / (1 + np.exp(-4 * (RAMP.astype(float) - 2000) / 1000))))


def test_the_first_of_several_windows_counts(dicom):
    several = dicom(RAMP, WindowCenter=[2000, 100], WindowWidth=[1000, 50])
    one = dicom(RAMP, WindowCenter=2000, WindowWidth=1000)
    np.testing.assert_array_equal(grey16(several), grey16(one))


def test_a_window_without_width_counts_as_none(dicom):
    np.testing.assert_array_equal(grey16(dicom(BYTES, WindowCenter=0, WindowWidth=0)), BYTES.astype(np.uint16) * 257)


def test_signed_values_are_rescaled_before_the_window(dicom):
    stored = (RAMP.astype(np.int16) - 2048) // 2
    image = dicom(
        stored, RescaleSlope=2, RescaleIntercept=-100.5, WindowCenter=0, WindowWidth=2000, VOILUTFunction="LINEAR_EXACT"
    )
    np.testing.assert_array_equal(grey16(image), shown((stored * 2.0 - 100.5 + 1000) / 2000))


def test_a_negative_slope_turns_the_image_over(dicom):
    np.testing.assert_array_equal(
        grey16(dicom(BYTES, RescaleSlope=-1, RescaleIntercept=0)), 65535 - grey16(dicom(BYTES))
    )


def test_signed_bytes(dicom):
    np.testing.assert_array_equal(grey16(dicom(BYTES.view(np.int8))), shown((BYTES.view(np.int8) + 128.0) / 255))


def test_bits_above_those_stored_are_no_pixels(dicom):
    stored = RAMP % 1024
    overlay = stored | (RAMP // 1024 << 14)
    header = {"BitsStored": 10, "WindowCenter": 512, "WindowWidth": 1024}
    np.testing.assert_array_equal(grey16(dicom(overlay, **header)), grey16(dicom(stored, **header)))
    np.testing.assert_array_equal(grey16(dicom(stored, **header)), shown(stored / 1023))


def test_signed_bits_stored_extend_the_sign(dicom):
    stored = (RAMP % 1024).astype(np.int16)  # ten bits, of which the highest is the sign
    image = dicom(stored, BitsStored=10, WindowCenter=0, WindowWidth=1024, VOILUTFunction="LINEAR_EXACT")
    signed = np.where(stored >= 512, stored - 1024, stored)
    np.testing.assert_array_equal(grey16(image), shown((signed + 512) / 1024))


def test_a_modality_lookup_table(dicom):
    image = dicom(
        BYTES,
        ModalityLUTSequence=table(100, [0, 1000, 4000], 16),
        WindowCenter=2000,
        WindowWidth=4000,
        VOILUTFunction="LINEAR_EXACT",
    )
    values = np.select([BYTES <= 100, BYTES == 101], [0.0, 1000.0], 4000.0)
    np.testing.assert_array_equal(grey16(image), shown(values / 4000))


def test_a_voi_lookup_table_comes_before_a_window_and_after_the_rescale(dicom):
    stored = BYTES.astype(np.int16)
    image = dicom(
        stored,
        RescaleSlope=1,
        RescaleIntercept=-128,
        VOILUTSequence=table(-2, [0, 100, 200, 1023], 10),
        WindowCenter=1,
        WindowWidth=1,
    )
    values = stored - 128
    entries = np.select([values <= -2, values == -1, values == 0], [0, 100, 200], 1023)
    np.testing.assert_array_equal(grey16(image), shown(entries / 1023))


def test_a_damaged_lookup_table_is_refused(dicom):
    broken = table(0, [1, 2, 3], 16)
    broken[0].LUTDescriptor = [200, 0, 16]
    with pytest.raises(DataError, match="lookup table of VOILUTSequence is damaged"):
        grey16(dicom(BYTES, VOILUTSequence=broken))


def test_monochrome1_is_inverted_after_the_window(dicom):
    header = {"WindowCenter": 2000, "WindowWidth": 1000}
    inverted = grey16(dicom(RAMP, PhotometricInterpretation="MONOCHROME1", **header))
    np.testing.assert_array_equal(inverted, 65535 - grey16(dicom(RAMP, **header)))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_counts_for_no_percentile(dicom, photometric):
    framed = np.full((96, 96), -2000, np.int16)
    framed[16:80, 16:80] = RAMP
    image = grey16(dicom(framed, PixelPaddingValue=-2000, PhotometricInterpretation=photometric))
    bare = grey16(dicom(RAMP.astype(np.int16), PhotometricInterpretation=photometric))
    np.testing.assert_array_equal(image[16:80, 16:80], bare)
    image[16:80, 16:80] = 0
    assert not image.any()


def test_a_range_of_padding(dicom):
    image = grey16(
        dicom(BYTES, PixelPaddingValue=200, PixelPaddingRangeLimit=255, PhotometricInterpretation="MONOCHROME1")
    )
    np.testing.assert_array_equal(image, np.where(BYTES >= 200, 0, (255 - BYTES).astype(np.uint16) * 257))


def test_padding_written_as_unsigned_for_signed_pixels(dicom):
    stored = RAMP.astype(np.int16)
    stored[0] = -2000
    image = dicom(stored)
    image.add_new("PixelPaddingValue", "US", 2**16 - 2000)
    assert not grey16(image)[0].any()
    np.testing.assert_array_equal(grey16(image), grey16(dicom(stored, PixelPaddingValue=-2000)))


def test_integers_of_32_bits(dicom):
    wide = RAMP.astype(np.uint32) * 70000
    np.testing.assert_array_equal(grey16(dicom(wide)), grey16(dicom(RAMP)))


def test_colour_by_pixel_and_by_plane(dicom):
    rgb = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(grey16(dicom(rgb)), rgb)
    planes = rgb.transpose(2, 0, 1).tobytes()
    np.testing.assert_array_equal(grey16(dicom(rgb, PlanarConfiguration=1, PixelData=planes)), rgb)


def test_sixteen_bit_colour_is_rounded_to_eight(dicom):
    rgb = np.random.default_rng(0).integers(0, 65536, (8, 6, 3), dtype=np.uint16)
    np.testing.assert_array_equal(grey16(dicom(rgb)), np.rint(rgb / 257).astype(np.uint8))


def test_ybr_becomes_rgb_once(dicom):
    ybr = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    y, b, r = (ybr[..., i].astype(float) for i in range(3))
    expected = np.stack(
        [y + 1.402 * (r - 128), y - 0.344136 * (b - 128) - 0.714136 * (r - 128), y + 1.772 * (b - 128)], -1
    )
    shown_rgb = grey16(dicom(ybr, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(shown_rgb - np.clip(expected, 0, 255)).max() <= 1


def test_a_palette(dicom):
    palette = {}
    for n, colour in enumerate(("Red", "Green", "Blue")):
        palette[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        entries = np.arange(256, dtype="<u2") * 257 if n == 0 else np.full(256, n * 257 * 100, "<u2")
        palette[f"{colour}PaletteColorLookupTableData"] = entries.tobytes()
    image = grey16(dicom(BYTES, PhotometricInterpretation="PALETTE COLOR", **palette))
    np.testing.assert_array_equal(image, np.stack([BYTES, np.full_like(BYTES, 100), np.full_like(BYTES, 200)], -1))


def test_a_palette_that_is_missing(dicom):
    with pytest.raises(DataError, match="palette is missing"):
        grey16(dicom(BYTES, PhotometricInterpretation="PALETTE COLOR"))


def test_one_pixel(dicom):
    assert grey16(dicom(np.array([[77]], np.uint8))).tolist() == [[77 * 257]]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"NumberOfFrames": 3, "PixelData": BYTES.tobytes() * 3}, "3 frames"),
        ({"PixelData": BYTES.tobytes()[:-10]}, "cut off or damaged"),
        ({"PixelData": b""}, "cut off or damaged"),
        ({"Rows": 65535, "Columns": 65535}, f"65535 x 65535 pixels; up to {PIXEL_LIMIT:,}"),
        ({"Rows": None}, "lacks Rows"),
        ({"Columns": 0}, "0 x 16 pixels"),
        ({"PhotometricInterpretation": "HSV"}, "photometric interpretation is none of"),
        ({"BitsStored": 12}, "12 bits stored in 8"),
        ({"BitsStored": 6, "HighBit": 7}, "6 bits stored below bit 7"),
        ({"VOILUTFunction": "LOG", "WindowCenter": 1, "WindowWidth": 2}, "none of LINEAR"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
        ({"syntax": "1.2.840.10008.1.2.4.100", "PixelData": encapsulate([b"\0\0"])}, "not supported .MPEG2"),
        ({"syntax": JPEG_BASELINE, "PixelData": encapsulate([b"\xff\xd8\xff\xd9"])}, "cut off or damaged"),
        ({"syntax": JPEG_2000, "PixelData": encapsulate([b"\xff\x4f\xff\x51" + bytes(40)])}, "cut off or damaged"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_says_why(dicom, header, reason):
    with pytest.raises(DataError, match=reason) as caught:
        grey16(dicom(BYTES, **header))
    assert not isinstance(caught.value, NotAnImage)
    assert "Doe" not in str(caught.value)


def test_one_frame_of_several_when_asked_for(dicom):
    image = dicom(BYTES, NumberOfFrames=2, PixelData=BYTES.tobytes() + BYTES[::-1].tobytes())
    np.testing.assert_array_equal(grey16(image, frame=1), BYTES[::-1].astype(np.uint16) * 257)


@pytest.mark.parametrize("frame", [2, 99])
def test_a_frame_that_is_not_there(dicom, frame):
    image = dicom(BYTES, NumberOfFrames=2, PixelData=BYTES.tobytes() * 2)
    with pytest.raises(DataError, match=f"2 frames, and none has the number {frame}"):
        grey16(image, frame=frame)


def test_what_a_user_should_know_of_an_image(dicom):
    assert remark(dicom(BYTES, WindowCenter=5, WindowWidth=2, BurnedInAnnotation="NO")) == ""
    told = remark(
        dicom(
            BYTES,
            PresentationIntentType="FOR PROCESSING",
            BurnedInAnnotation="YES",
            WindowCenter=[1, 2, 3],
            WindowWidth=[4, 5, 6],
        )
    )
    assert told.split("; ") == [
        "FOR PROCESSING: raw detector values, not meant to be shown",
        "text is burned into the image",
        "the first of 3 windows is used",
    ]
    luts = Sequence([table(0, [1, 2], 8)[0], table(0, [2, 1], 8)[0]])
    assert remark(dicom(BYTES, VOILUTSequence=luts, WindowCenter=[1, 2], WindowWidth=[3, 4])) == (
        "the first of 2 VOI LUTs is used"
    )


def test_a_file_without_pixel_data_is_broken_but_a_report_is_no_image(dicom):
    image = dicom(BYTES)
    del image.PixelData
    with pytest.raises(DataError, match="no pixel data") as caught:
        grey16(image)
    assert not isinstance(caught.value, NotAnImage)
    for name in ("test-SR.dcm", "rtplan.dcm", "dicomdirtests/DICOMDIR"):
        with pytest.raises(NotAnImage, match="without an image"):
            grey16(read(Path(get_testdata_file(name))))


def test_a_missing_transfer_syntax_is_a_broken_file(dicom):
    image = dicom(BYTES)
    del image.file_meta.TransferSyntaxUID
    file = io.BytesIO()
    pydicom.dcmwrite(file, image, implicit_vr=False, little_endian=True)
    with pytest.raises(DataError, match="transfer syntax is missing"):
        grey16(read(io.BytesIO(bytes(128) + b"DICM" + file.getvalue().removeprefix(bytes(128) + b"DICM"))))


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_a_bare_data_set_without_preamble_is_read(dicom, implicit, little):
    image = dicom(BYTES)
    file = io.BytesIO()
    del image.file_meta, image.preamble
    pydicom.dcmwrite(file, image, implicit_vr=implicit, little_endian=little, force_encoding=True)
    assert is_dicom(file.getvalue()[:132])
    np.testing.assert_array_equal(grey16(read(io.BytesIO(file.getvalue()))), BYTES.astype(np.uint16) * 257)


@pytest.mark.parametrize(
    "content", [b"", b"DICM", b"Path,Sex,Age\n", b"\xd0\xcf\x11\xe0" + bytes(600), bytes(132), b"\x08\x00" + bytes(200)]
)
def test_what_is_no_dicom_file(content):
    with pytest.raises(NotAnImage):
        read(io.BytesIO(content))


def test_a_file_cut_off_anywhere_is_refused(dicom_file):
    whole = dicom_file(RAMP, PatientName="Doe^Jane")
    for length in sorted(
        {random.Random(length).randrange(132, len(whole)) for length in range(150)} | {132, len(whole) - 1}
    ):
        with pytest.raises(DataError) as caught:
            grey16(read(io.BytesIO(whole[:length])))
        assert not isinstance(caught.value, NotAnImage)
        assert "Doe" not in str(caught.value)
