"""From any image file to the pixels a model sees: the same code for prepare and predict.

What a file is, its content says, never its name. Every way ends in one `resize` by the decoding contract, which a
dataset and a model carry with them.
"""

from __future__ import annotations

import io
import re
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from damcli.config import Strict
from damcli.dicom import PIXEL_LIMIT, NotAnImage
from damcli.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Contract", "NotAnImage", "read_scan", "resize"]

FILE_LIMIT = 2**31
KINDS = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "PPM": rb"P[1-6][\s#]",
    "BMP": rb"BM.{12}[\x0c\x28\x40\x6c\x7c]\0\0\0",
    "GIF": rb"GIF8[79]a",
    "WEBP": rb"RIFF.{4}WEBP",
    "JPEG2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
}
# Images too, but of kinds that nothing here decodes: they fail with the reason instead of passing for no image.
UNREADABLE = {
    rb"....ftyp(heic|heix|mif1|msf1)": "HEIC",
    rb"....ftypavi[fs]": "AVIF",
    rb"\x5c\x01\0\0|\0\0\x01\x5c": "NIfTI",
}
_KIND = re.compile(b"|".join(b"(?P<%s>%s)" % (name.encode(), magic) for name, magic in KINDS.items()), re.DOTALL)


class Contract(Strict):
    """What is done to every scan before a model sees it; stored with datasets and models.

    Version 1. Grey values: DICOM as `damcli.dicom.pixels.grey16` describes; 8-bit pictures as they are; deeper grey
    pictures (PNG, TIFF, PGM, float TIFF) like DICOM without a window, that is between the 0.1st and the 99.9th
    percentile, since many hold 10 or 12 bits in 16; colours deeper than 8 bits by their upper 8. Colour becomes grey
    by luma (BT.601) where `channels` is 1, grey is repeated where it is 3; what is transparent shows black; EXIF
    orientation is applied. Size: the exact area average to shrink, bilinear to enlarge, 16 bits until after that, so
    that values are rounded once. `fit`: "pad" keeps the shape of the body and fills up with black on both sides,
    "stretch" does not keep it, "crop" keeps the middle square.

    >>> Contract(size=224, channels=1).fit
    'pad'
    """

    version: Literal[1] = 1
    size: int = Field(gt=0, le=4096)
    channels: Literal[1, 3]
    fit: Literal["pad", "stretch", "crop"] = "pad"


def read_scan(path: Path, contract: Contract) -> NDArray[np.uint8]:
    """Read one image file of any supported format as (size, size) uint8, or (size, size, 3) RGB for 3 channels.

    Raises `NotAnImage` for what is no image by its content (tables, folders, Thumbs.db, DICOM reports), `DataError`
    with the reason for images that cannot be shown whole: cut off, damaged, several frames, larger than
    `PIXEL_LIMIT`. No reason holds a path or anything else of the file that could identify a patient.
    """
    data = _content(path)
    head = data[:132]
    # DICOM comes first: in front of its prefix lie 128 bytes that may be the header of a TIFF (PS3.10, 7.1).
    kind = None if head[128:] == b"DICM" else _KIND.match(head)
    if kind and kind.lastgroup == "JPEG":
        return resize(_jpeg(data, contract), contract)
    if kind and kind.lastgroup:
        return resize(_picture(data, kind.lastgroup), contract)
    # Imported where needed: pydicom takes longer to start than a folder of JPEG files to read.
    from damcli.dicom import pixels

    if pixels.is_dicom(head):
        return resize(pixels.grey16(pixels.read(io.BytesIO(data))), contract)
    for magic, name in UNREADABLE.items():
        if re.match(magic, head, re.DOTALL):
            raise DataError(f"{name} images cannot be read: convert them to PNG without loss")
    raise NotAnImage("no image by its content") if data else DataError("the file is empty")


def resize(pixels: NDArray, contract: Contract) -> NDArray[np.uint8]:
    """Bring grey (H, W) uint8 or uint16, or RGB (H, W, 3) uint8, to the contract's shape in uint8.

    >>> resize(np.array([[0, 2], [4, 6]], np.uint8), Contract(size=1, channels=1))
    array([[3]], dtype=uint8)
    >>> resize(np.full((2, 4), 65535, np.uint16), Contract(size=4, channels=1))[:, 0]
    array([  0, 255, 255,   0], dtype=uint8)
    """
    size = contract.size
    height, width = pixels.shape[:2]
    if contract.fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    pixels = _scale(pixels, *_target(height, width, contract))
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.ndim == 3 and contract.channels == 1:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    elif pixels.ndim == 2 and contract.channels == 3:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    height, width = pixels.shape[:2]
    if (height, width) == (size, size):
        return np.ascontiguousarray(pixels)
    whole = np.zeros((size, size, *pixels.shape[2:]), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    whole[top : top + height, left : left + width] = pixels
    return whole


def _target(height: int, width: int, contract: Contract) -> tuple[int, int]:
    """The size of the image itself, without what is filled up."""
    size, longer = contract.size, max(height, width)
    if contract.fit != "pad":
        return size, size
    return max(1, round(height * size / longer)), max(1, round(width * size / longer))


def _scale(pixels: NDArray, height: int, width: int) -> NDArray:
    smaller = min(height, pixels.shape[0]), min(width, pixels.shape[1])
    if smaller != pixels.shape[:2]:
        pixels = cv2.resize(pixels, smaller[::-1], interpolation=cv2.INTER_AREA)
    if smaller != (height, width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    return pixels


def _content(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise NotAnImage("not a regular file")
        if status.st_size > FILE_LIMIT:
            raise DataError(f"the file is larger than {FILE_LIMIT >> 30} GiB")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}") from error


def _check_size(width: int, height: int) -> None:
    if width * height > PIXEL_LIMIT:
        raise DataError(f"the image has {width} x {height} pixels; up to {PIXEL_LIMIT:,} are read")


def _jpeg(data: bytes, contract: Contract) -> NDArray:
    import simplejpeg

    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height)
        if space in ("CMYK", "YCCK") or _is_turned(data):
            return _picture(data, "JPEG")
        # Large images are scaled down while decoding, at least by 2 and never below twice the target, so that what
        # follows is still an area average (mean difference from the exact one: below 1 of 255). What "crop" keeps
        # may begin between scaled pixels.
        rows, columns = _target(height, width, contract)
        least = (height, width) if contract.fit == "crop" else (2 * rows, 2 * columns)
        rgb = contract.channels == 3 and space != "Gray"
        pixels = simplejpeg.decode_jpeg(
            data, "RGB" if rgb else "GRAY", min_height=least[0], min_width=least[1], min_factor=2
        )
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the JPEG file is cut off or damaged ({error})") from error
    pixels = pixels if rgb else pixels[..., 0]
    if pixels.shape[:2] == (height, width):
        return pixels
    # The decoder scales by eighths and rounds the size up, but its last pixels show no more than the image has.
    scale = round(8 * max(pixels.shape[:2]) / max(height, width)) / 8
    across, down = columns / (scale * width), rows / (scale * height)
    return cv2.resize(pixels, None, fx=across, fy=down, interpolation=cv2.INTER_AREA)[:rows, :columns]


def _is_turned(data: bytes) -> bool:
    """Whether the EXIF block asks for a rotation; a block that cannot be read asks for none."""
    from PIL import ExifTags, Image

    start = data.find(b"Exif\0\0", 0, 2**16)
    if start < 0:
        return False
    exif = Image.Exif()
    try:
        exif.load(data[start : start + 2**16])
        return exif.get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # whatever a damaged block makes Pillow raise
        return False


def _picture(data: bytes, kind: str) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decode with Pillow: grey (H, W) uint8 or uint16, or RGB (H, W, 3) uint8."""
    from PIL import Image, ImageOps

    try:
        # The only warning of interest, about the size, is an error here.
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=[kind]) as image:
            _check_size(*image.size)
            images = getattr(image, "n_frames", 1)
            if images > 1 and kind != "JPEG":
                raise DataError(f"the file holds {images} images, and one is expected")
            white_is_zero = kind == "TIFF" and getattr(image, "tag_v2", {}).get(262) == 0
            image.load()
            return _values(ImageOps.exif_transpose(image), white_is_zero)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"the image has more than {PIXEL_LIMIT:,} pixels") from error
    except Exception as error:  # Pillow's readers raise many kinds, and quote the file
        raise DataError(f"the {kind} file is cut off or damaged") from error


def _values(image: Image.Image, white_is_zero: bool) -> NDArray[np.uint8] | NDArray[np.uint16]:
    from PIL import Image

    from damcli.dicom.greyscale import spread

    if image.mode == "L":
        return np.asarray(image)
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.dtype == np.int32 and values.min() >= 0 and values.max() < 2**16:
            values = values.astype(np.uint16)
        grey = spread(values)
        return 65535 - grey if white_is_zero else grey
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))
