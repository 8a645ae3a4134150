"""Pictures that are neither DICOM nor plain JPEG: PNG, TIFF, PGM and the like, by Pillow, and plain PNG by OpenCV."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from damcli.dicom import PIXEL_LIMIT
from damcli.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

# TIFF's tags and their values (TIFF 6.0, sections 8 and 19).
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
WHITE_IS_ZERO, UNSIGNED, SIGNED = 0, 1, 2


def check_size(width: int, height: int) -> None:
    """Raise `DataError` for an image of more than `PIXEL_LIMIT` pixels."""
    if width * height > PIXEL_LIMIT:
        raise DataError(f"the image has {width} x {height} pixels; up to {PIXEL_LIMIT:,} are read")


def _plain_png(data: bytes) -> NDArray[np.uint8] | NDArray[np.uint16] | None:
    """Decode grey of 8 or 16 bits and colour of 8 with OpenCV, 1.7 times as fast as with Pillow; None for others.

    Only where the file is whole to its last checksum: OpenCV would fill up a damaged one without a word.
    """
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    if (colour, bits) not in ((0, 8), (0, 16), (2, 8)) or interlaced or width * height > PIXEL_LIMIT:
        return None
    position, kinds = 8, set()
    while b"IEND" not in kinds:
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data) or zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return None
        kinds.add(kind)
        position = end
    # Transparency, orientation and animation are Pillow's business; gamma and profiles are passed over by both.
    if kinds & {b"tRNS", b"eXIf", b"acTL"}:
        return None
    pixels: NDArray | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape[:2] != (height, width):
        return None
    return pixels if colour == 0 else np.ascontiguousarray(pixels[..., ::-1])


def read(data: bytes, kind: str, frame: int | None) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decode a picture: grey (H, W) uint8, or uint16 over 0 … 65535, or RGB (H, W, 3) uint8.

    `kind` is Pillow's name of the format; `frame` says which of several images in a file. Raises `DataError` with the
    reason for what is damaged, too large, or of a kind that could only be shown wrongly.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    from damcli.dicom.greyscale import spread

    if kind == "PNG":
        if data[24:26] == b"\x10\x04":  # of these, Pillow and OpenCV keep the upper 8 bits, which may hold nothing
            raise DataError("PNG files of 16-bit grey with an alpha channel are not read: remove the channel")
        with suppress(struct.error, cv2.error):  # what is wrong with it, Pillow says below
            if (plain := _plain_png(data)) is not None:
                return spread(plain) if plain.dtype == np.uint16 else plain

    try:
        # The only warning of interest, about the size, is an error here.
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=[kind]) as image:
            check_size(*image.size)
            images = getattr(image, "n_frames", 1)
            if images > 1 and kind != "JPEG":
                if frame is None:
                    fix = "damcli prepare --frame N takes one"
                    raise DataError(f"the file holds {images} images, and one is expected ({fix})")
                if frame >= images:
                    raise DataError(f"the file holds {images} images, and none has the number {frame}")
                image.seek(frame)
            tags = getattr(image, "tag_v2", {}) if kind == "TIFF" else {}
            bits, form = (_first(tags.get(tag, 1)) for tag in (BITS_PER_SAMPLE, SAMPLE_FORMAT))
            if (bits, form) == (8, SIGNED):
                raise DataError("TIFF files of signed 8-bit values are not read")
            image.load()
            if kind == "PNG" and data[25] == 0 and data[24] in (2, 4) and "transparency" in image.info:
                # Pillow spreads grey of few bits over 8, but not the one value of it that is transparent.
                image.info["transparency"] *= 255 // (2 ** data[24] - 1)
            unsigned = (bits, form) == (32, UNSIGNED)
            return _values(ImageOps.exif_transpose(image), tags.get(PHOTOMETRIC) == WHITE_IS_ZERO, unsigned)
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"the image has more than {PIXEL_LIMIT:,} pixels") from error
    except UnidentifiedImageError as error:
        raise DataError(f"the {kind} file is damaged, or of a kind that is not read") from error
    except Exception as error:  # Pillow's readers raise many kinds, and quote the file
        raise DataError(f"the {kind} file is cut off or damaged") from error


def _first(value: Any) -> Any:
    """Return the first of a tag's values: one comes by itself, several as a tuple."""
    return value[0] if isinstance(value, tuple) else value


def _values(image: Image.Image, white_is_zero: bool, unsigned: bool) -> NDArray[np.uint8] | NDArray[np.uint16]:
    from PIL import Image

    from damcli.dicom.greyscale import spread

    transparent = image.info.get("transparency")
    if image.mode in ("1", "L"):
        shown = np.asarray(image.convert("L"))
        return shown if transparent is None else np.where(shown == transparent, np.uint8(0), shown)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if unsigned and values.dtype == np.int32:  # Pillow has no unsigned type of 32 bits
            values = values.view(np.uint32)
        if values.dtype in (np.int32, np.uint32) and values.min() >= 0 and values.max() < 2**16:
            values = values.astype(np.uint16)
        if transparent is not None:  # no number, so that it is black and counts for no percentile
            values = np.where(values == transparent, np.float32(np.nan), values)
        grey = spread(values)
        return 65535 - grey if white_is_zero else grey
    if transparent is not None or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))
