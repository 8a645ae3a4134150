"""From any image file to the pixels a model sees: the same code for prepare and predict.

What a file is, its content says, never its name. Every way ends in one `resize` by the decoding contract, which a
dataset and a model carry with them.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from damcli.config import Strict
from damcli.data import archives, pictures
from damcli.data.archives import Place
from damcli.dicom import NotAnImage
from damcli.errors import DataError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["Contract", "NotAnImage", "NotShown", "Scan", "read", "read_scan", "region", "resize"]

# Characters of an identifier that are kept; PS3.5 6.2 allows 64.
ID_LIMIT = 256
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
NO_IMAGE = "no image by its content"
# A JPEG that begins with a lossless frame, as the films of DDSM do; ordinary files have an APP segment before it.
LOSSLESS_JPEG = b"\xff\xd8\xff\xc3"
_REGION = re.compile(r"(.+)#xywh=(\d{1,6}),(\d{1,6}),(\d{1,6}),(\d{1,6})", re.DOTALL)
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

    `frame`: which frame, from 0, of files that hold several; without it they are refused. `film`: DDSM's films (.LJPEG)
    by their grey values, or by the optical "density" that these stand for on the scanner they come from.

    >>> Contract(size=224, channels=1).fit
    'pad'
    """

    version: Literal[1] = 1
    size: int = Field(gt=0, le=4096)
    channels: Literal[1, 3]
    fit: Literal["pad", "stretch", "crop"] = "pad"
    frame: int | None = Field(default=None, ge=0)
    film: Literal["grey", "density"] = "grey"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a scan: (size, size), or (size, size, 3)."""
        return (self.size, self.size) if self.channels == 1 else (self.size, self.size, 3)


class NotShown(DataError):  # noqa: N818
    """A DICOM image that cannot be shown, while its header says whose it is: `patient` and `study` as in `Scan`."""

    def __init__(self, what: str, patient: str, study: str) -> None:
        super().__init__(what)
        self.patient, self.study = patient, study


class Scan(NamedTuple):
    """A scan as a model sees it.

    `remark` says what is remarkable of it, "" mostly; `patient` and `study` are PatientID and StudyInstanceUID of a
    DICOM header, "" where there is none.
    """

    pixels: NDArray[np.uint8]
    remark: str = ""
    patient: str = ""
    study: str = ""


def read_scan(path: Path, contract: Contract) -> NDArray[np.uint8]:
    """Read one image file of any supported format as (size, size) uint8, or (size, size, 3) RGB for 3 channels.

    `FILE#xywh=X,Y,WIDTH,HEIGHT` (as in W3C's Media Fragments) is that region of the file's image.

    Raises `NotAnImage` for what is no image by its content (tables, folders, Thumbs.db, DICOM reports), `DataError`
    with the reason for images that cannot be shown whole: cut off, damaged, several frames, larger than
    `PIXEL_LIMIT`. No reason holds a path or anything else of the file that could identify a patient.
    """
    return read(path, contract).pixels


def read(place: Path | Place, contract: Contract) -> Scan:
    """Read what `read_scan` reads, also out of an archive, with what its header says of it.

    Raises what `read_scan` raises; `NotShown` of what is DICOM.
    """
    place = place if isinstance(place, Place) else Place(place)
    file, box = region(place.path)
    data = archives.content(place._replace(path=file))
    head = data[:132]
    pixels: NDArray
    about = ("", "", "")
    # DICOM comes first: in front of its prefix lie 128 bytes that may be the header of a TIFF (PS3.10, 7.1).
    kind = None if head[128:] == b"DICM" else _KIND.match(head)
    if data.startswith(LOSSLESS_JPEG):
        from damcli.data import film

        pixels = film.read(data, file, contract.film)
    elif kind and kind.lastgroup == "JPEG":
        pixels = _jpeg(data, contract, whole=box is not None)
    elif kind and kind.lastgroup:
        pixels = pictures.read(data, kind.lastgroup, contract.frame)
    else:
        pixels, about = _dicom(data, head, contract.frame)
    return Scan(resize(pixels if box is None else _cut(pixels, box), contract), *about)


def region(path: Path) -> tuple[Path, tuple[int, int, int, int] | None]:
    """Return the file that a path means and the region of its image: (x, y, width, height), or None for all of it.

    >>> region(Path("a.png#xywh=10,20,30,40"))
    (PosixPath('a.png'), (10, 20, 30, 40))
    """
    found = _REGION.fullmatch(str(path))
    if found is None or path.exists():
        return path, None
    x, y, width, height = (int(number) for number in found.groups()[1:])
    return Path(found[1]), (x, y, width, height)


def _cut(pixels: NDArray, box: tuple[int, int, int, int]) -> NDArray:
    x, y, width, height = box
    part = pixels[y : y + height, x : x + width]
    if not part.size:
        raise DataError("the region lies outside the image")
    return np.ascontiguousarray(part)


def _dicom(data: bytes, head: bytes, frame: int | None) -> tuple[NDArray, tuple[str, str, str]]:
    # Imported where needed: pydicom takes longer to start than a folder of JPEG files to read.
    from damcli.dicom import pixels

    if pixels.is_dicom(head):
        dataset = pixels.read(io.BytesIO(data))
        patient, study = (_id(dataset, keyword) for keyword in ("PatientID", "StudyInstanceUID"))
        try:
            return pixels.grey16(dataset, frame), (pixels.remark(dataset), patient, study)
        except NotAnImage:
            raise
        except DataError as error:
            raise NotShown(error.what, patient, study) from error
    for magic, name in UNREADABLE.items():
        if re.match(magic, head, re.DOTALL):
            raise DataError(f"{name} images cannot be read: convert them to PNG without loss")
    if archive := archives.kind(data):
        raise DataError(f"this is an archive ({archive}), which may hold scans: unpack it")
    if not data.strip(b"\0"):
        # No file of another kind is like this, but copies that were cut off are.
        raise DataError("the file holds nothing but zeros: it was not copied whole" if data else "the file is empty")
    raise NotAnImage(NO_IMAGE)


def _id(dataset: Dataset, keyword: str) -> str:
    """Return an identifier of the header, "" where it is absent or cannot be read."""
    from pydicom.multival import MultiValue

    from damcli.dicom.display import element

    with warnings.catch_warnings(action="ignore"), suppress(DataError):  # pydicom's warnings quote it
        value = element(dataset, keyword)
        # A backslash, which no identifier should hold, makes it a list.
        parts = value if isinstance(value, MultiValue) else [value]
        return "\\".join("" if part is None else str(part) for part in parts).strip()[:ID_LIMIT]
    return ""


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


def _jpeg(data: bytes, contract: Contract, whole: bool) -> NDArray:
    import simplejpeg

    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        pictures.check_size(width, height)
        if space in ("CMYK", "YCCK") or _is_turned(data):
            return pictures.read(data, "JPEG", None)
        # Large images are scaled down while decoding, at least by 2 and never below three times the target, so that
        # what follows is still an area average: its mean difference from the exact one was below 0.5 of 255 on films,
        # and below 2 on noise and on the finest textures (twice the target is not enough for those). What "crop"
        # keeps may begin between scaled pixels.
        rows, columns = _target(height, width, contract)
        least = (height, width) if whole or contract.fit == "crop" else (3 * rows, 3 * columns)
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

    position = 2
    # EXIF should be the first segment after JFIF's, but there are files in which it is not.
    while data[position + 4 : position + 10] != b"Exif\0\0":
        try:
            start, marker, length = struct.unpack_from(">BBH", data, position)
        except struct.error:
            return False
        if start != 0xFF or marker == 0xDA:  # SOS, behind which the pixels lie
            return False
        position += 1 if marker == 0xFF else 2 + length
    start = position + 4
    exif = Image.Exif()
    try:
        exif.load(data[start : start + 2**16])
        return exif.get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # whatever a damaged block makes Pillow raise
        return False
