"""Image files of every format, and hostile files."""

from __future__ import annotations

import itertools
import os
import random
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from damcli.data.archives import Place
from damcli.data.decoding import attempt
from damcli.data.images import Contract, NotAnImage, NotShown, read, read_scan, resize
from damcli.dicom.greyscale import spread
from damcli.errors import DataError

RNG = np.random.default_rng(7)
GREY = RNG.integers(0, 256, (40, 60), dtype=np.uint8)
RGB = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)


def grey(size: int, fit: str = "stretch") -> Contract:
    return Contract(size=size, channels=1, fit=fit)


def colour(size: int, fit: str = "stretch") -> Contract:
    return Contract(size=size, channels=3, fit=fit)


@pytest.fixture
def saved(tmp_path):
    """Write an image with Pillow under a name that says nothing."""
    numbers = itertools.count()

    def save(image: np.ndarray | Image.Image, kind: str, **options) -> Path:
        path = tmp_path / f"{next(numbers)}.dat"
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, kind, **options)
        return path

    return save


def luma(rgb: np.ndarray) -> np.ndarray:
    return rgb @ np.array([0.299, 0.587, 0.114])


def box(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The exact area average."""

    def weights(large: int, small: int) -> np.ndarray:
        edges = np.arange(small + 1) * large / small
        left, right = np.arange(large), np.arange(large) + 1
        overlap = np.minimum(right, edges[1:, None]) - np.maximum(left, edges[:-1, None])
        return np.clip(overlap, 0, None) * small / large

    return weights(image.shape[0], height) @ image.astype(float) @ weights(image.shape[1], width).T


# --- what goes in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "BMP", "GIF", "JPEG2000"])
def test_lossless_grey_formats(saved, kind):
    options = {"no_jp2": False} if kind == "JPEG2000" else {}
    np.testing.assert_array_equal(read_scan(saved(GREY[:, :40], kind, **options), grey(40)), GREY[:, :40])


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True}), ("PPM", {}), ("BMP", {})],
)
def test_lossless_colour_formats(saved, kind, options):
    np.testing.assert_array_equal(read_scan(saved(RGB[:, :40], kind, **options), colour(40)), RGB[:, :40])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bit_pictures_with_twelve_used_are_not_black(saved, kind):
    image = (np.arange(1600, dtype=np.uint16) * 2 + 100).reshape(40, 40)
    expected = resize(spread(image), grey(40))
    assert (expected.min(), expected.max()) == (0, 255)
    assert np.abs(read_scan(saved(image, kind), grey(40)).astype(int) - expected).max() <= 1


def test_a_float_picture(saved):
    image = np.linspace(-3, 5, 1600, dtype=np.float32).reshape(40, 40)
    np.testing.assert_array_equal(read_scan(saved(image, "TIFF"), grey(40)), resize(spread(image), grey(40)))


def test_a_tiff_whose_white_is_zero_is_turned_over(saved):
    deep = (np.arange(1600, dtype=np.uint16) * 40).reshape(40, 40)
    for image in (GREY[:, :40], deep):
        path = saved(image, "TIFF")
        usual = read_scan(path, grey(40))
        photometric = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
        assert photometric in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(photometric, struct.pack("<HHIHH", 262, 3, 1, 0, 0)))
        assert np.abs(255 - usual.astype(int) - read_scan(path, grey(40))).max() <= 1


def test_a_bilevel_picture(saved):
    mask = GREY[:, :40] > 127
    np.testing.assert_array_equal(read_scan(saved(Image.fromarray(mask), "PNG"), grey(40)), mask * np.uint8(255))


def test_a_palette_is_applied(saved):
    picture = Image.fromarray(RGB[:, :40]).quantize(16)
    np.testing.assert_array_equal(read_scan(saved(picture, "PNG"), colour(40)), np.asarray(picture.convert("RGB")))


def test_what_is_transparent_shows_black(saved):
    alpha = np.full((40, 40, 1), 255, np.uint8)
    opaque = np.concatenate([RGB[:, :40], alpha], -1)
    np.testing.assert_array_equal(read_scan(saved(opaque, "PNG"), colour(40)), RGB[:, :40])
    opaque[:20, :, 3] = 0
    half = read_scan(saved(opaque, "PNG"), colour(40))
    assert not half[:20].any()
    np.testing.assert_array_equal(half[20:], RGB[20:, :40])


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_grey_value_that_is_transparent_shows_black(tmp_path, bits):
    stored = RNG.integers(0, 2**bits, (40, 40), dtype=np.uint16)
    stored[:, :4] = transparent = 1 if bits < 16 else 60000
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in stored]
    else:
        shifts = np.arange(bits - 1, -1, -1)
        rows = [np.packbits(row[:, None] >> shifts & 1).tobytes() for row in stored]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 40, 40, bits, 0, 0, 0, 0)),
        (b"tRNS", struct.pack(">H", transparent)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
        (b"IEND", b""),
    ]
    data = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    opaque = stored != transparent
    if bits == 16:
        expected = resize(spread(np.where(opaque, stored, np.nan)), grey(40))
    else:
        expected = np.where(opaque, stored * (255 // (2**bits - 1)), 0)
    np.testing.assert_array_equal(read_scan(path, grey(40)), expected)


def test_exif_behind_other_segments_is_found(saved):
    picture = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (40, 1))
    exif = Image.Exif()
    exif[0x0112] = 3
    path = saved(picture, "JPEG", quality=98, exif=exif)
    turned = read_scan(path, grey(40))
    assert turned[0, 0] > turned[0, -1]
    data = path.read_bytes()
    path.write_bytes(data[:2] + 2 * (b"\xff\xff\xed\xff\xf0" + bytes(0xFFEE)) + data[2:])
    np.testing.assert_array_equal(read_scan(path, grey(40)), turned)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied(saved, orientation, kind):
    bright_corner = np.zeros((32, 64), np.uint8)
    bright_corner[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = read_scan(saved(bright_corner, kind, exif=exif), grey(32))
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert seen[corner[orientation]] > 200
    assert sum(seen[row, column] > 200 for row in (0, -1) for column in (0, -1)) == 1


def test_jpeg_in_grey_colour_and_cmyk(saved):
    smooth = np.stack(np.broadcast_arrays(*np.ogrid[0:200:40j, 20:255:40j], 90), -1).astype(np.uint8)
    for mode in ("RGB", "CMYK"):
        path = saved(Image.fromarray(smooth).convert(mode), "JPEG", quality=98)
        assert np.abs(read_scan(path, colour(40)).astype(int) - smooth).mean() < 3
        assert np.abs(read_scan(path, grey(40)) - luma(smooth)).mean() < 3
    path = saved(smooth[..., 0].copy(), "JPEG", quality=98)
    assert np.abs(read_scan(path, colour(40)).astype(int) - smooth[..., :1]).mean() < 2


def test_a_large_jpeg_scaled_while_decoding_stays_an_area_average(saved, test_data):
    source = next((test_data / "nih_cxr_512" / "fullres_1024").glob("*.png"))
    image = np.asarray(Image.open(source).convert("L").resize((2048, 2048), Image.Resampling.BICUBIC))
    path = saved(image, "JPEG", quality=95)
    decoded = np.asarray(Image.open(path))
    for size in (96, 224, 320, 512):
        difference = np.abs(read_scan(path, grey(size)).astype(int) - box(decoded, size, size))
        assert difference.mean() < 0.5, size


@pytest.mark.parametrize("cut", [(0, 0), (5, 7), (7, 1)])
def test_a_jpeg_scaled_while_decoding_shifts_nothing_whatever_its_size(saved, cut):
    rows, columns = 1024 - cut[0], 768 - cut[1]
    squares = (np.indices((rows, columns)) // 41).sum(0) % 2 * 200 + 20
    path = saved(squares.astype(np.uint8), "JPEG", quality=95)
    decoded = np.asarray(Image.open(path))
    for size in (64, 96):
        difference = np.abs(read_scan(path, grey(size)).astype(int) - box(decoded, size, size))
        assert difference.mean() < 2.5, size
        np.testing.assert_array_equal(read_scan(path, grey(size, "crop")), resize(decoded, grey(size, "crop")))


def test_a_jpeg_below_four_times_the_target_is_averaged_exactly(test_data):
    path = next((test_data / "nih_cxr_512" / "valid").rglob("*.jpg"))
    assert np.abs(read_scan(path, grey(224)) - box(np.asarray(Image.open(path)), 224, 224)).max() <= 1


def test_dicom_by_its_content_under_any_name(test_data):
    image = read_scan(test_data / "dicom" / "leg_RG3_JLSL", Contract(size=64, channels=1))
    assert image.shape == (64, 64)
    assert image.std() > 20


def test_a_dicom_file_whose_preamble_is_a_tiff_header(tmp_path, test_data):
    content = (test_data / "dicom" / "dog_thorax_DX_MONOCHROME1.dcm").read_bytes()
    images = []
    for preamble in (bytes(128), b"II*\0".ljust(128, b"\0"), b"\xff\xd8\xff".ljust(128, b"\0")):
        (tmp_path / "scan").write_bytes(preamble + content[128:])
        images.append(read_scan(tmp_path / "scan", grey(32)))
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"Path,Sex,Age\nscan.jpg,Male,60\n",
        b"BMI,age\n21,60\n",
        b"P1,P2\n3,4\n",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500),
        b"%PDF-1.7\n",
        b"{}",
        bytes(range(256)) * 4,
    ],
)
def test_what_is_no_image_by_its_content(tmp_path, content):
    (tmp_path / "scan.dcm").write_bytes(content)
    with pytest.raises(NotAnImage):
        read_scan(tmp_path / "scan.dcm", grey(8))


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(NotAnImage, match="not a regular file"):
            read_scan(path, grey(8))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "nowhere.png", tmp_path / "loop", tmp_path / ("x" * 300)):
        with pytest.raises(DataError, match="cannot be read") as caught:
            read_scan(path, grey(8))
        assert not isinstance(caught.value, NotAnImage)
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(("content", "message"), [(b"", "empty"), (bytes(2000), "nothing but zeros")])
def test_an_empty_file_is_a_broken_one(tmp_path, content, message):
    (tmp_path / "scan.png").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_scan(tmp_path / "scan.png", grey(8))
    assert not isinstance(caught.value, NotAnImage)


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (12_000, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
        with pytest.raises(DataError, match="134,217,728"):
            read_scan(tmp_path / "bomb.png", grey(8))


def test_an_animation_or_a_stack_is_refused(saved):
    frames = [Image.fromarray(GREY + n) for n in range(3)]
    for kind in ("GIF", "TIFF", "WEBP"):
        with pytest.raises(DataError, match="holds 3 images"):
            read_scan(saved(frames[0], kind, save_all=True, append_images=frames[1:]), grey(8))


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("JPEG", GREY),
        ("JPEG", RGB),
        ("PNG", GREY),
        ("TIFF", GREY),
        ("PPM", RGB),
        ("BMP", GREY),
        ("WEBP", RGB),
        ("JPEG2000", GREY),
    ],
)
def test_a_picture_cut_off_anywhere_is_never_shown_in_part(saved, tmp_path, kind, image):
    path = saved(image, kind, **({"progressive": True} if kind == "JPEG" and image is RGB else {}))
    content, whole = path.read_bytes(), read_scan(path, grey(16))
    for length in {random.Random(n).randrange(40, len(content)) for n in range(40)} | {len(content) - 1}:
        path.write_bytes(content[:length])
        pixels, status = attempt(path, grey(16))[:2]
        if status == "ok":
            # Only what stands behind the pixels may be missing.
            assert len(content) - length < 20
            np.testing.assert_array_equal(pixels, whole)
        else:
            assert status == "failed"


def test_lossless_jpeg_that_is_no_film_of_ddsm_is_refused_not_smeared(test_data, tmp_path):
    for path in sorted((test_data / "ddsm_ljpeg_synthetic").rglob("*.LJPEG"))[:2]:
        (tmp_path / "scan.jpg").write_bytes(path.read_bytes())
        with pytest.raises(DataError, match="only DDSM's"):
            read_scan(tmp_path / "scan.jpg", grey(32))


def test_a_region_of_an_image_is_what_it_would_be_as_a_file_of_its_own(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 200), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    Image.fromarray(pixels[40:140, 30:80]).save(tmp_path / "part.png")
    part = read_scan(tmp_path / "part.png", grey(32))
    np.testing.assert_array_equal(read_scan(tmp_path / "whole.png#xywh=30,40,50,100", grey(32)), part)
    (tmp_path / "whole.png#xywh=30,40,50,100").write_bytes((tmp_path / "whole.png").read_bytes())
    whole = read_scan(tmp_path / "whole.png", grey(32))
    np.testing.assert_array_equal(read_scan(tmp_path / "whole.png#xywh=30,40,50,100", grey(32)), whole)
    with pytest.raises(DataError, match="outside"):
        read_scan(tmp_path / "part.png#xywh=60,0,5,5", grey(32))


def test_one_frame_of_a_file_with_several(tmp_path):
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 20, 30)]
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    frames[1].save(tmp_path / "one.tif")
    with pytest.raises(DataError, match="3 images.*--frame"):
        read_scan(tmp_path / "pages.tif", grey(8))
    third = Contract(size=8, channels=1, frame=2)
    assert (read_scan(tmp_path / "pages.tif", third) == 30).all()
    assert (read_scan(tmp_path / "one.tif", third) == 20).all()
    with pytest.raises(DataError, match="none has the number 3"):
        read_scan(tmp_path / "pages.tif", Contract(size=8, channels=1, frame=3))


def test_damaged_pictures_give_pixels_or_a_clear_error(saved):
    path = saved(RGB, "PNG")
    content = path.read_bytes()
    rng = random.Random(3)
    for _ in range(100):
        damaged = bytearray(content)
        damaged[rng.randrange(8, len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        pixels, status, reason = attempt(path, grey(16))[:3]
        assert (status == "ok") == (pixels is not None) == (not reason)
        assert "\n" not in reason
        assert "failed (" not in reason


def test_large_files_are_not_read_at_all(tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**31 + 1)
    with pytest.raises(DataError, match="larger than 2 GiB"):
        read_scan(tmp_path / "huge", grey(8))


@pytest.mark.parametrize("head", [b"\0\0\0\x18ftypheic", b"\0\0\0\x1cftypavif", b"\x5c\x01\0\0"])
def test_images_of_kinds_that_nothing_decodes_fail_and_are_not_skipped(tmp_path, head):
    (tmp_path / "scan").write_bytes(head + bytes(400))
    with pytest.raises(DataError, match="cannot be read") as caught:
        read_scan(tmp_path / "scan", Contract(size=8, channels=1))
    assert not isinstance(caught.value, NotAnImage)


def test_archives_fail_with_the_reason_and_are_not_skipped(tmp_path):
    with zipfile.ZipFile(tmp_path / "scan", "w") as archive:
        archive.writestr("scan.dcm", bytes(200))
    with pytest.raises(DataError, match="archive.*unpack it") as caught:
        read_scan(tmp_path / "scan", grey(8))
    assert not isinstance(caught.value, NotAnImage)
    with zipfile.ZipFile(tmp_path / "letter", "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
    with pytest.raises(NotAnImage):
        read_scan(tmp_path / "letter", grey(8))


def test_bytes_in_memory_are_read_as_a_file_would_be(saved):
    path = saved(RGB, "PNG")
    scan = read(Place(Path("scans.tar.gz"), content=path.read_bytes()), colour(16))
    np.testing.assert_array_equal(scan.pixels, read_scan(path, colour(16)))
    assert scan[1:] == ("", "", "")


def test_a_dicom_scan_says_whose_it_is(tmp_path):
    image = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    image.save_as(tmp_path / "scan")
    scan = read(tmp_path / "scan", grey(16))
    assert (scan.patient, scan.study) == (image.PatientID, image.StudyInstanceUID)
    image.PixelData = image.PixelData[:100]
    image.save_as(tmp_path / "scan")
    with pytest.raises(NotShown) as caught:
        read(tmp_path / "scan", grey(16))
    assert (caught.value.patient, caught.value.study) == (image.PatientID, image.StudyInstanceUID)
    assert image.PatientID not in str(caught.value)
