"""DICOM images made for each rule of the grey scale pipeline, real ones, and hostile ones."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from damcli.dicom import PIXEL_LIMIT, NotAnImage
from damcli.dicom.greyscale import spread
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


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_voi_lookup_table_that_begins_below_zero_though_the_pixels_are_unsigned(dicom, syntax):
    # 16 bits of the descriptor say 64536 where a header has no other VR than US.
    image = dicom(
        RAMP,
        syntax=syntax,
        BitsStored=12,
        RescaleSlope=1,
        RescaleIntercept=-1024,
        VOILUTSequence=table(2**16 - 1000, list(range(2001)), 16),
    )
    np.testing.assert_array_equal(grey16(image), np.clip(RAMP.astype(int) - 24, 0, 2000))


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


def test_padding_written_as_the_unsigned_form_of_the_stored_bits(dicom):
    stored = RAMP.astype(np.int16) - 2048
    stored[0] = -2000
    image = dicom(stored, BitsStored=12)
    image.add_new("PixelPaddingValue", "US", 2**12 - 2000)
    assert not grey16(image)[0].any()
    np.testing.assert_array_equal(grey16(image), grey16(dicom(stored, BitsStored=12, PixelPaddingValue=-2000)))


@pytest.mark.parametrize(("kind", "dtype"), [("Float", np.float32), ("DoubleFloat", np.float64)])
def test_a_range_of_padding_in_floats(dicom, kind, dtype):
    stored = RAMP.astype(dtype) / 4096
    stored[0], stored[1] = -1e30, -1e20
    image = dicom(RAMP)
    image.BitsAllocated = 8 * stored.itemsize
    for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(image, keyword)
    setattr(image, f"{kind}PixelData", stored.tobytes())
    setattr(image, f"{kind}PixelPaddingValue", -1e30)
    setattr(image, f"{kind}PixelPaddingRangeLimit", -1e10)
    assert not grey16(image)[:2].any()
    np.testing.assert_array_equal(grey16(image)[2:], spread(stored[2:]))


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


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("planar", [0, 1])
def test_the_planar_configuration_means_nothing_in_compressed_colour(dicom, syntax, planar):
    rgb = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    image = dicom(rgb)
    image.compress(syntax)
    image.PlanarConfiguration = planar
    np.testing.assert_array_equal(grey16(image), rgb)


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("ids", [b"RGB", b"\1\2\3"])
def test_a_jpeg_that_holds_rgb_with_and_without_the_marker_of_adobe(dicom, marked, ids):
    rgb = np.stack(np.broadcast_arrays(*np.ogrid[0:200:32j, 20:255:24j], 90), -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=98, keep_rgb=True)
    stream = bytearray(file.getvalue())
    frame, scan = stream.index(b"\xff\xc0"), stream.index(b"\xff\xda")
    stream[frame + 10 : frame + 19 : 3] = stream[scan + 5 : scan + 11 : 2] = ids
    if not marked:
        marker = stream.index(b"\xff\xee")
        del stream[marker : marker + 16]
    image = dicom(rgb, syntax=JPEG_BASELINE, PixelData=encapsulate([bytes(stream)]))
    assert np.abs(grey16(image).astype(int) - rgb).max() <= 3


def test_ybr_becomes_rgb_once(dicom):
    ybr = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    y, b, r = (ybr[..., i].astype(float) for i in range(3))
    expected = np.stack(
        [y + 1.402 * (r - 128), y - 0.344136 * (b - 128) - 0.714136 * (r - 128), y + 1.772 * (b - 128)], -1
    )
    shown_rgb = grey16(dicom(ybr, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(shown_rgb - np.clip(expected, 0, 255)).max() <= 1


def palette(entries: list[np.ndarray], first: int, bits: int, size: int | None = None, kind: str = "") -> dict:
    header = {}
    for colour, data in zip(("Red", "Green", "Blue"), entries, strict=True):
        header[f"{colour}PaletteColorLookupTableDescriptor"] = [len(data) if size is None else size, first, bits]
        header[f"{kind}{colour}PaletteColorLookupTableData"] = data.tobytes() + b"\0" * (data.nbytes % 2)
    return {"PhotometricInterpretation": "PALETTE COLOR"} | header


@pytest.mark.parametrize(("dtype", "bits"), [("u1", 8), ("<u2", 16), ("<u2", 8)])  # the last: 8 bits in a word each
@pytest.mark.parametrize("pixels", [BYTES, RAMP])
@pytest.mark.parametrize("size", [255, 256, 3000])
def test_a_palette(dicom, pixels, dtype, bits, size):
    eight = np.random.default_rng(0).integers(0, 256, (3, size), dtype=np.uint8)
    entries = (eight.astype(int) * (257 if bits == 16 else 1)).astype(dtype)
    image = grey16(dicom(pixels, **palette(list(entries), 10, bits)))
    at = np.clip(pixels.astype(int) - 10, 0, size - 1)
    np.testing.assert_array_equal(image, np.moveaxis(eight[:, at], 0, -1))


def test_a_palette_for_signed_pixels(dicom):
    entries = list(np.random.default_rng(0).integers(0, 256, (3, 100), dtype=np.uint8))
    # Its descriptor is written as unsigned.
    image = dicom((BYTES.astype(np.int16) - 128).view(np.uint16), **palette(entries, 2**16 - 50, 8))
    image.PixelRepresentation = 1
    at = np.clip(BYTES.astype(int) - 78, 0, 99)
    np.testing.assert_array_equal(grey16(image), np.stack([table[at] for table in entries], -1))


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_palette_in_either_byte_order(dicom, syntax, dtype):
    entries = np.random.default_rng(0).integers(0, 256 if dtype == "u1" else 65536, (3, 256)).astype(dtype)
    written = entries.view("u2").astype(">u2") if syntax == ExplicitVRBigEndian else entries  # VR OW: as words
    image = dicom(BYTES, syntax=syntax, **palette(list(written), 0, 8 * entries.itemsize, 256))
    eight = np.rint(entries / (1 if dtype == "u1" else 257))
    np.testing.assert_array_equal(grey16(image), np.moveaxis(eight[:, BYTES], 0, -1))


@pytest.mark.parametrize("dtype", ["u1", "<u2"])
def test_a_segmented_palette(dicom, dtype):
    # Two values, a ramp of 4 up to 50, one value, and again the one segment that begins at the fifth number: the ramp.
    at = 4 * np.dtype(dtype).itemsize
    again = [at, 0, 0, 0] if dtype == "u1" else [at, 0]
    segments = np.array([0, 2, 20, 10, 1, 4, 50, 0, 1, 90, 2, 1, *again], dtype)
    eight = np.array([20, 10, 20, 30, 40, 50, 90, 80, 70, 60, 50])
    scale = 1 if dtype == "u1" else 257
    if scale > 1:
        segments[[2, 3, 6, 9]] *= scale
    header = palette([segments] * 3, 0, 8 * segments.itemsize, len(eight), "Segmented")
    np.testing.assert_array_equal(grey16(dicom(BYTES, **header))[..., 1], eight[np.minimum(BYTES, 10)])


@pytest.mark.parametrize("segments", [[1, 4, 50], [0, 2, 1], [3, 1, 1], [2, 1, 0, 0], [0, 1, 7, 2, 1, 6, 0]])
def test_a_damaged_segmented_palette_is_refused(dicom, segments):
    header = palette([np.array(segments, "<u2")] * 3, 0, 16, 256, "Segmented")
    with pytest.raises(DataError, match="palette is missing or damaged"):
        grey16(dicom(BYTES, **header))


def test_a_palette_that_is_missing(dicom):
    with pytest.raises(DataError, match="palette is missing"):
        grey16(dicom(BYTES, PhotometricInterpretation="PALETTE COLOR"))


def test_run_lengths_of_bits_that_are_not_the_lowest_are_refused(dicom):
    image = dicom(RAMP << 4)
    image.compress(RLELossless)
    image.BitsStored, image.HighBit = 12, 15
    with pytest.raises(DataError, match="12 bits stored below bit 15"):
        grey16(image)


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
